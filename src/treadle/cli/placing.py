"""`treadle place` and `treadle explain`: where a request would go, and why one went where it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from treadle.cli.base import asks_controller, client, examples, show


@click.command(epilog=examples(
    "treadle place --flavor 2", "treadle place --flavor 2 --count 10 --explain",
    "treadle place --vcpus 4 --memory 8192 --disk 40 --explain",
))
@click.option("--flavor", type=click.IntRange(1), help="A flavor's number; else the amounts.")
@click.option("--vcpus", type=click.IntRange(1), help="Virtual processors.")
@click.option("--memory", type=click.IntRange(0), help="Memory in MiB.")
@click.option("--disk", type=click.IntRange(0), help="Disk in GiB.")
@click.option("--image", type=click.IntRange(1), help="An image's number.")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True,
              help="How many, one after the other.")
@click.option("--zone", help="The availability zone.")
@click.option("--without", "excluded", type=click.IntRange(1), multiple=True,
              help="Not on this host. May be given more than once.")
@click.option("--explain", "explained", is_flag=True,
              help="Show the whole order with each weigher's share, and who refuses why.")
@asks_controller
def place(
    flavor: int | None, vcpus: int | None, memory: int | None, disk: int | None,
    image: int | None, count: int, zone: str | None, excluded: Sequence[int], explained: bool,
    as_json: bool, **where: Any,
) -> None:
    """Say where a request would go. Nothing is made and nothing is held."""
    body = {
        "flavor": flavor, "vcpus": vcpus, "memory_mib": memory, "disk_gib": disk, "image": image,
        "count": count, "zone": zone, "excluded_hosts": list(excluded),
    }
    found = client(**where).call("POST", "/placements:dry-run", {
        key: value for key, value in body.items() if value is not None
    })
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(found["message"])
    if len(found["placements"]) > 1:
        counts: dict[str, int] = {}
        for one in found["placements"]:
            counts[one["name"]] = counts.get(one["name"], 0) + 1
        show([{"host": name, "vms": number} for name, number in counts.items()],
             ("host", "vms"), False, None)
    if explained:
        _order(found["ranking"])
        _refusals(found["decision"])


@click.command(epilog=examples(
    "treadle explain 7", "treadle explain 0b6c2d7e-8f44-4f8e-9d57-2f1c6c1e6a11 --json",
))
@click.argument("vm", metavar="VM")
@asks_controller
def explain(vm: str, as_json: bool, **where: Any) -> None:
    """Say why a VM (its number or UUID) is where it is, or why it is nowhere."""
    from urllib.parse import quote

    record = client(**where).call("GET", f"/instances/{quote(vm, safe='')}/decision")
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    from treadle.scheduler.record import Decision, sentence

    click.echo(sentence(Decision.from_dict(record)))
    click.echo(f"policy {record['policy']}" + "".join(f"\n{note}" for note in record["notes"]))
    if record["conflicts"]:
        click.echo(f"lost to others on: {', '.join(map(str, record['conflicts']))}")
    _order(record["top"])
    _refusals(record)


def _order(ranking: Sequence[dict[str, Any]]) -> None:
    if not ranking:
        return
    shares = list(ranking[0]["shares"])
    show([
        {"place": place, "host": one["host"], "name": one["name"], "score": f"{one['score']:.4f}"}
        | {name: f"{one['shares'][name]:.4f}" for name in shares}
        for place, one in enumerate(ranking, 1)
    ], ("place", "host", "name", "score", *shares), False, None)


def _refusals(record: dict[str, Any]) -> None:
    if not record["refusals"]:
        return
    show([
        {"host": one["host"], "name": one["name"], "refused by": one["filter"],
         "reason": one["reason"]}
        for one in record["refusals"]
    ], ("host", "name", "refused by", "reason"), False, None)
    more = sum(record["refused"].values()) - len(record["refusals"])
    if more > 0:
        click.echo(f"and {more} more: {record['refused']}")
