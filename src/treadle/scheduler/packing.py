"""Policies that pack by more than what is left over: shape, fragments, lifetimes.

"Part" of a resource is an amount times 1 / limit of the host, and 0 where the limit is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from treadle.scheduler.columns import FloatArray, HostColumns
from treadle.scheduler.model import HostRow, PlacementRequest
from treadle.scheduler.plugin import Policy, Predictor
from treadle.scheduler.policies import ByScore, disk_need, left_after
from treadle.scheduler.weighers import stranding


def _shapes(hosts: HostColumns, request: PlacementRequest) -> tuple[FloatArray, FloatArray]:
    """Need and free as parts, each of shape (3, N)."""
    need = np.empty((3, len(hosts)), dtype=np.float64)
    need[0], need[1] = request.vcpus, request.memory_mib
    need[2] = hosts.disk_need_mib(request)
    need *= hosts.parts
    return need, hosts.free * hosts.parts


def _row_shapes(
    request: PlacementRequest,
) -> Callable[[HostRow], tuple[float, float, float, float, float, float]]:
    vcpus, memory, disk = request.vcpus, request.memory_mib, disk_need(request)

    def shapes(host: HostRow) -> tuple[float, float, float, float, float, float]:
        cpu_part, memory_part, disk_part = (
            host.part_of_vcpus, host.part_of_memory, host.part_of_disk
        )
        return (
            vcpus * cpu_part, memory * memory_part, disk(host) * disk_part,
            host.free_vcpus * cpu_part, host.free_memory_mib * memory_part,
            host.free_disk_mib * disk_part,
        )

    return shapes


class DotProduct(ByScore):
    """Takes the host whose free room has the request's shape, and much of it.

    score = sum over r of need part(r) * free part(r); the dot product of vector bin packing
    (R. Panigrahy et al., Heuristics for vector bin packing, 2011; R. Grandl et al., Multi-resource
    packing for cluster schedulers, SIGCOMM 2014)
    """

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the product."""
        need, free = _shapes(hosts, request)
        need *= free
        scores: FloatArray = need[0] + need[1]
        scores += need[2]
        return scores

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        shapes = _row_shapes(request)

        def score(host: HostRow) -> float:
            a, b, c, x, y, z = shapes(host)
            return a * x + b * y + c * z

        return score


class Cosine(ByScore):
    """Takes the host whose free room has the request's shape, however much it is.

    score = (need . free) / (|need| * |free|) of the parts, 0 where a length is 0: the cosine of
    the angle between both (M. Gabay, S. Zaourar, Vector bin packing with heterogeneous bins, 2016,
    among the measures they compare)
    """

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the cosine."""
        need, free = _shapes(hosts, request)
        product = need[0] * free[0] + need[1] * free[1] + need[2] * free[2]
        lengths = np.sqrt(
            (need[0] * need[0] + need[1] * need[1] + need[2] * need[2])
            * (free[0] * free[0] + free[1] * free[1] + free[2] * free[2])
        )
        scores = np.zeros(len(hosts), dtype=np.float64)
        np.divide(product, lengths, out=scores, where=lengths > 0)
        return scores

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        shapes = _row_shapes(request)

        def score(host: HostRow) -> float:
            a, b, c, x, y, z = shapes(host)
            lengths = math.sqrt((a * a + b * b + c * c) * (x * x + y * y + z * z))
            return (a * x + b * y + c * z) / lengths if lengths > 0 else 0.0

        return score


class FragmentationAware(ByScore):
    """Takes the host where the request strands the least room; of equals, the fullest.

    score = that of the weigher `fragmentation`, minus left / 1000, so that best fit decides where
    nothing is stranded; after fragmentation gradient descent (Q. Weng et al., Beware of
    fragmentation, USENIX ATC 2023)
    """

    reads = ("flavors",)

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the score."""
        return stranding(hosts, request) - left_after(hosts, request) / 1000

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        vcpus, memory, disk = request.vcpus, request.memory_mib, disk_need(request)
        flavors, count = request.flavors, max(len(request.flavors), 1)

        def stranded(cpu: int, mib: int, disk_mib: int, host: HostRow) -> float:
            room = (
                max(cpu * host.part_of_vcpus, 0.0)
                + max(mib * host.part_of_memory, 0.0)
                + max(disk_mib * host.part_of_disk, 0.0)
            ) / 3
            unfit = 0
            for v, m, d in flavors:
                if cpu < v or mib < m or disk_mib < d:
                    unfit += 1
            return room * unfit / count

        def score(host: HostRow) -> float:
            free = host.free_vcpus, host.free_memory_mib, host.free_disk_mib
            after = free[0] - vcpus, free[1] - memory, free[2] - disk(host)
            left = (
                after[0] * host.part_of_vcpus + after[1] * host.part_of_memory
                + after[2] * host.part_of_disk
            )
            return stranded(*free, host) - stranded(*after, host) - left / 1000

        return score


class LifetimeAware(ByScore):
    """Puts together what is expected to end together, so that whole hosts become free.

    With end = asked_at + the predictor's lifetime and over = max(end - busy_until, 0), in seconds:
    score = -floor(log2(1 + over / 3600)) - left / 1000. A host that is busy as long anyway comes
    first, then those that the request keeps busy the least longer (in doubling steps of hours), and
    best fit decides within a step. After lifetime alignment in LAVA (J. Ling et al., MLSys 2025).
    """

    row_local = False

    def __init__(self, predictor: Predictor | None = None) -> None:
        self._predictor = predictor

    def with_predictor(self, predictor: Predictor, /) -> Policy:
        """Give this policy with a predictor of lifetimes."""
        return LifetimeAware(predictor)

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the score."""
        lifetime = self._predictor.lifetime_s(request) if self._predictor else 3600.0
        end = request.asked_at + lifetime
        over = np.maximum(end - hosts.busy_until, 0.0)
        steps = np.floor(np.log2(1 + over / 3600))
        scores: FloatArray = -steps - left_after(hosts, request) / 1000
        return scores


class SizeMeans:
    """Predicts a lifetime as the geometric mean of those of the same tenant and size that ended.

    Falls back on all of that size, then on all, then on an hour. Lifetimes are learnt through
    `ended`. Times are seconds.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[object, ...], tuple[float, int]] = {}

    def lifetime_s(self, request: PlacementRequest, /) -> float:
        """The expected lifetime."""
        for key in self._keys(request):
            total, count = self._sums.get(key, (0.0, 0))
            if count:
                return math.exp(total / count)
        return 3600.0

    def ended(self, request: PlacementRequest, lifetime_s: float, /) -> None:
        """Learn that an instance of this request has lived so long."""
        for key in self._keys(request):
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = total + math.log(max(lifetime_s, 1.0)), count + 1

    @staticmethod
    def _keys(request: PlacementRequest) -> tuple[tuple[object, ...], ...]:
        size = request.vcpus, request.memory_mib
        return ((request.tenant, *size), size, ())
