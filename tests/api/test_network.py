"""Network v2.0: everyone sees the one network, and of ports only what is his."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloudkit import ROOMY, Cloud, KnownTokens, start_cloud

from treadle.db.schema import instance


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, disk_image: Path) -> Iterator[Cloud]:
    """Three servers of project p1 and one of p2, on two hosts."""
    cloud = start_cloud(
        tmp_path_factory.mktemp("network"), hosts=(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}"),
        image=disk_image, settings={},
    )
    cloud.treadle.context.tokens = KnownTokens()
    for name, project in (("a", "p1"), ("b", "p1"), ("c", "p2"), ("d", "p1")):
        id = cloud.create(name)
        cloud.treadle.database.write(lambda conn, id=id, project=project: conn.execute(
            instance.update().where(instance.c.id == id).values(project_id=project)
        ))
    yield cloud
    cloud.stop()


def ask(cloud: Cloud, path: str, token: str = "one", method: str = "GET", **more: Any) -> Any:
    """The answer to one call."""
    return cloud.client.request(
        method, f"/network{path}", headers={"X-Auth-Token": token} if token else {}, **more
    )


def get(cloud: Cloud, path: str, token: str = "one") -> Any:
    """The body of a call that must succeed."""
    answer = ask(cloud, path, token)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(answer: Any, status: int) -> str:
    """The message of a refusal in the form that network clients read."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"NeutronError"}
    assert set(body["NeutronError"]) == {"type", "message", "detail"}
    message: str = body["NeutronError"]["message"]
    return message


def test_versions_are_told_without_a_token(network: Cloud) -> None:
    for path in ("", "/"):
        [version] = get(network, path, token="")["versions"]
        assert version["id"] == "v2.0"
        assert version["links"] == [
            {"rel": "self", "href": f"{network.url}/network/v2.0/"}
        ]
    assert get(network, "/v2.0", token="")["resources"]
    assert ask(network, "/v2.0/networks", token="").status_code == 401
    assert ask(network, "/v2.0/networks", token="forged").status_code == 401


def test_every_project_sees_the_one_network_and_its_subnet(network: Cloud) -> None:
    [seen] = get(network, "/v2.0/networks")["networks"]
    assert (seen["name"], seen["shared"], seen["status"]) == ("default", True, "ACTIVE")
    assert get(network, "/v2.0/networks", "two")["networks"] == [seen]
    assert "provider:network_type" not in seen
    [whole] = get(network, "/v2.0/networks", "admin")["networks"]
    assert whole["provider:network_type"] == "local"
    [subnet] = get(network, "/v2.0/subnets")["subnets"]
    assert seen["subnets"] == [subnet["id"]]
    assert (subnet["cidr"], subnet["network_id"]) == ("10.64.0.0/12", seen["id"])
    assert get(network, f"/v2.0/networks/{seen['id']}")["network"] == seen
    assert get(network, f"/v2.0/subnets/{subnet['id']}")["subnet"] == subnet


def test_a_project_sees_its_own_ports_only(network: Cloud) -> None:
    mine = get(network, "/v2.0/ports")["ports"]
    assert len(mine) == 3
    assert {port["project_id"] for port in mine} == {"p1"}
    assert not any("binding:host_id" in port for port in mine)
    [theirs] = get(network, "/v2.0/ports", "two")["ports"]
    everyone = get(network, "/v2.0/ports", "admin")["ports"]
    assert len(everyone) == 4
    assert {port["binding:host_id"] for port in everyone} == {"h1", "h2"}
    error(ask(network, f"/v2.0/ports/{theirs['id']}"), 404)
    assert get(network, f"/v2.0/ports/{theirs['id']}", "two")["port"] == theirs
    assert get(network, f"/v2.0/ports?project_id=p2&device_id={theirs['device_id']}") == {
        "ports": []
    }
    error(ask(network, f"/v2.0/ports?marker={theirs['id']}"), 400)


def test_a_port_is_found_by_what_it_has(network: Cloud) -> None:
    [subnet] = get(network, "/v2.0/subnets")["subnets"]
    for port in get(network, "/v2.0/ports")["ports"]:
        [fixed] = port["fixed_ips"]
        assert fixed["subnet_id"] == subnet["id"]
        assert port["status"] == "ACTIVE"
        for query in (
            f"device_id={port['device_id']}", f"mac_address={port['mac_address']}",
            f"fixed_ips=ip_address={fixed['ip_address']}&device_id={port['device_id']}",
            f"id={port['id']}", f"device_owner=compute:nova&id={port['id']}",
        ):
            assert get(network, f"/v2.0/ports?{query}")["ports"] == [port], query
        assert get(network, f"/v2.0/ports/{port['id']}")["port"] == port
        assert get(network, f"/v2.0/ports?id={port['id']}&status=DOWN") == {"ports": []}
        assert get(network, f"/v2.0/ports?id={port['id']}&fields=id&fields=status") == {
            "ports": [{"id": port["id"], "status": "ACTIVE"}]
        }


