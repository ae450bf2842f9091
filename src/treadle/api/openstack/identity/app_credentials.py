"""Application credentials: passwords for programs, good for one project and some roles."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.api.openstack.identity.common import (
    BOOL,
    NAME,
    TEXT,
    TEXT_OR_NULL,
    Shown,
    change,
    closed,
    filters,
    link,
    listing,
)
from treadle.api.openstack.identity.users import PASSWORD, checked_user
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import access_rule, app_credential, role, token
from treadle.errors import Forbidden, InvalidInput
from treadle.identity import grants, store
from treadle.identity.model import Row

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ROLE = {
    "type": "object", "properties": {"id": TEXT, "name": TEXT},
    "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
}
_RULE = {
    "type": "object", "properties": {
        "id": TEXT, "service": {**TEXT, "maxLength": 255}, "method": {"enum": list(METHODS)},
        "path": {**TEXT, "maxLength": 1024, "pattern": "^/[^\\x00]*$"},
    },
    "anyOf": [{"required": ["id"]}, {"required": ["service", "method", "path"]}],
}
_CREDENTIAL = {
    "name": NAME, "description": TEXT_OR_NULL, "secret": {**PASSWORD, "type": ["string", "null"]},
    "expires_at": TEXT_OR_NULL, "unrestricted": {**BOOL, "type": ["boolean", "null"]},
    "roles": {"type": "array", "items": _ROLE, "maxItems": 100},
    "access_rules": {"type": "array", "items": _RULE, "maxItems": 100},
}
_READ, _WRITE = "identity:list_app_credentials", "identity:change_app_credentials"


def moment(text: str | None) -> float | None:
    """Seconds since 1970 of a time in ISO 8601, UTC where it does not say. Errors: `InvalidInput`.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput("expires_at", text, "write it as 2030-01-31T00:00:00.000000") from error


def _shown(ask: Ask, conn: sa.Connection, row: Row) -> Shown:
    ends = row["expires_at"]
    roles = store.rows_of(conn, role, row["roles"])
    made: Shown = {
        "id": row["id"], "name": row["name"], "description": row["description"],
        "project_id": row["project_id"], "user_id": row["user_id"],
        "unrestricted": row["unrestricted"], "system": None,
        "expires_at": None if ends is None else
        datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f"),
        "roles": [
            {"id": one["id"], "name": one["name"], "domain_id": one["domain_id"] or None}
            for one in roles.values()
        ],
        "links": link(ask, "users", row["user_id"], "application_credentials", row["id"]),
    }
    if row["access_rules"] is not None:
        rules = store.rows_of(conn, access_rule, row["access_rules"])
        made["access_rules"] = [_shown_rule(one) for one in rules.values()]
    return made


def _shown_rule(row: Row) -> Shown:
    return {name: row[name] for name in ("id", "service", "method", "path")}


def unrestricted(ask: Ask) -> None:
    """Errors: `Forbidden` where a program would give itself more than it has."""
    if ask.caller.restricted:
        raise Forbidden(
            "An application credential that is not unrestricted may not make or remove others."
        )


def _roles(ask: Ask, conn: sa.Connection, wanted: Iterable[dict[str, Any]] | None) -> list[str]:
    if wanted is None:
        held = store.select(conn, role, role.c.name.in_(ask.caller.roles), role.c.domain_id == "")
        return [one["id"] for one in held]
    ids = []
    for one in wanted:
        found = grants.get_role(conn, one["id"]) if "id" in one else store.named(
            conn, role, one["name"], ""
        )
        if found is None:
            raise store.missing("role", one["name"])
        ids.append(found["id"])
    return ids


def _rules(conn: sa.Connection, user_id: str, wanted: list[dict[str, Any]] | None) -> Any:
    """Ids of the access rules, those that are not there yet made."""
    if wanted is None:
        return None
    ids = []
    known = store.select(conn, access_rule, access_rule.c.user_id == user_id)
    for one in wanted:
        same = [
            row for row in known
            if (row["id"] == one["id"] if "id" in one else all(
                row[name] == one[name] for name in ("service", "method", "path")
            ))
        ]
        if not same and "id" in one:
            raise store.missing("access rule", one["id"])
        if not same:
            same = [{
                "id": uuid4().hex, "user_id": user_id,
                **{name: one[name] for name in ("service", "method", "path")},
            }]
            store.insert(conn, access_rule, same[0])
            known += same
        ids.append(same[0]["id"])
    return ids


