"""The lab end to end: real libvirt hosts, a real guest, failures, and nothing left behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pycdlib
import pytest

from tests.labs import lab_name
from treadle.lab import Lab, LabError, LabHost, build_guest, can_run

REASON = can_run()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

NETWORK = """
<network><name>nat</name><bridge name='virbr0' stp='off' delay='0'/><forward mode='nat'/>
<ip address='192.168.77.1' prefix='24'><dhcp><range start='192.168.77.10' end='192.168.77.20'/>
<host mac='52:54:00:00:00:07' ip='192.168.77.7'/></dhcp></ip></network>
"""
DOMAIN = """
<domain type='qemu'><name>web</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os><features><acpi/></features>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
  <source file='/var/lib/libvirt/images/web.qcow2'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
  <source file='/var/lib/libvirt/images/seed.iso'/><target dev='vdb' bus='virtio'/>
  <readonly/></disk>
<interface type='network'><mac address='52:54:00:00:00:07'/><source network='nat'/>
  <model type='virtio'/></interface>
<serial type='pty'><log file='/var/log/libvirt/qemu/web.console' append='on'/></serial>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices></domain>
"""
UP_LINE = "TREADLE-GUEST-UP hostname=web-1 ip=192.168.77.7"


@dataclass(frozen=True)
class Traces:
    """What a lab could leave behind on the machine."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    mounts: frozenset[str]


