"""Roles, what they imply, and who has which where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.identity.common import (
    ID_OR_NULL,
    NAME,
    TEXT_OR_NULL,
    Shown,
    change,
    closed,
    extras,
    filters,
    limit_of,
    link,
    listing,
    marker_of,
    options_of,
    page,
    truth,
)
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import project, role, role_assignment, user_account, user_group
from treadle.errors import Forbidden, InvalidInput, NotFound
from treadle.identity import grants, store
from treadle.identity.grants import ACTORS, SYSTEM, Effect, Grant
from treadle.identity.model import Row

OPTIONS = ("immutable",)
CLOUDS_OWN = ("admin", "service")
"""Roles that only the cloud's administrators give: they reach beyond a domain."""
_ROLE = {
    "name": NAME, "description": TEXT_OR_NULL, "domain_id": ID_OR_NULL,
    "options": {"type": "object"},
}
_a = role_assignment.c


def show_role(ask: Ask, row: Row) -> Shown:
    """A role."""
    return {
        **row["extra"], "id": row["id"], "name": row["name"],
        "domain_id": row["domain_id"] or None, "description": row["description"],
        "options": row["options"], "links": link(ask, "roles", row["id"]),
    }


def _values(body: Mapping[str, Any], before: Row | None = None) -> Row:
    made: Row = {
        "options": options_of(body, OPTIONS, before and before["options"]),
        "extra": extras(body, _ROLE, before and before["extra"]),
    }
    return made | {name: body[name] for name in ("name", "description") if name in body}


async def create_role(ask: Ask) -> Shown:
    """A new role."""
    body = ask.body["role"]
    values = {**_values(body), "domain_id": body.get("domain_id") or ""}
    made = await ask.write(lambda conn: grants.create_role(conn, values))
    return {"role": show_role(ask, made)}


async def list_roles(ask: Ask) -> Shown:
    """The roles of everybody, or those of a domain where that is asked for."""
    limit = limit_of(ask)
    where = filters(ask, role, ("name", "domain_id"))
    if ask.one("domain_id") is None:
        where.append(role.c.domain_id == "")
    rows, more = page(await ask.read(lambda conn: store.select(
        conn, role, *where, marker=marker_of(ask), limit=limit and limit + 1
    )), limit)
    return listing(ask, "roles", [show_role(ask, one) for one in rows], "roles", more=more)


async def get_role(ask: Ask) -> Shown:
    """One role."""
    id = ask.path["role_id"]
    return {"role": show_role(ask, await ask.read(lambda conn: grants.get_role(conn, id)))}


async def update_role(ask: Ask) -> Shown:
    """Change a role."""
    id, body = ask.path["role_id"], ask.body["role"]

    def work(conn: sa.Connection) -> Row:
        known = grants.get_role(conn, id)
        if (body.get("domain_id", known["domain_id"]) or "") != known["domain_id"]:
            raise InvalidInput("domain_id", body["domain_id"], "it cannot be changed")
        return grants.update_role(conn, id, _values(body, known))

    return {"role": show_role(ask, await change(ask, work))}


async def delete_role(ask: Ask) -> None:
    """Remove a role from everybody."""
    await change(ask, lambda conn: grants.delete_role(conn, ask.path["role_id"]))


# -- what roles imply


def _short(ask: Ask, row: Row) -> Shown:
    return {"id": row["id"], "name": row["name"], "description": row["description"],
            "links": link(ask, "roles", row["id"])}


async def list_implied(ask: Ask) -> Shown:
    """The roles that one gives by itself."""
    id = ask.path["role_id"]

    def look(conn: sa.Connection) -> Shown:
        prior = grants.get_role(conn, id)
        rows = store.rows_of(conn, role, grants.inferences(conn).get(id, ()))
        return {"prior_role": _short(ask, prior),
                "implies": [_short(ask, one) for one in rows.values()]}

    return {"role_inference": await ask.read(look), "links": link(ask, "roles", id, "implies")}


