"""Cold migration, and resizes that need another host, through OpenStack's API."""

from __future__ import annotations

from typing import Any

import pytest
from cloudkit import Cloud, until
from computekit import Api, named
from test_compute_moves import in_balance, one_copy, where
from test_compute_servers import become, gone

from treadle.compute import store
from treadle.compute.moves import actions as moving
from treadle.db.schema import image
from treadle.hypervisor.base import Power
from treadle.hypervisor.fake_host import Fault, FaultKind
from treadle.placement import ledger


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


def test_a_resize_goes_where_there_is_room_and_back(api: Api, server: str) -> None:
    here = where(api, server)
    there = other(here)
    cramped(api.cloud, here)
    try:
        act(api, server, {"resize": {"flavorRef": "2"}}, by="member")
        become(api, server, "VERIFY_RESIZE")
        move = last(api, server)
        assert (move["migration_type"], move["dest_compute"]) == ("resize", there)
        assert (move["old_instance_type_id"], move["new_instance_type_id"]) == (1, 2)
        assert ram(api, server) == 1024
        assert len(api.cloud.host(there).guests[server].disks) == 2, "a larger disk over the old"
        act(api, server, {"revertResize": None}, by="member")
        become(api, server, "ACTIVE")
        assert (where(api, server), ram(api, server)) == (here, 512)
        assert one_copy(api.cloud, server) == here
        in_balance(api.cloud)
        act(api, server, {"resize": {"flavorRef": "2"}}, by="member")
        become(api, server, "VERIFY_RESIZE")
        act(api, server, {"confirmResize": None}, 204, by="member")
        ended(api, server, "confirmed")
        become(api, server, "ACTIVE")
        assert (one_copy(api.cloud, server), ram(api, server)) == (there, 1024)
        in_balance(api.cloud)
    finally:
        roomy(api.cloud)


def cramped(cloud: Cloud, *names: str) -> None:
    """Leave the hosts no memory but what is in use."""
    for name in names:
        cloud.host(name).memory_mib = 512

    def known() -> bool:
        hosts = cloud.treadle.database.read(ledger.list_hosts)
        return all(
            host.memory_limit_mib == host.memory_used_mib for host in hosts if host.name in names
        )

    until(known, "the hosts to be full")


def roomy(cloud: Cloud) -> None:
    for host in cloud.fleet.hosts.values():
        host.memory_mib = 65536
    until(lambda: all(host.memory_limit_mib > 4096
                      for host in cloud.treadle.database.read(ledger.list_hosts)), "room")


def ram(api: Api, id: str) -> int:
    found: int = api.get(f"/servers/{id}", minor=47)["server"]["flavor"]["ram"]
    return found


def test_what_cannot_be_is_refused_and_said(api: Api, server: str) -> None:
    here = where(api, server)
    path = f"/servers/{server}/action"
    api.fails("POST", path, {"migrate": {"host": "nowhere"}}, status=400, minor=56,
              says="Compute host nowhere could not be found")
    api.fails("POST", path, {"migrate": {"host": here}}, status=400, minor=56,
              says="it is on this host already")
    api.fails("POST", path, {"migrate": {"to": here}}, status=400, minor=56)
    api.fails("POST", path, {"migrate": None}, status=403, by="member")
    api.fails("POST", path, {"confirmResize": None}, status=409)
    act(api, server, {"pause": None})
    become(api, server, "PAUSED")
    api.fails("POST", path, {"migrate": None}, status=409,
              says="Cannot 'migrate' instance")
    act(api, server, {"unpause": None})
    become(api, server, "ACTIVE")
    cloud = api.cloud
    try:
        cramped(cloud, here, other(here))
        for body in ({"migrate": None}, {"migrate": {"host": other(here)}}):
            said = api.fails("POST", path, body, status=400, minor=56,
                             says="No valid host was found")
            assert "memory" in said
        said = api.fails("POST", path, {"resize": {"flavorRef": "3"}}, status=400, by="member",
                         says="No valid host was found")
        assert "h1" not in said, "tenants are told of no hosts"
        assert "h2" not in said, "tenants are told of no hosts"
    finally:
        roomy(cloud)
    try:
        cloud.host(other(here)).arch = "riscv64"
        until(lambda: any(host.facts and host.facts.arch == "riscv64"
                          for host in cloud.treadle.database.read(ledger.list_hosts)), "it known")
        api.fails("POST", path, {"migrate": None}, status=400,
                  says="its architecture is riscv64, the guest's is x86_64")
    finally:
        cloud.host(other(here)).arch = "x86_64"
    until(lambda: all(host.facts and host.facts.arch == "x86_64"
                      for host in cloud.treadle.database.read(ledger.list_hosts)), "it known")
    assert api.get(f"/os-migrations?instance_uuid={server}", minor=80)["migrations"] == []
    in_balance(cloud)


