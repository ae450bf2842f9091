"""What would become of the instances of a host that is emptied: a forecast, nothing is changed.

The host need not be disabled yet: nothing is placed on it here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from treadle.compute import actions, forecast, store
from treadle.compute.model import Instance, vm_state
from treadle.compute.moves.actions import COLD, MOVABLE
from treadle.compute.placing import request_of, room_of
from treadle.errors import InvalidState
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.table import HostTable


@dataclass(frozen=True, slots=True)
class Asked:
    """An instance, and what the scheduler is asked for it; or why it cannot be moved now."""

    instance: Instance
    request: PlacementRequest | None
    why: str


@dataclass(frozen=True, slots=True)
class Going:
    """Where one would go. `cost_mib`: memory and disk that are copied, MiB, at most."""

    instance: str
    name: str
    target: int
    target_name: str
    cost_mib: int


@dataclass(frozen=True, slots=True)
class Staying:
    """One that cannot go. `state` is OpenStack's vm_state."""

    instance: str
    name: str
    state: str
    why: str


def asked(conn: sa.Connection, host_id: int, *, with_flavors: bool) -> list[Asked]:
    """The instances of the host. `with_flavors`: as for `placing.request_of`."""
    found = []
    for instance in store.on_host(conn, host_id):
        try:
            actions.expect(instance, "live-migrate", MOVABLE | COLD)
        except InvalidState as error:
            found.append(Asked(instance, None, f"its {error.attribute} is {error.state}"))
            continue
        loaded = store.load(conn, instance.uuid)
        assert loaded is not None
        request = request_of(conn, instance, room_of(loaded), with_flavors=with_flavors)
        found.append(Asked(instance, replace(
            request, excluded_hosts=request.excluded_hosts | {host_id}
        ), ""))
    return found


def plan(
    scheduler: Scheduler, views: Iterable[HostView], host_id: int, asked: Iterable[Asked]
) -> tuple[list[Going], list[Staying]]:
    """Where each would go by a dry run of the scheduler, one after the other, on what those before
    it have taken. Errors: `PluginError`."""
    table = HostTable(views)
    gone: dict[int, Counter[int]] = {}
    going: list[Going] = []
    staying: list[Staying] = []
    for number, one in enumerate(asked):
        instance, request, why = one.instance, one.request, one.why
        if request is not None:
            request = _after(request, instance.group_id, host_id, gone)
            ranking, record = scheduler.rank(
                table.columns(), replace(request, seed=number), dry_run=True
            )
            if len(ranking):
                target = int(ranking.ids[0])
                name = forecast.take(table, target, request)
                if instance.group_id is not None:
                    gone.setdefault(instance.group_id, Counter())[target] += 1
                going.append(Going(
                    instance.uuid, instance.name, target, name,
                    request.memory_mib + request.disk_mib,
                ))
                continue
            refusal = record.error()
            reasons = "; ".join(f"{host}: {text}" for host, text in refusal.reasons.items())
            why = f"{refusal}: {reasons}" if reasons else str(refusal)
        staying.append(Staying(instance.uuid, instance.name, vm_state(instance), why))
    return going, staying


def _after(
    request: PlacementRequest, group_id: int | None, host_id: int, gone: dict[int, Counter[int]]
) -> PlacementRequest:
    """The request, where members of its group have gone from the host before it."""
    if group_id is None or group_id not in gone:
        return request
    there = Counter(dict(request.group_hosts)) + gone[group_id]
    there[host_id] -= gone[group_id].total()
    return replace(request, group_hosts=tuple(sorted((+there).items())))
