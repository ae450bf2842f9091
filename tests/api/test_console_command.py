"""`treadle console`: pipes and a terminal at a VM's serial port."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

from cloudkit import Cloud, until

PATIENCE_S = 60


def command(cloud: Cloud, vmid: int) -> list[str]:
    return [
        sys.executable, "-c", "from treadle.cli.main import main; main()", "console", str(vmid),
        "--url", cloud.url, "--token", cloud.treadle.context.admin_token,
    ]


def read_until(fd: int, wanted: bytes) -> bytes:
    got, end = b"", time.monotonic() + PATIENCE_S
    while wanted not in got:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, got
        more = os.read(fd, 4096)
        assert more, got
        got += more
    return got


def test_what_is_piped_in_is_typed_until_the_console_ends(cloud: Cloud) -> None:
    vmid = cloud.create()
    with subprocess.Popen(
        command(cloud, vmid), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"knock knock")
        process.stdin.close()
        read_until(process.stdout.fileno(), b"knock knock")
        cloud.ok(f"/vm/stop?vmid={vmid}")
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b"the guest's console has ended\n"


def test_a_terminal_is_raw_and_one_key_leaves(cloud: Cloud) -> None:
    vmid = cloud.create()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(cloud, vmid), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, b"simulated guest")
        os.write(ours, b"\x03still here")
        read_until(ours, b"still here")
        os.write(ours, b"\x1d")
        read_until(ours, b"left")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(ours)
    consoles = next(iter(cloud.fleet.hosts.values())).consoles
    until(lambda: consoles.count() == 0, "the guest's side to end")


def test_what_cannot_be_had_is_said_in_one_line(cloud: Cloud) -> None:
    vmid = cloud.create()
    cloud.ok(f"/vm/stop?vmid={vmid}")
    for number, why in ((vmid, "stopped"), (999, "no VM 999")):
        done = subprocess.run(
            command(cloud, number), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )
        assert done.returncode == 1
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
