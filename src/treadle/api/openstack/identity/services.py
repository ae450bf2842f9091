"""Regions, services and endpoints: our own, which are fixed, and what an operator adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.api.openstack.catalog import INTERFACES, own_endpoints, own_services
from treadle.api.openstack.identity.common import (
    BOOL,
    ID,
    TEXT,
    TEXT_OR_NULL,
    Shown,
    closed,
    extras,
    limit_of,
    link,
    listing,
    marker_of,
    page,
    truth,
)
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.db.schema import catalog_endpoint, catalog_service, region
from treadle.errors import Conflict, Forbidden, InvalidInput, NotFound
from treadle.identity import store
from treadle.identity.model import Row

_WORD = {**TEXT, "minLength": 1, "maxLength": 255}
_REGION = {
    "id": {**TEXT, "maxLength": 255, "pattern": "^[^/\\x00]*$"}, "description": TEXT_OR_NULL,
    "parent_region_id": {**TEXT_OR_NULL, "maxLength": 255},
}
_SERVICE = {
    "type": _WORD, "name": {**TEXT, "maxLength": 255}, "description": TEXT_OR_NULL, "enabled": BOOL,
}
_ENDPOINT = {
    "service_id": ID, "interface": {"enum": list(INTERFACES)}, "region_id": TEXT_OR_NULL,
    "region": TEXT_OR_NULL, "url": {**TEXT, "minLength": 1, "maxLength": 2048,
                                     "pattern": "^[a-zA-Z0-9+.-]+:.+"},
    "enabled": BOOL, "name": TEXT_OR_NULL, "description": TEXT_OR_NULL,
}
_OWN = "It is a part of this cloud itself, and cannot be changed."


def _paged(ask: Ask, rows: list[Row]) -> tuple[list[Row], str | None]:
    limit, marker = limit_of(ask), marker_of(ask)
    rows = sorted(rows, key=lambda one: str(one["id"]))
    if marker is not None:
        rows = [one for one in rows if one["id"] > marker]
    return page(rows if limit is None else rows[:limit + 1], limit)


def _chosen(ask: Ask, rows: list[Row], names: Mapping[str, str]) -> list[Row]:
    """The rows whose columns are what the query says; `names`: of the query's to the columns'."""
    for name, column in names.items():
        text = ask.one(name)
        if text is not None:
            wanted: Any = truth(text) if column == "enabled" else text
            rows = [one for one in rows if one[column] == wanted]
    return rows


# -- regions


def _show_region(ask: Ask, row: Row) -> Shown:
    return {
        **row["extra"], "id": row["id"], "description": row["description"],
        "parent_region_id": row["parent_id"], "links": link(ask, "regions", row["id"]),
    }


def _get_region(conn: sa.Connection, id: str) -> Row:
    return store.require(conn, region, id, "region")


def _region_values(conn: sa.Connection, id: str, body: Mapping[str, Any]) -> Row:
    made: Row = {}
    if "description" in body:
        made["description"] = body["description"] or ""
    if "parent_region_id" in body:
        parent = made["parent_id"] = body["parent_region_id"]
        for _ in range(64):
            if parent is None:
                break
            if parent == id:
                raise InvalidInput("parent_region_id", body["parent_region_id"], "it is below this")
            parent = _get_region(conn, parent)["parent_id"]
    return made


def _add_region(conn: sa.Connection, id: str, body: Mapping[str, Any]) -> Row:
    if store.get(conn, region, id) is not None:
        raise Conflict(
            f"Conflict occurred attempting to store region - Duplicate ID, {id}."
        )
    values = _region_values(conn, id, body)
    store.insert(conn, region, {**values, "id": id, "extra": extras(body, _REGION)})
    return _get_region(conn, id)


async def create_region(ask: Ask) -> Shown:
    """A new region."""
    body = ask.body["region"]
    id = body.get("id") or uuid4().hex
    made = await ask.write(lambda conn: _add_region(conn, id, body))
    return {"region": _show_region(ask, made)}


async def put_region(ask: Ask) -> Shown:
    """A new region of a given id."""
    id, body = ask.path["region_id"], ask.body["region"]
    if body.get("id", id) != id:
        raise InvalidInput("id", body["id"], "it is not the one in the path")
    made = await ask.write(lambda conn: _add_region(conn, id, body))
    return {"region": _show_region(ask, made)}


async def list_regions(ask: Ask) -> Shown:
    """The regions."""
    rows = await ask.read(lambda conn: store.select(conn, region))
    rows, more = _paged(ask, _chosen(ask, rows, {"parent_region_id": "parent_id"}))
    return listing(ask, "regions", [_show_region(ask, one) for one in rows], "regions", more=more)


async def get_region(ask: Ask) -> Shown:
    """One region."""
    id = ask.path["region_id"]
    return {"region": _show_region(ask, await ask.read(lambda conn: _get_region(conn, id)))}


async def update_region(ask: Ask) -> Shown:
    """Change a region."""
    id, body = ask.path["region_id"], ask.body["region"]

    def work(conn: sa.Connection) -> Row:
        known = _get_region(conn, id)
        values = _region_values(conn, id, body)
        store.update(conn, region, id, {**values, "extra": extras(body, _REGION, known["extra"])})
        return _get_region(conn, id)

    return {"region": _show_region(ask, await ask.write(work))}


async def delete_region(ask: Ask) -> None:
    """Remove a region that nothing is in."""
    id = ask.path["region_id"]

    def work(conn: sa.Connection) -> None:
        _get_region(conn, id)
        if id == ask.context.settings.identity.region:
            raise Forbidden(_OWN)
        if store.select(conn, region, region.c.parent_id == id):
            raise Forbidden(f"Cannot delete region {id}: there are others in it.")
        if store.select(conn, catalog_endpoint, catalog_endpoint.c.region_id == id):
            raise Forbidden(f"Cannot delete region {id}: there are endpoints in it.")
        conn.execute(sa.delete(region).where(region.c.id == id))

    await ask.write(work)


# -- services


def _show_service(ask: Ask, row: Row) -> Shown:
    made = {
        **row["extra"], "id": row["id"], "type": row["type"], "name": row["name"],
        "enabled": row["enabled"], "links": link(ask, "services", row["id"]),
    }
    if row["description"] is not None:
        made["description"] = row["description"]
    return made


def _get_service(ask: Ask, conn: sa.Connection, id: str) -> Row:
    found = store.get(conn, catalog_service, id) or next(
        (one for one in own_services(ask.context) if one["id"] == id), None
    )
    if found is None:
        raise store.missing("service", id)
    return found


def _not_own(ask: Ask, id: str) -> None:
    own = [*own_services(ask.context), *own_endpoints(ask.context, "")]
    if id in {one["id"] for one in own}:
        raise Forbidden(_OWN)


async def create_service(ask: Ask) -> Shown:
    """A new service."""
    body, id = ask.body["service"], uuid4().hex
    values = {name: body[name] for name in _SERVICE if name in body}

    def work(conn: sa.Connection) -> Row:
        store.insert(
            conn, catalog_service, {**values, "id": id, "extra": extras(body, _SERVICE)}
        )
        return _get_service(ask, conn, id)

    return {"service": _show_service(ask, await ask.write(work))}


async def list_services(ask: Ask) -> Shown:
    """The services."""
    rows = own_services(ask.context)
    rows += await ask.read(lambda conn: store.select(conn, catalog_service))
    rows, more = _paged(ask, _chosen(ask, rows, {"type": "type", "name": "name"}))
    return listing(
        ask, "services", [_show_service(ask, one) for one in rows], "services", more=more
    )


async def get_service(ask: Ask) -> Shown:
    """One service."""
    id = ask.path["service_id"]
    row = await ask.read(lambda conn: _get_service(ask, conn, id))
    return {"service": _show_service(ask, row)}


async def update_service(ask: Ask) -> Shown:
    """Change a service."""
    id, body = ask.path["service_id"], ask.body["service"]
    _not_own(ask, id)

    def work(conn: sa.Connection) -> Row:
        known = _get_service(ask, conn, id)
        values = {name: body[name] for name in _SERVICE if name in body}
        store.update(
            conn, catalog_service, id,
            {**values, "extra": extras(body, _SERVICE, known["extra"])},
        )
        return _get_service(ask, conn, id)

    return {"service": _show_service(ask, await ask.write(work))}


async def delete_service(ask: Ask) -> None:
    """Remove a service and its endpoints."""
    id = ask.path["service_id"]
    _not_own(ask, id)

    def work(conn: sa.Connection) -> None:
        _get_service(ask, conn, id)
        conn.execute(sa.delete(catalog_endpoint).where(catalog_endpoint.c.service_id == id))
        conn.execute(sa.delete(catalog_service).where(catalog_service.c.id == id))

    await ask.write(work)


# -- endpoints


def _show_endpoint(ask: Ask, row: Row) -> Shown:
    return {
        **row["extra"], "id": row["id"], "service_id": row["service_id"],
        "interface": row["interface"], "url": row["url"], "enabled": row["enabled"],
        "region_id": row["region_id"], "region": row["region_id"],
        "links": link(ask, "endpoints", row["id"]),
    }


def _get_endpoint(ask: Ask, conn: sa.Connection, id: str) -> Row:
    own = own_endpoints(ask.context, ask.context.base(ask.request))
    found = store.get(conn, catalog_endpoint, id) or next(
        (one for one in own if one["id"] == id), None
    )
    if found is None:
        raise store.missing("endpoint", id)
    return found


def _endpoint_values(ask: Ask, conn: sa.Connection, body: Mapping[str, Any]) -> Row:
    """The columns of a body. An unknown region is made where the old word `region` names it."""
    made: Row = {name: body[name] for name in ("service_id", "interface", "url", "enabled")
                 if name in body}
    if "service_id" in made:
        try:
            _get_service(ask, conn, made["service_id"])
        except NotFound as error:
            raise InvalidInput("service_id", made["service_id"], "there is no such service") \
                from error
    place = body.get("region_id", body.get("region"))
    if "region_id" in body or "region" in body:
        made["region_id"] = place
    if place is not None and store.get(conn, region, place) is None:
        if "region_id" in body:
            raise InvalidInput("region_id", place, "there is no such region")
        store.insert(conn, region, {"id": place, "extra": {}})
    return made


async def create_endpoint(ask: Ask) -> Shown:
    """A new endpoint."""
    body, id = ask.body["endpoint"], uuid4().hex

    def work(conn: sa.Connection) -> Row:
        values = _endpoint_values(ask, conn, body)
        store.insert(
            conn, catalog_endpoint, {**values, "id": id, "extra": extras(body, _ENDPOINT)}
        )
        return _get_endpoint(ask, conn, id)

    return {"endpoint": _show_endpoint(ask, await ask.write(work))}


async def list_endpoints(ask: Ask) -> Shown:
    """The endpoints."""
    rows = own_endpoints(ask.context, ask.context.base(ask.request))
    rows += await ask.read(lambda conn: store.select(conn, catalog_endpoint))
    rows, more = _paged(ask, _chosen(ask, rows, {
        "interface": "interface", "service_id": "service_id", "region_id": "region_id",
        "region": "region_id", "enabled": "enabled",
    }))
    return listing(
        ask, "endpoints", [_show_endpoint(ask, one) for one in rows], "endpoints", more=more
    )


async def get_endpoint(ask: Ask) -> Shown:
    """One endpoint."""
    id = ask.path["endpoint_id"]
    row = await ask.read(lambda conn: _get_endpoint(ask, conn, id))
    return {"endpoint": _show_endpoint(ask, row)}


async def update_endpoint(ask: Ask) -> Shown:
    """Change an endpoint."""
    id, body = ask.path["endpoint_id"], ask.body["endpoint"]
    _not_own(ask, id)

    def work(conn: sa.Connection) -> Row:
        known = _get_endpoint(ask, conn, id)
        values = _endpoint_values(ask, conn, body)
        store.update(
            conn, catalog_endpoint, id,
            {**values, "extra": extras(body, _ENDPOINT, known["extra"])},
        )
        return _get_endpoint(ask, conn, id)

    return {"endpoint": _show_endpoint(ask, await ask.write(work))}


async def delete_endpoint(ask: Ask) -> None:
    """Remove an endpoint."""
    id = ask.path["endpoint_id"]
    _not_own(ask, id)

    def work(conn: sa.Connection) -> None:
        _get_endpoint(ask, conn, id)
        conn.execute(sa.delete(catalog_endpoint).where(catalog_endpoint.c.id == id))

    await ask.write(work)


def _schemas(name: str, inner: Mapping[str, Any], *needed: str) -> tuple[Schema, Schema]:
    return Schema((1, closed(name, inner, needed))), Schema((1, closed(name, inner)))


_, _OLD_REGION = _schemas("region", _REGION)
_NEW_SERVICE, _OLD_SERVICE = _schemas("service", _SERVICE, "type")
_NEW_ENDPOINT, _OLD_ENDPOINT = _schemas("endpoint", _ENDPOINT, "service_id", "interface", "url")
_R, _S, _E = "/v3/regions/{region_id}", "/v3/services/{service_id}", "/v3/endpoints/{endpoint_id}"
_READ, _WRITE = "identity:list_services", "identity:change_services"

CALLS = [
    Call("POST", "/v3/regions", create_region, _WRITE, 201, _OLD_REGION),
    Call("GET", "/v3/regions", list_regions, "identity:get_catalog"),
    Call("GET", _R, get_region, "identity:get_catalog"),
    Call("PUT", _R, put_region, _WRITE, 201, _OLD_REGION),
    Call("PATCH", _R, update_region, _WRITE, 200, _OLD_REGION),
    Call("DELETE", _R, delete_region, _WRITE, 204),
    Call("POST", "/v3/services", create_service, _WRITE, 201, _NEW_SERVICE),
    Call("GET", "/v3/services", list_services, _READ),
    Call("GET", _S, get_service, _READ),
    Call("PATCH", _S, update_service, _WRITE, 200, _OLD_SERVICE),
    Call("DELETE", _S, delete_service, _WRITE, 204),
    Call("POST", "/v3/endpoints", create_endpoint, _WRITE, 201, _NEW_ENDPOINT),
    Call("GET", "/v3/endpoints", list_endpoints, _READ),
    Call("GET", _E, get_endpoint, _READ),
    Call("PATCH", _E, update_endpoint, _WRITE, 200, _OLD_ENDPOINT),
    Call("DELETE", _E, delete_endpoint, _WRITE, 204),
]
