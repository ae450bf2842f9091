"""A pool that several hosts see: who is there, whose a disk is, and what may be removed of it.

All of it is written into the pool itself, as empty volumes, so that it holds whatever a controller
knows or believes. Each host puts a register there, `treadle-host.UUID.TOKEN`, with a token of this
connection. Where another's register is seen, each instance that a host has is noted,
`INSTANCE.at-UUID`: before it may be defined there, until nothing of it is there any more. A disk
goes with the last host that has it noted, and no host touches one that only others have noted.

libvirtd knows of what other hosts have put there only after a refresh. A volume that it does not
know of it does not make over: it looks at the file first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import libvirt

from treadle.hypervisor.base import HostRefused, VerbTimeout
from treadle.hypervisor.libvirt import capabilities, storage
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value
from treadle.hypervisor.libvirt.domains import NO_DOMAIN, mark_of

KEPT = 2
"""How many registers of its own a host leaves: what a controller has last read is still there."""
TOKEN_TRIES = 5
TOKEN_PAUSE_S = 0.2

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_REGISTER = re.compile(rf"treadle-host\.({_UUID}\.[0-9a-f]{{12}}-[0-9a-f]{{8}})")
_NOTE = re.compile(rf"({_UUID})\.at-({_UUID})")


@dataclass(frozen=True, slots=True)
class Pool:
    """What is written in a pool: `token` is this host's own, "" where there is none; `others` are
    those of other hosts; `notes` say which hosts have an instance."""

    host: str
    token: str
    others: tuple[str, ...]
    names: frozenset[str]
    notes: dict[str, frozenset[str]]

    @property
    def shared(self) -> bool:
        """Whether another host sees this pool, or has seen it."""
        return bool(self.others)

    def noted(self, uuid: str) -> bool:
        """Whether this host has noted the instance."""
        return self.host in self.notes.get(uuid, ())

    def elsewhere(self, uuid: str) -> frozenset[str]:
        """The other hosts that have noted it."""
        return self.notes.get(uuid, frozenset()) - {self.host}

    def volumes(self, uuid: str) -> list[str]:
        """All of it, but for the note of this host."""
        own = _note(uuid, self.host)
        return [name for name in self.names if name.startswith(f"{uuid}.") and name != own]

    def disks(self, uuid: str) -> list[str]:
        """Its volumes with a guest's data."""
        return [name for name in self.names if name.startswith(uuid) and storage.is_disk(name)]


def read(link: Link, attempt: Attempt, pool: Any) -> Pool:
    """What libvirtd knows to be there."""
    return parse(storage.names(attempt, pool), host_of(link, attempt))


def parse(names: Iterable[str], host: str) -> Pool:
    """What volumes of these names say to the host."""
    known = frozenset(names)
    own: list[str] = []
    newest: dict[str, list[str]] = {}
    notes: dict[str, frozenset[str]] = {}
    for name in sorted(known):
        if match := _REGISTER.fullmatch(name):
            token = match.group(1)
            owner = token.partition(".")[0]
            (own if owner == host else newest.setdefault(owner, [])).append(token)
        elif match := _NOTE.fullmatch(name):
            notes[match.group(1)] = notes.get(match.group(1), frozenset()) | {match.group(2)}
    others = tuple(token for tokens in newest.values() for token in tokens)
    return Pool(host, own[-1] if own else "", others, known, notes)


def fresh(link: Link, attempt: Attempt, pool: Any) -> Pool:
    """What is there now. Errors: `VerbTimeout` where other hosts see the pool, and libvirtd does
    not look at it anew."""
    done = storage.refresh(attempt, pool)
    found = read(link, attempt, pool)
    if found.shared and not done:
        raise VerbTimeout("the pool is busy: what other hosts have put there is not known")
    return found


def expected(found: Pool, known: bool) -> None:
    """Errors: `VerbTimeout` where other hosts are there that were not when it was last looked: they
    may be at work on what this one is about to change."""
    if found.shared and not known:
        raise VerbTimeout("other hosts are in its pool, as has just been seen")


