"""How much a project may have: quota sets, quota classes, and the limits that clients read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    BOOLEAN,
    LONGEST,
    Body,
    closed,
    inside,
    known_project,
    number,
    queries,
    query,
    truth,
    whole,
)
from treadle.api.openstack.wire import Ask, Call, Schema
from treadle.compute import quota
from treadle.errors import InvalidInput

NETWORK = frozenset({"fixed_ips", "floating_ips", "security_groups", "security_group_rules"})
FILES = frozenset({"injected_files", "injected_file_content_bytes", "injected_file_path_bytes"})
GROUPS = frozenset({"server_groups", "server_group_members"})
NO_NETWORK, NO_CLASS_NETWORK, NO_IMAGE_METADATA, NO_FILES = 36, 50, 39, 57
"""The minor microversions that took these away; the second brought groups to classes."""


def _resources(minor: int, no_network: int = NO_NETWORK) -> list[str]:
    gone: Collection[str] = (
        (NETWORK if minor >= no_network else frozenset()) | (FILES if minor >= NO_FILES
                                                             else frozenset())
    )
    return [name for name in quota.DEFAULTS if name not in gone]


def _limits(names: Iterable[str], **more: Mapping[str, object]) -> Body:
    return closed({**{name: whole(-1) for name in names}, **more})


SET = Schema(*(
    (minor, inside("quota_set", _limits(_resources(minor), force=BOOLEAN)))
    for minor in (1, NO_NETWORK, NO_FILES)
))
SET_CLASS = Schema(*(
    (minor, inside("quota_class_set", _limits(_resources(minor, NO_CLASS_NETWORK))))
    for minor in (1, NO_CLASS_NETWORK, NO_FILES)
))
USER = queries(query("user_id"))
LIMITS = queries(query("tenant_id"))
LIMIT_NAMES = {
    "ram": ("maxTotalRAMSize",), "instances": ("maxTotalInstances",), "cores": ("maxTotalCores",),
    "key_pairs": ("maxTotalKeypairs",), "floating_ips": ("maxTotalFloatingIps",),
    "metadata_items": ("maxServerMeta", "maxImageMeta"), "injected_files": ("maxPersonality",),
    "injected_file_content_bytes": ("maxPersonalitySize",),
    "security_groups": ("maxSecurityGroups",), "security_group_rules": ("maxSecurityGroupRules",),
    "server_groups": ("maxServerGroups",), "server_group_members": ("maxServerGroupMembers",),
}
USED_NAMES = {
    "ram": "totalRAMUsed", "cores": "totalCoresUsed", "instances": "totalInstancesUsed",
    "floating_ips": "totalFloatingIpsUsed", "security_groups": "totalSecurityGroupsUsed",
    "server_groups": "totalServerGroupsUsed",
}


# -- quota sets


def _project(ask: Ask, rule: str) -> str:
    """The project of the path, where the caller may do that to it. Errors: `Forbidden`."""
    project = ask.path["project_id"]
    ask.check(rule, {"project_id": project})
    return project


def _set(ask: Ask, values: Mapping[str, object], id: str | None) -> Body:
    named = {} if id is None else {"id": id}
    return {"quota_set": {**named, **{name: values[name] for name in _resources(ask.minor)}}}


async def show(ask: Ask) -> Body:
    """The limits of a project, or of a user in it."""
    project, user = _project(ask, ask.call.rule), ask.one("user_id")
    found = await ask.read(lambda conn: quota.limits(conn, known_project(conn, project), user))
    return _set(ask, found, project)


async def detail(ask: Ask) -> Body:
    """The limits with what is in use. Nothing is ever reserved."""
    project, user = _project(ask, ask.call.rule), ask.one("user_id")
    allowed, used = await ask.read(
        lambda conn: (quota.limits(conn, known_project(conn, project), user),
                      quota.usage(conn, project, user))
    )
    return _set(ask, {
        name: {"limit": allowed[name], "in_use": used[name], "reserved": 0} for name in allowed
    }, project)


async def defaults(ask: Ask) -> Body:
    """What a project has that nobody said anything of."""
    project = ask.path["project_id"]

    def read(conn: sa.Connection) -> dict[str, int]:
        known_project(conn, project)
        return quota.class_limits(conn, quota.DEFAULT_CLASS)

    return _set(ask, await ask.read(read), project)


async def update(ask: Ask) -> Body:
    """Other limits. Without `force`, none below what is in use."""
    project, user = _project(ask, ask.call.rule), ask.one("user_id")
    said = dict(ask.body["quota_set"])
    force = truth("force", said.pop("force", False))
    wanted = {name: number(name, value, -1) for name, value in said.items()}

    def write(conn: sa.Connection) -> dict[str, int]:
        known_project(conn, project)
        if not force:
            _check_bounds(wanted, quota.bounds(conn, project, user))
        quota.set_limits(conn, project, wanted, user)
        return quota.limits(conn, project, user)

    return _set(ask, await ask.write(write), None)


def _check_bounds(
    wanted: Mapping[str, int], bounds: Mapping[str, tuple[int, int]]
) -> None:
    """Errors: `InvalidInput`. -1 is more than any number."""
    for name, limit in wanted.items():
        least, most = bounds[name]
        if 0 <= limit < least:
            raise InvalidInput(
                name, limit, f"Quota limit {limit} for {name} must be greater than or equal to "
                f"already used and reserved {least}."
            )
        if most >= 0 and not 0 <= limit <= most:
            raise InvalidInput(
                name, limit, f"Quota limit {limit} for {name} must be less than or equal to {most}."
            )


async def delete(ask: Ask) -> None:
    """Back to the default limits."""
    project, user = _project(ask, ask.call.rule), ask.one("user_id")
    await ask.write(lambda conn: quota.clear(conn, project, user))


# -- quota classes


def _class(ask: Ask, values: Mapping[str, int], id: str | None) -> Body:
    named: Body = {} if id is None else {"id": id}
    for name in _resources(ask.minor, NO_CLASS_NETWORK):
        if ask.minor >= NO_CLASS_NETWORK or name not in GROUPS:
            named[name] = values[name]
    return {"quota_class_set": named}


async def show_class(ask: Ask) -> Body:
    """The limits of a class; only `default` is ever used."""
    name = ask.path["name"]
    return _class(ask, await ask.read(lambda conn: quota.class_limits(conn, name)), name)


async def update_class(ask: Ask) -> Body:
    """Other limits of a class."""
    name = ask.path["name"]
    if len(name) > LONGEST:
        raise InvalidInput("quota_class_name", name, f"at most {LONGEST} characters")
    said = ask.body["quota_class_set"]
    wanted = {key: number(key, value, -1) for key, value in said.items()}

    def write(conn: sa.Connection) -> dict[str, int]:
        quota.set_class(conn, name, wanted)
        return quota.class_limits(conn, name)

    return _class(ask, await ask.write(write), None)


# -- limits


async def limits(ask: Ask) -> Body:
    """What the caller's project may have and has, in the words of the first API."""
    project = ask.caller.project_id or ""
    if "tenant_id" in ask.query:
        ask.check("compute:limits:other_project")
        project = ask.query["tenant_id"][0]
    allowed, used = await ask.read(
        lambda conn: (quota.limits(conn, project), quota.usage(conn, project))
    )
    absolute: dict[str, int] = {}
    for name in _resources(ask.minor):
        for word in LIMIT_NAMES.get(name, ()):
            if word != "maxImageMeta" or ask.minor < NO_IMAGE_METADATA:
                absolute[word] = allowed[name]
        if name in USED_NAMES:
            absolute[USED_NAMES[name]] = used[name]
    return {"limits": {"rate": [], "absolute": absolute}}


_SET = "/v2.1/os-quota-sets/{project_id}"
_CLASS = "/v2.1/os-quota-class-sets/{name}"
CALLS = [
    Call("GET", _SET, show, "compute:quota_sets:get", query=USER),
    Call("GET", f"{_SET}/detail", detail, "compute:quota_sets:detail", query=USER),
    Call("GET", f"{_SET}/defaults", defaults, "compute:quota_sets:defaults"),
    Call("PUT", _SET, update, "compute:quota_sets:update", body=SET, query=USER),
    Call("DELETE", _SET, delete, "compute:quota_sets:delete", 202, query=USER),
    Call("GET", _CLASS, show_class, "compute:quota_class_sets:get"),
    Call("PUT", _CLASS, update_class, "compute:quota_class_sets:update", body=SET_CLASS),
    Call("GET", "/v2.1/limits", limits, "compute:limits:get", query=LIMITS),
]
