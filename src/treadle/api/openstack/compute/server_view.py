"""How an instance looks as OpenStack's server, in each microversion."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from treadle.api.openstack.compute.common import LONGEST, links_from, moment, precise
from treadle.api.openstack.compute.image_properties import known
from treadle.compute.listing import HostWords, Key, Row
from treadle.compute.model import task_state, vm_state
from treadle.network.model import NAME as NETWORK

WITH_PROGRESS = frozenset({
    "ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE", "MIGRATING",
})
STATUS = {
    "active": "ACTIVE", "building": "BUILD", "stopped": "SHUTOFF", "resized": "VERIFY_RESIZE",
    "paused": "PAUSED", "suspended": "SUSPENDED", "rescued": "RESCUE", "error": "ERROR",
    "deleted": "DELETED", "soft-delete": "SOFT_DELETED", "shelved": "SHELVED",
    "shelved_offloaded": "SHELVED_OFFLOADED",
}
RESIZING = {
    name: "RESIZE" for name in ("resize_prep", "resize_migrating", "resize_migrated",
                                "resize_finish")
}
REBUILDING = {
    name: "REBUILD" for name in ("rebuilding", "rebuild_block_device_mapping", "rebuild_spawning")
}
BUSY: dict[str, dict[str, str]] = {
    "active": {
        "rebooting": "REBOOT", "reboot_pending": "REBOOT", "reboot_started": "REBOOT",
        "rebooting_hard": "HARD_REBOOT", "reboot_pending_hard": "HARD_REBOOT",
        "reboot_started_hard": "HARD_REBOOT", "updating_password": "PASSWORD",
        "migrating": "MIGRATING", **REBUILDING, **RESIZING,
    },
    "stopped": {**REBUILDING, **RESIZING, "migrating": "MIGRATING"},
    "resized": {"resize_reverting": "REVERT_RESIZE"},
    "paused": {"migrating": "MIGRATING"},
    "error": REBUILDING,
}
POWER = {
    "active": 1, "resized": 1, "rescued": 1, "paused": 3, "stopped": 4, "suspended": 4,
    "shelved": 4, "shelved_offloaded": 4, "soft-delete": 4,
}
"""OpenStack's power_state by vm_state: 0 none, 1 running, 3 paused, 4 shut down."""


def status_of(vm: str, task: str | None) -> str:
    """OpenStack's status: a function of vm_state and task_state."""
    return BUSY.get(vm, {}).get(task or "", STATUS[vm])


def statuses() -> dict[str, set[str]]:
    """The vm_states in which each status can be seen, by status."""
    found: dict[str, set[str]] = {}
    for vm, status in STATUS.items():
        found.setdefault(status, set()).add(vm)
        for busy in BUSY.get(vm, {}).values():
            found.setdefault(busy, set()).add(vm)
    return found


def brief(root: str, key: Key) -> dict[str, Any]:
    """A server in a list without details."""
    return {"id": key.uuid, "name": key.name, "links": links_from(root, "servers", key.uuid)}


@dataclass(frozen=True, slots=True)
class Looks:
    """Who looks, from where, and at what: what an encoded server depends on besides itself.

    `kind` is "detail" (in lists), "show", "update" or "rebuild".
    """

    root: str
    minor: int
    kind: str
    admin: bool


def without_hosts(row: Row, words: Mapping[int, HostWords]) -> str:
    """Why the server is an error, as tenants may know it: no host is named."""
    public = row.columns.public_fault
    if public is not None:
        return str(public)
    names = sorted((re.escape(one.name) for one in words.values()), key=len, reverse=True)
    fault = row.instance.fault or ""
    if names:
        fault = re.sub(rf"(?<![\w.-])({'|'.join(names)})(?![\w-])", "a host", fault)
    return fault[:LONGEST]


def server(looks: Looks, row: Row, on: HostWords | None) -> dict[str, Any]:
    """The whole server, exactly as its microversion has it."""
    instance, columns, minor = row.instance, row.columns, looks.minor
    vm, task = vm_state(instance), task_state(instance)
    status = status_of(vm, task)
    full = looks.kind in ("show", "detail") or minor >= 75
    flavor = json.loads(columns.flavor)
    body: dict[str, Any] = {
        "id": instance.uuid,
        "name": instance.name,
        "status": status,
        "tenant_id": columns.project_id,
        "user_id": columns.user_id,
        "metadata": msgspec.Raw(columns.metadata.encode()),
        "hostId": host_id(columns.project_id, on),
        "image": {
            "id": row.image_uuid,
            "links": [links_from(looks.root, "images", row.image_uuid)[1]],
        },
        "flavor": _flavor(looks, row, flavor),
        "created": moment(columns.created_at),
        "updated": moment(columns.updated_at),
        "addresses": addresses(row, full=full),
        "accessIPv4": columns.access_ipv4,
        "accessIPv6": columns.access_ipv6,
        "OS-DCF:diskConfig": columns.disk_config,
        "links": links_from(looks.root, "servers", instance.uuid),
    }
    if status in WITH_PROGRESS:
        body["progress"] = 0
    if status in ("ERROR", "DELETED") and instance.fault:
        body["fault"] = {
            "code": 500, "created": moment(columns.fault_at or columns.updated_at),
            "message": instance.fault[:LONGEST],
        }
    if full:
        body |= {
            "OS-EXT-AZ:availability_zone": _zone(columns, on),
            "config_drive": "True" if columns.config_drive else "",
            "key_name": columns.key_name,
            "OS-SRV-USG:launched_at": precise(columns.launched_at),
            "OS-SRV-USG:terminated_at": precise(columns.deleted_at),
            "OS-EXT-STS:task_state": task,
            "OS-EXT-STS:vm_state": vm,
            "OS-EXT-STS:power_state": POWER.get(vm, 0),
            "os-extended-volumes:volumes_attached": [],
            "security_groups": [{"name": "default"}],
        }
        if not columns.networked or status == "ERROR":
            del body["security_groups"]
        if looks.admin:
            body |= _for_admins(looks, row, on)
    _later(looks, row, body)
    return body