def host_of(link: Link, attempt: Attempt) -> str:
    """The UUID of the host, as it writes it."""
    return capabilities.shape_of(link, attempt).host_uuid.lower()


def is_shared(link: Link, pool: Any) -> bool:
    """Whether other hosts were seen in the pool over this connection, and what this one has was
    noted for them."""
    return bool(link.known.get(("shared", pool.name())))


def register(link: Link, attempt: Attempt, pool: Any) -> None:
    """Put this connection's register there, and take older ones of this host away."""
    key = ("token", pool.name())
    if key not in link.known:
        name = f"treadle-host.{host_of(link, attempt)}.{int(time.time()):012x}-{uuid4().hex[:8]}"
        storage.create_raw(attempt, pool, name, 0)
        link.known[key] = name
    # Only then: of two hosts that come at the same time, one sees the other.
    storage.refresh(attempt, pool)
    found = read(link, attempt, pool)
    own = sorted(
        name for name in found.names
        if (match := _REGISTER.fullmatch(name)) and match.group(1).startswith(f"{found.host}.")
    )
    for old in own[:-KEPT]:
        storage.remove(attempt, pool, old)
    _join(link, attempt, pool, found)


def look_around(link: Link, attempt: Attempt, name: str) -> Pool | None:
    """Who else is in the pool of that name; None where there is no such pool in use."""
    pool = _pool(link, attempt, name)
    if pool is None:
        return None
    if is_shared(link, pool):
        storage.refresh(attempt, pool)
    found = read(link, attempt, pool)
    _join(link, attempt, pool, found)
    return found


def _pool(link: Link, attempt: Attempt, name: str) -> Any:
    pool = as_value(
        attempt, storage.pool_of, link, attempt, name, missing=libvirt.VIR_ERR_NO_STORAGE_POOL
    )
    return pool if pool is not None and attempt(pool.isActive) else None


def _join(link: Link, attempt: Attempt, pool: Any, found: Pool) -> None:
    """Where others are in the pool, note there what this host has, and remember that."""
    if not found.shared or is_shared(link, pool):
        return
    marked = [
        domain.UUIDString() for domain in attempt(link.conn.listAllDomains, 0)
        if as_value(attempt, mark_of, attempt, domain, missing=NO_DOMAIN) is not None
    ]
    note_all(attempt, pool, found, marked)
    link.known["shared", pool.name()] = True


def leave(link: Link, attempt: Attempt, name: str) -> None:
    """Take this host's registers out of the pool of that name."""
    pool = _pool(link, attempt, name)
    if pool is None:
        return
    host = host_of(link, attempt)
    for name in storage.names(attempt, pool):
        if (match := _REGISTER.fullmatch(name)) and match.group(1).startswith(f"{host}."):
            storage.remove(attempt, pool, name)
    link.known.pop(("token", pool.name()), None)


def note(attempt: Attempt, pool: Any, found: Pool, uuid: str) -> None:
    """Have it written that this host has the instance."""
    if not found.noted(uuid):
        storage.create_raw(attempt, pool, _note(uuid, found.host), 0)


def note_all(attempt: Attempt, pool: Any, found: Pool, uuids: Iterable[str]) -> None:
    """Note those of the instances that are defined here, have a disk, and are not noted at all:
    they were made while the host was alone."""
    for uuid in uuids:
        if not found.notes.get(uuid) and found.disks(uuid):
            note(attempt, pool, found, uuid)


def claim(
    link: Link, attempt: Attempt, pool: Any, uuid: str, wanted: Sequence[str], *, defined: bool
) -> None:
    """Before a domain of the instance is defined: where other hosts see the pool, it is noted.
    `wanted` are the volumes of its disk. Errors: `HostRefused` where one of them is there, and is
    not this host's, or may not be; one that is `defined` here is."""
    if not is_shared(link, pool):
        return
    found = fresh(link, attempt, pool)
    if not defined and not found.noted(uuid) and found.names.intersection(wanted):
        raise HostRefused(_whose(found, uuid))
    note(attempt, pool, found, uuid)


