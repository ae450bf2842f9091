"""What users can ask of an instance: each verifies, writes the intent and its work, and is done.

Nothing here talks to a host. The functions take an open connection and run in one transaction;
what they raise keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from treadle.compute import backups, changes, quota, store
from treadle.compute.creating import check_fits, find_flavor, find_image, snapshot
from treadle.compute.kinds import KIND, MOVE_KIND
from treadle.compute.model import (
    SETTLED,
    Goal,
    Instance,
    Mode,
    State,
    Task,
    is_settled,
    numa_nodes,
    task_state,
    vm_state,
    word,
)
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import Stage
from treadle.compute.store import Flavor
from treadle.controller import queue
from treadle.db.clock import now
from treadle.errors import (
    CannotPlace,
    Conflict,
    InvalidInput,
    InvalidState,
    Locked,
    NotFound,
)
from treadle.image import actions as image_actions
from treadle.image import store as images
from treadle.image.store import Image, NewImage
from treadle.placement import ledger

NO_PATIENCE_S = -1.0
"""A deadline that has passed: the guest is not asked."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: for locks and for the action log. Whether the instance is the project's own, and
    whether its roles allow the action, is checked before by the face that knows of projects."""

    user_id: str = ""
    project_id: str = ""
    is_admin: bool = True


OPERATOR = Caller()
"""The classic and the native API, which have no users."""


@dataclass(frozen=True, slots=True)
class Rule:
    """In which of `model.vm_state` an action may be asked for, and what it makes of the goal.
    `loosely`: further ones, for faces that are not held to OpenStack's table."""

    goal: Goal
    allowed: frozenset[str]
    task: Task
    loosely: frozenset[str] = frozenset()


ACTIONS = {
    "start": Rule(Goal.RUNNING, frozenset({"stopped"}), Task.POWERING_ON),
    "stop": Rule(Goal.STOPPED, frozenset({"active", "paused", "error"}), Task.POWERING_OFF),
    "reboot": Rule(Goal.RUNNING, frozenset({"active"}), Task.REBOOTING),
    "pause": Rule(Goal.PAUSED, frozenset({"active"}), Task.PAUSING),
    "unpause": Rule(Goal.RUNNING, frozenset({"paused"}), Task.UNPAUSING),
    "resume": Rule(
        Goal.RUNNING, frozenset({"suspended"}), Task.RESUMING, loosely=frozenset({"paused"})
    ),
    "suspend": Rule(
        Goal.SUSPENDED, frozenset({"active"}), Task.SUSPENDING, loosely=frozenset({"paused"})
    ),
}
ALLOWED = {
    "rescue": frozenset({"active", "stopped", "error"}),
    "unrescue": frozenset({"rescued"}),
    "rebuild": frozenset({"active", "stopped", "error"}),
    "resize": frozenset({"active", "stopped"}),
    "confirmResize": frozenset({"resized"}),
    "revertResize": frozenset({"resized"}),
    "createImage": frozenset({"active", "stopped", "paused", "suspended"}),
    "createBackup": frozenset({"active", "stopped", "paused", "suspended"}),
    "shelve": frozenset({"active", "stopped", "paused", "suspended"}),
    "shelveOffload": frozenset({"shelved"}),
    "unshelve": frozenset({"shelved", "shelved_offloaded"}),
    "restore": frozenset({"soft-delete"}),
}
"""In which of `model.vm_state` the other actions may be asked for."""
HARD_REBOOT = Rule(
    Goal.RUNNING, frozenset({"active", "stopped", "paused", "suspended", "error"}),
    Task.REBOOTING_HARD,
)


