"""Services, hypervisors, hosts, aggregates and zones in every microversion that changed them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from cloudkit import until
from computekit import Api, named, schema
from tempest.lib.api_schema.response.compute.v2_1 import availability_zone as zone_schema
from tempest.lib.api_schema.response.compute.v2_1 import hosts as host_schema
from tempest.lib.services.compute.aggregates_client import AggregatesClient
from tempest.lib.services.compute.hypervisor_client import HypervisorClient
from tempest.lib.services.compute.services_client import ServicesClient

from treadle.db.schema import instance
from treadle.image import store as images
from treadle.placement.views import snapshot

SERVICES = (1, 10, 11, 52, 53, 69, 75, 104)
HYPERVISORS = (1, 27, 28, 32, 33, 52, 53, 74, 75, 87, 88, 104)
COMPUTE = "nova-compute"


@pytest.fixture(scope="module", autouse=True)
def resident(api: Api) -> int:
    """A server on one of the hosts."""
    id = api.cloud.create("resident", tid=2)
    api.cloud.treadle.database.write(lambda conn: conn.execute(
        instance.update().where(instance.c.id == id).values(project_id="p1")
    ))
    return id


def home(api: Api) -> str:
    """The name of the host that has the server."""
    return next(f"h{n}" for n in (1, 2) if api.cloud.host(f"h{n}").guests)


def empty(api: Api) -> str:
    """The name of the other host."""
    return "h2" if home(api) == "h1" else "h1"


def steady(body: dict[str, Any]) -> dict[str, Any]:
    """What does not change from one look to the next."""
    return {key: value for key, value in body.items() if key not in ("updated_at", "uptime")}


def service(api: Api, name: str, minor: int = 96) -> dict[str, Any]:
    [found] = api.get(f"/os-services?host={name}", minor=minor)["services"]
    return dict(found)


# -- services


@pytest.mark.parametrize("minor", SERVICES)
def test_services_are_as_tempest_wants_them(api: Api, minor: int) -> None:
    judge = schema(ServicesClient, minor)
    found = api.get("/os-services", minor=minor, judge=judge.list_services)["services"]
    assert [one["host"] for one in found] == ["h1", "h2"]
    assert {(one["binary"], one["zone"], one["status"], one["state"], one["disabled_reason"])
            for one in found} == {(COMPUTE, "nova", "enabled", "up", None)}
    assert ("forced_down" in found[0]) is (minor >= 11)
    assert isinstance(found[0]["id"], str if minor >= 53 else int)
    assert steady(service(api, "h2", minor)) == steady(found[1])
    assert api.get("/os-services?host=h2&binary=xxx", minor=minor) == {"services": []}
    assert len(api.get(f"/os-services?binary={COMPUTE}", minor=minor)["services"]) == 2


def test_services_are_switched_by_name_below_253(api: Api) -> None:
    judge, named_h1 = schema(ServicesClient, 11), {"host": "h1", "binary": COMPUTE}
    put = "/os-services"
    assert api.ok("PUT", f"{put}/disable", named_h1, judge=judge.enable_disable_service) == {
        "service": {**named_h1, "status": "disabled"}
    }
    assert service(api, "h1")["status"] == "disabled"
    assert api.ok("PUT", f"{put}/disable-log-reason", {**named_h1, "disabled_reason": "dust"},
                  judge=judge.disable_log_reason)["service"]["disabled_reason"] == "dust"
    assert service(api, "h1")["disabled_reason"] == "dust"
    api.ok("PUT", f"{put}/enable", named_h1, judge=judge.enable_disable_service)
    found = service(api, "h1")
    assert (found["status"], found["disabled_reason"]) == ("enabled", None)
    down = {**named_h1, "forced_down": True}
    api.ok("PUT", f"{put}/force-down", down, minor=11, judge=judge.update_forced_down)
    assert service(api, "h1")["state"] == "down"
    api.ok("PUT", f"{put}/force-down", {**down, "forced_down": "false"}, minor=11)
    assert service(api, "h1")["state"] == "up"


NOBODY = "7d2b0c1a-5e0f-4c3a-9b1d-0a1b2c3d4e5f"
"""A UUID that nothing has. Names of tests are the same in every process."""


@pytest.mark.parametrize(("action", "body", "minor", "status"), [
    ("paint", {"host": "h1", "binary": COMPUTE}, 1, 404),
    ("force-down", {"host": "h1", "binary": COMPUTE}, 10, 404),
    ("force-down", {"host": "h1", "binary": COMPUTE}, 11, 400),
    ("disable-log-reason", {"host": "h1", "binary": COMPUTE}, 1, 400),
    ("disable", {"host": "nowhere", "binary": COMPUTE}, 1, 404),
    ("disable", {"host": "h1", "binary": "nova-scheduler"}, 1, 400),
    ("disable", {"host": "h1"}, 1, 400),
    ("disable", {"host": "h 1", "binary": COMPUTE}, 1, 400),
    ("disable", {"host": "h1", "binary": COMPUTE, "color": 1}, 1, 400),
    ("not-a-uuid", {"status": "enabled"}, 53, 400),
    (NOBODY, {"status": "enabled"}, 53, 404),
    (NOBODY, {"status": "enabled", "disabled_reason": "x"}, 53, 400),
    (NOBODY, {"status": "asleep"}, 53, 400),
    (NOBODY, {}, 53, 400),
    (NOBODY, {"host": "h1", "binary": COMPUTE}, 53, 400),
])
def test_bad_switches_are_refused(
    api: Api, action: str, body: dict[str, Any], minor: int, status: int
) -> None:
    api.fails("PUT", f"/os-services/{action}", body, minor=minor, status=status)
    assert service(api, "h1")["status"] == "enabled"


def test_services_are_switched_by_uuid_from_253_on(api: Api) -> None:
    path = f"/os-services/{service(api, 'h1')['id']}"
    judge = schema(ServicesClient, 53).update_service
    changed = api.ok("PUT", path, {
        "status": "disabled", "disabled_reason": "dust", "forced_down": True,
    }, minor=53, judge=judge)["service"]
    assert (changed["status"], changed["disabled_reason"], changed["state"],
            changed["forced_down"]) == ("disabled", "dust", "down", True)
    assert steady(changed) == steady(service(api, "h1"))
    changed = api.ok("PUT", path, {"status": "enabled", "forced_down": False}, minor=96,
                     judge=judge)["service"]
    assert (changed["status"], changed["disabled_reason"], changed["state"]) == (
        "enabled", None, "up"
    )


@pytest.mark.parametrize("change", [{"status": "disabled"}, {"forced_down": True}])
def test_what_is_switched_off_takes_no_instance(api: Api, change: dict[str, Any]) -> None:
    path = f"/os-services/{service(api, empty(api))['id']}"
    api.ok("PUT", path, change, minor=53)
    for _ in range(2):
        vmid = api.cloud.create("elsewhere")
        assert api.cloud.query(vmid)["pmid"] == api.cloud.query(1)["pmid"]
        api.cloud.ok(f"/vm/destroy?vmid={vmid}")
    api.ok("PUT", path, {"status": "enabled", "forced_down": False}, minor=53)


def test_a_host_with_servers_is_not_forgotten(api: Api) -> None:
    api.fails("DELETE", f"/os-services/{service(api, home(api))['id']}", minor=53, status=409)
    api.fails("DELETE", f"/os-services/{service(api, home(api), 1)['id']}", status=409)
    api.fails("DELETE", f"/os-services/{uuid4()}", minor=53, status=404)
    api.fails("DELETE", "/os-services/x", minor=53, status=400)
    api.fails("DELETE", "/os-services/99", status=404)
    api.fails("DELETE", "/os-services/x", status=400)


def test_an_empty_host_can_be_forgotten(api: Api) -> None:
    added = api.cloud.native("POST", "/hosts", json={"uri": "fake://h3", "name": "h3"})
    assert added.status_code == 201, added.text
    id = aggregate(api)["id"]
    until(lambda: service(api, "h3")["state"] == "up", "the host")
    api.ok("POST", f"/os-aggregates/{id}/action", {"add_host": {"host": "h3"}})
    assert api.call("DELETE", f"/os-services/{service(api, 'h3')['id']}",
                    minor=53).status_code == 204
    assert api.get("/os-services?host=h3")["services"] == []
    assert api.get(f"/os-aggregates/{id}")["aggregate"]["hosts"] == []


# -- hypervisors


@pytest.mark.parametrize("minor", HYPERVISORS)
def test_hypervisors_are_as_tempest_wants_them(api: Api, minor: int) -> None:
    judge = schema(HypervisorClient, minor)
    brief = api.get("/os-hypervisors", minor=minor, judge=judge.list_search_hypervisors)
    assert [set(one) for one in brief["hypervisors"]] == 2 * [
        {"id", "hypervisor_hostname", "state", "status"}
    ]
    whole = api.get("/os-hypervisors/detail", minor=minor,
                    judge=None if minor >= 88 else judge.list_hypervisors_detail)["hypervisors"]
    for one in whole:
        shown = api.get(f"/os-hypervisors/{one['id']}", minor=minor,
                        judge=None if minor >= 88 else judge.get_hypervisor)
        assert steady(shown["hypervisor"]) == steady(one)
        assert isinstance(one["id"], str if minor >= 53 else int)
        assert one["service"]["id"] == one["id"]
        assert (one["hypervisor_type"], one["hypervisor_version"]) == ("FAKE", 1_000_000)
        if minor < 28:
            assert json.loads(one["cpu_info"]) == {"arch": "x86_64"}
        elif minor < 88:
            assert one["cpu_info"] == {"arch": "x86_64"}
    if minor >= 88:
        assert set(whole[0]) == {
            "id", "hypervisor_hostname", "state", "status", "hypervisor_type", "service",
            "hypervisor_version", "host_ip", "uptime",
        }
        assert whole[0]["uptime"].startswith("up ")
        for gone in ("statistics", f"{whole[0]['id']}/uptime"):
            api.fails("GET", f"/os-hypervisors/{gone}", minor=minor, status=404)
        return
    full = next(one for one in whole if one["hypervisor_hostname"] == home(api))
    assert {name: full[name] for name in (
        "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "running_vms",
    )} == {"vcpus": 16, "vcpus_used": 2, "memory_mb": 65536, "memory_mb_used": 1536,
           "free_ram_mb": 64000, "running_vms": 1}
    assert full["local_gb_used"] + full["free_disk_gb"] == full["local_gb"] == 1024
    total = api.get("/os-hypervisors/statistics", minor=minor,
                    judge=judge.get_hypervisor_statistics)["hypervisor_statistics"]
    assert (total["count"], total["vcpus"], total["vcpus_used"], total["running_vms"]) == (
        2, 32, 2, 1
    )
    said = api.get(f"/os-hypervisors/{full['id']}/uptime", minor=minor,
                   judge=judge.get_hypervisor_uptime)["hypervisor"]
    assert said["uptime"].startswith("up ")
    assert " days, " in said["uptime"]


def test_hypervisors_are_searched_by_path_below_253(api: Api) -> None:
    judge = schema(HypervisorClient, 52)
    found = api.get("/os-hypervisors/H1/search", minor=52, judge=judge.list_search_hypervisors)
    assert [one["hypervisor_hostname"] for one in found["hypervisors"]] == ["h1"]
    found = api.get("/os-hypervisors/h/servers", minor=52, judge=judge.get_hypervisors_servers)
    servers = {one["hypervisor_hostname"]: one.get("servers") for one in found["hypervisors"]}
    assert servers[empty(api)] is None
    assert [one["name"] for one in servers[home(api)]] == ["resident"]
    for path in ("x/search", "x/servers"):
        api.fails("GET", f"/os-hypervisors/{path}", minor=52, status=404, says="No hypervisor")
        api.fails("GET", f"/os-hypervisors/{path}", minor=53, status=404)


@pytest.mark.parametrize("minor", [53, 75, 88])
def test_hypervisors_are_searched_by_query_from_253_on(api: Api, minor: int) -> None:
    judge = schema(HypervisorClient, minor)
    path = "/os-hypervisors?with_servers=true"
    for place in (path, path.replace("?", "/detail?")):
        found = api.get(place, minor=minor)["hypervisors"]
        servers = {one["hypervisor_hostname"]: one.get("servers") for one in found}
        assert [one["name"] for one in servers[home(api)]] == ["resident"]
        assert servers[empty(api)] == ([] if minor >= 75 else None)
    api.get(path, minor=minor, judge=judge.list_search_hypervisors)
    one = next(o for o in found if o["hypervisor_hostname"] == home(api))
    shown = api.get(f"/os-hypervisors/{one['id']}?with_servers=1", minor=minor)
    assert steady(shown["hypervisor"]) == steady(one)
    found = api.get("/os-hypervisors?hypervisor_hostname_pattern=h2", minor=minor)
    assert [one["hypervisor_hostname"] for one in found["hypervisors"]] == ["h2"]
    for query, status in (
        ("hypervisor_hostname_pattern=none", 404), ("hypervisor_hostname_pattern=a%20b", 400),
        ("hypervisor_hostname_pattern=h&limit=1", 400), ("with_servers=perhaps", 400),
        ("color=red", 400), ("limit=1&limit=2", 400),
    ):
        api.fails("GET", f"/os-hypervisors?{query}", minor=minor, status=status)


def test_hypervisors_come_in_pages_from_233_on(api: Api) -> None:
    assert len(api.get("/os-hypervisors?limit=1", minor=32)["hypervisors"]) == 2
    for minor in (33, 53):
        for path in ("/os-hypervisors", "/os-hypervisors/detail"):
            first = api.get(f"{path}?limit=1", minor=minor)
            [link] = first["hypervisors_links"]
            marker = first["hypervisors"][0]["id"]
            assert link["href"].endswith(f"/v2.1{path}?limit=1&marker={marker}")
            rest = api.get(f"{path}?limit=5&marker={marker}", minor=minor)
            assert [one["hypervisor_hostname"] for one in rest["hypervisors"]] == ["h2"]
            assert "hypervisors_links" not in rest
        api.fails("GET", "/os-hypervisors?marker=x", minor=minor, status=400)


def test_hypervisors_that_are_not_there(api: Api) -> None:
    api.fails("GET", "/os-hypervisors/h1", minor=52, status=404)
    api.fails("GET", "/os-hypervisors/99", minor=52, status=404)
    api.fails("GET", "/os-hypervisors/99/uptime", minor=52, status=404)
    api.fails("GET", "/os-hypervisors/h1", minor=53, status=400)
    api.fails("GET", f"/os-hypervisors/{uuid4()}", minor=53, status=404)


# -- hosts


def test_hosts_are_there_until_242(api: Api) -> None:
    found = api.get("/os-hosts", minor=42, judge=host_schema.list_hosts)["hosts"]
    assert found == [
        {"host_name": name, "service": "compute", "zone": "nova"} for name in ("h1", "h2")
    ]
    assert api.get("/os-hosts?zone=nova")["hosts"] == api.get("/os-hosts?zone=")["hosts"] == found
    assert api.get("/os-hosts?zone=xxx")["hosts"] == []
    rows = api.get(f"/os-hosts/{home(api)}", judge=host_schema.get_host_detail)["host"]
    assert [(r["resource"]["project"], r["resource"]["cpu"], r["resource"]["memory_mb"])
            for r in rows] == [
        ("(total)", 16, 65536), ("(used_now)", 2, 1024), ("(used_max)", 2, 1024), ("p1", 2, 1024),
    ]
    for path in ("/os-hosts", "/os-hosts/h1", "/os-hosts/h1/startup"):
        api.fails("GET", path, minor=43, status=404)
    for verb in ("", "/startup", "/shutdown", "/reboot"):
        api.fails("GET", f"/os-hosts/nowhere{verb}", status=404)
        if verb:
            assert api.cloud.client.get(
                f"/compute/v2.1/os-hosts/h1{verb}", headers={"X-Auth-Token": "admin"}
            ).status_code == 501
        api.fails("GET", f"/os-hosts/h1{verb}", by="member", status=403)


def test_hosts_are_switched_too(api: Api) -> None:
    assert api.ok("PUT", "/os-hosts/h1", {"status": "Disable"}, judge=host_schema.update_host) == {
        "host": "h1", "status": "disabled"
    }
    assert [one["host_name"] for one in api.get("/os-hosts")["hosts"]] == ["h2"]
    api.ok("PUT", "/os-hosts/h1", {"status": "enable"})
    api.fails("PUT", "/os-hosts/nowhere", {"status": "enable", "maintenance_mode": "enable"},
              status=404)
    for bad in ({}, {"status": "x"}, {"status": "enable", "maintenance_mode": "x"}):
        api.fails("PUT", "/os-hosts/h1", bad, status=400)


# -- aggregates and zones


@pytest.fixture(autouse=True)
def no_aggregates(api: Api) -> Iterator[None]:
    yield
    for one in api.get("/os-aggregates")["aggregates"]:
        for name in one["hosts"]:
            api.call("POST", f"/os-aggregates/{one['id']}/action", {"remove_host": {"host": name}})
        if one["hosts"] and home(api) in one["hosts"] and one["availability_zone"]:
            raise AssertionError("a full host was left in a zone")
        api.ok("DELETE", f"/os-aggregates/{one['id']}")


def aggregate(api: Api, minor: int = 1, **said: Any) -> dict[str, Any]:
    made: dict[str, Any] = api.ok(
        "POST", "/os-aggregates", {"aggregate": {"name": named("aggregate"), **said}}, minor=minor,
        judge=schema(AggregatesClient, minor).create_aggregate,
    )["aggregate"]
    return made


def act(api: Api, id: int, action: str, said: Any, **more: Any) -> Any:
    return api.ok("POST", f"/os-aggregates/{id}/action", {action: said}, **more)["aggregate"]


@pytest.mark.parametrize("minor", [1, 40, 41, 81, 104])
def test_aggregates_are_as_tempest_wants_them(api: Api, minor: int) -> None:
    judge = schema(AggregatesClient, minor)
    made = aggregate(api, minor)
    path = f"/os-aggregates/{made['id']}"
    assert ("uuid" in made) is (minor >= 41)
    assert api.get(path, minor=minor, judge=judge.get_aggregate) == {
        "aggregate": {**made, "hosts": [], "metadata": {}}
    }
    name = empty(api)
    added = act(api, made["id"], "add_host", {"host": name}, minor=minor,
                judge=judge.aggregate_add_remove_host)
    assert added["hosts"] == [name]
    said = act(api, made["id"], "set_metadata", {"metadata": {"ssd": "true", "gone": None}},
               minor=minor, judge=judge.aggregate_set_metadata)
    assert said["metadata"] == {"ssd": "true"}
    changed = api.ok("PUT", path, {"aggregate": {"name": f"{made['name']}-b",
                                                 "availability_zone": "z1"}}, minor=minor,
                     judge=judge.update_aggregate)["aggregate"]
    assert changed["metadata"] == {"ssd": "true", "availability_zone": "z1"}
    assert changed["availability_zone"] == "z1"
    assert changed in api.get("/os-aggregates", minor=minor,
                              judge=judge.list_aggregates)["aggregates"]
    assert service(api, name)["zone"] == "z1"
    api.fails("DELETE", path, minor=minor, status=400, says="not empty")
    act(api, made["id"], "remove_host", {"host": name}, minor=minor)
    assert api.ok("DELETE", path, minor=minor) is None
    for method in ("GET", "DELETE"):
        api.fails(method, path, minor=minor, status=404)


def test_aggregates_refuse_what_does_not_fit(api: Api) -> None:
    made, other = aggregate(api), aggregate(api, availability_zone="z2")
    name = empty(api)
    path = f"/os-aggregates/{made['id']}"

    def refused(action: str, said: Any, status: int, id: int = made["id"]) -> None:
        api.fails("POST", f"/os-aggregates/{id}/action", {action: said}, status=status)

    api.fails("POST", "/os-aggregates", {"aggregate": {"name": made["name"]}}, status=409)
    api.fails("PUT", f"/os-aggregates/{other['id']}", {"aggregate": {"name": made["name"]}},
              status=409)
    for bad in ({"name": ""}, {"name": "a" * 256}, {}, {"name": "x", "availability_zone": ""},
                {"name": "x", "availability_zone": "a:b"}, {"name": "x", "color": 1}):
        api.fails("POST", "/os-aggregates", {"aggregate": bad}, status=400)
    for bad in ({}, {"color": 1}):
        api.fails("PUT", path, {"aggregate": bad}, status=400)
    api.fails("GET", "/os-aggregates/x", status=400)
    api.fails("GET", "/os-aggregates/-1", status=404)
    api.fails("DELETE", "/os-aggregates/-1", status=404)
    refused("add_host", {"host": "nowhere"}, 404)
    refused("add_host", {"host": name}, 404, 9999)
    refused("remove_host", {"host": "nowhere"}, 404)
    refused("remove_host", {"host": name}, 404)
    refused("paint", {}, 400)
    refused("set_metadata", {"metadata": {"availability_zone": ""}}, 400)
    refused("set_metadata", {"metadata": {"a/b": "x"}}, 400)
    act(api, made["id"], "add_host", {"host": name})
    refused("add_host", {"host": name}, 409)
    # A host is in one zone at most.
    act(api, made["id"], "set_metadata", {"metadata": {"availability_zone": "z1"}})
    refused("add_host", {"host": name}, 409, other["id"])
    act(api, made["id"], "set_metadata", {"metadata": {"availability_zone": None}})
    act(api, other["id"], "add_host", {"host": name})
    refused("set_metadata", {"metadata": {"availability_zone": "z3"}}, 400)
    # And does not leave it under its servers.
    full = home(api)
    refused("add_host", {"host": full}, 409, other["id"])
    act(api, made["id"], "add_host", {"host": full})
    zoned = {"aggregate": {"availability_zone": "z9"}}
    api.fails("PUT", path, zoned, status=400, says="already in availability zone(s) z2")
    act(api, made["id"], "remove_host", {"host": name})
    api.fails("PUT", path, zoned, status=400, says="instances")
    api.ok("PUT", path, {"aggregate": {"name": named("renamed")}})


def test_zones_are_what_aggregates_make(api: Api) -> None:
    judge = zone_schema
    plain = {"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}
    assert api.get("/os-availability-zone", by="reader",
                   judge=judge.list_availability_zone_list) == {"availabilityZoneInfo": [plain]}
    api.fails("GET", "/os-availability-zone/detail", by="member", status=403)
    made = aggregate(api, availability_zone="a-zone")
    name = empty(api)
    act(api, made["id"], "add_host", {"host": name})
    whole = api.get("/os-availability-zone/detail",
                    judge=judge.list_availability_zone_list_detail)["availabilityZoneInfo"]
    assert [(one["zoneName"], list(one["hosts"])) for one in whole] == [
        ("a-zone", [name]), ("nova", [home(api)]),
    ]
    [(binary, state)] = whole[0]["hosts"][name].items()
    assert (binary, state["available"], state["active"]) == (COMPUTE, True, True)
    path = f"/os-services/{service(api, name)['id']}"
    api.ok("PUT", path, {"status": "disabled"}, minor=53)
    found = api.get("/os-availability-zone")["availabilityZoneInfo"]
    assert found[1] == {"zoneName": "a-zone", "zoneState": {"available": False}, "hosts": None}
    api.ok("PUT", path, {"status": "enabled"}, minor=53)


def test_the_scheduler_is_told_of_zones_and_properties(api: Api) -> None:
    made = aggregate(api, availability_zone="a-zone")
    act(api, made["id"], "add_host", {"host": empty(api)})
    act(api, made["id"], "set_metadata", {"metadata": {"ssd": "true"}})
    views = {view.name: view for view in api.cloud.treadle.database.read(snapshot)}
    assert (views[empty(api)].zone, views[empty(api)].properties) == (
        "a-zone", (("ssd", "true"),)
    )
    assert (views[home(api)].zone, views[home(api)].properties) == ("nova", ())


def test_images_are_brought_to_the_hosts_of_an_aggregate(api: Api) -> None:
    made = aggregate(api)
    name = empty(api)
    act(api, made["id"], "add_host", {"host": name})
    assert not api.cloud.host(name).images
    path = f"/os-aggregates/{made['id']}/images"
    [image] = api.cloud.treadle.database.read(images.list_images)
    body = {"cache": [{"id": image.uuid}]}
    api.fails("POST", path, body, minor=80, status=404)
    for bad in ({"cache": []}, {"cache": [{"id": "x"}]}, {"cache": [{"id": str(uuid4())}]},
                {"cache": body["cache"] * 2}, {}):
        api.fails("POST", path, bad, minor=81, status=400)
    api.fails("POST", "/os-aggregates/9999/images", body, minor=81, status=404)
    answer = api.call("POST", path, body, minor=81)
    assert (answer.status_code, answer.content) == (202, b"")
    until(lambda: api.cloud.host(name).images, "the image")


def test_only_administrators_see_and_change_hosts(api: Api) -> None:
    for method, path, body, minor in (
        ("GET", "/os-services", None, 1), ("PUT", "/os-services/enable", {}, 1),
        ("DELETE", "/os-services/1", None, 1), ("GET", "/os-hypervisors", None, 1),
        ("GET", "/os-hypervisors/detail", None, 1), ("GET", "/os-hypervisors/1", None, 1),
        ("GET", "/os-hypervisors/statistics", None, 1), ("GET", "/os-hosts", None, 1),
        ("GET", "/os-hypervisors/1/uptime", None, 1), ("PUT", "/os-hosts/h1", {}, 1),
        ("GET", "/os-aggregates", None, 1), ("POST", "/os-aggregates", {}, 1),
        ("GET", "/os-aggregates/1", None, 1), ("PUT", "/os-aggregates/1", {}, 1),
        ("DELETE", "/os-aggregates/1", None, 1), ("POST", "/os-aggregates/1/action", {}, 1),
        ("POST", "/os-aggregates/1/images", {}, 81),
    ):
        api.fails(method, path, body, minor=minor, by="member", status=403)
