"""Which versions of identity there are."""

from __future__ import annotations

from typing import Any

from treadle.api.openstack.wire import Ask, Call, Reply

TYPE = "application/vnd.openstack.identity-v3+json"


def version(root: str) -> dict[str, Any]:
    """The one there is."""
    return {
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{root}/v3/"}],
        "media-types": [{"base": "application/json", "type": TYPE}],
    }


async def versions(ask: Ask) -> Reply:
    """All of them."""
    return Reply(
        {"versions": {"values": [version(ask.root)]}},
        headers={"Location": f"{ask.root}/v3/", "Vary": "X-Auth-Token"},
    )


async def v3(ask: Ask) -> dict[str, Any]:
    """This one."""
    return {"version": version(ask.root)}


CALLS = [
    Call("GET", "/", versions, "", 300),
    Call("GET", "/v3", v3, ""),
]
