"""Live migration through OpenStack's API, on simulated hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from cloudkit import PATIENCE_S, Cloud, until
from computekit import Api, named, schema
from tempest.lib.services.compute.migrations_client import MigrationsClient
from test_compute_servers import become, gone

from treadle.compute.moves import store as moves
from treadle.db.schema import image
from treadle.hypervisor.base import HostRefused
from treadle.hypervisor.fake_host import FakeHost, Fault, FaultKind
from treadle.placement import ledger


@pytest.fixture
def server(api: Api) -> Any:
    image_id = api.cloud.treadle.database.read(lambda conn: conn.execute(image.select()).one().uuid)
    body = {"server": {"name": named("mover"), "imageRef": image_id, "flavorRef": "1"}}
    id = api.ok("POST", "/servers", body, status=202, by="member")["server"]["id"]
    become(api, id, "ACTIVE")
    yield id
    api.call("DELETE", f"/servers/{id}", by="member")
    gone(api, id)


def where(api: Api, id: str) -> str:
    found: str = api.get(f"/servers/{id}")["server"]["OS-EXT-SRV-ATTR:host"]
    return found


def migrate(api: Api, id: str, host: str | None = None, **more: Any) -> Any:
    body = {"os-migrateLive": {"host": host, "block_migration": "auto"}}
    return api.call("POST", f"/servers/{id}/action", body, minor=30, **more)


def ended(api: Api, id: str) -> dict[str, Any]:
    def look() -> Any:
        found = api.get(f"/os-migrations?instance_uuid={id}", minor=80)["migrations"]
        over = found and found[0]["status"] in ("completed", "error", "cancelled")
        return found[0] if over else None

    last: dict[str, Any] = until(look, "the migration's end")
    return last


def one_copy(cloud: Cloud, uuid: str) -> str:
    """The name of the one machine that has anything of it."""
    until(lambda: len([h for h in cloud.fleet.hosts.values() if uuid in h.guests]) == 1,
          "one copy")
    return next(name for name, host in cloud.fleet.hosts.items() if uuid in host.guests)


def in_balance(cloud: Cloud) -> None:
    """The ledger holds what allocations and moves under way say, and no more."""
    assert cloud.treadle.database.read(moves.held) == []
    hosts = cloud.treadle.database.read(ledger.list_hosts)
    assert sum(host.instances for host in hosts) == cloud.allocations()


def test_it_goes_to_the_other_host_and_back(api: Api, server: str) -> None:
    before = where(api, server)
    assert migrate(api, server).content == b""
    done = ended(api, server)
    assert done["status"] == "completed", done
    become(api, server, "ACTIVE")
    after = where(api, server)
    assert {before, after} == {"h1", "h2"}
    assert one_copy(api.cloud, server) == after
    assert migrate(api, server, before).status_code == 202
    ended(api, server)
    become(api, server, "ACTIVE")
    assert where(api, server) == before
    in_balance(api.cloud)
    log = api.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
    assert [one["action"] for one in log[:2]] == ["live-migration", "live-migration"]


def test_a_paused_one_stays_paused(api: Api, server: str) -> None:
    api.ok("POST", f"/servers/{server}/action", {"pause": None}, status=202)
    become(api, server, "PAUSED")
    migrate(api, server)
    assert ended(api, server)["status"] == "completed"
    become(api, server, "PAUSED")
    api.ok("POST", f"/servers/{server}/action", {"unpause": None}, status=202)
    become(api, server, "ACTIVE")


@pytest.mark.parametrize("minor", [1, 23, 59, 80])
def test_lists_are_as_tempest_wants_them(api: Api, server: str, minor: int) -> None:
    migrate(api, server)
    ended(api, server)
    become(api, server, "ACTIVE")
    judge = schema(MigrationsClient, minor).list_migrations
    found = api.get("/os-migrations", minor=minor, judge=judge)["migrations"]
    assert found[0]["instance_uuid"] == server
    assert api.get(f"/servers/{server}/migrations", minor=23)["migrations"] == []


@pytest.mark.parametrize("kind", [
    FaultKind.REFUSE, FaultKind.LOSE_BEFORE, FaultKind.LOSE_AFTER, FaultKind.LATE, FaultKind.HANG,
])
@pytest.mark.parametrize("verb", ["expect", "move"])
def test_a_fault_on_the_way_leaves_one_copy_that_runs(
    api: Api, server: str, kind: FaultKind, verb: str
) -> None:
    source = where(api, server)
    target = "h2" if source == "h1" else "h1"
    host = api.cloud.host(source if verb == "move" else target)
    host.faults.append(Fault(verb, host.calls[verb] + 1, kind))
    migrate(api, server)
    done = ended(api, server)
    become(api, server, "ACTIVE")
    now = where(api, server)
    arrived = verb == "move" and kind in (FaultKind.LOSE_AFTER, FaultKind.LATE)
    assert (done["status"], now) == (
        ("completed", target) if arrived else ("error", source)
    )
    assert one_copy(api.cloud, server) == now
    in_balance(api.cloud)
    host.faults.clear()


@pytest.mark.parametrize(("what", "own", "unfit", "fit", "says"), [
    ("machines", ("fake-1",), ("fake-0",), ("fake-0", "fake-1"),
     "has no machine type fake-1, which the guest runs on"),
    ("features", ("aes", "sse"), ("sse", "svm"), ("aes", "sse", "svm"),
     "its processor (Fake 1) lacks aes, which the guest's (Fake 1) has"),
], ids=["machine type", "processor"])
def test_a_host_on_which_the_guest_cannot_go_on_is_no_target(
    api: Api, server: str, what: str, own: tuple[str, ...], unfit: tuple[str, ...],
    fit: tuple[str, ...], says: str,
) -> None:
    here = api.cloud.host(where(api, server))
    there = api.cloud.host("h2" if here.name == "h1" else "h1")
    database = api.cloud.treadle.database

    def offers(host: FakeHost, names: tuple[str, ...]) -> None:
        setattr(host, what, names)
        until(lambda: any(
            known.facts and getattr(known.facts, what) == names and known.name == host.name
            for known in database.read(ledger.list_hosts)
        ), "it to be known")

    before = getattr(there, what)
    offers(here, own)
    offers(there, unfit)
    try:
        migrate(api, server)
        assert ended(api, server)["status"] == "error"
    finally:
        offers(there, fit)
    become(api, server, "ACTIVE")
    [(move, *_)] = [one for one in database.read(lambda conn: list(moves.every(conn, 100)))
                    if one[1] == server]
    assert says in str(move.error)
    migrate(api, server)
    assert ended(api, server)["status"] == "completed"
    assert one_copy(api.cloud, server) == there.name
    become(api, server, "ACTIVE")
    for host in (here, there):
        offers(host, before)
    in_balance(api.cloud)


@contextmanager
def on_its_way(api: Api, id: str, until_called: str, refused: bool = False) -> Iterator[int]:
    """The number of a move that goes on until its source is called so; then it is `refused`."""
    host = api.cloud.host(where(api, id))
    begun, asked = Event(), Event()

    def trap(when: str, verb: str, uuid: str) -> None:
        if (when, uuid) != ("before", id):
            return
        if verb == "move":
            begun.set()
            assert asked.wait(PATIENCE_S)
            if refused:
                raise HostRefused("it was ended")
        elif verb == until_called:
            asked.set()

    host.trap = trap
    try:
        migrate(api, id)
        assert begun.wait(PATIENCE_S)
        [under_way] = api.get(f"/servers/{id}/migrations", minor=23)["migrations"]
        assert under_way["status"] == "running"
        yield under_way["id"]
    finally:
        asked.set()
        host.trap = None


def test_one_that_is_aborted_stays_where_it_is(api: Api, server: str) -> None:
    here = where(api, server)
    with on_its_way(api, server, "abort_move", refused=True) as number:
        path = f"/servers/{server}/migrations/{number}"
        assert api.ok("DELETE", path, status=202, minor=24) is None
        assert ended(api, server)["status"] == "cancelled"
    become(api, server, "ACTIVE")
    assert where(api, server) == one_copy(api.cloud, server) == here
    in_balance(api.cloud)
    api.fails("DELETE", path, status=409, minor=24, says="has ended")
    api.fails("DELETE", f"/servers/{server}/migrations/999999", status=404, minor=24)


def test_one_that_is_forced_to_complete_comes_to_its_end(api: Api, server: str) -> None:
    here = where(api, server)
    force = {"force_complete": None}
    with on_its_way(api, server, "hurry_move") as number:
        path = f"/servers/{server}/migrations/{number}/action"
        api.ok("POST", path, force, status=202, minor=22)
        assert ended(api, server)["status"] == "completed"
    become(api, server, "ACTIVE")
    assert where(api, server) == one_copy(api.cloud, server) != here
    in_balance(api.cloud)
    api.fails("POST", path, force, status=409, minor=22, says="has ended")


def test_what_cannot_be_moved_is_refused(api: Api, server: str) -> None:
    here = where(api, server)
    assert migrate(api, server, "nowhere").status_code == 400
    assert migrate(api, server, here).status_code == 400
    assert migrate(api, server, by="member").status_code == 403
    api.ok("POST", f"/servers/{server}/action", {"os-stop": None}, status=202)
    become(api, server, "SHUTOFF")
    api.fails("POST", f"/servers/{server}/action",
              {"os-migrateLive": {"host": None, "block_migration": "auto"}}, status=409, minor=30,
              says="while it is in vm_state stopped")
    api.fails("DELETE", f"/servers/{server}/migrations/1", status=404, minor=24)


def test_deleting_it_on_the_way_leaves_nothing(api: Api, server: str) -> None:
    host = api.cloud.host(where(api, server))
    host.faults.append(Fault("move", host.calls["move"] + 1, FaultKind.REFUSE))
    migrate(api, server)
    api.ok("DELETE", f"/servers/{server}", status=204, by="member")
    gone(api, server)
    until(lambda: all(server not in one.guests for one in api.cloud.fleet.hosts.values()),
          "nothing left")
    host.faults.clear()
    in_balance(api.cloud)
