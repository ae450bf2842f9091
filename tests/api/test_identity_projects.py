"""Domains, projects and their tags over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from cloudkit import Cloud
from identitykit import Keystone, administrator, member, unique


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def test_a_domain_lives(root: Keystone) -> None:
    made = root.domain(description="one", extra_word=[1, {"a": None}])
    assert made["enabled"] is True
    assert made["extra_word"] == [1, {"a": None}]
    assert made["options"] == {}
    assert made["links"]["self"].endswith(f"/identity/v3/domains/{made['id']}")
    assert root.get(f"/domains/{made['id']}")["domain"] == made
    name = made["name"].upper()
    assert [one["id"] for one in root.get(f"/domains?name={name}")["domains"]] == [made["id"]]
    root.make("domain", status=409, name=name)
    assert root.change("domain", made["id"], description="two")["description"] == "two"
    root.drop(f"/domains/{made['id']}", 403)
    assert root.change("domain", made["id"], enabled=False)["enabled"] is False
    assert made["id"] in [one["id"] for one in root.get("/domains?enabled=false")["domains"]]
    root.drop(f"/domains/{made['id']}")
    root.get(f"/domains/{made['id']}", 404)
    root.drop(f"/domains/{made['id']}", 404)


def test_a_domain_takes_all_that_is_in_it(root: Keystone) -> None:
    domain = root.domain()
    inside = {"domain_id": domain["id"]}
    top = root.project(**inside)
    below = root.project(parent_id=top["id"], tags=["x"])
    user, group = root.user(**inside, default_project_id=top["id"]), root.group(**inside)
    own = root.make("role", name=unique("role"), **inside)
    root.call("PUT", f"/groups/{group['id']}/users/{user['id']}", 204)
    root.give("member", f"projects/{below['id']}", f"users/{user['id']}")
    root.call("PUT", f"/projects/{top['id']}/groups/{group['id']}/roles/{own['id']}", 204)
    mine = root.as_user(user, project=below["id"])
    mine.make("application_credential", f"/users/{user['id']}/application_credentials", name="a")
    root.change("domain", domain["id"], enabled=False)
    assert not mine.works()
    root.drop(f"/domains/{domain['id']}")
    for path in (f"/projects/{top['id']}", f"/projects/{below['id']}", f"/users/{user['id']}",
                 f"/groups/{group['id']}", f"/roles/{own['id']}"):
        root.get(path, 404)


def test_the_default_domain_and_the_clouds_project_stay(root: Keystone) -> None:
    root.drop("/domains/default", 403)
    root.change("domain", "default", 403, enabled=False)
    home = root.get("/projects?name=admin&domain_id=default")["projects"][0]
    root.drop(f"/projects/{home['id']}", 403)


def test_a_project_lives(root: Keystone) -> None:
    made = root.project(description=None, tags=["b", "a"], colour="red")
    assert made["domain_id"] == made["parent_id"] == "default"
    assert made["is_domain"] is False
    assert (made["tags"], made["colour"], made["description"]) == (["a", "b"], "red", "")
    assert root.get(f"/projects/{made['id']}")["project"] == made
    root.make("project", status=409, name=made["name"].upper())
    other = root.project(domain_id=root.domain()["id"], name=made["name"])
    assert other["id"] != made["id"]
    changed = root.change("project", made["id"], name=unique("new"), description="d", size=None)
    assert (changed["description"], changed["size"], changed["colour"]) == ("d", None, "red")
    root.change("project", made["id"], 409, name="ADMIN")
    root.change("project", made["id"], 400, domain_id="elsewhere")
    root.change("project", made["id"], 403, parent_id=other["id"])
    root.change("project", made["id"], 400, is_domain=True)
    root.change("project", made["id"], domain_id="default", parent_id="default")
    root.drop(f"/projects/{made['id']}")
    root.get(f"/projects/{made['id']}", 404)
    root.change("project", made["id"], 404, name="x")


@pytest.mark.parametrize("values", [
    {}, {"name": ""}, {"name": "x" * 65}, {"name": 7}, {"name": None}, {"name": "  "},
    {"name": "a\0b"}, {"name": "x", "enabled": "true"}, {"name": "x", "description": 7},
    {"name": "x", "tags": "a"}, {"name": "x", "tags": ["a", "a"]}, {"name": "x", "tags": ["a,b"]},
    {"name": "x", "tags": ["a/b"]}, {"name": "x", "tags": [""]}, {"name": "x", "tags": ["y" * 256]},
    {"name": "x", "domain_id": 7}, {"name": "x", "domain_id": "../x"},
    {"name": "x", "options": {"no such": True}}, {"name": "x", "options": {"immutable": "yes"}},
    {"name": "x", "is_domain": True, "domain_id": "default"},
])
def test_a_project_that_is_not_right_is_refused(root: Keystone, values: dict[str, Any]) -> None:
    root.call("POST", "/projects", 400, json={"project": values})


@pytest.mark.parametrize("values", [
    {"domain_id": "nowhere"}, {"parent_id": "nowhere"},
])
def test_a_project_of_nowhere_is_refused(root: Keystone, values: dict[str, Any]) -> None:
    root.make("project", status=404, name=unique("project"), **values)


@pytest.mark.parametrize("name", [
    "\U0001f9f5", "Ключ", "' OR 1=1 --", "%", "_", "a" * 64, " padded ", "<script>", "é", "ß",
])
def test_any_name_comes_back_and_is_found(root: Keystone, name: str) -> None:
    domain = root.domain()
    made = root.project(name=name, domain_id=domain["id"])
    assert made["name"] == name
    for query in ({"name": name}, {"name": name.upper()}, {"name__contains": name[:3]}):
        found = root.call("GET", "/projects", 200, params={**query, "domain_id": domain["id"]})
        assert [one["id"] for one in found.json()["projects"]] == [made["id"]], query
    root.make("project", status=409, name=name.swapcase(), domain_id=domain["id"])


def test_projects_are_nested_within_one_domain(root: Keystone) -> None:
    domain = root.domain()
    top = root.project(domain_id=domain["id"])
    line = [top]
    for _ in range(4):
        line.append(root.project(parent_id=line[-1]["id"]))
    assert {one["domain_id"] for one in line} == {domain["id"]}
    root.make("project", status=403, name="too deep", parent_id=line[-1]["id"])
    root.make("project", status=400, name="x", parent_id=top["id"], domain_id="default")
    root.drop(f"/projects/{top['id']}", 403)
    root.change("project", top["id"], 403, enabled=False)
    last = line[-1]["id"]
    root.change("project", last, enabled=False)
    root.make("project", status=403, name="x", parent_id=last)
    root.change("project", last, enabled=True)
    found = root.get(f"/projects?parent_id={top['id']}")["projects"]
    assert [one["id"] for one in found] == [line[1]["id"]]

    shown = root.get(f"/projects/{line[2]['id']}?parents_as_ids&subtree_as_ids")["project"]
    assert shown["parents"] == {line[1]["id"]: {top["id"]: {domain["id"]: None}}}
    assert shown["subtree"] == {line[3]["id"]: {last: None}}
    root.get(f"/projects/{top['id']}?parents_as_ids&parents_as_list", 400)
    shown = root.get(f"/projects/{line[2]['id']}?parents_as_list&subtree_as_list")["project"]
    assert (shown["parents"], shown["subtree"]) == ([], []), "only those with a role of one's own"
    admin = root.get("/auth/projects")["projects"]
    assert top["id"] not in [one["id"] for one in admin]


def test_a_domain_is_a_project_of_its_own_kind(root: Keystone) -> None:
    made = root.make("project", name=unique("domain"), is_domain=True)
    assert (made["is_domain"], made["domain_id"], made["parent_id"]) == (True, None, None)
    assert root.get(f"/domains/{made['id']}")["domain"]["name"] == made["name"]
    assert made["id"] in [one["id"] for one in root.get("/projects?is_domain=true")["projects"]]
    assert made["id"] not in [one["id"] for one in root.get("/projects")["projects"]]
    below = root.project(parent_id=made["id"])
    assert below["domain_id"] == made["id"]


def test_tags(root: Keystone) -> None:
    domain = root.domain()
    red, both = (root.project(domain_id=domain["id"]) for _ in range(2))
    path = f"/projects/{red['id']}/tags"
    assert root.call("PUT", path, 200, json={"tags": ["red"]}).json()["tags"] == ["red"]
    root.call("PUT", f"/projects/{both['id']}/tags", 200, json={"tags": ["red", "blue"]})
    assert root.call("PUT", f"{path}/new%20one", 201).content == b""
    assert root.get(path)["tags"] == ["new one", "red"]
    root.call("HEAD", f"{path}/red", 204)
    root.get(f"{path}/red", 204)
    root.get(f"{path}/blue", 404)
    root.drop(f"{path}/blue", 404)
    root.call("PUT", f"{path}/a%2Cb", 400)

    def found(query: str) -> set[str]:
        rows = root.get(f"/projects?domain_id={domain['id']}&{query}")["projects"]
        return {one["id"] for one in rows}

    assert found("tags=red") == {red["id"], both["id"]}
    assert found("tags=red,blue") == {both["id"]}
    assert found("tags-any=blue,green") == {both["id"]}
    assert found("not-tags=red,blue") == {red["id"]}
    assert found("not-tags-any=blue") == {red["id"]}
    root.drop(f"{path}/red")
    assert root.get(path)["tags"] == ["new one"]
    root.drop(path)
    assert root.get(f"/projects/{red['id']}")["project"]["tags"] == []
    root.call("PUT", path, 400, json={"tags": [f"t{n}" for n in range(81)]})
    root.get("/projects/nowhere/tags", 404)


def test_a_tag_is_named_in_a_header_without_becoming_one(root: Keystone) -> None:
    project = root.project()["id"]
    made = root.call("PUT", f"/projects/{project}/tags/a%0D%0AX-Evil:%20é", 201)
    assert made.headers["location"].endswith(f"/{project}/tags/a%0D%0AX-Evil%3A%20%C3%A9")
    assert "x-evil" not in made.headers
    assert root.get(f"/projects/{project}/tags")["tags"] == ["a\r\nX-Evil: é"]


def test_lists_come_in_pages_and_end(root: Keystone) -> None:
    domain = root.domain()
    wanted = {root.project(domain_id=domain["id"])["id"] for _ in range(5)}
    path, seen = f"/projects?domain_id={domain['id']}&limit=2", []
    while path:
        body = root.get(path)
        assert len(body["projects"]) <= 2
        assert body["links"]["self"].endswith(path)
        seen += [one["id"] for one in body["projects"]]
        path = (body["links"]["next"] or "").partition("/identity/v3")[2]
    assert sorted(wanted) == sorted(seen)
    for bad in ("0", "-1", "x", "1.5"):
        root.get(f"/projects?limit={bad}", 400)


@pytest.mark.parametrize("text", ["%00", "a%00b", "..%2F..", "%F0%9F%A7%B5", "%ff", "x" * 300, "'"])
def test_a_path_that_names_nothing_is_not_found(root: Keystone, text: str) -> None:
    user, group = root.user()["id"], root.group()["id"]
    for path in (
        f"/projects/{text}", f"/domains/{text}", f"/users/{text}", f"/groups/{text}",
        f"/roles/{text}", f"/regions/{text}", f"/services/{text}", f"/endpoints/{text}",
        f"/groups/{group}/users/{text}", f"/users/{user}/application_credentials/{text}",
        f"/roles/{text}/implies/{text}", f"/projects/{text}/users/{user}/roles",
        f"/projects/{text}/tags/{text}", f"/system/users/{user}/roles/{text}",
    ):
        root.get(path, 404)


@pytest.mark.parametrize("query", [
    "marker=%00", "name=%00", "name__contains=%00", "domain_id=%00", "tags=%00", "enabled=%00",
    "parent_id=%F0%9F%A7%B5", "marker=nothing", "sort_key=name", "no_such=filter",
])
def test_odd_queries_are_answered(root: Keystone, query: str) -> None:
    for kind in ("projects", "users", "groups", "domains", "roles", "services"):
        root.get(f"/{kind}?{query}")
    root.get("/projects?name=%ff", 400)


def test_an_immutable_project_stays_until_it_is_made_mutable(root: Keystone) -> None:
    made = root.project(options={"immutable": True})
    root.change("project", made["id"], 403, description="x")
    root.drop(f"/projects/{made['id']}", 403)
    assert root.change("project", made["id"], options={"immutable": False})["options"] == {
        "immutable": False
    }
    assert root.change("project", made["id"], options={"immutable": None})["options"] == {}
    root.drop(f"/projects/{made['id']}")


def test_a_user_sees_his_own_project_and_none_of_others(root: Keystone) -> None:
    _, own, me = member(root, "reader")
    _, other, _ = member(root)
    assert me.get(f"/projects/{own['id']}")["project"]["id"] == own["id"]
    assert me.names("/auth/projects") == [own["name"]]
    for path in (f"/projects/{other['id']}", "/projects/nowhere", "/projects", "/domains",
                 f"/projects/{other['id']}/tags"):
        me.get(path, 403)
    assert me.get("/domains/default")["domain"]["id"] == "default"
    me.get(f"/domains/{root.domain()['id']}", 403)
    me.make("project", status=403, name="mine")
    me.change("project", own["id"], 403, name="mine")
    me.drop(f"/projects/{own['id']}", 403)
    me.make("domain", status=403, name="mine")


def test_the_administrator_of_a_domain_stays_within_it(root: Keystone) -> None:
    domain, other = root.domain(), root.domain()
    boss = root.user(domain_id=domain["id"])
    root.give("admin", f"domains/{domain['id']}", f"users/{boss['id']}")
    me = root.as_user(boss, domain=domain["id"])
    made = me.make("project", name="mine")
    assert made["domain_id"] == domain["id"]
    theirs = root.project(domain_id=other["id"])
    assert [one["id"] for one in me.get("/projects")["projects"]] == [made["id"]]
    assert me.get(f"/projects?domain_id={other['id']}")["projects"] == []
    me.get(f"/projects/{theirs['id']}", 403)
    me.get("/projects/nowhere", 403)
    me.change("project", theirs["id"], 403, name="x")
    me.drop(f"/projects/{theirs['id']}", 403)
    me.make("project", status=403, name="x", domain_id=other["id"])
    me.make("project", status=403, name="x", parent_id=theirs["id"])
    assert me.get(f"/domains/{domain['id']}")["domain"]["id"] == domain["id"]
    me.get(f"/domains/{other['id']}", 403)
    me.get("/domains", 403)
    me.change("domain", domain["id"], 403, name="x")
    me.change("project", made["id"], description="mine to change")
    me.drop(f"/projects/{made['id']}")
