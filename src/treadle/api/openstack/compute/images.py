"""Images as compute showed them up to microversion 2.35, and their metadata up to 2.38.

Older clients list images here before they ask for a server; newer ones ask the image service.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.common import COUNT, Body, links, moment, number, queries, query
from treadle.api.openstack.compute.metadata import Items, Metadata
from treadle.api.openstack.image.patch import check_name
from treadle.api.openstack.wire import Ask, Call, next_link, page_of
from treadle.compute import quota
from treadle.errors import InvalidInput, NotFound
from treadle.image import actions, catalog, store
from treadle.image.catalog import Wanted
from treadle.image.store import Image, ImageStatus

LAST, LAST_METADATA = 35, 38
STATUS = {
    ImageStatus.ACTIVE: ("ACTIVE", 100), ImageStatus.INACTIVE: ("ACTIVE", 100),
    ImageStatus.NEW: ("SAVING", 25), ImageStatus.QUEUED: ("SAVING", 25),
    ImageStatus.SAVING: ("SAVING", 50), ImageStatus.STAGED: ("SAVING", 50),
    ImageStatus.FETCHING: ("SAVING", 50), ImageStatus.ERROR: ("ERROR", 0),
    ImageStatus.DELETED: ("DELETED", 0),
}
"""Compute's word for how far an image is, and how much of it is there, in percent."""
PROPERTY = "property-"
LIST = queries(query(
    "name", "status", "server", "type", "changes-since", "minDisk", "minRam", "marker", limit=COUNT,
))


def brief(ask: Ask, image: Image) -> Body:
    """An image in the short list."""
    service = ask.root.removesuffix("/compute") + "/image"
    elsewhere = {
        "rel": "alternate", "type": "application/vnd.openstack.image",
        "href": f"{service}/images/{image.uuid}",
    }
    return {
        "id": image.uuid, "name": image.name or None,
        "links": [*links(ask, "images", image.uuid), elsewhere],
    }


def view(ask: Ask, image: Image) -> Body:
    """An image with everything."""
    status, progress = STATUS[image.state]
    body = brief(ask, image) | {
        "status": status, "progress": progress, "metadata": dict(image.properties),
        "minDisk": image.min_disk_gib, "minRam": image.min_memory_mib,
        "created": moment(image.added_at), "updated": moment(image.updated_at),
        "OS-EXT-IMG-SIZE:size": image.bytes,
    }
    server = image.properties.get("instance_uuid")
    if server:
        body["server"] = {"id": server, "links": links(ask, "servers", server)}
    return body


async def listed(ask: Ask) -> Body:
    """Images in short."""
    return await _list(ask, "/images", brief)


async def detailed(ask: Ask) -> Body:
    """Images with everything."""
    return await _list(ask, "/images/detail", view)


async def _list(ask: Ask, path: str, look: Callable[[Ask, Image], Body]) -> Body:
    page = page_of(ask)
    wanted = _wanted(ask)

    def read(conn: sa.Connection) -> list[Image]:
        after = None
        if page.marker is not None:
            after = _visible(ask, conn, page.marker)
            if after is None:
                raise InvalidInput("marker", page.marker, f"marker [{page.marker}] not found")
        order = (("created_at", True), ("id", True))
        return catalog.find(conn, wanted, order, marker=after, limit=page.limit)

    found = await ask.read(read)
    body: Body = {"images": [look(ask, one) for one in found]}
    if found and len(found) == page.limit:
        href = next_link(ask, f"/v2.1{path}", found[-1].uuid)
        body["images_links"] = [{"rel": "next", "href": href}]
    return body


def _wanted(ask: Ask) -> Wanted:
    """Which images the query asks for. Errors: `InvalidInput`."""
    equal: dict[str, list[Any]] = {}
    times: list[tuple[str, str, float]] = []
    own: Items = {}
    for name, values in ask.query.items():
        value = values[-1]
        if name == "name":
            equal["name"] = [value]
        elif name == "status":
            word = value.upper()
            equal["status"] = [state for state, (shown, _) in STATUS.items() if shown == word]
        elif name == "server":
            # An id, or the address of a server.
            own["instance_uuid"] = value.rstrip("/").rpartition("/")[2]
        elif name == "type":
            own["image_type"] = value
        elif name == "changes-since":
            times.append(("updated_at", "gte", _instant(value)))
        elif name in ("minDisk", "minRam"):
            column = "min_disk" if name == "minDisk" else "min_ram"
            equal[column] = [number(name, value, 0)]
        elif name.startswith(PROPERTY):
            own[name.removeprefix(PROPERTY)] = value
    return Wanted(
        ask.caller.project_id, ask.caller.is_admin, equal=equal, times=times, properties=own
    )


def _instant(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput("changes-since", text, "it is not a time in ISO 8601") from error


def _visible(ask: Ask, conn: sa.Connection, uuid: str) -> Image | None:
    return store.visible(conn, uuid, ask.caller.project_id, ask.caller.is_admin)


def _seek(ask: Ask, conn: sa.Connection) -> Image:
    found = _visible(ask, conn, ask.path["image_id"])
    if found is None:
        raise NotFound("Image not found.")
    return found


async def show(ask: Ask) -> Body:
    """One image."""
    return {"image": view(ask, await ask.read(lambda conn: _seek(ask, conn)))}


async def delete(ask: Ask) -> None:
    """Delete an image."""

    def write(conn: sa.Connection) -> None:
        found = _seek(ask, conn)
        ask.check("image:delete_image", {"project_id": found.project_id})
        actions.delete(conn, found)

    await ask.write(write)


# -- metadata


async def _properties(ask: Ask) -> Items:
    return dict((await ask.read(lambda conn: _seek(ask, conn))).properties)


async def _change(ask: Ask, change: Callable[[Items], Items]) -> Items:
    def write(conn: sa.Connection) -> Items:
        found = _seek(ask, conn)
        ask.check("image:modify_image", {"project_id": found.project_id})
        new = change(dict(found.properties))
        for name in new:
            check_name(name)
        quota.check_metadata(conn, found.project_id, len(new))
        store.update(conn, found.id, properties=store.written(new))
        return new

    return await ask.write(write)


_ONE = "/v2.1/images/{image_id}"
_READ, _CHANGE = "compute:images:get", "compute:images:change"
CALLS = [
    Call("GET", "/v2.1/images", listed, _READ, query=LIST, until=LAST),
    Call("GET", "/v2.1/images/detail", detailed, _READ, query=LIST, until=LAST),
    Call("GET", _ONE, show, _READ, until=LAST),
    Call("DELETE", _ONE, delete, _CHANGE, 204, until=LAST),
    *Metadata(_properties, _change).calls(_ONE, _READ, _CHANGE, until=LAST_METADATA),
]
