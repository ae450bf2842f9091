"""The operator's API: hosts, images, flavors, and what became of an instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloudkit import ROOMY, Cloud, Start, assert_no_insides, until

BODIES = ["/hosts", "/images", "/flavors"]
NOT_OURS = "22222222-2222-2222-2222-222222222222"


def refused(answer: httpx2.Response, status: int, kind: str, says: str = "") -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    assert says in body["error"]["message"], body
    assert_no_insides(answer.text)
    message: str = body["error"]["message"]
    return message


# -- hosts


def test_hosts_are_added_shown_and_removed(cloud: Cloud) -> None:
    answer = cloud.native("POST", "/hosts", json={"uri": f"fake://h3{ROOMY}", "name": "third"})
    assert answer.status_code == 201
    added = answer.json()
    assert (added["name"], added["uri"]) == ("third", f"fake://h3{ROOMY}")
    path = f"/hosts/{added['id']}"
    shown = until(lambda: (h := cloud.native("GET", path).json())["state"] == "up" and h)
    assert shown["facts"]["vcpus"] == 16
    assert shown["vcpus"] == {"limit": 64, "used": 0}
    assert shown["instances"] == 0
    assert shown["seen_at"] is not None
    ids = [host["id"] for host in cloud.native("GET", "/hosts").json()["hosts"]]
    assert ids == [1, 2, added["id"]]
    assert cloud.ok("/pm/list") == {"pmids": ids}
    answer = cloud.native("DELETE", path)
    assert (answer.status_code, answer.json()) == (200, {})
    refused(cloud.native("GET", path), 404, "NotFound", f"no host {added['id']}")
    refused(cloud.native("DELETE", path), 404, "NotFound")
    assert cloud.ok("/pm/list") == {"pmids": [1, 2]}


def test_adding_a_host_again_is_the_same_host(cloud: Cloud) -> None:
    answer = cloud.native("POST", "/hosts", json={"uri": f"fake://h1{ROOMY}"})
    assert answer.status_code == 201
    assert (answer.json()["id"], answer.json()["name"]) == (1, "h1")
    assert cloud.ok("/pm/list") == {"pmids": [1, 2]}


def test_a_host_with_instances_is_not_removed(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create()
    refused(cloud.native("DELETE", "/hosts/1"), 409, "Conflict", "has instances: destroy them")
    cloud.ok(f"/vm/destroy?vmid={vmid}")
    assert cloud.native("DELETE", "/hosts/1").status_code == 200
    says = cloud.fails("/vm/create?name=a&instance_type=1", 503, {"vmid": 0})
    assert "there are none" in says


@pytest.mark.parametrize(
    "uri",
    [
        "", "x", "fake://h9?vcpus=x", "fake://h9?color=red", "fake://[", "fake://[::1", "\0\0\0",
        "fake://h9\0", "fake://h9\n?vcpus=1", "fake://é", "x" * 2000, "   ", "fake://h9 x",
        "http://[::1", "\u202efake://h9",
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_uri_that_cannot_be_taken_is_refused(shared: Cloud, uri: str) -> None:
    before = shared.native("GET", "/hosts").json()
    refused(shared.native("POST", "/hosts", json={"uri": uri}), 400, "InvalidInput")
    assert shared.native("GET", "/hosts").json()["hosts"][0]["id"] == before["hosts"][0]["id"]
    assert len(shared.native("GET", "/hosts").json()["hosts"]) == len(before["hosts"])


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", "a\nb", "\u202e"])
def test_a_name_that_cannot_be_shown_is_refused(shared: Cloud, name: str) -> None:
    for path, body in (
        ("/hosts", {"uri": "fake://h9"}), ("/images", {"source": "/x/y.qcow2"})
    ):
        refused(shared.native("POST", path, json={**body, "name": name}), 400, "InvalidInput")
    assert len(shared.native("GET", "/hosts").json()["hosts"]) == 1


# -- images


def test_images_are_added_and_read_in_the_background(
    cloud: Cloud, tmp_path: Path, disk_image: Path
) -> None:
    copy = tmp_path / "it's a \"copy\".qcow2"
    copy.write_bytes(disk_image.read_bytes())
    answer = cloud.native("POST", "/images", json={"source": str(copy)})
    assert answer.status_code == 201
    added = answer.json()
    assert (added["id"], added["name"], added["source"], added["state"]) == (
        2, "it's a \"copy\"", str(copy), "new"
    )
    found = until(lambda: (
        one := cloud.native("GET", "/images").json()["images"][1]
    )["state"] == "active" and one)
    assert (found["format"], found["virtual_bytes"]) == ("qcow2", 1 << 20)
    assert found["sha256"] == cloud.native("GET", "/images").json()["images"][0]["sha256"]
    named = cloud.native("POST", "/images", json={"source": str(copy), "name": "other"}).json()
    assert (named["id"], named["name"]) == (2, "other")
    assert cloud.create(extra="&image_id=1")


def test_an_image_that_cannot_be_read_says_why(cloud: Cloud, tmp_path: Path) -> None:
    cloud.native("POST", "/images", json={"source": str(tmp_path / "gone.img")})
    found = until(lambda: (
        one := cloud.native("GET", "/images").json()["images"][1]
    )["state"] == "error" and one)
    assert "not there" in found["error"]


@pytest.mark.parametrize(
    "source",
    ["", "relative.img", "/", "/folder/", "ftp://x/y", "http://", "http://[::1/x", "a@:/x",
     "/a\0b", "/a\nb", " /a", "-oProxyCommand=x@h:/a", "/" + "a" * 5000],
    ids=lambda text: ascii(text)[:20],
)
def test_a_source_that_cannot_be_taken_is_refused(shared: Cloud, source: str) -> None:
    refused(shared.native("POST", "/images", json={"source": source}), 400, "InvalidInput")
    assert len(shared.native("GET", "/images").json()["images"]) == 1


# -- flavors


def test_flavors_are_added_and_offered(cloud: Cloud) -> None:
    answer = cloud.native("POST", "/flavors", json={"vcpus": 8, "memory_mib": 4096, "disk_gib": 9})
    assert answer.status_code == 201
    shown = answer.json()
    assert shown | {"id": 4, "vcpus": 8, "memory_mib": 4096, "disk_gib": 9} == shown
    assert (shown["public_id"], shown["name"]) == ("4", "type-4")
    answer = cloud.native(
        "POST", "/flavors", json={"id": 77, "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
    )
    assert answer.status_code == 201
    ids = [one["id"] for one in cloud.native("GET", "/flavors").json()["flavors"]]
    assert ids == [1, 2, 3, 4, 77]
    assert [one["tid"] for one in cloud.ok("/vm/types")["types"]] == ids
    assert cloud.query(cloud.create(tid=77))["instance_type"] == 77


def test_a_flavor_with_a_taken_id_is_a_conflict(shared: Cloud) -> None:
    body = {"id": 1, "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
    refused(shared.native("POST", "/flavors", json=body), 409, "Conflict", "there is a flavor 1")


@pytest.mark.parametrize("field", ["vcpus", "memory_mib", "disk_gib", "id"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None, True, [], 2**31, 2**64, 10**400])
def test_a_size_that_is_none_is_refused(shared: Cloud, field: str, value: Any) -> None:
    if (field, value) == ("id", None):
        return
    body = {"vcpus": 1, "memory_mib": 64, "disk_gib": 1, field: value}
    refused(shared.native("POST", "/flavors", json=body), 400, "InvalidInput", field)
    assert len(shared.native("GET", "/flavors").json()["flavors"]) == 3


# -- bodies


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'"x"', b"{", b"\xff\xfe", b"{'uri': 1}", b'{"uri": 1}',
        b'{"surprise": 1}', b"[" * 60_000, b'{"uri":' * 8_000, b'{"uri": "fake://\\ud800"}',
        b"\0" * 100, b'{"uri": "x"} {"uri": "y"}', b"1e999999999",
    ],
    ids=lambda body: ascii(body[:16]),
)
def test_a_body_that_is_not_what_was_asked_for_is_refused(
    shared: Cloud, path: str, body: bytes
) -> None:
    refused(shared.native("POST", path, content=body), 400, "InvalidInput", "body is")


@pytest.mark.parametrize("path", BODIES)
def test_a_body_that_is_too_large_is_refused(shared: Cloud, path: str) -> None:
    refused(
        shared.native("POST", path, content=b"[" + b" " * (1 << 20)), 400, "InvalidInput",
        "at most 65536",
    )


# -- instances


def test_an_instance_tells_its_story(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create("web", tid=2)
    cloud.ok(f"/vm/reboot?vmid={vmid}")
    cloud.ok(f"/vm/destroy?vmid={vmid}")
    answer = cloud.native("GET", f"/instances/{vmid}")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["id"], told["name"], told["state"]) == (vmid, "web", "deleted")
    assert told["flavor"] == {"id": 2, "vcpus": 2, "memory_mib": 1024, "disk_gib": 4}
    assert told["created_at"] <= told["launched_at"] <= told["deleted_at"]
    log = [(one["action"], one["outcome"]) for one in told["actions"]]
    assert log == [("create", "ok"), ("reboot", "ok"), ("delete", "ok")]
    steps = [step["name"] for step in told["actions"][0]["steps"]]
    assert steps[:1] == ["place"]
    assert {"define", "start"} <= set(steps)
    assert len({one["request_id"] for one in told["actions"]}) == 3


def test_the_decision_says_why_a_host_won(start: Start) -> None:
    cloud = start(f"fake://large{ROOMY}", "fake://small?vcpus=1&memory_mib=600&disk_mib=100")
    vmid = cloud.create(tid=2)
    record = cloud.native("GET", f"/instances/{vmid}/decision")
    assert record.status_code == 200
    text = record.text
    assert "large" in text
    assert "small" in text
    assert record.json()["winner"] == 1


def test_the_decision_says_why_none_won(start: Start) -> None:
    cloud = start("fake://small?vcpus=1&memory_mib=600&disk_mib=100")
    vmid = cloud.ok("/vm/create?name=a&instance_type=3&wait=0")["vmid"]
    until(lambda: cloud.query(vmid)["state"] == "error")
    record = cloud.native("GET", f"/instances/{vmid}/decision").json()
    assert record["winner"] is None
    assert cloud.native("GET", f"/instances/{vmid}").json()["state"] == "error"


def test_the_console_is_what_the_guest_printed(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create("web")
    answer = cloud.native("GET", f"/instances/{vmid}/console")
    assert answer.status_code == 200
    assert b"TREADLE-GUEST-UP hostname=web" in answer.content
    cloud.host("h1").up = False
    refused(cloud.native("GET", f"/instances/{vmid}/console"), 503, "HostUnreachable")
    cloud.host("h1").up = True
    cloud.ok(f"/vm/destroy?vmid={vmid}")
    refused(cloud.native("GET", f"/instances/{vmid}/console"), 404, "NotFound")


def test_an_instance_on_no_host_has_no_console(start: Start) -> None:
    cloud = start("fake://small?vcpus=1&memory_mib=600&disk_mib=100")
    vmid = cloud.ok("/vm/create?name=a&instance_type=3&wait=0")["vmid"]
    until(lambda: cloud.query(vmid)["state"] == "error")
    refused(cloud.native("GET", f"/instances/{vmid}/console"), 409, "Conflict", "on no host")


IDS = ["0", "77", "-1", "x", "1.0", "%00", "1%20", "9" * 18, "9" * 100, "2147483648", "\u0661",
       "%D9%A1x", "'"]


@pytest.mark.parametrize("path", ["/hosts/{}", "/instances/{}", "/instances/{}/decision",
                                  "/instances/{}/console"])
def test_what_is_not_there_is_not_found(shared: Cloud, path: str) -> None:
    for text in IDS:
        refused(shared.native("GET", path.format(text)), 404, "NotFound")
    for text in IDS:
        refused(shared.native("DELETE", f"/hosts/{text}"), 404, "NotFound")


def test_domains_that_no_row_knows_are_listed_and_left_alone(cloud: Cloud) -> None:
    from treadle.hypervisor.base import DomainSpec, Seed

    host = cloud.host("h1")
    driver = cloud.fleet.driver("fake://h1")
    driver.define(DomainSpec(
        uuid=NOT_OURS, name="stray", generation=1, vcpus=1, memory_mib=64, disk_gib=1,
        mac="02:00:00:00:00:09", image=None, seed=Seed("stray"),
    ))
    cloud.look_again()
    found = until(lambda: cloud.native("GET", "/orphans").json()["orphans"])
    assert [(one["host_id"], one["uuid"], one["power"]) for one in found] == [(1, NOT_OURS, "off")]
    assert NOT_OURS in host.guests


# -- methods and paths


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/hosts", {"GET", "POST"}), ("DELETE", "/hosts", {"GET", "POST"}),
        ("POST", "/hosts/1", {"GET", "DELETE"}), ("PATCH", "/flavors", {"GET", "POST"}),
        ("POST", "/instances/1", {"GET"}), ("POST", "/orphans", {"GET"}),
    ],
)
def test_another_method_is_named_and_the_right_ones_with_it(
    shared: Cloud, method: str, path: str, allowed: set[str]
) -> None:
    answer = shared.native(method, path)
    refused(answer, 405, "MethodNotAllowed", f"does not take {method}")
    assert set(answer.headers["allow"].replace(" ", "").split(",")) - {"HEAD"} == allowed


@pytest.mark.parametrize("path", ["", "/", "/hosts/", "/hosts/1/x", "/nothing", "/images/1"])
def test_an_unknown_path_is_an_error_of_this_face(shared: Cloud, path: str) -> None:
    refused(shared.native("GET", path), 404, "NotFound", "there is no call")
