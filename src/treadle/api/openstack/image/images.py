"""Images themselves: made, listed, shown, changed, deleted, taken out of use, imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from treadle.api.openstack.image import listing, patch
from treadle.api.openstack.image.common import seek, seek_own, view, when
from treadle.api.openstack.image.schemas import (
    CHANGED,
    CREATE,
    IMPORT,
    PATCH,
    PROPERTIES_MAX,
    SETTABLE,
    TAGS_MAX,
)
from treadle.api.openstack.image.versions import METHODS
from treadle.api.openstack.wire import Ask, BadMediaType, Call, Reply
from treadle.errors import Forbidden, InvalidInput, NotFound, TooLarge
from treadle.image import actions, catalog, store
from treadle.image.inspect import ImageRefused
from treadle.image.sources import HttpUrl, parse_source
from treadle.image.store import Image, ImageStatus, NewImage

WORDS = {
    "name": "name", "visibility": "visibility", "protected": "protected", "os_hidden": "hidden",
    "min_disk": "min_disk_gib", "min_ram": "min_memory_mib", "owner": "project_id",
    "container_format": "container_format", "disk_format": "disk_format",
}
"""OpenStack's names of what a caller may set, and the columns'."""


async def create(ask: Ask) -> Reply:
    """Make an image; its content comes afterwards."""
    body: dict[str, Any] = dict(ask.body)
    for name in body:
        if name != "id":
            patch.check_name(name)
    owner = body.pop("owner", None) or ask.caller.project_id or ""
    uuid, tags = body.pop("id", ""), body.pop("tags", [])
    said = {WORDS[name]: body.pop(name) for name in list(body) if name in WORDS}
    said["name"] = said.get("name") or ""
    own = _properties(body)
    new = NewImage(**said, project_id=owner, uuid=uuid, tags=tags, properties=own)
    _check_owner(ask, owner)
    _check_visibility(ask, new.visibility, owner)

    def write(conn: sa.Connection) -> dict[str, Any]:
        made = actions.create(conn, new, ask.context.image_limits)
        return view(ask, made, catalog.tags_of(conn, [made.id])[made.id])

    made = await ask.write(write)
    return Reply(made, headers={
        "Location": f"{ask.root}/v2/images/{made['id']}",
        "OpenStack-image-import-methods": ",".join(METHODS),
    })


def _properties(body: Mapping[str, Any]) -> dict[str, str]:
    own = {name: value for name, value in body.items() if value is not None}
    if len(own) > PROPERTIES_MAX:
        raise TooLarge(f"an image may have {PROPERTIES_MAX} properties of its own")
    return own


def _check_owner(ask: Ask, owner: str) -> None:
    if owner != (ask.caller.project_id or ""):
        ask.check("image:set_owner", {"project_id": owner})


def _check_visibility(ask: Ask, visibility: str, owner: str) -> None:
    rule = {"public": "image:publicize_image", "community": "image:communitize_image"}
    if visibility in rule:
        ask.check(rule[visibility], {"project_id": owner})


async def list_images(ask: Ask) -> Reply:
    """One page of the images that the caller may know of."""
    wanted, order = listing.wanted_of(ask), listing.order_of(ask)
    limit, marker = listing.limit_of(ask), ask.one("marker")

    def read(conn: sa.Connection) -> list[dict[str, Any]]:
        after = None
        if marker is not None:
            after = store.visible(conn, marker, ask.caller.project_id, ask.caller.is_admin)
            if after is None:
                raise InvalidInput("marker", marker, "it must be the ID of an image")
        found = catalog.find(conn, wanted, order, marker=after, limit=limit)
        tags = catalog.tags_of(conn, [one.id for one in found])
        return [view(ask, one, tags[one.id]) for one in found]

    shown = await ask.read(read)
    last = shown[-1]["id"] if shown and len(shown) == limit else None
    return Reply({
        "images": shown, "schema": "/v2/schemas/images", **listing.links(ask, "/v2/images", last),
    })


async def show(ask: Ask) -> dict[str, Any]:
    """One image."""

    def read(conn: sa.Connection) -> dict[str, Any]:
        found = seek(ask, conn)
        return view(ask, found, catalog.tags_of(conn, [found.id])[found.id])

    return await ask.read(read)


async def update(ask: Ask) -> dict[str, Any]:
    """Change an image by a JSON patch."""
    kind = ask.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in patch.KINDS:
        raise BadMediaType(f"Unsupported Content-Type: use one of {', '.join(patch.KINDS)}")
    todo = patch.operations(ask.body, patch.KINDS[kind])

    def write(conn: sa.Connection) -> dict[str, Any]:
        found = seek_own(ask, conn, "image:modify_image")
        tags = catalog.tags_of(conn, [found.id])[found.id]
        before = _document(found, tags)
        after = patch.apply(before, todo)
        CHANGED.check(after, 0)
        _change(ask, conn, found, before, after)
        changed = store.get(conn, found.id)
        assert changed is not None
        return view(ask, changed, catalog.tags_of(conn, [found.id])[found.id])

    return await ask.write(write)


def _document(image: Image, tags: list[str]) -> dict[str, Any]:
    """What of an image can be changed."""
    said = {name: getattr(image, column) for name, column in WORDS.items()}
    said["name"] = image.name or None
    return {**image.properties, **said, "tags": tags}


def _change(
    ask: Ask, conn: sa.Connection, image: Image, before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    changed = {name: after[name] for name in WORDS if after[name] != before[name]}
    for name in ("container_format", "disk_format"):
        if name in changed and image.state is not ImageStatus.QUEUED:
            raise Forbidden(f"Attribute {name} can be only replaced for a queued image.")
    if "owner" in changed:
        _check_owner(ask, changed["owner"] or "")
    if "visibility" in changed:
        _check_visibility(ask, changed["visibility"], image.project_id)
    own = _properties({
        name: value for name, value in after.items() if name not in SETTABLE
    })
    values: dict[str, Any] = {WORDS[name]: value for name, value in changed.items()}
    for name in ("name", "project_id"):
        if name in values:
            values[name] = values[name] or ""
    store.update(conn, image.id, properties=store.written(own), **values)
    if list(after["tags"]) != list(before["tags"]):
        store.set_tags(conn, image.id, after["tags"])


async def delete(ask: Ask) -> None:
    """Delete an image."""
    await ask.write(lambda conn: actions.delete(
        conn, seek_own(ask, conn, "image:delete_image")
    ))


async def deactivate(ask: Ask) -> None:
    """Take an image out of use."""
    await ask.write(lambda conn: actions.set_usable(
        conn, seek_own(ask, conn, "image:deactivate"), False
    ))


async def reactivate(ask: Ask) -> None:
    """Take an image back into use."""
    await ask.write(lambda conn: actions.set_usable(
        conn, seek_own(ask, conn, "image:reactivate"), True
    ))


async def add_tag(ask: Ask) -> None:
    """Tag an image."""
    tag = ask.path["tag"]
    if not 0 < len(tag) <= 255:
        raise InvalidInput("tag", tag, "it must have 1 to 255 characters")
    await ask.write(lambda conn: catalog.add_tag(
        conn, seek_own(ask, conn, "image:modify_image").id, tag, TAGS_MAX
    ))


async def remove_tag(ask: Ask) -> None:
    """Take a tag off an image."""
    await ask.write(lambda conn: catalog.remove_tag(
        conn, seek_own(ask, conn, "image:modify_image").id, ask.path["tag"]
    ))


# -- import


async def begin_import(ask: Ask) -> None:
    """Import what was staged, or what a URL gives; the answer does not wait for it."""
    method = ask.body["method"]
    if method["name"] not in METHODS:
        raise InvalidInput("method", method["name"], f"it must be one of {', '.join(METHODS)}")
    _check_stores(ask)
    if method["name"] == "web-download":
        _check_url(ask, method.get("uri"))
    await ask.write(lambda conn: actions.begin_import(
        conn, seek_own(ask, conn, "image:import_image"), ask.context.image_limits, ask.body,
        request_id=ask.request_id, user_id=ask.caller.user_id,
    ))


def _check_url(ask: Ask, uri: Any) -> None:
    """What can be said of a URL at once. Errors: `InvalidInput`."""
    if not isinstance(uri, str):
        raise InvalidInput("uri", uri, "web-download needs a URL")
    try:
        if not isinstance(parse_source(uri), HttpUrl):
            raise InvalidInput("uri", uri, "an http(s):// URL was expected")
        ask.context.guard.check(uri)
    except ImageRefused as error:
        raise InvalidInput("uri", urlsplit(uri).netloc, str(error)) from error


def _check_stores(ask: Ask) -> None:
    kind = ask.context.contents.blobs.kind
    for name in [*ask.body.get("stores", ()), ask.request.headers.get("x-image-meta-store", kind)]:
        if name != kind:
            raise InvalidInput("stores", name, f"the one store is {kind}")


def _task(image: Image) -> dict[str, Any]:
    task = dict(image.task or {})
    return {
        "id": task["id"], "type": "api_image_import", "status": task["status"],
        "owner": image.project_id, "user_id": task["user_id"], "request_id": task["request_id"],
        "image_id": image.uuid, "message": task["message"],
        "input": {"image_id": image.uuid, "import_req": task["request"]},
        "result": {"image_id": image.uuid} if task["status"] == "success" else None,
        "expires_at": None,
        "created_at": when(image.updated_at), "updated_at": when(image.updated_at),
        "self": f"/v2/tasks/{task['id']}", "schema": "/v2/schemas/task",
    }


async def tasks(ask: Ask) -> dict[str, Any]:
    """The imports of an image: the last one is kept."""
    found = await ask.read(lambda conn: seek_own(ask, conn, "image:get_task"))
    return {"tasks": [_task(found)] if found.task is not None else []}


async def all_tasks(ask: Ask) -> dict[str, Any]:
    """The imports of the caller's images."""
    project = None if ask.caller.is_admin else ask.caller.project_id or ""
    found = await ask.read(lambda conn: catalog.with_tasks(conn, project))
    return {
        "tasks": [_task(one) for one in found], "first": "/v2/tasks",
        "schema": "/v2/schemas/tasks",
    }


