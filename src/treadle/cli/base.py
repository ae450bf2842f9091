"""What the commands share: options, tables, errors in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from treadle.cli.client import Client
    from treadle.scheduler.engine import OnFault
    from treadle.sections import Scheduler

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1"


def examples(*lines: str) -> str:
    """The end of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def asks_controller(command: F) -> F:
    """The options of every command that asks a running controller and shows a table."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    return as_json(asks_where(command))


def asks_where(command: F) -> F:
    """The options that say where the controller is, and by which right it is asked."""
    for option in (
        click.option("--token", envvar="TREADLE_TOKEN", help="Admin token; else read from the "
                     "state folder."),
        click.option("--config", type=click.Path(path_type=Path, dir_okay=False),
                     envvar="TREADLE_CONFIG", help="Settings file that names the state folder."),
        click.option("--url", envvar="TREADLE_URL", default=DEFAULT_URL, show_default=True,
                     help="The controller."),
    ):
        command = option(command)
    return command


def client(url: str, token: str | None, config: Path | None) -> Client:
    """A client of the controller."""
    from treadle.cli.client import connect

    return connect(url, token, config)


def on_fault(chosen: Scheduler) -> OnFault:
    """What the settings say is done about a broken plug-in."""
    from treadle.scheduler.engine import OnFault

    return OnFault(chosen.on_filter_fault, chosen.on_policy_fault, chosen.plugin_limit_s)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool, data: Any) -> None:
    """Print a table on a terminal, tab-separated lines elsewhere, or JSON."""
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    cells = [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for line in cells:
        table.add_row(*line)
    Console().print(table)


def guarded(call: Callable[[], T]) -> T:
    """What `call` gives; an error of Treadle's ends the command in one line."""
    from treadle.errors import TreadleError

    try:
        return call()
    except TreadleError as error:
        raise click.ClickException(str(error)) from error
