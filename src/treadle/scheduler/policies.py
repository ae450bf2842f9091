"""The policies that come with Treadle: the order of the hosts that can take a request.

Of equals the host with the lowest id comes first. "Left" of a resource is what would be free after
placing, as a part of the host's own limit:

    left(r) = (free(r) - need(r)) / limit(r), and 0 where the limit is 0
    left    = left(vcpus) + left(memory) + left(disk)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from treadle.errors import InvalidInput
from treadle.scheduler.model import (
    FloatArray,
    HostColumns,
    IntArray,
    PlacementRequest,
    PluginError,
    Policy,
    Ranking,
    Weigher,
)
from treadle.scheduler.weighers import normalised

_MOST_MULTIPLIER = 1e9


def left_after(hosts: HostColumns, request: PlacementRequest) -> FloatArray:
    """Give `left` as this module defines it, float64 of shape (N,), at most 3."""
    cpu = _part(hosts.free_vcpus - request.vcpus, hosts.vcpus_limit)
    memory = _part(hosts.free_memory_mib - request.memory_mib, hosts.memory_limit_mib)
    disk = _part(hosts.free_disk_mib - hosts.disk_need_mib(request), hosts.disk_limit_mib)
    return cpu + memory + disk


def _part(left: IntArray, limit: IntArray) -> FloatArray:
    result = np.zeros(left.shape, dtype=np.float64)
    np.divide(left, limit, out=result, where=limit > 0)
    return result


class FirstFit:
    """Takes the host with the lowest id, so that high ones stay empty.

    score = 0; first fit of bin packing (D. S. Johnson, Near-optimal bin packing algorithms, 1973)
    """

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by id."""
        return Ranking(hosts.ids, np.zeros(len(hosts), dtype=np.float64))


class BestFit:
    """Packs: takes the host with the least left, so that large gaps stay for large requests.

    score = -left; best fit of bin packing (D. S. Johnson, Near-optimal bin packing algorithms,
    1973), taken to several resources by adding up what is left of each
    """

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by least left."""
        return Ranking.by_score(hosts, -left_after(hosts, request))


class WorstFit:
    """Spreads: takes the host with the most left.

    score = left
    """

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by most left."""
        return Ranking.by_score(hosts, left_after(hosts, request))


class RoundRobin:
    """Goes round by id: the next id after the host that the last order began with.

    score = -(number of hosts before it in this turn). The cursor is kept in this process and starts
    before the lowest id: several controllers each go round for themselves. It moves with every
    order that is not a dry run, whether the claim succeeds or not, so requests that come at the
    same time get different hosts. The scheduler lets one request at a time in (`Remembers`).
    """

    def __init__(self) -> None:
        self._last: int | None = None

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by id, beginning after the last one chosen."""
        last = self._last
        begin = 0 if last is None else int(np.searchsorted(hosts.ids, last, side="right"))
        scores = -np.arange(len(hosts), dtype=np.float64)
        return Ranking(np.roll(hosts.ids, -begin), scores)

    def chosen(self, host: int, /) -> None:
        """Move the cursor to `host`."""
        self._last = host


class Random:
    """Draws a number for each host, with the request's seed.

    score = mix(key + (id + 1) * G mod 2**64) >> 11, divided by 2**53: from 0 up to 1, where key is
    the first 64 bits of the seeded generator, and mix and G = 0x9E3779B97F4A7C15 are the output
    function and the step of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, Fast splittable
    pseudorandom number generators, OOPSLA 2014). A host's number depends on the seed and its id
    alone, so one host less leaves the others in the order they had.
    """

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, rng: np.random.Generator, /
    ) -> Ranking:
        """Order by the numbers drawn."""
        key = rng.integers(0, 2**64, dtype=np.uint64)
        bits = (hosts.ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits += key
        bits ^= bits >> np.uint64(30)
        bits *= np.uint64(0xBF58476D1CE4E5B9)
        bits ^= bits >> np.uint64(27)
        bits *= np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        return Ranking.by_score(hosts, (bits >> np.uint64(11)).astype(np.float64) / 2.0**53)


class Weighted:
    """Adds up what the chosen weighers say.

    score = sum over the weighers, in their order, of multiplier * normalised score, where scores
    are normalised to the range from 0 to 1 over the hosts that pass (`weighers.normalised`). A
    weigher with the multiplier 0 is not asked. A broken weigher counts 0 and is noted. Without
    weighers every score is 0: the lowest id is taken.
    """

    def __init__(self, weighers: Sequence[tuple[str, Weigher, float]] = ()) -> None:
        """Raise `InvalidInput` when a multiplier is not a number from -1e9 to 1e9."""
        for name, _, multiplier in weighers:
            if not math.isfinite(multiplier) or abs(multiplier) > _MOST_MULTIPLIER:
                mend = "a number from -1e9 to 1e9 is needed"
                raise InvalidInput(f"multiplier of weigher {name}", multiplier, mend)
        self._weighers = tuple(weighers)

    def with_weighers(self, weighers: Sequence[tuple[str, Weigher, float]], /) -> Policy:
        """Give this policy with `weighers`: name, weigher, multiplier."""
        return Weighted(weighers)

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by the sum."""
        total = np.zeros(len(hosts), dtype=np.float64)
        shares: dict[str, FloatArray] = {}
        notes: list[str] = []
        faults: list[str] = []
        for name, weigher, multiplier in self._weighers:
            if multiplier == 0:
                continue
            try:
                share = multiplier * normalised(name, weigher, hosts, request)
            except PluginError as error:
                notes.append(f"{error}; it counts 0")
                faults.append(name)
                continue
            shares[name] = share
            total += share
        return Ranking.by_score(hosts, total, shares, tuple(notes), tuple(faults))
