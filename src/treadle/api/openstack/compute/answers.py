"""What compute's calls answer in the highest microversion: exactly these keys, of these types."""

from __future__ import annotations

from treadle.api.openstack.shapes import (
    ANYTHING,
    FLAG,
    MAYBE,
    NUMBER,
    TEXT,
    WHOLE,
    WORDS,
    Shape,
    many,
    thing,
)

_LINK = thing({"rel": TEXT, "href": {"type": "string", "pattern": "^https?://"}},
              {"type": TEXT})
LINKS = many(_LINK)
_VERSION = thing(
    {"id": TEXT, "status": TEXT, "version": TEXT, "min_version": TEXT, "updated": TEXT,
     "links": LINKS},
    {"media-types": many(thing({"base": TEXT, "type": TEXT}))},
)


def page(name: str, one: Shape) -> Shape:
    """A list that may go on."""
    return thing({name: many(one)}, {f"{name}_links": LINKS})


# -- servers

_SERVER_BRIEF = thing({"id": TEXT, "name": TEXT, "links": LINKS})
_ADDRESS = {"version": {"enum": [4, 6]}, "addr": TEXT}
_ADDRESSES: Shape = {"type": "object", "additionalProperties": many(thing(
    {**_ADDRESS, "OS-EXT-IPS:type": {"const": "fixed"}, "OS-EXT-IPS-MAC:mac_addr": TEXT}
))}
_SERVER_FLAVOR = thing({
    "vcpus": WHOLE, "ram": WHOLE, "disk": WHOLE, "ephemeral": WHOLE, "swap": WHOLE,
    "original_name": TEXT, "extra_specs": WORDS,
})
_STATUS: Shape = {"enum": [
    "ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED",
    "REBOOT", "REBUILD", "RESCUE", "RESIZE", "REVERT_RESIZE", "SHELVED", "SHELVED_OFFLOADED",
    "SHUTOFF", "SOFT_DELETED", "SUSPENDED", "VERIFY_RESIZE",
]}
_SERVER = {
    "id": TEXT, "name": TEXT, "status": _STATUS, "tenant_id": TEXT, "user_id": TEXT,
    "metadata": WORDS, "hostId": TEXT,
    "image": thing({"id": TEXT, "links": LINKS, "properties": WORDS}), "flavor": _SERVER_FLAVOR,
    "created": TEXT, "updated": TEXT, "addresses": _ADDRESSES, "accessIPv4": TEXT,
    "accessIPv6": TEXT, "OS-DCF:diskConfig": {"enum": ["AUTO", "MANUAL"]}, "links": LINKS,
    "OS-EXT-AZ:availability_zone": TEXT, "config_drive": {"enum": ["", "True"]},
    "key_name": MAYBE, "OS-SRV-USG:launched_at": MAYBE, "OS-SRV-USG:terminated_at": MAYBE,
    "OS-EXT-STS:task_state": MAYBE, "OS-EXT-STS:vm_state": TEXT,
    "OS-EXT-STS:power_state": {"enum": [0, 1, 3, 4, 6, 7]},
    "os-extended-volumes:volumes_attached": many(ANYTHING), "locked": FLAG, "description": MAYBE,
    "tags": many(TEXT), "trusted_image_certificates": {"type": ["array", "null"]},
    "locked_reason": MAYBE, "pinned_availability_zone": MAYBE, "scheduler_hints": {
        "type": "object",
    }, "OS-EXT-SRV-ATTR:hostname": TEXT,
}
_SOMETIMES = {
    "progress": WHOLE, "security_groups": many(thing({"name": TEXT})),
    "fault": thing({"code": WHOLE, "created": TEXT, "message": TEXT}, {"details": TEXT}),
    "host_status": {"enum": ["UP", "DOWN", "UNKNOWN", "MAINTENANCE", ""]},
    "OS-EXT-SRV-ATTR:host": MAYBE, "OS-EXT-SRV-ATTR:hypervisor_hostname": MAYBE,
    "OS-EXT-SRV-ATTR:instance_name": TEXT, "OS-EXT-SRV-ATTR:reservation_id": TEXT,
    "OS-EXT-SRV-ATTR:launch_index": WHOLE, "OS-EXT-SRV-ATTR:kernel_id": TEXT,
    "OS-EXT-SRV-ATTR:ramdisk_id": TEXT, "OS-EXT-SRV-ATTR:root_device_name": TEXT,
    "OS-EXT-SRV-ATTR:user_data": MAYBE,
}
_ONE_SERVER = thing({"server": thing({**_SERVER, "server_groups": many(TEXT)}, _SOMETIMES)})
_MADE = thing(
    {"id": TEXT, "links": LINKS, "OS-DCF:diskConfig": TEXT,
     "security_groups": many(thing({"name": TEXT}))}, {"adminPass": TEXT},
)
_ACTION = {
    "action": TEXT, "instance_uuid": TEXT, "request_id": TEXT, "user_id": TEXT, "project_id": TEXT,
    "start_time": TEXT, "updated_at": TEXT, "message": MAYBE,
}
_EVENT = thing(
    {"event": TEXT, "start_time": TEXT, "finish_time": MAYBE, "result": MAYBE, "hostId": TEXT,
     "details": MAYBE}, {"traceback": MAYBE, "host": MAYBE},
)
_META = thing({"metadata": WORDS})
_INTERFACE = thing({
    "port_id": TEXT, "net_id": TEXT, "mac_addr": TEXT, "port_state": TEXT, "tag": MAYBE,
    "fixed_ips": many(thing({"subnet_id": TEXT, "ip_address": TEXT})),
})

