"""JSON Schemas: of what the image API is sent, and those that it publishes about itself."""

from __future__ import annotations

from typing import Any

from treadle.api.openstack.wire import Schema
from treadle.image.formats import CONTAINER_FORMATS, DISK_FORMATS

Json = dict[str, Any]

UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
NAME: Json = {"type": ["null", "string"], "maxLength": 255}
VISIBILITIES = ("community", "public", "private", "shared")
TAG: Json = {"type": "string", "minLength": 1, "maxLength": 255}
PROPERTIES_MAX = 128
TAGS_MAX = 128
_SIZE: Json = {"type": "integer", "minimum": 0, "maximum": 2147483647}

SETTABLE: Json = {
    "name": NAME,
    "visibility": {"type": "string", "enum": list(VISIBILITIES)},
    "protected": {"type": "boolean"},
    "os_hidden": {"type": "boolean"},
    "owner": {"type": ["null", "string"], "maxLength": 64},
    "container_format": {"type": ["null", "string"], "enum": [None, *CONTAINER_FORMATS]},
    "disk_format": {"type": ["null", "string"], "enum": [None, *DISK_FORMATS]},
    "min_disk": _SIZE,
    "min_ram": _SIZE,
    "tags": {"type": "array", "items": TAG, "maxItems": TAGS_MAX},
}
"""What a caller may say of an image; everything else is a property of his own."""

READ_ONLY: Json = {
    "status": {"type": "string", "enum": [
        "queued", "saving", "active", "killed", "deleted", "uploading", "importing",
        "pending_delete", "deactivated",
    ]},
    "size": {"type": ["null", "integer"]},
    "virtual_size": {"type": ["null", "integer"]},
    "checksum": {"type": ["null", "string"], "maxLength": 32},
    "os_hash_algo": {"type": ["null", "string"], "maxLength": 64},
    "os_hash_value": {"type": ["null", "string"], "maxLength": 128},
    "created_at": {"type": "string"},
    "updated_at": {"type": "string"},
    "self": {"type": "string"},
    "file": {"type": "string"},
    "schema": {"type": "string"},
    "stores": {"type": "string"},
    "direct_url": {"type": "string"},
    "locations": {"type": "array"},
}
RESERVED = frozenset({"deleted", "deleted_at", "members", "location", "is_public", "owner_id"})

_DOCUMENT: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": UUID},
        **SETTABLE,
        "kernel_id": {"type": ["null", "string"], "maxLength": 255},
        "ramdisk_id": {"type": ["null", "string"], "maxLength": 255},
    },
    "propertyNames": {"maxLength": 255, "minLength": 1},
    "additionalProperties": {"type": "string", "maxLength": 65535},
    "maxProperties": PROPERTIES_MAX + len(SETTABLE) + 1,
}
CREATE = Schema((0, _DOCUMENT))
CHANGED = Schema((0, _DOCUMENT))
_VALUE: Json = {}
PATCH = Schema((0, {
    "type": "array", "maxItems": 1000,
    "items": {"type": "object", "properties": {
        "op": {"type": "string"}, "path": {"type": "string"}, "value": _VALUE,
        "add": {"type": "string"}, "replace": {"type": "string"}, "remove": {"type": "string"},
    }},
}))
MEMBER = Schema((0, {
    "type": "object", "required": ["member"],
    "properties": {"member": {"type": "string", "minLength": 1, "maxLength": 64}},
}))
MEMBER_STATUS = Schema((0, {
    "type": "object", "required": ["status"], "properties": {"status": {"type": "string"}},
}))
IMPORT = Schema((0, {
    "type": "object", "required": ["method"],
    "properties": {
        "method": {
            "type": "object", "required": ["name"],
            "properties": {
                "name": {"type": "string", "maxLength": 64},
                "uri": {"type": "string", "maxLength": 4096},
            },
        },
        "stores": {"type": "array", "items": {"type": "string", "maxLength": 64}, "maxItems": 8},
        "all_stores": {"type": "boolean"},
        "all_stores_must_succeed": {"type": "boolean"},
    },
}))


# -- what is published

