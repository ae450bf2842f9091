"""The controller's program, which also writes down how long each call of libvirt's takes.

A line a call, the function and its seconds, into the file that `BENCH_CALLS` names.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from treadle.cli.main import main
from treadle.hypervisor.libvirt.connection import Attempt

CALLS = "BENCH_CALLS"


def note_calls(path: Path) -> None:
    """From now on, in this process."""
    plain = Attempt.__call__
    out = path.open("a", buffering=1)

    def noted(self: Attempt, function: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(self, function, *arguments)
        finally:
            out.write(f"{function.__name__} {time.perf_counter() - started}\n")

    Attempt.__call__ = noted  # type: ignore[method-assign]


def calls_after(path: Path, offset: int) -> dict[str, float]:
    """The seconds of each function in the lines that come after so many bytes."""
    found: dict[str, float] = {}
    for line in path.read_bytes()[offset:].decode().splitlines():
        name, seconds = line.split()
        found[name] = found.get(name, 0.0) + float(seconds)
    return found


if __name__ == "__main__":
    note_calls(Path(os.environ[CALLS]))
    main()
