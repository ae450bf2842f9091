"""Servers in every microversion that changed them; tempest's schemas judge the answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from cloudkit import until
from computekit import CALLERS, Api, named, schema
from tempest.lib.services.compute.servers_client import ServersClient

from treadle.compute import quota

MINORS = (1, 3, 6, 9, 16, 19, 26, 37, 45, 47, 52, 54, 57, 63, 71, 73, 74, 75, 79, 83, 90, 94, 96,
          98, 100, 104)


def ask(api: Api, image_id: str, minor: int = 1, by: str = "member", **changes: Any) -> Any:
    wish: dict[str, Any] = {"name": named("server"), "imageRef": image_id, "flavorRef": "1"}
    if minor >= 37:
        wish["networks"] = "auto"
    judge = schema(ServersClient, 1).create_server_with_admin_pass
    return api.ok("POST", "/servers", {"server": {**wish, **changes}}, status=202, minor=minor,
                  by=by, judge=judge)["server"]


def become(api: Api, id: str, status: str, by: str = "member") -> Any:
    def look() -> Any:
        shown = api.get(f"/servers/{id}", by=by)["server"]
        settled = shown["OS-EXT-STS:task_state"] is None
        return shown if shown["status"] == status and settled else None

    return until(look, f"{id} {status}")


def gone(api: Api, id: str, by: str = "member") -> None:
    until(lambda: api.call("GET", f"/servers/{id}", by=by).status_code == 404, "the end")


@pytest.fixture(scope="module")
def server(api: Api, image_id: str) -> Iterator[str]:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    yield id
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("by", ["member", "admin"])
def test_answers_are_as_tempest_wants_them(
    api: Api, server: str, minor: int, by: str
) -> None:
    judge = schema(ServersClient, minor)
    shown = api.get(f"/servers/{server}", minor=minor, by=by, judge=judge.get_server)["server"]
    path = "/servers?all_tenants=1" if by == "admin" else "/servers"
    api.get(path, minor=minor, by=by, judge=judge.list_servers)
    detail = path.replace("/servers", "/servers/detail")
    listed = api.get(detail, minor=minor, by=by, judge=judge.list_servers_detail)["servers"]
    api.get(f"{detail}{'&' if '?' in path else '?'}limit=1", minor=minor, by=by,
            judge=judge.list_servers_detail)
    mine = next(one for one in listed if one["id"] == server)
    assert mine.items() <= shown.items()
    assert ("server_groups" in shown) is (minor >= 71)
    assert ("OS-EXT-SRV-ATTR:host" in shown) is (by == "admin")
    assert shown["flavor"].get("original_name", "type-1") == "type-1"
    updated = api.ok("PUT", f"/servers/{server}", {"server": {"name": "again"}}, minor=minor,
                     by=by, judge=judge.update_server)["server"]
    assert updated["name"] == "again"
    assert ("OS-EXT-STS:vm_state" in updated) is (minor >= 75)
    api.get(f"/servers/{server}/os-instance-actions", minor=minor, by=by,
            judge=judge.list_instance_actions)
    request = api.get(f"/servers/{server}/os-instance-actions")["instanceActions"][0]
    api.get(f"/servers/{server}/os-instance-actions/{request['request_id']}", minor=minor, by=by,
            judge=judge.show_instance_action)


def test_a_server_is_what_was_asked_for(api: Api, image_id: str) -> None:
    made = ask(
        api, image_id, 94, metadata={"a": "b"}, tags=["x", "y"], description="words",
        accessIPv4="1.2.3.4", accessIPv6="::BABE:220.12.22.2", config_drive="yes",
        hostname="node.example", user_data=base64.b64encode(b"#!/bin/sh\n").decode(),
        **{"OS-DCF:diskConfig": "AUTO"},
    )
    assert made["OS-DCF:diskConfig"] == "AUTO"
    shown = become(api, made["id"], "ACTIVE")
    shown = api.get(f"/servers/{made['id']}", minor=96)["server"]
    assert shown["tenant_id"] == CALLERS["member"].project_id
    assert shown["user_id"] == CALLERS["member"].user_id
    assert shown["metadata"] == {"a": "b"}
    assert shown["tags"] == ["x", "y"]
    assert shown["description"] == "words"
    assert (shown["accessIPv4"], shown["accessIPv6"]) == ("1.2.3.4", "::babe:dc0c:1602")
    assert shown["config_drive"] == "True"
    assert shown["OS-EXT-SRV-ATTR:hostname"] == "node.example"
    assert base64.b64decode(shown["OS-EXT-SRV-ATTR:user_data"]) == b"#!/bin/sh\n"
    assert shown["OS-EXT-SRV-ATTR:host"] in ("h1", "h2")
    assert shown["OS-EXT-STS:power_state"] == 1
    assert shown["image"]["id"] == image_id
    [(network, [address])] = shown["addresses"].items()
    assert network == "default"
    assert address["OS-EXT-IPS:type"] == "fixed"
    ips = api.get(f"/servers/{made['id']}/ips")["addresses"]
    assert ips == {"default": [{"version": 4, "addr": address["addr"]}]}
    api.ok("DELETE", f"/servers/{made['id']}", status=204, by="member")
    gone(api, made["id"])


def test_what_is_another_projects_is_not_there(api: Api, server: str) -> None:
    for method, path, body in (
        ("GET", "", None), ("DELETE", "", None), ("PUT", "", {"server": {"name": "x"}}),
        ("POST", "/action", {"pause": None}), ("GET", "/metadata", None), ("GET", "/ips", None),
        ("PUT", "/metadata", {"metadata": {}}), ("GET", "/os-instance-actions", None),
    ):
        api.fails(method, f"/servers/{server}{path}", body, status=404, by="other",
                  says="could not be found")
    assert api.get("/servers", by="other")["servers"] == []
    assert api.get("/servers/detail", by="other")["servers"] == []
    api.fails("GET", "/servers?all_tenants=1", status=403, by="other")


def test_a_reader_reads_and_changes_nothing(api: Api, server: str, image_id: str) -> None:
    api.get(f"/servers/{server}", by="reader")
    api.fails("DELETE", f"/servers/{server}", status=403, by="reader")
    api.fails("POST", f"/servers/{server}/action", {"pause": None}, status=403, by="reader")
    body = {"server": {"name": "x", "imageRef": image_id, "flavorRef": "1"}}
    api.fails("POST", "/servers", body, status=403, by="reader")


@pytest.mark.parametrize(("changes", "says"), [
    ({"name": ""}, "name"), ({"name": "a" * 256}, "name"), ({"name": " "}, "name"),
    ({"flavorRef": "77"}, "Flavor 77 could not be found"),
    ({"imageRef": "11111111-2222-4333-8444-555555555555"}, "could not be found"),
    ({"imageRef": "not-a-uuid"}, "imageRef"), ({"imageRef": ""}, "imageRef"),
    ({"key_name": "none"}, "Invalid key_name"), ({"metadata": {"a": "b" * 256}}, "metadata"),
    ({"metadata": {"": "b"}}, "metadata"), ({"unknown": 1}, "unknown"),
    ({"accessIPv4": "1.1.1"}, "accessIPv4"), ({"accessIPv6": "x::"}, "accessIPv6"),
    ({"availability_zone": "moon"}, "zone"), ({"user_data": "%%"}, "user_data"),
    ({"networks": [{"uuid": "11111111-2222-4333-8444-555555555555"}]}, "network"),
    ({"min_count": 3, "max_count": 2}, "min_count"), ({"min_count": 0}, "min_count"),
    ({"security_groups": [{"name": "web"}]}, "security_groups"),
    ({"block_device_mapping_v2": [{"source_type": "volume", "uuid": "x",
                                   "destination_type": "volume"}]}, "volumes"),
    ({"OS-DCF:diskConfig": "auto"}, "diskConfig"), ({"config_drive": "maybe"}, "config_drive"),
])
def test_a_wish_that_cannot_be_is_refused_with_its_reason(
    api: Api, image_id: str, changes: dict[str, Any], says: str
) -> None:
    body = {"server": {"name": "x", "imageRef": image_id, "flavorRef": "1", **changes}}
    api.fails("POST", "/servers", body, status=400, by="member", says=says)
    assert api.get("/servers?name=x&limit=5", by="member")["servers"] == []


def test_the_block_device_that_the_command_line_sends_beside_the_image(
    api: Api, image_id: str
) -> None:
    device = {"uuid": image_id, "source_type": "image", "destination_type": "local",
              "boot_index": 0, "delete_on_termination": True}
    made = ask(api, image_id, 96, block_device_mapping_v2=[device])
    become(api, made["id"], "ACTIVE")
    api.ok("DELETE", f"/servers/{made['id']}", status=204, by="member")
    gone(api, made["id"])


def test_life_by_actions(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    for body, status in (
        ({"pause": None}, "PAUSED"), ({"unpause": None}, "ACTIVE"),
        ({"suspend": None}, "SUSPENDED"), ({"resume": None}, "ACTIVE"),
        ({"os-stop": None}, "SHUTOFF"), ({"os-start": None}, "ACTIVE"),
        ({"reboot": {"type": "HARD"}}, "ACTIVE"), ({"reboot": {"type": "SOFT"}}, "ACTIVE"),
    ):
        assert api.call("POST", path, body, by="member").content == b""
        become(api, id, status)
    api.fails("POST", path, {"os-start": None}, status=409, by="member",
              says=f"Cannot 'start' instance {id} while it is in vm_state active")
    api.fails("POST", path, {"dance": None}, status=400, by="member", says="no such action")
    api.fails("POST", path, {"reboot": {"type": "SOME"}}, status=400, by="member", says="type")
    api.fails("POST", path, {"pause": None, "os-stop": None}, status=400, by="member")
    api.ok("POST", path, {"lock": {"locked_reason": "mine"}}, status=202, by="member", minor=73)
    shown = api.get(f"/servers/{id}", by="member", minor=73)["server"]
    assert (shown["locked"], shown["locked_reason"]) == (True, "mine")
    api.ok("POST", path, {"unlock": None}, status=202, by="member")
    log = api.get(f"/servers/{id}/os-instance-actions", by="member")["instanceActions"]
    assert [one["action"] for one in reversed(log)] == [
        "create", "pause", "unpause", "suspend", "resume", "stop", "start", "reboot", "reboot",
        "lock", "unlock",
    ]
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
    later = api.get(f"/servers/{id}/os-instance-actions", by="member", minor=21)
    assert later["instanceActions"][0]["action"] == "delete"


def test_lists_are_filtered_sorted_and_paged(api: Api, image_id: str) -> None:
    made = [
        ask(api, image_id, 52, by="other", name=f"list-{word}-{n}", tags=["all", word],
            metadata={"n": str(n)})["id"]
        for n, word in enumerate(("red", "green", "blue", "red"))
    ]
    for id in made:
        become(api, id, "ACTIVE", by="other")

    def names(query: str, minor: int = 26) -> list[str]:
        found = api.get(f"/servers?{query}", by="other", minor=minor)["servers"]
        return [one["name"] for one in found]

    assert names("") == ["list-red-3", "list-blue-2", "list-green-1", "list-red-0"]
    assert names("name=red") == ["list-red-3", "list-red-0"]
    assert names(r"name=^list-.*-[0-1]$") == ["list-green-1", "list-red-0"]
    assert names("tags=all,red") == ["list-red-3", "list-red-0"]
    assert names("tags-any=green,blue") == ["list-blue-2", "list-green-1"]
    assert names("not-tags=all,red") == ["list-blue-2", "list-green-1"]
    assert names("not-tags-any=red,blue") == ["list-green-1"]
    assert names("status=active&limit=2") == ["list-red-3", "list-blue-2"]
    assert names("status=shutoff") == names("status=nonsense") == []
    assert names("status=active&name=red") == ["list-red-3", "list-red-0"]
    assert names("flavor=1&image=" + image_id) == names("")
    assert names("flavor=2") == []
    assert names("sort_key=display_name&sort_dir=asc") == sorted(names(""))
    assert names("changes-since=2001-01-01T00:00:00Z") == names("")
    assert names("changes-since=2101-01-01T00:00:00Z") == []
    page = api.get("/servers/detail?limit=3", by="other")
    assert [one["id"] for one in page["servers"]] == made[:0:-1]
    [link] = page["servers_links"]
    assert link["rel"] == "next"
    rest = api.get(link["href"].partition("/compute/v2.1")[2], by="other")
    assert [one["id"] for one in rest["servers"]] == made[:1]
    assert "servers_links" not in rest
    for query in ("sort_key=display_name", "sort_key=key_name", "sort_key=host&sort_dir=asc"):
        walked, marker = [], ""
        while True:
            part = api.get(f"/servers?limit=1&{query}{marker}", by="other")["servers"]
            if not part:
                break
            walked.append(part[0]["id"])
            marker = f"&marker={part[0]['id']}"
        assert sorted(walked) == sorted(made)
    api.fails("GET", "/servers?limit=-1", status=400, by="other", says="limit")
    api.fails("GET", "/servers?marker=nothing", status=400, by="other", says="marker")
    api.fails("GET", "/servers?sort_key=secret", status=400, by="other", says="sort_key")
    api.fails("GET", "/servers?changes-since=soon", status=400, by="other")
    api.get("/servers?colour=red", by="other")
    api.fails("GET", "/servers?colour=red", status=400, by="other", minor=75)
    api.fails("GET", "/servers?status=deleted", status=403, by="other")
    for id in made:
        api.ok("DELETE", f"/servers/{id}", status=204, by="other")
    for id in made:
        gone(api, id, by="other")
    deleted = api.get("/servers?deleted=1&all_tenants=1")["servers"]
    assert set(made) <= {one["id"] for one in deleted}


def test_a_page_that_is_kept_shows_every_change_at_once(api: Api, image_id: str) -> None:
    def page(by: str = "other", minor: int = 96, query: str = "") -> dict[str, Any]:
        found = api.get(f"/servers/detail?limit=50{query}", by=by, minor=minor)["servers"]
        return {one["id"]: one for one in found}

    assert page() == page() == {}
    id = ask(api, image_id, 96, by="other")["id"]
    assert set(page()) == set(page()) == {id}
    become(api, id, "ACTIVE", by="other")
    assert page()[id]["status"] == "ACTIVE"
    assert id not in page(by="member")
    assert id not in page(query="&status=shutoff")
    assert "description" not in page(minor=1)[id]
    api.ok("PUT", f"/servers/{id}", {"server": {"name": "renamed"}}, by="other")
    assert page()[id]["name"] == "renamed"
    api.ok("PUT", f"/servers/{id}/tags", {"tags": ["t"]}, by="other", minor=26)
    assert page()[id]["tags"] == ["t"]
    api.ok("PUT", f"/servers/{id}/metadata", {"metadata": {"k": "v"}}, by="other")
    assert page()[id]["metadata"] == {"k": "v"}
    api.ok("DELETE", f"/servers/{id}", status=204, by="other")
    gone(api, id, by="other")
    assert page() == {}


def test_metadata(api: Api, server: str) -> None:
    path = f"/servers/{server}/metadata"
    judge = schema(ServersClient, 1)

    def put(suffix: str, body: Any, **more: Any) -> Any:
        return api.ok("PUT", f"{path}{suffix}", body, by="member", **more)

    put("", {"metadata": {"a": "1", "b": "2"}}, judge=judge.set_server_metadata)
    api.ok("POST", path, {"metadata": {"b": "3", "c": "ü"}}, by="member",
           judge=judge.update_server_metadata)
    want = {"metadata": {"a": "1", "b": "3", "c": "ü"}}
    assert api.get(path, by="member", judge=judge.list_server_metadata) == want
    assert api.get(f"/servers/{server}", by="member")["server"]["metadata"] == want["metadata"]
    put("/a", {"meta": {"a": "9"}}, judge=judge.set_show_server_metadata_item)
    assert api.get(f"{path}/a", by="member") == {"meta": {"a": "9"}}
    api.fails("PUT", f"{path}/a", {"meta": {"b": "9"}}, status=400, by="member")
    api.ok("DELETE", f"{path}/a", status=204, by="member")
    api.fails("DELETE", f"{path}/a", status=404, by="member")
    api.fails("GET", f"{path}/a", status=404, by="member")
    many = {f"k{n}": "v" for n in range(129)}
    api.fails("PUT", path, {"metadata": many}, status=403, by="member", says="metadata items")


def test_tags(api: Api, server: str) -> None:
    path = f"/servers/{server}/tags"
    api.fails("GET", path, status=404, by="member", minor=25)
    api.ok("PUT", path, {"tags": ["a", "b"]}, by="member", minor=26)
    assert api.call("PUT", f"{path}/c", by="member", minor=26).status_code == 201
    assert api.call("PUT", f"{path}/c", by="member", minor=26).status_code == 204
    assert api.get(path, by="member", minor=26) == {"tags": ["a", "b", "c"]}
    assert api.get(f"/servers/{server}", by="member", minor=26)["server"]["tags"] == [
        "a", "b", "c"
    ]
    api.ok("GET", f"{path}/c", status=204, by="member", minor=26)
    api.ok("DELETE", f"{path}/c", status=204, by="member", minor=26)
    api.fails("DELETE", f"{path}/c", status=404, by="member", minor=26)
    api.fails("PUT", f"{path}/{'x' * 61}", status=400, by="member", minor=26)
    api.ok("DELETE", path, status=204, by="member", minor=26)
    assert api.get(path, by="member", minor=26) == {"tags": []}


def test_a_server_without_a_network(api: Api, image_id: str) -> None:
    made = ask(api, image_id, 37, networks="none")
    assert become(api, made["id"], "ACTIVE")["addresses"] == {}
    api.ok("DELETE", f"/servers/{made['id']}", status=204, by="member")
    gone(api, made["id"])


def test_what_fits_nowhere_is_an_error_that_says_why(api: Api, image_id: str) -> None:
    api.ok("POST", "/flavors", {"flavor": {"id": "huge", "name": "huge", "vcpus": 8,
                                           "ram": 4_000_000, "disk": 1}})
    project = str(CALLERS["member"].project_id)
    api.cloud.treadle.database.write(lambda conn: quota.set_limits(conn, project, {"ram": -1}))
    made = ask(api, image_id, flavorRef="huge")
    shown = become(api, made["id"], "ERROR")
    assert shown["fault"]["code"] == 500
    assert shown["fault"]["message"] == "no host can take it: 2 hosts lack memory"
    told = api.get(f"/servers/{made['id']}", by="admin")["server"]["fault"]["message"]
    assert "h1: needs 4000000 MiB memory" in told
    assert "h1" not in shown["fault"]["message"]
    api.ok("DELETE", f"/servers/{made['id']}", status=204, by="member")
    gone(api, made["id"])


def test_several_at_once_are_no_more_than_the_quota_lets(api: Api, image_id: str) -> None:
    body = {"server": {"name": "many", "imageRef": image_id, "flavorRef": "1", "min_count": 2,
                       "max_count": 50, "return_reservation_id": True}}
    made = api.ok("POST", "/servers", body, status=202, by="other")
    part = made["reservation_id"]
    found = api.get(f"/servers/detail?reservation_id={part}", by="other")["servers"]
    assert sorted(one["name"] for one in found) == sorted(f"many-{n}" for n in range(1, 11))
    api.fails("POST", "/servers", body, status=403, by="other", says="Quota exceeded")
    for one in found:
        api.ok("DELETE", f"/servers/{one['id']}", status=204, by="other")
    for one in found:
        gone(api, one["id"], by="other")


def test_rescue_and_rebuild(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    judge = schema(ServersClient, 1)
    told = api.ok("POST", path, {"rescue": {"adminPass": "secret"}}, by="member",
                  judge=judge.rescue_server_with_admin_pass)
    assert told == {"adminPass": "secret"}
    become(api, id, "RESCUE")
    api.fails("POST", path, {"pause": None}, status=409, by="member",
              says=f"Cannot 'pause' instance {id} while it is in vm_state rescued")
    api.ok("POST", path, {"unrescue": None}, status=202, by="member")
    become(api, id, "ACTIVE")
    for minor in (1, 54, 57, 75, 96):
        body = {"rebuild": {"imageRef": image_id, "name": f"new-{minor}", "metadata": {"a": "b"}}}
        made = api.ok("POST", path, body, status=202, by="member", minor=minor,
                      judge=schema(ServersClient, minor).rebuild_server_with_admin_pass)["server"]
        assert (made["name"], made["metadata"]) == (f"new-{minor}", {"a": "b"})
        assert made["status"] == "REBUILD"
        become(api, id, "ACTIVE")
    api.fails("POST", path, {"rebuild": {"imageRef": id}}, status=400, by="member")
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_resize(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    api.fails("POST", path, {"resize": {"flavorRef": "1"}}, status=400, by="member")
    api.fails("POST", path, {"resize": {"flavorRef": "none"}}, status=400, by="member")
    api.fails("POST", path, {"confirmResize": None}, status=409, by="member")
    for flavor, end, after in (("2", "revertResize", 512), ("3", "confirmResize", 2048)):
        api.ok("POST", path, {"resize": {"flavorRef": flavor}}, status=202, by="member")
        become(api, id, "VERIFY_RESIZE")
        api.ok("POST", path, {end: None}, status=204 if end == "confirmResize" else 202,
               by="member")
        become(api, id, "ACTIVE")
        shown = api.get(f"/servers/{id}", by="member", minor=47)["server"]
        assert shown["flavor"]["ram"] == after
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_a_resize_within_its_maximum_starts_nothing_anew(api: Api, image_id: str) -> None:
    refs = []
    for vcpus, ram in ((1, 512), (2, 1024)):
        flavor = {"name": named("growing"), "vcpus": vcpus, "ram": ram, "disk": 2}
        refs.append(api.ok("POST", "/flavors", {"flavor": flavor})["flavor"]["id"])
        api.ok("POST", f"/flavors/{refs[-1]}/os-extra_specs", {"extra_specs": {
            "treadle:max_vcpus": "4", "treadle:max_memory_mib": "4096",
        }})
    id = ask(api, image_id, flavorRef=refs[0])["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"

    def events() -> list[str]:
        log = f"/servers/{id}/os-instance-actions"
        done = api.get(log, by="member", minor=51)["instanceActions"][0]
        shown = api.get(f"{log}/{done['request_id']}", by="member", minor=51)["instanceAction"]
        return sorted(one["event"] for one in shown["events"])

    for end, status, then in (("revertResize", 202, 512), ("confirmResize", 204, 1024)):
        api.ok("POST", path, {"resize": {"flavorRef": refs[1]}}, status=202, by="member")
        become(api, id, "VERIFY_RESIZE")
        assert events() == ["compute_grow"]
        assert api.get(f"/servers/{id}", by="member", minor=47)["server"]["flavor"]["vcpus"] == 2
        api.ok("POST", path, {end: None}, status=status, by="member")
        become(api, id, "ACTIVE")
        assert ("compute_start" in events()) is (end == "revertResize")
        shown = api.get(f"/servers/{id}", by="member", minor=47)["server"]
        assert shown["flavor"]["ram"] == then
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_an_image_of_it_and_shelving(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    made = api.ok("POST", path, {"createImage": {"name": "snap", "metadata": {"k": "v"}}},
                  status=202, by="member", minor=45)
    old = api.call("POST", path, {"createImage": {"name": "snap2"}}, by="member")
    if old.status_code == 409:
        become(api, id, "ACTIVE")
        old = api.call("POST", path, {"createImage": {"name": "snap2"}}, by="member")
    assert old.content == b""
    assert "/images/" in old.headers["Location"]
    become(api, id, "ACTIVE")
    images = api.get("/images/detail", by="member")["images"]
    snap = next(one for one in images if one["id"] == made["image_id"])
    assert (snap["name"], snap["status"]) == ("snap", "ACTIVE")
    api.ok("POST", path, {"shelve": None}, status=202, by="member")
    become(api, id, "SHELVED_OFFLOADED")
    api.ok("POST", path, {"unshelve": None}, status=202, by="member")
    become(api, id, "ACTIVE")
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def logged(api: Api, id: str) -> list[str]:
    """The names in its action log, the newest first."""
    log = api.get(f"/servers/{id}/os-instance-actions", by="member")["instanceActions"]
    return [one["action"] for one in log]


def test_what_no_host_is_asked_for_is_in_the_log_too(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    host = next(one for one in api.cloud.fleet.hosts.values() if id in one.guests)
    host.guests[id].agent = False
    password = {"changePassword": {"adminPass": "new"}}
    api.fails("POST", path, password, status=409, by="member", says="cannot be set")
    name = named("renamed")
    api.ok("PUT", f"/servers/{id}", {"server": {"name": name}}, by="member")
    api.ok("PUT", f"/servers/{id}", {"server": {"name": name}}, by="member")
    api.ok("POST", path, {"lock": {"locked_reason": "mine"}}, status=202, by="member", minor=73)
    api.ok("POST", path, {"unlock": None}, status=202, by="member")
    assert logged(api, id) == ["unlock", "lock", "rename", "changePassword", "create"]
    shown = {}
    for one in api.get(f"/servers/{id}/os-instance-actions")["instanceActions"]:
        request = one["request_id"]
        shown[one["action"]] = api.get(
            f"/servers/{id}/os-instance-actions/{request}", minor=84
        )["instanceAction"]
    assert {name: [(step["event"], step["result"]) for step in one["events"]]
            for name, one in shown.items() if name != "create"} == {
        name: [(f"compute_{name}", "Error" if name == "changePassword" else "Success")]
        for name in ("unlock", "lock", "rename", "changePassword")
    }
    assert "compute_start" in {step["event"] for step in shown["create"]["events"]}
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_a_password_by_the_guests_agent(api: Api, image_id: str) -> None:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    path = f"/servers/{id}/action"
    answer = api.call("POST", path, {"changePassword": {"adminPass": "new"}}, by="member")
    assert (answer.status_code, answer.content) == (202, b"")
    api.ok("POST", path, {"os-stop": None}, status=202, by="member")
    become(api, id, "SHUTOFF")
    api.fails("POST", path, {"changePassword": {"adminPass": "x"}}, status=409, by="member")
    assert logged(api, id) == ["stop", "changePassword", "create"]
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
