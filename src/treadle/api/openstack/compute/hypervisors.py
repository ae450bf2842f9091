"""Hosts as hypervisors: what they are, and up to microversion 2.87 what room they have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    BOOLEAN,
    COUNT,
    HOST_NAME,
    TEXT,
    Body,
    closed,
    following,
    is_uuid,
    part,
    truth,
)
from treadle.api.openstack.compute.hosts import UUIDS, by_id, id_of
from treadle.api.openstack.wire import Ask, Call, NotSupported, Schema, page_of
from treadle.compute import census
from treadle.errors import InvalidInput, NotFound
from treadle.placement import ledger
from treadle.placement.ledger import Host

CPU_OBJECT, PAGES, SERVERS_ALWAYS, NO_ROOM = 28, 33, 75, 88
"""The minor microversions that changed cpu_info, brought pages, give servers even where there are
none, and took the room away."""


def _single(schema: Body) -> Body:
    return {"type": "array", "items": schema, "maxItems": 1}


_ANY = {"type": "object"}
_PAGED = {name: {"type": "array", "items": schema} for name, schema in
          (("limit", COUNT), ("marker", TEXT))}
LIST = Schema(
    (1, _ANY), (PAGES, {"type": "object", "properties": _PAGED}),
    (UUIDS, closed({
        "limit": _single(COUNT), "marker": _single(TEXT), "with_servers": _single(BOOLEAN),
        "hypervisor_hostname_pattern": _single(HOST_NAME),
    })),
)
SHOW = Schema((1, _ANY), (UUIDS, closed({"with_servers": _single(BOOLEAN)})))


@dataclass(frozen=True, slots=True)
class Scene:
    """Hosts with what else is told of them. `now` is seconds since 1970."""

    hosts: Sequence[Host]
    building: Mapping[int, int]
    servers: Mapping[int, Sequence[tuple[str, str]]]
    now: float


def _scene(conn: sa.Connection, hosts: Sequence[Host], with_servers: bool) -> Scene:
    servers = census.on_hosts(conn, [one.id for one in hosts]) if with_servers else {}
    return Scene(hosts, census.building(conn), servers, census.time(conn))


# -- how they look


def brief(ask: Ask, host: Host) -> Body:
    """A hypervisor in the short list."""
    return {
        "id": id_of(host, ask.minor), "hypervisor_hostname": host.name,
        "state": "up" if host.answers else "down",
        "status": "enabled" if host.enabled else "disabled",
    }


def view(ask: Ask, host: Host, scene: Scene) -> Body:
    """A hypervisor with all that the microversion has of it."""
    facts = host.facts
    body = {
        **brief(ask, host),
        "hypervisor_type": facts.hypervisor.upper() if facts else "",
        "hypervisor_version": version_number(facts.hypervisor_version if facts else ""),
        "host_ip": address_of(host.uri),
        "service": {
            "id": id_of(host, ask.minor), "host": host.name, "disabled_reason": host.note,
        },
    }
    if ask.minor >= NO_ROOM:
        body["uptime"] = uptime(host, scene.now)
        return body
    body |= room(host, scene.building.get(host.id, 0))
    cpu = {"arch": facts.arch} if facts else {}
    body["cpu_info"] = cpu if ask.minor >= CPU_OBJECT else json.dumps(cpu)
    return body


def room(host: Host, building: int) -> dict[str, int]:
    """What a host has and what of it is taken, memory in MiB and disk in GiB."""
    facts = host.facts
    memory = facts.memory_mib if facts else 0
    disk = facts.disk_mib // 1024 if facts else 0
    used = host.memory_used_mib + (host.ratios.reserved_memory_mib if facts else 0)
    disk_used = -(-host.disk_used_mib // 1024)
    return {
        "vcpus": facts.vcpus if facts else 0, "memory_mb": memory, "local_gb": disk,
        "vcpus_used": host.vcpus_used, "memory_mb_used": used, "local_gb_used": disk_used,
        "free_ram_mb": memory - used, "free_disk_gb": disk - disk_used,
        "current_workload": building, "running_vms": host.instances,
        "disk_available_least": (host.disk_limit_mib - host.disk_used_mib) // 1024,
    }


def version_number(text: str) -> int:
    """7002001 for "7.2.1"."""
    parts = [int(one) if one.isdecimal() else 0 for one in (text.split(".") + ["0"] * 3)[:3]]
    return (parts[0] * 1000 + parts[1]) * 1000 + parts[2]


def address_of(uri: str) -> str:
    """The address in a host's URI; 0.0.0.0 where it has a name instead, which is not looked up."""
    name = urlsplit(uri).hostname
    if not name:
        return "127.0.0.1"
    try:
        return str(ip_address(name))
    except ValueError:
        return "0.0.0.0"


def uptime(host: Host, now: float) -> str | None:
    """In the words of the program of that name; None where it is not known."""
    if host.facts is None or host.facts.booted_at is None or not host.answers:
        return None
    minutes = max(0, int(now - host.facts.booted_at)) // 60
    days, rest = divmod(minutes, 24 * 60)
    word = f"{days} day{'s' if days != 1 else ''}, " if days else ""
    return f"up {word}{rest // 60:2}:{rest % 60:02}"


def _servers(ask: Ask, host: Host, scene: Scene) -> Body:
    found = [{"uuid": uuid, "name": name} for uuid, name in scene.servers.get(host.id, ())]
    return {"servers": found} if found or ask.minor >= SERVERS_ALWAYS else {}


# -- lists


async def listed(ask: Ask) -> Body:
    """Hypervisors in short."""
    return await _list(ask, detailed=False)


