"""One pass over an instance: observe, ask `plan`, act once, commit. The glue, and nothing else.

The transactions are short and lie before and after the I/O, never around it. Every commit goes
through the ticket first: where the lease was lost, nothing of the pass is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from treadle.compute import injected, lifecycle, outcomes, placing, store
from treadle.compute.fleet import Fleet, call
from treadle.compute.kinds import (
    HOST_KIND,
    enqueue_image,
    wake_move,
)
from treadle.compute.lifecycle import (
    Action,
    Adopt,
    AwaitImage,
    Call,
    Context,
    End,
    Fail,
    ImageOnHost,
    Lost,
    Place,
    Rehome,
    Release,
    Retry,
    Settle,
)
from treadle.compute.model import (
    SETTLED,
    Goal,
    Instance,
    Mode,
    Phase,
    State,
    is_settled,
)
from treadle.compute.store import Loaded, Step
from treadle.controller import queue
from treadle.controller.queue import FAR_S, Ticket
from treadle.controller.worker import backoff, end_pass
from treadle.db.engine import Database
from treadle.errors import RetryLater, TreadleError
from treadle.hypervisor.base import (
    NOT_BY_HOST,
    AtNextStart,
    Domain,
    DomainSpec,
    HostFull,
    HostUnreachable,
    Seed,
)
from treadle.placement import ledger
from treadle.placement.board import Board
from treadle.placement.ledger import HostStatus, ImageState
from treadle.scheduler.plugin import PluginError
from treadle.scheduler.record import Decision

Following = tuple[Ticket, Loaded | None] | None
"""The next pass, where one follows at once: its ticket, and the row where it is at hand."""

MOVE_POLL_S = 5.0
SHUT_DOWN_POLL_S = 1.0
IMAGE_POLL_S = 5.0
NO_EFFECT_S = 5.0
FRESH_S = 0.5
"""How long a pass that waits for its lane may go by the row that the one before has left it."""
MAY_BE_THE_LAST = frozenset({
    "start", "restart", "pause", "resume", "suspend", "power_off", "autostart", "grow", "plug",
})


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds, and how many hosts a build may try.

    `reclaim_s`: how long a soft-deleted instance is kept. `confirm_s`: after how long a resize is
    confirmed (0: never), `offload_s`: a shelved instance is taken off its host (-1: never).
    `adopt_drift`: what somebody else did with a domain is taken as what is wanted. `evacuates`:
    instances that say nothing of it are evacuated when their host fails.
    """

    lease_s: float = 30.0
    build_deadline_s: float = 300.0
    max_attempts: int = 3
    reclaim_s: float = 0.0
    confirm_s: float = 0.0
    offload_s: float = 0.0
    adopt_drift: bool = False
    evacuates: bool = False

    def lasts(self, mode: Mode) -> float | None:
        """After how many seconds the mode ends by itself; None: never."""
        match mode:
            case Mode.SOFT_DELETED:
                return self.reclaim_s
            case Mode.RESIZED:
                return self.confirm_s or None
            case Mode.SHELVED:
                return self.offload_s if self.offload_s >= 0 else None
            case _:
                return None


def hostname_of(name: str) -> str:
    """An instance's name as a host name (RFC 1123): no underscores."""
    return name.replace("_", "-")


def spec_of(loaded: Loaded, cloud_id: str, evacuates: bool) -> DomainSpec:
    """What its host needs to define the instance. `evacuates` as in `Timing`."""
    instance = loaded.instance
    metadata = {"cloud": cloud_id, "id": str(instance.id), "name": instance.name}
    if lifecycle.evacuates(instance, evacuates):
        metadata[NOT_BY_HOST] = "evacuate"
    elif loaded.shared:
        metadata[NOT_BY_HOST] = "shared"
    return DomainSpec(
        uuid=instance.uuid, name=instance.name, generation=instance.generation,
        vcpus=instance.vcpus, memory_mib=instance.memory_mib, disk_gib=instance.disk_gib,
        mac=instance.mac, image=loaded.image,
        seed=Seed(
            hostname_of(instance.hostname or instance.name), instance.user_data,
            instance.ssh_keys, injected.of(instance.files),
        ),
        metadata=metadata,
        disks=instance.disks, rescue=loaded.rescue, rescue_on=loaded.rescue_on,
        most=instance.most,
        nodes=placing.nodes_of(loaded),
    )


