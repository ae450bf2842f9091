"""Application credentials: a program's own password, good for less than its user."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from cloudkit import Cloud
from identitykit import V3, Keystone, administrator, member, unique

from treadle.db.schema import app_credential
from treadle.identity import store


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def make(me: Keystone, user: Any, status: int = 201, **values: Any) -> Any:
    path = f"/users/{user['id']}/application_credentials"
    return me.make("application_credential", path, status, **{"name": unique("key"), **values})


def log_in(me: Keystone, given: dict[str, Any], **scope: Any) -> httpx2.Response:
    auth = {"identity": {"methods": ["application_credential"], "application_credential": given}}
    return me.cloud.client.post(f"{V3}/auth/tokens", json={"auth": {**auth, **scope}})


def program(me: Keystone, made: Any) -> Keystone:
    answer = log_in(me, {"id": made["id"], "secret": made["secret"]})
    assert answer.status_code == 201, answer.text
    return Keystone(me.cloud, {"X-Auth-Token": answer.headers["x-subject-token"]})


def test_it_is_made_shown_used_and_removed(root: Keystone) -> None:
    user, project, me = member(root)
    made = make(me, user, description="d")
    assert made["project_id"] == project["id"]
    assert (made["unrestricted"], made["expires_at"], made["description"]) == (False, None, "d")
    assert sorted(one["name"] for one in made["roles"]) == ["member", "reader"]
    assert len(made["secret"]) == 86
    path = f"/users/{user['id']}/application_credentials"
    shown = {key: value for key, value in made.items() if key != "secret"}
    assert me.get(f"{path}/{made['id']}")["application_credential"] == shown
    assert me.get(f"{path}?name={made['name']}")["application_credentials"] == [shown]
    assert me.get(f"{path}?name=other")["application_credentials"] == []
    make(me, user, 409, name=made["name"])

    answer = log_in(me, {"id": made["id"], "secret": made["secret"]})
    body = answer.json()["token"]
    assert body["methods"] == ["application_credential"]
    assert body["project"]["id"] == project["id"]
    assert body["application_credential"] == {
        "id": made["id"], "name": made["name"], "restricted": True
    }
    named = {"name": made["name"], "secret": made["secret"], "user": {"id": user["id"]}}
    assert log_in(me, named).status_code == 201
    named["user"] = {"name": user["name"].upper(), "domain": {"name": "Default"}}
    assert log_in(me, named).status_code == 201
    assert log_in(me, {**named, "secret": "wrong"}).status_code == 401
    assert log_in(me, {**named, "name": "other"}).status_code == 401
    scope = {"project": {"id": project["id"]}}
    assert log_in(me, {"id": made["id"], "secret": made["secret"]}, scope=scope).status_code == 401

    it = program(me, made)
    assert it.works()
    me.drop(f"{path}/{made['id']}")
    assert not it.works()
    me.get(f"{path}/{made['id']}", 404)
    assert log_in(me, {"id": made["id"], "secret": made["secret"]}).status_code == 401


def test_it_has_the_roles_it_was_given_and_no_others(root: Keystone) -> None:
    user, project, me = member(root)
    made = make(me, user, roles=[{"name": "reader"}])
    body = log_in(me, {"id": made["id"], "secret": made["secret"]}).json()["token"]
    assert [one["name"] for one in body["roles"]] == ["reader"]
    made = make(me, user, roles=[{"id": root.role_id("member")}])
    body = log_in(me, {"id": made["id"], "secret": made["secret"]}).json()["token"]
    assert [one["name"] for one in body["roles"]] == ["member", "reader"]
    make(me, user, 400, roles=[{"name": "admin"}])
    make(me, user, 404, roles=[{"name": "nothing"}])
    make(me, user, 400, roles=[{}])
    it = program(me, made)
    root.give("member", f"projects/{project['id']}", f"users/{user['id']}", "DELETE")
    assert not it.works(), "it is worth nothing once its user has lost the role"
    assert log_in(me, {"id": made["id"], "secret": made["secret"]}).status_code == 401


def test_it_ends_when_it_was_said_to(root: Keystone) -> None:
    user, _, me = member(root)
    made = make(me, user, expires_at="2999-01-01T00:00:00.000000")
    assert made["expires_at"] == "2999-01-01T00:00:00.000000"
    for text in ("2001-01-01T00:00:00Z", "tomorrow", "", "9999999-01-01",
                 "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"):
        make(me, user, 400, expires_at=text)
    it = program(me, made)

    def end(conn: sa.Connection) -> None:
        conn.execute(sa.update(app_credential).where(app_credential.c.id == made["id"]).values(
            expires_at=1.0
        ))
        store.changed(conn)

    root.cloud.treadle.database.write(end)
    assert log_in(me, {"id": made["id"], "secret": made["secret"]}).status_code == 401
    assert not it.works()


def test_it_does_not_make_others_unless_it_may(root: Keystone) -> None:
    user, project, me = member(root)
    made = make(me, user)
    it = program(me, made)
    path = f"/users/{user['id']}/application_credentials"
    make(it, user, 403)
    it.drop(f"{path}/{made['id']}", 403)
    it.drop(f"/users/{user['id']}/access_rules/x", 403)
    body = {"methods": ["token"], "token": {"id": it.headers["X-Auth-Token"]}}
    answer = me.cloud.client.post(f"{V3}/auth/tokens", json={"auth": {
        "identity": body, "scope": {"project": {"id": project["id"]}},
    }})
    assert answer.status_code == 403
    free = program(me, make(me, user, unrestricted=True))
    assert make(free, user)["id"]


def test_a_chosen_secret_works(root: Keystone) -> None:
    user, _, me = member(root)
    made = make(me, user, secret="my own")
    assert made["secret"] == "my own"
    assert program(me, made).works()


def test_nobody_sees_or_makes_those_of_others(root: Keystone) -> None:
    user, _, me = member(root)
    other, _, them = member(root)
    made = make(me, user)
    path = f"/users/{user['id']}/application_credentials"
    for one in (path, f"{path}/{made['id']}", f"/users/{user['id']}/access_rules"):
        them.get(one, 403)
    them.get(f"/users/{other['id']}/application_credentials/{made['id']}", 404)
    them.drop(f"{path}/{made['id']}", 403)
    make(them, user, 403)
    make(root, user, 403)
    unscoped = root.as_user(user, unscoped={})
    make(unscoped, user, 400)
    assert root.get(path)["application_credentials"]


@pytest.mark.parametrize("values", [
    {"name": ""}, {"name": None}, {"roles": "member"}, {"unrestricted": "yes"}, {"secret": 7},
    {"expires_at": 7}, {"access_rules": [{}]}, {"access_rules": [{"id": 7}]},
    {"access_rules": [{"service": "compute", "method": "FLY", "path": "/"}]},
    {"access_rules": [{"service": "compute", "method": "GET", "path": "relative"}]},
])
def test_what_is_not_right_is_refused(root: Keystone, values: dict[str, Any]) -> None:
    user, _, me = member(root)
    make(me, user, 400, **values)


def test_access_rules_hold_it_to_some_calls(root: Keystone) -> None:
    user, project, me = member(root)
    rules = [
        {"service": "identity", "method": "GET", "path": "/v3/projects/*"},
        {"service": "identity", "method": "GET", "path": "/v3/users/{user_id}/**"},
    ]
    made = make(me, user, access_rules=rules)
    assert [{k: one[k] for k in ("service", "method", "path")}
            for one in sorted(made["access_rules"], key=lambda one: str(one["path"]))] == rules
    it = program(me, made)
    it.get(f"/projects/{project['id']}")
    it.get(f"/users/{user['id']}/projects")
    it.get(f"/projects/{project['id']}/tags", 401)
    it.get("/auth/projects", 401)
    it.get("/auth/catalog", 401)
    answer = it.cloud.get("/compute/v2.1/flavors", headers=it.headers)
    assert answer.status_code == 401
    again = make(me, user, access_rules=[{"id": made["access_rules"][0]["id"]}])
    assert again["access_rules"] == [made["access_rules"][0]]
    same = make(me, user, access_rules=rules[:1])
    path = f"/users/{user['id']}/access_rules"
    assert len(me.get(path)["access_rules"]) == 2
    one = same["access_rules"][0]
    assert me.get(f"{path}/{one['id']}")["access_rule"] == one
    assert me.get(f"{path}?method=POST")["access_rules"] == []
    me.drop(f"{path}/{one['id']}", 403)
    for each in (made, again, same):
        me.drop(f"/users/{user['id']}/application_credentials/{each['id']}")
    me.drop(f"{path}/{one['id']}")
    me.get(f"{path}/{one['id']}", 404)
    make(me, user, 404, access_rules=[{"id": "nothing"}])
    none = program(me, make(me, user, access_rules=[]))
    none.get("/auth/projects", 401)


def test_those_of_a_removed_user_or_project_are_gone(root: Keystone) -> None:
    user, project, me = member(root)
    made = make(me, user)
    root.drop(f"/projects/{project['id']}")
    assert log_in(me, {"id": made["id"], "secret": made["secret"]}).status_code == 401
    root.drop(f"/users/{user['id']}")
    left = root.cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(app_credential).where(app_credential.c.user_id == user["id"])
    ).all())
    assert left == []
