"""What users can ask of instances: each verifies, writes the intent and its work row, and is done.

Nothing here talks to a host. The functions take an open connection and run in one transaction;
what they raise keeps nothing.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from treadle.compute import store
from treadle.compute.model import SETTLED, Goal, Instance, Phase, State, shown_state
from treadle.compute.reconciler import KIND
from treadle.compute.store import Flavor
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

    `flavor` is the classic number, or the flavor; `image` likewise, None for the first one.
    `count` makes that many, named NAME-1, NAME-2, …, or with `or_fewer` as many as the quota lets,
    but no fewer than that. `rollback`: what cannot be built is deleted, not kept as an error, and
    with it the others of the request. `hostname`: empty, the name is one. `group` is the number of
    a server group, `zone` the availability zone that is asked for.
    """

    name: str
    flavor: int | Flavor
    image: int | Image | None
    count: int = 1
    or_fewer: int | None = None
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    rollback: bool = False
    project_id: str = ""
    user_id: str = ""
    hostname: str = ""
    description: str | None = None
    key_name: str | None = None
    config_drive: bool = False
    disk_config: str = "MANUAL"
    access_ipv4: str = ""
    access_ipv6: str = ""
    networked: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    zone: str | None = None
    group: int | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: the small number and the UUID, and the UUID of the request."""

    id: int
    uuid: str
    batch: str


def create(
    conn: sa.Connection, wish: Wish, *, request_id: str, build_deadline_s: float
) -> list[Made]:
    """Verify the wish and make the rows. Errors: `InvalidInput`, `NotFound`, `Conflict`,
    `QuotaExceeded`, `RetryLater` while the image is still being read."""
    names = _names(wish)
    flavor = _flavor(conn, wish.flavor)
    image = _image(conn, wish.image)
    check_fits(flavor, image)
    time = float(conn.execute(sa.select(now())).scalar_one())
    batch = str(uuids.uuid4())
    made = [uuids.uuid4() for _ in names]
    shared = {
        "flavor_id": flavor.id, "vcpus": flavor.vcpus, "memory_mib": flavor.memory_mib,
        "disk_gib": flavor.disk_gib, "flavor": snapshot(flavor), "image_id": image.id,
        "user_data": wish.user_data, "ssh_keys": "\n".join(wish.ssh_keys),
        "goal": Goal.RUNNING, "state": State.BUILDING, "phase": Phase.QUEUED,
        "deadline": time + build_deadline_s, "batch": batch, "rollback": wish.rollback,
        "project_id": wish.project_id, "user_id": wish.user_id, "description": wish.description,
        "key_name": wish.key_name, "config_drive": wish.config_drive,
        "disk_config": wish.disk_config, "access_ipv4": wish.access_ipv4,
        "access_ipv6": wish.access_ipv6, "networked": wish.networked,
        "metadata": store.compact(wish.metadata), "availability_zone": wish.zone,
        "group_id": wish.group, "scheduler_hints": store.compact(wish.hints),
    }
    rows = [
        {
            **shared, "uuid": str(one), "name": name, "mac": mac_of(one) if wish.networked else "",
            "hostname": _numbered(wish.hostname, index, len(names)) or None,
            "launch_index": index,
        }
        for index, (name, one) in enumerate(zip(names, made, strict=True))
    ]
    ids = store.insert(conn, rows)
    for id in ids:
        store.begin_action(
            conn, id, request_id, "create", 1, user_id=wish.user_id, project_id=wish.project_id
        )
        if wish.tags:
            store.set_tags(conn, id, wish.tags)
    queue.enqueue_new(conn, KIND, [str(one) for one in made])
    return [Made(id, str(one), batch) for id, one in zip(ids, made, strict=True)]


def check_fits(flavor: Flavor, image: Image) -> None:
    """Whether an instance of the flavor can have the image. Errors: `Conflict`."""
    disk = max(-(-(image.virtual_bytes or 0) // GIB), image.min_disk_gib)
    for what, unit, has, needs in (
        ("disk", "GiB", flavor.disk_gib, disk),
        ("memory", "MiB", flavor.memory_mib, image.min_memory_mib),
    ):
        if needs > has:
            raise Conflict(
                f"instance type {flavor.id} has {has} {unit} of {what} and image {image.name} "
                f"needs {needs}: choose a larger type"
            )


def snapshot(flavor: Flavor) -> str:
    """What an instance keeps of its flavor, for as long as it has that size, as JSON."""
    return store.compact({
        "id": flavor.public_id, "name": flavor.name, "swap": flavor.swap_mib,
        "ephemeral": flavor.ephemeral_gib, "rxtx_factor": flavor.rxtx_factor,
        "extra_specs": dict(flavor.extra_specs),
    })


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
    if not wish.hostname and not NAME.fullmatch(wish.name):
        raise InvalidInput("name", wish.name, f"it must be {NAME_RULE}")
    if not 1 <= wish.count <= COUNT_MAX:
        raise InvalidInput("count", wish.count, f"it must be from 1 to {COUNT_MAX}")
    names = [_numbered(wish.name, index, wish.count) for index in range(wish.count)]
    if len(names[-1]) > (255 if wish.hostname else 63):
        raise InvalidInput("name", wish.name, f"with its number it must be {NAME_RULE}")
    return names


def _numbered(name: str, index: int, count: int) -> str:
    """The name of one of several."""
    return name if count == 1 or not name else f"{name}-{index + 1}"


def _flavor(conn: sa.Connection, wanted: int | Flavor) -> Flavor:
    if isinstance(wanted, Flavor):
        return wanted
    flavor = store.get_flavor(conn, wanted)
    if flavor is None:
        known = ", ".join(str(f.id) for f in store.list_flavors(conn)) or "none"
        raise NotFound(f"there is no instance type {wanted}: there are {known}")
    return flavor


def _image(conn: sa.Connection, wanted: int | Image | None) -> Image:
    id = wanted.id if isinstance(wanted, Image) else wanted
    image = images.first(conn) if id is None else images.get(conn, id)
    if image is None or image.deleted_at is not None:
        if id is None:
            raise NotFound("there is no image: add one")
        known = ", ".join(str(one.id) for one in images.list_images(conn)) or "none"
        raise NotFound(f"there is no image {id}: there are {known}")
    if image.state is ImageStatus.NEW:
        waiting = f" ({image.error})" if image.error else ""
        raise RetryLater(f"image {image.id} is still being read{waiting}: ask again in a moment")
    if image.state is not ImageStatus.ACTIVE or image.sha256 is None:
        raise Conflict(f"image {image.id} cannot be used: {image.error or f'it is {image.state}'}")
    return image
