"""One pass over a host, and over an image on a host.

The host's pass is the periodic comparison that events only hasten: does it answer, what is it,
does it hold what the rows say, and does it hold anything that it should not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
import structlog

from treadle.compute import lifecycle, store
from treadle.compute.failure import actions as failed
from treadle.compute.fleet import Fleet, call
from treadle.compute.kinds import (
    HOST_KIND,
    IMAGE_KIND,
    KIND,
    MOVE_KIND,
    SNAPSHOT_KIND,
    bulk_lane,
    enqueue_image,
    image_work_id,
)
from treadle.compute.model import Instance, State
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import RUNS
from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.signals import Key, Signals
from treadle.controller.worker import backoff
from treadle.db.clock import now
from treadle.db.engine import Database
from treadle.db.schema import image, orphan
from treadle.errors import TreadleError
from treadle.hypervisor.base import (
    Domain,
    EventKind,
    HostFacts,
    HostRefused,
    HostSetup,
    Hypervisor,
    ImageBroken,
    ImageSpec,
    Probes,
)
from treadle.image.contents import Contents
from treadle.placement import ledger, storages
from treadle.placement.ledger import Fence, Host, HostStatus, ImageState

log = structlog.get_logger("treadle.hosts")

DOWN_POLL_S = 15.0
OFF_POLL_S = 3.0
"""How often one is asked that was switched off: what it starts by itself when it is back may run
elsewhere, and is ended then."""
AGAIN_S = 0.5
PROBE_S = 3.0


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What every host is set up with; `setup.virt_type` "auto" means: find out by booting.

    `guest_pool` is a network in CIDR form; host N has the Nth /24 of it.
    `evacuates` as in `reconciler.Timing`.
    """

    setup: HostSetup
    guest_pool: str = "10.64.0.0/12"
    resync_s: float = 30.0
    image_share: float = 0.25
    evacuates: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What a pass has removed from a host; `whole`: all that it found."""

    uuids: frozenset[str]
    whole: bool


def subnet_of(pool: str, host_id: int) -> str:
    """The host's own /24 of the guests' network. Errors: `HostRefused` where there is none left."""
    network = ip_network(pool)
    count = network.num_addresses // 256
    if host_id >= count:
        raise HostRefused(f"the guest network {pool} has room for {count - 1} hosts: set a larger")
    return f"{network.network_address + 256 * host_id}/24"


def setup_of(policy: HostPolicy, host: Host) -> HostSetup:
    """What the host is set up with, as far as it is known. Errors: those of `subnet_of`."""
    virt_type = policy.setup.virt_type
    return replace(
        policy.setup, subnet=subnet_of(policy.guest_pool, host.id),
        virt_type=host.virt_type if virt_type == "auto" else virt_type,
    )


class HostHandler:
    """Makes passes over hosts."""

    def __init__(
        self, database: Database, fleet: Fleet, signals: Signals, policy: HostPolicy
    ) -> None:
        self._db = database
        self._fleet = fleet
        self._signals = signals
        self._policy = policy
        self._prepared: dict[int, str] = {}
        self.hint: Callable[[Key], None] = lambda _key: None
        """Told of every event; the composition root sets it to the engine's."""

    def run(self, ticket: Ticket) -> Ticket | None:
        """Ask the host, compare, and put in order."""
        host_id = int(ticket.id)
        host = self._db.read(lambda conn: ledger.get_host(conn, host_id))
        if host is None:
            self._db.write(lambda conn: queue.remove(conn, ticket))
            self._fleet.drop(host_id)
            return None
        try:
            driver = self._fleet.driver(host.id, host.uri)
            virt_type = self._prepare(host, driver)
            facts: HostFacts = call(driver, "facts")
            self._alone(host, facts)
            domains: Sequence[Domain] = call(driver, "observe_all")
        except TreadleError as error:
            self._down(ticket, host, error)
            return None
        swept = self._sweep(ticket, driver, host, domains)
        if host.said_off and not swept.whole:
            # It may run what runs elsewhere by now: it is not used before that is gone.
            self._down(ticket, host, HostRefused("what was evacuated from it is still there"))
            return None
        self._up(ticket, host, facts, virt_type, domains, swept)
        return None

    # -- reaching it

    def _prepare(self, host: Host, driver: Hypervisor) -> str:
        if host.status is HostStatus.UP and self._prepared.get(host.id) == host.uri:
            return host.virt_type
        self._prepared.pop(host.id, None)
        setup = setup_of(self._policy, host)
        virt_type = setup.virt_type
        driver.watch(self._watcher(host.id))
        call(driver, "prepare", setup)
        if virt_type == "auto":
            virt_type = self._probe(driver, host)
            call(driver, "prepare", replace(setup, virt_type=virt_type))
        self._prepared[host.id] = host.uri
        return virt_type

    def _alone(self, host: Host, facts: HostFacts) -> None:
        """Errors: `HostRefused` where another row is this machine: each would take the other's
        guests for leftovers."""
        if host.status is HostStatus.UP:
            return
        twin = self._db.read(lambda conn: ledger.twin_of(conn, host.id, facts.host_uuid))
        if twin is not None:
            raise HostRefused(
                f"it is the same machine as host {twin} (host UUID {facts.host_uuid}): remove one "
                "of them, or give each machine a host_uuid of its own in libvirtd.conf"
            )

    @staticmethod
    def _probe(driver: Hypervisor, host: Host) -> str:
        """The best type of guest that boots: a host may offer kvm under which guests hang."""
        offered = call(driver, "facts").virt_types
        best: str = offered[0] if offered else "qemu"
        if best != "kvm" or not isinstance(driver, Probes):
            return best
        if call(driver, "probe", "kvm", PROBE_S):
            return "kvm"
        log.warning("kvm_does_not_boot", host=host.name, using="qemu")
        return "qemu" if "qemu" in offered else best

    def _watcher(self, host_id: int) -> Any:
        def watcher(kind: EventKind, uuid: str) -> None:
            if kind is EventKind.DOMAIN:
                self.hint((KIND, uuid))
            else:
                # It may come back as another than it was: its next pass prepares it anew.
                self._prepared.pop(host_id, None)
                self.hint((HOST_KIND, str(host_id)))

        return watcher

    # -- what the pass found

    def _down(self, ticket: Ticket, host: Host, error: TreadleError) -> None:
        self._prepared.pop(host.id, None)

        def commit(conn: sa.Connection) -> bool:
            most = OFF_POLL_S if host.said_off else DOWN_POLL_S
            delay = min(most, backoff(ticket.tries, first=0.5))
            queue.finish(conn, ticket, delay=delay, error=str(error))
            fresh = ledger.set_down(conn, host.id, str(error))
            if fresh:
                queue.wake(conn, KIND, store.building_on(conn, host.id))
            current = ledger.get_host(conn, host.id)
            if current is not None and current.fence is Fence.OFF:
                # Those that could not be asked for when it was switched off.
                failed.evacuate_host(
                    conn, host.id, evacuates=self._policy.evacuates,
                    request_id=f"req-{uuid4()}",
                )
            return fresh

        if self._db.write(commit):
            log.warning("host_down", host=host.name, reason=str(error))

    def _up(
        self, ticket: Ticket, host: Host, facts: HostFacts, virt_type: str,
        domains: Sequence[Domain], swept: Swept,
    ) -> None:
        def commit(conn: sa.Connection) -> None:
            strangers = leftovers(conn, host.id, domains) - swept.uuids
            # One that was given to another host since the sweep is removed at once.
            again = AGAIN_S if strangers and swept.whole else self._policy.resync_s
            queue.finish(conn, ticket, delay=again)
            ledger.set_up(conn, host.id, facts, virt_type)
            self._among_others(conn, host, facts)
            rows = {row.uuid: row for row in store.on_host(conn, host.id)}
            if host.status is HostStatus.UP:
                queue.wake(conn, KIND, drifted(
                    rows, domains, self._policy.evacuates, bool(facts.storage_others)
                ))
            else:
                queue.wake(conn, KIND, list(rows))
                for sha256 in ledger.doubt_images(conn, host.id):
                    # Made anew meanwhile, it has none of them.
                    enqueue_image(conn, host.id, sha256)
            for domain in domains:
                row = rows.get(domain.uuid)
                if domain.copied and row is not None and row.snapshot_image_id is None:
                    queue.enqueue(conn, SNAPSHOT_KIND, row.uuid, lane=bulk_lane(host.id))
            kept = moves.kept_at(conn, host.id)
            for domain in domains:
                if domain.uuid in kept and (domain.autostart or domain.power in RUNS):
                    # It must stay off: there is another.
                    queue.wake(conn, MOVE_KIND, [str(kept[domain.uuid])])
            conn.execute(sa.delete(orphan).where(orphan.c.host_id == host.id))
            for domain in domains:
                if domain.uuid not in rows.keys() | kept.keys() | strangers | swept.uuids:
                    conn.execute(sa.insert(orphan).values(
                        host_id=host.id, uuid=domain.uuid, power=domain.power, seen_at=now(),
                    ))

        self._db.write(commit)
        self._signals.work_is_due()
        if host.status is not HostStatus.UP:
            log.info("host_up", host=host.name, virt_type=virt_type)

    def _among_others(self, conn: sa.Connection, host: Host, facts: HostFacts) -> None:
        """What follows from whom it has seen in its storage."""
        before = frozenset() if host.facts is None else storages.seen_by(host.facts)
        if before != storages.seen_by(facts):
            # The work on an image has another number now.
            for sha256 in ledger.images_under_way(conn, host.id):
                enqueue_image(conn, host.id, sha256)
        storages.level(conn, host.id)
        for other in storages.unmet(conn, host.id, facts):
            self._prepared.pop(other, None)
            queue.wake(conn, HOST_KIND, [str(other)])

    def _sweep(
        self, ticket: Ticket, driver: Hypervisor, host: Host, domains: Sequence[Domain]
    ) -> Swept:
        """Remove what an instance left behind here when it was placed elsewhere or deleted.

        Before the commit that ends the pass, so that all of it is done under the lease.
        """
        done: set[str] = set()
        for uuid in sorted(self._db.read(lambda conn: leftovers(conn, host.id, domains))):
            if ticket.lease.time_left() < queue.MARGIN_S:
                return Swept(frozenset(done), whole=False)
            try:
                call(driver, "undefine", uuid)
            except TreadleError as error:
                log.warning("sweep_failed", host=host.name, uuid=uuid, reason=str(error))
                return Swept(frozenset(done), whole=False)
            done.add(uuid)
            log.info("swept", host=host.name, uuid=uuid)
        return Swept(frozenset(done), whole=True)


