"""The machine that is simulated: what it holds survives its driver, and how its calls go wrong."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from treadle.hypervisor.base import (
    NOT_BY_HOST,
    DomainSpec,
    EventKind,
    HostRefused,
    NumaCell,
    Power,
    StopCause,
    Watcher,
)
from treadle.hypervisor.fake_console import FakeConsoles
from treadle.hypervisor.fake_storage import Disks, FakeStorage


class FaultKind(StrEnum):
    """How a call goes wrong."""

    REFUSE = "refuse"
    FULL = "full"
    HANG = "hang"
    LATE = "late"
    LOSE_BEFORE = "lose_before"
    LOSE_AFTER = "lose_after"
    DIE_BEFORE = "die_before"
    DIE_AFTER = "die_after"
    PARTED = "parted"


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` call (from 1) of `verb` goes wrong; `times` calls in a row from there.

    REFUSE and FULL: the host says no, nothing is done. HANG: nothing is done and the deadline
    passes. LATE: it is done, but the deadline passes. LOSE_*: the connection breaks before or
    after it is done. DIE_*: the machine loses power before or after it. PARTED: the way to the
    other host of a move breaks in its midst.
    """

    verb: str
    nth: int
    kind: FaultKind
    times: int = 1


@dataclass(slots=True)
class Guest:
    """What a host has of one instance."""

    spec: DomainSpec
    running_generation: int = 0
    power: Power = Power.OFF
    cause: StopCause = StopCause.NONE
    defined: bool = True
    console: bytes = b""
    ignores_acpi: bool = False
    autostart: bool = False
    disk: Disks = field(default_factory=Disks)
    rescue: str = ""
    """The digest of the image that it is rescued with."""
    copy: bytes | None = None
    agent: bool = True
    frozen: bool = False
    passwords: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """What somebody else has changed in its definition."""
    live: tuple[int, int, int] = (0, 0, 0)
    """The vcpus, the memory and the disk of what runs."""
    on: int = 0
    """The volume that it writes to."""
    moved_to: int = 0
    """That volume, where it was moved onto it while it runs."""
    room: tuple[int, int] | None = None
    """What that can come to."""
    machine: str = ""
    card: str = ""
    """The MAC address of the network card of what runs."""
    cut: bool = False
    """It was to let go of that and has not: it was paused."""
    other: FakeHost | None = field(default=None, repr=False, compare=False)
    """Where the other half of it is, whose memory this one lacks (`Domain.split`)."""
    torn: bool = False

    @property
    def disks(self) -> Mapping[int, str]:
        """What is on each of the root disk's volumes; never changed in place."""
        return self.disk.volumes

    @disks.setter
    def disks(self, volumes: Mapping[int, str]) -> None:
        self.disk.volumes = volumes

    def run(self) -> None:
        """Boot it, or let a saved one go on."""
        if self.power is Power.OFF:
            self.running_generation = self.spec.generation
            self.live = self.spec.vcpus, self.spec.memory_mib, self.spec.disk_gib
            self.on, self.moved_to = self.spec.disks[0], 0
            self.room = None if self.spec.nodes else self.spec.most
            self.card, self.cut = self.spec.mac, False
            self.other, self.torn = None, False
            self.console = (
                "firmware\r\nboot loader\r\nkernel\r\n"
                f"TREADLE-GUEST-UP hostname={self.spec.seed.hostname}\r\n".encode()
            )
        self.power, self.cause = Power.RUNNING, StopCause.NONE
        self.autostart = NOT_BY_HOST not in self.spec.metadata

    def plug(self, spec: DomainSpec) -> bool:
        """Have the card of `spec`, or none; whether it is so at once. Errors: `HostRefused`."""
        if self.power not in (Power.RUNNING, Power.PAUSED):
            raise HostRefused("it does not run")
        if self.running_generation > spec.generation:
            raise HostRefused("it was started anew since")
        if self.running_generation == spec.generation:
            return True
        if spec.mac and self.cut and self.power is Power.PAUSED:
            raise HostRefused(
                "its guest has not let go of the interface that it had before: start it anew first"
            )
        self.cut = not spec.mac and bool(self.card) and self.power is Power.PAUSED
        self.card = self.card if self.cut else spec.mac
        self.spec, self.changed = spec, ()
        self.defined, self.running_generation = True, spec.generation
        return not self.cut


