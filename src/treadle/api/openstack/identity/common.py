"""What the parts of identity have in common: how rows are shown, listed, filtered and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa

from treadle.api.openstack.wire import Ask
from treadle.errors import InvalidInput
from treadle.identity.model import Row

T = TypeVar("T")
Shown = dict[str, Any]

TEXT = {"type": "string", "pattern": "^[^\\x00]*$"}
NAME = {
    "type": "string", "minLength": 1, "maxLength": 255,
    "pattern": "^[^\\x00]*[^\\x00\\s][^\\x00]*$",
}
ID = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-zA-Z0-9-]+$"}
ID_OR_NULL = {**ID, "type": ["string", "null"]}
TEXT_OR_NULL = {**TEXT, "type": ["string", "null"]}
BOOL = {"type": "boolean"}


def closed(name: str, properties: Mapping[str, Any], required: Sequence[str] = ()) -> Shown:
    """The schema of `{name: {...}}`; what it does not know of the inner object is kept."""
    return {
        "type": "object", "required": [name],
        "properties": {name: {
            "type": "object", "properties": dict(properties), "required": list(required),
        }},
    }


def when(seconds: float | None) -> str | None:
    """A time as identity writes it."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def change(ask: Ask, work: Callable[[sa.Connection], T]) -> T:
    """A transaction that may end tokens: it is over when no controller takes them any more."""
    tokens = ask.context.tokens
    stamp = tokens.stamp
    value = await ask.write(work)
    await tokens.settled(stamp)
    return value


def extras(body: Mapping[str, Any], known: Iterable[str], before: Row | None = None) -> Row:
    """What a body has beside the columns: kept as it is, with what was kept before."""
    hidden = {*known, "id", "links", "extra"}
    more = {name: value for name, value in body.items() if name not in hidden}
    return {**(before or {}), **more}


def options_of(
    body: Mapping[str, Any], known: Iterable[str], before: Row | None = None
) -> Row:
    """The options of a body over those of before; null removes one. Errors: `InvalidInput`."""
    made = dict(before or {})
    for name, value in (body.get("options") or {}).items():
        if name not in known:
            raise InvalidInput("options", name, f"use {', '.join(known)}")
        if value is None:
            made.pop(name, None)
        elif name.endswith("_rules"):
            if not isinstance(value, list) or not all(
                isinstance(rule, list) and all(isinstance(one, str) for one in rule)
                for rule in value
            ):
                raise InvalidInput(name, value, "it must be a list of lists of methods")
            made[name] = value
        elif isinstance(value, bool):
            made[name] = value
        else:
            raise InvalidInput(name, value, "it must be true or false")
    return made


def page(rows: list[Row], limit: int | None) -> tuple[list[Row], str | None]:
    """The rows of a page out of one row more, and the marker of the next."""
    if limit is None or len(rows) <= limit:
        return rows, None
    return rows[:limit], str(rows[limit - 1]["id"])


def link(ask: Ask, *parts: str) -> dict[str, str]:
    """The links of one thing."""
    return {"self": "/".join((ask.root, "v3", *parts))}


def listing(
    ask: Ask, name: str, rows: Iterable[Shown], path: str, *, more: str | None = None
) -> Shown:
    """A list with its links. `more`: the marker of the next page, where there is one."""
    query = ask.request.scope["query_string"].decode("latin-1")
    own = f"{ask.root}/v3/{path}"
    following = None
    if more is not None:
        pairs = [(n, v) for n, values in ask.query.items() if n != "marker" for v in values]
        following = f"{own}?{urlencode([*pairs, ('marker', more)])}"
    return {
        name: list(rows),
        "links": {"self": f"{own}?{query}" if query else own, "previous": None, "next": following},
    }


def truth(text: str) -> bool:
    """What a filter such as `enabled` says: all but these words is yes."""
    return text.strip().lower() not in ("0", "false", "no", "off", "f", "n")


def limit_of(ask: Ask) -> int | None:
    """How many rows are asked for. Errors: `InvalidInput`."""
    text = ask.one("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) == 0:
        raise InvalidInput("limit", text, "it must be a whole number from 1 up")
    return int(text)


def marker_of(ask: Ask) -> str | None:
    """After which row the list begins."""
    marker = ask.one("marker")
    return None if marker is None else marker.replace("\0", "\ufffd")


def filters(ask: Ask, table: sa.Table, exact: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    """The conditions of a list's query: columns that are equal, and the name's comparisons.

    `enabled` and the like are read as words; names compare without case.
    """
    where: list[sa.ColumnElement[bool]] = []
    for column in exact:
        text = ask.one(column)
        if text is None:
            continue
        if "\0" in text:
            where.append(sa.false())
        elif column == "name" and "name_key" in table.c:
            where.append(table.c.name_key == text.casefold())
        elif isinstance(table.c[column].type, sa.Boolean):
            where.append(table.c[column].is_(truth(text)))
        else:
            where.append(table.c[column] == text)
    for column in exact:
        for way in ("contains", "startswith", "endswith"):
            for sign in ("", "i"):
                text = ask.one(f"{column}__{sign}{way}")
                if text is not None and isinstance(table.c[column].type, sa.String):
                    key = table.c.name_key if column == "name" and "name_key" in table.c else None
                    where.append(_like(key, table.c[column], way, text))
    return where


def _like(
    key: sa.Column[Any] | None, column: sa.Column[Any], way: str, text: str
) -> sa.ColumnElement[bool]:
    compared = sa.func.lower(column) if key is None else key
    text = text.replace("\0", "\ufffd")
    compare = getattr(compared, way)
    made: sa.ColumnElement[bool] = compare(
        text.lower() if key is None else text.casefold(), autoescape=True
    )
    return made
