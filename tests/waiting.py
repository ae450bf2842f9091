"""Waiting for something to come about, never longer than it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `done` gives something true; that."""
    end = time.monotonic() + seconds
    while True:
        found = done()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
