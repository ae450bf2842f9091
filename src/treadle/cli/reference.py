"""Writes docs/reference from the code: `python -m treadle.cli.reference docs/reference`.

A test compares the files with what this gives, so they cannot grow old.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from treadle import errors
from treadle.api.classic import CALLS
from treadle.api.faults import STATUS
from treadle.api.native import PREFIX, ROUTES
from treadle.cli.main import main as command_line
from treadle.compute.actions import ACTIONS, ALLOWED, HARD_REBOOT
from treadle.compute.model import Goal, Mode, Phase, State, Task
from treadle.config import describe
from treadle.hypervisor import base
from treadle.identity.rules import PREDICATES, RULES

NOTE = "<!-- Made by `python -m treadle.cli.reference docs/reference`; do not edit. -->\n\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )


def settings() -> str:
    """Every setting."""
    rows = [
        (f"`{one.name}`", one.type, f"`{one.default}`", one.description) for one in describe()
    ]
    return (
        "# Settings\n\n" + NOTE
        + "A TOML file (`treadle serve --config FILE`), then environment variables: "
        "`server.port` is `TREADLE_SERVER__PORT`. The later one wins.\n\n"
        + table(("setting", "takes", "default", "meaning"), rows)
    )


def error_types() -> str:
    """Every error type, with the status that each face answers."""
    statuses = {kind.__name__: str(status) for kind, status in STATUS}
    rows = []
    for module in (errors, base):
        for name, kind in vars(module).items():
            is_error = inspect.isclass(kind) and issubclass(kind, errors.TreadleError)
            if not is_error or kind.__module__ != module.__name__:
                continue
            status = next(
                (statuses[up.__name__] for up in kind.__mro__ if up.__name__ in statuses), "500"
            )
            first = (kind.__doc__ or "").strip().splitlines()[0]
            rows.append((f"`{name}`", kind.__mro__[1].__name__, status, first))
    return (
        "# Errors\n\n" + NOTE + "The type of an error decides what happens next; "
        "`src/treadle/api/faults.py` maps it to a status.\n\n"
        + table(("error", "is a", "HTTP", "meaning"), rows)
    )


def states() -> str:
    """The states of an instance and what may be asked for in each."""
    parts = ["# States of an instance\n\n", NOTE]
    for kind in (State, Goal, Phase, Mode, Task):
        meaning = " ".join((kind.__doc__ or "").split())
        words = "".join(f"- `{one or 'none'}`\n" for one in kind)
        parts += [f"## {kind.__name__}\n\n{meaning}\n\n", words, "\n"]
    rows = [
        (f"`{name}`", ", ".join(sorted(rule.allowed)), str(rule.goal))
        for name, rule in {**ACTIONS, "reboot (hard)": HARD_REBOOT}.items()
    ]
    rows += [(f"`{name}`", ", ".join(sorted(states)), "") for name, states in ALLOWED.items()]
    rows.append(("`delete`", "any, also while something is under way", "deleted"))
    parts += ["## Actions\n\nBy vm_state, a function of state and mode; none while a task is under "
              "way.\n\n", table(("action", "may be asked for while", "leads to"), rows)]
    return "".join(parts)


def calls() -> str:
    """The calls of the classic and the native API."""
    classic = [
        (
            f"`{one.path}`", ", ".join(f"`{a}`" for a in sorted(one.arguments)) or "none",
            f"`{{\"{one.key}\": {one.zero}, \"error\": …}}`", "yes" if one.changes else "no",
        )
        for one in CALLS
    ]
    native = [
        (method, f"`{PREFIX}{path}`", str(status), (run.__doc__ or "").strip().splitlines()[0])
        for method, path, run, status in ROUTES
    ]
    return (
        "# HTTP calls\n\n" + NOTE + "## Classic\n\nGET, and POST with a form where the call "
        "changes something.\n\n"
        + table(("call", "arguments", "when it fails", "changes"), classic)
        + "\n## Native\n\nWith `Authorization: Bearer` and the token of the state folder.\n\n"
        + table(("method", "path", "status", "what"), native)
    )


def commands() -> str:
    """The help text of every command."""
    parts = ["# Command line\n\n", NOTE]

    def walk(command: click.Command, name: str, parent: click.Context | None) -> None:
        if command.hidden:
            return
        context = click.Context(
            command, info_name=name, parent=parent, **command.context_settings
        )
        parts.append(f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n\n")
        for child, one in getattr(command, "commands", {}).items():
            walk(one, child, context)

    walk(command_line, "treadle", None)
    return "".join(parts).rstrip() + "\n"


def rules() -> str:
    """Who may do what on OpenStack's faces."""
    meanings = [
        (f"`{name}`", (one.__doc__ or "").strip().splitlines()[0])
        for name, one in PREDICATES.items()
    ]
    return (
        "# Who may do what\n\n" + NOTE + "Each call asks a rule. A file that `server.rules_file` "
        "names gives a rule another predicate: `\"compute:servers:create\" = \"admin\"`.\n\n"
        + table(("predicate", "who"), meanings) + "\n"
        + table(("rule", "predicate"), [(f"`{rule}`", f"`{who}`") for rule, who in RULES.items()])
    )


PAGES = {
    "settings.md": settings, "errors.md": error_types, "states.md": states, "http.md": calls,
    "commands.md": commands, "rules.md": rules,
}


def write(folder: Path) -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folder / name).write_text(make())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
