"""What identity's calls answer. What a user wrote beside the columns is kept, hence `more`."""

from __future__ import annotations

from treadle.api.openstack.shapes import FLAG, MAYBE, TEXT, Shape, many, thing

SELF = thing({"self": TEXT})
_OPTIONS: Shape = {"type": "object"}
_NAMED = thing({"id": TEXT, "name": TEXT})
_ENDPOINT = {"id": TEXT, "interface": {"enum": ["public", "internal", "admin"]}, "url": TEXT,
             "region_id": MAYBE, "region": MAYBE}
CATALOG = many(thing(
    {"id": TEXT, "type": TEXT, "name": TEXT, "endpoints": many(thing(_ENDPOINT))}
))
_IN_DOMAIN = thing({"id": TEXT, "name": TEXT, "domain": _NAMED})
TOKEN = thing({"token": thing(
    {
        "methods": many(TEXT), "audit_ids": many(TEXT), "issued_at": TEXT, "expires_at": TEXT,
        "user": thing({"id": TEXT, "name": TEXT, "domain": _NAMED, "password_expires_at": MAYBE}),
    }, {
        "project": _IN_DOMAIN, "domain": _NAMED, "system": {"type": "object"}, "is_domain": FLAG,
        "roles": many(_NAMED), "catalog": CATALOG, "application_credential": {"type": "object"},
    },
)})


def _one(kind: str, needed: dict[str, Shape]) -> Shape:
    return thing({kind: thing({**needed, "links": SELF}, more=True)})


_PAGES = thing({"self": TEXT, "previous": MAYBE, "next": MAYBE})


def _list(kind: str, needed: dict[str, Shape]) -> Shape:
    return thing({
        kind: many(thing({**needed, "links": SELF}, more=True)),
        "links": _PAGES,
    })


_DOMAIN = {"id": TEXT, "name": TEXT, "description": MAYBE, "enabled": FLAG, "options": _OPTIONS,
           "tags": many(TEXT)}
_PROJECT = {**_DOMAIN, "domain_id": MAYBE, "parent_id": MAYBE, "is_domain": FLAG}
_USER = {"id": TEXT, "name": TEXT, "domain_id": TEXT, "enabled": FLAG, "options": _OPTIONS,
         "password_expires_at": MAYBE}
_GROUP = {"id": TEXT, "name": TEXT, "domain_id": TEXT, "description": MAYBE}
_ROLE = {"id": TEXT, "name": TEXT, "domain_id": MAYBE, "description": MAYBE, "options": _OPTIONS}
_REGION = {"id": TEXT, "description": MAYBE, "parent_region_id": MAYBE}
_SERVICE = {"id": TEXT, "type": TEXT, "name": TEXT, "enabled": FLAG}
_PLACE = {**_ENDPOINT, "service_id": TEXT, "enabled": FLAG}
_CREDENTIAL = {"id": TEXT, "user_id": TEXT, "project_id": MAYBE, "type": TEXT, "blob": TEXT}

_KEYS = thing({
    "access": TEXT, "secret": MAYBE, "user_id": TEXT, "tenant_id": TEXT, "trust_id": MAYBE,
    "links": SELF,
})

_KINDS: dict[str, tuple[str, dict[str, Shape]]] = {
    "domain": ("domain_id", _DOMAIN), "project": ("project_id", _PROJECT),
    "user": ("user_id", _USER), "group": ("group_id", _GROUP), "role": ("role_id", _ROLE),
    "region": ("region_id", _REGION), "service": ("service_id", _SERVICE),
    "endpoint": ("endpoint_id", _PLACE), "credential": ("id", _CREDENTIAL),
}

ANSWERS: dict[str, Shape] = {
    "POST /v3/auth/tokens": TOKEN,
    "GET /v3/auth/tokens": TOKEN,
    "GET /v3/auth/catalog": thing({"catalog": CATALOG, "links": SELF}),
    "GET /v3/auth/projects": _list("projects", _PROJECT),
    "GET /v3/auth/domains": _list("domains", _DOMAIN),
    "GET /v3/users/{user_id}/projects": _list("projects", _PROJECT),
    "GET /v3/users/{user_id}/groups": _list("groups", _GROUP),
    "GET /v3/groups/{group_id}/users": _list("users", _USER),
    "GET /v3/role_assignments": thing({
        "role_assignments": many(thing(
            {"role": thing({"id": TEXT}, more=True), "scope": {"type": "object"}, "links": thing(
                {"assignment": TEXT}, {"prior_role": TEXT, "membership": TEXT},
            )}, {"user": {"type": "object"}, "group": {"type": "object"}},
        )), "links": _PAGES,
    }),
    "POST /v3/users/{user_id}/credentials/OS-EC2": thing({"credential": _KEYS}),
    "GET /v3/users/{user_id}/credentials/OS-EC2": thing({
        "credentials": many(_KEYS), "links": _PAGES,
    }),
    "GET /v3/users/{user_id}/credentials/OS-EC2/{access}": thing({"credential": _KEYS}),
    **{
        f"{method} /v3/{kind}s": shape for kind, (_, needed) in _KINDS.items()
        for method, shape in (("POST", _one(kind, needed)), ("GET", _list(f"{kind}s", needed)))
    },
    **{
        f"{method} /v3/{kind}s/{{{id}}}": _one(kind, needed)
        for kind, (id, needed) in _KINDS.items() for method in ("GET", "PATCH")
    },
}
"""By method and path."""
