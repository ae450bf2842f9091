"""The policies that come with Treadle: the order of the hosts that can take a request.

Of equals the host with the lowest id comes first. "Left" of a resource is what would be free after
placing, as a part of the host's own limit:

    left(r) = (free(r) - need(r)) * (1 / limit(r)), and 0 where the limit is 0
    left    = left(vcpus) + left(memory) + left(disk)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from treadle.errors import InvalidInput
from treadle.scheduler.columns import FloatArray, HostColumns
from treadle.scheduler.model import HostRow, PlacementRequest
from treadle.scheduler.plugin import Candidates, PluginError, Policy, Ranking, Weigher
from treadle.scheduler.weighers import normalised

_MOST_MULTIPLIER = 1e9
_MASK = 2**64 - 1


def left_after(hosts: HostColumns, request: PlacementRequest) -> FloatArray:
    """Give `left` as this module defines it, float64 of shape (N,), at most 3."""
    # In place, and not by `left_parts`: over many hosts what counts is how much memory is touched.
    free, parts = hosts.free, hosts.parts
    left: FloatArray = free[0] - request.vcpus
    left *= parts[0]
    more: FloatArray = free[1] - request.memory_mib
    more *= parts[1]
    left += more
    np.subtract(free[2], hosts.disk_need_mib(request), out=more)
    more *= parts[2]
    left += more
    return left


def row_left_after(request: PlacementRequest, sign: float = 1.0) -> Callable[[HostRow], float]:
    """Give a function that gives `sign` times what `left_after` gives for one host."""
    vcpus, memory, disk, image = request.vcpus, request.memory_mib, request.disk_mib, request.image
    with_image = disk + request.image_mib

    def left(host: HostRow) -> float:
        need = disk if image is None or image in host.images else with_image
        return sign * (
            (host.free_vcpus - vcpus) * host.part_of_vcpus
            + (host.free_memory_mib - memory) * host.part_of_memory
            + (host.free_disk_mib - need) * host.part_of_disk
        )

    return left


def disk_need(request: PlacementRequest) -> Callable[[HostRow], int]:
    """Give a function that gives the disk the request takes on one host, MiB."""
    disk, image = request.disk_mib, request.image
    with_image = disk + request.image_mib
    return lambda host: disk if image is None or image in host.images else with_image


class ByScore:
    """A policy that is a score (`ScoresHosts`)."""

    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the scores, float64 of shape (N,)."""
        raise NotImplementedError

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by the score, highest first."""
        return Ranking.by_score(hosts, self.score(hosts, request))


class FirstFit(ByScore):
    """Takes the host with the lowest id, so that high ones stay empty.

    score = 0; first fit of bin packing (D. S. Johnson, Near-optimal bin packing algorithms, 1973)
    """

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> FloatArray:
        """Give 0 for each."""
        return np.zeros(len(hosts), dtype=np.float64)

    def row_score(self, _request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        return lambda _host: 0.0


class BestFit(ByScore):
    """Packs: takes the host with the least left, so that large gaps stay for large requests.

    score = -left; best fit of bin packing (D. S. Johnson, Near-optimal bin packing algorithms,
    1973), taken to several resources by adding up what is left of each
    """

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give -left."""
        left = left_after(hosts, request)
        return np.negative(left, out=left)

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        return row_left_after(request, sign=-1.0)


class BestFitBy(ByScore):
    """Packs by one resource alone.

    score = -left(r)
    """

    resource = 0

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give minus what is left of it."""
        need = (request.vcpus, request.memory_mib, hosts.disk_need_mib(request))[self.resource]
        scores: FloatArray = (need - hosts.free[self.resource]) * hosts.parts[self.resource]
        return scores


class BestFitCpu(BestFitBy):
    """Packs by virtual CPUs alone.

    score = -left(vcpus)
    """

    resource = 0

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        need = request.vcpus
        return lambda host: (need - host.free_vcpus) * host.part_of_vcpus


class BestFitMemory(BestFitBy):
    """Packs by memory alone.

    score = -left(memory)
    """

    resource = 1

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        need = request.memory_mib
        return lambda host: (need - host.free_memory_mib) * host.part_of_memory


class BestFitDisk(BestFitBy):
    """Packs by disk alone.

    score = -left(disk)
    """

    resource = 2

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        need = disk_need(request)
        return lambda host: (need(host) - host.free_disk_mib) * host.part_of_disk


class WorstFit(ByScore):
    """Spreads: takes the host with the most left.

    score = left
    """

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give left."""
        return left_after(hosts, request)

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        return row_left_after(request)


