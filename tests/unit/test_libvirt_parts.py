"""The parts of the libvirt driver that need no libvirt daemon."""

from __future__ import annotations

import errno
import io
import shlex
import stat
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt
import pycdlib
import pytest
import yaml
from tests.waiting import wait_for

from treadle.errors import InvalidInput, TreadleError
from treadle.hypervisor.base import (
    HostFull,
    HostRefused,
    HostUnreachable,
    Power,
    Seed,
    StopCause,
    Unsupported,
    VerbTimeout,
)
from treadle.hypervisor.libvirt import capabilities, errors, probe, seed, states
from treadle.hypervisor.libvirt.connection import Attempt, Connection, Deadlines, LibvirtOptions
from treadle.hypervisor.libvirt.domain_xml import Mark
from treadle.hypervisor.libvirt.network import bridge_name, forward_ports, parse_subnet
from treadle.hypervisor.libvirt.ssh import ssh_config, with_ssh

UUID = "0a1b2c3d-4e5f-4678-9abc-def012345678"
INJECTION = 'a"\nwrite_files: [x]\n- b: {c}'


# -- errors


def libvirt_error(code: int, domain: int = 0, number: int = 0, text: str = "x") -> Any:
    libvirt.virResetLastError()  # else the error would be what this thread met last
    error = libvirt.libvirtError(text)
    error.err = (code, domain, text, 2, None, None, None, number, 0)
    return error


@pytest.mark.parametrize(
    ("code", "domain", "number", "kind"),
    [
        (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_FROM_STORAGE, 0, Unsupported),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_FROM_QEMU, 0, VerbTimeout),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, errno.ENOSPC, HostFull),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, errno.EACCES, HostRefused),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.EPIPE, HostUnreachable),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, 0, HostUnreachable),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, 0, HostRefused),
        (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_QEMU, 0, HostRefused),
        (libvirt.VIR_ERR_NO_MEMORY, libvirt.VIR_FROM_NONE, 0, HostFull),
        (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_FROM_RPC, 0, HostUnreachable),
    ],
)
def test_an_error_is_told_by_its_code(
    code: int, domain: int, number: int, kind: type[TreadleError]
) -> None:
    found = errors.translate(libvirt_error(code, domain, number, "one\ntwo  three"), "start")
    assert type(found) is kind
    assert str(found) == "start: one two three"


def test_a_text_says_nothing_about_the_kind() -> None:
    text = "No space left on device, connection reset, timed out"
    found = errors.translate(libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, text=text), "define")
    assert type(found) is HostRefused
    assert len(str(errors.translate(libvirt_error(1, text="x" * 9000), "define"))) < 400


def test_frames_are_taken_off() -> None:
    frame = "@" * 59
    text = f"Cannot recv data: {frame}\n@    WARNING: CHANGED!     @\n{frame}\nIT IS: x@y ..."
    assert errors.detail(libvirt_error(38, 7, text=text)) == (
        "Cannot recv data: WARNING: CHANGED! IT IS: x@y ..."
    )


# -- ssh


def test_ssh_is_run_by_a_program_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "with space & 'quote'"
    uri = with_ssh("qemu+ssh://root@host:2222/system?socket=/x", folder, Path("/keys/id"))
    query = parse_qs(urlsplit(uri).query)
    assert query["socket"] == ["/x"]
    script = Path(query["command"][0])
    assert script == folder / "ssh"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    assert shlex.split(script.read_text().splitlines()[1]) == [
        "exec", "ssh", "-F", str(folder / "ssh_config"), "$@"
    ]
    assert with_ssh(uri, folder, None) == uri, "a program that the user names is kept"


