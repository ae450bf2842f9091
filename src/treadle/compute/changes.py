"""What each wish makes of an instance's row: pure functions from the row to the columns it sets.

A wish that changes what runs raises `generation`, and so does one that takes such a wish back: what
a host was told under a number stays what that number means. `KEEP` names the columns whose present
values go into `before`, so that a wish that comes to nothing leaves the row as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from treadle.compute.model import (
    Goal,
    Instance,
    Mode,
    Phase,
    State,
    Task,
    is_settled,
    numa_nodes,
)

Columns = dict[str, Any]

KEEP = "keep"
SIZES = ("vcpus", "memory_mib", "disk_gib")
SIZE_COLUMNS = ("flavor_id", "flavor", *SIZES, "disks")
CARD_COLUMNS = ("networked", "mac", "address")

ON_A_HOST = frozenset({Goal.RUNNING, Goal.STOPPED, Goal.PAUSED, Goal.SUSPENDED})


def undone(instance: Instance, on: int = 0) -> Columns:
    """The wish comes to nothing: the columns that it replaced, as they were. `on`: the volume that
    what runs was moved onto. One that the wish has brought stays, with what was written to it."""
    found: Columns = json.loads(instance.before) if instance.before else {}
    if on in instance.disks and str(on) not in found.get("disks", str(on)).split(","):
        found |= {"disks": ",".join(map(str, instance.disks)), "disk_gib": instance.disk_gib}
    return {"mode": instance.settled_mode, "before": "", **found}


def held(instance: Instance) -> tuple[int, int, int]:
    """What the instance takes of a host: vcpus, memory and disk in MiB. While a size can still
    come back, the larger of both."""
    now = (instance.vcpus, instance.memory_mib, instance.disk_gib)
    before = json.loads(instance.before) if instance.before else {}
    then = tuple(before.get(name, size) for name, size in zip(SIZES, now, strict=True))
    vcpus, memory_mib, disk_gib = map(max, now, then)
    return vcpus, memory_mib, disk_gib * 1024


def nodes_held(instance: Instance) -> int:
    """Of how many of its host's NUMA cells it holds something, likewise."""
    before = json.loads(instance.before) if instance.before else {}
    return max(instance.nodes, numa_nodes(before.get("flavor") or ""))


def rescued(instance: Instance, image_id: int) -> Columns:
    """Running from a disk of the image, its own disk beside it."""
    return {
        "goal": Goal.RUNNING, "mode": Mode.RESCUED, "task": Task.RESCUING,
        "rescue_image_id": image_id, "generation": instance.generation + 1, "graceful": True,
        KEEP: ("rescue_image_id",),
    }


def unrescued(instance: Instance) -> Columns:
    """Running from its own disk again."""
    return {
        "goal": Goal.RUNNING, "mode": Mode.NORMAL, "task": Task.UNRESCUING,
        "rescue_image_id": None, "generation": instance.generation + 1, "graceful": False,
        KEEP: ("rescue_image_id",),
    }


def rebuilt(instance: Instance, image_id: int, others: Columns) -> Columns:
    """On a new disk of the image, with other columns changed as well. What was given up, or never
    came to be, is placed as a new one is."""
    changed: Columns = {
        "goal": Goal.STOPPED if instance.state is State.STOPPED else Goal.RUNNING,
        "mode": Mode.NORMAL, "task": Task.REBUILDING,
        "image_id": image_id, "disk_image_id": None, "disks": str(instance.revision + 1),
        "generation": instance.generation + 1, "graceful": False, **others,
    }
    if instance.host_id is None:
        return changed | {
            "state": State.BUILDING, "phase": Phase.QUEUED, "attempts": 0, "excluded": "",
            "before": "",
        }
    return changed | {KEEP: ("image_id", "disk_image_id", "disks", *others)}


def evacuated(instance: Instance, target_id: int, *, left_off: bool) -> Columns:
    """On a host that has room for it, on a new disk of its image: the one that had it is off, and
    its disk with it."""
    return {
        **_elsewhere(instance, target_id, left_off),
        "state": State.BUILDING, "phase": Phase.PLACED,
        "attempts": 1, "excluded": str(instance.host_id),
        "disk_image_id": None, "disks": str(instance.revision + 1),
    }


def inherited(instance: Instance, target_id: int, *, left_off: bool) -> Columns:
    """On a host that shares the storage of the one that is off, going on from its own disk. It is
    not one that is being built: nothing that fails there may lead to its disk being removed."""
    return {
        **_elsewhere(instance, target_id, left_off),
        "state": State.STOPPED, "phase": Phase.DEFINED,
    }


def _elsewhere(instance: Instance, target_id: int, left_off: bool) -> Columns:
    """What its host's end leaves of it, whatever disk it goes on with."""
    return {
        "goal": Goal.STOPPED if left_off or instance.goal is Goal.STOPPED else Goal.RUNNING,
        "mode": Mode.NORMAL, "settled_mode": Mode.NORMAL, "ends_at": None, "before": "",
        "task": Task.REBUILDING, "host_id": target_id, "address": None, "moving": None,
        "fault": None, "rescue_image_id": None, "snapshot_image_id": None,
        "generation": instance.generation + 1, "graceful": False,
    }


def resized(instance: Instance, size: Columns) -> Columns:
    """Of another size, which can be taken back: a larger disk lies over the old one."""
    disks = ",".join(map(str, instance.disks))
    if size["disk_gib"] > instance.disk_gib:
        disks = f"{instance.revision + 1},{disks}"
    return {
        "mode": Mode.RESIZED, "task": Task.RESIZE_PREP, **size, "disks": disks,
        "generation": instance.generation + 1, "graceful": True, KEEP: SIZE_COLUMNS,
    }


