"""The capacity ledger: what each host has, what is taken of it, and the one place that takes it.

A claim is a guarded UPDATE: it changes a row only where the room is there, so two claims can never
take the same room, whatever snapshot they were ranked on. The table's CHECK constraints stand
behind it. The functions take an open connection and belong to the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.prepared import Prepared
from treadle.db.schema import (
    aggregate_host,
    allocation,
    host,
    host_image,
    image,
    instance,
    orphan,
)
from treadle.hypervisor.base import HostFacts, NumaCell
from treadle.placement import cells
from treadle.placement.cells import Cell

CHANGED = "host"
"""What `note` tells of: ids of hosts that are not as they were."""
PLACED = "placed"
"""What `note` tells of: UUIDs of instances whose room has been claimed."""


DEFAULT_ZONE = "nova"
"""The availability zone of hosts that no aggregate puts into another; the name is OpenStack's."""


class HostStatus(StrEnum):
    """Whether a host answers. `NEW`: it has not been asked yet."""

    NEW = "new"
    UP = "up"
    DOWN = "down"


class Fence(StrEnum):
    """Whether a host is off for sure. `ASKED`: it is to be switched off. `OFF`: it was, and has not
    answered since. The host's `fenced_at` says since when, or when that was last asked."""

    NONE = ""
    ASKED = "asked"
    OFF = "off"


class ImageState(StrEnum):
    """Where an image stands on one host. `REFUSED`: the host's fault; `BROKEN`: the image's."""

    WANTED = "wanted"
    READY = "ready"
    EVICTING = "evicting"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Ratios:
    """Overcommit: how many times a host's cores, memory and disk are given out."""

    cpu: float = 4.0
    memory: float = 1.0
    disk: float = 1.0
    reserved_memory_mib: int = 512


@dataclass(frozen=True, slots=True)
class Host:
    """One row of the host table. Memory and disk in MiB; limits have overcommit applied."""

    id: int
    uri: str
    name: str
    status: HostStatus
    enabled: bool
    note: str | None
    error: str | None
    virt_type: str
    facts: HostFacts | None
    ratios: Ratios
    vcpus_limit: int
    memory_limit_mib: int
    disk_limit_mib: int
    vcpus_used: int
    memory_used_mib: int
    disk_used_mib: int
    instances: int
    seen_at: float | None
    uuid: str
    forced_down: bool
    added_at: float
    fence: Fence = Fence.NONE
    fenced_at: float | None = None
    fence_note: str | None = None
    cells: tuple[Cell, ...] = ()

    @property
    def state(self) -> str:
        """"up", "down" (also while it has never been reached) or "disabled"."""
        if not self.enabled:
            return "disabled"
        return "up" if self.answers else "down"

    @property
    def answers(self) -> bool:
        """Whether it is up, and nobody has said that it must be taken for down."""
        return self.status is HostStatus.UP and not self.forced_down

    @property
    def said_off(self) -> bool:
        """Whether a fence, or an operator, says that nothing runs there."""
        return self.fence is Fence.OFF or self.forced_down


@dataclass(frozen=True, slots=True)
class Room:
    """What one instance takes of a host. `image_mib` only where the image is not there yet.

    `nodes`: so many NUMA nodes, each of a cell of its own; on the `cells`, where they are named, in
    that order. `ends_at`: when it is expected to end, seconds since 1970; None where nobody asks.
    """

    vcpus: int
    memory_mib: int
    disk_mib: int
    sha256: str
    image_mib: int
    nodes: int = 0
    cells: tuple[int, ...] = ()
    ends_at: float | None = None


class Held(Protocol):
    """What is held of a host: a row of the ledger, or of what holds room besides. `cells` is what
    it holds of the host's NUMA cells, as `Taken` has it."""

    @property
    def vcpus(self) -> int:
        """Virtual CPUs."""

    @property
    def memory_mib(self) -> int:
        """Memory."""

    @property
    def disk_mib(self) -> int:
        """Disk, without that of an image."""

    @property
    def cells(self) -> str:
        """Of the NUMA cells; "" for nothing."""


