"""What must hold when the faults are over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from brain import LEASE_S

from treadle.compute import lifecycle, store
from treadle.compute.changes import held
from treadle.compute.kinds import IMAGE_KIND, KIND
from treadle.compute.model import Instance, Mode, State, is_settled
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Move, Stage
from treadle.controller.queue import FAR_S
from treadle.db.schema import action, allocation, host, host_image, image, instance, orphan, work
from treadle.hypervisor.base import Power
from treadle.placement import cells
from treadle.placement.ledger import ImageState

if TYPE_CHECKING:
    from world import World

FOREIGN = "ffffffff-0000-4000-8000-000000000001"
"""A domain on every host that is not ours."""
_ROWS = sa.select(instance).order_by(instance.c.id)


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
    elif guest.power is Power.RUNNING and guest.other is not None:
        yield f"{name}: a part of its memory is elsewhere, or lost"
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
    for cell in cells.of_text(row.cells):
        shares = [share for one in held for share in cells.shares_of(one.cells)]
        mine = [share for share in shares if share.cell == cell.id]
        taken = sum(one.vcpus for one in mine), sum(one.memory_mib for one in mine)
        if (cell.vcpus_used, cell.memory_used_mib) != taken or min(cell.free) < 0:
            yield f"host {row.id}: {cell}, and {taken} of it are held"


def _of_image(world: World, row: Any, jobs: dict[tuple[str, str], Any]) -> Iterator[str]:
    machine = world.machines[row.host_id]
    if row.state == ImageState.READY and row.sha256 not in machine.images:
        yield f"{machine.name}: its image is not there"
    waits = row.state in (ImageState.WANTED, ImageState.EVICTING)
    keeper = 1 if world.shared else row.host_id
    if waits and (IMAGE_KIND, f"{keeper}:{row.sha256}") not in jobs:
        yield f"{machine.name}: its image is {row.state} and nobody works on it"
