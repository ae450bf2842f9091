"""The controller is killed in the middle of ten creates on real hosts, and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.labs import idle_disk
from tests.waiting import wait_for
from treadle.lab.fabric import Lab, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
CREATES = 10
HTTP = urllib3.PoolManager(retries=False, timeout=30)


class Script:
    """`bin/script`'s program on one state folder, started and killed at will."""

    def __init__(self, lab: Lab, image: Path, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "PM_FILE").write_text("".join(f"{one.uri}\n" for one in lab.status()))
        (folder / "IMAGE_FILE").write_text(f"{image}\n")
        (folder / "FLAVOR_FILE").write_text('{"types": [{"cpu": 1, "ram": 128, "disk": 1}]}')
        self.environment = os.environ | {
            "TREADLE_STATE__FOLDER": str(folder / "state"), "TREADLE_SERVER__HOST": "127.0.0.1",
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(lab.key),
            "TREADLE_HOST_DEFAULTS__VIRT_TYPE": "qemu", "TREADLE_CONTROLLER__LEASE_S": "6",
            "TREADLE_CONTROLLER__RESYNC_S": "2",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        files = [str(self.folder / name) for name in ("PM_FILE", "IMAGE_FILE", "FLAVOR_FILE")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "treadle.cli.main", "script", *files, "--port",
                 str(self.port)],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        wait_for(self._answers, 20, "the controller to answer")

    def _answers(self) -> bool:
        try:
            return bool(self.get("/healthz"))
        except urllib3.exceptions.HTTPError:
            return False

    def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def get(self, path: str) -> Any:
        return json.loads(HTTP.request("GET", f"http://127.0.0.1:{self.port}{path}").data)

    def admin(self, path: str) -> Any:
        token = (self.folder / "state" / "admin-token").read_text().strip()
        return json.loads(HTTP.request(
            "GET", f"http://127.0.0.1:{self.port}/treadle/v1{path}",
            headers={"Authorization": f"Bearer {token}"},
        ).data)


def test_nothing_is_lost_leaked_or_doubled(lab: Lab, tmp_path: Path) -> None:
    script = Script(lab, idle_disk(tmp_path), tmp_path)
    script.start()
    try:
        wait_for(
            lambda: all(one["state"] == "up" for one in script.admin("/hosts")["hosts"])
            and all(one["state"] == "active" for one in script.admin("/images")["images"]),
            60, "hosts and image",
        )
        # The tenth part of what ten creates take: some are placed, some defined, some start.
        vmids = [
            script.get(f"/vm/create?name=k{n}&instance_type=1&wait=0")["vmid"]
            for n in range(CREATES)
        ]
        assert all(vmids)
        wait_for(
            lambda: any(script.get(f"/vm/query?vmid={v}")["pmid"] for v in vmids), 20,
            "the work to be under way",
        )
        script.end(signal.SIGKILL)
        begun = time.monotonic()
        script.start()

        def settled() -> bool:
            return all(
                script.get(f"/vm/query?vmid={v}").get("state") in ("running", "error")
                for v in vmids
            )

        wait_for(settled, 120, "every VM to be running or failed")
        assert time.monotonic() - begun < 120
        rows = {v: script.admin(f"/instances/{v}") for v in vmids}
        wanted: dict[str, set[str]] = {one.name: set() for one in lab.status()}
        names = {
            host["id"]: next(one.name for one in lab.status() if one.address in host["uri"])
            for host in script.admin("/hosts")["hosts"]
        }
        for row in rows.values():
            if row["state"] == "running":
                wanted[names[row["host"]]].add(row["uuid"])
            else:
                assert row["fault"]
        ours = {row["uuid"] for row in rows.values()}
        for name, uuids in wanted.items():
            listed = set(lab.exec(name, "virsh", "-q", "list", "--all", "--uuid").stdout.split())
            assert listed & ours == uuids
        assert script.admin("/orphans")["orphans"] == []
        used = sum(host["instances"] for host in script.admin("/hosts")["hosts"])
        assert used == sum(map(len, wanted.values()))
        for v in vmids:
            assert script.get(f"/vm/destroy?vmid={v}") == {"status": 1}
        assert script.get("/vm/list") == {"vmids": []}
    finally:
        script.end(signal.SIGTERM)
