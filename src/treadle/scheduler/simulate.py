"""Replays a trace through the scheduler that runs live: the same plug-ins, table and arithmetic.

Only two things differ from a live cloud: the clock is the trace's, and a claim is made in the
table instead of in the database, under the same guard (`placement/ledger.py`). A VM that no host
can take is refused and not tried again.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from treadle.errors import InvalidInput
from treadle.scheduler.columns import FloatArray, HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import PluginError
from treadle.scheduler.simulate_trace import Arrival, Sizes, Trace
from treadle.scheduler.table import HostTable

HOUR = 3600.0
SAMPLES = 300
_TELL_EVERY = 2000

Progress = Callable[[int, int], None]
"""Called with how many arrivals are done, and of how many."""


@dataclass(slots=True)
class Class:
    """What became of the VMs of one size."""

    asked: int = 0
    refused: int = 0
    asked_core_hours: float = 0.0
    lost_core_hours: float = 0.0


@dataclass(slots=True)
class Series:
    """What was measured over time, one element a sample. Hours since the trace's begin."""

    hours: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    stranded_cores: list[float] = field(default_factory=list)
    stranded_memory: list[float] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What one replay came to.

    Hours are counted within the trace's window. `utilisation` and `stranded` are means over time,
    parts of all cores or memory that are up. A core is stranded where the memory free beside it is
    less than the trace's mean request needs for it, and memory likewise. `host_hours` counts hosts
    with at least one VM. `fairness`: Jain's index (R. Jain, D. Chiu, W. Hawe, 1984) of the parts
    of their core-hours that the sizes (`by_class`) and the tenants or batches (`by_batch`) got:
    1 is all alike. `decision_us`: mean, median, 99th of a hundred, microseconds for each decision.
    `faults`: how often each broken plug-in was met, by its kind and name.
    """

    policy: str
    seed: int
    vms: int = 0
    placed: int = 0
    before_first_refusal: int = 0
    classes: dict[str, Class] = field(default_factory=dict)
    asked_core_hours: float = 0.0
    lost_core_hours: float = 0.0
    lost_gib_hours: float = 0.0
    host_hours: float = 0.0
    most_hosts: int = 0
    utilisation_cores: float = 0.0
    utilisation_memory: float = 0.0
    stranded_cores: float = 0.0
    stranded_memory: float = 0.0
    fairness_classes: float = 1.0
    fairness_batches: float = 1.0
    decision_us: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    series: Series = field(default_factory=Series)

    @property
    def refused(self) -> int:
        """VMs that no host could take."""
        return self.vms - self.placed

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without what was measured over time."""
        plain = {
            name: getattr(self, name) for name in self.__dataclass_fields__
            if name not in ("series", "classes", "decision_us")
        }
        mean, median, most = self.decision_us
        return plain | {
            "refused": self.refused,
            "decision_us": {"mean": mean, "p50": median, "p99": most},
            "classes": {
                name: {part: getattr(one, part) for part in Class.__dataclass_fields__}
                for name, one in self.classes.items()
            },
        }


def class_of(vcpus: int, memory_mib: int, largest: tuple[int, int]) -> str:
    """The size class: what part of the largest host the VM takes of what it takes most of.

    small: under 1/24; medium: under 1/8; large: 1/8 and more. `largest`: its vCPUs and MiB.
    """
    part = max(vcpus / largest[0], memory_mib / largest[1])
    return "large" if part >= 1 / 8 else "medium" if part >= 1 / 24 else "small"


CLASSES = ("small", "medium", "large")


