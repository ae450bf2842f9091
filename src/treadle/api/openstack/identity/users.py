"""Users, their passwords, and groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.identity.common import (
    BOOL,
    ID,
    ID_OR_NULL,
    NAME,
    TEXT,
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
    when,
)
from treadle.api.openstack.identity.projects import show_projects
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import group_member, user_account, user_group
from treadle.errors import Forbidden, InvalidInput, Unauthorized
from treadle.identity import actions, store
from treadle.identity.bootstrap import DOMAIN_ID
from treadle.identity.grants import holds_admin, reach
from treadle.identity.model import Row
from treadle.identity.tokens import REFUSAL

OPTIONS = (
    "ignore_change_password_upon_first_use", "ignore_password_expiry",
    "ignore_lockout_failure_attempts", "lock_password", "ignore_user_inactivity",
    "multi_factor_auth_enabled", "multi_factor_auth_rules",
)
PASSWORD = {**TEXT, "maxLength": 4096}
_USER = {
    "name": NAME, "domain_id": ID, "enabled": BOOL, "default_project_id": ID_OR_NULL,
    "password": {**PASSWORD, "type": ["string", "null"]}, "options": {"type": "object"},
    "description": TEXT_OR_NULL, "email": TEXT_OR_NULL,
}
_COLUMNS = (*(name for name in _USER if name not in ("description", "email")),
            "original_password", "password_expires_at", "federated")
_GROUP = {"name": NAME, "domain_id": ID, "description": TEXT_OR_NULL}


def show_user(ask: Ask, row: Row, password: Row | None) -> Shown:
    """A user."""
    made = {
        **row["extra"], "id": row["id"], "name": row["name"], "domain_id": row["domain_id"],
        "enabled": row["enabled"], "options": row["options"],
        "password_expires_at": when(password["expires_at"]) if password else None,
        "links": link(ask, "users", row["id"]),
    }
    if row["default_project_id"] is not None:
        made["default_project_id"] = row["default_project_id"]
    return made


def _shown(ask: Ask, conn: sa.Connection, row: Row) -> Shown:
    return show_user(ask, row, store.password_of(conn, row["id"]))


def home_of(ask: Ask, body: Mapping[str, Any]) -> str:
    """The domain of something new: the one that is named, else the caller's."""
    caller = ask.caller
    home: str = (
        body.get("domain_id") or caller.domain_id or caller.project_domain_id or DOMAIN_ID
    )
    return home


def _values(body: Mapping[str, Any], before: Row | None = None) -> Row:
    made: Row = {
        "options": options_of(body, OPTIONS, before and before["options"]),
        "extra": extras(body, _COLUMNS, before and before["extra"]),
    }
    for name in ("name", "enabled", "default_project_id"):
        if name in body:
            made[name] = body[name]
    return made


def _target(row: Row | None) -> Row:
    return {"user_id": row["id"], "domain_id": row["domain_id"]} if row else {}


def checked_user(ask: Ask, conn: sa.Connection, rule: str) -> Row:
    """The user of the path, if the caller may. Errors: `Forbidden`, `NotFound`."""
    row = store.get(conn, user_account, ask.path["user_id"])
    ask.check(rule, _target(row))
    if row is None:
        raise store.missing("user", ask.path["user_id"])
    return row


def guard_admins(ask: Ask, conn: sa.Connection, id: str) -> None:
    """Errors: `Forbidden` where the administrator of a domain would touch one of the cloud."""
    if not ask.caller.is_admin and id != ask.caller.user_id and holds_admin(conn, [id]):
        raise Forbidden("The role admin and those who hold it are the cloud administrators' own.")


# -- passwords


def check_pattern(ask: Ask, password: str) -> None:
    """Errors: `InvalidInput` for a password that the settings do not take."""
    settings = ask.context.settings.identity
    if settings.password_pattern and not re.match(settings.password_pattern, password):
        rule = settings.password_rule or f"the pattern {settings.password_pattern}"
        raise InvalidInput("password", "(hidden)",
                           f"The password does not match the requirements: {rule}.")


