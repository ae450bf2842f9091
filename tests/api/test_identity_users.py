"""Users, their passwords, and groups over HTTP; and what ends tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cloudkit import Cloud, Start
from identitykit import Keystone, administrator, member, unique

from treadle.db.schema import token, user_account, user_password
from treadle.errors import InvalidInput


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def test_a_user_lives(root: Keystone) -> None:
    project = root.project()
    made = root.user(email="a@example.org", description="d", default_project_id=project["id"])
    assert made["domain_id"] == "default"
    assert made["enabled"] is True
    assert (made["email"], made["description"]) == ("a@example.org", "d")
    assert made["default_project_id"] == project["id"]
    assert made["password_expires_at"] is None
    assert "password" not in made
    assert root.get(f"/users/{made['id']}")["user"] == made
    root.make("user", status=409, name=made["name"].upper())
    changed = root.change("user", made["id"], name=unique("new"), email=None, enabled=False)
    assert (changed["email"], changed["enabled"], changed["description"]) == (None, False, "d")
    assert root.get(f"/users?name={changed['name']}&enabled=false")["users"] == [changed]
    root.change("user", made["id"], 409, name="ADMIN")
    root.change("user", made["id"], 400, domain_id="elsewhere")
    changed = root.change("user", made["id"], default_project_id=None)
    assert "default_project_id" not in changed
    root.drop(f"/users/{made['id']}")
    root.get(f"/users/{made['id']}", 404)
    root.drop(f"/users/{made['id']}", 404)


@pytest.mark.parametrize("values", [
    {}, {"name": ""}, {"name": 7}, {"name": "x" * 256}, {"name": "x", "password": 7},
    {"name": "x", "enabled": "yes"}, {"name": "x", "email": 7}, {"name": "a\0"},
    {"name": "x", "options": {"fly": True}}, {"name": "x", "options": {"lock_password": 1}},
    {"name": "x", "options": {"multi_factor_auth_rules": ["password"]}},
    {"name": "x", "default_project_id": "default"},
])
def test_a_user_that_is_not_right_is_refused(root: Keystone, values: dict[str, Any]) -> None:
    root.call("POST", "/users", 400, json={"user": values})


def test_a_user_of_nowhere_is_refused(root: Keystone) -> None:
    root.make("user", status=404, name="x", domain_id="nowhere")


def test_options_are_kept_and_taken_back(root: Keystone) -> None:
    options = {"lock_password": True, "multi_factor_auth_rules": [["password", "totp"]]}
    made = root.user(options=options)
    assert made["options"] == options
    changed = root.change("user", made["id"], options={"lock_password": None})
    assert changed["options"] == {"multi_factor_auth_rules": [["password", "totp"]]}


def test_extra_words_do_not_hide_what_a_user_is(root: Keystone) -> None:
    made = root.user(id="chosen", links={"self": "x"}, extra={"a": 1}, original_password="x")
    assert made["id"] != "chosen"
    assert made["links"]["self"].endswith(made["id"])
    assert "extra" not in made
    assert "original_password" not in made


def test_filters_of_users(root: Keystone) -> None:
    domain = root.domain()["id"]
    names = ["Anna", "anton", "Berta", "50%_off"]
    for name in names:
        root.user(name=name, domain_id=domain)

    def found(**query: str) -> list[str]:
        answer = root.call("GET", "/users", 200, params={**query, "domain_id": domain})
        return sorted(one["name"] for one in answer.json()["users"])

    assert found() == sorted(names)
    assert found(name="ANTON") == ["anton"]
    assert found(name__startswith="an") == ["Anna", "anton"]
    assert found(name__icontains="T") == ["Berta", "anton"]
    assert found(name__endswith="a") == ["Anna", "Berta"]
    assert found(name__contains="%_") == ["50%_off"]
    assert found(name__contains="%") == ["50%_off"]
    assert found(name="Anna\0") == []
    assert found(enabled="false") == []


def test_whom_a_user_may_look_at_and_change(root: Keystone) -> None:
    person, _, me = member(root)
    other, _, _ = member(root)
    assert me.get(f"/users/{person['id']}")["user"]["id"] == person["id"]
    assert len(me.get(f"/users/{person['id']}/projects")["projects"]) == 1
    assert me.get(f"/users/{person['id']}/groups")["groups"] == []
    for path in (f"/users/{other['id']}", "/users/nobody", "/users", "/groups",
                 f"/users/{other['id']}/projects", f"/users/{other['id']}/groups"):
        me.get(path, 403)
    me.make("user", status=403, name="x")
    me.change("user", person["id"], 403, name="x")
    me.drop(f"/users/{person['id']}", 403)
    me.make("group", status=403, name="x")


# -- passwords


def change_password(root: Keystone, user: Any, status: int, old: str, new: Any) -> None:
    body = {"user": {"password": new, "original_password": old}}
    nobody = Keystone(root.cloud)
    nobody.call("POST", f"/users/{user['id']}/password", status, json=body)


def test_a_user_changes_his_password_and_his_tokens_end(root: Keystone) -> None:
    user, project, me = member(root)
    change_password(root, user, 401, "wrong", "better")
    change_password(root, {"id": "nobody"}, 401, "secret", "better")
    change_password(root, user, 400, "secret", 7)
    assert me.works()
    change_password(root, user, 204, "secret", "better")
    assert not me.works()
    assert root.try_token(user, "secret").status_code == 401
    assert root.as_user(user, "better", project=project["id"]).works()


def test_an_administrator_sets_a_password(root: Keystone) -> None:
    user, _, me = member(root)
    root.change("user", user["id"], password="another")
    assert not me.works()
    assert root.try_token(user, "secret").status_code == 401
    assert root.try_token(user, "another").status_code == 201


def test_a_user_without_a_password_cannot_log_in(root: Keystone) -> None:
    user = root.make("user", name=unique("user"))
    assert root.try_token(user, "").status_code == 401


@pytest.mark.parametrize("password", ["p" * 4096, "\U0001f9f5" * 100, "  ", "a\tb\nc", "\x7f"])
def test_any_password_works(root: Keystone, password: str) -> None:
    user = root.user(password=password)
    assert root.try_token(user, password).status_code == 201
    assert root.try_token(user, password + " ").status_code in (400, 401)


def test_only_hashes_of_passwords_are_kept(root: Keystone) -> None:
    root.user(password="plain to see")
    rows = root.cloud.treadle.database.read(
        lambda conn: conn.execute(sa.select(user_password)).all()
    )
    assert "plain to see" not in str(rows)
    assert all(one.hash.startswith("$argon2id$") for one in rows)


def test_several_factors_are_asked_for_where_the_options_say_so(root: Keystone) -> None:
    rules: dict[str, Any] = {"multi_factor_auth_rules": [["password", "totp"]]}
    user = root.user(options=rules)
    assert root.try_token(user).status_code == 201
    root.change("user", user["id"], options={"multi_factor_auth_enabled": True})
    assert root.try_token(user).status_code == 401
    root.change("user", user["id"], options={"multi_factor_auth_rules": [["password"]]})
    assert root.try_token(user).status_code == 201


def test_passwords_follow_the_settings(start: Start) -> None:
    cloud = start(settings={
        "identity.password_pattern": "(?=.*[0-9]).{6,}",
        "identity.password_rule": "six and a digit",
        "identity.password_history": 2, "identity.password_days": 30,
    })
    root = administrator(cloud)
    answer = root.make("user", status=400, name="weak", password="short")
    assert "six and a digit" in answer["error"]["message"]
    user = root.user(password="secret0")
    assert user["password_expires_at"] is not None
    change_password(root, user, 400, "secret0", "weak")
    change_password(root, user, 400, "secret0", "secret0")
    change_password(root, user, 204, "secret0", "secret1")
    change_password(root, user, 400, "secret1", "secret0")
    change_password(root, user, 204, "secret1", "secret2")
    change_password(root, user, 204, "secret2", "secret0")
    root.change("user", user["id"], 400, password="weak")
    root.change("user", user["id"], options={"lock_password": True})
    change_password(root, user, 400, "secret0", "secret9")

    cloud.treadle.database.write(
        lambda conn: conn.execute(sa.update(user_password).values(expires_at=1.0)) and None
    )
    assert "expired" in root.try_token(user, "secret0").json()["error"]["message"]
    assert "expired" not in root.try_token(user, "wrong").json()["error"]["message"]
    root.change("user", user["id"], options={"ignore_password_expiry": True})
    assert root.try_token(user, "secret0").status_code == 201


def test_a_password_is_kept_for_the_days_that_are_set(start: Start) -> None:
    root = administrator(start(settings={"identity.password_min_days": 1}))
    user = root.user()
    change_password(root, user, 400, "secret", "another")
    root.change("user", user["id"], password="another")


def test_a_first_password_is_changed_before_the_first_log_in(start: Start) -> None:
    root = administrator(start(settings={"identity.change_first_password": True}))
    user = root.user()
    assert "expired" in root.try_token(user).json()["error"]["message"]
    change_password(root, user, 204, "secret", "own")
    assert root.try_token(user, "own").status_code == 201
    free = root.user(options={"ignore_change_password_upon_first_use": True})
    assert root.try_token(free).status_code == 201


def test_options_keep_an_account_from_being_locked(start: Start) -> None:
    root = administrator(start(settings={"identity.lockout_failures": 1}))
    locked, free = root.user(), root.user(options={"ignore_lockout_failure_attempts": True})
    for user in (locked, free):
        assert root.try_token(user, "wrong").status_code == 401
    assert root.try_token(locked).status_code == 401
    assert root.try_token(free).status_code == 201
    root.change("user", locked["id"], enabled=False)
    root.change("user", locked["id"], enabled=True)
    assert root.try_token(locked).status_code == 201
    left = root.cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(user_account.c.failures).where(user_account.c.id == free["id"])
    ).scalar_one())
    assert left == 0


# -- groups


def test_a_group_lives(root: Keystone) -> None:
    made = root.group(description="d", word=1)
    assert (made["domain_id"], made["description"], made["word"]) == ("default", "d", 1)
    assert root.get(f"/groups/{made['id']}")["group"] == made
    assert [one["id"] for one in root.get(f"/groups?name={made['name'].upper()}")["groups"]] == [
        made["id"]
    ]
    root.make("group", status=409, name=made["name"].title())
    assert root.change("group", made["id"], description="e")["description"] == "e"
    root.change("group", made["id"], 400, domain_id="elsewhere")
    user = root.user()
    inside = f"/groups/{made['id']}/users/{user['id']}"
    root.get(inside, 404)
    root.drop(inside, 404)
    root.call("PUT", inside, 204)
    root.call("PUT", inside, 204)
    root.get(inside, 204)
    assert root.names(f"/groups/{made['id']}/users") == [user["name"]]
    assert root.names(f"/users/{user['id']}/groups") == [made["name"]]
    root.call("PUT", f"/groups/{made['id']}/users/nobody", 404)
    root.call("PUT", f"/groups/nowhere/users/{user['id']}", 404)
    root.drop(inside)
    assert root.get(f"/groups/{made['id']}/users")["users"] == []
    root.call("PUT", inside, 204)
    root.drop(f"/groups/{made['id']}")
    root.get(f"/groups/{made['id']}", 404)
    assert root.get(f"/users/{user['id']}")["user"]["id"] == user["id"]


# -- what ends tokens

Ender = Callable[[Keystone, Any, Any], None]


def _leave(root: Keystone, user: Any, project: Any) -> None:
    root.give("member", f"projects/{project['id']}", f"users/{user['id']}", "DELETE")


ENDERS: dict[str, Ender] = {
    "user disabled": lambda root, user, _: root.change("user", user["id"], enabled=False),
    "user removed": lambda root, user, _: root.drop(f"/users/{user['id']}"),
    "password": lambda root, user, _: root.change("user", user["id"], password="new"),
    "project disabled":
        lambda root, _, project: root.change("project", project["id"], enabled=False),
    "project removed": lambda root, _, project: root.drop(f"/projects/{project['id']}"),
    "role taken": _leave,
    "domain disabled":
        lambda root, user, _: root.change("domain", user["domain_id"], enabled=False),
}


@pytest.mark.parametrize("ender", list(ENDERS))
def test_a_token_ends_at_once_with_what_it_rests_on(root: Keystone, ender: str) -> None:
    domain = root.domain()["id"]
    user, project = root.user(domain_id=domain), root.project(domain_id=domain)
    root.give("member", f"projects/{project['id']}", f"users/{user['id']}")
    me = root.as_user(user, project=project["id"])
    for _ in range(2):
        assert me.works()
    ENDERS[ender](root, user, project)
    assert not me.works()
    subject = {"X-Subject-Token": me.headers["X-Auth-Token"]}
    root.call("GET", "/auth/tokens", 404, headers=subject)


@pytest.mark.parametrize(("kind", "ender"), [
    ("user", "user disabled"), ("project", "project disabled"), ("domain", "domain disabled"),
])
def test_what_is_enabled_again_does_not_wake_tokens(
    root: Keystone, kind: str, ender: str
) -> None:
    domain = root.domain()["id"]
    user, project = root.user(domain_id=domain), root.project(domain_id=domain)
    root.give("member", f"projects/{project['id']}", f"users/{user['id']}")
    me = root.as_user(user, project=project["id"])
    ENDERS[ender](root, user, project)
    id = {"user": user["id"], "project": project["id"], "domain": domain}[kind]
    root.change(kind, id, enabled=True)
    assert not me.works()
    assert root.as_user(user, project=project["id"]).works()


def test_a_token_has_the_roles_of_now(root: Keystone) -> None:
    user, project, me = member(root)
    me.get("/users", 403)
    root.give("admin", f"projects/{project['id']}", f"users/{user['id']}")
    assert me.get(f"/users?name={user['name']}")["users"]
    root.give("admin", f"projects/{project['id']}", f"users/{user['id']}", "DELETE")
    me.get("/users", 403)
    assert me.works()


def test_tokens_of_a_group_end_with_it(root: Keystone) -> None:
    user, group, project = root.user(), root.group(), root.project()
    inside = f"/groups/{group['id']}/users/{user['id']}"
    root.call("PUT", inside, 204)
    root.give("reader", f"projects/{project['id']}", f"groups/{group['id']}")
    me = root.as_user(user, project=project["id"])
    assert me.works()
    root.drop(inside)
    assert not me.works()
    root.call("PUT", inside, 204)
    me = root.as_user(user, project=project["id"])
    root.drop(f"/groups/{group['id']}")
    assert not me.works()


def test_no_token_is_left_of_whoever_is_gone(root: Keystone) -> None:
    user, _, me = member(root)
    assert me.works()
    root.drop(f"/users/{user['id']}")
    left = root.cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(token).where(token.c.user_id == user["id"])
    ).all())
    assert left == []


# -- the default project


def test_without_a_scope_the_default_project_is_taken_where_there_is_a_role(
    root: Keystone
) -> None:
    user, project = root.user(), root.project()
    assert "project" not in root.try_token(user).json()["token"]
    root.change("user", user["id"], default_project_id=project["id"])
    assert "project" not in root.try_token(user).json()["token"]
    root.give("reader", f"projects/{project['id']}", f"users/{user['id']}")
    assert root.try_token(user).json()["token"]["project"]["id"] == project["id"]
    assert "project" not in root.try_token(user, unscoped={}).json()["token"]
    root.change("project", project["id"], enabled=False)
    assert "project" not in root.try_token(user).json()["token"]


def test_nobody_gets_a_token_for_what_he_has_no_role_in(root: Keystone) -> None:
    user = root.user()
    project = root.project()
    for scope in ({"project": project["id"]}, {"domain": "default"}, {"system": {"all": True}}):
        assert root.try_token(user, **scope).status_code == 401


# -- an operator's own rules


def test_an_operators_file_decides_who_may(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('"identity:list_users" = "token"\n"identity:create_group" = "nobody"\n')
    root = administrator(start(settings={"server.rules_file": str(path)}))
    _, _, me = member(root)
    assert "admin" in me.names("/users")
    root.make("group", status=403, name="x")
    me.make("user", status=403, name="x")
    path.write_text('"identity:list_user" = "token"\n')
    with pytest.raises(InvalidInput, match="did you mean identity:list_users"):
        start(settings={"server.rules_file": str(path)})


# -- the administrator of a domain


def test_the_administrator_of_a_domain_looks_after_its_users_alone(root: Keystone) -> None:
    domain = root.domain()["id"]
    boss, strong = root.user(domain_id=domain), root.user(domain_id=domain)
    weak, stranger = root.user(domain_id=domain), root.user()
    project = root.project(domain_id=domain)
    root.give("admin", f"domains/{domain}", f"users/{boss['id']}")
    root.give("admin", f"projects/{project['id']}", f"users/{strong['id']}")
    me = root.as_user(boss, domain=domain)
    made = me.make("user", name=unique("user"), password="x")
    assert made["domain_id"] == domain
    assert {one["id"] for one in me.get("/users")["users"]} == {
        boss["id"], strong["id"], weak["id"], made["id"]
    }
    me.change("user", weak["id"], password="new")
    assert root.try_token(weak, "new").status_code == 201
    for id in (stranger["id"], "nobody"):
        me.get(f"/users/{id}", 403)
        me.change("user", id, 403, password="mine now")
        me.drop(f"/users/{id}", 403)
    me.make("user", status=403, name="x", domain_id="default")
    me.change("user", strong["id"], 403, password="mine now")
    me.drop(f"/users/{strong['id']}", 403)
    group = me.make("group", name=unique("group"))
    strong_group = root.group(domain_id=domain)
    root.give("admin", f"projects/{project['id']}", f"groups/{strong_group['id']}")
    me.call("PUT", f"/groups/{group['id']}/users/{weak['id']}", 204)
    me.call("PUT", f"/groups/{group['id']}/users/{stranger['id']}", 403)
    me.call("PUT", f"/groups/{strong_group['id']}/users/{weak['id']}", 403)
    me.get(f"/groups/{root.group()['id']}", 403)