class _Replay:
    """The state of one run."""

    def __init__(
        self, trace: Trace, hosts: Iterable[HostView], scheduler: Scheduler, seed: int
    ) -> None:
        self.trace = trace
        self.scheduler = scheduler
        # The ends that are expected on each host, where the policy goes by them.
        self.ends: dict[int, dict[str, float]] = {}
        self.table = HostTable(hosts)
        views = list(self.table.columns())
        if not views:
            raise InvalidInput("hosts", [], "at least one is needed")
        self.out = Outcome(scheduler.policy, seed, classes={name: Class() for name in CLASSES})
        big = max(views, key=lambda view: (view.vcpus_limit, view.memory_limit_mib))
        self.largest = max(1, big.vcpus_limit), max(1, big.memory_limit_mib)
        up = [view for view in views if view.state == "up"]
        self.cores = max(1, sum(view.vcpus_limit for view in up))
        self.memory = max(1, sum(view.memory_limit_mib for view in up))
        self.used_cores = sum(view.vcpus_used for view in views)
        self.used_memory = sum(view.memory_used_mib for view in views)
        self.on_host = {view.id: view.instances for view in views}
        self.busy = sum(1 for count in self.on_host.values() if count)
        self.leaving: list[tuple[float, int, int, Arrival]] = []
        self.now = trace.begin
        self.sums = [0.0, 0.0, 0.0]
        self.per_batch: dict[str, list[float]] = {}
        # How many members each server group has on each host.
        self.members: dict[str, Counter[int]] = defaultdict(Counter)
        self.mib_per_core = _mean_ratio(trace) or self.memory / self.cores
        self.sample_s = max((trace.end - trace.begin) / SAMPLES, 1e-9)
        self.next_sample = trace.begin

    def move_to(self, moment: float) -> None:
        """Let time pass: what is there adds up, what is over leaves."""
        leaving = self.leaving
        while leaving and leaving[0][0] <= moment:
            at, _, host, one = heapq.heappop(leaving)
            self._pass(at)
            self.change(one, host, -1)
            ends = self.ends.get(host)
            if ends is not None and ends.pop(one.name, None) is not None:
                self.scheduler.ended(one.request(0), at - one.at)
                self._busy_until(host, max(ends.values(), default=0.0))
        self._pass(moment)

    def _pass(self, moment: float) -> None:
        while self.next_sample <= moment and self.next_sample <= self.trace.end:
            self._sample()
            self.next_sample += self.sample_s
        past = min(moment, self.trace.end) - self.now
        if past > 0:
            self.sums[0] += past * self.busy
            self.sums[1] += past * self.used_cores
            self.sums[2] += past * self.used_memory
            self.now += past

    def change(self, one: Arrival, host: int, sign: int) -> None:
        """Take (1) or give back (-1) what the VM has on the host."""
        self.table.use(
            host, sign * one.vcpus, sign * one.memory_mib, sign * one.disk_mib, sign
        )
        self.used_cores += sign * one.vcpus
        self.used_memory += sign * one.memory_mib
        if one.group is not None:
            self.members[one.group][host] += sign
        before = self.on_host[host]
        self.on_host[host] = before + sign
        if before == 0:
            self.busy += 1
            self.out.most_hosts = max(self.out.most_hosts, self.busy)
        elif before + sign == 0:
            self.busy -= 1

    def request(self, one: Arrival, seed: int, sizes: Sizes) -> PlacementRequest:
        """What the scheduler is asked, with where the members of its group are by now."""
        request = one.request(seed, sizes)
        if one.group is None:
            return request
        there = +self.members[one.group]
        return replace(request, group_hosts=tuple(sorted(there.items())))

    def place(self, one: Arrival, order: int, host: int) -> None:
        """Claim under the ledger's guard; the VM leaves when its time is over."""
        number = self.table.row_of(host)
        row = None if number is None else self.table.rows[number]
        if row is None or row.static.state != "up" or (
            one.vcpus > row.free_vcpus or one.memory_mib > row.free_memory_mib
            or one.disk_mib > row.free_disk_mib
        ):
            raise PluginError("policy", self.out.policy, f"it chose host {host}, which is full")
        image = None if one.wish is None else one.wish.image
        if image is not None and image not in row.images and one.wish is not None:
            # As the ledger does: an image takes room once on each host.
            view = row.view
            self.table.put(replace(
                view, images=view.images | {image},
                disk_used_mib=view.disk_used_mib + one.wish.image_mib,
            ))
        self.change(one, host, 1)
        if one.until < math.inf:
            heapq.heappush(self.leaving, (one.until, order, host, one))

    def expect(self, one: Arrival, request: PlacementRequest, host: int) -> None:
        """Note on the host when the VM is expected to end, where the policy goes by that."""
        lifetime = self.scheduler.expects(request)
        if lifetime is not None:
            ends = self.ends.setdefault(host, {})
            ends[one.name] = one.at + lifetime
            self._busy_until(host, max(ends.values()))

    def _busy_until(self, host: int, end: float) -> None:
        view = self.table.view(host)
        if view is not None and view.busy_until != end:
            self.table.put(replace(view, busy_until=end))

    def settle(self, one: Arrival, placed: bool) -> None:
        """Count the VM."""
        out = self.out
        hours = max(0.0, min(one.until, self.trace.end) - one.at) / HOUR
        core_hours = one.vcpus * hours
        size = out.classes[class_of(one.vcpus, one.memory_mib, self.largest)]
        out.vms += 1
        size.asked += 1
        size.asked_core_hours += core_hours
        out.asked_core_hours += core_hours
        batch = self.per_batch.setdefault(one.tenant or one.batch or "", [0.0, 0.0])
        batch[0] += core_hours
        if placed:
            out.placed += 1
            batch[1] += core_hours
            return
        if out.refused == 1:
            out.before_first_refusal = out.placed
        size.refused += 1
        size.lost_core_hours += core_hours
        out.lost_core_hours += core_hours
        out.lost_gib_hours += one.memory_mib * hours / 1024

    def _sample(self) -> None:
        columns = self.table.columns()
        idle_cores, idle_memory = stranded(columns, self.mib_per_core)
        series = self.out.series
        series.hours.append((self.next_sample - self.trace.begin) / HOUR)
        series.cores.append(self.used_cores / self.cores)
        series.memory.append(self.used_memory / self.memory)
        series.stranded_cores.append(idle_cores / self.cores)
        series.stranded_memory.append(idle_memory / self.memory)
        series.empty.append(len(self.on_host) - self.busy)
        series.lost.append(self.out.lost_core_hours)

    def finish(self, took: FloatArray) -> Outcome:
        """Bring it to the window's end and sum up."""
        self.move_to(self.trace.end)
        out = self.out
        if not out.refused:
            out.before_first_refusal = out.placed
        window = max(self.trace.end - self.trace.begin, 1e-9)
        out.host_hours = self.sums[0] / HOUR
        out.utilisation_cores = self.sums[1] / window / self.cores
        out.utilisation_memory = self.sums[2] / window / self.memory
        out.stranded_cores = float(np.mean(out.series.stranded_cores))
        out.stranded_memory = float(np.mean(out.series.stranded_memory))
        out.fairness_classes = jain(
            1 - one.lost_core_hours / one.asked_core_hours
            for one in out.classes.values() if one.asked_core_hours
        )
        out.fairness_batches = jain(got / asked for asked, got in self.per_batch.values() if asked)
        if len(took):
            p50, p99 = np.percentile(took, (50, 99))
            out.decision_us = (float(took.mean()) * 1e6, float(p50) * 1e6, float(p99) * 1e6)
        return out


