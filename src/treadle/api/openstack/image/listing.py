"""What a list of images is asked for: filters, order, page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from treadle.api.openstack.image.common import STATES
from treadle.api.openstack.image.schemas import VISIBILITIES
from treadle.api.openstack.wire import Ask
from treadle.errors import InvalidInput
from treadle.image.catalog import COMPARISONS, Wanted

PAGE = 100
PAGE_MAX = 1000
SORT_KEYS = (
    "name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at",
    "owner", "min_disk", "min_ram", "virtual_size",
)
LISTS = frozenset({"id", "name", "status", "container_format", "disk_format"})
"""What takes several values: in:ONE,OTHER."""
NUMBERS = frozenset({"size", "virtual_size", "min_disk", "min_ram"})
TEXTS = frozenset({"owner", "checksum", "os_hash_value"})
NOT_FILTERS = frozenset({"limit", "marker", "sort", "sort_key", "sort_dir"})
_IN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^,"]*))\s*(?:,|$)')
_LARGEST = (1 << 63) - 1


def wanted_of(ask: Ask) -> Wanted:
    """Which images the query asks for. Errors: `InvalidInput`."""
    equal: dict[str, Sequence[Any]] = {}
    times: list[tuple[str, str, float]] = []
    own: dict[str, str] = {}
    more: dict[str, Any] = {}
    for name, values in ask.query.items():
        value = values[-1]
        if name in LISTS:
            chosen = _several(name, value)
            if name == "status":
                chosen = [state for word in chosen for state in STATES.get(word, ())]
            equal[name] = chosen
        elif name in NUMBERS:
            equal[name] = [_number(name, value)]
        elif name in TEXTS:
            equal[name] = [value]
        elif name in ("created_at", "updated_at"):
            times += [(name, *_moment(name, one)) for one in values]
        elif name in ("size_min", "size_max"):
            more[name] = _number(name, value)
        elif name in ("protected", "os_hidden"):
            more["hidden" if name == "os_hidden" else name] = _truth(name, value)
        elif name == "tag":
            more["tags"] = tuple(values)
        elif name == "visibility":
            more[name] = _one_of(name, value, (*VISIBILITIES, "all"))
        elif name == "member_status":
            more[name] = _one_of(name, value, ("pending", "accepted", "rejected", "all"))
        elif name == "os_hash_algo":
            if value != "sha512":
                equal["id"] = []
        elif name not in NOT_FILTERS:
            own[name] = value
    return Wanted(
        ask.caller.project_id, ask.caller.is_admin, equal=equal, times=times, properties=own,
        **more,
    )


def order_of(ask: Ask) -> list[tuple[str, bool]]:
    """Keys to sort by, each with whether it descends; they end with the id, so that the order is
    one. Errors: `InvalidInput`."""
    together, keys = ask.query.get("sort"), list(ask.query.get("sort_key", ()))
    ways = list(ask.query.get("sort_dir", ()))
    if together is not None:
        if keys or ways:
            raise InvalidInput("sort", together[-1], "it cannot go with sort_key or sort_dir")
        pairs = [one.strip().partition(":") for one in together[-1].split(",")]
        keys = [key for key, _, _ in pairs]
        ways = [way or "desc" for _, _, way in pairs]
    elif len(ways) > 1 and len(ways) != len(keys):
        raise InvalidInput("sort_dir", ways, "one is wanted, or one for each sort_key")
    chosen = []
    for number, key in enumerate(keys or ["created_at"]):
        _one_of("sort_key", key, SORT_KEYS)
        way = ways[min(number, len(ways) - 1)] if ways else "desc"
        chosen.append((key, _one_of("sort_dir", way, ("asc", "desc")) == "desc"))
    if "id" not in [key for key, _ in chosen]:
        chosen.append(("id", chosen[-1][1]))
    return chosen


def limit_of(ask: Ask) -> int:
    """How many are wanted at most. Errors: `InvalidInput`."""
    text = ask.one("limit")
    return PAGE if text is None else min(PAGE_MAX, _number("limit", text))


def links(ask: Ask, path: str, last: str | None) -> dict[str, str]:
    """Where the list begins, and (`last`: the id to go on after) where it goes on."""
    pairs = [(n, v) for n, values in ask.query.items() if n != "marker" for v in values]
    found = {"first": f"{path}?{urlencode(pairs)}" if pairs else path}
    if last is not None:
        found["next"] = f"{path}?{urlencode([*pairs, ('marker', last)])}"
    return found


def _several(name: str, value: str) -> list[str]:
    if not value.startswith("in:"):
        return [value]
    rest, place = value[3:], 0
    found: list[str] = []
    while place < len(rest):
        matched = _IN.match(rest, place)
        if matched is None or len(found) >= PAGE_MAX:
            raise InvalidInput(name, value, "in: and values with commas between them are expected")
        quoted, plain = matched.groups()
        found.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain.strip())
        place = matched.end()
    return found


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) > _LARGEST:
        raise InvalidInput(name, text, "it must be a whole number from 0 up")
    return int(text)


def _truth(name: str, text: str) -> bool:
    return _one_of(name, text.lower(), ("true", "false")) == "true"


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise InvalidInput(name, value, f"it must be one of {', '.join(known)}")
    return value


def _moment(name: str, text: str) -> tuple[str, float]:
    """A comparison such as gte:2026-01-01T00:00:00Z."""
    how, separator, rest = text.partition(":")
    if not separator or how not in COMPARISONS:
        how, rest = "eq", text
    try:
        moment = datetime.fromisoformat(rest)
    except ValueError as error:
        raise InvalidInput(
            name, text, f"a time is expected, after one of {', '.join(COMPARISONS)} and a colon"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return how, float(int(moment.timestamp()))
