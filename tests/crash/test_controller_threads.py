"""The engine with its real threads, on SQLite in a file: leases, lanes, latency, and SIGKILL."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from treadle.compute import actions, creating, store
from treadle.compute.creating import Wish
from treadle.compute.fleet import Fleet
from treadle.compute.hosts import HostHandler, HostImageHandler, HostPolicy
from treadle.compute.kinds import HOST_KIND, IMAGE_KIND, KIND
from treadle.compute.model import Goal, Instance, State, is_settled
from treadle.compute.reconciler import InstanceHandler, Timing
from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.signals import Key, Signals
from treadle.controller.worker import Controller
from treadle.db.engine import SqliteDatabase
from treadle.db.migrate import upgrade
from treadle.db.schema import allocation, host, image, instance, work
from treadle.hypervisor.base import HostSetup
from treadle.hypervisor.fake import FakeFleet
from treadle.placement import ledger
from treadle.placement.board import Board
from treadle.scheduler.engine import Scheduler

DEADLINE_S = 10.0
CONTENT = b"a small disk"


def until(holds: Callable[[], bool], seconds: float = DEADLINE_S) -> float:
    """Wait until it holds; how long that took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, "it did not come about in time"
        time.sleep(0.002)
    return time.monotonic() - started


class Cloud:
    """A database, fake hosts, and any number of controllers over them."""

    def __init__(self, folder: Path, hosts: int = 2) -> None:
        self.database = SqliteDatabase(folder / "treadle.sqlite", synchronous="NORMAL")
        upgrade(self.database)
        self.signals = Signals()
        self.fakes = FakeFleet()
        self.controllers: list[Controller] = []
        self.ended: list[str] = []
        self._closers: list[Callable[[], None]] = []
        self.names = [f"h{number}" for number in range(1, hosts + 1)]
        for name in self.names:
            self.fakes.driver(f"fake://{name}")
        content = folder / "image.qcow2"
        content.write_bytes(CONTENT)
        self.database.write(lambda conn: self._rows(conn, content))

    def _rows(self, conn: sa.Connection, content: Path) -> None:
        for name in self.names:
            id = ledger.add_host(conn, f"fake://{name}", name, ledger.Ratios(1.0, 1.0, 1.0, 0))
            queue.enqueue(conn, HOST_KIND, str(id), lane=id)
        conn.execute(sa.insert(image).values(
            name="guest", source="here", state="active", path=str(content), format="raw",
            sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT),
            virtual_bytes=1 << 20, added_at=0.0,
        ))
        store.put_flavor(conn, store.Flavor(1, 1, 256, 1))

    def control(
        self, *, lease_s: float = 30.0, poll_s: float = 1.0, signals: Signals | None = None
    ) -> Controller:
        """Start one more controller, with handlers and connections of its own."""
        signals = signals or self.signals
        fleet = Fleet(self.fakes.driver)
        policy = HostPolicy(HostSetup(virt_type="fake"))
        watching = HostHandler(self.database, fleet, signals, policy)
        scheduler = Scheduler("first-fit", ("state", "capacity", "excluded"), {})
        board = Board(self.database, scheduler)
        made = Controller(
            self.database,
            {
                KIND: InstanceHandler(
                    self.database, fleet, board, Timing(lease_s, 60.0, 3), "cloud"
                ),
                HOST_KIND: watching,
                IMAGE_KIND: HostImageHandler(self.database, fleet, signals, policy),
            },
            signals, lease_s=lease_s, poll_s=poll_s, on_lease_end=self.ended.append,
        )
        watching.hint = made.hint
        self.controllers.append(made)
        self._closers.append(fleet.close)
        made.start()
        return made

    def create(self, count: int = 1, name: str = "vm") -> list[int]:
        """Ask for instances as the API does."""
        made = self.database.write(lambda conn: creating.create(
            conn, Wish(name, 1, 1, count=count), request_id="req", build_deadline_s=60.0
        ))
        self.signals.work_is_due()
        return [one.id for one in made]

    def act(self, id: int, what: str) -> None:
        """Ask for an action as the API does."""
        if what == "delete":
            self.database.write(lambda conn: actions.delete(conn, id, request_id="req"))
        else:
            self.database.write(lambda conn: actions.act(
                conn, id, what, request_id="req", deadline_s=30.0
            ))
        self.signals.work_is_due()

    def get(self, id: int) -> Instance:
        """The row as it is now."""
        found = self.database.read(lambda conn: store.get(conn, id))
        assert found is not None
        return found

    def is_settled(self, *ids: int) -> bool:
        """Whether all of them are as wanted."""
        return all(map(is_settled, map(self.get, ids)))

    def hosts_up(self) -> bool:
        """Whether every host has been reached."""
        return all(
            one.status is ledger.HostStatus.UP
            for one in self.database.read(ledger.list_hosts)
        )

    def close(self) -> None:
        """Stop everything."""
        for controller in self.controllers:
            controller.stop(5.0)
        for close in self._closers:
            close()
        self.database.close()


