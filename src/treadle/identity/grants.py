"""Roles: which there are, what they imply, who has which where.

Every function takes an open connection and runs in one transaction. What it takes away it takes
from tokens too: those are worked out anew (`store.changed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from treadle.db.schema import (
    app_credential,
    project,
    role,
    role_assignment,
    role_implied,
    user_account,
    user_group,
)
from treadle.errors import Conflict, Forbidden, InvalidInput, NotFound
from treadle.identity import store
from treadle.identity.model import Row

ADMIN = "admin"
SYSTEM = "system"
ACTORS = {"user": user_account, "group": user_group}
_a = role_assignment.c


@dataclass(frozen=True, slots=True)
class Grant:
    """One assignment: who (`user` or `group`), where (`project`, `domain` or `system`), what."""

    actor: str
    actor_id: str
    target: str
    target_id: str
    role_id: str
    inherited: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """What a user may have a token for."""

    projects: list[Row]
    domains: list[Row]
    system: bool


# -- roles


def create_role(conn: sa.Connection, values: Mapping[str, Any]) -> Row:
    """A new role. `domain_id` "" is everybody's. Errors: `Conflict`, `NotFound`."""
    if values["domain_id"]:
        domain = store.get(conn, project, values["domain_id"])
        if domain is None or not domain["is_domain"]:
            raise store.missing("domain", values["domain_id"])
    if store.named(conn, role, values["name"], values["domain_id"]):
        raise Conflict(
            "Conflict occurred attempting to store role - Duplicate entry found with name "
            f"{values['name']}."
        )
    id = uuid4().hex
    store.insert(conn, role, {
        **values, "id": id, "name_key": values["name"].casefold()
    })
    return get_role(conn, id)


def get_role(conn: sa.Connection, id: str) -> Row:
    """A role. Errors: `NotFound`."""
    return store.require(conn, role, id, "role")


def update_role(conn: sa.Connection, id: str, values: Mapping[str, Any]) -> Row:
    """Change a role. Errors: `NotFound`, `Conflict`, `Forbidden` where it is immutable."""
    known = get_role(conn, id)
    options = values.get("options", known["options"])
    if known["options"].get("immutable") and options.get("immutable", True):
        raise Forbidden(f"Cannot change the role {id}: it is immutable.")
    values = dict(values)
    if "name" in values:
        other = store.named(conn, role, values["name"], known["domain_id"])
        if other is not None and other["id"] != id:
            raise Conflict(
                "Conflict occurred attempting to store role - Duplicate entry found with name "
                f"{values['name']}."
            )
        values["name_key"] = values["name"].casefold()
        store.changed(conn)
    store.update(conn, role, id, values)
    return get_role(conn, id)


def delete_role(conn: sa.Connection, id: str) -> None:
    """Remove a role from everybody. Errors: `NotFound`, `Forbidden` where it is immutable."""
    known = get_role(conn, id)
    if known["options"].get("immutable"):
        raise Forbidden(f"Cannot delete the role {id}: it is immutable.")
    store.remove(conn, role_assignment, _a.role_id == id)
    store.remove(
        conn, role_implied,
        sa.or_(role_implied.c.prior_id == id, role_implied.c.implied_id == id),
    )
    store.remove(conn, role, role.c.id == id)
    store.changed(conn)


def imply(conn: sa.Connection, prior_id: str, implied_id: str) -> None:
    """Let one role give another. Errors: `NotFound`, `Forbidden`, `InvalidInput` for a circle."""
    prior, implied = get_role(conn, prior_id), get_role(conn, implied_id)
    if implied["domain_id"] and not prior["domain_id"]:
        raise Forbidden("A role of everybody cannot imply the role of a domain.")
    if implied["name_key"] == ADMIN and not implied["domain_id"]:
        raise Forbidden("The role admin cannot be implied by another.")
    if prior_id in store.implied_by(conn, [implied_id]):
        raise InvalidInput("implied role", implied_id, "it implies the other already")
    if not implies(conn, prior_id, implied_id):
        store.insert(conn, role_implied, {"prior_id": prior_id, "implied_id": implied_id})
        store.changed(conn)