@dataclass(slots=True)
class Taken:
    """Takes room with `hold`, and remembers what that has come to of the host's NUMA cells."""

    cells: str = ""

    def hold(self, conn: sa.Connection, host_id: int, room: Room) -> bool:
        """As the function `hold`: False, and nothing is taken, where the host has not got it."""
        held = hold(conn, host_id, room)
        self.cells = held or ""
        return held is not None


# -- hosts


def add_host(conn: sa.Connection, uri: str, name: str, ratios: Ratios) -> int:
    """Register a host and return its id; a known URI keeps its id and is enabled again."""
    known: int | None = conn.execute(sa.select(host.c.id).where(host.c.uri == uri)).scalar()
    if known is not None:
        conn.execute(
            sa.update(host).where(host.c.id == known).values(enabled=True, note=None, name=name)
        )
        note(conn, CHANGED, known)
        return known
    added = conn.execute(
        sa.insert(host)
        .values(
            uri=uri, name=name, cpu_ratio=ratios.cpu, memory_ratio=ratios.memory,
            disk_ratio=ratios.disk, reserved_memory_mib=ratios.reserved_memory_mib, added_at=now(),
        )
        .returning(host.c.id)
    )
    id = int(added.scalar_one())
    note(conn, CHANGED, id)
    return id


def disable_host(conn: sa.Connection, host_id: int, reason: str | None) -> None:
    """Place nothing more on it; what runs there goes on."""
    conn.execute(sa.update(host).where(host.c.id == host_id).values(enabled=False, note=reason))
    note(conn, CHANGED, host_id)


def enable_host(conn: sa.Connection, host_id: int) -> None:
    """Place on it again."""
    conn.execute(sa.update(host).where(host.c.id == host_id).values(enabled=True, note=None))
    note(conn, CHANGED, host_id)


def force_down(conn: sa.Connection, host_id: int, down: bool) -> None:
    """Take it for down whatever it answers, or believe it again."""
    conn.execute(sa.update(host).where(host.c.id == host_id).values(forced_down=down))
    note(conn, CHANGED, host_id)


def remove_host(conn: sa.Connection, host_id: int) -> bool:
    """Forget an empty host; False where instances are still on it."""
    if conn.execute(sa.select(host.c.instances).where(host.c.id == host_id)).scalar():
        return False
    for table in (host_image, orphan, aggregate_host):
        conn.execute(sa.delete(table).where(table.c.host_id == host_id))
    conn.execute(sa.delete(host).where(host.c.id == host_id))
    note(conn, CHANGED, host_id)
    return True


def get_host(conn: sa.Connection, host_id: int) -> Host | None:
    """The host, or None."""
    row = _HOST(conn, {"h": host_id}).one_or_none()
    return None if row is None else _host(row)


def list_hosts(conn: sa.Connection) -> list[Host]:
    """All of them by id."""
    return [_host(row) for row in conn.execute(sa.select(host).order_by(host.c.id))]


def twin_of(conn: sa.Connection, host_id: int, host_uuid: str) -> str | None:
    """The name of another host that is this very machine: an earlier one, or one that is up."""
    if not host_uuid:
        return None
    rows = conn.execute(sa.select(host.c.name, host.c.facts).where(
        host.c.id != host_id, host.c.facts.contains(host_uuid, autoescape=True),
        sa.or_(host.c.id < host_id, host.c.status == HostStatus.UP),
    ).order_by(host.c.id))
    return next((row.name for row in rows if read_facts(row.facts).host_uuid == host_uuid), None)


