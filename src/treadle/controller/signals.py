"""Hints inside this process: something is due, something changed. They carry no data.

A lost hint costs time, never truth: whoever waits also looks for himself from time to time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Key = tuple[str, str]


class Signals:
    """What worker threads tell the dispatcher and those who wait for an outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[Key, list[Callable[[], None]]] = {}
        self.due = threading.Event()

    def work_is_due(self) -> None:
        """Let the dispatcher look at the queue now."""
        self.due.set()

    def changed(self, key: Key) -> None:
        """Tell those who listen that the row behind `key` has been committed anew."""
        with self._lock:
            listeners = list(self._listeners.get(key, ()))
        for listener in listeners:
            listener()

    def listen(self, key: Key, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` (from any thread; it must not block) on each change; returns the undo."""
        with self._lock:
            self._listeners.setdefault(key, []).append(listener)

        def undo() -> None:
            with self._lock:
                left = self._listeners.get(key, [])
                if listener in left:
                    left.remove(listener)
                if not left:
                    self._listeners.pop(key, None)

        return undo