_SHOWN: Json = {"id": {"type": "string", "pattern": UUID}, **SETTABLE, **READ_ONLY}
_IMAGE: Json = {
    "name": "image",
    "properties": {
        name: {**schema, "description": name.replace("_", " ").capitalize(),
               **({"readOnly": True} if name in READ_ONLY else {})}
        for name, schema in _SHOWN.items()
    },
    "additionalProperties": {"type": "string"},
    "links": [
        {"href": "{self}", "rel": "self"}, {"href": "{file}", "rel": "enclosure"},
        {"href": "{schema}", "rel": "describedby"},
    ],
}
_MEMBER: Json = {"name": "member", "properties": {
    "created_at": {"type": "string"}, "image_id": {"type": "string", "pattern": UUID},
    "member_id": {"type": "string"}, "schema": {"type": "string", "readOnly": True},
    "status": {"type": "string", "enum": ["pending", "accepted", "rejected"]},
    "updated_at": {"type": "string"},
}}
_TASK: Json = {"name": "task", "properties": {
    "id": {"type": "string", "pattern": UUID}, "type": {"type": "string"},
    "status": {"type": "string", "enum": ["pending", "processing", "success", "failure"]},
    "input": {"type": ["null", "object"]}, "result": {"type": ["null", "object"]},
    "owner": {"type": "string"}, "message": {"type": "string"},
    "created_at": {"type": "string"}, "updated_at": {"type": "string"},
    "self": {"type": "string", "readOnly": True}, "schema": {"type": "string", "readOnly": True},
}}
_TEXT: Json = {"type": "string"}
_TIMES: Json = {
    "created_at": {"type": "string", "format": "date-time", "readOnly": True},
    "updated_at": {"type": "string", "format": "date-time", "readOnly": True},
}
_LINKS: Json = {
    "self": {"type": "string", "readOnly": True}, "schema": {"type": "string", "readOnly": True},
}
_NAMESPACE: Json = {"name": "namespace", "required": ["namespace"], "properties": {
    "namespace": {"type": "string", "maxLength": 80},
    "display_name": {"type": "string", "maxLength": 80},
    "description": {"type": "string", "maxLength": 500},
    "visibility": {"type": "string", "enum": ["public", "private"]},
    "protected": {"type": "boolean"}, "owner": {"type": "string", "maxLength": 255},
    **_TIMES, **_LINKS,
}}
_ASSOCIATION: Json = {
    "name": "resource_type_association", "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 80},
        "prefix": {"type": "string", "maxLength": 80},
        "properties_target": {"type": "string", "maxLength": 80}, **_TIMES,
    },
}
_PROPERTY: Json = {"name": "property", "required": ["name", "title", "type"], "properties": {
    "name": {"type": "string", "maxLength": 255}, "title": _TEXT, "description": _TEXT,
    "type": {"type": "string", "enum": [
        "array", "boolean", "integer", "number", "object", "string", None,
    ]},
    "operators": {"type": "array", "items": _TEXT}, "enum": {"type": "array"},
    "minimum": {"type": "number"}, "maximum": {"type": "number"}, "default": {},
    "pattern": {"type": "string", "format": "regex"}, "readonly": {"type": "boolean"},
    "items": {"type": "object"},
}}
_OBJECT: Json = {"name": "object", "required": ["name"], "properties": {
    "name": {"type": "string", "maxLength": 255}, "description": _TEXT,
    "required": {"type": "array", "items": _TEXT}, "properties": {"type": "object"},
    **_TIMES, **_LINKS,
}}
_TAG: Json = {"name": "tag", "required": ["name"], "properties": {
    "name": {"type": "string", "maxLength": 80}, **_TIMES,
}}


def _list_of(name: str, key: str, item: Json) -> Json:
    return {
        "name": name,
        "properties": {
            key: {"type": "array", "items": item}, "first": _TEXT, "next": _TEXT,
            "schema": _TEXT,
        },
        "links": [
            {"href": "{first}", "rel": "first"}, {"href": "{next}", "rel": "next"},
            {"href": "{schema}", "rel": "describedby"},
        ],
    }


PUBLISHED: dict[str, Json] = {
    "image": _IMAGE,
    "images": _list_of("images", "images", _IMAGE),
    "member": _MEMBER,
    "members": {"name": "members", "properties": {
        "members": {"type": "array", "items": _MEMBER}, "schema": _TEXT,
    }, "links": [{"href": "{schema}", "rel": "describedby"}]},
    "task": _TASK,
    "tasks": _list_of("tasks", "tasks", _TASK),
    "metadefs/namespace": _NAMESPACE,
    "metadefs/namespaces": _list_of("namespaces", "namespaces", _NAMESPACE),
    "metadefs/resource_type": _ASSOCIATION,
    "metadefs/resource_types": _list_of(
        "resource_type_associations", "resource_type_associations", _ASSOCIATION
    ),
    "metadefs/property": _PROPERTY,
    "metadefs/properties": _list_of("properties", "properties", _PROPERTY),
    "metadefs/object": _OBJECT,
    "metadefs/objects": _list_of("objects", "objects", _OBJECT),
    "metadefs/tag": _TAG,
    "metadefs/tags": _list_of("tags", "tags", _TAG),
}
"""By the part of the path that follows /v2/schemas/."""