def set_up(conn: sa.Connection, host_id: int, facts: HostFacts, virt_type: str) -> None:
    """The host answered: take its facts. A limit never falls below what is in use."""
    body = json.dumps(
        {f: getattr(facts, f) for f in HostFacts.__slots__ if f != "capabilities"}
        | {"capabilities": sorted(facts.capabilities)}
    )

    ratios = conn.execute(_RATIOS, {"h": host_id}).one_or_none()
    if ratios is None:
        return
    memory = max(0, facts.memory_mib - ratios.reserved_memory_mib) * ratios.memory_ratio
    conn.execute(_SET_UP, {
        "h": host_id, "x_facts": body, "x_type": virt_type, "o": bool(facts.storage_others),
        "v": int(facts.vcpus * ratios.cpu_ratio), "m": int(memory),
        "d": int(facts.disk_mib * ratios.disk_ratio),
    })
    wanted = cells.limits(
        facts, ratios.cpu_ratio, ratios.memory_ratio, ratios.reserved_memory_mib
    )
    if not cells.same_limits(ratios.cells, wanted):
        text = cells.relimited(_lock_cells(conn, host_id), wanted)
        _PUT_CELLS(conn, {"h": host_id, "x_cells": text})
    note(conn, CHANGED, host_id)


def set_down(conn: sa.Connection, host_id: int, error: str) -> bool:
    """The host does not answer; True where it was not known to be down."""
    said = {"h": host_id, "x_error": error}
    if _SET_DOWN(conn, said).rowcount:
        note(conn, CHANGED, host_id)
        return True
    _STILL_DOWN(conn, said)
    return False


def read_facts(body: str) -> HostFacts:
    """Facts as `set_up` stored them."""
    data = json.loads(body)
    data["virt_types"] = tuple(data["virt_types"])
    data["capabilities"] = frozenset(data["capabilities"])
    data["storage_others"] = tuple(data.get("storage_others", ()))
    data["machines"] = tuple(data.get("machines", ()))
    data["features"] = tuple(data.get("features", ()))
    data["cells"] = tuple(NumaCell(*one) for one in data.get("cells", ()))
    return HostFacts(**data)


def _host(row: sa.Row[Any]) -> Host:
    return Host(
        row.id, row.uri, row.name, HostStatus(row.status), row.enabled, row.note, row.error,
        row.virt_type, read_facts(row.facts) if row.facts else None,
        Ratios(row.cpu_ratio, row.memory_ratio, row.disk_ratio, row.reserved_memory_mib),
        row.vcpus_limit, row.memory_limit_mib, row.disk_limit_mib,
        row.vcpus_used, row.memory_used_mib, row.disk_used_mib, row.instances, row.seen_at,
        row.uuid, row.forced_down, row.added_at, Fence(row.fence), row.fenced_at, row.fence_note,
        tuple(cells.of_text(row.cells)),
    )


# -- claim and release


def claim(conn: sa.Connection, host_id: int, instance_id: int, room: Room) -> bool:
    """Take the room on the host for the instance, and for its image where it is not there.

    False, and nothing is taken, where the host has not got it or takes nothing. The host's row is
    locked first, so the image is counted once however many claims come together.
    """
    held = hold(conn, host_id, room)
    if held is None:
        return False
    _ALLOCATE(conn, {
        "i": instance_id, "h": host_id, "v": room.vcpus, "m": room.memory_mib, "d": room.disk_mib,
        "x_cells": held, "e": room.ends_at,
    })
    return True


def hold(conn: sa.Connection, host_id: int, room: Room) -> str | None:
    """`claim` without saying for whom: the caller keeps that with the change that needs it, and
    what comes back: the NUMA cells that it has come to, "" for none. None where nothing is taken.
    """
    bound = {
        "h": host_id, "v": room.vcpus, "m": room.memory_mib, "d": room.disk_mib, "n": 1,
    }
    if _TAKE(conn, bound).rowcount != 1:
        return None
    held = ""
    if room.nodes:
        found = cells.taken(
            _lock_cells(conn, host_id), room.nodes, room.vcpus, room.memory_mib, room.cells
        )
        if found is None:
            _GIVE(conn, bound)
            return None
        text, held = found
        _PUT_CELLS(conn, {"h": host_id, "x_cells": text})
    if not want_image(conn, host_id, room.sha256, room.image_mib):
        _GIVE(conn, bound)
        _give_cells(conn, host_id, held)
        return None
    note(conn, CHANGED, host_id)
    return held


