"""The parts of the bench. Each returns its figures by key."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa

from bench.scheduler import scheduler
from bench.server import controller, median_ms, requests_per_second
from treadle.db.schema import flavor, image, instance, work

Figures = dict[str, float]

CLIENTS = 32
CREATES = 200
FAKE_HOSTS = 20
STORED = 10_000
SPAWNS = 20
IDLE_S = 20.0
SETTLED_S = 5.0
EVACUATED_S = 120.0


def fake_machines(count: int) -> list[str]:
    """Lines of a PM_FILE."""
    return [f"fake://h{n}?vcpus=64&memory_mib=1048576&disk_mib=10485760"
            for n in range(1, count + 1)]


def small_image(folder: Path) -> Path:
    """An image that only fake hosts can use."""
    path = folder / "small.qcow2"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True,
                   timeout=30)
    return path


def creates(folder: Path) -> Figures:
    """200 VMs asked for by 32 clients at once on 20 fake hosts."""
    with controller(folder, fake_machines(FAKE_HOSTS), small_image(folder)) as one:
        one.get("/vm/create?name=warm&instance_type=1")

        def create(number: int) -> int:
            return int(one.get(f"/vm/create?name=vm{number}&instance_type=1")["vmid"])

        started = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            made = list(pool.map(create, range(CREATES)))
        took = time.monotonic() - started
        running = [v for v in made if v and one.get(f"/vm/query?vmid={v}")["state"] == "running"]
        over = [p for p in one.get("/pm/list")["pmids"]
                if min(one.get(f"/pm/query?pmid={p}")["free"].values()) < 0]
    return {
        "creates_per_s": len(running) / took,
        "creates_lost": CREATES - len(set(running)) + len(over),
    }


def queries(folder: Path) -> Figures:
    """Reading: one process under 8 kept connections, then with 10,000 VMs in the store."""
    machines, picture = fake_machines(FAKE_HOSTS), small_image(folder)
    with controller(folder, machines, picture) as one:
        vmid = one.get("/vm/create?name=warm&instance_type=1")["vmid"]
        path = f"/vm/query?vmid={vmid}"
        requests_per_second(one.port, [path], 1.0, 8)
        per_s = requests_per_second(one.port, [path], 5.0, 8)
    fill(folder / "state" / "treadle.sqlite")
    with controller(folder, machines, picture) as one:
        pm = median_ms(lambda: one.get("/pm/query?pmid=1"), 100)
        listed = median_ms(lambda: one.get("/vm/list"), 50)
        count = len(one.get("/vm/list")["vmids"])
    if count < STORED:
        raise SystemExit(f"only {count} VMs in the store")
    return {"vm_query_per_s": per_s, "pm_query_ms_10k": pm, "vm_list_ms_10k": listed}


def fill(path: Path) -> None:
    """Put 10,000 stopped instances into the store of a controller that does not run."""
    from pysqlite3 import dbapi2

    engine = sa.create_engine(f"sqlite:///{path}", module=dbapi2)
    now = time.time()
    with engine.begin() as conn:
        image_id = conn.execute(sa.select(image.c.id)).scalar_one()
        flavor_id = conn.execute(sa.select(flavor.c.id)).scalar_one()
        rows = []
        for number in range(STORED):
            one = str(uuid.uuid4())
            rows.append({
                "uuid": one, "name": f"stored{number}", "flavor_id": flavor_id, "vcpus": 1,
                "memory_mib": 128, "disk_gib": 1, "image_id": image_id,
                "mac": "02:00:00:00:00:00", "goal": "failed", "state": "error",
                "phase": "queued", "deadline": now, "batch": one, "created_at": now,
                "user_data": "", "ssh_keys": "", "excluded": "", "revision": 1, "generation": 1,
                "settled_generation": 1, "graceful": False, "attempts": 1, "rollback": False,
            })
        conn.execute(sa.insert(instance), rows)
        conn.execute(sa.insert(work), [
            {"kind": "instance", "id": row["uuid"], "due_at": now + 86400} for row in rows
        ])
    engine.dispose()


def idle(folder: Path) -> Figures:
    """What the controller costs when nobody asks it anything."""
    with controller(folder, fake_machines(3), small_image(folder)) as one:
        one.get("/vm/create?name=warm&instance_type=1")
        time.sleep(3)
        before, started = one.cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        used = (one.cpu_s() - before) / (time.monotonic() - started)
        return {"start_s": one.start_s, "idle_rss_mb": one.rss_mb(), "idle_cpu_percent": used * 100}


def lab(folder: Path) -> Figures:
    """A lab of three hosts, from nothing to all answering; median of 3."""
    from treadle.lab.fabric import Lab

    taken = []
    for _ in range(3):
        one = Lab("bench", folder / "lab")
        started = time.monotonic()
        try:
            one.up(3)
            taken.append(time.monotonic() - started)
        finally:
            one.down()
    return {"lab_up_s": statistics.median(taken)}


def spawn(folder: Path) -> Figures:
    """Request to running on a real host with the image in place, beside the same done by hand."""
    from bench.raw import Raw
    from treadle.lab.fabric import Lab
    from treadle.lab.guest import build_guest

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    picture = build_guest(cache / "treadle", lambda _line: None)
    fabric = Lab("bench", folder / "lab")
    through, by_hand = [], []
    try:
        host = fabric.up(1)[0]
        key = fabric.key
        settings = {
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(key),
            "TREADLE_HOST_DEFAULTS__VIRT_TYPE": "qemu",
        }
        machine = f"root@{host.address}"
        with controller(folder, [machine], picture, settings=settings) as one:
            first = one.get("/vm/create?name=likeness&instance_type=1")["vmid"]
            raw = Raw(host.uri, str(fabric.ssh_command), one.admin(f"/instances/{first}")["uuid"])
            for number in range(SPAWNS + 1):
                started = time.perf_counter()
                vmid = one.get(f"/vm/create?name=spawn{number}&instance_type=1")["vmid"]
                took = time.perf_counter() - started
                if not vmid:
                    raise SystemExit("a VM was not made")
                one.get(f"/vm/destroy?vmid={vmid}")
                beside = raw.spawn()
                if number:  # the first warms both up
                    through.append(took * 1000)
                    by_hand.append(beside * 1000)
            raw.close()
    finally:
        fabric.down()
    return {
        "spawn_ms": statistics.median(through), "raw_libvirt_ms": statistics.median(by_hand),
        "spawn_over_raw_ms": statistics.median(
            a - b for a, b in zip(through, by_hand, strict=True)
        ),
    }


def evacuation(folder: Path) -> Figures:
    """A host of the lab loses its power, with the shipped settings and the lab's fence: until the
    guest that it had runs on another."""
    from treadle.lab.fabric import Lab
    from treadle.lab.guest import build_guest

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    picture = build_guest(cache / "treadle", lambda _line: None)
    fabric = Lab("bench", folder / "lab")
    try:
        hosts = fabric.up(3)
        settings = {
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(fabric.key),
            "TREADLE_HOST_DEFAULTS__VIRT_TYPE": "qemu",
            "TREADLE_INSTANCES__ON_HOST_FAILURE": "evacuate",
            "TREADLE_FENCING__PLUGIN": "lab",
            "TREADLE_FENCING__OPTIONS": f'{{"folder": "{fabric.folder}"}}',
        }
        machines = [f"root@{host.address}" for host in hosts]
        with controller(folder, machines, picture, settings=settings) as one:
            vmid = one.get("/vm/create?name=ha&instance_type=1")["vmid"]
            first = one.get(f"/vm/query?vmid={vmid}")["pmid"]
            address = one.get(f"/pm/query?pmid={first}")["address"]
            time.sleep(SETTLED_S)
            started = time.monotonic()
            fabric.kill_host(next(host.name for host in hosts if host.address in address))
            while time.monotonic() - started < EVACUATED_S:
                now = one.get(f"/vm/query?vmid={vmid}")
                if now["pmid"] != first and now["state"] == "running":
                    return {"evacuation_s": time.monotonic() - started}
                time.sleep(0.1)
    finally:
        fabric.down()
    raise SystemExit("the VM was not evacuated")


PARTS: dict[str, Callable[[Path], Figures]] = {
    "creates": creates, "queries": queries, "idle": idle, "lab": lab, "spawn": spawn,
    "scheduler": scheduler, "evacuation": evacuation,
}
TARGETS: dict[str, tuple[str, str]] = {
    "spawn_ms": ("ms", ""),
    "raw_libvirt_ms": ("ms", ""),
    "spawn_over_raw_ms": ("ms", "at most 50, the median of pairs"),
    "creates_per_s": ("/s", "at least 100"),
    "creates_lost": ("", "0"),
    "vm_query_per_s": ("/s", "at least 3,000"),
    "pm_query_ms_10k": ("ms", "under 5"),
    "vm_list_ms_10k": ("ms", "under 30"),
    "idle_rss_mb": ("MB", "at most 120"),
    "idle_cpu_percent": ("%", "under 1"),
    "start_s": ("s", "within 1.5"),
    "lab_up_s": ("s", "within 6"),
    "evacuation_s": ("s", "under 30"),
    "post_202_ms": ("ms", "under 5"),
    "post_202_ms_in_a_row": ("ms", ""),
    "post_202_ms_8_at_once": ("ms", ""),
    "detail_100_per_s": ("/s", "at least 600"),
    "server_show_per_s": ("/s", "at least 3,000"),
    "page_ratio_100k_1k": ("", "at most 1.5"),
    "hundred_active_s": ("s", "within 1"),
    "spawn_over_classic_ms": ("ms", "at most 10"),
    "token_ms": ("ms", "under 2"),
    "rss_mb": ("MB", "at most 150"),
    "pause_over_raw_ms": ("ms", "at most 15, the median of pairs"),
    "resume_over_raw_ms": ("ms", "at most 15"),
    "stop_added_ms": ("ms", "at most 30, without libvirt's own part of the request"),
    "start_added_ms": ("ms", "at most 30"),
    "reboot_added_ms": ("ms", "at most 30"),
    "ten_moves_s": ("s", ""),
    "raw_ten_moves_s": ("s", ""),
    "ten_moves_ratio": ("", "at most 1.3"),
    "move_pause_ms": ("ms", ""),
    "best_fit_per_s_1k": ("/s", "at least 60,000"),
    "best_fit_per_s_100k": ("/s", "at least 20,000"),
    "best_fit_p99_ms_100k": ("ms", "under 0.3"),
    "best_fit_cold_ms_100k": ("ms", "under 2"),
}