def drifted(
    rows: dict[str, Instance], domains: Sequence[Domain], evacuates: bool, shared: bool
) -> list[str]:
    """UUIDs of the settled instances that the host does not show as they should be. `shared`: other
    hosts see its storage."""
    seen = {domain.uuid: domain for domain in domains}
    found = []
    for uuid, row in rows.items():
        expected = lifecycle.expected_power(row)
        if expected is None:
            continue
        domain = seen.get(uuid)
        if (
            domain is None or domain.power is not expected or domain.generation < row.generation
            or not domain.defined or domain.changed or lifecycle.stored_differs(row, domain)
            or lifecycle.autostart_differs(lifecycle.host_starts(row, evacuates, shared), domain)
        ):
            found.append(uuid)
    return found


def leftovers(conn: sa.Connection, host_id: int, domains: Sequence[Domain]) -> set[str]:
    """UUIDs of the domains on the host that nobody wants there any more."""
    known = store.by_uuids(conn, [domain.uuid for domain in domains])
    for uuid in store.moving(conn) | moves.kept_at(conn, host_id).keys():
        known.pop(uuid, None)
    return {uuid for uuid, row in known.items() if row.host_id != host_id and is_leftover(row)}


def is_leftover(row: Instance) -> bool:
    """Whether a domain of this instance may be removed from a host that the row does not name.

    Not where the instance ran once and was then given up as lost: its disk may be the last copy.
    """
    kept = row.state in (State.DELETED, State.OFFLOADED)
    return kept or row.host_id is not None or row.launched_at is None