def test_ssh_itself_reads_what_was_written(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(ssh_config(tmp_path, Path("/keys/id")))
    done = subprocess.run(
        ["ssh", "-G", "-F", config, "host"], capture_output=True, text=True, timeout=20, check=True
    )
    lines = done.stdout.splitlines()
    assert "stricthostkeychecking accept-new" in lines
    assert "batchmode yes" in lines
    assert "connecttimeout 5" in lines
    assert "identityfile /keys/id" in lines
    assert any(line.startswith(f"userknownhostsfile {tmp_path}/known_hosts ") for line in lines)


def test_what_is_not_ssh_is_left_alone(tmp_path: Path) -> None:
    for uri in ("qemu:///system", "qemu+tls://host/system", "test+unix:///default?socket=/x"):
        assert with_ssh(uri, tmp_path / "never", None) == uri
    assert not (tmp_path / "never").exists()


def test_the_check_of_host_keys_cannot_be_turned_off(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        with_ssh("qemu+ssh://host/system?no_verify=1", tmp_path, None)


# -- the seed


def read_iso(data: bytes) -> dict[str, bytes]:
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(data))
    found = {}
    for name in ("meta-data", "user-data"):
        into = io.BytesIO()
        image.get_file_from_iso_fp(into, joliet_path=f"/{name}")
        found[name] = into.getvalue()
    label = image.pvd.volume_identifier.decode().strip()
    image.close()
    assert label == "cidata"
    return found


def test_a_seed_says_no_more_than_it_was_given() -> None:
    told = Seed(INJECTION, "", (INJECTION, "ssh-ed25519 AAAA me@here"))
    files = read_iso(seed.iso(UUID, told))
    meta = yaml.safe_load(files["meta-data"])
    assert set(meta) == {"instance-id", "local-hostname", "public-keys"}
    assert meta["instance-id"] == UUID
    assert meta["local-hostname"] == INJECTION
    assert meta["public-keys"] == [INJECTION, "ssh-ed25519 AAAA me@here"]
    assert files["user-data"].startswith(b"#cloud-config\n")
    user = yaml.safe_load(files["user-data"])
    assert set(user) == {"hostname", "ssh_authorized_keys"}


def test_user_data_is_passed_on_untouched() -> None:
    text = "#!/bin/sh\necho \u00e9 \r\n"
    assert read_iso(seed.iso(UUID, Seed("web", text)))["user-data"] == text.encode()


def test_a_digest_is_of_the_words_alone() -> None:
    told = Seed("web", "x", ("k",))
    assert seed.digest(UUID, told) == seed.digest(UUID, told)
    others = [Seed("web2", "x", ("k",)), Seed("web", "y", ("k",)), Seed("web", "x", ())]
    assert len({seed.digest(UUID, one) for one in [told, *others]}) == 4


# -- what the host is


def test_facts_out_of_capabilities() -> None:
    shape = capabilities.read_shape(
        "<capabilities><host><uuid>u</uuid><cpu><arch>x86_64</arch></cpu></host>"
        "<guest><os_type>hvm</os_type><arch name='i686'><domain type='qemu'/></arch></guest>"
        "<guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc</machine>"
        "<machine canonical='pc-q35-7.2'>q35</machine><domain type='qemu'/><domain type='kvm'/>"
        "</arch></guest></capabilities>"
    )
    assert shape == capabilities.Shape(
        "u", "x86_64", ("kvm", "qemu"), "q35", ("pc", "pc-q35-7.2")
    )
    assert capabilities.version_text(9_000_000) == "9.0.0"
    assert capabilities.version_text(7_002_022) == "7.2.22"


def test_the_load_is_what_was_spent_since_the_last_look() -> None:
    link: Any = SimpleNamespace(known={})
    asked = [
        capabilities.load_since(link, capabilities.Spent(busy, idle))
        for busy, idle in ((100, 900), (130, 970), (130, 970), (131, 1970), (161, 1970), (5, 20))
    ]
    assert asked == [None, 0.3, None, 0.0, 1.0, None], "the last is after a reboot"
    assert "network" in capabilities.of_kind("QEMU", False, False)
    assert "network" not in capabilities.of_kind("QEMU", True, False)
    containers = capabilities.of_kind("LXC", False, False)
    assert containers >= {"root_filesystems", "network"}
    assert not containers & {"images", "suspend", "snapshot", "vnc_console"}
    assert capabilities.of_kind("Xen", False, False) == frozenset()


def test_what_guests_run_on_out_of_what_libvirt_says() -> None:
    model = (
        "<model fallback='forbid'>EPYC</model><vendor>AMD</vendor>"
        "<feature policy='{}' name='{}'/>"
    )
    capable = (
        "<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>"
        f"<mode name='host-model' supported='{{}}'>{model}</mode></cpu></domainCapabilities>"
    )
    read = capabilities.read_model(capable.format("yes", "require", "svm"))
    assert capabilities.read_processor(read) == capabilities.Processor("AMD EPYC", ("svm",))
    off = capabilities.read_model(capable.format("yes", "disable", "avx"))
    assert capabilities.read_processor(off).features == ()
    assert capabilities.read_model(capable.format("no", "require", "svm")) == ""
    assert capabilities.read_model("<domainCapabilities/>") == ""


@pytest.mark.parametrize(
    ("state", "reason", "saved", "power", "cause"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, 1, False, Power.RUNNING, StopCause.NONE),
        (libvirt.VIR_DOMAIN_BLOCKED, 0, False, Power.RUNNING, StopCause.NONE),
        (libvirt.VIR_DOMAIN_SHUTDOWN, 0, False, Power.RUNNING, StopCause.NONE),
        (libvirt.VIR_DOMAIN_PAUSED, 5, False, Power.PAUSED, StopCause.NONE),
        (libvirt.VIR_DOMAIN_SHUTOFF, 1, False, Power.OFF, StopCause.GUEST),
        (libvirt.VIR_DOMAIN_SHUTOFF, 2, False, Power.OFF, StopCause.FORCED),
        (libvirt.VIR_DOMAIN_SHUTOFF, 3, False, Power.OFF, StopCause.CRASHED),
        (libvirt.VIR_DOMAIN_SHUTOFF, 5, True, Power.SAVED, StopCause.NONE),
        (libvirt.VIR_DOMAIN_SHUTOFF, 5, False, Power.OFF, StopCause.FORCED),
        (libvirt.VIR_DOMAIN_SHUTOFF, 0, False, Power.OFF, StopCause.UNKNOWN),
        (libvirt.VIR_DOMAIN_SHUTOFF, 99, False, Power.OFF, StopCause.UNKNOWN),
        (libvirt.VIR_DOMAIN_CRASHED, 0, False, Power.OFF, StopCause.CRASHED),
    ],
)
def test_states(state: int, reason: int, saved: bool, power: Power, cause: StopCause) -> None:
    found = states.domain_of(UUID, state, reason, saved, Mark(3), ())
    assert (found.power, found.cause, found.generation) == (power, cause, 3)