def let_go(conn: sa.Connection, host_id: int, held: Held) -> None:
    """Give back what `hold` took."""
    _GIVE(conn, {
        "h": host_id, "v": held.vcpus, "m": held.memory_mib, "d": held.disk_mib, "n": 1,
    })
    _give_cells(conn, host_id, held.cells)
    note(conn, CHANGED, host_id)


def moved(conn: sa.Connection, instance_id: int, host_id: int, held_cells: str = "") -> None:
    """What the instance holds is given back where it was; what was taken of the host with `hold`,
    the same size, is its own now, and so are the cells of it."""
    row = _HELD(conn, {"i": instance_id}).one()
    let_go(conn, row.host_id, row)
    conn.execute(
        sa.update(allocation).where(allocation.c.instance_id == instance_id)
        .values(host_id=host_id, cells=held_cells)
    )


def exchange(conn: sa.Connection, instance_id: int, host_id: int, held: Held) -> Any:
    """What was taken of the host with `hold` is the instance's own now, and what it held until
    now (a row that is `Held`, with its host_id) is as if taken with `hold`."""
    row = _HELD(conn, {"i": instance_id}).one()
    conn.execute(
        sa.update(allocation).where(allocation.c.instance_id == instance_id).values(
            host_id=host_id, vcpus=held.vcpus, memory_mib=held.memory_mib,
            disk_mib=held.disk_mib, cells=held.cells,
        )
    )
    for changed in (host_id, row.host_id):
        note(conn, CHANGED, changed)
    return row


def release(conn: sa.Connection, instance_id: int) -> None:
    """Give back what the instance holds; nothing where it holds nothing."""
    row = _FREE(conn, {"i": instance_id}).one_or_none()
    if row is not None:
        _GIVE(conn, {
            "h": row.host_id, "v": row.vcpus, "m": row.memory_mib, "d": row.disk_mib, "n": 1,
        })
        _give_cells(conn, row.host_id, row.cells)
        note(conn, CHANGED, row.host_id)


def resize(
    conn: sa.Connection, instance_id: int, vcpus: int, memory_mib: int, disk_mib: int,
    nodes: int = 0,
) -> bool:
    """Have the instance hold that much of its host, and so many of its NUMA cells, instead of what
    it holds. False where the host has not got it; whoever asks for more then gives up the
    transaction. Nothing where the instance holds nothing.

    Nodes keep their cells: what is to have another number of them has to go to another host.
    """
    row = _HELD(conn, {"i": instance_id}).one_or_none()
    if row is None:
        return True
    change = {
        "h": row.host_id, "v": vcpus - row.vcpus, "m": memory_mib - row.memory_mib,
        "d": disk_mib - row.disk_mib, "n": 0,
    }
    bound = bool(nodes or row.cells)
    if not (change["v"] or change["m"] or change["d"] or bound):
        return True
    grows = change["v"] > 0 or change["m"] > 0 or change["d"] > 0
    # What only shrinks is taken whatever the host is doing.
    if (_TAKE_MORE if grows else _TAKE_LESS)(conn, change).rowcount != 1:
        return False
    held, fits = row.cells, True
    if bound:
        fits, held = _resize_cells(conn, row, nodes, vcpus, memory_mib)
    _HOLD(conn, {
        "i": instance_id, "v": vcpus, "m": memory_mib, "d": disk_mib, "x_cells": held,
    })
    note(conn, CHANGED, row.host_id)
    return fits


