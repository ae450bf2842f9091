"""The SQL of networks. Every function takes an open connection of the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import sqlalchemy as sa

from treadle.db.schema import host, instance, meta
from treadle.network.model import (
    NAME,
    Network,
    Port,
    PortStatus,
    SecurityGroup,
    Subnet,
    instance_of,
    network_id,
    port_id,
    security_group_id,
    subnet_id,
)

STATUS = {
    "building": PortStatus.BUILD, "running": PortStatus.ACTIVE, "paused": PortStatus.ACTIVE,
    "error": PortStatus.ERROR,
}

ATTACHING = "attaching_interface"
"""An instance's task while it is given its card."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The default network of this cloud with its subnet, which a flat one does not have."""

    cloud_id: str
    network: Network
    subnet: Subnet | None

    def group(self, project_id: str) -> SecurityGroup:
        """A project's security group."""
        return SecurityGroup(security_group_id(self.cloud_id, project_id), project_id)


def default_network_id(conn: sa.Connection) -> str:
    """The id of the one network."""
    cloud: str = conn.execute(sa.select(meta.c.value).where(meta.c.key == "cloud_id")).scalar_one()
    return network_id(cloud)


def group_of(conn: sa.Connection, project_id: str) -> SecurityGroup:
    """The one security group of a project."""
    cloud: str = conn.execute(sa.select(meta.c.value).where(meta.c.key == "cloud_id")).scalar_one()
    return SecurityGroup(security_group_id(cloud, project_id), project_id)


def scene(conn: sa.Connection, guest_pool: str, bridge: str) -> Scene:
    """The default network; `guest_pool` and `bridge` are the settings of the hosts."""
    found: Mapping[str, str] = {
        row.key: row.value for row in conn.execute(
            sa.select(meta).where(meta.c.key.in_(("cloud_id", "admin_project")))
        )
    }
    cloud, owner = found["cloud_id"], found.get("admin_project", "")
    subnet = None
    if not bridge:
        pool = ip_network(guest_pool)
        # Host N has the Nth /24; there is no host 0, and a host is the first address of its part.
        subnet = Subnet(
            subnet_id(cloud), network_id(cloud), NAME, owner, str(pool),
            ((str(pool[258]), str(pool[-2])),) if pool.num_addresses > 512
            else ((str(pool[2]), str(pool[-2])),),
        )
    return Scene(cloud, Network(
        network_id(cloud), NAME, owner, bool(bridge), () if subnet is None else (subnet.id,)
    ), subnet)


def get_port(conn: sa.Connection, scene: Scene, id: str) -> Port | None:
    """The port of a live instance, or None."""
    uuid = instance_of(id)
    if uuid is None:
        return None
    row = conn.execute(_PORTS.where(instance.c.uuid == uuid)).one_or_none()
    return None if row is None else _port(scene, row)


def ports(
    conn: sa.Connection, scene: Scene, *, project_ids: tuple[str, ...] | None = None,
    devices: tuple[str, ...] | None = None, macs: tuple[str, ...] | None = None,
    addresses: tuple[str, ...] | None = None, after: int | None = None, limit: int = 1000,
    newest_first: bool = False,
) -> list[Port]:
    """Ports in the order in which their instances were made, from the one after row `after`.

    None takes all; a tuple those that have one of its values.
    """
    statement = _PORTS
    for column, values in (
        (instance.c.project_id, project_ids), (instance.c.uuid, devices),
        (instance.c.mac, macs), (instance.c.address, addresses),
    ):
        if values is not None:
            statement = statement.where(column.in_(values))
    if after is not None:
        place = instance.c.id < after if newest_first else instance.c.id > after
        statement = statement.where(place)
    order = instance.c.id.desc() if newest_first else instance.c.id
    rows = conn.execute(statement.order_by(order).limit(limit))
    return [_port(scene, row) for row in rows]


def count_ports(conn: sa.Connection, project_id: str) -> int:
    """How many ports a project has."""
    return int(conn.execute(
        sa.select(sa.func.count()).select_from(instance).where(
            _LIVE, instance.c.project_id == project_id
        )
    ).scalar_one())


_LIVE = sa.and_(instance.c.state != "deleted", instance.c.networked)
_PORTS = sa.select(
    instance.c.id, instance.c.uuid, instance.c.project_id, instance.c.mac, instance.c.address,
    instance.c.state, instance.c.task, instance.c.created_at, instance.c.updated_at,
    instance.c.version, host.c.name.label("host_name"),
).select_from(instance.outerjoin(host, host.c.id == instance.c.host_id)).where(_LIVE)


def _port(scene: Scene, row: Any) -> Port:
    status = STATUS.get(row.state, PortStatus.DOWN)
    if row.task == ATTACHING:
        status = PortStatus.BUILD
    return Port(
        row.id, port_id(row.uuid), scene.network.id,
        None if scene.subnet is None else scene.subnet.id, row.project_id, row.uuid, row.mac,
        row.address, status, row.host_name, row.created_at,
        row.updated_at or row.created_at, row.version,
    )
