"""The column formulas against the same formulas row by row in plain Python, result for result."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.scheduler.cache import BLOCKED_FROM
from treadle.scheduler.columns import BoolArray, FloatArray, HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.filters import Capabilities, Capacity, Excluded, HostState
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import ExplainsCauses, Filter, Ranking, Weigher
from treadle.scheduler.policies import Weighted
from treadle.scheduler.registry import Registry
from treadle.scheduler.table import HostTable
from treadle.scheduler.weighers import CpuFree, DiskFree, ImageLocal, MemoryFree

IMAGES = ("a" * 64, "b" * 64)
CAPABILITIES = ("console", "suspend", "uefi")
ARCHES = ("x86_64", "aarch64")
FILTERS = ("state", "capacity", "capabilities", "excluded")

# --- the reference: one host at a time, no arrays ---


def disk_need(host: HostView, request: PlacementRequest) -> int:
    there = request.image is None or request.image in host.images
    return request.disk_mib + (0 if there else request.image_mib)


def left_amounts(host: HostView, request: PlacementRequest) -> tuple[int, int, int]:
    return (
        host.vcpus_limit - host.vcpus_used - request.vcpus,
        host.memory_limit_mib - host.memory_used_mib - request.memory_mib,
        host.disk_limit_mib - host.disk_used_mib - disk_need(host, request),
    )


PASSES: dict[str, Callable[[HostView, PlacementRequest], bool]] = {
    "state": lambda h, _: h.state == "up",
    "capacity": lambda h, r: all(left >= 0 for left in left_amounts(h, r)),
    "capabilities": lambda h, r: (
        (r.arch is None or h.arch == r.arch) and r.capabilities <= h.capabilities
    ),
    "excluded": lambda h, r: h.id not in r.excluded_hosts,
}

SCORE: dict[str, Callable[[HostView, PlacementRequest], float]] = {
    "cpu_free": lambda h, r: float(left_amounts(h, r)[0]),
    "memory_free": lambda h, r: float(left_amounts(h, r)[1]),
    "disk_free": lambda h, r: float(left_amounts(h, r)[2]),
    "image_local": lambda h, r: float(r.image is not None and r.image in h.images),
}


def left_part(host: HostView, request: PlacementRequest) -> float:
    limits = (host.vcpus_limit, host.memory_limit_mib, host.disk_limit_mib)
    cpu, memory, disk = (
        left * (1 / limit) if limit > 0 else 0.0
        for left, limit in zip(left_amounts(host, request), limits, strict=True)
    )
    return cpu + memory + disk


def drawn(seed: int, below: int) -> int:
    mask = 2**64 - 1
    bits = (seed + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return (bits ^ (bits >> 31)) * below >> 64


def shuffled(hosts: Sequence[HostView], request: PlacementRequest) -> list[int]:
    ids = [host.id for host in hosts]
    first = ids.pop(drawn(request.seed, len(ids)))
    np.random.default_rng(request.seed).shuffle(ids)
    return [first, *ids]


def sums(
    hosts: Sequence[HostView], request: PlacementRequest, weighers: dict[str, float]
) -> list[float]:
    totals = [0.0] * len(hosts)
    for name, multiplier in weighers.items():
        scores = [SCORE[name](host, request) for host in hosts]
        low, high = min(scores), max(scores)
        for number, score in enumerate(scores):
            totals[number] += multiplier * ((score - low) / (high - low) if high > low else 0.0)
    return totals


def reference(
    policy: str,
    hosts: Sequence[HostView],
    request: PlacementRequest,
    weighers: dict[str, float],
) -> list[tuple[int, float]]:
    able = [h for h in hosts if all(PASSES[name](h, request) for name in FILTERS)]
    able.sort(key=lambda host: host.id)
    if not able:
        return []
    if policy in ("first-fit", "round-robin"):
        step = -1.0 if policy == "round-robin" else 0.0
        return [(host.id, place * step) for place, host in enumerate(able)]
    if policy == "random":
        return [(host, -1.0 * place) for place, host in enumerate(shuffled(able, request))]
    if policy == "best-fit":
        scores = [-left_part(host, request) for host in able]
    elif policy == "worst-fit":
        scores = [left_part(host, request) for host in able]
    else:
        scores = sums(able, request, weighers)
    scored = [(host.id, score) for host, score in zip(able, scores, strict=True)]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


# --- what to try ---

small = st.integers(0, 12)
limit = st.sampled_from((0, 8, 20, 20, 24, 24, 32, 40, 1_000, 1_000, 3 * 10**9, 2**40 - 1))
need = st.sampled_from((0, 1, 1, 2, 3, 3, 8))
every_set = [frozenset(some) for n in range(4) for some in itertools.combinations(CAPABILITIES, n)]
image_sets = st.sampled_from([frozenset(), frozenset(IMAGES[:1]), frozenset(IMAGES)])
ids = st.one_of(small, st.integers(0, 2**40))
views = st.builds(
    HostView,
    id=ids,
    name=st.sampled_from(("node-a", "node-b")),
    state=st.sampled_from(("up", "up", "up", "up", "up", "down", "disabled")),
    arch=st.sampled_from(("x86_64", "x86_64", "aarch64", None)),
    capabilities=st.sampled_from([*every_set, every_set[-1], every_set[-1], every_set[-1]]),
    vcpus_limit=limit,
    vcpus_used=small,
    memory_limit_mib=limit,
    memory_used_mib=small,
    disk_limit_mib=limit,
    disk_used_mib=small,
    instances=small,
    images=image_sets,
)


def host_views() -> st.SearchStrategy[list[HostView]]:
    def some(least: int) -> st.SearchStrategy[list[HostView]]:
        return st.lists(views, unique_by=lambda host: host.id, min_size=least, max_size=8)

    return st.one_of(some(4), some(0), some(6))


def requests(hosts: Sequence[HostView]) -> st.SearchStrategy[PlacementRequest]:
    excluded = st.sampled_from([host.id for host in hosts] + [77])
    return st.builds(
        PlacementRequest,
        instance_id=st.just("i-1"),
        vcpus=need,
        memory_mib=need,
        disk_mib=need,
        image=st.sampled_from((None, *IMAGES)),
        image_mib=need,
        arch=st.sampled_from((None, None, None, *ARCHES)),
        capabilities=st.sampled_from([frozenset[str]()] * 6 + every_set),
        excluded_hosts=st.frozensets(excluded, max_size=1),
        seed=st.integers(0, 2**70),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[HostView], PlacementRequest]:
    hosts = draw(host_views())
    return hosts, draw(requests(hosts))


multipliers = st.dictionaries(
    st.sampled_from(sorted(SCORE)),
    st.floats(-1e9, 1e9, allow_nan=False).filter(lambda value: abs(value) > 1e-300),
)

Case = tuple[list[HostView], PlacementRequest]
POLICIES = ("first-fit", "best-fit", "worst-fit", "round-robin", "random", "weighted")


REGISTRY = Registry()
REGISTRY.add("policy", "weighted", Weighted)


def scheduler(policy: str, weighers: dict[str, float] | None = None) -> Scheduler:
    return Scheduler(policy, FILTERS, weighers or {}, REGISTRY)


def by_id(hosts: Sequence[HostView]) -> list[HostView]:
    return sorted(hosts, key=lambda host: host.id)


# --- the properties ---


@pytest.mark.parametrize("one", [HostState(), Capacity(), Capabilities(), Excluded()])
@settings(deadline=None, max_examples=50)
@given(cases())
def test_filter_is_its_reference_and_gives_a_reason(one: Filter, case: Case) -> None:
    hosts, request = case
    columns = HostColumns.from_views(hosts, 1)
    passes = one.passes(columns, request)
    assert passes.dtype == np.bool_
    assert passes.tolist() == [PASSES[one.name](host, request) for host in by_id(hosts)]
    for row in np.flatnonzero(~passes):
        assert one.reason(columns.view(int(row)), request)
    refused = columns.take(np.flatnonzero(~passes))
    if len(refused):
        assert isinstance(one, ExplainsCauses)
        assert sum(cause.hosts for cause in one.causes(refused, request)) == len(refused)


@pytest.mark.parametrize("weigher", [CpuFree(), MemoryFree(), DiskFree(), ImageLocal()])
@settings(deadline=None, max_examples=50)
@given(cases())
def test_weigher_is_its_reference(weigher: Weigher, case: Case) -> None:
    hosts, request = case
    score = weigher.score(HostColumns.from_views(hosts, 1), request)
    assert score.dtype == np.float64
    assert score.tolist() == [SCORE[weigher.name](host, request) for host in by_id(hosts)]


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=50)
@given(cases(), multipliers)
def test_policy_is_its_reference(policy: str, case: Case, weighers: dict[str, float]) -> None:
    hosts, request = case
    ranking, decision = scheduler(policy, weighers).rank(HostColumns.from_views(hosts, 1), request)
    expected = reference(policy, hosts, request, weighers)
    assert list(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)) == expected
    assert decision.fits == len(expected)
    assert decision.hosts == len(hosts) == len(expected) + sum(decision.refused.values())


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(POLICIES), cases(), multipliers, st.data())
def test_order_of_input_does_not_matter_and_a_seed_repeats(
    policy: str, case: Case, weighers: dict[str, float], data: st.DataObject
) -> None:
    hosts, request = case
    mixed = data.draw(st.permutations(hosts))
    first, one = scheduler(policy, weighers).rank(HostColumns.from_views(hosts, 1), request)
    second, two = scheduler(policy, weighers).rank(HostColumns.from_views(mixed, 1), request)
    assert first.ids.tolist() == second.ids.tolist()
    assert first.scores.tolist() == second.scores.tolist()
    assert one.to_dict() == two.to_dict()


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(POLICIES), cases(), multipliers)
def test_a_refused_host_is_never_ranked_and_is_blamed_once(
    policy: str, case: Case, weighers: dict[str, float]
) -> None:
    hosts, request = case
    ranking, decision = scheduler(policy, weighers).rank(HostColumns.from_views(hosts, 1), request)
    ranked = set(ranking)
    for host in hosts:
        assert (host.id in ranked) == all(PASSES[name](host, request) for name in FILTERS)
    assert {refusal.host for refusal in decision.refusals} == {h.id for h in hosts} - ranked
    for refusal in decision.refusals:
        host = next(h for h in hosts if h.id == refusal.host)
        assert refusal.filter == next(name for name in FILTERS if not PASSES[name](host, request))


# --- picks with kept scores ---

CACHED = ("first-fit", "best-fit", "worst-fit", "round-robin", "random", "weighted")


class Slow:
    """A stranger's filter and policy: no formula for single rows, and it may look at anything."""

    name = "slow"
    row_local = True

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        return hosts.ids % 7 != len(request.excluded_hosts)

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        return "is odd"

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        return (hosts.free_vcpus % 5 - request.vcpus).astype(np.float64)

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        return Ranking.by_score(hosts, self.score(hosts, request))


