"""The domain that a verb is about: its handle, its mark, its state, and what verbs do to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libvirt

from treadle.hypervisor.base import NOT_BY_HOST, DomainSpec, HostRefused, Power
from treadle.hypervisor.libvirt import errors, memory, network, storage
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, PREFIX, Mark, read_mark
from treadle.hypervisor.libvirt.states import power_of

ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
NO_DOMAIN = libvirt.VIR_ERR_NO_DOMAIN
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
GUEST_SSH = 22

UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
UNDEFINE_LEAST = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A domain of ours that a verb is about."""

    link: Link
    attempt: Attempt
    domain: Any
    mark: Mark


def lookup(link: Link, attempt: Attempt, uuid: str) -> Any:
    """A handle, or None. One that was got before is taken again: whether the domain is still
    there, the next call says."""
    found = link.domains.get(uuid)
    if found is None:
        found = as_value(attempt, link.conn.lookupByUUIDString, uuid, missing=NO_DOMAIN)
        if found is not None:
            link.domains[uuid] = found
    return found


def known_mark(link: Link, attempt: Attempt, domain: Any, uuid: str) -> Mark | None:
    """As `mark_of`; asked for once, until something happens to the domain."""
    return link.memory.get(uuid, memory.MARK, lambda: mark_of(attempt, domain))


def ours(link: Link, attempt: Attempt, uuid: str) -> Any:
    """The handle of a domain with our mark. Errors: `HostRefused`."""
    domain = lookup(link, attempt, uuid)
    if domain is None or mark_of(attempt, domain) is None:
        raise HostRefused("there is no such domain on the host")
    return domain


def mark_of(attempt: Attempt, domain: Any, flags: int = 0) -> Mark | None:
    """The mark of the running guest if there is one, else of the definition."""
    text = as_value(
        attempt, domain.metadata, ELEMENT, NAMESPACE, flags,
        missing=libvirt.VIR_ERR_NO_DOMAIN_METADATA,
    )
    return None if text is None else read_mark(text)


def write_mark(attempt: Attempt, domain: Any, mark: Mark) -> None:
    """Give what runs another mark."""
    attempt(domain.setMetadata, ELEMENT, mark.text(), PREFIX, NAMESPACE, LIVE)


def state_of(attempt: Attempt, domain: Any) -> tuple[int, int]:
    """libvirt's state, and the reason of it."""
    state, reason = attempt(domain.state, 0)
    return int(state), int(reason)


def power(attempt: Attempt, domain: Any) -> Power | None:
    """None where there is no process."""
    return power_of(state_of(attempt, domain)[0])


def expect(it: Subject, spec: DomainSpec, *powers: Power) -> None:
    """Errors: `HostRefused` where it is in none of these states, or is past the spec."""
    if power(it.attempt, it.domain) not in powers:
        raise HostRefused("it does not run")
    if it.mark.generation > spec.generation:
        raise HostRefused("it was started anew since")


def in_use(attempt: Attempt, domain: Any) -> bool:
    """Whether its disks are: it has a process, or a saved one."""
    return power(attempt, domain) is not None or bool(attempt(domain.hasManagedSaveImage, 0))


def destroy(attempt: Attempt, domain: Any) -> None:
    """End its process, if it has one."""
    try:
        attempt(domain.destroy)
    except libvirt.libvirtError as error:
        if errors.is_broken(error) or power(attempt, domain) is not None:
            raise


def end(attempt: Attempt, domain: Any) -> None:
    """End its process, if it has one, and throw its saved memory away."""
    destroy(attempt, domain)
    # One without a definition is gone with its process.
    if as_value(attempt, domain.hasManagedSaveImage, 0, missing=NO_DOMAIN):
        attempt(domain.managedSaveRemove, 0)


def forget(attempt: Attempt, domain: Any) -> None:
    """Remove the definition, with all that libvirt keeps beside it."""
    try:
        attempt(domain.undefineFlags, UNDEFINE_ALL)
    except libvirt.libvirtError as error:
        if errors.code_of(error) not in (
            libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        ):
            raise
        least = UNDEFINE_LEAST if domain.connect().getType() != "LXC" else 0
        attempt(domain.undefineFlags, least)


def set_autostart(it: Subject, on: bool) -> None:
    """Unless it is known to be so. Where the hypervisor starts nothing with its host, or the
    definition is gone, nothing."""
    uuid = it.domain.UUIDString()
    if it.link.memory.get(uuid, memory.AUTOSTART, lambda: None) is on:
        return
    try:
        it.attempt(it.domain.setAutostart, int(on))
        it.link.memory.put(uuid, memory.AUTOSTART, on)
    except libvirt.libvirtError as error:
        if errors.code_of(error) not in (
            libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID,
        ):
            raise


def memory_seconds(attempt: Attempt, domain: Any, per_gib: float) -> float:
    """How long its memory may take to or from a disk, at `per_gib` seconds a GiB."""
    kib = int(attempt(domain.info)[1])
    return kib / (1 << 20) * per_gib


def create(it: Subject, pool: str, per_gib: float, *, anew: bool = False) -> None:
    """Give it a process, where it has none. `per_gib`: as for `memory_seconds`. `anew`: it has no
    saved memory."""
    attempt, domain = it.attempt, it.domain
    if not anew and attempt(domain.hasManagedSaveImage, 0):
        attempt.extend(memory_seconds(attempt, domain, per_gib))
    elif it.link.kind == "QEMU":
        found = storage.pool_of(it.link, attempt, pool)
        again = it.mark.generation > 1
        storage.fresh_console(attempt, found, domain.UUIDString(), again=again)
    try:
        attempt(domain.create)
    except libvirt.libvirtError as error:
        if errors.is_broken(error) or power(attempt, domain) is None:
            raise


def turn(it: Subject, goal: Power, origin: Power, act: Callable[[], Any]) -> None:
    """Bring it from `origin` to `goal` by `act`; there already is success. Errors: `HostRefused`
    where it is neither."""
    try:
        it.attempt(act)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
        found = power(it.attempt, it.domain)
        if found is origin:
            raise
        if found is not goal:
            raise HostRefused(f"it is {found or Power.OFF}, not {origin}") from error
    by_host = NOT_BY_HOST not in it.mark.values
    set_autostart(it, goal is Power.RUNNING and by_host)


def forward(it: Subject) -> None:
    """Lead a port of the host's loopback to the guest's SSH, and write it on the live mark."""
    attempt, domain = it.attempt, it.domain
    for port in network.forward_ports(domain.UUIDString()):
        if network.forward(attempt, domain, port, GUEST_SSH):
            # The mark of what runs, which after a restore is older than the definition's.
            mark = mark_of(attempt, domain) or it.mark
            write_mark(attempt, domain, mark.with_forward(port))
            return
