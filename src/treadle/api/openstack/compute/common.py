"""What the calls of compute share: links, times, short lists in pages, parts of schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa

from treadle.api.openstack.wire import Ask, Page, Schema, next_link
from treadle.errors import InvalidInput, NotFound
from treadle.identity.actions import get_project

T = TypeVar("T")
Body = dict[str, Any]

LONGEST = 255
MOST = 0x7FFFFFFF
"""The largest number that OpenStack's databases hold."""
STRICT = 75
"""The minor microversion from which an unknown argument of a query is refused."""
STRICTER = 102
"""The one from which that is so of calls that take no argument at all."""


# -- parts of schemas


def closed(properties: Mapping[str, Any], required: Sequence[str] = ()) -> Body:
    """An object with these properties and no others."""
    return {
        "type": "object", "properties": dict(properties), "required": list(required),
        "additionalProperties": False,
    }


def inside(key: str, value: Mapping[str, Any]) -> Body:
    """An object whose one property, `key`, is `value`."""
    return closed({key: value}, [key])


def whole(low: int, high: int = MOST) -> Body:
    """A whole number, or its digits."""
    return {
        "type": ["integer", "string"], "pattern": "^-?[0-9]+$", "minimum": low, "maximum": high,
        "maxLength": 20,
    }


def one_of(*values: str) -> Body:
    """One of these words."""
    return {"type": "string", "enum": list(values)}


def query(*names: str, since: int = 1, **more: Mapping[str, Any]) -> list[tuple[int, Body]]:
    """Steps of the schema of a query: any values for `names`, a schema of each value in `more`.

    What is not named is let pass, and refused from `STRICT` on.
    """
    properties = {
        name: {"type": "array", "items": dict(schema)}
        for name, schema in {**{name: TEXT for name in names}, **more}.items()
    }
    opened = {**closed(properties), "additionalProperties": True}
    if since >= STRICT:
        return [(since, closed(properties))]
    return [(since, opened), (STRICT, closed(properties))]


def queries(*steps: list[tuple[int, Body]]) -> Schema:
    """One schema of a query out of several steps; the later ones hold from their first minor on."""
    made: dict[int, Body] = {}
    for step in steps:
        made |= dict(step)
    return Schema(*sorted(made.items()))


TEXT: Body = {"type": "string"}
COUNT: Body = {"type": "string", "pattern": "^[0-9]{1,9}$"}
"""A number from 0 up in a query."""
UUID_TEXT: Body = {
    "type": "string",
    "pattern": "^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$",
}
BOOLEAN: Body = {"enum": [
    True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes",
    False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no",
]}
_SEEN = r"[^\p{C}\p{Z}]"
NAME: Body = {
    "type": "string", "minLength": 1, "maxLength": LONGEST,
    "pattern": rf"^{_SEEN}([^\p{{C}}\p{{Zl}}\p{{Zp}}]*{_SEEN})?$",
}
"""Printable letters, no space around."""
ZONE_NAME: Body = {
    "type": "string", "minLength": 1, "maxLength": LONGEST,
    "pattern": r"^[^\p{C}\p{Z}:]([^\p{C}\p{Zl}\p{Zp}:]*[^\p{C}\p{Z}:])?$",
}
HOST_NAME: Body = {
    "type": "string", "minLength": 1, "maxLength": LONGEST, "pattern": "^[a-zA-Z0-9._-]+$",
}
KEY = "^[a-zA-Z0-9_:. -]{1,255}$"


# -- values


TRUE = frozenset({"true", "t", "on", "1", "yes", "y"})
FALSE = frozenset({"false", "f", "off", "0", "no", "n"})


def truth(field: str, value: Any) -> bool:
    """A value of `BOOLEAN`, or an argument of a query. Errors: `InvalidInput`."""
    word = str(value).strip().lower()
    if word not in TRUE | FALSE:
        raise InvalidInput(field, value, "it must be true or false")
    return word in TRUE


def number(field: str, value: Any, low: int, high: int = MOST) -> int:
    """What `whole` lets pass, within its bounds: digits in a text are not bound by a schema.

    Errors: `InvalidInput`.
    """
    try:
        found = int(value)
    except (ValueError, TypeError) as error:
        raise InvalidInput(field, value, "it must be a whole number") from error
    if not low <= found <= high:
        raise InvalidInput(field, value, f"it must be from {low} to {high}")
    return found


def is_uuid(text: str) -> bool:
    """Whether it can be the id of something."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def moment(at: float | None) -> str | None:
    """Seconds since 1970 as `2026-01-01T00:00:00Z`."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(at: float | None) -> str | None:
    """Seconds since 1970 as `2026-01-01T00:00:00.000000`, without a zone."""
    return None if at is None else (
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    )


def known_project(conn: sa.Connection, id: str) -> str:
    """The id of a project that there is. Errors: `InvalidInput`."""
    try:
        get_project(conn, id)
    except NotFound as missing:
        raise InvalidInput("project", id, f"Project ID {id} is not a valid project.") from missing
    return id


# -- lists


def links(ask: Ask, kind: str, id: str) -> list[Body]:
    """Where a thing is: with the version, and for bookmarks without."""
    return links_from(ask.root, kind, id)


def links_from(root: str, kind: str, id: str) -> list[Body]:
    """`links` for who knows the service's address only."""
    return [
        {"rel": "self", "href": f"{root}/v2.1/{kind}/{id}"},
        {"rel": "bookmark", "href": f"{root}/{kind}/{id}"},
    ]


def part(things: Sequence[T], page: Page, name_of: Callable[[T], str]) -> Sequence[T]:
    """The part of a short list that a page is, in the list's own order.

    Errors: `InvalidInput` where the marker names nothing in it.
    """
    first = 0
    if page.marker is not None:
        first = 1 + next(
            (place for place, thing in enumerate(things) if name_of(thing) == page.marker), -1
        )
        if first == 0:
            raise InvalidInput("marker", page.marker, f"marker [{page.marker}] not found")
    return things[first:first + page.limit]


def following(ask: Ask, path: str, page: Page, shown: Sequence[T],
              name_of: Callable[[T], str]) -> list[Body]:
    """The link to the next page, where this one is full."""
    if len(shown) < page.limit or not shown:
        return []
    return [{"rel": "next", "href": next_link(ask, f"/v2.1{path}", name_of(shown[-1]))}]
