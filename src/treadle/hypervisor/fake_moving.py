"""The calls that are about two simulated hosts: moves, and storage that both see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from treadle.hypervisor.base import (
    DomainSpec,
    HostRefused,
    HostUnreachable,
    Hypervisor,
    MoveOptions,
    MoveProgress,
    Power,
    Unsupported,
)
from treadle.hypervisor.fake_host import Guest
from treadle.hypervisor.fake_storage import Disks
from treadle.hypervisor.fake_verbs import FakeVerbs


class FakeMoving(FakeVerbs):
    """Of each call, this host is the source, unless it says otherwise."""

    def machine(self, uuid: str) -> str:
        return self._call("machine", uuid, lambda: self._guest(uuid).machine)

    def expect(self, spec: DomainSpec) -> None:
        def act() -> None:
            there = self.host.guests.get(spec.uuid)
            if there is not None and there.defined:
                raise HostRefused("a domain with this UUID is there")
            if spec.image is not None and spec.image.sha256 not in self.host.images:
                raise HostRefused("its image is not on the host")
            if self.host.storage.elsewhere(self.host, spec.uuid):
                raise HostRefused("its disk is in shared storage, and another host's")
            text = spec.image.sha256 if spec.image else ""
            self.host.guests[spec.uuid] = Guest(
                spec, defined=False, disk=Disks({spec.disks[0]: text})
            )

        self._call("expect", spec.uuid, act)

    def move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """In one step, since the fake's guests have no memory to send; with `post_copy`, in two."""
        assert options.seconds > 0

        def act() -> None:
            guest = self._guest(uuid)
            if not isinstance(target, FakeMoving):
                raise Unsupported("the target is no simulated host")
            if guest.power not in (Power.RUNNING, Power.PAUSED):
                raise HostRefused("it does not run")
            expected = target.host.guests.get(uuid)
            if not target.host.up or expected is None or expected.defined:
                raise HostRefused("the target does not expect it")
            if options.shared is not (expected.disk is guest.disk):
                raise HostRefused("the disk is not where it is said to be")
            if guest.other is not None:
                raise HostRefused("it is being moved")
            disk = guest.disk
            if not options.shared:
                numbers = expected.spec.disks
                disk = Disks({n: t for n, t in guest.disks.items() if n in numbers})
            post_copy = options.post_copy and guest.power is Power.RUNNING
            if options.post_copy:
                guest.autostart = False
            target.host.guests[uuid] = replace(
                guest, disk=disk, defined=not post_copy, other=self.host if post_copy else None
            )
            if post_copy:
                guest.power, guest.other = Power.PAUSED, target.host
                self._bring_rest("move", uuid, target)
            else:
                self.host.guests[uuid] = Guest(guest.spec, defined=False, disk=guest.disk)
                target.host.tell(uuid)

        self._changing("move", uuid, act)

    def resume_move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        assert options.seconds > 0

        def act() -> None:
            assert isinstance(target, FakeMoving)
            if not target.host.up:
                raise HostUnreachable(f"{target.host.name} does not answer")
            halves = self._domain(uuid), target._domain(uuid)
            if not all(half is not None and half.torn for half in halves):
                raise HostRefused("it is not torn")
            self._bring_rest("resume_move", uuid, target)

        self._changing("resume_move", uuid, act)

    def _bring_rest(self, verb: str, uuid: str, target: FakeMoving) -> None:
        """Errors: `HostUnreachable` where an emulator is gone, or they reach one another no more.
        Else they see to it, whatever becomes of the controller meanwhile."""
        for half in (self.host.guests[uuid], target.host.guests[uuid]):
            half.torn = self.host.parted
        self._amid(verb, uuid)
        self.host.brings_rest(uuid)
        target.host.tell(uuid)
        there = target.host.guests.get(uuid)
        if uuid not in target.host.running() or there is None or there.other is not None:
            raise HostUnreachable("the way between the two hosts broke")

    def send_disk(
        self, uuid: str, target: Hypervisor, seconds: float, tell: Callable[[int, int], None]
    ) -> None:
        assert seconds > 0

        def act() -> None:
            guest = self._guest(uuid)
            if not isinstance(target, FakeMoving):
                raise Unsupported("the target is no simulated host")
            if guest.power is not Power.OFF:
                raise HostRefused("it is not off")
            other = target.host
            if not other.up:
                raise HostUnreachable(f"{other.name} does not answer")
            there = other.guests.get(uuid)
            if uuid in other.foreign or (there is not None and there.defined):
                raise HostRefused("a domain with this UUID is there")
            size = guest.spec.disk_gib << 30
            if other.storage.elsewhere(other, uuid):
                raise HostRefused("its disk is in shared storage, and another host's")
            tell(0, size)
            other.guests[uuid] = Guest(guest.spec, defined=False, disk=Disks(guest.disks))
            tell(size, size)

        self._call("send_disk", uuid, act)

    def move_progress(self, uuid: str) -> MoveProgress | None:
        return self._call("move_progress", uuid, lambda: None)

    def abort_move(self, uuid: str) -> None:
        self._changing("abort_move", uuid, lambda: None)

    def hurry_move(self, uuid: str) -> None:
        self._changing("hurry_move", uuid, lambda: None)

    # -- storage that other hosts see

    def shares(self, other: Hypervisor) -> bool:
        def act() -> bool:
            if not isinstance(other, FakeMoving):
                return False
            if not other.host.up:
                raise HostUnreachable(f"{other.host.name} does not answer")
            return other.host in self.host.storage.others(self.host)

        return self._call("shares", "", act)

    def take(self, spec: DomainSpec) -> None:
        def act() -> None:
            there = self.host.guests.get(spec.uuid)
            if spec.uuid in self.host.foreign or (there is not None and there.defined):
                raise HostRefused("a domain with this UUID is there")
            having = [one.guests[spec.uuid] for one in self.host.storage.hosts
                      if spec.uuid in one.guests]
            if not having:
                raise HostRefused("the storage does not say whose its disk is")
            disk = having[0].disk
            if not disk.volumes.keys() >= set(spec.disks):
                raise HostRefused("its disk is not in the storage of this host")
            self.host.guests[spec.uuid] = Guest(spec, defined=False, disk=disk)

        self._changing("take", spec.uuid, act)
