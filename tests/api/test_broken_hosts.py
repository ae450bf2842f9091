"""What callers are told, and what is left behind, when machines fail under their requests."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from cloudkit import ROOMY, Cloud, Start, assert_failure, until

from treadle.api import classic
from treadle.compute import hosts
from treadle.hypervisor.fake_host import FakeHost, Fault, FaultKind


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "DELETE_WAIT_S", 0.3)
    monkeypatch.setattr(classic, "ACT_SLACK_S", 0.1)
    monkeypatch.setattr(hosts, "DOWN_POLL_S", 0.05)


def clean(cloud: Cloud) -> bool:
    """Nothing of any instance is left anywhere."""
    return not cloud.guests() and not cloud.allocations() and not cloud.open_work()


@pytest.mark.parametrize("verb", ["ensure_image", "define"])
@pytest.mark.parametrize("kind", [FaultKind.DIE_BEFORE, FaultKind.DIE_AFTER])
def test_a_host_that_dies_while_a_vm_is_made_costs_the_caller_nothing(
    start: Start, verb: str, kind: FaultKind
) -> None:
    cloud = start()
    fired = threading.Event()

    def first_of(host: FakeHost) -> Callable[[str, str, str], None]:
        def trap(when: str, called: str, _uuid: str) -> None:
            if (when, called) == ("before", verb) and not fired.is_set():
                fired.set()
                host.faults.append(Fault(verb, host.calls[verb] + 1, kind))

        return trap

    for host in cloud.fleet.hosts.values():
        host.trap = first_of(host)
    vmid = cloud.create()
    dead = [h for h in cloud.fleet.hosts.values() if not h.up]
    [alive] = [h for h in cloud.fleet.hosts.values() if h.up]
    assert len(dead) == 1
    assert len(alive.running()) == 1
    found = cloud.query(vmid)
    assert found["state"] == "running"
    assert cloud.ok(f"/pm/query?pmid={found['pmid']}")["address"] == alive.name
    # The dead one comes back, and what it kept of the VM is swept away.
    dead[0].boot()
    until(lambda: cloud.hosts_up() == 2)
    until(lambda: (cloud.look_again() or True) and not dead[0].guests)
    assert len(alive.running()) == 1
    assert cloud.ok(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    until(lambda: clean(cloud))


def test_a_host_that_refuses_is_passed_over(start: Start) -> None:
    cloud = start()
    first = cloud.host("h1")
    first.faults.append(Fault("define", 1, FaultKind.FULL, times=100))
    for _ in range(3):
        assert cloud.query(cloud.create())["pmid"] == 2
    assert not first.guests


def test_hosts_that_all_refuse_are_named_with_what_they_said(start: Start) -> None:
    cloud = start()
    for host in cloud.fleet.hosts.values():
        host.faults.append(Fault("define", 1, FaultKind.FULL, times=100))
    says = cloud.fails("/vm/create?name=web&instance_type=1", 503, {"vmid": 0})
    assert "has no disk left" in says
    until(lambda: clean(cloud))
    assert cloud.ok("/vm/list") == {"vmids": []}


def test_a_batch_in_which_one_is_refused_leaves_nothing(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    cloud.host("h1").faults.append(Fault("start", 2, FaultKind.REFUSE, times=100))
    cloud.fails("/vm/create?name=web&instance_type=1&count=3", 503, {"vmid": 0})
    until(lambda: clean(cloud))
    assert cloud.used() == [(0, 0, 0)]


def test_a_host_that_is_down_at_the_start_is_listed_and_joins_when_it_answers(
    start: Start,
) -> None:
    cloud = start(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}", down=("h2",))
    assert cloud.ok("/pm/list") == {"pmids": [1, 2]}
    body = until(lambda: (
        b := cloud.ok("/pm/query?pmid=2")
    ).get("reason") and b)
    assert body["state"] == "down"
    assert body["capacity"] == {"cpu": 0, "ram": 0, "disk": 0}
    assert "h2 does not answer" in body["reason"]
    assert cloud.ok("/healthz") == {"status": "ok", "hosts_up": 1, "hosts": 2}
    assert cloud.query(cloud.create())["pmid"] == 1
    cloud.host("h2").boot()
    body = until(lambda: (b := cloud.ok("/pm/query?pmid=2"))["state"] == "up" and b)
    assert "error" not in body
    assert body["free"] == body["capacity"] != {"cpu": 0, "ram": 0, "disk": 0}


def test_with_no_host_that_answers_the_answer_says_so(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}", down=("h1",))
    until(lambda: "reason" in cloud.ok("/pm/query?pmid=1"))
    says = cloud.fails("/vm/create?name=web&instance_type=1", 503, {"vmid": 0})
    assert "down" in says
    until(lambda: clean(cloud))


def test_destroying_on_a_dead_host_is_answered_honestly_and_done_when_it_is_back(
    start: Start,
) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create()
    [uuid] = cloud.guests()
    host = cloud.host("h1")
    host.power_failure()
    until(lambda: cloud.hosts_up() == 0)
    cloud.fails(
        f"/vm/destroy?vmid={vmid}", 503, {"status": 0}, "it is removed when the machine is back"
    )
    assert cloud.query(vmid)["state"] == "deleting"
    cloud.fails(f"/vm/destroy?vmid={vmid}", 503, {"status": 0})
    cloud.fails(f"/vm/start?vmid={vmid}", 409, {"status": 0}, "deleting")
    assert uuid in host.guests
    host.boot()
    until(lambda: cloud.get(f"/vm/query?vmid={vmid}").status_code == 404)
    until(lambda: clean(cloud))
    cloud.fails(f"/vm/destroy?vmid={vmid}", 404, {"status": 0}, "has been deleted")


def test_a_vm_whose_host_died_runs_again_when_the_host_is_back(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create()
    host = cloud.host("h1")
    host.power_failure()
    until(lambda: cloud.hosts_up() == 0)
    assert cloud.query(vmid)["pmid"] == 1
    host.boot()
    until(lambda: len(host.running()) == 1)
    assert cloud.query(vmid)["state"] == "running"


def test_an_action_on_a_dead_host_says_that_it_was_not_done(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}", settings={"controller.stop_deadline_s": 1.0})
    vmid = cloud.create()
    cloud.host("h1").power_failure()
    until(lambda: cloud.hosts_up() == 0)
    says = cloud.fails(f"/vm/stop?vmid={vmid}", 503, {"status": 0}, f"VM {vmid} did not stop")
    assert says
    cloud.host("h1").boot()
    until(lambda: cloud.query(vmid)["state"] == "stopped")


def test_a_guest_that_ignores_the_button_is_stopped_all_the_same(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}", settings={"controller.stop_deadline_s": 1.0})
    vmid = cloud.create()
    [uuid] = cloud.guests()
    cloud.host("h1").guests[uuid].ignores_acpi = True
    assert cloud.ok(f"/vm/stop?vmid={vmid}") == {"status": 1}
    assert cloud.query(vmid)["state"] == "stopped"


def test_a_guest_that_ends_by_itself_is_shown_as_stopped(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create()
    [uuid] = cloud.guests()
    cloud.host("h1").guest_powers_off(uuid)
    found = until(lambda: (b := cloud.query(vmid))["state"] == "stopped" and b)
    assert "shut itself down" in found["reason"]
    assert cloud.ok(f"/vm/start?vmid={vmid}") == {"status": 1}
    assert "error" not in cloud.query(vmid)


def test_a_verb_that_is_lost_on_the_way_is_done_again(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    for verb in ("define", "start", "pause", "undefine"):
        for kind in (FaultKind.LOSE_AFTER, FaultKind.LOSE_BEFORE):
            host = cloud.host("h1")
            host.faults = [Fault(verb, host.calls[verb] + 1, kind)]
            vmid = cloud.create()
            assert cloud.ok(f"/vm/pause?vmid={vmid}") == {"status": 1}
            answer = cloud.get(f"/vm/destroy?vmid={vmid}")
            if answer.status_code != 200:
                assert_failure(answer, 503, {"status": 0})
            until(lambda: clean(cloud))


def test_a_hung_host_holds_up_only_its_own(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}", settings={"controller.resync_s": 60.0})
    gate = threading.Event()
    vmid = cloud.create()
    hung = cloud.host(f"h{cloud.query(vmid)['pmid']}")
    hung.trap = lambda when, _verb, _uuid: gate.wait(20) if when == "before" else None
    threads = [
        threading.Thread(target=cloud.get, args=(f"/vm/pause?vmid={vmid}",)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    hung.memory_mib = 0
    other = 3 - cloud.query(vmid)["pmid"]
    cloud.native("POST", "/hosts", json={"uri": f"fake://h3{ROOMY}"})
    until(lambda: cloud.hosts_up() == 3)
    assert cloud.ok(f"/pm/query?pmid={other}")["state"] == "up"
    gate.set()
    for thread in threads:
        thread.join(20)


def test_a_machine_that_is_added_twice_is_used_once(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    vmid = cloud.create()
    added = cloud.native("POST", "/hosts", json={"uri": "fake://h1", "name": "again"}).json()

    def refused() -> str:
        shown = cloud.native("GET", f"/hosts/{added['id']}").json()
        return str(shown["error"] or "") if shown["state"] == "down" else ""

    assert "the same machine as host h1" in until(refused, "the refusal")
    cloud.look_again()
    assert cloud.query(vmid)["state"] == "running"
    assert len(cloud.guests()) == 1
