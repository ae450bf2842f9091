"""Moves of real guests between real hosts, with their disks: live, and while they are off."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from tests.lab.conftest import IDLE, Cloud, Face, all_up, served
from tests.waiting import wait_for
from treadle.cli.main import main as command_line
from treadle.compute import creating
from treadle.compute.creating import Wish
from treadle.compute.moves import actions as moving
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Stage
from treadle.db.schema import host as host_table
from treadle.hypervisor.base import MoveOptions, Moves
from treadle.hypervisor.libvirt import moves as libvirt_moves

pytestmark = pytest.mark.lab


def begin(
    cloud: Cloud, vmid: int, target: int | None = None, deadline_s: float = 120.0
) -> int:
    """Ask for a move; its number."""
    number = cloud.treadle.database.write(lambda conn: moving.live_migrate(
        conn, vmid, target, request_id="r", deadline_s=deadline_s
    ))
    cloud.treadle.signals.work_is_due()
    return number


def ended(cloud: Cloud, number: int) -> Any:
    """The move's row when it has ended."""
    def over() -> Any:
        move = cloud.treadle.database.read(lambda conn: moves.get(conn, number))
        return move if move is not None and move.stage in ENDED else None

    return wait_for(over, 180, "the move to end")


def migrate(cloud: Cloud, vmid: int, target: int | None = None) -> Any:
    """Move it; the row when it has ended."""
    return ended(cloud, begin(cloud, vmid, target))