# -- flavors, key pairs, groups

_FLAVOR = thing({
    "id": TEXT, "name": TEXT, "ram": WHOLE, "disk": WHOLE, "vcpus": WHOLE, "swap": WHOLE,
    "OS-FLV-EXT-DATA:ephemeral": WHOLE, "os-flavor-access:is_public": FLAG, "links": LINKS,
    "description": MAYBE,
}, {"extra_specs": WORDS})
_FLAVOR_BRIEF = thing({"id": TEXT, "name": TEXT, "links": LINKS, "description": MAYBE})
_SPECS = thing({"extra_specs": WORDS})
_KEY = {"name": TEXT, "public_key": TEXT, "fingerprint": TEXT, "type": {"enum": ["ssh", "x509"]}}
_GROUP = thing({
    "id": TEXT, "name": TEXT, "policy": TEXT, "rules": {
        "type": "object", "additionalProperties": WHOLE,
    }, "members": many(TEXT), "project_id": TEXT, "user_id": TEXT,
})

# -- limits

_QUOTAS = (
    "cores", "instances", "key_pairs", "metadata_items", "ram", "server_group_members",
    "server_groups",
)
_QUOTA = {name: WHOLE for name in _QUOTAS}
_DETAIL = {name: thing({"in_use": WHOLE, "limit": WHOLE, "reserved": WHOLE}) for name in _QUOTAS}
_QUOTA_SET = thing({"quota_set": thing({"id": TEXT, **_QUOTA})})
_CLASS = thing({"quota_class_set": thing({"id": TEXT, **_QUOTA})})
_LIMITS = thing({"limits": thing({
    "rate": many(ANYTHING), "absolute": thing({
        name: WHOLE for name in (
            "maxTotalCores", "totalCoresUsed", "maxTotalInstances", "totalInstancesUsed",
            "maxTotalKeypairs", "maxServerMeta", "maxTotalRAMSize", "totalRAMUsed",
            "maxServerGroupMembers", "maxServerGroups", "totalServerGroupsUsed",
        )
    }),
})})

# -- what operators see

