"""What can be asked of domains, projects, users and groups: each verifies and writes.

Every function takes an open connection and runs in one transaction. What is disabled or removed
takes its tokens along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.db.schema import (
    access_rule,
    app_credential,
    credential,
    group_member,
    project,
    project_tag,
    role,
    role_assignment,
    role_implied,
    token,
    user_account,
    user_group,
    user_password,
)
from treadle.errors import Conflict, Forbidden, InvalidInput, NotFound
from treadle.identity import grants, store
from treadle.identity.bootstrap import DOMAIN_ID
from treadle.identity.model import Row

DEEPEST = 5
DAY_S = 86400.0


def _taken(kind: str, name: str, domain_id: str) -> Conflict:
    where = f" at domain ID {domain_id}" if domain_id else ""
    return Conflict(
        f"Conflict occurred attempting to store {kind} - Duplicate entry found with name "
        f"{name}{where}."
    )


def _free(
    conn: sa.Connection, table: sa.Table, kind: str, name: str, domain_id: str, own: str = ""
) -> None:
    other = store.named(conn, table, name, domain_id)
    if other is not None and other["id"] != own:
        raise _taken(kind, name, domain_id)


def _renamed(
    conn: sa.Connection, table: sa.Table, kind: str, known: Row, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The values, with what a new name brings along. Errors: `Conflict`."""
    made = dict(values)
    if "name" in made:
        _free(conn, table, kind, made["name"], known["domain_id"], known["id"])
        made["name_key"] = made["name"].casefold()
        store.changed(conn)
    return made


def _mutable(known: Row, kind: str, values: Mapping[str, Any] | None = None) -> None:
    """Errors: `Forbidden` where it is immutable, and is not being made mutable."""
    if known["options"].get("immutable"):
        options = (values or {}).get("options") or {}
        if options.get("immutable", True) is not False:
            raise Forbidden(f"Cannot change or delete the {kind} {known['id']}: it is immutable.")


# -- domains and projects: a domain is a project that is in none


def get_project(conn: sa.Connection, id: str) -> Row:
    """A project, or a domain. Errors: `NotFound`."""
    return store.require(conn, project, id, "project")


def get_domain(conn: sa.Connection, id: str) -> Row:
    """A domain. Errors: `NotFound`."""
    found = store.get(conn, project, id)
    if found is None or not found["is_domain"]:
        raise store.missing("domain", id)
    return found


def create_domain(conn: sa.Connection, values: Mapping[str, Any], tags: list[str]) -> Row:
    """A new domain. Errors: `Conflict`."""
    _free(conn, project, "domain", values["name"], "")
    id = values.get("id") or uuid4().hex
    if store.get(conn, project, id) is not None:
        raise Conflict(f"Conflict occurred attempting to store domain - {id} is in use.")
    store.insert(conn, project, {
        **values, "id": id, "name_key": values["name"].casefold(), "domain_id": "",
        "parent_id": "", "is_domain": True,
    })
    store.put_tags(conn, id, tags)
    return get_domain(conn, id)


def create_project(conn: sa.Connection, values: Mapping[str, Any], tags: list[str]) -> Row:
    """A new project; `domain_id` or `parent_id` may be "". Errors: `Conflict`, `NotFound`,
    `InvalidInput`, `Forbidden`."""
    domain_id, parent_id = values["domain_id"], values["parent_id"]
    if parent_id:
        parent = get_project(conn, parent_id)
        home = parent["id"] if parent["is_domain"] else parent["domain_id"]
        if domain_id and domain_id != home:
            raise InvalidInput("domain_id", domain_id, "it must be the domain of the parent")
        domain_id = home
        if not parent["enabled"]:
            raise Forbidden(f"Cannot create a project below {parent_id}, which is disabled.")
        if len(store.ancestors(conn, parent)) + 1 > DEEPEST:
            raise Forbidden(f"Projects may be nested {DEEPEST} deep at most.")
    domain = get_domain(conn, domain_id)
    if not domain["enabled"]:
        raise Forbidden(f"Cannot create a project in the domain {domain_id}, which is disabled.")
    _free(conn, project, "project", values["name"], domain_id)
    id = uuid4().hex
    store.insert(conn, project, {
        **values, "id": id, "name_key": values["name"].casefold(), "domain_id": domain_id,
        "parent_id": parent_id or domain_id, "is_domain": False,
    })
    store.put_tags(conn, id, tags)
    return get_project(conn, id)