async def create(ask: Ask) -> Shown:
    """A new application credential for the project of the token; the secret is shown once."""
    body, caller = ask.body["application_credential"], ask.caller
    if caller.user_id != ask.path["user_id"]:
        raise Forbidden("Application credentials are made by their users alone.")
    if caller.project_id is None:
        raise InvalidInput("token", "(without a project)", "use a token of a project")
    unrestricted(ask)
    secret = body.get("secret") or secrets.token_urlsafe(64)
    hashed = await ask.context.login.passwords.hash(secret)
    ends = moment(body.get("expires_at"))

    def work(conn: sa.Connection) -> Shown:
        made = grants.create_credential(conn, {
            "user_id": caller.user_id, "project_id": caller.project_id, "name": body["name"],
            "description": body.get("description"), "hash": hashed,
            "unrestricted": bool(body.get("unrestricted")), "expires_at": ends,
            "roles": _roles(ask, conn, body.get("roles")),
            "access_rules": _rules(conn, caller.user_id, body.get("access_rules")),
        })
        return _shown(ask, conn, made)

    return {"application_credential": {**await ask.write(work), "secret": secret}}


async def listed(ask: Ask) -> Shown:
    """The application credentials of a user."""
    def look(conn: sa.Connection) -> list[Shown]:
        user = checked_user(ask, conn, _READ)
        return [_shown(ask, conn, one) for one in store.select(
            conn, app_credential, app_credential.c.user_id == user["id"],
            *filters(ask, app_credential, ("name",)),
        )]

    path = f"users/{ask.path['user_id']}/application_credentials"
    return listing(ask, "application_credentials", await ask.read(look), path)


def _found(ask: Ask, conn: sa.Connection, rule: str, table: sa.Table, kind: str) -> Row:
    user = checked_user(ask, conn, rule)
    found = store.get(conn, table, ask.path["id"])
    if found is None or found["user_id"] != user["id"]:
        raise store.missing(kind, ask.path["id"])
    return found


async def show(ask: Ask) -> Shown:
    """One application credential, without its secret."""
    return {"application_credential": await ask.read(lambda conn: _shown(
        ask, conn, _found(ask, conn, _READ, app_credential, "application credential")
    ))}


async def delete(ask: Ask) -> None:
    """Remove an application credential; its tokens end."""
    unrestricted(ask)

    def work(conn: sa.Connection) -> None:
        found = _found(ask, conn, _WRITE, app_credential, "application credential")
        conn.execute(sa.delete(app_credential).where(app_credential.c.id == found["id"]))
        store.kill(conn, token.c.app_credential_id == found["id"])

    await change(ask, work)


# -- access rules


async def list_rules(ask: Ask) -> Shown:
    """The access rules that a user has made."""
    def look(conn: sa.Connection) -> list[Shown]:
        user = checked_user(ask, conn, _READ)
        return [_shown_rule(one) for one in store.select(
            conn, access_rule, access_rule.c.user_id == user["id"],
            *filters(ask, access_rule, ("service", "method", "path")),
        )]

    return listing(
        ask, "access_rules", await ask.read(look), f"users/{ask.path['user_id']}/access_rules"
    )


async def show_rule(ask: Ask) -> Shown:
    """One access rule."""
    return {"access_rule": _shown_rule(await ask.read(
        lambda conn: _found(ask, conn, _READ, access_rule, "access rule")
    ))}


async def delete_rule(ask: Ask) -> None:
    """Remove an access rule that no application credential uses."""
    unrestricted(ask)

    def work(conn: sa.Connection) -> None:
        found = _found(ask, conn, _WRITE, access_rule, "access rule")
        mine = app_credential.c.user_id == found["user_id"]
        if any(found["id"] in (one["access_rules"] or ())
               for one in store.select(conn, app_credential, mine)):
            raise Forbidden("An application credential uses this access rule.")
        conn.execute(sa.delete(access_rule).where(access_rule.c.id == found["id"]))

    await ask.write(work)


_NEW = Schema((1, closed("application_credential", _CREDENTIAL, ["name"])))
_A, _L = "/v3/users/{user_id}/application_credentials", "/v3/users/{user_id}/access_rules"

CALLS = [
    Call("POST", _A, create, _WRITE, 201, _NEW),
    Call("GET", _A, listed, _READ),
    Call("GET", f"{_A}/{{id}}", show, _READ),
    Call("DELETE", f"{_A}/{{id}}", delete, _WRITE, 204),
    Call("GET", _L, list_rules, _READ),
    Call("GET", f"{_L}/{{id}}", show_rule, _READ),
    Call("DELETE", f"{_L}/{{id}}", delete_rule, _WRITE, 204),
]
