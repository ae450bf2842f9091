"""What a host shows of the domains with our mark: one of them, or all."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import libvirt

from treadle.hypervisor.base import Domain, HostSetup, Power
from treadle.hypervisor.libvirt import (
    capabilities,
    enlargement,
    network,
    shape,
    sharing,
    storage,
)
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, Mark, read_mark
from treadle.hypervisor.libvirt.domains import NO_DOMAIN, known_mark, lookup, state_of
from treadle.hypervisor.libvirt.memory import ADDRESSES, AUTOSTART, DEFINED, STORED
from treadle.hypervisor.libvirt.states import domain_of, power_of


def one(link: Link, attempt: Attempt, uuid: str, setup: HostSetup) -> Domain | None:
    """A domain of ours, or what is left of one. Another's counts as nothing."""
    domain = lookup(link, attempt, uuid)
    if domain is None:
        pool = storage.pool_of(link, attempt, setup.pool)
        left = sharing.is_left(link, attempt, pool, uuid)
        return Domain(uuid, Power.REMNANT) if left else None
    mark = known_mark(link, attempt, domain, uuid)
    if mark is None:
        return None
    state, reason = state_of(attempt, domain)
    saved = power_of(state) is None and bool(attempt(domain.hasManagedSaveImage, 0))
    addresses: tuple[str, ...] = ()
    if power_of(state) is Power.RUNNING:
        addresses = _addresses(link, attempt, domain, mark, setup, None)
    autostart = link.memory.get(uuid, AUTOSTART, lambda: _autostart(attempt, domain))
    found = domain_of(
        uuid, state, reason, saved, mark, addresses, autostart,
        disk_grows=link.kind in enlargement.KINDS,
    )
    if not link.memory.get(uuid, DEFINED, lambda: bool(attempt(domain.isPersistent))):
        return replace(found, defined=False)
    return _with_stored(found, _stored(link, attempt, domain))


def every(link: Link, attempt: Attempt, setup: HostSetup) -> Sequence[Domain]:
    """All of ours, and remnants; by UUID."""
    link.memory.clear()  # an event may have been missed
    pool = storage.pool_of(link, attempt, setup.pool)
    # Disks before domains: one that is defined meanwhile is no remnant.
    left, copied = sharing.remnants(link, attempt, pool)
    saved_flag = libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE
    rows = _states(link, attempt)
    saved = {d.UUIDString() for d in attempt(link.conn.listAllDomains, saved_flag)}
    auto = _autostarted(link, attempt)
    leases = _leases(link, attempt, setup)
    flag = libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT
    undefined = {d.UUIDString() for d in attempt(link.conn.listAllDomains, flag)}
    found: dict[str, Domain] = {}
    for domain, state, reason in rows:
        uuid = domain.UUIDString()
        left.discard(uuid)
        mark = as_value(attempt, known_mark, link, attempt, domain, uuid, missing=NO_DOMAIN)
        if mark is None:
            continue
        addresses: tuple[str, ...] = ()
        if power_of(state) is Power.RUNNING:
            addresses = _addresses(link, attempt, domain, mark, setup, leases)
        found[uuid] = domain_of(
            uuid, state, reason, uuid in saved, mark, addresses,
            None if auto is None else uuid in auto, disk_grows=link.kind in enlargement.KINDS,
        )
        if uuid not in undefined:
            stored = as_value(attempt, _stored, link, attempt, domain, missing=NO_DOMAIN)
            found[uuid] = _with_stored(found[uuid], stored or (0, ()))
        link.memory.check(uuid, DEFINED, uuid not in undefined)
        link.memory.check(uuid, AUTOSTART, found[uuid].autostart)
    for uuid in left:
        found[uuid] = Domain(uuid, Power.REMNANT)
    return [
        replace(found[uuid], copied=uuid in copied, defined=uuid not in undefined)
        for uuid in sorted(found)
    ]


def _states(link: Link, attempt: Attempt) -> list[tuple[Any, int, int]]:
    """Each domain with its state and the reason of it; in one call where there is one."""
    if link.kind == "LXC":
        rows = []
        for domain in attempt(link.conn.listAllDomains, 0):
            found = as_value(attempt, domain.state, 0, missing=NO_DOMAIN)
            if found is not None:
                rows.append((domain, int(found[0]), int(found[1])))
        return rows
    return [
        (domain, stats["state.state"], stats["state.reason"])
        for domain, stats in attempt(
            link.conn.getAllDomainStats, libvirt.VIR_DOMAIN_STATS_STATE, 0
        )
    ]


def _with_stored(found: Domain, stored: tuple[int, tuple[str, ...]]) -> Domain:
    generation, changed = stored
    runs = found.power in (Power.RUNNING, Power.PAUSED)
    return replace(found, stored=generation if runs else 0, changed=changed)


def _stored(link: Link, attempt: Attempt, domain: Any) -> tuple[int, tuple[str, ...]]:
    """The generation of the definition, and what somebody else has changed in it."""

    def read() -> tuple[int, tuple[str, ...]]:
        text = attempt(domain.XMLDesc, libvirt.VIR_DOMAIN_XML_INACTIVE)
        mark = ET.fromstring(text).find(f"metadata/{{{NAMESPACE}}}instance")
        own = Mark(0) if mark is None else read_mark(ET.tostring(mark, encoding="unicode"))
        return own.generation, shape.changed(text, f"{{{NAMESPACE}}}instance")

    return link.memory.get(domain.UUIDString(), STORED, read)


def _autostart(attempt: Attempt, domain: Any) -> bool | None:
    """None where the hypervisor starts nothing with its host."""
    found = as_value(attempt, domain.autostart, missing=libvirt.VIR_ERR_NO_SUPPORT)
    return None if found is None else bool(found)


def _autostarted(link: Link, attempt: Attempt) -> frozenset[str] | None:
    flag = libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART
    listed = as_value(
        attempt, link.conn.listAllDomains, flag, missing=libvirt.VIR_ERR_NO_SUPPORT
    )
    return None if listed is None else frozenset(d.UUIDString() for d in listed)


def _leases(link: Link, attempt: Attempt, setup: HostSetup) -> Mapping[str, list[str]]:
    if link.session or setup.bridge or link.kind not in capabilities.GUESTS:
        return {}
    return network.leases(link, attempt, setup.network, None)


def _addresses(
    link: Link, attempt: Attempt, domain: Any, mark: Mark, setup: HostSetup,
    leases: Mapping[str, list[str]] | None,
) -> tuple[str, ...]:
    """Where the guest is reached. `leases`: None to ask for them."""
    if link.session:
        return (f"127.0.0.1:{mark.forward}",) if mark.forward else ()
    if setup.bridge:
        return network.neighbours(attempt, domain)
    if link.kind not in capabilities.GUESTS or not mark.mac:
        return ()
    if leases is not None:
        return tuple(leases.get(mark.mac, ()))

    def read() -> tuple[str, ...] | None:
        found = network.leases(link, attempt, setup.network, mark.mac)
        return tuple(found.get(mark.mac, ())) or None

    return link.memory.get(domain.UUIDString(), ADDRESSES, read) or ()
