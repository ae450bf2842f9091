"""The weighers that come with Treadle, and how scores are normalised."""

from __future__ import annotations

import math

import numpy as np

from treadle.scheduler.checks import array_problem
from treadle.scheduler.columns import FloatArray, HostColumns
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import PluginError, Weigher, call_plugin


class CpuFree:
    """Prefers hosts with many virtual CPUs left. A negative multiplier packs instead.

    score = free vcpus - vcpus asked for
    """

    name = "cpu_free"
    row_local = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the virtual CPUs left after placing, float64 of shape (N,)."""
        return (hosts.free_vcpus - request.vcpus).astype(np.float64)


class MemoryFree:
    """Prefers hosts with much memory left. A negative multiplier packs instead.

    score = free memory - memory asked for
    """

    name = "memory_free"
    row_local = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the MiB of memory left after placing, float64 of shape (N,)."""
        return (hosts.free_memory_mib - request.memory_mib).astype(np.float64)


class DiskFree:
    """Prefers hosts with much disk left. A negative multiplier packs instead.

    score = free disk - disk need; a host without the image needs room for it as well
    """

    name = "disk_free"
    row_local = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the MiB of disk left after placing, float64 of shape (N,)."""
        return (hosts.free_disk_mib - hosts.disk_need_mib(request)).astype(np.float64)


class ImageLocal:
    """Prefers hosts that have the image already, so that nothing need be copied.

    score = 1 where the image is there, else 0; 0 everywhere when no image is asked for
    """

    name = "image_local"
    row_local = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give 1.0 or 0.0, float64 of shape (N,)."""
        if request.image is None:
            return np.zeros(len(hosts), dtype=np.float64)
        return hosts.has_image(request.image).astype(np.float64)


def normalised(
    name: str, weigher: Weigher, hosts: HostColumns, request: PlacementRequest
) -> FloatArray:
    """Give a weigher's scores brought to the range from 0 to 1 over `hosts` (at least one).

    normalised = (score - lowest) / (highest - lowest), and 0 everywhere when all are equal: the
    usual min-max scaling, so that multipliers compare weighers of different units.

    Raises `PluginError` when the weigher raises or does not give finite float64 of shape (N,).
    """
    scores = call_plugin("weigher", name, weigher.score, hosts, request)
    problem = array_problem(scores, len(hosts), np.dtype(np.float64))
    if not problem and not np.isfinite(scores).all():
        problem = "a score that is not a finite number"
    if problem:
        raise PluginError("weigher", name, f"score() gave {problem}")
    low, high = float(scores.min()), float(scores.max())
    span = high - low
    if not math.isfinite(span):
        raise PluginError("weigher", name, f"score() spans from {low} to {high}")
    if span == 0.0:
        return np.zeros(len(hosts), dtype=np.float64)
    return (scores - low) / span
