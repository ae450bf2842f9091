"""Labs of a test run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from treadle.lab.fabric import Lab, can_run

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def lab_name(kind: str) -> str:
    """Three letters, and this process's number: neither another worker's lab nor what an
    interrupted run has left up is of that name."""
    number, digits = os.getpid(), ""
    while number:
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return f"{kind}{digits}"


@contextmanager
def a_lab(
    kind: str, hosts: int, folder: Path | None = None, *, shared: bool = False
) -> Iterator[Lab]:
    """A lab that is up; it is ended whatever happens. Skips where there can be none."""
    problem = can_run()
    if problem:
        pytest.skip(problem)
    lab = Lab(lab_name(kind), folder)
    lab.down()
    try:
        lab.up(hosts, shared=shared)
        yield lab
    finally:
        lab.down()
