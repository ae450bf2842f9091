"""How servers are put together as clients look it up: their interfaces and their NUMA nodes."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.api.openstack.compute.common import UUID_TEXT, Body, closed, inside
from treadle.api.openstack.compute.server_schemas import TAG
from treadle.api.openstack.compute.servers import find
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.compute.listing import Key
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.network import store
from treadle.network.model import Port

TAGGED = 70
"""The minor microversion from which interfaces have tags."""


def _ports(conn: sa.Connection, ask: Ask) -> list[Port]:
    hosts = ask.context.settings.host_defaults
    key: Key = find(conn, ask)
    scene = store.scene(conn, hosts.guest_pool, hosts.bridge)
    return store.ports(conn, scene, devices=(key.uuid,))


def _shown(ask: Ask, port: Port) -> Body:
    fixed = []
    if port.address and port.subnet_id:
        fixed = [{"subnet_id": port.subnet_id, "ip_address": port.address}]
    shown = {
        "port_id": port.id, "net_id": port.network_id, "mac_addr": port.mac, "fixed_ips": fixed,
        "port_state": str(port.status),
    }
    return shown | ({"tag": None} if ask.minor >= TAGGED else {})


async def listed(ask: Ask) -> Body:
    """The interfaces of a server: one in the default network, or none."""
    ports = await ask.read(lambda conn: _ports(conn, ask))
    return {"interfaceAttachments": [_shown(ask, port) for port in ports]}


async def show(ask: Ask) -> Body:
    """One interface."""
    return {"interfaceAttachment": _shown(ask, await _one(ask))}


async def _one(ask: Ask) -> Port:
    """The interface of the path. Errors: `NotFound`."""
    for port in await ask.read(lambda conn: _ports(conn, ask)):
        if port.id == ask.path["port_id"].lower():
            return port
    raise NotFound(f"Port {ask.path['port_id'][:64]} not found for server "
                   f"{ask.path['server_id'][:64]}")


async def attach(ask: Ask) -> None:
    """There is nothing else to be attached to."""
    await ask.read(lambda conn: find(conn, ask))
    raise InvalidInput("interfaceAttachment", ask.body["interfaceAttachment"],
                       "this cloud has one network, to which servers are attached when they "
                       "are made")


async def detach(ask: Ask) -> None:
    """An interface stays as long as its server."""
    port = await _one(ask)
    raise Conflict(f"Port {port.id} stays as long as its server: this cloud has one network")


async def topology(ask: Ask) -> Body:
    """The NUMA nodes of a server: guests have none of their own."""
    await ask.read(lambda conn: find(conn, ask))
    return {"nodes": [], "pagesize_kb": None}


_ADDRESS = closed({"ip_address": {"type": "string", "maxLength": 64}}, ["ip_address"])
_ATTACH: Body = {
    "net_id": UUID_TEXT, "port_id": UUID_TEXT,
    "fixed_ips": {"type": "array", "minItems": 1, "maxItems": 1, "items": _ADDRESS},
}
ATTACH = Schema(
    (1, inside("interfaceAttachment", closed(_ATTACH))),
    (49, inside("interfaceAttachment", closed({**_ATTACH, "tag": TAG}))),
)
SERVER = "/v2.1/servers/{server_id}"
CALLS = [
    Call("GET", f"{SERVER}/os-interface", listed, "compute:attachments:get"),
    Call("POST", f"{SERVER}/os-interface", attach, "compute:attachments:change", body=ATTACH),
    Call("GET", f"{SERVER}/os-interface/{{port_id}}", show, "compute:attachments:get"),
    Call("DELETE", f"{SERVER}/os-interface/{{port_id}}", detach, "compute:attachments:change",
         202),
    Call("GET", f"{SERVER}/topology", topology, "compute:servers:show", since=78),
]
