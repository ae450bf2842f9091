"""The SQL of instances. Every function takes an open connection of the caller's transaction."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa

from treadle.compute import changes
from treadle.compute.model import (
    HA_KEY,
    MOST_KEYS,
    Goal,
    Ha,
    Instance,
    Mode,
    Phase,
    State,
    Task,
    numa_nodes,
)
from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.prepared import Prepared
from treadle.db.schema import (
    action,
    action_step,
    allocation,
    decision,
    flavor,
    host,
    host_image,
    image,
    instance_tag,
)
from treadle.db.schema import instance as table
from treadle.hypervisor.base import ImageSpec
from treadle.placement import ledger
from treadle.placement.cells import shares_of
from treadle.placement.ledger import HostStatus, ImageState

RESCUE_DEVICES = frozenset({"disk", "cdrom"})
RESCUE_BUSES = frozenset({"virtio", "scsi", "sata", "ide", "usb"})
CHANGED = "instance"
"""What `note` tells of: ids of instances that are not shown as before."""


@dataclass(frozen=True, slots=True)
class Flavor:
    """A size on offer. Memory and swap in MiB, disks in GiB.

    `public_id` and `name` are what OpenStack's clients call it; empty: made from `id`.
    """

    id: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    public_id: str = ""
    name: str = ""
    description: str | None = None
    swap_mib: int = 0
    ephemeral_gib: int = 0
    rxtx_factor: float = 1.0
    is_public: bool = True
    extra_specs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_id", self.public_id or str(self.id))
        object.__setattr__(self, "name", self.name or f"type-{self.id}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An instance with what one pass needs to know of its host and its images: that under its
    root disk, and that which it is rescued with. `shared`: other hosts see its host's storage.
    `cells`: the host's NUMA cells on which its nodes are, in their order."""

    instance: Instance
    image: ImageSpec
    host_uri: str | None
    host_name: str | None
    host_status: HostStatus | None
    image_on_host: ImageState | None
    image_error: str | None
    now: float
    rescue: ImageSpec | None = None
    rescue_on_host: ImageState | None = None
    rescue_error: str | None = None
    moving: int | None = None
    rescue_on: tuple[str, str] | None = None
    shared: bool = False
    cells: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One act of a pass, for the action log. Times are seconds since 1970."""

    name: str
    host_id: int | None
    started_at: float
    finished_at: float
    outcome: str
    message: str | None = None


# -- reading


def load(conn: sa.Connection, uuid: str) -> Loaded | None:
    """The instance and its surroundings; None where there is no such row."""
    row = _LOAD(conn, {"u": uuid}).one_or_none()
    if row is None:
        return None
    return Loaded(
        of_row(row),
        ImageSpec(row.sha256, row.format, row.size_bytes, row.virtual_bytes),
        row.uri, row.host_name,
        HostStatus(row.status) if row.status else None,
        ImageState(row.image_state) if row.image_state else None,
        row.image_error, row.now,
        None if row.rescue_sha256 is None else ImageSpec(
            row.rescue_sha256, row.rescue_format, row.rescue_size, row.rescue_virtual
        ),
        ImageState(row.rescue_state) if row.rescue_state else None, row.rescue_error, row.moving,
        _rescue_on(row.rescue_properties), bool(row.shared),
        tuple(share.cell for share in shares_of(row.cells)) if row.cells else (),
    )


def _rescue_on(properties: str | None) -> tuple[str, str] | None:
    """As what a disk to rescue from is put beside the others, where its image says so: OpenStack's
    hw_rescue_device and hw_rescue_bus. None: it takes the first one's place."""
    if not properties or "hw_rescue_" not in properties:
        return None
    found = json.loads(properties)
    device, bus = found.get("hw_rescue_device", "disk"), found.get("hw_rescue_bus", "virtio")
    return (device, bus) if device in RESCUE_DEVICES and bus in RESCUE_BUSES else None


def get(conn: sa.Connection, id: int) -> Instance | None:
    """The instance by its small number, deleted ones too; None where there never was one."""
    row = _GET(conn, {"i": id}).one_or_none()
    return None if row is None else of_row(row)


def by_uuid(conn: sa.Connection, uuid: str) -> Instance | None:
    """The instance by its UUID, deleted ones too."""
    row = _GET_UUID(conn, {"u": uuid}).one_or_none()
    return None if row is None else of_row(row)


