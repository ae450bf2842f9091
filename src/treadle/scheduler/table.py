"""The hosts as they are now: one writer changes rows in place, readers are given snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from treadle.scheduler.model import HostColumns, HostView


class HostTable:
    """All hosts by id. For one thread at a time; what `columns` gives may be read by any.

    `version` counts the changes.
    """

    def __init__(self, views: Iterable[HostView] = ()) -> None:
        self._columns = HostColumns.from_views(views, 0)
        self.version = 0

    def __len__(self) -> int:
        return len(self._columns)

    def view(self, host: int) -> HostView | None:
        """The host as it is now, None where it is not there."""
        row = self._columns.row_of(host)
        return None if row is None else self._columns.view(row)

    def put(self, view: HostView) -> None:
        """Add the host, or replace it."""
        self.version += 1
        self._columns = self._columns.replaced([view], self.version)

    def drop(self, host: int) -> None:
        """Forget the host; nothing where it is not there."""
        self.version += 1
        self._columns = HostColumns.from_views(
            [view for view in self._columns if view.id != host], self.version
        )

    def use(
        self, host: int, vcpus: int, memory_mib: int, disk_mib: int, instances: int = 1
    ) -> None:
        """Add to what the host has given out; negative amounts give it back."""
        view = self.view(host)
        if view is not None:
            self.put(replace(
                view, vcpus_used=view.vcpus_used + vcpus,
                memory_used_mib=view.memory_used_mib + memory_mib,
                disk_used_mib=view.disk_used_mib + disk_mib,
                instances=view.instances + instances,
            ))

    def columns(self) -> HostColumns:
        """The hosts as they are now, as an immutable snapshot."""
        return self._columns