@contextmanager
def cloud_of(folder: Path, hosts: int = 2) -> Iterator[Cloud]:
    """A cloud that is closed at the end."""
    made = Cloud(folder, hosts)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """Two hosts and no controller yet."""
    with cloud_of(tmp_path) as made:
        yield made


def test_two_controllers_share_the_work_and_do_each_thing_once(cloud: Cloud) -> None:
    cloud.control()
    cloud.control()
    until(cloud.hosts_up)
    ids = cloud.create(12)
    until(lambda: cloud.is_settled(*ids))
    starts = sum((cloud.fakes.hosts[name].starts for name in cloud.names), start=type(
        cloud.fakes.hosts["h1"].starts)())
    assert all(cloud.get(id).state is State.RUNNING for id in ids)
    assert set(starts.values()) == {1}
    for id in ids:
        cloud.act(id, "delete")
    until(lambda: cloud.is_settled(*ids))
    assert not any(cloud.fakes.hosts[name].guests for name in cloud.names)
    assert all(not one.instances for one in cloud.database.read(ledger.list_hosts))


def test_a_spawn_waits_for_no_poll(cloud: Cloud) -> None:
    """Placing, the image, defining and starting follow one another at once."""
    cloud.control(poll_s=5.0)
    until(cloud.hosts_up)
    ids = cloud.create()
    assert until(lambda: cloud.is_settled(*ids)) < 2.0
    for what in ("stop", "start", "reboot", "pause", "resume", "suspend", "resume", "delete"):
        cloud.act(ids[0], what)
        assert until(lambda: cloud.is_settled(*ids)) < 2.0, what


def test_work_is_done_without_any_signal_within_the_poll(cloud: Cloud) -> None:
    class Deaf(Signals):
        def work_is_due(self) -> None:
            """Every hint inside the process is lost."""

    cloud.signals = Deaf()
    cloud.control(poll_s=0.1, signals=cloud.signals)
    until(cloud.hosts_up)
    ids = cloud.create(3)
    assert until(lambda: cloud.is_settled(*ids)) < 3.0
    cloud.act(ids[0], "stop")
    assert until(lambda: cloud.is_settled(*ids)) < 3.0


def test_an_act_longer_than_its_lease_keeps_it(cloud: Cloud) -> None:
    """The keeper renews it, so the second controller never takes over."""
    cloud.control(lease_s=2.0)
    cloud.control(lease_s=2.0)
    until(cloud.hosts_up)
    begun: list[str] = []

    def slow(when: str, verb: str, uuid: str) -> None:
        if verb == "start" and when == "before":
            begun.append(uuid)
            time.sleep(3.0)  # longer than the lease

    for name in cloud.names:
        cloud.fakes.hosts[name].trap = slow
    ids = cloud.create()
    until(lambda: cloud.is_settled(*ids))
    assert len(begun) == 1
    assert cloud.ended == []