def act(
    conn: sa.Connection, id: int, action: str, *, request_id: str, deadline_s: float,
    hard: bool = False, strict: bool = False, by: Caller = OPERATOR,
) -> Instance:
    """Ask for one of `ACTIONS`; the instance as it was before comes back.

    `hard`: a stop or reboot that does not ask the guest. `strict`: exactly OpenStack's table;
    without it what is so already is success. Errors: `NotFound`, `Locked`, `InvalidState`.
    """
    rule = HARD_REBOOT if action == "reboot" and hard else ACTIONS[action]
    instance = require(conn, id)
    unlocked(instance, action, by)
    reboot = action == "reboot"
    already = instance.goal is rule.goal and instance.state is not State.BUILDING
    # Who asked the guest first may have it stopped now.
    at_last = action == "stop" and hard and instance.task is Task.POWERING_OFF
    if already and not reboot and not strict and not at_last:
        return instance
    rebooting = instance.task in (Task.REBOOTING, Task.REBOOTING_HARD)
    again = at_last or (reboot and rebooting and (hard or not strict))
    expect(instance, action, rule.allowed if strict else rule.allowed | rule.loosely,
           idle=not again)
    values: dict[str, object] = {"goal": rule.goal, "task": rule.task}
    if instance.mode is Mode.ERROR:
        values["mode"] = Mode.NORMAL
    if reboot:
        values |= {"generation": instance.generation + 1, "graceful": not hard}
    elif hard:
        deadline_s = NO_PATIENCE_S
    wish(conn, instance, action, values, request_id, by, deadline_s)
    return instance


NEEDED = {
    "pause": "pause", "suspend": "suspend", "createImage": "snapshot", "shelve": "snapshot",
    "rescue": "images", "rebuild": "images", "migrate": "transfer",
    "attach_interface": "plug", "detach_interface": "plug",
}
"""What a host must be able to do for an action: not every hypervisor can. "plug" is for what is
there: of what is stopped, the definition alone changes."""


def able(conn: sa.Connection, instance: Instance, action: str) -> None:
    """Errors: `Conflict` where the hypervisor of the instance's host has no such thing."""
    needed = NEEDED.get(action)
    if needed is None or instance.host_id is None:
        return
    if needed == "plug" and instance.goal is Goal.STOPPED:
        return
    host = ledger.get_host(conn, instance.host_id)
    if host is not None and host.facts is not None and needed not in host.facts.capabilities:
        raise Conflict(
            f"instance {instance.uuid} cannot be told to {action}: the hypervisor of its host "
            f"({host.facts.hypervisor}) has no {needed}"
        )


def wish(
    conn: sa.Connection, instance: Instance, name: str, values: Mapping[str, Any],
    request_id: str, by: Caller, deadline_s: float = 0.0,
) -> None:
    """Write what a user wants: the columns, the entry of the action log, the work.

    Errors: `Conflict` where the hypervisor cannot do it.
    """
    able(conn, instance, name)
    revision = instance.revision + 1
    changed = {"fault": None, **values, "revision": revision}
    names = changed.pop(changes.KEEP, None)
    if names is not None:
        changed["before"] = store.compact(store.columns(conn, instance.id, names))
    if deadline_s:
        time = float(conn.execute(sa.select(now())).scalar_one())
        changed["deadline"] = time + deadline_s
    store.update(conn, instance.id, **changed)
    store.begin_action(
        conn, instance.id, request_id, name, revision, user_id=by.user_id,
        project_id=by.project_id,
    )
    queue.enqueue(conn, KIND, instance.uuid)


def whole(instance: Instance) -> None:
    """Errors: `Conflict` where a part of it is still on the host that it has left."""
    if instance.kept is not None:
        raise Conflict(
            f"instance {instance.uuid} is still being removed from the host that it has left: ask "
            "again in a moment"
        )


def _asked(
    conn: sa.Connection, id: int, action: str, by: Caller, *, on_host: bool = True
) -> Instance:
    """The instance, where this may be asked of it by this caller now."""
    instance = require(conn, id)
    unlocked(instance, action, by)
    expect(instance, action, ALLOWED[action], on_host=on_host)
    return instance


def unlocked(instance: Instance, action: str, by: Caller) -> None:
    """Errors: `Locked` where the instance is and the caller is no administrator."""
    if instance.locked_by and not by.is_admin:
        raise Locked(f"VM {instance.id} is locked: unlock it before you {action} it")


