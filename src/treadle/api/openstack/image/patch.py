"""Changes of an image as JSON patches, of both kinds that clients send.

version 2.1: RFC 6902 with add, replace and remove. version 2.0: {"add": "/name", "value": …}.
A path has one part, or two below tags, since clients make patches by comparing documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.api.openstack.image.schemas import READ_ONLY, RESERVED, SETTABLE
from treadle.errors import Conflict, Forbidden, InvalidInput

VERBS = ("add", "replace", "remove")
KINDS = {
    "application/openstack-images-v2.1-json-patch": True,
    "application/openstack-images-v2.0-json-patch": False,
}
"""Whether a content type is of the newer kind."""
Operation = tuple[str, list[str], Any]


def operations(body: Sequence[Mapping[str, Any]], newer: bool) -> list[Operation]:
    """What is to be done, in order. Errors: `InvalidInput`, `Forbidden`."""
    found = [_operation(one, newer) for one in body]
    return [one for one in found if not _takes_away_ours(one[0], one[1][0])]


def _takes_away_ours(verb: str, name: str) -> bool:
    """Whether it would remove what we alone say of an image. openstacksdk asks for that with every
    change, since it does not know these: it means nothing by it."""
    return verb == "remove" and (name == "stores" or name.startswith("os_glance_"))


def _operation(one: Mapping[str, Any], newer: bool) -> Operation:
    if newer:
        verb, path = one.get("op"), one.get("path")
    else:
        verb = next((verb for verb in VERBS if verb in one), None)
        path = one.get(verb) if verb else None
    if verb not in VERBS:
        raise InvalidInput("op", verb, f"it must be one of {', '.join(VERBS)}")
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidInput("path", path, "a JSON pointer such as /name is expected")
    if verb != "remove" and "value" not in one:
        raise InvalidInput("value", None, f"{verb} needs a value")
    parts = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
    name = parts[0]
    if not name or len(parts) > (2 if name == "tags" else 1):
        raise InvalidInput("path", path, f"Invalid JSON pointer for this resource: '{path[:80]}'")
    if not _takes_away_ours(verb, name):
        check_name(name)
    return verb, parts, one.get("value")


def check_name(name: str) -> None:
    """Errors: `Forbidden` for what a caller may not set."""
    if name in READ_ONLY or name == "id":
        raise Forbidden(f"Attribute '{name}' is read-only.")
    if name in RESERVED or name.startswith("os_glance_"):
        raise Forbidden(f"Attribute '{name[:80]}' is reserved.")


def apply(document: dict[str, Any], todo: Sequence[Operation]) -> dict[str, Any]:
    """The document after the operations. Errors: `Conflict`, `Forbidden`, `InvalidInput`."""
    changed = dict(document)
    for verb, parts, value in todo:
        name = parts[0]
        if len(parts) == 2:
            changed[name] = _in_list(list(changed[name]), verb, parts[1], value)
            continue
        if verb != "add" and name not in changed:
            raise Conflict(f"Property {name[:80]} does not exist.")
        if verb != "remove":
            changed[name] = value
        elif name in SETTABLE and name != "tags":
            raise Forbidden(f"Property {name} may not be removed.")
        elif name == "tags":
            changed[name] = []
        else:
            del changed[name]
    return changed


def _in_list(items: list[Any], verb: str, place: str, value: Any) -> list[Any]:
    if place == "-" and verb == "add":
        return [*items, value]
    last = len(items) if verb == "add" else len(items) - 1
    if not (place.isascii() and place.isdecimal()) or len(place) > 9 or int(place) > last:
        raise Conflict(f"there is no tag number {place[:20]}")
    index = int(place)
    kept = [] if verb == "remove" else [value]
    return [*items[:index], *kept, *items[index + (verb != "add"):]]