def replay(
    trace: Trace,
    hosts: Iterable[HostView],
    scheduler: Scheduler,
    *,
    seed: int = 0,
    running: Sequence[Arrival] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Run the trace on the hosts with the scheduler; the outcome.

    `running` are VMs that are on their `host` at the trace's begin, besides what `hosts` say is
    used. The seed feeds the policy's random choices.

    Errors: `PluginError`, `InvalidInput` (no host, or a running VM on none of them).
    """
    began, met = time.perf_counter(), Counter(scheduler.faults)
    run = _Replay(trace, hosts, scheduler, seed)
    for order, one in enumerate(running):
        if one.host is None or one.host not in run.on_host:
            raise InvalidInput("running", one.name, f"it is on host {one.host}, which is not there")
        run.change(one, one.host, 1)
        if one.until < math.inf:
            heapq.heappush(run.leaving, (one.until, order - len(running), one.host, one))
    took = np.zeros(len(trace.arrivals))
    mixed = seed * 0x9E3779B97F4A7C15
    pick, table, clock = scheduler.pick, run.table, time.perf_counter
    sizes = trace.sizes() if scheduler.wants_flavors else ()
    for order, one in enumerate(trace.arrivals):
        run.move_to(one.at)
        request = run.request(one, (mixed + order) & 0xFFFFFFFFFFFF, sizes)
        start = clock()
        host = pick(table, request)
        took[order] = clock() - start
        if host is not None:
            run.place(one, order, host)
            run.expect(one, request, host)
        run.settle(one, host is not None)
        if progress is not None and order % _TELL_EVERY == 0:
            progress(order, len(trace.arrivals))
    out = run.finish(took)
    out.seconds = time.perf_counter() - began
    out.faults = {
        " ".join(plugin): count for plugin, count in (Counter(scheduler.faults) - met).items()
    }
    if progress is not None:
        progress(len(trace.arrivals), len(trace.arrivals))
    return out


def _mean_ratio(trace: Trace) -> float:
    """MiB that a core comes with in the mean request; 0 where none asks for any."""
    cores = sum(one.vcpus for one in trace.arrivals)
    return sum(one.memory_mib for one in trace.arrivals) / max(1, cores)


def stranded(hosts: HostColumns, mib_per_core: float) -> tuple[float, float]:
    """Cores and MiB that are free on hosts that are up but cannot be paired up at this ratio.

    cores = sum(max(0, free cores - free memory / ratio)), memory = sum(max(0, free memory - free
    cores * ratio))
    """
    cores = np.where(hosts.up, np.maximum(hosts.free_vcpus, 0), 0).astype(np.float64)
    memory = np.where(hosts.up, np.maximum(hosts.free_memory_mib, 0), 0).astype(np.float64)
    return (
        float(np.maximum(0.0, cores - memory / mib_per_core).sum()),
        float(np.maximum(0.0, memory - cores * mib_per_core).sum()),
    )


def jain(parts: Iterable[float]) -> float:
    """Jain's index of fairness: (sum x)**2 / (n * sum x**2), from 1/n to 1; 1 of nothing."""
    values = list(parts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


# -- the bound


@dataclass(frozen=True, slots=True)
class Bound:
    """What no policy can beat: core-hours lost at least, host-hours needed at least.

    `host_hours` is that of placing everything that the hosts can take at all.
    """

    lost_core_hours: float
    host_hours: float


def fluid_bound(trace: Trace, hosts: Sequence[HostView]) -> Bound:
    """The bound of a fluid: VMs that can be cut, moved and refused in part, at every moment anew.

    Lost at a moment at least: the cores asked for beyond all cores; and, for memory asked for
    beyond all memory, the fewest cores that give it back (VMs with most memory a core go first).
    Hosts at least: the largest ones first until cores and memory suffice.
    """
    up = [view for view in hosts if view.state == "up"]
    cores = np.cumsum(sorted((view.vcpus_limit for view in up), reverse=True))
    memory = np.cumsum(sorted((view.memory_limit_mib for view in up), reverse=True))
    if not up:
        return Bound(math.inf, 0.0)
    ratios = sorted({one.memory_mib / one.vcpus for one in trace.arrivals}, reverse=True)
    place = {ratio: number for number, ratio in enumerate(ratios)}
    events: list[tuple[float, int, int, int]] = []
    for one in trace.arrivals:
        kind = place[one.memory_mib / one.vcpus]
        events.append((one.at, one.vcpus, one.memory_mib, kind))
        if one.until < trace.end:
            events.append((one.until, -one.vcpus, -one.memory_mib, kind))
    events.sort(key=lambda event: event[0])
    by_ratio = [0] * len(ratios)
    asked_cores = asked_memory = 0
    lost = used = 0.0
    now = trace.begin
    for at, vcpus, mib, kind in [*events, (trace.end, 0, 0, -1)]:
        past = min(at, trace.end) - now
        if past > 0:
            excess = max(0.0, float(asked_cores - cores[-1]))
            lost += past * max(excess, _fewest_cores(asked_memory - memory[-1], by_ratio, ratios))
            used += past * max(_hosts_for(asked_cores, cores), _hosts_for(asked_memory, memory))
            now += past
        if kind < 0:
            break
        asked_cores += vcpus
        asked_memory += mib
        by_ratio[kind] += mib
    return Bound(lost / HOUR, used / HOUR)


def _hosts_for(amount: int, sums: FloatArray) -> int:
    return min(int(np.searchsorted(sums, amount)) + 1, len(sums)) if amount > 0 else 0


def _fewest_cores(mib: float, by_ratio: Sequence[int], ratios: Sequence[float]) -> float:
    """The cores of the VMs that give back so much memory, those with most memory a core first."""
    cores = 0.0
    for there, ratio in zip(by_ratio, ratios, strict=True):
        if mib <= 0:
            break
        cores += min(mib, there) / max(ratio, 1e-9)
        mib -= there
    return cores