class InstanceHandler:
    """Makes passes over instances."""

    def __init__(
        self, database: Database, fleet: Fleet, board: Board, timing: Timing, cloud_id: str
    ) -> None:
        self._db = database
        self._fleet = fleet
        self._timing = timing
        self._cloud_id = cloud_id
        self._board = board

    def run(self, ticket: Ticket) -> Ticket | None:
        """Make passes while the next one follows at once and stays on the same lane."""
        lane = ticket.lane
        done: set[str] = set()
        read_at, row = ticket.row or (0.0, None)
        if row is None or time.monotonic() - read_at > FRESH_S:
            row = self._db.read(lambda conn: store.load(conn, ticket.id))
        following: Following = ticket, row
        while following is not None:
            ticket, loaded = following
            if ticket.lane != lane:
                return ticket
            following = self._pass(ticket, loaded, done)
        return None

    def _pass(self, ticket: Ticket, loaded: Loaded | None, done: set[str]) -> Following:
        """One pass. `done`: the verbs that this run has called; each is called once in it."""
        if loaded is None:
            self._db.write(lambda conn: queue.remove(conn, ticket))
            return None
        if loaded.moving is not None:
            # It is the move's until that has ended, which wakes this row; here, wake the move.
            move = str(loaded.moving)
            end_pass(self._db, ticket, lambda conn: wake_move(conn, move), delay=MOVE_POLL_S)
            return None
        context = self._context(loaded, ticket)
        # What was hinted at until now is about to be seen.
        ticket.lease.hinted = False
        seen, trouble = self._observe(loaded)
        if trouble:
            context = replace(context, last_error=trouble)
        if seen is Lost.HOST and loaded.instance.goal in lifecycle.GONE:
            context = replace(context, host_off=self._is_off(loaded.instance.host_id))
        action = lifecycle.plan(loaded.instance, seen, context)
        if isinstance(action, Call):
            if action.verb in done:
                # A guest that dies as soon as it is started, for one: not as fast as we can.
                end_pass(
                    self._db, ticket, delay=NO_EFFECT_S, error=f"{action.verb} has had no effect"
                )
                return None
            done.add(action.verb)
        return self._carry_out(ticket, loaded, action, seen, context)

    def _context(self, loaded: Loaded, ticket: Ticket) -> Context:
        image, trouble = images_on_host(loaded)
        return Context(
            image=image,
            late=loaded.now > loaded.instance.deadline,
            tries=ticket.tries,
            max_attempts=self._timing.max_attempts,
            last_error=trouble or loaded.instance.fault or "",
            ended=loaded.instance.ends_at is not None and loaded.now >= loaded.instance.ends_at,
            adopt_drift=self._timing.adopt_drift, evacuates=self._timing.evacuates,
            shared=loaded.shared,
        )

    def _observe(self, loaded: Loaded) -> tuple[Domain | Lost | None, str]:
        """What the host shows, and what went wrong in asking it."""
        host_id, uri = loaded.instance.host_id, loaded.host_uri
        if host_id is None or uri is None:
            return None, ""
        if loaded.host_status is HostStatus.DOWN:
            # Known not to answer: its own pass asks it again, so this lane is not held up.
            return Lost.HOST, f"{loaded.host_name} is down"
        try:
            seen: Domain | None = call(
                self._fleet.driver(host_id, uri), "observe", loaded.instance.uuid
            )
        except HostUnreachable as error:
            self._db.write(lambda conn: queue.wake(conn, HOST_KIND, [str(host_id)]))
            return Lost.HOST, str(error)
        return seen, ""

    def _is_off(self, host_id: int | None) -> bool:
        host = self._db.read(lambda conn: ledger.get_host(conn, host_id or 0))
        return host is not None and host.status is not HostStatus.UP and host.said_off

    # -- what the plan says

    def _carry_out(
        self, ticket: Ticket, loaded: Loaded, action: Action, seen: Domain | Lost | None,
        context: Context,
    ) -> Following:
        match action:
            case Place():
                return self._place(ticket, loaded, context)
            case Call(verb):
                return self._call(ticket, loaded, verb, seen, context)
            case AwaitImage():
                return self._await_image(ticket, loaded, seen)
            case Release(again):
                return self._go_on(
                    ticket, lambda conn: outcomes.release(conn, loaded.instance, again=again),
                    lane=0,
                )
            case Settle(state):
                return self._settle(ticket, loaded, state, seen)
            case Adopt(state, reason):
                return self._adopt(ticket, loaded, state, reason, seen)
            case End():
                return self._go_on(
                    ticket, lambda conn: outcomes.end_mode(conn, loaded.instance)
                )
            case Rehome(reason):
                return self._rehome(ticket, loaded, reason)
            case Fail(reason):
                return self._fail(ticket, loaded, reason)
            case Retry(reason):
                return self._retry(ticket, reason)

    def _go_on(
        self, ticket: Ticket, change: Callable[[sa.Connection], None], *,
        lane: int | None = None, durable: bool = True,
    ) -> Following:
        """Commit, and begin the next pass with the row as this commit leaves it. `durable` as for
        `end_pass`."""

        def commit(conn: sa.Connection) -> Following:
            following = queue.carry(
                conn, ticket, self._timing.lease_s, lane=ticket.lane if lane is None else lane
            )
            change(conn)
            return following, store.load(conn, ticket.id)

        return self._db.write(commit, durable=durable)

    # -- placing

    def _place(self, ticket: Ticket, loaded: Loaded, context: Context) -> Following:
        instance, room = loaded.instance, placing.room_of(loaded)
        started = time.time()

        def ask(conn: sa.Connection) -> placing.Asked:
            return placing.Asked(placing.request_of(
                conn, instance, room, with_flavors=self._board.scheduler.wants_flavors,
            ), room)

        def claim(conn: sa.Connection, host_id: int, room: ledger.Room) -> bool:
            return ledger.claim(conn, host_id, instance.id, room)

        def commit(conn: sa.Connection, offer: placing.Offer) -> Following:
            host_id = offer.take(conn, instance, claim)
            if host_id is None:
                return None
            following = queue.carry(conn, ticket, self._timing.lease_s, lane=host_id)
            store.update(
                conn, instance.id, host_id=host_id, phase=Phase.PLACED,
                attempts=instance.attempts + 1,
            )
            store.record_decision(conn, instance.id, host_id, offer.record.to_dict())
            store.log_step(conn, instance.id, instance.revision, Step(
                "place", host_id, started, time.time(), "ok",
            ))
            row = store.load(conn, instance.uuid)
            return replace(following, row=(time.monotonic(), row)), row

        if self._board.batches.wanted and placing.is_first(instance):
            self._board.plan(instance.batch, lambda: self._db.read(lambda conn: placing.batch_of(
                conn, instance.batch, with_flavors=self._board.scheduler.wants_flavors,
            )))
        try:
            placed = placing.place(self._db, self._board, instance.uuid, ask, commit)
        except PluginError as error:
            return self._fail(ticket, loaded, str(error))
        if placed is None:
            return self._retry(ticket, "others are taking the room at this moment")
        if not isinstance(placed, placing.NoRoom):
            return placed
        if placed.unknown and not context.late:
            return self._retry(ticket, "some hosts have not been reached yet")
        reason = placed.reason
        if instance.fault:
            reason += f" (before that: {instance.fault})"
        return self._fail(ticket, loaded, reason, placed.record)

    # -- acting

    def _call(
        self, ticket: Ticket, loaded: Loaded, verb: str, seen: Domain | Lost | None,
        context: Context,
    ) -> Following:
        instance = loaded.instance
        assert instance.host_id is not None
        assert loaded.host_uri is not None
        queue.hold_lease(ticket)
        started = time.time()
        try:
            driver = self._fleet.driver(instance.host_id, loaded.host_uri)
            if verb in ("define", "restart", "grow", "plug"):
                spec = spec_of(loaded, self._cloud_id, self._timing.evacuates)
                call(driver, verb, spec)
            elif verb == "autostart":
                on = lifecycle.host_starts(instance, context.evacuates, context.shared)
                call(driver, verb, instance.uuid, on)
            else:
                call(driver, verb, instance.uuid)
        except TreadleError as error:
            step = Step(verb, instance.host_id, started, time.time(), "error", str(error))
            if verb == "grow" and not isinstance(error, RetryLater | HostFull):
                return self._start_anew(ticket, instance, step)
            if isinstance(error, AtNextStart):
                return self._go_on(ticket, lambda conn: store.log_step(
                    conn, instance.id, instance.revision, step
                ))
            after = lifecycle.after_error(instance, seen, error, context)
            if verb == "plug" and isinstance(after, Adopt) and instance.fault is None:
                return self._take_back(ticket, instance, step)
            return self._after_error(ticket, loaded, after, step, seen, context)
        step = Step(verb, instance.host_id, started, time.time(), "ok")
        changed = self._effect(instance, verb, loaded.now)

        def change(conn: sa.Connection) -> None:
            store.log_step(conn, instance.id, instance.revision, step)
            if changed:
                store.update(conn, instance.id, **changed)

        if verb == "shut_down":
            end_pass(self._db, ticket, change, delay=SHUT_DOWN_POLL_S, durable=False)
            return None
        off_for_a_start = verb == "power_off" and instance.goal is Goal.RUNNING
        if verb in MAY_BE_THE_LAST and not off_for_a_start:
            # One more look before the commit: where all is as wanted, the same commit says so.
            ticket.lease.hinted = False
            acted = replace(loaded, instance=replace(instance, **changed))
            shown, _ = self._observe(acted)
            following = lifecycle.plan(acted.instance, shown, context)
            if isinstance(following, Settle):
                return self._settle(ticket, acted, following.state, shown, change)
        # No look at the host tells the time that it was given anew.
        return self._go_on(ticket, change, durable="deadline" in changed)

    def _start_anew(self, ticket: Ticket, instance: Instance, step: Step) -> Following:
        """What runs cannot be given what it is to have: its next start gives it that."""

        def change(conn: sa.Connection) -> None:
            store.log_step(conn, instance.id, instance.revision, step)
            current = store.get(conn, instance.id)
            if current is not None and current.revision == instance.revision:
                store.update(conn, instance.id, generation=instance.generation + 1)

        return self._go_on(ticket, change)

    def _take_back(self, ticket: Ticket, instance: Instance, step: Step) -> Following:
        """What its host may have been told of its card is undone under a newer number."""

        def change(conn: sa.Connection) -> None:
            store.log_step(conn, instance.id, instance.revision, step)
            outcomes.take_back(conn, instance, step.message or "")

        end_pass(self._db, ticket, change, delay=0.0)
        return None

    def _effect(self, instance: Instance, verb: str, now: float) -> Mapping[str, Any]:
        """What a verb that has succeeded changes in the row."""
        if verb in ("define", "restart") and instance.phase is not Phase.DEFINED:
            return {"phase": Phase.DEFINED}
        again = instance.goal is Goal.RUNNING and instance.state is not State.BUILDING
        if again and verb in ("power_off", "define"):
            # The patience was for the guest's own shutdown; starting it again has its own.
            return {"deadline": now + self._timing.build_deadline_s}
        return {}

    def _after_error(
        self, ticket: Ticket, loaded: Loaded, after: Action, step: Step,
        seen: Domain | Lost | None, context: Context,
    ) -> Following:
        instance = loaded.instance
        message = step.message or ""
        if isinstance(after, Retry):
            def note(conn: sa.Connection) -> None:
                if ticket.tries == 0:
                    store.log_step(conn, instance.id, instance.revision, step)
                queue.wake(conn, HOST_KIND, [str(instance.host_id)])

            end_pass(self._db, ticket, note, delay=backoff(ticket.tries), error=message)
            return None
        following = self._go_on(
            ticket, lambda conn: store.log_step(conn, instance.id, instance.revision, step)
        )
        if following is None:
            return None
        # What was woken since the row was read is not covered by what `after` does.
        again = replace(following[0], wake=ticket.wake)
        return self._carry_out(again, loaded, after, seen, context)

    def _await_image(
        self, ticket: Ticket, loaded: Loaded, seen: Domain | Lost | None
    ) -> Following:
        instance, host_id = loaded.instance, loaded.instance.host_id
        assert host_id is not None
        missing = [
            image for image, state in ((loaded.image, loaded.image_on_host),
                                       (loaded.rescue, loaded.rescue_on_host))
            if image is not None and state in (None, ImageState.EVICTING)
        ]

        def commit(conn: sa.Connection) -> bool:
            for image in missing:
                size_mib = placing.mib(image.size_bytes)
                if not ledger.want_image(conn, host_id, image.sha256, size_mib):
                    return False
                enqueue_image(conn, host_id, image.sha256)
            queue.finish(conn, ticket, delay=IMAGE_POLL_S)
            return True

        if self._db.write(commit):
            return None
        reason = "there is no room for its image on its host"
        if isinstance(seen, Domain) and not lifecycle.new_here(instance):
            return self._adopt(ticket, loaded, lifecycle.STATE_OF[seen.power], reason, seen)
        return self._rehome(ticket, loaded, reason)

    # -- ends

    def _settle(
        self, ticket: Ticket, loaded: Loaded, state: State, seen: Domain | Lost | None,
        first: Callable[[sa.Connection], None] | None = None,
    ) -> Following:
        """It is as wanted; `first` is what the act that led to it changes in the same commit."""
        instance = loaded.instance
        values = outcomes.settled(loaded, state, seen, self._timing.lasts)

        def change(conn: sa.Connection) -> None:
            if first is not None:
                first(conn)
            outcomes.settle(conn, instance, state, values)

        if state is State.ERROR:
            # A wish that came meanwhile, a delete for one, woke the row: it is kept for that.
            end_pass(self._db, ticket, change, delay=FAR_S)
        elif state is State.DELETED:
            def end(conn: sa.Connection) -> None:
                queue.remove(conn, ticket)
                change(conn)

            self._db.write(end)
        else:
            something = values or first is not None or outcomes.may_be_open(instance)
            delay = outcomes.look_again(loaded, state, values)
            end_pass(
                self._db, ticket, change if something else None, delay=delay, durable=False,
            )
        return None

    def _adopt(
        self, ticket: Ticket, loaded: Loaded, state: State, reason: str,
        seen: Domain | Lost | None,
    ) -> Following:
        instance = loaded.instance
        wanted = lifecycle.host_starts(
            replace(instance, goal=SETTLED[state]), self._timing.evacuates, loaded.shared
        )
        differs = isinstance(seen, Domain) and (
            lifecycle.autostart_differs(wanted, seen)
            # Its host has been told of what is given up here, and is told once of what is not.
            or (seen.stored not in (0, seen.generation) and not is_settled(instance))
        )
        end_pass(
            self._db, ticket, lambda conn: outcomes.adopt(conn, instance, state, reason, seen),
            delay=0.0 if differs else FAR_S,
        )
        return None

    def _rehome(self, ticket: Ticket, loaded: Loaded, reason: str) -> Following:
        instance = loaded.instance
        return self._go_on(ticket, lambda conn: store.update(
            conn, instance.id, phase=Phase.LEAVING, fault=reason,
        ))

    def _fail(
        self, ticket: Ticket, loaded: Loaded, reason: str, record: Decision | None = None
    ) -> Following:
        return self._go_on(
            ticket, lambda conn: outcomes.fail(conn, loaded.instance, reason, record)
        )

    def _retry(self, ticket: Ticket, reason: str) -> Following:
        end_pass(self._db, ticket, delay=backoff(ticket.tries), error=reason)
        return None


def images_on_host(loaded: Loaded) -> tuple[ImageOnHost, str]:
    """Where the images stand that the instance needs, the worse of two; and what is wrong."""
    stands = [(loaded.image_on_host, loaded.image_error)]
    if loaded.rescue is not None:
        stands.append((loaded.rescue_on_host, loaded.rescue_error))
    for state, means in (
        (ImageState.BROKEN, ImageOnHost.BROKEN), (ImageState.REFUSED, ImageOnHost.REFUSED),
    ):
        for stand, error in stands:
            if stand is state:
                return means, error or ""
    ready = all(stand is ImageState.READY for stand, _ in stands)
    return (ImageOnHost.READY if ready else ImageOnHost.PENDING), ""
