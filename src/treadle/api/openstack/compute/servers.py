"""Servers: create, list, show, update, delete."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from treadle.api.openstack.compute import server_schemas as schemas
from treadle.api.openstack.compute.common import links, truth
from treadle.api.openstack.compute.server_cache import Views, encode
from treadle.api.openstack.compute.server_filters import choice
from treadle.api.openstack.compute.server_view import (
    Looks,
    brief,
    reservation,
)
from treadle.api.openstack.wire import (
    ANY_QUERY,
    JSON,
    Ask,
    Call,
    Reply,
    next_link,
    to_json,
)
from treadle.compute import actions, creating, flavors, groups, injected, keypairs, listing, store
from treadle.compute.listing import Key, Row
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.image import store as images
from treadle.image.store import Image
from treadle.network.store import default_network_id, group_of
from treadle.placement.ledger import DEFAULT_ZONE

PASSWORD_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
NO_SERVER = "Instance {} could not be found."
NOT_A_NAME = re.compile(r"[^a-z0-9.-]+")


def uuid_of(ask: Ask) -> str:
    """The server's UUID in the path. Errors: `NotFound`."""
    text = ask.path["server_id"]
    try:
        return str(UUID(text))
    except ValueError as error:
        raise NotFound(NO_SERVER.format(text[:80])) from error


def scope(ask: Ask) -> str | None:
    """The project whose servers the caller may see; None: every one's."""
    return None if ask.caller.is_admin else ask.caller.project_id or "-"


def asker(ask: Ask) -> actions.Caller:
    """The caller as the use cases of compute want it."""
    return actions.Caller(ask.caller.user_id, ask.caller.project_id or "", ask.caller.is_admin)


def find(conn: sa.Connection, ask: Ask) -> Key:
    """The server of the path, where the caller may see it. Errors: `NotFound`."""
    uuid = uuid_of(ask)
    key = listing.key_of(conn, uuid, scope(ask))
    if key is None:
        raise NotFound(NO_SERVER.format(uuid))
    return key


def find_row(conn: sa.Connection, ask: Ask) -> Row:
    """The server of the path with all its columns. Errors: `NotFound`."""
    key = find(conn, ask)
    return listing.rows(conn, [key.id])[key.id]


# -- showing


async def encoded(
    ask: Ask, choose: Callable[[sa.Connection], Sequence[Key]], kind: str,
) -> tuple[Sequence[Key], list[bytes]]:
    """What `choose` gives, as JSON for this caller."""
    views = ask.context.shared(Views)
    looks = _looks(ask, kind)
    found, kept, rows, words, asked = await ask.read(views.read(looks, choose))
    return found, views.encode(looks, found, kept, rows, words, asked)


def _looks(ask: Ask, kind: str) -> Looks:
    return Looks(ask.root, ask.minor, kind, ask.allows("compute:servers:extended"))


def as_written(conn: sa.Connection, ask: Ask, kind: str, **more: str) -> bytes:
    """The server of the path as this transaction leaves it, as `{"server": …}` with `more` in it:
    a moment later it may be settled."""
    words = ask.context.shared(Views).hosts(conn)
    made = encode(_looks(ask, kind), find_row(conn, ask), words)
    extra = b"".join(b',"%b":%b' % (name.encode(), to_json(v)) for name, v in more.items())
    return b'{"server":' + made[:-1] + extra + b"}}"


async def show(ask: Ask) -> Reply:
    """One server."""
    kept = ask.context.shared(Views).unchanged(_looks(ask, "show"), uuid_of(ask), scope(ask))
    if kept is None:
        _, [kept] = await encoded(ask, lambda conn: [find(conn, ask)], "show")
    return Reply(b'{"server":' + kept + b"}")


async def listed(ask: Ask) -> Reply:
    """Servers with details."""
    views = ask.context.shared(Views)
    name = _looks(ask, "detail"), ask.caller, ask.request.scope["query_string"]
    commits = views.commits
    body = views.page(name)
    if body is None:
        page, choose = choice(ask)
        if choose is None:
            return Reply({"servers": []})
        keys, made = await encoded(ask, choose, "detail")
        link = _links(ask, page.asked, page.limit, keys, "/v2.1/servers/detail")
        more = b"" if link is None else b',"servers_links":[{"rel":"next","href":"%b"}]' % (
            link.encode()
        )
        body = b'{"servers":[' + b",".join(made) + b"]" + more + b"}"
        views.keep_page(name, body, commits)
    return Reply(body, media=JSON)