def update_project(
    conn: sa.Connection, id: str, values: Mapping[str, Any], tags: list[str] | None, kind: str
) -> Row:
    """Change a project or domain (`kind`). Errors: `NotFound`, `Conflict`, `Forbidden`."""
    known = get_domain(conn, id) if kind == "domain" else get_project(conn, id)
    _mutable(known, kind, values)
    made = _renamed(conn, project, kind, known, values)
    if made.get("enabled") is False and known["enabled"]:
        if known["is_domain"]:
            if id == DOMAIN_ID:
                raise Forbidden("Cannot disable the default domain.")
            _end_domain(conn, id)
        else:
            if any(one["enabled"] for one in grants.projects_below(conn, "project", id)):
                raise Forbidden(f"Cannot disable project {id}: one below it is enabled.")
            store.kill(conn, token.c.scope_id == id)
    elif made.get("enabled") and not known["enabled"] and not known["is_domain"]:
        above = store.ancestors(conn, known)
        if any(not one["enabled"] for one in above):
            raise Forbidden(f"Cannot enable project {id}: one above it is disabled.")
    store.update(conn, project, id, made)
    if tags is not None:
        store.put_tags(conn, id, tags)
    return get_project(conn, id)


def delete_project(conn: sa.Connection, id: str) -> None:
    """Remove a project. Errors: `NotFound`, `Forbidden` while others are below it."""
    known = get_project(conn, id)
    _mutable(known, "project")
    if known["is_domain"]:
        return delete_domain(conn, id)
    if grants.projects_below(conn, "project", id):
        raise Forbidden(f"Cannot delete project {id}: there are others below it.")
    _drop_projects(conn, [id])
    return None


def _drop_projects(conn: sa.Connection, ids: list[str]) -> None:
    grants.forget(conn, ids)
    store.kill(conn, token.c.scope_id.in_(ids))
    for table in (app_credential, credential):
        store.remove(conn, table, table.c.project_id.in_(ids))
    store.remove(conn, project_tag, project_tag.c.project_id.in_(ids))
    store.forget_default_projects(conn, ids)
    store.remove(conn, project, project.c.id.in_(ids))


def delete_domain(conn: sa.Connection, id: str) -> None:
    """Remove a domain with all that is in it. Errors: `NotFound`, `Forbidden` while enabled."""
    known = get_domain(conn, id)
    _mutable(known, "domain")
    if known["enabled"]:
        raise Forbidden("Cannot delete a domain that is enabled, please disable it first.")
    for one in store.select(conn, user_account, user_account.c.domain_id == id):
        _drop_user(conn, one["id"])
    for one in store.select(conn, user_group, user_group.c.domain_id == id):
        _drop_group(conn, one["id"])
    own = sa.select(role.c.id).where(role.c.domain_id == id)
    store.remove(conn, role_implied, sa.or_(
        role_implied.c.prior_id.in_(own), role_implied.c.implied_id.in_(own)
    ))
    store.remove(conn, role_assignment, role_assignment.c.role_id.in_(own))
    store.remove(conn, role, role.c.domain_id == id)
    inside = [one["id"] for one in grants.projects_below(conn, "domain", id)]
    _drop_projects(conn, [*inside, id])


def _end_domain(conn: sa.Connection, id: str) -> None:
    """End the tokens of a domain: for it, for its projects, of its users."""
    projects = sa.select(project.c.id).where(project.c.domain_id == id)
    users = sa.select(user_account.c.id).where(user_account.c.domain_id == id)
    store.kill(conn, sa.or_(
        token.c.scope_id == id, token.c.scope_id.in_(projects), token.c.user_id.in_(users)
    ))


# -- users


def get_user(conn: sa.Connection, id: str) -> Row:
    """A user. Errors: `NotFound`."""
    return store.require(conn, user_account, id, "user")


def _check_default_project(conn: sa.Connection, id: str | None) -> None:
    found = store.get(conn, project, id) if id else None
    if found is not None and found["is_domain"]:
        raise InvalidInput("default_project_id", id, "it is a domain")


