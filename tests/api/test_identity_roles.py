"""Roles, what they imply, and who has which where, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from cloudkit import Cloud
from identitykit import Keystone, administrator, member, unique


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def held(keystone: Keystone) -> list[str]:
    """The names of the roles in the caller's token."""
    subject = {"X-Subject-Token": keystone.headers["X-Auth-Token"]}
    answer = keystone.call("GET", "/auth/tokens", 200, headers=subject)
    return [one["name"] for one in answer.json()["token"].get("roles", [])]


def role(root: Keystone, **values: Any) -> Any:
    return root.make("role", **{"name": unique("role"), **values})


def test_a_role_lives(root: Keystone) -> None:
    made = role(root, description="d", word=1)
    assert (made["domain_id"], made["description"], made["options"], made["word"]) == (
        None, "d", {}, 1
    )
    assert root.get(f"/roles/{made['id']}")["role"] == made
    assert root.get(f"/roles?name={made['name'].upper()}")["roles"] == [made]
    root.make("role", status=409, name=made["name"].upper())
    root.make("role", status=400)
    root.make("role", status=404, name="x", domain_id="nowhere")
    changed = root.change("role", made["id"], name=unique("role"), description=None)
    assert changed["description"] is None
    root.change("role", made["id"], 409, name="ADMIN")
    root.change("role", made["id"], 400, domain_id="default")
    root.drop(f"/roles/{made['id']}")
    root.get(f"/roles/{made['id']}", 404)
    assert {"admin", "member", "reader", "service"} <= set(root.names("/roles"))


def test_an_immutable_role_stays(root: Keystone) -> None:
    made = role(root, options={"immutable": True})
    root.change("role", made["id"], 403, name="x")
    root.drop(f"/roles/{made['id']}", 403)
    root.change("role", made["id"], options={"immutable": False})
    root.drop(f"/roles/{made['id']}")


def test_a_role_gives_what_it_implies(root: Keystone) -> None:
    upper, lower, lowest = role(root), role(root), role(root)
    user, project, me = member(root, upper["name"])
    assert held(me) == [upper["name"]]
    implied = f"/roles/{upper['id']}/implies/{lower['id']}"
    root.get(implied, 404)
    assert root.cloud.client.head(
        f"/identity/v3{implied}", headers=root.headers
    ).status_code == 404
    made = root.call("PUT", implied, 201).json()
    assert made["role_inference"]["prior_role"]["id"] == upper["id"]
    assert made["role_inference"]["implies"]["id"] == lower["id"]
    assert root.get(implied) == made
    assert root.call("HEAD", implied, 204).content == b""
    root.call("PUT", f"/roles/{lower['id']}/implies/{lowest['id']}", 201)
    assert held(me) == sorted([upper["name"], lower["name"], lowest["name"]])
    root.call("PUT", f"/roles/{lowest['id']}/implies/{upper['id']}", 400)
    root.call("PUT", f"/roles/{lowest['id']}/implies/{lowest['id']}", 400)
    root.call("PUT", f"/roles/{upper['id']}/implies/nothing", 404)
    root.call("PUT", f"/roles/{upper['id']}/implies/{root.role_id('admin')}", 403)
    listed = root.get(f"/roles/{upper['id']}/implies")["role_inference"]
    assert [one["id"] for one in listed["implies"]] == [lower["id"]]
    every = {one["prior_role"]["id"]: [r["id"] for r in one["implies"]]
             for one in root.get("/role_inferences")["role_inferences"]}
    assert every[upper["id"]] == [lower["id"]]
    assert every[root.role_id("admin")] == [root.role_id("member")]
    path = f"/role_assignments?user.id={user['id']}&effective"
    found = root.get(path)["role_assignments"]
    assert {one["role"]["id"] for one in found} == {upper["id"], lower["id"], lowest["id"]}
    assert sum("prior_role" in one["links"] for one in found) == 2
    root.drop(implied)
    root.drop(implied, 404)
    assert held(me) == [upper["name"]]
    root.call("PUT", implied, 201)
    root.drop(f"/roles/{lower['id']}")
    assert held(me) == [upper["name"]]
    assert me.works()
    root.drop(f"/roles/{upper['id']}")
    assert not me.works()
    assert project["id"]


def test_a_role_of_a_domain_shows_in_what_it_implies_alone(root: Keystone) -> None:
    domain = root.domain()["id"]
    own, plain = role(root, domain_id=domain), role(root)
    root.call("PUT", f"/roles/{plain['id']}/implies/{own['id']}", 403)
    root.call("PUT", f"/roles/{own['id']}/implies/{plain['id']}", 201)
    assert own["id"] in [one["id"] for one in root.get(f"/roles?domain_id={domain}")["roles"]]
    assert own["id"] not in [one["id"] for one in root.get("/roles")["roles"]]
    user, inside, outside = root.user(), root.project(domain_id=domain), root.project()
    root.call("PUT", f"/projects/{outside['id']}/users/{user['id']}/roles/{own['id']}", 403)
    root.call("PUT", f"/projects/{inside['id']}/users/{user['id']}/roles/{own['id']}", 204)
    me = root.as_user(user, project=inside["id"])
    assert held(me) == [plain["name"]]
    path = f"/role_assignments?user.id={user['id']}"
    assert [one["role"]["id"] for one in root.get(path)["role_assignments"]] == [own["id"]]
    found = root.get(f"{path}&effective")["role_assignments"]
    assert [one["role"]["id"] for one in found] == [plain["id"]]


