"""Network v2.0: what clients need to see the default network. Virtual networks are not there yet.

The endpoint has no version, as clients expect: they add /v2.0 themselves. Lists take `fields`, any
attribute as a filter, sort_key and sort_dir, limit and marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from treadle.api.openstack.wire import Ask, Call, Page, Service, next_link, page_of, shape_of
from treadle.errors import Conflict, Forbidden, InvalidInput, NotFound
from treadle.network import store
from treadle.network.model import (
    MTU,
    Network,
    Port,
    PortStatus,
    SecurityGroup,
    Subnet,
    rule_id,
)
from treadle.network.store import Scene

Body = dict[str, Any]
Read = Callable[[sa.Connection], Any]

ROOT = "/network"
NOT_YET = (
    "virtual networks are not there yet: this cloud has the network named default, which every "
    "project may use and nobody may change"
)
EXTENSIONS = (
    ("agent", "agent", "The agents of networks, of which there are none."),
    ("address-scope", "Address scope", "Scopes of addresses, of which there are none."),
    ("binding", "Port Binding", "On which host a port is."),
    ("external-net", "Neutron external network", "Whether a network leads outside."),
    ("net-mtu", "Network MTU", "The largest packet of a network."),
    ("pagination", "Pagination support", "Lists in pages."),
    ("port-security", "Port Security", "Guests cannot speak with another's MAC address."),
    ("project-id", "project_id field enabled", "The project of each thing."),
    ("provider", "Provider Network", "How a network is made."),
    ("quotas", "Quota management support", "How much a project may have."),
    ("quota_details", "Quota details management support", "How much of it a project has."),
    ("router", "Neutron L3 Router", "Routers and floating addresses, of which there are none."),
    ("security-group", "security-group", "The group that lets all through."),
    ("sorting", "Sorting support", "Lists in order."),
    ("standard-attr-description", "standard-attr-description", "A description of each thing."),
    ("standard-attr-timestamp", "Resource timestamps", "When a port was made and changed."),
)
QUOTAS = {
    "network": 0, "subnet": 0, "port": -1, "router": 0, "floatingip": 0, "security_group": 1,
    "security_group_rule": 4, "subnetpool": 0, "rbac_policy": 0,
}
"""Ports go with servers, and those have quotas of their own. Nothing else can be made."""
RULES = (("egress", "IPv4"), ("egress", "IPv6"), ("ingress", "IPv4"), ("ingress", "IPv6"))


# -- lists


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def matches(body: Mapping[str, Any], ask: Ask) -> bool:
    """Whether each argument that names an attribute has a value that the body has."""
    for name, values in ask.query.items():
        key = "project_id" if name == "tenant_id" else name
        if key == "fixed_ips":
            if not all(_holds_address(body.get(key, ()), value) for value in values):
                return False
        elif key in body:
            held = body[key]
            texts = {_text(one).lower() for one in (held if isinstance(held, list) else [held])}
            if not any(value.lower() in texts for value in values):
                return False
    return True


def _holds_address(fixed: Iterable[Mapping[str, str]], value: str) -> bool:
    name, separator, wanted = value.partition("=")
    if not separator or name not in ("ip_address", "subnet_id"):
        raise InvalidInput("fixed_ips", value, "write ip_address=ADDRESS or subnet_id=ID")
    return any(one.get(name) == wanted for one in fixed)


def cut(body: Body, ask: Ask) -> Body:
    """Only the attributes that `fields` names, where it names any."""
    wanted = ask.query.get("fields")
    if not wanted:
        return body
    return {key: value for key, value in body.items() if key in wanted}


def in_pages(name: str, bodies: Sequence[Body], ask: Ask) -> Body:
    """The part of a short list that is asked for, and where the next one is.

    Errors: `InvalidInput`.
    """
    found = [body for body in bodies if matches(body, ask)]
    known = {key: key for body in bodies for key, value in body.items()
             if isinstance(value, str | int | None)}
    # An empty list has no attributes to name, and is in any order.
    page = page_of(ask, keys=known or {key: key for key in ask.query.get("sort_key", ())},
                   default=(("id", False),))
    for key, descending in reversed(page.sort):
        found.sort(key=lambda body: _text(body[key]), reverse=descending)
    if page.marker is not None:
        places = [n for n, body in enumerate(found) if body["id"] == page.marker]
        if not places:
            raise InvalidInput("marker", page.marker, f"it must be the id of one of {name}")
        found = found[places[0] + 1:]
    return _page(name, found, page, ask)


def _page(name: str, found: Sequence[Body], page: Page, ask: Ask) -> Body:
    shown = found[:page.limit]
    made: Body = {name: [cut(body, ask) for body in shown]}
    if len(found) > page.limit and shown:
        made[f"{name}_links"] = [
            {"rel": "next", "href": next_link(ask, f"/v2.0/{name}", shown[-1]["id"])}
        ]
    return made


# -- what there is, as bodies


def _scene(ask: Ask, conn: sa.Connection) -> Scene:
    hosts = ask.context.settings.host_defaults
    return store.scene(conn, hosts.guest_pool, hosts.bridge)


def network_body(network: Network, admin: bool) -> Body:
    """A network; how it is made is for administrators."""
    body: Body = {
        "id": network.id, "name": network.name, "description": "", "status": "ACTIVE",
        "admin_state_up": True, "shared": True, "router:external": False, "is_default": False,
        "tenant_id": network.project_id, "project_id": network.project_id, "mtu": MTU,
        "subnets": list(network.subnet_ids), "port_security_enabled": True,
        "availability_zones": [], "availability_zone_hints": [],
        "ipv4_address_scope": None, "ipv6_address_scope": None, "tags": [],
    }
    if admin:
        body |= {
            "provider:network_type": "flat" if network.flat else "local",
            "provider:physical_network": None, "provider:segmentation_id": None,
        }
    return body


def subnet_body(subnet: Subnet) -> Body:
    """A subnet. It has no gateway of its own: each host is that of its own guests."""
    return {
        "id": subnet.id, "name": subnet.name, "network_id": subnet.network_id,
        "description": "Each host has a part of it, and is the gateway of that part.",
        "tenant_id": subnet.project_id, "project_id": subnet.project_id, "ip_version": 4,
        "cidr": subnet.cidr, "gateway_ip": None, "enable_dhcp": True, "dns_nameservers": [],
        "host_routes": [], "service_types": [], "subnetpool_id": None,
        "allocation_pools": [{"start": first, "end": last} for first, last in subnet.pools],
        "ipv6_ra_mode": None, "ipv6_address_mode": None, "tags": [],
    }


def port_body(port: Port, group: SecurityGroup, admin: bool) -> Body:
    """A port; where it is, is for administrators."""
    fixed = []
    if port.address is not None and port.subnet_id is not None:
        fixed.append({"subnet_id": port.subnet_id, "ip_address": port.address})
    body: Body = {
        "id": port.id, "name": "", "description": "", "network_id": port.network_id,
        "tenant_id": port.project_id, "project_id": port.project_id, "status": str(port.status),
        "admin_state_up": True, "mac_address": port.mac, "fixed_ips": fixed,
        "device_id": port.device_id, "device_owner": "compute:nova",
        "security_groups": [group.id], "allowed_address_pairs": [], "extra_dhcp_opts": [],
        "port_security_enabled": True, "binding:vnic_type": "normal", "tags": [],
        "created_at": _time(port.created_at), "updated_at": _time(port.updated_at),
        "revision_number": port.revision,
    }
    if admin:
        body |= {
            "binding:host_id": port.host or "", "binding:vif_type": "bridge",
            "binding:vif_details": {}, "binding:profile": {},
        }
    return body


def group_body(group: SecurityGroup) -> Body:
    """A project's security group."""
    return {
        "id": group.id, "name": group.name, "description": "Default security group",
        "tenant_id": group.project_id, "project_id": group.project_id, "stateful": True,
        "shared": False, "tags": [], "security_group_rules": rule_bodies(group),
    }