@dataclass(frozen=True, slots=True)
class _Task:
    """What is next of an image: the host, and whether it is wanted there. `alone`: no other host of
    its storage has it."""

    host: Host
    wanted: bool
    alone: bool


class HostImageHandler:
    """Makes passes over images on hosts: brings them there, or takes them off. Of the hosts that
    share a storage, under one row and so one at a time."""

    def __init__(
        self, database: Database, fleet: Fleet, signals: Signals, policy: HostPolicy,
        contents: Contents | None = None,
    ) -> None:
        """`contents` None: the files of images are on this machine."""
        self._db = database
        self._fleet = fleet
        self._signals = signals
        self._policy = policy
        self._contents = contents

    def run(self, ticket: Ticket) -> Ticket | None:
        """Bring the image to a host, or remove it there, as its row says."""
        host_text, _, sha256 = ticket.id.partition(":")
        keeper = int(host_text)

        def read(conn: sa.Connection) -> tuple[tuple[int, ...], bool, _Task | None, Any]:
            ids = storages.together(conn, keeper)
            # What was begun before they were known to share their storage.
            busy = len(ids) > 1 and any(
                queue.is_leased(conn, IMAGE_KIND, image_work_id(id, sha256))
                for id in ids if id != keeper
            )
            found = conn.execute(
                sa.select(image).where(image.c.sha256 == sha256)
                .order_by(image.c.path.is_(None), image.c.id).limit(1)
            ).one_or_none()
            return ids, busy, next_task(conn, ids, sha256), found

        ids, busy, task, row = self._db.read(read)
        if ids[0] != keeper or task is None or row is None:
            self._db.write(lambda conn: self._not_here(conn, ticket, ids[0], keeper, sha256))
            return None
        if busy:
            self._db.write(lambda conn: queue.finish(conn, ticket, delay=AGAIN_S))
            return None
        host, host_id = task.host, task.host.id
        queue.hold_lease(ticket)
        driver = self._fleet.driver(host.id, host.uri)
        if not task.wanted:
            try:
                if task.alone:
                    call(driver, "remove_image", sha256)
            except HostRefused as error:
                log.warning("image_kept", host=host.name, sha256=sha256, reason=str(error))
                self._db.write(lambda conn: self._kept(conn, ticket, host_id, sha256))
                return None
            self._db.write(lambda conn: self._evicted(conn, ticket, host_id, sha256))
            return None
        spec = ImageSpec(sha256, row.format, row.size_bytes, row.virtual_bytes)
        outcome, reason = ImageState.READY, None
        try:
            if row.path is None:
                raise ImageBroken("the image was deleted")
            path = Path(row.path)
            with self._contents.at_hand(path) if self._contents else nullcontext(path) as file:
                call(driver, "ensure_image", spec, file)
        except ImageBroken as error:
            outcome, reason = ImageState.BROKEN, str(error)
        except HostRefused as error:
            outcome, reason = ImageState.REFUSED, str(error)
        self._db.write(lambda conn: self._brought(conn, ticket, host_id, sha256, outcome, reason))
        self._signals.work_is_due()
        return None

    def _brought(
        self, conn: sa.Connection, ticket: Ticket, host_id: int, sha256: str, state: ImageState,
        reason: str | None,
    ) -> None:
        ledger.set_image(conn, host_id, sha256, state, reason)
        self._end(conn, ticket, sha256)
        queue.wake(conn, KIND, store.waiting_for_image(conn, host_id, sha256))
        queue.wake(conn, MOVE_KIND, moves.waiting(conn, host_id))
        for old in ledger.evict(conn, host_id, self._policy.image_share):
            enqueue_image(conn, host_id, old)

    @staticmethod
    def _kept(conn: sa.Connection, ticket: Ticket, host_id: int, sha256: str) -> None:
        ledger.set_image(conn, host_id, sha256, ImageState.READY)
        HostImageHandler._end(conn, ticket, sha256)
        queue.wake(conn, KIND, store.waiting_for_image(conn, host_id, sha256))

    @staticmethod
    def _evicted(conn: sa.Connection, ticket: Ticket, host_id: int, sha256: str) -> None:
        if ledger.image_state(conn, host_id, sha256) is ImageState.EVICTING:
            ledger.forget_image(conn, host_id, sha256)
        # Else wanted again meanwhile: the next pass brings it back.
        HostImageHandler._end(conn, ticket, sha256)

    @staticmethod
    def _end(conn: sa.Connection, ticket: Ticket, sha256: str) -> None:
        """End the pass, and the row where nothing more is to be done under it."""
        keeper = int(ticket.id.partition(":")[0])
        if next_task(conn, storages.together(conn, keeper), sha256) is None:
            queue.complete(conn, ticket)
        else:
            queue.finish(conn, ticket, delay=0.0)

    @staticmethod
    def _not_here(
        conn: sa.Connection, ticket: Ticket, keeper: int, was: int, sha256: str
    ) -> None:
        """Nothing is to be done under this row; under another, perhaps."""
        queue.complete(conn, ticket)
        if keeper != was:
            enqueue_image(conn, keeper, sha256)


def next_task(conn: sa.Connection, ids: Sequence[int], sha256: str) -> _Task | None:
    """What is next of the image on the hosts, which share their storage; None: nothing."""
    states = {id: ledger.image_state(conn, id, sha256) for id in ids}
    for state in (ImageState.WANTED, ImageState.EVICTING):
        hosts = [
            host for id in ids if states[id] is state
            and (host := ledger.get_host(conn, id)) is not None
        ]
        if hosts:
            best = min(hosts, key=lambda host: host.status is not HostStatus.UP)
            kept = {ImageState.WANTED, ImageState.READY} & {
                found for id, found in states.items() if id != best.id
            }
            return _Task(best, state is ImageState.WANTED, not kept)
    return None
