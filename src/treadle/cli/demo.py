"""What bin/demo runs: a data centre on this machine, a controller over it, and two VMs in it.

Three grounds to stand on, the first that works: a lab of real libvirt hosts (root), this machine's
own libvirt as the only host (`--local`), simulated hosts (`--fake N`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import urllib3

from treadle.cli.screen import Screen
from treadle.errors import Permanent, TreadleError

GUEST_UP = re.compile(rb"TREADLE-GUEST-UP[^\r\n]*")
READY_S = 60.0
GUEST_UP_S = 90.0
NAMES = ("test_vm_1", "test_vm_2")


class DemoFailed(Permanent):
    """The demo cannot go on; the message says what to do."""


@dataclass
class Vm:
    """One row of the table. Times in milliseconds from the request."""

    vmid: int
    name: str
    pmid: int = 0
    ip: str = ""
    state: str = ""
    running_ms: float | None = None
    guest_up_ms: float | None = None


@dataclass
class Ground:
    """Where the hosts come from: `machines` are lines of a PM_FILE."""

    kind: str
    machines: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    ssh: str = ""
    console: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run the demo; 0 where it went well, 1 where not, 2 for a wrong request."""
    options = _parser().parse_args(arguments)
    demo = Demo(options)
    if options.down:
        demo.down()
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return demo.run()
    except KeyboardInterrupt:
        return 130
    except TreadleError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/demo", description="Two virtual machines on two physical ones, from nothing.",
        epilog="Ctrl-C takes everything down again.",
    )
    parser.add_argument("--once", action="store_true", help="take it down after the table")
    parser.add_argument("--json", action="store_true", help="the facts as JSON, on the last line")
    parser.add_argument("--hosts", type=_count, default=3, metavar="N", help="hosts of the lab")
    parser.add_argument("--fake", type=_count, metavar="N", help="N simulated hosts instead")
    parser.add_argument("--local", action="store_true", help="this machine as the only host")
    parser.add_argument("--port", type=int, default=80, help="port of the controller (80)")
    parser.add_argument("--detach", action="store_true", help="leave it running; --down ends it")
    parser.add_argument("--down", action="store_true", help="end what --detach left running")
    return parser


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 100")
    return value