def rule_bodies(group: SecurityGroup) -> list[Body]:
    """All pass in both directions."""
    return [
        {
            "id": rule_id(group.id, direction, kind), "security_group_id": group.id,
            "tenant_id": group.project_id, "project_id": group.project_id,
            "direction": direction, "ethertype": kind, "protocol": None, "port_range_min": None,
            "port_range_max": None, "remote_ip_prefix": None, "remote_group_id": None,
            "remote_address_group_id": None, "description": "",
        }
        for direction, kind in RULES
    ]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def extension_bodies() -> list[Body]:
    """What of the API is there beside networks, subnets and ports."""
    return [
        {"alias": alias, "name": name, "description": text, "links": [],
         "updated": "2026-01-01T00:00:00-00:00"}
        for alias, name, text in EXTENSIONS
    ]


# -- versions


async def versions(ask: Ask) -> Body:
    """The one version there is."""
    return {"versions": [{
        "id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": f"{ask.root}/v2.0/"}],
    }]}


async def resources(ask: Ask) -> Body:
    """What the version has."""
    names = (("network", "networks"), ("subnet", "subnets"), ("port", "ports"),
             ("extension", "extensions"), ("quota", "quotas"),
             ("security_group", "security-groups"))
    return {"resources": [
        {"name": name, "collection": plural,
         "links": [{"rel": "self", "href": f"{ask.root}/v2.0/{plural}"}]}
        for name, plural in names
    ]}


