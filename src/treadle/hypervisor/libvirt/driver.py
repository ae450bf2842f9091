"""The hypervisor driver for libvirt: each verb of the contract, in calls of libvirt's.

Every verb is a body that runs on the host's shared connection with a deadline. A domain is ours
by the mark in its metadata; no other is ever changed, and none is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from treadle.hypervisor.base import (
    NOT_BY_HOST,
    AgentFailed,
    AtNextStart,
    ConsoleKind,
    ConsoleLine,
    Domain,
    DomainSpec,
    GuestStats,
    HostFacts,
    HostRefused,
    ImageSpec,
    Power,
    Unsupported,
    VerbTimeout,
)
from treadle.hypervisor.libvirt import (
    capabilities,
    cards,
    consoles,
    containers,
    copies,
    definitions,
    domains,
    enlargement,
    errors,
    guest,
    looks,
    memory,
    network,
    probe,
    sharing,
    storage,
)
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value
from treadle.hypervisor.libvirt.domain_xml import Mark, canonical_uuid
from treadle.hypervisor.libvirt.domains import NO_DOMAIN, lookup, mark_of, ours, state_of
from treadle.hypervisor.libvirt.moving import Moving
from treadle.hypervisor.libvirt.states import SHUTS_DOWN_WHEN_ASKED

T = TypeVar("T")


class LibvirtDriver(Moving):
    """All of it, for one host."""

    # -- the host

    def facts(self) -> HostFacts:
        """What the host is. `disk_mib` is 0 before `prepare`."""
        self._spares.tidy()

        def act(link: Link, attempt: Attempt) -> HostFacts:
            shape = capabilities.shape_of(link, attempt)
            processor = capabilities.processor_of(link, attempt)
            version = attempt(link.conn.getVersion)
            found = sharing.look_around(link, attempt, self._setup.pool)
            vcpus = int(attempt(link.conn.getInfo)[2])
            spent = capabilities.spent(link, attempt)
            memory_mib = capabilities.memory_mib(link, attempt)
            return HostFacts(
                hostname=attempt(link.conn.getHostname),
                host_uuid=shape.host_uuid,
                vcpus=vcpus,
                memory_mib=memory_mib,
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
                booted_at=None if spent is None else capabilities.booted_at(spent, vcpus),
                storage_token=found.token if found else "",
                storage_others=found.others if found else (),
                machines=shape.machines if link.kind == "QEMU" else (),
                processor=processor.name, features=processor.features,
                load=None if spent is None else capabilities.load_since(link, spent),
                cells=capabilities.cells(link, attempt, memory_mib),
            )

        return self._run("facts", self._options.deadlines.look, act)

    def probe(self, virt_type: str, seconds: float) -> bool:
        """Boot 512 bytes that power the machine off. False where the host refuses to as well."""

        def act(link: Link, attempt: Attempt) -> bool:
            if link.kind != "QEMU":
                raise Unsupported("only QEMU hosts can be probed")
            pool = storage.pool_of(link, attempt, self._setup.pool)
            place = definitions.place_of(
                link, attempt, self._setup, filtered=self._filtered, virt_type=virt_type
            )
            return probe.run(link, attempt, pool, place, self._stops, seconds)

        return self._run("probe", self._options.deadlines.change + seconds, act)

    def unprepare(self) -> None:
        """The filter stays: it may be another's too."""

        def act(link: Link, attempt: Attempt) -> None:
            if not self._setup.bridge and not link.session:
                network.remove_network(link, attempt, self._setup.network)
            sharing.leave(link, attempt, self._setup.pool)
            storage.remove_pool(link, attempt, self._setup.pool)

        self._run("unprepare", self._options.deadlines.change, act)

    # -- looking

    def observe(self, uuid: str) -> Domain | None:
        """A domain of ours, or what is left of one. Another's counts as nothing."""
        uuid = canonical_uuid(uuid)
        return self._run(
            "observe", self._options.deadlines.look,
            lambda link, attempt: looks.one(link, attempt, uuid, self._setup),
        )

    def observe_all(self) -> Sequence[Domain]:
        """All of ours, and remnants; by UUID."""
        return self._run(
            "observe_all", self._options.deadlines.look,
            lambda link, attempt: looks.every(link, attempt, self._setup),
        )

    def console_log(self, uuid: str, limit: int) -> bytes:
        """The end of what the guest printed since it was last started anew."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> bytes:
            ours(link, attempt, uuid)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            return storage.read_console(link, attempt, pool, uuid, limit)

        return self._run("console_log", self._options.deadlines.look, act, lane=self._bulk)

    # -- copies

    def begin_copy(self, uuid: str) -> None:
        """Errors: `HostRefused` where there is no such domain; `Unsupported`."""

        def act(it: domains.Subject) -> None:
            pool = storage.pool_of(it.link, it.attempt, self._setup.pool)
            runs = domains.power(it.attempt, it.domain) is not None
            copies.begin(it.link, it.attempt, pool, it.domain, runs)

        self._change("begin_copy", uuid, act)

    def fetch_copy(self, uuid: str, into: Callable[[bytes], None]) -> None:
        """The deadline grows with the disk's size."""
        uuid = canonical_uuid(uuid)
        limits = self._options.deadlines

        def act(link: Link, attempt: Attempt) -> None:
            domain = ours(link, attempt, uuid)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            runs = domains.power(attempt, domain) is not None
            copies.fetch(link, attempt, pool, domain, runs, into, limits.copy_mib_s)

        self._run("fetch_copy", limits.change, act, lane=self._bulk)

    def drop_copy(self, uuid: str) -> None:
        """Absent is success."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> None:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            copies.drop(attempt, pool, lookup(link, attempt, uuid), uuid)

        self._run("drop_copy", self._options.deadlines.change, act)

    # -- getting at guests

    def open_console(self, uuid: str, kind: ConsoleKind) -> ConsoleLine:
        """On a connection of its own. Errors: `HostRefused` where it does not run; `Unsupported`
        by TLS and TCP for a screen."""
        uuid = canonical_uuid(uuid)

        def find(link: Link, attempt: Attempt) -> Any:
            if link.kind not in capabilities.GUESTS:
                raise Unsupported(f"guests of {link.kind} hosts have no console")
            domain = ours(link, attempt, uuid)
            if domains.power(attempt, domain) is None:
                raise HostRefused("the guest does not run: start it first")
            return domain

        if kind is ConsoleKind.SERIAL:
            return consoles.open_serial(self.uri, self._options, find)
        return consoles.open_screen(self.uri, self._options, self._main, find)

    def diagnostics(self, uuid: str) -> GuestStats:
        """Errors: `Unsupported` on libvirt's test driver."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> GuestStats:
            domain = ours(link, attempt, uuid)
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
            return ask(link, attempt, ours(link, attempt, uuid))

        return self._run(verb, self._options.deadlines.agent, act, lane=self._agents)

    # -- images

    def ensure_image(self, image: ImageSpec, content: Path) -> None:
        """Copied at most once at a time for a host. The deadline grows with the image's size."""
        sha256 = storage.check_name(image.sha256)
        if self._run("ensure_image", self._options.deadlines.look, self._has_image(sha256)):
            return
        known = self._shared()
        size_mib = image.size_bytes / storage.MIB
        limits = self._options.deadlines
        seconds = limits.change + 2 * size_mib / limits.copy_mib_s
        if not self._images.acquire(timeout=seconds):
            raise VerbTimeout("another image is still being copied to the host")
        try:

            def act(link: Link, attempt: Attempt) -> None:
                pool = storage.pool_of(link, attempt, self._setup.pool)
                # Another host may have brought it, or taken it away.
                sharing.expected(sharing.fresh(link, attempt, pool), known)
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
            known = sharing.is_shared(link, pool)
            sharing.expected(sharing.fresh(link, attempt, pool), known)
            storage.remove_image(attempt, pool, sha256)

        self._run("remove_image", self._options.deadlines.change, act)

    def _has_image(self, sha256: str) -> Callable[[Link, Attempt], bool]:
        def act(link: Link, attempt: Attempt) -> bool:
            pool = storage.pool_of(link, attempt, self._setup.pool)
            # What is known of a pool that others see may be old: then it is looked at anew.
            return not sharing.is_shared(link, pool) and storage.has_image(attempt, pool, sha256)

        return act

    def _disk_mib(self, link: Link, attempt: Attempt) -> int:
        pool = as_value(
            attempt, storage.pool_of, link, attempt, self._setup.pool,
            missing=libvirt.VIR_ERR_NO_STORAGE_POOL,
        )
        return 0 if pool is None else int(attempt(pool.info)[1]) // storage.MIB

    # -- one instance

    def define(self, spec: DomainSpec) -> None:
        """Of a domain that runs, only the stored definition changes: its live mark tells what
        runs. Its seed is written again only while it is off."""
        spec = replace(spec, uuid=canonical_uuid(spec.uuid))
        self._run(
            "define", self._options.deadlines.change,
            lambda link, attempt: self._define(link, attempt, spec),
        )

    def _define(self, link: Link, attempt: Attempt, spec: DomainSpec) -> Mark:
        pool = storage.pool_of(link, attempt, self._setup.pool)
        place = definitions.place_of(link, attempt, self._setup, filtered=self._filtered)
        copy_mib_s = self._options.deadlines.copy_mib_s
        return definitions.define(link, attempt, pool, place, spec, copy_mib_s)

    def grow(self, spec: DomainSpec) -> None:
        """The new volume first, without which nothing is done; the mark of what runs last."""
        spec = replace(spec, uuid=canonical_uuid(spec.uuid))
        limits = self._options.deadlines

        def give(it: domains.Subject) -> tuple[int, int] | None:
            enlargement.ready(it, spec)
            pool = storage.pool_of(it.link, it.attempt, self._setup.pool)
            place = definitions.place_of(
                it.link, it.attempt, self._setup, filtered=self._filtered
            )
            enlargement.give(it, pool, place, spec, limits.copy_mib_s)
            return it.mark.most

        if self._change("grow", spec.uuid, give) is not None:
            with suppress(AgentFailed, VerbTimeout):  # most guests put them to use by themselves
                self._agent("grow", spec.uuid, lambda link, attempt, domain: guest.use_processors(
                    link, attempt, domain, spec.vcpus
                ))
        self._change("grow", spec.uuid, lambda it: enlargement.tell(it, spec))

    def plug(self, spec: DomainSpec) -> None:
        """What runs gets it or lets it go first, then that is stored; the mark comes last."""
        uuid = canonical_uuid(spec.uuid)
        limits = self._options.deadlines
        stays: list[bool] = []

        def change(it: domains.Subject) -> None:
            cards.ready(it, spec)
            if not spec.mac:
                stays.append(not cards.take(it, limits.let_go))
                return
            place = definitions.place_of(
                it.link, it.attempt, self._setup, filtered=self._filtered
            )
            cards.give(it, spec, place, limits.let_go)

        def tell(it: domains.Subject) -> None:
            cards.ready(it, spec)
            cards.tell(it, spec)

        self._change("plug", uuid, change, more=limits.let_go)
        self.define(spec)
        self._change("plug", uuid, tell)
        if any(stays):
            raise AtNextStart(
                "its guest does not let go of its interface, through which nothing goes any more: "
                "it is without it from its next start on"
            )

    def autostart(self, uuid: str, on: bool) -> None:
        """Errors: `HostRefused` where there is no such domain, or its definition is gone."""

        def act(it: domains.Subject) -> None:
            if not it.attempt(it.domain.isPersistent):
                raise HostRefused("its definition is gone")
            domains.set_autostart(it, on)

        self._change("autostart", uuid, act, changes=())

    def start(self, uuid: str) -> None:
        """A paused one is left as it is."""

        self._change("start", uuid, self._start, changes=memory.RUNNING)

    def _start(self, it: domains.Subject, *, anew: bool = False) -> None:
        running = not anew and domains.power(it.attempt, it.domain) is not None
        if not running:
            domains.create(it, self._setup.pool, self._options.deadlines.per_gib, anew=anew)
            domains.set_autostart(it, NOT_BY_HOST not in it.mark.values)
        led = (running and it.mark.forward) or not it.mark.mac
        if it.link.session and it.link.kind == "QEMU" and not led:
            domains.forward(it)

    def restart(self, spec: DomainSpec) -> None:
        """Errors: `HostRefused` where there is no such domain."""
        spec = replace(spec, uuid=canonical_uuid(spec.uuid))

        def act(it: domains.Subject) -> None:
            older = it.mark.generation < spec.generation
            if older:
                domains.end(it.attempt, it.domain)
                mark = self._define(it.link, it.attempt, spec)
                domain = lookup(it.link, it.attempt, spec.uuid)
                it = domains.Subject(it.link, it.attempt, domain, mark)
            self._start(it, anew=older)

        limits = self._options.deadlines
        self._change("restart", spec.uuid, act, more=limits.change, changes=memory.RUNNING)

    def pause(self, uuid: str) -> None:
        """Errors: `HostRefused` where it does not run."""
        self._change(
            "pause", uuid,
            lambda it: domains.turn(it, Power.PAUSED, Power.RUNNING, it.domain.suspend),
            changes=(),
        )

    def resume(self, uuid: str) -> None:
        """Errors: `HostRefused` where it is not there to go on."""
        self._change(
            "resume", uuid,
            lambda it: domains.turn(it, Power.RUNNING, Power.PAUSED, it.domain.resume),
            changes=(),
        )

    def suspend(self, uuid: str) -> None:
        """Whether it ran or was paused, it will run when it is started again."""

        def act(it: domains.Subject) -> None:
            attempt, domain = it.attempt, it.domain
            if domains.power(attempt, domain) is None:
                if attempt(domain.hasManagedSaveImage, 0):
                    return
                raise HostRefused("it is not running")
            per_gib = self._options.deadlines.per_gib
            attempt.extend(domains.memory_seconds(attempt, domain, per_gib))
            attempt(domain.managedSave, libvirt.VIR_DOMAIN_SAVE_RUNNING)
            domains.set_autostart(it, False)

        self._change("suspend", uuid, act, changes=memory.RUNNING)

    def shut_down(self, uuid: str) -> None:
        """Of one that does not run, nothing is asked."""

        def act(it: domains.Subject) -> None:
            attempt, domain = it.attempt, it.domain
            domains.set_autostart(it, False)
            if state_of(attempt, domain)[0] not in SHUTS_DOWN_WHEN_ASKED:
                return
            try:
                if it.link.kind == "LXC":
                    attempt(containers.ask_to_stop, domain)
                else:
                    attempt(domain.shutdown)
            except libvirt.libvirtError as error:
                if errors.is_broken(error):
                    raise
                if state_of(attempt, domain)[0] in SHUTS_DOWN_WHEN_ASKED:
                    raise

        self._change("shut_down", uuid, act, changes=memory.RUNNING)

    def power_off(self, uuid: str) -> None:
        """Absent is success."""

        def act(it: domains.Subject) -> None:
            domains.end(it.attempt, it.domain)
            domains.set_autostart(it, False)

        self._change(
            "power_off", uuid, act, absent_is_success=True, changes=memory.RUNNING
        )

    def undefine(self, uuid: str) -> None:
        """Absent is success; volumes that a domain left are removed too."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> None:
            domain = lookup(link, attempt, uuid)
            if domain is not None:
                if mark_of(attempt, domain) is None:
                    raise HostRefused("this domain is not Treadle's")
                domains.destroy(attempt, domain)
                as_value(attempt, domains.forget, attempt, domain, missing=NO_DOMAIN)
            link.memory.forget(uuid)
            pool = storage.pool_of(link, attempt, self._setup.pool)
            sharing.give_up(link, attempt, pool, uuid)

        self._run("undefine", self._options.deadlines.change, act)