def _inference(ask: Ask, conn: sa.Connection) -> Shown:
    prior, implied = ask.path["role_id"], ask.path["implied_id"]
    return {
        "role_inference": {
            "prior_role": _short(ask, grants.get_role(conn, prior)),
            "implies": _short(ask, grants.get_role(conn, implied)),
        },
        "links": link(ask, "roles", prior, "implies", implied),
    }


async def imply(ask: Ask) -> Shown:
    """Let one role give another."""
    def work(conn: sa.Connection) -> Shown:
        grants.imply(conn, ask.path["role_id"], ask.path["implied_id"])
        return _inference(ask, conn)

    return await change(ask, work)


async def get_implied(ask: Ask) -> Shown:
    """Whether one role gives another."""
    def look(conn: sa.Connection) -> Shown:
        made = _inference(ask, conn)
        if not grants.implies(conn, ask.path["role_id"], ask.path["implied_id"]):
            raise NotFound("Could not find role inference.")
        return made

    return await ask.read(look)


async def has_implied(ask: Ask) -> None:
    """The same, without a body."""
    await get_implied(ask)


async def imply_no_more(ask: Ask) -> None:
    """End that one role gives another."""
    await change(
        ask, lambda conn: grants.imply_no_more(conn, ask.path["role_id"], ask.path["implied_id"])
    )


async def list_inferences(ask: Ask) -> Shown:
    """Every role that gives others, with those."""
    def look(conn: sa.Connection) -> list[Shown]:
        pairs = grants.inferences(conn)
        rows = store.rows_of(conn, role, [*pairs, *(id for ids in pairs.values() for id in ids)])
        return [
            {"prior_role": _short(ask, rows[id]),
             "implies": [_short(ask, rows[one]) for one in ids]}
            for id, ids in pairs.items()
        ]

    return {"role_inferences": await ask.read(look), "links": link(ask, "role_inferences")}


# -- who has which


def _grant(ask: Ask, inherited: bool) -> Grant:
    path = ask.path
    actor = "user" if "user_id" in path else "group"
    target = next((one for one in ("project", "domain") if f"{one}_id" in path), SYSTEM)
    return Grant(
        actor, path[f"{actor}_id"], target, path.get(f"{target}_id", SYSTEM),
        path.get("role_id", ""), inherited,
    )


def _check(ask: Ask, conn: sa.Connection, rule: str, grant: Grant) -> None:
    """Target and actor must be the caller's to name. Errors: `Forbidden`, `NotFound`."""
    if grant.target != SYSTEM:
        there = store.get(conn, project, grant.target_id)
        home = (there["domain_id"] or there["id"]) if there else None
        actor = store.get(conn, ACTORS[grant.actor], grant.actor_id)
        for domain_id in (home, actor and actor["domain_id"]):
            ask.check(rule, {"domain_id": domain_id})
    if grant.role_id and "change" in rule and not ask.caller.is_admin:
        known = store.get(conn, role, grant.role_id)
        if known is not None and known["name_key"] in CLOUDS_OWN and not known["domain_id"]:
            raise Forbidden("The role admin and those who hold it are the cloud administrators' "
                            "own.")


