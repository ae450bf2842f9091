"""The column formulas against the same formulas row by row in plain Python, result for result."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.scheduler.engine import Scheduler
from treadle.scheduler.filters import Capabilities, Capacity, Excluded, HostState
from treadle.scheduler.model import (
    ExplainsCauses,
    Filter,
    HostColumns,
    HostView,
    PlacementRequest,
    Weigher,
)
from treadle.scheduler.policies import Weighted
from treadle.scheduler.registry import Registry
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
        left / limit if limit > 0 else 0.0
        for left, limit in zip(left_amounts(host, request), limits, strict=True)
    )
    return cpu + memory + disk


def drawn(host: HostView, request: PlacementRequest) -> float:
    mask = 2**64 - 1
    key = int(np.random.default_rng(request.seed).integers(0, 2**64, dtype=np.uint64))
    bits = (key + (host.id + 1) * 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return ((bits ^ (bits >> 31)) >> 11) / 2.0**53


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
    if policy == "best-fit":
        scores = [-left_part(host, request) for host in able]
    elif policy == "worst-fit":
        scores = [left_part(host, request) for host in able]
    elif policy == "random":
        scores = [drawn(host, request) for host in able]
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
@settings(deadline=None)
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
@settings(deadline=None)
@given(cases())
def test_weigher_is_its_reference(weigher: Weigher, case: Case) -> None:
    hosts, request = case
    score = weigher.score(HostColumns.from_views(hosts, 1), request)
    assert score.dtype == np.float64
    assert score.tolist() == [SCORE[weigher.name](host, request) for host in by_id(hosts)]


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(cases(), multipliers)
def test_policy_is_its_reference(policy: str, case: Case, weighers: dict[str, float]) -> None:
    hosts, request = case
    ranking, decision = scheduler(policy, weighers).rank(HostColumns.from_views(hosts, 1), request)
    expected = reference(policy, hosts, request, weighers)
    assert list(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)) == expected
    assert decision.fits == len(expected)
    assert decision.hosts == len(hosts) == len(expected) + sum(decision.refused.values())


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(cases())
def test_random_keeps_the_order_when_a_host_goes(case: Case) -> None:
    hosts, request = case
    full, _ = scheduler("random").rank(HostColumns.from_views(hosts, 1), request)
    if len(full):
        gone = int(full.ids[0])
        less = HostColumns.from_views([h for h in hosts if h.id != gone], 1)
        assert list(scheduler("random").rank(less, request)[0]) == list(full)[1:]


@settings(deadline=None)
@given(host_views(), host_views())
def test_replaced_is_the_same_as_built_anew(hosts: list[HostView], others: list[HostView]) -> None:
    old = HostColumns.from_views(hosts, 1)
    for name in CAPABILITIES:
        old.has_capability(name)
    for image in IMAGES:
        old.has_image(image)
    moved = [
        dataclasses.replace(other, id=host.id) for host, other in zip(hosts, others, strict=False)
    ]
    changed = [*moved, *(o for o in others[len(moved) :] if o.id not in {h.id for h in hosts})]
    rows = {host.id: host for host in [*hosts, *changed]}
    for new in (
        old.replaced(changed, 2),
        old.take(np.arange(len(old))).replaced(changed, 2),
    ):
        fresh = HostColumns.from_views(rows.values(), 2)
        assert new.version == 2
        assert list(new) == list(fresh)
        for part in ("ids", "up", "free_vcpus", "free_memory_mib", "free_disk_mib", "instances"):
            assert getattr(new, part).tolist() == getattr(fresh, part).tolist()
        for name in CAPABILITIES:
            assert new.has_capability(name).tolist() == fresh.has_capability(name).tolist()
        for image in IMAGES:
            assert new.has_image(image).tolist() == fresh.has_image(image).tolist()
        for arch in ARCHES:
            assert new.has_arch(arch).tolist() == fresh.has_arch(arch).tolist()
    assert list(old) == by_id(hosts)
