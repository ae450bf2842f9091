"""The hosts in memory, for ranking: what the database says, and what is about to be claimed.

Each placement is ranked on what the ones before it have taken, also on those whose claim is not
durable yet: a placement *holds* the room on the host that it likes best until its transaction is
over. The board is never the judge: the claim in the database is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from treadle.db.engine import Database
from treadle.placement import ledger
from treadle.placement.batches import Batches
from treadle.placement.ledger import Room
from treadle.placement.lifetimes import ENDED, Lifetimes
from treadle.placement.views import snapshot
from treadle.scheduler import nodes
from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import Ranking
from treadle.scheduler.record import Decision
from treadle.scheduler.table import HostTable

REREAD_S = 1.0
"""How old the whole may be where other processes write too."""
PLAN_S = 30.0
"""How long room is held for an instance that was placed with others and is not ranked."""
REREAD_SHARE = 0.05
"""How much of the time reading the whole may take at most."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """An order of hosts. `exact`: ranked on all that the database says, and on no held room.
    `room`: what was asked for, with when it is expected to end where the policy goes by that."""

    ranking: Ranking
    record: Decision
    exact: bool
    unknown: bool
    """Whether some hosts have not been reached yet."""
    room: Room


class Board:
    """One for all that place, ranked by one scheduler. Safe to use from several threads; they are
    ranked one after the other."""

    def __init__(
        self, database: Database, scheduler: Scheduler, batch_limit_s: float = 0.0
    ) -> None:
        """`batch_limit_s` as in `Batches`."""
        self._db = database
        self.batches = Batches(scheduler, batch_limit_s)
        self._planned: dict[str, tuple[int, float]] = {}
        self.scheduler = scheduler
        self._views: dict[int, HostView] = {}
        self._table = HostTable()
        self._ranking = threading.Lock()
        # Only for the three below, and never held while anything is waited for.
        self._notes = threading.Lock()
        self._held: dict[str, tuple[int, Room]] = {}
        self._changed: set[int] = set()
        self._ended: set[int] = set()
        self._lifetimes = Lifetimes(database, scheduler) if scheduler.goes_by_lifetimes else None
        self._read_at: float | None = None
        self._reading_took = 0.0
        database.watch(self._committed)

    def rank(
        self, request: PlacementRequest, room: Room, *, anew: bool = False
    ) -> Outlook:
        """Rank, and hold the room on the first host until the claim is durable or `let_go`.

        `anew`: read all hosts first. Errors: `PluginError`, `DatabaseBusy`.
        """
        with self._ranking:
            whole = self._refresh(anew)
            first = self._called_for(request.instance_id)
            ranking, record = self.scheduler.rank(self._table.columns(), request, first=first)
            exact = whole and not self._held
            unknown = not len(ranking) and any(
                view.state == ledger.HostStatus.NEW for view in self._table.columns()
            )
            if self._lifetimes is not None:
                room = replace(room, ends_at=self._lifetimes.expects(request))
            if len(ranking):
                host = int(ranking.ids[0])
                with self._notes:
                    self._held[request.instance_id] = host, room
                self._put(host)
        return Outlook(ranking, record, exact, unknown, room)

    def plan(
        self, batch: str, ask: Callable[[], Sequence[tuple[PlacementRequest, Room]]]
    ) -> None:
        """Have the hosts of a batch's instances chosen together, once, where the policy can: the
        room is held for each until it is ranked, which then begins with that host.

        `ask` gives what they need. It ends within `limit_s`, and where nothing has come of it by
        then they are ranked one by one, as they are when the batch is too large. Errors:
        `DatabaseBusy`.
        """
        plan = self.batches.plan_of(batch)
        if plan is None:
            return
        try:
            wanted = ask()
            chosen = self.batches.solve(self.look(), [request for request, _ in wanted])
            with self._ranking:
                for (request, room), host in zip(wanted, chosen, strict=False):
                    if host is not None:
                        with self._notes:
                            self._held[request.instance_id] = host, room
                        self._planned[request.instance_id] = host, time.monotonic()
                        self._put(host)
        finally:
            plan.set()

    def _called_for(self, instance: str) -> int | None:
        """The host that was chosen for the instance with others; its room is held no more."""
        for one, (_, since) in list(self._planned.items()):
            if one == instance or time.monotonic() - since > PLAN_S:
                host, _ = self._planned.pop(one)
                with self._notes:
                    self._held.pop(one, None)
                self._put(host)
                if one == instance:
                    return host
        return None

    def look(self) -> HostColumns:
        """The hosts as the next placement will find them. Errors: `DatabaseBusy`."""
        with self._ranking:
            self._refresh(anew=False)
            return self._table.columns()

    def let_go(self, instance: str) -> None:
        """The claim did not come about: the room held for the instance's UUID is free."""
        with self._notes:
            held = self._held.pop(instance, None)
            if held is not None:
                self._changed.add(held[0])

    def _committed(self, noted: Mapping[str, set[int | str]]) -> None:
        # Both at once: what is claimed is seen either as held or as taken.
        with self._notes:
            for instance in noted.get(ledger.PLACED, ()):
                self._held.pop(str(instance), None)
            self._changed.update(map(int, noted.get(ledger.CHANGED, ())))
            if self._lifetimes is not None:
                self._ended.update(map(int, noted.get(ENDED, ())))

    def _refresh(self, anew: bool) -> bool:
        """Read what has changed, or everything (then True)."""
        began = time.monotonic()
        ends = self._lifetimes is not None
        if anew or self._is_old(began):
            with self._notes:
                self._changed.clear()
                self._ended.clear()
            if self._lifetimes is not None:
                self._lifetimes.learn(None)
            found = self._db.read(lambda conn: snapshot(conn, ends=ends))
            views = {view.id: view for view in found}
            self._views = views
            self._table = HostTable(views.values())
            for host in {host for host, _ in list(self._held.values())}:
                self._put(host)
            self._read_at = time.monotonic()
            self._reading_took = self._read_at - began
            return True
        with self._notes:
            changed, self._changed = self._changed, set()
            ended, self._ended = self._ended, set()
        if ended and self._lifetimes is not None:
            self._lifetimes.learn(ended)
        if changed:
            read = self._db.read(lambda conn: snapshot(conn, changed, ends=ends))
            now = {view.id: view for view in read}
            for host in changed:
                if host in now:
                    self._views[host] = now[host]
                    self._put(host)
                else:
                    self._views.pop(host, None)
                    self._table.drop(host)
        return False

    def _is_old(self, now: float) -> bool:
        """Whether what other processes did may be missing for too long."""
        if self._read_at is None:
            return True
        return now - self._read_at > max(REREAD_S, self._reading_took / REREAD_SHARE)

    def _put(self, host: int) -> None:
        """Show the host as the database has it, less what is held."""
        view = self._views.get(host)
        if view is None:
            return
        with self._notes:
            rooms = [room for on, room in self._held.values() if on == host]
        for room in rooms:
            view = _taken(view, room)
        self._table.put(view)


def _taken(view: HostView, room: Room) -> HostView:
    image_mib = 0 if room.sha256 in view.images else room.image_mib
    return replace(
        view,
        vcpus_used=view.vcpus_used + room.vcpus,
        memory_used_mib=view.memory_used_mib + room.memory_mib,
        disk_used_mib=view.disk_used_mib + room.disk_mib + image_mib,
        instances=view.instances + 1,
        images=view.images | {room.sha256},
        numa=nodes.without(view.numa, room.nodes, room.vcpus, room.memory_mib),
        busy_until=max(view.busy_until, room.ends_at or 0.0),
    )