def _resize_cells(
    conn: sa.Connection, row: Any, nodes: int, vcpus: int, memory_mib: int
) -> tuple[bool, str]:
    """Whether its cells have that much, and what it holds of them then."""
    before = _lock_cells(conn, row.host_id)
    text, held = cells.given(before, row.cells), ""
    if nodes:
        own = tuple(share.cell for share in cells.shares_of(row.cells))
        found = None
        if not own or len(own) == nodes:
            found = cells.taken(text, nodes, vcpus, memory_mib, own)
        if found is None:
            return False, row.cells
        text, held = found
    if text != before:
        _PUT_CELLS(conn, {"h": row.host_id, "x_cells": text})
    return True, held


def _lock_cells(conn: sa.Connection, host_id: int) -> str:
    """The host's NUMA cells, which nobody else changes until the transaction is over."""
    return str(_CELLS(conn, {"h": host_id}).scalar() or "")


def _give_cells(conn: sa.Connection, host_id: int, held: str) -> None:
    if held:
        text = cells.given(_lock_cells(conn, host_id), held)
        _PUT_CELLS(conn, {"h": host_id, "x_cells": text})


# -- images on hosts


def want_image(conn: sa.Connection, host_id: int, sha256: str, size_mib: int) -> bool:
    """See to it that the image is, or comes, on the host; False where there is no room for it."""
    key = {"h": host_id, "s": sha256}
    note(conn, CHANGED, host_id)
    state = _IMAGE_STATE(conn, key).scalar()
    if state in (ImageState.READY, ImageState.WANTED):
        _IMAGE_USED(conn, key)
        return True
    if state == ImageState.EVICTING:
        _IMAGE_SET(conn, {**key, "x_state": ImageState.WANTED, "x_error": None})
        return True
    room = {"h": host_id, "v": 0, "m": 0, "d": size_mib, "n": 0}
    if _TAKE(conn, room).rowcount != 1:
        return False
    if state is None:
        _IMAGE_INSERT(conn, {**key, "x_size": size_mib})
    else:
        _IMAGE_SET(conn, {**key, "x_state": ImageState.WANTED, "x_error": None})
        _IMAGE_SIZE(conn, {**key, "x_size": size_mib})
    return True


def image_state(conn: sa.Connection, host_id: int, sha256: str) -> ImageState | None:
    """Where the image stands on the host; None where it is not known there."""
    state = _IMAGE_STATE(conn, {"h": host_id, "s": sha256}).scalar()
    return None if state is None else ImageState(state)


def set_image(
    conn: sa.Connection, host_id: int, sha256: str, state: ImageState, error: str | None = None
) -> None:
    """Record where the image stands. One that did not come to be gives its room back."""
    key = {"h": host_id, "s": sha256}
    note(conn, CHANGED, host_id)
    if state in (ImageState.REFUSED, ImageState.BROKEN):
        _free_image_room(conn, host_id, sha256)
        _IMAGE_SIZE(conn, {**key, "x_size": 0})
    _IMAGE_SET(conn, {**key, "x_state": state, "x_error": error})


def doubt_images(conn: sa.Connection, host_id: int) -> list[str]:
    """The host may have lost its images: have each looked for again. Returns their digests."""
    note(conn, CHANGED, host_id)
    return list(conn.execute(_IMAGES_DOUBTED, {"h": host_id}).scalars())


def images_under_way(conn: sa.Connection, host_id: int) -> list[str]:
    """Digests of the images that come to the host, or leave it."""
    return list(conn.execute(sa.select(host_image.c.sha256).where(
        host_image.c.host_id == host_id,
        host_image.c.state.in_([ImageState.WANTED, ImageState.EVICTING]),
    )).scalars())


def forget_image(conn: sa.Connection, host_id: int, sha256: str) -> None:
    """The image is off the host: its room is free."""
    note(conn, CHANGED, host_id)
    _free_image_room(conn, host_id, sha256)
    conn.execute(
        sa.delete(host_image).where(host_image.c.host_id == host_id, host_image.c.sha256 == sha256)
    )


