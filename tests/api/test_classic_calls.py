"""Every call of the classic API: what it answers when all is well, and when it is not."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from cloudkit import ROOMY, Cloud, Start, assert_failure, until

from treadle.api.classic import CALLS

# What the documentation says a failing call answers, besides the sentence.
FAILURES: dict[str, dict[str, Any]] = {
    "/vm/create": {"vmid": 0}, "/vm/query": {"vmid": 0}, "/vm/destroy": {"status": 0},
    "/vm/start": {"status": 0}, "/vm/stop": {"status": 0}, "/vm/reboot": {"status": 0},
    "/vm/pause": {"status": 0}, "/vm/resume": {"status": 0}, "/vm/suspend": {"status": 0},
    "/vm/list": {"vmids": 0}, "/vm/types": {"types": 0}, "/pm/list": {"pmids": 0},
    "/pm/listvms": {"vmids": 0}, "/pm/query": {"pmid": 0}, "/image/list": {"images": 0},
    "/volume/create": {"volumeid": 0}, "/volume/query": {}, "/volume/destroy": {"status": 0},
    "/volume/attach": {"status": 0}, "/volume/detach": {"status": 0},
}


def test_the_calls_are_those_of_the_documentation() -> None:
    assert {spec.path for spec in CALLS} == set(FAILURES)


# -- creating


def test_create_answers_when_the_vm_runs(cloud: Cloud) -> None:
    answer = cloud.ok("/vm/create?name=test_vm&instance_type=2&image_id=1")
    vmid = answer["vmid"]
    assert answer == {"vmid": vmid}
    assert vmid > 0
    [(host, uuid)] = [(h, u) for h in cloud.fleet.hosts.values() for u in h.running()]
    spec = host.guests[uuid].spec
    assert (spec.vcpus, spec.memory_mib, spec.disk_gib, spec.name) == (2, 1024, 4, "test_vm")
    assert spec.seed.hostname == "test-vm"
    found = cloud.query(vmid)
    assert found.pop("ip", "")
    pmid = 1 + list(cloud.fleet.hosts).index(host.name)
    assert found == {
        "vmid": vmid, "name": "test_vm", "instance_type": 2, "pmid": pmid, "state": "running",
    }


def test_create_without_an_image_takes_the_first(cloud: Cloud) -> None:
    assert cloud.query(cloud.create())["state"] == "running"


def test_create_takes_a_form_as_well(cloud: Cloud) -> None:
    form = {"name": "posted", "instance_type": "1"}
    answer = cloud.client.post("/vm/create", data=form)
    assert answer.status_code == 200
    vmid = answer.json()["vmid"]
    assert cloud.query(vmid)["name"] == "posted"
    both = cloud.client.post(f"/vm/destroy?vmid={vmid}")
    assert both.json() == {"status": 1}
    kind = "Application/X-WWW-Form-URLencoded; Charset=UTF-8"
    answer = cloud.client.post(
        "/vm/create", content=b"name=again&instance_type=1", headers={"Content-Type": kind}
    )
    assert answer.json()["vmid"] > vmid


def test_create_with_a_count_answers_all_of_them(cloud: Cloud) -> None:
    answer = cloud.ok("/vm/create?name=web&instance_type=1&count=3")
    vmids = answer["vmids"]
    assert answer == {"vmid": vmids[0], "vmids": vmids}
    assert len(set(vmids)) == 3
    assert [cloud.query(v)["name"] for v in vmids] == ["web-1", "web-2", "web-3"]
    assert {cloud.query(v)["state"] for v in vmids} == {"running"}
    one = cloud.ok("/vm/create?name=web&instance_type=1&count=1")
    assert one == {"vmid": one["vmid"], "vmids": [one["vmid"]]}
    assert cloud.query(one["vmid"])["name"] == "web"


def test_create_that_does_not_wait_answers_at_once(start: Start) -> None:
    cloud = start(controller=False)
    until(lambda: True)
    cloud.treadle.controller.start()
    until(lambda: cloud.image_states() == ["active"])
    gate = threading.Event()
    for host in cloud.fleet.hosts.values():
        host.trap = lambda when, verb, _uuid: (
            gate.wait(20) if (when, verb) == ("before", "define") else None
        )
    vmid = cloud.ok("/vm/create?name=web&instance_type=1&wait=0")["vmid"]
    assert cloud.query(vmid)["state"] == "building"
    gate.set()
    until(lambda: cloud.query(vmid)["state"] == "running")
    assert cloud.ok("/vm/create?name=web&instance_type=1&wait=1")["vmid"] > vmid


def test_a_vm_that_was_not_waited_for_tells_later_why_it_failed(start: Start) -> None:
    cloud = start("fake://h1?vcpus=1&memory_mib=1024&disk_mib=100000")
    vmid = cloud.ok("/vm/create?name=big&instance_type=3&wait=0")["vmid"]
    until(lambda: cloud.query(vmid)["state"] == "error")
    found = cloud.query(vmid)
    assert found["pmid"] == 0
    assert "no host can take it" in found["reason"]
    assert cloud.ok(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    cloud.fails(f"/vm/query?vmid={vmid}", 404, {"vmid": 0}, "has been deleted")


def test_all_or_none_leaves_nothing_behind(start: Start) -> None:
    # Room for one small instance on each host.
    cloud = start(*(f"fake://h{n}?vcpus=1&memory_mib=1100&disk_mib=1500" for n in (1, 2)),
                  settings={"host_defaults.cpu_ratio": 1.0})
    before = cloud.used()
    says = cloud.fails(
        "/vm/create?name=web&instance_type=1&count=3", 503, {"vmid": 0}, "no host can take it"
    )
    assert "h1: " in says
    assert "h2: " in says
    assert cloud.guests() == []
    assert cloud.used() == before == [(0, 0, 0), (0, 0, 0)]
    assert cloud.allocations() == 0
    assert cloud.ok("/vm/list") == {"vmids": []}
    until(lambda: cloud.open_work() == 0)
    assert len(cloud.ok("/vm/create?name=web&instance_type=1&count=2")["vmids"]) == 2
    assert cloud.used() == [(1, 512, 1), (1, 512, 1)]


def test_all_or_none_holds_for_those_that_are_not_waited_for(start: Start) -> None:
    cloud = start(*(f"fake://h{n}?vcpus=1&memory_mib=1100&disk_mib=1500" for n in (1, 2)),
                  settings={"host_defaults.cpu_ratio": 1.0})
    made = cloud.ok("/vm/create?name=web&instance_type=1&count=3&wait=0")["vmids"]
    assert len(made) == 3
    until(lambda: cloud.ok("/vm/list") == {"vmids": []})
    until(lambda: cloud.guests() == [] and cloud.allocations() == 0)


def test_create_that_finds_no_room_says_for_each_host_what_is_short(start: Start) -> None:
    cloud = start(
        "fake://few?vcpus=1&memory_mib=65536&disk_mib=1000000",
        "fake://forgetful?vcpus=64&memory_mib=1024&disk_mib=1000000",
        "fake://narrow?vcpus=64&memory_mib=65536&disk_mib=1000",
        settings={"host_defaults.cpu_ratio": 1.0},
    )
    says = cloud.fails("/vm/create?name=big&instance_type=3", 503, {"vmid": 0})
    reasons = {name: text for name, text in re.findall(r"(few|forgetful|narrow): ([^;]+)", says)}
    assert "vcpu" in reasons["few"]
    assert "memory" in reasons["forgetful"]
    assert "disk" in reasons["narrow"]
    assert "4" in reasons["few"]
    assert "2048" in reasons["forgetful"]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/vm/create?instance_type=1", 400, "name"),
        ("/vm/create?name=a", 400, "instance_type"),
        ("/vm/create?name=a&instance_type=9", 404, "there are 1, 2, 3"),
        ("/vm/create?name=a&instance_type=1&image_id=9", 404, "no image 9"),
        ("/vm/create?name=a&instance_type=1&count=0", 400, "count"),
        ("/vm/create?name=a&instance_type=1&count=101", 400, "from 1 to 100"),
        ("/vm/create?name=a&instance_type=1&wait=2", 400, "0 or 1"),
        ("/vm/create?name=a&instance_type=1&wait=", 400, "0 or 1"),
        ("/vm/create?name=-a&instance_type=1", 400, "1 to 63 letters"),
    ],
)
def test_create_says_what_to_change(shared: Cloud, path: str, status: int, says: str) -> None:
    before = shared.ok("/vm/list")
    shared.fails(path, status, {"vmid": 0}, says)
    assert shared.ok("/vm/list") == before


# -- the life of a VM


def test_a_vm_goes_through_its_whole_life(cloud: Cloud) -> None:
    vmid = cloud.create()
    for action, state in (
        ("pause", "paused"), ("resume", "running"), ("suspend", "suspended"),
        ("resume", "running"), ("stop", "stopped"), ("start", "running"), ("reboot", "running"),
        ("pause", "paused"), ("stop", "stopped"),
    ):
        assert cloud.ok(f"/vm/{action}?vmid={vmid}") == {"status": 1}
        assert cloud.query(vmid)["state"] == state
    assert cloud.ok(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    assert cloud.guests() == []
    assert cloud.allocations() == 0


def test_a_reboot_starts_the_guest_anew(cloud: Cloud) -> None:
    vmid = cloud.create()
    [uuid] = cloud.guests()
    starts = sum(host.starts[uuid] for host in cloud.fleet.hosts.values())
    assert cloud.ok(f"/vm/reboot?vmid={vmid}") == {"status": 1}
    assert sum(host.starts[uuid] for host in cloud.fleet.hosts.values()) == starts + 1


def test_what_is_so_already_is_success(cloud: Cloud) -> None:
    vmid = cloud.create()
    assert cloud.ok(f"/vm/start?vmid={vmid}") == {"status": 1}
    assert cloud.ok(f"/vm/stop?vmid={vmid}") == {"status": 1}
    assert cloud.ok(f"/vm/stop?vmid={vmid}") == {"status": 1}


def test_what_makes_no_sense_now_is_a_conflict_that_names_the_state(cloud: Cloud) -> None:
    vmid = cloud.create()
    cloud.ok(f"/vm/stop?vmid={vmid}")
    for action in ("pause", "suspend", "resume", "reboot"):
        cloud.fails(
            f"/vm/{action}?vmid={vmid}", 409, {"status": 0},
            f"VM {vmid} is stopped: it cannot be told to {action} now",
        )


@pytest.mark.parametrize("path", sorted(p for p, f in FAILURES.items() if p.startswith("/vm/")))
def test_a_vm_that_is_not_there_is_not_found(shared: Cloud, path: str) -> None:
    if path in ("/vm/create", "/vm/list", "/vm/types"):
        return
    for vmid in ("999999", "1" + "0" * 17):
        shared.fails(f"{path}?vmid={vmid}", 404, FAILURES[path], f"there is no VM {vmid}")


def test_a_deleted_vm_is_gone_for_every_call_and_its_number_with_it(cloud: Cloud) -> None:
    first = cloud.create()
    assert cloud.ok(f"/vm/destroy?vmid={first}") == {"status": 1}
    for action in ("start", "stop", "reboot", "pause", "resume", "suspend", "destroy", "query"):
        path = f"/vm/{action}"
        cloud.fails(f"{path}?vmid={first}", 404, FAILURES[path], f"VM {first} has been deleted")
    seen = {first}
    for _ in range(3):
        vmid = cloud.create()
        assert vmid not in seen
        seen.add(vmid)
        assert cloud.ok(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    assert cloud.ok("/vm/list") == {"vmids": []}


def test_numbers_are_not_given_out_again_after_a_restart(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    cloud = start(folder=folder)
    last = cloud.create()
    cloud.ok(f"/vm/destroy?vmid={last}")
    cloud.stop()
    again = start(folder=folder)
    assert again.create() > last


def test_destroying_while_it_is_built_ends_it_and_tells_who_waits(start: Start) -> None:
    cloud = start()
    gate, reached = threading.Event(), threading.Event()

    def trap(when: str, verb: str, _uuid: str) -> None:
        if (when, verb) == ("before", "start"):
            reached.set()
            gate.wait(20)

    for host in cloud.fleet.hosts.values():
        host.trap = trap
    answers = []
    creator = threading.Thread(
        target=lambda: answers.append(cloud.get("/vm/create?name=web&instance_type=1"))
    )
    creator.start()
    assert reached.wait(20)
    [vmid] = cloud.ok("/vm/list")["vmids"]
    destroyer = threading.Thread(
        target=lambda: answers.append(cloud.get(f"/vm/destroy?vmid={vmid}"))
    )
    destroyer.start()
    until(lambda: cloud.query(vmid)["state"] == "deleting")
    gate.set()
    creator.join(20)
    destroyer.join(20)
    assert {answer.status_code for answer in answers} == {200, 503}
    [failed] = [answer for answer in answers if answer.status_code == 503]
    assert_failure(failed, 503, {"vmid": 0}, "deleted meanwhile")
    assert cloud.guests() == []
    assert cloud.allocations() == 0


def test_a_vm_that_is_paused_the_moment_it_runs_has_been_made(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may be quicker than the one who waits for the outcome."""
    context = cloud.treadle.context
    wait_for = type(context).settled

    async def settled(self: Any, uuid: str, done: Any, seconds: float, **_kw: bool) -> Any:
        from treadle.compute import actions, store

        made = await wait_for(self, uuid, done, seconds)
        if made is not None and made.state == "running" and done.__name__ == "built":
            await self.write(lambda conn: actions.act(
                conn, made.id, "pause", request_id="r", deadline_s=60
            ))
            return await wait_for(self, uuid, lambda one: one.state == "paused", seconds)
        return await self.read(lambda conn: store.by_uuid(conn, uuid))

    monkeypatch.setattr(type(context), "settled", settled)
    vmid = cloud.create()
    assert cloud.query(vmid)["state"] == "paused"