async def listed_briefly(ask: Ask) -> dict[str, Any]:
    """Servers without details."""
    page, choose = choice(ask)
    keys = [] if choose is None else await ask.read(choose)
    body: dict[str, Any] = {"servers": [brief(ask.root, key) for key in keys]}
    link = _links(ask, page.asked, page.limit, keys, "/v2.1/servers")
    if link is not None:
        body["servers_links"] = [{"rel": "next", "href": link}]
    return body


def _links(
    ask: Ask, asked: int | None, limit: int, keys: Sequence[Key], path: str
) -> str | None:
    full = len(keys) >= limit and bool(keys) and (asked or len(keys) == limit)
    return next_link(ask, path, keys[-1].uuid) if full else None


# -- making


async def create(ask: Ask) -> Reply:
    """Make servers: the first one's address, or the request's name."""
    given = ask.body["server"]
    password = given.get("adminPass") or new_password()
    limits = ask.context.settings.controller

    def work(conn: sa.Connection) -> list[creating.Made]:
        return creating.create(
            conn, _wish(conn, ask, given), request_id=ask.request_id,
            build_deadline_s=limits.build_deadline_s,
        )

    made = await ask.write(work)
    if truth("return_reservation_id", given.get("return_reservation_id", False)):
        return Reply({"reservation_id": reservation(made[0].batch)})
    uuid = made[0].uuid
    where = links(ask, "servers", uuid)
    body = {
        "id": uuid, "links": where, "adminPass": password,
        "OS-DCF:diskConfig": given.get("OS-DCF:diskConfig", "MANUAL"),
        "security_groups": [{"name": "default"}],
    }
    return Reply({"server": body}, headers={"Location": where[0]["href"]})


def new_password() -> str:
    """A password of 12 letters that are not taken for one another."""
    return "".join(secrets.choice(PASSWORD_LETTERS) for _ in range(12))


def _wish(conn: sa.Connection, ask: Ask, given: Mapping[str, Any]) -> creating.Wish:
    low, high = int(given.get("min_count", 1)), int(given.get("max_count", 0))
    high = high or low
    if low > high:
        raise InvalidInput("min_count", low, "it must be <= max_count")
    caller = ask.caller
    hints = ask.body.get("os:scheduler_hints") or ask.body.get("OS-SCH-HNT:scheduler_hints") or {}
    zone, hints = _zone(conn, ask, given, dict(hints))
    key = given.get("key_name")
    networked = _networked(conn, given.get("networks"))
    for group in given.get("security_groups", ()):
        if not is_own_group(conn, group.get("name"), caller.project_id or ""):
            raise InvalidInput("security_groups", group.get("name"),
                               "there is only the security group default")
    return creating.Wish(
        name=given["name"], flavor=flavor_of(conn, ask, given["flavorRef"]),
        image=image_of(conn, ask, _image_ref(given)),
        count=high, or_fewer=low, user_data=user_data_of(given),
        ssh_keys=() if key is None else (public_key(conn, caller.user_id, key),),
        project_id=caller.project_id or "", user_id=caller.user_id,
        hostname=given.get("hostname") or hostname_from(given["name"]),
        description=given.get("description", given["name"] if ask.minor < 19 else None),
        key_name=key, config_drive=truth("config_drive", given.get("config_drive", False)),
        disk_config=given.get("OS-DCF:diskConfig", "MANUAL"),
        access_ipv4=address(given, "accessIPv4"), access_ipv6=address(given, "accessIPv6"),
        networked=networked, metadata=given.get("metadata", {}), files=files_of(given),
        tags=frozenset(given.get("tags", ())), zone=zone,
        group=_group(conn, ask, hints.get("group")), hints=hints,
    )


def is_own_group(conn: sa.Connection, name: str | None, project_id: str) -> bool:
    """Whether a security group of the project has that name, or id: clients send either."""
    return name == "default" or name == group_of(conn, project_id).id


def hostname_from(name: str) -> str:
    """A host name made from any name (RFC 1123): small letters, digits, `-` and `.`, at most 63."""
    plain = NOT_A_NAME.sub("-", name.lower().replace("_", "-").replace(" ", "-"))
    return plain.strip("-.")[:63].rstrip("-.") or "server"