@pytest.mark.parametrize("query", ["limit=1", "limit=2", "limit=2&sort_key=id&sort_dir=desc"])
def test_pages_lead_through_all_ports_once(network: Cloud, query: str) -> None:
    whole = get(network, f"/v2.0/ports?{query.partition('&')[2]}", "admin")["ports"]
    found: list[Any] = []
    path = f"/v2.0/ports?{query}"
    for _ in whole:
        body = get(network, path, "admin")
        found += body["ports"]
        if "ports_links" not in body:
            break
        [link] = body["ports_links"]
        assert link["rel"] == "next"
        path = link["href"].removeprefix(f"{network.url}/network")
    assert found == whole


def test_short_lists_have_filters_order_and_pages(network: Cloud) -> None:
    [seen] = get(network, "/v2.0/networks")["networks"]
    assert get(network, "/v2.0/networks?name=default&shared=True")["networks"] == [seen]
    assert get(network, "/v2.0/networks?name=other")["networks"] == []
    assert get(network, "/v2.0/networks?router:external=True")["networks"] == []
    assert get(network, "/v2.0/networks?sort_key=name&sort_dir=asc&limit=5")["networks"] == [seen]
    assert get(network, f"/v2.0/networks?marker={seen['id']}")["networks"] == []
    error(ask(network, "/v2.0/networks?marker=unknown"), 400)
    error(ask(network, "/v2.0/networks?sort_key=colour"), 400)
    rules = get(network, "/v2.0/security-group-rules?direction=ingress")["security_group_rules"]
    assert {rule["ethertype"] for rule in rules} == {"IPv4", "IPv6"}


def test_a_project_has_one_security_group(network: Cloud) -> None:
    [mine] = get(network, "/v2.0/security-groups?name=default")["security_groups"]
    assert mine["project_id"] == "p1"
    [theirs] = get(network, "/v2.0/security-groups", "two")["security_groups"]
    assert theirs["id"] != mine["id"]
    error(ask(network, f"/v2.0/security-groups/{theirs['id']}"), 404)
    assert get(network, "/v2.0/security-groups?project_id=p1", "admin")["security_groups"] == [mine]
    assert error(ask(network, f"/v2.0/security-groups/{mine['id']}", method="DELETE"), 409)
    [port, *_] = get(network, "/v2.0/ports")["ports"]
    assert port["security_groups"] == [mine["id"]]
    rule = mine["security_group_rules"][0]
    assert get(network, f"/v2.0/security-group-rules/{rule['id']}") == {"security_group_rule": rule}


@pytest.mark.parametrize("kind", ["routers", "floatingips", "address-scopes", "subnetpools"])
def test_what_there_is_none_of_is_an_empty_list(network: Cloud, kind: str) -> None:
    assert list(get(network, f"/v2.0/{kind}").values()) == [[]]
    error(ask(network, f"/v2.0/{kind}/{'0' * 32}"), 404)


def test_agents_are_for_administrators(network: Cloud) -> None:
    assert get(network, "/v2.0/agents", "admin") == {"agents": []}
    error(ask(network, "/v2.0/agents"), 403)
    error(ask(network, "/v2.0/networks", "nobody"), 403)


def test_quotas_are_told_to_their_project(network: Cloud) -> None:
    assert get(network, "/v2.0/quotas/p1")["quota"]["port"] == -1
    details = get(network, "/v2.0/quotas/p1/details.json")["quota"]
    assert details["port"] == {"limit": -1, "used": 3, "reserved": 0}
    error(ask(network, "/v2.0/quotas/p2"), 404)
    assert ask(network, "/v2.0/quotas/p2", "admin", "DELETE").status_code == 204
    error(ask(network, "/v2.0/quotas/p2", "admin", "PUT", json={"quota": {"port": 1}}), 403)
    assert get(network, "/v2.0/quotas/p2/details", "admin")["quota"]["port"]["used"] == 1


def test_extensions_are_told_by_their_alias(network: Cloud) -> None:
    for one in get(network, "/v2.0/extensions")["extensions"]:
        assert get(network, f"/v2.0/extensions/{one['alias']}") == {"extension": one}
    error(ask(network, "/v2.0/extensions/none"), 404)


@pytest.mark.parametrize("kind", [
    "networks", "subnets", "ports", "security-groups", "security-group-rules", "routers",
    "floatingips",
])
def test_what_would_change_something_says_why_it_cannot(network: Cloud, kind: str) -> None:
    made = ask(network, f"/v2.0/{kind}", "admin", "POST", json={"thing": {"name": "x"}})
    assert "virtual networks are not there yet" in error(made, 403)
    for one in next(iter(get(network, f"/v2.0/{kind}").values())):
        changed = ask(network, f"/v2.0/{kind}/{one['id']}", "one", "PUT", json={"x": {}})
        assert "not there yet" in error(changed, 403)
    error(ask(network, f"/v2.0/{kind}/unknown", "one", "PUT", json={"x": {}}), 404)
    error(ask(network, f"/v2.0/{kind}/unknown", "one", "DELETE"), 404)


def test_a_server_that_is_gone_has_no_port(network: Cloud) -> None:
    id = network.create("short")
    [port] = [
        one for one in get(network, "/v2.0/ports", "admin")["ports"]
        if one["project_id"] not in ("p1", "p2")
    ]
    network.ok(f"/vm/destroy?vmid={id}")
    error(ask(network, f"/v2.0/ports/{port['id']}", "admin"), 404)
