"""Policies that pack, and do not leave cores behind that no memory is left for.

How the formula was found, what else was tried, and the figures: docs/placement-study.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treadle.scheduler.columns import FloatArray, HostColumns
from treadle.scheduler.model import HostRow, PlacementRequest
from treadle.scheduler.policies import ByScore, left_after, row_left_after

MEMORY_FOR_CORES = 1.5
"""How many parts of its cores a host can give out with one part of its memory, to lean VMs."""
STRANDING = 10.0
"""What a host's whole cores weigh when they are stranded; `left` has 1 for them."""
OPENING = 100.0
"""What it weighs that a host was empty: more than all else together."""


def _stranded(cores: FloatArray, memory: FloatArray, parts: FloatArray) -> FloatArray:
    stranded: FloatArray = cores * parts[0]
    of_memory = memory * parts[1]
    of_memory *= MEMORY_FOR_CORES
    stranded -= of_memory
    return np.maximum(stranded, 0.0, out=stranded)


class BalancedFit(ByScore):
    """Packs as best fit does, but keeps the memory that a host's free cores will need.

    score = -left - 10 * (stranded after - stranded before) - opening, with
    stranded = max(0, f(vcpus) - 1.5 * f(memory)), where f(r) = free(r) / limit(r) before, and
    left(r) after: the cores for which even requests with two thirds of the host's memory a core
    have no memory; and opening = 100 where the host is empty, but 0 where less than a tenth of all
    hosts that are up is empty.

    So a request with much memory goes where cores are left to match it, not beside another one of
    its kind. While there is plenty of room no host is opened for that: what would be stranded there
    is not needed. Once empty hosts are scarce, it is.
    """

    reads: tuple[str, ...] = ("scarce",)

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the scores, float64 of shape (N,)."""
        free, parts = hosts.free, hosts.parts
        scores = left_after(hosts, request)
        np.negative(scores, out=scores)
        after = _stranded(free[0] - request.vcpus, free[1] - request.memory_mib, parts)
        after -= _stranded(free[0], free[1], parts)
        after *= STRANDING
        scores -= after
        if not request.scarce:
            scores -= OPENING * (hosts.instances == 0)
        return scores

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        left = row_left_after(request)
        vcpus, mib = request.vcpus, request.memory_mib
        opens = 0.0 if request.scarce else OPENING

        def score(host: HostRow) -> float:
            of_cores, of_memory = host.part_of_vcpus, host.part_of_memory
            cores, memory = host.free_vcpus, host.free_memory_mib
            before = max(0.0, cores * of_cores - MEMORY_FOR_CORES * (memory * of_memory))
            after = max(
                0.0, (cores - vcpus) * of_cores - MEMORY_FOR_CORES * ((memory - mib) * of_memory)
            )
            opening = 0.0 if host.instances else opens
            return -left(host) - STRANDING * (after - before) - opening

        return score


class Adaptive(BalancedFit):
    """Spreads while the cloud is small, and packs as balanced fit does once it is not.

    score = left where fewer than 16 hosts are up (worst fit), that of balanced fit else

    In a small cloud each host is a large part of it: what one failure takes counts for more than a
    gap that is kept whole, and no host is empty for the sake of being switched off. The default.
    """

    reads = ("scarce", "small")

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the scores, float64 of shape (N,)."""
        return left_after(hosts, request) if request.small else super().score(hosts, request)

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """As `score`, of one."""
        return row_left_after(request) if request.small else super().row_score(request)
