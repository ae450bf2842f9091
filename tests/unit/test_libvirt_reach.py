"""Whether a host's kernel answers: real sockets, and ssh's own word on where it would go."""

from __future__ import annotations

import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from treadle.hypervisor.base import Reach
from treadle.hypervisor.libvirt import ssh
from treadle.hypervisor.libvirt.reach import endpoint, reach, reach_from

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    ssh.write_files(tmp_path, None)
    found = tmp_path / "ssh_config"
    found.write_text(
        "Host far\n  HostName 192.0.2.7\n  ProxyJump gate\n"
        "Host near\n  HostName 127.0.0.1\n  Port 2222\n" + found.read_text()
    )
    return found


def test_a_kernel_that_answers_is_told_from_silence(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        there = f"qemu+ssh://root@127.0.0.1:{port}/system"
        assert reach(there, config, 5.0) is Reach.OPEN
    assert reach(there, config, 5.0) is Reach.REFUSED
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as clients:
        for _ in range(4):  # what its queue has no room for is not answered
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        there = f"qemu+tls://127.0.0.1:{full.getsockname()[1]}/system"
        assert reach(there, config, 0.3) is Reach.SILENT


@pytest.mark.parametrize(("uri", "where"), [
    ("qemu+ssh://root@127.0.0.1/system", ("127.0.0.1", 22)),
    ("qemu+ssh://root@127.0.0.1:2200/system", ("127.0.0.1", 2200)),
    ("qemu+ssh://near/system", ("127.0.0.1", 2222)),
    ("qemu+tls://127.0.0.1/system", ("127.0.0.1", 16514)),
    ("qemu+tcp://127.0.0.1:1/system", ("127.0.0.1", 1)),
    ("qemu+ssh://far/system", None),
    ("qemu+ssh://no-such-host.invalid/system", None),
    ("qemu:///system", None), ("qemu+unix:///system", None), ("fake://h1", None),
])
def test_where_a_host_is(config: Path, uri: str, where: tuple[str, int] | None) -> None:
    assert endpoint(uri, config) == where
    if where is None:
        assert reach(uri, config, 1.0) is Reach.UNKNOWN


def test_a_peer_that_cannot_be_asked_says_nothing(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        mute = f"qemu+ssh://root@127.0.0.1:{port}/system"
        assert reach_from(mute, "qemu+ssh://near/system", config, 0.3) is Reach.UNKNOWN
    for peer, uri in (
        (mute, "qemu+ssh://near/system"), ("qemu:///system", "qemu+ssh://near/system"),
        (mute, "qemu+tls://127.0.0.1/system"), (mute, "qemu+ssh://far/system"),
    ):
        assert reach_from(peer, uri, config, 1.0) is Reach.UNKNOWN
