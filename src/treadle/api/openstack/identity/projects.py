"""Domains and projects, and the tags of projects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from treadle.api.openstack.identity.common import (
    BOOL,
    ID,
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
from treadle.api.openstack.wire import Ask, Call, Reply, Schema
from treadle.db.schema import project, project_tag
from treadle.errors import Forbidden, InvalidInput, NotFound
from treadle.identity import actions, store
from treadle.identity.bootstrap import DOMAIN_ID
from treadle.identity.grants import projects_below, reach
from treadle.identity.model import Row

TAG = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^,/\\x00]*$"}
MOST_TAGS = 80
TAGS = {"type": "array", "items": TAG, "maxItems": MOST_TAGS, "uniqueItems": True}
OPTIONS = ("immutable",)
_OPTIONS = {"type": "object"}
_DOMAIN = {
    "name": {**NAME, "maxLength": 64}, "description": TEXT_OR_NULL, "enabled": BOOL, "tags": TAGS,
    "options": _OPTIONS, "explicit_domain_id": ID,
}
_PROJECT = {
    "name": {**NAME, "maxLength": 64}, "description": TEXT_OR_NULL, "enabled": BOOL, "tags": TAGS,
    "options": _OPTIONS, "domain_id": ID_OR_NULL, "parent_id": ID_OR_NULL, "is_domain": BOOL,
}


def show_domain(ask: Ask, row: Row) -> Shown:
    """A domain."""
    return {
        **row["extra"], "id": row["id"], "name": row["name"], "description": row["description"],
        "enabled": row["enabled"], "options": row["options"], "tags": [],
        "links": link(ask, "domains", row["id"]),
    }


def show_project(ask: Ask, row: Row, tags: list[str]) -> Shown:
    """A project, or a domain as one."""
    return {
        **row["extra"], "id": row["id"], "name": row["name"], "description": row["description"],
        "enabled": row["enabled"], "options": row["options"], "tags": tags,
        "domain_id": row["domain_id"] or None, "parent_id": row["parent_id"] or None,
        "is_domain": row["is_domain"], "links": link(ask, "projects", row["id"]),
    }


def show_projects(ask: Ask, conn: sa.Connection, rows: Iterable[Row]) -> list[Shown]:
    """Projects with their tags."""
    rows = list(rows)
    tags = store.tags_of(conn, [one["id"] for one in rows])
    return [show_project(ask, one, tags[one["id"]]) for one in rows]


def _values(body: Mapping[str, Any], known: Iterable[str], before: Row | None = None) -> Row:
    """The columns of a body, without its ids."""
    made: Row = {
        "options": options_of(body, OPTIONS, before and before["options"]),
        "extra": extras(body, known, before and before["extra"]),
    }
    for name in ("name", "enabled"):
        if name in body:
            made[name] = body[name]
    if "description" in body:
        made["description"] = body["description"] or ""
    return made


# -- domains


async def create_domain(ask: Ask) -> Shown:
    """A new domain."""
    body = ask.body["domain"]
    values = _values(body, _DOMAIN)
    if "explicit_domain_id" in body:
        values["id"] = body["explicit_domain_id"]
    made = await change(
        ask, lambda conn: actions.create_domain(conn, values, body.get("tags", []))
    )
    return {"domain": show_domain(ask, made)}


async def list_domains(ask: Ask) -> Shown:
    """The domains."""
    limit = limit_of(ask)

    def look(conn: sa.Connection) -> list[Row]:
        return store.select(
            conn, project, project.c.is_domain.is_(True),
            *filters(ask, project, ("name", "enabled")),
            marker=marker_of(ask), limit=limit and limit + 1,
        )

    rows, more = page(await ask.read(look), limit)
    return listing(ask, "domains", [show_domain(ask, one) for one in rows], "domains", more=more)


async def get_domain(ask: Ask) -> Shown:
    """One domain."""
    id = ask.path["domain_id"]
    # Whoever has a token of a project may see that project's domain.
    mine = ask.caller.project_domain_id == id
    if not mine:
        ask.check("identity:get_domain", {"domain_id": id})
    return {"domain": show_domain(ask, await ask.read(lambda conn: actions.get_domain(conn, id)))}


async def update_domain(ask: Ask) -> Shown:
    """Change a domain."""
    id, body = ask.path["domain_id"], ask.body["domain"]

    def work(conn: sa.Connection) -> Row:
        known = actions.get_domain(conn, id)
        return actions.update_project(
            conn, id, _values(body, _DOMAIN, known), body.get("tags"), "domain"
        )

    return {"domain": show_domain(ask, await change(ask, work))}


async def delete_domain(ask: Ask) -> None:
    """Remove a domain."""
    id = ask.path["domain_id"]
    if id == DOMAIN_ID:
        raise Forbidden("The default domain cannot be deleted.")
    await change(ask, lambda conn: actions.delete_domain(conn, id))


# -- projects


async def create_project(ask: Ask) -> Shown:
    """A new project."""
    body = ask.body["project"]
    if body.get("is_domain"):
        if body.get("domain_id") or body.get("parent_id"):
            raise InvalidInput("is_domain", True, "a domain is in no other and has no parent")
        ask.check("identity:create_domain")
        made = await change(ask, lambda conn: actions.create_domain(
            conn, _values(body, _PROJECT), body.get("tags", [])
        ))
        return {"project": show_project(ask, made, body.get("tags", []))}
    caller = ask.caller
    values = _values(body, _PROJECT) | {
        "domain_id": body.get("domain_id") or "", "parent_id": body.get("parent_id") or "",
    }
    if not values["domain_id"] and not values["parent_id"]:
        values["domain_id"] = caller.domain_id or caller.project_domain_id or DOMAIN_ID

    def work(conn: sa.Connection) -> Shown:
        home = values["domain_id"]
        if not home:
            parent = store.get(conn, project, values["parent_id"])
            home = (parent["domain_id"] or parent["id"]) if parent else ""
        ask.check("identity:create_project", {"domain_id": home})
        made = actions.create_project(conn, values, body.get("tags", []))
        return show_projects(ask, conn, [made])[0]

    return {"project": await change(ask, work)}


def _tagged(ask: Ask) -> list[sa.ColumnElement[bool]]:
    def have(tags: list[str]) -> sa.Select[Any]:
        return sa.select(project_tag.c.project_id).where(project_tag.c.tag.in_(tags))

    def have_all(tags: list[str]) -> sa.Select[Any]:
        counted = have(tags).group_by(project_tag.c.project_id)
        return counted.having(sa.func.count() == len(tags))

    where: list[sa.ColumnElement[bool]] = []
    for name, pick, wanted in (
        ("tags", have_all, True), ("tags-any", have, True),
        ("not-tags", have_all, False), ("not-tags-any", have, False),
    ):
        text = ask.one(name)
        if text is not None:
            found = project.c.id.in_(pick(list(dict.fromkeys(text.replace("\0", "").split(",")))))
            where.append(found if wanted else ~found)
    return where


async def list_projects(ask: Ask) -> Shown:
    """The projects, of the caller's domain where it is a domain's administrator who asks."""
    limit = limit_of(ask)
    where = filters(ask, project, ("name", "enabled", "domain_id", "parent_id"))
    where += [*_tagged(ask), project.c.is_domain.is_(truth(ask.one("is_domain") or "false"))]
    if ask.caller.domain_id is not None and not ask.caller.is_admin:
        where.append(project.c.domain_id == ask.caller.domain_id)

    def look(conn: sa.Connection) -> tuple[list[Shown], str | None]:
        rows = store.select(
            conn, project, *where, marker=marker_of(ask), limit=limit and limit + 1
        )
        rows, more = page(rows, limit)
        return show_projects(ask, conn, rows), more

    shown, more = await ask.read(look)
    return listing(ask, "projects", shown, "projects", more=more)


def _target(row: Row | None) -> Row:
    return {"project_id": row["id"], "domain_id": row["domain_id"]} if row else {}


def _checked(ask: Ask, conn: sa.Connection, rule: str) -> Row:
    """The project of the path, if the caller may. Errors: `Forbidden`, `NotFound`."""
    row = store.get(conn, project, ask.path["project_id"])
    ask.check(rule, _target(row))
    if row is None:
        raise store.missing("project", ask.path["project_id"])
    return row


def _ids(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows from the nearest up, as ids inside one another."""
    made: dict[str, Any] | None = None
    for one in reversed(list(rows)):
        made = {one["id"]: made}
    return made or {}


