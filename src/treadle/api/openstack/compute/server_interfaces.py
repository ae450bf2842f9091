"""How servers are put together as clients look it up: their interfaces and their NUMA nodes."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.api.openstack.compute.action_base import in_words
from treadle.api.openstack.compute.common import UUID_TEXT, Body, closed, inside
from treadle.api.openstack.compute.server_schemas import TAG
from treadle.api.openstack.compute.servers import asker, find
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.compute import interfaces
from treadle.compute import store as instances
from treadle.compute.listing import Key
from treadle.compute.model import Instance, is_settled
from treadle.compute.placing import nodes_of
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.network import store
from treadle.network.model import Port

UNCHOSEN = {
    "fixed_ips": "Addresses are given by the hosts, and cannot be chosen",
    "tag": "Interfaces have no tags here",
}
"""What may not be said of an interface, and why."""
PATIENCE_S = 40.0
"""How long an answer waits for what it tells of: a little longer than a guest is waited for."""
TAGGED = 70
"""The minor microversion from which interfaces have tags."""


def _scene(conn: sa.Connection, ask: Ask) -> store.Scene:
    hosts = ask.context.settings.host_defaults
    return store.scene(conn, hosts.guest_pool, hosts.bridge)


def _ports(conn: sa.Connection, ask: Ask) -> list[Port]:
    key: Key = find(conn, ask)
    return store.ports(conn, _scene(conn, ask), devices=(key.uuid,))


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


async def attach(ask: Ask) -> Body:
    """Give a server without an interface its one, and answer when it has it, as Nova does."""
    wanted = ask.body["interfaceAttachment"]
    net, port = wanted.get("net_id"), wanted.get("port_id")
    if net and port:
        raise InvalidInput("port_id", port, "Must not input both network_id and port_id")
    if "fixed_ips" in wanted and not net:
        raise InvalidInput("fixed_ips", wanted["fixed_ips"],
                           "Must input network_id when request IP address")

    def work(conn: sa.Connection) -> Instance:
        key = find(conn, ask)
        if net and net.lower() != store.default_network_id(conn):
            raise NotFound(f"Network {net} could not be found.")
        found = None if port is None else store.get_port(conn, _scene(conn, ask), port.lower())
        if port and (found is None or found.project_id != key.project_id):
            raise NotFound(f"Port id {port} could not be found.")
        if port:
            raise InvalidInput("port_id", port, f"Port {port} is still in use.")
        with in_words(key.uuid, "attach_interface"):
            instance = interfaces.attach(conn, key.id, request_id=ask.request_id, by=asker(ask))
        for name, why in UNCHOSEN.items():
            if wanted.get(name):
                raise InvalidInput(name, wanted[name], why)
        return instance

    asked = await ask.write(work)
    seen = await ask.context.settled(asked.uuid, is_settled, PATIENCE_S, just_asked=True)
    ports = await ask.read(lambda conn: _ports(conn, ask))
    if not ports or (seen is not None and not seen.mac):
        raise Conflict(
            f"Failed to attach an interface to instance {asked.uuid}: see its actions"
        )
    return {"interfaceAttachment": _shown(ask, ports[0])}


async def detach(ask: Ask) -> None:
    """Take a server's interface; where it runs, answer when its guest has let go of it, or does
    not."""
    port = await _one(ask)

    def work(conn: sa.Connection) -> Instance:
        key = find(conn, ask)
        with in_words(key.uuid, "detach_interface"):
            return interfaces.detach(conn, key.id, request_id=ask.request_id, by=asker(ask))

    await ask.write(work)
    await ask.context.settled(port.device_id, is_settled, PATIENCE_S, just_asked=True)


async def topology(ask: Ask) -> Body:
    """The NUMA nodes of a server; none where it was not asked for any. Administrators see of each
    on which of its host's it is. Processors are not pinned one by one, but to those of a node."""
    loaded = await ask.read(lambda conn: instances.load(conn, find(conn, ask).uuid))
    nodes: list[Body] = []
    first = 0
    for node in () if loaded is None else nodes_of(loaded):
        shown: Body = {
            "memory_mb": node.memory_mib, "siblings": [],
            "vcpu_set": list(range(first, first + node.vcpus)),
        }
        if ask.allows("compute:servers:extended"):
            shown |= {"host_node": node.cell, "cpu_pinning": {}}
        nodes.append(shown)
        first += node.vcpus
    return {"nodes": nodes, "pagesize_kb": None}


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