def create_user(conn: sa.Connection, values: Mapping[str, Any]) -> Row:
    """A new user, without a password. Errors: `Conflict`, `NotFound`, `InvalidInput`."""
    domain = get_domain(conn, values["domain_id"])
    if not domain["enabled"]:
        raise Forbidden(f"Cannot create a user in the domain {domain['id']}, which is disabled.")
    _free(conn, user_account, "user", values["name"], values["domain_id"])
    _check_default_project(conn, values.get("default_project_id"))
    id = uuid4().hex
    store.insert(conn, user_account, {
        **values, "id": id, "name_key": values["name"].casefold(),
    })
    return get_user(conn, id)


def update_user(conn: sa.Connection, id: str, values: Mapping[str, Any]) -> Row:
    """Change a user. Errors: `NotFound`, `Conflict`, `InvalidInput`."""
    known = get_user(conn, id)
    made = _renamed(conn, user_account, "user", known, values)
    _check_default_project(conn, made.get("default_project_id"))
    if made.get("enabled") is False and known["enabled"]:
        store.kill(conn, token.c.user_id == id)
    if made.get("enabled") and not known["enabled"]:
        made |= {"failures": 0, "failed_at": None}
    store.update(conn, user_account, id, made)
    return get_user(conn, id)


def set_password(
    conn: sa.Connection, user_id: str, hash: str, *, expires_at: float | None, kept: int
) -> None:
    """Give a user a password; his tokens end."""
    store.put_password(conn, user_id, hash, expires_at, kept)
    store.update(conn, user_account, user_id, {"failures": 0, "failed_at": None})
    store.kill(conn, token.c.user_id == user_id)


def delete_user(conn: sa.Connection, id: str) -> None:
    """Remove a user and what is his. Errors: `NotFound`."""
    get_user(conn, id)
    _drop_user(conn, id)


def _drop_user(conn: sa.Connection, id: str) -> None:
    grants.forget(conn, [id])
    store.kill(conn, token.c.user_id == id)
    for table in (app_credential, credential, access_rule, group_member, user_password):
        store.remove(conn, table, table.c.user_id == id)
    store.remove(conn, user_account, user_account.c.id == id)


# -- groups


def get_group(conn: sa.Connection, id: str) -> Row:
    """A group. Errors: `NotFound`."""
    return store.require(conn, user_group, id, "group")


def create_group(conn: sa.Connection, values: Mapping[str, Any]) -> Row:
    """A new group. Errors: `Conflict`, `NotFound`."""
    get_domain(conn, values["domain_id"])
    _free(conn, user_group, "group", values["name"], values["domain_id"])
    id = uuid4().hex
    store.insert(conn, user_group, {
        **values, "id": id, "name_key": values["name"].casefold(),
    })
    return get_group(conn, id)


def update_group(conn: sa.Connection, id: str, values: Mapping[str, Any]) -> Row:
    """Change a group. Errors: `NotFound`, `Conflict`."""
    known = get_group(conn, id)
    store.update(conn, user_group, id, _renamed(conn, user_group, "group", known, values))
    return get_group(conn, id)


def delete_group(conn: sa.Connection, id: str) -> None:
    """Remove a group; its members stay. Errors: `NotFound`."""
    get_group(conn, id)
    _drop_group(conn, id)


def _drop_group(conn: sa.Connection, id: str) -> None:
    grants.forget(conn, [id])
    store.remove(conn, group_member, group_member.c.group_id == id)
    store.remove(conn, user_group, user_group.c.id == id)
    store.changed(conn)


def is_member(conn: sa.Connection, group_id: str, user_id: str) -> bool:
    """Whether a user is in a group."""
    return store.exists(
        conn, group_member, group_member.c.group_id == group_id, group_member.c.user_id == user_id
    )


def join(conn: sa.Connection, group_id: str, user_id: str) -> None:
    """Put a user into a group; one who is in it already is success. Errors: `NotFound`."""
    get_group(conn, group_id)
    get_user(conn, user_id)
    if not is_member(conn, group_id, user_id):
        store.insert(conn, group_member, {"group_id": group_id, "user_id": user_id})
        store.changed(conn)


def leave(conn: sa.Connection, group_id: str, user_id: str) -> None:
    """Take a user out of a group. Errors: `NotFound`."""
    get_group(conn, group_id)
    get_user(conn, user_id)
    gone = store.remove(
        conn, group_member,
        group_member.c.group_id == group_id, group_member.c.user_id == user_id,
    )
    if not gone:
        raise NotFound(f"Could not find user {user_id[:64]} in group {group_id[:64]}.")
    store.changed(conn)
