"""A whole cloud in one thread: fake hosts, a fake clock, a database in memory, no waiting.

Everything that happens goes through here, so a test can stop it at each point where a process
can die (`seam`), and put it back to a saved state in microseconds (a savepoint).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa
from pysqlite3 import dbapi2

from treadle.compute import actions, creating, interfaces, lifecycle, store
from treadle.compute.actions import Rebuild
from treadle.compute.changes import held
from treadle.compute.creating import Wish
from treadle.compute.failure import actions as failure
from treadle.compute.failure import fencing
from treadle.compute.failure.evacuation import EvacuationHandler
from treadle.compute.failure.fencing import FenceHandler, Target
from treadle.compute.fleet import Fleet
from treadle.compute.hosts import HostHandler, HostImageHandler, HostPolicy
from treadle.compute.kinds import (
    EVACUATION_KIND,
    HOST_KIND,
    IMAGE_KIND,
    KIND,
    MOVE_KIND,
    SNAPSHOT_KIND,
)
from treadle.compute.model import HA_KEY, MOST_KEYS, SETTLED, Instance, Mode, State, is_settled
from treadle.compute.moves import actions as moving
from treadle.compute.moves import store as moves
from treadle.compute.moves.actions import Patience
from treadle.compute.moves.cold_handler import EveryMove
from treadle.compute.moves.handler import MovePolicy
from treadle.compute.moves.plan import ENDED, Move, Stage
from treadle.compute.reconciler import InstanceHandler, Timing
from treadle.compute.snapshots import SnapshotHandler
from treadle.controller import queue
from treadle.controller.queue import FAR_S, Ticket
from treadle.controller.signals import Signals
from treadle.controller.worker import Controller
from treadle.db.engine import Database, Work, _marked
from treadle.db.schema import (
    action,
    allocation,
    host,
    host_image,
    image,
    instance,
    metadata,
    orphan,
    work,
)
from treadle.errors import CallerError, CannotPlace
from treadle.hypervisor.base import HostSetup, Power
from treadle.hypervisor.fake import FakeHypervisor
from treadle.hypervisor.fake_host import FakeHost
from treadle.hypervisor.fake_storage import Disks, share
from treadle.image.blobs import FolderBlobs
from treadle.image.contents import Contents, Digests
from treadle.image.fetch import FetchLimits
from treadle.image.store import Content
from treadle.placement import fences, ledger
from treadle.placement.board import Board
from treadle.placement.ledger import HostStatus, ImageState
from treadle.scheduler.engine import Scheduler

LEASE_S = 30.0
BUILD_S = 300.0
ACT_S = 200.0
"""The deadline of what users ask for: longer than any one fault, unless a scenario shortens it."""
MOVE_S = 110.0
"""The deadline of a cold move: it ends before `SOON_S`."""
RECLAIM_S = CONFIRM_S = OFFLOAD_S = 50_000.0
START = 1_000_000.0
FOREIGN = "ffffffff-0000-4000-8000-000000000001"
FILTERS = ("state", "capacity", "capabilities", "excluded")
CHANGING = frozenset({
    "define", "autostart", "begin_copy", "fetch_copy", "drop_copy", "start", "pause", "resume",
    "suspend", "shut_down", "power_off", "undefine", "ensure_image", "remove_image",
    "expect", "move", "send_disk", "fence", "grow",
    "plug",
})
MOST_PASSES = 300
SOON_S = 130.0
"""From the last fault to the wanted state, at most: leases and polls, never the hourly look."""
CONTENT = b"a guest's disk" * 100
OTHER = b"another disk" * 100


class Crash(BaseException):
    """The process dies here: no handler may catch it."""


class Runaway(AssertionError):
    """Passes go on and on while no time passes."""


class Kept(Contents):
    """Images without the look at them, which takes a process of its own."""

    def keep(
        self, key: str, part: Path, digests: Digests, disk_format: str,
        container_format: str,  # noqa: ARG002
    ) -> Content:
        self.put(key, part)
        return Content(
            key, digests.size, digests.md5, digests.sha512, str(self.folder / key),
            digests.sha256, disk_format, digests.size, 1 << 20,
        )


class Clock:
    """The only time there is; both the database's and the process's monotonic one."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


ENGINE = sa.create_engine(
    "sqlite://", module=dbapi2, poolclass=sa.NullPool,
    connect_args={
        # A sweep runs some two hundred statements; a statement that is made anew costs most of it.
        "isolation_level": None, "check_same_thread": False, "cached_statements": 512,
    },
)
"""Each connection is a database of its own; what SQLAlchemy has compiled serves all."""