def expect(
    instance: Instance, action: str, allowed: frozenset[str], *, idle: bool = True,
    on_host: bool = True,
) -> None:
    """Errors: `InvalidState` where its vm_state is not one of `allowed`, or (`idle`) where
    something is being done with it, or (`on_host`) where it was taken off its host."""
    message = f"VM {instance.id} is {word(instance)}: it cannot be told to {action} now"
    task = task_state(instance)
    if idle and task is not None:
        raise InvalidState(message, action, "task_state", task)
    state = vm_state(instance)
    if state not in allowed or (state == "error" and on_host and instance.host_id is None):
        raise InvalidState(message, action, "vm_state", state)
    if idle and SETTLED.get(instance.state) is not instance.goal:
        raise InvalidState(message, action, "vm_state", state)


def rescue(
    conn: sa.Connection, id: int, image: int | Image | None, *, request_id: str,
    deadline_s: float, by: Caller = OPERATOR,
) -> Instance:
    """Boot it from a disk of the image (None: of its own image), its own disk beside that. Errors:
    `NotFound`, `Locked`, `InvalidState`, `Conflict` for an image that cannot be used."""
    instance = _asked(conn, id, "rescue", by)
    if image is None:
        own = images.get(conn, instance.image_id)
        if own is None or own.deleted_at is not None:
            raise Conflict(
                f"the image of instance {instance.uuid} has been deleted: name one to rescue it "
                "with"
            )
    found = find_image(conn, instance.image_id if image is None else image)
    wish(
        conn, instance, "rescue", changes.rescued(instance, found.id), request_id, by, deadline_s
    )
    return instance


