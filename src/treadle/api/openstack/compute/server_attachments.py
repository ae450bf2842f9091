"""What is attached to servers from services that this cloud does not have: volumes and shares.

Each call is checked as if they were there, and answers as where nobody has any: the lists are
empty, and what is named is not found.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    BOOLEAN,
    COUNT,
    UUID_TEXT,
    Body,
    closed,
    inside,
    queries,
    query,
)
from treadle.api.openstack.compute.server_schemas import TAG
from treadle.api.openstack.compute.servers import asker, find_row
from treadle.api.openstack.wire import Ask, Call, Handler, Schema
from treadle.compute.actions import unlocked
from treadle.compute.listing import Row
from treadle.compute.model import vm_state
from treadle.errors import InvalidState, NotFound

DETACHABLE = frozenset({"stopped", "error"})


def _none(name: str) -> Handler:
    async def run(ask: Ask) -> dict[str, Any]:
        await ask.read(lambda conn: find_row(conn, ask))
        return {name: []}

    return run


def _share_state(row: Row, name: str, states: frozenset[str]) -> None:
    """Errors: `InvalidState`: shares come and go while the guest is off."""
    state = vm_state(row.instance)
    if state not in states:
        raise InvalidState(
            f"Cannot '{name}' instance {row.instance.uuid} while it is in vm_state {state}",
            name, "vm_state", state,
        )


async def attach_share(ask: Ask) -> None:
    """No share has the id."""
    id = ask.body["share"]["share_id"]

    def work(conn: sa.Connection) -> None:
        _share_state(find_row(conn, ask), "create share", frozenset({"stopped"}))
        raise NotFound(f"Share {id} could not be found.")

    await ask.read(work)


async def show_share(ask: Ask) -> None:
    """No share has the id."""
    await ask.read(lambda conn: find_row(conn, ask))
    raise NotFound(f"Share {ask.path['share_id'][:80]} could not be found.")


async def detach_share(ask: Ask) -> None:
    """No share has the id."""

    def work(conn: sa.Connection) -> None:
        _share_state(find_row(conn, ask), "delete share", DETACHABLE)
        raise NotFound(f"Share {ask.path['share_id'][:80]} could not be found.")

    await ask.read(work)


async def attach_volume(ask: Ask) -> None:
    """No volume has the id."""
    id = ask.body["volumeAttachment"]["volumeId"]

    def work(conn: sa.Connection) -> None:
        unlocked(find_row(conn, ask).instance, "attach_volume", asker(ask))
        raise NotFound(f"Volume {id} could not be found.")

    await ask.read(work)


async def show_volume(ask: Ask) -> None:
    """It is not attached."""
    row = await ask.read(lambda conn: find_row(conn, ask))
    raise NotFound(f"Instance {row.instance.uuid} is not attached to volume "
                   f"{ask.path['volume_id'][:80]}")


SHARE = Schema((97, inside("share", closed({
    "share_id": UUID_TEXT,
    "tag": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9-]*$"},
}, ["share_id"]))))
_DEVICE: Body = {
    "type": ["string", "null"], "pattern": "^/dev/x{0,1}[a-z]{0,1}d{0,1}[a-z]+[0-9]*$",
}
_ATTACH: Body = {"volumeId": UUID_TEXT, "device": _DEVICE}
_TAGGED: Body = {**_ATTACH, "tag": TAG}
_KEPT: Body = {**_TAGGED, "delete_on_termination": BOOLEAN}


def _attachment(properties: Body) -> Body:
    return inside("volumeAttachment", closed(properties, ["volumeId"]))


ATTACH = Schema((1, _attachment(_ATTACH)), (49, _attachment(_TAGGED)), (79, _attachment(_KEPT)))
SWAP = Schema(
    (1, _attachment({"volumeId": UUID_TEXT})),
    (85, _attachment({**_KEPT, "serverId": UUID_TEXT, "id": UUID_TEXT})),
)
PAGED = queries(query(limit=COUNT, offset=COUNT))
NOTHING = Schema((97, closed({})))
SERVER = "/v2.1/servers/{server_id}"
_SHARES, _SHARE = f"{SERVER}/shares", f"{SERVER}/shares/{{share_id}}"
_VOLUMES = f"{SERVER}/os-volume_attachments"
_VOLUME = f"{_VOLUMES}/{{volume_id}}"
_READ, _CHANGE = "compute:attachments:get", "compute:attachments:change"
CALLS = [
    Call("GET", _SHARES, _none("shares"), _READ, query=NOTHING, since=97),
    Call("POST", _SHARES, attach_share, _CHANGE, 201, SHARE, since=97),
    Call("GET", _SHARE, show_share, _READ, query=NOTHING, since=97),
    Call("DELETE", _SHARE, detach_share, _CHANGE, 200, since=97),
    Call("GET", _VOLUMES, _none("volumeAttachments"), _READ, query=PAGED),
    Call("POST", _VOLUMES, attach_volume, _CHANGE, 200, ATTACH, until=100),
    Call("POST", _VOLUMES, attach_volume, _CHANGE, 202, ATTACH, since=101),
    Call("GET", _VOLUME, show_volume, _READ),
    Call("PUT", _VOLUME, show_volume, _CHANGE, 202, SWAP),
    Call("DELETE", _VOLUME, show_volume, _CHANGE, 202),
]
