"""Runs the chosen tests of tempest against a Treadle, and counts what came of them.

By hand: `python -m tests.conformance.tempest_run [PART_OF_A_NAME ...]` runs those of the selection
whose names have one of the parts, and prints what was said of each that did not pass.
"""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.process import RunningTreadle, running
from treadle.api.openstack.compute import HIGHEST

HERE = Path(__file__).parent
SELECTION = HERE / "tempest-selection.txt"
GAPS = HERE / "tempest-gaps.txt"
WORKERS = 2
LIST_S = 120.0


@dataclass
class Result:
    """What became of one test; `said` is the reason of a skip or the trace of a failure."""

    outcome: str
    said: str = ""


@dataclass
class Outcome:
    """What became of all, by the name of the test; `groups` has the names of each expression."""

    groups: list[list[str]]
    results: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0

    def counts(self) -> list[Counter[str]]:
        """Per expression, how many passed, failed and were skipped."""
        return [Counter(self.results[name].outcome for name in group) for group in self.groups]


def gaps() -> dict[str, str]:
    """The known gaps: the name of a test, and why it does not pass."""
    found = {}
    for line in GAPS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition(" ")
            found[name] = reason.strip()
    return found


def configure(treadle: RunningTreadle, folder: Path, images: Sequence[str]) -> Path:
    """Write tempest.conf; all of its files are in `folder`."""
    auth = treadle.auth
    (folder / "lock").mkdir(exist_ok=True)
    settings = {
        "DEFAULT": {"log_dir": str(folder), "log_file": "tempest.log"},
        "oslo_concurrency": {"lock_path": str(folder / "lock")},
        "auth": {
            "use_dynamic_credentials": "true", "create_isolated_networks": "false",
            "tempest_roles": "member", "admin_username": auth["username"],
            "admin_password": auth["password"], "admin_project_name": auth["project_name"],
            "admin_domain_name": "Default",
        },
        "identity": {
            "uri_v3": f"{auth['auth_url']}/v3", "region": "RegionOne",
            "user_lockout_failure_attempts": "3", "user_lockout_duration": "1",
            "user_unique_last_password_count": "2",
        },
        "identity-feature-enabled": {"security_compliance": "true"},
        "compute": {
            "image_ref": images[0], "image_ref_alt": images[1], "flavor_ref": "1",
            "flavor_ref_alt": "2", "fixed_network_name": "default", "build_interval": "0",
            "build_timeout": "20", "min_compute_nodes": "3", "min_microversion": "2.1",
            "max_microversion": f"2.{HIGHEST}",
        },
        "compute-feature-enabled": {
            "resize": "true", "vnc_console": "true", "config_drive": "true",
            "attach_encrypted_volume": "false", "interface_attach": "false",
            "hostname_fqdn_sanitization": "true", "change_password": "true",
            # The one test of it that is run wants a file that is no base64 to be refused.
            "personality": "true", "stable_rescue": "true",
        },
        # Random bytes are no disk, and no structured format: what is claimed to be one is refused,
        # so that the lists are tried with the formats that promise nothing.
        "image": {
            "build_interval": "0", "build_timeout": "20", "container_formats": "bare,ami,ovf",
            "disk_formats": "raw,iso,ami,ari,aki",
        },
        "image-feature-enabled": {
            "os_glance_reserved": "true", "image_format_enforcement": "false",
        },
        "network": {"build_interval": "0"},
        "network-feature-enabled": {"floating_ips": "false", "port_security": "false"},
        "service_available": {
            "cinder": "false", "swift": "false", "horizon": "false", "neutron": "true",
            "glance": "true", "nova": "true",
        },
        "validation": {"run_validation": "false"},
    }
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(settings)
    path = folder / "tempest.conf"
    with path.open("w") as file:
        parser.write(file)
    return path


def images_of(treadle: RunningTreadle) -> list[str]:
    """The ids of the images that the process was started with."""
    token = (treadle.folder / "admin-token").read_text().strip()
    _, body = treadle.get("/treadle/v1/images", {"Authorization": f"Bearer {token}"})
    return [one["uuid"] for one in body["images"]]


def run(
    treadle: RunningTreadle, folder: Path, seconds: float, parts: Sequence[str] = (),
    tell: Callable[[str, Result], None] = lambda _name, _result: None,
) -> Outcome:
    """Run the selection, at most `seconds` long; what has not run by then has failed."""
    environment = {
        **os.environ, "TEMPEST_CONFIG": str(configure(treadle, folder, images_of(treadle))),
        "OS_TEST_TIMEOUT": "90", "PYTHONWARNINGS": "ignore",
    }
    script = [sys.executable, "-m", "tests.conformance.tempest_worker"]
    options = {"cwd": HERE.parents[1], "env": environment}
    listing = subprocess.run(
        [*script, "--list", str(SELECTION)], capture_output=True, text=True, timeout=LIST_S,
        check=False, **options,
    )
    assert listing.returncode == 0, listing.stderr
    outcome = Outcome([
        [name for name in (id.partition("[")[0] for id in group)
         if not parts or any(part in name for part in parts)]
        for group in json.loads(listing.stdout)
    ])
    names = [name for group in outcome.groups for name in group]
    sizes = Counter(name.rpartition(".")[0] for name in names)
    queue = [kind for kind, _ in sorted(sizes.items(), key=lambda item: item[1])]
    started = time.monotonic()
    workers = [
        subprocess.Popen(
            [*script, str(SELECTION)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / f"worker-{number}.log").open("wb"), text=True, **options,
        )
        for number in range(WORKERS)
    ]

    def keep(line: dict[str, str]) -> None:
        result = Result(line["outcome"], line["said"])
        whole = line.get("class")
        for name in [n for n in names if n.startswith(f"{whole}.")] if whole else [line["id"]]:
            if name in names and (name not in outcome.results or result.outcome == "fail"):
                outcome.results[name] = result
                tell(name, result)

    def drive(worker: subprocess.Popen[str]) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        while queue:
            module, _, kind = queue.pop().rpartition(".")
            try:
                worker.stdin.write(json.dumps({"module": module, "class": kind}) + "\n")
                worker.stdin.flush()
            except OSError:
                return
            for text in worker.stdout:
                line = json.loads(text)
                if "done" in line:
                    break
                keep(line)

    threads = [threading.Thread(target=drive, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, started + seconds - time.monotonic()))
    late = any(thread.is_alive() for thread in threads)
    queue.clear()
    for worker in workers:
        worker.kill()
        worker.wait()
    for thread in threads:
        thread.join()
    for name in names:
        outcome.results.setdefault(
            name, Result("fail", f"it was not done in {seconds:g} s" if late else "it did not run")
        )
    outcome.seconds = time.monotonic() - started
    return outcome


def say(line: str) -> None:
    """A line for whoever runs this by hand."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run a part of the selection, and show what does not pass."""
    def tell(name: str, result: Result) -> None:
        say(f"{result.outcome:4} {name}")
        if result.outcome != "pass":
            say("     " + result.said.replace("\n", "\n     "))

    folder = Path(tempfile.mkdtemp(prefix="treadle-tempest-"))
    with running(folder) as treadle:
        outcome = run(treadle, folder, 1800.0, sys.argv[1:], tell)
    for counts in outcome.counts():
        say(str(dict(counts)))
    say(f"{outcome.seconds:.0f} s; the logs are in {folder}")


if __name__ == "__main__":
    main()