@pytest.mark.parametrize(("kind", "times"), [
    (FaultKind.REFUSE, 1), (FaultKind.FULL, 1), (FaultKind.HANG, 9), (FaultKind.LATE, 9),
])
def test_a_copy_that_fails_for_good_leaves_it_running_where_it_was(
    api: Api, server: str, kind: FaultKind, times: int
) -> None:
    here = where(api, server)
    host = api.cloud.host(here)
    host.faults.append(Fault("send_disk", host.calls["send_disk"] + 1, kind, times))
    migrate(api, server)
    ended(api, server, "error")
    become(api, server, "ACTIVE")
    host.faults.clear()
    assert one_copy(api.cloud, server) == where(api, server) == here
    assert host.guests[server].power is Power.RUNNING
    in_balance(api.cloud)


def test_a_way_that_breaks_once_is_gone_again(api: Api, server: str) -> None:
    here = where(api, server)
    host = api.cloud.host(here)
    host.faults.append(Fault("send_disk", host.calls["send_disk"] + 1, FaultKind.LOSE_AFTER))
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    assert host.calls["send_disk"] >= 2
    host.faults.clear()


def test_one_that_is_ended_on_the_way_runs_where_it_was(api: Api, server: str) -> None:
    here = where(api, server)
    host = api.cloud.host(here)
    seen: list[dict[str, Any]] = []

    def end(when: str, verb: str, _uuid: str) -> None:
        if (when, verb) == ("before", "send_disk") and not seen:
            seen.extend(api.get(f"/servers/{server}/migrations", minor=80)["migrations"])
            assert api.call(
                "DELETE", f"/servers/{server}/migrations/{seen[0]['id']}", minor=80
            ).status_code == 202

    host.trap = end
    try:
        migrate(api, server)
        assert ended(api, server, "cancelled")["migration_type"] == "migration"
    finally:
        host.trap = None
    assert seen[0]["status"] == "migrating"
    become(api, server, "ACTIVE")
    assert one_copy(api.cloud, server) == here
    in_balance(api.cloud)


def test_what_waits_at_its_former_host_stays_off_and_is_no_orphan(api: Api, server: str) -> None:
    here = where(api, server)
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    left = api.cloud.host(here).guests[server]
    left.run()
    until(lambda: left.power is Power.OFF and not left.autostart, "it to be off again")
    # While it was on its way, a pass over the target may have listed what was there of it.
    until(lambda: api.cloud.native("GET", "/orphans").json()["orphans"] == [], "no orphan")
    assert copies(api.cloud, server)[other(here)] is Power.RUNNING
    move = last(api, server)["id"]
    assert api.call(
        "DELETE", f"/servers/{server}/migrations/{move}", minor=80
    ).status_code == 409
    # Deleted now, nothing of it is left anywhere: the fixture looks.


def test_one_that_finds_no_host_after_all_runs_on(api: Api, server: str) -> None:
    """Its room may be gone between the look and the move."""
    here = where(api, server)
    database = api.cloud.treadle.database
    try:
        cramped(api.cloud, other(here))
        before = database.read(lambda conn: store.by_uuid(conn, server))
        database.write(lambda conn: moving.migrate(
            conn, before.id, None, request_id="req", patience=moving.Patience(60.0, 20.0)
        ))
        api.cloud.treadle.signals.work_is_due()
        ended(api, server, "error")
        become(api, server, "ACTIVE")
    finally:
        roomy(api.cloud)
    after = database.read(lambda conn: store.by_uuid(conn, server))
    assert after.generation == before.generation, "it was not booted anew"
    assert api.cloud.host(here).guests[server].running_generation == before.generation
    in_balance(api.cloud)


