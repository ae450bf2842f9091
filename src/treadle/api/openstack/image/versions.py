"""Which versions of the image API there are, and what it publishes about itself."""

from __future__ import annotations

from treadle.api.openstack.image.schemas import PUBLISHED
from treadle.api.openstack.wire import Ask, Call, Reply
from treadle.errors import Forbidden, NotFound

MINORS = range(12, -1, -1)
METHODS = ("glance-direct", "web-download")


def document(ask: Ask) -> dict[str, object]:
    """All versions; each leads to the one API that there is."""
    link = [{"rel": "self", "href": f"{ask.root}/v2/"}]
    return {"versions": [
        {"id": f"v2.{minor}", "status": "SUPPORTED" if number else "CURRENT", "links": link}
        for number, minor in enumerate(MINORS)
    ]}


async def choices(ask: Ask) -> Reply:
    """Where clients begin: they are to choose one."""
    return Reply(document(ask), status=300)


async def versions(ask: Ask) -> Reply:
    """The same, as an answer to who asked for it by name."""
    return Reply(document(ask))


async def schema(ask: Ask) -> Reply:
    """One published schema."""
    return Reply(PUBLISHED[ask.path["name"]])


async def metadefs_schema(ask: Ask) -> Reply:
    """One published schema of the definitions of properties."""
    found = PUBLISHED.get(f"metadefs/{ask.path['name']}")
    if found is None:
        raise NotFound("there is no such schema")
    return Reply(found)


async def import_info(_ask: Ask) -> Reply:
    """By which ways content can be imported."""
    return Reply({"import-methods": {
        "description": "Import methods available.", "type": "array", "value": list(METHODS),
    }})


async def stores(ask: Ask) -> Reply:
    """Where contents are kept: one store."""
    return Reply({"stores": [{"id": ask.context.contents.blobs.kind, "default": "true"}]})


async def some_schema(ask: Ask) -> Reply:
    """One published schema by its name."""
    if ask.path["name"] not in PUBLISHED:
        raise NotFound("there is no such schema")
    return await schema(ask)


async def namespaces(_ask: Ask) -> dict[str, object]:
    """Definitions of properties that operators have written: there are none."""
    return {
        "namespaces": [], "first": "/v2/metadefs/namespaces",
        "schema": "/v2/schemas/metadefs/namespaces",
    }


async def resource_types(_ask: Ask) -> dict[str, object]:
    """What definitions of properties are for: there are none."""
    return {"resource_types": []}


async def no_namespace(ask: Ask) -> None:
    """There is none by that name."""
    raise NotFound(f"Metadata definition namespace not found: {ask.path['namespace'][:80]}")


async def keep_none(_ask: Ask) -> None:
    """Properties need no definition here: an image takes any."""
    raise Forbidden("Definitions of properties are not kept: an image takes any property.")


CALLS = [
    Call("GET", "", choices, "", status=300),
    Call("GET", "/versions", versions, ""),
    Call("GET", "/v2", choices, "", status=300),
    Call("GET", "/v2/schemas/{name}", some_schema, "image:get_schema"),
    Call("GET", "/v2/schemas/metadefs/{name}", metadefs_schema, "image:get_schema"),
    Call("GET", "/v2/info/import", import_info, "image:get_info"),
    Call("GET", "/v2/info/stores", stores, "image:get_info"),
    Call("GET", "/v2/metadefs/namespaces", namespaces, "image:get_schema"),
    Call("POST", "/v2/metadefs/namespaces", keep_none, "image:set_owner", 403),
    Call("GET", "/v2/metadefs/namespaces/{namespace}", no_namespace, "image:get_schema"),
    Call("GET", "/v2/metadefs/resource_types", resource_types, "image:get_schema"),
]
