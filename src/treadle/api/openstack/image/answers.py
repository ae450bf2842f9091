"""What the image service's calls answer."""

from __future__ import annotations

from treadle.api.openstack.shapes import FLAG, MAYBE, TEXT, WHOLE, Shape, many, thing

_SIZE: Shape = {"type": ["integer", "null"], "minimum": 0}
_IMAGE: Shape = {
    **thing({
        "id": TEXT, "name": MAYBE, "status": {"enum": [
            "queued", "saving", "uploading", "importing", "active", "deactivated", "killed",
            "deleted", "pending_delete",
        ]}, "visibility": {"enum": ["public", "private", "shared", "community"]},
        "protected": FLAG, "os_hidden": FLAG, "owner": MAYBE, "size": _SIZE,
        "virtual_size": _SIZE, "checksum": MAYBE, "os_hash_algo": MAYBE, "os_hash_value": MAYBE,
        "container_format": MAYBE, "disk_format": MAYBE, "min_disk": WHOLE, "min_ram": WHOLE,
        "tags": many(TEXT), "created_at": TEXT, "updated_at": TEXT, "self": TEXT, "file": TEXT,
        "schema": {"const": "/v2/schemas/image"},
    }, {"stores": TEXT}),
    "additionalProperties": MAYBE,
}
"""Whatever else an image has is a property of its owner's: a text."""
_MEMBER = thing({
    "image_id": TEXT, "member_id": TEXT, "status": {"enum": ["pending", "accepted", "rejected"]},
    "created_at": TEXT, "updated_at": TEXT, "schema": {"const": "/v2/schemas/member"},
})
_TASK = thing({
    "id": TEXT, "type": TEXT, "status": {"enum": ["pending", "processing", "success", "failure"]},
    "owner": TEXT, "user_id": TEXT, "request_id": TEXT, "image_id": TEXT, "message": TEXT,
    "input": {"type": "object"}, "result": {"type": ["object", "null"]}, "expires_at": MAYBE,
    "created_at": TEXT, "updated_at": TEXT, "self": TEXT, "schema": {"const": "/v2/schemas/task"},
})
_VERSIONS = thing({"versions": many(thing({
    "id": TEXT, "status": {"enum": ["CURRENT", "SUPPORTED"]},
    "links": many(thing({"rel": TEXT, "href": TEXT})),
}))})
ANSWERS: dict[str, Shape] = {
    "GET ": _VERSIONS,
    "GET /versions": _VERSIONS,
    "GET /v2": _VERSIONS,
    "POST /v2/images": _IMAGE,
    "GET /v2/images": thing(
        {"images": many(_IMAGE), "first": TEXT, "schema": {"const": "/v2/schemas/images"}},
        {"next": TEXT},
    ),
    "GET /v2/images/{image_id}": _IMAGE,
    "PATCH /v2/images/{image_id}": _IMAGE,
    "GET /v2/images/{image_id}/members": thing({"members": many(_MEMBER), "schema": TEXT}),
    "POST /v2/images/{image_id}/members": _MEMBER,
    "GET /v2/images/{image_id}/members/{member_id}": _MEMBER,
    "PUT /v2/images/{image_id}/members/{member_id}": _MEMBER,
    "GET /v2/images/{image_id}/tasks": thing({"tasks": many(_TASK)}),
    "GET /v2/tasks": thing({"tasks": many(_TASK), "first": TEXT, "schema": TEXT}),
    "GET /v2/tasks/{task_id}": _TASK,
    "GET /v2/info/import": thing({"import-methods": thing(
        {"description": TEXT, "type": TEXT, "value": many(TEXT)}
    )}),
    "GET /v2/info/stores": thing({"stores": many(thing({"id": TEXT}, {"default": TEXT}))}),
    "GET /v2/metadefs/namespaces": thing({"namespaces": many({}), "first": TEXT, "schema": TEXT}),
    "GET /v2/metadefs/resource_types": thing({"resource_types": many({})}),
}
"""By method and path."""
