"""Several policies on the same trace, over several seeds: what differs, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from treadle.errors import InvalidInput
from treadle.scheduler.engine import OnFault, Scheduler
from treadle.scheduler.model import HostView
from treadle.scheduler.registry import Registry
from treadle.scheduler.simulate import Bound, Outcome, fluid_bound, replay
from treadle.scheduler.simulate_trace import Arrival, Trace

# Student's t, two-sided 95%, by degrees of freedom from 1 on.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)

Watch = Callable[[str, int, int, int, int], None]
"""`watch(policy, run, runs, done, total)`: which run of how many is under way, and how many of its
arrivals are done."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and the half width of its 95% confidence interval (Student's t).

    `half` is None where there is one seed.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        mean = sum(values) / len(values)
        if len(values) < 2:
            return cls(mean, None)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        factor = _T95[min(len(values) - 1, len(_T95)) - 1]
        return cls(mean, factor * math.sqrt(variance / len(values)))


@dataclass(frozen=True, slots=True)
class Row:
    """One policy's outcomes, one for each seed."""

    policy: str
    outcomes: tuple[Outcome, ...]

    def spread(self, of: Callable[[Outcome], float]) -> Spread:
        """A measure over the seeds."""
        return Spread.of([of(one) for one in self.outcomes])


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, with the bound that none can beat (the mean over the seeds)."""

    source: str
    hosts: str
    vms: int
    hours: float
    seeds: int
    bound: Bound
    rows: tuple[Row, ...]

    def against_first(self, row: Row, of: Callable[[Outcome], float]) -> Spread:
        """By how much a row differs from the first one, seed by seed on the same trace.

        What two policies share of a seed's luck is not in it, so it is surer than either mean.
        """
        pairs = zip(row.outcomes, self.rows[0].outcomes, strict=True)
        return Spread.of([of(one) - of(first) for one, first in pairs])

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without what was measured over time."""
        return {
            "trace": self.source, "hosts": self.hosts, "vms": self.vms, "hours": self.hours,
            "seeds": self.seeds,
            "bound": {
                "lost_core_hours": self.bound.lost_core_hours, "host_hours": self.bound.host_hours,
            },
            "policies": [
                {"policy": row.policy, "runs": [one.to_dict() for one in row.outcomes]}
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: `trace_of` gives the trace for a seed (0 is the plain one).

    `policies` are names, or `weighted:NAME=MULTIPLIER,...` to name the weighers on the spot.
    """

    trace_of: Callable[[int], Trace]
    hosts: Sequence[HostView]
    hosts_text: str
    policies: Sequence[str]
    filters: Sequence[str]
    weighers: Mapping[str, float]
    seeds: int = 1
    running: Sequence[Arrival] = ()
    on_fault: OnFault = field(default_factory=OnFault)
    predictor: str = "size-means"


def make_scheduler(plan: Plan, policy: str, registry: Registry | None = None) -> Scheduler:
    """The scheduler for a policy as it is named in a plan. Errors: `InvalidInput`, `PluginError`.
    """
    name, _, listed = policy.partition(":")
    weighers = dict(plan.weighers)
    if listed:
        weighers = {}
        for part in listed.split(","):
            weigher, _, factor = part.partition("=")
            try:
                weighers[weigher] = float(factor)
            except ValueError as error:
                mend = "write POLICY:WEIGHER=NUMBER,WEIGHER=NUMBER"
                raise InvalidInput("policy", policy, mend) from error
    made = Scheduler(
        name, plan.filters, weighers, registry, on_fault=plan.on_fault, predictor=plan.predictor,
    )
    made.policy = policy
    return made


def compare(plan: Plan, watch: Watch | None = None, registry: Registry | None = None) -> Comparison:
    """Run each policy with each seed, one after the other. Errors: as `replay` and the traces'."""
    for policy in plan.policies:
        make_scheduler(plan, policy, registry)
    outcomes: dict[str, list[Outcome]] = {policy: [] for policy in plan.policies}
    bounds: list[Bound] = []
    runs = len(outcomes) * plan.seeds
    run = 0
    first = plan.trace_of(0)
    for seed in range(plan.seeds):
        trace = first if seed == 0 else plan.trace_of(seed)
        bounds.append(fluid_bound(
            replace(trace, arrivals=[*plan.running, *trace.arrivals]), plan.hosts
        ))
        for policy, found in outcomes.items():
            def tell(done: int, total: int, policy: str = policy, run: int = run) -> None:
                if watch is not None:
                    watch(policy, run, runs, done, total)

            found.append(replay(
                trace, plan.hosts, make_scheduler(plan, policy, registry), seed=seed,
                running=plan.running, progress=tell,
            ))
            run += 1
    return Comparison(
        first.source, plan.hosts_text, len(first), (first.end - first.begin) / 3600, plan.seeds,
        Bound(
            sum(one.lost_core_hours for one in bounds) / len(bounds),
            sum(one.host_hours for one in bounds) / len(bounds),
        ),
        tuple(Row(policy, tuple(found)) for policy, found in outcomes.items()),
    )
