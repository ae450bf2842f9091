"""Giving an instance its network card, and taking it: one network, so one card or none.

As in `actions`, nothing here talks to a host.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from treadle.compute import actions, changes, outcomes
from treadle.compute.actions import OPERATOR, Caller
from treadle.compute.creating import mac_of
from treadle.compute.model import Instance
from treadle.errors import InvalidInput, NotFound

ALLOWED = frozenset({"active", "paused", "stopped"})
"""In which of `model.vm_state` it may be asked for."""
PATIENCE_S = outcomes.ADDRESS_PATIENCE_S
"""For the address that a guest asks for with its card; the card itself is not given up."""
MORE = (
    "Attaching a further interface is not supported for instance {}: this cloud has one network, "
    "in which a server has one interface"
)


def attach(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Give it its card, at once where it runs. Errors: `NotFound`, `Locked`, `InvalidState`;
    `InvalidInput` where it has one; `Conflict` where its hypervisor cannot."""
    instance = _asked(conn, id, "attach_interface", by)
    if instance.mac:
        raise InvalidInput("instance", instance.uuid, MORE.format(instance.uuid))
    values = changes.attached(instance, mac_of(UUID(instance.uuid)))
    actions.wish(conn, instance, "attach_interface", values, request_id, by, PATIENCE_S)
    return instance


def detach(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Take its card, at once where it runs. Errors: `NotFound`, also where it has none; `Locked`,
    `InvalidState`, `Conflict`."""
    instance = _asked(conn, id, "detach_interface", by)
    if not instance.mac:
        raise NotFound(f"instance {instance.uuid} has no interface")
    values = changes.detached(instance)
    actions.wish(conn, instance, "detach_interface", values, request_id, by, PATIENCE_S)
    return instance


def _asked(conn: sa.Connection, id: int, action: str, by: Caller) -> Instance:
    instance = actions.require(conn, id)
    actions.unlocked(instance, action, by)
    actions.expect(instance, action, ALLOWED)
    actions.whole(instance)
    return instance