@contextmanager
def with_options(cloud: Cloud, pmid: int, **options: Any) -> Iterator[Moves]:
    """Moves away from that host are made so; its driver."""
    driver = cloud.treadle.fleet.driver(pmid, cloud.admin(f"/hosts/{pmid}")["uri"])
    assert isinstance(driver, Moves)
    real = driver.move

    def other(uuid: str, there: Any, told: MoveOptions) -> None:
        real(uuid, there, replace(told, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "move", other)
        yield driver


def on_its_way(face: Face, uuid: str) -> int:
    """The number of its move, of which some memory was sent."""
    def look() -> int:
        under_way = face.get(f"/servers/{uuid}/migrations")["migrations"]
        sent = under_way and under_way[0]["memory_processed_bytes"] > 0
        return int(under_way[0]["id"]) if sent else 0

    try:
        return int(wait_for(look, 90, "memory to be sent"))
    except AssertionError as error:
        raise AssertionError(face.get(f"/os-migrations?instance_uuid={uuid}")) from error


def test_a_running_guest_goes_to_another_host_and_back(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, paused by force for the last of its memory; back, gone on before that had come."""
    face = Face(cloud)
    vmid = cloud.create("mover")
    cloud.guest_is_up(vmid)
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    first = cloud.query(vmid)["pmid"]
    told: list[str] = []
    hurry = libvirt_moves.hurry

    def noted(attempt: Any, domain: Any) -> None:
        def note(function: Any, *arguments: Any) -> Any:
            told.append(function.__name__)
            return attempt(function, *arguments)

        hurry(note, domain)  # type: ignore[arg-type]

    monkeypatch.setattr(libvirt_moves, "hurry", noted)

    def forced(target: int | None) -> Any:
        begin(cloud, vmid, target)
        number = on_its_way(face, uuid)
        path = f"/servers/{uuid}/migrations/{number}/action"
        answer = face.ask("POST", path, {"force_complete": None})
        assert answer.status_code == 202, answer.text
        return ended(cloud, number)

    with with_options(cloud, first, bandwidth_mib_s=8):
        move = forced(None)
    assert move.stage is Stage.DONE, move.error
    assert told == ["migrateStartPostCopy", "suspend"]
    second = cloud.query(vmid)["pmid"]
    assert second == move.target_id != first
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "it to be settled")
    assert cloud.copies(uuid) == {cloud.host(second).name: "running"}
    assert not [name for name in cloud.volumes(cloud.host(first)) if name.startswith(uuid)]
    del told[:]
    with with_options(cloud, second, bandwidth_mib_s=8, post_copy=True):
        back = forced(first)
    assert back.stage is Stage.DONE, back.error
    assert told == ["migrateStartPostCopy"]
    assert cloud.query(vmid)["pmid"] == first
    assert cloud.copies(uuid) == {cloud.host(first).name: "running"}
    assert not [name for name in cloud.volumes(cloud.host(second)) if name.startswith(uuid)]
    # The guest that was started first is the one that still runs: it was never booted anew.
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "it to be settled")
    assert cloud.get(f"/vm/pause?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/resume?vmid={vmid}") == {"status": 1}
    assert b"TREADLE-GUEST-UP" not in cloud.console(vmid)
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}


POOL = "/var/lib/libvirt/treadle"
TICKS = """#!/bin/sh
read -r boot < /proc/sys/kernel/random/boot_id
while :; do echo "BOOT=$boot"; sleep 1; done > /dev/ttyS0
"""


def boot_of(cloud: Cloud, vmid: int) -> str:
    """The number that the guest drew when it booted, as it goes on telling where it runs now."""
    def told() -> str:
        found = re.findall(rb"BOOT=([0-9a-f-]{36})", cloud.console(vmid))
        return found[-1].decode() if found else ""

    return str(wait_for(told, 120, f"guest {vmid} to tell its boot"))


@contextmanager
def nearly_full(cloud: Cloud, pmid: int, left: str = "0") -> Iterator[None]:
    """The host's pool is on a small disk with all its images, and of that so much is left."""
    name, small = cloud.host(pmid).name, "/run/small-disk"
    said = cloud.lab.exec(name, "sh", "-ec", f"""
        mkdir -p {small}
        mount -t tmpfs -o size=64m tmpfs {small}
        for file in {POOL}/image-* {POOL}/treadle-host.*; do
            [ ! -e "$file" ] || cp -a "$file" {small}
        done
        dd if=/dev/zero of={small}/filler bs=64k 2>/dev/null || true
        truncate -s -{left} {small}/filler
        mount --bind {small} {POOL}
        virsh -q pool-refresh treadle
    """)
    assert said.returncode == 0, said.stderr
    try:
        yield
    finally:
        cloud.lab.exec(name, "sh", "-c", f"""
            umount {POOL}; umount {small}; virsh -q pool-refresh treadle
        """)
    seen: set[float] = set()

    def looked_again() -> bool:
        """A pass that is under way may still tell of the small disk."""
        host = cloud.admin(f"/hosts/{pmid}")
        seen.add(host["seen_at"])
        return len(seen) > 2 and host["disk_mib"]["limit"] > 1024

    wait_for(looked_again, 30, "its disk to be seen again")


def test_a_disk_that_becomes_full_sends_nobody_away(cloud: Cloud) -> None:
    """In the middle of a copy, of one that is off."""
    face = Face(cloud)
    vmid = cloud.create("heavy", IDLE)
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    first = cloud.query(vmid)["pmid"]
    source = cloud.host(first)
    second = next(pmid for pmid in cloud.get("/pm/list")["pmids"] if pmid != first)
    target = cloud.host(second)
    assert cloud.get(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    [disk] = [name for name in cloud.volumes(source)
              if name.startswith(uuid) and name.endswith(".qcow2")]
    said = cloud.lab.exec(source.name, "qemu-io", "-c", "write 16M 16M", f"{POOL}/{disk}")
    assert said.returncode == 0, said.stderr
    # More is promised than is there: else it would be refused before anything was begun.
    promised = sa.update(host_table).where(host_table.c.id == second)
    cloud.treadle.database.write(lambda conn: conn.execute(promised.values(disk_ratio=100.0)))
    with nearly_full(cloud, second, "8M"):  # for its image, and a part of its disk
        face.act(uuid, "migrate", {"host": target.address})
        stopped = face.becomes(uuid, "SHUTOFF")
        assert stopped["OS-EXT-SRV-ATTR:host"] == source.address
        [move] = face.get(f"/os-migrations?instance_uuid={uuid}")["migrations"]
        assert move["status"] == "error"
        told = cloud.admin(f"/moves/{move['id']}")
        assert "full" in told["error"]
        assert told["progress"]["disk_processed"] > 0
        assert cloud.copies(uuid) == {source.name: "shut off"}
        assert cloud.kept_on(uuid) == {source.name}
    cloud.treadle.database.write(lambda conn: conn.execute(promised.values(disk_ratio=1.0)))
    assert cloud.get(f"/vm/start?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}


def test_whatever_fails_in_the_middle_of_a_move_one_copy_runs(cloud: Cloud) -> None:
    """Somebody ends it; its time is over; the way between the two hosts, the cable of the target,
    its power, its disk, and last the source's power."""
    lab, face = cloud.lab, Face(cloud)
    [made] = cloud.treadle.database.write(lambda conn: creating.create(
        conn, Wish("survivor", 1, None, user_data=TICKS), request_id="r", build_deadline_s=120.0,
    ))
    cloud.treadle.signals.work_is_due()
    vmid, uuid = made.id, made.uuid
    boot = boot_of(cloud, vmid)
    first = cloud.query(vmid)["pmid"]
    source = cloud.host(first)
    second = next(pmid for pmid in cloud.get("/pm/list")["pmids"] if pmid != first)
    target = cloud.host(second)

    def midway(deadline_s: float = 120.0) -> int:
        begin(cloud, vmid, second, deadline_s)
        return on_its_way(face, uuid)

    def stayed(number: int, stage: Stage = Stage.FAILED, says: str = "") -> None:
        move = ended(cloud, number)
        assert move.stage is stage
        assert move.error
        assert says in move.error
        assert cloud.copies(uuid) == {source.name: "running"}
        assert boot_of(cloud, vmid) == boot
        assert not [name for name in cloud.volumes(target) if name.startswith(uuid)]

    def is_down() -> bool:
        return bool(cloud.get(f"/pm/query?pmid={second}")["state"] == "down")

    with with_options(cloud, first, bandwidth_mib_s=1):
        number = midway()
        answer = face.ask("DELETE", f"/servers/{uuid}/migrations/{number}")
        assert answer.status_code == 202, answer.text
        stayed(number, Stage.CANCELLED)

        stayed(midway(8.0), says="did not end in time")

        # The controller reaches both, and they do not reach one another: the source's emulator
        # may stand still until its kernel gives up what it sends.
        way = f"blackhole {source.address}/32"
        lab.exec(source.name, "sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2")
        number = midway()
        said = lab.exec(target.name, "sh", "-c", f"ip route add {way}")
        assert said.returncode == 0, said.stderr
        try:
            stayed(number)
        finally:
            lab.exec(target.name, "sh", "-c", f"ip route del {way}")

        for goes, comes in ((lab.cut, lab.join), (lab.kill_host, lab.boot_host)):
            all_up(cloud)
            number = midway()
            goes(target.name)
            wait_for(is_down, 90, f"the target to be down after {goes.__name__}")
            comes(target.name)
            stayed(number)

        all_up(cloud)
        with nearly_full(cloud, second):
            stayed_off = migrate(cloud, vmid, second)
            assert stayed_off.stage is Stage.FAILED
            assert cloud.copies(uuid) == {source.name: "running"}

        number = midway()
        lab.kill_host(source.name)
        lab.boot_host(source.name)
        move = ended(cloud, number)
    all_up(cloud)
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 90, "it to run again")
    where = cloud.host(cloud.query(vmid)["pmid"]).name
    assert cloud.copies(uuid) == {where: "running"}
    assert where == (target if move.stage is Stage.DONE else source).name
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}


def switch(cloud: Cloud, pmid: int, what: str) -> None:
    token = cloud.treadle.context.admin_token
    said = cloud.client.post(
        f"/treadle/v1/hosts/{pmid}/{what}", headers={"Authorization": f"Bearer {token}"}, json={}
    )
    assert said.status_code == 200, said.text


def test_a_host_is_drained_under_load_and_no_guest_is_lost_or_booted_anew(cloud: Cloud) -> None:
    source, *others = cloud.get("/pm/list")["pmids"]
    for pmid in others:
        switch(cloud, pmid, "disable")
    made = cloud.treadle.database.write(lambda conn: creating.create(
        conn, Wish("stays-alive", 1, None, count=3, user_data=TICKS), request_id="r",
        build_deadline_s=120.0,
    ))
    cloud.treadle.signals.work_is_due()
    vmids = [one.id for one in made]
    boots = {vmid: boot_of(cloud, vmid) for vmid in vmids}
    assert len(set(boots.values())) == 3
    for pmid in others:
        switch(cloud, pmid, "enable")
    host = cloud.host(source)
    assert len(cloud.domains(host)) == 3
    wrong: list[Any] = []
    over = threading.Event()

    def traffic() -> None:
        """Reads, and another VM that comes and goes: all of it must go well meanwhile."""
        while not over.is_set():
            answers = [cloud.client.get(f"/vm/query?vmid={vmid}") for vmid in vmids]
            made = cloud.get(f"/vm/create?name=passer-by&instance_type=1{IDLE}")
            gone = cloud.get(f"/vm/destroy?vmid={made['vmid']}")
            wrong.extend(one.text for one in answers if one.status_code != 200)
            wrong.extend(one for one in (made, gone) if one.get("error"))

    with served(cloud.treadle) as port:
        busy = threading.Thread(target=traffic)
        busy.start()
        try:
            said = CliRunner().invoke(command_line, [
                "host", "drain", str(source), "--reason", "new fans",
                "--url", f"http://127.0.0.1:{port}", "--token", cloud.treadle.context.admin_token,
            ])
        finally:
            over.set()
            busy.join(120)
    assert said.exit_code == 0, said.output
    assert not wrong
    assert not cloud.domains(host)
    assert not cloud.volumes(host)
    for vmid in vmids:
        wait_for(lambda v=vmid: cloud.query(v)["state"] == "running", 30, "it to be settled")
        assert cloud.query(vmid)["pmid"] in others
        assert boot_of(cloud, vmid) == boots[vmid]
        assert b"TREADLE-GUEST-UP" not in cloud.console(vmid)
        assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    switch(cloud, source, "enable")


SECTOR = 2_000_000
COUNTS = f"""#!/bin/sh
exec >/dev/ttyS0
found=$(dd if=/dev/vda bs=512 skip={SECTOR} count=1 2>/dev/null | tr -d '\\000')
echo "BOOTS-BEFORE=${{found:-0}}."
echo $((found + 1)) | dd of=/dev/vda bs=512 seek={SECTOR} conv=notrunc,sync 2>/dev/null
sync
echo TOLD
"""
"""A guest that counts on its disk how often it was booted."""


def boots_of(cloud: Cloud, vmid: int) -> int:
    """How often it was booted before, as the guest found it on its disk."""
    wait_for(lambda: b"TOLD" in cloud.console(vmid), 90, f"guest {vmid} to tell")
    told = cloud.console(vmid).decode(errors="replace")
    return int(told.split("BOOTS-BEFORE=")[1].split(".")[0])


def test_a_guest_is_moved_while_off_taken_back_and_moved_for_good(cloud: Cloud) -> None:
    face = Face(cloud)
    made = cloud.treadle.database.write(lambda conn: creating.create(
        conn, Wish("goer", 1, None, user_data=COUNTS), request_id="r", build_deadline_s=120.0,
    ))[0]
    cloud.treadle.signals.work_is_due()
    face.becomes(made.uuid, "ACTIVE")
    assert boots_of(cloud, made.id) == 0
    first = cloud.query(made.id)["pmid"]
    face.act(made.uuid, "migrate")
    face.becomes(made.uuid, "VERIFY_RESIZE")
    second = cloud.query(made.id)["pmid"]
    assert second != first
    assert boots_of(cloud, made.id) == 1, "its disk has come with it"
    assert len(cloud.kept_on(made.uuid)) == 2
    move = face.get(f"/os-migrations?instance_uuid={made.uuid}")["migrations"][0]
    assert (move["status"], move["migration_type"]) == ("finished", "migration")
    face.act(made.uuid, "revertResize")
    face.becomes(made.uuid, "ACTIVE")
    assert cloud.query(made.id)["pmid"] == first
    assert boots_of(cloud, made.id) == 1, "as it was when it left"
    assert cloud.kept_on(made.uuid) == {cloud.host(first).name}
    face.act(made.uuid, "os-stop")
    face.becomes(made.uuid, "SHUTOFF")
    # For good it goes with another size: its disk lies under a larger one there.
    cloud.treadle.database.write(lambda conn: moving.resize(
        conn, made.id, 2, request_id="r", patience=moving.Patience(120.0, 20.0)
    ))
    cloud.treadle.signals.work_is_due()
    face.becomes(made.uuid, "VERIFY_RESIZE")
    face.act(made.uuid, "confirmResize")
    third = cloud.query(made.id)["pmid"]
    assert third != first
    wait_for(lambda: cloud.kept_on(made.uuid) == {cloud.host(third).name}, 30, "one copy")
    face.act(made.uuid, "os-start")
    face.becomes(made.uuid, "ACTIVE")
    assert boots_of(cloud, made.id) == 2
    told = cloud.lab.exec(cloud.host(third).name, "virsh", "dominfo", made.uuid).stdout
    assert int(re.findall(r"Max memory: *(\d+) KiB", told)[0]) == 256 << 10
    assert sum(made.uuid in name for name in cloud.volumes(cloud.host(third))
               if name.endswith(".qcow2")) == 2
    assert cloud.get(f"/vm/destroy?vmid={made.id}") == {"status": 1}