_AGGREGATE = {
    "id": WHOLE, "uuid": TEXT, "name": TEXT, "availability_zone": MAYBE, "deleted": FLAG,
    "created_at": TEXT, "updated_at": MAYBE, "deleted_at": MAYBE,
}
_FULL_AGGREGATE = thing({**_AGGREGATE, "hosts": many(TEXT), "metadata": WORDS})
_HYPERVISOR = {
    "id": TEXT, "hypervisor_hostname": TEXT, "state": {"enum": ["up", "down"]},
    "status": {"enum": ["enabled", "disabled"]},
}
_SERVICE = thing({
    "id": TEXT, "binary": TEXT, "host": TEXT, "zone": TEXT, "status": {
        "enum": ["enabled", "disabled"],
    }, "state": {"enum": ["up", "down"]}, "updated_at": MAYBE, "disabled_reason": MAYBE,
    "forced_down": FLAG,
})
_USAGE = thing({
    "tenant_id": TEXT, "total_hours": NUMBER, "total_vcpus_usage": NUMBER,
    "total_memory_mb_usage": NUMBER, "total_local_gb_usage": NUMBER, "start": TEXT, "stop": TEXT,
}, {"server_usages": many(thing({
    "instance_id": TEXT, "name": TEXT, "tenant_id": TEXT, "flavor": TEXT, "hours": NUMBER,
    "vcpus": WHOLE, "memory_mb": WHOLE, "local_gb": WHOLE, "started_at": TEXT, "ended_at": MAYBE,
    "state": TEXT, "uptime": WHOLE,
}))})
_MIGRATION = thing({
    "id": WHOLE, "uuid": TEXT, "status": TEXT, "source_node": MAYBE, "source_compute": MAYBE,
    "dest_node": MAYBE, "dest_compute": MAYBE, "dest_host": MAYBE, "created_at": TEXT,
    "updated_at": MAYBE, "instance_uuid": TEXT, "old_instance_type_id": WHOLE,
    "new_instance_type_id": WHOLE, "migration_type": TEXT, "user_id": MAYBE, "project_id": MAYBE,
}, {"links": LINKS})
_ZONES = thing({"availabilityZoneInfo": many(thing({
    "zoneName": TEXT, "zoneState": thing({"available": FLAG}),
    "hosts": {"type": ["object", "null"]},
}))})