# -- lists and queries


def test_lists_name_everything_there_is(cloud: Cloud) -> None:
    assert cloud.ok("/vm/list") == {"vmids": []}
    vmids = [cloud.create(), cloud.create()]
    assert cloud.ok("/vm/list") == {"vmids": vmids}
    assert cloud.ok("/vm/types") == {"types": [
        {"tid": 1, "cpu": 1, "ram": 512, "disk": 1},
        {"tid": 2, "cpu": 2, "ram": 1024, "disk": 4},
        {"tid": 3, "cpu": 4, "ram": 2048, "disk": 8},
    ]}
    assert cloud.ok("/pm/list") == {"pmids": [1, 2]}
    assert cloud.ok("/image/list") == {"images": [{"id": 1, "name": "tiny"}]}
    on = {pmid: cloud.ok(f"/pm/listvms?pmid={pmid}")["vmids"] for pmid in (1, 2)}
    assert sorted(on[1] + on[2]) == vmids
    assert all(cloud.query(v)["pmid"] == pmid for pmid, ids in on.items() for v in ids)


def test_a_machine_tells_what_it_has_and_what_of_it_is_free(start: Start) -> None:
    cloud = start("fake://h1?vcpus=4&memory_mib=8192&disk_mib=102400",
                  settings={"host_defaults.cpu_ratio": 2.0})
    body = cloud.ok("/pm/query?pmid=1")
    assert {key: body[key] for key in ("pmid", "capacity", "free", "vms")} == {
        "pmid": 1, "capacity": {"cpu": 8, "ram": 8192 - 512, "disk": 100},
        "free": {"cpu": 8, "ram": 8192 - 512, "disk": 100}, "vms": 0,
    }
    assert body["state"] == "up"
    cloud.create(tid=2)
    body = cloud.ok("/pm/query?pmid=1")
    assert body["free"]["cpu"] == 6
    assert body["free"]["ram"] == 8192 - 512 - 1024
    assert body["free"]["disk"] == 95  # 4 GiB of disk, and the image begins another
    assert body["vms"] == 1


