"""How the calls of a simulated host's driver go, and how they go wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import TypeVar

from treadle.hypervisor.base import (
    NOT_BY_HOST,
    Domain,
    HostFull,
    HostRefused,
    HostSetup,
    HostUnreachable,
    Power,
    StopCause,
    VerbTimeout,
    Watcher,
)
from treadle.hypervisor.fake_host import FakeHost, Fault, FaultKind, Guest

T = TypeVar("T")


class FakeVerbs:
    """A connection to one `FakeHost`."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._watcher: Watcher | None = None
        self._prepared = False
        self._assumed: Callable[[], HostSetup | None] | None = None

    def prepare(self, setup: HostSetup) -> None:
        def act() -> None:
            self._assumed = None
            if setup.subnet:
                self.host.subnet = setup.subnet
            if not self._prepared:
                self._prepared = True
                self.host.prepared += 1
            if self._watcher is not None and self._watcher not in self.host.watchers:
                self.host.watchers.append(self._watcher)

        self._call("prepare", "", act)

    def assume(self, setup: Callable[[], HostSetup | None]) -> None:
        self._assumed = setup

    def watch(self, watcher: Watcher) -> None:
        self._watcher = watcher
        with self.host.lock:
            if self.host.up and watcher not in self.host.watchers:
                self.host.watchers.append(watcher)

    def close(self) -> None:
        with self.host.lock:
            if self._watcher in self.host.watchers:
                self.host.watchers.remove(self._watcher)

    # -- how a call goes

    def _guest(self, uuid: str) -> Guest:
        guest = self.host.guests.get(uuid)
        live = (Power.RUNNING, Power.PAUSED)
        if guest is None or not (guest.defined or guest.power in live):
            raise HostRefused("there is no such domain on the host")
        return guest

    def _turn(self, uuid: str, wanted: Power, result: Power) -> None:
        guest = self._guest(uuid)
        if guest.power is result:
            return
        if guest.power is not wanted:
            raise HostRefused(f"it is {guest.power}, not {wanted}")
        by_host = NOT_BY_HOST not in guest.spec.metadata
        guest.power, guest.autostart = result, result is Power.RUNNING and by_host

    def _changing(self, verb: str, uuid: str, act: Callable[[], T]) -> T:
        if uuid in self.host.foreign:
            raise HostRefused("this domain is not Treadle's")
        before = self._domain(uuid)
        value = self._call(verb, uuid, act)
        if self._domain(uuid) != before:
            self.host.tell(uuid)
        return value

    def _call(self, verb: str, uuid: str, act: Callable[[], T]) -> T:
        host = self.host
        setup = None if self._assumed is None or verb == "prepare" else self._assumed()
        if setup is not None:
            self.prepare(setup)
        if host.trap is not None:
            host.trap("before", verb, uuid)
        with host.lock:
            host.calls[verb] += 1
            count = host.calls[verb]
            fault = next(
                (f for f in host.faults
                 if f.verb == verb and f.nth <= count < f.nth + f.times), None
            )
            value = self._outcome(verb, fault, act)
        if host.verb_s and verb in ("define", "start", "restart", "undefine", "ensure_image"):
            time.sleep(host.verb_s)
        if host.trap is not None:
            host.trap("after", verb, uuid)
        return value

    def _amid(self, verb: str, uuid: str) -> None:
        """Between two steps of a verb."""
        if self.host.trap is not None:
            self.host.trap("amid", verb, uuid)
        if not self.host.up:
            raise HostUnreachable(f"{self.host.name} does not answer")

    def _outcome(self, verb: str, fault: Fault | None, act: Callable[[], T]) -> T:
        host = self.host
        if not host.up:
            raise HostUnreachable(f"{host.name} does not answer")
        kind = fault.kind if fault else None
        match kind:
            case FaultKind.REFUSE:
                raise HostRefused(f"{host.name} refuses to {verb}")
            case FaultKind.FULL:
                raise HostFull(f"{host.name} has no disk left")
            case FaultKind.HANG:
                raise VerbTimeout(f"{verb} on {host.name} did not end in time")
            case FaultKind.LOSE_BEFORE:
                raise HostUnreachable(f"the connection to {host.name} broke")
            case FaultKind.DIE_BEFORE:
                host.power_failure()
                raise HostUnreachable(f"{host.name} died")
        host.parted = kind is FaultKind.PARTED
        try:
            value = act()
        finally:
            host.parted = False
        match kind:
            case FaultKind.LATE:
                raise VerbTimeout(f"{verb} on {host.name} did not end in time")
            case FaultKind.LOSE_AFTER:
                raise HostUnreachable(f"the connection to {host.name} broke")
            case FaultKind.DIE_AFTER:
                host.power_failure()
                raise HostUnreachable(f"{host.name} died")
        return value

    def _domain(self, uuid: str) -> Domain | None:
        guest = self.host.guests.get(uuid)
        if guest is None:
            return None
        if not guest.defined and guest.power not in (Power.RUNNING, Power.PAUSED):
            return Domain(uuid, Power.REMNANT)
        runs = guest.power in (Power.RUNNING, Power.PAUSED)
        live = runs or guest.power is Power.SAVED
        addresses: tuple[str, ...] = ()
        if guest.power is Power.RUNNING and guest.card and not guest.cut:
            network = ip_network(self.host.subnet)
            low = 2 + int(hashlib.sha256(uuid.encode()).hexdigest(), 16) % (
                max(1, network.num_addresses - 4))
            addresses = (str(network[low]),)
        return Domain(
            uuid, guest.power,
            generation=guest.running_generation if live else guest.spec.generation,
            cause=guest.cause if guest.power is Power.OFF else StopCause.NONE,
            addresses=addresses, autostart=guest.autostart, defined=guest.defined,
            changed=guest.changed if guest.defined else (),
            room=guest.room if runs else None, disk_grows=runs,
            disk=guest.moved_to if runs else 0, split=runs and guest.other is not None,
            torn=runs and self.host.is_torn(uuid),
            stored=guest.spec.generation if runs and guest.defined else 0,
        )
