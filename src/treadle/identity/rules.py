"""Who may do what: one table a service, from the name of a rule to a predicate.

A rule is asked twice. Before a call runs it is asked without a target: has the caller the role at
all? Where it depends on the thing (its project, its owner, its domain) the handler asks again with
`{"project_id", "user_id", "domain_id"}` of it, or selects by project in SQL, so that what belongs
to others is not found.

An operator's file (setting `server.rules_file`) gives rules another predicate, in TOML:
`"compute:servers:create" = "admin"`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from treadle.errors import Forbidden, InvalidInput, Unauthorized
from treadle.identity.model import Caller

Target = Mapping[str, Any]
Predicate = Callable[[Caller, Target | None], bool]

READERS = frozenset({"reader", "member", "manager", "admin"})
MEMBERS = frozenset({"member", "manager", "admin"})
MANAGERS = frozenset({"manager", "admin"})
FILE_MAX = 1 << 20


def _is(value: str | None, target: Target | None, key: str) -> bool:
    """Whether the caller's `value` is the target's; without a target, whether there is one."""
    return bool(value) and (target is None or target.get(key) == value)


def nobody(_caller: Caller, _target: Target | None) -> bool:
    """Not even an administrator."""
    return False


def token(_caller: Caller, _target: Target | None) -> bool:
    """Whoever holds a valid token, whatever it is good for."""
    return True


def admin(caller: Caller, _target: Target | None) -> bool:
    """The cloud's administrators."""
    return caller.is_admin


def reader(caller: Caller, _target: Target | None) -> bool:
    """The cloud's administrators, and readers of the whole system."""
    return caller.is_admin or (caller.system and not READERS.isdisjoint(caller.roles))


def service(caller: Caller, _target: Target | None) -> bool:
    """Administrators and the accounts of services."""
    return caller.is_admin or "service" in caller.roles


def project_reader(caller: Caller, target: Target | None) -> bool:
    """Who may look at what the target's project has."""
    return caller.is_admin or (
        not READERS.isdisjoint(caller.roles) and _is(caller.project_id, target, "project_id")
    )


def project_member(caller: Caller, target: Target | None) -> bool:
    """Who may change what the target's project has."""
    return caller.is_admin or (
        not MEMBERS.isdisjoint(caller.roles) and _is(caller.project_id, target, "project_id")
    )


def owner(caller: Caller, target: Target | None) -> bool:
    """The target's own user."""
    return caller.is_admin or _is(caller.user_id, target, "user_id")


def domain_admin(caller: Caller, target: Target | None) -> bool:
    """Who runs the target's domain."""
    return caller.is_admin or (
        not MANAGERS.isdisjoint(caller.roles) and _is(caller.domain_id, target, "domain_id")
    )


def domain_reader(caller: Caller, target: Target | None) -> bool:
    """Who may look at what the target's domain has."""
    return reader(caller, target) or (
        not READERS.isdisjoint(caller.roles) and _is(caller.domain_id, target, "domain_id")
    )


def project_or_domain_reader(caller: Caller, target: Target | None) -> bool:
    """Who may look at what the target, a project, or its domain has."""
    return project_reader(caller, target) or domain_reader(caller, target)


def owner_or_reader(caller: Caller, target: Target | None) -> bool:
    """The target's own user, or a reader of the system."""
    return owner(caller, target) or reader(caller, target)


def owner_or_domain_admin(caller: Caller, target: Target | None) -> bool:
    """The target's own user, or who runs its domain."""
    return owner(caller, target) or domain_admin(caller, target)


def owner_or_domain_reader(caller: Caller, target: Target | None) -> bool:
    """The target's own user, or who may look at its domain."""
    return owner(caller, target) or domain_reader(caller, target)


def owner_or_service(caller: Caller, target: Target | None) -> bool:
    """The target's own user, a reader of the system, or a service."""
    return owner_or_reader(caller, target) or service(caller, target)


PREDICATES: dict[str, Predicate] = {
    one.__name__: one for one in (
        nobody, token, admin, reader, service, project_reader, project_member, owner, domain_admin,
        domain_reader, project_or_domain_reader, owner_or_reader, owner_or_domain_admin,
        owner_or_domain_reader, owner_or_service,
    )
}
"""What an operator may choose from."""

