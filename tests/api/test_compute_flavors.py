"""Flavors in every microversion that changed them."""

from __future__ import annotations

from typing import Any

import pytest
from computekit import CALLERS, Api, named, schema
from tempest.lib.api_schema.response.compute.v2_1 import flavors_access, flavors_extra_specs
from tempest.lib.services.compute.flavors_client import FlavorsClient

MINORS = (1, 54, 55, 60, 61, 74, 75, 96)


def make(api: Api, minor: int = 1, **changes: Any) -> dict[str, Any]:
    wish = {"name": named("flavor"), "ram": 256, "vcpus": 1, "disk": 2, **changes}
    made: dict[str, Any] = api.ok(
        "POST", "/flavors", {"flavor": wish}, minor=minor,
        judge=schema(FlavorsClient, minor).create_update_get_flavor_details,
    )["flavor"]
    return made


@pytest.mark.parametrize("minor", MINORS)
def test_answers_are_as_tempest_wants_them(api: Api, minor: int) -> None:
    judge = schema(FlavorsClient, minor)
    api.get("/flavors", minor=minor, judge=judge.list_flavors)
    api.get("/flavors/detail", minor=minor, judge=judge.list_flavors_details)
    api.get("/flavors?limit=1", minor=minor, judge=judge.list_flavors)
    whole = judge.create_update_get_flavor_details
    shown = api.get("/flavors/1", minor=minor, judge=whole)["flavor"]
    assert shown["ram"] == 512
    assert shown["swap"] == (0 if minor >= 75 else "")
    assert ("description" in shown) is (minor >= 55)
    assert ("extra_specs" in shown) is (minor >= 61)


def test_what_was_asked_for_is_shown(api: Api) -> None:
    made = make(
        api, 61, id="my.flavor 1", swap=64, rxtx_factor="2.5", description="words",
        **{"OS-FLV-EXT-DATA:ephemeral": 3, "os-flavor-access:is_public": False},
    )
    shown = api.get("/flavors/my.flavor 1", minor=61)["flavor"]
    assert shown == made
    assert {key: shown[key] for key in shown if key not in ("links", "name")} == {
        "id": "my.flavor 1", "ram": 256, "vcpus": 1, "disk": 2, "swap": 64, "rxtx_factor": 2.5,
        "description": "words", "OS-FLV-EXT-DATA:ephemeral": 3, "extra_specs": {},
        "os-flavor-access:is_public": False, "OS-FLV-DISABLED:disabled": False,
    }
    base = f"{api.cloud.url}/compute"
    assert shown["links"] == [
        {"rel": "self", "href": f"{base}/v2.1/flavors/my.flavor 1"},
        {"rel": "bookmark", "href": f"{base}/flavors/my.flavor 1"},
    ]


def test_names_and_ids_are_taken_once_and_free_again(api: Api) -> None:
    made = make(api)
    same = {"ram": 1, "vcpus": 1, "disk": 0}
    api.fails("POST", "/flavors", {"flavor": {**same, "name": made["name"]}}, status=409,
              says="already exists")
    api.fails("POST", "/flavors", {"flavor": {**same, "name": named("f"), "id": made["id"]}},
              status=409, says="already exists")
    assert api.call("DELETE", f"/flavors/{made['id']}").status_code == 202
    api.fails("GET", f"/flavors/{made['id']}", status=404, says=made["id"])
    api.fails("DELETE", f"/flavors/{made['id']}", status=404)
    make(api, name=made["name"], id=made["id"])


def test_a_number_as_the_id_is_the_number_of_the_classic_api(api: Api) -> None:
    make(api, id=77)
    tids = [one["tid"] for one in api.cloud.ok("/vm/types")["types"]]
    assert 77 in tids
    assert make(api)["id"] not in map(str, tids)