def _later(looks: Looks, row: Row, body: dict[str, Any]) -> None:
    """What later microversions have added."""
    columns, minor, kind = row.columns, looks.minor, looks.kind
    if minor >= 9:
        body["locked"] = columns.locked_by is not None
    if minor >= 19:
        body["description"] = columns.description
    if minor >= 26:
        body["tags"] = list(row.tags)
    if minor >= 54 and kind == "rebuild":
        body["key_name"] = columns.key_name
    if minor >= 57 and kind == "rebuild":
        body["user_data"] = _encoded(columns.user_data)
    if minor >= 63:
        body["trusted_image_certificates"] = None
    if minor >= 71 and kind != "detail":
        body["server_groups"] = [row.group_uuid] if row.group_uuid else []
    if minor >= 73:
        body["locked_reason"] = columns.locked_reason
    if minor >= 90 and not looks.admin:
        body["OS-EXT-SRV-ATTR:hostname"] = hostname(columns)
    if minor >= 96:
        body["pinned_availability_zone"] = columns.availability_zone
    if minor >= 98:
        body["image"]["properties"] = known(json.loads(columns.image_properties))
    if minor >= 100:
        hints = json.loads(columns.scheduler_hints)
        hints.pop("host", None)  # an administrator's word, not a hint of the request
        body["scheduler_hints"] = hints


def _for_admins(looks: Looks, row: Row, on: HostWords | None) -> dict[str, Any]:
    columns = row.columns
    name = on.name if on is not None else None
    found: dict[str, Any] = {
        "OS-EXT-SRV-ATTR:host": name,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": name,
        "OS-EXT-SRV-ATTR:instance_name": instance_name(row.instance.uuid),
    }
    if looks.minor >= 3:
        found |= {
            "OS-EXT-SRV-ATTR:reservation_id": reservation(columns.batch),
            "OS-EXT-SRV-ATTR:launch_index": columns.launch_index,
            "OS-EXT-SRV-ATTR:hostname": hostname(columns),
            "OS-EXT-SRV-ATTR:kernel_id": "",
            "OS-EXT-SRV-ATTR:ramdisk_id": "",
            "OS-EXT-SRV-ATTR:root_device_name": "/dev/vda",
        }
        if looks.kind != "rebuild":
            found["OS-EXT-SRV-ATTR:user_data"] = _encoded(columns.user_data)
    if looks.minor >= 16:
        found["host_status"] = on.status if on is not None else ""
    return found


def addresses(row: Row, *, full: bool) -> dict[str, Any]:
    """The server's addresses by the network's name; `full` as server views have them."""
    if not row.instance.address or not row.columns.networked:
        return {}
    one: dict[str, Any] = {
        "version": 6 if ":" in row.instance.address else 4, "addr": row.instance.address,
    }
    if full:
        one |= {
            "OS-EXT-IPS:type": "fixed", "OS-EXT-IPS-MAC:mac_addr": row.instance.mac,
        }
    return {NETWORK: [one]}


def instance_name(uuid: str) -> str:
    """The domain's name on its host."""
    return f"treadle-{UUID(uuid).hex[:12]}"


def hostname(columns: Any) -> str:
    """The guest's name for itself."""
    return str(columns.hostname or columns.name)


def reservation(batch: str) -> str:
    """The name of a request for servers."""
    return f"r-{batch[:8]}"


def _encoded(user_data: str) -> str | None:
    return base64.b64encode(user_data.encode()).decode() if user_data else None


def host_id(project_id: str, on: HostWords | None) -> str:
    """The host as tenants see it: the same for one project, and of no use to find the host."""
    if on is None:
        return ""
    return hashlib.sha224(f"{project_id}{on.name}".encode()).hexdigest()


def _zone(columns: Any, on: HostWords | None) -> str:
    return on.zone if on is not None else (columns.availability_zone or "")


def _flavor(looks: Looks, row: Row, flavor: dict[str, Any]) -> dict[str, Any]:
    instance = row.instance
    if looks.minor < 47:
        id = flavor.get("id", str(instance.flavor_id))
        return {"id": id, "links": [links_from(looks.root, "flavors", id)[1]]}
    return {
        "vcpus": instance.vcpus, "ram": instance.memory_mib, "disk": instance.disk_gib,
        "ephemeral": flavor.get("ephemeral", 0), "swap": flavor.get("swap", 0),
        "original_name": flavor.get("name", f"type-{instance.flavor_id}"),
        "extra_specs": flavor.get("extra_specs", {}),
    }
