"""Cold migration, and resizes that need another host, through OpenStack's API."""

from __future__ import annotations

from typing import Any

import pytest
from cloudkit import Cloud, until
from computekit import Api, named
from test_compute_moves import in_balance, one_copy, where
from test_compute_servers import become, gone

from treadle.db.schema import image
from treadle.hypervisor.base import Power


@pytest.fixture
def server(api: Api) -> Any:
    image_id = api.cloud.treadle.database.read(lambda conn: conn.execute(image.select()).one().uuid)
    body = {"server": {"name": named("goer"), "imageRef": image_id, "flavorRef": "1"}}
    id = api.ok("POST", "/servers", body, status=202, by="member")["server"]["id"]
    become(api, id, "ACTIVE")
    yield id
    api.call("DELETE", f"/servers/{id}", by="member")
    gone(api, id)
    until(lambda: all(id not in one.guests for one in api.cloud.fleet.hosts.values()), "it gone")


def act(api: Api, id: str, body: dict[str, Any], status: int = 202, **more: Any) -> Any:
    return api.ok("POST", f"/servers/{id}/action", body, status=status, **more)


def migrate(api: Api, id: str, host: str | None = None) -> None:
    body = {"migrate": None if host is None else {"host": host}}
    act(api, id, body, minor=56 if host else 1)


def last(api: Api, id: str) -> dict[str, Any]:
    """The newest move of the server."""
    found: dict[str, Any] = api.get(
        f"/os-migrations?instance_uuid={id}", minor=80
    )["migrations"][0]
    return found


def ended(api: Api, id: str, status: str) -> dict[str, Any]:
    until(lambda: last(api, id)["status"] == status, f"the move to be {status}")
    return last(api, id)


def other(host: str) -> str:
    return "h2" if host == "h1" else "h1"


def copies(cloud: Cloud, uuid: str) -> dict[str, Power]:
    return {
        name: host.guests[uuid].power
        for name, host in cloud.fleet.hosts.items() if uuid in host.guests
    }


def write(cloud: Cloud, host: str, uuid: str, text: str) -> None:
    """What the guest has on its disk."""
    guest = cloud.host(host).guests[uuid]
    guest.disks = {number: text for number in guest.disks}


def test_a_running_one_is_shut_down_moved_started_and_confirmed(api: Api, server: str) -> None:
    here = where(api, server)
    there = other(here)
    write(api.cloud, here, server, "mine")
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    move = last(api, server)
    assert (move["status"], move["migration_type"]) == ("finished", "migration")
    assert (move["source_compute"], move["dest_compute"]) == (here, there)
    assert copies(api.cloud, server) == {here: Power.OFF, there: Power.RUNNING}
    assert where(api, server) == there
    assert api.cloud.host(there).guests[server].disks == {1: "mine"}
    assert not api.cloud.host(here).guests[server].autostart
    act(api, server, {"confirmResize": None}, 204)
    become(api, server, "ACTIVE")
    assert ended(api, server, "confirmed")["dest_compute"] == there
    assert one_copy(api.cloud, server) == there
    in_balance(api.cloud)
    log = api.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
    assert [one["action"] for one in log[:2]] == ["confirmResize", "migrate"]


def test_it_goes_back_as_it_was(api: Api, server: str) -> None:
    here = where(api, server)
    write(api.cloud, here, server, "before")
    migrate(api, server, other(here))
    become(api, server, "VERIFY_RESIZE")
    write(api.cloud, other(here), server, "after")
    act(api, server, {"revertResize": None})
    become(api, server, "ACTIVE")
    assert ended(api, server, "reverted")
    assert one_copy(api.cloud, server) == where(api, server) == here
    assert api.cloud.host(here).guests[server].disks == {1: "before"}
    assert api.cloud.host(here).guests[server].power is Power.RUNNING
    in_balance(api.cloud)


def test_a_stopped_one_stays_stopped_both_ways(api: Api, server: str) -> None:
    here = where(api, server)
    act(api, server, {"os-stop": None})
    become(api, server, "SHUTOFF")
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    assert copies(api.cloud, server) == {here: Power.OFF, other(here): Power.OFF}
    act(api, server, {"revertResize": None})
    become(api, server, "SHUTOFF")
    assert one_copy(api.cloud, server) == here
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    act(api, server, {"confirmResize": None}, 204)
    become(api, server, "SHUTOFF")
    ended(api, server, "confirmed")
    assert one_copy(api.cloud, server) == other(here)
    in_balance(api.cloud)
