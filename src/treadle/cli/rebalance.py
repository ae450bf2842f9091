"""`treadle rebalance`: a list of moves to review, and its carrying out by live migration."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from treadle.cli.base import asks_controller, client, examples, guarded, show
from treadle.errors import Permanent, TreadleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treadle.cli.client import Client
    from treadle.scheduler.rebalance import Move, Outcome, Pace, Rebalancing


@click.command(epilog=examples(
    "treadle rebalance --plan", "treadle rebalance --plan --goal spread --most 10",
    "treadle rebalance --plan --solve", "treadle rebalance --plan --save moves.json",
    "treadle rebalance --apply moves.json",
))
@click.option("--plan", "planned", is_flag=True, help="Work out the moves and show them.")
@click.option("--goal", type=click.Choice(["consolidate", "spread"]), default="consolidate",
              show_default=True, help="Make hosts empty, or alike.")
@click.option("--most", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="How many moves at most.")
@click.option("--solve", is_flag=True, help="Consolidate: solve for all that is on a host at once "
              "(needs the extra solver); else best fit, one after the other.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False),
              help="Keep the plan in this file.")
@click.option("--apply", "applied", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="Make the moves of a saved plan, by live migration. Ctrl-C: begin no other.")
@click.option("--at-once", type=click.IntRange(1, 100), default=2, show_default=True,
              help="How many may be under way.")
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True,
              help="How long one may take.")
@asks_controller
def rebalance(
    planned: bool, goal: Literal["consolidate", "spread"], most: int, solve: bool,
    save: Path | None, applied: Path | None, at_once: int, seconds: float, as_json: bool, url: str,
    token: str | None, config: Path | None,
) -> None:
    """Move instances so that hosts become empty, or alike.

    --plan changes nothing. Each move is shown with its gain (consolidate: hosts that become empty;
    spread: by how much the sum of squared loads goes down) and its cost (MiB to copy, at most).
    """
    if planned == (applied is not None):
        raise click.UsageError("name --plan, or --apply FILE: one of the two")
    asked = client(url, token, config)
    if applied is None:
        plan = guarded(lambda: _plan(asked, url, goal, most, config, solve=solve))
        if save is not None:
            _write(save, plan)
        _show(plan, as_json)
    elif not _apply(asked, applied, at_once, seconds, as_json):
        raise SystemExit(1)


def _plan(
    asked: Client, url: str, goal: Literal["consolidate", "spread"], most: int, config: Path | None,
    *, solve: bool,
) -> Rebalancing:
    import os

    from treadle.config import load
    from treadle.scheduler.rebalance import make_plan
    from treadle.scheduler.simulate_cloud import cloud_now

    cloud = cloud_now(asked.call("GET", "/record"), url)
    filters = load(config, os.environ).scheduler.filters
    return make_plan(cloud, goal, filters, most, solve=solve)


def _write(path: Path, plan: Rebalancing) -> None:
    try:
        path.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def _show(plan: Rebalancing, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plan.to_dict(), indent=2))
        return
    show([
        {"move": number, "instance": move.instance, "from": move.source, "to": move.target,
         "gain": f"{move.gain:.4f}", "cost_mib": move.cost_mib}
        for number, move in enumerate(plan.moves, 1)
    ], ("move", "instance", "from", "to", "gain", "cost_mib"), False, None)
    cost = sum(move.cost_mib for move in plan.moves)
    click.echo(
        f"{len(plan.moves)} moves, {cost} MiB; empty hosts {plan.empty[0]} -> {plan.empty[1]}, "
        f"highest load {plan.highest_load[0]:.0%} -> {plan.highest_load[1]:.0%}"
    )
    if plan.fixed:
        click.echo(f"{len(plan.fixed)} instances are left where they are (--json says why)")


class LiveMigration:
    """Moves through the controller: `POST /instances/{uuid}/migrate`, then looking at the move.

    `chosen`: to the hosts that the moves name; else the scheduler chooses each at its turn.
    """

    def __init__(self, asked: Client, *, chosen: bool = True) -> None:
        self._asked = asked
        self._chosen = chosen
        self._moves: dict[str, dict[str, Any]] = {}

    def begin(self, move: Move, /) -> None:
        """Ask for the move. Errors: `Permanent`."""
        here = self._call("GET", f"/instances/{move.instance}")["host"]
        if here != move.source:
            raise Permanent(
                f"it is on host {here} and not on {move.source} any more: make a new plan"
            )
        self._moves[move.instance] = self._call(
            "POST", f"/instances/{move.instance}/migrate",
            {"host": move.target} if self._chosen else {},
        )

    def state(self, move: Move, /) -> str:
        """How the move stands. Errors: `Permanent` where it cannot be asked."""
        now = self._call("GET", f"/moves/{self._moves[move.instance]['id']}")
        self._moves[move.instance] = now
        stage = str(now["stage"])
        if stage in ("failed", "cancelled"):
            return now["error"] or stage
        return "done" if stage == "done" else "moving"

    def target(self, move: Move) -> int | None:
        """Where it goes; None while that is not known."""
        if self._chosen:
            return move.target
        found: int | None = self._moves.get(move.instance, {}).get("target")
        return found

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._asked.call(method, path, body)
        except click.ClickException as error:
            raise Permanent(error.message) from error
        return found


def _apply(asked: Client, path: Path, at_once: int, seconds: float, as_json: bool) -> bool:
    from treadle.scheduler.rebalance import Pace, Rebalancing

    try:
        plan = Rebalancing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} is no plan: {error}") from error
    except TreadleError as error:
        raise click.ClickException(str(error)) from error
    ended = make_moves(plan.moves, LiveMigration(asked), Pace(at_once, seconds), quiet=as_json)
    if as_json:
        click.echo(json.dumps(ended, indent=2))
    return all(one["outcome"] == "done" for one in ended)


def make_moves(
    moves: Sequence[Move], mover: LiveMigration, pace: Pace, *, quiet: bool
) -> list[dict[str, Any]]:
    """Make them, telling of each as it ends (not where `quiet`); Ctrl-C: begin no other. How each
    ended."""
    from treadle.scheduler.rebalance import carry_out

    stop = threading.Event()
    ended: list[dict[str, Any]] = []

    def tell(move: Move, outcome: Outcome, why: str) -> None:
        target = mover.target(move)
        ended.append({"instance": move.instance, "to": target, "outcome": outcome, "why": why})
        if not quiet:
            where = "" if target is None else f" to host {target}"
            more = f": {why}" if why else ""
            click.echo(f"{len(ended)}/{len(moves)} {move.instance}{where} {outcome}{more}")

    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        carry_out(moves, mover, tell, stop, pace)
    finally:
        signal.signal(signal.SIGINT, before)
    return ended