def put_password(
    ask: Ask, conn: sa.Connection, user: Row, hashed: str, *, by_admin: bool
) -> None:
    """Give a user a password, to be changed at once where the settings want that."""
    settings = ask.context.settings.identity
    ends = None
    time = store.time(conn)
    if settings.password_days:
        ends = time + settings.password_days * actions.DAY_S
    if by_admin and settings.change_first_password and not user["options"].get(
        "ignore_change_password_upon_first_use"
    ):
        ends = time
    actions.set_password(
        conn, user["id"], hashed, expires_at=ends, kept=max(settings.password_history - 1, 0)
    )


async def change_password(ask: Ask) -> None:
    """Let a user who knows his password have another."""
    id, body = ask.path["user_id"], ask.body["user"]
    context, settings = ask.context, ask.context.settings.identity
    login, new, old = context.login, body["password"], body["original_password"]
    address = ask.request.client.host if ask.request.client else ""
    proof = await login.by_password({"id": id, "password": old}, address)
    check_pattern(ask, new)
    rules = settings.password_min_days, settings.password_history

    def look(conn: sa.Connection) -> tuple[Row, list[Row], float]:
        return (
            actions.get_user(conn, id), store.passwords_of(conn, id, max(rules[1], 1)),
            store.time(conn),
        )

    user, before, time = await ask.read(look)
    if user["options"].get("lock_password"):
        raise InvalidInput("password", "(hidden)", "this user's password may not be changed by "
                           "himself")
    if before and rules[0] and time < before[0]["created_at"] + rules[0] * actions.DAY_S:
        raise InvalidInput("password", "(hidden)",
                           f"it may be changed {rules[0]} days after the last change")
    for one in before if rules[1] else []:
        if await login.passwords.verify(new, one["hash"]):
            raise InvalidInput("password", "(hidden)", "The new password cannot be identical to a "
                               f"previous password: the last {rules[1]} are kept.")
    hashed = await login.passwords.hash(new)

    def work(conn: sa.Connection) -> None:
        newest = store.password_of(conn, id)
        if newest is None or newest["id"] != proof.password_id:
            raise Unauthorized(REFUSAL)
        put_password(ask, conn, actions.get_user(conn, id), hashed, by_admin=False)

    await change(ask, work)


# -- users


async def create_user(ask: Ask) -> Shown:
    """A new user."""
    body = ask.body["user"]
    values = {**_values(body), "domain_id": home_of(ask, body)}
    ask.check("identity:create_user", {"domain_id": values["domain_id"]})
    hashed = None
    if body.get("password") is not None:
        check_pattern(ask, body["password"])
        hashed = await ask.context.login.passwords.hash(body["password"])

    def work(conn: sa.Connection) -> Shown:
        made = actions.create_user(conn, values)
        if hashed is not None:
            put_password(ask, conn, made, hashed, by_admin=True)
        return _shown(ask, conn, made)

    # No token of the user can be there yet: nobody has to wait for controllers to forget it.
    return {"user": await ask.write(work)}


async def list_users(ask: Ask) -> Shown:
    """The users, of the caller's domain where it is a domain's administrator who asks."""
    limit = limit_of(ask)
    where = filters(ask, user_account, ("name", "enabled", "domain_id"))
    if ask.caller.domain_id is not None and not ask.caller.is_admin:
        where.append(user_account.c.domain_id == ask.caller.domain_id)
    return await _users(ask, where, limit, "users")


async def _users(
    ask: Ask, where: list[sa.ColumnElement[bool]], limit: int | None, path: str
) -> Shown:
    def look(conn: sa.Connection) -> tuple[list[Shown], str | None]:
        rows, more = page(store.select(
            conn, user_account, *where, marker=marker_of(ask), limit=limit and limit + 1
        ), limit)
        passwords = store.newest_passwords(conn, [one["id"] for one in rows])
        return [show_user(ask, one, passwords.get(one["id"])) for one in rows], more

    shown, more = await ask.read(look)
    return listing(ask, "users", shown, path, more=more)


async def get_user(ask: Ask) -> Shown:
    """One user."""
    return {"user": await ask.read(
        lambda conn: _shown(ask, conn, checked_user(ask, conn, "identity:get_user"))
    )}


