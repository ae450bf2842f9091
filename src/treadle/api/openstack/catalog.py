"""The service catalog: what this process answers itself, and what an operator adds.

A service is listed only where it answers: clients call each one that they find.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import sqlalchemy as sa

from treadle.api.context import Context
from treadle.db.schema import catalog_endpoint, catalog_service
from treadle.identity import store
from treadle.identity.model import Row

INTERFACES = ("public", "internal", "admin")


@dataclass(frozen=True, slots=True)
class Listed:
    """A service of ours. `root` is where it is served; `path` is the endpoint that is listed."""

    type: str
    name: str
    root: str
    path: str

    @property
    def id(self) -> str:
        """The same on every cloud and at every start."""
        return uuid5(NAMESPACE_OID, f"treadle:{self.type}").hex

    def endpoint_id(self, interface: str) -> str:
        """The id of one of its three endpoints."""
        return uuid5(NAMESPACE_OID, f"treadle:{self.type}:{interface}").hex


# Identity, image and network without a version, compute and volume with one: every client can
# work with that, and some can with nothing else.
KNOWN = (
    Listed("identity", "keystone", "/identity", "/identity"),
    Listed("compute", "nova", "/compute", "/compute/v2.1"),
    Listed("image", "glance", "/image", "/image"),
    Listed("network", "neutron", "/network", "/network"),
    Listed("block-storage", "cinder", "/volume", "/volume/v3"),
    Listed("volumev3", "cinderv3", "/volume", "/volume/v3"),
)


def own_services(context: Context) -> list[Row]:
    """The services that this process answers, as rows."""
    return [
        {"id": one.id, "type": one.type, "name": one.name, "description": None, "enabled": True,
         "extra": {}}
        for one in KNOWN if one.root in context.roots
    ]


def own_endpoints(context: Context, base: str) -> list[Row]:
    """Their endpoints, as rows; `base` is the address under which clients reach us."""
    return [
        {"id": one.endpoint_id(interface), "service_id": one.id, "interface": interface,
         "region_id": context.settings.identity.region, "url": base + one.path, "enabled": True,
         "extra": {}}
        for one in KNOWN if one.root in context.roots for interface in INTERFACES
    ]


def added(conn: sa.Connection) -> tuple[list[Row], list[Row]]:
    """What an operator has added: services and endpoints."""
    return store.select(conn, catalog_service), store.select(conn, catalog_endpoint)


def catalog(
    context: Context, base: str, more: tuple[Iterable[Row], Iterable[Row]],
    project_id: str | None,
) -> list[dict[str, Any]]:
    """The catalog as tokens carry it. `more` is what `added` gives."""
    services = [*own_services(context), *more[0]]
    places: dict[str, list[dict[str, Any]]] = {}
    words = {"project_id": project_id, "tenant_id": project_id}
    for one in (*own_endpoints(context, base), *more[1]):
        url = _filled(one["url"], words) if one["enabled"] else None
        if url is not None:
            places.setdefault(one["service_id"], []).append({
                "id": one["id"], "interface": one["interface"], "region_id": one["region_id"],
                "region": one["region_id"], "url": url,
            })
    return [
        {"id": one["id"], "type": one["type"], "name": one["name"],
         "endpoints": places.get(one["id"], [])}
        for one in services if one["enabled"]
    ]


def _filled(url: str, words: Mapping[str, str | None]) -> str | None:
    """The URL of an endpoint with the project put in; None where it needs one and there is none."""
    for word, value in words.items():
        for form in (f"$({word})s", f"%({word})s"):
            if form in url:
                if value is None:
                    return None
                url = url.replace(form, value)
    return url
