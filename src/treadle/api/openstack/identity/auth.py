"""Tokens: made, shown, ended; and what a user may act on."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.catalog import added, catalog
from treadle.api.openstack.identity.common import change, link, listing, when
from treadle.api.openstack.identity.projects import show_domain, show_projects
from treadle.api.openstack.wire import Ask, Call, Reply, Schema
from treadle.errors import NotFound
from treadle.identity import store
from treadle.identity.grants import reach
from treadle.identity.model import Row, Scope, Standing, Token
from treadle.identity.tokens import hash_of

_TEXT = {"type": "string", "maxLength": 4096, "pattern": "^[^\\x00]*$"}
_DOMAIN = {
    "type": "object", "properties": {"id": _TEXT, "name": _TEXT},
    "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
}
_NAMES = {"id": _TEXT, "name": _TEXT, "domain": _DOMAIN}
_WHO = {
    "type": "object", "properties": _NAMES,
    "anyOf": [{"required": ["id"]}, {"required": ["name", "domain"]}],
}
_PLACE = {"type": "object", "properties": _NAMES}
AUTH = Schema((1, {
    "type": "object", "required": ["auth"], "properties": {"auth": {
        "type": "object", "required": ["identity"], "properties": {
            "identity": {
                "type": "object", "required": ["methods"], "properties": {
                    "methods": {"type": "array", "maxItems": 10, "items": _TEXT},
                    "password": {
                        "type": "object", "required": ["user"], "properties": {"user": {
                            **_WHO, "required": ["password"],
                            "properties": {**_NAMES, "password": _TEXT},
                        }},
                    },
                    "token": {
                        "type": "object", "required": ["id"], "properties": {"id": _TEXT},
                    },
                    "application_credential": {
                        "type": "object", "required": ["secret"],
                        "properties": {"id": _TEXT, "name": _TEXT, "secret": _TEXT, "user": _WHO},
                        "anyOf": [{"required": ["id"]}, {"required": ["name", "user"]}],
                    },
                },
            },
            "scope": {
                "type": ["object", "string"],
                "properties": {
                    "project": _PLACE, "domain": _PLACE,
                    "system": {"type": "object"}, "unscoped": {"type": "object"},
                },
            },
        },
    }},
}))
GONE = "Could not find token."


def shown(
    token: Token, standing: Standing, listed: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """The body that says what a token is worth."""
    user = standing.user
    body: dict[str, Any] = {
        "methods": list(token.methods),
        "user": {
            "id": user["id"], "name": user["name"], "domain": standing.user_domain,
            "password_expires_at": when(standing.password_expires_at),
        },
        "audit_ids": list(token.audit_ids),
        "issued_at": when(token.issued_at), "expires_at": when(token.expires_at),
    }
    if standing.project is not None:
        project = standing.project
        body["project"] = {
            "id": project["id"], "name": project["name"], "domain": standing.project_domain,
        }
        body["is_domain"] = False
    elif standing.domain is not None:
        body["domain"] = {"id": standing.domain["id"], "name": standing.domain["name"]}
    elif standing.scope is Scope.SYSTEM:
        body["system"] = {"all": True}
    if standing.scope is not Scope.NONE:
        body["roles"] = [{"id": id, "name": name} for id, name in standing.roles]
        if listed is not None:
            body["catalog"] = listed
    if standing.app_credential is not None:
        credential = standing.app_credential
        body["application_credential"] = {
            "id": credential["id"], "name": credential["name"],
            "restricted": not credential["unrestricted"],
        }
        if standing.access is not None:
            body["application_credential"]["access_rules"] = [
                {"service": service, "method": method, "path": path}
                for service, method, path in standing.access
            ]
    return {"token": body}


async def _catalog(ask: Ask, project_id: str | None) -> list[dict[str, Any]]:
    more = await ask.read(added)
    return catalog(ask.context, ask.context.base(ask.request), more, project_id)


async def _reply(ask: Ask, text: str, token: Token, standing: Standing, status: int) -> Reply:
    listed = None
    if standing.scope is not Scope.NONE and "nocatalog" not in ask.query:
        listed = await _catalog(ask, standing.project["id"] if standing.project else None)
    return Reply(shown(token, standing, listed), status,
                 {"X-Subject-Token": text, "Vary": "X-Auth-Token"})


async def create(ask: Ask) -> Reply:
    """A token for who can prove who he is."""
    address = ask.request.client.host if ask.request.client else ""
    issued = await ask.context.login(ask.body["auth"], address)
    return await _reply(ask, issued.text, issued.token, issued.standing, 201)


async def _subject(ask: Ask, rule: str) -> tuple[str, Token, Standing]:
    """The token that the request is about. Errors: `NotFound`, for those it is not for too."""
    text = ask.request.headers.get("x-subject-token")
    if not text:
        raise NotFound(GONE)

    def look(conn: sa.Connection) -> tuple[Token, Standing] | None:
        token = store.get_token(conn, hash_of(text))
        standing = token and store.standing(
            conn, token.user_id, token.scope, token.scope_id, token.app_credential_id
        )
        return (token, standing) if token and standing else None

    found = await ask.read(look)
    if found is None or not ask.allows(rule, {"user_id": found[0].user_id}):
        raise NotFound(GONE)
    return text, *found


async def show(ask: Ask) -> Reply:
    """What a token is worth."""
    return await _reply(ask, *await _subject(ask, "identity:validate_token"), 200)


async def end(ask: Ask) -> None:
    """End a token."""
    _, token, _ = await _subject(ask, "identity:revoke_token")
    await change(ask, lambda conn: store.kill_one(conn, token.hash))


async def show_catalog(ask: Ask) -> dict[str, Any]:
    """The service catalog of the caller's scope."""
    return {
        "catalog": await _catalog(ask, ask.caller.project_id),
        "links": link(ask, "auth", "catalog"),
    }


async def projects(ask: Ask) -> dict[str, Any]:
    """The projects that the caller may have a token for."""
    def look(conn: sa.Connection) -> list[dict[str, Any]]:
        rows = [one for one in reach(conn, ask.caller.user_id).projects if one["enabled"]]
        return show_projects(ask, conn, rows)

    return listing(ask, "projects", await ask.read(look), "auth/projects")


async def domains(ask: Ask) -> dict[str, Any]:
    """The domains that the caller may have a token for."""
    def look(conn: sa.Connection) -> list[Row]:
        return [one for one in reach(conn, ask.caller.user_id).domains if one["enabled"]]

    rows = await ask.read(look)
    return listing(ask, "domains", [show_domain(ask, one) for one in rows], "auth/domains")


async def system(ask: Ask) -> dict[str, Any]:
    """Whether the caller may have a token for the system."""
    all = (await ask.read(lambda conn: reach(conn, ask.caller.user_id))).system
    return listing(ask, "system", [{"all": True}] if all else [], "auth/system")


CALLS = [
    Call("POST", "/v3/auth/tokens", create, "", 201, AUTH),
    Call("GET", "/v3/auth/tokens", show, "identity:validate_token"),
    Call("DELETE", "/v3/auth/tokens", end, "identity:revoke_token", 204),
    Call("GET", "/v3/auth/catalog", show_catalog, "identity:auth"),
    Call("GET", "/v3/auth/projects", projects, "identity:auth"),
    Call("GET", "/v3/auth/domains", domains, "identity:auth"),
    Call("GET", "/v3/auth/system", system, "identity:auth"),
]
