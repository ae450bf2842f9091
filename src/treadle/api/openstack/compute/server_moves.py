"""Moves of servers from host to host: live migration; how far each move is, its end; evacuation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.action_base import Action, changing
from treadle.api.openstack.compute.common import BOOLEAN, closed, precise, truth
from treadle.api.openstack.compute.server_cache import Views
from treadle.api.openstack.compute.server_schemas import PASSWORD
from treadle.api.openstack.compute.servers import asker, find_row, new_password
from treadle.api.openstack.wire import Ask, Call, Reply, Schema
from treadle.compute import listing
from treadle.compute.failure import actions as failure
from treadle.compute.failure.actions import Wanted
from treadle.compute.listing import HostWords, Row
from treadle.compute.moves import actions as moving
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Kind, Move, Stage
from treadle.errors import InvalidInput, NotFound

STATUS = {
    Stage.QUEUED: "queued", Stage.READY: "preparing", Stage.MOVING: "running",
    Stage.ARRIVED: "post-migrating", Stage.DONE: "completed", Stage.FAILED: "error",
    Stage.CANCELLED: "cancelled",
}
EVACUATED = STATUS | {
    Stage.QUEUED: "accepted", Stage.ARRIVED: "pre-migrating", Stage.DONE: "done",
}
COLD = {
    Stage.QUEUED: "queued", Stage.READY: "pre-migrating", Stage.MOVING: "migrating",
    Stage.FINISHED: "finished", Stage.REVERTING: "reverting", Stage.REVERTED: "reverted",
    Stage.DONE: "confirmed", Stage.FAILED: "error", Stage.CANCELLED: "cancelled",
}
WORDS = {Kind.LIVE: STATUS, Kind.EVACUATION: EVACUATED, Kind.COLD: COLD, Kind.RESIZE: COLD}
"""OpenStack's words for how far a move is."""
MOST = 1000
NO_PASSWORD, STOPPED = 14, 95
"""The minor microversions from which an evacuation answers with no password, and leaves the server
off."""
AMOUNTS = (
    "memory_total_bytes", "memory_processed_bytes", "memory_remaining_bytes",
    "disk_total_bytes", "disk_processed_bytes", "disk_remaining_bytes",
)


@changing("os-migrateLive")
def _live(conn: sa.Connection, ask: Ask, row: Row, value: Mapping[str, Any]) -> None:
    target = None
    if value.get("host"):
        words = listing.host_words(conn)
        target = next((id for id, one in words.items() if one.name == value["host"]), None)
        if target is None:
            raise InvalidInput("host", value["host"], "Compute host could not be found.")
    moving.live_migrate(
        conn, row.instance.id, target, request_id=ask.request_id,
        deadline_s=ask.context.settings.moves.deadline_s, by=asker(ask),
    )


def _host_id(conn: sa.Connection, name: str | None) -> int | None:
    if not name:
        return None
    found = next((id for id, one in listing.host_words(conn).items() if one.name == name), None)
    if found is None:
        raise NotFound(f"Compute host {name} not found.")
    return found


@changing("evacuate")
def _evacuate(conn: sa.Connection, ask: Ask, row: Row, value: Mapping[str, Any]) -> Reply | None:
    shared = value.get("onSharedStorage", False)
    if truth("onSharedStorage", shared):
        raise InvalidInput("onSharedStorage", shared, "no storage is shared here: the server is "
                           "built anew from its image")
    failure.evacuate(
        conn, row.instance.id,
        Wanted(
            _host_id(conn, value.get("host")), left_off=ask.minor >= STOPPED,
            deadline_s=ask.context.settings.moves.deadline_s,
        ),
        request_id=ask.request_id, by=asker(ask),
    )
    if ask.minor >= NO_PASSWORD:
        return None
    return Reply({"adminPass": value.get("adminPass") or new_password()})


def server_migration(
    ask: Ask, move: Move, uuid: str, words: Mapping[int, HostWords]
) -> dict[str, Any]:
    """A move of a server, as the calls below the server show it."""
    return _common(ask, move, words) | {
        "server_uuid": uuid,
        **dict(zip(AMOUNTS, move.progress or (0,) * len(AMOUNTS), strict=True)),
    }


def every_migration(conn: sa.Connection, ask: Ask) -> list[tuple[float, dict[str, Any]]]:
    """The newest moves of all servers as /os-migrations shows them, each with its last change."""
    words = ask.context.shared(Views).hosts(conn)
    found = []
    for move, uuid, flavor_id in moves.every(conn, MOST):
        old = move.before.get("flavor_id", flavor_id)
        shown = _common(ask, move, words) | {
            "instance_uuid": uuid, "old_instance_type_id": old,
            "new_instance_type_id": move.after.get("flavor_id", old),
        }
        if ask.minor >= 23:
            shown["migration_type"] = str(move.kind)
            if move.stage not in ENDED and move.kind is Kind.LIVE:
                href = f"{ask.root}/v2.1/servers/{uuid}/migrations/{move.id}"
                shown["links"] = [
                    {"rel": "self", "href": href},
                    {"rel": "bookmark", "href": href.replace("/v2.1/", "/")},
                ]
        found.append((move.updated_at, shown))
    return found


