"""`treadle doctor` on real hosts: it finds what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.labs import a_lab
from treadle.cli.main import main
from treadle.lab.fabric import Lab, LabHost, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(bool(can_run()), reason=str(can_run())),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with a_lab("doc", 1, tmp_path_factory.mktemp("lab")) as one:
        yield one


@pytest.fixture
def host(lab: Lab) -> LabHost:
    return lab.status()[0]


def doctor(lab: Lab, host: LabHost, folder: Path, **environment: str) -> tuple[int, dict[str, Any]]:
    """Its exit code, and each check by name."""
    result = CliRunner().invoke(
        main, ["doctor", host.uri, "--json"],
        env={
            **os.environ, "TREADLE_STATE__FOLDER": str(folder),
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(lab.key), **environment,
        },
    )
    return result.exit_code, {row["check"]: row for row in json.loads(result.output)["checks"]}


def made_there(lab: Lab, host: LabHost) -> list[str]:
    """What libvirt has on the host, and folders of ours."""
    listed = []
    for what in ("pool-list", "net-list", "nwfilter-list", "list"):
        every = ["--all"] if what != "nwfilter-list" else []
        listed += lab.exec(host.name, "virsh", "-q", what, *every).stdout.splitlines()
    folders = lab.exec(host.name, "ls", "/var/lib/libvirt").stdout.split()
    return [*listed, *(name for name in folders if "treadle" in name)]


def test_a_good_host_passes_and_is_left_as_it_was(
    lab: Lab, host: LabHost, tmp_path: Path
) -> None:
    before = made_there(lab, host)
    code, checks = doctor(lab, host, tmp_path)
    assert code == 0, checks
    assert set(checks) >= {"libvirt", "host", "images", "guest (qemu)", "clock", "names", "tidy"}
    assert checks["host"]["detail"].startswith(f"{host.name}: ")
    assert "tcp_retries2=8" in checks["lost peers"]["mend"]
    assert made_there(lab, host) == before


def test_a_key_that_is_not_taken_is_told(lab: Lab, host: LabHost, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not a key")
    code, checks = doctor(lab, host, tmp_path, TREADLE_HOST_DEFAULTS__IDENTITY_FILE=str(wrong))
    assert code == 1
    assert not checks["libvirt"]["ok"]
    assert "identity_file" in checks["libvirt"]["mend"]


def test_a_name_that_does_not_resolve_is_told(lab: Lab, host: LabHost, tmp_path: Path) -> None:
    lab.exec(host.name, "cp", "/etc/hosts", "/tmp/hosts.kept")
    try:
        lab.exec(host.name, "sh", "-c", "echo 127.0.0.1 localhost > /etc/hosts")
        lab.exec(host.name, "sh", "-c", "echo 8 > /proc/sys/net/ipv4/tcp_retries2")
        code, checks = doctor(lab, host, tmp_path)
    finally:
        lab.exec(host.name, "sh", "-c", "cat /tmp/hosts.kept > /etc/hosts")
    assert code == 1
    assert not checks["names"]["ok"]
    assert "/etc/hosts" in checks["names"]["mend"]
    assert checks["images"]["ok"]
    assert (checks["lost peers"]["detail"].split()[-2:], checks["lost peers"]["mend"]) == (
        ["102", "s"], ""
    )