_V, _S, _F = "/v2.1", "/v2.1/servers/{server_id}", "/v2.1/flavors/{flavor_id}"
ANSWERS: dict[str, Shape] = {
    "GET /": thing({"versions": many(_VERSION)}),
    f"GET {_V}": thing({"version": _VERSION}),
    "GET /v2": thing({"version": _VERSION}),
    f"GET {_V}/servers": page("servers", _SERVER_BRIEF),
    f"GET {_V}/servers/detail": page("servers", thing(_SERVER, _SOMETIMES)),
    f"POST {_V}/servers": {"anyOf": [thing({"server": _MADE}), thing({"reservation_id": TEXT})]},
    f"GET {_S}": _ONE_SERVER,
    f"PUT {_S}": _ONE_SERVER,
    f"GET {_S}/metadata": _META,
    f"PUT {_S}/metadata": _META,
    f"POST {_S}/metadata": _META,
    f"GET {_S}/tags": thing({"tags": many(TEXT)}),
    f"PUT {_S}/tags": thing({"tags": many(TEXT)}),
    f"GET {_S}/ips": thing({"addresses": {
        "type": "object", "additionalProperties": many(thing(_ADDRESS)),
    }}),
    f"GET {_S}/os-instance-actions": thing(
        {"instanceActions": many(thing(_ACTION))}, {"links": LINKS}
    ),
    f"GET {_S}/os-instance-actions/{{request_id}}": thing(
        {"instanceAction": thing({**_ACTION, "events": many(_EVENT)})}
    ),
    f"GET {_S}/os-interface": thing({"interfaceAttachments": many(_INTERFACE)}),
    f"POST {_S}/os-interface": thing({"interfaceAttachment": _INTERFACE}),
    f"GET {_S}/os-interface/{{port_id}}": thing({"interfaceAttachment": _INTERFACE}),
    f"GET {_S}/os-volume_attachments": thing({"volumeAttachments": many(ANYTHING)}),
    f"GET {_S}/shares": thing({"shares": many(ANYTHING)}),
    f"GET {_V}/flavors": page("flavors", _FLAVOR_BRIEF),
    f"GET {_V}/flavors/detail": page("flavors", _FLAVOR),
    f"POST {_V}/flavors": thing({"flavor": _FLAVOR}),
    f"GET {_F}": thing({"flavor": _FLAVOR}),
    f"PUT {_F}": thing({"flavor": _FLAVOR}),
    f"GET {_F}/os-extra_specs": _SPECS,
    f"POST {_F}/os-extra_specs": _SPECS,
    f"GET {_V}/os-keypairs": page("keypairs", thing({"keypair": thing(_KEY)})),
    f"POST {_V}/os-keypairs": thing({"keypair": thing({**_KEY, "user_id": TEXT})}),
    f"GET {_V}/os-keypairs/{{name}}": thing({"keypair": thing({
        **_KEY, "user_id": TEXT, "id": WHOLE, "created_at": TEXT, "updated_at": MAYBE,
        "deleted": FLAG, "deleted_at": MAYBE,
    })}),
    f"GET {_V}/os-server-groups": thing({"server_groups": many(_GROUP)}),
    f"POST {_V}/os-server-groups": thing({"server_group": _GROUP}),
    f"GET {_V}/os-server-groups/{{id}}": thing({"server_group": _GROUP}),
    f"GET {_V}/limits": _LIMITS,
    f"GET {_V}/os-quota-sets/{{project_id}}": _QUOTA_SET,
    f"GET {_V}/os-quota-sets/{{project_id}}/defaults": _QUOTA_SET,
    f"GET {_V}/os-quota-sets/{{project_id}}/detail": thing(
        {"quota_set": thing({"id": TEXT, **_DETAIL})}
    ),
    f"PUT {_V}/os-quota-sets/{{project_id}}": thing({"quota_set": thing(_QUOTA)}),
    f"GET {_V}/os-quota-class-sets/{{name}}": _CLASS,
    f"PUT {_V}/os-quota-class-sets/{{name}}": thing({"quota_class_set": thing(_QUOTA)}),
    f"GET {_V}/os-availability-zone": _ZONES,
    f"GET {_V}/os-availability-zone/detail": _ZONES,
    f"GET {_V}/os-aggregates": thing({"aggregates": many(_FULL_AGGREGATE)}),
    f"POST {_V}/os-aggregates": thing({"aggregate": thing(_AGGREGATE)}),
    f"GET {_V}/os-aggregates/{{id}}": thing({"aggregate": _FULL_AGGREGATE}),
    f"PUT {_V}/os-aggregates/{{id}}": thing({"aggregate": _FULL_AGGREGATE}),
    f"GET {_V}/os-hypervisors": page("hypervisors", thing(
        _HYPERVISOR, {"servers": many(thing({"name": TEXT, "uuid": TEXT}))}
    )),
    f"GET {_V}/os-hypervisors/detail": page("hypervisors", thing({
        **_HYPERVISOR, "hypervisor_type": TEXT, "hypervisor_version": WHOLE, "host_ip": TEXT,
        "uptime": MAYBE,
        "service": thing({"id": TEXT, "host": TEXT, "disabled_reason": MAYBE}),
    }, {"servers": many(thing({"name": TEXT, "uuid": TEXT}))})),
    f"GET {_V}/os-services": thing({"services": many(_SERVICE)}),
    f"GET {_V}/os-migrations": page("migrations", _MIGRATION),
    f"GET {_V}/os-simple-tenant-usage": page("tenant_usages", _USAGE),
    f"GET {_V}/extensions": thing({"extensions": many(thing({
        "alias": TEXT, "name": TEXT, "description": TEXT, "links": many(_LINK), "namespace": TEXT,
        "updated": TEXT,
    }))}),
}
"""By method and path."""