@cache
def _empty() -> sa.Connection:
    """A database with every table and no row, to copy."""
    conn = ENGINE.connect()
    metadata.create_all(conn)
    conn.commit()
    return conn


class MemoryDatabase(Database):
    """SQLite in memory, on one connection and in the caller's thread.

    One transaction is open for ever; what the code takes for transactions are savepoints in it.
    """

    dialect = "sqlite"

    def __init__(self, clock: Clock) -> None:
        self.engine = ENGINE
        self.seam: Callable[[str], None] = lambda _name: None
        self.unsafe = False
        self._conn = self.engine.connect()
        raw: Any = self._conn.connection.driver_connection
        raw.create_function("treadle_now", 0, clock)
        self.run: Callable[[str], Any] = raw.cursor().execute
        empty: Any = _empty().connection.driver_connection
        empty.backup(raw)
        self.run("PRAGMA foreign_keys=ON")
        self._conn.begin()
        self.run("BEGIN")

    def write(self, work: Work[Any], *, durable: bool = True) -> Any:
        self.seam("before write")
        value = self.apply(work, durable=durable)
        self.seam("after write")
        return value

    def read(self, work: Work[Any]) -> Any:
        self.seam("before read")
        with _marked():
            value = work(self._conn)
        self.seam("after read")
        return value

    def submit(self, work: Work[Any], *, durable: bool = True) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(self.apply(work, durable=durable))
        return done

    def apply(self, work: Work[Any], *, durable: bool = True) -> Any:
        """A transaction without seams. What is not durable lies above a savepoint of its own."""
        if durable and self.unsafe:
            self.run("RELEASE unsafe")
            self.unsafe = False
        elif not durable and not self.unsafe:
            self.run("SAVEPOINT unsafe")
            self.unsafe = True
        with _marked():
            self.run("SAVEPOINT one")
            try:
                value = work(self._conn)
            except BaseException:
                self.run("ROLLBACK TO one")
                raise
            finally:
                self.run("RELEASE one")
        return value

    def lose(self) -> bool:
        """The power is cut: what was not durable is gone. False where there was nothing such."""
        if not self.unsafe:
            return False
        self.run("ROLLBACK TO unsafe")
        self.run("RELEASE unsafe")
        self.unsafe = False
        return True

    def one(self, query: str) -> Any:
        """The first value that a plain query gives: for the harness, which asks often."""
        row = self.run(query).fetchone()
        return row and row[0]

    def close(self) -> None:
        self._conn.close()


class Inline(Controller):
    """The engine without its threads: what is given to a lane is worked off by `work_off`."""

    ticket: Ticket | None = None
    passes = 0

    def _give(self, ticket: Ticket) -> None:
        with self._lock:
            self._held[ticket.key] = ticket
            self._load[ticket.lane] += 1
        self._given = ticket

    def _pass(self, ticket: Ticket) -> Ticket | None:
        self.ticket = ticket
        self.passes += 1
        if self.passes > MOST_PASSES:
            raise Runaway(f"{self.passes} passes, the last over {ticket.key}")
        return super()._pass(ticket)

    def work_off(self, ticket: Ticket) -> None:
        """Make its pass, and those that follow at once on whatever lane."""
        self._given: Ticket | None = ticket
        self._give(ticket)
        while self._given is not None:
            given, self._given = self._given, None
            self._work(given)
        self.ticket = None


class Unwatched(EveryMove):
    """Moves without the thread beside each: there is one thread here, and a move is one step."""

    @contextmanager
    def _watched(self, *_of: Any) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Outlet:
    """A fence: it takes the power of a machine away, in a step that has its seams."""

    world: World

    def off(self, target: Target, seconds: float) -> None:
        assert seconds > 0
        self.world._seam(f"before fence h{target.id}")
        self.world.machines[target.id].power_failure()
        self.world._seam(f"after fence h{target.id}")


class Facts(NamedTuple):
    """What passes commit, apart from the queue."""

    instances: list[Any]
    claims: list[Any]
    images: list[Any]
    moves: list[Any]


