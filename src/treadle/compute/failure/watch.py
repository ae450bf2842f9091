"""Watches over all hosts: a sign of life of each every two seconds, and what follows without one.

The question goes over the connection that libvirt has anyway; only of a host that does not answer
it is anything else asked. Nothing here decides that a guest is started anywhere: the end of it is
one row, "this host is to be switched off".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from treadle.compute import store
from treadle.compute.failure import fencing
from treadle.compute.failure.verdict import ALIVE, Evidence, Patience, Verdict, judge
from treadle.compute.fleet import Fleet
from treadle.compute.kinds import HOST_KIND, KIND
from treadle.controller import queue
from treadle.controller.signals import Key, Signals
from treadle.db.engine import Database
from treadle.db.schema import host
from treadle.errors import TreadleError
from treadle.hypervisor.base import Beats, Reach
from treadle.placement import fences, ledger
from treadle.placement.ledger import Fence, HostStatus

log = structlog.get_logger("treadle.failure")

ANSWER_S = 2.0
PEER_S = 4.0
THREADS = 16
DEAD_ENDS = frozenset({Verdict.ASIDE, Verdict.CUT_OFF, Verdict.UNSEEN})

ReachHost = Callable[[str, float], Reach]
"""Tries the host of a URI from here, for some seconds."""
ReachFrom = Callable[[str, str, float], Reach]
"""Has the host of the first URI try that of the second."""


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """`fences`: whether there is anything that can switch a host off. Times in seconds."""

    patience: Patience = field(default_factory=Patience)
    beat_s: float = 2.0
    peers: int = 2
    fences: bool = False


@dataclass(frozen=True, slots=True)
class _Host:
    id: int
    uri: str
    name: str
    status: HostStatus
    enabled: bool
    fence: Fence


@dataclass(frozen=True, slots=True)
class _Sign:
    """What came of asking one host: whether libvirt answers, and the host's kernel."""

    libvirt: bool
    reach: Reach


