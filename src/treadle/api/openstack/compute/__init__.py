"""Compute v2.1 at /compute: OpenStack's servers, flavors and what belongs to them."""

from __future__ import annotations

from treadle.api.openstack.compute import (
    aggregates,
    extensions,
    flavors,
    hosts,
    hypervisors,
    images,
    keypairs,
    networks,
    quotas,
    server_actions,
    server_attachments,
    server_consoles,
    server_groups,
    server_interfaces,
    server_moves,
    server_parts,
    servers,
    usage,
    versions,
)
from treadle.api.openstack.compute.answers import ANSWERS
from treadle.api.openstack.compute.common import STRICTER
from treadle.api.openstack.compute.faults import fault_body
from treadle.api.openstack.compute.versions import HIGHEST, LOWEST
from treadle.api.openstack.shapes import answering
from treadle.api.openstack.wire import Service

CALLS = answering([
    *versions.CALLS,
    *servers.CALLS,
    *server_parts.CALLS,
    *server_moves.CALLS,
    *server_attachments.CALLS,
    *server_interfaces.CALLS,
    *server_actions.CALLS,
    *server_consoles.CALLS,
    *flavors.CALLS,
    *keypairs.CALLS,
    *quotas.CALLS,
    *aggregates.CALLS,
    *hosts.CALLS,
    *hypervisors.CALLS,
    *images.CALLS,
    *server_groups.CALLS,
    *usage.CALLS,
    *networks.CALLS,
    *extensions.CALLS,
], ANSWERS)
SERVICE = Service(
    "/compute", CALLS, fault=fault_body, microversions=(LOWEST, HIGHEST), header="compute",
    strict=STRICTER,
)
