"""Sharing an image with other projects: the owner offers it, each of them says whether it wants it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.image.common import member_view, seek, seek_own
from treadle.api.openstack.image.schemas import MEMBER, MEMBER_STATUS
from treadle.api.openstack.wire import Ask, Call
from treadle.errors import Forbidden, NotFound
from treadle.image import catalog
from treadle.image.store import Image


def _shared(ask: Ask, conn: sa.Connection, rule: str) -> Image:
    found = seek_own(ask, conn, rule)
    if found.visibility != "shared":
        raise Forbidden("Only shared images have members.")
    return found


def _owns(ask: Ask, image: Image) -> bool:
    return ask.caller.is_admin or image.project_id == ask.caller.project_id


async def add(ask: Ask) -> dict[str, Any]:
    """Offer the image to a project."""

    def write(conn: sa.Connection) -> dict[str, Any]:
        image = _shared(ask, conn, "image:add_member")
        return member_view(image, catalog.add_member(conn, image.id, ask.body["member"]))

    return await ask.write(write)


async def list_members(ask: Ask) -> dict[str, Any]:
    """The projects that it is offered to; a member sees itself."""

    def read(conn: sa.Connection) -> dict[str, Any]:
        image = seek(ask, conn)
        found = [
            member_view(image, one) for one in catalog.members(conn, image.id)
            if _owns(ask, image) or one.project_id == ask.caller.project_id
        ]
        return {"members": found, "schema": "/v2/schemas/members"}

    return await ask.read(read)


async def show(ask: Ask) -> dict[str, Any]:
    """One of them."""

    def read(conn: sa.Connection) -> dict[str, Any]:
        image = seek(ask, conn)
        if not _owns(ask, image) and ask.path["member_id"] != ask.caller.project_id:
            raise NotFound("the image has no such member")
        return member_view(image, catalog.member(conn, image.id, ask.path["member_id"]))

    return await ask.read(read)


async def answer(ask: Ask) -> dict[str, Any]:
    """What a member makes of the offer: its own word, not the owner's."""

    def write(conn: sa.Connection) -> dict[str, Any]:
        image = seek(ask, conn)
        member = ask.path["member_id"]
        if not _owns(ask, image) and member != ask.caller.project_id:
            raise NotFound("the image has no such member")
        ask.check("image:modify_member", {"project_id": member})
        return member_view(image, catalog.answer(conn, image.id, member, ask.body["status"]))

    return await ask.write(write)


async def remove(ask: Ask) -> None:
    """Take the offer back."""

    def write(conn: sa.Connection) -> None:
        image = seek_own(ask, conn, "image:delete_member")
        catalog.remove_member(conn, image.id, ask.path["member_id"])

    await ask.write(write)


_ALL = "/v2/images/{image_id}/members"
_ONE = _ALL + "/{member_id}"
CALLS = [
    Call("GET", _ALL, list_members, "image:get_members"),
    Call("POST", _ALL, add, "image:add_member", body=MEMBER),
    Call("GET", _ONE, show, "image:get_member"),
    Call("PUT", _ONE, answer, "image:modify_member", body=MEMBER_STATUS),
    Call("DELETE", _ONE, remove, "image:delete_member", status=204),
]
