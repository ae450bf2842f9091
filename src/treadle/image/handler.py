"""One pass over an image: have its content here, look at it before any host does, record it."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa
import structlog

from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.worker import backoff, end_pass
from treadle.db.engine import Database, forbid_in_transaction
from treadle.errors import CallerError, InvalidInput, Permanent, RetryLater
from treadle.image import actions, store
from treadle.image.actions import Limits
from treadle.image.contents import Contents, digests_of
from treadle.image.fetch import fetch, fetch_url
from treadle.image.guard import Guard
from treadle.image.inspect import inspect
from treadle.image.sources import HttpUrl, parse_source
from treadle.image.store import Content, Image, ImageStatus

log = structlog.get_logger("treadle.images")

TRIES = 8
IMPORT_TRIES = 3
IN_USE_S = 600.0
"""How often it is looked whether a deleted image is still needed by an instance."""


class ImageHandler:
    """Makes passes over images."""

    def __init__(
        self, database: Database, contents: Contents, limits: Limits,
        ssh_config: Path | None = None, guard: Guard | None = None,
    ) -> None:
        """`guard` says where tenants' URLs may lead; an operator's may lead anywhere."""
        self._db = database
        self._contents = contents
        self._limits = limits
        self._ssh_config = ssh_config
        self._guard = guard or Guard()

    def run(self, ticket: Ticket) -> Ticket | None:
        """Make one pass. What can be tried again is tried `TRIES` times."""
        image = self._db.read(lambda conn: store.get(conn, int(ticket.id)))
        forbid_in_transaction()
        if image is not None and image.state is ImageStatus.NEW:
            self._read(ticket, image)
        elif image is not None and image.state in store.ARRIVING:
            self._bring(ticket, image)
        elif image is not None and image.state is ImageStatus.DELETED:
            self._forget(ticket, image)
        else:
            self._db.write(lambda conn: queue.complete(conn, ticket))
        return None

    # -- an operator's image

    def _read(self, ticket: Ticket, image: Image) -> None:
        limits = self._contents.limits
        try:
            found = fetch(
                parse_source(image.source), self._contents.folder, ssh_config=self._ssh_config,
                limits=limits, progress=lambda _here, _all: None,
            )
            facts = inspect(found.path)
            digests = digests_of(found.path, limits.seconds)
        except RetryLater as error:
            self._failed(ticket, image.id, str(error), final=ticket.tries + 1 >= TRIES)
            return
        except (Permanent, InvalidInput) as error:
            self._failed(ticket, image.id, str(error), final=True)
            return

        def commit(conn: sa.Connection) -> bool:
            if not queue.complete(conn, ticket):
                return False
            taken = store.set_active(
                conn, image.id, path=str(found.path), sha256=found.sha256, format=facts.format,
                size_bytes=found.size_bytes, virtual_bytes=facts.virtual_bytes,
                checksum=digests.md5, sha512=digests.sha512,
            )
            if taken and facts.root_file_system:
                store.set_property(conn, image.id, "hypervisor_type", "lxc")
            if not taken:
                store.set_error(
                    conn, image.id, "its content has changed while instances of it are there: "
                    "add the new one under another path", final=True,
                )
            return taken

        taken = self._db.write(commit)
        log.info("image_read", image=image.name, sha256=found.sha256[:12], taken=taken)

    def _failed(self, ticket: Ticket, id: int, reason: str, *, final: bool) -> None:
        def commit(conn: sa.Connection) -> None:
            if not final:
                queue.finish(conn, ticket, delay=backoff(ticket.tries, first=1.0), error=reason)
            elif not queue.complete(conn, ticket):
                return
            store.set_error(conn, id, reason, final=final)

        self._db.write(commit)
        log.warning("image_failed", image=id, reason=reason, final=final)

    # -- a tenant's image

    def _bring(self, ticket: Ticket, image: Image) -> None:
        """Bring what is left to bring: from the URL, or from the store through the converter."""
        if image.blob is None or (image.blob_bytes is None and image.state is ImageStatus.SAVING):
            if image.blob is not None:
                self._give_up(ticket, image, "the upload was cut off")
            else:  # made by us, such as a snapshot: who makes it looks after it
                self._db.write(lambda conn: queue.complete(conn, ticket))
            return
        try:
            content = self._content(image, image.blob)
        except RetryLater as error:
            if ticket.tries + 1 < IMPORT_TRIES:
                reason, delay = str(error), backoff(ticket.tries, first=1.0)
                end_pass(self._db, ticket, delay=delay, error=reason)
            else:
                self._give_up(ticket, image, str(error))
            return
        except (Permanent, CallerError) as error:
            self._give_up(ticket, image, str(error))
            return

        def commit(conn: sa.Connection) -> None:
            queue.complete(conn, ticket)
            actions.finish(conn, image, content.blob or "", content, self._limits)
            if image.task is not None:
                task = {**image.task, "status": "success"}
                store.update(conn, image.id, task=json.dumps(task))

        try:
            self._db.write(commit)
        except CallerError as error:
            self._give_up(ticket, image, str(error))
            return
        log.info("image_brought", image=image.uuid, sha256=content.sha256[:12])

    def _content(self, image: Image, key: str) -> Content:
        contents = self._contents
        formats = (image.disk_format or "raw", image.container_format or "bare")
        if image.blob_bytes is None:
            assert image.task is not None
            source = parse_source(image.task["request"]["method"]["uri"])
            if not isinstance(source, HttpUrl):
                raise InvalidInput("uri", str(source), "an http(s):// URL was expected")
            part = contents.part()
            try:
                fetch_url(source, part.path, contents.limits, self._guard)
                digests = digests_of(part.path, contents.limits.seconds)
                return contents.keep(key, part.path, digests, *formats)
            finally:
                part.close()
        part = contents.part()
        try:
            for block in contents.blobs.read(key, 0, image.blob_bytes):
                part.write(block)
            digests = part.digests()
            if (digests.size, digests.sha512) != (image.blob_bytes, image.sha512):
                raise Permanent("the content has changed since it was uploaded")
            return contents.keep(key, part.path, digests, *formats)
        finally:
            part.close()

    def _give_up(self, ticket: Ticket, image: Image, reason: str) -> None:
        reason = reason.replace(str(self._contents.folder), "the store")

        def commit(conn: sa.Connection) -> None:
            queue.complete(conn, ticket)
            actions.give_back(conn, image.id, image.blob, reason)

        if image.blob is not None:
            self._contents.remove(image.blob)
        self._db.write(commit)
        log.warning("image_refused", image=image.uuid, reason=reason)

    def _forget(self, ticket: Ticket, image: Image) -> None:
        """Remove the content of a deleted image once nothing needs it."""
        if self._db.read(lambda conn: store.in_use(conn, image.id)):
            end_pass(self._db, ticket, delay=IN_USE_S)
            return
        self._contents.forget(image)

        def commit(conn: sa.Connection) -> None:
            queue.complete(conn, ticket)
            store.update(conn, image.id, path=None, blob=None)

        self._db.write(commit)

