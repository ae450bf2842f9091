"""What a network, a subnet and a port are: frozen values.

There is one network, shared by all projects. Each host carries its own part of it behind NAT, with
itself as the gateway, so the subnet that covers all parts has no gateway of its own. A port is not
stored: an instance with a network has exactly one, and its id says which instance that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID, uuid5

NAME = "default"
MTU = 1500

_PORT_MASK = 0x6E65742D_0000_0000_0000_706F72742D31
"""Leaves the version and the variant of a UUID as they are."""


class PortStatus(StrEnum):
    """Whether the port carries traffic."""

    ACTIVE = "ACTIVE"
    DOWN = "DOWN"
    BUILD = "BUILD"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Network:
    """A network. `flat`: guests join a bridge whose addresses are not ours to give."""

    id: str
    name: str
    project_id: str
    flat: bool
    subnet_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subnet:
    """Addresses of a network in CIDR form, and the ranges that guests get theirs from."""

    id: str
    network_id: str
    name: str
    project_id: str
    cidr: str
    pools: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Port:
    """Where an instance joins a network. Times are seconds since 1970."""

    row: int
    id: str
    network_id: str
    subnet_id: str | None
    project_id: str
    device_id: str
    mac: str
    address: str | None
    status: PortStatus
    host: str | None
    created_at: float
    updated_at: float
    revision: int


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    """The group that every project has and every port of it is in: it lets all through."""

    id: str
    project_id: str
    name: str = NAME


def network_id(cloud_id: str) -> str:
    """The id of the default network of a cloud."""
    return str(uuid5(UUID(cloud_id), f"network/{NAME}"))


def subnet_id(cloud_id: str) -> str:
    """The id of the subnet of the default network."""
    return str(uuid5(UUID(cloud_id), f"subnet/{NAME}"))


def security_group_id(cloud_id: str, project_id: str) -> str:
    """The id of a project's group."""
    return str(uuid5(UUID(cloud_id), f"security-group/{project_id}"))


def rule_id(group_id: str, direction: str, ethertype: str) -> str:
    """The id of a rule of a group."""
    return str(uuid5(UUID(group_id), f"{direction}/{ethertype}"))


def port_id(instance_uuid: str) -> str:
    """The id of an instance's port."""
    return str(UUID(int=UUID(instance_uuid).int ^ _PORT_MASK))


def instance_of(port: str) -> str | None:
    """The UUID of the instance whose port would have this id; None where it is no UUID."""
    try:
        return port_id(port)
    except ValueError:
        return None