class RoundRobin(FirstFit):
    """Goes round by id: the next id after the host that the last order began with.

    score = -(number of hosts before it in this turn). The cursor is kept in this process and starts
    before the lowest id: several controllers each go round for themselves. It moves with every
    order that is not a dry run, whether the claim succeeds or not, so requests that come at the
    same time get different hosts. The scheduler lets one request at a time in (`Remembers`).
    """

    def __init__(self) -> None:
        self._last = -1

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by id, beginning after the last one chosen."""
        begin = int(np.searchsorted(hosts.ids, self._last, side="right"))
        scores = -np.arange(len(hosts), dtype=np.float64)
        return Ranking(np.roll(hosts.ids, -begin), scores)

    def choose(self, _request: PlacementRequest, candidates: Candidates, /) -> int:
        """Take the next one."""
        return candidates.after(self._last)

    def chosen(self, host: int, /) -> None:
        """Move the cursor to `host`."""
        self._last = host


def draw(seed: int, number: int, below: int) -> int:
    """Draw a whole number from 0 to below - 1: the `number`th draw of a seed (0 or more).

    The draw is (mix(seed + (number + 1) * G mod 2**64) * below) >> 64, where mix and
    G = 0x9E3779B97F4A7C15 are the output function and the step of SplitMix64 (G. L. Steele,
    D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    bits = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((bits ^ (bits >> 31)) * below) >> 64


class Random(FirstFit):
    """Takes any host, each as likely, by the request's seed.

    With the hosts numbered from 0 by id, the first is number draw(seed, 0, hosts); the others
    follow in an order that is shuffled with the same seed.
    """

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, rng: np.random.Generator, /
    ) -> Ranking:
        """Order by chance."""
        first = draw(request.seed, 0, len(hosts))
        rest = np.delete(hosts.ids, first)
        rng.shuffle(rest)
        ids = np.concatenate((hosts.ids[first:first + 1], rest))
        return Ranking(ids, -np.arange(len(hosts), dtype=np.float64))

    def choose(self, request: PlacementRequest, candidates: Candidates, /) -> int:
        """Draw one."""
        return draw(request.seed, 0, len(candidates))


class TwoChoices(WorstFit):
    """Draws two hosts by the request's seed and takes the one with more left.

    With the hosts numbered from 0 by id, a = draw(seed, 0, hosts) and b = draw(seed, 1, hosts);
    the one with the higher `left` is first, of equals the lower id; the others follow in an order
    that is shuffled with the same seed. The power of two choices (M. Mitzenmacher, The power of two
    choices in randomized load balancing, IEEE TPDS 2001).
    """

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, rng: np.random.Generator, /
    ) -> Ranking:
        """Order the two, then the others by chance."""
        scores = self.score(hosts, request)
        pair = {draw(request.seed, number, len(hosts)) for number in (0, 1)}
        two = sorted(pair, key=lambda row: (-scores[row], row))
        rest = np.delete(hosts.ids, two)
        rng.shuffle(rest)
        ids = np.concatenate((hosts.ids[two], rest))
        return Ranking(ids, -np.arange(len(hosts), dtype=np.float64))

    def choose(self, request: PlacementRequest, candidates: Candidates, /) -> int:
        """Draw two, take the better."""
        count = len(candidates)
        a, b = sorted(draw(request.seed, number, count) for number in (0, 1))
        return b if candidates.score(b) > candidates.score(a) else a


class Weighted:
    """Adds up what the chosen weighers say.

    score = sum over the weighers, in their order, of multiplier * normalised score, where scores
    are normalised to the range from 0 to 1 over the hosts that pass (`weighers.normalised`). A
    weigher with the multiplier 0 is not asked. A broken weigher counts 0 and is noted. Without
    weighers every score is 0: the lowest id is taken.
    """

    row_local = False

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

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the sum. Errors: `PluginError`, where `rank` leaves a weigher out."""
        total = np.zeros(len(hosts), dtype=np.float64)
        for name, weigher, multiplier in self._weighers:
            if multiplier != 0:
                total += multiplier * normalised(name, weigher, hosts, request)
        return total

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by the sum."""
        total = np.zeros(len(hosts), dtype=np.float64)
        shares: dict[str, FloatArray] = {}
        notes: list[str] = []
        faults: list[PluginError] = []
        for name, weigher, multiplier in self._weighers:
            if multiplier == 0:
                continue
            try:
                share = multiplier * normalised(name, weigher, hosts, request)
            except PluginError as error:
                notes.append(f"{error}; it counts 0")
                faults.append(error)
                continue
            shares[name] = share
            total += share
        return Ranking.by_score(hosts, total, shares, tuple(notes), tuple(faults))
