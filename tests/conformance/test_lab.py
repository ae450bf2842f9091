"""A new user who knows only the `openstack` command, on real hosts with real guests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.process import RunningTreadle, running
from tests.lab.conftest import guest_image, lab  # noqa: F401 - fixtures
from tests.waiting import wait_for
from treadle.lab.fabric import Lab, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
PROGRAM = Path(sys.executable).with_name("openstack")
SETTINGS = """
[host_defaults]
identity_file = "{key}"
virt_type = "qemu"
[controller]
resync_s = 2.0
stop_deadline_s = 20.0
[log]
level = "warning"
"""
FLAVORS = '{"types": [{"cpu": 1, "ram": 128, "disk": 1}, {"cpu": 1, "ram": 192, "disk": 2}]}'
ANNA = {"OS_USERNAME": "anna", "OS_PASSWORD": "annas-secret-1", "OS_PROJECT_NAME": "team"}


@pytest.fixture(scope="module")
def treadle(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory  # noqa: F811
) -> Iterator[RunningTreadle]:
    folder = tmp_path_factory.mktemp("cloud")
    with running(
        folder, [host.uri for host in lab.status()], [guest_image],
        SETTINGS.format(key=lab.key), FLAVORS,
    ) as one:
        yield one


def run(
    treadle: RunningTreadle, text: str, *more: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, as a person types it."""
    return subprocess.run(
        [PROGRAM, *text.split(), *more], env=treadle.environment(**variables),
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )


def openstack(treadle: RunningTreadle, text: str, *more: str, **variables: str) -> str:
    """What a command that must succeed prints."""
    said = run(treadle, text, *more, **variables)
    assert said.returncode == 0, (text, said.stderr)
    return said.stdout


def as_json(treadle: RunningTreadle, text: str, **variables: str) -> Any:
    """The same, read."""
    return json.loads(openstack(treadle, f"{text} -f json", **variables))


def test_a_new_user_and_the_openstack_command(treadle: RunningTreadle, tmp_path: Path) -> None:
    openstack(treadle, "project create team")
    openstack(treadle, "user create anna --project team --password", ANNA["OS_PASSWORD"])
    openstack(treadle, "role add member --project team --user anna")
    openstack(treadle, "quota set --instances 2 team")
    images = wait_for(
        lambda: as_json(treadle, "image list --status active", **ANNA), 60, "the image"
    )
    image = images[0]["Name"]
    key = tmp_path / "key"
    openstack(treadle, "keypair create mine --private-key", str(key), **ANNA)
    made = as_json(
        treadle, f"server create --wait --flavor type-1 --network default --key-name mine "
        f"--min 2 --max 2 --image {image} web", **ANNA,
    )
    assert made["status"] == "ACTIVE"
    rows = as_json(treadle, "server list", **ANNA)
    assert [(one["Status"], one["Image"]) for one in rows] == [("ACTIVE", image)] * 2
    one, other = (row["ID"] for row in rows)
    too_many = run(
        treadle, f"server create --flavor type-1 --network default --image {image} third", **ANNA
    )
    assert too_many.returncode != 0
    assert "Quota exceeded" in too_many.stderr
    openstack(treadle, "quota set --instances 3 team")
    openstack(
        treadle, f"server create --wait --flavor type-1 --network default --image {image} third",
        **ANNA,
    )
    wait_for(
        lambda: "TREADLE-GUEST-UP" in openstack(treadle, f"console log show {one}", **ANNA), 120,
        "the guest's own word",
    )
    for action, after in (("pause", "PAUSED"), ("unpause", "ACTIVE"), ("stop", "SHUTOFF"),
                          ("start", "ACTIVE")):
        openstack(treadle, f"server {action} {one}", **ANNA)
        wait_for(
            lambda after=after: as_json(treadle, f"server show {one}", **ANNA)["status"] == after,
            60, f"it to be {after}",
        )
    shown = as_json(treadle, f"server show {one}", **ANNA)
    assert shown["addresses"]["default"]
    assert shown["key_name"] == "mine"
    assert as_json(treadle, "server list") == []
    for id in (one, other, "third"):
        openstack(treadle, f"server delete --wait {id}", **ANNA)
    assert as_json(treadle, "server list", **ANNA) == []
