"""Hosts that fail, on simulated ones: what the watch makes of it, fences, and the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cloudkit import ROOMY, Cloud, Start, until
from test_placement import command

from treadle.compute import actions, creating, store
from treadle.compute.creating import Wish
from treadle.compute.failure.verdict import Verdict
from treadle.compute.failure.watch import Watch, WatchPolicy
from treadle.compute.model import HA_KEY, Instance, State
from treadle.hypervisor.base import Reach
from treadle.hypervisor.fake_host import Fault, FaultKind

HOSTS = tuple(f"fake://h{n}{ROOMY}" for n in (1, 2, 3))


class Sight:
    """What this controller and other hosts see; `blind`: names that neither does."""

    def __init__(self, cloud: Cloud, *, fences: bool = True) -> None:
        self.cloud = cloud
        self.now = 0.0
        self.here: dict[str, Reach] = {}
        self.there: dict[str, Reach] = {}
        treadle = cloud.treadle
        self.watch = Watch(
            treadle.database, treadle.fleet, treadle.signals, WatchPolicy(fences=fences),
            lambda uri, _s: self.here.get(_name(uri), Reach.SILENT),
            lambda _peer, uri, _s: self.there.get(_name(uri), Reach.UNKNOWN),
        )
        self.watch.hint = treadle.controller.hint
        self.look()

    def look(self, seconds: float = 0.0) -> dict[str, Verdict]:
        """The verdicts, by name, that much later."""
        self.now += seconds
        return {f"h{id}": v for id, v in self.watch.look(lambda: self.now).items()}


def _name(uri: str) -> str:
    return uri.partition("//")[2].partition("?")[0]


@pytest.fixture
def begin(start: Start) -> Callable[..., Cloud]:
    """Starts three hosts with a fence that is this program."""

    def run(*program: str, **settings: object) -> Cloud:
        return start(*HOSTS, settings={
            "fencing.plugin": "command", "fencing.command": list(program or ("true",)), **settings
        })

    return run


def on_first(cloud: Cloud, name: str, ha: str = "") -> Instance:
    """One that runs on the first host."""
    for other in (2, 3):
        cloud.native("POST", f"/hosts/{other}/disable", json={})
    made = cloud.treadle.database.write(lambda conn: creating.create(
        conn, Wish(name, 1, None, metadata={HA_KEY: ha} if ha else {}), request_id="req",
        build_deadline_s=60,
    ))
    cloud.treadle.signals.work_is_due()
    until(lambda: get(cloud, made[0].id).state is State.RUNNING, "it")
    for other in (2, 3):
        cloud.native("POST", f"/hosts/{other}/enable")
    return get(cloud, made[0].id)


def get(cloud: Cloud, id: int) -> Instance:
    found = cloud.treadle.database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


def fence(cloud: Cloud, id: int = 1) -> Any:
    return cloud.native("GET", f"/hosts/{id}").json()["fence"]


def elsewhere(cloud: Cloud, id: int) -> None:
    def moved() -> bool:
        row = get(cloud, id)
        return row.host_id in (2, 3) and row.state is State.RUNNING

    until(moved, "it to run elsewhere")


def test_a_dead_host_is_fenced_and_who_asks_is_evacuated(begin: Callable[..., Cloud]) -> None:
    cloud = begin()
    asks, waits = on_first(cloud, "asks", "evacuate"), on_first(cloud, "waits")
    sight = Sight(cloud)
    assert set(sight.look(1.0).values()) == {Verdict.ANSWERS}
    cloud.host("h1").power_failure()
    assert sight.look(7.0)["h1"] is Verdict.DOUBT
    assert fence(cloud)["state"] == "none"
    assert sight.look(1.5)["h1"] is Verdict.GONE
    elsewhere(cloud, asks.id)
    assert fence(cloud)["state"] == "off"
    assert "h1" not in sight.look(2.0)
    steps = cloud.native("GET", f"/instances/{asks.id}").json()["actions"][-1]["steps"]
    assert [one["name"] for one in steps][:2] == ["fence", "place"]
    stays = get(cloud, waits.id)
    assert (stays.host_id, stays.state) == (1, State.RUNNING)
    assert "waits" in str(stays.fault)
    assert cloud.host("h1").guests[waits.uuid].autostart
    cloud.host("h1").boot()
    until(lambda: asks.uuid not in cloud.host("h1").guests, "the old copy to go")
    until(lambda: fence(cloud)["state"] == "none", "the host to be in use again")
    until(lambda: get(cloud, waits.id).fault is None, "what has waited to run")
    assert sight.look(2.0)["h1"] is Verdict.ANSWERS


@pytest.mark.parametrize(("here", "there", "verdict"), [
    (Reach.OPEN, Reach.UNKNOWN, Verdict.DAEMON),
    (Reach.REFUSED, Reach.UNKNOWN, Verdict.DAEMON),
    (Reach.SILENT, Reach.OPEN, Verdict.ASIDE),
    (Reach.UNKNOWN, Reach.UNKNOWN, Verdict.UNSEEN),
])
def test_a_host_that_somebody_reaches_is_left_alone(
    begin: Callable[..., Cloud], here: Reach, there: Reach, verdict: Verdict
) -> None:
    cloud = begin()
    asks = on_first(cloud, "asks", "evacuate")
    sight = Sight(cloud)
    sight.here["h1"], sight.there["h1"] = here, there
    cloud.host("h1").cut_off()
    for _ in range(4):
        found = sight.look(10.0)
    assert found["h1"] is verdict
    assert fence(cloud)["state"] == "none"
    assert get(cloud, asks.id).host_id == 1
    assert asks.uuid in cloud.host("h1").running()
    cloud.host("h1").boot()


def test_nobody_is_fenced_where_too_many_are_silent_at_once(begin: Callable[..., Cloud]) -> None:
    cloud = begin()
    sight = Sight(cloud)
    for name in ("h1", "h2"):
        cloud.host(name).cut_off()
    for _ in range(3):
        found = sight.look(10.0)
    assert found == {"h1": Verdict.CUT_OFF, "h2": Verdict.CUT_OFF, "h3": Verdict.ANSWERS}
    assert {fence(cloud, id)["state"] for id in (1, 2, 3)} == {"none"}
    # One of them is out of use, for repair: it does not count, and is not touched.
    cloud.native("POST", "/hosts/2/disable", json={})
    assert sight.look(2.0)["h1"] is Verdict.GONE
    until(lambda: fence(cloud, 1)["state"] == "off", "the fence")
    assert fence(cloud, 2)["state"] == "none"


def test_a_fence_that_fails_keeps_all_where_it_is_until_an_operator_speaks(
    begin: Callable[..., Cloud]
) -> None:
    cloud = begin("false")
    asks = on_first(cloud, "asks", "evacuate")
    sight = Sight(cloud)
    cloud.host("h1").power_failure()
    sight.look(9.0)
    until(lambda: "cannot switch it off" in str(fence(cloud)["note"]), "the fence to fail")
    assert fence(cloud)["state"] == "asked"
    assert get(cloud, asks.id).host_id == 1
    said = command(cloud, "host", "fence-confirmed", "1")
    assert (said.exit_code, said.stdout) == (0, "1 are evacuated, 0 stay\n"), said.output
    elsewhere(cloud, asks.id)


def test_a_host_is_not_used_again_before_what_it_had_is_gone(begin: Callable[..., Cloud]) -> None:
    cloud = begin()
    asks = on_first(cloud, "asks", "evacuate")
    sight = Sight(cloud)
    machine = cloud.host("h1")
    machine.power_failure()
    sight.look(9.0)
    elsewhere(cloud, asks.id)
    machine.faults.append(Fault("undefine", machine.calls["undefine"] + 1, FaultKind.REFUSE, 2))
    before = machine.calls["undefine"]
    machine.boot()
    until(lambda: machine.calls["undefine"] > before, "the sweep")
    host = cloud.native("GET", "/hosts/1").json()
    assert (host["state"], host["fence"]["state"]) == ("down", "off")
    until(lambda: cloud.native("GET", "/hosts/1").json()["state"] == "up", "it to be in use")
    assert asks.uuid not in machine.guests


def test_what_is_deleted_leaves_a_host_that_is_off(begin: Callable[..., Cloud]) -> None:
    cloud = begin()
    waits = on_first(cloud, "waits")
    sight = Sight(cloud)
    cloud.host("h1").power_failure()
    until(lambda: cloud.native("GET", "/hosts/1").json()["state"] == "down", "down")
    cloud.treadle.database.write(lambda conn: actions.delete(conn, waits.id, request_id="req"))
    assert get(cloud, waits.id).state is State.RUNNING
    sight.look(9.0)
    until(lambda: get(cloud, waits.id).state is State.DELETED, "the end of it")
    assert cloud.native("DELETE", "/hosts/1").status_code == 200


def test_a_host_that_is_back_before_it_was_fenced_is_not(begin: Callable[..., Cloud]) -> None:
    cloud = begin("false")
    on_first(cloud, "asks", "evacuate")
    sight = Sight(cloud)
    cloud.host("h1").cut_off()
    sight.look(9.0)
    until(lambda: fence(cloud)["state"] == "asked", "the fence to be asked for")
    cloud.host("h1").boot()
    until(lambda: fence(cloud)["state"] == "none", "that to be dropped")
    assert sight.look(2.0)["h1"] is Verdict.ANSWERS


def test_without_a_fence_the_operator_is_told_and_does_it(start: Start) -> None:
    cloud = start(*HOSTS)
    asks, waits = on_first(cloud, "asks", "evacuate"), on_first(cloud, "waits")
    sight = Sight(cloud, fences=False)
    for path in ("fence-confirmed", "evacuate"):
        assert cloud.native("POST", f"/hosts/1/{path}", json={}).status_code == 409
        assert cloud.native("POST", f"/hosts/9/{path}", json={}).status_code == 404
        assert cloud.client.post(f"/treadle/v1/hosts/1/{path}", json={}).status_code == 403
    assert command(cloud, "host", "fence-confirmed", "1").exit_code == 1
    cloud.host("h1").power_failure()
    sight.look(9.0)
    assert "treadle host fence-confirmed 1" in fence(cloud)["note"]
    assert get(cloud, asks.id).host_id == 1
    assert cloud.native("POST", "/hosts/1/evacuate", json={}).status_code == 409
    said = cloud.native("POST", "/hosts/1/fence-confirmed").json()
    assert len(said["evacuations"]) == 1
    assert [one["name"] for one in said["stays"]] == ["waits"]
    elsewhere(cloud, asks.id)
    move = cloud.native("GET", f"/moves/{said['evacuations'][0]}").json()
    assert (move["kind"], move["stage"]) == ("evacuation", "done")
    said = command(cloud, "host", "evacuate", "1", "--everyone")
    assert said.exit_code == 0, said.output
    elsewhere(cloud, waits.id)
    assert cloud.native("GET", "/hosts/1").json()["instances"] == 0


def test_the_default_says_it_for_those_that_do_not(start: Start) -> None:
    cloud = start(*HOSTS, settings={"instances.on_host_failure": "evacuate"})
    unsaid, waits = on_first(cloud, "unsaid"), on_first(cloud, "waits", "wait")
    guests = cloud.host("h1").guests
    assert (guests[unsaid.uuid].autostart, guests[waits.uuid].autostart) == (False, True)
    cloud.host("h1").power_failure()
    until(lambda: cloud.native("GET", "/hosts/1").json()["state"] == "down", "down")
    said = cloud.native("POST", "/hosts/1/fence-confirmed").json()
    assert [one["name"] for one in said["stays"]] == ["waits"]
    elsewhere(cloud, unsaid.id)
