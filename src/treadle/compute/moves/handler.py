"""One pass over a live move: look at both hosts, ask `plan`, act once, commit."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from treadle.compute import placing, store
from treadle.compute.fleet import Fleet, call
from treadle.compute.kinds import HOST_KIND, KIND, MOVE_KIND
from treadle.compute.lifecycle import ImageOnHost, Lost
from treadle.compute.model import Goal
from treadle.compute.moves import plan as course
from treadle.compute.moves import store as moves
from treadle.compute.moves import targets
from treadle.compute.moves.plan import (
    ENDED,
    Arrive,
    AwaitImage,
    Begin,
    Choose,
    Clean,
    Context,
    End,
    Kind,
    Move,
    Resume,
    Seen,
    Stage,
    Wait,
)
from treadle.compute.reconciler import spec_of
from treadle.compute.store import Loaded, Step
from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.controller.worker import backoff, end_pass
from treadle.db.engine import Database
from treadle.errors import RetryLater, TreadleError
from treadle.hypervisor.base import (
    DomainSpec,
    HostRefused,
    HostUnreachable,
    Hypervisor,
    MoveOptions,
    SharedStorage,
)
from treadle.placement import ledger
from treadle.placement.board import Board
from treadle.placement.ledger import HostStatus, ImageState
from treadle.scheduler.plugin import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger("treadle.moves")

IMAGE_POLL_S = 5.0
BUSY_S = 1.0
WATCH_S = 0.5
RESUME_S = 10.0
TOLD_EVERY = 4
"""Of so many looks at what is wanted of a move, one asks its emulator how far it is."""


@dataclass(frozen=True, slots=True)
class MovePolicy:
    """How moves are made. `at_once`: how many may be under way to or from one host. `evacuates` as
    in `Timing`. `start_s`: how long a guest may take to start where a cold move has brought it."""

    options: MoveOptions = field(default_factory=MoveOptions)
    at_once: int = 2
    lease_s: float = 30.0
    evacuates: bool = False
    start_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A move with what one pass needs to know around it."""

    move: Move
    loaded: Loaded
    source: ledger.Host | None
    target: ledger.Host | None
    image: ImageState | None


