"""Finding a host for an instance: what the scheduler is asked, and the taking of what it offers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

from treadle.compute import changes, store
from treadle.compute.kinds import enqueue_image
from treadle.compute.model import Goal, Instance, Phase, State
from treadle.compute.store import Loaded
from treadle.db.engine import Database, note
from treadle.db.prepared import Prepared
from treadle.db.schema import flavor, host, image
from treadle.db.schema import instance as table
from treadle.hypervisor.base import GuestNode
from treadle.placement import groups, ledger
from treadle.placement.board import Board
from treadle.placement.ledger import ImageState, Room
from treadle.scheduler.model import Pairs, PlacementRequest
from treadle.scheduler.nodes import split
from treadle.scheduler.plugin import Ranking
from treadle.scheduler.record import Decision

TRAIT = "trait:"
MACHINE = frozenset({"images"})
CONTAINER = frozenset({"root_filesystems"})
IMAGE_KEYS = ("img_hv_type", "hypervisor_type")
FLAVOR_KEYS = ("hypervisor_type", "capabilities:hypervisor_type")
PLACE_TRIES = 3
MIB = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the scheduler is asked, and what room is needed.

    `barred`: hosts that are never taken, though no filter refuse them. `unfit`: of some hosts that
    are out of the question whatever their room, the name and the reason.
    """

    request: PlacementRequest
    room: Room
    barred: frozenset[int] = frozenset()
    unfit: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, record: Decision) -> str:
        """Why nothing fits, host by host: for operators."""
        error = record.error()
        reasons = {**error.reasons, **self.unfit}
        why = "; ".join(f"{name}: {text}" for name, text in reasons.items())
        return f"{error}: {why}" if why else str(error)


@dataclass(frozen=True, slots=True)
class Offer:
    """The hosts that seem to have the room, best first."""

    hosts: Iterable[int]
    room: Room
    record: Decision

    def take(
        self, conn: sa.Connection, instance: Instance,
        claim: Callable[[sa.Connection, int, Room], bool],
    ) -> int | None:
        """Claim the room on the first host that the instance's group allows and that has it still;
        None where none has. The image is on its way there, and the record says who won."""
        self.record.conflicts.clear()  # the transaction may be run again
        allowed = groups.rule(conn, instance.group_id, instance.id)
        for host_id in self.hosts:
            if allowed(host_id) and claim(conn, host_id, self.room):
                self.record.won(host_id)
                note(conn, ledger.PLACED, instance.uuid)
                sha256 = self.room.sha256
                if ledger.image_state(conn, host_id, sha256) is ImageState.WANTED:
                    enqueue_image(conn, host_id, sha256)
                return host_id
            self.record.lost(host_id)
        return None


@dataclass(frozen=True, slots=True)
class NoRoom:
    """By all that the database says no host has room. `unknown`: some hosts have not been reached
    yet."""

    asked: Asked
    record: Decision
    unknown: bool

    @property
    def reason(self) -> str:
        """Why, host by host: for operators."""
        return self.asked.refusal(self.record)


def place(
    database: Database, board: Board, uuid: str, ask: Callable[[sa.Connection], Asked],
    commit: Callable[[sa.Connection, Offer], T | None],
    before: Callable[[Offer], Offer] = lambda offer: offer,
) -> T | NoRoom | None:
    """Have the best host that has room for the instance taken: ask, rank, and `commit`.

    `commit` takes a host with `Offer.take` and writes what follows from that, in one transaction;
    where it takes none it gives None, and all is done again, `PLACE_TRIES` times in all. What it
    gives comes back; None where others were taking the room at every try. `before` does what has
    to be done on a host first, and gives the offer that is left. Errors: `PluginError`, and what
    `commit` and `before` raise.
    """
    for attempt in range(PLACE_TRIES):
        asked = database.read(ask)
        outlook = board.rank(asked.request, asked.room, anew=attempt > 0)
        try:
            hosts: Ranking | list[int] = outlook.ranking
            if asked.barred:
                hosts = [id for id in hosts if id not in asked.barred]
            if not hosts:
                if outlook.exact:
                    return NoRoom(asked, outlook.record, outlook.unknown)
                continue
            _ = outlook.record.detail  # worked out here, not in the transaction
            offer = before(Offer(hosts, outlook.room, outlook.record))

            def take(conn: sa.Connection, offer: Offer = offer) -> T | None:
                return commit(conn, offer)

            taken = database.write(take)
        finally:
            board.let_go(uuid)
        if taken is not None:
            return taken
    return None


def is_first(instance: Instance) -> bool:
    """Whether no host has been tried for it yet, in all its life."""
    return instance.attempts == 0 and instance.launched_at is None


def batch_of(
    conn: sa.Connection, batch: str, *, with_flavors: bool
) -> list[tuple[PlacementRequest, Room]]:
    """What the instances of a batch that are still to be placed need. `with_flavors`: as for
    `request_of`."""
    found = []
    for one in store.of_batch(conn, batch):
        building = one.phase is Phase.QUEUED and one.state is State.BUILDING
        if building and one.goal is Goal.RUNNING and is_first(one):
            loaded = store.load(conn, one.uuid)
            assert loaded is not None
            room = room_of(loaded)
            found.append((request_of(conn, one, room, with_flavors=with_flavors), room))
    return found


