"""The hypervisor driver for libvirt: each verb of the contract, in calls of libvirt's.

Every verb is a body that runs on the host's shared connection with a deadline. A domain is ours
by the mark in its metadata; no other is ever changed, and none is named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import libvirt

from treadle.hypervisor.base import (
    NOT_BY_HOST,
    AgentFailed,
    ConsoleKind,
    ConsoleLine,
    Domain,
    DomainSpec,
    EventKind,
    GuestStats,
    HostFacts,
    HostRefused,
    HostSetup,
    Hypervisor,
    ImageSpec,
    MoveOptions,
    MoveProgress,
    Power,
    Unsupported,
    VerbTimeout,
    Watcher,
)
from treadle.hypervisor.libvirt import (
    capabilities,
    consoles,
    containers,
    copies,
    errors,
    growth,
    guest,
    moves,
    network,
    probe,
    seed,
    shape,
    storage,
    transfers,
)
from treadle.hypervisor.libvirt.connection import (
    Attempt,
    Connection,
    LibvirtOptions,
    Link,
    Spares,
    as_value,
)
from treadle.hypervisor.libvirt.domain_xml import (
    NAMESPACE,
    PREFIX,
    Mark,
    Place,
    canonical_uuid,
    domain_xml,
    read_mark,
    seed_volume,
)
from treadle.hypervisor.libvirt.states import SHUTS_DOWN_WHEN_ASKED, domain_of, power_of

T = TypeVar("T")

ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
GUEST_SSH = 22

NO_DOMAIN = libvirt.VIR_ERR_NO_DOMAIN

UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
UNDEFINE_LEAST = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)


@dataclass(frozen=True, slots=True)
class _Subject:
    """A domain of ours that a verb is about."""

    link: Link
    attempt: Attempt
    domain: Any
    mark: Mark


class LibvirtDriver:
    """One host, by its libvirt URI. Making it connects to nothing."""

    def __init__(self, uri: str, options: LibvirtOptions) -> None:
        self.uri = uri
        self._options = options
        self._setup = HostSetup()
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
            bridge = setup.bridge
            if not bridge and not link.session:
                network.prepare_network(link, attempt, setup.network, setup.subnet)
                bridge = network.bridge_of(link, attempt, setup.network)
            # libvirt 9.0 refuses to start a container with a filter.
            wanted = self._options.anti_spoofing and link.kind == "QEMU" and not link.session
            return wanted and bool(bridge) and network.prepare_filter(link, attempt, bridge)

        self._filtered = self._run("prepare", self._options.deadlines.change, act)
        self._setup = setup

    def facts(self) -> HostFacts:
        """What the host is. `disk_mib` is 0 before `prepare`."""
        self._spares.tidy()

        def act(link: Link, attempt: Attempt) -> HostFacts:
            shape = capabilities.shape_of(link, attempt)
            version = attempt(link.conn.getVersion)
            return HostFacts(
                hostname=attempt(link.conn.getHostname),
                host_uuid=shape.host_uuid,
                vcpus=int(attempt(link.conn.getInfo)[2]),
                memory_mib=capabilities.memory_mib(link, attempt),
                disk_mib=self._disk_mib(link, attempt),
                arch=shape.arch,
                virt_types=shape.virt_types,
                libvirt_version=capabilities.version_text(attempt(link.conn.getLibVersion)),
                hypervisor=link.kind.lower(),
                hypervisor_version=capabilities.version_text(version),
                capabilities=capabilities.of_kind(
                    link.kind, link.session, self._filtered,
                    consoles.has_screen(link.kind, self.uri), shape.arch,
                ),
                booted_at=capabilities.booted_at(link, attempt),
            )

        return self._run("facts", self._options.deadlines.look, act)

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

    def probe(self, virt_type: str, seconds: float) -> bool:
        """Boot 512 bytes that power the machine off. False where the host refuses to as well."""

        def act(link: Link, attempt: Attempt) -> bool:
            if link.kind != "QEMU":
                raise Unsupported("only QEMU hosts can be probed")
            pool = storage.pool_of(link, attempt, self._setup.pool)
            place = self._place(link, attempt, virt_type)
            return probe.run(link, attempt, pool, place, self._stops, seconds)

        return self._run("probe", self._options.deadlines.change + seconds, act)

    def unprepare(self) -> None:
        """The filter stays: it may be another's too."""

        def act(link: Link, attempt: Attempt) -> None:
            if not self._setup.bridge and not link.session:
                network.remove_network(link, attempt, self._setup.network)
            storage.remove_pool(link, attempt, self._setup.pool)

        self._run("unprepare", self._options.deadlines.change, act)

    # -- looking

    def observe(self, uuid: str) -> Domain | None:
        """A domain of ours, or what is left of one. Another's counts as nothing."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> Domain | None:
            domain = self._lookup(link, attempt, uuid)
            if domain is None:
                pool = storage.pool_of(link, attempt, self._setup.pool)
                left = storage.has_disk(attempt, pool, uuid)
                return Domain(uuid, Power.REMNANT) if left else None
            mark = self._mark(attempt, domain)
            if mark is None:
                return None
            state, reason = self._state(attempt, domain)
            saved = power_of(state) is None and bool(attempt(domain.hasManagedSaveImage, 0))
            addresses: tuple[str, ...] = ()
            if power_of(state) is Power.RUNNING:
                addresses = self._addresses(link, attempt, domain, mark, None)
            found = domain_of(
                uuid, state, reason, saved, mark, addresses, self._autostart(attempt, domain)
            )
            defined = bool(attempt(domain.isPersistent))
            changed = self._changes(link, attempt, domain) if defined else ()
            return replace(found, defined=defined, changed=changed)

        return self._run("observe", self._options.deadlines.look, act)

    def observe_all(self) -> Sequence[Domain]:
        """All of ours, and remnants; by UUID."""

        def act(link: Link, attempt: Attempt) -> list[Domain]:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            # Disks before domains: one that is defined meanwhile is no remnant.
            left, copied = storage.remnants(attempt, pool)
            saved_flag = libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE
            rows = self._all_states(link, attempt)
            saved = {d.UUIDString() for d in attempt(link.conn.listAllDomains, saved_flag)}
            auto = self._all_autostarted(link, attempt)
            leases = self._all_leases(link, attempt)
            flag = libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT
            undefined = {d.UUIDString() for d in attempt(link.conn.listAllDomains, flag)}
            link.changes.clear()  # an event may have been missed
            found: dict[str, Domain] = {}
            for domain, state, reason in rows:
                uuid = domain.UUIDString()
                left.discard(uuid)
                mark = as_value(
                    attempt, lambda d=domain: self._mark(attempt, d),
                    missing=libvirt.VIR_ERR_NO_DOMAIN,
                )
                if mark is None:
                    continue
                addresses: tuple[str, ...] = ()
                if power_of(state) is Power.RUNNING:
                    addresses = self._addresses(link, attempt, domain, mark, leases)
                found[uuid] = domain_of(
                    uuid, state, reason, uuid in saved, mark, addresses,
                    None if auto is None else uuid in auto,
                )
                if uuid not in undefined:
                    changed = as_value(
                        attempt, lambda d=domain: self._changes(link, attempt, d),
                        missing=libvirt.VIR_ERR_NO_DOMAIN,
                    )
                    found[uuid] = replace(found[uuid], changed=changed or ())
            for uuid in left:
                found[uuid] = Domain(uuid, Power.REMNANT)
            return [
                replace(found[uuid], copied=uuid in copied, defined=uuid not in undefined)
                for uuid in sorted(found)
            ]

        return self._run("observe_all", self._options.deadlines.look, act)

    def _all_states(self, link: Link, attempt: Attempt) -> list[tuple[Any, int, int]]:
        """Each domain with its state and the reason of it; in one call where there is one."""
        if link.kind == "LXC":
            rows = []
            for domain in attempt(link.conn.listAllDomains, 0):
                found = as_value(attempt, domain.state, 0, missing=NO_DOMAIN)
                if found is not None:
                    rows.append((domain, int(found[0]), int(found[1])))
            return rows
        return [
            (domain, stats["state.state"], stats["state.reason"])
            for domain, stats in attempt(
                link.conn.getAllDomainStats, libvirt.VIR_DOMAIN_STATS_STATE, 0
            )
        ]

    def console_log(self, uuid: str, limit: int) -> bytes:
        """The end of what the guest printed since it was last started anew."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> bytes:
            self._ours(link, attempt, uuid)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            return storage.read_console(link, attempt, pool, uuid, limit)

        return self._run("console_log", self._options.deadlines.look, act, lane=self._bulk)

    # -- copies

    def begin_copy(self, uuid: str) -> None:
        """Errors: `HostRefused` where there is no such domain; `Unsupported`."""

        def act(it: _Subject) -> None:
            pool = storage.pool_of(it.link, it.attempt, self._setup.pool)
            runs = self._power(it.attempt, it.domain) is not None
            copies.begin(it.link, it.attempt, pool, it.domain, runs)

        self._change("begin_copy", uuid, act)

    def fetch_copy(self, uuid: str, into: Callable[[bytes], None]) -> None:
        """The deadline grows with the disk's size."""
        uuid = canonical_uuid(uuid)
        limits = self._options.deadlines

        def act(link: Link, attempt: Attempt) -> None:
            domain = self._ours(link, attempt, uuid)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            runs = self._power(attempt, domain) is not None
            copies.fetch(link, attempt, pool, domain, runs, into, limits.copy_mib_s)

        self._run("fetch_copy", limits.change, act, lane=self._bulk)

    def drop_copy(self, uuid: str) -> None:
        """Absent is success."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> None:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            copies.drop(attempt, pool, self._lookup(link, attempt, uuid), uuid)

        self._run("drop_copy", self._options.deadlines.change, act)

    # -- moves

    def expect(self, spec: DomainSpec) -> None:
        """Volumes only. What a broken move left behind is made anew."""
        spec = replace(spec, uuid=canonical_uuid(spec.uuid))

        def act(link: Link, attempt: Attempt) -> None:
            if link.kind != "QEMU":
                raise Unsupported("only QEMU guests can be moved while they run")
            domain = self._lookup(link, attempt, spec.uuid)
            if domain is not None and attempt(domain.state, 0):
                raise HostRefused("a domain with this UUID is there")
            pool = storage.pool_of(link, attempt, self._setup.pool)
            storage.remove_volumes(attempt, pool, spec.uuid)
            path = storage.pool_path(link, attempt, self._setup.pool)
            storage.make_disks(attempt, pool, path, spec)
            name = seed_volume(spec.uuid)
            storage.write_seed(link, attempt, pool, name, seed.iso(spec.uuid, spec.seed))
            storage.fresh_console(attempt, pool, spec.uuid)

        self._run("expect", self._options.deadlines.change, act)

    def move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """On connections of its own."""
        uuid = canonical_uuid(uuid)
        if not isinstance(target, LibvirtDriver):
            raise Unsupported("the target is no libvirt host")
        if target._pool_path() != self._pool_path():
            raise HostRefused("the target keeps its volumes elsewhere: host_defaults.pool_path")
        moves.move(
            (self._spares, lambda link, attempt: self._ours(link, attempt, uuid)),
            (target._spares, target.uri), options, whole=not target._is_overlay(uuid),
        )

    def send_disk(
        self, uuid: str, target: Hypervisor, seconds: float, tell: Callable[[int, int], None]
    ) -> None:
        """On connections of its own. Errors: `Unsupported` on libvirt's test driver."""
        uuid = canonical_uuid(uuid)
        if not isinstance(target, LibvirtDriver):
            raise Unsupported("the target is no libvirt host")

        def here(link: Link, attempt: Attempt) -> Any:
            if self._in_use(attempt, self._ours(link, attempt, uuid)):
                raise HostRefused("it is not off")
            return storage.pool_of(link, attempt, self._setup.pool)

        def there(link: Link, attempt: Attempt) -> Any:
            if self._lookup(link, attempt, uuid) is not None:
                raise HostRefused("a domain with this UUID is there")
            return storage.pool_of(link, attempt, target._setup.pool)

        if target._pool_path() != self._pool_path():
            raise HostRefused("the target keeps its volumes elsewhere: host_defaults.pool_path")
        transfers.send(
            (self.uri, self._options, here), (target.uri, target._options, there), uuid,
            seconds, tell,
        )

    def move_progress(self, uuid: str) -> MoveProgress | None:
        """None too where it is not here any more."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> MoveProgress | None:
            domain = self._lookup(link, attempt, uuid)
            return None if domain is None else moves.progress(attempt, domain)

        return self._run("move_progress", self._options.deadlines.look, act)

    def abort_move(self, uuid: str) -> None:
        """Absent is success."""
        self._change(
            "abort_move", uuid, lambda it: moves.abort(it.attempt, it.domain),
            absent_is_success=True,
        )

    def hurry_move(self, uuid: str) -> None:
        """libvirt lets the guest go on at the target by itself."""

        def act(it: _Subject) -> None:
            if self._power(it.attempt, it.domain) is Power.RUNNING:
                it.attempt(it.domain.suspend)

        self._change("hurry_move", uuid, act, absent_is_success=True)

    def _pool_path(self) -> str:
        return self._run(
            "look", self._options.deadlines.look,
            lambda link, attempt: storage.pool_path(link, attempt, self._setup.pool),
        )

    def _is_overlay(self, uuid: str) -> bool:
        def act(link: Link, attempt: Attempt) -> bool:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            return storage.lies_over(attempt, pool, uuid)

        return self._run("look", self._options.deadlines.look, act)

    # -- getting at guests

    def open_console(self, uuid: str, kind: ConsoleKind) -> ConsoleLine:
        """On a connection of its own. Errors: `HostRefused` where it does not run; `Unsupported`
        by TLS and TCP for a screen."""
        uuid = canonical_uuid(uuid)

        def find(link: Link, attempt: Attempt) -> Any:
            if link.kind not in capabilities.GUESTS:
                raise Unsupported(f"guests of {link.kind} hosts have no console")
            domain = self._ours(link, attempt, uuid)
            if self._power(attempt, domain) is None:
                raise HostRefused("the guest does not run: start it first")
            return domain

        if kind is ConsoleKind.SERIAL:
            return consoles.open_serial(self.uri, self._options, find)
        return consoles.open_screen(self.uri, self._options, self._main, find)

    def diagnostics(self, uuid: str) -> GuestStats:
        """Errors: `Unsupported` on libvirt's test driver."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> GuestStats:
            domain = self._ours(link, attempt, uuid)
            saved = bool(attempt(domain.hasManagedSaveImage, 0))
            return guest.stats_of(link, attempt, domain, saved)

        return self._run("diagnostics", self._options.deadlines.look, act)

    def freeze(self, uuid: str) -> int:
        """Errors: `AgentFailed`."""
        return self._agent("freeze", uuid, guest.freeze)

    def thaw(self, uuid: str) -> int:
        """Errors: `AgentFailed`."""
        return self._agent("thaw", uuid, guest.thaw)

    def set_password(self, uuid: str, user: str, password: str) -> None:
        """Errors: `AgentFailed`."""
        self._agent(
            "set_password", uuid,
            lambda link, attempt, domain: guest.set_password(
                link, attempt, domain, user, password
            ),
        )

    def _agent(self, verb: str, uuid: str, ask: Callable[[Link, Attempt, Any], T]) -> T:
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> T:
            return ask(link, attempt, self._ours(link, attempt, uuid))

        return self._run(verb, self._options.deadlines.agent, act, lane=self._agents)

    # -- images

    def ensure_image(self, image: ImageSpec, content: Path) -> None:
        """Copied at most once at a time for a host. The deadline grows with the image's size."""
        sha256 = storage.check_name(image.sha256)
        if self._run("ensure_image", self._options.deadlines.look, self._has_image(sha256)):
            return
        size_mib = image.size_bytes / storage.MIB
        limits = self._options.deadlines
        seconds = limits.change + 2 * size_mib / limits.copy_mib_s
        if not self._images.acquire(timeout=seconds):
            raise VerbTimeout("another image is still being copied to the host")
        try:

            def act(link: Link, attempt: Attempt) -> None:
                pool = storage.pool_of(link, attempt, self._setup.pool)
                if not storage.has_image(attempt, pool, sha256):
                    storage.put_image(link, attempt, pool, image, content)

            self._run("ensure_image", seconds, act, lane=self._bulk)
        finally:
            self._images.release()

    def remove_image(self, sha256: str) -> None:
        """Absent is success."""
        storage.check_name(sha256)

        def act(link: Link, attempt: Attempt) -> None:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            storage.remove_image(attempt, pool, sha256)

        self._run("remove_image", self._options.deadlines.change, act)

    # -- one instance

    def define(self, spec: DomainSpec) -> None:
        """Of a domain that runs, only the stored definition changes: its live mark tells what
        runs. Its seed is written again only while it is off."""
        uuid = canonical_uuid(spec.uuid)
        spec = replace(spec, uuid=uuid)
        told = seed.digest(uuid, spec.seed)

        def act(link: Link, attempt: Attempt) -> None:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            place = self._place(link, attempt, self._virt_type(link, attempt))
            domain = self._lookup(link, attempt, uuid)
            has_seed, in_use = "", False
            if domain is not None:
                stored = bool(attempt(domain.isPersistent))
                flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if stored else LIVE
                before = self._mark(attempt, domain, flags)
                if before is None:
                    raise HostRefused("a domain with this UUID is there and is not Treadle's")
                has_seed = before.seed
                in_use = self._in_use(attempt, domain)
                if in_use:
                    has_seed = has_seed or told
                elif has_seed != told:
                    has_seed = ""
            contained = link.kind == "LXC"
            if contained:
                copy_mib_s = self._options.deadlines.copy_mib_s
                containers.make_root(attempt, pool, spec, copy_mib_s)
            else:
                storage.make_disks(attempt, pool, place.pool_path, spec)
            if not has_seed:
                make = containers.seed_image if contained else seed.iso
                name = (containers.seed_volume if contained else seed_volume)(uuid)
                storage.write_seed(link, attempt, pool, name, make(uuid, spec.seed))
                has_seed = told
            if domain is None and not contained:
                storage.fresh_console(attempt, pool, uuid)
            mark = Mark(spec.generation, spec.mac.lower(), has_seed, values=spec.metadata)
            text = (containers.container_xml if contained else domain_xml)(spec, place, mark)
            attempt(link.conn.defineXMLFlags, text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            if spec.generation > 1 and not in_use and not contained:
                storage.drop_disks(attempt, pool, spec)

        self._run("define", self._options.deadlines.change, act)

    def grow(self, spec: DomainSpec) -> None:
        """What is running gets it first, then it is stored; the mark of what runs comes last."""
        uuid = canonical_uuid(spec.uuid)

        def expect(it: _Subject) -> None:
            if self._power(it.attempt, it.domain) is not Power.RUNNING:
                raise HostRefused("it does not run")
            if it.mark.generation > spec.generation:
                raise HostRefused("it was started anew since")

        def give(it: _Subject) -> None:
            expect(it)
            growth.give(it.attempt, it.domain, it.mark.most, spec)

        def tell(it: _Subject) -> None:
            expect(it)
            mark = replace(it.mark, generation=spec.generation, values=spec.metadata)
            it.attempt(it.domain.setMetadata, ELEMENT, mark.text(), PREFIX, NAMESPACE, LIVE)

        self._change("grow", uuid, give)
        with suppress(AgentFailed, VerbTimeout):  # most guests put them to use by themselves
            self._agent("grow", uuid, lambda link, attempt, domain: guest.use_processors(
                link, attempt, domain, spec.vcpus
            ))
        self.define(spec)
        self._change("grow", uuid, tell)

    def autostart(self, uuid: str, on: bool) -> None:
        """Errors: `HostRefused` where there is no such domain, or its definition is gone."""

        def act(it: _Subject) -> None:
            if not it.attempt(it.domain.isPersistent):
                raise HostRefused("its definition is gone")
            self._set_autostart(it, on)

        self._change("autostart", uuid, act)

    def start(self, uuid: str) -> None:
        """A paused one is left as it is."""

        def act(it: _Subject) -> None:
            running = self._power(it.attempt, it.domain) is not None
            if not running:
                self._create(it)
                self._set_autostart(it, NOT_BY_HOST not in it.mark.values)
            if it.link.session and it.link.kind == "QEMU" and not (running and it.mark.forward):
                self._forward(it)

        self._change("start", uuid, act)

    def pause(self, uuid: str) -> None:
        """Errors: `HostRefused` where it does not run."""
        self._change(
            "pause", uuid,
            lambda it: self._turn(it, Power.PAUSED, Power.RUNNING, it.domain.suspend),
        )

    def resume(self, uuid: str) -> None:
        """Errors: `HostRefused` where it is not there to go on."""
        self._change(
            "resume", uuid,
            lambda it: self._turn(it, Power.RUNNING, Power.PAUSED, it.domain.resume),
        )

    def suspend(self, uuid: str) -> None:
        """Whether it ran or was paused, it will run when it is started again."""

        def act(it: _Subject) -> None:
            attempt, domain = it.attempt, it.domain
            if self._power(attempt, domain) is None:
                if attempt(domain.hasManagedSaveImage, 0):
                    return
                raise HostRefused("it is not running")
            attempt.extend(self._memory_seconds(attempt, domain))
            attempt(domain.managedSave, libvirt.VIR_DOMAIN_SAVE_RUNNING)
            self._set_autostart(it, False)

        self._change("suspend", uuid, act)

    def shut_down(self, uuid: str) -> None:
        """Of one that does not run, nothing is asked."""

        def act(it: _Subject) -> None:
            attempt, domain = it.attempt, it.domain
            self._set_autostart(it, False)
            if self._state(attempt, domain)[0] not in SHUTS_DOWN_WHEN_ASKED:
                return
            try:
                if it.link.kind == "LXC":
                    attempt(containers.ask_to_stop, domain)
                else:
                    attempt(domain.shutdown)
            except libvirt.libvirtError as error:
                if errors.is_broken(error):
                    raise
                if self._state(attempt, domain)[0] in SHUTS_DOWN_WHEN_ASKED:
                    raise

        self._change("shut_down", uuid, act)

    def power_off(self, uuid: str) -> None:
        """Absent is success."""

        def act(it: _Subject) -> None:
            attempt, domain = it.attempt, it.domain
            self._destroy(attempt, domain)
            # One without a definition is gone with its process.
            if as_value(attempt, domain.hasManagedSaveImage, 0, missing=NO_DOMAIN):
                attempt(domain.managedSaveRemove, 0)
            self._set_autostart(it, False)

        self._change("power_off", uuid, act, absent_is_success=True)

    def undefine(self, uuid: str) -> None:
        """Absent is success; volumes that a domain left are removed too."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> None:
            domain = self._lookup(link, attempt, uuid)
            if domain is not None:
                if self._mark(attempt, domain) is None:
                    raise HostRefused("this domain is not Treadle's")
                self._destroy(attempt, domain)
                as_value(attempt, self._forget, attempt, domain, missing=NO_DOMAIN)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            storage.remove_volumes(attempt, pool, uuid)

        self._run("undefine", self._options.deadlines.change, act)

    # -- how a verb goes

    def _run(
        self,
        verb: str,
        seconds: float,
        body: Callable[[Link, Attempt], T],
        lane: Connection | None = None,
    ) -> T:
        def whole(link: Link, attempt: Attempt) -> T:
            try:
                return body(link, attempt)
            except libvirt.libvirtError as error:
                if errors.code_of(error) != NO_DOMAIN:
                    raise
                # It is gone, perhaps for long: look again, once, at what is there now.
                link.domains.clear()
                return body(link, attempt)

        return (lane or self._main).run(verb, seconds, whole)

    def _change(
        self,
        verb: str,
        uuid: str,
        body: Callable[[_Subject], None],
        absent_is_success: bool = False,
    ) -> None:
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> None:
            domain = self._lookup(link, attempt, uuid)
            if domain is None:
                if absent_is_success:
                    return
                raise HostRefused("there is no such domain on the host")
            mark = self._mark(attempt, domain)
            if mark is None:
                raise HostRefused("this domain is not Treadle's")
            body(_Subject(link, attempt, domain, mark))

        self._run(verb, self._options.deadlines.change, act)

    def _ours(self, link: Link, attempt: Attempt, uuid: str) -> Any:
        domain = self._lookup(link, attempt, uuid)
        if domain is None or self._mark(attempt, domain) is None:
            raise HostRefused("there is no such domain on the host")
        return domain

    def _lookup(self, link: Link, attempt: Attempt, uuid: str) -> Any:
        """A handle, or None. One that was got before is taken again: whether the domain is still
        there, the next call says."""
        found = link.domains.get(uuid)
        if found is None:
            found = as_value(attempt, link.conn.lookupByUUIDString, uuid, missing=NO_DOMAIN)
            if found is not None:
                link.domains[uuid] = found
        return found

    def _mark(self, attempt: Attempt, domain: Any, flags: int = 0) -> Mark | None:
        """The mark of the running guest if there is one, else of the definition."""
        text = as_value(
            attempt, domain.metadata, ELEMENT, NAMESPACE, flags,
            missing=libvirt.VIR_ERR_NO_DOMAIN_METADATA,
        )
        return None if text is None else read_mark(text)

    def _changes(self, link: Link, attempt: Attempt, domain: Any) -> tuple[str, ...]:
        """What somebody else has changed in the definition. Read again after an event of it, and
        by each look at all."""
        uuid = domain.UUIDString()
        known = link.changes.get(uuid)
        if known is not None:
            return known
        serial = link.events
        text = attempt(domain.XMLDesc, libvirt.VIR_DOMAIN_XML_INACTIVE)
        found = shape.changed(text, f"{{{NAMESPACE}}}instance")
        if serial == link.events:
            link.changes[uuid] = found
        return found

    def _state(self, attempt: Attempt, domain: Any) -> tuple[int, int]:
        state, reason = attempt(domain.state, 0)
        return int(state), int(reason)

    def _power(self, attempt: Attempt, domain: Any) -> Power | None:
        """None where there is no process."""
        return power_of(self._state(attempt, domain)[0])

    def _in_use(self, attempt: Attempt, domain: Any) -> bool:
        return self._power(attempt, domain) is not None or bool(
            attempt(domain.hasManagedSaveImage, 0)
        )

    def _turn(self, it: _Subject, goal: Power, origin: Power, act: Callable[[], Any]) -> None:
        attempt, domain = it.attempt, it.domain
        power = self._power(attempt, domain)
        if power is goal:
            return
        if power is not origin:
            raise HostRefused(f"it is {power or Power.OFF}, not {origin}")
        try:
            attempt(act)
        except libvirt.libvirtError as error:
            if errors.is_broken(error) or self._power(attempt, domain) is not goal:
                raise
        by_host = NOT_BY_HOST not in it.mark.values
        self._set_autostart(it, goal is Power.RUNNING and by_host)

    def _create(self, it: _Subject) -> None:
        attempt, domain = it.attempt, it.domain
        if attempt(domain.hasManagedSaveImage, 0):
            attempt.extend(self._memory_seconds(attempt, domain))
        elif it.link.kind == "QEMU":
            pool = storage.pool_of(it.link, attempt, self._setup.pool)
            storage.fresh_console(attempt, pool, domain.UUIDString())
        try:
            attempt(domain.create)
        except libvirt.libvirtError as error:
            if errors.is_broken(error) or self._power(attempt, domain) is None:
                raise

    def _destroy(self, attempt: Attempt, domain: Any) -> None:
        if self._power(attempt, domain) is None:
            return
        try:
            attempt(domain.destroy)
        except libvirt.libvirtError as error:
            if errors.is_broken(error) or self._power(attempt, domain) is not None:
                raise

    def _forget(self, attempt: Attempt, domain: Any) -> None:
        try:
            attempt(domain.undefineFlags, UNDEFINE_ALL)
        except libvirt.libvirtError as error:
            if errors.code_of(error) not in (
                libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
            ):
                raise
            least = UNDEFINE_LEAST if domain.connect().getType() != "LXC" else 0
            attempt(domain.undefineFlags, least)

    def _set_autostart(self, it: _Subject, on: bool) -> None:
        """Where the hypervisor starts nothing with its host, or the definition is gone, nothing."""
        try:
            it.attempt(it.domain.setAutostart, int(on))
        except libvirt.libvirtError as error:
            if errors.code_of(error) not in (
                libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID,
            ):
                raise

    def _autostart(self, attempt: Attempt, domain: Any) -> bool | None:
        """None where the hypervisor starts nothing with its host."""
        found = as_value(attempt, domain.autostart, missing=libvirt.VIR_ERR_NO_SUPPORT)
        return None if found is None else bool(found)

    def _all_autostarted(self, link: Link, attempt: Attempt) -> frozenset[str] | None:
        flag = libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART
        listed = as_value(
            attempt, link.conn.listAllDomains, flag, missing=libvirt.VIR_ERR_NO_SUPPORT
        )
        return None if listed is None else frozenset(d.UUIDString() for d in listed)

    def _memory_seconds(self, attempt: Attempt, domain: Any) -> float:
        kib = int(attempt(domain.info)[1])
        return kib / (1 << 20) * self._options.deadlines.per_gib

    def _has_image(self, sha256: str) -> Callable[[Link, Attempt], bool]:
        def act(link: Link, attempt: Attempt) -> bool:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            return storage.has_image(attempt, pool, sha256)

        return act

    # -- the host's shape

    def _virt_type(self, link: Link, attempt: Attempt) -> str:
        if link.kind == "LXC":
            return "lxc"
        if self._setup.virt_type != "auto":
            return self._setup.virt_type
        types = capabilities.shape_of(link, attempt).virt_types
        return types[0] if types else "qemu"

    def _place(self, link: Link, attempt: Attempt, virt_type: str) -> Place:
        shape = capabilities.shape_of(link, attempt)
        if link.kind not in (*capabilities.GUESTS, "TEST"):
            raise Unsupported(f"no guests are made on {link.kind} hosts")
        return Place(
            virt_type=virt_type,
            pool_path=storage.pool_path(link, attempt, self._setup.pool),
            arch=shape.arch if link.kind in capabilities.GUESTS else "",
            machine=shape.machine if link.kind == "QEMU" else "",
            network="" if self._setup.bridge or link.session else self._setup.network,
            bridge=self._setup.bridge,
            net_filter=network.FILTER if self._filtered else "",
        )

    def _disk_mib(self, link: Link, attempt: Attempt) -> int:
        pool = as_value(
            attempt, storage.pool_of, link, attempt, self._setup.pool,
            missing=libvirt.VIR_ERR_NO_STORAGE_POOL,
        )
        return 0 if pool is None else int(attempt(pool.info)[1]) // storage.MIB

    # -- addresses

    def _all_leases(self, link: Link, attempt: Attempt) -> Mapping[str, list[str]]:
        if link.session or self._setup.bridge or link.kind not in capabilities.GUESTS:
            return {}
        return network.leases(link, attempt, self._setup.network, None)

    def _addresses(
        self,
        link: Link,
        attempt: Attempt,
        domain: Any,
        mark: Mark,
        leases: Mapping[str, list[str]] | None,
    ) -> tuple[str, ...]:
        if link.session:
            return (f"127.0.0.1:{mark.forward}",) if mark.forward else ()
        if self._setup.bridge:
            return network.neighbours(attempt, domain)
        if link.kind not in capabilities.GUESTS or not mark.mac:
            return ()
        if leases is None:
            leases = network.leases(link, attempt, self._setup.network, mark.mac)
        return tuple(leases.get(mark.mac, ()))

    def _forward(self, it: _Subject) -> None:
        """Lead a port of the host's loopback to the guest's SSH, and write it on the live mark."""
        attempt, domain = it.attempt, it.domain
        for port in network.forward_ports(domain.UUIDString()):
            if network.forward(attempt, domain, port, GUEST_SSH):
                # The mark of what runs, which after a restore is older than the definition's.
                mark = self._mark(attempt, domain) or it.mark
                text = mark.with_forward(port).text()
                attempt(domain.setMetadata, ELEMENT, text, PREFIX, NAMESPACE, LIVE)
                return

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
