"""`treadle simulate`: policies compared on a trace, before they place anything real."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from treadle.cli.base import asks_controller, client, examples, guarded, on_fault, show

if TYPE_CHECKING:
    from treadle.scheduler.model import HostView
    from treadle.scheduler.simulate import Outcome
    from treadle.scheduler.simulate_compare import Comparison, Spread, Watch
    from treadle.scheduler.simulate_generate import Size
    from treadle.scheduler.simulate_trace import Arrival, Trace

_PLAIN_EVERY_S = 5.0


@click.command(epilog=examples(
    "treadle simulate --generate 20000 --hosts 90x48c128g --policy best-fit --policy worst-fit",
    "treadle simulate --trace azure.csv.gz --hosts 700x48c128g --policy best-fit --seeds 3",
    "treadle simulate --trace azure.csv.gz --hosts 700x48c128g "
    "--policy weighted:cpu_free=-1,memory_free=-1 --report out.html",
    "treadle simulate --from-cloud --add-hosts 5x64c256g --generate 5000 --hours 168",
    "treadle simulate --from-cloud --drain host3 --drain host4",
    "treadle simulate --record today.jsonl",
    "treadle simulate --trace today.jsonl --policy best-fit --policy worst-fit",
))
@click.option("--trace", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="CSV or record (.jsonl) of VMs, .gz or not.")
@click.option("--generate", "vms", type=click.IntRange(1), help="Make up this many VMs instead.")
@click.option("--hours", type=click.FloatRange(0.1), default=72.0, show_default=True,
              help="Over how long they are made up.")
@click.option("--since", type=click.FloatRange(0), help="Leave out what comes before this hour.")
@click.option("--until", type=click.FloatRange(0), help="End at this hour of the trace.")
@click.option("--hosts", "spec", help="COUNTxCORES'c'GIB'g': 700x48c128g, or 5x64c256g,3x8c32g.")
@click.option("--from-cloud", is_flag=True, help="Begin with the running cloud's hosts and VMs.")
@click.option("--add-hosts", "more", help="With these besides: 5x64c256g.")
@click.option("--drain", multiple=True, metavar="HOST",
              help="With this host (name or number) closed and its VMs placed anew. Repeatable.")
@click.option("--mix", help="Sizes that are made up: SHARE:CORES'c'GIB'g', 60:1c2g20d,40:4c8g. "
              "Else those of the cloud's VMs, or of a public cloud.")
@click.option("--policy", "policies", multiple=True, help="Once for each policy; else the "
              "settings' one. POLICY:WEIGHER=NUMBER,… names weighers.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="Runs of each, with other seeds: gives confidence intervals.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a page with plots (.html) too.")
@click.option("--record", "record_to", type=click.Path(path_type=Path, dir_okay=False),
              help="Write what the running cloud placed to this file (.jsonl), and end.")
@asks_controller
def simulate(**options: Any) -> None:
    """Replay VMs through the scheduler and compare policies.

    Nothing real is touched. The trace is a file, a record of a cloud, or made up (--generate); with
    --from-cloud it comes on top of what a running cloud has.
    Other seeds bring the batches of the same moment in another order; a made-up trace is made anew.
    """
    if options["record_to"] is not None:
        _record(options["record_to"], options)
        return
    found = guarded(lambda: _run(**options))
    if options["report"] is not None:
        from treadle.cli.simulate_report import write_report

        guarded(lambda: write_report(found, options["report"]))
    if options["as_json"]:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        table(found)


def _record(path: Path, options: dict[str, Any]) -> None:
    from treadle.scheduler.simulate_trace import record_lines

    named = {name: options[name] for name in ("url", "token", "config")}
    found = client(**named).call("GET", "/record")
    try:
        with path.open("w", encoding="utf-8") as out:
            out.writelines(record_lines(found))
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    done = {"file": str(path), "hosts": len(found["hosts"]), "instances": len(found["instances"])}
    if options["as_json"]:
        click.echo(json.dumps(done))
    else:
        click.echo(f"{path}: {done['hosts']} hosts, {done['instances']} instances")


def _run(
    file: Path | None, vms: int | None, hours: float, since: float | None, until: float | None,
    policies: Sequence[str], seeds: int, config: Path | None, **more: Any,
) -> Comparison:
    from treadle.config import load
    from treadle.scheduler.simulate_cloud import before
    from treadle.scheduler.simulate_compare import Plan, compare
    from treadle.scheduler.simulate_generate import generate
    from treadle.scheduler.simulate_trace import Trace, read_trace

    _check(file, vms, more)
    read = None if file is None else read_trace(file).part(since, until)
    stage = _stage(read, config, more)

    def trace_of(seed: int) -> Trace:
        if read is not None:
            asked = read.shuffled(seed)
        elif vms is not None:
            asked = generate(vms, hours, seed, stage.sizes).part(since, until)
        else:
            asked = Trace(f"{len(stage.moved)} VMs that move", (), 0.0, 3600.0)
        return before(asked, stage.moved)

    chosen = load(config, os.environ).scheduler
    plan = Plan(
        trace_of, stage.hosts, stage.text, policies or (chosen.policy,), chosen.filters,
        chosen.weighers, seeds, stage.running, on_fault(chosen), chosen.predictor,
    )
    with watching() as watch:
        return compare(plan, watch)


def _check(file: Path | None, vms: int | None, more: dict[str, Any]) -> None:
    if file is not None and vms is not None:
        raise click.UsageError("name a --trace, or --generate VMs: one of the two")
    if file is None and vms is None and not more["drain"]:
        raise click.UsageError("name a --trace, --generate VMs, or --drain a host of the cloud")
    if (more["drain"] or more["more"]) and not more["from_cloud"]:
        raise click.UsageError("--drain and --add-hosts go with --from-cloud")
    if more["from_cloud"] and more["spec"] is not None:
        raise click.UsageError("--from-cloud has hosts: use --add-hosts in place of --hosts")


class _Stage(NamedTuple):
    """What a simulation begins with."""

    hosts: Sequence[HostView]
    text: str
    sizes: Sequence[Size]
    moved: Sequence[Arrival] = ()
    running: Sequence[Arrival] = ()


def _stage(read: Trace | None, config: Path | None, more: dict[str, Any]) -> _Stage:
    from treadle.scheduler.simulate_cloud import cloud_now, parse_mix
    from treadle.scheduler.simulate_generate import SIZES
    from treadle.scheduler.simulate_trace import parse_hosts

    sizes = None if more["mix"] is None else parse_mix(more["mix"])
    if more["from_cloud"]:
        found = client(more["url"], more["token"], config).call("GET", "/record")
        cloud = cloud_now(found, more["url"])
        like = sizes or cloud.sizes() or SIZES
        if more["more"]:
            cloud = cloud.grown(more["more"])
        cloud, moved = cloud.drained(more["drain"])
        text = f"the {len(cloud.hosts)} hosts of {more['url']}, with {len(cloud.running)} VMs"
        return _Stage(cloud.hosts, text, like, moved, cloud.running)
    if more["spec"] is not None:
        return _Stage(parse_hosts(more["spec"]), more["spec"], sizes or SIZES)
    if read is not None and read.hosts:
        return _Stage(read.hosts, "those of the record", sizes or SIZES)
    raise click.UsageError("name the --hosts, for instance 700x48c128g")


@contextmanager
def watching() -> Iterator[Watch]:
    """How far it is and how long it may take: a bar on a terminal, a line now and then elsewhere.

    Both on standard error.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        ) as progress:
            task = progress.add_task("", total=1)

            def draw(policy: str, run: int, runs: int, done: int, total: int) -> None:
                progress.update(
                    task, description=f"{policy} ({run + 1} of {runs})",
                    completed=run * total + done, total=runs * total,
                )

            yield draw
        return
    began = told = time.monotonic()

    def tell(policy: str, run: int, runs: int, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        part = (run + done / max(1, total)) / runs
        if now - told >= _PLAIN_EVERY_S and part > 0:
            told = now
            left = (now - began) / part * (1 - part)
            click.echo(
                f"{policy} ({run + 1} of {runs}): {part:.0%}, about {left:.0f} s left", err=True
            )

    yield tell


Measure = tuple[str, Callable[["Outcome"], float], str]

MEASURES: tuple[Measure, ...] = (
    ("refused", lambda one: one.refused, ".0f"),
    ("before_first", lambda one: one.before_first_refusal, ".0f"),
    ("small_refused_%", lambda one: _part(one, "small"), ".2f"),
    ("medium_refused_%", lambda one: _part(one, "medium"), ".2f"),
    ("large_refused_%", lambda one: _part(one, "large"), ".2f"),
    ("lost_core_h", lambda one: one.lost_core_hours, ".0f"),
    ("lost_%", lambda one: 100 * one.lost_core_hours / max(one.asked_core_hours, 1e-9), ".2f"),
    ("host_h", lambda one: one.host_hours, ".0f"),
    ("most_hosts", lambda one: one.most_hosts, ".0f"),
    ("cores_%", lambda one: 100 * one.utilisation_cores, ".1f"),
    ("memory_%", lambda one: 100 * one.utilisation_memory, ".1f"),
    ("stranded_cores_%", lambda one: 100 * one.stranded_cores, ".2f"),
    ("stranded_memory_%", lambda one: 100 * one.stranded_memory, ".2f"),
    ("fairness", lambda one: one.fairness_batches, ".3f"),
    ("p50_us", lambda one: one.decision_us[1], ".0f"),
    ("p99_us", lambda one: one.decision_us[2], ".0f"),
)
"""What is shown of an outcome: name, value, format."""

DIFFERENCES: tuple[Measure, ...] = (
    ("lost_core_h_more", lambda one: one.lost_core_hours, "+.0f"),
    ("host_h_more", lambda one: one.host_hours, "+.0f"),
)
"""What is shown against the first policy, seed by seed, where there are several."""


FAULTS: Measure = ("plugin_faults", lambda one: sum(one.faults.values()), ".0f")


def measures_of(found: Comparison) -> tuple[Measure, ...]:
    """What is shown of this one: faults of plug-ins where there are any."""
    broken = any(outcome.faults for row in found.rows for outcome in row.outcomes)
    return (*MEASURES, FAULTS) if broken else MEASURES


def _part(one: Outcome, size: str) -> float:
    of = one.classes[size]
    return 100 * of.refused / of.asked if of.asked else 0.0


def words(spread: Spread, form: str) -> str:
    """A mean, with its confidence where there is one."""
    half = "" if spread.half is None else f" ±{format(spread.half, form).lstrip('+')}"
    return format(spread.mean, form) + half


def table(found: Comparison) -> None:
    """Print the comparison, one column a policy on a terminal narrower than the table."""
    rows = [
        {"measure": name, "bound": bound_of(found, name)} | {
            row.policy: words(row.spread(value), form) for row in found.rows
        }
        for name, value, form in measures_of(found)
    ]
    if len(found.rows) > 1:
        rows += [
            {"measure": name} | {
                row.policy: words(found.against_first(row, value), form) for row in found.rows[1:]
            }
            for name, value, form in DIFFERENCES
        ]
    click.echo(
        f"{found.source}: {found.vms} VMs in {found.hours:.1f} hours on {found.hosts}"
        + (f", {found.seeds} seeds, ± is 95% confidence" if found.seeds > 1 else "")
    )
    show(rows, ("measure", *(row.policy for row in found.rows), "bound"), False, None)
    for row in found.rows:
        met: Counter[str] = Counter()
        for one in row.outcomes:
            met.update(one.faults)
        for plugin, count in sorted(met.items()):
            click.echo(
                f"{row.policy}: the {plugin} was at fault {count} times: see how with "
                f"treadle scheduler check {plugin.split()[-1]}", err=True,
            )


def bound_of(found: Comparison, name: str) -> str:
    """The bound of a measure in words; empty where there is none."""
    values = {"lost_core_h": found.bound.lost_core_hours, "host_h": found.bound.host_hours}
    return f"{values[name]:.0f}" if name in values else ""
