"""What the scheduler works on: a request, the hosts as columns, an order, the plug-ins.

Units everywhere: memory and disk in MiB, CPUs in virtual CPUs. A limit has overcommit applied.
All columns of one `HostColumns` have the shape (N,), one element a host, sorted by host id, and
cannot be written to. Numbers are int64, scores float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidInput, Permanent

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Pairs = tuple[tuple[str, str], ...]

# Above this, float64 no longer holds every integer and a formula over columns could differ from
# the same formula over plain numbers.
_MOST = 2**50

_P = ParamSpec("_P")
_T = TypeVar("_T")


class PluginError(Permanent):
    """A filter, weigher or policy raised, or gave back what it must not.

    `kind` is "filter", "weigher" or "policy", `plugin` the name it is chosen by.
    """

    def __init__(self, kind: str, plugin: str, problem: str) -> None:
        super().__init__(f"the {kind} {plugin!r} is broken: {problem}")
        self.kind = kind
        self.plugin = plugin
        self.problem = problem


def call_plugin(
    kind: str, plugin: str, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Give what `call` gives; raise `PluginError` in place of whatever it raises."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        verb = getattr(call, "__name__", "call")
        raise PluginError(
            kind, plugin, f"{verb}() raised {type(error).__name__}: {error}"
        ) from error


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
    are what a predictor of lifetimes may go by.

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

    def __post_init__(self) -> None:
        for name in ("vcpus", "memory_mib", "disk_mib", "image_mib"):
            amount = getattr(self, name)
            if not 0 <= amount <= _MOST:
                raise InvalidInput(name, amount, f"a whole number from 0 to {_MOST} is needed")
        if self.seed < 0:
            raise InvalidInput("seed", self.seed, "a whole number from 0 on is needed")

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
        for name in ("extra_specs", "image_properties", "group_hosts", "pci"):
            if name in values:
                values[name] = tuple((key, value) for key, value in values[name])
        return cls(**values)


_OPTIONAL: dict[str, Any] = {
    "only_hosts": None, "tried_hosts": frozenset(), "zone": None, "extra_specs": (),
    "image_properties": (), "group": None, "group_hosts": (), "max_per_host": 1, "numa_nodes": 0,
    "pci": (), "tenant": None, "batch": None, "asked_at": 0.0,
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


_ID, _LIMIT, _USED, _INSTANCES, _UP, _ARCH, _ROWS = 0, 1, 4, 7, 8, 9, 10
_NUMBERS = attrgetter(
    "id",
    "vcpus_limit",
    "memory_limit_mib",
    "disk_limit_mib",
    "vcpus_used",
    "memory_used_mib",
    "disk_used_mib",
    "instances",
)


def _number_row(view: HostView, codes: dict[str, int]) -> tuple[int, ...]:
    arch = -1 if view.arch is None else codes.setdefault(view.arch, len(codes))
    return (*_NUMBERS(view), view.state == "up", arch)


def _sealed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


class HostColumns:
    """N hosts as read-only columns of shape (N,), sorted by host id: one immutable snapshot.

    Built by `from_views`; `take` gives a part of it, `replaced` the next version of it.
    """

    def __init__(
        self,
        table: IntArray,
        views: tuple[HostView, ...],
        version: int,
        codes: dict[str, int],
        parent: tuple[HostColumns, IntArray] | None = None,
    ) -> None:
        """For this module: `table` has the shape (10, N) and is sorted by its first row."""
        self.version = version
        self._table = cast(IntArray, _sealed(table))
        self._views = views
        self._codes = codes
        self._parent = parent
        self._derived: dict[Hashable, tuple[Callable[[HostView], Any], npt.NDArray[Any]]] = {}

    @classmethod
    def from_views(cls, views: Iterable[HostView], version: int) -> HostColumns:
        """Build the columns from rows in any order.

        Raises `InvalidInput` when two rows have the same id.
        """
        rows = tuple(sorted(views, key=attrgetter("id")))
        codes: dict[str, int] = {}
        numbers = [_number_row(view, codes) for view in rows]
        table = np.empty((_ROWS, len(rows)), dtype=np.int64)
        if rows:
            table[:] = np.array(numbers, dtype=np.int64).T
            same = np.flatnonzero(table[_ID, 1:] == table[_ID, :-1])
            if same.size:
                twice = rows[int(same[0])].id
                raise InvalidInput("host id", twice, "a host may be in a snapshot once")
        return cls(table, rows, version, codes)

    def replaced(self, views: Iterable[HostView], version: int) -> HostColumns:
        """Give the snapshot that follows this one, with `views` in place of the same hosts' rows.

        Hosts that were not there are added. Work grows with the changed rows, plus one copy of the
        numbers, as long as no host is added.
        """
        if self._parent is not None:
            return HostColumns.from_views(self, version).replaced(views, version)
        changed = {view.id: view for view in views}
        rows = {host: self.row_of(host) for host in changed}
        if any(row is None for row in rows.values()):
            kept = (view for view in self._views if view.id not in changed)
            return HostColumns.from_views([*kept, *changed.values()], version)
        table = self._table.copy()
        every = list(self._views)
        codes = dict(self._codes)
        for host, view in changed.items():
            row = cast(int, rows[host])
            table[:, row] = _number_row(view, codes)
            every[row] = view
        columns = HostColumns(table, tuple(every), version, codes)
        for key, (of, column) in self._derived.items():
            fresh = column.copy()
            for host, view in changed.items():
                fresh[cast(int, rows[host])] = of(view)
            columns._derived[key] = of, _sealed(fresh)
        return columns

    def take(self, rows: IntArray) -> HostColumns:
        """Give the hosts at `rows` (row numbers in ascending order), with the same version."""
        return HostColumns(self._table[:, rows], (), self.version, self._codes, (self, rows))

    def __len__(self) -> int:
        return int(self._table.shape[1])

    def __iter__(self) -> Iterator[HostView]:
        return (self.view(row) for row in range(len(self)))

    def view(self, row: int) -> HostView:
        """Give the host at a row number as a `HostView`."""
        if self._parent is not None:
            source, rows = self._parent
            return source.view(int(rows[row]))
        return self._views[row]

    def row_of(self, host: int) -> int | None:
        """Give the row number of a host id, None where it is not there."""
        row = int(np.searchsorted(self._table[_ID], host))
        return row if row < len(self) and self._table[_ID, row] == host else None

    def _column(self, row: int) -> IntArray:
        return cast(IntArray, self._table[row])

    @property
    def ids(self) -> IntArray:
        """Host ids, ascending."""
        return self._column(_ID)

    @property
    def vcpus_limit(self) -> IntArray:
        """Virtual CPUs that may be given out."""
        return self._column(_LIMIT)

    @property
    def memory_limit_mib(self) -> IntArray:
        """Memory that may be given out, MiB."""
        return self._column(_LIMIT + 1)

    @property
    def disk_limit_mib(self) -> IntArray:
        """Disk that may be given out, MiB."""
        return self._column(_LIMIT + 2)

    @property
    def vcpus_used(self) -> IntArray:
        """Virtual CPUs given out."""
        return self._column(_USED)

    @property
    def memory_used_mib(self) -> IntArray:
        """Memory given out, MiB."""
        return self._column(_USED + 1)

    @property
    def disk_used_mib(self) -> IntArray:
        """Disk given out, MiB."""
        return self._column(_USED + 2)

    @property
    def instances(self) -> IntArray:
        """Instances on the host."""
        return self._column(_INSTANCES)

    @cached_property
    def up(self) -> BoolArray:
        """True where the host's state is "up"."""
        return cast(BoolArray, _sealed(self._table[_UP] != 0))

    @cached_property
    def _free(self) -> IntArray:
        limits, used = self._table[_LIMIT:_USED], self._table[_USED:_INSTANCES]
        return cast(IntArray, _sealed(limits - used))

    @property
    def free_vcpus(self) -> IntArray:
        """Limit minus used, virtual CPUs; may be negative."""
        return cast(IntArray, self._free[0])

    @property
    def free_memory_mib(self) -> IntArray:
        """Limit minus used, MiB; may be negative."""
        return cast(IntArray, self._free[1])

    @property
    def free_disk_mib(self) -> IntArray:
        """Limit minus used, MiB; may be negative."""
        return cast(IntArray, self._free[2])

    def has_arch(self, arch: str) -> BoolArray:
        """True where the host's architecture is `arch`."""
        return cast(BoolArray, self._column(_ARCH) == self._codes.get(arch, -2))

    def derived(
        self, key: Hashable, of: Callable[[HostView], _T], dtype: npt.DTypeLike = np.bool_
    ) -> npt.NDArray[Any]:
        """Give `of(host)` for each host: a column for what the others do not say.

        It is worked out once for a `key` and kept for the rows that do not change, so `of` may
        depend on the host and what is in `key` alone.
        """
        known = self._derived.get(key)
        if known is not None:
            return known[1]
        if self._parent is not None:
            source, rows = self._parent
            column = source.derived(key, of, dtype)[rows]
        else:
            column = np.array([of(view) for view in self._views], dtype=dtype)
        self._derived[key] = of, _sealed(column)
        return column

    def has_capability(self, name: str) -> BoolArray:
        """True where the host has the capability `name`."""
        return self.derived(("capability", name), lambda host: name in host.capabilities)

    def has_image(self, sha256: str) -> BoolArray:
        """True where the image is on the host already."""
        return self.derived(("image", sha256), lambda host: sha256 in host.images)

    def disk_need_mib(self, request: PlacementRequest) -> IntArray:
        """Disk the request takes on each host, MiB.

        need = disk_mib + (0 where the image is there or none is asked for, else image_mib)
        """
        if request.image is None or request.image_mib == 0:
            return np.full(len(self), request.disk_mib, dtype=np.int64)
        missing = ~self.has_image(request.image)
        return request.disk_mib + missing.astype(np.int64) * request.image_mib


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Host ids, best first, with a score each.

    `ids` int64 and `scores` float64 have the shape (M,). `shares` maps a weigher's name to its
    part of each score, aligned with `ids`. `notes` are sentences for the record, `faults` the names
    of weighers that were left out because they are broken.
    """

    ids: IntArray
    scores: FloatArray
    shares: Mapping[str, FloatArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> Ranking:
        """Give the order of no hosts."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))

    @classmethod
    def by_score(
        cls,
        hosts: HostColumns,
        scores: FloatArray,
        shares: Mapping[str, FloatArray] | None = None,
        notes: tuple[str, ...] = (),
        faults: tuple[str, ...] = (),
    ) -> Ranking:
        """Order `hosts` by `scores`, highest first; of equals the lowest host id comes first.

        `scores` and each of `shares` have the shape (N,) in the order of `hosts`.
        """
        order = np.argsort(-scores, kind="stable")
        return cls(
            hosts.ids[order],
            scores[order],
            {name: share[order] for name, share in (shares or {}).items()},
            notes,
            faults,
        )

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __iter__(self) -> Iterator[int]:
        return (int(host) for host in self.ids)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a number of hosts cannot take a request, for people.

    `code` is one word ("memory"). `one` and `many` follow a count: "lacks memory", "lack memory".
    `detail` is for operators ("need 4096 MiB, at most 2048 free"); tenants do not see it.
    """

    code: str
    hosts: int
    one: str
    many: str
    detail: str = ""

    def phrase(self, *, noun: bool, detail: bool) -> str:
        """Give it as words: "2 hosts lack memory (need ...)"."""
        thing = (" host" if self.hosts == 1 else " hosts") if noun else ""
        verb = self.one if self.hosts == 1 else self.many
        more = f" ({self.detail})" if detail and self.detail else ""
        return f"{self.hosts}{thing} {verb}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values."""
        return {
            "code": self.code,
            "hosts": self.hosts,
            "one": self.one,
            "many": self.many,
            "detail": self.detail,
        }