def evict(conn: sa.Connection, host_id: int, share: float) -> Sequence[str]:
    """Mark the least recently used images that nothing on the host uses, until the images take at
    most `share` (0 to 1) of its disk. Returns their digests; the caller removes them.
    """
    limit = conn.execute(sa.select(host.c.disk_limit_mib).where(host.c.id == host_id)).scalar()
    rows = conn.execute(
        sa.select(host_image).where(host_image.c.host_id == host_id).order_by(host_image.c.used_at)
    ).all()
    taken = sum(row.size_mib for row in rows if row.state != ImageState.EVICTING)
    if limit is None or taken <= share * limit:
        return []
    used = set(conn.execute(
        sa.select(image.c.sha256).join(instance, image.c.id.in_((
            instance.c.image_id, instance.c.disk_image_id, instance.c.rescue_image_id
        )))
        .where(instance.c.host_id == host_id).distinct()
    ).scalars())
    chosen = []
    for row in rows:
        if taken <= share * limit:
            break
        if row.state == ImageState.READY and row.sha256 not in used:
            _IMAGE_SET(conn, {
                "h": host_id, "s": row.sha256, "x_state": ImageState.EVICTING, "x_error": None,
            })
            note(conn, CHANGED, host_id)
            taken -= row.size_mib
            chosen.append(row.sha256)
    return chosen


def _free_image_room(conn: sa.Connection, host_id: int, sha256: str) -> None:
    size = conn.execute(
        sa.select(host_image.c.size_mib)
        .where(host_image.c.host_id == host_id, host_image.c.sha256 == sha256)
    ).scalar()
    if size:
        _GIVE(conn, {"h": host_id, "v": 0, "m": 0, "d": size, "n": 0})


def _p(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger)


def _limit(used: sa.Column[int], total: str) -> sa.Case[int]:
    return sa.case((used > _p(total), used), else_=_p(total))


