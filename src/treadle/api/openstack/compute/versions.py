"""The version documents, which clients read before anything else and without a token."""

from __future__ import annotations

from typing import Any

from treadle.api.openstack.wire import Ask, Call

LOWEST, HIGHEST = 1, 104
"""Minor microversions; what the newest of them mean here is in ADR 22."""
UPDATED = {"v2.0": "2011-01-21T11:33:21Z", "v2.1": "2013-07-23T11:33:21Z"}
MEDIA = "application/vnd.openstack.compute+json;version="


def version(root: str, name: str, *, full: bool = False) -> dict[str, Any]:
    """One version as the list or (`full`) its own document has it."""
    new = name == "v2.1"
    path = "v2.1" if new else "v2"
    found: dict[str, Any] = {
        "id": name,
        "status": "CURRENT" if new else "SUPPORTED",
        "version": f"2.{HIGHEST}" if new else "",
        "min_version": f"2.{LOWEST}" if new else "",
        "updated": UPDATED[name],
        "links": [{"rel": "self", "href": f"{root}/{path}/"}],
    }
    if full:
        found["links"].append({
            "rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/",
        })
        found["media-types"] = [
            {"base": "application/json", "type": MEDIA + ("2.1" if new else "2")}
        ]
    return found


async def every(ask: Ask) -> dict[str, Any]:
    """All versions."""
    return {"versions": [version(ask.root, "v2.0"), version(ask.root, "v2.1")]}


async def newest(ask: Ask) -> dict[str, Any]:
    """The version that this service is."""
    return {"version": version(ask.root, "v2.1", full=True)}


async def oldest(ask: Ask) -> dict[str, Any]:
    """The version that was before; the same calls without microversions."""
    return {"version": version(ask.root, "v2.0", full=True)}


CALLS = [
    Call("GET", "/", every, ""),
    Call("GET", "/v2.1", newest, ""),
    Call("GET", "/v2", oldest, ""),
]
