"""The hosts as they are now: one writer changes rows in place, readers are given snapshots.

The numbers are kept twice: as columns for formulas over all hosts, and as rows of plain numbers,
since looking at one or two rows through numpy costs more than the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from treadle.memory import keep_freed_memory
from treadle.scheduler.columns import (
    INSTANCES,
    LIMIT,
    SCARCE,
    SMALL,
    UP,
    USED,
    Coding,
    HostColumns,
    number_row,
    parts_of,
    sealed,
)
from treadle.scheduler.model import HostRow, HostView

_T = TypeVar("_T")
_LEAST_LOG = 65_536
_LARGE = 10_000
_CODED = ("arch", "capabilities", "images", "zone", "rack", "properties", "numa", "pci")


class HostTable:
    """All hosts by id. For one thread at a time; what `columns` gives may be read by any.

    `changed` is the log of changes: a row number for each `use`, its complement (`~row`) for each
    `put`. It starts anew with each `epoch`: then any row may be another.
    """

    def __init__(self, views: Iterable[HostView] = ()) -> None:
        self.epoch = 0
        self.changed: list[int] = []
        self._past = 0  # changes before those in the log
        self._build(sorted(views, key=attrgetter("id")))

    def _build(self, views: list[HostView]) -> None:
        if len(views) >= _LARGE:
            keep_freed_memory()
        snapshot = HostColumns.from_views(views, self.version)
        self._numbers = snapshot.numbers.copy()
        self._free = self._numbers[LIMIT:USED] - self._numbers[USED:INSTANCES]
        self._free_float = self._free.astype(np.float64)
        self._up = self._numbers[UP] != 0
        self._parts = parts_of(self._numbers[LIMIT:USED])
        self.rows = [HostRow(view) for view in views]
        self._row_of = {view.id: number for number, view in enumerate(views)}
        self._codings = {name: Coding(name, views) for name in _CODED}
        snapshot._codings = {name: coding.copy() for name, coding in self._codings.items()}
        self._views = views
        self._unseen: set[int] = set()  # rows that the last snapshot does not show
        self._replaced: set[int] = set()  # rows that were put since the last snapshot
        self._snapshot = snapshot
        self._settled = len(self.changed)  # up to where in the log the columns show it
        self._begin_epoch()

        up = [view for view in views if view.state == "up"]
        self._up_hosts, self._empty_hosts = len(up), sum(1 for one in up if not one.instances)

    def _begin_epoch(self) -> None:
        self._settle()
        self.epoch += 1
        self._past = self.version
        self.changed = []
        self._settled = 0
        self._most_changes = max(_LEAST_LOG, 4 * len(self.rows))
        self._live = LiveColumns(self)

    @property
    def version(self) -> int:
        """How many changes there have been."""
        return self._past + len(self.changed)

    def __len__(self) -> int:
        return len(self.rows)

    def row_of(self, host: int) -> int | None:
        """The row number of a host id, None where it is not there."""
        return self._row_of.get(host)

    def view(self, host: int) -> HostView | None:
        """The host as it is now, None where it is not there."""
        row = self._row_of.get(host)
        return None if row is None else self.rows[row].view

    def put(self, view: HostView) -> None:
        """Add the host, or replace it."""
        row = self._row_of.get(view.id)
        if row is None:
            self._past += 1
            others = [one.view for one in self.rows]
            self._build(sorted([*others, view], key=attrgetter("id")))
            return
        self._tally(self.rows[row].view, -1)
        self._tally(view, 1)
        numbers = self._numbers
        numbers[:, row] = number_row(view)
        self._free[:, row] = numbers[LIMIT:USED, row] - numbers[USED:INSTANCES, row]
        self._free_float[:, row] = self._free[:, row]
        self._parts[:, row] = parts_of(numbers[LIMIT:USED, row])
        self._up[row] = view.state == "up"
        self.rows[row] = HostRow(view)
        for name, coding in self._codings.items():
            coding.codes[row] = coding.code(view)
            if len(coding.index) > 2 * len(self.rows) + 1024:
                # Values that no host has any more are forgotten.
                self._codings[name] = Coding(name, [one.static for one in self.rows])
        self._replaced.add(row)
        self._live.forget(row)
        self.changed.append(~row)
        if len(self.changed) > self._most_changes:
            self._begin_epoch()

    def _tally(self, view: HostView, sign: int) -> None:
        if view.state == "up":
            self._up_hosts += sign
            self._empty_hosts += 0 if view.instances else sign

    @property
    def scarce(self) -> bool:
        """As `HostColumns.scarce`."""
        return self._empty_hosts * SCARCE < self._up_hosts

    @property
    def small(self) -> bool:
        """As `HostColumns.small`."""
        return self._up_hosts < SMALL

    def drop(self, host: int) -> None:
        """Forget the host; nothing where it is not there."""
        if host in self._row_of:
            self._past += 1
            self._build([one.view for one in self.rows if one.id != host])

    def expect(self, host: int, busy_until: float) -> None:
        """Note when the last of the host's instances is expected to end."""
        view = self.view(host)
        if view is not None and view.busy_until != busy_until:
            self.put(replace(view, busy_until=busy_until))

    def use(
        self, host: int, vcpus: int, memory_mib: int, disk_mib: int, instances: int = 1
    ) -> None:
        """Add to what the host has given out; negative amounts give it back.

        Nothing where the host is not there.
        """
        number = self._row_of.get(host)
        if number is None:
            return
        row = self.rows[number]
        row.free_vcpus -= vcpus
        row.free_memory_mib -= memory_mib
        row.free_disk_mib -= disk_mib
        before = row.instances
        row.instances = now = before + instances
        if (before == 0) != (now == 0) and row.static.state == "up":
            self._empty_hosts += 1 if before else -1
        changed = self.changed
        changed.append(number)
        if len(changed) > self._most_changes:
            self._begin_epoch()

    @property
    def live(self) -> HostColumns:
        """The columns themselves, not a copy: only for the writer, until its next change."""
        self._settle()
        return self._live

    def columns(self) -> HostColumns:
        """The hosts as they are now, as an immutable snapshot."""
        self._settle()
        if self._unseen:
            for row in self._unseen:
                self._views[row] = self.rows[row].view
            before, replaced = self._snapshot, self._replaced
            now = HostColumns(self._numbers.copy(), tuple(self._views), self.version)
            now.__dict__["parts"] = sealed(self._parts.copy())
            for name, coding in self._codings.items():
                now._codings[name] = coding.copy() if replaced else before._codings[name]
            for key, (of, column) in list(before._derived.items()):
                if replaced:
                    column = column.copy()
                    for row in replaced:
                        column[row] = of(self._views[row])
                now._derived[key] = of, sealed(column)
            self._snapshot = now
            self._unseen.clear()
            replaced.clear()
        return self._snapshot

    def _settle(self) -> None:
        """Bring the columns up to what the rows say."""
        if self._settled == len(self.changed):
            return
        stale = {row if row >= 0 else ~row for row in self.changed[self._settled:]}
        self._settled = len(self.changed)
        rows, numbers = self.rows, self._numbers
        some = np.fromiter(stale, dtype=np.int64, count=len(stale))
        now = np.array(
            [(r.free_vcpus, r.free_memory_mib, r.free_disk_mib, r.instances)
             for r in map(rows.__getitem__, stale)],
            dtype=np.int64,
        ).T
        self._free[:, some] = self._free_float[:, some] = now[:3]
        numbers[USED:INSTANCES, some] = numbers[LIMIT:USED, some] - now[:3]
        numbers[INSTANCES, some] = now[3]
        self._unseen |= stale


class LiveColumns(HostColumns):
    """The table's columns themselves: what is read is as it is now, and only by its writer."""

    def __init__(self, table: HostTable) -> None:
        super().__init__(table._numbers[:], (), table.version)
        self._owner = table
        # These are written in place by the table; `put` keeps the codings up to date.
        self.__dict__["_free"] = table._free
        self.__dict__["free"] = table._free_float
        self.__dict__["up"] = table._up
        self.__dict__["parts"] = table._parts
        self._codings = table._codings

    def view(self, row: int) -> HostView:
        """Give the host at a row number as a `HostView`."""
        return self._owner.rows[row].view

    def forget(self, row: int) -> None:
        """The host at a row number is another: work out its derived values anew."""
        view = self._owner.rows[row].static
        for of, column in self._derived.values():
            column[row] = of(view)

    def derived(
        self, key: Hashable, of: Callable[[HostView], _T], dtype: npt.DTypeLike = np.bool_
    ) -> npt.NDArray[Any]:
        """As of the snapshots."""
        known = self._derived.get(key)
        if known is None:
            column = np.array([of(row.static) for row in self._owner.rows], dtype=dtype)
            known = self._derived[key] = of, column
        return known[1]
