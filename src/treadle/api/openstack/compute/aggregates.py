"""Aggregates of hosts, and the availability zones that they make."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    HOST_NAME,
    KEY,
    LONGEST,
    NAME,
    UUID_TEXT,
    ZONE_NAME,
    Body,
    closed,
    inside,
    number,
    precise,
)
from treadle.api.openstack.compute.hosts import BINARY, by_name
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.compute import inventory
from treadle.errors import InvalidInput
from treadle.placement import aggregates, ledger
from treadle.placement.aggregates import Aggregate
from treadle.placement.ledger import DEFAULT_ZONE

UUIDS, IMAGES = 41, 81
"""The minor microversions that brought UUIDs and the caching of images."""

_ZONE = {"oneOf": [ZONE_NAME, {"type": "null"}]}
_FIELDS = {"name": NAME, "availability_zone": _ZONE}
CREATE = Schema((1, inside("aggregate", closed(_FIELDS, ["name"]))))
UPDATE = Schema((1, inside("aggregate", {**closed(_FIELDS), "minProperties": 1})))
_HOST = closed({"host": HOST_NAME}, ["host"])
_METADATA = {
    "type": "object", "additionalProperties": False,
    "patternProperties": {KEY: {"type": ["string", "null"], "maxLength": LONGEST}},
}
ACTION = Schema((1, {
    **closed({
        "add_host": _HOST, "remove_host": _HOST,
        "set_metadata": closed({"metadata": _METADATA}, ["metadata"]),
    }), "minProperties": 1, "maxProperties": 1,
}))
CACHE = Schema((IMAGES, closed({
    "cache": {"type": "array", "minItems": 1, "items": closed({"id": UUID_TEXT}, ["id"])},
}, ["cache"])))


def view(ask: Ask, one: Aggregate) -> Body:
    """An aggregate with its hosts."""
    zone = {} if one.zone is None else {"availability_zone": one.zone}
    return {
        **_bare(ask, one), "hosts": [name for _, name in one.hosts],
        "metadata": {**one.metadata, **zone},
    }


def _bare(ask: Ask, one: Aggregate) -> Body:
    body: Body = {
        "id": one.id, "name": one.name, "availability_zone": one.zone, "deleted": False,
        "created_at": precise(one.created_at), "updated_at": precise(one.updated_at),
        "deleted_at": None,
    }
    if ask.minor >= UUIDS:
        body["uuid"] = one.uuid
    return body


def _id(ask: Ask) -> int:
    """The number in the path. Errors: `InvalidInput`."""
    # What is below all numbers is the number of none, not an error.
    return number("id", ask.path["id"], -(1 << 31))


async def listed(ask: Ask) -> Body:
    """All aggregates."""
    return {"aggregates": [view(ask, one) for one in await ask.read(aggregates.every)]}


async def show(ask: Ask) -> Body:
    """One aggregate."""
    id = _id(ask)
    return {"aggregate": view(ask, await ask.read(lambda conn: aggregates.get(conn, id)))}


async def create(ask: Ask) -> Body:
    """A new aggregate."""
    said = ask.body["aggregate"]
    made = await ask.write(lambda conn: aggregates.create(
        conn, said["name"], said.get("availability_zone")
    ))
    return {"aggregate": _bare(ask, made)}


async def update(ask: Ask) -> Body:
    """Another name or zone."""
    id, said = _id(ask), ask.body["aggregate"]
    changed = await ask.write(lambda conn: aggregates.update(
        conn, id, said.get("name"), said.get("availability_zone"),
        zoned="availability_zone" in said,
    ))
    return {"aggregate": view(ask, changed)}


async def delete(ask: Ask) -> None:
    """Forget an empty aggregate."""
    id = _id(ask)
    await ask.write(lambda conn: aggregates.delete(conn, id))


async def act(ask: Ask) -> Body:
    """Put a host in, take one out, or say something of all."""
    id = _id(ask)
    [(action, said)] = ask.body.items()
    ask.check(f"compute:aggregates:{action}")

    def write(conn: sa.Connection) -> Aggregate:
        if action == "set_metadata":
            return aggregates.set_metadata(conn, id, said["metadata"])
        aggregates.get(conn, id)
        host = by_name(conn, said["host"])
        change = aggregates.add_host if action == "add_host" else aggregates.remove_host
        return change(conn, id, host.id, host.name)

    if action == "set_metadata":
        zone = said["metadata"].get("availability_zone")
        if zone is not None and (not zone.strip() or ":" in zone):
            raise InvalidInput("availability_zone", zone, "it is empty or has a colon")
    return {"aggregate": view(ask, await ask.write(write))}


async def cache(ask: Ask) -> None:
    """Bring images to the hosts before anybody asks for them there."""
    id, wanted = _id(ask), [one["id"] for one in ask.body["cache"]]
    if len(set(wanted)) != len(wanted):
        raise InvalidInput("cache", wanted, "Duplicate images in request")

    def write(conn: sa.Connection) -> None:
        hosts = [host_id for host_id, _ in aggregates.get(conn, id).hosts]
        inventory.cache_images(conn, hosts, wanted)

    await ask.write(write)


# -- availability zones


async def zones(ask: Ask) -> Body:
    """The zones, without what is in them."""
    found = await ask.read(_zones)
    return {"availabilityZoneInfo": [
        {"zoneName": name, "zoneState": {"available": bool(hosts)}, "hosts": None}
        for name, hosts in _available_first(found)
    ]}


async def zones_whole(ask: Ask) -> Body:
    """The zones with their hosts."""
    found = await ask.read(_zones)
    return {"availabilityZoneInfo": [
        {"zoneName": name, "zoneState": {"available": bool(hosts)}, "hosts": hosts or None}
        for name, hosts in _available_first(found)
    ]}


def _available_first(found: dict[str, Body]) -> list[tuple[str, Body]]:
    return sorted(found.items(), key=lambda one: (not one[1], one[0]))


def _zones(conn: sa.Connection) -> dict[str, Body]:
    """By zone, its hosts that are not disabled."""
    of = aggregates.zones(conn)
    found: dict[str, Body] = {}
    for host in ledger.list_hosts(conn):
        here = found.setdefault(of.get(host.id, DEFAULT_ZONE), {})
        if host.enabled:
            here[host.name] = {BINARY: {
                "available": host.answers, "active": True,
                "updated_at": precise(host.seen_at or host.added_at),
            }}
    return found


_ALL, _ONE = "/v2.1/os-aggregates", "/v2.1/os-aggregates/{id}"
CALLS = [
    Call("GET", _ALL, listed, "compute:aggregates:list"),
    Call("POST", _ALL, create, "compute:aggregates:create", body=CREATE),
    Call("GET", _ONE, show, "compute:aggregates:get"),
    Call("PUT", _ONE, update, "compute:aggregates:update", body=UPDATE),
    Call("DELETE", _ONE, delete, "compute:aggregates:delete"),
    Call("POST", f"{_ONE}/action", act, "compute:aggregates:change", body=ACTION),
    Call("POST", f"{_ONE}/images", cache, "compute:aggregates:cache_images", 202, body=CACHE,
         since=IMAGES),
    Call("GET", "/v2.1/os-availability-zone", zones, "compute:availability_zones:list"),
    Call("GET", "/v2.1/os-availability-zone/detail", zones_whole,
         "compute:availability_zones:detail"),
]
