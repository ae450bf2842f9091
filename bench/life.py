"""What the API adds to each step of a VM's life, and moves of running guests, on real hosts."""

from __future__ import annotations

import base64
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.openstack import Cloud
from bench.parts import Figures
from bench.raw import Raw, move
from bench.server import Controller, controller, taken, wait_until
from bench.timed import CALLS, calls_after
from treadle.lab.fabric import Lab
from treadle.lab.guest import build_guest

ROUNDS = 10
STEPS = ("start", "pause", "resume", "reboot", "stop")
HARD = ("stop", "reboot")
ACTS = ("create", "destroy", "suspend", "resume")
UP_S = 120.0
MOVES = 10
MOVE_S = 120.0
TICK_S = 0.02
COUNTS = f"""#!/bin/sh
while usleep {round(TICK_S * 1e6)}; do echo .; done > /dev/ttyS0
"""


@contextmanager
def over_lab(
    folder: Path, hosts: int, more: dict[str, str], *, program: str = "treadle.cli.main"
) -> Iterator[tuple[Controller, Lab]]:
    """A controller over a lab of so many hosts; both are gone afterwards."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    picture = build_guest(cache / "treadle", lambda _line: None)
    fabric = Lab("bench", folder / "lab")
    try:
        machines = [f"root@{host.address}" for host in fabric.up(hosts)]
        settings = {
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(fabric.key),
            "TREADLE_HOST_DEFAULTS__VIRT_TYPE": "qemu", **more,
        }
        with controller(folder, machines, picture, settings=settings, program=program) as one:
            yield one, fabric
    finally:
        fabric.down()


def boot(one: Controller, name: str) -> tuple[int, str]:
    """A VM whose guest is up: its number and its UUID."""
    vmid = int(one.get(f"/vm/create?name={name}&instance_type=1")["vmid"])
    if not vmid:
        raise SystemExit("a VM was not made")
    wait_until(lambda: b"TREADLE-GUEST-UP" in one.console(vmid), UP_S, f"{name} to be up")
    return vmid, one.admin(f"/instances/{vmid}")["uuid"]


def life(folder: Path) -> Figures:
    """Start, pause, resume, reboot and stop of one guest through the API, and of its likeness by
    hand on a connection of one's own, in turns. Neither asks the guest.

    An end and a start of an emulator take a second, and half as much more or less from one to the
    next: what the API adds to those is what a request takes without the calls within it that do
    the step (`ACTS`), not the difference to a call by hand.
    """
    through: dict[str, list[float]] = {step: [] for step in STEPS}
    by_hand: dict[str, list[float]] = {step: [] for step in STEPS}
    added: dict[str, list[float]] = {step: [] for step in STEPS}
    calls = folder / "calls"
    folder.mkdir(parents=True, exist_ok=True)
    calls.touch()
    with over_lab(folder, 1, {CALLS: str(calls)}, program="bench.timed") as (one, fabric):
        vmid, uuid = boot(one, "lively")
        raw = Raw(fabric.status()[0].uri, str(fabric.ssh_command), uuid)
        beside = raw.likeness()
        _ok(one, f"/vm/stop?vmid={vmid}&hard=1")

        def asked(step: str) -> Callable[[], None]:
            path = f"/vm/{step}?vmid={vmid}{'&hard=1' if step in HARD else ''}"
            return lambda: _ok(one, path)

        sides = [(through, asked), (by_hand, lambda step: getattr(beside, step))]
        for number in range(ROUNDS + 1):
            # Only one of the two runs at a time; who comes first changes.
            for figures, call in sides[:: 1 if number % 2 else -1]:
                for step in STEPS:
                    before = calls.stat().st_size
                    seconds = taken(call(step))
                    if not number:  # it warms both up
                        continue
                    figures[step].append(seconds * 1000)
                    if figures is through:
                        made = calls_after(calls, before)
                        spent = sum(made.get(name, 0.0) for name in ACTS)
                        added[step].append((seconds - spent) * 1000)
        beside.remove()
        raw.close()
    return {
        key: value for step in STEPS for key, value in (
            (f"{step}_ms", statistics.median(through[step])),
            (f"raw_{step}_ms", statistics.median(by_hand[step])),
            (f"{step}_added_ms", statistics.median(added[step])),
            (f"{step}_over_raw_ms", statistics.median(
                a - b for a, b in zip(through[step], by_hand[step], strict=True)
            )),
        )
    }


def moves(folder: Path) -> Figures:
    """Ten running guests moved to another host at once through the API, and back again by hand;
    one guest that prints all the time moved alone, each way."""
    with over_lab(folder, 2, {
        "TREADLE_MOVES__AT_ONCE": str(MOVES), "TREADLE_HOST_DEFAULTS__CPU_RATIO": "16",
    }) as (one, fabric):
        here, there = fabric.status()
        one.native("POST", "/hosts/2/disable", {})
        cloud = Cloud(one, folder)
        cloud.unlimited()
        counter = _counting(cloud)
        with ThreadPoolExecutor(2) as pool:
            crowd = [uuid for _, uuid in pool.map(
                lambda n: boot(one, f"crowd{n}"), range(MOVES)
            )]
        wait_until(lambda: _printed(fabric, here.name, counter) > 5000, UP_S, "it to count")
        one.native("POST", "/hosts/2/enable")
        _bring_image(one)
        with silence(fabric, counter) as alone:
            alone_s = taken(lambda: _through(one, [counter]))
        ten_s = taken(lambda: _through(one, crowd))
        left = here.folder / "lib" / "treadle"
        wait_until(lambda: not list(left.glob("*-*-*-*-*.qcow2")), UP_S, "the source to be clean")
        # From here on nobody else looks at the hosts.
        one.end()
        ssh = str(fabric.ssh_command)
        first = Raw(there.uri, ssh, counter)
        pairs = [
            (Raw(there.uri, ssh, counter, first.disk), Raw(here.uri, ssh, counter, first.disk))
            for _ in range(MOVES)
        ]
        with silence(fabric, counter) as by_hand:
            raw_s = taken(lambda: move(counter, *pairs[0], here.address))
        with ThreadPoolExecutor(MOVES) as pool:
            raw_ten_s = taken(lambda: list(pool.map(
                lambda pair: move(pair[0], *pair[1], here.address),
                zip(crowd, pairs, strict=True),
            )))
    return {
        "ten_moves_s": ten_s, "raw_ten_moves_s": raw_ten_s,
        "ten_moves_ratio": ten_s / raw_ten_s, "move_s": alone_s, "raw_move_s": raw_s,
        "move_pause_ms": alone[0] * 1000, "raw_move_pause_ms": by_hand[0] * 1000,
        "move_tick_ms": TICK_S * 1000,
    }


def _counting(cloud: Cloud) -> str:
    """A server that prints all the time; its UUID."""
    image = cloud.call("GET", "/image/v2/images")[2]["images"][0]["id"]
    flavor = cloud.call("GET", "/compute/v2.1/flavors")[2]["flavors"][0]["id"]
    told = base64.b64encode(COUNTS.encode()).decode()
    status, _, body = cloud.call("POST", "/compute/v2.1/servers", {"server": {
        "name": "counter", "imageRef": image, "flavorRef": flavor, "networks": "auto",
        "user_data": told,
    }})
    if status != 202:
        raise SystemExit(f"no server: {status} {body}")
    return str(body["server"]["id"])


def _bring_image(one: Controller) -> None:
    """Have the second host keep the image, as the first does when a guest comes back by hand."""
    one.native("POST", "/hosts/1/disable", {})
    vmid, _ = boot(one, "there")
    one.native("POST", "/hosts/1/enable")
    if one.get(f"/vm/destroy?vmid={vmid}") != {"status": 1}:
        raise SystemExit("a VM was not removed")


def _through(one: Controller, uuids: list[str]) -> None:
    """Ask for a move of each, and wait until all have ended well."""
    asked = [json.loads(one.native("POST", f"/instances/{u}/migrate", {}))["id"] for u in uuids]

    def over() -> bool:
        found = [one.admin(f"/moves/{id}") for id in asked]
        if bad := [row["error"] for row in found if row["stage"] in ("failed", "cancelled")]:
            raise SystemExit(f"a move failed: {bad}")
        return all(row["stage"] == "done" for row in found)

    # Ten questions a round: asked in a tight loop, they would take a core of the moves'.
    wait_until(over, MOVE_S, "the moves", every=0.1)


def _log(fabric: Lab, host: str, uuid: str) -> Path:
    return fabric.host(host).folder / "lib" / "treadle" / f"{uuid}.console.log"


def _printed(fabric: Lab, host: str, uuid: str) -> int:
    try:
        return _log(fabric, host, uuid).stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def silence(fabric: Lab, uuid: str) -> Iterator[list[float]]:
    """The longest time in seconds, within the block, in which no host saw the guest print."""
    logs = [_log(fabric, host.name, uuid) for host in fabric.status()]
    found, over = [0.0], threading.Event()

    def watch() -> None:
        sizes, last = [-1] * len(logs), time.perf_counter()
        while not over.wait(0.002):
            now_are = [log.stat().st_size if log.exists() else 0 for log in logs]
            if any(new > old for new, old in zip(now_are, sizes, strict=True)):
                now = time.perf_counter()
                found[0], last = max(found[0], now - last), now
            sizes = now_are

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(5)


def _ok(one: Controller, path: str) -> None:
    said = one.get(path)
    if said != {"status": 1}:
        raise SystemExit(f"{path}: {said}")
