"""The engine: shares, memory of a policy, and plug-ins that are broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from treadle.errors import InvalidInput
from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler, explain
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import Cause, PluginError, Ranking
from treadle.scheduler.policies import Weighted
from treadle.scheduler.registry import Registry

REQUEST = PlacementRequest("i-1", vcpus=1, memory_mib=1024, disk_mib=1000, seed=3)


def host(number: int, used: int = 0) -> HostView:
    return HostView(
        number, f"node-{number}", "up", "x86_64", frozenset(), 8, used, 8192, 1024 * used, 9000, 0
    )


HOSTS = HostColumns.from_views([host(1, 2), host(2, 0), host(3, 4)], 1)


class Odd:
    """A filter, weigher and policy in one that gives back whatever it is told to."""

    row_local = True

    def __init__(self, gives: Callable[[HostColumns], Any], name: str = "odd") -> None:
        self.name = name
        self.gives = gives

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        return self.gives(hosts)

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        raise KeyError("no reason")

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        return self.gives(hosts)

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Any:
        return self.gives(hosts)


class OddCauses(Odd):
    """An odd filter that sums up its refusals wrongly."""

    def causes(self, _refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        return [Cause("odd", 1, "is odd", "are odd")]


def registry(gives: Callable[[HostColumns], Any], make: type[Odd] = Odd) -> Registry:
    result = Registry()
    result.add("policy", "weighted", Weighted)
    for kind in ("filter", "weigher", "policy"):
        result.add(kind, "odd", lambda: make(gives))
    return result


def raises(_hosts: HostColumns) -> Any:
    raise ZeroDivisionError("by design")


BAD_ARRAYS: dict[str, tuple[Callable[[HostColumns], Any], str]] = {
    "raises": (raises, "raised ZeroDivisionError: by design"),
    "not an array": (lambda _: [1.0], "list, not an array"),
    "dtype": (lambda hosts: hosts.ids, "int64, not"),
}
BAD_FILTERS = BAD_ARRAYS | {
    "shape": (lambda _: np.ones(2, dtype=bool), r"shape \(2,\) for 3 hosts"),
}
BAD_WEIGHERS = BAD_ARRAYS | {
    "shape": (lambda _: np.ones((3, 1)), r"shape \(3, 1\) for 3 hosts"),
    "nan": (lambda _: np.array([0.0, np.nan, 1.0]), "not a finite number"),
    "inf": (lambda _: np.array([0.0, np.inf, 1.0]), "not a finite number"),
    "span": (lambda _: np.array([-1.7e308, 0.0, 1.7e308]), "spans"),
}
ZEROS = np.zeros(3)
BAD_POLICIES: dict[str, tuple[Callable[[HostColumns], Any], str]] = {
    "raises": (raises, "raised ZeroDivisionError: by design"),
    "not a ranking": (lambda _: [1], "list, not a Ranking"),
    "dtype": (lambda h: Ranking(h.ids.astype(np.int32), ZEROS), "array of int64"),
    "shape": (lambda h: Ranking(h.ids[:2], ZEROS), "scores of shape"),
    "nan": (lambda h: Ranking(h.ids, ZEROS * np.nan), "finite"),
    "share": (lambda h: Ranking(h.ids, ZEROS, {"a": ZEROS[:1]}), "shares of a"),
    "stranger": (lambda _: Ranking(np.array([1, 2, 9]), ZEROS), "refused ones"),
    "one stranger": (lambda _: Ranking(np.array([9]), ZEROS[:1]), "do not pass"),
    "twice": (lambda _: Ranking(np.array([2, 2]), ZEROS[:2]), "twice"),
    "too many": (lambda _: Ranking(np.array([1, 2, 3, 3]), np.zeros(4)), "twice"),
}


@pytest.mark.parametrize(("gives", "says"), BAD_FILTERS.values(), ids=BAD_FILTERS)
def test_a_broken_filter_fails_the_placement(
    gives: Callable[[HostColumns], Any], says: str
) -> None:
    engine = Scheduler("first-fit", ["state", "odd"], {}, registry(gives))
    with pytest.raises(PluginError, match=says) as caught:
        engine.rank(HOSTS, REQUEST)
    assert (caught.value.kind, caught.value.plugin) == ("filter", "odd")
    assert "'odd'" in str(caught.value)
    assert engine.faults == {("filter", "odd"): 1}


@pytest.mark.parametrize(("gives", "says"), BAD_WEIGHERS.values(), ids=BAD_WEIGHERS)
def test_a_broken_weigher_counts_nothing_and_is_noted(
    gives: Callable[[HostColumns], Any], says: str
) -> None:
    engine = Scheduler("weighted", ["state"], {"odd": 9.0, "cpu_free": 1.0}, registry(gives))
    ranking, decision = engine.rank(HOSTS, REQUEST)
    assert list(ranking) == [2, 1, 3]
    assert list(ranking.shares) == ["cpu_free"]
    assert len(decision.notes) == 1
    assert re.search(f"'odd'.*{says}", decision.notes[0])
    assert engine.faults == {("weigher", "odd"): 1}


@pytest.mark.parametrize(("gives", "says"), BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_broken_policy_fails_the_placement(
    gives: Callable[[HostColumns], Any], says: str
) -> None:
    engine = Scheduler("odd", ["state"], {}, registry(gives))
    with pytest.raises(PluginError, match=says):
        engine.rank(HOSTS, REQUEST)
    assert engine.faults == {("policy", "odd"): 1}


@pytest.mark.parametrize("make", [Odd, OddCauses])
def test_a_filter_that_cannot_explain_itself_is_still_obeyed(make: type[Odd]) -> None:
    nobody = registry(lambda hosts: np.zeros(len(hosts), dtype=bool), make)
    ranking, decision = Scheduler("first-fit", ["odd"], {}, nobody).rank(HOSTS, REQUEST)
    assert len(ranking) == 0
    assert "cannot say why" in decision.refusals[0].reason
    assert explain(decision) == "no host can take it: 3 hosts are refused by odd"


def test_a_policy_may_leave_hosts_out() -> None:
    some = registry(lambda hosts: Ranking(hosts.ids[:1], np.zeros(1)))
    ranking, decision = Scheduler("odd", ["state"], {}, some).rank(HOSTS, REQUEST)
    assert list(ranking) == [1]
    assert decision.notes == ("the policy left out 2 that pass the filters",)
    none = registry(lambda _: Ranking.empty())
    _, decision = Scheduler("odd", ["state"], {}, none).rank(HOSTS, REQUEST)
    assert explain(decision) == "no host can take it: the policy 'odd' left out all that could"
    assert "odd" not in decision.public()["message"]


def test_the_top_shows_each_weighers_share() -> None:
    reg = registry(raises)
    weighers = {"cpu_free": 2.0, "memory_free": -0.5, "odd": 0.0}
    _, decision = Scheduler("weighted", [], weighers, reg).rank(HOSTS, REQUEST)
    assert [(top.name, top.score) for top in decision.top] == [
        ("node-2", 1.5),
        ("node-1", 0.75),
        ("node-3", 0.0),
    ]
    assert decision.top[0].shares == {"cpu_free": 2.0, "memory_free": -0.5}
    assert decision.notes == ()


def test_weighers_that_a_policy_does_not_use_are_named_and_not_loaded() -> None:
    engine = Scheduler("first-fit", [], {"no-such-weigher": 1.0})
    assert engine.unused_weighers == ("no-such-weigher",)
    assert Scheduler("weighted", [], {"cpu_free": 1.0}, registry(raises)).unused_weighers == ()


@pytest.mark.parametrize("multiplier", [float("nan"), float("inf"), 1e10])
def test_a_multiplier_has_to_be_a_plain_number(multiplier: float) -> None:
    with pytest.raises(InvalidInput, match="cpu_free"):
        Scheduler("weighted", [], {"cpu_free": multiplier}, registry(raises))


def test_a_filter_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="state is there twice"):
        Scheduler("first-fit", ["state", "state"], {})


def test_round_robin_goes_round_and_a_dry_run_does_not_move_it() -> None:
    engine = Scheduler("round-robin", ["state"], {})
    assert list(engine.rank(HOSTS, REQUEST, dry_run=True)[0]) == [1, 2, 3]
    orders = [list(engine.rank(HOSTS, REQUEST)[0]) for _ in range(4)]
    assert orders == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
    less = HostColumns.from_views([host(1), host(3)], 2)
    assert list(engine.rank(less, REQUEST)[0]) == [3, 1]
    more = HostColumns.from_views([host(n) for n in (1, 2, 3, 4)], 3)
    assert list(engine.rank(more, REQUEST)[0]) == [4, 1, 2, 3]


def test_round_robin_gives_every_thread_its_own_turn() -> None:
    engine = Scheduler("round-robin", ["state"], {})
    with ThreadPoolExecutor(8) as pool:
        firsts = list(pool.map(lambda _: int(engine.rank(HOSTS, REQUEST)[0].ids[0]), range(300)))
    assert sorted(firsts) == [1] * 100 + [2] * 100 + [3] * 100


def test_packing_and_spreading() -> None:
    def order(policy: str) -> list[int]:
        return list(Scheduler(policy, ["capacity"], {}).rank(HOSTS, REQUEST)[0])

    assert order("best-fit") == [3, 1, 2]
    assert order("worst-fit") == [2, 1, 3]
    assert order("first-fit") == [1, 2, 3]


def test_random_spreads_over_seeds() -> None:
    engine = Scheduler("random", [], {})
    firsts = [
        int(engine.rank(HOSTS, PlacementRequest("i", 0, 0, 0, seed=seed))[0].ids[0])
        for seed in range(600)
    ]
    assert all(140 < firsts.count(number) < 260 for number in (1, 2, 3))