_SET_DOWN = Prepared(
    sa.update(host)
    .where(host.c.id == sa.bindparam("h"), host.c.status != HostStatus.DOWN)
    .values(status=HostStatus.DOWN, error=sa.bindparam("x_error", type_=sa.Text))
)
_STILL_DOWN = Prepared(
    sa.update(host).where(host.c.id == sa.bindparam("h"))
    .values(error=sa.bindparam("x_error", type_=sa.Text))
)
_RATIOS = sa.select(
    host.c.cpu_ratio, host.c.memory_ratio, host.c.disk_ratio, host.c.reserved_memory_mib,
    host.c.cells,
).where(host.c.id == sa.bindparam("h"))
_SET_UP = sa.update(host).where(host.c.id == sa.bindparam("h")).values(
    status=HostStatus.UP, error=None, fence=Fence.NONE, fenced_at=None, fence_note=None,
    facts=sa.bindparam("x_facts", type_=sa.Text), sees_others=sa.bindparam("o", type_=sa.Boolean),
    virt_type=sa.bindparam("x_type", type_=sa.String), seen_at=now(),
    vcpus_limit=_limit(host.c.vcpus_used, "v"),
    memory_limit_mib=_limit(host.c.memory_used_mib, "m"),
    disk_limit_mib=_limit(host.c.disk_used_mib, "d"),
)
_CELLS = Prepared(
    sa.select(host.c.cells).where(host.c.id == sa.bindparam("h")).with_for_update()
)
_PUT_CELLS = Prepared(
    sa.update(host).where(host.c.id == sa.bindparam("h"))
    .values(cells=sa.bindparam("x_cells", type_=sa.Text))
)
_HOST = Prepared(sa.select(host).where(host.c.id == sa.bindparam("h")))
_TAKE = Prepared(
    sa.update(host).where(
        host.c.id == sa.bindparam("h"), host.c.enabled, host.c.status == HostStatus.UP,
        sa.not_(host.c.forced_down),
        host.c.vcpus_used + _p("v") <= host.c.vcpus_limit,
        host.c.memory_used_mib + _p("m") <= host.c.memory_limit_mib,
        host.c.disk_used_mib + _p("d") <= host.c.disk_limit_mib,
    ).values(
        vcpus_used=host.c.vcpus_used + _p("v"),
        memory_used_mib=host.c.memory_used_mib + _p("m"),
        disk_used_mib=host.c.disk_used_mib + _p("d"),
        instances=host.c.instances + _p("n"),
    )
)
_GIVE = Prepared(
    sa.update(host).where(host.c.id == sa.bindparam("h")).values(
        vcpus_used=host.c.vcpus_used - _p("v"),
        memory_used_mib=host.c.memory_used_mib - _p("m"),
        disk_used_mib=host.c.disk_used_mib - _p("d"),
        instances=host.c.instances - _p("n"),
    )
)
_CHANGE = {
    "vcpus_used": host.c.vcpus_used + _p("v"),
    "memory_used_mib": host.c.memory_used_mib + _p("m"),
    "disk_used_mib": host.c.disk_used_mib + _p("d"),
    "instances": host.c.instances + _p("n"),
}
_TAKE_LESS = Prepared(sa.update(host).where(host.c.id == sa.bindparam("h")).values(_CHANGE))
_TAKE_MORE = Prepared(
    _TAKE_LESS.statement.where(
        host.c.status == HostStatus.UP, host.c.vcpus_used + _p("v") <= host.c.vcpus_limit,
        host.c.memory_used_mib + _p("m") <= host.c.memory_limit_mib,
        host.c.disk_used_mib + _p("d") <= host.c.disk_limit_mib,
    )
)
_HELD = Prepared(sa.select(allocation).where(allocation.c.instance_id == _p("i")))
_HOLD = Prepared(
    sa.update(allocation).where(allocation.c.instance_id == _p("i")).values(
        vcpus=_p("v"), memory_mib=_p("m"), disk_mib=_p("d"),
        cells=sa.bindparam("x_cells", type_=sa.Text),
    )
)
_ALLOCATE = Prepared(
    sa.insert(allocation).values(
        instance_id=_p("i"), host_id=_p("h"), vcpus=_p("v"), memory_mib=_p("m"), disk_mib=_p("d"),
        cells=sa.bindparam("x_cells", type_=sa.Text), ends_at=sa.bindparam("e", type_=sa.Float),
    )
)
_FREE = Prepared(
    sa.delete(allocation).where(allocation.c.instance_id == _p("i")).returning(
        allocation.c.host_id, allocation.c.vcpus, allocation.c.memory_mib, allocation.c.disk_mib,
        allocation.c.cells,
    )
)
_THIS_IMAGE = sa.and_(
    host_image.c.host_id == sa.bindparam("h"), host_image.c.sha256 == sa.bindparam("s")
)
_IMAGE_STATE = Prepared(sa.select(host_image.c.state).where(_THIS_IMAGE))
_IMAGE_USED = Prepared(sa.update(host_image).where(_THIS_IMAGE).values(used_at=now()))
_IMAGE_SET = Prepared(
    sa.update(host_image).where(_THIS_IMAGE).values(
        state=sa.bindparam("x_state", type_=sa.String),
        error=sa.bindparam("x_error", type_=sa.Text), used_at=now(),
    )
)
_IMAGES_DOUBTED = sa.update(host_image).where(
    host_image.c.host_id == sa.bindparam("h"), host_image.c.state == ImageState.READY
).values(state=ImageState.WANTED).returning(host_image.c.sha256)
_IMAGE_SIZE = Prepared(sa.update(host_image).where(_THIS_IMAGE).values(size_mib=_p("x_size")))
_IMAGE_INSERT = Prepared(
    sa.insert(host_image).values(
        host_id=sa.bindparam("h"), sha256=sa.bindparam("s"), state=ImageState.WANTED,
        size_mib=_p("x_size"), used_at=now(),
    )
)
