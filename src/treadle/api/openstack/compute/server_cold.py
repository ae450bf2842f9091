"""Servers that go to another host while off: cold migration, and a resize that needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute import server_schemas as schemas
from treadle.api.openstack.compute.action_base import Action, in_words
from treadle.api.openstack.compute.common import closed
from treadle.api.openstack.compute.servers import asker, find_row, flavor_of
from treadle.api.openstack.wire import Ask, Reply, Schema
from treadle.compute import actions, listing, store
from treadle.compute.listing import Row
from treadle.compute.moves import actions as moving
from treadle.compute.moves import targets
from treadle.compute.moves.actions import Patience
from treadle.errors import CannotPlace, InvalidInput
from treadle.placement.views import snapshot

NO_HOST = "No valid host was found"


def patience(ask: Ask) -> Patience:
    """How long a cold move may take."""
    settings = ask.context.settings
    return Patience(settings.moves.deadline_s, settings.controller.stop_deadline_s)


async def migrate(ask: Ask, value: Any) -> Reply | None:
    """Move it to another host while it is off. Errors: `InvalidInput` where no host would take
    it."""
    named = (value or {}).get("host") if ask.minor >= 56 else None

    def target_of(conn: sa.Connection) -> int | None:
        if named is None:
            return None
        words = listing.host_words(conn)
        found = next((id for id, one in words.items() if one.name == named), None)
        if found is None:
            raise InvalidInput("host", named, f"Compute host {named} could not be found.")
        return found

    def look(conn: sa.Connection, row: Row) -> targets.Wish:
        target = target_of(conn)
        instance = moving.migratable(conn, row.instance.id, target, asker(ask))
        assert instance.host_id is not None
        return targets.Wish(instance.host_id, target, cold=True)

    refused = await _refused(ask, "migrate", look)
    if refused is not None:
        raise InvalidInput("host", named, f"{NO_HOST}: {refused[0]}")

    def change(conn: sa.Connection, row: Row) -> None:
        moving.migrate(
            conn, row.instance.id, target_of(conn), request_id=ask.request_id,
            patience=patience(ask), by=asker(ask),
        )

    await _in_words(ask, "migrate", ask.write, change)
    return None


async def resize(ask: Ask, value: Mapping[str, Any]) -> Reply | None:
    """Another size: on its host where that has room, else on another. Errors: `InvalidInput` where
    no host has room for it."""
    ref = value["flavorRef"]

    def stay(conn: sa.Connection, row: Row) -> None:
        actions.resize(
            conn, row.instance.id, flavor_of(conn, ask, ref), request_id=ask.request_id,
            deadline_s=ask.context.settings.controller.stop_deadline_s, by=asker(ask),
        )
        _configured(conn, row)

    def _configured(conn: sa.Connection, row: Row) -> None:
        if "OS-DCF:diskConfig" in value:
            store.update(conn, row.instance.id, disk_config=value["OS-DCF:diskConfig"])

    def look(conn: sa.Connection, row: Row) -> targets.Wish:
        instance, after = moving.larger(
            conn, row.instance.id, flavor_of(conn, ask, ref), asker(ask)
        )
        assert instance.host_id is not None
        return targets.Wish(instance.host_id, None, after, cold=True)

    def go(conn: sa.Connection, row: Row) -> None:
        moving.resize(
            conn, row.instance.id, flavor_of(conn, ask, ref), request_id=ask.request_id,
            patience=patience(ask), by=asker(ask),
        )
        _configured(conn, row)

    if ask.context.settings.moves.resize_to_same_host:
        try:
            await _in_words(ask, "resize", ask.write, stay)
        except CannotPlace:
            pass
        else:
            return None
    refused = await _refused(ask, "resize", look)
    if refused is not None:
        operator, tenant = refused
        raise InvalidInput(
            "flavorRef", ref, f"{NO_HOST}: {operator if ask.caller.is_admin else tenant}"
        )
    await _in_words(ask, "resize", ask.write, go)
    return None


async def _in_words(
    ask: Ask, name: str, access: Callable[[Any], Any], work: Callable[[sa.Connection, Row], Any]
) -> Any:
    """Work on the server's row in one transaction; `name` is OpenStack's word for the action."""

    def do(conn: sa.Connection) -> Any:
        row = find_row(conn, ask)
        with in_words(row.instance.uuid, name):
            return work(conn, row)

    return await access(do)


async def _refused(
    ask: Ask, name: str, look: Callable[[sa.Connection, Row], targets.Wish]
) -> tuple[str, str] | None:
    """Whether any host would take it, by a dry run: why not, for operators and for tenants."""
    scheduler = ask.context.scheduler

    def read(conn: sa.Connection, row: Row) -> Any:
        wish = look(conn, row)
        loaded = store.load(conn, row.instance.uuid)
        assert loaded is not None
        asked = targets.asked(conn, loaded, wish, with_flavors=scheduler.wants_flavors)
        return asked, snapshot(conn, ends=scheduler.goes_by_lifetimes)

    asked, views = await _in_words(ask, name, ask.read, read)
    return await asyncio.to_thread(targets.forecast, scheduler, views, asked)


MIGRATE = Schema(
    (1, {}),
    (56, {"oneOf": [{"type": "null"}, closed({
        "host": {"type": ["string", "null"], "minLength": 1, "maxLength": 255},
    })]}),
)
RESIZE = Schema((1, closed({
    "flavorRef": schemas.FLAVOR, "OS-DCF:diskConfig": schemas.DISK_CONFIG,
}, ["flavorRef"])))
ACTIONS = {
    "migrate": Action(migrate, "compute:servers:migrate", MIGRATE),
    "resize": Action(resize, "compute:servers:resize", RESIZE),
}
