"""One pass over an image: have its content here, look at it before any host does, record it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
import structlog

from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.worker import backoff
from treadle.db.engine import Database, forbid_in_transaction
from treadle.errors import InvalidInput, Permanent, RetryLater
from treadle.image import store
from treadle.image.fetch import FetchLimits, fetch, parse_source
from treadle.image.inspect import inspect
from treadle.image.store import ImageStatus

log = structlog.get_logger("treadle.images")

KIND = "image"
TRIES = 8


class ImageHandler:
    """Makes passes over images."""

    def __init__(
        self, database: Database, folder: Path, limits: FetchLimits, ssh_config: Path | None = None
    ) -> None:
        self._db = database
        self._folder = folder
        self._limits = limits
        self._ssh_config = ssh_config

    def run(self, ticket: Ticket) -> Ticket | None:
        """Read the image, once; what can be tried again is tried `TRIES` times."""
        id = int(ticket.id)
        image = self._db.read(lambda conn: store.get(conn, id))
        if image is None or image.state is not ImageStatus.NEW:
            self._db.write(lambda conn: queue.complete(conn, ticket))
            return None
        forbid_in_transaction()
        try:
            found = fetch(
                parse_source(image.source), self._folder, ssh_config=self._ssh_config,
                limits=self._limits, progress=lambda _here, _all: None,
            )
            facts = inspect(found.path)
        except RetryLater as error:
            self._failed(ticket, id, str(error), final=ticket.tries + 1 >= TRIES)
            return None
        except (Permanent, InvalidInput) as error:
            self._failed(ticket, id, str(error), final=True)
            return None

        def commit(conn: sa.Connection) -> bool:
            if not queue.complete(conn, ticket):
                return False
            taken = store.set_active(
                conn, id, path=str(found.path), sha256=found.sha256, format=facts.format,
                size_bytes=found.size_bytes, virtual_bytes=facts.virtual_bytes,
            )
            if not taken:
                store.set_error(
                    conn, id, "its content has changed while instances of it are there: "
                    "add the new one under another path", final=True,
                )
            return taken

        taken = self._db.write(commit)
        log.info("image_read", image=image.name, sha256=found.sha256[:12], taken=taken)
        return None

    def _failed(self, ticket: Ticket, id: int, reason: str, *, final: bool) -> None:
        def commit(conn: sa.Connection) -> None:
            if not final:
                queue.finish(conn, ticket, delay=backoff(ticket.tries, first=1.0), error=reason)
            elif not queue.complete(conn, ticket):
                return
            store.set_error(conn, id, reason, final=final)

        self._db.write(commit)
        log.warning("image_failed", image=id, reason=reason, final=final)
