"""What users can ask of instances: each verifies, writes the intent and its work row, and is done.

Nothing here talks to a host. The functions take an open connection and run in one transaction;
what they raise keeps nothing.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from treadle.compute import store
from treadle.compute.model import SETTLED, Goal, Instance, Phase, State, shown_state
from treadle.compute.reconciler import KIND
from treadle.controller import queue
from treadle.db.clock import now
from treadle.errors import Conflict, InvalidInput, NotFound, RetryLater
from treadle.image import store as images
from treadle.image.store import Image, ImageStatus

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
NAME_RULE = "1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
COUNT_MAX = 100
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Wish:
    """A request for instances, already of the right types.

    `image_id` None: the first image. `count` makes that many, all or none, named NAME-1, NAME-2, …;
    `rollback`: what cannot be built is deleted, not kept as an error.
    """

    name: str
    flavor_id: int
    image_id: int | None
    count: int = 1
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    rollback: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: the small number and the UUID."""

    id: int
    uuid: str


def create(
    conn: sa.Connection, wish: Wish, *, request_id: str, build_deadline_s: float
) -> list[Made]:
    """Verify the wish and make the rows. Errors: `InvalidInput`, `NotFound`, `Conflict`,
    `RetryLater` while the image is still being read."""
    names = _names(wish)
    flavor = store.get_flavor(conn, wish.flavor_id)
    if flavor is None:
        known = ", ".join(str(f.id) for f in store.list_flavors(conn)) or "none"
        raise NotFound(f"there is no instance type {wish.flavor_id}: there are {known}")
    image = _image(conn, wish.image_id)
    if image.virtual_bytes is not None and image.virtual_bytes > flavor.disk_gib * GIB:
        need = -(-image.virtual_bytes // GIB)
        raise Conflict(
            f"instance type {flavor.id} has {flavor.disk_gib} GiB of disk and image {image.name} "
            f"needs {need}: choose a larger type"
        )
    time = float(conn.execute(sa.select(now())).scalar_one())
    batch = str(uuids.uuid4())
    made = [uuids.uuid4() for _ in names]
    rows = [
        {
            "uuid": str(one), "name": name, "flavor_id": flavor.id, "vcpus": flavor.vcpus,
            "memory_mib": flavor.memory_mib, "disk_gib": flavor.disk_gib, "image_id": image.id,
            "mac": mac_of(one), "user_data": wish.user_data, "ssh_keys": "\n".join(wish.ssh_keys),
            "goal": Goal.RUNNING, "state": State.BUILDING, "phase": Phase.QUEUED,
            "deadline": time + build_deadline_s, "batch": batch, "rollback": wish.rollback,
        }
        for name, one in zip(names, made, strict=True)
    ]
    ids = store.insert(conn, rows)
    for id in ids:
        store.begin_action(conn, id, request_id, "create", 1)
    queue.enqueue_new(conn, KIND, [str(one) for one in made])
    return [Made(id, str(one)) for id, one in zip(ids, made, strict=True)]


def mac_of(uuid: uuids.UUID) -> str:
    """A locally administered unicast address out of the UUID's random bits."""
    return "02:" + ":".join(f"{byte:02x}" for byte in uuid.bytes[11:])


@dataclass(frozen=True, slots=True)
class Rule:
    """When an action may be asked for, and what it makes of the goal."""

    goal: Goal
    allowed: frozenset[Goal]


ACTIONS = {
    "start": Rule(Goal.RUNNING, frozenset({Goal.STOPPED})),
    "stop": Rule(Goal.STOPPED, frozenset({Goal.RUNNING, Goal.PAUSED})),
    "reboot": Rule(Goal.RUNNING, frozenset({Goal.RUNNING})),
    "pause": Rule(Goal.PAUSED, frozenset({Goal.RUNNING})),
    "resume": Rule(Goal.RUNNING, frozenset({Goal.PAUSED, Goal.SUSPENDED})),
    "suspend": Rule(Goal.SUSPENDED, frozenset({Goal.RUNNING, Goal.PAUSED})),
}


def act(
    conn: sa.Connection, id: int, action: str, *, request_id: str, deadline_s: float
) -> Instance:
    """Ask for one of `ACTIONS`; what is so already is success. Errors: `NotFound`, `Conflict`."""
    rule = ACTIONS[action]
    instance = require(conn, id)
    if action != "reboot" and instance.goal is rule.goal and instance.state is not State.BUILDING:
        return instance
    if SETTLED.get(instance.state) is not instance.goal or instance.goal not in rule.allowed:
        raise Conflict(f"VM {id} is {word(instance)}: it cannot be told to {action} now")
    revision = instance.revision + 1
    values: dict[str, object] = {}
    if action == "reboot":
        values = {"generation": instance.generation + 1, "graceful": True}
    time = float(conn.execute(sa.select(now())).scalar_one())
    store.update(
        conn, id, goal=rule.goal, revision=revision, deadline=time + deadline_s, fault=None,
        **values,
    )
    store.begin_action(conn, id, request_id, action, revision)
    queue.enqueue(conn, KIND, instance.uuid)
    return instance


def delete(conn: sa.Connection, id: int, *, request_id: str) -> Instance:
    """Ask for the end of it, from whatever state. Errors: `NotFound`."""
    instance = require(conn, id)
    if instance.goal is not Goal.DELETED:
        revision = instance.revision + 1
        store.end_actions(conn, id, instance.revision, "error", "deleted meanwhile")
        store.update(conn, id, goal=Goal.DELETED, revision=revision)
        store.begin_action(conn, id, request_id, "delete", revision)
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


def word(instance: Instance) -> str:
    """The instance's state in one word for people."""
    return shown_state(
        instance.goal, instance.state, instance.generation, instance.settled_generation
    )


def _names(wish: Wish) -> Sequence[str]:
    if not NAME.fullmatch(wish.name):
        raise InvalidInput("name", wish.name, f"it must be {NAME_RULE}")
    if not 1 <= wish.count <= COUNT_MAX:
        raise InvalidInput("count", wish.count, f"it must be from 1 to {COUNT_MAX}")
    if wish.count == 1:
        return [wish.name]
    names = [f"{wish.name}-{number}" for number in range(1, wish.count + 1)]
    if len(names[-1]) > 63:
        raise InvalidInput("name", wish.name, f"with its number it must be {NAME_RULE}")
    return names


def _image(conn: sa.Connection, id: int | None) -> Image:
    image = images.first(conn) if id is None else images.get(conn, id)
    if image is None:
        if id is None:
            raise NotFound("there is no image: add one")
        known = ", ".join(str(one.id) for one in images.list_images(conn)) or "none"
        raise NotFound(f"there is no image {id}: there are {known}")
    if image.state is ImageStatus.ERROR:
        raise Conflict(f"image {image.id} cannot be used: {image.error}")
    if image.state is ImageStatus.NEW or image.sha256 is None:
        waiting = f" ({image.error})" if image.error else ""
        raise RetryLater(f"image {image.id} is still being read{waiting}: ask again in a moment")
    return image