@pytest.mark.parametrize(("field", "value"), [
    ("ram", 0), ("ram", -1), ("ram", "0"), ("ram", True), ("ram", 1.5), ("ram", 2**31),
    ("ram", "9" * 15), ("vcpus", 0), ("vcpus", None), ("disk", -1), ("disk", "x"), ("swap", -1),
    ("OS-FLV-EXT-DATA:ephemeral", -1), ("rxtx_factor", 0), ("rxtx_factor", "0"),
    ("rxtx_factor", "nan"), ("os-flavor-access:is_public", "maybe"), ("name", ""), ("name", " x"),
    ("name", "x" * 256), ("name", "a\u0000b"), ("name", 5), ("id", "a/b"), ("id", " a"), ("id", ""),
    ("id", "x" * 256), ("description", "not yet"), ("color", "red"),
])
def test_bad_values_are_refused_by_name(api: Api, field: str, value: Any) -> None:
    wish = {"name": named("f"), "ram": 1, "vcpus": 1, "disk": 1, field: value}
    said = api.fails("POST", "/flavors", {"flavor": wish}, status=400)
    assert field.rpartition(":")[2] in said


def test_only_the_description_can_be_changed_and_from_255_on(api: Api) -> None:
    made = make(api, 55)
    path = f"/flavors/{made['id']}"
    api.fails("PUT", path, {"flavor": {"description": "x"}}, minor=54, status=404)
    changed = api.ok("PUT", path, {"flavor": {"description": "x"}}, minor=61,
                     judge=schema(FlavorsClient, 61).create_update_get_flavor_details)
    assert changed["flavor"]["description"] == "x"
    api.ok("PUT", path, {"flavor": {"description": None}}, minor=55)
    assert api.get(path, minor=55)["flavor"]["description"] is None
    for bad in ({"name": "y"}, {}, {"description": "a\u0001"}, {"description": 5}):
        api.fails("PUT", path, {"flavor": bad}, minor=55, status=400)


def ids(api: Api, query: str, **more: Any) -> list[str]:
    return [one["id"] for one in api.get(f"/flavors/detail?{query}", **more)["flavors"]]


def test_lists_filter_sort_and_page(api: Api) -> None:
    # Sizes of their own, so that what other tests made is out of the way.
    made = [make(api, ram=90000 + n, disk=900 - n)["id"] for n in range(4)]
    assert ids(api, "minRam=90001&sort_key=memory_mb") == made[1:]
    assert ids(api, "minRam=90000&minDisk=899&sort_key=root_gb") == [made[1], made[0]]
    assert ids(api, "minRam=90000&sort_key=memory_mb&sort_dir=desc") == made[::-1]
    assert ids(api, "minRam=90000") == sorted(made)
    one = api.get("/flavors/detail?minRam=90000&limit=3&sort_key=memory_mb&sort_dir=asc")
    [link] = one["flavors_links"]
    assert link["rel"] == "next"
    assert link["href"].startswith(f"{api.cloud.url}/compute/v2.1/flavors/detail?")
    rest = api.cloud.client.get(link["href"], headers={"X-Auth-Token": "admin"}).json()
    assert [f["id"] for f in one["flavors"] + rest["flavors"]] == made
    assert "flavors_links" not in rest
    assert "/v2.1/flavors?" in api.get("/flavors?limit=1")["flavors_links"][0]["href"]
    for query in ("marker=nothing", "limit=x", "limit=-1", "sort_key=color", "sort_dir=up",
                  "minRam=x", "minDisk=x", "is_public=perhaps"):
        api.fails("GET", f"/flavors/detail?{query}", status=400)


def test_an_unknown_argument_is_let_pass_until_275(api: Api) -> None:
    api.get("/flavors?color=red", minor=74)
    api.fails("GET", "/flavors?color=red", minor=75, status=400, says="color")