def traces(lab: Lab) -> Traces:
    """The processes of the lab's folder, and all that the machine has of the lab's name."""
    processes, namespaces = set(), set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(lab.folder) in (entry / "cmdline").read_bytes().decode(errors="replace"):
                processes.add(entry.name)
                namespaces.add(os.readlink(entry / "ns/net"))
            if str(lab.folder) in (entry / "mountinfo").read_text():
                namespaces.add(os.readlink(entry / "ns/mnt"))
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
    return Traces(
        frozenset(processes),
        frozenset(namespaces),
        frozenset(p.name for p in Path("/sys/class/net").iterdir() if lab.bridge in p.name),
        frozenset(n for n in Path("/proc/mounts").read_text().splitlines() if str(lab.folder) in n),
    )


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"after {seconds:g} s still not: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def virsh(lab: Lab, host: LabHost, *words: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["virsh", "-c", f"{host.uri}?command={lab.ssh_command}", *words],
        input=stdin, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def ssh(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", *words],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def write_seed(path: Path, files: dict[str, str]) -> None:
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, text in files.items():
        data = text.encode()
        short = "/" + name.replace("-", "_").upper() + ".;1"
        image.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    image.write(str(path))
    image.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(lab_name("fab"), tmp_path_factory.mktemp("lab") / "lab")
    lab.down()
    assert traces(lab) == Traces(*(frozenset[str]() for _ in range(4)))
    lab.up(2)
    yield lab
    lab.down()
    assert traces(lab) == Traces(*(frozenset[str]() for _ in range(4)))
    assert not lab.folder.exists()
    lab.down()


def test_up_is_idempotent_and_both_hosts_answer(lab: Lab) -> None:
    hosts = lab.up(2)
    assert [host.name for host in hosts] == ["host1", "host2"]
    assert hosts == lab.status()
    for host in hosts:
        assert "web" not in virsh(lab, host, "list", "--all")
        assert ssh(lab, host.name, "hostname").stdout == f"{host.name}\n"
        assert virsh(lab, host, "hostname").strip() == host.name
    uuids = {virsh(lab, host, "capabilities").split("<uuid>")[1][:36] for host in hosts}
    assert len(uuids) == 2


def test_hosts_reach_each_other_by_name_and_key(lab: Lab) -> None:
    done = ssh(lab, "host1", "ssh", "-o", "BatchMode=yes", "host2", "hostname")
    assert (done.stdout, done.returncode) == ("host2\n", 0)


def test_a_folder_that_is_not_the_labs_own_is_refused(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        Lab(lab.name, tmp_path / "other").up(1)


def console(lab: Lab) -> str:
    return (lab.host("host1").folder / "log" / "qemu" / "web.console").read_text()


@pytest.fixture(scope="module")
def guest(lab: Lab) -> str:
    """The ssh words that reach a guest that runs on host1."""
    host = lab.host("host1")
    images = host.folder / "lib" / "images"
    shutil.copyfile(build_guest(Path("/var/cache/treadle")), images / "base.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
         "web.qcow2", "1G"], cwd=images, check=True,
    )  # fmt: skip
    public = lab.key.with_suffix(".pub").read_text().strip()
    write_seed(
        images / "seed.iso",
        {
            "meta-data": "instance-id: i-1\nlocal-hostname: web-1\n",
            "user-data": f"#cloud-config\nssh_authorized_keys:\n  - {public}\n",
        },
    )
    for name, xml in (("net", NETWORK), ("web", DOMAIN)):
        (lab.folder / name).write_text(xml)
    virsh(lab, host, "net-define", str(lab.folder / "net"))
    virsh(lab, host, "net-start", "nat")
    virsh(lab, host, "define", str(lab.folder / "web"))
    virsh(lab, host, "start", "web")
    wait_for(lambda: UP_LINE in console(lab), 40, UP_LINE)
    return "root@192.168.77.7"


def test_a_guest_answers_and_obeys_the_power_button_and_keeps_its_files(
    lab: Lab, guest: str
) -> None:
    host = lab.host("host1")
    done = ssh(lab, "-J", "host1", guest, "hostname; echo kept > /root/file")
    assert done.stdout == "web-1\n", done.stderr
    virsh(lab, host, "shutdown", "web")
    took = wait_for(lambda: "shut off" in virsh(lab, host, "domstate", "web"), 20, "shut off")
    assert took < 10
    boots = console(lab).count(UP_LINE)
    virsh(lab, host, "start", "web")
    wait_for(lambda: console(lab).count(UP_LINE) > boots, 40, "second boot")
    assert ssh(lab, "-J", "host1", guest, "cat file").stdout == "kept\n"


def test_a_guest_outlives_libvirtd(lab: Lab, guest: str) -> None:
    host = lab.host("host1")
    if "shut off" in virsh(lab, host, "domstate", "web"):
        virsh(lab, host, "start", "web")
    lab.restart_libvirtd("host1")
    assert "running" in virsh(lab, host, "domstate", "web"), guest


def test_a_cut_host_runs_on_out_of_reach(lab: Lab) -> None:
    lab.cut("host2")
    assert ssh(lab, "-o", "ConnectTimeout=1", "host2", "true").returncode == 255
    assert lab.exec("host2", "hostname").stdout == "host2\n"
    lab.join("host2")
    wait_for(lambda: ssh(lab, "host2", "true").returncode == 0, 10, "host2 is back")


def test_a_power_failure_ends_guests_and_keeps_disks(lab: Lab, guest: str) -> None:
    lab.kill_host("host1")
    assert lab.host("host1").state == "down"
    assert ssh(lab, "-o", "ConnectTimeout=1", "host1", "true").returncode == 255
    lab.kill_host("host1")
    host = lab.boot_host("host1")
    assert host.state == "up"
    assert "shut off" in virsh(lab, host, "domstate", "web"), guest


def test_what_a_killed_lab_left_of_its_name_is_no_hindrance(tmp_path: Path) -> None:
    lab, other = Lab(lab_name("lst"), tmp_path / "lost"), Lab(lab_name("lst"), tmp_path / "new")
    try:
        lab.up(1)
        lab.kill_host("host1")
        assert [host.state for host in other.up(1)] == ["up"]
        assert ssh(other, "host1", "hostname").stdout == "host1\n"
        assert lab.folder.exists(), "its disks are its owner's"
    finally:
        other.down()
        lab.down()
    assert traces(lab) == Traces(*(frozenset[str]() for _ in range(4)))


def test_another_process_finds_the_lab_by_its_name_and_ends_what_lost_its_folder(
    tmp_path: Path,
) -> None:
    lab = Lab(lab_name("lst"), tmp_path / "lost")
    lab.up(1)
    shutil.rmtree(lab.folder)
    Lab(lab.name).down()
    assert traces(lab) == Traces(*(frozenset[str]() for _ in range(4)))
