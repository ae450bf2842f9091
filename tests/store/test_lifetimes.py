"""What a predictor is told of the instances of a database, and what hosts are kept busy by."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from tests.store.test_ledger import SMALL, add_host, add_instances, together

from treadle.compute import store
from treadle.db.engine import Database, note
from treadle.db.schema import allocation, instance
from treadle.placement import ledger, lifetimes
from treadle.placement.board import Board
from treadle.placement.ledger import Room
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.registry import Registry
from treadle.scheduler.simulate import replay
from treadle.scheduler.simulate_trace import Arrival, Trace
from treadle.scheduler.table import HostTable

FILTERS = ("state", "capacity")
HOUR = 3600.0
NOTHING = SMALL.sha256


class Told:
    """A predictor that remembers what it is told, and says an hour."""

    def __init__(self) -> None:
        self.of: list[tuple[str, float]] = []

    def lifetime_s(self, _request: PlacementRequest, /) -> float:
        return HOUR

    def ended(self, request: PlacementRequest, lifetime_s: float, /) -> None:
        self.of.append((request.instance_id, lifetime_s))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def scheduler(told: Told) -> Scheduler:
    registry = Registry()
    registry.add("predictor", "told", lambda: told)
    return Scheduler("lifetime-aware", FILTERS, {}, registry, predictor="told")


def lived(database: Database, since: float, until: float | None, **values: Any) -> int:
    [one] = add_instances(
        database, 1, created_at=since, deleted_at=until, launched_at=since, state="deleted",
        **values,
    )
    return one


def end(database: Database, one: int, at: float) -> None:
    """As the instance's last pass does."""
    def write(conn: sa.Connection) -> None:
        ledger.release(conn, one)
        store.update(conn, one, deleted_at=at, state="deleted")
        note(conn, lifetimes.ENDED, one)

    database.write(write)


def put(database: Database, board: Board, host: int, one: int, **more: Any) -> float | None:
    """Rank and claim; when it is expected to end."""
    outlook = board.rank(PlacementRequest(f"u-{one}", 1, 1024, 1000, asked_at=50.0, **more), SMALL)
    assert database.write(lambda conn: ledger.claim(conn, host, one, outlook.room))
    board.let_go(f"u-{one}")
    return outlook.room.ends_at


def busy(board: Board) -> list[float]:
    return [view.busy_until for view in board.look()]


def test_those_that_ended_are_learnt_of_once_in_order(
    database: Database, scheduler: Scheduler, told: Told
) -> None:
    add_host(database)
    names = {}
    for n, until in enumerate((400.0, 200.0, None, 300.0)):
        id = lived(database, 100.0, until)
        names[n] = f"u-{id - 1}"
    add_instances(database, 1, deleted_at=350.0, created_at=100.0)  # it never ran
    board = Board(database, scheduler)
    board.look()
    assert told.of == [(names[1], 100.0), (names[3], 200.0), (names[0], 300.0)]
    end(database, 3, 500.0)
    board.look()
    assert told.of[3:] == [(names[2], 400.0)]
    with board._ranking:
        board._refresh(anew=True)
    assert len(told.of) == 4
    # Another controller's, committed after a newer one.
    database.write(lambda conn: conn.execute(sa.update(instance).values(
        deleted_at=470.0, launched_at=1.0
    ).where(instance.c.deleted_at == 350.0)))
    with board._ranking:
        board._refresh(anew=True)
        board._refresh(anew=True)
    assert [at for _, at in told.of[4:]] == [370.0]


def test_only_the_newest_are_learnt_of_at_the_start(
    database: Database, scheduler: Scheduler, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetimes, "MOST", 2)
    for until in (40.0, 20.0, 30.0):
        lived(database, 10.0, until)
    Board(database, scheduler).look()
    assert [at for _, at in told.of] == [20.0, 30.0]


def test_what_is_learnt_is_what_was_asked(
    database: Database, scheduler: Scheduler, told: Told
) -> None:
    one = lived(database, 100.0, 200.0, vcpus=7)
    asked = PlacementRequest("as-asked", 2, 512, 0, tenant="t", extra_specs=(("a", "b"),))
    record = {"request": asked.to_dict()}
    database.write(lambda conn: store.record_decision(conn, one, None, record))
    Board(database, scheduler).look()
    assert told.of == [("as-asked", 100.0)]
    seen = database.read(lambda conn: conn.execute(
        sa.select(*lifetimes._ROW).where(instance.c.id == one)
    ).one())
    assert lifetimes._request(seen) == asked
    assert json.loads(seen.record)["request"]["tenant"] == "t"


def test_hosts_are_busy_until_the_last_is_expected_to_end(
    database: Database, scheduler: Scheduler
) -> None:
    host, other = (add_host(database, f"fake://h{n}") for n in (1, 2))
    first, second, before = add_instances(database, 3, created_at=7.0)
    assert database.write(lambda conn: ledger.claim(conn, other, before, SMALL))
    board = Board(database, scheduler)
    assert busy(board) == [0.0, 7.0 + HOUR], "also by what was placed when nobody asked"
    assert put(database, board, host, first) == 50.0 + HOUR
    assert busy(board) == [50.0 + HOUR, 7.0 + HOUR]
    assert put(database, board, host, second) == 50.0 + HOUR
    database.write(lambda conn: conn.execute(
        sa.update(allocation).values(ends_at=9.0).where(allocation.c.instance_id == second)
    ))
    end(database, first, 60.0)
    assert busy(board) == [9.0, 7.0 + HOUR]
    end(database, second, 60.0)
    assert busy(board) == [0.0, 7.0 + HOUR]
    database.write(lambda conn: (
        ledger.hold(conn, host, SMALL), ledger.moved(conn, before, host)
    ))
    assert busy(board) == [7.0 + HOUR, 0.0], "it goes with the instance"