def _tree(rows: list[Row], top: str) -> dict[str, Any] | None:
    return {one["id"]: _tree(rows, one["id"]) for one in rows if one["parent_id"] == top} or None


async def get_project(ask: Ask) -> Shown:
    """One project, with those above and below it where that is asked for."""
    query = ask.query
    for one in ("parents", "subtree"):
        if f"{one}_as_list" in query and f"{one}_as_ids" in query:
            raise InvalidInput(f"{one}_as_list", f"{one}_as_ids", "use one of the two")

    def look(conn: sa.Connection) -> Shown:
        row = _checked(ask, conn, "identity:get_project")
        made = show_projects(ask, conn, [row])[0]
        above = store.ancestors(conn, row) if _asks(ask, "parents") else []
        below = projects_below(conn, "project", row["id"]) if _asks(ask, "subtree") else []
        seen = None
        if "parents_as_list" in query or "subtree_as_list" in query:
            seen = {one["id"] for one in reach(conn, ask.caller.user_id).projects}
        for name, rows in (("parents", above), ("subtree", below)):
            if f"{name}_as_list" in query:
                shown = [one for one in rows if one["id"] in (seen or ())]
                made[name] = [{"project": one} for one in show_projects(ask, conn, shown)]
        if "parents_as_ids" in query:
            made["parents"] = _ids(above)
        if "subtree_as_ids" in query:
            made["subtree"] = _tree(below, row["id"])
        return made

    return {"project": await ask.read(look)}