def _calls(path: str, what: str, inherited: bool) -> list[Call]:
    """The calls on the roles of one kind of actor on one kind of target."""
    reads, writes = f"identity:list_{what}", f"identity:change_{what}"
    end = "/inherited_to_projects" if inherited else ""

    async def list_given(ask: Ask) -> Shown:
        """The roles that were given."""
        def look(conn: sa.Connection) -> list[Row]:
            grant = _grant(ask, inherited)
            _check(ask, conn, reads, grant)
            grants.check_ends(conn, grant)
            return grants.roles_given(conn, grant)

        rows = await ask.read(look)
        own = str(ask.request.scope["path"]).partition("/v3/")[2]
        return listing(ask, "roles", [show_role(ask, one) for one in rows], own)

    async def has(ask: Ask) -> None:
        """Whether a role was given."""
        def look(conn: sa.Connection) -> bool:
            grant = _grant(ask, inherited)
            _check(ask, conn, reads, grant)
            grants.check_ends(conn, grant)
            return grants.has(conn, grant)

        if not await ask.read(look):
            raise NotFound("Could not find role assignment.")

    async def give(ask: Ask) -> None:
        """Give a role."""
        def work(conn: sa.Connection) -> None:
            grant = _grant(ask, inherited)
            _check(ask, conn, writes, grant)
            grants.give(conn, grant)

        # More than before is nothing that a controller must hear of before this is answered.
        await ask.write(work)

    async def take(ask: Ask) -> None:
        """Take a role back."""
        def work(conn: sa.Connection) -> None:
            grant = _grant(ask, inherited)
            _check(ask, conn, writes, grant)
            grants.check_ends(conn, grant)
            grants.take(conn, grant)

        await change(ask, work)

    one = f"{path}/roles/{{role_id}}{end}"
    return [
        Call("GET", f"{path}/roles{end}", list_given, reads),
        Call("GET", one, has, reads, 204),
        Call("PUT", one, give, writes, 204),
        Call("DELETE", one, take, writes, 204),
    ]


def _all_calls() -> Iterable[Call]:
    for actor in ("users/{user_id}", "groups/{group_id}"):
        for target in ("projects/{project_id}", "domains/{domain_id}"):
            yield from _calls(f"/v3/{target}/{actor}", "grants", False)
            yield from _calls(f"/v3/OS-INHERIT/{target}/{actor}", "grants", True)
        yield from _calls(f"/v3/system/{actor}", "system_grants", False)


# -- all assignments


def _where(ask: Ask, conn: sa.Connection, effective: bool) -> list[sa.ColumnElement[bool]]:
    """The conditions on what was given; in the effective view, only those that hold before it."""
    user, group = ask.one("user.id"), ask.one("group.id")
    where: list[sa.ColumnElement[bool]] = []
    if user is not None:
        actors = [user, *store.groups_of(conn, user)] if effective else [user]
        where.append(_a.actor_id.in_(actors))
    if group is not None:
        where.append(_a.actor_id == group)
    inherited = ask.one("scope.OS-INHERIT:inherited_to")
    if inherited is not None:
        where.append(_a.inherited.is_(True))
    if not effective:
        if ask.one("role.id") is not None:
            where.append(_a.role_id == ask.one("role.id"))
        wanted = _scopes(ask, conn)
        if wanted is not None:
            where.append(_a.target_id.in_(wanted))
    return where


def _scopes(ask: Ask, conn: sa.Connection) -> list[str] | None:
    """Ids of the targets that are asked for; None: all."""
    if ask.one("scope.system") is not None:
        return [SYSTEM]
    id = ask.one("scope.project.id")
    if id is not None:
        below = []
        if "include_subtree" in ask.query and truth(ask.one("include_subtree") or "1"):
            below = [one["id"] for one in grants.projects_below(conn, "project", id)]
        return [id, *below]
    id = ask.one("scope.domain.id")
    return None if id is None else [id]


async def list_assignments(ask: Ask) -> Shown:
    """Who has which role where; `effective`: as it works out for users."""
    query = ask.query
    effective = "effective" in query and truth(ask.one("effective") or "1")
    names = "include_names" in query and truth(ask.one("include_names") or "1")
    if effective and "group.id" in query:
        raise InvalidInput("group.id", ask.one("group.id"), "it cannot be used with effective")
    if "user.id" in query and "group.id" in query:
        raise InvalidInput("user.id", ask.one("user.id"), "it cannot be used with group.id")
    if sum(one in query for one in ("scope.project.id", "scope.domain.id", "scope.system")) > 1:
        raise InvalidInput("scope", "several", "only one scope can be asked for at a time")
    if "include_subtree" in query and "scope.project.id" not in query:
        raise InvalidInput("include_subtree", True, "it needs scope.project.id")
    if any("\0" in value for values in query.values() for value in values):
        raise InvalidInput("query", "a NUL", "use printable characters")

    def look(conn: sa.Connection) -> list[Shown]:
        given = grants.assignments(conn, *_where(ask, conn, effective))
        found = [Effect(one, one) for one in given]
        if effective:
            found = grants.effects(conn, given)
            wanted = _scopes(ask, conn)
            user, role_id = ask.one("user.id"), ask.one("role.id")
            found = [
                one for one in found
                if (wanted is None or one.grant.target_id in wanted)
                and (user is None or one.grant.actor_id == user)
                and (role_id is None or one.grant.role_id == role_id)
            ]
        own = ask.caller.domain_id
        if own is not None:
            inside = {one["id"] for one in grants.projects_below(conn, "domain", own)} | {own}
            found = [one for one in found if one.grant.target_id in inside]
        book = _names(conn, found) if names else {}
        return [_assignment(ask, one, book) for one in found]

    return listing(ask, "role_assignments", await ask.read(look), "role_assignments")


