"""Keys of EC2 as OpenStack's clients ask for them: credentials of the type `ec2`, made here."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from treadle.api.openstack.identity.app_credentials import unrestricted
from treadle.api.openstack.identity.common import ID, Shown, link, listing
from treadle.api.openstack.identity.credentials import EC2
from treadle.api.openstack.identity.users import checked_user
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import credential
from treadle.errors import InvalidInput, NotFound
from treadle.identity import actions, store
from treadle.identity.model import Row

_READ, _WRITE = "identity:get_credential", "identity:change_credential"


def _shown(ask: Ask, row: Row) -> Shown:
    keys: dict[str, Any] = msgspec.json.decode(ask.context.vault.open(row["blob"]))
    secret = keys.get("secret")
    return {
        "access": keys["access"], "secret": secret if isinstance(secret, str) else None,
        "user_id": row["user_id"], "tenant_id": row["project_id"], "trust_id": None,
        "links": link(ask, "users", row["user_id"], "credentials", "OS-EC2", keys["access"]),
    }


def _id(access: str) -> str:
    return hashlib.sha256(access.encode()).hexdigest()


async def create(ask: Ask) -> Shown:
    """A new pair of keys for a project of the user's."""
    unrestricted(ask)
    project = ask.body["tenant_id"]
    if not ask.caller.is_admin and project != ask.caller.project_id:
        raise InvalidInput("tenant_id", project, "use the project of your token")
    access, secret = uuid4().hex, secrets.token_hex(16)
    blob = msgspec.json.encode({"access": access, "secret": secret, "trust_id": None}).decode()

    def work(conn: sa.Connection) -> Row:
        user = checked_user(ask, conn, _WRITE)
        try:
            actions.get_project(conn, project)
        except NotFound as error:
            raise InvalidInput("tenant_id", project, str(error)) from error
        store.insert(conn, credential, {
            "id": _id(access), "user_id": user["id"], "project_id": project, "type": EC2,
            "blob": ask.context.vault.seal(conn, blob), "extra": {},
        })
        made = store.get(conn, credential, _id(access))
        assert made is not None
        return made

    return {"credential": _shown(ask, await ask.write(work))}


async def listed(ask: Ask) -> Shown:
    """The pairs of keys of a user."""

    def look(conn: sa.Connection) -> list[Row]:
        user = checked_user(ask, conn, _READ)
        return store.select(
            conn, credential, credential.c.user_id == user["id"], credential.c.type == EC2
        )

    rows = [_shown(ask, one) for one in await ask.read(look)]
    return listing(ask, "credentials", rows, f"users/{ask.path['user_id']}/credentials/OS-EC2")


def _found(ask: Ask, conn: sa.Connection, rule: str) -> Row:
    user = checked_user(ask, conn, rule)
    found = store.get(conn, credential, _id(ask.path["access"]))
    if found is None or found["user_id"] != user["id"]:
        raise store.missing("credential", ask.path["access"])
    return found


async def show(ask: Ask) -> Shown:
    """One pair of keys."""
    found = await ask.read(lambda conn: _found(ask, conn, _READ))
    return {"credential": _shown(ask, found)}


async def delete(ask: Ask) -> None:
    """Remove a pair of keys."""
    unrestricted(ask)

    def work(conn: sa.Connection) -> None:
        store.remove(conn, credential, credential.c.id == _found(ask, conn, _WRITE)["id"])

    await ask.write(work)


_NEW = Schema((1, {
    "type": "object", "properties": {"tenant_id": ID}, "required": ["tenant_id"],
}))
_ALL = "/v3/users/{user_id}/credentials/OS-EC2"
CALLS = [
    Call("POST", _ALL, create, _WRITE, 201, _NEW),
    Call("GET", _ALL, listed, _READ),
    Call("GET", f"{_ALL}/{{access}}", show, _READ),
    Call("DELETE", f"{_ALL}/{{access}}", delete, _WRITE, 204),
]
