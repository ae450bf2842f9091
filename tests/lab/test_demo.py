"""The newcomer's command on real hosts, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from treadle.lab.fabric import can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
FAR = 150
ROOT = Path(__file__).parents[2]


def demo(folder: Path, *arguments: str, nobody: bool = False) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "TREADLE_STATE__FOLDER": str(folder / "state"), "HOME": str(folder),
    }
    python = sys.executable
    before: list[str] = []
    if nobody:
        for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            environment.pop(name, None)
        # The checkout may lie where only root can go: nobody sees it at another place.
        place = folder / "checkout"
        place.mkdir()
        environment["PYTHONPATH"] = str(place / "src")
        python = str(place / Path(sys.executable).relative_to(ROOT))
        mount = f'mount --bind "{ROOT}" "{place}" && exec "$@"'
        before = ["unshare", "-m", "sh", "-c", mount, "sh", "setpriv", "--reuid", "65534",
                  "--regid", "65534", "--clear-groups", "--"]
    else:
        environment["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(
            Path.home() / ".cache"
        )
    return subprocess.run(
        [*before, python, "-m", "treadle.cli.main", "demo", "--once", "--json", "--port",
         str(port), *arguments],
        capture_output=True, text=True, timeout=FAR, env=environment, cwd="/", check=False,
        stdin=subprocess.DEVNULL,
    )


def traces(folder: Path) -> tuple[set[str], set[str], set[str]]:
    """Processes, links and mounts that belong to a demo in `folder`."""
    processes = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                processes.add(entry.parent.name)
        except OSError:
            continue
    links = {one.name for one in Path("/sys/class/net").iterdir() if one.name.startswith("tl-d")}
    mounts = {line for line in Path("/proc/mounts").read_text().splitlines() if "lab/d" in line}
    return processes, links, mounts


def test_two_vms_on_two_real_machines_and_nothing_left(tmp_path: Path) -> None:
    before = traces(tmp_path)
    said = demo(tmp_path, "--hosts", "2")
    assert said.returncode == 0, said.stdout + said.stderr
    facts = json.loads(said.stdout.splitlines()[-1])
    assert [one["state"] for one in facts["hosts"]] == ["up", "up"]
    assert {vm["pmid"] for vm in facts["vms"]} == {1, 2}
    for vm in facts["vms"]:
        assert vm["state"] == "running"
        assert vm["ip"]
        assert 0 < vm["running_ms"] < vm["guest_up_ms"]
    assert traces(tmp_path) == before


@pytest.mark.usefixtures("guest_image")
def test_an_ordinary_user_gets_this_machine_as_the_host() -> None:
    import tempfile

    # Short: the session's sockets have long names, and a socket's path is 108 bytes at most.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as name:
        folder = Path(name)
        os.chown(folder, 65534, 65534)
        folder.chmod(0o755)
        said = demo(folder, nobody=True)
        assert said.returncode == 0, said.stdout + said.stderr
        assert "the lab needs root" in said.stdout
        facts = json.loads(said.stdout.splitlines()[-1])
        assert [one["state"] for one in facts["hosts"]] == ["up"]
        for vm in facts["vms"]:
            assert vm["state"] == "running"
            assert vm["ip"].startswith("127.0.0.1:")
            assert vm["guest_up_ms"]
