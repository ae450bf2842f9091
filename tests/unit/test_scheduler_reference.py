"""The column formulas against the same formulas row by row in plain Python, result for result.

For every plug-in that Treadle registers: a new one without its reference fails here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler_reference import PASSES, SCORES, WEIGHS, ordered

from treadle.scheduler.cache import BLOCKED_FROM, MOST_KINDS
from treadle.scheduler.columns import SMALL, BoolArray, FloatArray, HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostRow, HostView, PlacementRequest
from treadle.scheduler.plugin import (
    Candidates,
    ExplainsCauses,
    FiltersRows,
    Ranking,
    ScoresHosts,
    ScoresRows,
)
from treadle.scheduler.registry import Registry
from treadle.scheduler.table import HostTable

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
POINTS: dict[str, dict[str, str]] = PROJECT["entry-points"]
FILTERS = tuple(POINTS["treadle.filters"])
WEIGHERS = tuple(POINTS["treadle.weighers"])
POLICIES = tuple(POINTS["treadle.policies"])
IMAGES = ("a" * 64, "b" * 64)
CAPABILITIES = ("console", "suspend", "uefi")
ARCHES = ("x86_64", "aarch64")

# --- what to try: drawn from a seed, which is many times quicker than drawing every field ---

EVERY_SET = [frozenset(some) for n in range(4) for some in itertools.combinations(CAPABILITIES, n)]
LIMITS = (0, 8, 20, 20, 24, 24, 32, 40, 1_000, 1_000, 3 * 10**9, 2**40 - 1)
PROPERTIES = (
    (), (("disk", "ssd"),), (("disk", "hdd"), ("disk", "ssd")), (("max_instances", "3"),),
    (("disk", "ssd"), ("gen", "4"), ("max_instances", "9"), ("max_instances", "x")),
)
Case = tuple[list[HostView], PlacementRequest]


def a_host(chance: Random, number: int) -> HostView:
    one = chance.choice
    return HostView(
        id=number,
        name=one(("node-a", "node-b")),
        state=one(("up", "up", "up", "up", "up", "down", "disabled")),
        arch=one(("x86_64", "x86_64", "aarch64", None)),
        capabilities=one([*EVERY_SET, EVERY_SET[-1], EVERY_SET[-1], EVERY_SET[-1]]),
        vcpus_limit=one(LIMITS),
        vcpus_used=chance.randint(0, 12),
        memory_limit_mib=one(LIMITS),
        memory_used_mib=chance.randint(0, 12),
        disk_limit_mib=one(LIMITS),
        disk_used_mib=chance.randint(0, 12),
        instances=chance.randint(0, 12),
        images=one((frozenset(), frozenset(IMAGES[:1]), frozenset(IMAGES))),
        zone=one((None, "a", "b")),
        rack=one((None, "r1", "r2")),
        properties=one(PROPERTIES),
        numa=one(((), ((4, 4), (4, 4)), ((1, 9), (2, 1), (9, 9)))),
        pci=one(((), (("gpu", 1),), (("gpu", 2), ("nic", 1)))),
        load=one((None, 0.0, 0.25, 1.0)),
        busy_until=one((0.0, 3600.0, 90_000.0)),
    )


def some_hosts(chance: Random) -> list[HostView]:
    """Mostly a few; now and then so many that the cloud is not small."""
    count = chance.choice((0, 2, 4, 6, 8, 2, 4, 6, 8, 2 * SMALL))
    ids = {chance.choice((chance.randint(0, 12), chance.randint(0, 2**40))) for _ in range(count)}
    return [a_host(chance, number) for number in ids]


def a_request(chance: Random, hosts: Sequence[HostView]) -> PlacementRequest:
    some = [host.id for host in hosts] + [77]

    def rarely(*values: Any, often: Any) -> Any:
        return chance.choice(values) if chance.random() < 0.15 else often

    def named(most: int) -> frozenset[int]:
        return frozenset(chance.sample(some, min(len(some), chance.randint(0, most))))

    def amount() -> int:
        return chance.choice((0, 1, 1, 2, 3, 3, 8))

    return PlacementRequest(
        instance_id="i-1",
        vcpus=amount(),
        memory_mib=amount(),
        disk_mib=amount(),
        image=chance.choice((None, *IMAGES)),
        image_mib=amount(),
        arch=rarely(*ARCHES, often=None),
        capabilities=rarely(*EVERY_SET, often=frozenset()),
        excluded_hosts=rarely(named(1), often=frozenset()),
        tried_hosts=rarely(named(1), often=frozenset()),
        only_hosts=rarely(named(5), often=None),
        seed=chance.getrandbits(70),
        zone=rarely("a", "b", often=None),
        extra_specs=rarely(
            (("disk", "ssd"),), (("hw:cpu_policy", "shared"),), (("gen", ">= 3"),),
            (("hw:numa_mem.0", "1"),),
            (("aggregate_instance_extra_specs:disk", "<or> hdd <or> ssd"),), often=(),
        ),
        image_properties=rarely(
            (("hw_architecture", "x86_64"),), (("hw_firmware_type", "uefi"),),
            (("os_distro", "debian"), ("trait:console", "required")),
            (("trait:console", "forbidden"),), often=(),
        ),
        group=chance.choice(
            (None, "affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")
        ),
        group_hosts=tuple((host, chance.randint(1, 3)) for host in sorted(named(2))),
        max_per_host=chance.randint(1, 3),
        numa_nodes=rarely(1, 2, often=0),
        pci=rarely((("gpu", 1),), (("gpu", 1), ("nic", 1)), often=()),
        asked_at=chance.choice((0.0, 5000.0)),
        flavors=chance.choice(((), ((1, 1, 1),), ((2, 3, 1), (8, 8, 8)))),
    )


def a_case(chance: Random) -> Case:
    hosts = some_hosts(chance)
    return hosts, a_request(chance, hosts)


def multipliers(chance: Random) -> dict[str, float]:
    some = chance.sample(WEIGHERS, chance.randint(0, 4))
    return {name: chance.uniform(-9, 9) * 10 ** chance.randint(-3, 3) for name in some}


def some_filters(chance: Random) -> Sequence[str]:
    few = chance.sample(FILTERS, chance.randint(0, 6))
    return chance.choice((FILTERS, ("capacity",), few))


seeds = st.integers(0, 2**32 - 1).map(Random)
TRY = settings(deadline=None, max_examples=50)


REGISTRY = Registry()
NOT_BY_ROWS = {"weighted", "lifetime-aware"}
"""Policies that are asked about all hosts each time."""


def by_id(hosts: Sequence[HostView]) -> list[HostView]:
    return sorted(hosts, key=lambda host: host.id)


# --- the properties ---


def test_every_plug_in_has_a_reference() -> None:
    assert set(FILTERS) == set(PASSES)
    assert set(WEIGHERS) == set(WEIGHS)
    by_chance = {"round-robin", "random", "two-choices", "weighted", "balanced-fit", "adaptive"}
    assert set(POLICIES) == set(SCORES) | by_chance


@pytest.mark.parametrize("name", FILTERS)
@TRY
@given(seeds)
def test_filter_is_its_reference_and_gives_a_reason(name: str, chance: Random) -> None:
    hosts, request = a_case(chance)
    one = REGISTRY.filter(name)
    columns = HostColumns.from_views(hosts, 1)
    passes = one.passes(columns, request)
    assert passes.dtype == np.bool_
    assert passes.tolist() == [PASSES[name](host, request) for host in by_id(hosts)]
    for row in np.flatnonzero(~passes):
        assert one.reason(columns.view(int(row)), request)
    alone = [one.passes(HostColumns.from_views([host], 1), request) for host in by_id(hosts)]
    assert [bool(mask[0]) for mask in alone] == passes.tolist()
    if isinstance(one, FiltersRows):
        test = one.row_test(request)
        assert [test(HostRow(host)) for host in by_id(hosts)] == passes.tolist()
    refused = columns.take(np.flatnonzero(~passes))
    if len(refused) and isinstance(one, ExplainsCauses):
        assert sum(cause.hosts for cause in one.causes(refused, request)) == len(refused)


@pytest.mark.parametrize("name", WEIGHERS)
@TRY
@given(seeds)
def test_weigher_is_its_reference(name: str, chance: Random) -> None:
    hosts, request = a_case(chance)
    one = REGISTRY.weigher(name)
    score = one.score(HostColumns.from_views(hosts, 1), request)
    assert score.dtype == np.float64
    assert score.tolist() == [WEIGHS[name](host, request, hosts) for host in by_id(hosts)]
    if one.row_local:
        alone = [one.score(HostColumns.from_views([host], 1), request) for host in by_id(hosts)]
        assert [float(column[0]) for column in alone] == score.tolist()


@pytest.mark.parametrize("name", POLICIES)
@settings(TRY, max_examples=25)
@given(seeds)
def test_a_score_row_by_row_is_that_of_all_at_once(name: str, chance: Random) -> None:
    hosts, request = a_case(chance)
    one, columns = REGISTRY.policy(name), HostColumns.from_views(hosts, 1)
    if isinstance(one, ScoresHosts) and isinstance(one, ScoresRows):
        request = dataclasses.replace(request, scarce=columns.scarce, small=columns.small)
        score = one.row_score(request)
        assert [score(HostRow(host)) for host in by_id(hosts)] == one.score(
            columns, request
        ).tolist()
    else:
        assert name in NOT_BY_ROWS


@pytest.mark.parametrize("policy", POLICIES)
@TRY
@given(seeds)
def test_policy_is_its_reference(policy: str, chance: Random) -> None:
    """In whatever order the hosts come in, and once more with the same seed."""
    hosts, request = a_case(chance)
    filters, weighers = some_filters(chance), multipliers(chance)
    expected = ordered(policy, filters, hosts, request, weighers)
    records = []
    for order in (hosts, chance.sample(hosts, len(hosts))):
        engine = Scheduler(policy, filters, weighers, REGISTRY)
        ranking, decision = engine.rank(HostColumns.from_views(order, 1), request)
        found = list(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True))
        assert found == expected
        assert decision.fits == len(expected)
        assert decision.hosts == len(hosts) == len(expected) + sum(decision.refused.values())
        records.append(decision.to_dict())
    assert records[0] == records[1]


@TRY
@given(seeds)
def test_a_refused_host_is_never_ranked_and_is_blamed_once(chance: Random) -> None:
    hosts, request = a_case(chance)
    engine = Scheduler(chance.choice(POLICIES), FILTERS, multipliers(chance), REGISTRY)
    ranking, decision = engine.rank(HostColumns.from_views(hosts, 1), request)
    ranked = set(ranking)
    for host in hosts:
        assert (host.id in ranked) == all(PASSES[name](host, request) for name in FILTERS)
    assert {refusal.host for refusal in decision.refusals} == {h.id for h in hosts} - ranked
    for refusal in decision.refusals:
        host = next(h for h in hosts if h.id == refusal.host)
        assert refusal.filter == next(name for name in FILTERS if not PASSES[name](host, request))


@TRY
@given(seeds)
def test_a_request_is_the_same_out_of_its_record(chance: Random) -> None:
    _, request = a_case(chance)
    assert PlacementRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


# --- picks with kept scores ---

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


def move(chance: Random, table: HostTable, ids: list[int]) -> None:
    """What may happen to a table between two picks."""
    host = chance.choice(ids)
    match chance.randint(0, 5):
        case 0 | 1 | 2:
            amount = chance.randint(-3, 3)
            table.use(host, amount, chance.randint(-3, 3), amount)
        case 3:
            table.put(a_host(chance, host))
        case 4:
            table.expect(host, chance.choice((0.0, 7200.0)))
        case _:
            (table.drop if chance.random() < 0.3 else lambda _: None)(host)


@pytest.mark.parametrize("policy", [*POLICIES, "slow"])
@TRY
@given(seeds)
def test_a_pick_is_the_first_of_the_order(policy: str, chance: Random) -> None:
    hosts = some_hosts(chance)
    filters = chance.choice((some_filters(chance), (*FILTERS, "slow"), ("slow",), FILTERS))
    weighers = multipliers(chance)
    table = HostTable(hosts)
    picking = Scheduler(policy, filters, weighers, REGISTRY)
    ranking = Scheduler(policy, filters, weighers, REGISTRY)
    ids = [host.id for host in hosts] + [13]
    some = [a_request(chance, hosts) for _ in range(3)]
    for _ in range(12):
        now = [view for view in map(table.view, sorted(ids)) if view is not None]
        anew = HostColumns.from_views(now, table.version)
        assert list(table.columns()) == list(anew)
        request = chance.choice(some)
        order = list(ranking.rank(anew, request)[0])
        assert picking.pick(table, request) == (order[0] if order else None)
        for _ in range(chance.randint(0, 3)):
            move(chance, table, ids)


@pytest.mark.parametrize("policy", POLICIES)
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
    for step in range(120):
        request = dataclasses.replace(
            kinds[int(chance.integers(4))], seed=step,
            excluded_hosts=frozenset(chance.integers(1, 50, size=step % 3).tolist()),
            only_hosts=frozenset(range(step, step + 9)) if step % 9 == 1 else None,
            flavors=((8, 300, 1), (64, 900, 1)),
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


def test_more_kinds_than_are_kept_are_picked_as_ranked() -> None:
    """Whatever is dropped to make room, and whether it comes back soon or late."""
    chance = Random(3)
    table = HostTable([
        HostView(n, f"n{n}", "up", "x86_64", frozenset(), 64, 0, 4096, 0, 10_000, 0)
        for n in range(1, 9)
    ])
    picking, ranking = (Scheduler("best-fit", FILTERS, {}, REGISTRY) for _ in range(2))
    for step in range(4 * MOST_KINDS):
        number = chance.choice((chance.randrange(2 * MOST_KINDS), chance.randrange(9)))
        request = PlacementRequest("i", 1, number, 1)
        host = picking.pick(table, request)
        assert host == next(iter(ranking.rank(table.columns(), request)[0]), None)
        if host is not None:
            table.use(host, 1, number, 1)
        table.use(chance.randint(1, 8), -1, -step % 200, -1)


class Told(Slow):
    """A stranger's policy that chooses by what it is told of all hosts."""

    reads = ("scarce",)

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        scores = np.arange(len(hosts), dtype=np.float64)
        return Ranking.by_score(hosts, scores if request.scarce else -scores)

    def choose(self, request: PlacementRequest, candidates: Candidates, /) -> int:
        return len(candidates) - 1 if request.scarce else 0


def test_a_policy_that_chooses_is_told_of_all_hosts() -> None:
    registry = Registry()
    registry.add("policy", "told", Told)
    picking = Scheduler("told", ("state",), {}, registry)
    assert picking.keeps_scores
    table = HostTable([
        HostView(n, f"n{n}", "up", None, frozenset(), 8, 0, 64, 0, 64, 0) for n in range(1, 4)
    ])
    request = PlacementRequest("i", 1, 1, 1)
    assert picking.pick(table, request) == 1
    for host in (1, 2, 3):
        table.use(host, 1, 1, 1)
    assert table.scarce
    assert picking.pick(table, request) == 3