def unrescue(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float, by: Caller = OPERATOR
) -> Instance:
    """Boot it from its own disk again. Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "unrescue", by)
    wish(conn, instance, "unrescue", changes.unrescued(instance), request_id, by, deadline_s)
    return instance


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A new disk for an instance; what is None stays as it is."""

    image: int | Image | None = None
    name: str | None = None
    user_data: str | None = None
    ssh_keys: tuple[str, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns that a host need not know of, such as `metadata` or `description`."""


def rebuild(
    conn: sa.Connection, id: int, wanted: Rebuild, *, request_id: str, deadline_s: float,
    by: Caller = OPERATOR,
) -> Instance:
    """Give it a new disk: same id, host and address. One that was given up is placed anew. It runs
    then, unless it was stopped. Errors: `NotFound`, `Locked`, `InvalidState`, `Conflict`."""
    instance = _asked(conn, id, "rebuild", by, on_host=False)
    if instance.goal is Goal.FAILED and instance.host_id is not None:
        message = f"VM {id} is still being removed from its machine: ask again later"
        raise InvalidState(message, "rebuild", "task_state", Task.DELETING)
    image = find_image(conn, instance.image_id if wanted.image is None else wanted.image)
    check_fits(
        Flavor(instance.flavor_id, instance.vcpus, instance.memory_mib, instance.disk_gib), image
    )
    others: dict[str, Any] = {
        "image_properties": store.compact(image.properties), **wanted.columns
    }
    if wanted.name is not None:
        others["name"] = wanted.name
    if wanted.user_data is not None:
        others["user_data"] = wanted.user_data
    if wanted.ssh_keys is not None:
        others["ssh_keys"] = "\n".join(wanted.ssh_keys)
    values = changes.rebuilt(instance, image.id, others)
    wish(conn, instance, "rebuild", values, request_id, by, deadline_s)
    return instance


def resize(
    conn: sa.Connection, id: int, wanted: int | Flavor, *, request_id: str, deadline_s: float,
    by: Caller = OPERATOR,
) -> Instance:
    """Another size, on the same host, which can be confirmed or taken back once it is reached. The
    larger of both is taken of the host at once. Errors: those of `sized`; `CannotPlace` where its
    host has no room for it, or it would have another number of NUMA nodes."""
    instance, size = sized(conn, id, wanted, by)
    before, after = instance.nodes, numa_nodes(size["flavor"])
    if before and after and before != after:
        raise CannotPlace("a host keeps it on the NUMA nodes that it is on", {
            "host": f"needs {after} NUMA nodes in place of {before}"
        })
    wish(conn, instance, "resize", changes.resized(instance, size), request_id, by, deadline_s)
    if not store.hold(conn, id):
        nodes = f" on {after} NUMA nodes" if after else ""
        raise CannotPlace("its host has no room for that size", {
            "host": f"needs {size['vcpus']} vcpus, {size['memory_mib']} MiB of memory and "
            f"{size['disk_gib']} GiB of disk in place of {instance.vcpus}, {instance.memory_mib} "
            f"and {instance.disk_gib}{nodes}"
        })
    return instance


def sized(
    conn: sa.Connection, id: int, wanted: int | Flavor, by: Caller
) -> tuple[Instance, dict[str, Any]]:
    """The instance, and the columns of another size for it. Errors: `NotFound`, `Locked`,
    `InvalidState`, `InvalidInput` for a size that it has already or whose disk is smaller,
    `QuotaExceeded`, `Conflict`."""
    instance = _asked(conn, id, "resize", by)
    whole(instance)
    flavor = find_flavor(conn, wanted)
    now_is = store.columns(conn, id, ("flavor",))["flavor"]
    if flavor.id == instance.flavor_id and snapshot(flavor) == now_is:
        raise InvalidInput("flavor", flavor.public_id, "it has that size already: name another")
    if flavor.disk_gib < instance.disk_gib:
        mend = f"its disk has {instance.disk_gib} GiB and cannot become smaller"
        raise InvalidInput("flavor", flavor.public_id, mend)
    if by.user_id:
        quota.check(conn, instance.project_id, {
            "cores": flavor.vcpus - instance.vcpus,
            "ram": flavor.memory_mib - instance.memory_mib,
        }, instance.user_id)
    return instance, {
        "flavor_id": flavor.id, "vcpus": flavor.vcpus, "memory_mib": flavor.memory_mib,
        "disk_gib": flavor.disk_gib, "flavor": snapshot(flavor),
    }


def confirm_resize(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """The new size is there to stay, from this on. Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "confirmResize", by)
    store.update(conn, id, **changes.confirmed())
    store.hold(conn, id)
    noted(conn, instance, "confirmResize", request_id, by)
    if instance.kept is not None:
        queue.wake(conn, MOVE_KIND, [str(instance.kept)])
    return instance


def revert_resize(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float, by: Caller = OPERATOR
) -> Instance:
    """Of the old size again, on the disk as it was then, on the host where it was. Errors:
    `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "revertResize", by)
    if instance.kept is None:
        values = changes.reverted(instance)
    else:
        values = {"task": Task.RESIZE_REVERTING, "moving": instance.kept}
        moves.update(
            conn, instance.kept, stage=Stage.REVERTING, revision=instance.revision + 1
        )
        queue.wake(conn, MOVE_KIND, [str(instance.kept)])
    wish(conn, instance, "revertResize", values, request_id, by, deadline_s)
    return instance


def create_image(
    conn: sa.Connection, id: int, name: str, *, request_id: str,
    properties: Mapping[str, str] | None = None, by: Caller = OPERATOR,
) -> Image:
    """Have an image made of its disk as it is at a moment soon; the image is `saving` until then.
    Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "createImage", by)
    image = _begin_image(conn, instance, name, properties or {}, by)
    wish(conn, instance, "createImage", changes.imaged(image.id), request_id, by)
    return image


