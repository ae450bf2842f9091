"""A Treadle on simulated hosts, and the clients that talk to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.process import RunningTreadle, running

ROOT = Path(__file__).parents[2]


@dataclass
class OpenStack:
    """The `openstack` command line. Calling it gives what the command prints."""

    treadle: RunningTreadle
    _process: subprocess.Popen[str]

    def run(self, *arguments: str) -> dict[str, Any]:
        """The exit code and both outputs of a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the command line's process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def __call__(self, text: str, *more: str) -> str:
        """What a command that must succeed prints; `text` is split at its spaces."""
        said = self.run(*text.split(), *more)
        assert said["code"] == 0, (text, more, said["err"])
        out: str = said["out"]
        return out

    def json(self, text: str, *more: str) -> Any:
        """The same, with `-f json`, read."""
        return json.loads(self(text, *more, "-f", "json"))

    def refused(self, text: str, *more: str) -> str:
        """What a command that must fail says."""
        said = self.run(*text.split(), *more)
        assert said["code"] != 0, (text, more, said["out"])
        err: str = said["err"]
        return err


@pytest.fixture(scope="module")
def treadle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTreadle]:
    """A process of the module's own."""
    with running(tmp_path_factory.mktemp("treadle")) as one:
        yield one


@pytest.fixture(scope="module")
def openstack(treadle: RunningTreadle) -> Iterator[OpenStack]:
    """The command line, as the administrator."""
    with command_line(treadle) as one:
        yield one


@contextmanager
def command_line(treadle: RunningTreadle, **more: str) -> Iterator[OpenStack]:
    """The command line with other variables."""
    log = treadle.folder.parent / "openstack.log"
    with log.open("ab") as file, subprocess.Popen(
        [sys.executable, "-m", "tests.conformance.openstack_shell"], cwd=ROOT, text=True,
        env=treadle.environment(**more), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=file,
    ) as process:
        try:
            yield OpenStack(treadle, process)
        finally:
            process.kill()