def test_the_process_is_ended_before_a_lease_that_cannot_be_renewed(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.control(lease_s=3.0)
    until(cloud.hosts_up)
    go_on = threading.Event()
    stuck = threading.Event()

    def block(when: str, verb: str, _uuid: str) -> None:
        if verb == "start" and when == "before":
            stuck.set()
            go_on.wait(DEADLINE_S)

    for name in cloud.names:
        cloud.fakes.hosts[name].trap = block
    monkeypatch.setattr(queue, "renew", lambda _conn, _tickets, _lease_s: set())
    ids = cloud.create()
    assert stuck.wait(DEADLINE_S)
    began = time.monotonic()
    until(lambda: bool(cloud.ended))
    assert time.monotonic() - began < 3.0
    assert cloud.get(ids[0]).uuid in cloud.ended[0]
    go_on.set()


@pytest.mark.parametrize("end", [
    lambda conn, ticket: queue.finish(conn, ticket, delay=9.0), queue.remove, queue.complete,
])
def test_a_pass_that_has_said_its_end_may_be_slow_to_return(
    cloud: Cloud, end: Callable[[sa.Connection, Ticket], object]
) -> None:
    """Its lease is not there to be renewed, and nothing is done under it: the process goes on."""
    renewals = threading.Semaphore(0)
    returned = threading.Event()

    class Slow:
        def run(self, ticket: Ticket) -> None:
            cloud.database.write(lambda conn: end(conn, ticket))
            while ticket.lease.time_left() > 0:
                assert renewals.acquire(timeout=DEADLINE_S)
            returned.set()

    signals = Signals()
    controller = Controller(
        cloud.database, {"thing": Slow()}, signals, lease_s=1.0, on_lease_end=cloud.ended.append
    )
    renew = controller._renew

    def counted(tickets: list[Ticket]) -> set[Key]:
        kept = renew(tickets)
        renewals.release()
        return kept

    controller._renew = counted  # type: ignore[method-assign]
    cloud.controllers.append(controller)
    cloud.database.write(lambda conn: queue.enqueue(conn, "thing", "1"))
    controller.start()
    assert returned.wait(DEADLINE_S)
    assert cloud.ended == []


def test_a_hung_host_holds_up_only_its_own_work(cloud: Cloud) -> None:
    cloud.control()
    until(cloud.hosts_up)
    go_on = threading.Event()

    def hang(when: str, _verb: str, _uuid: str) -> None:
        if when == "before":
            go_on.wait(DEADLINE_S)

    cloud.fakes.hosts["h1"].trap = hang
    stuck = cloud.create(16, name="stuck")
    until(lambda: all(cloud.get(id).host_id == 1 for id in stuck))
    ids = cloud.create(8)
    assert until(lambda: cloud.is_settled(*ids)) < 3.0
    assert {cloud.get(id).host_id for id in ids} == {2}
    assert not cloud.is_settled(stuck[0])
    go_on.set()
    until(lambda: cloud.is_settled(*stuck))


def test_stop_ends_in_time_though_a_verb_hangs(tmp_path: Path) -> None:
    with cloud_of(tmp_path) as cloud:
        controller = cloud.control()
        until(cloud.hosts_up)
        go_on = threading.Event()
        stuck = threading.Event()

        def hang(when: str, verb: str, _uuid: str) -> None:
            if verb == "start" and when == "before":
                stuck.set()
                go_on.wait(DEADLINE_S)

        cloud.fakes.hosts["h1"].trap = hang
        cloud.create()
        assert stuck.wait(DEADLINE_S)
        began = time.monotonic()
        controller.stop(0.3)
        assert time.monotonic() - began < 1.5
        go_on.set()
        until(lambda: not controller._held)


def test_what_a_stopped_controller_held_is_free_at_once(tmp_path: Path) -> None:
    with cloud_of(tmp_path) as cloud:
        first = cloud.control()
        until(cloud.hosts_up)
        ids = cloud.create(20)
        first.stop(5.0)
        leased = sa.select(work.c.id).where(work.c.lease_until > 0)
        assert cloud.database.read(lambda conn: list(conn.execute(leased).scalars())) == []
        cloud.control()
        assert until(lambda: cloud.is_settled(*ids)) < 5.0


def test_a_lease_is_not_lengthened_after_its_pass_has_let_it_go(cloud: Cloud) -> None:
    """The keeper may come just after a commit: the row is free then, and must stay so."""
    def claim() -> list[Ticket]:
        return cloud.database.write(lambda conn: queue.claim(conn, 9, 30.0))

    tickets = claim()
    assert len(tickets) == 2
    cloud.database.write(lambda conn: queue.finish(conn, tickets[0], delay=0.0))
    kept = cloud.database.write(lambda conn: queue.renew(conn, tickets, 30.0))
    assert kept == {tickets[1].key}
    assert [one.key for one in claim()] == [tickets[0].key]


CHILD = """
import os, sys, threading
from pathlib import Path
import structlog, logging
from treadle.cli.serve import assemble
from treadle.compute import actions, creating
from treadle.config import Settings

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
treadle = assemble(Settings(), Path(sys.argv[1]))
treadle.controller._lease_s = 1.0
treadle.controller.start()
print("up", flush=True)
number = 0
while True:
    number += 1
    wish = creating.Wish(f"vm{os.getpid()}-{number}", 1, 1, count=2, rollback=True)
    made = treadle.database.write(lambda conn: creating.create(
        conn, wish, request_id="req", build_deadline_s=60.0))
    treadle.signals.work_is_due()
    if number % 2:
        treadle.database.write(
            lambda conn: actions.delete(conn, made[0].id, request_id="req"))
        treadle.signals.work_is_due()
    print(number, flush=True)
    threading.Event().wait(0.02)
"""


def _torn(conn: sa.Connection) -> list[str]:
    """What no transaction could have left: rows that do not fit each other."""
    found = []
    rows = {row.id: row for row in conn.execute(sa.select(instance))}
    claims = {row.instance_id: row for row in conn.execute(sa.select(allocation))}
    jobs = {row.id for row in conn.execute(sa.select(work).where(work.c.kind == KIND))}
    for row in rows.values():
        claim = claims.get(row.id)
        if (row.host_id is None) != (claim is None):
            found.append(f"instance {row.id}: on {row.host_id}, and its claim is {claim}")
        if row.state != State.DELETED and row.uuid not in jobs:
            found.append(f"instance {row.id}: no work row")
        if row.goal == Goal.FAILED and not row.fault:
            found.append(f"instance {row.id}: no reason")
    for one in conn.execute(sa.select(host)):
        held = [claim for claim in claims.values() if claim.host_id == one.id]
        if one.vcpus_used != sum(claim.vcpus for claim in held) or one.instances != len(held):
            found.append(f"host {one.id}: {one.vcpus_used} are taken by {len(held)}")
    return found


def test_a_killed_process_leaves_nothing_torn_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with cloud_of(tmp_path, hosts=2):
        """The rows that the child finds."""
    for round in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            assert child.stdout is not None
            wanted = "up\n" if round == 0 else f"{6 * round}\n"
            while (line := child.stdout.readline()) != wanted:
                assert line, "the child has ended by itself"
            time.sleep(0.01 * round)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        database = SqliteDatabase(tmp_path / "treadle.sqlite", synchronous="NORMAL")
        try:
            assert database.read(_torn) == []
            assert database.read(
                lambda conn: conn.exec_driver_sql("PRAGMA integrity_check").scalar()
            ) == "ok"
        finally:
            database.close()
    with _again(tmp_path) as cloud:
        ids = cloud.database.read(store.live_ids)
        assert ids
        cloud.control()
        until(lambda: cloud.is_settled(*ids), 45.0)
        assert cloud.database.read(_torn) == []


@contextmanager
def _again(folder: Path) -> Iterator[Cloud]:
    """The same database, and hosts that lost everything with the process that simulated them."""
    cloud = Cloud.__new__(Cloud)
    cloud.database = SqliteDatabase(folder / "treadle.sqlite", synchronous="NORMAL")
    cloud.signals, cloud.fakes = Signals(), FakeFleet()
    cloud.controllers, cloud.ended, cloud._closers = [], [], []
    try:
        yield cloud
    finally:
        cloud.close()