IDENTITY: dict[str, str] = {
    "identity:validate_token": "owner_or_service",
    "identity:revoke_token": "owner",
    "identity:auth": "token",
    "identity:create_domain": "admin",
    "identity:list_domains": "reader",
    "identity:get_domain": "domain_reader",
    "identity:update_domain": "admin",
    "identity:delete_domain": "admin",
    "identity:create_project": "domain_admin",
    "identity:list_projects": "domain_reader",
    "identity:get_project": "project_or_domain_reader",
    "identity:update_project": "domain_admin",
    "identity:delete_project": "domain_admin",
    "identity:create_user": "domain_admin",
    "identity:list_users": "domain_reader",
    "identity:get_user": "owner_or_domain_reader",
    "identity:update_user": "domain_admin",
    "identity:delete_user": "domain_admin",
    "identity:create_group": "domain_admin",
    "identity:list_groups": "domain_reader",
    "identity:get_group": "domain_reader",
    "identity:update_group": "domain_admin",
    "identity:delete_group": "domain_admin",
    "identity:create_role": "admin",
    "identity:list_roles": "domain_reader",
    "identity:get_role": "domain_reader",
    "identity:update_role": "admin",
    "identity:delete_role": "admin",
    "identity:list_grants": "domain_reader",
    "identity:change_grants": "domain_admin",
    "identity:list_system_grants": "reader",
    "identity:change_system_grants": "admin",
    "identity:list_assignments": "domain_reader",
    "identity:get_catalog": "token",
    "identity:list_services": "reader",
    "identity:change_services": "admin",
    "identity:get_credential": "owner_or_reader",
    "identity:change_credential": "owner",
    "identity:list_app_credentials": "owner_or_reader",
    "identity:change_app_credentials": "owner",
}

COMPUTE: dict[str, str] = {
    "compute:flavors:list": "token",
    "compute:flavors:get": "token",
    "compute:flavors:create": "admin",
    "compute:flavors:update": "admin",
    "compute:flavors:delete": "admin",
    "compute:flavor_access:list": "admin",
    "compute:flavor_access:change": "admin",
    "compute:flavor_access:add": "admin",
    "compute:flavor_access:remove": "admin",
    "compute:flavor_extra_specs:list": "project_reader",
    "compute:flavor_extra_specs:get": "project_reader",
    "compute:flavor_extra_specs:create": "admin",
    "compute:flavor_extra_specs:update": "admin",
    "compute:flavor_extra_specs:delete": "admin",
    **dict.fromkeys((
        "compute:aggregates:list", "compute:aggregates:get", "compute:aggregates:create",
        "compute:aggregates:update", "compute:aggregates:delete", "compute:aggregates:change",
        "compute:aggregates:add_host", "compute:aggregates:remove_host",
        "compute:aggregates:set_metadata", "compute:aggregates:cache_images",
        "compute:availability_zones:detail", "compute:services:list", "compute:services:update",
        "compute:services:delete", "compute:hosts:list", "compute:hosts:get",
        "compute:hosts:update", "compute:hosts:power", "compute:hypervisors:list",
        "compute:hypervisors:get", "compute:hypervisors:statistics",
    ), "admin"),
    "compute:availability_zones:list": "token",
    "compute:attachments:get": "project_reader",
    "compute:attachments:change": "project_member",
    "compute:images:get": "project_reader",
    "compute:images:change": "project_member",
    "compute:consoles:token": "admin",
    "compute:extensions:list": "token",
    "compute:extensions:gone": "token",
    "compute:external_events:create": "service",
    "compute:migrations:list": "admin",
    "compute:networks:get": "project_reader",
    "compute:networks:change": "project_member",
    "compute:server_groups:list": "project_reader",
    "compute:server_groups:get": "project_reader",
    "compute:server_groups:create": "project_member",
    "compute:server_groups:delete": "project_member",
    "compute:server_groups:all_projects": "admin",
    "compute:usage:list": "admin",
    "compute:usage:get": "project_reader",
    "compute:usage:audit_log": "admin",
    "compute:keypairs:list": "owner",
    "compute:keypairs:get": "owner",
    "compute:keypairs:create": "owner",
    "compute:keypairs:delete": "owner",
    "compute:limits:get": "token",
    "compute:limits:other_project": "admin",
    "compute:quota_class_sets:get": "admin",
    "compute:quota_class_sets:update": "admin",
    "compute:quota_sets:get": "project_reader",
    "compute:quota_sets:detail": "project_reader",
    "compute:quota_sets:defaults": "token",
    "compute:quota_sets:update": "admin",
    "compute:quota_sets:delete": "admin",
    **{
        f"compute:servers:{name}": "project_reader"
        for name in ("index", "detail", "show")
    },
    **{
        f"compute:servers:{name}": "project_member"
        for name in (
            "create", "update", "delete", "start", "stop", "reboot", "pause", "unpause",
            "suspend", "resume", "lock", "unlock", "restore", "force_delete", "rescue",
            "unrescue", "rebuild", "resize", "confirm_resize", "revert_resize", "shelve",
            "unshelve", "create_image", "create_backup", "change_password", "console_output",
            "remote_consoles", "password",
        )
    },
    **{
        f"compute:servers:{name}": "admin"
        for name in (
            "extended", "all_filters", "all_tenants", "deleted", "create:forced_host",
            "reset_state", "action_events", "shelve_offload", "diagnostics", "migrate",
            "migrate_live", "evacuate", "inject_network_info", "reset_network",
        )
    },
    "compute:metadata:show": "project_reader",
    "compute:metadata:update": "project_member",
    "compute:tags:show": "project_reader",
    "compute:tags:update": "project_member",
}