class Brain:
    """One controller process, driven by hand: its handlers, and the lease of its pass."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        self.fleet = Fleet(world.driver)
        signals = Signals()
        database = world.database
        board = Board(database, world.scheduler)
        self.handlers: dict[str, Any] = {
            KIND: InstanceHandler(database, self.fleet, board, world.timing, "cloud"),
            HOST_KIND: HostHandler(database, self.fleet, signals, world.policy),
            MOVE_KIND: Unwatched(
                database, self.fleet, board, MovePolicy(lease_s=LEASE_S), "cloud"
            ),
            EVACUATION_KIND: EvacuationHandler(
                database, self.fleet, board, BUILD_S, "cloud"
            ),
            fencing.KIND: FenceHandler(database, Outlet(world), "outlet", 5.0, evacuates=False),
            IMAGE_KIND: HostImageHandler(database, self.fleet, signals, world.policy),
            SNAPSHOT_KIND: SnapshotHandler(database, self.fleet, signals, world.contents),
        }
        self.controller = Inline(database, self.handlers, signals, lease_s=LEASE_S)
        self.handlers[HOST_KIND].hint = self.controller.hint
        self._watch()

    def _watch(self) -> None:
        """As after the first pass over each host: prepared, and told of events."""
        hosts = self.handlers[HOST_KIND]
        for id, machine in self.world.machines.items():
            hosts._prepared[id] = uri_of(machine)
            self.fleet.driver(id, uri_of(machine)).watch(hosts._watcher(id))

    def once(self) -> bool:
        """Claim one due row and make its pass; False where nothing is due."""
        claimed = self.world.database.write(lambda conn: queue.claim(conn, 1, LEASE_S))
        if not claimed:
            return False
        self.controller.work_off(claimed[0])
        self.world.still_as_left(self)
        return True

    def close(self) -> None:
        """What a dead process lets go: its connections, so its watchers."""
        self.fleet.close()


@dataclass
class Saved:
    """A state to come back to."""

    name: str
    now: float
    act_s: float
    machines: dict[int, dict[str, Any]]


@dataclass
class World:
    """Hosts, database, clock, and who acts now."""

    folder: Path
    sizes: tuple[int, ...] = (4, 4)
    act_s: float = ACT_S
    clock: Clock = field(default_factory=Clock)
    machines: dict[int, FakeHost] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    actor: Brain | None = None
    on_seam: Callable[[str], None] | None = None
    timing: Timing = field(default_factory=lambda: Timing(
        LEASE_S, BUILD_S, 3, RECLAIM_S, CONFIRM_S, OFFLOAD_S
    ))
    digests: dict[int, str] = field(default_factory=dict)
    """Of the images: 1, which guests have, and 2."""
    left: tuple[Brain, Facts] | None = None
    """Whose pass was overtaken, and what the other one had committed by then."""
    policy: HostPolicy = field(default_factory=lambda: HostPolicy(
        HostSetup(virt_type="fake"), resync_s=100.0
    ))
    shared: bool = False
    """The hosts see one storage."""
    precious: str = ""
    """What must be on the disk of whoever is not deleted."""

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(self.clock)
        self.database.seam = self._seam
        self.scheduler = Scheduler("first-fit", FILTERS, {})
        for number, vcpus in enumerate(self.sizes, 1):
            machine = FakeHost(
                f"h{number}", vcpus=vcpus, memory_mib=4096, disk_mib=102400,
                trap=self._trap(number),
            )
            machine.foreign[FOREIGN] = Power.RUNNING
            self.machines[number] = machine
        if self.shared:
            share(list(self.machines.values()))
        kept = self.folder / "kept"
        kept.mkdir(exist_ok=True)
        self.contents = Kept(FolderBlobs(kept), kept, FetchLimits(1 << 30, 60.0))
        self.database.apply(lambda conn: self._rows(conn, self.folder))
        brain = Brain(self, "first")
        brain.handlers[HOST_KIND]._prepared.clear()
        self.drive(brain)
        brain.close()

    def _rows(self, conn: sa.Connection, path: Path) -> None:
        for id, machine in self.machines.items():
            ratios = ledger.Ratios(1.0, 1.0, 1.0, 0)
            assert ledger.add_host(conn, uri_of(machine), machine.name, ratios) == id
            queue.enqueue(conn, HOST_KIND, str(id), lane=id)
        for name, content in (("image", CONTENT), ("rescue", OTHER)):
            file = path / f"{name}.qcow2"
            file.write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            made = conn.execute(sa.insert(image).values(
                name=name, source=str(file), state="active", path=str(file), sha256=sha256,
                format="qcow2", size_bytes=len(content), virtual_bytes=1 << 20, added_at=START,
            ).returning(image.c.id))
            self.digests[made.scalar_one()] = sha256
        store.put_flavor(conn, store.Flavor(1, 1, 256, 1))
        store.put_flavor(conn, store.Flavor(2, 2, 512, 2))
        most = dict(zip(MOST_KEYS, ("4", "1024"), strict=True))
        store.put_flavor(conn, store.Flavor(3, 1, 256, 1, extra_specs=most))
        store.put_flavor(conn, store.Flavor(4, 2, 512, 2, extra_specs=most))
        store.put_flavor(conn, store.Flavor(5, 1, 256, 2))

    @property
    def sha256(self) -> str:
        """The digest of the image that guests have."""
        return self.digests[1]

    def driver(self, uri: str) -> FakeHypervisor:
        """The driver factory."""
        return FakeHypervisor(next(m for m in self.machines.values() if uri_of(m) == uri))

    # -- saving

    def save(self, name: str) -> Saved:
        """Remember everything under a savepoint."""
        if self.database.unsafe:
            self.database.run("RELEASE unsafe")
            self.database.unsafe = False
        self.database.run(f"SAVEPOINT {name}")
        disks: dict[int, Disks] = {}
        return Saved(name, self.clock.now, self.act_s, {
            id: {
                "up": machine.up, "powered": machine.powered,
                "guests": copied(machine.guests, disks),
                "images": set(machine.images),
                "faults": list(machine.faults),
            }
            for id, machine in self.machines.items()
        })

    def restore(self, saved: Saved) -> None:
        """Back to it, any number of times."""
        self.database.run(f"ROLLBACK TO {saved.name}")
        self.database.unsafe = False
        self.clock.now, self.act_s = saved.now, saved.act_s
        self.wrong = []
        self.actor = self.on_seam = self.left = None
        disks: dict[int, Disks] = {}
        for id, machine in self.machines.items():
            kept = saved.machines[id]
            machine.up, machine.powered = kept["up"], kept["powered"]
            machine.guests = copied(kept["guests"], disks)
            machine.images = set(kept["images"])
            machine.foreign = {FOREIGN: Power.RUNNING}
            machine.calls, machine.starts = Counter(), Counter()
            machine.faults, machine.watchers = list(kept["faults"]), []

    def forget(self, saved: Saved) -> None:
        """Drop the savepoint and what came after it."""
        self.restore(saved)
        self.database.run(f"RELEASE {saved.name}")

    # -- seams

    @contextmanager
    def acting(self, brain: Brain | None) -> Iterator[None]:
        """Who acts meanwhile (None: a user, or the world)."""
        before, self.actor = self.actor, brain
        try:
            yield
        finally:
            self.actor = before

    def _seam(self, name: str) -> None:
        if self.on_seam is not None and self.actor is not None:
            self.on_seam(name)

    def _trap(self, number: int) -> Callable[[str, str, str], None]:
        def trap(when: str, verb: str, uuid: str) -> None:
            fired_at = self.clock.now
            self._seam(f"{when} {verb} h{number}")
            self._one_at_most()
            stalled_here = self.clock.now > fired_at
            if when == "before" and verb in CHANGING and not stalled_here:
                self._holds_lease(verb, uuid)

        return trap

    def _holds_lease(self, verb: str, uuid: str) -> None:
        brain = self.actor
        if brain is None or brain.controller.ticket is None:
            return
        if brain.controller.ticket.lease.expires <= self.clock.now:
            self.wrong.append(f"{verb} {uuid} was begun by {brain.name} without a lease")

    def _one_at_most(self) -> None:
        seen: set[str] = set()
        for machine in self.machines.values():
            for uuid in machine.running():
                if uuid in seen:
                    self.wrong.append(f"{uuid} runs on two hosts")
                seen.add(uuid)

    def overtaken(self, brain: Brain) -> None:
        """Another has taken over: what this one's pass commits from now on must not count."""
        if brain.controller.ticket is not None:
            self.left = brain, self.facts()

    def still_as_left(self, brain: Brain) -> None:
        """At the end of a pass: where it was overtaken, it has changed nothing."""
        if self.left is not None and self.left[0] is brain:
            if self.facts() != self.left[1]:
                self.wrong.append("a pass that was overtaken has changed the rows")
            self.left = None

    def facts(self) -> Facts:
        """The rows as they are."""
        return Facts(*(self.run_all(table) for table in (
            "instance", "allocation", "host_image", "migration"
        )))

    def run_all(self, table: str) -> list[Any]:
        """Every row of a table, plainly."""
        return list(self.database.run(f"SELECT * FROM {table}").fetchall())

    # -- users

    def ask(self, wish: Callable[[sa.Connection], Any]) -> Any:
        """A user's request; None where it is refused."""
        with self.acting(None):
            try:
                answer = self.database.apply(wish)
            except (CallerError, CannotPlace):
                return None
        return answer

    def create(
        self, count: int = 1, *, rollback: bool = False, name: str = "vm", ha: str = "",
        flavor: int = 1, networked: bool = True,
    ) -> list[int]:
        """Ask for instances; their small numbers."""
        wish = Wish(
            name, flavor, 1, count=count, rollback=rollback,
            metadata={HA_KEY: ha} if ha else {}, networked=networked,
        )
        made = self.ask(lambda conn: creating.create(
            conn, wish, request_id="req", build_deadline_s=BUILD_S,
        ))
        return [one.id for one in made]

    def act(self, id: int, what: str) -> Instance | None:
        """Ask for one of the actions, by its name."""
        patient = {"request_id": "req", "deadline_s": self.act_s}

        def abort(conn: sa.Connection) -> Instance:
            one = actions.require(conn, id)
            moving.abort(conn, one, moves.of_instance(conn, id)[0].id)
            return one

        wishes: dict[str, Callable[[sa.Connection], Any]] = {
            "delete": lambda conn: actions.delete(conn, id, request_id="req"),
            "soft delete": lambda conn: actions.soft_delete(conn, id, **patient),
            "restore": lambda conn: actions.restore(conn, id, **patient),
            "hard reboot": lambda conn: actions.act(conn, id, "reboot", hard=True, **patient),
            "rescue": lambda conn: actions.rescue(conn, id, 2, **patient),
            "unrescue": lambda conn: actions.unrescue(conn, id, **patient),
            "rebuild": lambda conn: actions.rebuild(
                conn, id, Rebuild(2, name="renewed"), **patient
            ),
            "resize": lambda conn: actions.resize(conn, id, 2, **patient),
            "grow": lambda conn: actions.resize(conn, id, 4, **patient),
            "attach": lambda conn: interfaces.attach(conn, id, request_id="req"),
            "detach": lambda conn: interfaces.detach(conn, id, request_id="req"),
            "enlarge": lambda conn: actions.resize(conn, id, 5, **patient),
            "confirm": lambda conn: actions.confirm_resize(conn, id, request_id="req"),
            "revert": lambda conn: actions.revert_resize(conn, id, **patient),
            "image": lambda conn: actions.create_image(conn, id, "snap", request_id="req"),
            "shelve": lambda conn: actions.shelve(conn, id, **patient),
            "offload": lambda conn: actions.shelve_offload(conn, id, request_id="req"),
            "unshelve": lambda conn: actions.unshelve(conn, id, **patient),
            "evacuate": lambda conn: failure.evacuate(
                conn, id, failure.Wanted(), request_id="req"
            ),
            "migrate": lambda conn: moving.live_migrate(conn, id, None, **patient),
            "abort": abort,
            "migrate cold": lambda conn: moving.migrate(
                conn, id, None, request_id="req", patience=Patience(MOVE_S, self.act_s)
            ),
            "drain cold": lambda conn: moving.migrate(
                conn, id, None, request_id="req", patience=Patience(MOVE_S, self.act_s), ask=False
            ),
            "resize away": lambda conn: moving.resize(
                conn, id, 2, request_id="req", patience=Patience(MOVE_S, self.act_s)
            ),
            "mark": lambda conn: actions.reset_state(conn, id, "error", request_id="req"),
            "unmark": lambda conn: actions.reset_state(conn, id, "active", request_id="req"),
        }
        asked: Instance | None = self.ask(wishes.get(
            what, lambda conn: actions.act(conn, id, what, **patient)
        ))
        return asked

    def fence(self, host_id: int) -> bool:
        """Have a host that does not answer switched off."""

        def ask(conn: sa.Connection) -> bool:
            queue.enqueue(conn, fencing.KIND, str(host_id))
            return fences.ask(conn, host_id, "it is silent")

        asked: bool = self.ask(ask)
        return asked

    def confirm_off(self, host_id: int) -> Any:
        """An operator says that a host is off: what asks for it is evacuated."""
        return self.ask(lambda conn: failure.confirm_off(
            conn, host_id, evacuates=False, request_id="req"
        ))

    def look(self) -> None:
        """Have each host looked at now."""
        with self.acting(None):
            self.database.apply(lambda conn: queue.wake(
                conn, HOST_KIND, [str(id) for id in self.machines]
            ))

    def get(self, id: int) -> Instance:
        """The row as it is now."""
        found: Instance | None = self.database.apply(lambda conn: store.get(conn, id))
        assert found is not None
        return found

    def rows(self) -> list[Instance]:
        """All instances, the deleted too."""
        return list(self.database.apply(
            lambda conn: [store.of_row(r) for r in conn.execute(_ROWS)]
        ))

    def guest(self, id: int) -> Any:
        """The guest on its host; None where there is none."""
        row = self.get(id)
        return None if row.host_id is None else self.machines[row.host_id].guests.get(row.uuid)

    # -- time

    def drive(self, brain: Brain, seconds: float = SOON_S) -> bool:
        """Let the brain work, and time pass, until all is as wanted; False where that takes more
        than `seconds`."""
        end = self.clock.now + seconds
        with self.acting(brain):
            while True:
                if self.due() and brain.once():
                    continue
                if self.settled():
                    return True
                due = self.database.one(_NEXT_EVENT)
                if due is None or due > end:
                    return False
                if due > self.clock.now:
                    brain.controller.passes = 0
                self.clock.now = max(self.clock.now, due) + 0.001

    def settled(self) -> bool:
        """Whether every row says that it is as wanted, and no pass is to be made again."""
        return not (self.database.one(_UNSETTLED) or self.database.one(_TRIED))

    def due(self) -> bool:
        """Whether a row can be claimed now."""
        return bool(self.database.one(_DUE))

    def finish(self) -> None:
        """The faults are over: everything must come to be as wanted, soon. Then look at it all."""
        self.on_seam = None
        for machine in self.machines.values():
            machine.faults = []
            machine.boot()
        heir = Brain(self, "heir")
        if not self.drive(heir, LEASE_S + SOON_S):
            self.wrong.append(f"not as wanted {LEASE_S + SOON_S:g} s after the last fault")
        # What is left over on a host is found by its next passes; they are made now, not waited
        # for. A lease of the dead runs out before.
        for _ in range(3):
            again = self._to_look_at()
            if not again:
                break
            self.clock.now += LEASE_S + 0.01
            with self.acting(None):
                self.database.apply(lambda conn: queue.wake(conn, HOST_KIND, again))  # noqa: B023
            self.drive(heir)
        self._work_that_is_due(heir)
        heir.close()
        self.actor = None
        self.check()

    def check(self) -> None:
        """Hold the invariants against how it is now."""
        self.wrong += self.database.apply(lambda conn: list(invariants(self, conn)))

    def _to_look_at(self) -> list[str]:
        """The hosts that show something else than the rows say, or are not known to be up."""
        there = {row.uuid: row for row in self.rows()}

        def off(id: int, machine: FakeHost) -> bool:
            here = {u for u, row in there.items() if row.host_id == id}
            drift = any(
                guest is not None
                and (
                    not guest.defined or guest.power is not expected or guest.copy is not None
                    or guest.changed
                    or guest.autostart is not lifecycle.host_starts(
                        there[uuid], False, self.shared
                    )
                )
                for uuid in here if (expected := lifecycle.expected_power(there[uuid])) is not None
                for guest in [machine.guests.get(uuid)]
            )
            return drift or here | kept[id] != set(machine.guests) or id not in up

        kept = self.database.apply(lambda conn: {
            id: set(moves.kept_at(conn, id)) for id in self.machines
        })

        up = self.database.apply(lambda conn: {
            one.id for one in ledger.list_hosts(conn) if one.status is HostStatus.UP
        })
        return [str(id) for id, machine in self.machines.items() if off(id, machine)]

    def _work_that_is_due(self, brain: Brain) -> None:
        """Do what is due, without time passing; images that are on their way, leases of the dead
        aside."""
        for _ in range(4):
            with self.acting(brain):
                while self.due():
                    brain.once()
            if not self.database.one(_IMAGES_ON_THEIR_WAY):
                return
            self.clock.now += LEASE_S + 0.01


