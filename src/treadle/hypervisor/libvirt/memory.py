"""What was read of a host's domains, and holds until an event or a verb of ours says otherwise.

A call to a host takes longer than most of what is done with its answer. libvirt tells of each
change of a definition and of each start and stop; of what it does not tell (whether a domain
starts with its host) `check` hears when all domains are looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MARK = "mark"
"""The mark of what runs, or else of the definition."""
DEFINED = "defined"
AUTOSTART = "autostart"
STORED = "stored"
"""The generation of the definition, and what somebody else has changed in it."""
ADDRESSES = "addresses"
"""Where the guest that runs is reached, once it is."""
RUNNING = (MARK, ADDRESSES)
"""What is another's when another guest runs, or none."""
ALL = (*RUNNING, DEFINED, AUTOSTART, STORED)
LATE_S = 5.0
"""How long after a definition of ours an event may be that one's."""


class Memory:
    """Facts by domain. Nothing is kept until `on`: where no event would say that it is old."""

    def __init__(self) -> None:
        self.on = False
        self._lock = threading.Lock()
        self._facts: dict[str, dict[str, Any]] = {}
        self._since = object()
        self._told: dict[str, float] = {}

    def get(self, uuid: str, fact: str, read: Callable[[], T]) -> T:
        """What is kept, or else what `read` says, which is kept unless it is None or something
        was forgotten while it was read."""
        with self._lock:
            known = self._facts.get(uuid, {})
            if fact in known:
                value: T = known[fact]
                return value
            since = self._since
        value = read()
        with self._lock:
            if self.on and value is not None and since is self._since:
                self._facts.setdefault(uuid, {})[fact] = value
        return value

    def put(self, uuid: str, fact: str, value: Any) -> None:
        """What a verb has just made so, where something else is kept."""
        with self._lock:
            self._since = object()
            if fact in self._facts.get(uuid, {}):
                self._facts[uuid][fact] = value

    def changing(self, uuid: str) -> None:
        """A verb is about to store a definition: libvirt tells of that once, which is no news."""
        with self._lock:
            self._told[uuid] = time.monotonic() + LATE_S

    def changed(self, uuid: str, facts: Mapping[str, Any], gone: Sequence[str]) -> None:
        """It has: what was known of those that are `gone` counts no more, and `facts` are so now.
        What was read meanwhile is not kept."""
        with self._lock:
            self._since = object()
            if self.on:
                known = self._facts.setdefault(uuid, {})
                for fact in gone:
                    known.pop(fact, None)
                known.update(facts)

    def hear(self, uuid: str) -> None:
        """Somebody has stored a definition, says an event: forget all, unless it was us."""
        with self._lock:
            self._since = object()
            if time.monotonic() > self._told.pop(uuid, 0.0):
                self._facts.pop(uuid, None)

    def check(self, uuid: str, fact: str, value: Any) -> None:
        """Forget what is known of the domain if this was seen, and another value is kept."""
        with self._lock:
            self._since = object()
            if self._facts.get(uuid, {}).get(fact, value) != value:
                del self._facts[uuid]

    def forget(self, uuid: str, facts: Sequence[str] = ALL) -> None:
        """These facts of the domain."""
        with self._lock:
            self._since = object()
            self._told.pop(uuid, None)
            known = self._facts.get(uuid, {})
            for fact in facts:
                known.pop(fact, None)

    def clear(self) -> None:
        """Everything of every domain."""
        with self._lock:
            self._since = object()
            self._facts.clear()