async def listed_whole(ask: Ask) -> Body:
    """Hypervisors with everything."""
    return await _list(ask, detailed=True)


async def _list(ask: Ask, *, detailed: bool) -> Body:
    pattern = ask.one("hypervisor_hostname_pattern") if ask.minor >= UUIDS else None
    with_servers = _with_servers(ask)
    page = page_of(ask) if ask.minor >= PAGES else None
    if pattern is not None and page is not None and (page.asked is not None or page.marker):
        raise InvalidInput(
            "hypervisor_hostname_pattern", pattern, "Paging over hypervisors with the "
            "hypervisor_hostname_pattern query parameter is not supported."
        )

    def name_of(host: Host) -> str:
        return str(id_of(host, ask.minor))

    def read(conn: sa.Connection) -> Scene:
        hosts: Sequence[Host] = ledger.list_hosts(conn)
        if pattern is not None:
            hosts = matching(hosts, pattern)
        elif page is not None:
            hosts = part(hosts, page, name_of)
        return _scene(conn, hosts, with_servers)

    scene = await ask.read(read)
    body: Body = {"hypervisors": [
        (view(ask, one, scene) if detailed else brief(ask, one))
        | (_servers(ask, one, scene) if with_servers else {})
        for one in scene.hosts
    ]}
    if page is not None and pattern is None:
        path = "/os-hypervisors/detail" if detailed else "/os-hypervisors"
        next_page = following(ask, path, page, scene.hosts, name_of)
        if next_page:
            body["hypervisors_links"] = next_page
    return body


def _with_servers(ask: Ask) -> bool:
    said = ask.one("with_servers") if ask.minor >= UUIDS else None
    return said is not None and truth("with_servers", said)


def matching(hosts: Sequence[Host], pattern: str) -> list[Host]:
    """Those whose names have `pattern` in them. Errors: `NotFound` where none has."""
    found = [one for one in hosts if pattern.lower() in one.name.lower()]
    if not found:
        raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
    return found


async def search(ask: Ask) -> Body:
    """Those with a part of a name."""
    found = matching(await ask.read(ledger.list_hosts), ask.path["id"])
    return {"hypervisors": [brief(ask, one) for one in found]}


async def search_servers(ask: Ask) -> Body:
    """Those with a part of a name, and their servers."""
    def read(conn: sa.Connection) -> Scene:
        return _scene(conn, matching(ledger.list_hosts(conn), ask.path["id"]), True)

    scene = await ask.read(read)
    return {"hypervisors": [
        brief(ask, one) | _servers(ask, one, scene) for one in scene.hosts
    ]}


async def statistics(ask: Ask) -> Body:
    """What all hosts that take instances have together."""
    def read(conn: sa.Connection) -> Scene:
        return _scene(conn, [one for one in ledger.list_hosts(conn) if one.enabled], False)

    scene = await ask.read(read)
    total: dict[str, Any] = dict.fromkeys(
        room(scene.hosts[0], 0) if scene.hosts else (
            "vcpus", "memory_mb", "local_gb", "vcpus_used", "memory_mb_used", "local_gb_used",
            "free_ram_mb", "free_disk_gb", "current_workload", "running_vms",
            "disk_available_least",
        ), 0,
    )
    for host in scene.hosts:
        for name, value in room(host, scene.building.get(host.id, 0)).items():
            total[name] += value
    return {"hypervisor_statistics": {"count": len(scene.hosts), **total}}


# -- one


def _one(conn: sa.Connection, ask: Ask) -> Host:
    """The hypervisor of the path. Errors: `InvalidInput`, `NotFound`."""
    id = ask.path["id"]
    if ask.minor >= UUIDS and not is_uuid(id):
        raise InvalidInput("id", id, f"Invalid uuid {id}")
    host = by_id(conn, ask.minor, id)
    if host is None:
        raise NotFound(f"Hypervisor with ID '{id}' could not be found.")
    return host


async def show(ask: Ask) -> Body:
    """One hypervisor."""
    with_servers = _with_servers(ask)
    scene = await ask.read(lambda conn: _scene(conn, [_one(conn, ask)], with_servers))
    [host] = scene.hosts
    servers = _servers(ask, host, scene) if with_servers else {}
    return {"hypervisor": view(ask, host, scene) | servers}


async def show_uptime(ask: Ask) -> Body:
    """How long a host has been up."""
    scene = await ask.read(lambda conn: _scene(conn, [_one(conn, ask)], False))
    [host] = scene.hosts
    if not host.answers:
        raise InvalidInput("hypervisor", host.name,
                           f"Compute service of {host.name} is unavailable at this time.")
    said = uptime(host, scene.now)
    if said is None:
        raise NotSupported("The requested functionality is not supported.")
    return {"hypervisor": {**brief(ask, host), "uptime": said}}


_ALL, _ONE = "/v2.1/os-hypervisors", "/v2.1/os-hypervisors/{id}"
CALLS = [
    Call("GET", _ALL, listed, "compute:hypervisors:list", query=LIST),
    Call("GET", f"{_ALL}/detail", listed_whole, "compute:hypervisors:list", query=LIST),
    Call("GET", f"{_ALL}/statistics", statistics, "compute:hypervisors:statistics",
         until=NO_ROOM - 1),
    Call("GET", _ONE, show, "compute:hypervisors:get", query=SHOW),
    Call("GET", f"{_ONE}/uptime", show_uptime, "compute:hypervisors:get", until=NO_ROOM - 1),
    Call("GET", f"{_ONE}/search", search, "compute:hypervisors:list", until=UUIDS - 1),
    Call("GET", f"{_ONE}/servers", search_servers, "compute:hypervisors:list", until=UUIDS - 1),
]
