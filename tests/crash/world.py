"""A whole cloud in one thread: fake hosts, a fake clock, a database in memory, no waiting.

Everything that happens goes through here, so a test can stop it at each point where a process
can die (`seam`), and put it back to a saved state in microseconds (a savepoint).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa
from brain import BUILD_S, LEASE_S, Brain, uri_of
from invariants import FOREIGN, invariants
from memory import START, Clock, MemoryDatabase

from treadle.compute import actions, creating, interfaces, lifecycle, store
from treadle.compute.actions import Rebuild
from treadle.compute.creating import Wish
from treadle.compute.failure import actions as failure
from treadle.compute.failure import fencing
from treadle.compute.hosts import HostPolicy
from treadle.compute.kinds import (
    HOST_KIND,
    KIND,
    SNAPSHOT_KIND,
)
from treadle.compute.model import HA_KEY, MOST_KEYS, NUMA_KEY, SETTLED, Instance
from treadle.compute.moves import actions as moving
from treadle.compute.moves import store as moves
from treadle.compute.moves.actions import Patience
from treadle.compute.reconciler import Timing
from treadle.controller import queue
from treadle.db.engine import Noted
from treadle.db.schema import (
    image,
    instance,
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
from treadle.placement.ledger import HostStatus
from treadle.scheduler.engine import Scheduler

ACT_S = 200.0
"""The deadline of what users ask for: longer than any one fault, unless a scenario shortens it."""
MOVE_S = 110.0
"""The deadline of a cold move: it ends before `SOON_S`."""
RECLAIM_S = CONFIRM_S = OFFLOAD_S = 50_000.0
FILTERS = ("state", "capacity", "capabilities", "excluded")
CHANGING = frozenset({
    "define", "autostart", "begin_copy", "fetch_copy", "drop_copy", "start", "pause", "resume",
    "suspend", "shut_down", "power_off", "undefine", "ensure_image", "remove_image",
    "expect", "move", "resume_move", "send_disk", "fence", "grow",
    "plug", "restart",
})
SOON_S = 130.0
"""From the last fault to the wanted state, at most: leases and polls, never the hourly look."""
TICK_S = 2 ** -10
"""After how long a lease has run out."""
CONTENT = b"a guest's disk" * 100
OTHER = b"another disk" * 100


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


class Track(Protocol):
    """Told of each moment between two passes."""

    def at(self, brain: Brain, end: float) -> None:
        """This brain is to make the next one, and has until then."""

    def over(self, settled: bool) -> None:
        """It need not, or has not the time."""


class Facts(NamedTuple):
    """What passes commit, apart from the queue."""

    instances: list[Any]
    claims: list[Any]
    images: list[Any]
    moves: list[Any]


@dataclass
class Saved:
    """A state to come back to."""

    name: str
    now: float
    drawn: int
    act_s: float
    machines: dict[int, dict[str, Any]]


@dataclass
class World:
    """Hosts, database, clock, and who acts now."""

    folder: Path
    sizes: tuple[int, ...] = (4, 4)
    act_s: float = ACT_S
    post_copy: bool = False
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
    track: Track | None = None
    """Follows what is driven, where somebody wants to know whether it has been here before."""
    stage: int = 0
    """Of a case: 0 while there are faults, then how often all was looked at."""
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
        self.database.told = self._noted
        self.scheduler = Scheduler("first-fit", FILTERS, {})
        for number, vcpus in enumerate(self.sizes, 1):
            machine = FakeHost(
                f"h{number}", vcpus=vcpus, memory_mib=4096, disk_mib=102400,
                trap=self._trap(number), numa=1,
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
        bound = {NUMA_KEY: "1"}
        store.put_flavor(conn, store.Flavor(6, 1, 256, 1, extra_specs=bound))

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
        return Saved(name, self.clock.now, self.clock.drawn, self.act_s, {
            id: {
                "up": machine.up, "powered": machine.powered, "prepared": machine.prepared,
                "guests": copied(machine.guests, disks),
                "images": set(machine.images),
                "faults": list(machine.faults),
                "calls": Counter(machine.calls), "starts": Counter(machine.starts),
            }
            for id, machine in self.machines.items()
        })

    def restore(self, saved: Saved) -> None:
        """Back to it, any number of times."""
        self.database.run(f"ROLLBACK TO {saved.name}")
        self.database.unsafe = False
        self.clock.now, self.clock.drawn, self.act_s = saved.now, saved.drawn, saved.act_s
        self.wrong = []
        self.actor = self.on_seam = self.left = self.track = None
        self.stage = 0
        disks: dict[int, Disks] = {}
        for id, machine in self.machines.items():
            kept = saved.machines[id]
            machine.up, machine.powered = kept["up"], kept["powered"]
            machine.prepared = kept["prepared"]
            machine.guests = copied(kept["guests"], disks)
            machine.images = set(kept["images"])
            machine.foreign = {FOREIGN: Power.RUNNING}
            machine.calls, machine.starts = Counter(kept["calls"]), Counter(kept["starts"])
            machine.faults, machine.watchers = list(kept["faults"]), []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens within has not happened afterwards. For one who is in the midst of a pass:
        what he has in hand is there again."""
        assert self.database.safe, "a savepoint may be gone by then"
        now, drawn, before = self.clock.now, self.clock.drawn, dict(vars(self))
        hosts = [
            (machine, dict(vars(machine)), machine.images) for machine in self.machines.values()
        ]
        self.database.run("SAVEPOINT aside")
        self.wrong = list(self.wrong)
        disks: dict[int, Disks] = {}
        for machine, _, images in hosts:
            machine.guests, machine.images = copied(machine.guests, disks), set(images)
            machine.foreign, machine.faults = dict(machine.foreign), list(machine.faults)
            machine.calls, machine.starts = Counter(machine.calls), Counter(machine.starts)
            machine.watchers = list(machine.watchers)
        try:
            yield
        finally:
            self.database.run("ROLLBACK TO aside")
            self.database.run("RELEASE aside")
            self.clock.now, self.clock.drawn = now, drawn
            vars(self).update(before)
            for machine, was, images in hosts:
                vars(machine).update(was)
                machine.images = images

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

    def _noted(self, noted: Noted) -> None:
        if self.actor is not None:
            self.actor.board._committed(noted)

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
                guest = machine.guests[uuid]
                if guest.other is not None and guest.power is Power.PAUSED:
                    continue  # the half that does not run
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
                if self.track is not None:
                    self.track.at(brain, end)
                if self.due() and brain.once():
                    continue
                settled = self.settled()
                due = None if settled else self.database.one(_NEXT_EVENT)
                if due is None or due > end:
                    if self.track is not None:
                        self.track.over(settled)
                    return settled
                if due > self.clock.now:
                    brain.controller.passes = 0
                self.clock.now = max(self.clock.now, due)

    def settled(self) -> bool:
        """Whether every row says that it is as wanted, and no pass is to be made again."""
        return not (self.database.one(_UNSETTLED) or self.database.one(_TRIED))

    def due(self) -> bool:
        """Whether a row can be claimed now."""
        return bool(self.database.one(_DUE))

    def finish(self) -> None:
        """The faults are over: everything must come to be as wanted, soon. Then look at it all."""
        self.on_seam = None
        self.stage = 1
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
            self.stage += 1
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


_ROWS = sa.select(instance).order_by(instance.c.id)
_NEXT_EVENT = f"SELECT min(max(due_at, lease_until + {TICK_S})) FROM work"
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
