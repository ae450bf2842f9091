"""The NUMA cells of a host in the ledger, and what one instance holds of them.

A host's cells are one column of its row, so the statement that takes room of the host locks them
too: they are read, reckoned and written under that lock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from treadle.hypervisor.base import HostFacts
from treadle.scheduler import nodes


class Share(NamedTuple):
    """What one of a guest's nodes holds of the host's cell `cell`; memory in MiB."""

    cell: int
    vcpus: int
    memory_mib: int


class Cell(NamedTuple):
    """What the host's cell `id` has, with overcommit applied, and what is taken of it."""

    id: int
    vcpus_limit: int
    memory_limit_mib: int
    vcpus_used: int = 0
    memory_used_mib: int = 0

    @property
    def free(self) -> tuple[int, int]:
        """vCPUs and MiB; below 0 where it has become smaller than what is taken of it."""
        return (
            self.vcpus_limit - self.vcpus_used, self.memory_limit_mib - self.memory_used_mib
        )

    def less(self, share: Share) -> Cell:
        """The same with the share taken."""
        return self._replace(
            vcpus_used=self.vcpus_used + share.vcpus,
            memory_used_mib=self.memory_used_mib + share.memory_mib,
        )


def of_text(text: str) -> list[Cell]:
    """The cells as the column has them, by id."""
    return [Cell(*one) for one in json.loads(text)] if text else []


def shares_of(text: str) -> list[Share]:
    """What is held, one for each of the guest's nodes, as `text_of` wrote it."""
    return [Share(*one) for one in json.loads(text)] if text else []


def text_of(some: Iterable[Cell] | Iterable[Share]) -> str:
    """As a column has it: "" for none."""
    found = list(some)
    return json.dumps(found, separators=(",", ":")) if found else ""


def limits(
    facts: HostFacts, cpu_ratio: float, memory_ratio: float, reserved_mib: int
) -> list[Cell]:
    """What a host's cells have to give. Each bears its part of the memory that is reserved."""
    whole = sum(cell.memory_mib for cell in facts.cells) or 1
    return [
        Cell(
            cell.id, int(cell.vcpus * cpu_ratio),
            int(max(0.0, cell.memory_mib * (1 - reserved_mib / whole)) * memory_ratio),
        )
        for cell in sorted(facts.cells)
    ]


def same_limits(text: str, wanted: Sequence[Cell]) -> bool:
    """Whether the column says so already."""
    return [cell[:3] for cell in of_text(text)] == [cell[:3] for cell in wanted]


def relimited(text: str, wanted: Sequence[Cell]) -> str:
    """The column with other limits. A cell that is gone stays for as long as it is held of."""
    before = {cell.id: cell for cell in of_text(text)}
    found = []
    for cell in wanted:
        old = before.pop(cell.id, cell)
        found.append(cell._replace(
            vcpus_used=old.vcpus_used, memory_used_mib=old.memory_used_mib
        ))
    found += [
        cell._replace(vcpus_limit=0, memory_limit_mib=0) for cell in before.values()
        if cell.vcpus_used or cell.memory_used_mib
    ]
    return text_of(sorted(found))


def taken(
    text: str, count: int, vcpus: int, memory_mib: int, only: Sequence[int] = ()
) -> tuple[str, str] | None:
    """The column with `count` nodes taken, and what they hold; None where there is no room for
    them. `only`: on these cells, in this order."""
    cells = of_text(text)
    where = {cell.id: number for number, cell in enumerate(cells)}
    free = [cell.free for cell in cells]
    chosen: Collection[int] | None
    if only:
        fit = nodes.fitting(free, count, vcpus, memory_mib)
        chosen = [where[id] for id in only if where.get(id) in fit]
        if len(chosen) < count:
            return None
    else:
        chosen = nodes.choose(free, count, vcpus, memory_mib)
        if chosen is None:
            return None
    held = [
        Share(cells[number].id, cpus, mib) for number, cpus, mib in zip(
            chosen, nodes.split(vcpus, count), nodes.split(memory_mib, count), strict=True
        )
    ]
    for number, share in zip(chosen, held, strict=True):
        cells[number] = cells[number].less(share)
    return text_of(cells), text_of(held)


def given(text: str, held: str) -> str:
    """The column with what was held given back."""
    cells = {cell.id: cell for cell in of_text(text)}
    for share in shares_of(held):
        if share.cell in cells:
            back = Share(share.cell, -share.vcpus, -share.memory_mib)
            cells[share.cell] = cells[share.cell].less(back)
    return text_of(
        cell for cell in cells.values()
        if cell.vcpus_limit or cell.memory_limit_mib or cell.vcpus_used or cell.memory_used_mib
    )


def free_of(text: str) -> tuple[tuple[int, int], ...]:
    """What is free of each cell, as `HostView.numa` has it."""
    return tuple(cell.free for cell in of_text(text))