# -- lists and shows


async def networks(ask: Ask) -> Body:
    """All networks."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    return in_pages("networks", [network_body(scene.network, ask.caller.is_admin)], ask)


async def network(ask: Ask) -> Body:
    """One network."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    if ask.path["id"] != scene.network.id:
        raise NotFound(f"Network {ask.path['id'][:64]} could not be found.")
    return {"network": cut(network_body(scene.network, ask.caller.is_admin), ask)}


async def subnets(ask: Ask) -> Body:
    """All subnets."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    found = [] if scene.subnet is None else [subnet_body(scene.subnet)]
    return in_pages("subnets", found, ask)


async def subnet(ask: Ask) -> Body:
    """One subnet."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    if scene.subnet is None or ask.path["id"] != scene.subnet.id:
        raise NotFound(f"Subnet {ask.path['id'][:64]} could not be found.")
    return {"subnet": cut(subnet_body(scene.subnet), ask)}


async def ports(ask: Ask) -> Body:
    """The ports of the caller's project; of all, where an administrator asks."""
    page = page_of(ask, keys={"created_at": "created_at", "id": "created_at"},
                   default=(("created_at", False),))
    admin = ask.caller.is_admin
    newest = page.sort[0][1]

    def read(conn: sa.Connection) -> list[Body]:
        scene = _scene(ask, conn)
        after = None
        if page.marker is not None:
            marked = store.get_port(conn, scene, page.marker)
            if marked is None or not _may_see(ask, marked):
                raise InvalidInput("marker", page.marker, "it must be the id of one of the ports")
            after = marked.row
        found: list[Body] = []
        wanted = page.limit + 1
        while len(found) < wanted:
            several = store.ports(
                conn, scene, project_ids=_projects(ask), devices=_values(ask, "device_id"),
                macs=_values(ask, "mac_address"), addresses=_addresses(ask), after=after,
                limit=wanted, newest_first=newest,
            )
            bodies = (port_body(one, scene.group(one.project_id), admin) for one in several)
            found += [body for body in bodies if matches(body, ask)]
            if len(several) < wanted:
                break
            after = several[-1].row
        return found[:wanted]

    return _page("ports", await ask.read(read), page, ask)


async def port(ask: Ask) -> Body:
    """One port."""
    body = await ask.read(lambda conn: _port(ask, conn))
    return {"port": cut(body, ask)}


def _port(ask: Ask, conn: sa.Connection) -> Body:
    scene = _scene(ask, conn)
    found = store.get_port(conn, scene, ask.path["id"])
    if found is None or not _may_see(ask, found):
        raise NotFound(f"Port {ask.path['id'][:64]} could not be found.")
    return port_body(found, scene.group(found.project_id), ask.caller.is_admin)


def _may_see(ask: Ask, one: Port) -> bool:
    return ask.caller.is_admin or one.project_id == ask.caller.project_id


def _projects(ask: Ask) -> tuple[str, ...] | None:
    if ask.caller.is_admin:
        return _values(ask, "project_id") or _values(ask, "tenant_id")
    return (ask.caller.project_id or "",)


def _values(ask: Ask, name: str) -> tuple[str, ...] | None:
    return tuple(ask.query[name]) if name in ask.query else None


def _addresses(ask: Ask) -> tuple[str, ...] | None:
    pairs = [value.partition("=") for value in ask.query.get("fixed_ips", ())]
    return tuple(value for name, _, value in pairs if name == "ip_address") or None


