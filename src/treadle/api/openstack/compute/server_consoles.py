"""Getting at servers: consoles, what they printed, and what they use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from treadle.api.openstack.compute.common import closed, inside, one_of
from treadle.api.openstack.compute.servers import find_row
from treadle.api.openstack.wire import Ask, Call, Reply, Schema
from treadle.compute import console_store, consoles
from treadle.compute.consoles import NoSuchConsole, Opened, Place
from treadle.compute.listing import Row
from treadle.compute.model import Instance, word
from treadle.db.clock import now
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.hypervisor.base import ConsoleKind, GuestStats, Power
from treadle.placement import ledger

T = TypeVar("T")
TOKENS = 31
"""The minor microversion from which the tokens of all consoles are told of."""

KINDS = {
    ("vnc", "novnc"): ConsoleKind.VNC,
    ("serial", "serial"): ConsoleKind.SERIAL,
}
"""What OpenStack calls a protocol and a type, to the console that it is."""
STATES = {
    Power.RUNNING: "running", Power.PAUSED: "paused", Power.OFF: "shutdown",
    Power.SAVED: "suspended", Power.REMNANT: "shutdown",
}


async def _open(ask: Ask, protocol: str, type: str) -> tuple[Opened, str]:
    kind = KINDS.get((protocol, type))

    def work(conn: sa.Connection) -> Opened:
        row = find_row(conn, ask)
        if kind is None:
            raise NoSuchConsole("type", type, "there are novnc and serial")
        return consoles.open_console(
            conn, row.instance, kind, ask.context.settings.console.token_s
        )

    opened = await ask.write(work)
    return opened, opened.url(ask.context.base(ask.request))


async def remote_console(ask: Ask) -> dict[str, Any]:
    """A link that lets one client in at a server's console, once."""
    wanted = ask.body["remote_console"]
    protocol, type = wanted["protocol"], wanted["type"]
    _, url = await _open(ask, protocol, type)
    return {"remote_console": {"protocol": protocol, "type": type, "url": url}}


def getter(protocol: str) -> Callable[[Ask, Any], Any]:
    """The action for one protocol, as it was before 2.6."""

    async def run(ask: Ask, value: Any) -> Reply:
        _, url = await _open(ask, protocol, value["type"])
        return Reply({"console": {"type": value["type"], "url": url}})

    return run


async def console_output(ask: Ask, value: Any) -> Reply:
    """The end of what the server printed."""
    length = (value or {}).get("length")
    lines = None if length is None or int(length) == -1 else int(length)
    place = await ask.read(lambda conn: _place(conn, find_row(conn, ask).instance))
    text = await _on_host(consoles.console_log, ask, place, lines)
    return Reply({"output": text})


def _place(conn: sa.Connection, instance: Instance) -> Place:
    place = consoles.place_of(conn, instance.uuid)
    if place is None:
        raise Conflict(f"Instance {instance.uuid} is not ready: it is {word(instance)}")
    return place


def _on_host(work: Callable[..., T], ask: Ask, place: Place, *more: Any) -> Any:
    return asyncio.to_thread(work, ask.context.fleet, place, *more)


async def diagnostics(ask: Ask) -> dict[str, Any]:
    """What the server uses now."""

    def read(conn: sa.Connection) -> tuple[Row, Place, str, float]:
        row = find_row(conn, ask)
        place = _place(conn, row.instance)
        host = ledger.get_host(conn, place.host_id)
        name = host.virt_type if host is not None else ""
        return row, place, name, float(conn.execute(sa.select(now())).scalar_one())

    row, place, hypervisor, time = await ask.read(read)
    stats: GuestStats = await _on_host(consoles.diagnostics, ask, place)
    if ask.minor < 48:
        return as_before_48(stats)
    launched = row.instance.launched_at
    return {
        "state": STATES[stats.power], "driver": "libvirt", "hypervisor": hypervisor,
        "hypervisor_os": "linux", "uptime": None if launched is None else int(time - launched),
        "config_drive": bool(row.columns.config_drive),
        "num_cpus": len(stats.cpu_ns), "num_nics": len(stats.nics),
        "num_disks": len(stats.disks),
        "memory_details": {"maximum": stats.memory_mib, "used": stats.memory_used_mib},
        "cpu_details": [
            {"id": number, "time": spent, "utilisation": None}
            for number, spent in enumerate(stats.cpu_ns)
        ],
        "nic_details": [
            {
                "mac_address": nic.mac, "rx_octets": nic.rx_bytes, "rx_errors": nic.rx_errors,
                "rx_drop": nic.rx_drop, "rx_packets": nic.rx_packets, "rx_rate": None,
                "tx_octets": nic.tx_bytes, "tx_errors": nic.tx_errors, "tx_drop": nic.tx_drop,
                "tx_packets": nic.tx_packets, "tx_rate": None,
            }
            for nic in stats.nics
        ],
        "disk_details": [
            {
                "read_bytes": disk.read_bytes, "read_requests": disk.read_requests,
                "write_bytes": disk.write_bytes, "write_requests": disk.write_requests,
                "errors_count": None,
            }
            for disk in stats.disks
        ],
    }


