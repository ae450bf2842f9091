"""The filters that come with Treadle: the host's state, its resources, what it can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from treadle.scheduler import nodes
from treadle.scheduler.columns import BoolArray, HostColumns, IntArray
from treadle.scheduler.model import HostRow, HostView, Pairs, PlacementRequest
from treadle.scheduler.plugin import Cause


class HostState:
    """Passes hosts that are up.

    passes = (state is "up")
    """

    name = "state"
    row_local = blind = static = True

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> BoolArray:
        """Give True where the host is up."""
        return hosts.up

    def row_test(self, _request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        return lambda host: host.static.state == "up"

    def reason(self, host: HostView, _request: PlacementRequest, /) -> str:
        """Say which state it is in."""
        return f"is {host.state}"

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for each state."""
        counts: dict[str, int] = {}
        for host in refused:
            counts[host.state] = counts.get(host.state, 0) + 1
        return [
            Cause(state, count, f"is {state}", f"are {state}")
            for state, count in sorted(counts.items())
        ]


class Capacity:
    """Passes hosts with enough left of all three resources.

    passes = (vcpus <= free vcpus) and (memory <= free memory) and (disk need <= free disk), where
    free = limit - used, and disk need = disk + the image's size unless the image is there already.
    """

    name = "capacity"
    row_local = blind = True

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where vcpus, memory and disk are all enough."""
        vcpus, memory, disk = hosts.free
        result: BoolArray = vcpus >= request.vcpus
        result &= memory >= request.memory_mib
        result &= disk >= hosts.disk_need_mib(request)
        return result

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        vcpus, memory, disk = request.vcpus, request.memory_mib, request.disk_mib
        image = request.image
        with_image = disk + request.image_mib

        def test(host: HostRow) -> bool:
            if vcpus > host.free_vcpus or memory > host.free_memory_mib:
                return False
            if image is None or image in host.images:
                return disk <= host.free_disk_mib
            return with_image <= host.free_disk_mib

        return test

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say need and have of each resource that is short."""
        disk = host.disk_need_mib(request)
        short = []
        if request.vcpus > host.free_vcpus:
            short.append(f"needs {request.vcpus} vcpus, has {max(host.free_vcpus, 0)}")
        if request.memory_mib > host.free_memory_mib:
            have = max(host.free_memory_mib, 0)
            short.append(f"needs {request.memory_mib} MiB memory, has {have}")
        if disk > host.free_disk_mib:
            short.append(f"needs {disk} MiB disk, has {max(host.free_disk_mib, 0)}")
        return "; ".join(short)

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """Count each host at the first resource that it lacks: vcpus, memory, disk."""
        found = []
        left = np.ones(len(refused), dtype=np.bool_)
        for what, need, free in _resources(refused, request):
            short = left & (free < need)
            left &= ~short
            count = int(np.count_nonzero(short))
            if count:
                unit = "" if what == "vcpus" else " MiB"
                least = int(np.min(np.broadcast_to(need, short.shape)[short]))
                most = max(int(np.max(free[short])), 0)
                detail = f"need {least}{unit}, at most {most} free"
                found.append(Cause(what, count, f"lacks {what}", f"lack {what}", detail))
        return found


def _resources(
    hosts: HostColumns, request: PlacementRequest
) -> tuple[tuple[str, int | IntArray, IntArray], ...]:
    """Give name, need (one number or shape (N,)) and free (shape (N,)) of each resource."""
    return (
        ("vcpus", request.vcpus, hosts.free_vcpus),
        ("memory", request.memory_mib, hosts.free_memory_mib),
        ("disk", hosts.disk_need_mib(request), hosts.free_disk_mib),
    )


