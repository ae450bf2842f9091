"""A Treadle of a test's own: a real process on simulated machines, behind a free port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

START_S = 60.0
STOP_S = 15.0
ROOMY = "vcpus=512&memory_mib=1048576&disk_mib=16777216"
HOSTS = tuple(f"fake://conformance-{number}/?{ROOMY}" for number in (1, 2, 3))
FLAVORS = '{"types": [{"cpu": 1, "ram": 64, "disk": 1}, {"cpu": 1, "ram": 128, "disk": 2}]}'
QUICK = """
[controller]
poll_s = 0.2
resync_s = 5.0
[database]
synchronous = "NORMAL"
[identity]
lockout_failures = 3
lockout_s = 1
password_history = 2
[log]
level = "warning"
"""


@dataclass(frozen=True)
class RunningTreadle:
    """One process. `url` has no slash at its end; `folder` is its state."""

    url: str
    folder: Path
    log: Path
    pid: int

    @property
    def clouds(self) -> Path:
        """The clouds.yaml that the first start made."""
        return self.folder / "clouds.yaml"

    @property
    def auth(self) -> dict[str, Any]:
        """What the administrator logs in with: the `auth` of that file."""
        cloud = next(iter(yaml.safe_load(self.clouds.read_text())["clouds"].values()))
        return {**cloud["auth"], "auth_url": f"{self.url}/identity"}

    def environment(self, **more: str) -> dict[str, str]:
        """Variables with which OpenStack's clients talk to it, as the administrator."""
        auth = {f"OS_{name.upper()}": str(value) for name, value in self.auth.items()}
        return {
            "PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "LC_ALL": "C.UTF-8",
            "OS_IDENTITY_API_VERSION": "3", "PYTHONWARNINGS": "ignore", **auth, **more,
        }

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        request = urllib.request.Request(self.url + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_images(folder: Path) -> list[Path]:
    """Two empty qcow2 images, of 1 and 2 MiB."""
    paths = [folder / "first.qcow2", folder / "second.qcow2"]
    for number, path in enumerate(paths, 1):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", path, f"{number}M"], check=True, timeout=30
        )
    return paths


@contextmanager
def running(
    folder: Path, hosts: Sequence[str] = HOSTS, images: Sequence[Path] = (),
    settings: str = QUICK, flavors: str = FLAVORS,
) -> Iterator[RunningTreadle]:
    """Start it in `folder`, wait until its hosts are up, and stop it by its id at the end.

    Where no image is named it has two that are empty.
    """
    port = free_port()
    state = folder / "state"
    (folder / "settings.toml").write_text(
        f'{settings}\n[state]\nfolder = "{state}"\n[server]\nhost = "127.0.0.1"\nport = {port}\n'
    )
    (folder / "machines").write_text("".join(f"{uri}\n" for uri in hosts))
    (folder / "images").write_text("".join(f"{path}\n" for path in images or make_images(folder)))
    (folder / "flavors").write_text(flavors)
    log = folder / "log"
    command = [sys.executable, "-m", "treadle.cli.main", "script", "machines", "images",
               "flavors", "--config", "settings.toml"]
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, start_new_session=True,
        )
    try:
        treadle = RunningTreadle(f"http://127.0.0.1:{port}", state, log, process.pid)
        _await(treadle, process, len(hosts))
        yield treadle
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _await(treadle: RunningTreadle, process: subprocess.Popen[bytes], hosts: int) -> None:
    end = time.monotonic() + START_S
    said: Any = None
    while process.poll() is None and time.monotonic() < end:
        try:
            status, said = treadle.get("/healthz")
            if status == 200 and said["hosts_up"] == hosts:
                return
        except (OSError, ValueError) as error:
            said = error
        time.sleep(0.05)
    raise AssertionError(
        f"Treadle is not ready ({said}); it ended with {process.poll()} and said: "
        f"{treadle.log.read_text()[-2000:]}"
    )
