"""How a guest's NUMA nodes go onto the cells of a host: even shares, a cell for each node."""

from __future__ import annotations

from collections.abc import Sequence

Free = Sequence[tuple[int, int]]
"""Of each cell the vCPUs and the MiB of memory that are free."""


def split(amount: int, nodes: int) -> list[int]:
    """An amount in whole shares that differ by one at most, the larger ones first."""
    least, more = divmod(amount, nodes)
    return [least + (node < more) for node in range(nodes)]


def fitting(free: Free, nodes: int, vcpus: int, memory_mib: int) -> list[int]:
    """The numbers of the cells with room for the largest share of so many nodes."""
    most_vcpus, most_mib = -(-vcpus // nodes), -(-memory_mib // nodes)
    return [
        number for number, (cpus, mib) in enumerate(free)
        if cpus >= most_vcpus and mib >= most_mib
    ]


def choose(free: Free, nodes: int, vcpus: int, memory_mib: int) -> list[int] | None:
    """The cells for the nodes, ascending: of those with room the ones with the least memory free,
    so that whole cells are left for those who need one. None where they are too few."""
    found = fitting(free, nodes, vcpus, memory_mib)
    if len(found) < nodes or nodes > vcpus:
        return None
    found.sort(key=lambda number: (free[number][1], free[number][0], number))
    return sorted(found[:nodes])


def without(
    free: tuple[tuple[int, int], ...], nodes: int, vcpus: int, memory_mib: int
) -> tuple[tuple[int, int], ...]:
    """What is free once the nodes are there; the same where they are none, or have no room."""
    chosen = choose(free, nodes, vcpus, memory_mib) if nodes else None
    if chosen is None:
        return free
    left = list(free)
    shares = zip(chosen, split(vcpus, nodes), split(memory_mib, nodes), strict=True)
    for number, cpus, mib in shares:
        left[number] = left[number][0] - cpus, left[number][1] - mib
    return tuple(left)