class Capabilities:
    """Passes hosts of the right architecture that have every capability that is needed.

    passes = (no architecture asked for, or it is the host's) and (needed is a subset of the host's)
    """

    name = "capabilities"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests that ask for some."""
        return request.arch is not None or bool(request.capabilities)

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where architecture and capabilities fit."""
        result = np.ones(len(hosts), dtype=np.bool_)
        if request.arch is not None:
            result &= hosts.has_arch(request.arch)
        for capability in request.capabilities:
            result &= hosts.has_capability(capability)
        return result

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        arch, needed = request.arch, request.capabilities
        return lambda host: (
            (arch is None or host.static.arch == arch) and needed <= host.static.capabilities
        )

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say which architecture it has and what it lacks."""
        wrong = []
        if request.arch is not None and host.arch != request.arch:
            wrong.append(f"needs {request.arch}, is {host.arch or 'of unknown architecture'}")
        lacking = sorted(request.capabilities - host.capabilities)
        if lacking:
            wrong.append(f"lacks {', '.join(lacking)}")
        return "; ".join(wrong)

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """Count each host at the wrong architecture, else at the first capability it lacks."""
        found = []
        left = np.ones(len(refused), dtype=np.bool_)
        if request.arch is not None:
            wrong = ~refused.has_arch(request.arch)
            left &= ~wrong
            text = f"not {request.arch}"
            found.append(Cause("arch", int(np.count_nonzero(wrong)), f"is {text}", f"are {text}"))
        for capability in sorted(request.capabilities):
            without = left & ~refused.has_capability(capability)
            left &= ~without
            count = int(np.count_nonzero(without))
            found.append(Cause("capability", count, f"lacks {capability}", f"lack {capability}"))
        return [cause for cause in found if cause.hosts]


class InstanceLimit:
    """Refuses hosts that hold as many instances as their aggregates allow.

    passes = (instances < the least `max_instances` among the host's properties), and True where no
    aggregate of the host says a number
    """

    name = "instance_limit"
    row_local = blind = True

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> BoolArray:
        """Give True where one more is allowed."""
        most = hosts.matching("properties", self.name, most_instances, np.int64)
        return hosts.instances < most

    def row_test(self, _request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        return lambda host: (
            not host.properties or host.instances < most_instances(host.properties)
        )

    def reason(self, host: HostView, _request: PlacementRequest, /) -> str:
        """Say how many it has and may have."""
        return f"takes {most_instances(host.properties)} instances, has {host.instances}"

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        return [Cause(self.name, len(refused), "has its full number", "have their full number")]


@lru_cache(maxsize=1024)
def most_instances(properties: Pairs) -> int:
    """The least number that a host's properties set; 2**62 where they set none."""
    numbers = [
        int(value) for key, value in properties
        if key == "max_instances" and value.isascii() and value.isdecimal() and len(value) < 19
    ]
    return min(numbers, default=1 << 62)


UNEVEN = ("hw:numa_cpus.", "hw:numa_mem.")


class NumaFit:
    """Passes hosts with enough NUMA nodes that each have room for an even share.

    passes = (at least n nodes with free vcpus >= ceil(vcpus / n) and free memory >=
    ceil(memory / n), and vcpus >= n), n = `numa_nodes`; True where the request asks for no nodes,
    False where an extra spec gives a node a share of its own (`hw:numa_cpus.`, `hw:numa_mem.`).
    It goes by the rows' `numa`: what the host's nodes have, less what instances that ask for nodes
    hold of them. The claim judges the same again.
    """

    name = "numa"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests that ask for nodes."""
        return request.numa_nodes > 0

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where the nodes fit."""
        if _no_shares(request):
            return np.zeros(len(hosts), dtype=np.bool_)
        key = self.name, request.numa_nodes, request.vcpus, request.memory_mib
        return hosts.matching("numa", key, lambda free: _fitting(free, request) >= key[1])

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        if _no_shares(request):
            return lambda _host: False
        return lambda host: _fitting(host.static.numa, request) >= request.numa_nodes

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say how many nodes fit, and what each has to have."""
        count = request.numa_nodes
        why = _no_shares(request)
        if why:
            return why
        have = _fitting(host.numa, request)
        share = f"{-(-request.vcpus // count)} vcpus and {-(-request.memory_mib // count)} MiB"
        return (f"needs {count} NUMA node{'s' * (count > 1)} with {share} free, "
                f"has {have} of {len(host.numa)}")

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """One cause: how many nodes there have to be."""
        why = _no_shares(request)
        if why:
            none = f"no such nodes: {why}"
            return [Cause("numa", len(refused), f"makes {none}", f"make {none}")]
        what = f"{request.numa_nodes} NUMA node{'s' * (request.numa_nodes > 1)} with room"
        return [Cause("numa", len(refused), f"lacks {what}", f"lack {what}")]


def _no_shares(request: PlacementRequest) -> str:
    """Why no host can make such nodes; "" where it can, or where none are asked for."""
    if not request.numa_nodes:
        return ""
    if request.vcpus < request.numa_nodes:
        return f"{request.numa_nodes} NUMA nodes for {request.vcpus} vcpus leave a node without one"
    own = next((key for key, _ in request.extra_specs if key.startswith(UNEVEN)), None)
    return "" if own is None else f"{own} is set, and all NUMA nodes have even shares"


def _fitting(free: tuple[tuple[int, int], ...], request: PlacementRequest) -> int:
    count = max(request.numa_nodes, 1)
    return len(nodes.fitting(free, count, request.vcpus, request.memory_mib))


class PciDevices:
    """Passes hosts with enough free devices of each kind that is asked for.

    passes = (for each alias: free devices >= asked for). What is free is what the row says; the
    ledger does not count devices. Live, no host reports any: Treadle passes no devices through.
    """

    name = "pci"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests that ask for devices."""
        return bool(request.pci)

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where all are there."""
        return hosts.matching(
            "pci", (self.name, request.pci), lambda free: not _missing(free, request)
        )

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        return lambda host: not _missing(host.static.pci, request)

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say what is short."""
        return "; ".join(_missing(host.pci, request))

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """One cause, which names the aliases that are asked for."""
        what = "PCI devices: " + ", ".join(f"{count} {alias}" for alias, count in request.pci)
        return [Cause("pci", len(refused), f"lacks {what}", f"lack {what}")]


def _missing(free: tuple[tuple[str, int], ...], request: PlacementRequest) -> list[str]:
    have = dict(free)
    return [
        f"needs {count} PCI devices {alias}, has {have.get(alias, 0)}"
        for alias, count in request.pci if have.get(alias, 0) < count
    ]
