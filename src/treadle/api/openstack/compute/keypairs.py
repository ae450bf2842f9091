"""Key pairs of users. From microversion 2.92 on, clients make the keys themselves."""

from __future__ import annotations

import asyncio

from treadle.api.openstack.compute.common import (
    COUNT,
    LONGEST,
    TEXT,
    Body,
    closed,
    following,
    inside,
    one_of,
    part,
    precise,
    queries,
    query,
)
from treadle.api.openstack.wire import Ask, Call, Reply, Schema, page_of
from treadle.compute import keypairs
from treadle.compute.keypairs import SSH, X509, KeyPair

USERS, TYPES, PAGES, NO_KEYS_MADE = 10, 2, 35, 92
"""The minor microversions that brought user_id, types and pages, and took key making away."""


def _name(more: str = "") -> Body:
    letter = rf"[a-zA-Z0-9_{more}-]"
    return {
        "type": "string", "minLength": 1, "maxLength": LONGEST,
        "pattern": rf"^{letter}([a-zA-Z0-9_{more} -]*{letter})?$",
    }


_KEY = {"name": _name(), "public_key": TEXT}
_TYPED = {**_KEY, "type": one_of(SSH, X509)}
_OWNED = {**_TYPED, "user_id": TEXT}
CREATE = Schema(
    (1, inside("keypair", closed(_KEY, ["name"]))),
    (TYPES, inside("keypair", closed(_TYPED, ["name"]))),
    (USERS, inside("keypair", closed(_OWNED, ["name"]))),
    (NO_KEYS_MADE, inside("keypair", closed(
        {**_OWNED, "name": _name("@.")}, ["name", "public_key"]
    ))),
)
ONE = queries(query(), query("user_id", since=USERS))
LIST = queries(
    query(), query("user_id", since=USERS), query("user_id", "marker", limit=COUNT, since=PAGES)
)


def view(ask: Ask, one: KeyPair) -> Body:
    """A key as lists have it."""
    body: Body = {"name": one.name, "public_key": one.public_key, "fingerprint": one.fingerprint}
    if ask.minor >= TYPES:
        body["type"] = one.type
    return body


def _user(ask: Ask, said: str | None, rule: str) -> str:
    """Whose keys are meant: the caller's own, or another user's where he may."""
    user = (said if ask.minor >= USERS else None) or ask.caller.user_id
    ask.check(f"compute:keypairs:{rule}", {"user_id": user})
    return user


def _key_name(one: KeyPair) -> str:
    return one.name


async def listed(ask: Ask) -> Body:
    """The keys of a user."""
    user = _user(ask, ask.one("user_id"), "list")
    shown = found = await ask.read(lambda conn: keypairs.of_user(conn, user))
    next_page: list[Body] = []
    if ask.minor >= PAGES:
        page = page_of(ask)
        shown = list(part(found, page, _key_name))
        next_page = following(ask, "/os-keypairs", page, shown, _key_name)
    body: Body = {"keypairs": [{"keypair": view(ask, one)} for one in shown]}
    if next_page:
        body["keypairs_links"] = next_page
    return body


async def show(ask: Ask) -> Body:
    """One key."""
    user = _user(ask, ask.one("user_id"), "get")
    one = await ask.read(lambda conn: keypairs.get(conn, user, ask.path["name"]))
    return {"keypair": {
        **view(ask, one), "user_id": one.user_id, "id": one.id,
        "created_at": precise(one.created_at), "updated_at": None, "deleted": False,
        "deleted_at": None,
    }}


async def create(ask: Ask) -> Reply:
    """Keep a public key, or make a pair and hand the private key out."""
    said = ask.body["keypair"]
    user = _user(ask, said.get("user_id"), "create")
    kind, name, public = said.get("type", SSH), said["name"], said.get("public_key")
    private = None
    if public is None:
        from treadle.compute.key_material import generate

        fresh = await asyncio.to_thread(generate, kind, user)
        public, private = fresh.public_key, fresh.private_key
    one = await ask.write(lambda conn: keypairs.add(
        conn, ask.caller.project_id, user, name, kind, public
    ))
    body = {**view(ask, one), "user_id": one.user_id}
    if private is not None:
        body["private_key"] = private
    return Reply({"keypair": body}, 201 if ask.minor >= TYPES else 200)


async def delete(ask: Ask) -> Reply:
    """Forget a key."""
    user = _user(ask, ask.one("user_id"), "delete")
    await ask.write(lambda conn: keypairs.delete(conn, user, ask.path["name"]))
    return Reply(None, 204 if ask.minor >= TYPES else 202)


_ONE = "/v2.1/os-keypairs/{name}"
CALLS = [
    Call("GET", "/v2.1/os-keypairs", listed, "compute:keypairs:list", query=LIST),
    Call("POST", "/v2.1/os-keypairs", create, "compute:keypairs:create", body=CREATE),
    Call("GET", _ONE, show, "compute:keypairs:get", query=ONE),
    Call("DELETE", _ONE, delete, "compute:keypairs:delete", query=ONE),
]