def columns(conn: sa.Connection, id: int, names: Sequence[str]) -> dict[str, Any]:
    """Some columns of an instance as they are stored."""
    found = conn.execute(sa.select(*(table.c[name] for name in names)).where(table.c.id == id))
    return dict(found.mappings().one())


def hold(conn: sa.Connection, id: int) -> bool:
    """Have the ledger agree with the row's size, and with that which can still come back. False
    where its host has not got that much."""
    instance = get(conn, id)
    assert instance is not None
    return ledger.resize(conn, id, *changes.held(instance), changes.nodes_held(instance))


def live_ids(conn: sa.Connection) -> list[int]:
    """The small numbers of all that are not deleted, in order."""
    return list(conn.execute(_LIVE).scalars())


def ids_on_host(conn: sa.Connection, host_id: int) -> list[int]:
    """The small numbers of all that are on the host, in order."""
    return list(conn.execute(
        sa.select(table.c.id).where(table.c.host_id == host_id).order_by(table.c.id)
    ).scalars())


def on_host(conn: sa.Connection, host_id: int) -> list[Instance]:
    """All that are on the host."""
    return [of_row(row) for row in _ON_HOST(conn, {"h": host_id})]


def building_on(conn: sa.Connection, host_id: int) -> list[str]:
    """UUIDs of those that are being built on the host."""
    return list(conn.execute(sa.select(table.c.uuid).where(
        table.c.host_id == host_id, table.c.state == State.BUILDING
    )).scalars())


def of_batch(conn: sa.Connection, batch: str) -> list[Instance]:
    """All that were asked for in one request, in order."""
    rows = conn.execute(sa.select(table).where(table.c.batch == batch).order_by(table.c.id))
    return [of_row(row) for row in rows]


def by_uuids(conn: sa.Connection, uuids: Sequence[str]) -> dict[str, Instance]:
    """Those of the UUIDs that have a row, deleted ones too."""
    if not uuids:
        return {}
    rows = conn.execute(sa.select(table).where(table.c.uuid.in_(uuids)))
    return {row.uuid: of_row(row) for row in rows}


def moving(conn: sa.Connection) -> set[str]:
    """UUIDs of the instances that are on their way from one host to another."""
    return set(_MOVING(conn).scalars())


def waiting_for_image(conn: sa.Connection, host_id: int, sha256: str) -> list[str]:
    """UUIDs of the instances on the host that cannot be defined until the image is there."""
    return list(conn.execute(
        sa.select(table.c.uuid).join(image, sa.or_(
            image.c.id == _UNDER, image.c.id == table.c.rescue_image_id
        ))
        .where(
            table.c.host_id == host_id, image.c.sha256 == sha256,
            sa.or_(
                table.c.phase == Phase.PLACED, table.c.generation != table.c.settled_generation
            ),
        ).distinct()
    ).scalars())


# -- writing


