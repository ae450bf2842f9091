"""The part of /treadle/v1 that moves instances, and says what emptying a host would do."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.requests import Request

from treadle.api.context import Context, host_number, number
from treadle.api.placement import named
from treadle.compute import store
from treadle.compute.moves import actions as moving
from treadle.compute.moves import drain
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import Move
from treadle.errors import NotFound
from treadle.hypervisor.base import MoveProgress
from treadle.placement import ledger
from treadle.placement.views import snapshot


class Migration(msgspec.Struct, forbid_unknown_fields=True):
    """Where an instance shall go: a host's number; without one the scheduler chooses."""

    host: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)] | None = None


def _body(conn: sa.Connection, id: int) -> dict[str, Any]:
    """A move for people who run hosts. Times are seconds since 1970, progress in bytes."""
    move: Move | None = moves.get(conn, id)
    instance = None if move is None else store.get(conn, move.instance_id)
    if move is None or instance is None:
        raise NotFound(f"there is no move {id}")
    progress = asdict(MoveProgress(*move.progress)) if move.progress else None
    return {
        "id": move.id, "uuid": move.uuid, "kind": move.kind, "instance": instance.uuid,
        "stage": move.stage,
        "source": move.source_id, "target": move.target_id, "wanted": move.wanted_id,
        "progress": progress, "error": move.error, "deadline": move.deadline,
        "created_at": move.created_at, "updated_at": move.updated_at,
    }


async def instances_migrate(context: Context, request: Request) -> Any:
    """Move an instance that runs, is paused or is stopped to another host, as it is; how far it
    is, is read at its move."""
    wanted = await context.body(request, Migration)
    name = request.path_params["id"]

    def ask(conn: sa.Connection) -> dict[str, Any]:
        settings = context.settings
        return _body(conn, moving.move_away(
            conn, named(conn, name).id, wanted.host, request_id=f"req-{uuid.uuid4()}",
            patience=moving.Patience(
                settings.moves.deadline_s, settings.controller.stop_deadline_s
            ),
        ))

    return await context.write(ask)


async def moves_show(context: Context, request: Request) -> Any:
    """One move: how far it is, or how it ended."""
    id = number(request, 2**31 - 1)
    return await context.read(lambda conn: _body(conn, id))


async def hosts_drain(context: Context, request: Request) -> Any:
    """Where the host's instances would go if it were emptied, and which cannot go. Nothing is
    changed. `at_once`: how many moves may be under way to or from one host."""
    id = host_number(request)

    def read(conn: sa.Connection) -> tuple[ledger.Host, list[drain.Asked], list[Any]]:
        host = ledger.get_host(conn, id)
        if host is None:
            raise NotFound(f"there is no host {id}")
        asked = drain.asked(conn, id, with_flavors=context.scheduler.wants_flavors)
        return host, asked, snapshot(conn, ends=context.scheduler.goes_by_lifetimes)

    host, asked, views = await context.read(read)
    going, staying = await asyncio.to_thread(drain.plan, context.scheduler, views, id, asked)
    return {
        "host": host.id, "name": host.name, "state": host.state,
        "at_once": context.settings.moves.at_once,
        "deadline_s": context.settings.moves.deadline_s,
        "moves": [asdict(one) for one in going], "stays": [asdict(one) for one in staying],
    }