def implies(conn: sa.Connection, prior_id: str, implied_id: str) -> bool:
    """Whether one role gives another by itself."""
    return store.exists(
        conn, role_implied,
        role_implied.c.prior_id == prior_id, role_implied.c.implied_id == implied_id,
    )


def imply_no_more(conn: sa.Connection, prior_id: str, implied_id: str) -> None:
    """End that one role gives another. Errors: `NotFound`."""
    gone = store.remove(
        conn, role_implied,
        role_implied.c.prior_id == prior_id, role_implied.c.implied_id == implied_id,
    )
    if not gone:
        raise NotFound(f"Could not find the implication of {implied_id[:64]} by {prior_id[:64]}.")
    store.changed(conn)


def inferences(conn: sa.Connection) -> dict[str, list[str]]:
    """Ids of roles, and of those that each gives by itself."""
    made: dict[str, list[str]] = {}
    for prior_id, implied_id in store.implications(conn):
        made.setdefault(prior_id, []).append(implied_id)
    return made


# -- assignments


def check_ends(conn: sa.Connection, grant: Grant) -> None:
    """Errors: `NotFound` where the user, the target or the role is not there."""
    if store.get(conn, ACTORS[grant.actor], grant.actor_id) is None:
        raise store.missing(grant.actor, grant.actor_id)
    if grant.target != SYSTEM:
        there = store.get(conn, project, grant.target_id)
        if there is None or there["is_domain"] is not (grant.target == "domain"):
            raise store.missing(grant.target, grant.target_id)
    if grant.role_id:
        get_role(conn, grant.role_id)


def _is(grant: Grant) -> list[sa.ColumnElement[bool]]:
    where = [
        _a.actor == grant.actor, _a.actor_id == grant.actor_id, _a.target == grant.target,
        _a.target_id == grant.target_id, _a.inherited.is_(grant.inherited),
    ]
    return [*where, _a.role_id == grant.role_id] if grant.role_id else where


def give(conn: sa.Connection, grant: Grant) -> None:
    """Give a role; one that is there already is success. Errors: `NotFound`, `Forbidden`."""
    check_ends(conn, grant)
    domain_id = get_role(conn, grant.role_id)["domain_id"]
    if domain_id and domain_id != _domain_of(conn, grant):
        raise Forbidden("A role of a domain can be given within that domain alone.")
    if not has(conn, grant):
        store.insert(conn, role_assignment, asdict(grant))
        store.changed(conn)


def has(conn: sa.Connection, grant: Grant) -> bool:
    """Whether it has been given."""
    return store.exists(conn, role_assignment, *_is(grant))


def take(conn: sa.Connection, grant: Grant) -> None:
    """Take a role back. Errors: `NotFound` where it is not there."""
    if not store.remove(conn, role_assignment, *_is(grant)):
        raise NotFound("Could not find role assignment.")
    store.changed(conn)


def roles_given(conn: sa.Connection, grant: Grant) -> list[Row]:
    """The roles of an actor on a target; the grant's own role does not count."""
    ids = [one.role_id for one in assignments(conn, *_is(grant))]
    return sorted(store.rows_of(conn, role, ids).values(), key=lambda one: str(one["name"]))


def _domain_of(conn: sa.Connection, grant: Grant) -> str:
    if grant.target == "domain":
        return grant.target_id
    there = store.get(conn, project, grant.target_id)
    return str(there["domain_id"]) if there else ""


def forget(conn: sa.Connection, ids: Iterable[str]) -> None:
    """Remove every assignment of, or on, these."""
    gone = list(ids)
    store.remove(conn, role_assignment, sa.or_(_a.actor_id.in_(gone), _a.target_id.in_(gone)))


def assignments(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Grant]:
    """What has been given, in a fixed order."""
    return [Grant(**one) for one in store.assigned(conn, *where)]


@dataclass(frozen=True, slots=True)
class Effect:
    """An assignment as it works out for a user: `cause` is what was given, `prior_id` the role
    that gave the role where it is implied."""

    grant: Grant
    cause: Grant
    prior_id: str | None = None