class Demo:
    """One run of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = _folder()
        self.url = f"http://127.0.0.1:{options.port}"
        self.http = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(connect=2, read=330), maxsize=8
        )
        self.screen = Screen()
        self.controller: subprocess.Popen[bytes] | None = None
        self.lab: Any = None

    # -- the whole of it

    def run(self) -> int:
        if self._record().exists():
            raise DemoFailed("a demo is running in the background: end it with bin/demo --down")
        self._check_port()
        left_running = False
        try:
            with self.screen:
                ground = self._ground()
                self._start_controller(ground)
                hosts = self._wait_until_ready(ground)
                vms = self._make_two()
            self.screen.table(hosts, [asdict(vm) for vm in vms], self.url)
            well = self._went_well(hosts, vms)
            if self.options.detach:
                self._leave_running()
                left_running = True
            elif not self.options.once:
                self._stay(ground, vms)
            if self.options.json:
                facts = {"url": self.url, "hosts": hosts, "vms": [asdict(vm) for vm in vms]}
                print(json.dumps(facts), flush=True)
            return 0 if well else 1
        finally:
            if not left_running:
                self._take_down()

    def down(self) -> None:
        """End what `--detach` left running, or what a killed demo did."""
        record = self._record()
        facts = json.loads(record.read_text()) if record.exists() else {}
        pid = facts.get("pid")
        if pid is not None and _started_at(pid) == facts.get("started_at"):
            os.kill(pid, signal.SIGTERM)
            _until(lambda: _started_at(pid) != facts["started_at"], 20, "the controller to end")
        self._lab_down()
        record.unlink(missing_ok=True)
        print("nothing of the demo is running")

    # -- the ground

    def _ground(self) -> Ground:
        if self.options.fake:
            return Ground("fake", [f"fake://host{n}" for n in range(1, self.options.fake + 1)])
        problem = None if self.options.local else _no_lab()
        if problem is None and not self.options.local:
            return self._lab_ground()
        if problem:
            self.screen.note(f"no lab: {problem}")
            self.screen.note("using this machine's own libvirt (qemu:///session) as the one host")
        return self._local_ground()

    def _lab_ground(self) -> Ground:
        from treadle.lab.fabric import Lab

        self.lab = Lab(self._lab_name())
        with self.screen.step(f"{self.options.hosts} physical machines"):
            hosts = self.lab.up(self.options.hosts, self.screen.detail)
        key = self.lab.key
        return Ground(
            "lab", [f"root@{one.address}" for one in hosts],
            {
                "host_defaults": {"identity_file": str(key), **self._virt_type()},
                "guest": {"ssh_keys": [key.with_suffix(".pub").read_text().strip()]},
            },
            ssh=f"ssh -F {self.lab.ssh_config} -J host{{pmid}} root@{{ip}}",
            console=f".venv/bin/treadle lab shell --name {self.lab.name} host{{pmid}} "
                    "virsh console {domain}",
        )

    def _local_ground(self) -> Ground:
        key = self.folder / "id_ed25519"
        if not key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "treadle-demo", "-f",
                 str(key)], check=True, timeout=20,
            )
        return Ground(
            "local", ["qemu:///session"],
            {
                "host_defaults": self._virt_type(),
                "guest": {"ssh_keys": [key.with_suffix(".pub").read_text().strip()]},
            },
            ssh=f"ssh -i {key} -o UserKnownHostsFile={self.folder}/known_hosts "
                "-o StrictHostKeyChecking=accept-new -p {ssh_port} root@127.0.0.1",
            console="virsh -c qemu:///session console {domain}",
        )

    def _lab_name(self) -> str:
        """The demo's own; a demo with another folder than the usual has another lab."""
        usual = self.folder == Path("/var/lib/treadle-demo")
        return "demo" if usual else f"d{zlib.crc32(str(self.folder).encode()) % 10**7}"

    def _virt_type(self) -> dict[str, str]:
        """What an earlier run found to boot here: it spares the probe."""
        path = self.folder / "virt-type"
        return {"virt_type": path.read_text()} if path.exists() else {}

    def _image(self, ground: Ground) -> Path:
        if ground.kind == "fake":
            path = self.folder / "treadle-guest.raw"
            with path.open("wb") as file:
                file.truncate(1 << 20)
            return path
        from treadle.lab.guest import build_guest

        with self.screen.step("guest image"):
            built = build_guest(_cache(), self.screen.detail)
            named = self.folder / "treadle-guest.qcow2"
            shutil.copyfile(built, named)
        return named

    # -- the controller

    def _check_port(self) -> None:
        from treadle.cli.serve import listen

        listen("127.0.0.1", self.options.port).close()

    def _start_controller(self, ground: Ground) -> None:
        state = self.folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        files = self._write_files(ground, self._image(ground))
        settings: dict[str, dict[str, Any]] = {
            "server": {"host": "127.0.0.1"}, "state": {"folder": str(state)}, **ground.settings,
        }
        config = self.folder / "treadle.toml"
        config.write_text(_toml(settings))
        with self.screen.step(f"controller on port {self.options.port}"):
            log = (self.folder / "controller.log").open("wb")
            # The file says it all: what the user has set for a controller of his own stays out.
            environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
            self.controller = subprocess.Popen(
                [sys.executable, "-m", "treadle.cli.main", "script", *map(str, files),
                 "--config", str(config), "--port", str(self.options.port)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment,
            )
            log.close()
            self._until(lambda: self._get("/healthz") is not None, "the controller to answer")

    def _write_files(self, ground: Ground, image: Path) -> tuple[Path, Path, Path]:
        machines = self.folder / "PM_FILE"
        machines.write_text("".join(f"{line}\n" for line in ground.machines))
        images = self.folder / "IMAGE_FILE"
        images.write_text(f"{image}\n")
        flavors = self.folder / "FLAVOR_FILE"
        flavors.write_text(json.dumps({"types": [
            {"cpu": 1, "ram": 128, "disk": 1}, {"cpu": 1, "ram": 256, "disk": 2},
        ]}, indent=2) + "\n")
        return machines, images, flavors

    def _wait_until_ready(self, ground: Ground) -> list[dict[str, Any]]:
        hosts: list[dict[str, Any]] = []

        def ready() -> bool:
            pmids = self._get("/pm/list")["pmids"]
            hosts[:] = [self._get(f"/pm/query?pmid={pmid}") for pmid in pmids]
            up = sum(one["state"] == "up" for one in hosts)
            self.screen.detail(f"{up} of {len(hosts)} up")
            images = self._admin("/images")["images"]
            broken = [one["error"] for one in images if one["state"] == "error"]
            if broken:
                raise DemoFailed(f"the image cannot be used: {broken[0]}")
            return up == len(hosts) and all(one["state"] == "active" for one in images)

        with self.screen.step(f"{len(ground.machines)} hosts join"):
            self._until(ready, "the hosts to answer")
        known = self._admin("/hosts")["hosts"]
        if ground.kind != "fake":
            (self.folder / "virt-type").write_text(known[0]["virt_type"])
        return [
            {"pmid": one["pmid"], "address": one["address"], "state": one["state"]}
            for one in hosts
        ]

    # -- the two machines

    def _make_two(self) -> list[Vm]:
        with self.screen.step("two VMs"), ThreadPoolExecutor(len(NAMES)) as pool:
            return list(pool.map(self._make, NAMES))

    def _make(self, name: str) -> Vm:
        started = time.monotonic()
        made = self._get(f"/vm/create?name={name}&instance_type=1")
        if not made["vmid"]:
            raise DemoFailed(f"{name} was not made: {made['error']}")
        vm = Vm(made["vmid"], name)
        vm.running_ms = round((time.monotonic() - started) * 1000, 1)
        self.screen.detail(f"{name} runs after {vm.running_ms:.0f} ms")
        vm.guest_up_ms = self._guest_up(vm, started)
        end = time.monotonic() + 10
        while True:
            seen = self._get(f"/vm/query?vmid={vm.vmid}")
            vm.pmid, vm.state, vm.ip = seen["pmid"], seen["state"], seen.get("ip", "")
            if vm.ip or time.monotonic() > end:
                return vm
            time.sleep(0.1)

    def _guest_up(self, vm: Vm, started: float) -> float | None:
        """Milliseconds until the guest said on its serial console that it is up."""
        end = time.monotonic() + GUEST_UP_S
        while time.monotonic() < end:
            if GUEST_UP.search(self._console(vm.vmid)):
                took = round((time.monotonic() - started) * 1000, 1)
                self.screen.detail(f"{vm.name} is up after {took:.0f} ms")
                return took
            time.sleep(0.1)
        self.screen.note(f"{vm.name} did not say on its console that it is up")
        return None

    def _went_well(self, hosts: list[dict[str, Any]], vms: list[Vm]) -> bool:
        up = all(vm.state == "running" and vm.guest_up_ms is not None for vm in vms)
        apart = len({vm.pmid for vm in vms}) == len(vms) or len(hosts) == 1
        return up and apart

    # -- staying and leaving

    def _stay(self, ground: Ground, vms: list[Vm]) -> None:
        self.screen.hints(self._hints(ground, vms))
        assert self.controller is not None
        try:
            self.controller.wait()
        except KeyboardInterrupt:
            print()
            return
        raise DemoFailed(f"the controller ended: see {self.folder}/controller.log")

    def _hints(self, ground: Ground, vms: list[Vm]) -> list[tuple[str, str]]:
        first = vms[0]
        hints = [
            ("look at a VM", f"curl '{self.url}/vm/query?vmid={first.vmid}'"),
            ("make another", f"curl '{self.url}/vm/create?name=mine&instance_type=2'"),
            ("pause it", f"curl '{self.url}/vm/pause?vmid={first.vmid}'"),
            ("what a machine holds", f"curl '{self.url}/pm/query?pmid={first.pmid}'"),
        ]
        if ground.ssh and first.ip:
            address, _, port = first.ip.partition(":")
            hints.append(("log in", ground.ssh.format(
                pmid=first.pmid, ip=address, ssh_port=port or 22
            )))
        if ground.console:
            uuid = self._admin(f"/instances/{first.vmid}")["uuid"]
            hints.append(("serial console", ground.console.format(pmid=first.pmid, domain=uuid)))
        hints.append(("the controller's log", f"tail -f {self.folder}/controller.log"))
        return hints

    def _leave_running(self) -> None:
        assert self.controller is not None
        pid = self.controller.pid
        self._record().write_text(json.dumps({"pid": pid, "started_at": _started_at(pid)}))
        print(f"running in the background at {self.url}; end it with: bin/demo --down")

    def _take_down(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self.controller is not None and self.controller.poll() is None:
            if self.options.local or self.lab is None:
                self._destroy_all()
            self.controller.terminate()
            try:
                self.controller.wait(20)
            except subprocess.TimeoutExpired:
                self.controller.kill()
                self.controller.wait(5)
        self._lab_down()

    def _destroy_all(self) -> None:
        """VMs of this machine's own libvirt outlive the controller: end them here."""
        try:
            for vmid in (self._get("/vm/list") or {}).get("vmids", []):
                self._get(f"/vm/destroy?vmid={vmid}")
        except (DemoFailed, urllib3.exceptions.HTTPError) as error:
            print(f"demo: not every VM could be ended: {error}", file=sys.stderr)

    def _lab_down(self) -> None:
        if self.lab is None and not self.options.down:
            return
        if _no_lab() is None:
            from treadle.lab.fabric import Lab

            (self.lab or Lab(self._lab_name())).down(lambda _line: None)

    # -- HTTP

    def _get(self, path: str) -> Any:
        try:
            response = self.http.request("GET", self.url + path)
        except urllib3.exceptions.HTTPError:
            return None
        return json.loads(response.data)

    def _admin(self, path: str) -> Any:
        response = self.http.request(
            "GET", f"{self.url}/treadle/v1{path}", headers=self._authorization()
        )
        return json.loads(response.data)

    def _console(self, vmid: int) -> bytes:
        response = self.http.request(
            "GET", f"{self.url}/treadle/v1/instances/{vmid}/console",
            headers=self._authorization(),
        )
        return response.data if response.status == 200 else b""

    def _authorization(self) -> dict[str, str]:
        token = (self.folder / "state" / "admin-token").read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    def _until(self, done: Any, what: str) -> None:
        def checked() -> bool:
            if self.controller is not None and self.controller.poll() is not None:
                said = (self.folder / "controller.log").read_text().strip().splitlines()
                raise DemoFailed(said[-1] if said else "the controller ended without a word")
            return bool(done())

        _until(checked, READY_S, what)

    def _record(self) -> Path:
        return self.folder / "running.json"


def _until(done: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise DemoFailed(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


def _started_at(pid: int) -> str | None:
    """When the process started, in the kernel's ticks: tells a recycled number from the old one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _no_lab() -> str | None:
    from treadle.lab.fabric import can_run

    return can_run()


def _folder() -> Path:
    from treadle.config import load, make_private, state_folder

    base = state_folder(load(None, os.environ), os.geteuid(), os.environ)
    return make_private(base.parent / f"{base.name}-demo")


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "treadle"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _toml(settings: dict[str, dict[str, Any]]) -> str:
    """Tables of strings, numbers and lists of strings: their JSON is TOML too."""
    lines = []
    for section, keys in settings.items():
        lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items()), ""]
    return "\n".join(lines)