def address(given: Mapping[str, Any], name: str) -> str:
    """An address in its shortest form, or nothing. Errors: `InvalidInput`."""
    text = given.get(name) or ""
    kind = IPv4Address if name.endswith("4") else IPv6Address
    try:
        return str(kind(text)) if text else ""
    except ValueError as error:
        raise InvalidInput(name, text, f"it must be an {kind.__name__[:4]} address") from error


def user_data_of(given: Mapping[str, Any]) -> str:
    """The user data as text. Errors: `InvalidInput`."""
    text = given.get("user_data")
    if not text:
        return ""
    try:
        return base64.b64decode(text, validate=False).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidInput("user_data", text[:40], "it must be text (UTF-8) in base64") from error


def files_of(given: Mapping[str, Any], user_data: str | None = None) -> injected.Files:
    """The files to put into the guest, beside `user_data` (None: the request's). Errors:
    `InvalidInput`."""
    pairs = [(one.get("path", ""), one.get("contents", "")) for one in given.get("personality", ())]
    return injected.read(pairs, user_data_of(given) if user_data is None else user_data)


def flavor_of(conn: sa.Connection, ask: Ask, reference: Any) -> store.Flavor:
    """The flavor that is meant, by its id or its address. Errors: `InvalidInput`."""
    id = str(reference).rstrip("/").rpartition("/")[2]
    try:
        return flavors.get(conn, id, ask.caller.project_id, everything=ask.caller.is_admin)
    except NotFound as error:
        raise InvalidInput(
            "flavorRef", reference, f"Flavor {id[:80]} could not be found."
        ) from error


def _image_ref(given: Mapping[str, Any]) -> str:
    """The image to start from; everything else needs volumes. Errors: `InvalidInput`."""
    reference = str(given.get("imageRef") or "")
    devices = given.get("block_device_mapping_v2") or ()
    if given.get("block_device_mapping"):
        raise InvalidInput("block_device_mapping", given["block_device_mapping"],
                           "this cloud has no volumes")
    for device in devices:
        local = device.get("destination_type", "local") == "local"
        if device.get("source_type") != "image" or not local:
            raise InvalidInput("block_device_mapping_v2", device.get("source_type"),
                               "this cloud has no volumes: use an image on a local disk")
        if reference and device.get("uuid") != reference:
            raise InvalidInput("block_device_mapping_v2", device.get("uuid"),
                               "it must be the image of imageRef")
        reference = reference or str(device.get("uuid") or "")
    if not reference:
        raise InvalidInput("imageRef", reference,
                           "Invalid imageRef provided: a server needs an image")
    return reference


def image_of(conn: sa.Connection, ask: Ask, reference: str) -> Image:
    """The image that is meant, where the caller may use it. Errors: `InvalidInput`, `Conflict`."""
    id = reference.rstrip("/").rpartition("/")[2]
    try:
        uuid = str(UUID(id))
    except ValueError as error:
        raise InvalidInput("imageRef", reference, "it must be an image's UUID") from error
    found = images.visible(conn, uuid, ask.caller.project_id, ask.caller.is_admin)
    if found is None:
        raise InvalidInput("imageRef", reference, f"Image {uuid} could not be found.")
    return found


def _networked(conn: sa.Connection, asked: Any) -> bool:
    if asked is None or asked in ("auto", []):
        return True
    if asked == "none":
        return False
    known = default_network_id(conn)
    if len(asked) > 1:
        raise InvalidInput("networks", len(asked), "there is one network: name it once")
    for one_network in asked:
        if one_network.get("port") or one_network.get("fixed_ip"):
            raise InvalidInput("networks", one_network,
                               "ports and fixed addresses cannot be chosen here")
        if one_network.get("uuid", "").lower() != known:
            raise InvalidInput("networks", one_network.get("uuid"), "there is no such network")
    return True