def copied(guests: dict[str, Any], disks: dict[int, Disks]) -> dict[str, Any]:
    """Guests of a host that are changed apart from the given ones; `disks` remembers those that are
    copied already, which hosts may share."""
    return {
        uuid: replace(guest, disk=disks.setdefault(id(guest.disk), replace(guest.disk)))
        for uuid, guest in guests.items()
    }


def uri_of(machine: FakeHost) -> str:
    """A fake host's address."""
    return f"fake://{machine.name}"


_ROWS = sa.select(instance).order_by(instance.c.id)
_NEXT_EVENT = "SELECT min(max(due_at, lease_until)) FROM work"
_DUE = "SELECT 1 FROM work WHERE due_at <= treadle_now() AND lease_until < treadle_now() LIMIT 1"
_IMAGES_ON_THEIR_WAY = (
    "SELECT 1 FROM host_image WHERE state IN ('wanted', 'evicting') "
    f"UNION SELECT 1 FROM work WHERE kind = '{SNAPSHOT_KIND}' LIMIT 1"
)
_SETTLED = " OR ".join(f"(state = '{one}' AND goal = '{goal}')" for one, goal in SETTLED.items())
_TRIED = f"SELECT 1 FROM work WHERE kind = '{KIND}' AND tries > 0 LIMIT 1"
_UNSETTLED = (
    f"SELECT id FROM instance WHERE NOT ({_SETTLED})"
    " OR (host_id IS NOT NULL AND generation != settled_generation)"
    " OR mode != settled_mode OR task IS NOT NULL OR ends_at <= treadle_now()"
    " OR moving IS NOT NULL OR (kept IS NOT NULL AND (mode != 'resized' OR goal = 'deleted'))"
    " LIMIT 1"
)



