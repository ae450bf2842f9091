"""Plans of moves: what they reach, what they leave alone, and how they are carried out."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import InvalidInput, RetryLater
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.rebalance import Goal, Move, Pace, Rebalancing, carry_out, make_plan
from treadle.scheduler.simulate_cloud import CloudNow
from treadle.scheduler.simulate_trace import Arrival, parse_hosts

FILTERS = ("state", "capacity", "excluded")


def vm(name: str, host: int, vcpus: int = 1, gib: int = 1, **wish: object) -> Arrival:
    asked = PlacementRequest(name, vcpus, gib * 1024, 0, **wish)  # type: ignore[arg-type]
    return Arrival(name, 0.0, math.inf, vcpus, gib * 1024, wish=asked, host=host)


def cloud(hosts: str, *running: Arrival) -> CloudNow:
    return CloudNow(tuple(parse_hosts(hosts)), running)


def after(now: CloudNow, moves: Sequence[Move]) -> dict[str, int | None]:
    where = {one.name: one.host for one in now.running}
    for move in moves:
        assert where[move.instance] == move.source
        where[move.instance] = move.target
    return where


def test_consolidation_empties_the_least_used_hosts() -> None:
    now = cloud("3x4c8g", vm("a", 1), vm("b", 1), vm("c", 2), vm("d", 3), vm("e", 3), vm("f", 3))
    plan = make_plan(now, "consolidate", FILTERS)
    assert plan.moves == (Move("c", 2, 3, 1.0, 1024),)
    assert plan.empty == (0, 1)
    assert Rebalancing.from_dict(plan.to_dict()) == plan


def test_a_host_is_emptied_whole_or_not_at_all() -> None:
    now = cloud("2x4c8g", vm("a", 1, 2), vm("b", 1), vm("c", 2, 3))
    assert make_plan(now, "consolidate", FILTERS).moves == ()
    now = cloud("2x4c8g", vm("a", 1), vm("b", 1), vm("c", 2, 2))
    assert len(make_plan(now, "consolidate", FILTERS, most=1).moves) <= 1
    assert len(make_plan(now, "consolidate", FILTERS, most=2).moves) in (1, 2)


def test_the_solver_empties_a_host_where_one_after_the_other_does_not_fit() -> None:
    held = [replace(vm("x", 2, 3, 4), wish=None), replace(vm("y", 3, 4, 3), wish=None)]
    now = cloud(
        "1x40c40g,2x8c8g", *held,
        vm("a", 1, 2, 1), vm("b", 1, 2, 1), vm("c", 1, 2, 3), vm("d", 1, 3, 2),
    )
    assert make_plan(now, "consolidate", FILTERS).moves == ()
    plan = make_plan(now, "consolidate", FILTERS, solve=True)
    assert plan.empty == (0, 1)
    assert Counter(move.target for move in plan.moves) == {2: 2, 3: 2}
    with pytest.raises(InvalidInput, match="consolidation"):
        make_plan(now, "spread", FILTERS, solve=True)


def test_spreading_lowers_the_highest_load() -> None:
    now = cloud("3x4c8g", *(vm(f"v{n}", 1) for n in range(4)))
    plan = make_plan(now, "spread", FILTERS)
    assert plan.highest_load == (1.0, 0.5)
    assert len(plan.moves) == 2
    assert plan.moves[0].gain == pytest.approx(1 - 9 / 16 - 1 / 16)
    assert len(make_plan(now, "spread", FILTERS, most=1).moves) == 1


def test_what_may_not_go_stays() -> None:
    grouped = vm("g", 1, group="anti-affinity")
    pinned = vm("p", 1, only_hosts=frozenset({1}))
    away = vm("x", 1, excluded_hosts=frozenset({2}))
    unknown = replace(vm("u", 1), wish=None)
    now = cloud("2x4c8g", grouped, pinned, away, unknown)
    plan = make_plan(now, "spread", FILTERS)
    assert plan.moves == ()
    assert set(plan.fixed) == {"g", "u"}
    down = CloudNow((now.hosts[0], replace(now.hosts[1], state="down")), (vm("a", 1), vm("b", 1)))
    assert make_plan(down, "spread", FILTERS).moves == ()


def test_spreading_raises_no_host_above_what_was_the_highest() -> None:
    """Memory weighs most on one host and processors on the other: both together are more."""
    now = cloud("2x6c8g", vm("a", 1, 1, 3), vm("b", 2, 2, 0))
    assert make_plan(now, "spread", FILTERS).moves == ()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 3)), max_size=14),
    st.sampled_from(["consolidate", "spread"]), st.integers(1, 8),
)
def test_a_plan_never_overfills_and_never_makes_it_worse(
    rows: list[tuple[int, int, int]], goal: Goal, most: int
) -> None:
    used = {host: [0, 0] for host in range(1, 5)}
    running = []
    for number, (host, vcpus, gib) in enumerate(rows):
        if used[host][0] + vcpus <= 6 and used[host][1] + gib <= 8:
            used[host][0] += vcpus
            used[host][1] += gib
            running.append(vm(f"v{number}", host, vcpus, gib))
    now = cloud("4x6c8g", *running)
    plan = make_plan(now, goal, FILTERS, most)
    assert len(plan.moves) <= most
    assert after(now, plan.moves).keys() == {one.name for one in running}
    sizes = {one.name: one for one in running}
    for move in plan.moves:
        one = sizes[move.instance]
        used[move.target][0] += one.vcpus
        used[move.target][1] += one.memory_mib // 1024
        used[move.source][0] -= one.vcpus
        used[move.source][1] -= one.memory_mib // 1024
        assert used[move.target][0] <= 6
        assert used[move.target][1] <= 8
    if goal == "consolidate":
        assert plan.empty[1] >= plan.empty[0]
    else:
        assert plan.highest_load[1] <= plan.highest_load[0]


def test_a_broken_plan_is_told() -> None:
    for data in ({}, {"goal": "spread", "moves": [{"instance": "a"}], "fixed": {}}, []):
        with pytest.raises(InvalidInput, match="--save"):
            Rebalancing.from_dict(data)  # type: ignore[arg-type]


@dataclass
class Script:
    """A mover whose moves take a number of looks, and may fail."""

    looks: int = 1
    broken: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    begun: list[str] = field(default_factory=list)
    at_once: int = 0
    going: dict[str, int] = field(default_factory=dict)
    stop: threading.Event | None = None

    def begin(self, move: Move, /) -> None:
        if move.instance in self.refused:
            raise RetryLater("not now")
        self.begun.append(move.instance)
        self.going[move.instance] = self.looks
        self.at_once = max(self.at_once, len(self.going))
        if self.stop is not None:
            self.stop.set()

    def state(self, move: Move, /) -> str:
        self.going[move.instance] -= 1
        if self.going[move.instance] > 0:
            return "moving"
        del self.going[move.instance]
        return "it broke" if move.instance in self.broken else "done"


def carried(
    moves: Sequence[Move], script: Script, at_once: int = 2, *, go_on: bool = False
) -> dict[str, str]:
    told: dict[str, str] = {}
    carry_out(
        moves, script, lambda move, outcome, _: told.update({move.instance: outcome}),
        script.stop or threading.Event(), Pace(at_once, look_s=0.001, go_on=go_on),
    )
    return told


MOVES = [Move(name, 1, 2 + number, 0.1, 1) for number, name in enumerate("abcde")]


def test_moves_are_bounded_at_once_and_all_are_told() -> None:
    script = Script(looks=3)
    assert carried(MOVES, script) == dict.fromkeys("abcde", "done")
    assert script.at_once == 2
    assert script.begun == list("abcde")


def test_after_a_failure_no_other_is_begun() -> None:
    told = carried(MOVES, Script(broken=frozenset("b")), at_once=1)
    assert told == {"a": "done", "b": "failed", "c": "skipped", "d": "skipped", "e": "skipped"}
    told = carried(MOVES, Script(looks=2, refused=frozenset("b")))
    assert told == {"a": "done", "b": "failed", "c": "skipped", "d": "skipped", "e": "skipped"}


def test_it_can_be_stopped_and_waits_for_what_is_under_way() -> None:
    told = carried(MOVES, Script(looks=5, stop=threading.Event()))
    assert told["a"] == "done"
    assert told["e"] == "skipped"


def test_a_move_waits_for_the_room_that_another_gives() -> None:
    script = Script(looks=3)
    moves = [Move("a", 2, 3, 0.1, 1), Move("b", 1, 2, 0.1, 1)]
    assert carried(moves, script, at_once=2) == {"a": "done", "b": "done"}
    assert script.at_once == 1


def test_what_does_not_end_in_time_has_failed() -> None:
    told: list[str] = []
    carry_out(
        MOVES[:1], Script(looks=10**9), lambda _m, outcome, why: told.append(f"{outcome}: {why}"),
        threading.Event(), Pace(seconds=0.01, look_s=0.001),
    )
    assert told == ["failed: it has not ended in 0.01 s"]


def test_moves_that_count_on_nothing_go_on_after_a_failure() -> None:
    script = Script(broken=frozenset("a"), refused=frozenset("c"))
    told = carried(MOVES, script, at_once=1, go_on=True)
    assert told == {"a": "failed", "b": "done", "c": "failed", "d": "done", "e": "done"}
