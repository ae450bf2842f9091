"""Which servers a list shows: the filters and the order that a query may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.common import truth
from treadle.api.openstack.compute.server_view import status_of, statuses
from treadle.api.openstack.wire import Ask, page_of
from treadle.compute import listing
from treadle.compute.listing import Key, Row, Wanted
from treadle.compute.patterns import is_literal, matcher
from treadle.errors import Forbidden, InvalidInput

ADMIN_FILTERS = frozenset({
    "access_ip_v4", "access_ip_v6", "auto_disk_config", "availability_zone", "config_drive",
    "created_at", "deleted", "description", "display_description", "display_name", "host",
    "hostname", "image_ref", "instance_type_id", "kernel_id", "key_name", "launch_index",
    "launched_at", "limit", "marker", "locked_by", "node", "power_state", "progress",
    "project_id", "ramdisk_id", "root_device_name", "soft_deleted", "sort_dir", "sort_key",
    "task_state", "tenant_id", "terminated_at", "user_id", "uuid", "vm_state", "metadata",
    "system_metadata", "block_device_mapping", "services", "security_groups", "info_cache",
})
USER_FILTERS = frozenset({
    "reservation_id", "name", "status", "image", "flavor", "ip", "changes-since", "all_tenants",
})
SINCE = {
    5: {"ip6"}, 26: {"tags", "tags-any", "not-tags", "not-tags-any"}, 66: {"changes-before"},
    73: {"locked"},
    83: {"availability_zone", "config_drive", "key_name", "created_at", "launched_at",
         "terminated_at", "power_state", "task_state", "vm_state", "progress", "user_id"},
    90: {"hostname"},
}
PLAIN = {
    "user_id": "user_id", "uuid": "uuid", "key_name": "key_name", "hostname": "hostname",
    "launch_index": "launch_index", "access_ip_v4": "access_ipv4", "access_ip_v6": "access_ipv6",
}
SORT_KEYS = {
    "created_at": "created_at", "updated_at": "updated_at", "launched_at": "launched_at",
    "terminated_at": "deleted_at", "deleted_at": "deleted_at", "display_name": "name",
    "uuid": "uuid", "host": "host_id", "node": "host_id", "instance_type_id": "flavor_id",
    "image_ref": "image_id", "project_id": "project_id", "user_id": "user_id",
    "key_name": "key_name", "display_description": "description", "hostname": "hostname",
    "availability_zone": "availability_zone", "vm_state": "state", "task_state": "goal",
    "power_state": "state", "vcpus": "vcpus", "memory_mb": "memory_mib",
    "access_ip_v4": "access_ipv4", "access_ip_v6": "access_ipv6", "config_drive": "config_drive",
    "launch_index": "launch_index", "id": "id", "root_device_name": "id", "progress": "id",
    "auto_disk_config": "id", "kernel_id": "id", "ramdisk_id": "id", "locked_by": "id",
}
NUMBERS = {"launch_index", "power_state", "progress"}
KNOWN_STATUS = statuses()


def choice(ask: Ask) -> tuple[Any, Callable[[sa.Connection], list[Key]] | None]:
    """The page that is asked for, and how to read it; None where nothing can match."""
    page = page_of(ask, keys=SORT_KEYS)
    wanted = _wanted(ask)
    if wanted is None:
        return page, None
    return page, lambda conn: listing.keys(conn, wanted, page.sort, page.limit, page.marker)


def _filters(ask: Ask) -> dict[str, list[str]]:
    """The filters of the query that this caller may use. Errors: `InvalidInput` from 2.75 on."""
    known = set(USER_FILTERS)
    for since, names in SINCE.items():
        if ask.minor >= since:
            known |= names
    paging = {"limit", "marker", "sort_key", "sort_dir"}
    admin = ask.allows("compute:servers:all_filters")
    found = {}
    for name, values in ask.query.items():
        if name not in known | paging | ADMIN_FILTERS and ask.minor >= 75:
            raise InvalidInput("query", name, "there is no such filter")
        if name not in paging and (name in known or (admin and name in ADMIN_FILTERS)):
            found[name] = list(values)
    return found


def _wanted(ask: Ask) -> Wanted | None:
    filters = _filters(ask)
    last = {name: values[-1] for name, values in filters.items()}
    project = ask.caller.project_id or "-"
    mine: str | None = project
    named = last.get("project_id") or last.get("tenant_id")
    if "all_tenants" in last or named:
        every = truth("all_tenants", last.get("all_tenants") or "1")
        if every:
            ask.check("compute:servers:all_tenants")
            mine = named
    values: dict[str, Any] = {
        "project_id": mine, "exactly": {}, "text": {}, "image_uuid": last.get("image"),
        "flavor": last.get("flavor"), "host_name": last.get("host") or last.get("node"),
        "changed_since": when(ask, "changes-since"),
        "changed_before": when(ask, "changes-before") if "changes-before" in last else None,
        "deleted": "deleted" in last and truth("deleted", last["deleted"]),
    }
    since, before = values["changed_since"], values["changed_before"]
    if since is not None and before is not None and since > before:
        raise InvalidInput("changes-since", last["changes-since"],
                           "it must be before changes-before")
    tests: list[Callable[[Row], bool]] = []
    if "name" in last:
        if is_literal(last["name"]):
            values["text"]["name"] = last["name"]
        else:
            found_in = matcher(last["name"])
            tests.append(lambda row: found_in(row.instance.name))
    for name, column in PLAIN.items():
        if name in last:
            value: Any = last[name]
            if name in NUMBERS:
                if not value.isdecimal():
                    raise InvalidInput(name, value, "it must be a whole number")
                value = int(value)
            values["exactly"][column] = value
    if "description" in last:
        values["text"]["description"] = last["description"]
    if "config_drive" in last:
        values["exactly"]["config_drive"] = truth("config_drive", last["config_drive"])
    if "reservation_id" in last:
        part = last["reservation_id"].removeprefix("r-")
        tests.append(lambda row: row.columns.batch.startswith(part))
    if "locked" in last:
        values["locked"] = truth("locked", last["locked"])
    if "availability_zone" in last:
        values["exactly"]["availability_zone"] = last["availability_zone"]
    for name in ("ip", "ip6"):
        if name in last:
            tests.append(_by_address(last[name]))
    for name, field in (("tags", "tags"), ("tags-any", "tags_any"), ("not-tags", "not_tags"),
                        ("not-tags-any", "not_tags_any")):
        if name in last:
            values[field] = frozenset(last[name].split(","))
    states: list[Callable[[str, str | None], bool]] = []
    if "vm_state" in last:
        states.append(lambda vm, _task: vm in filters["vm_state"])
    if "task_state" in last:
        states.append(lambda _vm, task: task in filters["task_state"])
    if "status" in filters and not _by_status(ask, filters["status"], values, states):
        return None
    if states:
        values["states"] = lambda vm, task: all(state(vm, task) for state in states)
    if tests:
        values["keep"] = lambda row: all(test(row) for test in tests)
    return Wanted(**values)


def _by_address(pattern: str) -> Callable[[Row], bool]:
    inside = matcher(pattern)
    return lambda row: inside(row.instance.address or "")


def _by_status(
    ask: Ask, asked: Sequence[str], values: dict[str, Any],
    states: list[Callable[[str, str | None], bool]],
) -> bool:
    """Narrow by status; False where no server can have one of these."""
    words = {word.upper() for word in asked} & set(KNOWN_STATUS)
    if not words:
        return False
    if "DELETED" in words:
        if not ask.allows("compute:servers:deleted"):
            raise Forbidden("Only administrators may list deleted instances")
        values["deleted"] = True
    states.append(lambda vm, task: status_of(vm, task) in words)
    return True


def when(ask: Ask, name: str) -> float | None:
    """A time in the query, in seconds since 1970. Errors: `InvalidInput`."""
    text = ask.one(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InvalidInput(name, text, "it must be a time such as 2026-01-31T12:00:00Z") from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.timestamp()