def test_private_flavors_are_seen_by_those_who_may_use_them(api: Api) -> None:
    made = make(api, ram=80000, **{"os-flavor-access:is_public": False})
    path = f"/flavors/{made['id']}"
    project = CALLERS["member"].project_id
    assert ids(api, "minRam=80000") == ids(api, "minRam=80000&is_public=true")
    assert made["id"] in ids(api, "is_public=None")
    assert made["id"] in ids(api, "is_public=False")
    assert made["id"] not in ids(api, "is_public=None", by="member")
    api.fails("GET", path, by="member", status=404)
    api.fails("GET", f"{path}/os-extra_specs", by="member", status=404)
    added = api.ok("POST", f"{path}/action", {"addTenantAccess": {"tenant": project}},
                   judge=flavors_access.add_remove_list_flavor_access)
    assert added == {"flavor_access": [{"flavor_id": made["id"], "tenant_id": project}]}
    api.get(path, by="member")
    assert made["id"] in ids(api, "", by="reader")
    api.fails("GET", path, by="other", status=404)
    api.fails("POST", f"{path}/action", {"addTenantAccess": {"tenant": project}}, status=409)
    assert api.get(f"{path}/os-flavor-access",
                   judge=flavors_access.add_remove_list_flavor_access) == added
    api.fails("POST", f"{path}/action", {"addTenantAccess": {"tenant": "nobody"}}, status=400,
              says="not a valid project")
    gone = {"removeTenantAccess": {"tenant": project}}
    assert api.ok("POST", f"{path}/action", gone) == {"flavor_access": []}
    api.fails("POST", f"{path}/action", gone, status=404)
    api.fails("GET", path, by="member", status=404)


def test_public_flavors_have_no_access_list(api: Api) -> None:
    api.fails("GET", "/flavors/1/os-flavor-access", status=404)
    action = {"addTenantAccess": {"tenant": CALLERS["member"].project_id}}
    made = make(api)
    api.ok("POST", f"/flavors/{made['id']}/action", action, minor=6)
    api.fails("POST", f"/flavors/{make(api)['id']}/action", action, minor=7, status=409)
    for bad in ({}, {"addTenantAccess": {}}, {"paint": {}}, {**action, "removeTenantAccess": {
            "tenant": "x"}}, {"addTenantAccess": {"tenant": ""}}):
        api.fails("POST", f"/flavors/{made['id']}/action", bad, status=400)


def test_extra_specs_come_and_go(api: Api) -> None:
    path = f"/flavors/{make(api)['id']}/os-extra_specs"
    judge = flavors_extra_specs
    wish = {"extra_specs": {"a:b": "1", "c d.e-f_g": 2.5}}
    held = {"a:b": "1", "c d.e-f_g": "2.5"}
    assert api.ok("POST", path, wish, judge=judge.set_get_flavor_extra_specs) == {
        "extra_specs": held,
    }
    assert api.get(path, judge=judge.set_get_flavor_extra_specs) == {"extra_specs": held}
    one = judge.set_get_flavor_extra_specs_key
    assert api.get(f"{path}/a:b", judge=one) == {"a:b": "1"}
    assert api.ok("PUT", f"{path}/a:b", {"a:b": "9"}, judge=one) == {"a:b": "9"}
    api.fails("PUT", f"{path}/a:b", {"x": "9"}, status=400, says="mismatch")
    api.fails("PUT", f"{path}/a:b", {"a:b": "9", "x": "9"}, status=400)
    assert api.ok("DELETE", f"{path}/a:b") is None
    api.fails("DELETE", f"{path}/a:b", status=404, says="a:b")
    api.fails("GET", f"{path}/a:b", status=404)
    assert api.get(path, by="reader") == {"extra_specs": {"c d.e-f_g": "2.5"}}
    for bad in ({}, {"extra_specs": {"a/b": "1"}}, {"extra_specs": {"a": None}},
                {"extra_specs": {"a": "x" * 256}}, {"extra_specs": {"": "x"}},
                {"extra_specs": {"x" * 256: "1"}}, {"extra_specs": []}):
        api.fails("POST", path, bad, status=400)


