"""Hosts as compute services: which there are, and whether they take instances.

OpenStack has a service on each host where Treadle has none: `nova-compute` stands for the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    BOOLEAN,
    HOST_NAME,
    LONGEST,
    Body,
    closed,
    is_uuid,
    number,
    one_of,
    precise,
    queries,
    query,
    truth,
)
from treadle.api.openstack.wire import Ask, Call, NotSupported, Schema
from treadle.compute import census
from treadle.compute.kinds import HOST_KIND
from treadle.controller import queue
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.placement import aggregates, ledger
from treadle.placement.ledger import DEFAULT_ZONE, Host

BINARY = "nova-compute"
FORCED, UUIDS, NO_HOSTS = 11, 53, 42
"""The minor microversions that brought forced_down and UUIDs; the last with os-hosts."""

_WORD = {"type": "string", "minLength": 1, "maxLength": LONGEST}
_NAMED = {"host": HOST_NAME, "binary": _WORD, "disabled_reason": _WORD}
UPDATE = Schema(
    (1, closed(_NAMED, ["host", "binary"])),
    (FORCED, closed({**_NAMED, "forced_down": BOOLEAN}, ["host", "binary"])),
    (UUIDS, closed({
        "status": one_of("enabled", "disabled"), "disabled_reason": _WORD, "forced_down": BOOLEAN,
    })),
)
LIST = queries(query("host", "binary"))
_SWITCH = one_of("enable", "disable", "Enable", "Disable", "ENABLE", "DISABLE")
UPDATE_HOST = Schema((1, {
    **closed({"status": _SWITCH, "maintenance_mode": _SWITCH}), "minProperties": 1,
}))


def by_name(conn: sa.Connection, name: str) -> Host:
    """The host of that name. Errors: `NotFound`."""
    for one in ledger.list_hosts(conn):
        if one.name == name:
            return one
    raise NotFound(f"Compute host {name} could not be found.")


def by_id(conn: sa.Connection, minor: int, id: str) -> Host | None:
    """The host whose number, or from `UUIDS` on UUID, is `id`."""
    for one in ledger.list_hosts(conn):
        if id == (one.uuid if minor >= UUIDS else str(one.id)):
            return one
    return None


def id_of(host: Host, minor: int) -> Any:
    """What a host and its service are called."""
    return host.uuid if minor >= UUIDS else host.id


# -- services


def view(ask: Ask, host: Host, zones: Mapping[int, str]) -> Body:
    """A host as a service."""
    body: Body = {
        "id": id_of(host, ask.minor), "binary": BINARY, "host": host.name,
        "zone": zones.get(host.id, DEFAULT_ZONE),
        "status": "enabled" if host.enabled else "disabled",
        "state": "up" if host.answers else "down",
        "updated_at": precise(host.seen_at or host.added_at), "disabled_reason": host.note,
    }
    if ask.minor >= FORCED:
        body["forced_down"] = host.forced_down
    return body


async def services(ask: Ask) -> Body:
    """All services."""
    def read(conn: sa.Connection) -> list[Body]:
        zones = aggregates.zones(conn)
        return [view(ask, one, zones) for one in ledger.list_hosts(conn)]

    found = await ask.read(read)
    for name in ("host", "binary"):
        wanted = ask.one(name)
        if wanted:
            found = [one for one in found if one[name] == wanted]
    return {"services": found}


async def update(ask: Ask) -> Body:
    """Enable or disable a host, or take it for down."""
    if ask.minor >= UUIDS:
        return await _update_by_uuid(ask)
    action, said = ask.path["id"], ask.body
    actions = ["enable", "disable", "disable-log-reason"]
    if ask.minor >= FORCED:
        actions.append("force-down")
    if action not in actions:
        raise NotFound("Unknown action")
    needed = {"disable-log-reason": "disabled_reason", "force-down": "forced_down"}.get(action)
    if needed is not None and needed not in said:
        raise InvalidInput("body", list(said), f"Missing {needed.replace('_', ' ')} field")
    _is_compute(said["binary"])
    reason = said.get("disabled_reason") if action == "disable-log-reason" else None
    down = truth("forced_down", said["forced_down"]) if action == "force-down" else None

    def write(conn: sa.Connection) -> None:
        host = by_name(conn, said["host"])
        if down is not None:
            _force_down(conn, host, down)
        else:
            _switch(conn, host, action == "enable", reason)

    await ask.write(write)
    named: Body = {"host": said["host"], "binary": BINARY}
    if down is not None:
        return {"service": {**named, "forced_down": down}}
    named["status"] = "enabled" if action == "enable" else "disabled"
    return {"service": named if reason is None else {**named, "disabled_reason": reason}}


def _is_compute(binary: str) -> None:
    if binary != BINARY:
        raise InvalidInput(
            "binary", binary, f"Updating a {binary} service is not supported. Only nova-compute "
            "services can be updated."
        )


def _switch(conn: sa.Connection, host: Host, enabled: bool, reason: str | None) -> None:
    if enabled:
        ledger.enable_host(conn, host.id)
    else:
        ledger.disable_host(conn, host.id, reason)


def _force_down(conn: sa.Connection, host: Host, down: bool) -> None:
    """The word of an operator that the host is off; whether it answers is looked at now."""
    ledger.force_down(conn, host.id, down)
    queue.wake(conn, HOST_KIND, [str(host.id)])


async def _update_by_uuid(ask: Ask) -> Body:
    said = ask.body
    status, reason = said.get("status"), said.get("disabled_reason")
    down = truth("forced_down", said["forced_down"]) if "forced_down" in said else None
    if status is None and down is None:
        raise InvalidInput("body", list(said), "No updates were requested. Fields 'status' or "
                           "'forced_down' should be specified.")
    if status == "enabled" and reason:
        raise InvalidInput("disabled_reason", reason, "Specifying 'disabled_reason' with status "
                           "'enabled' is invalid.")

    def write(conn: sa.Connection) -> Body:
        host = _service(conn, ask)
        if status is not None:
            _switch(conn, host, status == "enabled", reason)
        if down is not None:
            _force_down(conn, host, down)
        return view(ask, _service(conn, ask), aggregates.zones(conn))

    return {"service": await ask.write(write)}


def _service(conn: sa.Connection, ask: Ask) -> Host:
    """The service of the path. Errors: `InvalidInput`, `NotFound`."""
    id = ask.path["id"]
    if ask.minor >= UUIDS:
        if not is_uuid(id):
            raise InvalidInput("id", id, f"Invalid uuid {id}")
    else:
        number("id", id, 0)
    host = by_id(conn, ask.minor, id)
    if host is None:
        raise NotFound(f"Service {id} not found.")
    return host


async def delete(ask: Ask) -> None:
    """Forget a host that has no instances."""
    def write(conn: sa.Connection) -> None:
        if not ledger.remove_host(conn, _service(conn, ask).id):
            raise Conflict("Unable to delete compute service that is hosting instances. Migrate "
                           "or delete the instances first.")

    await ask.write(write)


# -- hosts, which services have replaced


async def listed(ask: Ask) -> Body:
    """The hosts that take instances, or those of one zone."""
    def read(conn: sa.Connection) -> list[Body]:
        zones = aggregates.zones(conn)
        return [
            {"host_name": one.name, "service": "compute", "zone": zones.get(one.id, DEFAULT_ZONE)}
            for one in ledger.list_hosts(conn) if one.enabled
        ]

    zone = ask.one("zone")
    return {"hosts": [
        one for one in await ask.read(read) if not zone or one["zone"] == zone
    ]}


async def show(ask: Ask) -> Body:
    """What a host has, what of it is taken, and by whom."""
    host, held = await ask.read(_with_projects(ask.path["name"]))
    facts = host.facts
    rows = [
        ("(total)", facts.vcpus if facts else 0, facts.memory_mib if facts else 0,
         facts.disk_mib // 1024 if facts else 0),
        ("(used_now)", host.vcpus_used, host.memory_used_mib, host.disk_used_mib // 1024),
        ("(used_max)", sum(one.vcpus for one in held), sum(one.memory_mib for one in held),
         sum(one.disk_gib for one in held)),
        *((one.project_id, one.vcpus, one.memory_mib, one.disk_gib) for one in held),
    ]
    return {"host": [
        {"resource": {"host": host.name, "project": project, "cpu": cpu, "memory_mb": memory,
                      "disk_gb": disk}}
        for project, cpu, memory, disk in rows
    ]}


def _with_projects(name: str) -> Any:
    def read(conn: sa.Connection) -> tuple[Host, list[census.Held]]:
        host = by_name(conn, name)
        return host, census.held_on(conn, host.id)

    return read


async def update_host(ask: Ask) -> Body:
    """Enable or disable a host. Maintenance, which would move its instances away, cannot be had."""
    name, status = ask.path["name"], ask.body.get("status")

    def write(conn: sa.Connection) -> None:
        host = by_name(conn, name)
        if "maintenance_mode" in ask.body:
            raise NotSupported("The requested functionality is not supported.")
        _switch(conn, host, str(status).lower() == "enable", None)

    await ask.write(write)
    return {"host": name, "status": f"{str(status).lower()}d"}


async def power(ask: Ask) -> None:
    """Hosts cannot be switched on and off."""
    await ask.read(lambda conn: by_name(conn, ask.path["name"]))
    raise NotSupported("The requested functionality is not supported.")


_HOST = "/v2.1/os-hosts/{name}"
CALLS = [
    Call("GET", "/v2.1/os-services", services, "compute:services:list", query=LIST),
    Call("PUT", "/v2.1/os-services/{id}", update, "compute:services:update", body=UPDATE),
    Call("DELETE", "/v2.1/os-services/{id}", delete, "compute:services:delete", 204),
    Call("GET", "/v2.1/os-hosts", listed, "compute:hosts:list", until=NO_HOSTS),
    Call("GET", _HOST, show, "compute:hosts:get", until=NO_HOSTS),
    Call("PUT", _HOST, update_host, "compute:hosts:update", body=UPDATE_HOST, until=NO_HOSTS),
    Call("GET", f"{_HOST}/startup", power, "compute:hosts:power", until=NO_HOSTS),
    Call("GET", f"{_HOST}/shutdown", power, "compute:hosts:power", until=NO_HOSTS),
    Call("GET", f"{_HOST}/reboot", power, "compute:hosts:power", until=NO_HOSTS),
]
