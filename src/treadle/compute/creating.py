"""The making of instances: what a request is verified against, and the rows that it becomes.

Nothing here talks to a host. `create` takes an open connection and runs in one transaction; what it
raises keeps nothing.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from treadle.compute import injected, quota, store
from treadle.compute.kinds import KIND
from treadle.compute.model import Goal, Phase, State
from treadle.compute.store import Flavor
from treadle.controller import queue
from treadle.db.clock import now
from treadle.db.prepared import Prepared
from treadle.db.schema import meta
from treadle.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, RetryLater
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
    a server group, `zone` the availability zone that is asked for. Without a project and a user
    it belongs to the administrator's, and no quota counts.
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
    files: injected.Files = ()
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
    flavor = find_flavor(conn, wish.flavor)
    image = find_image(conn, wish.image)
    check_fits(flavor, image)
    names = _names(replace(wish, count=_allowed(conn, wish, flavor)))
    time, home, owner = _SCENE(conn).one()
    project, user = wish.project_id or home or "", wish.user_id or owner or ""
    batch = str(uuids.uuid4())
    made = [uuids.uuid4() for _ in names]
    shared = {
        "flavor_id": flavor.id, "vcpus": flavor.vcpus, "memory_mib": flavor.memory_mib,
        "disk_gib": flavor.disk_gib, "flavor": snapshot(flavor), "image_id": image.id,
        "image_properties": store.compact(image.properties), "files": injected.text(wish.files),
        "user_data": wish.user_data, "ssh_keys": "\n".join(wish.ssh_keys),
        "goal": Goal.RUNNING, "state": State.BUILDING, "phase": Phase.QUEUED,
        "deadline": time + build_deadline_s, "batch": batch, "rollback": wish.rollback,
        "project_id": project, "user_id": user, "description": wish.description,
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
            conn, id, request_id, "create", 1, user_id=user, project_id=project
        )
        if wish.tags:
            store.set_tags(conn, id, wish.tags)
    queue.enqueue_new(conn, KIND, [str(one) for one in made])
    return [Made(id, str(one), batch) for id, one in zip(ids, made, strict=True)]


def _known(key: str) -> sa.ScalarSelect[Any]:
    return sa.select(meta.c.value).where(meta.c.key == key).scalar_subquery()


_SCENE = Prepared(sa.select(now(), _known("admin_project"), _known("admin_user")))
"""The clock, and to whom belongs what an API without users makes."""


def check_fits(flavor: Flavor, image: Image) -> None:
    """Whether an instance of the flavor can have the image. Errors: `InvalidInput`."""
    disk = max(-(-(image.virtual_bytes or 0) // GIB), image.min_disk_gib)
    for what, unit, has, needs in (
        ("disk", "GiB", flavor.disk_gib, disk),
        ("memory", "MiB", flavor.memory_mib, image.min_memory_mib),
    ):
        if needs > has:
            raise InvalidInput(
                "instance type", flavor.id,
                f"it has {has} {unit} of {what} and image {image.name} needs {needs}: choose a "
                "larger type",
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


def _names(wish: Wish) -> Sequence[str]:
    if not wish.hostname and not NAME.fullmatch(wish.name):
        raise InvalidInput("name", wish.name, f"it must be {NAME_RULE}")
    if not 1 <= wish.count <= COUNT_MAX:
        raise InvalidInput("count", wish.count, f"it must be from 1 to {COUNT_MAX}")
    names = [_numbered(wish.name, index, wish.count) for index in range(wish.count)]
    if len(names[-1]) > (255 if wish.hostname else 63):
        raise InvalidInput("name", wish.name, f"with its number it must be {NAME_RULE}")
    return names


def _allowed(conn: sa.Connection, wish: Wish, flavor: Flavor) -> int:
    """How many the quota lets be made; what has no users has none. Errors: `QuotaExceeded`."""
    if not wish.user_id:
        return wish.count
    quota.check_metadata(conn, wish.project_id, len(wish.metadata))
    injected.check(conn, wish.project_id, wish.files)
    least = wish.count if wish.or_fewer is None else wish.or_fewer
    for count in range(wish.count, least - 1, -1):
        try:
            quota.check(conn, wish.project_id, {
                "instances": count, "cores": count * flavor.vcpus,
                "ram": count * flavor.memory_mib,
            }, wish.user_id)
            if wish.group is not None:
                quota.check_members(conn, wish.project_id, wish.user_id, wish.group, count)
        except QuotaExceeded:
            if count == least:
                raise
        else:
            return count
    raise AssertionError("unreachable")


def _numbered(name: str, index: int, count: int) -> str:
    """The name of one of several."""
    return name if count == 1 or not name else f"{name}-{index + 1}"


def find_flavor(conn: sa.Connection, wanted: int | Flavor) -> Flavor:
    """The flavor of the number. Errors: `NotFound`."""
    if isinstance(wanted, Flavor):
        return wanted
    flavor = store.get_flavor(conn, wanted)
    if flavor is None:
        known = ", ".join(str(f.id) for f in store.list_flavors(conn)) or "none"
        raise NotFound(f"there is no instance type {wanted}: there are {known}")
    return flavor


def find_image(conn: sa.Connection, wanted: int | Image | None) -> Image:
    """The image of the number, None for the first one, from which a disk can be made now; an image
    is as this transaction has read it. Errors: `NotFound`, `Conflict`, `RetryLater` while it is
    still being read."""
    if isinstance(wanted, Image):
        image: Image | None = wanted
    else:
        image = images.first(conn) if wanted is None else images.get(conn, wanted)
    if image is None or image.deleted_at is not None:
        if wanted is None:
            raise NotFound("there is no image: add one")
        id = image.id if image is not None else wanted
        known = ", ".join(str(one.id) for one in images.list_images(conn)) or "none"
        raise NotFound(f"there is no image {id}: there are {known}")
    if image.state is ImageStatus.NEW:
        waiting = f" ({image.error})" if image.error else ""
        raise RetryLater(f"image {image.id} is still being read{waiting}: ask again in a moment")
    if image.size_bytes == 0:
        raise Conflict(f"image {image.id} cannot be used: it is empty")
    if image.state is not ImageStatus.ACTIVE or image.sha256 is None:
        raise Conflict(f"image {image.id} cannot be used: {image.error or f'it is {image.state}'}")
    return image
