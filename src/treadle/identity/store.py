"""The SQL of identity. Every function takes an open connection of the caller's transaction.

Whatever makes a token worth less goes through `kill` or `changed` in the same transaction, so
that the memory of every controller learns of it (see `tokens.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from treadle.db.clock import now
from treadle.db.engine import note
from treadle.db.prepared import Prepared
from treadle.db.schema import (
    access_rule,
    app_credential,
    group_member,
    instance,
    meta,
    project,
    project_tag,
    role,
    role_assignment,
    role_implied,
    token,
    user_account,
    user_password,
)
from treadle.errors import NotFound
from treadle.identity.model import Row, Scope, Standing, Token

JSON_COLUMNS = frozenset({"options", "extra", "roles", "access_rules"})
EPOCH = "token_epoch"
TOKENS = "tokens"
ALL = "*"
EXPIRED_AT_ONCE = 1000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


# -- rows


def row_of(found: Any) -> Row:
    """A row as a dict, its JSON decoded."""
    made = dict(zip(found._fields, found, strict=True))
    for name in JSON_COLUMNS & made.keys():
        if made[name] is not None:
            made[name] = _decode(made[name])
    return made


def _written(values: Mapping[str, Any]) -> Row:
    return {
        name: _encode(value).decode() if name in JSON_COLUMNS and value is not None else value
        for name, value in values.items()
    }


def get(conn: sa.Connection, table: sa.Table, id: str) -> Row | None:
    """The row of an id, or None."""
    found = conn.execute(_by_id(table), {"i": id}).one_or_none()
    return None if found is None else row_of(found)


def require(conn: sa.Connection, table: sa.Table, id: str, kind: str) -> Row:
    """The row of an id. Errors: `NotFound`, which says `kind`."""
    found = get(conn, table, id)
    if found is None:
        raise missing(kind, id)
    return found


def missing(kind: str, id: str) -> NotFound:
    """The error for what is not there."""
    return NotFound(f"Could not find {kind}: {id[:64]}.")


@cache
def _by_id(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).where(table.c.id == sa.bindparam("i"))


@cache
def _by_name(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).where(
        table.c.domain_id == sa.bindparam("d"), table.c.name_key == sa.bindparam("n")
    )


def named(conn: sa.Connection, table: sa.Table, name: str, domain_id: str) -> Row | None:
    """The row of that name in a domain ("": among domains, or roles of all), whatever the case."""
    words = {"d": domain_id, "n": name.casefold()}
    found = conn.execute(_by_name(table), words).one_or_none()
    return None if found is None else row_of(found)


def insert(conn: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """A new row; `created_at`, where there is one, is now."""
    if "created_at" in table.c:
        values = {"created_at": now(), **values}
    conn.execute(sa.insert(table).values(_written(values)))


def update(conn: sa.Connection, table: sa.Table, id: str, values: Mapping[str, Any]) -> None:
    """Change a row."""
    if values:
        conn.execute(sa.update(table).where(table.c.id == id).values(_written(values)))


def select(
    conn: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool],
    marker: str | None = None, limit: int | None = None,
) -> list[Row]:
    """Rows by id, of which `where` holds; those after `marker`, at most `limit`."""
    statement = sa.select(table).where(*where).order_by(table.c.id)
    if marker is not None:
        statement = statement.where(table.c.id > marker)
    return [row_of(one) for one in conn.execute(statement.limit(limit))]


def exists(conn: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> bool:
    """Whether there is a row of which `where` holds."""
    found = sa.select(sa.literal(1)).select_from(table).where(*where).limit(1)
    return conn.execute(found).first() is not None


def remove(conn: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    """Remove the rows of which `where` holds; how many there were."""
    return conn.execute(sa.delete(table).where(*where)).rowcount


def rows_of(conn: sa.Connection, table: sa.Table, ids: Iterable[str]) -> dict[str, Row]:
    """The rows of some ids."""
    wanted = list(set(ids))
    return {one["id"]: one for one in select(conn, table, table.c.id.in_(wanted))} if wanted else {}


def time(conn: sa.Connection) -> float:
    """The database's clock."""
    return float(_NOW(conn).scalar_one())


def get_meta(conn: sa.Connection, key: str) -> str | None:
    """A value of the meta table."""
    value: str | None = _META(conn, {"k": key}).scalar()
    return value


def put_meta(conn: sa.Connection, key: str, value: str) -> None:
    """Note a value in the meta table, which has none."""
    conn.execute(sa.insert(meta).values(key=key, value=value))