def _asks(ask: Ask, name: str) -> bool:
    return f"{name}_as_list" in ask.query or f"{name}_as_ids" in ask.query


async def update_project(ask: Ask) -> Shown:
    """Change a project."""
    body = ask.body["project"]

    def work(conn: sa.Connection) -> Shown:
        row = _checked(ask, conn, "identity:update_project")
        for name in ("domain_id", "is_domain"):
            if name in body and (body[name] or "") != (row[name] or ""):
                raise InvalidInput(name, body[name], "it cannot be changed")
        if "parent_id" in body and body["parent_id"] != (row["parent_id"] or None):
            raise Forbidden("Update of `parent_id` is not allowed.")
        kind = "domain" if row["is_domain"] else "project"
        values = _values(body, _PROJECT, row)
        made = actions.update_project(conn, row["id"], values, body.get("tags"), kind)
        return show_projects(ask, conn, [made])[0]

    return {"project": await change(ask, work)}


async def delete_project(ask: Ask) -> None:
    """Remove a project."""
    def work(conn: sa.Connection) -> None:
        row = _checked(ask, conn, "identity:delete_project")
        if row["id"] in (DOMAIN_ID, store.get_meta(conn, "admin_project")):
            raise Forbidden(f"Cannot delete project {row['id']}: the cloud itself needs it.")
        actions.delete_project(conn, row["id"])

    await change(ask, work)


# -- tags


async def list_tags(ask: Ask) -> Shown:
    """The tags of a project."""
    def look(conn: sa.Connection) -> list[str]:
        row = _checked(ask, conn, "identity:get_project")
        return store.tags_of(conn, [row["id"]])[row["id"]]

    path = f"projects/{ask.path['project_id']}/tags"
    return {"tags": await ask.read(look), "links": link(ask, path)}


async def put_tags(ask: Ask) -> Shown:
    """Give a project these tags and no other."""
    def work(conn: sa.Connection) -> list[str]:
        row = _checked(ask, conn, "identity:update_project")
        store.put_tags(conn, row["id"], ask.body["tags"])
        return store.tags_of(conn, [row["id"]])[row["id"]]

    path = f"projects/{ask.path['project_id']}/tags"
    return {"tags": await ask.write(work), "links": link(ask, path)}


