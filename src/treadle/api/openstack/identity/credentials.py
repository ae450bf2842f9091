"""Credentials: secrets of users for other ways in, such as keys of EC2 or seeds of TOTP.

They are kept, sealed at rest, for whoever has use for them; this cloud's own log-in takes none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from treadle.api.openstack.identity.app_credentials import unrestricted
from treadle.api.openstack.identity.common import (
    ID,
    ID_OR_NULL,
    NAME,
    TEXT,
    Shown,
    closed,
    extras,
    filters,
    limit_of,
    link,
    listing,
    marker_of,
    page,
)
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import credential
from treadle.errors import Conflict, Forbidden, InvalidInput, NotFound
from treadle.identity import actions, store
from treadle.identity.model import Row

EC2 = "ec2"
BLOB_MAX = 65535
_COLUMNS = ("user_id", "project_id", "type", "blob")
_READ, _WRITE = "identity:get_credential", "identity:change_credential"
_VALUES = {
    "user_id": ID, "project_id": ID_OR_NULL, "type": NAME,
    "blob": {**TEXT, "maxLength": BLOB_MAX},
}


def _shown(ask: Ask, row: Row) -> Shown:
    return {
        **row["extra"], "id": row["id"], "user_id": row["user_id"],
        "project_id": row["project_id"], "type": row["type"],
        "blob": ask.context.vault.open(row["blob"]), "links": link(ask, "credentials", row["id"]),
    }


def _found(ask: Ask, conn: sa.Connection, rule: str) -> Row:
    """The credential of the path, where the caller may; else it is not there."""
    found = store.get(conn, credential, ask.path["id"])
    if found is None or not ask.allows(rule, {"user_id": found["user_id"]}):
        raise store.missing("credential", ask.path["id"])
    return found


def _access(blob: str) -> str:
    """The access key of an EC2 credential. Errors: `InvalidInput`."""
    try:
        found = msgspec.json.decode(blob)["access"]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError) as error:
        raise InvalidInput("blob", "(hidden)", "a JSON object with the keys access and secret is "
                           "wanted") from error
    if not isinstance(found, str):
        raise InvalidInput("blob", "(hidden)", "access must be a text")
    return found


async def create(ask: Ask) -> Shown:
    """A new credential of the caller's own; an administrator's may be another user's."""
    body: Mapping[str, Any] = ask.body["credential"]
    unrestricted(ask)
    kind, project = body["type"], body.get("project_id")
    if kind == EC2 and project is None:
        raise InvalidInput("project_id", project, "a credential of the type ec2 needs a project")
    id = hashlib.sha256(_access(body["blob"]).encode()).hexdigest() if kind == EC2 else uuid4().hex
    user = body.get("user_id") or ask.caller.user_id
    if not ask.allows(_WRITE, {"user_id": user}):
        raise Forbidden("Credentials are made by their users alone.")
    if not ask.caller.is_admin and project not in (None, ask.caller.project_id):
        raise InvalidInput("project_id", project, "use the project of your token")

    def work(conn: sa.Connection) -> Row:
        try:
            actions.get_user(conn, user)
            if project is not None:
                actions.get_project(conn, project)
        except NotFound as error:
            raise InvalidInput("credential", user, str(error)) from error
        if store.get(conn, credential, id) is not None:
            raise Conflict("There is a credential with this access key already.")
        store.insert(conn, credential, {
            "id": id, "user_id": user, "project_id": project, "type": kind,
            "blob": ask.context.vault.seal(conn, body["blob"]), "extra": extras(body, _COLUMNS),
        })
        made = store.get(conn, credential, id)
        assert made is not None
        return made

    return {"credential": _shown(ask, await ask.write(work))}


async def listed(ask: Ask) -> Shown:
    """The caller's credentials; for who may see all, all of them."""
    where = filters(ask, credential, ("user_id", "type"))
    if not ask.allows(_READ, {"user_id": None}):
        where.append(credential.c.user_id == ask.caller.user_id)
    limit, marker = limit_of(ask), marker_of(ask)
    rows = await ask.read(lambda conn: store.select(
        conn, credential, *where, marker=marker, limit=None if limit is None else limit + 1,
    ))
    shown, more = page(rows, limit)
    return listing(
        ask, "credentials", [_shown(ask, one) for one in shown], "credentials", more=more
    )


async def show(ask: Ask) -> Shown:
    """One credential."""
    found = await ask.read(lambda conn: _found(ask, conn, _READ))
    return {"credential": _shown(ask, found)}


async def update(ask: Ask) -> Shown:
    """Another secret in the same credential: whose it is and what for, stays."""
    body: Mapping[str, Any] = ask.body["credential"]
    unrestricted(ask)

    def work(conn: sa.Connection) -> Row:
        found = _found(ask, conn, _WRITE)
        for name in ("id", "user_id", "project_id", "type"):
            if name in body and body[name] != found[name]:
                raise InvalidInput(name, body[name], "it cannot be changed: make a new credential")
        values: Row = {"extra": extras(body, _COLUMNS, found["extra"])}
        if "blob" in body:
            if found["type"] == EC2:
                _access(body["blob"])
            values["blob"] = ask.context.vault.seal(conn, body["blob"])
        store.update(conn, credential, found["id"], values)
        return {**found, **values}

    return {"credential": _shown(ask, await ask.write(work))}


async def delete(ask: Ask) -> None:
    """Remove a credential."""
    unrestricted(ask)

    def work(conn: sa.Connection) -> None:
        store.remove(conn, credential, credential.c.id == _found(ask, conn, _WRITE)["id"])

    await ask.write(work)


_NEW = Schema((1, closed("credential", _VALUES, ["type", "blob"])))
_CHANGED = Schema((1, closed("credential", {**_VALUES, "id": TEXT})))
CALLS = [
    Call("POST", "/v3/credentials", create, _WRITE, 201, _NEW),
    Call("GET", "/v3/credentials", listed, _READ),
    Call("GET", "/v3/credentials/{id}", show, _READ),
    Call("PATCH", "/v3/credentials/{id}", update, _WRITE, 200, _CHANGED),
    Call("DELETE", "/v3/credentials/{id}", delete, _WRITE, 204),
]
