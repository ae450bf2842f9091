"""Words for the schemas of answers, and how a table of calls is given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from treadle.api.openstack.wire import Call

Shape = dict[str, Any]

TEXT: Shape = {"type": "string"}
MAYBE: Shape = {"type": ["string", "null"]}
WHOLE: Shape = {"type": "integer"}
NUMBER: Shape = {"type": "number"}
FLAG: Shape = {"type": "boolean"}
ANYTHING: Shape = {}
WORDS: Shape = {"type": "object", "additionalProperties": TEXT}
"""Any keys, each with a text."""


def thing(needed: Mapping[str, Shape], maybe: Mapping[str, Shape] | None = None, *,
          more: bool = False) -> Shape:
    """An object that has all of `needed`, and of `maybe` what it likes. `more`: and anything else.
    """
    return {
        "type": "object", "properties": {**needed, **(maybe or {})}, "required": sorted(needed),
        "additionalProperties": more,
    }


def many(one: Shape) -> Shape:
    """A list."""
    return {"type": "array", "items": one}


def answering(calls: Iterable[Call], answers: Mapping[str, Shape]) -> list[Call]:
    """The calls with the schema of what each answers; `answers` names them as `GET /v3/users`.

    Errors: `KeyError` for a name of no call.
    """
    left = dict(answers)
    made = []
    for call in calls:
        name = f"{call.method} {call.path}"
        known = answers.get(name)
        left.pop(name, None)
        made.append(call if known is None else replace(call, answer=known))
    if left:
        raise KeyError(f"answers of no call: {', '.join(left)}")
    return made
