"""What the C library does with memory that is freed: mallopt(3) of glibc; elsewhere nothing."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
SMALL = 128 * 1024
LARGE = 32 << 20
"""The most that glibc takes for `M_MMAP_THRESHOLD`."""


def give_freed_memory_back() -> None:
    """Have what is freed at the end of a heap go back to the system from 128 KiB on. glibc raises
    that by itself otherwise: a busy controller kept 20 MB that it did not use."""
    _set(M_TRIM_THRESHOLD, SMALL)


def keep_freed_memory() -> None:
    """Have large blocks come from what was freed before, where they come and go all the time. Over
    100,000 hosts the page faults of fresh columns cost six times the arithmetic."""
    _set(M_MMAP_THRESHOLD, LARGE)
    _set(M_TRIM_THRESHOLD, 2 * LARGE)


def trim() -> None:
    """Give back now what is free anywhere in the heaps: after a start, what its imports took for a
    moment (malloc_trim(3))."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _set(name: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(name, value)
