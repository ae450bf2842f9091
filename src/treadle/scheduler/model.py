"""What the scheduler works on: a request, and a host as a row.

Units everywhere: memory and disk in MiB, CPUs in virtual CPUs. A limit has overcommit applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from treadle.errors import InvalidInput

Pairs = tuple[tuple[str, str], ...]

# Above this, float64 no longer holds every integer and a formula over columns could differ from
# the same formula over plain numbers.
_MOST = 2**50


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What an instance needs of a host.

    `image_mib` is extra disk that only a host without the image `image` (sha256) needs.
    `capabilities` are all needed. `seed` (0 or more) feeds every random choice: the same seed over
    the same hosts gives the same order.

    `only_hosts`: None for any. `excluded_hosts`: by the user's wish; `tried_hosts`: a build has
    failed there. `extra_specs` (the flavor's) and `image_properties` are sorted pairs of key and
    value. `group` is "affinity", "anti-affinity" or one of them with "soft-" before it;
    `group_hosts` are sorted pairs of host id and how many members of the group are there;
    `max_per_host` bounds those of an anti-affine group. `pci` are sorted pairs of a device's alias
    and how many. `tenant`, `batch` and `asked_at` (seconds since 1970, or since a trace's start)
    are what a predictor of lifetimes may go by. `flavors` are the sizes on offer (vcpus, memory and
    disk in MiB): what is left of a host is of use where one of them fits. `scarce`: whether few
    hosts are empty, and `small`: whether there are few at all (`HostColumns.scarce`, `.small`); the
    scheduler sets them for a policy that reads them.

    Raises `InvalidInput` when an amount or the seed is negative, or an amount is above 2**50.
    """

    instance_id: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    image: str | None = None
    image_mib: int = 0
    arch: str | None = None
    capabilities: frozenset[str] = frozenset()
    excluded_hosts: frozenset[int] = frozenset()
    seed: int = 0
    only_hosts: frozenset[int] | None = None
    tried_hosts: frozenset[int] = frozenset()
    zone: str | None = None
    extra_specs: Pairs = ()
    image_properties: Pairs = ()
    group: str | None = None
    group_hosts: tuple[tuple[int, int], ...] = ()
    max_per_host: int = 1
    numa_nodes: int = 0
    pci: tuple[tuple[str, int], ...] = ()
    tenant: str | None = None
    batch: str | None = None
    asked_at: float = 0.0
    flavors: tuple[tuple[int, int, int], ...] = ()
    scarce: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        for name in ("vcpus", "memory_mib", "disk_mib", "image_mib"):
            amount = getattr(self, name)
            if not 0 <= amount <= _MOST:
                raise InvalidInput(name, amount, f"a whole number from 0 to {_MOST} is needed")
        if self.seed < 0:
            raise InvalidInput("seed", self.seed, "a whole number from 0 on is needed")

    def unnamed(self) -> PlacementRequest:
        """The same request, naming no hosts and no group."""
        return replace(
            self, only_hosts=None, excluded_hosts=frozenset(), tried_hosts=frozenset(),
            group=None, group_hosts=(), max_per_host=1,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values; sets become sorted lists."""
        return {
            "instance_id": self.instance_id,
            "vcpus": self.vcpus,
            "memory_mib": self.memory_mib,
            "disk_mib": self.disk_mib,
            "image": self.image,
            "image_mib": self.image_mib,
            "arch": self.arch,
            "capabilities": sorted(self.capabilities),
            "excluded_hosts": sorted(self.excluded_hosts),
            "seed": self.seed,
            **{name: _plain(getattr(self, name)) for name in _OPTIONAL
               if getattr(self, name) != _OPTIONAL[name]},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlacementRequest:
        """Build it from what `to_dict` gave."""
        values = dict(data)
        for name in ("capabilities", "excluded_hosts", "only_hosts", "tried_hosts"):
            if values.get(name) is not None:
                values[name] = frozenset(values[name])
        for name in ("extra_specs", "image_properties", "group_hosts", "pci", "flavors"):
            if name in values:
                values[name] = tuple(tuple(one) for one in values[name])
        return cls(**values)


_OPTIONAL: dict[str, Any] = {
    "only_hosts": None, "tried_hosts": frozenset(), "zone": None, "extra_specs": (),
    "image_properties": (), "group": None, "group_hosts": (), "max_per_host": 1, "numa_nodes": 0,
    "pci": (), "tenant": None, "batch": None, "asked_at": 0.0,
    "flavors": (), "scarce": False, "small": False,
}
"""What a record leaves out where it is so."""


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [list(pair) for pair in value]
    return value


@dataclass(frozen=True, slots=True)
class HostView:
    """One host as a row. `state` is "up", "down" or "disabled"; only "up" takes instances.

    Free amounts are limit minus used, and negative when a limit was lowered below what is used.
    `properties` are sorted pairs of what the host's aggregates say; a key may be there more than
    once. `numa` has the free vCPUs and MiB of each NUMA node, `pci` sorted pairs of a device's
    alias and how many are free. `load` is the part of its CPUs that is busy (0 to 1), None where
    it is not known. `busy_until`: when the last of its instances is expected to end, on the clock
    of `PlacementRequest.asked_at`; 0 where nothing is expected.
    """

    id: int
    name: str
    state: str
    arch: str | None
    capabilities: frozenset[str]
    vcpus_limit: int
    vcpus_used: int
    memory_limit_mib: int
    memory_used_mib: int
    disk_limit_mib: int
    disk_used_mib: int
    instances: int = 0
    images: frozenset[str] = frozenset()
    zone: str | None = None
    rack: str | None = None
    properties: Pairs = ()
    numa: tuple[tuple[int, int], ...] = ()
    pci: tuple[tuple[str, int], ...] = ()
    load: float | None = None
    busy_until: float = 0.0

    @property
    def free_vcpus(self) -> int:
        """Virtual CPUs that are free."""
        return self.vcpus_limit - self.vcpus_used

    @property
    def free_memory_mib(self) -> int:
        """Memory that is free, MiB."""
        return self.memory_limit_mib - self.memory_used_mib

    @property
    def free_disk_mib(self) -> int:
        """Disk that is free, MiB."""
        return self.disk_limit_mib - self.disk_used_mib

    def disk_need_mib(self, request: PlacementRequest) -> int:
        """Disk the request takes here, MiB: the image counts unless it is here already."""
        if request.image is None or request.image in self.images:
            return request.disk_mib
        return request.disk_mib + request.image_mib


@lru_cache(maxsize=4096)
def _part_of(limit: int) -> float:
    """Give 1 / limit, 0 where it is 0: hosts of one kind share the numbers, and so the cache."""
    return 1 / limit if limit > 0 else 0.0


class HostRow:
    """One host as plain numbers that change in place; `view` makes a `HostView` of it.

    `part_of_vcpus`, `part_of_memory` and `part_of_disk` are 1 / limit, and 0 where the limit is 0.
    """

    __slots__ = (
        "_view", "free_disk_mib", "free_memory_mib", "free_vcpus", "id", "images", "instances",
        "part_of_disk", "part_of_memory", "part_of_vcpus", "properties",
    )

    def __init__(self, view: HostView) -> None:
        self._view = view
        self.id = view.id
        self.part_of_vcpus = _part_of(view.vcpus_limit)
        self.part_of_memory = _part_of(view.memory_limit_mib)
        self.part_of_disk = _part_of(view.disk_limit_mib)
        self.free_vcpus = view.free_vcpus
        self.free_memory_mib = view.free_memory_mib
        self.free_disk_mib = view.free_disk_mib
        self.instances = view.instances
        self.images = view.images
        self.properties = view.properties

    @property
    def vcpus_limit(self) -> int:
        """Virtual CPUs that may be given out."""
        return self._view.vcpus_limit

    @property
    def memory_limit_mib(self) -> int:
        """Memory that may be given out, MiB."""
        return self._view.memory_limit_mib

    @property
    def disk_limit_mib(self) -> int:
        """Disk that may be given out, MiB."""
        return self._view.disk_limit_mib

    @property
    def static(self) -> HostView:
        """The host with all that `HostTable.use` does not change; the rest may be old."""
        return self._view

    @property
    def view(self) -> HostView:
        """The host as it is now."""
        view = self._view
        used = view.vcpus_limit - self.free_vcpus
        memory = view.memory_limit_mib - self.free_memory_mib
        disk = view.disk_limit_mib - self.free_disk_mib
        if (view.vcpus_used, view.memory_used_mib, view.disk_used_mib, view.instances) != (
            used, memory, disk, self.instances
        ):
            view = self._view = replace(
                view, vcpus_used=used, memory_used_mib=memory, disk_used_mib=disk,
                instances=self.instances,
            )
        return view