REGISTRY.add("filter", "slow", Slow)
REGISTRY.add("policy", "slow", Slow)


@st.composite
def moves(draw: st.DrawFn, hosts: list[HostView]) -> list[tuple[str, Any]]:
    """What happens to a table: requests that are picked for, and changes of hosts."""
    ids = [host.id for host in hosts] or [1]
    some = [draw(requests(hosts)) for _ in range(3)]
    amounts = st.tuples(st.sampled_from(ids), st.integers(-3, 3), st.integers(-3, 3))
    return draw(st.lists(st.one_of(
        st.tuples(st.just("pick"), st.sampled_from(some)),
        st.tuples(st.just("pick"), st.sampled_from(some)),
        st.tuples(st.just("use"), amounts),
        st.tuples(st.just("put"), st.one_of(
            views, views.map(lambda view: dataclasses.replace(view, id=ids[0]))
        )),
        st.tuples(st.just("drop"), st.sampled_from(ids)),
    ), min_size=1, max_size=12))


def play(table: HostTable, doing: list[tuple[str, Any]], look: Callable[[Any], None]) -> None:
    for what, value in doing:
        if what == "pick":
            look(value)
        elif what == "use":
            table.use(value[0], value[1], value[2], value[1])
        elif what == "put":
            table.put(value)
        else:
            table.drop(value)


