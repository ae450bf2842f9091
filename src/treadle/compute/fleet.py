"""The drivers of the hosts in use: one each, made on first use, kept until it is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from treadle.db.engine import forbid_in_transaction
from treadle.hypervisor.base import DriverFactory, HostRefused, HostSetup, Hypervisor


class Fleet:
    """Hands out drivers by host. A driver is made anew where the host's URI has changed."""

    def __init__(
        self, factory: DriverFactory,
        setup_of: Callable[[int], HostSetup | None] = lambda _host_id: None,
    ) -> None:
        """`setup_of`: what a host is set up with, by its number, as far as it is known. A pass over
        a guest may be the first that this process makes on its host: the host's own may be due
        later, or be made by another process."""
        self._factory = factory
        self._setup_of = setup_of
        self._drivers: dict[int, tuple[str, Hypervisor]] = {}
        self._lock = threading.Lock()

    def driver(self, host_id: int, uri: str) -> Hypervisor:
        """The host's driver. Errors: `HostRefused` where no driver takes the URI."""
        with self._lock:
            known = self._drivers.get(host_id)
            if known is not None and known[0] == uri:
                return known[1]
            made = self._factory(uri)
            made.assume(lambda: self._setup_of(host_id))
            self._drivers[host_id] = (uri, made)
        if known is not None:
            known[1].close()
        return made

    def drop(self, host_id: int) -> None:
        """Let the host's driver go."""
        with self._lock:
            known = self._drivers.pop(host_id, None)
        if known is not None:
            known[1].close()

    def close(self) -> None:
        """Let all of them go."""
        with self._lock:
            drivers = [driver for _, driver in self._drivers.values()]
            self._drivers.clear()
        for driver in drivers:
            driver.close()


def call(driver: Hypervisor, verb: str, *args: Any) -> Any:
    """Call one verb of a driver, and never inside a database transaction.

    Errors: `HostRefused` where the driver has no such verb; the verb's own.
    """
    forbid_in_transaction()
    method: Callable[..., Any] | None = getattr(driver, verb, None)
    if method is None:
        raise HostRefused(f"this hypervisor cannot {verb.replace('_', ' ')}")
    return method(*args)