def grown(instance: Instance) -> frozenset[str]:
    """What of it is to be more, of "vcpus", "memory_mib" and "disk_gib", where nothing else has
    been wished since it was last settled: what still runs can be given that. Empty of all else."""
    if not (
        instance.mode is Mode.RESIZED and instance.settled_mode is Mode.NORMAL
        and instance.before and instance.generation == instance.settled_generation + 1
    ):
        return frozenset()
    before = json.loads(instance.before)
    if numa_nodes(before.get("flavor") or "") != instance.nodes:
        return frozenset()
    now = dict(zip(SIZES, (instance.vcpus, instance.memory_mib, instance.disk_gib), strict=True))
    under = instance.disks[1:] if now["disk_gib"] > before["disk_gib"] else instance.disks
    if any(now[name] < before[name] for name in SIZES) or under != _numbers(before["disks"]):
        return frozenset()
    return frozenset(name for name in SIZES if now[name] > before[name])


def _numbers(disks: str) -> tuple[int, ...]:
    return tuple(map(int, disks.split(",")))


def attached(instance: Instance, mac: str) -> Columns:
    """With its network card."""
    return {
        "networked": True, "mac": mac, "task": Task.ATTACHING_INTERFACE,
        "generation": instance.generation + 1, "graceful": True, KEEP: CARD_COLUMNS,
    }


def detached(instance: Instance) -> Columns:
    """Without its network card."""
    return {
        "networked": False, "mac": "", "address": None, "task": Task.DETACHING_INTERFACE,
        "generation": instance.generation + 1, "graceful": True, KEEP: CARD_COLUMNS,
    }


def plugged(instance: Instance) -> bool:
    """Whether nothing has been wished of it, since it was last settled, but its network card, or
    none; or that has been taken back."""
    return (
        instance.generation > instance.settled_generation
        and instance.mode is instance.settled_mode and bool(instance.before)
        and json.loads(instance.before).keys() == set(CARD_COLUMNS)
    )


def confirmed() -> Columns:
    """The new size is there to stay. Nothing is to be done on the host."""
    return {"mode": Mode.NORMAL, "settled_mode": Mode.NORMAL, "ends_at": None, "before": ""}


def reverted(instance: Instance) -> Columns:
    """Of the old size again, on the old disk."""
    return {
        **undone(instance), "mode": Mode.NORMAL, "task": Task.RESIZE_REVERTING, "ends_at": None,
        "generation": instance.generation + 1, "graceful": True,
        KEEP: (*SIZE_COLUMNS, "ends_at", "before"),
    }


def imaged(image_id: int) -> Columns:
    """The same, while an image of its disk is made."""
    return {"snapshot_image_id": image_id, "task": Task.IMAGE_SNAPSHOT}


def shelved(image_id: int) -> Columns:
    """Stopped, and kept as an image."""
    return {
        "goal": Goal.STOPPED, "mode": Mode.SHELVED, "task": Task.SHELVING,
        "shelf_image_id": image_id, "snapshot_image_id": image_id,
        KEEP: ("shelf_image_id", "snapshot_image_id"),
    }


def offloaded() -> Columns:
    """Taken off its host, kept as an image alone."""
    return {"goal": Goal.OFFLOADED, "task": Task.SHELVING_OFFLOADING, "ends_at": None}


def unshelved(instance: Instance, more: Columns) -> Columns:
    """Running: on its host where it is still there, else wherever `more` says, from its image."""
    changed: Columns = {
        "goal": Goal.RUNNING, "mode": Mode.NORMAL, "task": Task.UNSHELVING, "ends_at": None,
        "shelf_image_id": None,
    }
    if instance.host_id is not None:
        return changed | {KEEP: ("shelf_image_id", "ends_at")}
    return changed | more | {
        "phase": Phase.QUEUED, "attempts": 0, "excluded": "",
        "disk_image_id": instance.shelf_image_id, "disks": str(instance.revision + 1),
        "generation": instance.generation + 1, "graceful": False,
        KEEP: ("shelf_image_id", "disk_image_id", "disks", *more),
    }


def soft_deleted(instance: Instance) -> Columns:
    """Stopped, and out of sight until it is restored or its time is up."""
    changed: Columns = {
        "goal": Goal.STOPPED if instance.goal in ON_A_HOST else instance.goal,
        "mode": Mode.SOFT_DELETED, "task": Task.SOFT_DELETING, "ends_at": None,
        "snapshot_image_id": None,
    }
    if instance.mode is Mode.RESIZED and is_settled(instance):
        changed["before"] = ""
    if instance.rescue_image_id is not None:
        changed |= {"rescue_image_id": None, "generation": instance.generation + 1}
        if not instance.before:
            changed[KEEP] = ("rescue_image_id",)
    return changed


def restored(instance: Instance) -> Columns:
    """As before the soft delete: running, or kept as an image."""
    offloaded = instance.goal is Goal.OFFLOADED
    return {
        "goal": instance.goal if offloaded else Goal.RUNNING,
        "mode": Mode.SHELVED if offloaded else Mode.NORMAL,
        "task": Task.RESTORING, "ends_at": None, KEEP: ("ends_at",),
    }


def ended(mode: Mode) -> Columns:
    """The time of its mode is up: what comes then."""
    match mode:
        case Mode.RESIZED:
            return confirmed()
        case Mode.SHELVED:
            return offloaded()
        case _:
            return {"goal": Goal.DELETED, "ends_at": None}


AFTER: Mapping[Mode, str] = {
    Mode.SOFT_DELETED: "reclaim", Mode.RESIZED: "confirmResize", Mode.SHELVED: "shelveOffload",
}
"""The modes that may end by themselves, and the name of that in the action log."""