async def delete_tags(ask: Ask) -> None:
    """Take all tags off a project."""
    def work(conn: sa.Connection) -> None:
        store.put_tags(conn, _checked(ask, conn, "identity:update_project")["id"], ())

    await ask.write(work)


async def has_tag(ask: Ask) -> None:
    """Whether a project has a tag."""
    def look(conn: sa.Connection) -> bool:
        row = _checked(ask, conn, "identity:get_project")
        return ask.path["tag"] in store.tags_of(conn, [row["id"]])[row["id"]]

    if not await ask.read(look):
        raise NotFound(f"Could not find project tag: {ask.path['tag'][:64]}.")


async def add_tag(ask: Ask) -> Reply:
    """Put a tag on a project."""
    TAG_SCHEMA.check(ask.path["tag"], 1)

    def work(conn: sa.Connection) -> None:
        row = _checked(ask, conn, "identity:update_project")
        tags = [*store.tags_of(conn, [row["id"]])[row["id"]], ask.path["tag"]]
        if len(set(tags)) > MOST_TAGS:
            raise InvalidInput("tag", ask.path["tag"], f"at most {MOST_TAGS} tags a project")
        store.put_tags(conn, row["id"], tags)

    await ask.write(work)
    tag = quote(ask.path["tag"], safe="")
    here = f"{ask.root}/v3/projects/{quote(ask.path['project_id'], safe='')}/tags/{tag}"
    return Reply(None, 201, {"Location": here})


async def delete_tag(ask: Ask) -> None:
    """Take a tag off a project."""
    def work(conn: sa.Connection) -> None:
        row = _checked(ask, conn, "identity:update_project")
        tags = store.tags_of(conn, [row["id"]])[row["id"]]
        if ask.path["tag"] not in tags:
            raise NotFound(f"Could not find project tag: {ask.path['tag'][:64]}.")
        store.put_tags(conn, row["id"], (one for one in tags if one != ask.path["tag"]))

    await ask.write(work)


TAG_SCHEMA = Schema((1, TAG))
_NEW_DOMAIN = Schema((1, closed("domain", _DOMAIN, ["name"])))
_OLD_DOMAIN = Schema((1, closed("domain", _DOMAIN)))
_NEW_PROJECT = Schema((1, closed("project", _PROJECT, ["name"])))
_OLD_PROJECT = Schema((1, closed("project", _PROJECT)))
_TAGS = Schema((1, {"type": "object", "required": ["tags"], "properties": {"tags": TAGS}}))
_D, _P = "/v3/domains/{domain_id}", "/v3/projects/{project_id}"

CALLS = [
    Call("POST", "/v3/domains", create_domain, "identity:create_domain", 201, _NEW_DOMAIN),
    Call("GET", "/v3/domains", list_domains, "identity:list_domains"),
    Call("GET", _D, get_domain, "identity:auth"),
    Call("PATCH", _D, update_domain, "identity:update_domain", 200, _OLD_DOMAIN),
    Call("DELETE", _D, delete_domain, "identity:delete_domain", 204),
    Call("POST", "/v3/projects", create_project, "identity:create_project", 201, _NEW_PROJECT),
    Call("GET", "/v3/projects", list_projects, "identity:list_projects"),
    Call("GET", _P, get_project, "identity:get_project"),
    Call("PATCH", _P, update_project, "identity:update_project", 200, _OLD_PROJECT),
    Call("DELETE", _P, delete_project, "identity:delete_project", 204),
    Call("GET", f"{_P}/tags", list_tags, "identity:get_project"),
    Call("PUT", f"{_P}/tags", put_tags, "identity:update_project", 200, _TAGS),
    Call("DELETE", f"{_P}/tags", delete_tags, "identity:update_project", 204),
    Call("GET", f"{_P}/tags/{{tag}}", has_tag, "identity:get_project", 204),
    Call("PUT", f"{_P}/tags/{{tag}}", add_tag, "identity:update_project", 201),
    Call("DELETE", f"{_P}/tags/{{tag}}", delete_tag, "identity:update_project", 204),
]
