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
    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the virtual CPUs left after placing, float64 of shape (N,)."""
        return (hosts.free_vcpus - request.vcpus).astype(np.float64)


class MemoryFree:
    """Prefers hosts with much memory left. A negative multiplier packs instead.

    score = free memory - memory asked for
    """

    name = "memory_free"
    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the MiB of memory left after placing, float64 of shape (N,)."""
        return (hosts.free_memory_mib - request.memory_mib).astype(np.float64)


class DiskFree:
    """Prefers hosts with much disk left. A negative multiplier packs instead.

    score = free disk - disk need; a host without the image needs room for it as well
    """

    name = "disk_free"
    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give the MiB of disk left after placing, float64 of shape (N,)."""
        return (hosts.free_disk_mib - hosts.disk_need_mib(request)).astype(np.float64)


class ImageLocal:
    """Prefers hosts that have the image already, so that nothing need be copied.

    score = 1 where the image is there, else 0; 0 everywhere when no image is asked for
    """

    name = "image_local"
    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give 1.0 or 0.0, float64 of shape (N,)."""
        if request.image is None:
            return np.zeros(len(hosts), dtype=np.float64)
        return hosts.has_image(request.image).astype(np.float64)


class Balance:
    """Prefers hosts whose cores, memory and disk would run out together.

    score = -(highest - lowest) of left(vcpus), left(memory) and left(disk), where left(r) =
    (free - need) * (1 / limit) of the resources that the host has a limit of
    """

    name = "balance"
    row_local = blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give minus the spread of what is left, float64 of shape (N,)."""
        left = left_parts(hosts, request)
        has = hosts.parts > 0
        high = np.where(has, left, -np.inf).max(axis=0)
        low = np.where(has, left, np.inf).min(axis=0)
        scores: FloatArray = np.where(has.any(axis=0), low - high, 0.0)
        return scores


class Fragmentation:
    """Prefers hosts where the request strands the least room.

    score = stranded(before) - stranded(after), where stranded(h) = the mean over the flavors on
    offer of (0 where the flavor fits on h, else the mean of what is free there of each resource as
    a part of its limit); after "Beware of fragmentation" (Q. Weng et al., USENIX ATC 2023), taken
    from GPUs to cores, memory and disk. 0 everywhere where the request brings no flavors.
    """

    name = "fragmentation"
    row_local = blind = True
    reads = ("flavors",)

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give what is stranded less afterwards, float64 of shape (N,)."""
        return stranding(hosts, request)


class PowerOn:
    """Prefers hosts that run something already, so that no empty one has to be powered on.

    score = -(hosts that have to be powered on): -1 on a host without instances, else 0
    """

    name = "power_on"
    row_local = blind = True

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> FloatArray:
        """Give -1.0 or 0.0, float64 of shape (N,)."""
        return np.where(hosts.instances == 0, -1.0, 0.0)


class Load:
    """Prefers hosts whose processors are not busy, as far as they are measured.

    score = -load, where load (0 to 1) is the host's, and 0.5 where it is not known
    """

    name = "load"
    row_local = blind = True

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> FloatArray:
        """Give minus the load, float64 of shape (N,)."""
        return hosts.derived(
            self.name, lambda host: -(0.5 if host.load is None else host.load), np.float64
        )


SOFT = {"soft-affinity": 1.0, "soft-anti-affinity": -1.0}
"""The rules of groups that are wishes, and what a member on a host is worth to the next one."""


class GroupSoft:
    """Draws together, or apart, the members of a group whose rule is "soft-affinity" or
    "soft-anti-affinity".

    score = members of the group on the host for soft-affinity, minus as many for
    soft-anti-affinity, 0 otherwise
    """

    name = "group"
    row_local = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give plus or minus the members, float64 of shape (N,)."""
        scores = np.zeros(len(hosts), dtype=np.float64)
        sign = SOFT.get(request.group or "", 0.0)
        for host, members in request.group_hosts:
            row = hosts.row_of(host)
            if row is not None:
                scores[row] = sign * members
        return scores


class RackSpread:
    """Prefers racks with few members of the request's group, whatever its rule.

    score = -(members of the group in the host's rack), 0 where its rack is not known
    """

    name = "rack_spread"
    row_local = False
    attribute = "rack"

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give minus the members that are near, float64 of shape (N,)."""
        whole = hosts.whole
        near: dict[str, int] = {}
        for host, members in request.group_hosts:
            row = whole.row_of(host)
            place = None if row is None else getattr(whole.view(row), self.attribute)
            if place is not None:
                near[place] = near.get(place, 0) + members
        key = (self.name, tuple(sorted(near.items())))
        return hosts.matching(
            self.attribute, key, lambda place: float(-near.get(place, 0)), np.float64
        )


class ZoneSpread(RackSpread):
    """Prefers zones with few members of the request's group, whatever its rule.

    score = -(members of the group in the host's zone), 0 where its zone is not known
    """

    name = "zone_spread"
    attribute = "zone"


def left_parts(hosts: HostColumns, request: PlacementRequest) -> FloatArray:
    """What would be left of vcpus, memory and disk as parts of the limits, shape (3, N)."""
    left = _free_after(hosts, request)
    left *= hosts.parts
    return left


def _free_after(hosts: HostColumns, request: PlacementRequest) -> FloatArray:
    free = hosts.free
    after = np.empty_like(free)
    np.subtract(free[0], request.vcpus, out=after[0])
    np.subtract(free[1], request.memory_mib, out=after[1])
    np.subtract(free[2], hosts.disk_need_mib(request), out=after[2])
    return after


def stranding(hosts: HostColumns, request: PlacementRequest) -> FloatArray:
    """The score of `Fragmentation`."""
    before = _stranded(hosts.free, hosts.parts, request)
    return before - _stranded(_free_after(hosts, request), hosts.parts, request)


def _stranded(free: FloatArray, parts: FloatArray, request: PlacementRequest) -> FloatArray:
    room = free * parts
    np.maximum(room, 0.0, out=room)
    mean: FloatArray = (room[0] + room[1] + room[2]) / 3
    unfit = np.zeros(mean.shape, dtype=np.uint32)
    for vcpus, memory, disk in request.flavors:
        unfit += (free[0] < vcpus) | (free[1] < memory) | (free[2] < disk)
    return mean * unfit / max(len(request.flavors), 1)


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
