"""Actions that change what a server is: rescue, rebuild, resize, shelve, snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute import server_schemas as schemas
from treadle.api.openstack.compute.action_base import NULL, Action, changing, in_words
from treadle.api.openstack.compute.common import (
    BOOLEAN,
    NAME,
    UUID_TEXT,
    closed,
    inside,
    number,
    whole,
)
from treadle.api.openstack.compute.servers import (
    address,
    as_written,
    asker,
    files_of,
    find_row,
    image_of,
    new_password,
    public_key,
    user_data_of,
)
from treadle.api.openstack.wire import Ask, Reply, Schema
from treadle.compute import actions, consoles, injected, listing, quota, store
from treadle.compute.actions import Rebuild
from treadle.compute.listing import Row
from treadle.errors import Conflict, InvalidInput, TreadleError
from treadle.image import actions as image_actions
from treadle.image.store import Image
from treadle.placement.ledger import DEFAULT_ZONE


def _patience(ask: Ask) -> float:
    return ask.context.settings.controller.build_deadline_s


def _until_off(ask: Ask) -> float:
    """How long the guest is asked to shut down before it is switched off."""
    return ask.context.settings.controller.stop_deadline_s


# -- rescue


@changing("rescue")
def _rescue(conn: sa.Connection, ask: Ask, row: Row, value: Any) -> Reply:
    given: Mapping[str, Any] = value or {}
    image = None
    if given.get("rescue_image_ref"):
        image = image_of(conn, ask, given["rescue_image_ref"])
    actions.rescue(
        conn, row.instance.id, image, request_id=ask.request_id, deadline_s=_until_off(ask),
        by=asker(ask),
    )
    return Reply({"adminPass": given.get("adminPass") or new_password()}, 200)


@changing("unrescue")
def _unrescue(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    actions.unrescue(
        conn, row.instance.id, request_id=ask.request_id, deadline_s=_patience(ask),
        by=asker(ask),
    )


# -- rebuild


@changing("rebuild")
def _rebuild(conn: sa.Connection, ask: Ask, row: Row, given: Mapping[str, Any]) -> Reply:
    """A new disk; the whole server is the answer."""
    columns: dict[str, Any] = {}
    if "metadata" in given:
        quota.check_metadata(conn, row.columns.project_id, len(given["metadata"]))
        columns["metadata"] = store.compact(given["metadata"])
    for name, column in (
        ("description", "description"), ("OS-DCF:diskConfig", "disk_config"),
        ("hostname", "hostname"),
    ):
        if name in given:
            columns[column] = given[name]
    for name, column in (("accessIPv4", "access_ipv4"), ("accessIPv6", "access_ipv6")):
        if name in given:
            columns[column] = address(given, name)
    keys: tuple[str, ...] | None = None
    if "key_name" in given:
        columns["key_name"] = given["key_name"]
        keys = ()
        if given["key_name"] is not None:
            keys = (public_key(conn, ask.caller.user_id, given["key_name"]),)
    user_data = None
    if "user_data" in given:
        user_data = user_data_of(given) if given["user_data"] else ""
    files = files_of(given, row.instance.user_data if user_data is None else user_data)
    injected.check(conn, row.columns.project_id, files)
    columns["files"] = injected.text(files)
    actions.rebuild(
        conn, row.instance.id,
        Rebuild(image_of(conn, ask, given["imageRef"]), given.get("name"), user_data, keys,
                columns),
        request_id=ask.request_id, deadline_s=_patience(ask), by=asker(ask),
    )
    password = given.get("adminPass") or new_password()
    location = f"{ask.root}/v2.1/servers/{ask.path['server_id']}"
    made = as_written(conn, ask, "rebuild", adminPass=password)
    return Reply(made, headers={"Location": location})


# -- resize


@changing("confirmResize")
def _confirm(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    actions.confirm_resize(conn, row.instance.id, request_id=ask.request_id, by=asker(ask))


@changing("revertResize")
def _revert(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    actions.revert_resize(
        conn, row.instance.id, request_id=ask.request_id, deadline_s=_until_off(ask),
        by=asker(ask),
    )


# -- shelve


@changing("shelve")
def _shelve(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    actions.shelve(
        conn, row.instance.id, request_id=ask.request_id, deadline_s=_until_off(ask),
        by=asker(ask),
    )


@changing("shelveOffload")
def _offload(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    actions.shelve_offload(conn, row.instance.id, request_id=ask.request_id, by=asker(ask))


@changing("unshelve")
def _unshelve(conn: sa.Connection, ask: Ask, row: Row, value: Any) -> None:
    given: Mapping[str, Any] = value or {}
    zone, on = given.get("availability_zone"), given.get("host")
    words = listing.host_words(conn)
    zones = {one.zone for one in words.values()} | {DEFAULT_ZONE}
    if zone is not None and zone not in zones:
        raise InvalidInput("availability_zone", zone,
                           "The requested availability zone is not available")
    host_id = None
    if on is not None:
        ask.check("compute:servers:create:forced_host")
        host_id = next((id for id, one in words.items() if one.name == on), None)
        if host_id is None:
            raise InvalidInput("host", on, f"Compute host {on} could not be found.")
    actions.unshelve(
        conn, row.instance.id, zone=zone, host_id=host_id, request_id=ask.request_id,
        deadline_s=_patience(ask), by=asker(ask),
    )
    if "availability_zone" in given and zone is None:
        store.update(conn, row.instance.id, availability_zone=None)


# -- snapshot


@changing("createImage")
def _snapshot(conn: sa.Connection, ask: Ask, row: Row, value: Mapping[str, Any]) -> Reply:
    quota.check_metadata(conn, row.columns.project_id, len(value.get("metadata", {})))
    image_actions.check_another(conn, row.columns.project_id, ask.context.image_limits)
    image = actions.create_image(
        conn, row.instance.id, value["name"], properties=value.get("metadata", {}),
        request_id=ask.request_id, by=asker(ask),
    )
    return _image_reply(ask, image)


@changing("createBackup")
def _backup(
    conn: sa.Connection, ask: Ask, row: Row, value: Mapping[str, Any]
) -> Reply | None:
    quota.check_metadata(conn, row.columns.project_id, len(value.get("metadata", {})))
    rotation = number("rotation", value["rotation"], 0)
    if rotation:
        image_actions.check_another(conn, row.columns.project_id, ask.context.image_limits)
    image = actions.create_backup(
        conn, row.instance.id, value["name"], value["backup_type"], rotation,
        properties=value.get("metadata", {}), request_id=ask.request_id, by=asker(ask),
    )
    return None if image is None else _image_reply(ask, image)


def _image_reply(ask: Ask, image: Image) -> Reply:
    """Where the image will be."""
    if ask.minor >= 45:
        return Reply({"image_id": image.uuid})
    base = ask.root.rpartition("/")[0]
    return Reply(headers={"Location": f"{base}/image/v2/images/{image.uuid}"})


# -- password


async def change_password(ask: Ask, value: Any) -> Reply | None:
    """Have the guest's agent give its administrator another password."""

    def look(conn: sa.Connection) -> consoles.Place | None:
        row = find_row(conn, ask)
        actions.unlocked(row.instance, "changePassword", asker(ask))
        with in_words(row.instance.uuid, "changePassword"):
            actions.expect(row.instance, "changePassword", frozenset({"active"}))
        return consoles.place_of(conn, row.instance.uuid)

    place = await ask.read(look)
    if place is None:
        raise Conflict(f"Instance {ask.path['server_id']} is on no host")

    async def note(error: str | None) -> None:
        await ask.write(lambda conn: actions.noted(
            conn, find_row(conn, ask).instance, "changePassword", ask.request_id, asker(ask), error
        ))

    try:
        await asyncio.to_thread(
            consoles.set_password, ask.context.fleet, place, "root", value["adminPass"]
        )
    except TreadleError as error:
        await note(str(error))
        raise
    await note(None)
    return None