def _groups(ask: Ask, scene: Scene) -> list[SecurityGroup]:
    """Those that the caller may see: his project's, or those that an administrator names."""
    named = _projects(ask) if ask.caller.is_admin else None
    ids = named or tuple(id for id in (ask.caller.project_id,) if id)
    return [scene.group(id) for id in ids]


async def security_groups(ask: Ask) -> Body:
    """The group of the caller's project; an administrator may name another project."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    return in_pages("security_groups", [group_body(one) for one in _groups(ask, scene)], ask)


async def security_group(ask: Ask) -> Body:
    """The group of the caller's project."""
    return {"security_group": cut(group_body(await _group(ask)), ask)}


async def _group(ask: Ask) -> SecurityGroup:
    scene = await ask.read(lambda conn: _scene(ask, conn))
    for one in _groups(ask, scene):
        if one.id == ask.path["id"]:
            return one
    raise NotFound(f"Security group {ask.path['id'][:64]} does not exist")


async def security_group_rules(ask: Ask) -> Body:
    """The rules of the group."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    found = [rule for one in _groups(ask, scene) for rule in rule_bodies(one)]
    return in_pages("security_group_rules", found, ask)


async def security_group_rule(ask: Ask) -> Body:
    """One rule of the group."""
    scene = await ask.read(lambda conn: _scene(ask, conn))
    for one in _groups(ask, scene):
        for rule in rule_bodies(one):
            if rule["id"] == ask.path["id"]:
                return {"security_group_rule": cut(rule, ask)}
    raise NotFound(f"Security group rule {ask.path['id'][:64]} does not exist")


async def delete_security_group(ask: Ask) -> None:
    """Nobody may take his project's group away; for an administrator it is made anew at once."""
    if ask.caller.is_admin:
        if _uuid(ask.path["id"]):
            return
        raise NotFound(f"Security group {ask.path['id'][:64]} does not exist")
    await _group(ask)
    raise Conflict("Removing default security group not allowed.")


def _uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


async def extensions(_ask: Ask) -> Body:
    """What of the API is there."""
    return {"extensions": extension_bodies()}


async def extension(ask: Ask) -> Body:
    """One of them, by its alias."""
    for body in extension_bodies():
        if body["alias"] == ask.path["alias"]:
            return {"extension": body}
    raise NotFound(f"Extension with alias {ask.path['alias'][:64]} does not exist")


def _quota_project(ask: Ask) -> str:
    id = ask.path["project_id"]
    if not ask.caller.is_admin and id != ask.caller.project_id:
        raise NotFound(f"Quota for project {id[:64]} could not be found.")
    return id


async def quotas(_ask: Ask) -> Body:
    """Projects with quotas of their own: none."""
    return {"quotas": []}


async def quota(ask: Ask) -> Body:
    """How much a project may have."""
    _quota_project(ask)
    return {"quota": dict(QUOTAS)}


async def reset_quota(ask: Ask) -> None:
    """A project has no quotas of its own, so they are what they would become."""
    _quota_project(ask)


async def quota_details(ask: Ask) -> Body:
    """How much a project may have, and has."""
    id = _quota_project(ask)
    used = {"port": await ask.read(lambda conn: store.count_ports(conn, id)),
            "security_group": 1, "security_group_rule": len(RULES)}
    return {"quota": {
        name: {"limit": limit, "used": used.get(name, 0), "reserved": 0}
        for name, limit in QUOTAS.items()
    }}


async def quota_project(ask: Ask) -> Body:
    """The project whose quotas the caller has."""
    return {"tenant": {"tenant_id": ask.caller.project_id}}


# -- what cannot be changed


async def create_nothing(_ask: Ask) -> None:
    """Refuse to make something."""
    raise Forbidden(NOT_YET)


def _keep(show: Callable[[Ask], Any]) -> Callable[[Ask], Any]:
    async def keep(ask: Ask) -> None:
        """Refuse to change what is there; what is not there is not found."""
        await show(ask)
        raise Forbidden(NOT_YET)

    return keep


async def nothing(ask: Ask) -> None:
    """There is none of this kind."""
    raise NotFound(f"{ask.path['id'][:64]} could not be found.")