@pytest.mark.parametrize("actor", ["user", "group"])
@pytest.mark.parametrize("target", ["project", "domain", "system"])
def test_roles_are_given_and_taken(root: Keystone, actor: str, target: str) -> None:
    who = root.user() if actor == "user" else root.group()
    where = {"project": root.project, "domain": root.domain}.get(target, lambda: None)()
    place = f"/{target}s/{where['id']}" if where else "/system"
    path = f"{place}/{actor}s/{who['id']}/roles"
    id = root.role_id("reader")
    assert root.get(path)["roles"] == []
    root.get(f"{path}/{id}", 404)
    root.drop(f"{path}/{id}", 404)
    root.call("PUT", f"{path}/{id}", 204)
    root.call("PUT", f"{path}/{id}", 204)
    root.get(f"{path}/{id}", 204)
    assert root.call("HEAD", f"{path}/{id}", 204).content == b""
    body = root.get(path)
    assert [one["name"] for one in body["roles"]] == ["reader"]
    assert body["links"]["self"].endswith(path)
    root.call("PUT", f"{path}/nothing", 404)
    root.call("PUT", f"{place}/{actor}s/nobody/roles/{id}", 404)
    if where:
        root.call("PUT", f"/{target}s/nowhere/{actor}s/{who['id']}/roles/{id}", 404)
    listed = root.get(f"/role_assignments?{actor}.id={who['id']}")["role_assignments"]
    assert len(listed) == 1
    assert listed[0][actor] == {"id": who["id"]}
    assert listed[0]["links"]["assignment"].endswith(f"{path}/{id}")
    root.drop(f"{path}/{id}")
    assert root.get(f"/role_assignments?{actor}.id={who['id']}")["role_assignments"] == []


def test_a_domain_is_no_project_to_give_roles_on(root: Keystone) -> None:
    user, domain, id = root.user(), root.domain(), root.role_id("reader")
    root.call("PUT", f"/projects/{domain['id']}/users/{user['id']}/roles/{id}", 404)
    root.call("PUT", f"/domains/{root.project()['id']}/users/{user['id']}/roles/{id}", 404)


def test_inherited_roles_work_below_and_not_there(root: Keystone) -> None:
    domain = root.domain()["id"]
    top = root.project(domain_id=domain)
    below = root.project(parent_id=top["id"])
    beside = root.project(domain_id=domain)
    user = root.user()
    id = root.role_id("member")
    path = f"/OS-INHERIT/domains/{domain}/users/{user['id']}/roles"
    root.get(f"{path}/{id}/inherited_to_projects", 404)
    root.call("PUT", f"{path}/{id}/inherited_to_projects", 204)
    root.get(f"{path}/{id}/inherited_to_projects", 204)
    assert [one["id"] for one in root.get(f"{path}/inherited_to_projects")["roles"]] == [id]
    assert root.try_token(user, domain=domain).status_code == 401
    for project in (top, below, beside):
        assert held(root.as_user(user, project=project["id"])) == ["member", "reader"]
    assert len(root.get(f"/users/{user['id']}/projects")["projects"]) == 3
    me = root.as_user(user, project=below["id"])
    assert root.get(f"/domains/{domain}/users/{user['id']}/roles")["roles"] == []
    root.drop(f"{path}/{id}/inherited_to_projects")
    assert not me.works()

    root.give("reader", f"projects/{top['id']}", f"users/{user['id']}", inherited=True)
    assert root.try_token(user, project=top["id"]).status_code == 401
    assert held(root.as_user(user, project=below["id"])) == ["reader"]
    assert root.try_token(user, project=beside["id"]).status_code == 401
    plain = root.get(f"/role_assignments?user.id={user['id']}")["role_assignments"]
    assert plain[0]["scope"] == {
        "project": {"id": top["id"]}, "OS-INHERIT:inherited_to": "projects"
    }
    found = root.get(f"/role_assignments?user.id={user['id']}&effective")["role_assignments"]
    assert [one["scope"] for one in found] == [
        {"project": {"id": below["id"]}, "OS-INHERIT:inherited_to": "projects"}
    ]
    root.give("reader", f"projects/{top['id']}", f"users/{user['id']}", "DELETE", inherited=True)