async def update_user(ask: Ask) -> Shown:
    """Change a user."""
    body = ask.body["user"]
    hashed = None
    if body.get("password") is not None:
        await ask.read(lambda conn: checked_user(ask, conn, "identity:update_user"))
        check_pattern(ask, body["password"])
        hashed = await ask.context.login.passwords.hash(body["password"])

    def work(conn: sa.Connection) -> Shown:
        row = checked_user(ask, conn, "identity:update_user")
        guard_admins(ask, conn, row["id"])
        if body.get("domain_id", row["domain_id"]) != row["domain_id"]:
            raise InvalidInput("domain_id", body["domain_id"], "it cannot be changed")
        made = actions.update_user(conn, row["id"], _values(body, row))
        if hashed is not None:
            put_password(ask, conn, made, hashed, by_admin=row["id"] != ask.caller.user_id)
        return _shown(ask, conn, made)

    return {"user": await change(ask, work)}


async def delete_user(ask: Ask) -> None:
    """Remove a user."""
    def work(conn: sa.Connection) -> None:
        row = checked_user(ask, conn, "identity:delete_user")
        guard_admins(ask, conn, row["id"])
        actions.delete_user(conn, row["id"])

    await change(ask, work)


async def user_groups(ask: Ask) -> Shown:
    """The groups that a user is in."""
    def look(conn: sa.Connection) -> list[Row]:
        row = checked_user(ask, conn, "identity:get_user")
        mine = store.groups_of(conn, row["id"])
        return store.select(
            conn, user_group, user_group.c.id.in_(mine), *filters(ask, user_group, ("name",))
        )

    rows = await ask.read(look)
    path = f"users/{ask.path['user_id']}/groups"
    return listing(ask, "groups", [show_group(ask, one) for one in rows], path)


async def user_projects(ask: Ask) -> Shown:
    """The projects in which a user has a role."""
    def look(conn: sa.Connection) -> list[Shown]:
        row = checked_user(ask, conn, "identity:get_user")
        return show_projects(ask, conn, reach(conn, row["id"]).projects)

    path = f"users/{ask.path['user_id']}/projects"
    return listing(ask, "projects", await ask.read(look), path)


# -- groups


def show_group(ask: Ask, row: Row) -> Shown:
    """A group."""
    return {
        **row["extra"], "id": row["id"], "name": row["name"], "domain_id": row["domain_id"],
        "description": row["description"], "links": link(ask, "groups", row["id"]),
    }


def _group_values(body: Mapping[str, Any], before: Row | None = None) -> Row:
    made: Row = {"extra": extras(body, _GROUP, before and before["extra"])}
    if "name" in body:
        made["name"] = body["name"]
    if "description" in body:
        made["description"] = body["description"] or ""
    return made


def checked_group(ask: Ask, conn: sa.Connection, rule: str) -> Row:
    """The group of the path, if the caller may. Errors: `Forbidden`, `NotFound`."""
    row = store.get(conn, user_group, ask.path["group_id"])
    ask.check(rule, {"domain_id": row["domain_id"]} if row else {})
    if row is None:
        raise store.missing("group", ask.path["group_id"])
    return row


async def create_group(ask: Ask) -> Shown:
    """A new group."""
    body = ask.body["group"]
    values = {**_group_values(body), "domain_id": home_of(ask, body)}
    ask.check("identity:create_group", {"domain_id": values["domain_id"]})
    made = await ask.write(lambda conn: actions.create_group(conn, values))
    return {"group": show_group(ask, made)}


async def list_groups(ask: Ask) -> Shown:
    """The groups, of the caller's domain where it is a domain's administrator who asks."""
    limit = limit_of(ask)
    where = filters(ask, user_group, ("name", "domain_id"))
    if ask.caller.domain_id is not None and not ask.caller.is_admin:
        where.append(user_group.c.domain_id == ask.caller.domain_id)
    rows, more = page(await ask.read(lambda conn: store.select(
        conn, user_group, *where, marker=marker_of(ask), limit=limit and limit + 1
    )), limit)
    return listing(ask, "groups", [show_group(ask, one) for one in rows], "groups", more=more)


async def get_group(ask: Ask) -> Shown:
    """One group."""
    row = await ask.read(lambda conn: checked_group(ask, conn, "identity:get_group"))
    return {"group": show_group(ask, row)}


async def update_group(ask: Ask) -> Shown:
    """Change a group."""
    body = ask.body["group"]

    def work(conn: sa.Connection) -> Row:
        row = checked_group(ask, conn, "identity:update_group")
        if body.get("domain_id", row["domain_id"]) != row["domain_id"]:
            raise InvalidInput("domain_id", body["domain_id"], "it cannot be changed")
        return actions.update_group(conn, row["id"], _group_values(body, row))

    return {"group": show_group(ask, await change(ask, work))}


