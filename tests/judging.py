"""tempest's schemas as the judge of answers, without the trial of each schema at every answer."""

from __future__ import annotations

from typing import Any

from tempest.lib.common import rest_client

_kind = rest_client.JSONSCHEMA_VALIDATOR


class CheckedOnce:
    """The validator that tempest names. `jsonschema.validate` checks the schema itself each time,
    which takes longer than the answer: here, once."""

    def __init__(self) -> None:
        self._checked: dict[int, Any] = {}  # they are kept: no other comes to have the number

    def __call__(self, *given: Any, **named: Any) -> Any:
        return _kind(*given, **named)

    def check_schema(self, schema: Any) -> None:
        if id(schema) not in self._checked:
            _kind.check_schema(schema)
            self._checked[id(schema)] = schema


def judge_quickly() -> None:
    """From now on, have tempest in this process check each of its schemas once."""
    if rest_client.JSONSCHEMA_VALIDATOR is _kind:
        rest_client.JSONSCHEMA_VALIDATOR = CheckedOnce()