# -- the network


def test_a_bridge_has_a_name_that_linux_takes() -> None:
    for name in ("treadle", "a-rather-long-network-name", "n\u00e9t"):
        bridge = bridge_name(name)
        assert len(bridge) <= 15
        assert bridge.isascii()
        assert bridge == bridge_name(name)
    assert bridge_name("treadle") == "tr-treadle"
    assert bridge_name("x" * 40) != bridge_name("x" * 41)


@pytest.mark.parametrize("text", ["", "10.0.0.1/24", "10.0.0.0/30", "fd00::/64", "x"])
def test_a_subnet_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_subnet(text)


def test_ports_are_the_same_ones_each_time() -> None:
    ports = forward_ports(UUID)
    assert ports == forward_ports(UUID)
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 60000 for port in ports)


# -- the probe


def test_the_boot_sector_is_one() -> None:
    sector = probe.boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert sector[:7] == bytes.fromhex("ba0406b80020ef")


def test_a_stop_is_handed_over() -> None:
    stops = probe.Stops()
    stops.tell(UUID, libvirt.VIR_DOMAIN_EVENT_STOPPED, 0)
    stops.expect(UUID)
    assert stops.wait(UUID, 0) is None
    stops.tell(UUID, libvirt.VIR_DOMAIN_EVENT_STARTED, 7)
    stops.tell(UUID, libvirt.VIR_DOMAIN_EVENT_STOPPED, 3)
    assert stops.wait(UUID, 0) == 3
    stops.forget(UUID)


# -- deadlines


def connection(tmp_path: Path, **limits: float) -> Connection:
    options = LibvirtOptions(state_dir=tmp_path, deadlines=Deadlines(**limits))
    return Connection("test:///default", options)


def test_a_body_that_was_given_up_does_no_more(tmp_path: Path) -> None:
    conn = connection(tmp_path)
    go, ended, done = threading.Event(), threading.Event(), []

    def body(_link: Any, attempt: Attempt) -> None:
        go.wait(10)
        try:
            attempt(done.append, "too late")
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(VerbTimeout):
        conn.run("start", 0.2, body)
    assert time.monotonic() - began < 1
    assert conn.stuck() == 1
    go.set()
    assert ended.wait(5)
    assert done == []
    conn.close()


def test_a_link_is_closed_only_when_nobody_uses_it_any_more(tmp_path: Path) -> None:
    conn = connection(tmp_path)
    links: list[Any] = []
    inside, go, late = threading.Event(), threading.Event(), threading.Event()
    told: list[str] = []

    def asks(link: Any, attempt: Attempt) -> None:
        links.append(link)
        inside.set()
        assert go.wait(10)
        told.append(attempt(link.conn.getHostname))

    def hangs(_link: Any, _attempt: Attempt) -> None:
        late.wait(10)

    user = threading.Thread(target=lambda: conn.run("facts", 20, asks))
    user.start()
    assert inside.wait(10)
    with pytest.raises(VerbTimeout):
        conn.run("observe", 0.2, hangs)
    [link] = links
    assert (link.over, link.users) == (True, 2)
    assert link.conn._o is not None
    conn.run("look", 10, lambda other, _attempt: links.append(other))
    assert links[1] is not link, "others go on over a new one"
    go.set()
    user.join(10)
    assert told == [link.conn.getHostname()]
    late.set()
    wait_for(lambda: link.conn._o is None, 10, "it to be closed")
    conn.close()
    wait_for(lambda: links[1].conn._o is None, 10, "the other one too")


def test_a_body_may_ask_for_more_time(tmp_path: Path) -> None:
    conn = connection(tmp_path)

    def body(_link: Any, attempt: Attempt) -> str:
        attempt.extend(5)
        time.sleep(0.3)
        return str(attempt(lambda: "done"))

    assert conn.run("suspend", 0.2, body) == "done"
    conn.close()


def test_many_verbs_share_one_connection(tmp_path: Path) -> None:
    conn = connection(tmp_path)
    links: list[Any] = []

    def work() -> None:
        for _ in range(20):
            links.append(conn.run("facts", 5, lambda link, _attempt: link))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(links) == 160
    assert len({id(link) for link in links}) == 1
    conn.close()


def test_an_error_of_ours_comes_through_as_it_is(tmp_path: Path) -> None:
    conn = connection(tmp_path)

    def body(_link: Any, _attempt: Attempt) -> None:
        raise HostRefused("no")

    with pytest.raises(HostRefused, match=r"^no$"):
        conn.run("start", 5, body)
    conn.close()