def take(link: Link, attempt: Attempt, pool: Any, uuid: str, wanted: Iterable[str]) -> None:
    """Have the disk, which another host has noted, as this host's too; `wanted` are its volumes.
    Errors: `HostRefused`."""
    found = fresh(link, attempt, pool)
    missing = [name for name in wanted if name not in found.names]
    if missing:
        raise HostRefused(f"its disk is not in the storage of this host: {missing[0]} is missing")
    if not found.notes.get(uuid):
        raise HostRefused("the storage does not say whose its disk is")
    note(attempt, pool, found, uuid)


def clear(link: Link, attempt: Attempt, pool: Any, uuid: str) -> None:
    """Remove every volume of an instance that no host runs, to make them anew. Errors:
    `HostRefused` where they may be another host's."""
    found = fresh(link, attempt, pool)
    if found.elsewhere(uuid) or (found.shared and found.disks(uuid) and not found.noted(uuid)):
        raise HostRefused(_whose(found, uuid))
    if found.shared:
        note(attempt, pool, found, uuid)
    storage.remove_volumes(attempt, pool, found.volumes(uuid))


def give_up(link: Link, attempt: Attempt, pool: Any, uuid: str) -> None:
    """No domain of the instance is on this host. Its volumes go, but for those that another host
    has, or, in a pool that others see, that this one has not noted."""
    found = fresh(link, attempt, pool)
    own = _note(uuid, found.host)
    if not found.elsewhere(uuid) and (not found.shared or found.noted(uuid)):
        storage.remove_volumes(attempt, pool, found.volumes(uuid))
    if own in found.names:
        storage.remove(attempt, pool, own)


def may_drop(link: Link, attempt: Attempt, pool: Any, uuid: str) -> bool:
    """Whether volumes of the instance that are not needed here are needed nowhere."""
    return not is_shared(link, pool) or not fresh(link, attempt, pool).elsewhere(uuid)


def is_left(link: Link, attempt: Attempt, pool: Any, uuid: str) -> bool:
    """Whether a disk of the instance is there, and is this host's."""
    if not is_shared(link, pool):
        return storage.has_disk(attempt, pool, uuid)
    found = read(link, attempt, pool)
    return found.noted(uuid) and bool(found.disks(uuid))


def remnants(link: Link, attempt: Attempt, pool: Any) -> tuple[set[str], set[str]]:
    """UUIDs of which this host has a disk, or has noted one, and of which there is a copy."""
    left, copied = storage.remnants(attempt, pool)
    if is_shared(link, pool):
        found = read(link, attempt, pool)
        left = {uuid for uuid in found.notes if found.noted(uuid)}
    return left, copied


def show(_link: Link, attempt: Attempt, pool: Any) -> str:
    """Put a volume of a new name there, for another host to look for."""
    name = f"treadle-look.{uuid4()}"
    storage.create_raw(attempt, pool, name, 0)
    return name


def sees(attempt: Attempt, pool: Any, name: str) -> bool:
    """Whether a volume is there that another host has just put into its pool."""
    for number in range(TOKEN_TRIES):
        if storage.refresh(attempt, pool) and storage.find(attempt, pool, name) is not None:
            return True
        if number + 1 < TOKEN_TRIES:
            attempt.check()
            time.sleep(TOKEN_PAUSE_S)
    return False


def _whose(found: Pool, uuid: str) -> str:
    """Why a disk is not touched."""
    others = ", ".join(sorted(found.elsewhere(uuid)))
    owner = f"is that of host {others}" if others else "is nobody's that is known"
    return f"its disk, in storage that hosts share, {owner}"


def _note(uuid: str, host: str) -> str:
    return f"{uuid}.at-{host}"
