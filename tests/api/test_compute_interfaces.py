"""A server's one interface: given and taken while it runs, is paused or is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from computekit import Api, schema
from tempest.lib.services.compute.interfaces_client import InterfacesClient
from test_compute_servers import ask, become, gone

from treadle.api.openstack.compute import HIGHEST
from treadle.hypervisor.fake_host import Fault, FaultKind

JUDGE = schema(InterfacesClient, 1)


@pytest.fixture
def server(api: Api, image_id: str) -> Iterator[str]:
    """One without an interface."""
    id = ask(api, image_id, 37, networks="none")["id"]
    become(api, id, "ACTIVE")
    yield id
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def listed(api: Api, id: str) -> Any:
    return api.get(f"/servers/{id}/os-interface", by="reader", judge=JUDGE.list_interfaces)[
        "interfaceAttachments"
    ]


def attach(api: Api, id: str, minor: int = HIGHEST, **wanted: Any) -> Any:
    return api.ok(
        "POST", f"/servers/{id}/os-interface", {"interfaceAttachment": wanted}, by="member",
        minor=minor, judge=schema(InterfacesClient, minor).get_create_interfaces,
    )["interfaceAttachment"]


def detach(api: Api, id: str, port: str) -> None:
    api.ok("DELETE", f"/servers/{id}/os-interface/{port}", status=202, by="member")


def refused(api: Api, id: str, status: int, says: str, minor: int = 1, **wanted: Any) -> None:
    api.fails("POST", f"/servers/{id}/os-interface", {"interfaceAttachment": wanted},
              by="member", minor=minor, status=status, says=says)


def act(api: Api, id: str, status: str, **action: Any) -> None:
    api.ok("POST", f"/servers/{id}/action", action, status=202, by="member")
    become(api, id, status)


def last(api: Api, id: str) -> tuple[str, str | None, list[tuple[str, str]]]:
    """The newest action, what is said of it, and its events with their results."""
    log = f"/servers/{id}/os-instance-actions"
    done = api.get(log, minor=51)["instanceActions"][0]
    shown = api.get(f"{log}/{done['request_id']}", minor=51)["instanceAction"]
    return done["action"], done["message"], [
        (one["event"], one["result"]) for one in reversed(shown["events"])
    ]


def test_it_is_given_and_taken_while_it_runs(api: Api, server: str) -> None:
    assert listed(api, server) == []
    assert api.get(f"/servers/{server}/ips")["addresses"] == {}
    port = attach(api, server)
    assert (port["port_state"], port["tag"]) == ("ACTIVE", None)
    assert last(api, server) == ("attach_interface", None, [("compute_plug", "Success")])
    [shown] = listed(api, server)
    assert shown["port_id"] == port["port_id"]
    assert shown["mac_addr"] == port["mac_addr"]
    [address] = api.get(f"/servers/{server}/ips")["addresses"]["default"]
    assert [one["ip_address"] for one in shown["fixed_ips"]] == [address["addr"]]
    refused(api, server, 400, "one network")

    detach(api, server, port["port_id"])
    assert last(api, server) == ("detach_interface", None, [("compute_plug", "Success")])
    assert listed(api, server) == []
    assert api.get(f"/servers/{server}/ips")["addresses"] == {}
    api.fails("DELETE", f"/servers/{server}/os-interface/{port['port_id']}", status=404,
              by="member")
    [machine] = [one for one in api.cloud.fleet.hosts.values() if server in one.guests]
    assert machine.starts[server] == 1

    for wanted, says in ({"fixed_ips": [{"ip_address": "10.64.1.9"}]}, "cannot be chosen"), (
        {"tag": "x"}, "no tags"
    ):
        refused(api, server, 400, says, 49, net_id=port["net_id"], **wanted)
    assert listed(api, server) == []
    again = attach(api, server, 1, net_id=port["net_id"])
    assert (again["port_id"], again["mac_addr"]) == (port["port_id"], port["mac_addr"])
    # What comes after it has it too.
    act(api, server, "ACTIVE", reboot={"type": "HARD"})
    assert machine.guests[server].card == port["mac_addr"]
    assert machine.starts[server] == 2


def test_of_a_stopped_one_the_definition_alone_changes(api: Api, server: str) -> None:
    act(api, server, "SHUTOFF", **{"os-stop": None})
    port = attach(api, server)
    assert port["port_state"] == "DOWN"
    assert last(api, server) == ("attach_interface", None, [("compute_define", "Success")])
    act(api, server, "ACTIVE", **{"os-start": None})
    assert len(api.get(f"/servers/{server}/ips")["addresses"]["default"]) == 1
    act(api, server, "SHUTOFF", **{"os-stop": None})
    detach(api, server, port["port_id"])
    act(api, server, "ACTIVE", **{"os-start": None})
    assert listed(api, server) == []


def test_a_guest_that_does_not_let_go_is_without_it_from_its_next_start_on(
    api: Api, server: str
) -> None:
    port = attach(api, server)["port_id"]
    act(api, server, "PAUSED", pause=None)
    detach(api, server, port)
    assert last(api, server) == ("detach_interface", None, [("compute_plug", "Error")])
    become(api, server, "PAUSED")
    assert listed(api, server) == []
    # What is still to go cannot be given back.
    refused(api, server, 409, "Failed to attach")
    become(api, server, "PAUSED")
    action, message, _ = last(api, server)
    assert (action, message) == ("attach_interface", "its guest has not let go of the interface "
                                 "that it had before: start it anew first")
    assert listed(api, server) == []
    act(api, server, "ACTIVE", unpause=None)
    assert api.get(f"/servers/{server}/ips")["addresses"] == {}
    act(api, server, "ACTIVE", reboot={"type": "HARD"})
    assert api.get(f"/servers/{server}/ips")["addresses"] == {}
    assert attach(api, server)["port_state"] == "ACTIVE"


def test_what_a_host_refuses_leaves_it_as_it_was(api: Api, server: str) -> None:
    [machine] = [one for one in api.cloud.fleet.hosts.values() if server in one.guests]
    machine.faults = [Fault("plug", machine.calls["plug"] + 1, FaultKind.REFUSE, times=2)]
    refused(api, server, 409, "Failed to attach")
    assert listed(api, server) == []
    become(api, server, "ACTIVE")
    assert last(api, server)[1] is not None
    assert "refuses" not in str(api.get(f"/servers/{server}/os-instance-actions", by="member"))
    assert attach(api, server)["port_state"] == "ACTIVE"


def test_in_other_states_and_of_others_it_is_refused(api: Api, server: str) -> None:
    act(api, server, "SUSPENDED", suspend=None)
    refused(api, server, 409, "vm_state suspended")
    act(api, server, "ACTIVE", resume=None)
    port = attach(api, server)["port_id"]
    path = f"/servers/{server}/os-interface/{port}"
    for by, status in (("other", 404), ("reader", 403)):
        api.fails("DELETE", path, status=status, by=by)
    act(api, server, "SUSPENDED", suspend=None)
    api.fails("DELETE", path, status=409, by="member", says="vm_state suspended")
    act(api, server, "ACTIVE", resume=None)
    api.ok("POST", f"/servers/{server}/action", {"lock": None}, status=202, by="admin")
    api.fails("DELETE", path, status=409, by="member", says="locked")
    api.ok("POST", f"/servers/{server}/action", {"unlock": None}, status=202, by="admin")
    [shown] = listed(api, server)
    assert shown["port_id"] == port
