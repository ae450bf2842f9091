"""The driver's verbs that are about two hosts: moves, and storage that both see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from treadle.hypervisor.base import (
    DomainSpec,
    HostRefused,
    HostUnreachable,
    Hypervisor,
    MoveOptions,
    MoveProgress,
    Power,
    Reach,
    Unsupported,
)
from treadle.hypervisor.libvirt import domains, moves, seed, sharing, storage, transfers
from treadle.hypervisor.libvirt.connection import Attempt, Link
from treadle.hypervisor.libvirt.domain_xml import canonical_uuid, disk_volume, seed_volume
from treadle.hypervisor.libvirt.domains import lookup, ours
from treadle.hypervisor.libvirt.reach import LOOK_S, reach_from
from treadle.hypervisor.libvirt.ssh import is_ssh
from treadle.hypervisor.libvirt.verbs import Verbs

T = TypeVar("T")


class Moving(Verbs):
    """Of each verb, this host is the source, unless it says otherwise."""

    # -- moves

    def machine(self, uuid: str) -> str:
        """As its live definition has it."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> str:
            return moves.machine(attempt(ours(link, attempt, uuid).XMLDesc, 0))

        return self._run("machine", self._options.deadlines.look, act)

    def expect(self, spec: DomainSpec) -> None:
        """Volumes only. What a broken move left behind is made anew."""
        spec = replace(spec, uuid=canonical_uuid(spec.uuid))

        def act(link: Link, attempt: Attempt) -> None:
            if link.kind != "QEMU":
                raise Unsupported("only QEMU guests can be moved while they run")
            domain = lookup(link, attempt, spec.uuid)
            if domain is not None and attempt(domain.state, 0):
                raise HostRefused("a domain with this UUID is there")
            pool = storage.pool_of(link, attempt, self._setup.pool)
            sharing.clear(link, attempt, pool, spec.uuid)
            path = storage.pool_path(link, attempt, self._setup.pool)
            storage.make_disks(attempt, pool, path, spec)
            name = seed_volume(spec.uuid)
            storage.write_seed(link, attempt, pool, name, seed.iso(spec.uuid, spec.seed))
            storage.fresh_console(attempt, pool, spec.uuid)

        self._run("expect", self._options.deadlines.change, act)

    def move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """On connections of moves alone."""
        uuid = canonical_uuid(uuid)
        there = self._peer(target)
        whole = not options.shared and not there._is_overlay(uuid)
        if options.post_copy:
            # libvirt does not change it while it is moved.
            self._change(
                "move", uuid, lambda it: domains.set_autostart(it, False), changes=()
            )
        self._lead(uuid, there, options, whole=whole)

    def resume_move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """libvirt 8.5 and later can. Errors: `HostUnreachable` too where the source does not reach
        the target: QEMU before 8.2 stands still for good where the way breaks as it begins."""
        there = self._peer(target)
        if is_ssh(self.uri) and is_ssh(there.uri):
            config = self._options.state_dir / "ssh_config"
            if reach_from(self.uri, there.uri, config, LOOK_S) is not Reach.OPEN:
                raise HostUnreachable("its host does not reach the other one yet")
        self._lead(canonical_uuid(uuid), there, options, again=True)

    def _lead(self, uuid: str, there: Moving, options: MoveOptions, **how: bool) -> None:
        try:
            moves.move(
                (self._spares, lambda link, attempt: ours(link, attempt, uuid)),
                (there._spares, there.uri), options, **how,
            )
        finally:
            self._main.forget(uuid)
            there._main.forget(uuid)

    def send_disk(
        self, uuid: str, target: Hypervisor, seconds: float, tell: Callable[[int, int], None]
    ) -> None:
        """On connections of its own. Errors: `Unsupported` on libvirt's test driver."""
        uuid = canonical_uuid(uuid)
        peer = self._peer(target)

        def here(link: Link, attempt: Attempt) -> Any:
            if domains.in_use(attempt, ours(link, attempt, uuid)):
                raise HostRefused("it is not off")
            return storage.pool_of(link, attempt, self._setup.pool)

        def there(link: Link, attempt: Attempt) -> Any:
            if lookup(link, attempt, uuid) is not None:
                raise HostRefused("a domain with this UUID is there")
            return storage.pool_of(link, attempt, peer._setup.pool)

        transfers.send(
            (self.uri, self._options, here), (peer.uri, peer._options, there), uuid,
            seconds, tell,
        )

    def _peer(self, target: Hypervisor) -> Moving:
        """The target of a move, where a disk can lie as it lies here. Errors: `Unsupported`;
        `HostRefused`."""
        if not isinstance(target, Moving):
            raise Unsupported("the target is no libvirt host")
        if target._pool_path() != self._pool_path():
            raise HostRefused("the target keeps its volumes elsewhere: host_defaults.pool_path")
        return target

    def move_progress(self, uuid: str) -> MoveProgress | None:
        """None too where it is not here any more."""
        uuid = canonical_uuid(uuid)

        def act(link: Link, attempt: Attempt) -> MoveProgress | None:
            domain = lookup(link, attempt, uuid)
            return None if domain is None else moves.progress(attempt, domain)

        return self._run("move_progress", self._options.deadlines.look, act)

    def abort_move(self, uuid: str) -> None:
        """Absent is success."""
        self._change(
            "abort_move", uuid, lambda it: moves.abort(it.attempt, it.domain),
            absent_is_success=True,
        )

    def hurry_move(self, uuid: str) -> None:
        """At the target now, where its move may end so; else it is paused until it is there."""

        def act(it: domains.Subject) -> None:
            if domains.power(it.attempt, it.domain) is Power.RUNNING:
                moves.hurry(it.attempt, it.domain)

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

    # -- storage that other hosts see

    def shares(self, other: Hypervisor) -> bool:
        """By a volume that this host makes, and the other looks for. Asks nobody where either has
        seen no other host in its pool."""
        if not (isinstance(other, Moving) and self._shared() and other._shared()):
            return False
        if other._pool_path() != self._pool_path():
            return False
        name = self._at_pool(sharing.show)
        try:
            return other._at_pool(
                lambda _link, attempt, pool: sharing.sees(attempt, pool, name)
            )
        finally:
            self._at_pool(lambda _link, attempt, pool: storage.remove(attempt, pool, name))

    def take(self, spec: DomainSpec) -> None:
        """Noted in the pool; taken already is success."""
        uuid = canonical_uuid(spec.uuid)
        wanted = [disk_volume(uuid, number) for number in spec.disks]

        def act(link: Link, attempt: Attempt, pool: Any) -> None:
            if lookup(link, attempt, uuid) is not None:
                raise HostRefused("a domain with this UUID is there")
            sharing.take(link, attempt, pool, uuid, wanted)

        self._at_pool(act)

    def _shared(self) -> bool:
        return self._at_pool(lambda link, _attempt, pool: sharing.is_shared(link, pool))

    def _at_pool(self, act: Callable[[Link, Attempt, Any], T]) -> T:
        return self._run(
            "storage", self._options.deadlines.change,
            lambda link, attempt: act(
                link, attempt, storage.pool_of(link, attempt, self._setup.pool)
            ),
        )