def insert(conn: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """New instances; returns their ids in the same order. `created_at` is set here."""
    ids = [int(_insert_of(tuple(row))(conn, row).scalar_one()) for row in rows]
    for id in ids:
        note(conn, CHANGED, id)
    return ids


@cache
def _insert_of(names: tuple[str, ...]) -> Prepared:
    values: dict[str, Any] = {
        name: sa.bindparam(name, type_=table.c[name].type) for name in names
    }
    return Prepared(sa.insert(table).values(
        **values, created_at=now(), updated_at=now()
    ).returning(table.c.id))


def update(conn: sa.Connection, id: int, **values: Any) -> None:
    """Set columns of one instance. Each update counts up `version`, which names what is shown.

    A new `fault` is the operator's alone, unless `public_fault` says what tenants may know of it.
    """
    if "fault" in values:
        values = {"public_fault": None, **values}
    note(conn, CHANGED, id)
    bound = {f"x_{name}": value for name, value in values.items()}
    _update_of(tuple(values))(conn, {"x_id": id, **bound})


@cache
def _update_of(names: tuple[str, ...]) -> Prepared:
    """The statement that sets these columns: building one costs more than running it."""
    values: dict[str, Any] = {
        name: sa.bindparam(f"x_{name}", type_=table.c[name].type) for name in names
    }
    if "fault" in names:
        values["fault_at"] = now()
    return Prepared(sa.update(table).where(table.c.id == sa.bindparam("x_id")).values(
        **values, version=table.c.version + 1, updated_at=now()
    ))


def set_tags(conn: sa.Connection, id: int, tags: Collection[str]) -> None:
    """Make these the instance's tags; `version` is the caller's to raise."""
    conn.execute(sa.delete(instance_tag).where(instance_tag.c.instance_id == id))
    if tags:
        conn.execute(
            sa.insert(instance_tag), [{"instance_id": id, "tag": tag} for tag in sorted(tags)]
        )


def begin_action(
    conn: sa.Connection, id: int, request_id: str, name: str, revision: int, *,
    user_id: str = "", project_id: str = "",
) -> None:
    """Open an entry of the action log."""
    _BEGIN(conn, {
        "i": id, "q": request_id, "n": name, "r": revision, "u": user_id, "p": project_id,
    })


def note_action(
    conn: sa.Connection, id: int, request_id: str, name: str, revision: int, error: str | None, *,
    user_id: str = "", project_id: str = "",
) -> None:
    """Add an entry of the action log of what is over already; `error`: what went wrong."""
    conn.execute(sa.insert(action).values(
        instance_id=id, request_id=request_id, name=name, revision=revision, started_at=now(),
        finished_at=now(), outcome="ok" if error is None else "error", message=error,
        user_id=user_id, project_id=project_id,
    ))


def end_actions(
    conn: sa.Connection, id: int, revision: int, outcome: str, message: str | None = None
) -> None:
    """Close the entries up to `revision` that are still open."""
    _END(conn, {"i": id, "r": revision, "x_outcome": outcome, "x_message": message})


def log_step(conn: sa.Connection, id: int, revision: int, step: Step) -> None:
    """Add a step to the action log."""
    _STEP(conn, {
        "i": id, "r": revision, "n": step.name, "h": step.host_id, "s": step.started_at,
        "f": step.finished_at, "o": step.outcome, "m": step.message,
    })


def record_decision(
    conn: sa.Connection, id: int, host_id: int | None, record: Mapping[str, Any]
) -> None:
    """Keep the record of a placement."""
    _DECISION(conn, {
        "i": id, "h": host_id, "d": compact(record),
    })


def last_decision(conn: sa.Connection, id: int) -> dict[str, Any] | None:
    """The newest placement record of the instance that chose the host it is on; else the newest.

    A move that failed has left the record of a host where the instance never came.
    """
    here = sa.case((decision.c.host_id == table.c.host_id, 1), else_=0)
    body = conn.execute(
        sa.select(decision.c.record).join(table, table.c.id == decision.c.instance_id)
        .where(decision.c.instance_id == id).order_by(here.desc(), decision.c.id.desc()).limit(1)
    ).scalar()
    found: dict[str, Any] | None = None if body is None else json.loads(body)
    return found


def actions(conn: sa.Connection, id: int) -> list[dict[str, Any]]:
    """The action log of an instance, oldest first, each with its steps. Times since 1970.

    For what no pass had to do anything, the one step is itself.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in conn.execute(
        sa.select(action_step).where(action_step.c.instance_id == id).order_by(action_step.c.id)
    ):
        steps.setdefault(row.revision, []).append({
            "name": row.name, "host": row.host_id, "started_at": row.started_at,
            "finished_at": row.finished_at, "outcome": row.outcome, "message": row.message,
        })
    found: list[dict[str, Any]] = []
    for row in conn.execute(
        sa.select(action).where(action.c.instance_id == id).order_by(action.c.id)
    ):
        one = {
            "started_at": row.started_at, "finished_at": row.finished_at, "outcome": row.outcome,
            "message": row.message,
        }
        itself = [{"name": row.name, "host": None, **one}] if row.finished_at else []
        found.append({
            "request_id": row.request_id, "action": row.name, **one,
            "user_id": row.user_id, "project_id": row.project_id,
            # What was noted later has its revision from the entry before.
            "steps": steps.pop(row.revision, None) or itself,
        })
    return found


# -- flavors


def list_flavors(conn: sa.Connection) -> list[Flavor]:
    """Those on offer, by id."""
    rows = conn.execute(sa.select(flavor).where(flavor.c.active).order_by(flavor.c.id))
    return [flavor_of(row) for row in rows]


def get_flavor(conn: sa.Connection, id: int) -> Flavor | None:
    """One on offer, or None."""
    row = _FLAVOR(conn, {"i": id}).one_or_none()
    return None if row is None else flavor_of(row)


def put_flavor(conn: sa.Connection, one: Flavor) -> None:
    """Offer a flavor under its id, in place of what had that id. Instances keep their sizes."""
    values = {
        "vcpus": one.vcpus, "memory_mib": one.memory_mib, "disk_gib": one.disk_gib, "active": True,
        "public_id": one.public_id, "name": one.name,
        "description": one.description, "swap_mib": one.swap_mib,
        "ephemeral_gib": one.ephemeral_gib, "rxtx_factor": one.rxtx_factor,
        "is_public": one.is_public, "extra_specs": compact(one.extra_specs),
    }
    if conn.execute(sa.update(flavor).where(flavor.c.id == one.id).values(values)).rowcount == 0:
        conn.execute(sa.insert(flavor).values(id=one.id, created_at=now(), **values))


def next_flavor_id(conn: sa.Connection) -> int:
    """The number after the highest ever used."""
    return int(conn.execute(sa.select(sa.func.max(flavor.c.id))).scalar() or 0) + 1


def retire_flavors(conn: sa.Connection, keep: Sequence[int]) -> None:
    """Offer no others than these."""
    conn.execute(sa.update(flavor).where(flavor.c.id.not_in(keep)).values(active=False))


def compact(value: Any) -> str:
    """A value as the JSON text that columns hold."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def flavor_of(row: Any) -> Flavor:
    """What a row of the flavor table says."""
    return Flavor(
        row.id, row.vcpus, row.memory_mib, row.disk_gib, row.public_id, row.name,
        row.description, row.swap_mib, row.ephemeral_gib, row.rxtx_factor, row.is_public,
        json.loads(row.extra_specs),
    )


# -- statements

_COLUMNS = (
    *(name for name in Instance.__dataclass_fields__ if name not in ("ha", "most", "nodes")),
    "metadata", "flavor",
)


def of_row(row: Any) -> Instance:
    """The instance of a row that has all its columns."""
    return Instance(
        row.id, row.uuid, row.name, row.flavor_id, row.vcpus, row.memory_mib, row.disk_gib,
        row.image_id, row.mac, row.user_data,
        tuple(row.ssh_keys.split("\n")) if row.ssh_keys else (),
        Goal(row.goal), State(row.state), Phase(row.phase), row.revision, row.generation,
        row.settled_generation, row.graceful, row.deadline, row.attempts,
        frozenset(int(n) for n in re.findall(r"\d+", row.excluded)) if row.excluded
        else frozenset(),
        row.batch, row.rollback, row.host_id, row.address, row.fault, row.created_at,
        row.launched_at, row.deleted_at, row.hostname, row.project_id,
        Mode(row.mode), Mode(row.settled_mode),
        Task(row.task) if row.task else None, row.ends_at,
        tuple(int(n) for n in row.disks.split(",")), row.disk_image_id, row.rescue_image_id,
        row.shelf_image_id, row.snapshot_image_id, row.before, row.locked_by, row.locked_reason,
        row.user_id, row.group_id, row.only_host_id, row.files, ha_of(row.metadata, row.flavor),
        row.kept, most_of(row), numa_nodes(row.flavor),
    )


def most_of(row: Any) -> tuple[int, int] | None:
    """What the row's flavor says by `MOST_KEYS`; None where it says nothing."""
    if not any(key in row.flavor for key in MOST_KEYS):
        return None
    specs = json.loads(row.flavor).get("extra_specs", {})
    vcpus, memory_mib = (
        max(own, int(specs[key])) if re.fullmatch("[0-9]{1,9}", specs.get(key, "")) else own
        for key, own in zip(MOST_KEYS, (row.vcpus, row.memory_mib), strict=True)
    )
    return vcpus, memory_mib


def ha_of(metadata: str, flavor: str) -> Ha:
    """What is asked for by `HA_KEY` in the two columns; what is no word of `Ha` says nothing."""
    for text, inner in ((metadata, None), (flavor, "extra_specs")):
        if HA_KEY not in text:
            continue
        found = json.loads(text)
        said = (found.get(inner, {}) if inner else found).get(HA_KEY)
        if said in (Ha.EVACUATE, Ha.WAIT):
            return Ha(said)
    return Ha.UNSAID


_UNDER = sa.func.coalesce(table.c.disk_image_id, table.c.image_id)
"""The image under an instance's root disk."""
_RESCUE = image.alias("rescue")
_RESCUE_HERE = host_image.alias("rescue_here")
_SELECTED = [table.c[name] for name in _COLUMNS]
_GET = Prepared(sa.select(*_SELECTED).where(table.c.id == sa.bindparam("i")))
_MOVING = Prepared(sa.select(table.c.uuid).where(table.c.moving.is_not(None)))
_ON_HOST = Prepared(
    sa.select(*_SELECTED).where(table.c.host_id == sa.bindparam("h")).order_by(table.c.id)
)
_GET_UUID = Prepared(sa.select(*_SELECTED).where(table.c.uuid == sa.bindparam("u")))
_LIVE = sa.select(table.c.id).where(table.c.state != State.DELETED.value).order_by(table.c.id)
_LOAD = Prepared(
    sa.select(
        *_SELECTED, image.c.sha256, image.c.format, image.c.size_bytes, image.c.virtual_bytes,
        host.c.uri, host.c.name.label("host_name"), host.c.status,
        host_image.c.state.label("image_state"), host_image.c.error.label("image_error"),
        now().label("now"), _RESCUE.c.sha256.label("rescue_sha256"),
        _RESCUE.c.properties.label("rescue_properties"),
        _RESCUE.c.format.label("rescue_format"), _RESCUE.c.size_bytes.label("rescue_size"),
        _RESCUE.c.virtual_bytes.label("rescue_virtual"),
        _RESCUE_HERE.c.state.label("rescue_state"), _RESCUE_HERE.c.error.label("rescue_error"),
        table.c.moving, host.c.sees_others.label("shared"), allocation.c.cells,
    )
    .select_from(
        table.join(image, image.c.id == _UNDER)
        .outerjoin(host, host.c.id == table.c.host_id)
        .outerjoin(allocation, allocation.c.instance_id == table.c.id)
        .outerjoin(host_image, sa.and_(
            host_image.c.host_id == table.c.host_id, host_image.c.sha256 == image.c.sha256,
        ))
        .outerjoin(_RESCUE, _RESCUE.c.id == table.c.rescue_image_id)
        .outerjoin(_RESCUE_HERE, sa.and_(
            _RESCUE_HERE.c.host_id == table.c.host_id,
            _RESCUE_HERE.c.sha256 == _RESCUE.c.sha256,
        ))
    )
    .where(table.c.uuid == sa.bindparam("u"))
)
_BEGIN = Prepared(
    sa.insert(action).values(
        instance_id=sa.bindparam("i"), request_id=sa.bindparam("q"), name=sa.bindparam("n"),
        revision=sa.bindparam("r"), started_at=now(), user_id=sa.bindparam("u"),
        project_id=sa.bindparam("p"),
    )
)
_END = Prepared(
    sa.update(action).where(
        action.c.instance_id == sa.bindparam("i"), action.c.revision <= sa.bindparam("r"),
        action.c.finished_at.is_(None),
    ).values(
        finished_at=now(), outcome=sa.bindparam("x_outcome", type_=sa.String),
        message=sa.bindparam("x_message", type_=sa.Text),
    )
)
_STEP = Prepared(
    sa.insert(action_step).values(
        instance_id=sa.bindparam("i"), revision=sa.bindparam("r"), name=sa.bindparam("n"),
        host_id=sa.bindparam("h"), started_at=sa.bindparam("s"), finished_at=sa.bindparam("f"),
        outcome=sa.bindparam("o"), message=sa.bindparam("m"),
    )
)
_DECISION = Prepared(
    sa.insert(decision).values(
        instance_id=sa.bindparam("i"), made_at=now(), host_id=sa.bindparam("h"),
        record=sa.bindparam("d"),
    )
)
_FLAVOR = Prepared(sa.select(flavor).where(flavor.c.id == sa.bindparam("i"), flavor.c.active))