def mib(size_bytes: int) -> int:
    """What so many bytes take of a disk, in MiB."""
    return -(-size_bytes // MIB)


def room_of(loaded: Loaded) -> Room:
    """What the instance takes of a host."""
    image = loaded.image
    return Room(
        *changes.held(loaded.instance), image.sha256, mib(image.size_bytes),
        changes.nodes_held(loaded.instance),
    )


def nodes_of(loaded: Loaded) -> tuple[GuestNode, ...]:
    """Its NUMA nodes, each with an even share of what it has, on the cells that it holds."""
    instance = loaded.instance
    if not instance.nodes or len(loaded.cells) != instance.nodes:
        return ()
    return tuple(map(
        GuestNode, loaded.cells, split(instance.vcpus, instance.nodes),
        split(instance.memory_mib, instance.nodes),
    ))


def request_of(
    conn: sa.Connection, instance: Instance, room: Room, *, with_flavors: bool,
    flavor: str | None = None,
) -> PlacementRequest:
    """The request. `with_flavors`: name the sizes on offer, for a scheduler that goes by them.
    `flavor`: what it will keep of another flavor, as JSON; None: it stays of its own.

    Of the scheduler hints, `same_host` and `different_host` count instances of the same project
    alone; `host` is a host's name, for the first placement alone. A build that failed somewhere
    does not go there again.
    """
    row = _ASKED(conn, {"i": instance.id}).one()
    hints = _object(row.scheduler_hints)
    specs = _pairs(_object(row.flavor if flavor is None else flavor).get("extra_specs"))
    properties = _pairs(_object(row.properties))
    rule = None if row.group_id is None else groups.get(conn, row.group_id)
    there = {} if rule is None else groups.members(conn, row.group_id, instance.id)
    if instance.launched_at is not None:
        hints.pop("host", None)
    only = _only(conn, row.project_id, hints)
    if instance.only_host_id is not None:
        asked = frozenset({instance.only_host_id})
        only = asked if only is None else only & asked
    apart = _hosts_of(conn, row.project_id, hints.get("different_host"))
    flavors: Iterable[Any] = _FLAVORS(conn) if with_flavors else ()
    return PlacementRequest(
        instance_id=instance.uuid, vcpus=room.vcpus, memory_mib=room.memory_mib,
        disk_mib=room.disk_mib, image=room.sha256, image_mib=room.image_mib,
        capabilities=kind_of(properties, specs) | frozenset(
            key.removeprefix(TRAIT) for key, value in specs
            if key.startswith(TRAIT) and value == "required"
        ),
        excluded_hosts=instance.excluded | apart, tried_hosts=instance.excluded, only_hosts=only,
        seed=int(instance.uuid[:8], 16), zone=row.availability_zone, extra_specs=specs,
        image_properties=properties,
        group=None if rule is None else rule.policy, group_hosts=tuple(there.items()),
        max_per_host=1 if rule is None else rule.max_per_host,
        numa_nodes=room.nodes,
        pci=devices_wanted(dict(specs)),
        tenant=row.project_id or None, batch=instance.batch, asked_at=instance.created_at,
        flavors=tuple((size.vcpus, size.memory_mib, size.disk_gib * 1024) for size in flavors),
    )


def kind_of(properties: Pairs, specs: Pairs) -> frozenset[str]:
    """What a host must be able to do with the image: boot a machine from it, or run a container in
    it, where the image's properties or the flavor's extra specs name the hypervisor type "lxc"."""
    named = {value.lower() for key, value in properties if key in IMAGE_KEYS}
    named |= {value.lower() for key, value in specs if key in FLAVOR_KEYS}
    return CONTAINER if "lxc" in named else MACHINE


def _only(
    conn: sa.Connection, project_id: str, hints: Mapping[str, Any]
) -> frozenset[int] | None:
    only = None
    if hints.get("same_host"):
        only = _hosts_of(conn, project_id, hints["same_host"])
    name = hints.get("host")
    if isinstance(name, str):
        named = frozenset(conn.execute(sa.select(host.c.id).where(host.c.name == name)).scalars())
        only = named if only is None else only & named
    return only


def _hosts_of(conn: sa.Connection, project_id: str, uuids: Any) -> frozenset[int]:
    """Where instances of the project are."""
    asked = [uuids] if isinstance(uuids, str) else uuids
    if not isinstance(asked, list) or not asked:
        return frozenset()
    return frozenset(conn.execute(
        sa.select(table.c.host_id).where(
            table.c.uuid.in_([str(uuid) for uuid in asked]), table.c.project_id == project_id,
            table.c.host_id.is_not(None),
        )
    ).scalars())


def _object(text: str | None) -> dict[str, Any]:
    found = json.loads(text or "{}")
    return found if isinstance(found, dict) else {}


def _pairs(found: Any) -> Pairs:
    values = found if isinstance(found, dict) else {}
    return tuple(sorted((key, value) for key, value in values.items() if isinstance(value, str)))


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0


def devices_wanted(specs: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """How many PCI devices of each alias extra specs ask for: "gpu:1,nic:2"."""
    found: dict[str, int] = {}
    for part in specs.get("pci_passthrough:alias", "").split(","):
        alias, _, count = part.strip().partition(":")
        if alias:
            found[alias] = found.get(alias, 0) + (_whole(count) or 1)
    return tuple(sorted(found.items()))


_ASKED = Prepared(
    sa.select(
        table.c.availability_zone, table.c.group_id, table.c.scheduler_hints, table.c.project_id,
        table.c.flavor, image.c.properties,
    )
    .join(image, image.c.id == table.c.image_id)
    .where(table.c.id == sa.bindparam("i"))
)
_FLAVORS = Prepared(
    sa.select(flavor.c.vcpus, flavor.c.memory_mib, flavor.c.disk_gib).where(
        flavor.c.active
    ).order_by(flavor.c.vcpus, flavor.c.memory_mib, flavor.c.disk_gib).distinct()
)
