"""What a pass over an instance leaves in the store, once it is known how things stand.

The functions that take a connection belong to the caller's transaction. Each closes what the pass
has decided: the row, what the ledger holds for it, its action log, and what others wait for.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import sqlalchemy as sa

from treadle.compute import changes, lifecycle, store
from treadle.compute.changes import Columns
from treadle.compute.kinds import KIND, SNAPSHOT_KIND, bulk_lane, wake_move
from treadle.compute.lifecycle import Lost
from treadle.compute.model import SETTLED, Goal, Instance, Mode, Phase, State, Task, is_settled
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import Stage
from treadle.compute.store import Loaded
from treadle.controller import queue
from treadle.controller.queue import FAR_S
from treadle.db.engine import note
from treadle.hypervisor.base import Domain
from treadle.image import actions as image_actions
from treadle.image import store as images
from treadle.placement import ledger
from treadle.placement.lifetimes import ENDED
from treadle.scheduler.record import Decision, sentence

ADDRESS_POLL_S = 0.5
ADDRESS_PATIENCE_S = 120.0


# -- as wanted


def settled(
    loaded: Loaded, state: State, seen: Domain | Lost | None,
    lasts: Callable[[Mode], float | None],
) -> Columns:
    """What is to be written of an instance that is as wanted; nothing, where all is written.
    `lasts`: as `Timing.lasts`."""
    instance = loaded.instance
    values: Columns = {}
    if instance.state is not state:
        values["state"] = state
    if isinstance(seen, Domain) and instance.settled_generation != instance.generation:
        values["settled_generation"] = instance.generation
    if state is State.RUNNING:
        if instance.launched_at is None:
            values["launched_at"] = loaded.now
        if instance.fault is not None and instance.mode is not Mode.ERROR:
            values["fault"] = None
    if instance.snapshot_image_id is None:  # else there is more to do
        _reach_mode(values, loaded, lasts)
    address = instance.address
    if isinstance(seen, Domain) and seen.addresses:
        address = seen.addresses[0]
    if address != instance.address:
        values["address"] = address
    if state is State.DELETED:
        values |= {"deleted_at": loaded.now, "address": None}
    return values


def _reach_mode(
    values: Columns, loaded: Loaded, lasts: Callable[[Mode], float | None]
) -> None:
    """Add what is over with the wish, and when the mode that it led to ends by itself."""
    instance = loaded.instance
    if instance.task is not None:
        values["task"] = None
    if instance.only_host_id is not None:
        values["only_host_id"] = None
    if instance.before and instance.mode is not Mode.RESIZED:
        values["before"] = ""
    if instance.mode is not instance.settled_mode:
        seconds = lasts(instance.mode)
        values["settled_mode"] = instance.mode
        values["ends_at"] = None if seconds is None else loaded.now + seconds


def settle(conn: sa.Connection, instance: Instance, state: State, values: Columns) -> None:
    """Write the `values` of `settled`, and what follows from them."""
    if values:
        store.update(conn, instance.id, **values)
    if "deleted_at" in values:
        note(conn, ENDED, instance.id)
    if values.keys() & {"before", "mode", "settled_mode"} and instance.host_id is not None:
        store.hold(conn, instance.id)
    if instance.snapshot_image_id is not None and instance.host_id is not None:
        queue.enqueue(conn, SNAPSHOT_KIND, instance.uuid, lane=bulk_lane(instance.host_id))
        return
    reached = values.keys() & {"state", "settled_generation"} or state in lifecycle.NOWHERE
    if instance.generation > 1 and reached:
        moves.built(
            conn, instance.id,
            Stage.CANCELLED if state in lifecycle.NOWHERE else Stage.DONE,
        )
    if done := _kept_for_nothing(instance, state):
        image_actions.retire(conn, done)
    _tell_move(conn, instance)
    store.end_actions(
        conn, instance.id, instance.revision,
        "error" if state is State.ERROR else "ok",
        instance.fault if state is State.ERROR else None,
    )


def may_be_open(instance: Instance) -> bool:
    """Whether an entry of its action log may still be open."""
    return not is_settled(instance) or instance.revision > 1


def look_again(loaded: Loaded, state: State, values: Columns) -> float:
    """After how many seconds one that is as wanted is looked at without any hint; `values` are
    those of `settled`."""
    instance = loaded.instance
    nowhere = instance.mac and values.get("address", instance.address) is None
    if state is State.RUNNING and nowhere:
        # Since it was started, or a wish has given it that long.
        ages = [
            age for since in (instance.launched_at or loaded.now,
                              instance.deadline - ADDRESS_PATIENCE_S)
            if 0 <= (age := loaded.now - since) < ADDRESS_PATIENCE_S
        ]
        if ages:
            return max(ADDRESS_POLL_S, min(ages) / 8)
    ends_at = values.get("ends_at", instance.ends_at)
    return FAR_S if ends_at is None else min(FAR_S, max(0.0, ends_at - loaded.now))


def _kept_for_nothing(instance: Instance, state: State) -> int | None:
    """The image of the shelf, where what was on it has been taken off it, or deleted."""
    if state is State.DELETED:
        return instance.shelf_image_id
    if instance.task is not Task.UNSHELVING:
        return None
    before = json.loads(instance.before) if instance.before else {}
    image_id: int | None = before.get("shelf_image_id")
    return image_id


def _tell_move(conn: sa.Connection, instance: Instance) -> None:
    """Where nobody can take its move back any more, what its former host keeps can go."""
    decided = instance.mode is not Mode.RESIZED or instance.goal not in changes.ON_A_HOST
    if instance.kept is not None and decided:
        wake_move(conn, str(instance.kept))


# -- otherwise


def end_mode(conn: sa.Connection, instance: Instance) -> None:
    """The mode's time is up: what comes after it is wished now."""
    if _wished_since(conn, instance):
        return
    revision = instance.revision + 1
    store.begin_action(conn, instance.id, "", changes.AFTER[instance.mode], revision)
    store.update(conn, instance.id, revision=revision, **changes.ended(instance.mode))
    if instance.mode is Mode.RESIZED:  # there is nothing to do on the host
        store.hold(conn, instance.id)
        store.end_actions(conn, instance.id, revision, "ok")
        if instance.kept is not None:
            wake_move(conn, str(instance.kept))