def _common(ask: Ask, move: Move, words: Mapping[int, HostWords]) -> dict[str, Any]:
    names = {key: words[id].name if id in words else None
             for key, id in (("source", move.source_id), ("dest", move.target_id or 0))}
    shown: dict[str, Any] = {
        "id": move.id, "status": WORDS[move.kind][move.stage],
        "source_node": names["source"], "source_compute": names["source"],
        "dest_node": names["dest"], "dest_compute": names["dest"], "dest_host": names["dest"],
        "created_at": precise(move.created_at), "updated_at": precise(move.updated_at),
    }
    if ask.minor >= 59:
        shown["uuid"] = move.uuid
    if ask.minor >= 80:
        shown |= {"user_id": move.user_id, "project_id": move.project_id}
    return shown


async def listed(ask: Ask) -> dict[str, Any]:
    """The server's moves that are under way."""

    def work(conn: sa.Connection) -> dict[str, Any]:
        row, words = find_row(conn, ask), ask.context.shared(Views).hosts(conn)
        return {"migrations": [
            server_migration(ask, move, row.instance.uuid, words)
            for move in moves.of_instance(conn, row.instance.id)
            if move.stage not in ENDED and move.kind is not Kind.EVACUATION
        ]}

    return await ask.read(work)


def _number(ask: Ask) -> int:
    text = ask.path["migration_id"]
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise NotFound(f"Migration {text[:40]} could not be found.")
    return int(text)


async def show(ask: Ask) -> dict[str, Any]:
    """One move that is under way."""

    def work(conn: sa.Connection) -> dict[str, Any]:
        row, words = find_row(conn, ask), ask.context.shared(Views).hosts(conn)
        move = moving.find(conn, row.instance, _number(ask))
        if move.stage in ENDED:
            raise NotFound(f"In-progress live migration {move.id} is not found for server "
                           f"{row.instance.uuid}.")
        return {"migration": server_migration(ask, move, row.instance.uuid, words)}

    return await ask.read(work)


async def abort(ask: Ask) -> None:
    """End it: the server stays where it is."""
    number = _number(ask)
    await ask.write(lambda conn: moving.abort(conn, find_row(conn, ask).instance, number))


async def hurry(ask: Ask) -> None:
    """Pause the guest, so that it comes to an end."""
    number = _number(ask)
    await ask.write(lambda conn: moving.hurry(conn, find_row(conn, ask).instance, number))


_HOST = {"host": {"type": ["string", "null"], "minLength": 1, "maxLength": 255}}
_AUTO = {"block_migration": {"anyOf": [*BOOLEAN.get("anyOf", [BOOLEAN]), {"enum": ["auto"]}]}}
LIVE = Schema(
    (1, closed({**_HOST, "block_migration": BOOLEAN, "disk_over_commit": BOOLEAN},
               ["host", "block_migration", "disk_over_commit"])),
    (25, closed({**_HOST, **_AUTO}, ["host", "block_migration"])),
    (30, closed({**_HOST, **_AUTO, "force": BOOLEAN}, ["host", "block_migration"])),
    (68, closed({**_HOST, **_AUTO}, ["host", "block_migration"])),
)
EVACUATE = Schema(
    (1, closed({**_HOST, "onSharedStorage": BOOLEAN, "adminPass": PASSWORD}, ["onSharedStorage"])),
    (NO_PASSWORD, closed({**_HOST, "adminPass": PASSWORD})),
    (29, closed({**_HOST, "adminPass": PASSWORD, "force": BOOLEAN})),
    (68, closed({**_HOST, "adminPass": PASSWORD})),
)
FORCE = Schema((1, closed({"force_complete": {"type": "null"}}, ["force_complete"])))
ACTIONS = {
    "os-migrateLive": Action(_live, "compute:servers:migrate_live", LIVE),
    "evacuate": Action(_evacuate, "compute:servers:evacuate", EVACUATE, 200),
}
ONE = "/v2.1/servers/{server_id}/migrations/{migration_id}"
RULE = "compute:servers:migrate_live"
CALLS = [
    Call("GET", "/v2.1/servers/{server_id}/migrations", listed, RULE, since=23),
    Call("GET", ONE, show, RULE, since=23),
    Call("DELETE", ONE, abort, RULE, 202, since=24),
    Call("POST", f"{ONE}/action", hurry, RULE, 202, FORCE, since=22),
]
