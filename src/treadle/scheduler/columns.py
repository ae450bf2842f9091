"""Hosts as columns of numbers, for formulas over all of them at once.

All columns of one `HostColumns` have the shape (N,), one element a host, sorted by host id, and
cannot be written to. Numbers are int64, scores float64. Units are those of `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidInput
from treadle.scheduler.model import HostView, PlacementRequest

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_T = TypeVar("_T")

ID, LIMIT, USED, INSTANCES, UP, ROWS = 0, 1, 4, 7, 8, 9
"""Where which numbers are in the table of numbers: limits and used amounts are three rows each."""
SCARCE = 10
"""Empty hosts are scarce where fewer than one in so many is empty."""
SMALL = 16
"""A cloud is small where fewer hosts than these are up."""
_MOST_ANSWERS = 256
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


def number_row(view: HostView) -> tuple[int, ...]:
    """A host as a column of the table of numbers."""
    return (*_NUMBERS(view), view.state == "up")


def parts_of(limits: IntArray) -> FloatArray:
    """Give 1 / limit, and 0 where the limit is 0."""
    parts = np.zeros(limits.shape, dtype=np.float64)
    np.divide(1.0, limits, out=parts, where=limits > 0)
    return parts


class Coding:
    """One attribute of the hosts as codes: few hosts differ in their zone or their aggregates, so
    a question is asked once of each value. The index only grows; versions of the columns share it.
    """

    __slots__ = ("answers", "codes", "index", "read")

    def __init__(self, attribute: str, views: Iterable[HostView]) -> None:
        self.read = attrgetter(attribute)
        self.index: dict[Any, int] = {}
        # To each question: by code, and whether they are all alike.
        self.answers: dict[Hashable, tuple[npt.NDArray[Any], bool]] = {}
        self.codes: IntArray = np.array([self.code(view) for view in views], dtype=np.int64)

    def code(self, view: HostView) -> int:
        """The code of a host's value; a new value gets a new one."""
        index = self.index
        return index.setdefault(self.read(view), len(index))

    def copy(self, rows: IntArray | None = None) -> Coding:
        """The codes as they are now, or those of the hosts at `rows`."""
        copy = Coding.__new__(Coding)
        copy.read, copy.index, copy.answers = self.read, self.index, self.answers
        copy.codes = self.codes.copy() if rows is None else self.codes[rows]
        return copy

    def matching(
        self, key: Hashable, of: Callable[[Any], Any], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """`of(value)` for each host; answers to the same `key` are kept."""
        known, alike = self.answers.get(key, (None, False))
        if known is None or len(known) < len(self.index):
            known = np.array([of(value) for value in list(self.index)], dtype=dtype)
            alike = len(known) > 0 and bool((known == known[0]).all())
            if len(self.answers) >= _MOST_ANSWERS:
                self.answers.clear()
            self.answers[key] = known, alike
        if alike:
            return np.full(len(self.codes), known[0])
        # `take` is quicker than an index here.
        return known.take(self.codes)


def sealed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, not to be written to."""
    array.flags.writeable = False
    return array


class HostColumns:
    """N hosts as read-only columns of shape (N,), sorted by host id: one immutable snapshot.

    Built by `from_views`; `take` gives a part of it.
    """

    def __init__(self, table: IntArray, views: tuple[HostView, ...], version: int) -> None:
        """For this package: `table` has the shape (9, N) and is sorted by its first row."""
        self.version = version
        self._table = cast(IntArray, sealed(table))
        self._views = views
        self._codings: dict[str, Coding] = {}
        self._derived: dict[Hashable, tuple[Callable[[HostView], Any], npt.NDArray[Any]]] = {}

    @classmethod
    def from_views(cls, views: Iterable[HostView], version: int) -> HostColumns:
        """Build the columns from rows in any order.

        Raises `InvalidInput` when two rows have the same id.
        """
        rows = tuple(sorted(views, key=attrgetter("id")))
        table = np.empty((ROWS, len(rows)), dtype=np.int64)
        if rows:
            table[:] = np.array([number_row(view) for view in rows], dtype=np.int64).T
            same = np.flatnonzero(table[ID, 1:] == table[ID, :-1])
            if same.size:
                twice = rows[int(same[0])].id
                raise InvalidInput("host id", twice, "a host may be in a snapshot once")
        return cls(table, rows, version)

    def take(self, rows: IntArray) -> HostColumns:
        """Give the hosts at `rows` (row numbers in ascending order), with the same version."""
        return _Part(self, rows)

    @property
    def scarce(self) -> bool:
        """Whether empty hosts are scarce: under a tenth of all those that are up is empty."""
        every = self.whole
        empty = int(np.count_nonzero(every.up & (every.instances == 0)))
        return empty * SCARCE < int(np.count_nonzero(every.up))

    @property
    def small(self) -> bool:
        """Whether fewer than 16 of all hosts are up."""
        return int(np.count_nonzero(self.whole.up)) < SMALL

    @property
    def whole(self) -> HostColumns:
        """All hosts, also those that did not pass: what these columns were taken from."""
        return self

    @property
    def numbers(self) -> IntArray:
        """All numbers, shape (9, N): for the table that keeps them up to date."""
        return self._table

    def __len__(self) -> int:
        return int(self._table.shape[1])

    def __iter__(self) -> Iterator[HostView]:
        return (self.view(row) for row in range(len(self)))

    def view(self, row: int) -> HostView:
        """Give the host at a row number as a `HostView`."""
        return self._views[row]

    def row_of(self, host: int) -> int | None:
        """Give the row number of a host id, None where it is not there."""
        row = int(np.searchsorted(self.ids, host))
        return row if row < len(self) and self.ids[row] == host else None

    def among(self, hosts: Iterable[int]) -> BoolArray:
        """True where the host's id is one of `hosts`."""
        mask = np.zeros(len(self), dtype=np.bool_)
        for host in hosts:
            row = self.row_of(host)
            if row is not None:
                mask[row] = True
        return mask

    def _row(self, number: int) -> IntArray:
        return cast(IntArray, self._table[number])

    @property
    def ids(self) -> IntArray:
        """Host ids, ascending."""
        return self._row(ID)

    @property
    def vcpus_limit(self) -> IntArray:
        """Virtual CPUs that may be given out."""
        return self._row(LIMIT)

    @property
    def memory_limit_mib(self) -> IntArray:
        """Memory that may be given out, MiB."""
        return self._row(LIMIT + 1)

    @property
    def disk_limit_mib(self) -> IntArray:
        """Disk that may be given out, MiB."""
        return self._row(LIMIT + 2)

    @property
    def vcpus_used(self) -> IntArray:
        """Virtual CPUs given out."""
        return self._row(USED)

    @property
    def memory_used_mib(self) -> IntArray:
        """Memory given out, MiB."""
        return self._row(USED + 1)

    @property
    def disk_used_mib(self) -> IntArray:
        """Disk given out, MiB."""
        return self._row(USED + 2)

    @property
    def instances(self) -> IntArray:
        """Instances on the host."""
        return self._row(INSTANCES)

    @cached_property
    def up(self) -> BoolArray:
        """True where the host's state is "up"."""
        return cast(BoolArray, sealed(self._table[UP] != 0))

    @cached_property
    def _free(self) -> IntArray:
        return cast(IntArray, sealed(self._table[LIMIT:USED] - self._table[USED:INSTANCES]))

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

    @cached_property
    def free(self) -> FloatArray:
        """What is free of vcpus, memory and disk, shape (3, N): as float64, which holds them all.

        For formulas with `parts`: numpy converts whole numbers piece by piece, which takes longer
        than the arithmetic.
        """
        return cast(FloatArray, sealed(self._free.astype(np.float64)))

    @property
    def busy_until(self) -> FloatArray:
        """When the last of a host's instances is expected to end, seconds; 0 for never mind."""
        return self.derived("busy_until", attrgetter("busy_until"), np.float64)

    @cached_property
    def parts(self) -> FloatArray:
        """1 / limit of vcpus, memory and disk, shape (3, N), and 0 where the limit is 0.

        A difference of amounts times this is a part of the host; a product is the same for one
        host and for all, and quicker than a quotient.
        """
        return cast(FloatArray, sealed(parts_of(self._table[LIMIT:USED])))

    def matching(
        self, attribute: str, key: Hashable, of: Callable[[Any], _T],
        dtype: npt.DTypeLike = np.bool_,
    ) -> npt.NDArray[Any]:
        """Give `of(value)` for each host, where value is the `HostView`'s `attribute`.

        `of` is called once for each value that there is, and its answers are kept under `key`: it
        may depend on the value and what is in `key` alone. The attribute has to be hashable.
        """
        return self._coding(attribute).matching(key, of, dtype)

    def _coding(self, attribute: str) -> Coding:
        coding = self._codings.get(attribute)
        if coding is None:
            coding = self._codings[attribute] = Coding(attribute, self._views)
        return coding

    def derived(
        self, key: Hashable, of: Callable[[HostView], _T], dtype: npt.DTypeLike = np.bool_
    ) -> npt.NDArray[Any]:
        """Give `of(host)` for each host: a column for what the others do not say.

        It is worked out once for a `key` and kept, so `of` may depend on what is in `key` and on
        the host without its used amounts and its number of instances.
        """
        known = self._derived.get(key)
        if known is not None:
            return known[1]
        column = np.array([of(view) for view in self._views], dtype=dtype)
        self._derived[key] = of, sealed(column)
        return column

    def has_arch(self, arch: str) -> BoolArray:
        """True where the host's architecture is `arch`."""
        return self.matching("arch", arch, lambda value: value == arch)

    def has_capability(self, name: str) -> BoolArray:
        """True where the host has the capability `name`."""
        return self.matching("capabilities", name, lambda names: name in names)

    def has_image(self, sha256: str) -> BoolArray:
        """True where the image is on the host already."""
        return self.matching("images", sha256, lambda images: sha256 in images)

    def disk_need_mib(self, request: PlacementRequest) -> IntArray | int:
        """Disk the request takes: one number for all, or shape (N,) where it depends on the host.

        need = disk_mib + (0 where the image is there or none is asked for, else image_mib)
        """
        if request.image is None or request.image_mib == 0:
            return request.disk_mib
        missing = ~self.has_image(request.image)
        return request.disk_mib + missing.astype(np.int64) * request.image_mib


class _Part(HostColumns):
    """Some of the hosts of others. A column is copied when it is asked for: few are."""

    def __init__(self, source: HostColumns, rows: IntArray) -> None:
        self.version = source.version
        self._source = source
        self._rows = rows
        self._known: dict[int, IntArray] = {}
        self._codings = {}
        self._derived = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def whole(self) -> HostColumns:
        """As of all columns."""
        return self._source.whole

    @property
    def numbers(self) -> IntArray:
        """As of all columns."""
        return self._source.numbers.take(self._rows, axis=1)

    def view(self, row: int) -> HostView:
        """As of all columns."""
        return self._source.view(int(self._rows[row]))

    def _row(self, number: int) -> IntArray:
        row = self._known.get(number)
        if row is None:
            row = self._known[number] = sealed(self._source._row(number).take(self._rows))
        return row

    @cached_property
    def up(self) -> BoolArray:
        """As of all columns."""
        return sealed(self._source.up.take(self._rows))

    @cached_property
    def _free(self) -> IntArray:
        return sealed(self._source._free.take(self._rows, axis=1))

    @cached_property
    def free(self) -> FloatArray:
        """As of all columns."""
        return sealed(self._source.free.take(self._rows, axis=1))

    @cached_property
    def parts(self) -> FloatArray:
        """As of all columns."""
        return sealed(self._source.parts.take(self._rows, axis=1))

    def _coding(self, attribute: str) -> Coding:
        coding = self._codings.get(attribute)
        if coding is None:
            coding = self._codings[attribute] = self._source._coding(attribute).copy(self._rows)
        return coding

    def derived(
        self, key: Hashable, of: Callable[[HostView], _T], dtype: npt.DTypeLike = np.bool_
    ) -> npt.NDArray[Any]:
        """As of all columns."""
        known = self._derived.get(key)
        if known is None:
            column = sealed(self._source.derived(key, of, dtype).take(self._rows))
            known = self._derived[key] = of, column
        return known[1]