class MoveHandler:
    """Makes passes over live moves."""

    def __init__(
        self, database: Database, fleet: Fleet, board: Board, policy: MovePolicy,
        cloud_id: str,
    ) -> None:
        self._db = database
        self._fleet = fleet
        self._policy = policy
        self._cloud_id = cloud_id
        self._board = board

    def run(self, ticket: Ticket) -> Ticket | None:
        """Make passes while the next one follows at once."""
        following: Ticket | None = ticket
        trouble = ""
        while following is not None:
            following, trouble = self._next(following, trouble)
        return None

    def _next(self, ticket: Ticket, trouble: str) -> tuple[Ticket | None, str]:
        scene = self._db.read(lambda conn: self._scene(conn, int(ticket.id)))
        if scene is None:
            self._db.write(lambda conn: queue.remove(conn, ticket))
            return None, ""
        return self._pass(ticket, scene, trouble)

    def _scene(self, conn: sa.Connection, id: int) -> Scene | None:
        move = moves.get(conn, id)
        if move is None or move.stage in ENDED:
            return None
        instance = store.get(conn, move.instance_id)
        loaded = None if instance is None else store.load(conn, instance.uuid)
        if loaded is None:
            return None
        source = ledger.get_host(conn, move.source_id)
        target = None if move.target_id is None else ledger.get_host(conn, move.target_id)
        image = None
        if target is not None:
            image = ledger.image_state(conn, target.id, loaded.image.sha256)
        return Scene(move, loaded, source, target, image)

    def _pass(
        self, ticket: Ticket, scene: Scene, trouble: str
    ) -> tuple[Ticket | None, str]:
        """One pass: the ticket of the next, and what went wrong in this one."""
        move, uuid = scene.move, scene.loaded.instance.uuid
        here, there = self._look(scene.source, uuid), self._look(scene.target, uuid)
        if there is Lost.HOST and scene.target is not None and scene.target.said_off:
            there = None  # nothing runs there; what is left is swept when it is back
        action = course.plan(move, here, there, self._context(scene, trouble))
        match action:
            case Choose():
                return self._choose(ticket, scene)
            case AwaitImage():
                end_pass(self._db, ticket, delay=IMAGE_POLL_S)
                return None, ""
            case Begin():
                return self._begin(ticket, scene)
            case Resume():
                return self._resume(ticket, scene)
            case Arrive():
                return self._go_on(ticket, lambda conn: self._arrive(conn, scene)), trouble
            case Clean(target):
                return self._clean(ticket, scene, scene.target if target else scene.source), trouble
            case End(stage, reason):
                self._end(ticket, scene, stage, reason)
                return None, ""
            case Wait(reason):
                end_pass(self._db, ticket, delay=backoff(ticket.tries), error=reason)
                return None, ""

    def _context(self, scene: Scene, trouble: str) -> Context:
        on_target = {
            ImageState.READY: ImageOnHost.READY, ImageState.REFUSED: ImageOnHost.REFUSED,
            ImageState.BROKEN: ImageOnHost.BROKEN,
        }.get(scene.image or ImageState.WANTED, ImageOnHost.PENDING)
        wanted = scene.loaded.instance.goal not in (Goal.DELETED, Goal.FAILED)
        return Context(
            image=on_target, unwanted=scene.move.stop or not wanted, deleted=not wanted,
            late=scene.loaded.now > scene.move.deadline, trouble=trouble,
            source_off=scene.source is not None and scene.source.said_off,
        )

    def _look(self, host: ledger.Host | None, uuid: str) -> Seen:
        if host is None:
            return None
        if host.status is HostStatus.DOWN:
            return Lost.HOST
        try:
            seen: Seen = call(self._fleet.driver(host.id, host.uri), "observe", uuid)
        except HostUnreachable:
            self._db.write(lambda conn: queue.wake(conn, HOST_KIND, [str(host.id)]))
            return Lost.HOST
        return seen

    # -- commits

    def _go_on(self, ticket: Ticket, change: Callable[[sa.Connection], None]) -> Ticket:
        def commit(conn: sa.Connection) -> Ticket:
            following = queue.carry(conn, ticket, self._policy.lease_s, lane=ticket.lane)
            change(conn)
            return following

        return self._db.write(commit)

    # -- acts

    def _choose(self, ticket: Ticket, scene: Scene) -> tuple[Ticket | None, str]:
        move, instance = scene.move, scene.loaded.instance
        machine = ""
        if move.kind is Kind.LIVE:
            try:
                machine = self._machine(scene)
            except RetryLater as error:
                end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
                return None, ""
        wish = targets.Wish(
            move.source_id, move.wanted_id, move.after, cold=move.kind is not Kind.LIVE,
            machine=machine,
        )

        def ask(conn: sa.Connection) -> placing.Asked:
            return targets.asked(
                conn, scene.loaded, wish, with_flavors=self._board.scheduler.wants_flavors,
            )

        def commit(conn: sa.Connection, offer: placing.Offer) -> Ticket | None:
            taken = ledger.Taken()
            host_id, room = offer.take(conn, instance, taken.hold), offer.room
            if host_id is None:
                return None
            following = queue.carry(conn, ticket, self._policy.lease_s, lane=ticket.lane)
            moves.update(
                conn, move.id, stage=Stage.READY, target_id=host_id, held=True,
                vcpus=room.vcpus, memory_mib=room.memory_mib, disk_mib=room.disk_mib,
                cells=taken.cells,
            )
            store.record_decision(conn, instance.id, host_id, offer.record.to_dict())
            return following

        try:
            chosen = placing.place(self._db, self._board, instance.uuid, ask, commit)
        except PluginError as error:
            self._over(ticket, scene, Stage.FAILED, str(error))
            return None, ""
        if isinstance(chosen, placing.NoRoom):
            self._over(ticket, scene, Stage.FAILED, chosen.reason)
            return None, ""
        if chosen is None:
            busy = "no room on the target now"
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=busy)
        return chosen, ""

    def _machine(self, scene: Scene) -> str:
        """What the guest runs on; "" where that does not count. Errors: `RetryLater`."""
        assert scene.source is not None
        driver = self._fleet.driver(scene.source.id, scene.source.uri)
        try:
            found: str = call(driver, "machine", scene.loaded.instance.uuid)
        except HostRefused:
            return ""  # it is not there any more, which the next look sees
        return found

    def _enter(self, ticket: Ticket, scene: Scene, **more: Any) -> Ticket | None:
        """Say that it begins, durably, with `more` columns of the move; None where too much is
        under way."""
        move, target = scene.move, scene.target
        assert target is not None

        def begin(conn: sa.Connection) -> Ticket | None:
            crowded = max(moves.busy(conn, h) for h in (move.source_id, target.id))
            # A pass over the target that is under way may have seen a remnant there: it would
            # remove what comes.
            sweeping = queue.is_leased(conn, HOST_KIND, str(target.id))
            if crowded >= self._policy.at_once or sweeping:
                delay = backoff(ticket.tries, first=0.1, most=BUSY_S)
                queue.finish(conn, ticket, delay=delay, error="other work on a host is under way")
                return None
            moves.update(conn, move.id, stage=Stage.MOVING, **more)
            return queue.carry(conn, ticket, self._policy.lease_s, lane=ticket.lane)

        return self._db.write(begin)

    def _begin(self, ticket: Ticket, scene: Scene) -> tuple[Ticket | None, str]:
        """Have it done, once that is said. Whoever comes after looks for it."""
        move = scene.move
        spec = spec_of(scene.loaded, self._cloud_id, self._policy.evacuates)
        try:
            shared = self._share(scene)
        except TreadleError as error:
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None, ""
        # The layers of a disk that stays where it is stay too.
        after = {"disks": ",".join(map(str, spec.disks))} if shared else {}
        begun = self._enter(ticket, scene, after=store.compact(after))
        if begun is None:
            return None, ""
        ticket = begun
        if len(spec.disks) > 1 and not shared:
            # Layers become one: all of the disk is sent into an empty one.
            spec = replace(spec, disks=spec.disks[:1], image=None)
        left = max(1.0, move.deadline - scene.loaded.now)
        options = replace(
            self._policy.options, seconds=min(self._policy.options.seconds, left), shared=shared,
        )
        try:
            self._move(ticket, scene, spec, options)
        except LeaseLost:
            raise
        except TreadleError as error:
            log.warning("move_failed", instance=spec.uuid, reason=str(error))
            return ticket, str(error)
        return ticket, ""

    def _move(
        self, ticket: Ticket, scene: Scene, spec: DomainSpec, options: MoveOptions
    ) -> None:
        assert scene.source is not None
        assert scene.target is not None
        source = self._fleet.driver(scene.source.id, scene.source.uri)
        target = self._fleet.driver(scene.target.id, scene.target.uri)
        queue.hold_lease(ticket)
        call(target, "take" if options.shared else "expect", spec)
        # Who took over meanwhile has found nothing there, and ended the move.
        queue.hold_lease(ticket)
        with self._watched(scene.move.id, scene.loaded.instance.id, source, spec.uuid, options):
            call(source, "move", spec.uuid, target, options)

    def _resume(self, ticket: Ticket, scene: Scene) -> tuple[Ticket | None, str]:
        """As often as it takes: it runs at neither host until it is done. What takes longer than
        `RESUME_S` goes on without us, and is looked at meanwhile: somebody may delete it."""
        assert scene.source is not None
        assert scene.target is not None
        source = self._fleet.driver(scene.source.id, scene.source.uri)
        target = self._fleet.driver(scene.target.id, scene.target.uri)
        uuid = scene.loaded.instance.uuid
        queue.hold_lease(ticket)
        try:
            options = replace(self._policy.options, seconds=RESUME_S)
            call(source, "resume_move", uuid, target, options)
        except TreadleError as error:
            log.warning("move_not_resumed", instance=uuid, reason=str(error))
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None, ""
        log.info("move_resumed", instance=uuid)
        return self._go_on(ticket, lambda _conn: None), ""

    def _share(self, scene: Scene) -> bool:
        """Whether source and target share their storage, as of now."""
        assert scene.source is not None
        assert scene.target is not None
        source = self._fleet.driver(scene.source.id, scene.source.uri)
        target = self._fleet.driver(scene.target.id, scene.target.uri)
        return isinstance(source, SharedStorage) and bool(call(source, "shares", target))

    @contextmanager
    def _watched(
        self, move_id: int, instance_id: int, source: Hypervisor, uuid: str, options: MoveOptions
    ) -> Iterator[None]:
        """Meanwhile, write down how far it is, and end or hurry it when somebody asks; one that may
        end at the target is hurried when half of its time is over."""
        over = threading.Event()
        half = time.monotonic() + options.seconds / 2

        def watch() -> None:
            hurried = False
            for look in itertools.count():
                if over.wait(WATCH_S):
                    return
                try:
                    move, wanted = self._db.read(lambda conn: (
                        moves.get(conn, move_id), store.get(conn, instance_id),
                    ))
                    if move is None or wanted is None:
                        return
                    if move.stop or wanted.goal in (Goal.DELETED, Goal.FAILED):
                        call(source, "abort_move", uuid)
                    elif not hurried and (
                        move.hurry or (options.post_copy and time.monotonic() > half)
                    ):
                        call(source, "hurry_move", uuid)
                        hurried = True
                    if look % TOLD_EVERY:
                        continue
                    done = call(source, "move_progress", uuid)
                    if done is not None:
                        self._note(move_id, json.dumps(astuple(done)))
                except (TreadleError, DBAPIError) as error:
                    log.info("move_unwatched", instance=uuid, reason=str(error))

        thread = threading.Thread(target=watch, name=f"move-{move_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30.0)

    def _note(self, move_id: int, progress: str) -> None:
        self._db.write(
            lambda conn: moves.update(conn, move_id, progress=progress), durable=False,
        )

    def _arrive(self, conn: sa.Connection, scene: Scene) -> None:
        move, instance = scene.move, scene.loaded.instance
        assert move.target_id is not None
        ledger.moved(conn, instance.id, move.target_id, move.cells)
        moves.update(conn, move.id, stage=Stage.ARRIVED, held=False)
        columns: dict[str, Any] = {"host_id": move.target_id, "address": None}
        if len(instance.disks) > 1:
            columns["disks"] = str(instance.disks[0])
        columns |= move.after
        store.update(conn, instance.id, **columns)
        store.log_step(conn, instance.id, move.revision, Step(
            "move", move.target_id, move.created_at, scene.loaded.now, "ok",
        ))

    def _clean(
        self, ticket: Ticket, scene: Scene, host: ledger.Host | None
    ) -> Ticket | None:
        assert host is not None
        queue.hold_lease(ticket)
        try:
            call(self._fleet.driver(host.id, host.uri), "undefine", scene.loaded.instance.uuid)
        except RetryLater as error:
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None
        except TreadleError as error:
            log.warning("move_not_cleaned", host=host.name, reason=str(error))
            end_pass(self._db, ticket, delay=backoff(ticket.tries), error=str(error))
            return None
        return self._go_on(ticket, lambda _conn: None)

    def _over(self, ticket: Ticket, scene: Scene, stage: Stage, reason: str) -> None:
        self._end(ticket, scene, stage, reason)

    def _end(
        self, ticket: Ticket, scene: Scene, stage: Stage, reason: str, **more: Any
    ) -> None:
        """`more`: columns of the instance, where nobody has wished anything since."""
        move, instance = scene.move, scene.loaded.instance

        def end(conn: sa.Connection) -> None:
            queue.remove(conn, ticket)
            if move.held and move.holder is not None:
                ledger.let_go(conn, move.holder, move)
            moves.update(conn, move.id, stage=stage, held=False, error=reason or None)
            current = store.get(conn, instance.id)
            columns: dict[str, Any] = {"moving": None}
            if current is not None and current.revision == move.revision:
                columns |= {"task": None, **more}
            store.update(conn, instance.id, **columns)
            store.end_actions(
                conn, instance.id, move.revision, "ok" if stage is Stage.DONE else "error",
                reason or None,
            )
            queue.wake(conn, KIND, [instance.uuid])
            hosts = (move.source_id, *([] if move.target_id is None else [move.target_id]))
            queue.wake(conn, MOVE_KIND, moves.waiting(conn, *hosts))

        self._db.write(end)
        log.info("move_ended", instance=instance.uuid, stage=stage, reason=reason)
