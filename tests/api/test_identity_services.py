"""Regions, services and endpoints over HTTP, and their place in the catalog."""

from __future__ import annotations

from typing import Any

import pytest
from cloudkit import Cloud
from identitykit import Keystone, administrator, member, unique


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def catalog(keystone: Keystone) -> dict[str, Any]:
    return {one["type"]: one for one in keystone.get("/auth/catalog")["catalog"]}


def test_regions(root: Keystone) -> None:
    made = root.make("region", description="d")
    assert (made["description"], made["parent_region_id"]) == ("d", None)
    id = unique("region")
    below = root.call("PUT", f"/regions/{id}", 201,
                      json={"region": {"parent_region_id": made["id"]}}).json()["region"]
    assert below["id"] == id
    root.make("region", status=409, id=id)
    root.make("region", status=404, parent_region_id="nowhere")
    root.make("region", status=400, id="a/b")
    assert root.get(f"/regions/{id}")["region"] == below
    found = root.get(f"/regions?parent_region_id={made['id']}")["regions"]
    assert [one["id"] for one in found] == [id]
    assert root.change("region", made["id"], description="e")["description"] == "e"
    root.change("region", made["id"], 400, parent_region_id=id)
    root.drop(f"/regions/{made['id']}", 403)
    root.drop(f"/regions/{id}")
    root.drop(f"/regions/{made['id']}")
    root.get(f"/regions/{made['id']}", 404)
    assert "RegionOne" in [one["id"] for one in root.get("/regions")["regions"]]
    root.drop("/regions/RegionOne", 403)


def test_what_this_cloud_answers_itself_is_listed_and_fixed(root: Keystone) -> None:
    services = {one["type"]: one for one in root.get("/services")["services"]}
    own = services["identity"]
    assert own["name"] == "keystone"
    assert root.get(f"/services/{own['id']}")["service"] == own
    root.change("service", own["id"], 403, enabled=False)
    root.drop(f"/services/{own['id']}", 403)
    found = root.get(f"/endpoints?service_id={own['id']}&interface=public")["endpoints"]
    assert [one["url"] for one in found] == [f"{root.cloud.url}/identity"]
    assert root.get(f"/endpoints/{found[0]['id']}")["endpoint"] == found[0]
    root.change("endpoint", found[0]["id"], 403, url="http://elsewhere")
    root.drop(f"/endpoints/{found[0]['id']}", 403)


def test_a_service_and_its_endpoints_stand_in_the_catalog(root: Keystone) -> None:
    kind = unique("type")
    service = root.make("service", type=kind, name="n", word=1)
    assert (service["enabled"], service["word"]) == (True, 1)
    assert root.get(f"/services?type={kind}")["services"] == [service]
    assert catalog(root)[kind]["endpoints"] == []
    endpoint = root.make(
        "endpoint", service_id=service["id"], interface="public", region="RegionOne",
        url="http://files.example/v1/AUTH_%(project_id)s",
    )
    assert (endpoint["region"], endpoint["region_id"]) == ("RegionOne", "RegionOne")
    assert root.get(f"/endpoints/{endpoint['id']}")["endpoint"] == endpoint
    project = root.get("/auth/projects")["projects"][0]["id"]
    assert catalog(root)[kind]["endpoints"][0]["url"] == f"http://files.example/v1/AUTH_{project}"
    changed = root.change("endpoint", endpoint["id"], enabled=False)
    assert changed["enabled"] is False
    assert catalog(root)[kind]["endpoints"] == []
    assert root.change("service", service["id"], enabled=False, description="d")["enabled"] is False
    assert kind not in catalog(root)
    root.drop(f"/endpoints/{endpoint['id']}")
    root.get(f"/endpoints/{endpoint['id']}", 404)
    root.drop(f"/services/{service['id']}")
    root.get(f"/services/{service['id']}", 404)


@pytest.mark.parametrize("values", [
    {"service_id": "nothing"}, {"interface": "front"}, {"interface": None}, {"url": ""},
    {"url": "no scheme"}, {"url": None}, {"region_id": "nowhere"}, {"enabled": "False"},
])
def test_an_endpoint_that_is_not_right_is_refused(root: Keystone, values: dict[str, Any]) -> None:
    service = root.make("service", type=unique("type"))
    right = {"service_id": service["id"], "interface": "public", "url": "http://x"}
    root.make("endpoint", status=400, **{**right, **values})
    for key in right:
        root.make("endpoint", status=400, **{k: v for k, v in right.items() if k != key})


def test_a_region_that_the_old_word_names_is_made(root: Keystone) -> None:
    service, place = root.make("service", type=unique("type")), unique("region")
    made = root.make("endpoint", service_id=service["id"], interface="admin", url="http://x",
                     region=place)
    assert made["region_id"] == place
    root.drop(f"/regions/{place}", 403)
    root.drop(f"/services/{service['id']}")
    root.get(f"/endpoints/{made['id']}", 404)
    root.drop(f"/regions/{place}")


def test_a_member_changes_nothing_of_the_catalog(root: Keystone) -> None:
    _, _, me = member(root)
    assert "identity" in catalog(me)
    me.get("/regions")
    for path in ("/services", "/endpoints"):
        me.get(path, 403)
    me.make("service", status=403, type="x")
    me.make("region", status=403)
    me.drop("/regions/RegionOne", 403)


@pytest.mark.parametrize("kind", ["service", "endpoint", "region"])
def test_what_is_not_there_is_not_found(root: Keystone, kind: str) -> None:
    root.get(f"/{kind}s/nothing", 404)
    root.change(kind, "nothing", 404, description="x")
    root.drop(f"/{kind}s/nothing", 404)
