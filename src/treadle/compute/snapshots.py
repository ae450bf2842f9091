"""One pass over a snapshot: copy an instance's disk on its host, bring it here, make it an image.

The work row is the instance's; which image is made says its row. A pass makes it; the next one,
which finds nothing to make, removes the copy from the host. What a crash leaves is a file of
another name here and a volume of a known name there, which the next pass replaces.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
import structlog

from treadle.compute import backups, changes, store
from treadle.compute.fleet import Fleet, call
from treadle.compute.kinds import KIND
from treadle.compute.model import Instance, Mode, State, Task
from treadle.compute.store import Loaded, Step
from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.controller.signals import Signals
from treadle.controller.worker import backoff, end_pass
from treadle.db.engine import Database
from treadle.errors import RetryLater, TooLarge, TreadleError
from treadle.hypervisor.base import Agent, HostRefused, Hypervisor
from treadle.image import actions as image_actions
from treadle.image import store as images
from treadle.image.contents import Contents, new_key
from treadle.image.store import Content, Image, ImageStatus
from treadle.placement.ledger import HostStatus

log = structlog.get_logger("treadle.snapshots")

TRIES = 5
REFUSALS = 2
"""How often a host may refuse before it is believed."""


class SnapshotHandler:
    """Makes passes over snapshots."""

    def __init__(
        self, database: Database, fleet: Fleet, signals: Signals, contents: Contents,
        limits: image_actions.Limits | None = None,
    ) -> None:
        """`limits`: what a project may have of images; None: as much as it likes."""
        self._db = database
        self._fleet = fleet
        self._signals = signals
        self._contents = contents
        self._limits = limits

    def run(self, ticket: Ticket) -> Ticket | None:
        """Make the image that the instance's row names, if it names one."""

        def read(conn: sa.Connection) -> tuple[Loaded | None, Image | None]:
            found = store.load(conn, ticket.id)
            wanted = None if found is None else found.instance.snapshot_image_id
            return found, None if wanted is None else images.get(conn, wanted)

        loaded, image = self._db.read(read)
        if loaded is None or image is None or loaded.instance.host_id is None:
            self._tidy(ticket, loaded)
            return None
        instance = loaded.instance
        if image.state is not ImageStatus.SAVING:
            self._give_up(ticket, instance, image, "the image was deleted meanwhile")
        elif loaded.host_status is not HostStatus.UP:
            self._later(ticket, "its host does not answer")
        elif instance.mode is Mode.SHELVED and instance.state is not State.STOPPED:
            # The pass that finds it stopped says so.
            end_pass(self._db, ticket, delay=queue.FAR_S)
        else:
            self._make(ticket, loaded, image)
        self._signals.work_is_due()
        self._signals.changed((KIND, instance.uuid))
        return None

    def _tidy(self, ticket: Ticket, loaded: Loaded | None) -> None:
        """Nothing is to be made, or no longer: no copy is left on the host either."""
        host_id = None if loaded is None else loaded.instance.host_id
        if loaded is not None and host_id is not None and loaded.host_uri is not None:
            try:
                driver = self._fleet.driver(host_id, loaded.host_uri)
                self._call(ticket, driver, "drop_copy", loaded.instance.uuid)
            except LeaseLost:
                raise
            except TreadleError as error:
                if isinstance(error, RetryLater) or ticket.tries + 1 < TRIES:
                    self._later(ticket, str(error))
                    return
                log.warning("copy_left", instance=loaded.instance.uuid, reason=str(error))
        self._db.write(lambda conn: queue.complete(conn, ticket))

    @staticmethod
    def _call(ticket: Ticket, driver: Hypervisor, verb: str, *args: Any) -> Any:
        queue.hold_lease(ticket)
        return call(driver, verb, *args)

    def _make(self, ticket: Ticket, loaded: Loaded, image: Image) -> None:
        instance = loaded.instance
        assert instance.host_id is not None
        assert loaded.host_uri is not None
        started = time.time()
        try:
            driver = self._fleet.driver(instance.host_id, loaded.host_uri)
            said = self._begin(ticket, driver, instance)
            self._db.write(lambda conn: self._copying(conn, instance))
            content = self._bring(ticket, driver, instance, image)
        except LeaseLost:
            raise
        except TreadleError as error:
            refused = isinstance(error, HostRefused) and ticket.tries + 1 < REFUSALS
            again = isinstance(error, RetryLater) and ticket.tries + 1 < TRIES
            if refused or again:
                self._later(ticket, str(error))
            else:
                self._give_up(ticket, instance, image, str(error))
            return
        step = Step("snapshot", instance.host_id, started, time.time(), "ok", said)
        try:
            made = self._db.write(
                lambda conn: self._made(conn, ticket, instance, image, content, step)
            )
        except TooLarge as error:  # another image has taken the room meanwhile
            self._contents.remove(content.blob or "")
            self._give_up(ticket, instance, image, str(error))
            return
        if not made:
            self._contents.remove(content.blob or "")
            return
        log.info("snapshot_made", instance=instance.uuid, image=image.uuid)

    def _begin(self, ticket: Ticket, driver: Hypervisor, instance: Instance) -> str:
        """Begin the copy, with the guest's file systems held where its agent does that; says how
        it went."""
        if instance.state is not State.RUNNING or not isinstance(driver, Agent):
            self._call(ticket, driver, "begin_copy", instance.uuid)
            return "of a disk at rest" if instance.state is State.STOPPED else "as it was"
        said = ""
        try:
            count = self._call(ticket, driver, "freeze", instance.uuid)
            said = f"with {count} file systems of the guest held"
        except HostRefused as error:
            said = f"as after a power cut: {error}"
        try:
            self._call(ticket, driver, "begin_copy", instance.uuid)
        finally:
            with suppress(HostRefused):  # no agent, which then holds nothing
                call(driver, "thaw", instance.uuid)
        return said

    def _bring(
        self, ticket: Ticket, driver: Hypervisor, instance: Instance, image: Image
    ) -> Content:
        part = self._contents.part(
            self._db.write(lambda conn: self._room(conn, instance, image, 0))
        )
        try:
            self._call(ticket, driver, "fetch_copy", instance.uuid, part.write)
            key = new_key(image.uuid)
            return self._contents.keep(key, part.path, part.digests(), "qcow2", "bare")
        finally:
            part.close()

    def _room(
        self, conn: sa.Connection, instance: Instance, image: Image, size: int
    ) -> int | None:
        """How many bytes the image may have, None: any. A shelf counts, but is never refused: the
        server would be lost to its user. Errors: `TooLarge` where `size` are more than that."""
        if self._limits is None or instance.mode is Mode.SHELVED:
            return None
        return image_actions.check_room(
            conn, image.project_id, self._limits, size, but=image.id
        )

    # -- commits

    def _still(self, conn: sa.Connection, instance: Instance) -> bool:
        """Whether that snapshot is still wanted, as far as the row goes."""
        current = store.get(conn, instance.id)
        return current is not None and (
            current.snapshot_image_id == instance.snapshot_image_id
            and current.revision == instance.revision
        )

    def _copying(self, conn: sa.Connection, instance: Instance) -> None:
        if instance.task is Task.IMAGE_SNAPSHOT and self._still(conn, instance):
            store.update(conn, instance.id, task=Task.IMAGE_UPLOADING)

    def _made(
        self, conn: sa.Connection, ticket: Ticket, instance: Instance, image: Image,
        content: Content, step: Step,
    ) -> bool:
        """False where nobody waits for the content any more."""
        self._room(conn, instance, image, content.blob_bytes)
        queue.finish(conn, ticket, delay=0.0)
        wanted = images.complete(conn, image.id, content)
        if not self._still(conn, instance):
            if wanted:
                image_actions.retire(conn, image.id)
            return wanted
        store.log_step(conn, instance.id, instance.revision, step)
        if wanted:
            store.update(conn, instance.id, snapshot_image_id=None)
            backups.made(conn, instance, image)
        else:
            self._undo(conn, instance, "the image was deleted meanwhile")
        queue.wake(conn, KIND, [instance.uuid])
        return wanted

    def _later(self, ticket: Ticket, reason: str) -> None:
        end_pass(self._db, ticket, delay=backoff(ticket.tries), error=reason)

    def _give_up(
        self, ticket: Ticket, instance: Instance, image: Image, reason: str
    ) -> None:
        def commit(conn: sa.Connection) -> None:
            queue.finish(conn, ticket, delay=0.0)
            if image.state is ImageStatus.SAVING:
                images.fail(conn, image.id, reason)
            if self._still(conn, instance):
                self._undo(conn, instance, reason)
                queue.wake(conn, KIND, [instance.uuid])

        self._db.write(commit)
        log.warning("snapshot_failed", instance=instance.uuid, image=image.uuid, reason=reason)

    @staticmethod
    def _undo(conn: sa.Connection, instance: Instance, reason: str) -> None:
        """No image: a shelf that came to nothing leaves the instance stopped."""
        values: dict[str, Any] = {"snapshot_image_id": None, "task": None}
        if instance.mode is not instance.settled_mode:
            values |= changes.undone(instance)
        store.update(conn, instance.id, fault=reason, **values)
        store.end_actions(conn, instance.id, instance.revision, "error", reason)
