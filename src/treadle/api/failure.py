"""The part of /treadle/v1 about hosts that have failed: that they are off, and what then."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.requests import Request

from treadle.api.context import Context, host_number
from treadle.compute.failure import actions as failure
from treadle.compute.failure.actions import Outcome
from treadle.placement.ledger import Host


class Evacuation(msgspec.Struct, forbid_unknown_fields=True):
    """Which instances: those that ask for it and shall run, or everyone that can be built anew."""

    everyone: bool = False


def fence_body(host: Host) -> dict[str, Any]:
    """Whether the host is off for sure; the time is seconds since 1970."""
    return {
        "state": host.fence.value or "none", "at": host.fenced_at, "note": host.fence_note,
        "forced_down": host.forced_down,
    }


async def hosts_fence_confirmed(context: Context, request: Request) -> Any:
    """An operator says that the host is off. What asks for it is evacuated from there."""
    id = host_number(request)
    return await _outcome(context, lambda conn, evacuates, request_id: failure.confirm_off(
        conn, id, evacuates=evacuates, request_id=request_id
    ))


async def hosts_evacuate(context: Context, request: Request) -> Any:
    """Build the instances of a host that is off anew on others."""
    id = host_number(request)
    everyone = (await context.body(request, Evacuation)).everyone
    return await _outcome(context, lambda conn, evacuates, request_id: failure.evacuate_host(
        conn, id, evacuates=evacuates, request_id=request_id, everyone=everyone
    ))


async def _outcome(
    context: Context, ask: Callable[[sa.Connection, bool, str], Outcome]
) -> dict[str, Any]:
    evacuates = context.settings.instances.on_host_failure == "evacuate"
    request_id = f"req-{uuid.uuid4()}"
    outcome: Outcome = await context.write(lambda conn: ask(conn, evacuates, request_id))
    return {
        "evacuations": outcome.going,
        "stays": [
            {"instance": one.uuid, "name": one.name, "why": why} for one, why in outcome.staying
        ],
    }