def invariants(world: World, conn: sa.Connection) -> Iterator[str]:
    """What must hold when the faults are over; one sentence for each thing that does not."""
    rows = {row.uuid: store.of_row(row) for row in conn.execute(_ROWS)}
    jobs = {(row.kind, row.id): row for row in conn.execute(sa.select(work))}
    claims = {row.instance_id: row for row in conn.execute(sa.select(allocation))}
    orphans = {(row.host_id, row.uuid) for row in conn.execute(sa.select(orphan))}
    kept: dict[str, set[int]] = {}
    for move, uuid, _ in moves.every(conn, -1):
        if move.stage is Stage.FINISHED and rows[uuid].kept == move.id:
            kept[uuid] = {move.source_id}
        elif move.stage not in ENDED:
            yield f"move {move.id} of instance {uuid} is {move.stage} for ever"
    world._one_at_most()
    for row in rows.values():
        listed = {id for id, uuid in orphans if uuid == row.uuid and row.launched_at is not None}
        yield from _of_instance(
            world, row, jobs.get((KIND, row.uuid)), claims.get(row.id), listed,
            kept.get(row.uuid, set()),
        )
    for number in conn.execute(
        sa.select(action.c.instance_id).where(action.c.finished_at.is_(None))
    ).scalars():
        yield f"an entry of the action log of instance {number} is still open"
    images = list(conn.execute(sa.select(host_image)))
    for number in conn.execute(sa.select(image.c.id).where(image.c.state == "saving")).scalars():
        yield f"image {number} is being saved for ever"
    for row in rows.values():
        if row.kept is not None and (row.uuid not in kept or row.mode is not Mode.RESIZED):
            yield f"instance {row.id} is kept elsewhere for ever"
    for uuid in store.moving(conn):
        yield f"instance {uuid} is bound to a move for ever"
    for row in conn.execute(sa.select(host)):
        yield from _of_ledger(row, claims, moves.held(conn), images)
    for row in images:
        yield from _of_image(world, row, jobs)
    for id, machine in world.machines.items():
        if machine.foreign != {FOREIGN: Power.RUNNING}:
            yield f"{machine.name}: a domain that is not ours was touched"
        for uuid in machine.guests:
            known = rows.get(uuid)
            here = known is not None and id in {known.host_id, *kept.get(uuid, set())}
            if not here and (id, uuid) not in orphans:
                yield f"{machine.name}: {uuid} has no row here and is no orphan"
        ids = set(world.machines) if world.shared else {id}
        for sha256 in machine.images - {row.sha256 for row in images if row.host_id in ids}:
            yield f"{machine.name}: image {sha256[:8]} is there and in no row"


