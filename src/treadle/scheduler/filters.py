"""The filters that come with Treadle: which hosts can take a request at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from treadle.scheduler.columns import BoolArray, HostColumns, IntArray
from treadle.scheduler.model import HostRow, HostView, PlacementRequest
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
        result = hosts.free_vcpus >= request.vcpus
        result &= hosts.free_memory_mib >= request.memory_mib
        result &= hosts.free_disk_mib >= hosts.disk_need_mib(request)
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


class ByName:
    """A filter that goes by the hosts that a request names (`NamesHosts`), and nothing else."""

    row_local = static = True
    name: str
    is_refused: str
    are_refused: str
    why: str

    def refuses(self, _request: PlacementRequest, /) -> Collection[int]:
        """Give the hosts that cannot take it."""
        return ()

    def confines(self, _request: PlacementRequest, /) -> Collection[int] | None:
        """Give the only hosts that can take it, None for any."""
        return None

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where the host is not refused."""
        confined = self.confines(request)
        every = np.ones(len(hosts), dtype=np.bool_)
        result = every if confined is None else hosts.among(confined)
        return result & ~hosts.among(self.refuses(request))

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        refused, confined = self.refuses(request), self.confines(request)
        return lambda host: host.id not in refused and (confined is None or host.id in confined)

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        """Say why a named host is refused, or another one."""
        return self.why

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        return [Cause(self.name, len(refused), self.is_refused, self.are_refused)]


class Excluded(ByName):
    """Refuses the hosts that the request excludes.

    passes = (id is not among the excluded)
    """

    name = "excluded"
    why = "is excluded by the request"
    is_refused, are_refused = "is excluded", "are excluded"

    def refuses(self, request: PlacementRequest, /) -> Collection[int]:
        """Give the excluded hosts."""
        return request.excluded_hosts
