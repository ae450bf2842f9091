"""A definition, and what must lie on the host before libvirt takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import libvirt

from treadle.hypervisor.base import DomainSpec, HostRefused, HostSetup, Unsupported
from treadle.hypervisor.libvirt import (
    capabilities,
    containers,
    domains,
    memory,
    network,
    seed,
    sharing,
    storage,
)
from treadle.hypervisor.libvirt.connection import Attempt, Link
from treadle.hypervisor.libvirt.domain_xml import (
    Mark,
    Place,
    disk_volume,
    domain_xml,
    seed_volume,
)

_HELD = re.compile(r'"[^"]*"|>[^<]*<')


def place_of(
    link: Link, attempt: Attempt, setup: HostSetup, *, filtered: bool, virt_type: str = ""
) -> Place:
    """Where and as what guests are defined here. `virt_type`: empty for the host's own. Errors:
    `Unsupported`."""
    virt_type = virt_type or _virt_type(link, attempt, setup)
    shape = capabilities.shape_of(link, attempt)
    if link.kind not in (*capabilities.GUESTS, "TEST"):
        raise Unsupported(f"no guests are made on {link.kind} hosts")
    return Place(
        virt_type=virt_type,
        pool_path=storage.pool_path(link, attempt, setup.pool),
        arch=shape.arch if link.kind in capabilities.GUESTS else "",
        machine=shape.machine if link.kind == "QEMU" else "",
        network="" if setup.bridge or link.session else setup.network,
        bridge=setup.bridge,
        net_filter=network.FILTER if filtered else "",
        cells=shape.cells,
    )


def _virt_type(link: Link, attempt: Attempt, setup: HostSetup) -> str:
    if link.kind == "LXC":
        return "lxc"
    if setup.virt_type != "auto":
        return setup.virt_type
    types = capabilities.shape_of(link, attempt).virt_types
    return types[0] if types else "qemu"


def form_of(text: str) -> str:
    """The elements and attributes of a definition, without what they hold."""
    return _HELD.sub("", text)


def _store(
    link: Link, attempt: Attempt, text: str, uuid: str, facts: Mapping[str, Any],
    gone: Sequence[str],
) -> None:
    """Have libvirt take it. It would pass over what it does not know, a filter of packets for one,
    so it checks each form of definition against its schema: once, since that takes 20 ms.

    Its event may come before this ends, or after the next look, and is no news in either case:
    `facts` and `gone` say what is known of the domain from now on.
    """
    taken: set[str] = link.known.setdefault("forms", set())
    form = form_of(text)
    well = False
    link.memory.changing(uuid)
    try:
        link.domains[uuid] = attempt(
            link.conn.defineXMLFlags, text,
            0 if form in taken else libvirt.VIR_DOMAIN_DEFINE_VALIDATE,
        )
        well = True
    finally:
        if not well:
            link.memory.forget(uuid)
    taken.add(form)
    link.memory.changed(uuid, facts, gone)


def define(
    link: Link, attempt: Attempt, pool: Any, place: Place, spec: DomainSpec, copy_mib_s: float
) -> Mark:
    """Make its disks and its seed, and define it with the mark that comes back. Errors:
    `HostRefused` where the UUID is another's."""
    uuid = spec.uuid
    told = seed.digest(uuid, spec.seed)
    domain = domains.lookup(link, attempt, uuid)
    has_seed, stored, in_use = "", False, False
    if domain is not None:
        stored = link.memory.get(uuid, memory.DEFINED, lambda: bool(attempt(domain.isPersistent)))
        in_use = domains.in_use(attempt, domain)
        if stored and not in_use:
            before = domains.known_mark(link, attempt, domain, uuid)
        else:
            flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if stored else libvirt.VIR_DOMAIN_AFFECT_LIVE
            before = domains.mark_of(attempt, domain, flags)
        if before is None:
            raise HostRefused("a domain with this UUID is there and is not Treadle's")
        has_seed = before.seed
        if in_use:
            has_seed = has_seed or told
        elif has_seed != told:
            has_seed = ""
    contained = link.kind == "LXC"
    wanted = [disk_volume(uuid, number) for number in spec.disks]
    sharing.claim(link, attempt, pool, uuid, wanted, defined=domain is not None)
    if contained:
        containers.make_root(attempt, pool, spec, copy_mib_s)
    else:
        storage.make_disks(attempt, pool, place.pool_path, spec, first=domain is None)
    if not has_seed:
        make = containers.seed_image if contained else seed.iso
        name = (containers.seed_volume if contained else seed_volume)(uuid)
        storage.write_seed(link, attempt, pool, name, make(uuid, spec.seed))
        has_seed = told
    mark = Mark(spec.generation, spec.mac.lower(), has_seed, values=spec.metadata)
    text = (containers.container_xml if contained else domain_xml)(spec, place, mark)
    facts = {memory.DEFINED: True, memory.STORED: (spec.generation, ())}
    if domain is None:
        facts[memory.AUTOSTART] = False
    # The mark of a guest that has a process, or a saved one, stays what that was started with.
    gone = memory.ALL if not stored else () if in_use else memory.RUNNING
    _store(link, attempt, text, uuid, facts, gone)
    unused = spec.generation > 1 and not in_use and not contained
    if unused and sharing.may_drop(link, attempt, pool, uuid):
        storage.drop_disks(attempt, pool, spec)
    return mark