class Watch:
    """One thread that looks at all hosts, a few that ask them."""

    def __init__(
        self, database: Database, fleet: Fleet, signals: Signals, policy: WatchPolicy,
        reach: ReachHost, reach_from: ReachFrom,
    ) -> None:
        self._db = database
        self._fleet = fleet
        self._signals = signals
        self._policy = policy
        self._reach = reach
        self._reach_from = reach_from
        self._heard: dict[int, float] = {}
        self._asked: dict[int, list[Future[Reach]]] = {}
        self.verdicts: Mapping[int, Verdict] = {}
        """Of the last look, by the host's number."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="watch")
        self.hint: Callable[[Key], None] = lambda _key: None
        """Told of one that has ceased to answer; the composition root sets it to the engine's."""

    def start(self) -> None:
        """Look until `stop`."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that is under way is waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(PEER_S + 2 * ANSWER_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stop.wait(self._policy.beat_s):
            try:
                self.look(time.monotonic)
            except (TreadleError, DBAPIError) as error:
                log.warning("watch_failed", error=str(error))
            except RuntimeError:  # the pool is shut down
                if not self._stop.is_set():
                    raise

    def look(self, clock: Callable[[], float]) -> Mapping[int, Verdict]:
        """One look at every host, by a clock in seconds; the verdict on each."""
        hosts = self._db.read(_hosts)
        signs = dict(zip(
            (one.id for one in hosts), self._pool.map(self._ask, hosts), strict=True
        ))
        now = clock()
        self._heard = {
            one.id: now if _alive(signs[one.id]) else self._heard.get(one.id, now)
            for one in hosts
        }
        # One that is out of use may be off for long: it tells nothing of the others.
        counted = [one.id for one in hosts if one.enabled or _alive(signs[one.id])]
        silent = sum(not _alive(signs[id]) for id in counted)
        found: dict[int, Verdict] = {}
        for one in hosts:
            sign = signs[one.id]
            evidence = Evidence(
                sign.libvirt, sign.reach, now - self._heard[one.id], silent, len(counted)
            )
            verdict = judge(evidence, self._policy.patience)
            if verdict in (Verdict.DOUBT, Verdict.GONE):
                # Asked while there is doubt: their answers are there when there is none.
                asked = self._asked.get(one.id) or self._ask_peers(
                    one, [peer for peer in hosts if signs[peer.id].libvirt]
                )
                self._asked[one.id] = asked
            if verdict is Verdict.GONE:
                peers = tuple(answer.result(PEER_S + ANSWER_S) for answer in asked)
                verdict = judge(replace(evidence, peers=peers), self._policy.patience)
            if verdict is not Verdict.DOUBT:
                self._asked.pop(one.id, None)
            found[one.id] = verdict
            self._act(one, verdict, evidence.silent_s)
        self.verdicts = found
        return found

    def _ask(self, one: _Host) -> _Sign:
        try:
            driver = self._fleet.driver(one.id, one.uri)
            if isinstance(driver, Beats) and driver.beat(ANSWER_S):
                return _Sign(True, Reach.UNKNOWN)
            return _Sign(False, self._reach(one.uri, ANSWER_S))
        except TreadleError:  # no driver takes its URI
            return _Sign(False, Reach.UNKNOWN)

    def _ask_peers(self, one: _Host, others: list[_Host]) -> list[Future[Reach]]:
        asked = [peer for peer in others if peer.id != one.id][: self._policy.peers]
        return [
            self._pool.submit(self._reach_from, peer.uri, one.uri, PEER_S) for peer in asked
        ]

    def _act(self, one: _Host, verdict: Verdict, silent_s: float) -> None:
        before = self.verdicts.get(one.id)
        if verdict is not before and verdict is not Verdict.ANSWERS:
            # Its own pass finds out what there is to find out over libvirt.
            if one.status is HostStatus.UP:
                self.hint((HOST_KIND, str(one.id)))
            if before is not None:
                log.info("host_watched", host=one.name, verdict=verdict, was=before)
        if verdict in DEAD_ENDS and before is not verdict and one.status is HostStatus.DOWN:
            self._db.write(lambda conn: fences.remark(conn, one.id, WORDS[verdict]))
        if verdict is Verdict.GONE and one.fence is Fence.ASKED:
            self._db.write(lambda conn: fences.renew(conn, one.id))
        again = self._policy.fences and one.enabled
        gone = verdict is Verdict.GONE and one.fence is Fence.NONE
        if gone and (again or before is not verdict):
            self._gone(one, silent_s)

    def _gone(self, one: _Host, silent_s: float) -> None:
        why = f"silent for {silent_s:.0f} s here and to others: it is taken for dead"

        def write(conn: sa.Connection) -> bool:
            if ledger.set_down(conn, one.id, why):
                queue.wake(conn, KIND, store.building_on(conn, one.id))
            if not self._policy.fences:
                fences.remark(conn, one.id, f"{why}; once it is off for sure, say so: treadle host "
                              f"fence-confirmed {one.id}")
                return False
            if not one.enabled:
                fences.remark(conn, one.id, f"{why}; it is out of use and is left alone")
                return False
            asked = fences.ask(conn, one.id, why)
            if asked:
                queue.enqueue(conn, fencing.KIND, str(one.id))
            return asked

        asked = self._db.write(write)
        self._fleet.drop(one.id)  # what waits for it in libvirt waits no longer
        self._signals.work_is_due()
        log.warning("host_gone", host=one.name, silent_s=round(silent_s, 1), fence=asked)


WORDS = {
    Verdict.ASIDE: "other hosts reach it, the controller does not: it is left alone",
    Verdict.CUT_OFF: "too many hosts are silent at once: the controller may be cut off, and none "
    "is taken for dead",
    Verdict.UNSEEN: "there is no way to tell from here whether it is off",
}


def _alive(sign: _Sign) -> bool:
    return sign.libvirt or sign.reach in ALIVE


def _hosts(conn: sa.Connection) -> list[_Host]:
    """Those that are not off for sure, and that have been reached before."""
    rows = conn.execute(_WATCHED)
    return [
        _Host(row.id, row.uri, row.name, HostStatus(row.status), row.enabled, Fence(row.fence))
        for row in rows
    ]


_WATCHED = (
    sa.select(host.c.id, host.c.uri, host.c.name, host.c.status, host.c.enabled, host.c.fence)
    .where(
        host.c.status != HostStatus.NEW, host.c.fence != Fence.OFF, sa.not_(host.c.forced_down),
    )
    .order_by(host.c.id)
)
