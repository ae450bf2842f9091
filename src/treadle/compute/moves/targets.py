"""Where an instance may go: what the scheduler is asked, and why each host is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from treadle.compute import placing
from treadle.compute.model import numa_nodes
from treadle.compute.placing import Asked, room_of
from treadle.compute.store import Loaded
from treadle.placement import ledger
from treadle.placement.ledger import Host, Room
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView
from treadle.scheduler.nodes import fitting
from treadle.scheduler.record import sentence
from treadle.scheduler.table import HostTable

TRANSFER = "transfer"
"""What a host must be able to do for cold moves."""
EMULATED = "qemu"
"""How guests run whose processor is made by software."""
SHOWN = 5
"""How many features of a processor an answer names."""


@dataclass(frozen=True, slots=True)
class Wish:
    """From where, to which host if to one alone, and with which columns of the instance changed.
    `cold`: its disk is sent while it is off; else `machine`: what it runs on, where that counts."""

    source_id: int
    wanted_id: int | None = None
    after: Mapping[str, Any] = field(default_factory=dict)
    cold: bool = False
    machine: str = ""


def asked(conn: sa.Connection, loaded: Loaded, wish: Wish, *, with_flavors: bool) -> Asked:
    """What to ask for the instance. `with_flavors`: as for `placing.request_of`."""
    instance, after = loaded.instance, wish.after
    room = room_of(loaded)
    if after:
        room = replace(
            room, vcpus=after["vcpus"], memory_mib=after["memory_mib"],
            disk_mib=after["disk_gib"] * 1024, nodes=numa_nodes(after["flavor"]),
        )
    if not wish.cold:
        # What runs goes on by its definition, which names the cells that it is bound to.
        room = replace(room, cells=loaded.cells)
    request = placing.request_of(
        conn, instance, room, with_flavors=with_flavors, flavor=after.get("flavor"),
    )
    only = request.only_hosts
    if wish.wanted_id is not None:
        named = frozenset({wish.wanted_id})
        only = named if only is None else only & named
    unfit = {}
    if wish.cold or wish.machine or room.cells:
        unfit = _unfit(ledger.list_hosts(conn), wish, room)
    barred = request.excluded_hosts | {wish.source_id} | unfit.keys()
    return Asked(
        replace(request, only_hosts=only, excluded_hosts=barred), room, barred,
        dict(unfit.values()),
    )


def _unfit(hosts: Iterable[Host], wish: Wish, room: Room) -> dict[int, tuple[str, str]]:
    """The hosts that cannot take a disk of the source, or run the guest's machine on the cells that
    it is bound to, each with its name and the reason."""
    known = {host.id: host for host in hosts}
    source = known.get(wish.source_id)
    here = None if source is None else source.facts
    found = {}
    for host in known.values():
        there = host.facts
        if source is None or here is None or there is None or host is source:
            continue
        why = ""
        if not wish.cold:
            if wish.machine and there.machines and wish.machine not in there.machines:
                why = (f"its {there.hypervisor} {there.hypervisor_version} has no machine type "
                       f"{wish.machine}, which the guest runs on")
            else:
                why = _other_processor(source, host) or _other_cells(source, host, room)
        elif there.arch != here.arch:
            why = f"its architecture is {there.arch}, the guest's is {here.arch}"
        elif there.hypervisor != here.hypervisor:
            why = f"its hypervisor is {there.hypervisor}, the guest's is {here.hypervisor}"
        elif TRANSFER not in there.capabilities:
            why = f"its hypervisor ({there.hypervisor}) takes no disks of other hosts"
        if why and wish.wanted_id in (None, host.id):
            found[host.id] = (host.name, why)
    return found


def _other_processor(source: Host, host: Host) -> str:
    """Why what runs on the processor of `source` cannot go on with that of `host`; "" where it can,
    or that is not known. A guest has all of its host's processor, unless it is emulated."""
    here, there = source.facts, host.facts
    assert here is not None
    assert there is not None
    if host.virt_type != source.virt_type:
        return f"it runs guests by {host.virt_type}, and this one runs by {source.virt_type}"
    if source.virt_type == EMULATED or not here.features or not there.features:
        return ""
    if here.processor.partition(" ")[0] != there.processor.partition(" ")[0]:
        return f"its processor is {there.processor}, the guest's is {here.processor}"
    lacks = sorted(set(here.features) - set(there.features))
    if not lacks:
        return ""
    more = f" and {len(lacks) - SHOWN} more" if len(lacks) > SHOWN else ""
    return (f"its processor ({there.processor}) lacks {', '.join(lacks[:SHOWN])}{more}, which the "
            f"guest's ({here.processor}) has")


def _other_cells(source: Host, host: Host, room: Room) -> str:
    """Why what is bound to NUMA cells of `source` cannot be bound to those of `host`."""
    here, there = source.facts, host.facts
    assert here is not None
    assert there is not None
    if not room.cells:
        return ""
    known = {cell.id: cell.cpus for cell in there.cells}
    for cell in here.cells:
        if cell.id in room.cells and known.get(cell.id) != cell.cpus:
            return (f"its NUMA node {cell.id} has processors {known.get(cell.id, 'none')}, and "
                    f"the guest is bound to {cell.cpus}")
    fit = fitting([cell.free for cell in host.cells], room.nodes, room.vcpus, room.memory_mib)
    full = sorted(set(room.cells) - {host.cells[number].id for number in fit})
    if full:
        return (f"its NUMA node{'s' * (len(full) > 1)} {', '.join(map(str, full))}, where the "
                "guest is bound to, has no room for it")
    return ""


def forecast(
    scheduler: Scheduler, views: Iterable[HostView], asked: Asked
) -> tuple[str, str] | None:
    """None where some host would take it, by a dry run; else why not, for operators and for
    tenants. Errors: `PluginError`."""
    ranking, record = scheduler.rank(HostTable(views).columns(), asked.request, dry_run=True)
    return None if len(ranking) else (asked.refusal(record), sentence(record, public=True))