def test_a_machine_that_is_not_there_is_not_found(shared: Cloud) -> None:
    for pmid in ("77", "2147483648", "9" * 18):
        shared.fails(f"/pm/query?pmid={pmid}", 404, {"pmid": 0}, "no physical machine")
        shared.fails(f"/pm/listvms?pmid={pmid}", 404, {"vmids": 0}, "no physical machine")


def test_numbers_far_beyond_any_table_are_not_found(shared: Cloud) -> None:
    for number in ("2147483648", "9" * 18):
        shared.fails(f"/vm/create?name=a&instance_type={number}", 404, {"vmid": 0}, number)
        shared.fails(
            f"/vm/create?name=a&instance_type=1&image_id={number}", 404, {"vmid": 0}, number
        )


# -- volumes


@pytest.mark.parametrize(
    "path",
    [
        "/volume/create?name=a&size=10", "/volume/query?volumeid=1", "/volume/destroy?volumeid=1",
        "/volume/attach?vmid=1&volumeid=1", "/volume/detach?volumeid=1",
    ],
)
def test_volumes_say_in_their_own_shape_that_there_are_none(shared: Cloud, path: str) -> None:
    shared.fails(path, 503, FAILURES[path.partition("?")[0]], "no volume storage")


# -- images


def test_an_image_that_is_missing_is_told_as_the_reason(start: Start, tmp_path: Path) -> None:
    cloud = start(image=tmp_path / "gone.qcow2")
    says = cloud.fails("/vm/create?name=web&instance_type=1", 409, {"vmid": 0}, "gone.qcow2")
    assert "not there" in says
    assert cloud.ok("/image/list") == {"images": []}