def effects(conn: sa.Connection, given: Iterable[Grant]) -> list[Effect]:
    """What assignments come to: groups become users, inherited ones the projects below, roles
    what they imply. A domain's own role shows in what it implies alone."""
    implied = inferences(conn)
    domains_own = {one["id"] for one in store.select(conn, role, role.c.domain_id != "")}
    made: dict[tuple[str, str, str, str], Effect] = {}
    members: dict[str, list[str]] = {}
    below: dict[tuple[str, str], list[str]] = {}
    for one in given:
        users = [one.actor_id]
        if one.actor == "group":
            if one.actor_id not in members:
                members[one.actor_id] = store.members_of(conn, one.actor_id)
            users = members[one.actor_id]
        targets = [(one.target, one.target_id)]
        if one.inherited:
            key = (one.target, one.target_id)
            if key not in below:
                below[key] = [p["id"] for p in projects_below(conn, *key)]
            targets = [("project", id) for id in below[key]]
        roles: list[tuple[str, str | None]] = [(one.role_id, None)]
        for role_id, _ in roles:
            known = {id for id, _ in roles}
            roles += [(id, role_id) for id in implied.get(role_id, ()) if id not in known]
        for user_id in users:
            for target, target_id in targets:
                for role_id, prior in roles:
                    if role_id in domains_own:
                        continue
                    grant = Grant("user", user_id, target, target_id, role_id)
                    effect = Effect(grant, one, prior)
                    made.setdefault((user_id, target, target_id, role_id), effect)
    return list(made.values())


def projects_below(conn: sa.Connection, target: str, id: str) -> list[Row]:
    """All projects under a domain or a project, each after its parent."""
    if target == "domain":
        return store.select(conn, project, project.c.domain_id == id)
    made, level = [], [id]
    while level:
        rows = store.select(conn, project, project.c.parent_id.in_(level))
        made += rows
        level = [one["id"] for one in rows]
    return made


def reach(conn: sa.Connection, user_id: str) -> Reach:
    """What a user may have a token for, by himself and by his groups."""
    actors = [user_id, *store.groups_of(conn, user_id)]
    given = assignments(conn, _a.actor_id.in_(actors))
    projects: dict[str, Row] = {}
    for one in given:
        if one.inherited:
            projects |= {p["id"]: p for p in projects_below(conn, one.target, one.target_id)}
    plain = [one for one in given if not one.inherited]
    targets = store.rows_of(conn, project, (one.target_id for one in plain))
    projects |= {id: one for id, one in targets.items() if not one["is_domain"]}
    domains = [one for one in targets.values() if one["is_domain"]]
    return Reach(
        sorted(projects.values(), key=lambda one: str(one["id"])), domains,
        any(one.target == SYSTEM for one in plain),
    )


def holds_admin(conn: sa.Connection, actors: Iterable[str]) -> bool:
    """Whether one of these users and groups has the role admin outside his own domain's scope.

    Such an account may be changed by the cloud's administrators alone: whoever can set its
    password is one.
    """
    admin = store.named(conn, role, ADMIN, "")
    if admin is None:
        return False
    wanted = list(actors)
    for id in list(wanted):
        wanted += store.groups_of(conn, id)
    return bool(assignments(conn, _a.actor_id.in_(wanted), _a.role_id == admin["id"]))


# -- application credentials


def create_credential(conn: sa.Connection, values: Mapping[str, Any]) -> Row:
    """An application credential with roles that its user has. Errors: `Conflict`, `InvalidInput`.
    """
    held = {
        id for id, _ in store.effective(
            conn, values["user_id"], store.get(conn, project, values["project_id"]),
            values["project_id"],
        )
    }
    missing = set(values["roles"]) - held
    if missing:
        raise InvalidInput("roles", sorted(missing)[0], "the user has no such role in the project")
    if values["expires_at"] is not None and values["expires_at"] <= store.time(conn):
        raise InvalidInput("expires_at", values["expires_at"], "it is in the past")
    if store.select(
        conn, app_credential, app_credential.c.user_id == values["user_id"],
        app_credential.c.name == values["name"],
    ):
        raise Conflict(
            "Conflict occurred attempting to store application_credential - Duplicate entry found "
            f"with name {values['name']}."
        )
    id = uuid4().hex
    store.insert(conn, app_credential, {**values, "id": id})
    made = store.get(conn, app_credential, id)
    assert made is not None
    return made
