"""What each wish makes of an instance's row: pure functions from the row to the columns it sets.

A wish that changes what runs raises `generation`, and so does one that takes such a wish back: what
a host was told under a number stays what that number means. What a wish replaces is kept in
`before`, so that a wish that comes to nothing leaves the row as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from treadle.compute.model import Goal, Instance, Mode, Task

Columns = dict[str, Any]

ON_A_HOST = frozenset({Goal.RUNNING, Goal.STOPPED, Goal.PAUSED, Goal.SUSPENDED})


def kept(instance: Instance, *names: str) -> str:
    """What `before` holds: these columns as they are now."""
    return json.dumps({name: column(instance, name) for name in names}, separators=(",", ":"))


def column(instance: Instance, name: str) -> Any:
    """A field of the instance as its column holds it."""
    value = getattr(instance, name)
    if name == "disks":
        return ",".join(map(str, value))
    if name == "ssh_keys":
        return "\n".join(value)
    return value


def undone(instance: Instance) -> Columns:
    """The wish comes to nothing: the columns that it replaced, as they were."""
    if not instance.before:
        return {"mode": instance.settled_mode}
    found: Columns = json.loads(instance.before)
    return {"mode": instance.settled_mode, **found, "before": ""}


def soft_deleted(instance: Instance) -> Columns:
    """Stopped, and out of sight until it is restored or its time is up."""
    goal = Goal.STOPPED if instance.goal in ON_A_HOST else instance.goal
    changed: Columns = {
        "goal": goal, "mode": Mode.SOFT_DELETED, "task": Task.SOFT_DELETING, "ends_at": None,
        "before": "", "snapshot_image_id": None,
    }
    if instance.rescue_image_id is not None:
        changed |= {"rescue_image_id": None, "generation": instance.generation + 1}
    return changed


def restored(instance: Instance) -> Columns:
    """As before the soft delete: running, or kept as an image."""
    offloaded = instance.goal is Goal.OFFLOADED
    return {
        "goal": instance.goal if offloaded else Goal.RUNNING,
        "mode": Mode.SHELVED if offloaded else Mode.NORMAL,
        "task": Task.RESTORING, "ends_at": None,
        "before": kept(instance, "ends_at"),
    }


def ended(instance: Instance) -> Columns:
    """The time of its mode is up: what comes then."""
    assert instance.mode is Mode.SOFT_DELETED
    return {"goal": Goal.DELETED, "ends_at": None}


AFTER: Mapping[Mode, str] = {Mode.SOFT_DELETED: "reclaim"}
"""The modes that end by themselves, and the name of that in the action log."""
