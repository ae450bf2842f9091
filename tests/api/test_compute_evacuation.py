"""Evacuation from hosts that are off, through OpenStack's API, on simulated hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cloudkit import until
from computekit import Api, named, schema
from tempest.lib.services.compute.migrations_client import MigrationsClient
from test_compute_moves import in_balance, one_copy, where
from test_compute_servers import become, gone

from treadle.db.schema import image
from treadle.hypervisor.base import Power


@pytest.fixture
def server(api: Api) -> Iterator[str]:
    """One that asks to be evacuated."""
    id = made(api, {"treadle:ha": "evacuate"})
    yield id
    for host in api.cloud.fleet.hosts.values():
        host.boot()
    api.call("DELETE", f"/servers/{id}", by="member")
    gone(api, id)
    everything_is_up(api)


def made(api: Api, metadata: dict[str, str]) -> str:
    image_id = api.cloud.treadle.database.read(lambda conn: conn.execute(image.select()).one().uuid)
    body = {"server": {
        "name": named("ha"), "imageRef": image_id, "flavorRef": "1", "metadata": metadata,
    }}
    id: str = api.ok("POST", "/servers", body, status=202, by="member")["server"]["id"]
    become(api, id, "ACTIVE")
    return id


def service(api: Api, name: str) -> Any:
    found = api.get("/os-services", minor=53)["services"]
    return next(one for one in found if one["host"] == name)


def force_down(api: Api, name: str, down: bool) -> None:
    id = service(api, name)["id"]
    api.ok("PUT", f"/os-services/{id}", {"forced_down": down}, minor=53)


def everything_is_up(api: Api) -> None:
    for name in api.cloud.fleet.hosts:
        force_down(api, name, False)
    until(lambda: all(service(api, name)["state"] == "up" for name in api.cloud.fleet.hosts), "up")


def evacuate(api: Api, id: str, minor: int = 29, **more: Any) -> Any:
    return api.call("POST", f"/servers/{id}/action", {"evacuate": more}, minor=minor)


def ended(api: Api, id: str) -> Any:
    def look() -> Any:
        found = api.get(f"/os-migrations?instance_uuid={id}", minor=80)["migrations"]
        return found[0] if found and found[0]["status"] in ("done", "error", "cancelled") else None

    return until(look, "the evacuation's end")


def fail(api: Api, name: str) -> None:
    api.cloud.host(name).power_failure()
    force_down(api, name, True)


def test_it_is_built_anew_elsewhere_and_the_old_copy_is_swept(api: Api, server: str) -> None:
    before = api.get(f"/servers/{server}", minor=3)["server"]
    source = where(api, server)
    assert not api.cloud.host(source).guests[server].autostart
    fail(api, source)
    assert evacuate(api, server).status_code == 200
    done = ended(api, server)
    assert (done["status"], done["migration_type"]) == ("done", "evacuation"), done
    after = become(api, server, "ACTIVE")
    target = where(api, server)
    assert target != source == done["source_compute"]
    assert done["dest_compute"] == target
    assert api.cloud.host(target).guests[server].power is Power.RUNNING
    for same in ("id", "name", "key_name", "metadata", "created", "image", "flavor"):
        assert after[same] == before[same]
    in_balance(api.cloud)
    # The host is back: it starts nothing of it, and what it had is removed.
    api.cloud.host(source).boot()
    assert server not in api.cloud.host(source).running()
    assert one_copy(api.cloud, server) == target
    log = api.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
    assert log[0]["action"] == "evacuate"
    detail = api.get(
        f"/servers/{server}/os-instance-actions/{log[0]['request_id']}", minor=51
    )["instanceAction"]
    steps = {one["event"].rpartition("_")[2] for one in detail["events"]}
    assert {"place", "define", "start"} <= steps


@pytest.mark.parametrize("minor", [1, 14, 29, 68, 95])
def test_bodies_and_answers_by_version(api: Api, server: str, minor: int) -> None:
    fail(api, where(api, server))
    body: dict[str, Any] = {"adminPass": "secret"}
    if minor == 1:
        body["onSharedStorage"] = False
    if minor == 29:
        body["force"] = False
    answer = evacuate(api, server, minor, **body)
    assert answer.status_code == 200, answer.text
    assert (answer.json() if answer.content else None) == (
        {"adminPass": "secret"} if minor < 14 else None
    )
    assert ended(api, server)["status"] == "done"
    become(api, server, "SHUTOFF" if minor >= 95 else "ACTIVE")
    judge = schema(MigrationsClient, minor).list_migrations
    api.get("/os-migrations", minor=minor, judge=judge)


def test_what_is_refused(api: Api, server: str) -> None:
    source = where(api, server)
    other = "h2" if source == "h1" else "h1"
    action = f"/servers/{server}/action"
    api.fails("POST", action, {"evacuate": {}}, status=409, minor=29, says="not known to be off")
    assert api.call("POST", action, {"evacuate": {}}, minor=29, by="member").status_code == 403
    fail(api, source)
    for body, status, minor in (
        ({"host": "nowhere"}, 404, 29), ({"host": source}, 400, 29), ({"force": True}, 400, 14),
        ({"force": True}, 400, 68), ({}, 400, 1), ({"onSharedStorage": True}, 400, 1),
        ({"onSharedStorage": False}, 400, 14),
    ):
        assert evacuate(api, server, minor, **body).status_code == status, (body, minor)
    assert evacuate(api, server, 29, host=other).status_code == 200
    assert ended(api, server)["dest_compute"] == other


def test_a_host_that_answers_keeps_what_it_has_whatever_is_said(api: Api, server: str) -> None:
    source = where(api, server)
    force_down(api, source, True)
    assert evacuate(api, server).status_code == 200
    shown = api.get(f"/os-migrations?instance_uuid={server}", minor=80)["migrations"][0]
    assert shown["status"] == "accepted"
    assert evacuate(api, server).status_code == 409
    assert server in api.cloud.host(source).running()
    # Nobody says any more that it is off.
    force_down(api, source, False)
    assert ended(api, server)["status"] == "error"
    become(api, server, "ACTIVE")
    assert where(api, server) == one_copy(api.cloud, server) == source


def test_deleting_it_meanwhile_leaves_nothing(api: Api, server: str) -> None:
    source = where(api, server)
    force_down(api, source, True)
    evacuate(api, server)
    api.ok("DELETE", f"/servers/{server}", status=204, by="member")
    gone(api, server)
    until(lambda: server not in api.cloud.guests(), "nothing left")
    assert ended(api, server)["status"] == "cancelled"


def test_where_no_host_has_room_it_waits_until_there_is_or_its_own_is_back(
    api: Api, server: str
) -> None:
    source = where(api, server)
    other = "h2" if source == "h1" else "h1"
    id = service(api, other)["id"]
    api.ok("PUT", f"/os-services/{id}", {"status": "disabled"}, minor=53)
    fail(api, source)
    assert evacuate(api, server).status_code == 200
    shown = api.get(f"/servers/{server}")["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("REBUILD", "rebuilding")
    api.cloud.host(source).boot()
    force_down(api, source, False)
    assert ended(api, server)["status"] == "error"
    become(api, server, "ACTIVE")
    assert one_copy(api.cloud, server) == where(api, server) == source
    api.ok("PUT", f"/os-services/{id}", {"status": "enabled"}, minor=53)
    in_balance(api.cloud)