@runtime_checkable
class Filter(Protocol):
    """Says which hosts can take a request. `name` is the name it is registered under.

    Called from many threads at once. `row_local` True promises that a host's answer depends on
    that host's row and the request alone.
    """

    name: str
    row_local: bool

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give a bool array of shape (N,): True where the host can take it."""
        ...

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say what a refused host lacks: "needs 4 vcpus, has 2". Only for hosts that are shown."""
        ...


@runtime_checkable
class ExplainsCauses(Protocol):
    """What a filter may have besides: sums up why it refused, for one sentence about all hosts."""

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """Give the causes over the refused hosts; each host is counted in one of them."""
        ...


@runtime_checkable
class Weigher(Protocol):
    """Scores hosts; higher is better. `name` is the name it is registered under.

    Called from many threads at once. `row_local` True promises that a host's score depends on that
    host's row and the request alone, so it may be kept until the row changes.
    """

    name: str
    row_local: bool

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give a finite float64 array of shape (N,), in any unit: it is normalised afterwards."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A whole algorithm: orders the hosts that pass the filters. Called from many threads."""

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, rng: np.random.Generator, /
    ) -> Ranking:
        """Order `hosts`, best first; some may be left out.

        `rng` is new for each call and seeded with the request's seed: take randomness from it only.
        """
        ...


@runtime_checkable
class UsesWeighers(Protocol):
    """A policy that wants the weighers that the settings choose."""

    def with_weighers(self, weighers: Sequence[tuple[str, Weigher, float]], /) -> Policy:
        """Give this policy with `weighers`: name, weigher, multiplier."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A policy whose next order depends on its last one.

    `rank` and `chosen` of one request are not interleaved with those of another.
    """

    def chosen(self, host: int, /) -> None:
        """Note the first host of the order just given. Not called in a dry run."""
        ...
