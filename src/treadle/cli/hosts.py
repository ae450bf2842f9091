"""`treadle host disable`, `enable` and `drain`: a host out of use, and back. `fence-confirmed` and
`evacuate`: one that has failed."""

from __future__ import annotations

import json
from typing import Any

import click

from treadle.cli.base import asks_controller, client, examples, show
from treadle.cli.rebalance import LiveMigration, make_moves

GOES = ("active", "paused", "stopped")


@click.command("disable", epilog=examples("treadle host disable 3 --reason 'new fans'"))
@click.argument("id", type=int)
@click.option("--reason", help="Why, for whoever looks at the host.")
@asks_controller
def host_disable(id: int, reason: str | None, as_json: bool, **where: Any) -> None:
    """Place nothing more on a host; what runs there goes on."""
    said = client(**where).call("POST", f"/hosts/{id}/disable", {"reason": reason})
    click.echo(json.dumps(said, indent=2) if as_json else f"host {id} is {said['state']}")


@click.command("enable", epilog=examples("treadle host enable 3"))
@click.argument("id", type=int)
@asks_controller
def host_enable(id: int, as_json: bool, **where: Any) -> None:
    """Place on a host again."""
    said = client(**where).call("POST", f"/hosts/{id}/enable")
    click.echo(json.dumps(said, indent=2) if as_json else f"host {id} is {said['state']}")


@click.command("drain", epilog=examples(
    "treadle host drain 3 --plan", "treadle host drain 3 --reason 'new fans'",
))
@click.argument("id", type=int)
@click.option("--plan", "planned", is_flag=True, help="Only show what would be done.")
@click.option("--reason", help="Why, for whoever looks at the host.")
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True,
              help="How long one move may take.")
@asks_controller
def host_drain(
    id: int, planned: bool, reason: str | None, seconds: float, as_json: bool, **where: Any
) -> None:
    """Disable a host and move what runs, is paused or is stopped there to others, as it is.

    The plan is shown first: by a dry run, where each would go, and which cannot. The scheduler
    chooses anew at each move. Ctrl-C: begin no other. Exits 1 where one of them is left.
    """
    from treadle.scheduler.rebalance import Move, Pace

    asked = client(**where)
    plan = asked.call("GET", f"/hosts/{id}/drain")
    if not as_json:
        _show(plan)
    if planned:
        if as_json:
            click.echo(json.dumps(plan, indent=2))
        return
    if reason is not None or plan["state"] != "disabled":
        asked.call("POST", f"/hosts/{id}/disable", {"reason": reason or "it is drained"})
    moves = [
        Move(one["instance"], id, one["target"], 0.0, one["cost_mib"]) for one in plan["moves"]
    ]
    pace = Pace(plan["at_once"], seconds, go_on=True)
    ended = make_moves(moves, LiveMigration(asked, chosen=False), pace, quiet=as_json)
    if as_json:
        click.echo(json.dumps({"plan": plan, "ended": ended}, indent=2))
    left = [one for one in ended if one["outcome"] != "done"]
    left += [one for one in plan["stays"] if one["state"] in GOES]
    if left:
        raise SystemExit(1)


@click.command("fence-confirmed", epilog=examples("treadle host fence-confirmed 3"))
@click.argument("id", type=int)
@asks_controller
def host_fence_confirmed(id: int, as_json: bool, **where: Any) -> None:
    """Say that a host is off, for sure: you have switched it off, or pulled its power.

    Instances that ask for it (treadle:ha) are built anew on other hosts then. Where the host in
    truth runs on, they run twice. A host that answers is refused.
    """
    _show_outcome(client(**where).call("POST", f"/hosts/{id}/fence-confirmed"), as_json)


@click.command("evacuate", epilog=examples(
    "treadle host evacuate 3", "treadle host evacuate 3 --everyone",
))
@click.argument("id", type=int)
@click.option("--everyone", is_flag=True,
              help="Also those that do not ask for it: what is on their disks is lost.")
@asks_controller
def host_evacuate(id: int, everyone: bool, as_json: bool, **where: Any) -> None:
    """Build the instances of a host that is off anew on others, each from its image.

    Refused while nobody says that the host is off: a fence, or `treadle host fence-confirmed`.
    """
    said = client(**where).call("POST", f"/hosts/{id}/evacuate", {"everyone": everyone})
    _show_outcome(said, as_json)


def _show_outcome(said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    if said["stays"]:
        show(said["stays"], ("instance", "name", "why"), False, None)
    click.echo(f"{len(said['evacuations'])} are evacuated, {len(said['stays'])} stay")


def _show(plan: dict[str, Any]) -> None:
    if plan["moves"]:
        show([
            {"instance": one["instance"], "name": one["name"], "to": one["target"],
             "host": one["target_name"], "cost_mib": one["cost_mib"]} for one in plan["moves"]
        ], ("instance", "name", "to", "host", "cost_mib"), False, None)
    if plan["stays"]:
        show(plan["stays"], ("instance", "name", "state", "why"), False, None)
    cost = sum(one["cost_mib"] for one in plan["moves"])
    click.echo(
        f"{len(plan['moves'])} of {plan['name']} can go, {cost} MiB; {len(plan['stays'])} stay"
    )
