"""The kinds of work there are on instances and hosts, and the lanes in which it is done."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.controller import queue
from treadle.placement import storages

KIND = "instance"
SNAPSHOT_KIND = "snapshot"
IMAGE_KIND = "host_image"
HOST_KIND = "host"
MOVE_KIND = "move"
EVACUATION_KIND = "evacuation"


def image_work_id(host_id: int, sha256: str) -> str:
    """The queue's name for one image on one host, or in the storage that it keeps for others."""
    return f"{host_id}:{sha256}"


def enqueue_image(conn: sa.Connection, host_id: int, sha256: str) -> None:
    """Have the image's work on the host done now: one row, however many wait for it, and one for
    all hosts that share a storage."""
    work = image_work_id(storages.keeper(conn, host_id), sha256)
    queue.enqueue(conn, IMAGE_KIND, work, lane=host_id)


def wake_move(conn: sa.Connection, id: str) -> None:
    """Have a pass made over the move or the evacuation of this number."""
    if not queue.wake(conn, MOVE_KIND, [id]):
        queue.wake(conn, EVACUATION_KIND, [id])


def bulk_lane(host_id: int) -> int:
    """The lane of what moves a host's data for long: it holds up nothing else of that host."""
    return -1 - host_id


def move_lane(host_id: int) -> int:
    """The lane of moves away from a host: each holds a thread for as long as it lasts."""
    return -(1 << 30) - host_id