async def one_task(ask: Ask) -> dict[str, Any]:
    """One import."""
    for one in (await all_tasks(ask))["tasks"]:
        if one["id"] == ask.path["task_id"]:
            found: dict[str, Any] = one
            return found
    raise NotFound("there is no such task")


async def no_task(_ask: Ask) -> None:
    """Tasks come of imports alone: making them by hand has been deprecated since images have their
    own call for it, and OpenStack's own rules forbid it to all but administrators."""
    raise Forbidden(
        "Tasks cannot be made by hand: POST /v2/images, then POST /v2/images/{image_id}/import."
    )


_ONE = "/v2/images/{image_id}"
CALLS = [
    Call("POST", "/v2/images", create, "image:add_image", status=201, body=CREATE),
    Call("GET", "/v2/images", list_images, "image:get_images"),
    Call("GET", _ONE, show, "image:get_image"),
    Call("PATCH", _ONE, update, "image:modify_image", body=PATCH),
    Call("DELETE", _ONE, delete, "image:delete_image", status=204),
    Call("POST", f"{_ONE}/actions/deactivate", deactivate, "image:deactivate", status=204),
    Call("POST", f"{_ONE}/actions/reactivate", reactivate, "image:reactivate", status=204),
    Call("PUT", f"{_ONE}/tags/{{tag}}", add_tag, "image:modify_image", status=204),
    Call("DELETE", f"{_ONE}/tags/{{tag}}", remove_tag, "image:modify_image", status=204),
    Call("POST", f"{_ONE}/import", begin_import, "image:import_image", status=202, body=IMPORT),
    Call("GET", f"{_ONE}/tasks", tasks, "image:get_task"),
    Call("GET", "/v2/tasks", all_tasks, "image:get_task"),
    Call("POST", "/v2/tasks", no_task, "image:import_image", status=403),
    Call("GET", "/v2/tasks/{task_id}", one_task, "image:get_task"),
]