def test_an_image_that_is_no_image_is_told_as_the_reason(start: Start, tmp_path: Path) -> None:
    bad = tmp_path / "bad.qcow2"
    bad.write_bytes(b"QFI\xfb\x00\x00\x00\x03" + b"\xff" * 600)
    page = tmp_path / "page.img"
    page.write_text("<!DOCTYPE html><html><title>Not here</title></html>")
    empty = tmp_path / "empty.img"
    empty.touch()
    cloud = start(image=bad, image_sources=(page, empty))
    for number in (1, 2, 3):
        cloud.fails(
            f"/vm/create?name=web&instance_type=1&image_id={number}", 409, {"vmid": 0},
            f"image {number} cannot be used",
        )


def test_a_bad_image_does_not_spoil_the_good_ones(
    start: Start, tmp_path: Path, disk_image: Path
) -> None:
    cloud = start(image=tmp_path / "gone.qcow2", image_sources=(disk_image,))
    assert cloud.ok("/image/list") == {"images": [{"id": 2, "name": "tiny"}]}
    assert cloud.create(extra="&image_id=2")


def test_an_image_that_changed_since_it_was_read_is_told_as_the_reason(
    start: Start, tmp_path: Path, disk_image: Path
) -> None:
    image = tmp_path / "mine.qcow2"
    image.write_bytes(disk_image.read_bytes())
    cloud = start(f"fake://h1{ROOMY}", image=image)
    image.write_bytes(image.read_bytes() + b"\0" * 512)
    cloud.fails("/vm/create?name=web&instance_type=1", 503, {"vmid": 0}, "has changed")
    assert cloud.guests() == []
    assert cloud.allocations() == 0