# -- what tokens are worth


def changed(conn: sa.Connection) -> None:
    """Something that tokens are worth has changed: all are looked at anew, on every controller."""
    _tell(conn, ALL)


def kill(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> None:
    """End the tokens of which `where` (over the table `token`) holds, on every controller."""
    conn.execute(sa.delete(token).where(*where))
    _tell(conn, ALL)


def kill_one(conn: sa.Connection, hash: str) -> None:
    """End one token, on every controller."""
    conn.execute(sa.delete(token).where(token.c.hash == hash))
    _tell(conn, hash)


def _tell(conn: sa.Connection, what: str) -> None:
    note(conn, TOKENS, what)
    # Every controller but this one learns of it by the number: see `Tokens`.
    if conn.dialect.name == "postgresql" and _BUMP(conn).rowcount == 0:
        put_meta(conn, EPOCH, "1")


def epoch(conn: sa.Connection) -> int:
    """How often tokens have been ended; only counted where several controllers may run."""
    return int(get_meta(conn, EPOCH) or 0)


def add_token(conn: sa.Connection, new: Token) -> None:
    """Keep a token."""
    _ADD_TOKEN(conn, {
        "hash": new.hash, "user_id": new.user_id, "scope": new.scope, "scope_id": new.scope_id,
        "methods": ",".join(new.methods), "audit_ids": ",".join(new.audit_ids),
        "issued_at": new.issued_at, "expires_at": new.expires_at,
        "app_credential_id": new.app_credential_id,
    })


def get_token(conn: sa.Connection, hash: str) -> Token | None:
    """The token, unless it has expired."""
    found = _TOKEN(conn, {"h": hash}).one_or_none()
    return None if found is None else Token(
        found.hash, found.user_id, Scope(found.scope), found.scope_id,
        tuple(found.methods.split(",")), tuple(found.audit_ids.split(",")),
        found.issued_at, found.expires_at, found.app_credential_id,
    )


def forget_expired(conn: sa.Connection) -> None:
    """Remove some of the tokens whose time is over."""
    old = sa.select(token.c.hash).where(token.c.expires_at <= now()).limit(EXPIRED_AT_ONCE)
    conn.execute(sa.delete(token).where(token.c.hash.in_(old)))


# -- what a user is


def standing(
    conn: sa.Connection, user_id: str, scope: Scope, scope_id: str,
    app_credential_id: str | None = None,
) -> Standing | None:
    """What a user is in a scope; None where he, or it, is disabled or gone, or without a role."""
    found = _USER(conn, {"u": user_id}).one_or_none()
    if found is None or not (found.enabled and found.domain_enabled):
        return None
    user = row_of(found)
    user_domain = {"id": found.domain_id, "name": found.domain_name}
    made: dict[str, Any] = {}
    if scope is Scope.PROJECT:
        there = _PROJECT(conn, {"p": scope_id}).one_or_none()
        if there is None or not (there.enabled and there.domain_enabled):
            return None
        made["project"] = row_of(there)
        made["project_domain"] = {"id": there.domain_id, "name": there.domain_name}
    elif scope is Scope.DOMAIN:
        domain = get(conn, project, scope_id)
        if domain is None or not (domain["is_domain"] and domain["enabled"]):
            return None
        made["domain"] = domain
    roles: tuple[tuple[str, str], ...] = ()
    if scope is not Scope.NONE:
        roles = tuple(effective(conn, user_id, made.get("project"), scope_id))
        if not roles:
            return None
    if app_credential_id is not None:
        credential = get(conn, app_credential, app_credential_id)
        if credential is None or credential["user_id"] != user_id or (
            credential["expires_at"] is not None and credential["expires_at"] <= found.at
        ):
            return None
        lent = set(credential["roles"])
        if not lent <= {id for id, _ in roles}:
            return None
        closure = set(implied_by(conn, lent))
        roles = tuple(one for one in roles if one[0] in closure)
        made["app_credential"] = credential
        if credential["access_rules"] is not None:
            made["access"] = tuple(
                (one["service"], one["method"], one["path"])
                for one in rows_of(conn, access_rule, credential["access_rules"]).values()
            )
    return Standing(
        user, user_domain, found.password_id, found.password_expires_at, found.at, scope,
        roles=roles, **made,
    )


def ancestors(conn: sa.Connection, one: Row) -> list[Row]:
    """The projects above a project, the nearest first; the domain is the last."""
    found: list[Row] = []
    parent = one["parent_id"]
    while parent and len(found) < 64:
        above = get(conn, project, parent)
        if above is None:
            break
        found.append(above)
        parent = above["parent_id"]
    return found


def effective(
    conn: sa.Connection, user_id: str, within: Row | None, target_id: str
) -> list[tuple[str, str]]:
    """Ids and names of the roles that a user has on a target: by himself, his groups, what is
    inherited, what is implied. `within`: the target where it is a project."""
    above: Sequence[str] = ()
    if within is not None:
        above = (
            [within["domain_id"]] if within["parent_id"] == within["domain_id"]
            else [one["id"] for one in ancestors(conn, within)]
        )
    statement = _effective_of(len(above))
    found = statement(conn, {
        "u": user_id, "t": target_id, **{f"above{n}": id for n, id in enumerate(above)},
    })
    return [(one.id, one.name) for one in found]


def implied_by(conn: sa.Connection, roles: Iterable[str]) -> list[str]:
    """The roles themselves, and all that they imply."""
    known = set(roles)
    pairs = implications(conn)
    while True:
        more = {implied for prior, implied in pairs if prior in known} - known
        if not more:
            return sorted(known)
        known |= more


def implications(conn: sa.Connection) -> list[tuple[str, str]]:
    """Pairs of roles, of which the first gives the second by itself."""
    found = conn.execute(sa.select(role_implied).order_by(role_implied.c.implied_id))
    return [(one.prior_id, one.implied_id) for one in found]


def assigned(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Row]:
    """The assignments of which `where` holds, in a fixed order."""
    a = role_assignment.c
    statement = sa.select(role_assignment).where(*where)
    ordered = statement.order_by(a.target_id, a.actor_id, a.role_id, a.inherited)
    return [row_of(one) for one in conn.execute(ordered)]


# -- passwords


def password_of(conn: sa.Connection, user_id: str) -> Row | None:
    """The newest password of a user."""
    found = _PASSWORD(conn, {"u": user_id}).one_or_none()
    return None if found is None else row_of(found)


def passwords_of(conn: sa.Connection, user_id: str, most: int) -> list[Row]:
    """The last passwords of a user, the newest first."""
    statement = sa.select(user_password).where(user_password.c.user_id == user_id)
    newest = statement.order_by(user_password.c.id.desc()).limit(most)
    return [row_of(one) for one in conn.execute(newest)]


def newest_passwords(conn: sa.Connection, users: Sequence[str]) -> dict[str, Row]:
    """The newest password of each of these users who has one."""
    if not users:
        return {}
    newest = sa.select(sa.func.max(user_password.c.id)).where(
        user_password.c.user_id.in_(users)
    ).group_by(user_password.c.user_id)
    found = conn.execute(sa.select(user_password).where(user_password.c.id.in_(newest)))
    return {one.user_id: row_of(one) for one in found}


def put_password(
    conn: sa.Connection, user_id: str, hash: str, expires_at: float | None, kept: int
) -> None:
    """Give a user a password; of the earlier ones, `kept` stay, so that none is used again."""
    conn.execute(sa.insert(user_password).values(
        user_id=user_id, hash=hash, created_at=now(), expires_at=expires_at
    ))
    mine = user_password.c.user_id == user_id
    newest = sa.select(user_password.c.id).where(mine).order_by(user_password.c.id.desc())
    conn.execute(sa.delete(user_password).where(
        mine, user_password.c.id.not_in(newest.limit(kept + 1).scalar_subquery())
    ))


def note_failure(conn: sa.Connection, user_id: str, lockout_s: float) -> None:
    """Count a wrong password; those of before the last lock-out's end no longer count."""
    stale = user_account.c.failed_at < now() - lockout_s
    conn.execute(sa.update(user_account).where(user_account.c.id == user_id).values(
        failures=sa.case((stale, 1), else_=user_account.c.failures + 1), failed_at=now()
    ))


# -- names and places of what belongs to somebody


def groups_of(conn: sa.Connection, user_id: str) -> list[str]:
    """Ids of the groups that a user is in."""
    mine = sa.select(group_member.c.group_id).where(group_member.c.user_id == user_id)
    return list(conn.execute(mine).scalars())


def members_of(conn: sa.Connection, group_id: str) -> list[str]:
    """Ids of the users in a group."""
    inside = sa.select(group_member.c.user_id).where(group_member.c.group_id == group_id)
    return sorted(conn.execute(inside).scalars())


def tags_of(conn: sa.Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    """The tags of projects."""
    made: dict[str, list[str]] = {id: [] for id in ids}
    if ids:
        wanted = sa.select(project_tag).where(project_tag.c.project_id.in_(ids))
        for one in conn.execute(wanted.order_by(project_tag.c.tag)):
            made[one.project_id].append(one.tag)
    return made


def put_tags(conn: sa.Connection, project_id: str, tags: Iterable[str]) -> None:
    """Give a project these tags and no other."""
    conn.execute(sa.delete(project_tag).where(project_tag.c.project_id == project_id))
    rows = [{"project_id": project_id, "tag": tag} for tag in dict.fromkeys(tags)]
    if rows:
        conn.execute(sa.insert(project_tag), rows)


def forget_default_projects(conn: sa.Connection, ids: Sequence[str]) -> None:
    """No user prefers these projects any more."""
    conn.execute(sa.update(user_account).where(
        user_account.c.default_project_id.in_(ids)
    ).values(default_project_id=None))


def adopt(conn: sa.Connection, project_id: str, user_id: str) -> None:
    """Give the instances of nobody, which were made before there were projects, to a project."""
    conn.execute(sa.update(instance).where(instance.c.project_id == "").values(
        project_id=project_id,
        user_id=sa.case((instance.c.user_id == "", user_id), else_=instance.c.user_id),
    ))


def has_foundlings(conn: sa.Connection) -> bool:
    """Whether an instance belongs to no project."""
    return conn.execute(
        sa.select(instance.c.id).where(instance.c.project_id == "").limit(1)
    ).first() is not None


_NOW = Prepared(sa.select(now()))
_META = Prepared(sa.select(meta.c.value).where(meta.c.key == sa.bindparam("k")))
_BUMP = Prepared(
    sa.update(meta).where(meta.c.key == EPOCH).values(
        value=sa.cast(sa.cast(meta.c.value, sa.BigInteger) + 1, sa.Text)
    )
)
_ADD_TOKEN = Prepared(sa.insert(token).values({
    column.name: sa.bindparam(column.name, type_=column.type) for column in token.c
}))
_TOKEN = Prepared(
    sa.select(token).where(token.c.hash == sa.bindparam("h"), token.c.expires_at > now())
)
_PASSWORD = Prepared(
    sa.select(user_password).where(
        user_password.c.user_id == sa.bindparam("u")
    ).order_by(user_password.c.id.desc()).limit(1)
)
_domain = project.alias("domain")
_one = user_password.alias("one")
_newest = sa.select(sa.func.max(_one.c.id)).where(
    _one.c.user_id == user_account.c.id
).correlate(user_account).scalar_subquery()
_USER = Prepared(
    sa.select(
        user_account, _domain.c.name.label("domain_name"),
        _domain.c.enabled.label("domain_enabled"), user_password.c.id.label("password_id"),
        user_password.c.expires_at.label("password_expires_at"), now().label("at"),
    )
    .join(_domain, _domain.c.id == user_account.c.domain_id)
    .outerjoin(user_password, user_password.c.id == _newest)
    .where(user_account.c.id == sa.bindparam("u"))
)
_PROJECT = Prepared(
    sa.select(
        project, _domain.c.name.label("domain_name"), _domain.c.enabled.label("domain_enabled")
    ).join(_domain, _domain.c.id == project.c.domain_id).where(project.c.id == sa.bindparam("p"))
)
_groups = sa.select(group_member.c.group_id).where(group_member.c.user_id == sa.bindparam("u"))


@cache
def _effective_of(above: int) -> Prepared:
    """The roles of user `u` on target `t` that has so many above it: `above0`, `above1`, …"""
    inherited = sa.or_(sa.false(), *(
        role_assignment.c.target_id == sa.bindparam(f"above{n}") for n in range(above)
    ))
    held = sa.select(role_assignment.c.role_id.label("id")).where(
        sa.or_(role_assignment.c.actor_id == sa.bindparam("u"),
               role_assignment.c.actor_id.in_(_groups)),
        sa.or_(
            sa.and_(role_assignment.c.target_id == sa.bindparam("t"),
                    role_assignment.c.inherited.is_(False)),
            sa.and_(inherited, role_assignment.c.inherited.is_(True)),
        ),
    ).cte("held", recursive=True)
    every = held.union(
        sa.select(role_implied.c.implied_id).join(held, role_implied.c.prior_id == held.c.id)
    )
    return Prepared(
        sa.select(role.c.id, role.c.name).join(every, every.c.id == role.c.id)
        .where(role.c.domain_id == "").order_by(role.c.name)
    )
