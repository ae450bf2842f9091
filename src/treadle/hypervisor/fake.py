"""A simulated physical machine, held to the same contract suite as the real ones.

`FakeHost` (`fake_host.py`) is the machine, `FakeHypervisor` a driver's connection to it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

from treadle.errors import InvalidInput
from treadle.hypervisor.base import (
    AgentFailed,
    AtNextStart,
    ConsoleKind,
    ConsoleLine,
    DiskStats,
    Domain,
    DomainSpec,
    GuestStats,
    HostFacts,
    HostFull,
    HostRefused,
    ImageBroken,
    ImageSpec,
    NicStats,
    Power,
    StopCause,
)
from treadle.hypervisor.fake_host import FakeHost, Guest
from treadle.hypervisor.fake_moving import FakeMoving

MIB = 1 << 20
BOOTED_AT = 1_700_000_040.0
T = TypeVar("T")


class FakeHypervisor(FakeMoving):
    """A driver on one `FakeHost`."""

    # -- the machine

    def facts(self) -> HostFacts:
        host = self.host
        facts = HostFacts(
            hostname=host.name,
            host_uuid=host.uuid,
            vcpus=host.vcpus, memory_mib=host.memory_mib, disk_mib=host.disk_mib,
            arch=host.arch, virt_types=("fake",), libvirt_version="none",
            hypervisor="fake", hypervisor_version="1.0.0",
            capabilities=frozenset({
                "pause", "suspend", "graceful_stop", "console", "images", "network",
                "serial_console", "vnc_console", "agent", "diagnostics", "snapshot",
                "transfer", "grow", "grow_disk", "plug",
            }),
            booted_at=BOOTED_AT,
            storage_token=host.storage.token(host) if host.prepared else "",
            storage_others=tuple(map(host.storage.token, host.storage.others(host))),
            machines=host.machines, processor="Fake 1", features=host.features,
            load=host.load, cells=host.cells,
        )
        return self._call("facts", "", lambda: facts)

    def beat(self, seconds: float) -> bool | None:
        assert seconds > 0
        return self.host.up

    # -- looking

    def observe(self, uuid: str) -> Domain | None:
        """By the next look, what is split is whole."""
        def act() -> Domain | None:
            found = self._domain(uuid)
            self.host.brings_rest(uuid)
            return found

        return self._call("observe", uuid, act)

    def observe_all(self) -> Sequence[Domain]:
        def act() -> list[Domain]:
            found = [self._domain(uuid) for uuid in sorted(self.host.guests)]
            return [
                replace(domain, copied=self.host.guests[domain.uuid].copy is not None)
                for domain in found if domain is not None
            ]

        return self._call("observe_all", "", act)

    def console_log(self, uuid: str, limit: int) -> bytes:
        return self._call("console_log", uuid, lambda: self._guest(uuid).console[-limit:])

    # -- copies

    def begin_copy(self, uuid: str) -> None:
        def act() -> None:
            guest = self._guest(uuid)
            guest.copy = tiny_qcow2(guest.disks[guest.spec.disks[0]])

        self._call("begin_copy", uuid, act)

    def fetch_copy(self, uuid: str, into: Callable[[bytes], None]) -> None:
        def act() -> None:
            copy = self._guest(uuid).copy
            if copy is None:
                raise HostRefused("no copy of its disk is being made")
            into(copy)

        self._call("fetch_copy", uuid, act)

    def drop_copy(self, uuid: str) -> None:
        def act() -> None:
            guest = self.host.guests.get(uuid)
            if guest is not None:
                guest.copy = None

        self._call("drop_copy", uuid, act)

    # -- getting at guests

    def open_console(self, uuid: str, kind: ConsoleKind) -> ConsoleLine:
        def act() -> ConsoleLine:
            guest = self._guest(uuid)
            if uuid not in self.host.running():
                raise HostRefused("the guest does not run: start it first")
            return self.host.consoles.open(uuid, kind, guest.spec.name)

        return self._call("open_console", uuid, act)

    def diagnostics(self, uuid: str) -> GuestStats:
        def act() -> GuestStats:
            guest = self._guest(uuid)
            live = uuid in self.host.running()
            vcpus, memory_mib = guest.live[:2] if live else (0, guest.spec.memory_mib)
            cards = (NicStats(guest.card),) if live and guest.card else ()
            return GuestStats(
                guest.power, memory_mib, memory_mib // 2 if live else None, (0,) * vcpus,
                cards, (DiskStats("vda"),) if live else (),
            )

        return self._call("diagnostics", uuid, act)

    def freeze(self, uuid: str) -> int:
        def act() -> int:
            self._agent(uuid).frozen = True
            return 1

        return self._call("freeze", uuid, act)

    def thaw(self, uuid: str) -> int:
        def act() -> int:
            guest = self._agent(uuid)
            was, guest.frozen = guest.frozen, False
            return int(was)

        return self._call("thaw", uuid, act)

    def set_password(self, uuid: str, user: str, password: str) -> None:
        self._call(
            "set_password", uuid,
            lambda: self._agent(uuid).passwords.update({user: password}),
        )

    def _agent(self, uuid: str) -> Guest:
        guest = self._guest(uuid)
        if guest.power is not Power.RUNNING:
            raise AgentFailed("the guest does not run")
        if not guest.agent:
            raise AgentFailed("the guest's agent: it does not answer")
        return guest

    # -- images

    def ensure_image(self, image: ImageSpec, content: Path) -> None:
        def act() -> None:
            if image.sha256 in self.host.images:
                return
            try:
                found = hashlib.sha256(content.read_bytes()).hexdigest()
            except OSError as error:
                raise ImageBroken(f"the image file cannot be read: {error.strerror}") from error
            if found != image.sha256:
                raise ImageBroken("the image file has changed since it was added: add it again")
            if image.size_bytes > self.host.disk_mib * MIB:
                raise HostFull("no room for the image")
            self.host.uploads[image.sha256] += 1
            self.host.images.add(image.sha256)

        self._call("ensure_image", image.sha256, act)

    def remove_image(self, sha256: str) -> None:
        def act() -> None:
            guests = [
                pair for host in (self.host, *self.host.storage.others(self.host))
                for pair in host.guests.items()
            ]
            for uuid, guest in guests:
                built = {one.sha256 for one in (guest.spec.image, guest.spec.rescue) if one}
                if sha256 in built:
                    raise HostRefused(f"the image is in use: the disk of {uuid} is built on it")
            self.host.images.discard(sha256)

        self._call("remove_image", sha256, act)

    # -- one instance

    def define(self, spec: DomainSpec) -> None:
        self._call("define", spec.uuid, lambda: self._define(spec))

    def _define(self, spec: DomainSpec) -> None:
        if spec.uuid in self.host.foreign:
            raise HostRefused("a domain with this UUID is there and is not Treadle's")
        guest = self.host.guests.get(spec.uuid)
        others = self.host.storage.elsewhere(self.host, spec.uuid)
        theirs = {number for one in others for number in one.guests[spec.uuid].disks}
        if guest is None and theirs.intersection(spec.disks):
            raise HostRefused(f"its disk is in shared storage, and that of {others[0].name}")
        missing = {node.cell for node in spec.nodes} - {cell.id for cell in self.host.cells}
        if missing:
            raise HostRefused(f"it has no NUMA node {min(missing)}")
        there = guest.disks if guest is not None else {}
        for image in (spec.image if spec.disks[0] not in there else None, spec.rescue):
            if image is not None and image.sha256 not in self.host.images:
                raise HostRefused("its image is not on the host")
        gone = [number for number in spec.disks[1:] if number not in there]
        if gone:
            raise HostRefused(f"its disk {gone[0]} is gone")
        if guest is None:
            machine = self.host.machines[-1]
            guest = self.host.guests[spec.uuid] = Guest(spec, machine=machine)
        guest.spec, guest.defined, guest.changed = spec, True, ()
        if spec.disks[0] not in there:
            under = there[spec.disks[1]] if len(spec.disks) > 1 else spec.image
            text = under if isinstance(under, str) else under.sha256 if under else ""
            guest.disks = {**there, spec.disks[0]: text}
        if guest.power is Power.OFF and not others:
            guest.disks = {n: text for n, text in guest.disks.items() if n in spec.disks}
        if guest.power is Power.OFF:
            guest.rescue = spec.rescue.sha256 if spec.rescue else ""

    def grow(self, spec: DomainSpec) -> None:
        """In two steps, between which a controller can die."""
        def expect() -> Guest:
            guest = self._guest(spec.uuid)
            if guest.power is not Power.RUNNING:
                raise HostRefused("it does not run")
            if guest.running_generation > spec.generation:
                raise HostRefused("it was started anew since")
            return guest

        def give() -> None:
            guest = expect()
            top, *under = spec.disks
            vcpus, memory_mib, disk_gib = guest.live
            if top != guest.on and guest.on not in under[:1]:
                raise HostRefused(f"it runs on {guest.on}, which {top} does not lie over")
            room = guest.room or (vcpus, memory_mib)
            if spec.vcpus > room[0] or spec.memory_mib > room[1]:
                raise HostRefused("it cannot be given that much")
            if top not in guest.disks:
                guest.disks = {**guest.disks, top: guest.disks[guest.on]}
            if top != guest.on:
                guest.on = guest.moved_to = top
            guest.live = (
                max(vcpus, spec.vcpus), max(memory_mib, spec.memory_mib),
                max(disk_gib, spec.disk_gib),
            )
            guest.spec, guest.changed, guest.defined = spec, (), True

        def act() -> None:
            give()
            self._amid("grow", spec.uuid)
            expect().running_generation = spec.generation

        self._changing("grow", spec.uuid, act)

    def plug(self, spec: DomainSpec) -> None:
        if not self._changing("plug", spec.uuid, lambda: self._guest(spec.uuid).plug(spec)):
            raise AtNextStart("its guest does not let go of its interface")

    def autostart(self, uuid: str, on: bool) -> None:
        def act() -> None:
            guest = self._guest(uuid)
            if not guest.defined:
                raise HostRefused("its definition is gone")
            guest.autostart = on

        self._changing("autostart", uuid, act)

    def start(self, uuid: str) -> None:
        self._changing("start", uuid, lambda: self._run(uuid))

    def _run(self, uuid: str) -> None:
        guest = self._guest(uuid)
        if guest.power in (Power.RUNNING, Power.PAUSED):
            return
        guest.run()
        self.host.starts[uuid] += 1

    def restart(self, spec: DomainSpec) -> None:
        """In three steps, between which a controller can die."""
        def act() -> None:
            self._guest(spec.uuid)
            seen = self._domain(spec.uuid)
            if seen is not None and seen.generation < spec.generation:
                self._stop(spec.uuid)
                self._amid("restart", spec.uuid)
                self._define(spec)
                self._amid("restart", spec.uuid)
            self._run(spec.uuid)

        self._changing("restart", spec.uuid, act)

    def pause(self, uuid: str) -> None:
        self._changing("pause", uuid, lambda: self._turn(uuid, Power.RUNNING, Power.PAUSED))

    def resume(self, uuid: str) -> None:
        self._changing("resume", uuid, lambda: self._turn(uuid, Power.PAUSED, Power.RUNNING))

    def suspend(self, uuid: str) -> None:
        def act() -> None:
            guest = self._guest(uuid)
            if guest.power is Power.OFF:
                raise HostRefused("it is not running")
            guest.power, guest.autostart = Power.SAVED, False

        self._changing("suspend", uuid, act)

    def shut_down(self, uuid: str) -> None:
        def act() -> None:
            guest = self._guest(uuid)
            guest.autostart = False
            if guest.power is Power.RUNNING and not guest.ignores_acpi:
                guest.power, guest.cause = Power.OFF, StopCause.GUEST

        self._changing("shut_down", uuid, act)

    def power_off(self, uuid: str) -> None:
        def act() -> None:
            guest = self._stop(uuid)
            if guest is not None:
                guest.autostart = False

        self._changing("power_off", uuid, act)

    def _stop(self, uuid: str) -> Guest | None:
        guest = self.host.guests.get(uuid)
        if guest is not None:
            guest.copy = None
        if guest is not None and guest.power is not Power.OFF:
            guest.power, guest.cause = Power.OFF, StopCause.FORCED
        return guest

    def undefine(self, uuid: str) -> None:
        def act() -> None:
            self.host.guests.pop(uuid, None)

        self._changing("undefine", uuid, act)


def tiny_qcow2(text: str) -> bytes:
    """An empty qcow2 of 1 MiB that has `text` in its header, in an extension that nobody knows."""
    cluster = 1 << 16
    note = text.encode()[:200]
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, MIB, 0, 1, 3 * cluster, cluster, 1, 0, 0,
        0, 0, 0, 4, 104,
    )
    head += struct.pack(">II", 0x7EAD1E00, len(note)) + note.ljust(-(-len(note) // 8) * 8, b"\0")
    table = struct.pack(">Q", 2 * cluster)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(part.ljust(cluster, b"\0") for part in (head, table, counts, b""))


class FakeFleet:
    """Fake hosts by URI, so that a driver made again finds the machine as it left it.

    `fake://NAME?vcpus=16&memory_mib=65536&disk_mib=1048576&numa=2`
    """

    LIMITS = ("vcpus", "memory_mib", "disk_mib", "numa")

    def __init__(self) -> None:
        self.hosts: dict[str, FakeHost] = {}

    def driver(self, uri: str) -> FakeHypervisor:
        """The driver of the host that the URI names. Errors: `InvalidInput`."""
        parts = urlsplit(uri)
        name = parts.hostname or "fake"
        host = self.hosts.get(name)
        if host is None:
            host = FakeHost(name)
            for key, values in parse_qs(parts.query).items():
                if key not in self.LIMITS or not values[-1].isdecimal():
                    known = ", ".join(self.LIMITS)
                    raise InvalidInput("uri", uri, f"a fake host takes {known} as whole numbers")
                setattr(host, key, int(values[-1]))
            self.hosts[name] = host
        return FakeHypervisor(host)
