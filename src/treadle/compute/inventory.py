"""What an operator can register: hosts and images, each with the work row that looks after it."""

from __future__ import annotations

import sqlalchemy as sa

from treadle.compute.reconciler import HOST_KIND
from treadle.config import HostDefaults
from treadle.controller import queue
from treadle.image import handler as image_handler
from treadle.image import store as images
from treadle.placement import ledger


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
    queue.enqueue(conn, image_handler.KIND, str(id))
    return id