@dataclass
class FakeHost:
    """The machine. Memory and disk in MiB. `verb_s` seconds pass in each verb that changes it. It
    has `numa` NUMA cells, 0: none that guests can be bound to."""

    name: str
    vcpus: int = 16
    memory_mib: int = 65536
    disk_mib: int = 1 << 20
    arch: str = "x86_64"
    machines: tuple[str, ...] = ("fake-1",)
    features: tuple[str, ...] = ()
    load: float | None = None
    numa: int = 0
    verb_s: float = 0.0
    up: bool = True
    powered: bool = True
    faults: list[Fault] = field(default_factory=list)
    parted: bool = False
    """The way to the other host of a move breaks."""
    trap: Callable[[str, str, str], None] | None = None
    """Called with ("before" or "after", verb, uuid) around each call, and "amid" one that has
    steps: a test's seam."""
    guests: dict[str, Guest] = field(default_factory=dict)
    storage: FakeStorage = field(default_factory=FakeStorage)
    prepared: int = 0
    foreign: dict[str, Power] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    subnet: str = "10.64.0.0/24"
    lock: threading.RLock = field(default_factory=threading.RLock)
    watchers: list[Watcher] = field(default_factory=list)
    consoles: FakeConsoles = field(default_factory=FakeConsoles)

    @property
    def uuid(self) -> str:
        """Of the machine."""
        return str(UUID(hashlib.sha256(self.name.encode()).hexdigest()[:32]))

    @property
    def cells(self) -> tuple[NumaCell, ...]:
        """`numa` of them, alike."""
        each = self.vcpus // max(self.numa, 1)
        return tuple(
            NumaCell(id, f"{id * each}-{(id + 1) * each - 1}", each, self.memory_mib // self.numa)
            for id in range(self.numa)
        )

    @property
    def images(self) -> set[str]:
        """Digests of those in its storage."""
        return self.storage.images

    @images.setter
    def images(self, images: set[str]) -> None:
        self.storage.images = images

    def power_failure(self) -> None:
        """Everything that ran stops; disks and saved memory stay. The host does not answer."""
        with self.lock:
            self.up = self.powered = False
            for guest in self.guests.values():
                guest.copy = None
                if guest.power in (Power.RUNNING, Power.PAUSED):
                    guest.power, guest.cause = Power.OFF, StopCause.UNKNOWN
        self.cut_off()

    def cut_off(self) -> None:
        """The host does not answer, and everything on it runs on."""
        with self.lock:
            self.up = False
            watchers, self.watchers = self.watchers, []
        self.consoles.end()
        for watcher in watchers:
            watcher(EventKind.HOST_LOST, "")

    def boot(self) -> None:
        """It answers again. One that had no power starts what is to start with it."""
        with self.lock:
            if self.up:
                return
            self.up = True
            rebooted, self.powered = not self.powered, True
            for guest in self.guests.values():
                if rebooted and guest.defined and guest.autostart:
                    guest.run()

    def guest_powers_off(self, uuid: str) -> None:
        """The guest shuts itself down."""
        with self.lock:
            guest = self.guests[uuid]
            guest.power, guest.cause = Power.OFF, StopCause.GUEST
        self.tell(uuid)

    def running(self) -> set[str]:
        """UUIDs of the guests that have a live process."""
        with self.lock:
            live = (Power.RUNNING, Power.PAUSED)
            return {u for u, g in self.guests.items() if g.power in live}

    def brings_rest(self, uuid: str) -> None:
        """The emulators on both hosts bring the two halves of a guest together, where neither is
        gone or torn: it is whole where it runs."""
        here = self.guests.get(uuid)
        if here is None or here.other is None or self.is_torn(uuid):
            return
        there = here.other.guests[uuid]
        front, rest = (here, there) if here.power is Power.RUNNING else (there, here)
        left = here.other if front is here else self
        left.guests[uuid] = Guest(rest.spec, defined=False, disk=rest.disk)
        front.other, front.defined = None, True

    def is_torn(self, uuid: str) -> bool:
        """Whether nothing brings the rest of it."""
        here = self.guests[uuid]
        if here.other is None:
            return False
        there = here.other.guests.get(uuid)
        both = uuid in self.running() and uuid in here.other.running()
        return here.torn or not both or there is None or there.torn or there.other is not self

    def tell(self, uuid: str) -> None:
        """Let the watchers know that a domain has changed; what is off has no console."""
        if uuid not in self.running():
            self.consoles.end(uuid)
        for watcher in list(self.watchers):
            watcher(EventKind.DOMAIN, uuid)