def _empty(name: str) -> Callable[[Ask], Any]:
    async def empty(ask: Ask) -> Body:
        """None of this kind."""
        return in_pages(name, [], ask)

    return empty


NOBODY = SecurityGroup(str(UUID(int=0)), "")
LINKS = shape_of([{"rel": "", "href": ""}])
THINGS: dict[str, Body] = {
    "network": network_body(Network("", "", "", False, ("",)), True),
    "subnet": subnet_body(Subnet("", "", "", "", "", (("", ""),))),
    "port": port_body(
        Port(0, "", "", "", "", "", "", "", PortStatus.DOWN, "", 0, 0, 0), NOBODY, True
    ),
    "security_group": group_body(NOBODY),
    "security_group_rule": rule_bodies(NOBODY)[0],
}
"""One of each kind, to show its attributes."""


def _calls(
    plural: str, name: str, listing: Callable[[Ask], Any], show: Callable[[Ask], Any],
    delete: Callable[[Ask], Any] | None = None,
) -> list[Call]:
    """The five calls of one kind of thing."""
    path, rule = f"/v2.0/{plural}", f"network:get_{name}"
    one, key = f"{path}/{{id}}", plural.replace("-", "_")
    keep = show if show is nothing else _keep(show)
    shape = shape_of(THINGS.get(name, {}), whole=False)
    several: Body = {
        "type": "object", "required": [key], "additionalProperties": False,
        "properties": {key: {"type": "array", "items": shape}, f"{key}_links": LINKS},
    }
    return [
        Call("GET", path, listing, rule, answer=several),
        Call("POST", path, create_nothing, f"network:create_{name}", 201),
        Call("GET", one, show, rule, answer={
            "type": "object", "required": [name], "additionalProperties": False,
            "properties": {name: shape},
        }),
        Call("PUT", one, keep, f"network:update_{name}"),
        Call("DELETE", one, delete or keep, f"network:delete_{name}", 204),
    ]


CALLS: list[Call] = [
    Call("GET", "/", versions, ""),
    Call("GET", "/v2.0", resources, ""),
    *_calls("networks", "network", networks, network),
    *_calls("subnets", "subnet", subnets, subnet),
    *_calls("ports", "port", ports, port),
    *_calls("security-groups", "security_group", security_groups, security_group,
            delete_security_group),
    *_calls("security-group-rules", "security_group_rule", security_group_rules,
            security_group_rule),
    *_calls("routers", "router", _empty("routers"), nothing),
    *_calls("floatingips", "floatingip", _empty("floatingips"), nothing),
    *_calls("address-scopes", "address_scope", _empty("address_scopes"), nothing),
    *_calls("subnetpools", "subnetpool", _empty("subnetpools"), nothing),
    Call("GET", "/v2.0/agents", _empty("agents"), "network:get_agent"),
    Call("GET", "/v2.0/availability_zones", _empty("availability_zones"),
         "network:get_availability_zone"),
    Call("GET", "/v2.0/extensions", extensions, "network:get_extension"),
    Call("GET", "/v2.0/extensions/{alias}", extension, "network:get_extension"),
    Call("GET", "/v2.0/quotas", quotas, "network:list_quotas"),
    Call("GET", "/v2.0/quotas/tenant", quota_project, "network:get_quota"),
    Call("GET", "/v2.0/quotas/project", quota_project, "network:get_quota"),
    Call("GET", "/v2.0/quotas/{project_id}", quota, "network:get_quota"),
    Call("GET", "/v2.0/quotas/{project_id}/default", quota, "network:get_quota"),
    Call("GET", "/v2.0/quotas/{project_id}/details", quota_details, "network:get_quota"),
    Call("GET", "/v2.0/quotas/{project_id}/details.json", quota_details, "network:get_quota"),
    Call("PUT", "/v2.0/quotas/{project_id}", _keep(quota), "network:update_quota"),
    Call("DELETE", "/v2.0/quotas/{project_id}", reset_quota, "network:update_quota", 204),
]
TYPES = {400: "BadRequest", 403: "Forbidden", 404: "NotFound", 409: "Conflict"}


def fault(status: int, message: str, error: Exception) -> Body:
    """An error as network clients read it."""
    kind = TYPES.get(status, type(error).__name__)
    return {"NeutronError": {"type": kind, "message": message, "detail": ""}}


SERVICE = Service(ROOT, CALLS, fault=fault)