def _names(conn: sa.Connection, found: Iterable[Effect]) -> dict[str, Shown]:
    """What is shown of everything that is named, beside its id."""
    ids = {id for one in found
           for id in (one.grant.actor_id, one.grant.target_id, one.grant.role_id)}
    rows: dict[str, Row] = {}
    for table in (user_account, user_group, project, role):
        rows |= store.rows_of(conn, table, ids)
    domains = store.rows_of(conn, project, (one["domain_id"] for one in rows.values()))
    book: dict[str, Shown] = {}
    for id, row in rows.items():
        book[id] = {"name": row["name"]}
        home = domains.get(row["domain_id"])
        if home is not None:
            book[id]["domain"] = {"id": home["id"], "name": home["name"]}
    return book


def _assignment(ask: Ask, effect: Effect, book: Mapping[str, Shown]) -> Shown:
    grant, cause = effect.grant, effect.cause

    def named(id: str) -> Shown:
        return {"id": id, **book.get(id, {})}

    scope: Shown = {"system": {"all": True}}
    if grant.target != SYSTEM:
        scope = {grant.target: named(grant.target_id)}
    if cause.inherited:
        scope["OS-INHERIT:inherited_to"] = "projects"
    target = "system" if cause.target == SYSTEM else f"{cause.target}s/{cause.target_id}"
    place = f"{target}/{cause.actor}s/{cause.actor_id}/roles/{cause.role_id}"
    if cause.inherited:
        place = f"OS-INHERIT/{place}/inherited_to_projects"
    links = {"assignment": f"{ask.root}/v3/{place}"}
    if cause.actor != grant.actor:
        links["membership"] = f"{ask.root}/v3/groups/{cause.actor_id}/users/{grant.actor_id}"
    if effect.prior_id is not None:
        links["prior_role"] = f"{ask.root}/v3/prior_roles/{effect.prior_id}/implies/{grant.role_id}"
    return {
        "scope": scope, "role": named(grant.role_id), grant.actor: named(grant.actor_id),
        "links": links,
    }


_NEW = Schema((1, closed("role", _ROLE, ["name"])))
_OLD = Schema((1, closed("role", _ROLE)))
_R = "/v3/roles/{role_id}"
_I = f"{_R}/implies/{{implied_id}}"

CALLS = [
    Call("POST", "/v3/roles", create_role, "identity:create_role", 201, _NEW),
    Call("GET", "/v3/roles", list_roles, "identity:list_roles"),
    Call("GET", _R, get_role, "identity:get_role"),
    Call("PATCH", _R, update_role, "identity:update_role", 200, _OLD),
    Call("DELETE", _R, delete_role, "identity:delete_role", 204),
    Call("GET", f"{_R}/implies", list_implied, "identity:get_role"),
    Call("PUT", _I, imply, "identity:update_role", 201),
    Call("GET", _I, get_implied, "identity:get_role"),
    Call("HEAD", _I, has_implied, "identity:get_role", 204),
    Call("DELETE", _I, imply_no_more, "identity:update_role", 204),
    Call("GET", "/v3/role_inferences", list_inferences, "identity:list_roles"),
    Call("GET", "/v3/role_assignments", list_assignments, "identity:list_assignments"),
    *_all_calls(),
]