@pytest.mark.parametrize(("key", "value"), [
    ("hw:numa_nodes", "0"), ("hw:numa_nodes", "x"), ("hw:cpu_policy", "sharrred"),
    ("hw:cpu_realtime", "perhaps"), ("hw:no_such", "1"), ("hw:mem_page_size", "smallish"),
    ("hw:numa_cpus.x", "1"), ("os:no_such", "1"), ("trait:STORAGE_DISK_SSD", "wanted"),
    ("trait1:no", "required"), ("resources:VGPU", "one"), ("quota:cpu_shares", "-1"),
    ("capabilities:", "x"), ("resources_A:lower", "1"),
])
def test_extra_specs_are_checked_from_286_on(api: Api, key: str, value: str) -> None:
    path = f"/flavors/{make(api)['id']}/os-extra_specs"
    body = {"extra_specs": {key: value}}
    api.ok("POST", path, body, minor=85)
    said = api.fails("POST", path, body, minor=86, status=400, says="Validation failed")
    assert key in said
    if "/" not in key:
        api.fails("PUT", f"{path}/{key}", {key: value}, minor=86, status=400)


def test_what_instances_can_come_to_is_at_least_what_they_have(api: Api) -> None:
    flavor = make(api)
    path = f"/flavors/{flavor['id']}/os-extra_specs"
    for key, own in (("max_vcpus", flavor["vcpus"]), ("max_memory_mib", flavor["ram"])):
        for bad in (own - 1, -1, "many", "1.5", "", "9" * 10):
            answer = api.fails("POST", path, {"extra_specs": {f"treadle:{key}": bad}}, status=400)
            assert f"at least {own}" in str(answer), answer
        for good in (own, own + 1):
            api.ok("POST", path, {"extra_specs": {f"treadle:{key}": good}}, minor=86)
    api.fails("POST", path, {"extra_specs": {"treadle:max_disk": "9"}}, status=400, minor=86)


def test_good_extra_specs_pass_in_286(api: Api) -> None:
    api.ok("POST", f"/flavors/{make(api)['id']}/os-extra_specs", {"extra_specs": {
        "hw:numa_nodes": 1, "hw:cpu_policy": "dedicated", "hw:numa_cpus.0": "0-3,^1",
        "hw:numa_mem.1": "512", "hw:mem_page_size": "1GB", "trait:CUSTOM_X": "required",
        "trait_A:HW_CPU_X86_AVX": "forbidden", "resources:VGPU": "1", "resources1:CUSTOM_Y": 2,
        "capabilities:cpu_info:vendor": "x", "aggregate_instance_extra_specs:ssd": "true",
        "quota:disk_read_iops_sec": "100", "own:thing": "any", "plain": "any",
        "hw:watchdog_action": "reset", "hw_rng:allowed": "True",
    }}, minor=86)


def test_only_administrators_change_flavors(api: Api) -> None:
    made = make(api)
    path = f"/flavors/{made['id']}"
    tenant = {"tenant": "x"}
    for by in ("member", "reader"):
        for method, place, body, minor in (
            ("POST", "/flavors", {"flavor": {}}, 1), ("DELETE", path, None, 1),
            ("PUT", path, {"flavor": {"description": "x"}}, 55),
            ("POST", f"{path}/action", {"addTenantAccess": tenant}, 1),
            ("POST", f"{path}/action", {"removeTenantAccess": tenant}, 1),
            ("GET", f"{path}/os-flavor-access", None, 1),
            ("POST", f"{path}/os-extra_specs", {"extra_specs": {}}, 1),
            ("PUT", f"{path}/os-extra_specs/a", {"a": "1"}, 1),
            ("DELETE", f"{path}/os-extra_specs/a", None, 1),
        ):
            api.fails(method, place, body, minor=minor, by=by, status=403)
    assert api.call("GET", "/flavors", by="nobody at all").status_code == 401
