"""How much of everything a project may have, and what it has: a sum over live rows.

Nothing is counted up or down, so nothing can drift. `check` is called in the transaction that makes
the rows; on PostgreSQL it first takes the project's lock, which is held until the commit, so that
two controllers cannot both see the same room (SQLite has one writer anyway).

-1 is no limit. Memory (`ram`) is in MiB. The names are OpenStack's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

import sqlalchemy as sa

from treadle.db.prepared import Prepared
from treadle.db.schema import (
    LIVE_INSTANCE,
    instance,
    keypair,
    quota,
    quota_class,
    quota_user,
    server_group,
)
from treadle.errors import QuotaExceeded

DEFAULTS: Mapping[str, int] = {
    "cores": 20, "fixed_ips": -1, "floating_ips": -1, "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255, "injected_files": 5, "instances": 10, "key_pairs": 100,
    "metadata_items": 128, "ram": 51200, "security_group_rules": -1, "security_groups": -1,
    "server_group_members": 10, "server_groups": 10,
}
"""OpenStack's own limits; the class `default` changes them for everybody."""
COUNTED = ("instances", "cores", "ram")
DEFAULT_CLASS = "default"
LOCK_PROJECT, LOCK_USER, LOCK_GROUP = 7021, 7022, 7023
"""The first key of PostgreSQL's advisory locks, by what the second one names."""


# -- limits


def limits(conn: sa.Connection, project_id: str, user_id: str | None = None) -> dict[str, int]:
    """What the project may have; with `user_id`, what this user may have of it."""
    project, user = _limits(conn, project_id, user_id)
    return {**project, **user}


def class_limits(conn: sa.Connection, name: str) -> dict[str, int]:
    """The limits of a class; what it does not name is as `DEFAULTS` has it."""
    rows = _CLASS(conn, {"n": name})
    return {**DEFAULTS, **{row.resource: row.hard_limit for row in rows}}


def set_limits(
    conn: sa.Connection, project_id: str, values: Mapping[str, int], user_id: str | None = None
) -> None:
    """Give the project, or one user in it, limits of its own."""
    for resource, limit in values.items():
        key = {"project_id": project_id, "resource": resource}
        if user_id is None:
            _put(conn, quota, key, limit)
        else:
            _put(conn, quota_user, {**key, "user_id": user_id}, limit)


def set_class(conn: sa.Connection, name: str, values: Mapping[str, int]) -> None:
    """Change limits of a class."""
    for resource, limit in values.items():
        _put(conn, quota_class, {"name": name, "resource": resource}, limit)


def clear(conn: sa.Connection, project_id: str, user_id: str | None = None) -> None:
    """Back to the class's limits: for the project with all its users, or for one user."""
    users = sa.delete(quota_user).where(quota_user.c.project_id == project_id)
    if user_id is not None:
        conn.execute(users.where(quota_user.c.user_id == user_id))
        return
    conn.execute(users)
    conn.execute(sa.delete(quota).where(quota.c.project_id == project_id))


def bounds(
    conn: sa.Connection, project_id: str, user_id: str | None = None
) -> dict[str, tuple[int, int]]:
    """The least and the most that each limit may be set to (-1: no most).

    The least is what is in use, and for a project what its users have been promised; a user gets
    at most what the project has not promised to others.
    """
    used = usage(conn, project_id, user_id)
    promised: dict[str, int] = {}
    for row in conn.execute(
        sa.select(quota_user).where(quota_user.c.project_id == project_id)
    ):
        if row.user_id != user_id:
            promised[row.resource] = promised.get(row.resource, 0) + max(row.hard_limit, 0)
    if user_id is None:
        return {name: (max(used[name], promised.get(name, 0)), -1) for name in DEFAULTS}
    most = limits(conn, project_id)
    return {
        name: (used[name], -1 if most[name] < 0 else most[name] - promised.get(name, 0))
        for name in DEFAULTS
    }


# -- use


def usage(conn: sa.Connection, project_id: str, user_id: str | None = None) -> dict[str, int]:
    """What the project, or one user in it, has now. What is counted elsewhere (key pairs belong to
    users, members to groups) is 0."""
    counted = _counted(conn, project_id, user_id)
    groups = sa.select(sa.func.count()).where(server_group.c.project_id == project_id)
    if user_id is not None:
        groups = groups.where(server_group.c.user_id == user_id)
    return {
        **dict.fromkeys(DEFAULTS, 0), **counted,
        "server_groups": int(conn.execute(groups).scalar_one()),
    }


def check(
    conn: sa.Connection, project_id: str, wanted: Mapping[str, int], user_id: str | None = None
) -> None:
    """Let `wanted` more of instances, cores and ram pass; call it before the rows are made.

    What is not positive always passes: giving back is never refused. Errors: `QuotaExceeded`.
    """
    asked = {name: more for name, more in wanted.items() if more > 0}
    if not asked:
        return
    lock(conn, LOCK_PROJECT, project_id)
    allowed, own = _limits(conn, project_id, user_id)
    _compare(asked, allowed, lambda: _counted(conn, project_id))
    if own:
        _compare(asked, {**allowed, **own}, lambda: _counted(conn, project_id, user_id))