def _rebuild_body(minor: int) -> schemas.Json:
    given: schemas.Json = {
        "name": NAME, "imageRef": UUID_TEXT, "adminPass": schemas.PASSWORD,
        "metadata": schemas.METADATA, "preserve_ephemeral": BOOLEAN,
        "OS-DCF:diskConfig": schemas.DISK_CONFIG, "accessIPv4": schemas.address(4),
        "accessIPv6": schemas.address(6),
    }
    if minor < 57:
        given["personality"] = schemas.FILES
    if minor >= 19:
        given["description"] = schemas.DESCRIPTION
    if minor >= 54:
        given["key_name"] = {"type": ["string", "null"], "minLength": 1, "maxLength": 255}
    if minor >= 57:
        given["user_data"] = {"anyOf": [schemas.BASE64, {"type": "null"}]}
    if minor >= 63:
        given["trusted_image_certificates"] = schemas.CERTIFICATES
    if minor >= 90:
        given["hostname"] = schemas.FQDN if minor >= 94 else schemas.HOSTNAME
    return closed(given, ["imageRef"])


RESCUE = Schema((1, {"oneOf": [{"type": "null"}, closed({
    "adminPass": schemas.PASSWORD, "rescue_image_ref": UUID_TEXT,
})]}))
REBUILD = Schema(*((minor, _rebuild_body(minor)) for minor in (1, 19, 54, 57, 63, 90, 94)))
_ZONED = {"availability_zone": {"type": ["string", "null"], "minLength": 1, "maxLength": 255}}
UNSHELVE = Schema(
    (1, {}),
    (77, {"oneOf": [{"type": "null"}, closed(_ZONED)]}),
    (91, {"oneOf": [{"type": "null"}, closed({
        **_ZONED, "host": {"type": "string", "minLength": 1},
    })]}),
)
IMAGE = Schema((1, closed(
    {"name": NAME, "metadata": schemas.METADATA}, ["name"]
)))
BACKUP = Schema((1, closed({
    "name": NAME, "backup_type": {"type": "string", "minLength": 1, "maxLength": 255},
    "rotation": whole(0), "metadata": schemas.METADATA,
}, ["name", "backup_type", "rotation"])))
PASSWORD = Schema((1, inside("adminPass", schemas.PASSWORD)))

ACTIONS = {
    "rescue": Action(_rescue, "compute:servers:rescue", RESCUE),
    "unrescue": Action(_unrescue, "compute:servers:unrescue", NULL),
    "rebuild": Action(_rebuild, "compute:servers:rebuild", REBUILD),
    "confirmResize": Action(_confirm, "compute:servers:confirm_resize", NULL, status=204),
    "revertResize": Action(_revert, "compute:servers:revert_resize", NULL),
    "shelve": Action(_shelve, "compute:servers:shelve", NULL),
    "shelveOffload": Action(_offload, "compute:servers:shelve_offload", NULL),
    "unshelve": Action(_unshelve, "compute:servers:unshelve", UNSHELVE),
    "createImage": Action(_snapshot, "compute:servers:create_image", IMAGE),
    "createBackup": Action(_backup, "compute:servers:create_backup", BACKUP),
    "changePassword": Action(change_password, "compute:servers:change_password", PASSWORD),
}