def test_all_assignments_are_listed_by_what_is_asked_for(root: Keystone) -> None:
    domain = root.domain()["id"]
    top = root.project(domain_id=domain)
    below = root.project(parent_id=top["id"])
    user, group = root.user(), root.group()
    root.call("PUT", f"/groups/{group['id']}/users/{user['id']}", 204)
    root.give("member", f"projects/{top['id']}", f"users/{user['id']}")
    root.give("reader", f"projects/{below['id']}", f"groups/{group['id']}")
    root.give("reader", f"domains/{domain}", f"groups/{group['id']}", inherited=True)
    root.call("PUT", f"/system/users/{user['id']}/roles/{root.role_id('reader')}", 204)

    def found(query: str) -> list[Any]:
        rows: list[Any] = root.get(f"/role_assignments?{query}")["role_assignments"]
        return rows

    assert len(found(f"user.id={user['id']}")) == 2
    assert len(found(f"group.id={group['id']}")) == 2
    assert len(found(f"scope.project.id={top['id']}")) == 1
    assert len(found(f"scope.project.id={top['id']}&include_subtree=true")) == 2
    assert len(found(f"scope.domain.id={domain}")) == 1
    assert len(found(f"scope.domain.id={domain}&scope.OS-INHERIT:inherited_to=projects")) == 1
    assert user["id"] in [one["user"]["id"] for one in found("scope.system=all") if "user" in one]
    assert len(found(f"role.id={root.role_id('member')}&user.id={user['id']}")) == 1

    effective = found(f"user.id={user['id']}&effective&scope.project.id={below['id']}")
    assert {one["role"]["id"] for one in effective} == {root.role_id("reader")}
    assert all(one["user"]["id"] == user["id"] for one in effective)
    assert all("membership" in one["links"] for one in effective)
    named = found(f"user.id={user['id']}&scope.project.id={top['id']}&include_names")
    assert named[0]["user"] == {
        "id": user["id"], "name": user["name"], "domain": {"id": "default", "name": "Default"}
    }
    assert named[0]["role"]["name"] == "member"
    assert named[0]["scope"]["project"]["name"] == top["name"]
    for query in (
        f"effective&group.id={group['id']}", f"user.id={user['id']}&group.id={group['id']}",
        f"scope.project.id={top['id']}&scope.domain.id={domain}", "include_subtree",
        "user.id=%00",
    ):
        root.get(f"/role_assignments?{query}", 400)


def test_whoever_is_removed_leaves_no_assignment(root: Keystone) -> None:
    user, project, _ = member(root)
    root.drop(f"/users/{user['id']}")
    path = f"/role_assignments?scope.project.id={project['id']}"
    assert root.get(path)["role_assignments"] == []


def test_a_member_gives_and_sees_no_roles(root: Keystone) -> None:
    user, project, me = member(root)
    path = f"/projects/{project['id']}/users/{user['id']}/roles"
    id = root.role_id("admin")
    me.call("PUT", f"{path}/{id}", 403)
    me.drop(f"{path}/{id}", 403)
    me.call("PUT", f"/system/users/{user['id']}/roles/{id}", 403)
    for what in (path, "/roles", "/role_assignments", f"/roles/{id}", "/role_inferences"):
        me.get(what, 403)
    me.make("role", status=403, name="x")
    me.call("PUT", f"/roles/{id}/implies/{id}", 403)


def test_the_administrator_of_a_domain_gives_roles_within_it_alone(root: Keystone) -> None:
    domain = root.domain()["id"]
    boss, friend = root.user(domain_id=domain), root.user(domain_id=domain)
    stranger, elsewhere = root.user(), root.project()
    root.give("admin", f"domains/{domain}", f"users/{boss['id']}")
    me = root.as_user(boss, domain=domain)
    mine = me.make("project", name=unique("project"))
    give = f"/projects/{mine['id']}/users/{friend['id']}/roles"
    id = root.role_id("member")
    me.call("PUT", f"{give}/{id}", 204)
    assert len(me.get(give)["roles"]) == 1
    for name in ("admin", "service"):
        me.call("PUT", f"{give}/{root.role_id(name)}", 403)
    me.call("PUT", f"/projects/{mine['id']}/users/{stranger['id']}/roles/{id}", 403)
    me.call("PUT", f"/projects/{elsewhere['id']}/users/{friend['id']}/roles/{id}", 403)
    me.call("PUT", f"/projects/nowhere/users/{friend['id']}/roles/{id}", 403)
    me.call("PUT", f"/system/users/{friend['id']}/roles/{id}", 403)
    me.call("PUT", f"/domains/default/users/{friend['id']}/roles/{id}", 403)
    targets = {
        next(iter(one["scope"].values()))["id"]
        for one in me.get("/role_assignments")["role_assignments"]
    }
    assert targets == {domain, mine["id"]}
    me.drop(f"{give}/{id}")


def test_a_reader_of_the_system_sees_all_and_changes_nothing(root: Keystone) -> None:
    user = root.user()
    root.call("PUT", f"/system/users/{user['id']}/roles/{root.role_id('reader')}", 204)
    me = root.as_user(user, system={"all": True})
    for path in ("/users", "/projects", "/domains", "/groups", "/roles", "/role_assignments",
                 "/services", "/endpoints", f"/users/{user['id']}"):
        me.get(path)
    assert me.get("/auth/system")["system"] == [{"all": True}]
    me.make("project", status=403, name="x")
    me.make("user", status=403, name="x")
    me.drop(f"/users/{root.user()['id']}", 403)