@pytest.mark.parametrize("filters", [FILTERS, (*FILTERS, "slow"), ("slow",)])
@pytest.mark.parametrize("policy", [*CACHED, "slow"])
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_pick_is_the_first_of_the_order(
    policy: str, filters: tuple[str, ...], data: st.DataObject
) -> None:
    hosts = data.draw(host_views())
    doing = data.draw(moves(hosts))
    table = HostTable(hosts)
    picking = Scheduler(policy, filters, {"cpu_free": 1.0}, REGISTRY)
    ranking = Scheduler(policy, filters, {"cpu_free": 1.0}, REGISTRY)

    def look(request: PlacementRequest) -> None:
        now = [view for view in map(table.view, sorted(ids)) if view is not None]
        anew = HostColumns.from_views(now, table.version)
        assert list(table.columns()) == list(anew)
        order = list(ranking.rank(anew, request)[0])
        assert picking.pick(table, request) == (order[0] if order else None)

    ids = {host.id for host in hosts} | {v.id for what, v in doing if what == "put"}
    play(table, doing, look)


@pytest.mark.parametrize("policy", CACHED)
def test_picks_over_many_hosts_are_those_of_all_at_once(policy: str) -> None:
    """Over so many hosts that the vector is searched by blocks, with crowds of changes."""
    chance = np.random.default_rng(7)
    hosts = [
        HostView(n, f"n{n}", "up" if n % 9 else "down", "x86_64", frozenset(), 64,
                 int(chance.integers(40, 65)), 4096, int(chance.integers(3000, 4097)), 10_000, 0)
        for n in range(1, 2 * BLOCKED_FROM)
    ]
    table = HostTable(hosts)
    cached = Scheduler(policy, FILTERS, {"cpu_free": 1.0})
    whole = Scheduler(policy, FILTERS, {"cpu_free": 1.0})
    kinds = [PlacementRequest("i", v, m, 1) for v, m in ((1, 100), (8, 300), (16, 64), (64, 1))]
    for step in range(200):
        request = dataclasses.replace(
            kinds[int(chance.integers(4))], seed=step,
            excluded_hosts=frozenset(chance.integers(1, 50, size=step % 3).tolist()),
        )
        order = whole.rank(table.columns(), request)[0]
        host = cached.pick(table, request)
        assert host == (int(order.ids[0]) if len(order) else None)
        if host is not None:
            table.use(host, request.vcpus, request.memory_mib, 1)
        for other in chance.integers(1, len(hosts), size=(1, 3, 200)[step % 3]).tolist():
            table.use(other, int(chance.integers(-1, 2)), int(chance.integers(-9, 9)), 0, 0)
        if step % 50 == 7:
            table.put(dataclasses.replace(hosts[step], state="up", vcpus_used=0))