def release(conn: sa.Connection, instance: Instance, *, again: bool) -> None:
    """No host has it now. `again`: it is to be built on another one."""
    ledger.release(conn, instance.id)
    excluded = {*instance.excluded, instance.host_id} if again else instance.excluded
    store.update(
        conn, instance.id, host_id=None, phase=Phase.QUEUED, address=None,
        excluded=",".join(str(n) for n in sorted(n for n in excluded if n is not None)),
    )


def adopt(
    conn: sa.Connection, instance: Instance, state: State, reason: str,
    seen: Domain | Lost | None,
) -> None:
    """What it is is what is wanted from now on; the wish that came to nothing is taken back."""
    generation = instance.generation
    if isinstance(seen, Domain):
        # A reboot that did not come about is given up with the rest.
        generation = min(generation, seen.generation)
    wished = instance.generation != instance.settled_generation
    undo = generation < instance.generation if wished else True
    if instance.kept is not None:
        # It has gone to another host: whether it comes back is the user's to say.
        generation, undo = instance.generation, False
    values: Columns = {"mode": instance.mode}
    if undo and not is_settled(instance):
        values = changes.undone(instance, seen.disk if isinstance(seen, Domain) else 0)
    values["settled_mode"] = values["mode"]
    if values.get("snapshot_image_id", instance.snapshot_image_id) is None:
        values["task"] = None
    if _wished_since(conn, instance):
        return
    store.update(
        conn, instance.id, goal=SETTLED[state], state=state, generation=generation,
        settled_generation=generation, fault=reason, **values,
    )
    store.hold(conn, instance.id)
    if instance.snapshot_image_id is not None and "snapshot_image_id" in values:
        image_actions.retire(conn, instance.snapshot_image_id)
    store.end_actions(conn, instance.id, instance.revision, "error", reason)
    moves.built(conn, instance.id, Stage.FAILED, reason)
    _tell_move(conn, instance)


def take_back(conn: sa.Connection, instance: Instance, reason: str) -> None:
    """Its host refuses what was wished of its card: that is as before, under a number of its own,
    which the host is still to be told."""
    if _wished_since(conn, instance):
        return
    store.update(
        conn, instance.id, generation=instance.generation + 1, fault=reason,
        **json.loads(instance.before),
    )
    store.end_actions(conn, instance.id, instance.revision, "error", reason)


def fail(
    conn: sa.Connection, instance: Instance, reason: str, record: Decision | None
) -> None:
    """Give the instance up, and those that were asked for together with it, all or none. `record`:
    of the placement that found no host."""
    if record is not None:
        store.record_decision(conn, instance.id, None, record.to_dict())
    if _wished_since(conn, instance):
        return
    if instance.kept is not None:
        # What it was is still on the host where it was.
        store.update(
            conn, instance.id, moving=instance.kept, task=Task.RESIZE_REVERTING, fault=reason,
        )
        moves.update(conn, instance.kept, stage=Stage.REVERTING, revision=instance.revision)
        store.end_actions(conn, instance.id, instance.revision, "error", reason)
        wake_move(conn, str(instance.kept))
        return
    if instance.state is State.OFFLOADED:
        # It stays on the shelf.
        store.update(
            conn, instance.id, goal=Goal.OFFLOADED, fault=reason, task=None,
            **changes.undone(instance),
        )
        store.end_actions(conn, instance.id, instance.revision, "error", reason)
        return
    # One that ran once is past its request: it and its siblings are not rolled back.
    if instance.snapshot_image_id is not None:
        images.fail(conn, instance.snapshot_image_id, reason)
    rollback = instance.rollback and instance.launched_at is None
    store.update(
        conn, instance.id, goal=Goal.DELETED if rollback else Goal.FAILED, state=State.ERROR,
        fault=reason, public_fault=None if record is None else sentence(record, public=True),
        task=None, mode=Mode.NORMAL, settled_mode=Mode.NORMAL, ends_at=None, before="",
        snapshot_image_id=None,
    )
    moves.built(conn, instance.id, Stage.FAILED, reason)
    store.end_actions(conn, instance.id, instance.revision, "error", reason)
    if rollback:
        _give_up_batch(conn, instance, reason)


def _give_up_batch(conn: sa.Connection, failed: Instance, reason: str) -> None:
    """Delete what was asked for together with `failed`: all of them or none."""
    others = [
        other for other in store.of_batch(conn, failed.batch)
        if other.id != failed.id and other.goal is not Goal.DELETED
    ]
    for other in others:
        fault = f"asked for together with {failed.name}, which failed: {reason}"
        store.update(
            conn, other.id, goal=Goal.DELETED, revision=other.revision + 1, fault=fault,
        )
        store.end_actions(conn, other.id, other.revision, "error", fault)
    queue.wake(conn, KIND, [other.uuid for other in others])


def _wished_since(conn: sa.Connection, instance: Instance) -> bool:
    """Whether a wish came after the row was read: what the pass decided is no answer to that."""
    current = store.get(conn, instance.id)
    return current is None or current.revision != instance.revision
