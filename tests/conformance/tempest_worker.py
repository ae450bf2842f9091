"""One process that runs tempest's tests, class by class, as its parent asks.

Run by `tempest_run` under TEMPEST_CONFIG. With `--list FILE` it prints which tests the regular
expressions in FILE name; else it reads one JSON object a line (`module`, `class`) and prints one
a test (`id`, `outcome`, `said`), and one with `done` at the end of the class.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import testtools

from tests.judging import judge_quickly

PACKAGES = ("tempest.api.identity", "tempest.api.compute", "tempest.api.image")
SETUP = re.compile(r"(?:setUpClass|tearDownClass|setUpModule) \((.+)\)")


def flat(suite: Any) -> Iterator[Any]:
    """The tests of a suite, one by one."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from flat(one)
        else:
            yield one


def short(id: str) -> str:
    """The id of a test without what is in brackets after it."""
    return id.partition("[")[0]


def chosen(file: Path) -> list[re.Pattern[str]]:
    """The regular expressions of the selection: every line that is not a comment."""
    lines = file.read_text().splitlines()
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def listed(file: Path) -> list[list[str]]:
    """Per expression, the ids of the tests that it names."""
    found: list[list[str]] = [[] for _ in chosen(file)]
    loader = unittest.TestLoader()
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.rpartition(".")[2].startswith("test_"):
                continue
            tests = loader.loadTestsFromModule(importlib.import_module(module.name))
            for test in flat(tests):
                for number, expression in enumerate(chosen(file)):
                    if expression.search(test.id()):
                        found[number].append(test.id())
    return found


class Teller(testtools.TestResult):
    """Prints what becomes of each test."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out

    def tell(self, test: Any, outcome: str, said: str = "") -> None:
        """One line. What befalls a class before its tests counts for all of them."""
        id = test.id()
        of_class = SETUP.match(id)
        line = {"class": of_class[1]} if of_class else {"id": short(id)}
        self._out.write(json.dumps({**line, "outcome": outcome, "said": said[-6000:]}) + "\n")
        self._out.flush()

    def addSuccess(self, test: Any, details: Any = None) -> None:
        super().addSuccess(test, details)
        self.tell(test, "pass")

    def addError(self, test: Any, err: Any = None, details: Any = None) -> None:
        self.tell(test, "fail", self._err_details_to_string(test, err, details))
        super().addError(test, err, details)

    addFailure = addError

    def addSkip(self, test: Any, reason: str | None = None, details: Any = None) -> None:
        if reason is None:
            reason = details["reason"].as_text() if details and "reason" in details else ""
        super().addSkip(test, reason)
        self.tell(test, "skip", reason or "")


def serve(file: Path, out: TextIO) -> None:
    """Run what the parent names, until its end of the pipe is closed."""
    expressions = chosen(file)
    loader = unittest.TestLoader()
    for line in sys.stdin:
        job = json.loads(line)
        kind = getattr(importlib.import_module(job["module"]), job["class"])
        tests = [
            test for test in loader.loadTestsFromTestCase(kind)
            if any(expression.search(test.id()) for expression in expressions)
        ]
        unittest.TestSuite(tests).run(Teller(out))
        out.write(json.dumps({"done": f"{job['module']}.{job['class']}"}) + "\n")
        out.flush()


def main() -> None:
    """The tests may print: what is for the parent goes where standard output was."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    judge_quickly()
    if sys.argv[1] == "--list":
        json.dump(listed(Path(sys.argv[2])), out)
        out.close()
    else:
        serve(Path(sys.argv[1]), out)


if __name__ == "__main__":
    main()