async def delete_group(ask: Ask) -> None:
    """Remove a group."""
    def work(conn: sa.Connection) -> None:
        row = checked_group(ask, conn, "identity:delete_group")
        guard_admins(ask, conn, row["id"])
        actions.delete_group(conn, row["id"])

    await change(ask, work)


async def group_users(ask: Ask) -> Shown:
    """The users in a group."""
    row = await ask.read(lambda conn: checked_group(ask, conn, "identity:get_group"))
    inside = sa.select(group_member.c.user_id).where(group_member.c.group_id == row["id"])
    where = [user_account.c.id.in_(inside), *filters(ask, user_account, ("name", "enabled"))]
    return await _users(ask, where, limit_of(ask), f"groups/{row['id']}/users")


def _member(ask: Ask, conn: sa.Connection, rule: str) -> tuple[str, str]:
    """Group and user of the path: both must be the caller's to name."""
    group = checked_group(ask, conn, rule)
    user = store.get(conn, user_account, ask.path["user_id"])
    if user is not None:
        ask.check(rule, {"domain_id": user["domain_id"]})
    return group["id"], ask.path["user_id"]


async def join(ask: Ask) -> None:
    """Put a user into a group."""
    def work(conn: sa.Connection) -> None:
        group_id, user_id = _member(ask, conn, "identity:update_group")
        guard_admins(ask, conn, group_id)
        actions.join(conn, group_id, user_id)

    await change(ask, work)


async def has_member(ask: Ask) -> None:
    """Whether a user is in a group."""
    def look(conn: sa.Connection) -> bool:
        group_id, user_id = _member(ask, conn, "identity:get_group")
        return actions.is_member(conn, group_id, user_id)

    if not await ask.read(look):
        raise store.missing("user in that group", ask.path["user_id"])


async def leave(ask: Ask) -> None:
    """Take a user out of a group."""
    def work(conn: sa.Connection) -> None:
        group_id, user_id = _member(ask, conn, "identity:update_group")
        guard_admins(ask, conn, group_id)
        actions.leave(conn, group_id, user_id)

    await change(ask, work)


_NEW_USER = Schema((1, closed("user", _USER, ["name"])))
_OLD_USER = Schema((1, closed("user", _USER)))
_PASSWORDS = Schema((1, closed(
    "user", {"password": PASSWORD, "original_password": PASSWORD},
    ["password", "original_password"],
)))
_NEW_GROUP = Schema((1, closed("group", _GROUP, ["name"])))
_OLD_GROUP = Schema((1, closed("group", _GROUP)))
_U, _G = "/v3/users/{user_id}", "/v3/groups/{group_id}"

CALLS = [
    Call("POST", "/v3/users", create_user, "identity:create_user", 201, _NEW_USER),
    Call("GET", "/v3/users", list_users, "identity:list_users"),
    Call("GET", _U, get_user, "identity:get_user"),
    Call("PATCH", _U, update_user, "identity:update_user", 200, _OLD_USER),
    Call("DELETE", _U, delete_user, "identity:delete_user", 204),
    Call("POST", f"{_U}/password", change_password, "", 204, _PASSWORDS),
    Call("GET", f"{_U}/groups", user_groups, "identity:get_user"),
    Call("GET", f"{_U}/projects", user_projects, "identity:get_user"),
    Call("POST", "/v3/groups", create_group, "identity:create_group", 201, _NEW_GROUP),
    Call("GET", "/v3/groups", list_groups, "identity:list_groups"),
    Call("GET", _G, get_group, "identity:get_group"),
    Call("PATCH", _G, update_group, "identity:update_group", 200, _OLD_GROUP),
    Call("DELETE", _G, delete_group, "identity:delete_group", 204),
    Call("GET", f"{_G}/users", group_users, "identity:get_group"),
    Call("PUT", f"{_G}/users/{{user_id}}", join, "identity:update_group", 204),
    Call("GET", f"{_G}/users/{{user_id}}", has_member, "identity:get_group", 204),
    Call("DELETE", f"{_G}/users/{{user_id}}", leave, "identity:update_group", 204),
]
