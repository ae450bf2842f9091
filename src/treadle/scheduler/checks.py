"""Asks plug-ins, and looks at what they give: what is wrong becomes a `PluginError`."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from treadle.scheduler.columns import BoolArray, FloatArray, HostColumns
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import (
    Filter,
    PlacesTogether,
    PluginError,
    Policy,
    Ranking,
    ScoresHosts,
    Weigher,
    call_plugin,
)

NEVER = -np.inf
"""The score of a host that is refused."""


class Asker:
    """Asks plug-ins. An answer that took longer than `limit_s` is a fault like another one."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def passes(
        self, name: str, one: Filter, hosts: HostColumns, request: PlacementRequest
    ) -> BoolArray:
        """What a filter says of each host. Errors: `PluginError`."""
        began = perf_counter()
        mask = call_plugin("filter", name, one.passes, hosts, request)
        self._late("filter", name, began)
        problem = array_problem(mask, len(hosts), np.dtype(np.bool_))
        if problem:
            raise PluginError("filter", name, f"passes() gave {problem}")
        return mask

    def masked(
        self, name: str, policy: ScoresHosts, hosts: HostColumns, request: PlacementRequest,
        passing: BoolArray,
    ) -> FloatArray:
        """What a policy scores each host, and `NEVER` where it does not pass.

        Errors: `PluginError`.
        """
        able = int(np.count_nonzero(passing))
        if not able:
            return np.full(len(hosts), NEVER)
        began = perf_counter()
        scores = call_plugin("policy", name, policy.score, hosts, request)
        self._late("policy", name, began)
        problem = array_problem(scores, len(hosts), np.dtype(np.float64))
        if problem:
            raise PluginError("policy", name, f"score() gave {problem}")
        masked = np.where(passing, scores, NEVER)
        if not masked.max() < np.inf or int(np.count_nonzero(masked != NEVER)) != able:
            raise PluginError("policy", name, "score() gave a score that is not a finite number")
        return masked

    def rank(
        self, name: str, policy: Policy, request: PlacementRequest, hosts: HostColumns
    ) -> Ranking:
        """The order that a policy gives. Errors: `PluginError`."""
        rng = np.random.default_rng(request.seed)
        began = perf_counter()
        ranking = call_plugin("policy", name, policy.rank, request, hosts, rng)
        self._late("policy", name, began)
        problem = ranking_problem(ranking, hosts)
        if problem:
            raise PluginError("policy", name, f"rank() gave {problem}")
        return ranking

    def place(
        self, name: str, policy: PlacesTogether, requests: Sequence[PlacementRequest],
        hosts: HostColumns, passing: BoolArray,
    ) -> list[int | None]:
        """Where a policy places several requests. Errors: `PluginError`."""
        placed = call_plugin("policy", name, policy.place, requests, hosts, passing)
        if not isinstance(placed, Sequence) or len(placed) != len(requests):
            raise PluginError("policy", name, f"place() gave no host for each of {len(requests)}")
        for number, host in enumerate(placed):
            row = None if host is None else hosts.row_of(host)
            if host is not None and (row is None or not passing[number, row]):
                raise PluginError("policy", name, f"place() gave host {host}, which cannot take it")
        return list(placed)

    def _late(self, kind: str, name: str, began: float) -> None:
        took = perf_counter() - began
        if took > self.limit_s:
            raise PluginError(
                kind, name, f"it took {took:.3f} s to answer, {self.limit_s} s are allowed"
            )


class TimedWeigher:
    """A weigher whose answer is dropped where it comes too late."""

    def __init__(self, weigher: Weigher, limit_s: float) -> None:
        self._weigher = weigher
        self._limit_s = limit_s
        self.name = weigher.name
        self.row_local = weigher.row_local
        self.reads = getattr(weigher, "reads", ())

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """As the weigher's. Errors: `TimeoutError`, and the weigher's own."""
        began = perf_counter()
        scores = self._weigher.score(hosts, request)
        took = perf_counter() - began
        if took > self._limit_s:
            raise TimeoutError(f"it took {took:.3f} s to answer, {self._limit_s} s are allowed")
        return scores


def array_problem(array: object, hosts: int, dtype: np.dtype[np.generic]) -> str:
    """Say what is wrong with a column that a plug-in gave; empty when nothing is."""
    if not isinstance(array, np.ndarray):
        return f"{type(array).__name__}, not an array"
    if array.dtype != dtype:
        return f"{array.dtype}, not {dtype}"
    if array.shape != (hosts,):
        return f"shape {array.shape} for {hosts} hosts"
    return ""


def ranking_problem(ranking: object, hosts: HostColumns) -> str:
    """Say what is wrong with what a policy gave; empty when nothing is."""
    if not isinstance(ranking, Ranking):
        return f"{type(ranking).__name__}, not a Ranking"
    for what, array, dtype in (
        ("ids", ranking.ids, np.int64),
        ("scores", ranking.scores, np.float64),
        *((f"shares of {name}", share, np.float64) for name, share in ranking.shares.items()),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            return f"{what} that are not an array of {np.dtype(dtype)}"
        if array.shape != ranking.ids.shape or array.ndim != 1:
            return f"{what} of shape {array.shape} for {len(hosts)} hosts"
        if dtype is np.float64 and not np.isfinite(array).all():
            return f"{what} that are not finite numbers"
    ordered = np.sort(ranking.ids)
    if len(ordered) == len(hosts):
        return "" if np.array_equal(ordered, hosts.ids) else "hosts twice, or refused ones"
    if len(ordered) > len(hosts) or (ordered[1:] == ordered[:-1]).any():
        return "a host twice"
    rows = np.minimum(np.searchsorted(hosts.ids, ordered), len(hosts) - 1)
    return "" if np.array_equal(hosts.ids[rows], ordered) else "hosts that do not pass the filters"
