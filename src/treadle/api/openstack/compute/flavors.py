"""Flavors: what sizes a server can have, with their extra specs and who may use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute import extra_specs
from treadle.api.openstack.compute.common import (
    BOOLEAN,
    COUNT,
    KEY,
    LONGEST,
    MOST,
    NAME,
    Body,
    closed,
    following,
    inside,
    known_project,
    links,
    number,
    one_of,
    part,
    queries,
    query,
    truth,
    whole,
)
from treadle.api.openstack.wire import Ask, Call, Page, Schema, page_of
from treadle.compute import flavors
from treadle.compute.patterns import matcher
from treadle.compute.store import Flavor
from treadle.errors import Conflict, InvalidInput, NotFound

SORT_KEYS = {
    "created_at": "id", "description": "description", "disabled": "id",
    "ephemeral_gb": "ephemeral_gib", "flavorid": "public_id", "id": "id", "is_public": "is_public",
    "memory_mb": "memory_mib", "name": "name", "root_gb": "disk_gib", "rxtx_factor": "rxtx_factor",
    "swap": "swap_mib", "updated_at": "id", "vcpu_weight": "id", "vcpus": "vcpus",
}
"""What clients sort by, as fields of `Flavor`. Ids are given in the order of creation."""
RXTX_MAX = 3.40282e38

DESCRIPTION: Body = {
    "type": ["string", "null"], "maxLength": 65535, "pattern": r"^[^\p{C}\p{Zl}\p{Zp}]*$",
}
_NEW = {
    "name": NAME,
    "id": {
        "type": ["string", "number", "null"], "minLength": 1, "maxLength": LONGEST,
        "pattern": "^[a-zA-Z0-9._-]([a-zA-Z0-9. _-]*[a-zA-Z0-9._-])?$",
    },
    "ram": whole(1), "vcpus": whole(1), "disk": whole(0), "OS-FLV-EXT-DATA:ephemeral": whole(0),
    "swap": whole(0),
    "rxtx_factor": {
        "type": ["number", "string"], "pattern": r"^[0-9]{1,40}(\.[0-9]{1,40})?$",
        "exclusiveMinimum": 0, "maximum": RXTX_MAX,
    },
    "os-flavor-access:is_public": BOOLEAN,
}
_NEEDED = ("name", "ram", "vcpus", "disk")
CREATE = Schema(
    (1, inside("flavor", closed(_NEW, _NEEDED))),
    (55, inside("flavor", closed({**_NEW, "description": DESCRIPTION}, _NEEDED))),
    (102, inside("flavor", closed({
        **{name: one for name, one in _NEW.items() if name != "rxtx_factor"},
        "description": DESCRIPTION,
    }, _NEEDED))),
)
UPDATE = Schema((55, inside("flavor", closed({"description": DESCRIPTION}, ["description"]))))
SLIM = 102
"""The minor microversion from which flavors are found by name, and have no rxtx_factor."""
_WAY = one_of("asc", "desc")
LIST = queries(
    query("marker", "is_public", "minRam", "minDisk", limit=COUNT, sort_key=one_of(*SORT_KEYS),
          sort_dir=_WAY),
    query("marker", "is_public", "minRam", "minDisk", "name", since=SLIM, limit=COUNT,
          sort_key=one_of(*(key for key in SORT_KEYS if key != "rxtx_factor")), sort_dir=_WAY),
)
_SPECS = {
    "type": "object", "additionalProperties": False,
    "patternProperties": {KEY: {"type": ["string", "number"], "maxLength": LONGEST}},
}
SPECS = Schema((1, inside("extra_specs", _SPECS)))
SPEC = Schema((1, {**_SPECS, "minProperties": 1, "maxProperties": 1}))
_TENANT = closed({"tenant": {"type": "string", "minLength": 1, "maxLength": LONGEST}}, ["tenant"])
ACTION = Schema((1, {
    **closed({"addTenantAccess": _TENANT, "removeTenantAccess": _TENANT}),
    "minProperties": 1, "maxProperties": 1,
}))


# -- how they look


def view(ask: Ask, flavor: Flavor) -> Body:
    """A flavor with all that the microversion has of it."""
    body: Body = {
        "id": flavor.public_id, "name": flavor.name, "ram": flavor.memory_mib,
        "disk": flavor.disk_gib, "swap": flavor.swap_mib or ("" if ask.minor < 75 else 0),
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral_gib, "OS-FLV-DISABLED:disabled": False,
        "vcpus": flavor.vcpus, "os-flavor-access:is_public": flavor.is_public,
        "rxtx_factor": flavor.rxtx_factor, "links": links(ask, "flavors", flavor.public_id),
    }
    if ask.minor >= 55:
        body["description"] = flavor.description
    if ask.minor >= 61 and ask.allows("compute:flavor_extra_specs:list"):
        body["extra_specs"] = dict(flavor.extra_specs)
    if ask.minor >= SLIM:
        del body["OS-FLV-DISABLED:disabled"], body["rxtx_factor"]
    return body


def brief(ask: Ask, flavor: Flavor) -> Body:
    """A flavor in the short list."""
    body: Body = {
        "id": flavor.public_id, "name": flavor.name,
        "links": links(ask, "flavors", flavor.public_id),
    }
    if ask.minor >= 55:
        body["description"] = flavor.description
    return body


def _public_id(flavor: Flavor) -> str:
    return flavor.public_id


# -- reading


async def listed(ask: Ask) -> Body:
    """Flavors in short."""
    return await _list(ask, "/flavors", brief)


async def detailed(ask: Ask) -> Body:
    """Flavors with everything."""
    return await _list(ask, "/flavors/detail", view)


async def _list(ask: Ask, path: str, look: Callable[[Ask, Flavor], Body]) -> Body:
    page = page_of(ask, keys=SORT_KEYS, default=(("public_id", False), ("id", False)))
    if "sort_key" in ask.query and "sort_dir" not in ask.query:
        page = Page(page.limit, page.asked, page.marker, tuple((k, False) for k, _ in page.sort))
    public: bool | None = True
    asked = ask.one("is_public")
    if ask.caller.is_admin and asked is not None:
        public = None if asked.lower() == "none" else truth("is_public", asked)
    least = {
        field: number(name, ask.query[name][0], -MOST)
        for name, field in (("minRam", "memory_mib"), ("minDisk", "disk_gib")) if name in ask.query
    }

    def read(conn: sa.Connection) -> list[Flavor]:
        if public is True:
            return flavors.visible(conn, ask.caller.project_id)
        everything = flavors.visible(conn, None, everything=True)
        return [one for one in everything if public is None or one.is_public is public]

    pattern = ask.one("name") if ask.minor >= SLIM else None
    named = matcher(pattern or "")
    found = [
        one for one in await ask.read(read)
        if all(getattr(one, field) >= low for field, low in least.items()) and named(one.name)
    ]
    for key, descending in reversed(page.sort):
        found.sort(key=lambda one: _sortable(getattr(one, key)), reverse=descending)
    shown = part(found, page, _public_id)
    body: Body = {"flavors": [look(ask, one) for one in shown]}
    following_page = following(ask, path, page, shown, _public_id)
    if following_page:
        body["flavors_links"] = following_page
    return body


def _sortable(value: Any) -> Any:
    return "" if value is None else value


async def show(ask: Ask) -> Body:
    """One flavor."""
    return {"flavor": view(ask, await _one(ask))}


async def _one(ask: Ask) -> Flavor:
    """The flavor of the path. Errors: `NotFound`."""
    return await ask.read(lambda conn: _get(conn, ask))


def _get(conn: sa.Connection, ask: Ask) -> Flavor:
    return flavors.get(conn, ask.path["flavor_id"], ask.caller.project_id,
                       everything=ask.caller.is_admin)


# -- changing


async def create(ask: Ask) -> Body:
    """A new flavor."""
    said = ask.body["flavor"]
    wanted = Flavor(
        0, number("vcpus", said["vcpus"], 1), number("ram", said["ram"], 1),
        number("disk", said["disk"], 0),
        public_id=str(said.get("id") or flavors.new_public_id()), name=said["name"],
        description=said.get("description"), swap_mib=number("swap", said.get("swap", 0), 0),
        ephemeral_gib=number("ephemeral", said.get("OS-FLV-EXT-DATA:ephemeral", 0), 0),
        rxtx_factor=_factor(said.get("rxtx_factor", 1.0)),
        is_public=truth("is_public", said.get("os-flavor-access:is_public", True)),
    )
    return {"flavor": view(ask, await ask.write(lambda conn: flavors.create(conn, wanted)))}


def _factor(value: Any) -> float:
    factor = float(value)
    if not 0 < factor <= RXTX_MAX:
        raise InvalidInput("rxtx_factor", value, f"it must be above 0 and at most {RXTX_MAX:g}")
    return factor


async def update(ask: Ask) -> Body:
    """Another description."""
    text = ask.body["flavor"]["description"]
    changed = await ask.write(lambda conn: flavors.describe(conn, _get(conn, ask), text))
    return {"flavor": view(ask, changed)}


async def delete(ask: Ask) -> None:
    """Offer it no longer."""
    await ask.write(lambda conn: flavors.retire(conn, _get(conn, ask)))


# -- extra specs


async def specs(ask: Ask) -> Body:
    """All extra specs of a flavor."""
    return {"extra_specs": dict((await _one(ask)).extra_specs)}


async def spec(ask: Ask) -> Body:
    """One extra spec."""
    key = ask.path["key"]
    return {key: _spec_of(await _one(ask), key)}


def _spec_of(flavor: Flavor, key: str) -> str:
    if key not in flavor.extra_specs:
        raise NotFound(f"Flavor {flavor.public_id} has no extra specs with key {key}.")
    return flavor.extra_specs[key]


async def add_specs(ask: Ask) -> Body:
    """Add extra specs, or change them."""
    return {"extra_specs": await _set_specs(ask, ask.body["extra_specs"])}


async def set_spec(ask: Ask) -> Body:
    """Add one extra spec, or change it."""
    if ask.path["key"] not in ask.body:
        raise InvalidInput("body", list(ask.body), "Request body and URI mismatch")
    return await _set_specs(ask, ask.body)


async def _set_specs(ask: Ask, said: Body) -> Body:
    texts = {key: str(value) for key, value in said.items()}
    for key, text in texts.items():
        if len(text) > LONGEST:
            raise InvalidInput(key, text, f"extra_specs value has at most {LONGEST} characters")
        if ask.minor >= 86:
            extra_specs.check(key, text)

    def write(conn: sa.Connection) -> None:
        flavor = _get(conn, ask)
        flavors.set_specs(conn, flavor, {**flavor.extra_specs, **texts})

    await ask.write(write)
    return texts


async def delete_spec(ask: Ask) -> None:
    """Take one extra spec away."""
    key = ask.path["key"]

    def write(conn: sa.Connection) -> None:
        flavor = _get(conn, ask)
        _spec_of(flavor, key)
        flavors.set_specs(
            conn, flavor, {name: text for name, text in flavor.extra_specs.items() if name != key}
        )

    await ask.write(write)


# -- who may use them


async def access(ask: Ask) -> Body:
    """The projects that may use a flavor that is not public."""
    def read(conn: sa.Connection) -> Body:
        flavor = _get(conn, ask)
        if flavor.is_public:
            raise NotFound("Access list not available for public flavors.")
        return _access(conn, flavor)

    return await ask.read(read)


def _access(conn: sa.Connection, flavor: Flavor) -> Body:
    return {"flavor_access": [
        {"flavor_id": flavor.public_id, "tenant_id": project}
        for project in flavors.projects(conn, flavor)
    ]}


async def act(ask: Ask) -> Body:
    """Let a project use a flavor, or no longer."""
    [(action, said)] = ask.body.items()
    adds = action == "addTenantAccess"
    rule = "add" if adds else "remove"
    ask.check(f"compute:flavor_access:{rule}")
    project = said["tenant"]

    def write(conn: sa.Connection) -> Body:
        flavor = _get(conn, ask)
        if adds:
            known_project(conn, project)
            if flavor.is_public and ask.minor >= 7:
                raise Conflict("Can not add access to a public flavor.")
            flavors.grant(conn, flavor, project)
        else:
            flavors.revoke(conn, flavor, project)
        return _access(conn, flavor)

    return await ask.write(write)


_ONE = "/v2.1/flavors/{flavor_id}"
CALLS = [
    Call("GET", "/v2.1/flavors", listed, "compute:flavors:list", query=LIST),
    Call("POST", "/v2.1/flavors", create, "compute:flavors:create", body=CREATE),
    Call("GET", "/v2.1/flavors/detail", detailed, "compute:flavors:list", query=LIST),
    Call("GET", _ONE, show, "compute:flavors:get"),
    Call("PUT", _ONE, update, "compute:flavors:update", body=UPDATE, since=55),
    Call("DELETE", _ONE, delete, "compute:flavors:delete", 202),
    Call("POST", f"{_ONE}/action", act, "compute:flavor_access:change", body=ACTION),
    Call("GET", f"{_ONE}/os-flavor-access", access, "compute:flavor_access:list"),
    Call("GET", f"{_ONE}/os-extra_specs", specs, "compute:flavor_extra_specs:list"),
    Call("POST", f"{_ONE}/os-extra_specs", add_specs, "compute:flavor_extra_specs:create",
         body=SPECS),
    Call("GET", f"{_ONE}/os-extra_specs/{{key}}", spec, "compute:flavor_extra_specs:get"),
    Call("PUT", f"{_ONE}/os-extra_specs/{{key}}", set_spec, "compute:flavor_extra_specs:update",
         body=SPEC),
    Call("DELETE", f"{_ONE}/os-extra_specs/{{key}}", delete_spec,
         "compute:flavor_extra_specs:delete"),
]
