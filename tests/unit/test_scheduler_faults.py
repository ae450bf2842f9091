"""What a decision falls back to, and several requests placed at once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from treadle.errors import InvalidInput
from treadle.scheduler import (
    HostColumns,
    HostTable,
    HostView,
    OnFault,
    PlacementRequest,
    PluginError,
    Ranking,
    Registry,
    Scheduler,
)

REQUEST = PlacementRequest("i-1", vcpus=2, memory_mib=1024, disk_mib=1000)


def host(number: int, used: int = 0) -> HostView:
    return HostView(
        number, f"n{number}", "up", "x86_64", frozenset(), 8, used, 8192, 0, 90_000, 0, used
    )


HOSTS = [host(1, 2), host(2, 0), host(3, 4)]


class Late:
    """Right, but too late."""

    name = "late"
    row_local = True

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        time.sleep(0.02)
        return hosts.ids == 1

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        return "is late"

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        time.sleep(0.02)
        return hosts.ids.astype(np.float64)

    def rank(self, _request: PlacementRequest, _hosts: HostColumns, _rng: Any, /) -> Any:
        time.sleep(0.02)
        return "nonsense as well"


def registry() -> Registry:
    made = Registry()
    for kind in ("filter", "weigher", "policy"):
        made.add(kind, "late", Late)
    return made


@pytest.mark.parametrize(("policy", "filters", "weighers", "kind"), [
    ("best-fit", ["late"], {}, "filter"), ("late", ["state"], {}, "policy"),
    ("weighted", ["state"], {"late": 5.0, "cpu_free": -1.0}, "weigher"),
])
def test_a_late_answer_is_named_counted_and_dropped(
    policy: str, filters: list[str], weighers: dict[str, float], kind: str
) -> None:
    falls = OnFault("skip", "best-fit", 0.01)
    engine = Scheduler(policy, filters, weighers, registry(), falls)
    ranking, record = engine.rank(HostColumns.from_views(HOSTS, 1), REQUEST)
    assert list(ranking) == [3, 1, 2]
    assert any("'late'" in note and "are allowed" in note for note in record.notes)
    assert engine.faults == {(kind, "late"): 1}
    assert engine.pick(HostTable(HOSTS), REQUEST) == 3
    assert engine.faults == {(kind, "late"): 2}


def test_without_a_fallback_a_late_answer_fails_the_placement() -> None:
    for policy, filters in (("best-fit", ["late"]), ("late", ["state"])):
        engine = Scheduler(policy, filters, {}, registry(), OnFault(limit_s=0.01))
        with pytest.raises(PluginError, match="'late'"):
            engine.rank(HostColumns.from_views(HOSTS, 1), REQUEST)
        with pytest.raises(PluginError, match="'late'"):
            engine.pick(HostTable(HOSTS), REQUEST)


def test_too_few_scores_are_a_fault_and_leave_no_host_out() -> None:
    class Short:
        def rank(
            self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
        ) -> Ranking:
            return Ranking.by_score(hosts, np.zeros(2))

    made = Registry()
    made.add("policy", "short", Short)
    engine = Scheduler("short", ["state"], {}, made, OnFault(policy="first-fit"))
    ranking, record = engine.rank(HostColumns.from_views(HOSTS, 1), REQUEST)
    assert len(ranking) == len(HOSTS)
    assert "scores of shape (2,) for 3 hosts" in record.notes[0]
    assert engine.faults == {("policy", "short"): 1}


def test_an_unknown_fallback_lists_the_known() -> None:
    with pytest.raises(InvalidInput, match=r"known are .*best-fit"):
        Scheduler("best-fit", [], {}, on_fault=OnFault(policy="no-such"))


def many(count: int, **more: Any) -> list[PlacementRequest]:
    return [replace(REQUEST, instance_id=f"i-{n}", **more) for n in range(count)]


@pytest.mark.parametrize("policy", ["best-fit", "solver", "weighted"])
def test_several_at_once_never_take_more_than_there_is(policy: str) -> None:
    columns = HostColumns.from_views(HOSTS, 1)
    placed = Scheduler(policy, ["state", "capacity"], {"cpu_free": 1.0}).place(columns, many(12))
    assert Counter(placed) == {1: 3, 2: 4, 3: 2, None: 3}


def test_the_solver_fits_what_one_after_the_other_does_not() -> None:
    """Best fit puts the small ones into the gap that only the large one needs whole."""
    columns = HostColumns.from_views([host(1, 4), host(2, 2)], 1)
    asked = [replace(REQUEST, vcpus=vcpus) for vcpus in (2, 2, 4, 2)]
    solved = Scheduler("solver", ["state", "capacity"], {}).place(columns, asked)
    assert None not in solved
    assert Scheduler("solver", ["state", "capacity"], {}).place(columns, asked) == solved


def test_the_solver_keeps_groups_and_leaves_empty_hosts_empty() -> None:
    columns = HostColumns.from_views(HOSTS, 1)
    engine = Scheduler("solver", ["state", "capacity", "anti_affinity", "affinity"], {})
    apart = engine.place(columns, many(4, group="anti-affinity", batch="b"))
    assert sorted(host for host in apart if host) == [1, 2, 3]
    assert apart.count(None) == 1
    there = engine.place(
        columns, many(2, group="anti-affinity", batch="b", group_hosts=((3, 1),))
    )
    assert sorted(map(str, there)) == ["1", "2"]
    assert len(set(engine.place(columns, many(3, group="affinity", batch="b")))) == 1
    assert 2 not in engine.place(columns, many(5))


def test_a_predictor_learns() -> None:
    engine = Scheduler("lifetime-aware", ["state", "capacity"], {})
    short = replace(REQUEST, tenant="p")
    busy = [replace(host(1, 2), busy_until=0.0), replace(host(2, 2), busy_until=90_000.0)]
    assert engine.pick(HostTable(busy), short) == 2
    for _ in range(5):
        engine.ended(short, 300.0)
    assert engine.pick(HostTable(busy), short) == 1
