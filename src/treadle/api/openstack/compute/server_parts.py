"""What belongs to a server: metadata, tags, addresses, the log of its actions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute import server_schemas as schemas
from treadle.api.openstack.compute.common import (
    COUNT,
    TEXT,
    closed,
    following,
    part,
    precise,
)
from treadle.api.openstack.compute.metadata import Items, Metadata
from treadle.api.openstack.compute.server_cache import Views
from treadle.api.openstack.compute.server_filters import when
from treadle.api.openstack.compute.server_view import addresses, host_id
from treadle.api.openstack.compute.servers import (
    NO_SERVER,
    asker,
    find,
    find_row,
    scope,
    uuid_of,
)
from treadle.api.openstack.wire import Ask, Call, Reply, Schema, page_of
from treadle.compute import quota, store
from treadle.compute.actions import unlocked
from treadle.compute.listing import HostWords, Row
from treadle.errors import InvalidInput, NotFound
from treadle.network.store import group_of

TAGS_MAX = 50
PAGES, BEFORE = 58, 66
"""The minor microversions from which the log of actions comes in pages, and up to a time."""


def _mine(conn: sa.Connection, ask: Ask, what: str = "change") -> Row:
    """The server of the path, to change what belongs to it. Errors: `NotFound`, `Locked`."""
    row = find_row(conn, ask)
    unlocked(row.instance, what, asker(ask))
    return row


# -- metadata


async def _items(ask: Ask) -> Items:
    row = await ask.read(lambda conn: find_row(conn, ask))
    found: Items = json.loads(row.columns.metadata)
    return found


async def _change(ask: Ask, change: Callable[[Items], Items]) -> Items:
    def work(conn: sa.Connection) -> Items:
        row = _mine(conn, ask)
        new = change(json.loads(row.columns.metadata))
        quota.check_metadata(conn, row.columns.project_id, len(new))
        store.update(conn, row.instance.id, metadata=store.compact(new))
        return new

    return await ask.write(work)


# -- tags


async def tags_list(ask: Ask) -> dict[str, Any]:
    """All of them."""
    row = await ask.read(lambda conn: find_row(conn, ask))
    return {"tags": list(row.tags)}


async def _retag(ask: Ask, change: Callable[[frozenset[str]], frozenset[str]]) -> frozenset[str]:
    """Change the tags; what they were before comes back."""

    def work(conn: sa.Connection) -> frozenset[str]:
        row = _mine(conn, ask)
        old = frozenset(row.tags)
        new = change(old)
        if len(new) > TAGS_MAX:
            raise InvalidInput("tags", len(new), f"a server may have {TAGS_MAX} tags at most")
        store.set_tags(conn, row.instance.id, new)
        store.update(conn, row.instance.id)
        return old

    return await ask.write(work)


async def tags_replace(ask: Ask) -> dict[str, Any]:
    """These tags and no others."""
    wanted = frozenset(ask.body["tags"])
    await _retag(ask, lambda _old: wanted)
    return {"tags": sorted(wanted)}


async def tags_clear(ask: Ask) -> None:
    """None left."""
    await _retag(ask, lambda _old: frozenset())


def _tag(ask: Ask) -> str:
    tag = ask.path["tag"]
    if not 1 <= len(tag) <= 60 or "," in tag or "/" in tag:
        raise InvalidInput("tag", tag, "it must be 1 to 60 characters without commas and slashes")
    return tag


async def tag_check(ask: Ask) -> None:
    """Whether it has the tag."""
    if ask.path["tag"] not in (await tags_list(ask))["tags"]:
        raise NotFound(f"Server {ask.path['server_id']} has no tag '{ask.path['tag']}'")


async def tag_add(ask: Ask) -> Reply:
    """One tag more."""
    tag = _tag(ask)
    if tag in await _retag(ask, lambda old: old | {tag}):
        return Reply(status=204)
    where = f"{ask.root}/v2.1/servers/{ask.path['server_id']}/tags/{tag}"
    return Reply(status=201, headers={"Location": where})


async def tag_delete(ask: Ask) -> None:
    """One tag less."""
    tag = ask.path["tag"]

    def without(old: frozenset[str]) -> frozenset[str]:
        if tag not in old:
            raise NotFound(f"Server {ask.path['server_id']} has no tag '{tag}'")
        return old - {tag}

    await _retag(ask, without)


# -- addresses


async def ips_list(ask: Ask) -> dict[str, Any]:
    """Its addresses by network."""
    row = await ask.read(lambda conn: find_row(conn, ask))
    return {"addresses": addresses(row, full=False)}


async def ips_show(ask: Ask) -> dict[str, Any]:
    """Its addresses in one network."""
    found = (await ips_list(ask))["addresses"]
    network = ask.path["network"]
    if network not in found:
        raise NotFound("Instance is not a member of specified network")
    return {network: found[network]}


async def security_groups(ask: Ask) -> dict[str, Any]:
    """Its security groups: the one there is."""
    group = await ask.read(lambda conn: group_of(conn, find(conn, ask).project_id))
    return {"security_groups": [{
        "id": group.id, "name": group.name, "description": "Default security group",
        "tenant_id": group.project_id, "rules": [],
    }]}


# -- the log of actions


async def actions_list(ask: Ask) -> dict[str, Any]:
    """What was asked of it, newest first."""
    since = when(ask, "changes-since") if ask.minor >= PAGES else None
    before = when(ask, "changes-before") if ask.minor >= BEFORE else None
    if since is not None and before is not None and since > before:
        raise InvalidInput("changes-since", ask.one("changes-since"),
                           "it must not be after changes-before")

    def work(conn: sa.Connection) -> tuple[str, list[dict[str, Any]]]:
        id, uuid = _ever(conn, ask)
        return uuid, [
            one for one in reversed(store.actions(conn, id))
            if (since is None or _changed(one) >= since)
            and (before is None or _changed(one) <= before)
        ]

    uuid, found = await ask.read(work)
    if ask.minor < PAGES:
        return {"instanceActions": [_action(ask, uuid, one) for one in found]}
    page = page_of(ask)
    shown = part(found, page, _request_id)
    body: dict[str, Any] = {"instanceActions": [_action(ask, uuid, one) for one in shown]}
    links = following(ask, f"/servers/{uuid}/os-instance-actions", page, shown, _request_id)
    return body | ({"links": links} if links else {})


def _request_id(one: Mapping[str, Any]) -> str:
    return str(one["request_id"])


def _changed(one: Mapping[str, Any]) -> float:
    """When the entry of the log has last changed."""
    return float(max([
        one["finished_at"] or one["started_at"], *(step["finished_at"] for step in one["steps"])
    ]))


async def actions_show(ask: Ask) -> dict[str, Any]:
    """One request with its steps."""
    request = ask.path["request_id"]

    def work(conn: sa.Connection) -> dict[str, Any]:
        id, uuid = _ever(conn, ask)
        words = ask.context.shared(Views).hosts(conn)
        for one in store.actions(conn, id):
            if one["request_id"] == request:
                shown = _action(ask, uuid, one)
                if ask.minor >= 51 or ask.allows("compute:servers:action_events"):
                    shown["events"] = [
                        _event(ask, step, words, one["project_id"])
                        for step in reversed(one["steps"])
                    ]
                return {"instanceAction": shown}
        raise NotFound(f"Action for request_id {request} on instance {uuid} not found")

    return await ask.read(work)


def _ever(conn: sa.Connection, ask: Ask) -> tuple[int, str]:
    """The server of the path; from 2.21 on also one that has been deleted. Errors: `NotFound`."""
    uuid = uuid_of(ask)
    instance = store.by_uuid(conn, uuid)
    hidden = instance is None or scope(ask) not in (None, instance.project_id)
    if instance is None or hidden or (instance.deleted_at is not None and ask.minor < 21):
        raise NotFound(NO_SERVER.format(uuid))
    return instance.id, uuid


def _action(ask: Ask, uuid: str, one: Mapping[str, Any]) -> dict[str, Any]:
    message = one["message"]
    if message is not None and not ask.allows("compute:servers:action_events"):
        message = "Error"  # the whole of it names hosts
    shown = {
        "action": one["action"], "instance_uuid": uuid, "request_id": one["request_id"],
        "user_id": one["user_id"], "project_id": one["project_id"],
        "start_time": precise(one["started_at"]), "message": message,
    }
    if ask.minor >= PAGES:
        shown["updated_at"] = precise(_changed(one))
    return shown


def _event(
    ask: Ask, step: Mapping[str, Any], words: Mapping[int, HostWords], project: str
) -> dict[str, Any]:
    failed = step["outcome"] != "ok"
    shown = {
        "event": f"compute_{step['name']}", "start_time": precise(step["started_at"]),
        "finish_time": precise(step["finished_at"]), "result": "Error" if failed else "Success",
    }
    admin = ask.allows("compute:servers:action_events")
    if admin:
        shown["traceback"] = step["message"] if failed else None
    on = words.get(step["host"] or 0)
    if ask.minor >= 62:
        shown["hostId"] = host_id(project, on)
        if admin:
            shown["host"] = on.name if on is not None else ""
    if ask.minor >= 84:
        shown["details"] = step["message"] if failed and admin else None
    return shown


# -- what guests tell of their password


async def password_show(ask: Ask) -> dict[str, Any]:
    """The password that a guest has told, sealed: none does, as nothing asks it to."""
    await ask.read(lambda conn: find_row(conn, ask))
    return {"password": ""}


async def password_clear(ask: Ask) -> None:
    """Forget it."""
    await ask.read(lambda conn: _mine(conn, ask))


def _once(*names: str, **more: Mapping[str, Any]) -> dict[str, Any]:
    schemas = {**dict.fromkeys(names, TEXT), **more}
    return closed({
        name: {"type": "array", "items": schema, "maxItems": 1}
        for name, schema in schemas.items()
    })


LOG = Schema(
    (1, {}), (PAGES, _once("marker", "changes-since", limit=COUNT)),
    (BEFORE, _once("marker", "changes-since", "changes-before", limit=COUNT)),
)
SERVER = "/v2.1/servers/{server_id}"
CALLS = [
    *Metadata(_items, _change).calls(
        SERVER, "compute:metadata:show", "compute:metadata:update",
    ),
    Call("GET", f"{SERVER}/tags", tags_list, "compute:tags:show", since=26),
    Call("PUT", f"{SERVER}/tags", tags_replace, "compute:tags:update", 200, schemas.SET_TAGS,
         since=26),
    Call("DELETE", f"{SERVER}/tags", tags_clear, "compute:tags:update", 204, since=26),
    Call("GET", f"{SERVER}/tags/{{tag}}", tag_check, "compute:tags:show", 204, since=26),
    Call("PUT", f"{SERVER}/tags/{{tag}}", tag_add, "compute:tags:update", 201, since=26),
    Call("DELETE", f"{SERVER}/tags/{{tag}}", tag_delete, "compute:tags:update", 204, since=26),
    Call("GET", f"{SERVER}/ips", ips_list, "compute:servers:show"),
    Call("GET", f"{SERVER}/ips/{{network}}", ips_show, "compute:servers:show"),
    Call("GET", f"{SERVER}/os-security-groups", security_groups, "compute:servers:show"),
    Call("GET", f"{SERVER}/os-server-password", password_show, "compute:servers:show"),
    Call("DELETE", f"{SERVER}/os-server-password", password_clear, "compute:servers:password", 204),
    Call("GET", f"{SERVER}/os-instance-actions", actions_list, "compute:servers:show",
         query=LOG),
    Call("GET", f"{SERVER}/os-instance-actions/{{request_id}}", actions_show,
         "compute:servers:show"),
]