def test_it_is_not_moved_on_while_its_former_host_has_a_part_of_it(api: Api, server: str) -> None:
    here = where(api, server)
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    host = api.cloud.host(here)
    host.faults.append(Fault("undefine", host.calls["undefine"] + 1, FaultKind.REFUSE, 99))
    try:
        act(api, server, {"confirmResize": None}, 204)
        become(api, server, "ACTIVE")
        path = f"/servers/{server}/action"
        for body in ({"migrate": None}, {"resize": {"flavorRef": "2"}},
                     {"os-migrateLive": {"host": None, "block_migration": "auto"}}):
            api.fails("POST", path, body, status=409, minor=30, says="ask again in a moment")
    finally:
        host.faults.clear()
    api.cloud.look_again()
    ended(api, server, "confirmed")
    assert one_copy(api.cloud, server) == other(here)
    in_balance(api.cloud)


def test_what_is_on_a_silent_host_stays(api: Api, server: str) -> None:
    here = where(api, server)
    host = api.cloud.host(here)
    host.cut_off()
    try:
        until(lambda: api.cloud.hosts_up() == 1, "it to be missed")
        for body in ({"migrate": None}, {"resize": {"flavorRef": "2"}}):
            api.fails("POST", f"/servers/{server}/action", body, status=409,
                      says="its host does not answer")
    finally:
        host.boot()
        until(lambda: api.cloud.hosts_up() == 2, "the host")


def test_it_comes_back_from_a_host_that_is_off(api: Api, server: str) -> None:
    here = where(api, server)
    migrate(api, server)
    become(api, server, "VERIFY_RESIZE")
    cloud, there = api.cloud, api.cloud.host(other(here))
    number = next(host.id for host in cloud.treadle.database.read(ledger.list_hosts)
                  if host.name == there.name)
    there.power_failure()
    try:
        act(api, server, {"revertResize": None})
        until(lambda: last(api, server)["status"] == "reverting", "it to wait")
        assert where(api, server) == there.name, "it may run there"
        cloud.treadle.database.write(lambda conn: ledger.force_down(conn, number, True))
        become(api, server, "ACTIVE")
        assert where(api, server) == here
        assert cloud.host(here).guests[server].power is Power.RUNNING
    finally:
        there.boot()
        cloud.treadle.database.write(lambda conn: ledger.force_down(conn, number, False))
        until(lambda: cloud.hosts_up() == 2, "the host")
    assert one_copy(cloud, server) == here, "what it left there is swept"
    in_balance(cloud)


def test_one_whose_image_was_deleted_lives_on_and_goes_where_it_never_was(
    api: Api, server: str
) -> None:
    made = api.ok("POST", f"/servers/{server}/action", {"createImage": {"name": named("of")}},
                  status=202, by="member", minor=45)["image_id"]
    become(api, server, "ACTIVE")
    body = {"server": {"name": named("heir"), "imageRef": made, "flavorRef": "1"}}
    heir = api.ok("POST", "/servers", body, status=202, by="member")["server"]["id"]
    become(api, heir, "ACTIVE")
    here = where(api, heir)
    api.ok("DELETE", f"/images/{made}", status=204, by="member")
    api.fails("GET", f"/images/{made}", status=404, by="member")
    act(api, heir, {"reboot": {"type": "HARD"}}, by="member")
    become(api, heir, "ACTIVE")
    for wish in ({"rebuild": {"imageRef": made}}, {"rescue": {"rescue_image_ref": made}}):
        api.fails("POST", f"/servers/{heir}/action", wish, status=400, by="member")
    api.fails("POST", f"/servers/{heir}/action", {"rescue": None}, status=409, by="member",
              says="has been deleted")
    migrate(api, heir, other(here))
    become(api, heir, "VERIFY_RESIZE")
    assert where(api, heir) == other(here)
    act(api, heir, {"confirmResize": None}, 204)
    become(api, heir, "ACTIVE")
    ended(api, heir, "confirmed")
    assert one_copy(api.cloud, heir) == other(here)
    act(api, heir, {"os-migrateLive": {"host": here, "block_migration": "auto"}}, minor=30)
    ended(api, heir, "completed")
    become(api, heir, "ACTIVE")
    assert one_copy(api.cloud, heir) == where(api, heir) == here
    api.ok("DELETE", f"/servers/{heir}", status=204, by="member")
    gone(api, heir)
    in_balance(api.cloud)
