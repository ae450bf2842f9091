"""What requests about servers must look like, by microversion."""

from __future__ import annotations

from typing import Any

from treadle.api.openstack.compute.common import BOOLEAN, NAME, UUID_TEXT, closed
from treadle.api.openstack.wire import Schema

Json = dict[str, Any]

DESCRIPTION: Json = {"type": ["string", "null"], "minLength": 0, "maxLength": 255,
                     "not": {"pattern": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"}}
HOSTNAME: Json = {"type": "string", "minLength": 2, "maxLength": 63,
                  "pattern": r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"}
FQDN: Json = {"type": "string", "minLength": 2, "maxLength": 255,
              "pattern": r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"}
METADATA: Json = {
    "type": "object", "patternProperties": {r"^[a-zA-Z0-9-_:. ]{1,255}$":
                                            {"type": "string", "maxLength": 255}},
    "additionalProperties": False,
}
TAG: Json = {"type": "string", "minLength": 1, "maxLength": 60, "pattern": r"^[^,/]*$"}
TAGS: Json = {"type": "array", "items": TAG, "maxItems": 50}
COUNT: Json = {"type": ["integer", "string"], "pattern": "^[0-9]+$", "minimum": 1}
DISK_CONFIG: Json = {"enum": ["AUTO", "MANUAL"]}
BASE64: Json = {"type": "string", "maxLength": 65535,
                "pattern": r"^[A-Za-z0-9+/=\s]*$"}
IMAGE: Json = {"oneOf": [UUID_TEXT, {"type": "string", "maxLength": 0}]}
FLAVOR: Json = {"type": ["string", "integer"], "minLength": 1}
PASSWORD: Json = {"type": "string"}
CERTIFICATES: Json = {"anyOf": [
    {"type": "null"},
    {"type": "array", "minItems": 1, "maxItems": 50, "uniqueItems": True,
     "items": {"type": "string", "minLength": 1}},
]}


def address(version: int) -> Json:
    """An address that may be empty; what it is exactly is looked at afterwards."""
    return {"type": "string", "maxLength": 15 if version == 4 else 64,
            "pattern": r"^[0-9.]*$" if version == 4 else r"^[0-9a-fA-F:.]*$"}


UUIDS: Json = {"type": "array", "items": UUID_TEXT, "minItems": 1}
HINTS: Json = {
    "type": "object",
    "properties": {
        "group": UUID_TEXT,
        "different_host": {"oneOf": [UUID_TEXT, UUIDS]}, "same_host": {"oneOf": [UUID_TEXT, UUIDS]},
        "query": {"type": ["string", "object"]},
        "target_cell": {"type": "string"},
        "different_cell": {"type": ["string", "array"]},
        "build_near_host_ip": {"type": "string"},
        "cidr": {"type": "string", "pattern": "^/[0-9a-f.:]+$"},
    },
    "additionalProperties": True,
}
BLOCK_DEVICE: Json = {
    "type": "object",
    "properties": {
        "uuid": {"type": "string"}, "source_type": {"enum": ["volume", "image", "snapshot",
                                                             "blank"]},
        "destination_type": {"enum": ["local", "volume"]},
        "boot_index": {"type": ["integer", "string", "null"]},
        "delete_on_termination": BOOLEAN, "volume_size": {"type": ["integer", "string"]},
        "device_name": {"type": "string"}, "device_type": {"type": ["string", "null"]},
        "disk_bus": {"type": ["string", "null"]}, "guest_format": {"type": ["string", "null"]},
        "no_device": {"type": ["string", "boolean", "null"]}, "tag": TAG,
        "volume_type": {"type": ["string", "null"]}, "volume_id": {"type": "string"},
        "snapshot_id": {"type": "string"}, "image_id": {"type": "string"},
    },
    "additionalProperties": False,
}
NETWORK: Json = closed({
    "uuid": UUID_TEXT, "port": {"oneOf": [UUID_TEXT, {"type": "null"}]},
    "fixed_ip": {"type": "string"}, "tag": TAG,
})
FILES: Json = {"type": "array", "items": closed({
    "path": {"type": "string", "minLength": 1},
    "contents": {"type": "string", "format": "base64", "pattern": r"^[A-Za-z0-9+/=\s]*$"},
}, ["path", "contents"])}


def _create(minor: int) -> Json:
    server: Json = {
        "name": NAME, "imageRef": IMAGE, "flavorRef": FLAVOR, "adminPass": PASSWORD,
        "metadata": METADATA, "networks": {"type": "array", "items": NETWORK},
        "OS-DCF:diskConfig": DISK_CONFIG, "accessIPv4": address(4), "accessIPv6": address(6),
        "availability_zone": {"type": "string", "minLength": 1, "maxLength": 255},
        "block_device_mapping": {"type": "array", "items": BLOCK_DEVICE},
        "block_device_mapping_v2": {"type": "array", "items": BLOCK_DEVICE},
        "config_drive": BOOLEAN, "key_name": {"type": "string", "minLength": 1, "maxLength": 255},
        "min_count": COUNT, "max_count": COUNT, "return_reservation_id": BOOLEAN,
        "security_groups": {"type": "array", "items": closed({"name": {"type": "string",
                                                                      "maxLength": 255}})},
        "user_data": BASE64,
    }
    if minor < 57:
        server["personality"] = FILES
    if minor >= 19:
        server["description"] = DESCRIPTION
    if minor >= 37:
        server["networks"] = {"oneOf": [server["networks"], {"enum": ["none", "auto"]}]}
    if minor >= 52:
        server["tags"] = TAGS
    if minor >= 63:
        server["trusted_image_certificates"] = CERTIFICATES
    if minor >= 74:
        server["host"] = server["hypervisor_hostname"] = {"type": "string", "minLength": 1,
                                                          "maxLength": 255}
    if minor >= 90:
        server["hostname"] = FQDN if minor >= 94 else HOSTNAME
    required = ["name", "flavorRef"] + (["networks"] if minor >= 37 else [])
    return closed({
        "server": closed(server, required), "os:scheduler_hints": HINTS,
        "OS-SCH-HNT:scheduler_hints": HINTS,
    }, ["server"])


def _update(minor: int) -> Json:
    server: Json = {
        "name": NAME, "OS-DCF:diskConfig": DISK_CONFIG, "accessIPv4": address(4),
        "accessIPv6": address(6),
    }
    if minor >= 19:
        server["description"] = DESCRIPTION
    if minor >= 90:
        server["hostname"] = FQDN if minor >= 94 else HOSTNAME
    if minor >= 104:
        server["pinned_availability_zone"] = {"oneOf": [{"type": "null"}, NAME]}
    return closed({"server": closed(server)}, ["server"])


def _steps(make: Any, *minors: int) -> Schema:
    return Schema(*((minor, make(minor)) for minor in minors))


CREATE = _steps(_create, 1, 19, 37, 52, 57, 63, 74, 90, 94)
UPDATE = _steps(_update, 1, 19, 90, 94, 104)
SET_METADATA = Schema((1, closed({"metadata": METADATA}, ["metadata"])))
SET_META = Schema((1, closed({"meta": {**METADATA, "minProperties": 1, "maxProperties": 1}},
                             ["meta"])))
SET_TAGS = Schema((1, closed({"tags": TAGS}, ["tags"])))
