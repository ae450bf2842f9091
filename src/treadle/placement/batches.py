"""The instances of one request, placed together by a policy that can: once, within a deadline."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate

import structlog

from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import PluginError

log = structlog.get_logger("treadle.placement")

MOST_TOGETHER = 64
"""How many instances are placed together: the model of more takes too long to be made."""
REMEMBERED = 1024
"""Of how many batches it is known that they have been placed."""


class Batches:
    """Which batches have been placed together, and the thread that does it. Safe to use from
    several threads.

    `limit_s`: how long that may take, in seconds; 0: none is placed together.
    """

    def __init__(self, scheduler: Scheduler, limit_s: float) -> None:
        self._scheduler = scheduler
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, threading.Event] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None

    @property
    def wanted(self) -> bool:
        """Whether any batch is placed together."""
        return self._limit_s > 0 and self._scheduler.places_together

    def plan_of(self, batch: str) -> threading.Event | None:
        """What the caller sets once the batch is placed; None where that is so, or has been waited
        for, or none is."""
        if not self.wanted:
            return None
        with self._lock:
            plan = self._plans.get(batch)
            if plan is None:
                plan = self._plans[batch] = threading.Event()
                if len(self._plans) > REMEMBERED:
                    self._plans.popitem(last=False)
                return plan
        plan.wait(self._limit_s)
        return None

    def solve(
        self, hosts: HostColumns, requests: Sequence[PlacementRequest]
    ) -> list[int | None]:
        """A host id for each, None for none; nothing where it is not to be had in time."""
        bound = any(request.numa_nodes or request.pci for request in requests)
        if not 1 < len(requests) <= MOST_TOGETHER or bound:
            return []
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # What has begun cannot be ended: it has a bound of its own, and the next waits for it.
        work = self._thread.submit(self._scheduler.place, hosts, requests)
        try:
            return work.result(self._limit_s)
        except TooLate:
            work.cancel()
            log.warning("batch_not_placed", instances=len(requests), after_s=self._limit_s)
        except PluginError as error:
            log.warning("batch_not_placed", instances=len(requests), reason=str(error))
        return []
