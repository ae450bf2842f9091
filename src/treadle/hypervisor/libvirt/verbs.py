"""How the driver's verbs go: with a deadline, on a connection to a host that was prepared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import libvirt

from treadle.hypervisor.base import EventKind, HostRefused, HostSetup, HostUnreachable, Watcher
from treadle.hypervisor.libvirt import domains, errors, memory, network, probe, sharing, storage
from treadle.hypervisor.libvirt.connection import Attempt, Connection, LibvirtOptions, Link, Spares
from treadle.hypervisor.libvirt.domain_xml import canonical_uuid
from treadle.hypervisor.libvirt.domains import NO_DOMAIN, lookup

T = TypeVar("T")


class Verbs:
    """One host, by its libvirt URI. Making it connects to nothing."""

    def __init__(self, uri: str, options: LibvirtOptions) -> None:
        self.uri = uri
        self._options = options
        self._setup = HostSetup()
        self._assumed: Callable[[], HostSetup | None] | None = None
        self._preparing = threading.Lock()
        self._filtered = False
        self._watcher: Watcher | None = None
        self._stops = probe.Stops()
        self._main = Connection(uri, options, self._changed, self._lost)
        # Streams of bytes and other calls on one connection hold each other up.
        self._bulk = Connection(uri, options)
        # So do agents that hang: a connection has only a few calls at once.
        self._agents = Connection(uri, options)
        self._spares = Spares(uri, options)
        self._images = threading.Lock()

    # -- the host

    def beat(self, seconds: float) -> bool | None:
        return self._main.beat(seconds)

    def prepare(self, setup: HostSetup) -> None:
        """Connect; make the pool, the network and the filter. Errors: `HostRefused`."""

        def act(link: Link, attempt: Attempt) -> bool:
            host = urlsplit(self.uri).hostname or ""
            path = setup.pool_path or storage.default_path(setup.pool, link, host)
            storage.prepare_pool(link, attempt, setup.pool, path)
            sharing.register(link, attempt, storage.pool_of(link, attempt, setup.pool))
            bridge = setup.bridge
            if not bridge and not link.session:
                network.prepare_network(link, attempt, setup.network, setup.subnet)
                bridge = network.bridge_of(link, attempt, setup.network)
            # libvirt 9.0 refuses to start a container with a filter.
            wanted = self._options.anti_spoofing and link.kind == "QEMU" and not link.session
            return wanted and bool(bridge) and network.prepare_filter(link, attempt, bridge)

        self._filtered = self._main.run("prepare", self._options.deadlines.change, act)
        self._setup, self._assumed = setup, None

    def assume(self, setup: Callable[[], HostSetup | None]) -> None:
        """Whoever comes first prepares it; the others wait."""
        self._assumed = setup

    def watch(self, watcher: Watcher) -> None:
        """Has effect from now on, over reconnections too; does not connect. Events of domains
        that are not ours come as well: the watcher knows its UUIDs."""
        self._watcher = watcher

    def close(self) -> None:
        """Let the connections go."""
        self._main.close()
        self._bulk.close()
        self._agents.close()
        self._spares.tidy(0.0)

    # -- how a verb goes

    def _run(
        self,
        verb: str,
        seconds: float,
        body: Callable[[Link, Attempt], T],
        lane: Connection | None = None,
    ) -> T:
        self._get_ready(verb)

        def whole(link: Link, attempt: Attempt) -> T:
            try:
                return body(link, attempt)
            except libvirt.libvirtError as error:
                if errors.code_of(error) != NO_DOMAIN:
                    raise
                # It is gone, perhaps for long: look again, once, at what is there now.
                link.domains.clear()
                link.memory.clear()
                return body(link, attempt)

        return (lane or self._main).run(verb, seconds, whole)

    def _get_ready(self, verb: str) -> None:
        if self._assumed is None:
            return
        if not self._preparing.acquire(timeout=self._options.deadlines.change):
            raise HostUnreachable(f"{verb}: the host is still being prepared")
        try:
            setup = None if self._assumed is None else self._assumed()
            if setup is not None:
                self.prepare(setup)
        except HostRefused as error:
            raise HostUnreachable(f"{verb}: {error}") from error
        finally:
            self._preparing.release()

    def _change(
        self,
        verb: str,
        uuid: str,
        body: Callable[[domains.Subject], T],
        absent_is_success: bool = False,
        more: float = 0.0,
        changes: Sequence[str] = memory.ALL,
    ) -> T | None:
        """`changes`: what is read anew after it, of what is kept of the domain."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> T | None:
            domain = lookup(link, attempt, uuid)
            if domain is None:
                if absent_is_success:
                    return None
                raise HostRefused("there is no such domain on the host")
            mark = domains.known_mark(link, attempt, domain, uuid)
            if mark is None:
                raise HostRefused("this domain is not Treadle's")
            try:
                return body(domains.Subject(link, attempt, domain, mark))
            finally:
                link.memory.forget(uuid, changes)

        return self._run(verb, self._options.deadlines.change + more, act)

    # -- events

    def _changed(self, uuid: str, event: int, reason: int) -> None:
        self._stops.tell(uuid, event, reason)
        watcher = self._watcher
        if watcher is not None:
            watcher(EventKind.DOMAIN, uuid)

    def _lost(self) -> None:
        watcher = self._watcher
        if watcher is not None:
            watcher(EventKind.HOST_LOST, "")