def as_before_48(stats: GuestStats) -> dict[str, Any]:
    """The flat form without a schema, in the names that tools came to expect. Memory in KiB."""
    body: dict[str, Any] = {"memory": stats.memory_mib * 1024}
    if stats.memory_used_mib is not None:
        body["memory-rss"] = stats.memory_used_mib * 1024
    body |= {f"cpu{number}_time": spent for number, spent in enumerate(stats.cpu_ns)}
    for disk in stats.disks:
        body |= {
            f"{disk.device}_read": disk.read_bytes, f"{disk.device}_read_req": disk.read_requests,
            f"{disk.device}_write": disk.write_bytes,
            f"{disk.device}_write_req": disk.write_requests, f"{disk.device}_errors": -1,
        }
    for number, nic in enumerate(stats.nics):
        body |= {
            f"vnet{number}_rx": nic.rx_bytes, f"vnet{number}_rx_packets": nic.rx_packets,
            f"vnet{number}_rx_errors": nic.rx_errors, f"vnet{number}_rx_drop": nic.rx_drop,
            f"vnet{number}_tx": nic.tx_bytes, f"vnet{number}_tx_packets": nic.tx_packets,
            f"vnet{number}_tx_errors": nic.tx_errors, f"vnet{number}_tx_drop": nic.tx_drop,
        }
    return body


async def token_leads_to(ask: Ask) -> dict[str, Any]:
    """Whose console a token opens. It is this process that opens it, so the port is its own."""
    if ask.minor < TOKENS:
        raise InvalidInput("token", "(hidden)", "only consoles of a type that is gone were told")

    def read(conn: sa.Connection) -> tuple[str, str]:
        found = console_store.look(conn, ask.path["token"])
        host = None if found is None else ledger.get_host(conn, found[1])
        if found is None or host is None:
            raise NotFound("Token not found")
        return found[0], host.name

    uuid, host = await ask.read(read)
    return {"console": {
        "instance_uuid": uuid, "host": host, "port": ask.context.settings.server.port,
        "internal_access_path": None,
    }}


VNC = Schema((1, inside("type", one_of("novnc", "xvpvnc"))))
SERIAL = Schema((1, inside("type", one_of("serial"))))
OUTPUT = Schema((1, {
    "type": ["object", "null"], "additionalProperties": False,
    "properties": {"length": {
        "type": ["integer", "string", "null"], "pattern": "^(-1|[0-9]{1,9})$", "minimum": -1,
        "maximum": 999_999_999,
    }},
}))
REMOTE = Schema((6, inside("remote_console", closed({
    "protocol": one_of("vnc", "spice", "rdp", "serial"),
    "type": one_of("novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial"),
}, ("protocol", "type")))), (8, inside("remote_console", closed({
    "protocol": one_of("vnc", "spice", "rdp", "serial", "mks"),
    "type": one_of("novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial", "webmks"),
}, ("protocol", "type")))), (99, inside("remote_console", closed({
    "protocol": one_of("vnc", "spice", "rdp", "serial", "mks"),
    "type": one_of("novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial", "webmks",
                   "spice-direct"),
}, ("protocol", "type")))))
TOKEN = Schema((1, {}), (99, closed({})))

CALLS = [
    Call(
        "POST", "/v2.1/servers/{server_id}/remote-consoles", remote_console,
        "compute:servers:remote_consoles", body=REMOTE, since=6,
    ),
    Call(
        "GET", "/v2.1/servers/{server_id}/diagnostics", diagnostics, "compute:servers:diagnostics",
    ),
    Call(
        "GET", "/v2.1/os-console-auth-tokens/{token}", token_leads_to, "compute:consoles:token",
        query=TOKEN,
    ),
]
