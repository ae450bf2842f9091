"""Hosts whose processors differ: a guest that has all of one goes where nothing is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import IDLE, Cloud, Face, running_cloud
from tests.labs import a_lab
from tests.waiting import wait_for
from treadle.compute.moves.plan import ENDED
from treadle.lab.fabric import Lab, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
    pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="a host's processor needs /dev/kvm"),
]
EMULATOR = "/usr/bin/qemu-system-x86_64"
LACKS = "x2apic"
"""What KVM gives guests on whatever machine."""
WRAPPER = """#!/bin/sh
case "$*" in *"-machine none"*) ;; *)
    for one do
        shift
        case $one in kvm) one=tcg ;; host,*) one=max ;; esac
        set -- "$@" "$one"
    done
esac
exec /run/emulator -L /usr/share/qemu -L /usr/share/seabios $(cat /run/more) "$@"
"""
"""Guests of KVM do not run everywhere: they are emulated, and libvirt is not told. What it is told
of the processor is KVM's word, but for what is in /run/more."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Of the second host, the emulator offers guests a processor without it."""
    off = f"-global max-x86_64-cpu.{LACKS}=off -global host-x86_64-cpu.{LACKS}=off"
    with a_lab("cpu", 2, tmp_path_factory.mktemp("lab")) as one:
        for name, more in (("host1", ""), ("host2", off)):
            said = one.exec(name, "sh", "-ec", f"""
                cp {EMULATOR} /run/emulator
                echo '{more}' > /run/more
                cat > /run/wrapper
                chmod 755 /run/wrapper
                mount --bind /run/wrapper {EMULATOR}
            """, stdin=WRAPPER)
            assert said.returncode == 0, said.stderr
            one.restart_libvirtd(name)
        yield one


@pytest.fixture(scope="module")
def cloud(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    """Whose guests have their host's processor, as far as they come on it."""
    settings = {"host_defaults.virt_type": "kvm"}
    with running_cloud(lab, guest_image, tmp_path_factory.mktemp("state"), settings) as one:
        yield one


def test_a_guest_does_not_go_where_its_processor_is_not(cloud: Cloud) -> None:
    face = Face(cloud)
    facts = {pmid: cloud.admin(f"/hosts/{pmid}")["facts"] for pmid in (1, 2)}
    assert set(facts[1]["features"]) - set(facts[2]["features"]) == {LACKS}
    cloud.admin("/hosts/2/disable", "POST", {})
    vmid = cloud.create("choosy", IDLE)
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    assert cloud.query(vmid)["pmid"] == 1
    cloud.admin("/hosts/2/enable", "POST")
    other = cloud.host(2).address

    def over() -> Any:
        [move, *_] = face.get(f"/os-migrations?instance_uuid={uuid}")["migrations"]
        found = cloud.admin(f"/moves/{move['id']}")
        return found if found["stage"] in ENDED else None

    for host in (None, other):
        face.act(uuid, "os-migrateLive", {"host": host, "block_migration": "auto"})
        move = wait_for(over, 60, "the move to be refused")
        assert move["stage"] == "failed"
        assert f"{other}: its processor ({facts[2]['processor']}) lacks {LACKS}" in move["error"]
        face.becomes(uuid, "ACTIVE")
    assert list(cloud.copies(uuid)) == [cloud.host(1).name]
    assert cloud.kept_on(uuid) == {cloud.host(1).name}
    # libvirt would have said so only once the move was begun.
    definition = cloud.lab.exec("host1", "virsh", "dumpxml", "--migratable", uuid).stdout
    assert "host-passthrough" in definition