def create_backup(
    conn: sa.Connection, id: int, name: str, kind: str, rotation: int, *, request_id: str,
    properties: Mapping[str, str] | None = None, by: Caller = OPERATOR,
) -> Image | None:
    """Have an image made as by `create_image`; once it is there, of its `kind` the newest
    `rotation` stay. With a rotation of 0 none is made, and none stays. Errors: `NotFound`,
    `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "createBackup", by)
    if rotation == 0:
        backups.rotate(conn, instance.project_id, instance.uuid, kind, 0)
        noted(conn, instance, "createBackup", request_id, by)
        return None
    image = _begin_image(
        conn, instance, name, {**(properties or {}), **backups.properties(kind, rotation)}, by
    )
    wish(conn, instance, "createBackup", changes.imaged(image.id), request_id, by)
    return image


def shelve(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float, by: Caller = OPERATOR
) -> Instance:
    """Stop it and keep it as an image; after a while (a setting) its host lets it go. Errors:
    `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "shelve", by)
    image = _begin_image(conn, instance, f"{instance.name}-shelved", {}, by)
    wish(conn, instance, "shelve", changes.shelved(image.id), request_id, by, deadline_s)
    return instance


def shelve_offload(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Take a shelved one off its host now. Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "shelveOffload", by)
    wish(conn, instance, "shelveOffload", changes.offloaded(), request_id, by)
    return instance


def unshelve(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float,
    zone: str | None = None, host_id: int | None = None, by: Caller = OPERATOR,
) -> Instance:
    """Have it run again. One that no host has is placed anew: in the zone, or on the host, where
    one is given, which the face has checked. Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "unshelve", by)
    if instance.host_id is not None and (zone is not None or host_id is not None):
        message = f"VM {id} is still on its host: it can go elsewhere once that has let it go"
        raise InvalidState(message, "unshelve", "vm_state", vm_state(instance))
    more: dict[str, Any] = {"only_host_id": host_id}
    if zone is not None:
        more["availability_zone"] = zone
    wish(
        conn, instance, "unshelve", changes.unshelved(instance, more), request_id, by, deadline_s
    )
    return instance


def _begin_image(
    conn: sa.Connection, instance: Instance, name: str, properties: Mapping[str, str],
    by: Caller,
) -> Image:
    base = images.get(conn, instance.image_id)
    return images.begin(conn, NewImage(
        name, instance.project_id or by.project_id, visibility="private",
        container_format="bare", disk_format="qcow2", min_disk_gib=instance.disk_gib,
        properties={
            **(base.properties if base is not None else {}), "image_type": "snapshot",
            **properties, "instance_uuid": instance.uuid,
            "user_id": by.user_id or instance.user_id,
            "base_image_ref": base.uuid if base is not None else "",
        },
    ))


def _abandon_image(conn: sa.Connection, instance: Instance) -> None:
    """What is being made of it will not come."""
    if instance.snapshot_image_id is not None:
        image_actions.retire(conn, instance.snapshot_image_id)


def lock(
    conn: sa.Connection, id: int, *, request_id: str, reason: str | None = None,
    by: Caller = OPERATOR,
) -> Instance:
    """From now on only administrators change it; an administrator's lock stays whoever locks it
    again. Errors: `NotFound`."""
    instance = require(conn, id)
    owner = "admin" if by.is_admin and by.project_id != instance.project_id else "owner"
    if instance.locked_by == "admin" and not by.is_admin:
        return instance
    store.update(conn, id, locked_by=owner, locked_reason=reason)
    noted(conn, instance, "lock", request_id, by)
    return instance


def unlock(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Errors: `NotFound`; `Locked` where an administrator has locked it and none asks."""
    instance = require(conn, id)
    if instance.locked_by == "admin" and not by.is_admin:
        raise Locked(f"VM {id} is locked by an administrator, who alone can unlock it")
    store.update(conn, id, locked_by=None, locked_reason=None)
    noted(conn, instance, "unlock", request_id, by)
    return instance


def noted(
    conn: sa.Connection, instance: Instance, name: str, request_id: str, by: Caller,
    error: str | None = None,
) -> None:
    """What no pass is needed for: an entry of the log that is closed from the beginning."""
    store.note_action(
        conn, instance.id, request_id, name, instance.revision, error, user_id=by.user_id,
        project_id=by.project_id,
    )


def reset_state(
    conn: sa.Connection, id: int, state: str, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Have the instance be "active" or "error", at once and whatever was being done: an
    administrator's way out. Errors: `NotFound`, `InvalidState`, `InvalidInput`."""
    instance = require(conn, id)
    if state not in ("active", "error"):
        raise InvalidInput("state", state, "active or error was expected")
    values: dict[str, object] = {"task": None, "ends_at": None, "snapshot_image_id": None}
    if is_settled(instance):
        values["before"] = ""  # a resize, which is then confirmed
    elif instance.before:
        # A host may have been told already: what is right now gets a number of its own.
        values |= changes.undone(instance) | {
            "generation": instance.generation + 1, "graceful": False
        }
    if state == "error" and instance.state is State.BUILDING:
        values |= {"goal": Goal.FAILED, "state": State.ERROR}
    elif state == "error":
        goal = SETTLED[instance.state]
        values |= {"goal": goal, "mode": Mode.ERROR, "settled_mode": Mode.ERROR}
    elif instance.host_id is None:
        message = f"VM {id} has no machine: rebuild it or delete it"
        raise InvalidState(message, "resetState", "vm_state", vm_state(instance))
    else:
        values |= {
            "goal": Goal.RUNNING, "mode": Mode.NORMAL, "settled_mode": Mode.NORMAL,
            "state": State.RUNNING,
        }
    if state == "error":
        values["fault"] = "an administrator has marked it as an error"
    _abandon_image(conn, instance)
    store.end_actions(conn, id, instance.revision, "error", f"reset to {state}")
    wish(conn, instance, "resetState", values, request_id, by)
    store.end_actions(conn, id, instance.revision + 1, "ok")
    store.hold(conn, id)
    return instance


def soft_delete(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float, by: Caller = OPERATOR
) -> Instance:
    """Stop it and keep it until the setting's time is up or it is restored; what has never run is
    deleted for good. Errors: `NotFound`, `Locked`."""
    instance = require(conn, id)
    unlocked(instance, "delete", by)
    if instance.goal is Goal.DELETED or instance.mode is Mode.SOFT_DELETED:
        return instance
    if instance.launched_at is None or instance.goal is Goal.FAILED:
        return delete(conn, id, request_id=request_id, by=by)
    _abandon_image(conn, instance)
    store.end_actions(conn, id, instance.revision, "error", "deleted meanwhile")
    wish(conn, instance, "delete", changes.soft_deleted(instance), request_id, by, deadline_s)
    return instance


def restore(
    conn: sa.Connection, id: int, *, request_id: str, deadline_s: float, by: Caller = OPERATOR
) -> Instance:
    """Take a soft delete back: it runs again. Errors: `NotFound`, `Locked`, `InvalidState`."""
    instance = _asked(conn, id, "restore", by)
    wish(conn, instance, "restore", changes.restored(instance), request_id, by, deadline_s)
    return instance


def delete(
    conn: sa.Connection, id: int, *, request_id: str, by: Caller = OPERATOR
) -> Instance:
    """Ask for the end of it, from whatever state. Errors: `NotFound`, `Locked`."""
    instance = require(conn, id)
    unlocked(instance, "delete", by)
    if instance.goal is not Goal.DELETED:
        _abandon_image(conn, instance)
        store.end_actions(conn, id, instance.revision, "error", "deleted meanwhile")
        wish(conn, instance, "delete", {
            "goal": Goal.DELETED, "task": Task.DELETING, "fault": instance.fault,
            "snapshot_image_id": None, "ends_at": None,
        }, request_id, by)
    else:
        queue.enqueue(conn, KIND, instance.uuid)
    return instance


def require(conn: sa.Connection, id: int) -> Instance:
    """The instance, which is not deleted. Errors: `NotFound`."""
    instance = store.get(conn, id)
    if instance is None:
        raise NotFound(f"there is no VM {id}")
    if instance.state is State.DELETED:
        why = f": {instance.fault}" if instance.fault else ""
        raise NotFound(f"VM {id} has been deleted{why}")
    return instance
