"""Waiting for something to come about, never longer than it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `done` gives something true; that. What takes long is asked for less often: asking
    takes processor time from what is waited for."""
    start = time.monotonic()
    while True:
        found = done()
        if found:
            return found
        waited = time.monotonic() - start
        assert waited < seconds, f"waited {seconds:g} s for {what}"
        time.sleep(min(0.3, max(0.01, waited / 10)))