def _of_instance(
    world: World, row: Instance, job: Any, claim: Any, listed: set[int], kept: set[int]
) -> Iterator[str]:
    """`listed`: where a domain of one that ran once is listed, since its disk may be the last.
    `kept`: where a copy of it waits, since it may be gone back to."""
    name = f"instance {row.id} ({row.goal}, {row.state}, {row.phase})"
    if row.state is not State.DELETED and not is_settled(row):
        yield f"{name} is not as wanted"
        return
    if row.task is not None and row.state is not State.DELETED:
        yield f"{name} is {row.task} for ever"
    there = {id for id, machine in world.machines.items() if row.uuid in machine.guests}
    if claim is not None and (claim.vcpus, claim.memory_mib, claim.disk_mib) != held(row):
        yield f"{name}: it holds {claim}, not {held(row)}"
    if (claim is not None) != (row.host_id is not None):
        yield f"{name}: on host {row.host_id}, and its claim is {claim}"
    elif claim is not None and claim.host_id != row.host_id:
        yield f"{name}: on host {row.host_id}, and its claim on {claim.host_id}"
    if row.state is State.DELETED:
        if job is not None:
            yield f"{name}: work is left"
        if there or row.host_id is not None:
            yield f"{name}: left behind on {there or row.host_id}"
        return
    if job is None:
        yield f"{name}: no work row"
        return
    if job.lease_until > world.clock.now + LEASE_S or job.due_at > world.clock.now + FAR_S:
        yield f"{name}: its work row is out of reach"
    if row.state is State.ERROR:
        if not row.fault:
            yield f"{name} does not say why"
        if there - listed:
            yield f"{name}: left behind on {there - listed}"
        return
    if row.state is State.OFFLOADED:
        if there or row.host_id is not None or row.shelf_image_id is None:
            yield f"{name}: on {there or row.host_id}, with image {row.shelf_image_id}"
        return
    if row.host_id is None:
        yield f"{name} is nowhere"
        return
    guest = world.machines[row.host_id].guests.get(row.uuid)
    if guest is None or not guest.defined:
        yield f"{name}: no domain on its host"
    elif guest.power is not lifecycle.POWER_OF[row.goal]:
        yield f"{name}: its host shows {guest.power}"
    elif guest.power is Power.RUNNING and guest.running_generation != row.generation:
        yield f"{name}: generation {guest.running_generation} runs, not {row.generation}"
    elif guest.power is Power.RUNNING and guest.live != (row.vcpus, row.memory_mib, row.disk_gib):
        yield f"{name}: what runs has {guest.live}, not what {row} says"
    elif guest.power is Power.RUNNING and guest.on != row.disks[0]:
        yield f"{name}: what runs is on volume {guest.on}, not on {row.disks[0]}"
    elif guest.power in (Power.RUNNING, Power.PAUSED) and (row.mac if guest.cut else
                                                           guest.card != row.mac):
        yield f"{name}: what runs has the card {guest.card!r}, not {row.mac!r}"
    elif guest.power is Power.RUNNING and guest.spec.generation != row.generation:
        yield f"{name}: its next start is of generation {guest.spec.generation}"
    if guest is not None and guest.defined:
        rescue = "" if row.rescue_image_id is None else world.digests[row.rescue_image_id]
        more = set(guest.disks) ^ set(row.disks)
        if tuple(guest.disks) and (more - set(guest.disks) if world.shared else more):
            yield f"{name}: its disks are {set(guest.disks)}, not {row.disks}"
        if guest.spec.mac != row.mac:
            yield f"{name}: its definition has the card {guest.spec.mac!r}, not {row.mac!r}"
        if guest.rescue != rescue:
            yield f"{name}: it is rescued with {guest.rescue[:8]!r}, not {rescue[:8]!r}"
        if guest.autostart is not lifecycle.host_starts(row, False, world.shared):
            yield f"{name}: its host would{' not' * (not guest.autostart)} start it"
        if guest.changed:
            yield f"{name}: the {guest.changed} of its definition stayed changed"
        if guest.copy is not None:
            yield f"{name}: a copy of its disk is left"
        chain = {guest.disks.get(number) for number in row.disks}
        if world.precious and world.precious not in chain:
            yield f"{name}: what was on its disk is lost"
    if there != {row.host_id} | kept:
        yield f"{name}: on hosts {there}, kept on {kept}"
    for id in kept & there:
        copy = world.machines[id].guests[row.uuid]
        if copy.power is not Power.OFF or copy.autostart or not copy.defined:
            yield f"{name}: its copy on host {id} could run, or is none: {copy}"