def test_what_is_held_keeps_a_host_busy(database: Database, scheduler: Scheduler) -> None:
    add_host(database)
    board = Board(database, scheduler)
    board.rank(PlacementRequest("u-a", 1, 1024, 1000, asked_at=50.0), SMALL)
    assert busy(board) == [50.0 + HOUR]
    board.let_go("u-a")
    assert busy(board) == [0.0]


def test_a_policy_that_does_not_ask_costs_nothing(database: Database) -> None:
    host = add_host(database)
    one, two = add_instances(database, 2)
    lived(database, 1.0, 2.0)
    asked: list[str] = []
    engine: Any = database
    sa.event.listen(
        engine.engine, "before_cursor_execute", lambda *args: asked.append(args[2])
    )
    board = Board(database, Scheduler("best-fit", FILTERS, {}))
    assert put(database, board, host, one) is None
    end(database, one, 60.0)
    assert put(database, board, host, two) is None
    assert busy(board) == [0.0]
    assert not [text for text in asked if "max(allocation.ends_at)" in text]


@pytest.mark.parametrize("says", [-1.0, float("nan"), float("inf"), "soon", None])
def test_a_predictor_that_says_nonsense_is_counted(
    database: Database, scheduler: Scheduler, told: Told, says: Any
) -> None:
    told.lifetime_s = lambda _request: says  # type: ignore[method-assign]
    found = lifetimes.Lifetimes(database, scheduler).expects(PlacementRequest("u-x", 1, 1, 1))
    assert found is None
    assert scheduler.faults["predictor", "told"] == 1


class Picks(Scheduler):
    """Remembers where the simulator placed each."""

    def __init__(self) -> None:
        super().__init__("lifetime-aware", FILTERS, {})
        self.at: dict[str, int | None] = {}

    def pick(self, table: HostTable, request: PlacementRequest) -> int | None:
        found = self.at[request.instance_id] = super().pick(table, request)
        return found


def arrivals(count: int) -> Iterator[Arrival]:
    """VMs whose tenant says how long they live, on a clock of hours."""
    draw = random.Random(7)
    at = 1000.0
    for n in range(count):
        at += draw.uniform(0.05, 0.6) * HOUR
        tenant = draw.choice(("short", "long", "odd"))
        hours = {"short": 1.0, "long": 30.0, "odd": draw.uniform(0.2, 60)}[tenant]
        vcpus = draw.choice((1, 2, 4))
        yield Arrival(f"u-{n}", at, at + hours * HOUR, vcpus, vcpus * 1024, 1000, tenant=tenant)


def test_the_same_trace_goes_to_the_same_hosts_as_in_the_simulator(database: Database) -> None:
    for n in range(4):
        add_host(database, f"fake://h{n}")
    trace = list(arrivals(60))
    live = Scheduler("lifetime-aware", FILTERS, {})
    board = Board(database, live)
    views = list(board.look())
    simulated = Picks()
    out = replay(Trace("t", trace, trace[0].at, trace[-1].until), views, simulated)
    plain = Scheduler("best-fit", FILTERS, {})
    assert len({host for host in simulated.at.values() if host}) > 1
    ids = {one.name: add_instances(
        database, 1, uuid=one.name, created_at=one.at, launched_at=one.at, vcpus=one.vcpus,
        memory_mib=one.memory_mib, project_id=one.tenant, batch="",
    )[0] for one in trace}
    # No image takes room in the trace.
    events = sorted(
        [(one.until, 0, n, one) for n, one in enumerate(trace)]
        + [(one.at, 1, n, one) for n, one in enumerate(trace)]
    )
    placed: dict[str, int | None] = {}
    other = 0
    for at, kind, _, one in events:
        if kind == 0:
            if placed.get(one.name):
                end(database, ids[one.name], at)
            continue
        request = PlacementRequest(
            one.name, one.vcpus, one.memory_mib, one.disk_mib, tenant=one.tenant, asked_at=one.at,
            batch="",
        )
        ranking, _ = plain.rank(board.look(), request)
        outlook = board.rank(request, Room(one.vcpus, one.memory_mib, one.disk_mib, NOTHING, 0))
        host = int(outlook.ranking.ids[0]) if len(outlook.ranking) else None
        placed[one.name] = host
        if host is not None:
            other += host != int(ranking.ids[0])
            assert database.write(
                lambda conn, h=host, o=one, r=outlook.room: ledger.claim(conn, h, ids[o.name], r)
            )
            board.let_go(one.name)
    assert placed == simulated.at
    assert other, "lifetimes had a say"
    assert out.placed == sum(host is not None for host in placed.values())
    board.look()
    # A controller that starts now knows the same.
    again = Scheduler("lifetime-aware", FILTERS, {})
    Board(database, again).look()
    for one in trace:
        assert again.expects(one.request(0)) == pytest.approx(live.expects(one.request(0)))


def test_many_that_claim_at_once_are_all_counted(database: Database, scheduler: Scheduler) -> None:
    host = add_host(database)
    some = add_instances(database, 6)
    board = Board(database, scheduler)
    together([lambda one=one: put(database, board, host, one) for one in some])
    assert busy(board) == [50.0 + HOUR]
    for one in some:
        end(database, one, 70.0)
    assert busy(board) == [0.0]
