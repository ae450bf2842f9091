"""What came with each compute microversion from 2.97 on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from computekit import Api, named, schema
from tempest.lib.services.compute.interfaces_client import InterfacesClient
from tempest.lib.services.compute.servers_client import ServersClient
from test_compute_moves import ended, migrate, where
from test_compute_servers import ask, become, gone

from treadle.api.openstack.compute import HIGHEST, SERVICE
from treadle.db.schema import image

SHARE = "5b1c1c9e-8f7b-4b52-9b8e-000000000001"
FLAVOR = {"ram": 256, "vcpus": 1, "disk": 1}


@pytest.fixture(scope="module")
def server(api: Api, image_id: str) -> Iterator[str]:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    yield id
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def act(api: Api, id: str, **action: Any) -> None:
    api.ok("POST", f"/servers/{id}/action", action, status=202, by="member")


def test_97_shares_are_those_of_a_cloud_that_has_none(api: Api, server: str) -> None:
    path = f"/servers/{server}/shares"
    judge = schema(ServersClient, 97).list_share_attachments
    assert api.get(path, minor=97, by="reader", judge=judge) == {"shares": []}
    api.fails("GET", path, minor=96, status=404)
    api.fails("GET", f"{path}?x=1", minor=97, status=400)
    body = {"share": {"share_id": SHARE, "tag": "a-tag"}}
    api.fails("POST", path, body, minor=97, by="member", status=409, says="vm_state active")
    api.fails("DELETE", f"{path}/{SHARE}", minor=97, by="member", status=409, says="vm_state")
    act(api, server, **{"os-stop": None})
    become(api, server, "SHUTOFF")
    for wrong in ({"share_id": "x"}, {"tag": "x"}, {"share_id": SHARE, "tag": "a_b"},
                  {"share_id": SHARE, "more": 1}):
        api.fails("POST", path, {"share": wrong}, minor=97, by="member", status=400)
    api.fails("POST", path, body, minor=97, by="member", status=404, says=SHARE)
    api.fails("GET", f"{path}/{SHARE}", minor=97, by="member", status=404, says=SHARE)
    api.fails("DELETE", f"{path}/{SHARE}", minor=97, by="member", status=404, says=SHARE)
    api.fails("POST", path, body, minor=97, by="reader", status=403)
    api.fails("GET", path, minor=97, by="other", status=404, says="Instance")
    act(api, server, **{"os-start": None})
    become(api, server, "ACTIVE")


def test_98_a_server_shows_what_its_image_was_when_it_was_made(api: Api, image_id: str) -> None:
    def properties(text: str) -> None:
        api.cloud.treadle.database.write(lambda conn: conn.execute(
            image.update().where(image.c.uuid == image_id).values(properties=text)
        ))

    properties('{"hw_rng_model":"virtio","os_type":"linux","of_mine":"x"}')
    try:
        id = ask(api, image_id)["id"]
    finally:
        properties("{}")
    become(api, id, "ACTIVE")
    shown = api.get(f"/servers/{id}", minor=98)["server"]["image"]
    assert shown["properties"] == {"hw_rng_model": "virtio", "os_type": "linux"}
    assert "properties" not in api.get(f"/servers/{id}", minor=97)["server"]["image"]
    api.ok("POST", f"/servers/{id}/action", {"rebuild": {"imageRef": image_id}}, status=202,
           minor=98, by="member", judge=schema(ServersClient, 98).rebuild_server_with_admin_pass)
    become(api, id, "ACTIVE")
    assert api.get(f"/servers/{id}", minor=98)["server"]["image"]["properties"] == {}
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_99_a_console_that_no_host_has(api: Api, server: str) -> None:
    path = f"/servers/{server}/remote-consoles"
    body = {"remote_console": {"protocol": "spice", "type": "spice-direct"}}
    api.fails("POST", path, body, minor=98, by="member", status=400, says="type")
    api.fails("POST", path, body, minor=99, by="member", status=400, says="novnc and serial")
    tokens = "/os-console-auth-tokens/none"
    api.fails("GET", f"{tokens}?x=1", minor=98, status=404)
    api.fails("GET", f"{tokens}?x=1", minor=99, status=400)


def test_100_a_server_shows_its_hints(api: Api, image_id: str, server: str) -> None:
    wish = {"name": named("server"), "imageRef": image_id, "flavorRef": "1", "networks": "auto",
            "host": where(api, server)}
    hints = {"build_near_host_ip": "10.0.0.1", "of_mine": "x"}
    body = {"server": wish, "os:scheduler_hints": hints}
    id = api.ok("POST", "/servers", body, status=202, minor=100)["server"]["id"]
    judge = schema(ServersClient, 100)
    shown = api.get(f"/servers/{id}", minor=100, judge=judge.get_server)["server"]
    assert shown["scheduler_hints"] == hints
    assert "scheduler_hints" not in api.get(f"/servers/{id}", minor=99)["server"]
    become(api, id, "ACTIVE", by="admin")
    # What an administrator said of the first host is no hint, and holds for the first time alone.
    assert where(api, id) == where(api, server)
    assert migrate(api, id).status_code == 202
    assert ended(api, id)["status"] == "completed"
    api.ok("DELETE", f"/servers/{id}", status=204)
    gone(api, id, by="admin")


def test_101_volumes_are_those_of_a_cloud_that_has_none(api: Api, server: str) -> None:
    path = f"/servers/{server}/os-volume_attachments"
    judge = schema(ServersClient, 89).list_volume_attachments
    assert api.get(path, minor=101, by="reader", judge=judge) == {"volumeAttachments": []}
    body = {"volumeAttachment": {"volumeId": SHARE}}
    for minor in (1, 100, 101):
        api.fails("POST", path, body, minor=minor, by="member", status=404, says="Volume")
    tagged = {"volumeAttachment": {"volumeId": SHARE, "tag": "x"}}
    api.fails("POST", path, tagged, minor=48, by="member", status=400)
    api.fails("POST", path, tagged, minor=49, by="member", status=404)
    api.fails("POST", path, {"volumeAttachment": {}}, minor=101, by="member", status=400)
    for method, more in (("GET", None), ("PUT", body), ("DELETE", None)):
        api.fails(method, f"{path}/{SHARE}", more, minor=101, by="member", status=404,
                  says="not attached")
    api.fails("POST", path, body, minor=101, by="reader", status=403)


def test_102_flavors_are_found_by_name_and_have_no_share_of_a_network(api: Api) -> None:
    name = named("slim")
    wish = {"name": name, **FLAVOR}
    api.fails("POST", "/flavors", {"flavor": {**wish, "rxtx_factor": 1}}, minor=102, status=400)
    made = api.ok("POST", "/flavors", {"flavor": wish}, minor=102)["flavor"]
    assert not {"rxtx_factor", "OS-FLV-DISABLED:disabled"} & set(made)
    assert set(api.get(f"/flavors/{made['id']}", minor=101)["flavor"]) - set(made) == {
        "rxtx_factor", "OS-FLV-DISABLED:disabled",
    }
    for path in ("/flavors", "/flavors/detail"):
        found = api.get(f"{path}?name=^{name}$", minor=102)["flavors"]
        assert [one["name"] for one in found] == [name]
        api.fails("GET", f"{path}?name={name}", minor=101, status=400)
        api.fails("GET", f"{path}?sort_key=rxtx_factor", minor=102, status=400)


@pytest.mark.parametrize("path", sorted({
    re.sub(r"\{\w+\}", "some", call.path.removeprefix("/v2.1")) for call in SERVICE.calls
    if call.method == "GET" and call.rule and call.until >= HIGHEST and call.status == 200
}))
def test_102_nothing_takes_an_argument_that_it_does_not_know(api: Api, path: str) -> None:
    api.fails("GET", f"{path}?of_mine=1", minor=102, status=400)


def test_103_servers_have_no_other_name(api: Api) -> None:
    api.fails("GET", "/os-volumes_boot", minor=103, status=404)


def test_104_a_pinned_server_stays_in_its_zone_until_it_is_unpinned(
    api: Api, image_id: str, server: str
) -> None:
    there = where(api, server)
    hosts = api.get("/os-hypervisors")["hypervisors"]
    [here] = {one["hypervisor_hostname"] for one in hosts} - {there}
    zone = named("zone")
    aggregate = api.ok("POST", "/os-aggregates", {"aggregate": {
        "name": zone, "availability_zone": zone,
    }})["aggregate"]["id"]
    api.ok("POST", f"/os-aggregates/{aggregate}/action", {"add_host": {"host": here}})
    id = ask(api, image_id, availability_zone=zone)["id"]
    become(api, id, "ACTIVE")

    def pin(to: str | None, minor: int = 104, **more: Any) -> Any:
        body = {"server": {"pinned_availability_zone": to}}
        return api.call("PUT", f"/servers/{id}", body, minor=minor, by="member", **more)

    def pinned() -> Any:
        return api.get(f"/servers/{id}", minor=96)["server"]["pinned_availability_zone"]

    assert pinned() == zone
    assert migrate(api, id).status_code == 202
    assert ended(api, id)["status"] == "error"
    assert where(api, id) == here
    assert pin("nova").status_code == 409
    assert pin(None, 103).status_code == 400
    assert pin("").status_code == 400
    assert pinned() == zone
    assert pin(zone).json()["server"]["pinned_availability_zone"] == zone
    assert pin(None).status_code == 200
    assert pin(None).json()["server"]["pinned_availability_zone"] is None
    assert pin(named("zone")).status_code == 409
    assert migrate(api, id).status_code == 202
    assert ended(api, id)["status"] == "completed"
    assert where(api, id) == there
    assert pin(zone).status_code == 409
    assert pin("nova").json()["server"]["pinned_availability_zone"] == "nova"
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
    api.ok("POST", f"/os-aggregates/{aggregate}/action", {"remove_host": {"host": here}})
    api.ok("DELETE", f"/os-aggregates/{aggregate}")


def test_a_server_has_one_interface_and_no_nodes(api: Api, server: str) -> None:
    path = f"/servers/{server}/os-interface"
    judge = schema(InterfacesClient, 104)
    [port] = api.get(path, minor=104, by="reader", judge=judge.list_interfaces)[
        "interfaceAttachments"
    ]
    shown = api.get(f"{path}/{port['port_id']}", by="reader",
                    judge=schema(InterfacesClient, 1).get_create_interfaces)
    assert shown == {"interfaceAttachment": {k: v for k, v in port.items() if k != "tag"}}
    address = api.get(f"/servers/{server}/ips")["addresses"]["default"][0]["addr"]
    assert [one["ip_address"] for one in port["fixed_ips"]] == [address]
    api.fails("GET", f"{path}/{SHARE}", status=404)
    api.fails("GET", path, status=404, by="other")
    body = {"interfaceAttachment": {"net_id": port["net_id"]}}
    api.fails("POST", path, body, status=400, by="member", says="one network")
    api.fails("POST", path, {"interfaceAttachment": {"tag": "x"}}, status=400, by="member")

    def refused(wanted: dict[str, Any], status: int, says: str, by: str = "member") -> None:
        api.fails("POST", path, {"interfaceAttachment": wanted}, status=status, says=says, by=by)

    refused({}, 400, "not supported for instance")
    refused({"net_id": SHARE}, 404, f"Network {SHARE} could not be found")
    refused({"port_id": SHARE}, 404, f"Port id {SHARE} could not be found")
    refused({"port_id": port["port_id"]}, 400, "still in use")
    refused({"port_id": port["port_id"], "net_id": port["net_id"]}, 400, "not input both")
    refused({"fixed_ips": [{"ip_address": "10.0.0.9"}]}, 400, "Must input network_id")
    refused({}, 403, "", by="reader")
    refused({}, 404, "", by="other")
    api.ok("POST", f"/servers/{server}/action", {"lock": None}, status=202, by="admin")
    refused({}, 409, "locked")
    api.fails("DELETE", f"{path}/{port['port_id']}", status=409, by="member", says="locked")
    api.ok("POST", f"/servers/{server}/action", {"unlock": None}, status=202, by="admin")
    api.fails("DELETE", f"{path}/{SHARE}", status=404, by="member")
    api.fails("GET", f"/servers/{server}/topology", minor=77, status=404)
    assert api.get(f"/servers/{server}/topology", minor=78, by="reader") == {
        "nodes": [], "pagesize_kb": None,
    }


def test_a_security_group_goes_by_its_id_too(api: Api, image_id: str, server: str) -> None:
    [group] = api.get(f"/servers/{server}/os-security-groups", by="member")["security_groups"]
    for name in (group["name"], group["id"]):
        api.ok("POST", f"/servers/{server}/action", {"addSecurityGroup": {"name": name}},
               status=202, by="member")
    id = ask(api, image_id, security_groups=[{"name": group["id"]}])["id"]
    become(api, id, "ACTIVE")
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
    wish = {"name": "x", "imageRef": image_id, "flavorRef": "1",
            "security_groups": [{"name": SHARE}]}
    api.fails("POST", "/servers", {"server": wish}, status=400, by="member", says="default")
    api.fails("POST", f"/servers/{server}/action", {"trigger_crash_dump": None}, minor=17,
              status=400, by="member", says="NMI")


def test_91_unshelving_to_no_zone_unpins(api: Api, image_id: str) -> None:
    id = ask(api, image_id, availability_zone="nova")["id"]
    become(api, id, "ACTIVE")
    act(api, id, shelve=None)
    become(api, id, "SHELVED_OFFLOADED")
    api.ok("POST", f"/servers/{id}/action", {"unshelve": {"availability_zone": None}}, status=202,
           by="member", minor=91)
    become(api, id, "ACTIVE")
    assert api.get(f"/servers/{id}", minor=96)["server"]["pinned_availability_zone"] is None
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
