"""The command line as a user meets it: real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from treadle.cli.main import main as command_line

HEAVY = ("sqlalchemy", "starlette", "numpy", "libvirt", "rich", "urllib3", "uvicorn", "alembic")
BASE = [sys.executable, "-m", "treadle.cli.main"]


def run(
    *arguments: str, folder: Path | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if folder is not None:
        environment |= {"TREADLE_STATE__FOLDER": str(folder), "XDG_STATE_HOME": str(folder)}
    return subprocess.run(
        [*BASE, *arguments], capture_output=True, text=True, timeout=seconds, env=environment,
        check=False, stdin=subprocess.DEVNULL,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(command: click.Command, path: str = "treadle") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            if not one.hidden:
                yield from commands(one, f"{path} {name}")
    else:
        yield path, command


@pytest.mark.parametrize(("path", "command"), list(commands(command_line)))
def test_every_command_has_a_help_with_examples(path: str, command: click.Command) -> None:
    assert command.help
    assert command.epilog, f"{path} shows no example"
    assert path in command.epilog or path.rsplit(" ", 1)[-1] in command.epilog


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom treadle.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert said.splitlines()[-1] == "[]"


def test_version_as_json() -> None:
    facts = json.loads(run("version", "--json").stdout)
    assert {"treadle", "libvirt-python", "sqlalchemy", "python"} == set(facts)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_program(shell: str) -> None:
    said = run("completion", shell)
    assert said.returncode == 0
    assert "_TREADLE_COMPLETE" in said.stdout


def test_no_controller_is_one_clear_line(tmp_path: Path) -> None:
    said = run("host", "list", "--url", f"http://127.0.0.1:{free_port()}", "--token", "x",
               folder=tmp_path)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert "treadle serve" in said.stderr


def test_doctor_names_what_it_checked(tmp_path: Path) -> None:
    report = json.loads(run("doctor", "--json", folder=tmp_path / "state").stdout)
    assert {"sqlite", "qemu-img", "state folder", "names", "clock"} <= {
        row["check"] for row in report["checks"]
    }


def test_doctor_of_a_fake_host(tmp_path: Path) -> None:
    said = run("doctor", "fake://somewhere", "--json", folder=tmp_path / "state")
    rows = {row["check"]: row["ok"] for row in json.loads(said.stdout)["checks"]}
    assert (rows["libvirt"], rows["images"], rows["host"]) == (True, True, True)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    machines, images, flavors = (tmp_path / n for n in ("PM_FILE", "IMAGE_FILE", "FLAVOR_FILE"))
    image = tmp_path / "tiny.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True,
                   timeout=30)
    machines.write_text("fake://a\nfake://b\n")
    images.write_text(f"{image}\n")
    flavors.write_text('{"types": [{"cpu": 1, "ram": 512, "disk": 1}]}')
    return machines, images, flavors


@contextmanager
def script(files: tuple[Path, Path, Path], folder: Path, port: int) -> Iterator[str]:
    environment = os.environ | {
        "TREADLE_STATE__FOLDER": str(folder), "TREADLE_SERVER__HOST": "127.0.0.1",
    }
    with subprocess.Popen(
        [*BASE, "script", *map(str, files), "--port", str(port)], env=environment,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "serving" in line:
                    break
            else:
                raise AssertionError("it ended before it served")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert process.returncode in (0, -signal.SIGTERM)


def test_operator_commands_against_a_running_controller(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with script(files, state, free_port()) as url:
        def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
            return run(*arguments, "--url", url, folder=state)

        end = time.monotonic() + 20
        while True:
            hosts = json.loads(ask("host", "list", "--json").stdout)
            if [one["state"] for one in hosts] == ["up", "up"] or time.monotonic() > end:
                break
        assert [one["id"] for one in hosts] == [1, 2]
        assert "fake://a" in ask("host", "show", "1").stdout
        added = ask("host", "add", "fake://c", "--name", "third", "--json")
        assert json.loads(added.stdout)["id"] == 3
        assert ask("host", "remove", "3").returncode == 0
        assert "there is no host 3" in ask("host", "show", "3").stderr
        refused = ask("host", "add", "nonsense")
        assert refused.returncode == 1
        assert refused.stderr.startswith("Error: uri ")
        flavor = ask("flavor", "add", "--vcpus", "2", "--memory", "1024", "--disk", "4", "--json")
        assert json.loads(flavor.stdout)["id"] == 2
        assert ask("flavor", "list").stdout.splitlines()[-1] == "2\t2\t1024\t4"
        assert "tiny" in ask("image", "list").stdout
        assert ask("image", "add", "relative/path").returncode == 1


def test_a_taken_port_is_one_clear_line(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("script", *map(str, files), "--port", str(port), folder=tmp_path / "state")
    assert said.returncode == 1
    assert re.fullmatch(rf"Error: port {port} on .* is taken: .*--port\n", said.stderr)


def test_a_second_controller_on_one_folder_is_refused(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with script(files, state, free_port()):
        said = run("script", *map(str, files), "--port", str(free_port()), folder=state)
    assert said.returncode == 1
    assert "another Treadle runs on" in said.stderr


@pytest.mark.parametrize(("which", "content", "expected"), [
    (0, None, "PM_FILE: "),
    (0, "", "PM_FILE:1: "),
    (0, "ok\nnot a host!\n", "PM_FILE:2: "),
    (1, "relative\n", "IMAGE_FILE:1: "),
    (2, "{", "FLAVOR_FILE:"),
    (2, '{"types": [{"cpu": -1, "ram": 1, "disk": 1}]}', "FLAVOR_FILE:1: "),
])
def test_a_bad_file_stops_the_start_in_one_line(
    files: tuple[Path, Path, Path], tmp_path: Path, which: int, content: str | None, expected: str
) -> None:
    if content is None:
        files[which].unlink()
    else:
        files[which].write_text(content)
    said = run("script", *map(str, files), folder=tmp_path / "state")
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert expected in said.stderr


def test_ids_stay_when_the_files_are_reordered(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with script(files, state, free_port()):
        pass
    files[0].write_text("fake://c\nfake://b\nfake://a\n")
    with script(files, state, free_port()) as url:
        hosts = json.loads(run("host", "list", "--json", "--url", url, folder=state).stdout)
    assert {one["uri"]: one["id"] for one in hosts} == {
        "fake://a": 1, "fake://b": 2, "fake://c": 3,
    }


def test_the_state_folder_is_private(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    with script(files, state, free_port()):
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "admin-token").stat().st_mode & 0o777 == 0o600


def test_demo_on_fake_hosts(tmp_path: Path) -> None:
    said = run("demo", "--fake", "3", "--once", "--json", "--port", str(free_port()),
               folder=tmp_path / "state")
    assert said.returncode == 0, said.stdout + said.stderr
    facts = json.loads(said.stdout.splitlines()[-1])
    assert set(facts) == {"url", "hosts", "vms"}
    assert len(facts["hosts"]) == 3
    assert len({vm["pmid"] for vm in facts["vms"]}) == 2
    for vm in facts["vms"]:
        assert set(vm) == {"vmid", "name", "pmid", "ip", "state", "running_ms", "guest_up_ms"}
        assert vm["state"] == "running"


def test_demo_refuses_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("demo", "--fake", "1", "--once", "--port", str(port), folder=tmp_path / "state")
    assert said.returncode == 1
    assert f"port {port}" in said.stderr
    assert said.stderr.count("\n") == 1


def test_demo_detached_and_down(tmp_path: Path) -> None:
    port = str(free_port())
    said = run("demo", "--fake", "2", "--detach", "--json", "--port", port, folder=tmp_path)
    try:
        assert said.returncode == 0, said.stderr
        again = run("demo", "--fake", "2", "--once", "--port", str(free_port()), folder=tmp_path)
        assert again.returncode == 1
        assert "--down" in again.stderr
        with socket.create_connection(("127.0.0.1", int(port)), 5):
            pass
    finally:
        down = run("demo", "--down", folder=tmp_path)
    assert down.returncode == 0, down.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0