def test_an_image_larger_than_the_disk_of_the_type_is_refused(
    start: Start, tmp_path: Path
) -> None:
    import subprocess

    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "3G"], check=True)
    cloud = start(image=large)
    cloud.fails("/vm/create?name=web&instance_type=1", 400, {"vmid": 0}, "choose a larger type")
    assert cloud.create(tid=2)


def test_an_image_goes_to_a_host_once(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}")
    cloud.ok("/vm/create?name=web&instance_type=1&count=5")
    assert list(cloud.host("h1").uploads.values()) == [1]


def test_a_hard_stop_does_not_ask_the_guest(cloud: Cloud) -> None:
    vmid = cloud.create()
    [uuid] = cloud.guests()
    host = next(host for host in cloud.fleet.hosts.values() if uuid in host.guests)
    host.guests[uuid].ignores_acpi = True
    cloud.fails(f"/vm/stop?vmid={vmid}&hard=yes", 400, {"status": 0}, "0 or 1")
    assert cloud.ok(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    assert host.calls["shut_down"] == 0
    assert cloud.ok(f"/vm/start?vmid={vmid}") == {"status": 1}
    assert cloud.ok(f"/vm/reboot?vmid={vmid}&hard=1") == {"status": 1}
    assert host.calls["shut_down"] == 0
    # Who was asked, and does not listen, can still be stopped at once.
    asked = threading.Thread(target=cloud.get, args=(f"/vm/stop?vmid={vmid}",))
    asked.start()
    until(lambda: host.calls["shut_down"], "the guest to be asked")
    assert cloud.ok(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    asked.join(20)
    assert not asked.is_alive()
