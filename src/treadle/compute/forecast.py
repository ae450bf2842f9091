"""What would be, and what was: dry runs of the scheduler, and the record of a cloud's placements.

Nothing here changes anything. The functions take an open connection of the caller's read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from treadle.compute import placing, store
from treadle.compute.model import nodes_wanted
from treadle.db.clock import now
from treadle.db.schema import decision, instance, server_group
from treadle.errors import InvalidInput, NotFound
from treadle.image import store as images
from treadle.placement.views import cell_limits, snapshot
from treadle.scheduler import nodes
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.record import Decision
from treadle.scheduler.table import HostTable


@dataclass(frozen=True, slots=True)
class Question:
    """Where would these go? Either the classic number of a flavor, or the three amounts.

    `image` is its small number. What a host's image needs counts only where it is named.
    `project_id` None: an operator asks, and may name hosts.
    """

    flavor: int | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None
    image: int | None = None
    count: int = 1
    zone: str | None = None
    only_hosts: frozenset[int] | None = None
    excluded_hosts: frozenset[int] = frozenset()
    capabilities: frozenset[str] = frozenset()
    extra_specs: Mapping[str, str] | None = None
    project_id: str | None = None


def request_of(conn: sa.Connection, question: Question) -> PlacementRequest:
    """What the scheduler is asked. Errors: `InvalidInput`, `NotFound`."""
    amounts = question.vcpus, question.memory_mib, question.disk_gib
    specs = dict(question.extra_specs or {})
    if question.flavor is not None:
        if any(amount is not None for amount in amounts):
            raise InvalidInput("flavor", question.flavor, "name a flavor or the amounts, not both")
        flavor = store.get_flavor(conn, question.flavor)
        if flavor is None or (question.project_id is not None and not flavor.is_public):
            raise NotFound(f"there is no flavor {question.flavor}")
        amounts = flavor.vcpus, flavor.memory_mib, flavor.disk_gib
        specs = {**flavor.extra_specs, **specs}
    for name, amount in zip(("vcpus", "memory_mib", "disk_gib"), amounts, strict=True):
        if amount is None:
            raise InvalidInput(name, None, "name a flavor, or vcpus, memory_mib and disk_gib")
    vcpus, memory, disk = (amount or 0 for amount in amounts)
    sha256, size = None, 0
    if question.image is not None:
        image = images.get(conn, question.image)
        hidden = image is not None and question.project_id is not None and not (
            image.visibility == "public" or image.project_id == question.project_id
        )
        if image is None or hidden:
            raise NotFound(f"there is no image {question.image}")
        sha256, size = image.sha256, placing.mib(image.size_bytes or 0)
    return PlacementRequest(
        instance_id="dry-run", vcpus=vcpus, memory_mib=memory, disk_mib=disk * 1024, image=sha256,
        image_mib=size if sha256 else 0, zone=question.zone, only_hosts=question.only_hosts,
        excluded_hosts=question.excluded_hosts, capabilities=question.capabilities,
        extra_specs=tuple(sorted(specs.items())), tenant=question.project_id,
        numa_nodes=nodes_wanted(specs),
        asked_at=float(conn.execute(sa.select(now())).scalar_one()),
        pci=placing.devices_wanted(specs),
    )


def dry_run(
    scheduler: Scheduler, views: Iterable[HostView], request: PlacementRequest, count: int
) -> list[tuple[Decision, list[dict[str, Any]]]]:
    """Where `count` of them would go, one after the other: each record with the whole order.

    A claim is taken to succeed. It ends with the first that no host can take.
    Errors: `PluginError`.
    """
    table = HostTable(views)
    found: list[tuple[Decision, list[dict[str, Any]]]] = []
    for number in range(count):
        columns = table.columns()
        one = replace(request, seed=number)
        ranking, record = scheduler.rank(columns, one, dry_run=True)
        order = [
            {
                "host": host, "name": _name(table, host), "score": float(ranking.scores[place]),
                "shares": {name: float(part[place]) for name, part in ranking.shares.items()},
            }
            for place, host in enumerate(ranking)
        ] if number == 0 else []
        _ = record.detail
        found.append((record, order))
        if not len(ranking):
            break
        host = int(ranking.ids[0])
        record.won(host)
        take(table, host, one)
    return found


def take(table: HostTable, host: int, one: PlacementRequest) -> str:
    """Have the host hold what is asked for, in the table; returns its name."""
    view = table.view(host)
    assert view is not None
    table.put(replace(
        view, vcpus_used=view.vcpus_used + one.vcpus,
        numa=nodes.without(view.numa, one.numa_nodes, one.vcpus, one.memory_mib),
        memory_used_mib=view.memory_used_mib + one.memory_mib,
        disk_used_mib=view.disk_used_mib + view.disk_need_mib(one),
        instances=view.instances + 1,
        images=view.images if one.image is None else view.images | {one.image},
    ))
    return view.name


def _name(table: HostTable, host: int) -> str:
    view = table.view(host)
    return "" if view is None else view.name


def recorded(conn: sa.Connection, since: float) -> dict[str, Any]:
    """The hosts, and every instance that lived after `since` (seconds since 1970).

    As `simulate_trace.record_lines` describes it. An instance's request is that of its first
    decision: later ones name the hosts that it had to leave, or was sent to.
    """
    first, last = decision.alias("first"), decision.alias("last")
    of = sa.select(
        decision.c.instance_id, sa.func.min(decision.c.id).label("first"),
        sa.func.max(sa.case((decision.c.host_id.is_not(None), decision.c.id))).label("last"),
    ).group_by(decision.c.instance_id).subquery()
    rows = conn.execute(
        sa.select(
            instance.c.uuid, instance.c.created_at, instance.c.deleted_at, instance.c.vcpus,
            instance.c.memory_mib, instance.c.disk_gib, instance.c.batch, instance.c.project_id,
            instance.c.host_id, first.c.record, last.c.host_id.label("placed_on"),
            server_group.c.uuid.label("group"),
        )
        .select_from(
            instance.outerjoin(of, of.c.instance_id == instance.c.id)
            .outerjoin(first, first.c.id == of.c.first)
            .outerjoin(last, last.c.id == of.c.last)
            .outerjoin(server_group, server_group.c.id == instance.c.group_id)
        )
        .where(sa.or_(instance.c.deleted_at.is_(None), instance.c.deleted_at > since))
        .order_by(instance.c.created_at, instance.c.id)
    ).all()
    cells = cell_limits(conn)
    return {
        "at": float(conn.execute(sa.select(now())).scalar_one()),
        "hosts": [host_of(view, cells.get(view.id, ())) for view in snapshot(conn)],
        "instances": [
            {
                "id": row.uuid, "at": row.created_at, "until": row.deleted_at, "vcpus": row.vcpus,
                "memory_mib": row.memory_mib, "disk_mib": row.disk_gib * 1024, "batch": row.batch,
                "tenant": row.project_id or None, "group": row.group,
                "host": row.host_id if row.host_id is not None else row.placed_on,
                "request": None if row.record is None else json.loads(row.record)["request"],
            }
            for row in rows
        ],
    }


def host_of(view: HostView, cells: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """A host as a line of a record. `cells`: as `cell_limits` gives them."""
    return {
        "id": view.id, "name": view.name, "state": view.state, "arch": view.arch,
        "capabilities": sorted(view.capabilities), "images": sorted(view.images),
        "vcpus_limit": view.vcpus_limit, "memory_limit_mib": view.memory_limit_mib,
        "disk_limit_mib": view.disk_limit_mib, "disk_used_mib": view.disk_used_mib,
        "zone": view.zone, "rack": view.rack, "properties": view.properties, "numa": cells,
    }


def public_decision(record: Mapping[str, Any]) -> dict[str, Any]:
    """A stored decision as a tenant may see it: counts for each cause, no host."""
    return Decision.from_dict(record).public()


def whole(records: Sequence[tuple[Decision, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A dry run as operators see it: the whole order, and each refused host's reason."""
    first, order = records[0]
    return {
        "message": _sentence(records), "placements": _placements(records), "ranking": order,
        "decision": first.to_dict(),
    }


def counts(records: Sequence[tuple[Decision, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A dry run as tenants see it: how many would be placed, and why no more."""
    placed = sum(1 for record, _ in records if record.winner is not None)
    return {"placed": placed, **_but_id(records[-1][0].public())}


def _but_id(public: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in public.items() if key not in ("instance_id", "placed")}


def _placements(records: Sequence[tuple[Decision, Any]]) -> list[dict[str, Any]]:
    return [
        {"host": record.winner, "name": record.winner_name}
        for record, _ in records if record.winner is not None
    ]


def _sentence(records: Sequence[tuple[Decision, Any]]) -> str:
    placed = len(_placements(records))
    last = records[-1][0]
    if last.winner is None:
        more = f"{placed} would be placed, then " if placed else ""
        return more + str(last.error())
    hosts = {record.winner_name for record, _ in records}
    where = f"on {last.winner_name}" if len(hosts) == 1 else f"on {len(hosts)} hosts"
    return f"{placed} would be placed {where}"
