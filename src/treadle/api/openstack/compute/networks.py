"""Networks as compute showed them up to microversion 2.35, before clients asked the network itself.

There is the one default network and in each project the one security group; addresses that float
are not to be had.
"""

from __future__ import annotations

import sqlalchemy as sa

from treadle.api.openstack.compute.common import Body
from treadle.api.openstack.wire import Ask, Call
from treadle.errors import InvalidInput, NotFound, QuotaExceeded
from treadle.network import store
from treadle.network.model import Network, SecurityGroup, rule_id
from treadle.network.store import Scene

LAST = 35
FIELDS = (
    "cidr", "netmask", "gateway", "broadcast", "dns1", "dns2", "cidr_v6", "gateway_v6",
    "netmask_v6",
)
ADMIN_FIELDS = (
    "created_at", "updated_at", "deleted_at", "deleted", "injected", "bridge", "vlan",
    "vpn_public_address", "vpn_public_port", "vpn_private_address", "dhcp_start", "project_id",
    "host", "bridge_interface", "multi_host", "priority", "rxtx_base", "mtu", "dhcp_server",
    "enable_dhcp", "share_address",
)
"""What is told of a network is its id and its name; the rest is null and always was."""
ANYWHERE = {"IPv4": "0.0.0.0/0", "IPv6": "::/0"}


async def _scene(ask: Ask) -> Scene:
    hosts = ask.context.settings.host_defaults

    def read(conn: sa.Connection) -> Scene:
        return store.scene(conn, hosts.guest_pool, hosts.bridge)

    return await ask.read(read)


def _network(ask: Ask, one: Network) -> Body:
    fields = (*FIELDS, *ADMIN_FIELDS) if ask.caller.is_admin else FIELDS
    return {"id": one.id, "label": one.name, **dict.fromkeys(fields)}


async def listed(ask: Ask) -> Body:
    """The networks."""
    return {"networks": [_network(ask, (await _scene(ask)).network)]}


async def show(ask: Ask) -> Body:
    """One network."""
    return {"network": _network(ask, await _the_network(ask))}


async def _the_network(ask: Ask) -> Network:
    found = (await _scene(ask)).network
    if ask.path["id"] != found.id:
        raise NotFound("Network not found")
    return found


def _of_tenant(one: Network) -> Body:
    return {"id": one.id, "label": one.name, "cidr": "None"}


async def tenant_listed(ask: Ask) -> Body:
    """The networks that the project has."""
    return {"networks": [_of_tenant((await _scene(ask)).network)]}


async def tenant_show(ask: Ask) -> Body:
    """One network of the project."""
    return {"network": _of_tenant(await _the_network(ask))}


# -- security groups


def _group(one: SecurityGroup) -> Body:
    return {
        "id": one.id, "name": one.name, "description": "Default security group",
        "tenant_id": one.project_id,
        "rules": [
            {
                "id": rule_id(one.id, "ingress", kind), "parent_group_id": one.id,
                "ip_protocol": None, "from_port": None, "to_port": None, "group": {},
                "ip_range": {"cidr": cidr},
            }
            for kind, cidr in ANYWHERE.items()
        ],
    }


async def groups(ask: Ask) -> Body:
    """The security groups of the project."""
    scene = await _scene(ask)
    return {"security_groups": [_group(scene.group(ask.caller.project_id or ""))]}


async def group(ask: Ask) -> Body:
    """One security group of the project."""
    return {"security_group": _group(await _the_group(ask))}


async def _the_group(ask: Ask) -> SecurityGroup:
    found = (await _scene(ask)).group(ask.caller.project_id or "")
    if ask.path["id"] != found.id:
        raise NotFound(f"Security group {ask.path['id'][:64]} not found.")
    return found


async def no_more_groups(_ask: Ask) -> None:
    """There is one group a project."""
    raise QuotaExceeded("Quota exceeded, too many security groups.")


async def keep_group(ask: Ask) -> None:
    """The one group stays as it is."""
    one = await _the_group(ask)
    raise InvalidInput("security group", one.name, "it can neither be changed nor deleted")


async def no_more_rules(_ask: Ask) -> None:
    """The group lets all through."""
    raise QuotaExceeded("Quota exceeded, too many security group rules.")


async def keep_rule(ask: Ask) -> None:
    """The group goes on letting all through."""
    found = (await _scene(ask)).group(ask.caller.project_id or "")
    if ask.path["id"] not in [rule_id(found.id, "ingress", kind) for kind in ANYWHERE]:
        raise NotFound(f"Security group rule {ask.path['id'][:64]} not found.")
    raise InvalidInput("security group rule", ask.path["id"], "it cannot be deleted")


# -- addresses that float


async def pools(_ask: Ask) -> Body:
    """Where they would come from."""
    return {"floating_ip_pools": []}


async def floating(_ask: Ask) -> Body:
    """Those of the project."""
    return {"floating_ips": []}


async def no_floating(ask: Ask) -> None:
    """None is there by that id."""
    raise NotFound(f"Floating IP not found for ID {ask.path['id'][:64]}")


async def no_more_floating(_ask: Ask) -> None:
    """None can be had."""
    raise NotFound("No more floating IPs available.")


_READ, _CHANGE = "compute:networks:get", "compute:networks:change"
_GROUPS, _FLOATING = "/v2.1/os-security-groups", "/v2.1/os-floating-ips"
CALLS = [
    Call("GET", "/v2.1/os-networks", listed, _READ, until=LAST),
    Call("GET", "/v2.1/os-networks/{id}", show, _READ, until=LAST),
    Call("GET", "/v2.1/os-tenant-networks", tenant_listed, _READ, until=LAST),
    Call("GET", "/v2.1/os-tenant-networks/{id}", tenant_show, _READ, until=LAST),
    Call("GET", _GROUPS, groups, _READ, until=LAST),
    Call("POST", _GROUPS, no_more_groups, _CHANGE, until=LAST),
    Call("GET", f"{_GROUPS}/{{id}}", group, _READ, until=LAST),
    Call("PUT", f"{_GROUPS}/{{id}}", keep_group, _CHANGE, until=LAST),
    Call("DELETE", f"{_GROUPS}/{{id}}", keep_group, _CHANGE, 202, until=LAST),
    Call("POST", "/v2.1/os-security-group-rules", no_more_rules, _CHANGE, until=LAST),
    Call("DELETE", "/v2.1/os-security-group-rules/{id}", keep_rule, _CHANGE, 202, until=LAST),
    Call("GET", "/v2.1/os-floating-ip-pools", pools, _READ, until=LAST),
    Call("GET", _FLOATING, floating, _READ, until=LAST),
    Call("POST", _FLOATING, no_more_floating, _CHANGE, until=LAST),
    Call("GET", f"{_FLOATING}/{{id}}", no_floating, _READ, until=LAST),
    Call("DELETE", f"{_FLOATING}/{{id}}", no_floating, _CHANGE, 202, until=LAST),
]
