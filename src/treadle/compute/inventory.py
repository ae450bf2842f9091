"""What an operator can register: hosts and images, each with the work row that looks after it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from treadle.compute.kinds import HOST_KIND, enqueue_image
from treadle.compute.placing import mib
from treadle.controller import queue
from treadle.errors import InvalidInput
from treadle.image import actions as image_actions
from treadle.image import store as images
from treadle.placement import ledger
from treadle.placement.ledger import ImageState
from treadle.sections import HostDefaults


def register_host(conn: sa.Connection, defaults: HostDefaults, uri: str, name: str) -> int:
    """Make the host's row and its work."""
    id = ledger.add_host(conn, uri, name, ledger.Ratios(
        defaults.cpu_ratio, defaults.memory_ratio, defaults.disk_ratio,
        defaults.reserved_memory_mib,
    ))
    queue.enqueue(conn, HOST_KIND, str(id), lane=id)
    return id


def register_image(conn: sa.Connection, source: str, name: str) -> int:
    """Make the image's row and its work."""
    id = images.add(conn, source, name)
    queue.enqueue(conn, image_actions.KIND, str(id))
    return id


def cache_images(conn: sa.Connection, host_ids: Sequence[int], uuids: Sequence[str]) -> None:
    """Have images brought to hosts that have the room, before an instance asks for them.

    Errors: `InvalidInput` for an image that is not there or not ready.
    """
    for uuid in uuids:
        image = images.by_uuid(conn, uuid)
        if image is None or image.sha256 is None or image.size_bytes is None:
            raise InvalidInput("cache", uuid, "there is no such image, or it is not active")
        for host_id in host_ids:
            ledger.want_image(conn, host_id, image.sha256, mib(image.size_bytes))
            if ledger.image_state(conn, host_id, image.sha256) is ImageState.WANTED:
                enqueue_image(conn, host_id, image.sha256)