def _zone(
    conn: sa.Connection, ask: Ask, given: Mapping[str, Any], hints: dict[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """The zone that is asked for; a host named with it, or beside it, becomes the hint `host`."""
    zone, _, forced = (given.get("availability_zone") or "").partition(":")
    forced = forced.split(":")[0] or given.get("host") or given.get("hypervisor_hostname") or ""
    hints.pop("host", None)
    if not zone and not forced:
        return None, hints
    known = {words.name: words for words in listing.host_words(conn).values()}
    if forced:
        ask.check("compute:servers:create:forced_host")
        if forced not in known:
            raise InvalidInput("availability_zone", forced, f"Compute host {forced} could not be "
                               "found.")
        hints["host"] = forced
    zones = {words.zone for words in known.values()} | {DEFAULT_ZONE}
    if zone and zone not in zones:
        raise InvalidInput("availability_zone", zone,
                           "The requested availability zone is not available")
    return zone or None, hints


def _group(conn: sa.Connection, ask: Ask, uuid: str | None) -> int | None:
    if uuid is None:
        return None
    try:
        return groups.get(conn, uuid, scope(ask)).id
    except NotFound as error:
        raise InvalidInput("group", uuid, "there is no such server group") from error


def public_key(conn: sa.Connection, user_id: str, name: str) -> str:
    """A key of the user's, to be put into a guest. Errors: `InvalidInput`."""
    found = keypairs.find(conn, user_id, name)
    if found is None:
        raise InvalidInput("key_name", name, "Invalid key_name provided.")
    return found.public_key.strip()


# -- changing


async def update(ask: Ask) -> Reply:
    """Change what is a name only."""
    given = ask.body["server"]
    values: dict[str, Any] = {}
    for name, column in (("name", "name"), ("description", "description"),
                         ("hostname", "hostname"), ("OS-DCF:diskConfig", "disk_config")):
        if name in given:
            values[column] = given[name]
    for name, column in (("accessIPv4", "access_ipv4"), ("accessIPv6", "access_ipv6")):
        if name in given:
            values[column] = address(given, name)

    def work(conn: sa.Connection) -> bytes:
        row = find_row(conn, ask)
        ask.check("compute:servers:update", {"project_id": row.columns.project_id})
        if "pinned_availability_zone" in given:
            values["availability_zone"] = _pinned(conn, row, given["pinned_availability_zone"])
        if values:
            store.update(conn, row.instance.id, **values)
        if values.get("name", row.instance.name) != row.instance.name:
            actions.noted(conn, row.instance, "rename", ask.request_id, asker(ask))
        return as_written(conn, ask, "update")

    return Reply(await ask.write(work))


def _pinned(conn: sa.Connection, row: Row, asked: str | None) -> str | None:
    """The zone that every later placement of the server keeps to: None, any; else the one that it
    is in. Errors: `Conflict` for another zone than that."""
    pinned = row.columns.availability_zone
    if asked is None or asked == pinned:
        return asked
    if pinned is not None:
        raise Conflict(f"pinned_availability_zone is '{pinned}': set it to null before it is "
                       f"set to '{asked[:80]}'")
    on = listing.host_words(conn).get(row.instance.host_id or 0)
    zone = "" if on is None else on.zone
    if asked != zone:
        raise Conflict(f"pinned_availability_zone can be null or where the server is, '{zone}': "
                       f"it cannot be '{asked[:80]}'")
    return asked


async def delete(ask: Ask) -> None:
    """End a server, in whatever state it is."""

    def work(conn: sa.Connection) -> None:
        row = find_row(conn, ask)
        settings = ask.context.settings
        if settings.instances.reclaim_s > 0:
            actions.soft_delete(
                conn, row.instance.id, request_id=ask.request_id, by=asker(ask),
                deadline_s=settings.controller.stop_deadline_s,
            )
        else:
            actions.delete(conn, row.instance.id, request_id=ask.request_id, by=asker(ask))

    await ask.write(work)



CALLS = [
    Call("POST", "/v2.1/servers", create, "compute:servers:create", 202, schemas.CREATE),
    Call("GET", "/v2.1/servers", listed_briefly, "compute:servers:index",
         query=ANY_QUERY),
    Call("GET", "/v2.1/servers/detail", listed, "compute:servers:detail", query=ANY_QUERY),
    Call("GET", "/v2.1/servers/{server_id}", show, "compute:servers:show"),
    Call("PUT", "/v2.1/servers/{server_id}", update, "compute:servers:update", 200,
         schemas.UPDATE),
    Call("DELETE", "/v2.1/servers/{server_id}", delete, "compute:servers:delete", 204),
]
