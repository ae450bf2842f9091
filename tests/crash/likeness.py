"""When two worlds are one: whatever is done from here on, the same comes of it.

`likeness` gives all that can have a part in what follows: the rows, the hosts, what is wanted of
them and when, what the controller remembers. What it leaves out is named here, with the reason; a
new table or column is in it until somebody says otherwise. Times count from now.

It holds between two passes only, where no pass is under way: nobody's ticket is out.
"""

from __future__ import annotations

import marshal
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from brain import Memory

from treadle.compute.outcomes import ADDRESS_PATIENCE_S
from treadle.db.schema import metadata
from treadle.hypervisor.fake_host import FakeHost, Guest
from treadle.placement.board import REREAD_S

if TYPE_CHECKING:
    from world import World

UNREAD = frozenset({"action_step", "decision"})
"""Tables that are written for people: no pass reads them."""
LEFT_OUT = {
    # They are held against a ticket, and no ticket is out.
    "work": {"token", "wake", "last_error"},
    "host": {"added_at", "seen_at", "uuid"},
    # In its order only.
    "host_image": {"used_at"},
    "image": {"added_at", "updated_at", "uuid", "source", "path", "blob"},
    "instance": {"created_at", "updated_at", "version", "fault_at", "public_fault"},
    "orphan": {"seen_at"},
    "migration": {"created_at", "updated_at", "uuid"},
    "action": {"id", "request_id", "started_at", "finished_at", "outcome", "message"},
}
"""Columns that nothing decides by, or that say the same as others."""
WHETHER = {
    "host": {"error", "fence_note"},
    "host_image": {"error"},
    "image": {"error", "deleted_at"},
    "instance": {"fault", "deleted_at"},
    "migration": {"error"},
}
"""Of these it only counts whether there is one."""
AGES = {
    # It counts while one that runs has no address yet, and that long.
    "instance": {"launched_at": "CASE WHEN address IS NULL AND mac != '' "
                 f"THEN round(min(:now - launched_at, {ADDRESS_PATIENCE_S}), 4) "
                 "ELSE launched_at IS NULL END"},
    "host": {"fenced_at": "round(:now - fenced_at, 4)"},
}
"""Since when, as far as that counts."""
UNTIL = {
    "instance": ("deadline", "ends_at"), "migration": ("deadline",),
    "work": ("due_at", "lease_until"),
}
"""In how many seconds; what is over is all the same."""
ORDER = {"work": "due_at, rowid", "host_image": "host_id, used_at, rowid"}
"""Where it is not by the key: which comes first, decides."""
ONLY = {"action": " WHERE finished_at IS NULL"}
_TOKEN = re.compile(r"\.[0-9a-f]{12}-fake")


def _query(table: sa.Table) -> str:
    name = table.name
    ages: Mapping[str, str] = AGES.get(name, {})
    columns = []
    for column in table.c:
        known = f'"{column.name}"'
        if column.name in LEFT_OUT.get(name, ()):
            continue
        if column.name in WHETHER.get(name, ()):
            known = f"{known} IS NULL"
        elif column.name in ages:
            known = ages[column.name]
        elif column.name in UNTIL.get(name, ()):
            over = "<=" if column.name == "due_at" else "<"
            known = f"CASE WHEN {known} {over} :now THEN -1 ELSE round({known} - :now, 4) END"
        columns.append(known)
    order = ORDER.get(name) or ", ".join(f'"{one.name}"' for one in table.primary_key)
    return f'SELECT {", ".join(columns)} FROM "{name}"{ONLY.get(name, "")} ORDER BY {order}'


CHANGE = ("work", "instance", "host", "host_image", "image", "allocation", "orphan", "migration",
          "action")
"""The tables that passes and the wishes of the sweep change and read."""
QUERIES = [_query(metadata.tables[name]) for name in CHANGE]


def likeness(world: World, memory: Memory) -> bytes:
    """As above; the same bytes, the same world."""
    now = {"now": world.clock.now}
    rows = [world.database.run(query, now).fetchall() for query in QUERIES]
    if not world.shared:
        # How often it was prepared is told to others who see its storage: nobody does.
        rows[2] = [tuple(
            _TOKEN.sub("", one) if isinstance(one, str) and one[:1] == "{" else one for one in row
        ) for row in rows[2]]
    disks: dict[int, int] = {}
    hosts = [_host(machine, world.shared, disks) for machine in world.machines.values()]
    return marshal.dumps((
        rows, hosts, _memory(memory, world), world.sizes, world.shared, world.precious
    ), 2)


def _host(machine: FakeHost, shared: bool, disks: dict[int, int]) -> tuple[Any, ...]:
    faults = [
        (one.verb, one.nth - machine.calls[one.verb], str(one.kind), one.times)
        for one in machine.faults if machine.calls[one.verb] < one.nth + one.times - 1
    ]
    return (
        machine.up, machine.powered, sorted(machine.images), faults,
        [(name, str(power)) for name, power in sorted(machine.foreign.items())],
        machine.prepared if shared else 0,
        [_guest(uuid, machine.guests[uuid], disks) for uuid in sorted(machine.guests)],
    )


def _guest(uuid: str, guest: Guest, disks: dict[int, int]) -> tuple[Any, ...]:
    return (
        uuid, repr(guest.spec), guest.running_generation, str(guest.power), str(guest.cause),
        guest.defined, guest.ignores_acpi, guest.autostart, sorted(guest.disks.items()),
        disks.setdefault(id(guest.disk), len(disks)),  # which hosts may share
        guest.rescue, guest.copy and guest.copy[:400], guest.agent, guest.frozen, guest.changed,
        guest.live, guest.on, guest.moved_to, guest.room, guest.machine, guest.card, guest.cut,
        guest.other and guest.other.name, guest.torn,
    )


def _memory(memory: Memory, world: World) -> tuple[Any, ...]:
    """What it sees of the room there is; nothing where it will read it all anew."""
    seen: tuple[Any, ...] = ()
    age = None if memory.read_at is None else world.clock.now - memory.read_at
    if age is not None and age <= REREAD_S:
        seen = round(age, 4), repr(memory.views), memory.changed
    return memory.hosts, memory.prepared, seen, repr(memory.held)
