"""The calls for metadata, which are the same for whatever has some: servers and images."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from treadle.api.openstack.compute.common import Body
from treadle.api.openstack.compute.server_schemas import SET_META, SET_METADATA
from treadle.api.openstack.wire import EVER, Ask, Call
from treadle.errors import InvalidInput, NotFound

MISSING = "Metadata item was not found"
Items = dict[str, str]


@dataclass(frozen=True)
class Metadata:
    """`read` gives the items of what the path names; `change` puts what a function makes of them in
    their place, and gives it."""

    read: Callable[[Ask], Awaitable[Items]]
    change: Callable[[Ask, Callable[[Items], Items]], Awaitable[Items]]

    async def show_all(self, ask: Ask) -> Body:
        """All items."""
        return {"metadata": await self.read(ask)}

    async def show(self, ask: Ask) -> Body:
        """One item."""
        key, found = ask.path["key"], await self.read(ask)
        if key not in found:
            raise NotFound(MISSING)
        return {"meta": {key: found[key]}}

    async def merge(self, ask: Ask) -> Body:
        """Add items, or give them other values."""
        return {"metadata": await self.change(ask, lambda old: {**old, **ask.body["metadata"]})}

    async def replace(self, ask: Ask) -> Body:
        """These items and no others."""
        return {"metadata": await self.change(ask, lambda _old: dict(ask.body["metadata"]))}

    async def put(self, ask: Ask) -> Body:
        """Add an item, or give it another value."""
        key, given = ask.path["key"], ask.body["meta"]
        if key not in given:
            raise InvalidInput("meta", sorted(given), "Request body and URI mismatch")
        await self.change(ask, lambda old: {**old, **given})
        return {"meta": given}

    async def delete(self, ask: Ask) -> None:
        """One item less."""
        key = ask.path["key"]

        def without(old: Items) -> Items:
            if key not in old:
                raise NotFound(MISSING)
            return {name: value for name, value in old.items() if name != key}

        await self.change(ask, without)

    def calls(self, path: str, read: str, change: str, until: int = EVER) -> list[Call]:
        """Under the path of what has them; `read` and `change` are the rules."""
        all_of, one = f"{path}/metadata", f"{path}/metadata/{{key}}"
        return [
            Call("GET", all_of, self.show_all, read, until=until),
            Call("POST", all_of, self.merge, change, 200, SET_METADATA, until=until),
            Call("PUT", all_of, self.replace, change, 200, SET_METADATA, until=until),
            Call("GET", one, self.show, read, until=until),
            Call("PUT", one, self.put, change, 200, SET_META, until=until),
            Call("DELETE", one, self.delete, change, 204, until=until),
        ]