IMAGE: dict[str, str] = {
    **dict.fromkeys((
        "image:get_schema", "image:get_info", "image:get_images", "image:get_image",
        "image:download_image", "image:get_members", "image:get_member", "image:get_task",
    ), "project_reader"),
    **dict.fromkeys((
        "image:add_image", "image:modify_image", "image:delete_image", "image:upload_image",
        "image:stage_image", "image:import_image", "image:communitize_image", "image:deactivate",
        "image:reactivate", "image:add_member", "image:modify_member", "image:delete_member",
    ), "project_member"),
    "image:publicize_image": "admin",
    "image:set_owner": "admin",
}

NETWORK: dict[str, str] = {
    **{
        f"network:{verb}_{kind}": "project_reader" if verb == "get" else "project_member"
        for kind in (
            "network", "subnet", "port", "security_group", "security_group_rule", "router",
            "floatingip", "address_scope", "subnetpool",
        )
        for verb in ("get", "create", "update", "delete")
    },
    "network:get_agent": "reader",
    "network:get_availability_zone": "project_reader",
    "network:get_extension": "token",
    "network:get_quota": "project_reader",
    "network:list_quotas": "reader",
    "network:update_quota": "admin",
}

TREADLE: dict[str, str] = {
    "treadle:dry_run": "project_reader",
    "treadle:show_decision": "project_reader",
}

RULES: dict[str, str] = {**IDENTITY, **COMPUTE, **IMAGE, **NETWORK, **TREADLE}
"""Every rule there is; a service's part has names that begin with the service."""


@lru_cache(1024)
def _pattern(path: str) -> re.Pattern[str]:
    """What a path of an access rule matches: `*` and `{name}` one segment, `**` any number."""
    parts = re.split(r"(\*\*|\*|\{[^}/]*\})", path)
    return re.compile("".join(
        re.escape(part) if number % 2 == 0 else ".*" if part == "**" else "[^/]+"
        for number, part in enumerate(parts)
    ))


def check_access(caller: Caller, service: str, method: str, path: str) -> None:
    """Hold an application credential to its access rules. `path` is below the service's root.

    Errors: `Unauthorized`, as OpenStack's services say it.
    """
    if caller.access is not None and not any(
        service == kind and method == way and _pattern(where).fullmatch(path)
        for kind, way, where in caller.access
    ):
        raise Unauthorized("The request you have made requires authentication.")


class Rules:
    """The table as it stands in this process."""

    def __init__(self, changes: Mapping[str, str] | None = None) -> None:
        """`changes`: an operator's own choice. Errors: `InvalidInput` for a name that is unknown.
        """
        table = dict(RULES)
        for rule, predicate in (changes or {}).items():
            if rule not in RULES:
                near = get_close_matches(rule, list(RULES), n=1, cutoff=0.0)
                raise InvalidInput("rule", rule, f"there is no such rule; did you mean {near[0]}?")
            if not isinstance(predicate, str) or predicate not in PREDICATES:
                raise InvalidInput(rule, predicate, f"it must be one of {', '.join(PREDICATES)}")
            table[rule] = predicate
        self._table = {rule: PREDICATES[name] for rule, name in table.items()}

    def allows(self, rule: str, caller: Caller, target: Target | None = None) -> bool:
        """Whether the caller may do it (to the target)."""
        return self._table[rule](caller, target)

    def check(self, rule: str, caller: Caller, target: Target | None = None) -> None:
        """Errors: `Forbidden` where the caller may not."""
        if not self._table[rule](caller, target):
            raise Forbidden(f"You are not authorized to perform the requested action: {rule}.")


def load_rules(path: str) -> Rules:
    """The table with the changes of an operator's file; "": as it is. Errors: `InvalidInput`."""
    if not path:
        return Rules()
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as error:
        mend = f"it cannot be read ({error.strerror})"
        raise InvalidInput("server.rules_file", path, mend) from error
    if len(content) > FILE_MAX:
        raise InvalidInput("server.rules_file", path, "at most 1 MiB of TOML is expected")
    try:
        changes = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("server.rules_file", path, f"it is not TOML: {error}") from error
    return Rules(changes)
