"""One process that runs `openstack` commands, as many as its parent asks for.

Each line of standard input is a JSON list of arguments; each answer a JSON object `code`, `out`,
`err`. It is what the program `openstack` runs, with its imports done once: a command costs a tenth.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from openstackclient.shell import main as shell


def run(arguments: list[str]) -> dict[str, object]:
    """One command, as a new process would run it."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = shell(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return {"code": code or 0, "out": texts[0], "err": texts[1]}


def main() -> None:
    """Answer until the parent closes its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Commands may read their standard input: it is empty.
    asked = os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    for line in asked:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
