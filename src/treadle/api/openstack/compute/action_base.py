"""What every action on a server is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.servers import find_row
from treadle.api.openstack.wire import Ask, Reply, Schema
from treadle.compute.listing import Row
from treadle.errors import InvalidState

Use = Callable[[Ask, Any], Awaitable[Reply | None]]


@dataclass(frozen=True, slots=True)
class Action:
    """One action: what its value must be, the rule, and what it does."""

    run: Use
    rule: str
    body: Schema
    status: int = 202
    since: int = 1
    until: int = 999


NULL = Schema((1, {}))
"""Most clients send null; some an empty object, or anything."""


@contextmanager
def in_words(uuid: str, name: str) -> Iterator[None]:
    """Say a wrong state as OpenStack does, by the server's UUID and its own word for the action."""
    try:
        yield
    except InvalidState as error:
        raise InvalidState(
            f"Cannot '{name}' instance {uuid} while it is in {error.attribute} {error.state}",
            name, error.attribute, error.state,
        ) from error


def changing(name: str) -> Callable[[Callable[[sa.Connection, Ask, Row, Any], Any]], Use]:
    """Make a use of a function that works on the server's row in one transaction.

    `name` is what OpenStack calls the action where it says that the state does not allow it.
    """

    def wrap(work: Callable[[sa.Connection, Ask, Row, Any], Any]) -> Use:
        async def run(ask: Ask, value: Any) -> Reply | None:
            def change(conn: sa.Connection) -> Any:
                row = find_row(conn, ask)
                with in_words(row.instance.uuid, name):
                    return work(conn, ask, row, value)

            made = await ask.write(change)
            return made if isinstance(made, Reply) else None

        return run

    return wrap