def check_key_pairs(conn: sa.Connection, project_id: str | None, user_id: str) -> None:
    """Let one more key pair of the user pass. Errors: `QuotaExceeded`."""
    lock(conn, LOCK_USER, user_id)
    allowed = limits(conn, project_id or "")["key_pairs"]
    have = sa.select(sa.func.count()).where(keypair.c.user_id == user_id)
    if 0 <= allowed <= conn.execute(have).scalar_one():
        raise QuotaExceeded("Quota exceeded, too many key pairs.")


def check_groups(conn: sa.Connection, project_id: str, user_id: str) -> None:
    """Let one more server group pass. Errors: `QuotaExceeded`."""
    lock(conn, LOCK_PROJECT, project_id)
    for of in (None, user_id):
        allowed = limits(conn, project_id, of)["server_groups"]
        have = sa.select(sa.func.count()).where(server_group.c.project_id == project_id)
        if of is not None:
            have = have.where(server_group.c.user_id == of)
        if 0 <= allowed <= conn.execute(have).scalar_one():
            raise QuotaExceeded("Quota exceeded, too many server groups.")


def check_members(
    conn: sa.Connection, project_id: str, user_id: str, group_id: int, more: int = 1
) -> None:
    """Let `more` instances of the user into the group. Errors: `QuotaExceeded`."""
    lock(conn, LOCK_GROUP, str(group_id))
    allowed = limits(conn, project_id, user_id)["server_group_members"]
    have = sa.select(sa.func.count()).where(
        instance.c.group_id == group_id, instance.c.user_id == user_id, LIVE_INSTANCE
    )
    if allowed >= 0 and conn.execute(have).scalar_one() + more > allowed:
        raise QuotaExceeded("Quota exceeded, too many servers in group")


def check_metadata(conn: sa.Connection, project_id: str, count: int) -> None:
    """Let an instance have `count` items of metadata. Errors: `QuotaExceeded`."""
    most = limits(conn, project_id)["metadata_items"] if count else -1
    if 0 <= most < count:
        raise QuotaExceeded(f"Maximum number of metadata items exceeds {most}")


def lock(conn: sa.Connection, kind: int, name: str) -> None:
    """Until the commit, whoever else asks for the same lock waits. Nothing to do on SQLite."""
    if conn.dialect.name == "postgresql":
        number = crc32(name.encode())
        conn.execute(_LOCK, {"k": kind, "n": number - (1 << 32) if number >> 31 else number})


def _compare(
    asked: Mapping[str, int], allowed: Mapping[str, int], used_now: Callable[[], Mapping[str, int]]
) -> None:
    limited = [name for name in sorted(asked) if allowed[name] >= 0]
    if not limited:
        return
    used = used_now()
    over = [name for name in limited if used[name] + asked[name] > allowed[name]]
    if over:
        names = ", ".join(over)
        raise QuotaExceeded(
            f"Quota exceeded for {names}: Requested {_listed(asked, over)}, but already used "
            f"{_listed(used, over)} of {_listed(allowed, over)} {names}"
        )


def _listed(values: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(str(values[name]) for name in names)


def _counted(
    conn: sa.Connection, project_id: str, user_id: str | None = None
) -> dict[str, int]:
    bound = {"p": project_id}
    statement = _USED
    if user_id is not None:
        statement, bound = _USED_BY, {**bound, "u": user_id}
    row = statement(conn, bound).one()
    return {name: int(value) for name, value in zip(COUNTED, row, strict=True)}


def _limits(
    conn: sa.Connection, project_id: str, user_id: str | None
) -> tuple[dict[str, int], dict[str, int]]:
    """What the project may have, and what of it was said for the user alone."""
    project = dict(DEFAULTS)
    user: dict[str, int] = {}
    for row in _SAID(conn, {"p": project_id, "u": user_id or ""}):
        (user if row.rank == _USER else project)[row.resource] = row.hard_limit
    return project, user


def _put(conn: sa.Connection, table: sa.Table, key: Mapping[str, str], limit: int) -> None:
    same = [table.c[name] == value for name, value in key.items()]
    changed = conn.execute(sa.update(table).where(*same).values(hard_limit=limit))
    if changed.rowcount == 0:
        conn.execute(sa.insert(table).values(**key, hard_limit=limit))


_USED = Prepared(
    sa.select(
        sa.func.count(), sa.func.coalesce(sa.func.sum(instance.c.vcpus), 0),
        sa.func.coalesce(sa.func.sum(instance.c.memory_mib), 0),
    ).select_from(instance).where(instance.c.project_id == sa.bindparam("p"), LIVE_INSTANCE)
)
_USED_BY = Prepared(_USED.statement.where(instance.c.user_id == sa.bindparam("u")))
_CLASS = Prepared(
    sa.select(quota_class.c.resource, quota_class.c.hard_limit).where(
        quota_class.c.name == sa.bindparam("n")
    )
)
_USER = 2
_SAID = Prepared(
    sa.union_all(
        sa.select(sa.literal(0).label("rank"), quota_class.c.resource, quota_class.c.hard_limit)
        .where(quota_class.c.name == DEFAULT_CLASS),
        sa.select(sa.literal(1), quota.c.resource, quota.c.hard_limit)
        .where(quota.c.project_id == sa.bindparam("p")),
        sa.select(sa.literal(_USER), quota_user.c.resource, quota_user.c.hard_limit)
        .where(quota_user.c.project_id == sa.bindparam("p"),
               quota_user.c.user_id == sa.bindparam("u")),
    ).order_by("rank")
)
"""All that was said of a project's limits; what comes later holds."""
_LOCK = sa.text("SELECT pg_advisory_xact_lock(:k, :n)")
