"""Server groups: which servers shall be together, and which apart."""

from __future__ import annotations

from treadle.api.openstack.compute.common import (
    COUNT,
    NAME,
    Body,
    closed,
    inside,
    number,
    one_of,
    queries,
    query,
    whole,
)
from treadle.api.openstack.wire import Ask, Call, Schema, page_of
from treadle.compute import groups
from treadle.compute.groups import ServerGroup
from treadle.errors import InvalidInput

OWNERS, SOFT, ONE_POLICY = 13, 15, 64
"""The minor microversions that brought whose a group is, soft policies, and rules."""
HARD_POLICIES = ("anti-affinity", "affinity")
POLICIES = (*HARD_POLICIES, "soft-anti-affinity", "soft-affinity")
PER_HOST = "max_server_per_host"


def _listed(*policies: str) -> Body:
    return inside("server_group", closed({
        "name": NAME,
        "policies": {"type": "array", "items": one_of(*policies), "minItems": 1, "maxItems": 1},
    }, ["name", "policies"]))


CREATE = Schema(
    (1, _listed(*HARD_POLICIES)), (SOFT, _listed(*POLICIES)),
    (ONE_POLICY, inside("server_group", closed({
        "name": NAME, "policy": one_of(*POLICIES), "rules": closed({PER_HOST: whole(1)}),
    }, ["name", "policy"]))),
)
LIST = queries(query("all_projects", limit=COUNT, offset=COUNT))


def view(ask: Ask, group: ServerGroup) -> Body:
    """A group as the microversion has it."""
    body: Body = {"id": group.uuid, "name": group.name, "members": list(group.members)}
    if ask.minor >= ONE_POLICY:
        body["policy"] = group.policy
        body["rules"] = {} if group.max_per_host is None else {PER_HOST: group.max_per_host}
    else:
        body |= {"policies": [group.policy], "metadata": {}}
    if ask.minor >= OWNERS:
        body |= {"project_id": group.project_id, "user_id": group.user_id}
    return body


def _mine(ask: Ask) -> str | None:
    """The project whose groups the caller may name; None: every project's."""
    return None if ask.allows("compute:server_groups:all_projects") else ask.caller.project_id or ""


async def listed(ask: Ask) -> Body:
    """The project's groups, or every project's where that is asked for and allowed."""
    project = _mine(ask) if "all_projects" in ask.query else ask.caller.project_id or ""
    page, first = page_of(ask), number("offset", ask.one("offset") or 0, 0)
    found = await ask.read(lambda conn: groups.listed(conn, project, first, page.limit))
    return {"server_groups": [view(ask, one) for one in found]}


async def show(ask: Ask) -> Body:
    """One group."""
    found = await ask.read(lambda conn: groups.get(conn, ask.path["id"], _mine(ask)))
    return {"server_group": view(ask, found)}


async def create(ask: Ask) -> Body:
    """A new group."""
    said = ask.body["server_group"]
    policy = said["policy"] if ask.minor >= ONE_POLICY else said["policies"][0]
    rules = said.get("rules", {})
    if rules and policy != "anti-affinity":
        raise InvalidInput("rules", rules, "Only anti-affinity policy supports rules.")
    most = number(PER_HOST, rules[PER_HOST], 1) if rules else None
    made = await ask.write(lambda conn: groups.create(
        conn, ask.caller.project_id or "", ask.caller.user_id, said["name"], policy, most
    ))
    return {"server_group": view(ask, made)}


async def delete(ask: Ask) -> None:
    """Forget a group."""
    await ask.write(lambda conn: groups.delete(conn, ask.path["id"], _mine(ask)))


_ALL, _ONE = "/v2.1/os-server-groups", "/v2.1/os-server-groups/{id}"
CALLS = [
    Call("GET", _ALL, listed, "compute:server_groups:list", query=LIST),
    Call("POST", _ALL, create, "compute:server_groups:create", body=CREATE),
    Call("GET", _ONE, show, "compute:server_groups:get"),
    Call("DELETE", _ONE, delete, "compute:server_groups:delete", 204),
]
