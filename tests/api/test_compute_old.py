"""What older clients ask compute for: extensions, networks, and what has gone."""

from __future__ import annotations

from typing import Any

import pytest
from computekit import CALLERS, Api
from tempest.lib.api_schema.response.compute.v2_1 import (
    extensions,
    floating_ips,
    security_groups,
    tenant_networks,
)

from treadle.api.openstack.compute.extensions import GONE


def test_extensions_are_listed_and_shown(api: Api) -> None:
    found = api.get("/extensions", by="reader", judge=extensions.list_extensions)["extensions"]
    assert "Hosts" in [one["name"] for one in found]
    assert "os-volumes" not in [one["alias"] for one in found]
    shown = api.get("/extensions/os-consoles", judge=None)["extension"]
    assert shown in found
    api.fails("GET", "/extensions/os-nothing", status=404)


@pytest.mark.parametrize("minor", [1, 104])
@pytest.mark.parametrize(("path", "methods"), GONE)
def test_what_has_gone_says_so(api: Api, path: str, methods: str, minor: int) -> None:
    for method in methods.split():
        place = f"/{path.format(id='x', name='y')}"
        api.fails(method, place, minor=minor, by="reader", status=410)
        assert api.call(method, place, minor=minor, by="no token of ours").status_code == 401


def test_the_default_network_is_shown_until_235(api: Api) -> None:
    [one] = api.get("/os-networks", minor=35)["networks"]
    assert (one["label"], one["cidr"]) == ("default", None)
    assert "vlan" in one
    assert api.get(f"/os-networks/{one['id']}") == {"network": one}
    [seen] = api.get("/os-networks", by="reader")["networks"]
    assert seen == {key: one[key] for key in seen}
    assert "vlan" not in seen
    [mine] = api.get("/os-tenant-networks", by="reader",
                     judge=tenant_networks.list_tenant_networks)["networks"]
    assert mine == {"id": one["id"], "label": "default", "cidr": "None"}
    shown = api.get(f"/os-tenant-networks/{one['id']}", by="reader",
                    judge=tenant_networks.get_tenant_network)
    assert shown == {"network": mine}
    listed = api.cloud.client.get("/network/v2.0/networks", headers={"X-Auth-Token": "reader"})
    assert listed.json()["networks"][0]["id"] == one["id"]
    for path in ("/os-networks/x", "/os-tenant-networks/x"):
        api.fails("GET", path, status=404)


def test_the_default_group_is_shown_and_stays(api: Api) -> None:
    judge: Any = security_groups
    [one] = api.get("/os-security-groups", by="reader",
                    judge=judge.list_security_groups)["security_groups"]
    assert (one["name"], one["tenant_id"]) == ("default", CALLERS["reader"].project_id)
    path = f"/os-security-groups/{one['id']}"
    assert api.get(path, by="reader", judge=judge.get_security_group) == {"security_group": one}
    api.fails("GET", path, by="other", status=404)
    new = {"security_group": {"name": "x", "description": ""}}
    api.fails("POST", "/os-security-groups", new, by="member", status=403)
    for method, body in (("PUT", new), ("DELETE", None)):
        api.fails(method, path, body, by="member", status=400)
        api.fails(method, path, body, by="other", status=404)
        api.fails(method, path, body, by="reader", status=403)
    rule = f"/os-security-group-rules/{one['rules'][0]['id']}"
    api.fails("DELETE", rule, by="member", status=400)
    api.fails("DELETE", rule, by="other", status=404)
    api.fails("POST", "/os-security-group-rules", {"security_group_rule": {}}, by="member",
              status=403)


def test_no_address_floats(api: Api) -> None:
    assert api.get("/os-floating-ips", by="reader", judge=floating_ips.list_floating_ips) == {
        "floating_ips": []
    }
    assert api.get("/os-floating-ip-pools", by="reader") == {"floating_ip_pools": []}
    api.fails("POST", "/os-floating-ips", {"pool": "x"}, by="member", status=404)
    for method in ("GET", "DELETE"):
        api.fails(method, "/os-floating-ips/1", by="member", status=404)


@pytest.mark.parametrize("path", [
    "os-networks", "os-networks/x", "os-tenant-networks", "os-tenant-networks/x",
    "os-security-groups", "os-security-groups/x", "os-floating-ips", "os-floating-ips/x",
    "os-floating-ip-pools",
])
def test_from_236_on_the_network_is_asked_itself(api: Api, path: str) -> None:
    api.fails("GET", f"/{path}", minor=36, by="reader", status=404)