def _of_ledger(
    row: Any, claims: dict[int, Any], under_way: Sequence[Move], images: list[Any]
) -> Iterator[str]:
    held = [
        *(claim for claim in claims.values() if claim.host_id == row.id),
        *(move for move in under_way if move.holder == row.id),
    ]
    sizes = sum(one.size_mib for one in images if one.host_id == row.id)
    for used, limit, summed in (
        (row.vcpus_used, row.vcpus_limit, sum(c.vcpus for c in held)),
        (row.memory_used_mib, row.memory_limit_mib, sum(c.memory_mib for c in held)),
        (row.disk_used_mib, row.disk_limit_mib, sum(c.disk_mib for c in held) + sizes),
        (row.instances, len(held), len(held)),
    ):
        if used != summed:
            yield f"host {row.id}: the ledger says {used}, claims and moves {summed}"
        if used > limit:
            yield f"host {row.id}: {used} of {limit} are taken"


def _of_image(world: World, row: Any, jobs: dict[tuple[str, str], Any]) -> Iterator[str]:
    machine = world.machines[row.host_id]
    if row.state == ImageState.READY and row.sha256 not in machine.images:
        yield f"{machine.name}: its image is not there"
    waits = row.state in (ImageState.WANTED, ImageState.EVICTING)
    keeper = 1 if world.shared else row.host_id
    if waits and (IMAGE_KIND, f"{keeper}:{row.sha256}") not in jobs:
        yield f"{machine.name}: its image is {row.state} and nobody works on it"


@contextmanager
def world_time(clock: Clock) -> Iterator[None]:
    """Have the queue's leases measured by the world's clock."""
    real = queue.time
    queue.time = SimpleNamespace(monotonic=clock)  # type: ignore[assignment]
    try:
        yield
    finally:
        queue.time = real


