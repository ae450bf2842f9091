"""What can be asked where a host has failed. The functions run in one transaction, ask no host."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from treadle.compute import actions, lifecycle, store
from treadle.compute.actions import OPERATOR, Caller
from treadle.compute.kinds import EVACUATION_KIND, HOST_KIND, KIND
from treadle.compute.model import Goal, Instance, Mode, Task, is_settled, vm_state, word
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import Kind, Stage
from treadle.compute.store import Step
from treadle.controller import queue
from treadle.db.clock import now
from treadle.errors import Conflict, InvalidInput, InvalidState, NotFound, TreadleError
from treadle.image import actions as image_actions
from treadle.image import store as images
from treadle.placement import fences, ledger, storages
from treadle.placement.ledger import Host

EVACUABLE = frozenset({"active", "stopped", "error"})
"""The vm_states from which an instance can be built anew on another host."""
NEVER_S = 100 * 365 * 86400.0
"""An evacuation that nobody has to be told of waits for room until its host is back."""
WAITS = "its host is off: it waits for it"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an instance is evacuated. `host_id`: where to, None where the scheduler chooses;
    `left_off`: it is not started there; `deadline_s`: how long room is looked for."""

    host_id: int | None = None
    left_off: bool = False
    deadline_s: float = NEVER_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the instances of a host: numbers of evacuations, and who stays and why."""

    going: list[int]
    staying: list[tuple[Instance, str]]


def evacuate(
    conn: sa.Connection, id: int, wanted: Wanted, *, request_id: str, by: Caller = OPERATOR,
    fence: Step | None = None, strict: bool = True,
) -> int:
    """Have an instance, whose host is off for sure, built anew on another from its image: same id,
    name, keys and MAC address; what was on its disk is lost. Where other hosts share the storage of
    its host, it goes on there from its disk. Its number among the moves comes back.

    `fence`: the step that made sure. `strict`: exactly OpenStack's table; without it one that has,
    or is being given, another size goes as well, and keeps that. Errors: `NotFound`, `Locked`,
    `InvalidState`, `Conflict` where nobody says that its host is off, or its image is gone;
    `InvalidInput` for a host that is not there or its own.
    """
    instance = actions.require(conn, id)
    actions.unlocked(instance, "evacuate", by)
    _expect(conn, instance, strict=strict)
    host_id = instance.host_id
    assert host_id is not None
    source = ledger.get_host(conn, host_id)
    assert source is not None
    if not source.said_off:
        raise Conflict(
            f"host {source.name} of instance {instance.uuid} is not known to be off: an instance "
            "is evacuated once a fence has switched its host off, or an operator has said so"
        )
    _has_image(conn, instance)
    if wanted.host_id is not None:
        if ledger.get_host(conn, wanted.host_id) is None:
            raise InvalidInput("host", wanted.host_id, "there is no such host")
        if wanted.host_id == host_id:
            raise InvalidInput("host", wanted.host_id, "it is the one that is off")
        heirs = storages.heirs(conn, host_id)
        if instance.launched_at is not None and heirs.known and wanted.host_id not in heirs.ids:
            raise InvalidInput(
                "host", wanted.host_id, "it does not share the storage in which the disk is"
            )
    if instance.snapshot_image_id is not None:
        image_actions.retire(conn, instance.snapshot_image_id)
    store.end_actions(conn, id, instance.revision, "error", "its host has failed")
    time = float(conn.execute(sa.select(now())).scalar_one())
    revision = instance.revision + 1
    move = moves.insert(
        conn, instance_id=id, kind=Kind.EVACUATION, stage=Stage.QUEUED, source_id=host_id,
        wanted_id=wanted.host_id, deadline=time + wanted.deadline_s, revision=revision,
        user_id=by.user_id, project_id=by.project_id, left_off=wanted.left_off,
    )
    store.update(
        conn, id, moving=move, task=Task.REBUILDING, revision=revision, snapshot_image_id=None,
    )
    store.begin_action(
        conn, id, request_id, "evacuate", revision, user_id=by.user_id, project_id=by.project_id
    )
    if fence is not None:
        store.log_step(conn, id, revision, fence)
    queue.enqueue(conn, EVACUATION_KIND, str(move))
    queue.wake(conn, HOST_KIND, [str(host_id)])
    return move


def evacuate_host(
    conn: sa.Connection, host_id: int, *, evacuates: bool, request_id: str, everyone: bool = False,
    fence: Step | None = None,
) -> Outcome:
    """Evacuate the instances of the host that ask for it and shall run; `everyone`: all that can
    be. Those that wait for the host say so. `evacuates` as in `reconciler.Timing`. Asking again
    is harmless. Errors: as for `evacuate`, of the host."""
    require_off(conn, host_id)
    going: list[int] = []
    staying: list[tuple[Instance, str]] = []
    for instance in store.on_host(conn, host_id):
        if instance.goal in lifecycle.GONE:
            queue.wake(conn, KIND, [instance.uuid])
            staying.append((instance, "it is being removed"))
            continue
        asks = lifecycle.evacuates(instance, evacuates) and instance.goal is Goal.RUNNING
        if not (asks or everyone):
            staying.append((instance, "it does not ask to be evacuated"))
            _waits(conn, instance)
            continue
        try:
            going.append(evacuate(
                conn, instance.id, Wanted(), request_id=request_id, fence=fence, strict=False
            ))
        except TreadleError as error:
            staying.append((instance, str(error)))
    return Outcome(going, staying)


def confirm_off(
    conn: sa.Connection, host_id: int, *, evacuates: bool, request_id: str
) -> Outcome:
    """An operator says that the host is off. What asks for it is evacuated. Errors: `NotFound`,
    `Conflict` where it answers."""
    host = ledger.get_host(conn, host_id)
    if host is None:
        raise NotFound(f"there is no host {host_id}")
    if not fences.off(conn, host_id, "an operator has said so", asked=False):
        raise Conflict(f"host {host.name} answers: it is not off")
    return evacuate_host(conn, host_id, evacuates=evacuates, request_id=request_id)


def require_off(conn: sa.Connection, host_id: int) -> Host:
    """The host, which is off for sure. Errors: `NotFound`, `Conflict`."""
    host = ledger.get_host(conn, host_id)
    if host is None:
        raise NotFound(f"there is no host {host_id}")
    if not host.said_off:
        raise Conflict(
            f"host {host.name} is not known to be off: switch it off, then say so with "
            f"treadle host fence-confirmed {host_id}"
        )
    return host


def _expect(conn: sa.Connection, instance: Instance, *, strict: bool) -> None:
    """Errors: `InvalidState` where it cannot be evacuated as it is."""
    message = f"VM {instance.id} is {word(instance)}: it cannot be told to evacuate now"
    if store.columns(conn, instance.id, ("moving",))["moving"] is not None:
        raise InvalidState(message, "evacuate", "task_state", instance.task or Task.MIGRATING)
    state = vm_state(instance)
    fit = instance.mode in (Mode.NORMAL, Mode.ERROR) or (
        not strict and instance.mode is Mode.RESIZED and _has_its_size(conn, instance)
    )
    fit = fit and instance.kept is None and instance.goal in (
        Goal.RUNNING, Goal.STOPPED, Goal.PAUSED
    )
    allowed = EVACUABLE if strict else EVACUABLE | {"resized"}
    if state not in allowed or instance.host_id is None or not fit:
        raise InvalidState(message, "evacuate", "vm_state", state)


def _has_its_size(conn: sa.Connection, instance: Instance) -> bool:
    """Whether the disk that it would go on with is of the size that it is to have: one that is
    made anew is, whatever its old host had done."""
    host_id = instance.host_id or 0
    return is_settled(instance) or not storages.heirs(conn, host_id).known


def _has_image(conn: sa.Connection, instance: Instance) -> None:
    """Errors: `Conflict` where there is nothing to build it from."""
    image = images.get(conn, instance.image_id)
    if image is None or image.deleted_at is not None or image.path is None or not image.sha256:
        raise Conflict(
            f"instance {instance.uuid} cannot be built anew: its image is gone. It waits for its "
            "host"
        )


def _waits(conn: sa.Connection, instance: Instance) -> None:
    if instance.goal is Goal.RUNNING and instance.fault is None:
        store.update(conn, instance.id, fault=WAITS, public_fault=WAITS)
