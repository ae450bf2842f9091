"""`treadle scheduler`: the plug-ins there are, a package to begin a new one, the suite it keeps."""

from __future__ import annotations

from pathlib import Path

import click

from treadle.cli.base import examples, guarded, show

COLUMNS = ("kind", "name", "package", "about")
FINDINGS = ("result", "kind", "plugin", "rule", "problem")


@click.group()
def scheduler() -> None:
    """Plug-ins that choose hosts: filters, weighers, policies."""


@scheduler.command("list", epilog=examples("treadle scheduler list", "treadle scheduler list "
                                           "--kind policy --json"))
@click.option("--kind", type=click.Choice(["filter", "weigher", "policy", "predictor"]),
              help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scheduler_list(kind: str | None, as_json: bool) -> None:
    """List the plug-ins that are installed here, and what each does."""
    import inspect

    from treadle.errors import TreadleError
    from treadle.scheduler.registry import Registry

    registry = Registry()
    rows = []
    for one in ("filter", "weigher", "policy", "predictor") if kind is None else (kind,):
        for name in registry.names(one):
            try:
                about = (inspect.getdoc(type(getattr(registry, one)(name))) or "").split("\n")[0]
            except TreadleError as error:
                about = f"does not load: {error}"
            owner = registry.owner(one, name)
            rows.append({"kind": one, "name": name, "package": owner, "about": about})
    show(rows, COLUMNS, as_json, rows)


@scheduler.command("new", epilog=examples(
    "treadle scheduler new rack-power", "treadle scheduler new rack-power --folder /srv/plugins",
))
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(),
              help="Where to make it; else here.")
def scheduler_new(name: str, folder: Path) -> None:
    """Make a package NAME with one filter, one weigher, their tests and entry points."""
    from treadle.scheduler.scaffold import make

    for path in guarded(lambda: make(name, folder)):
        click.echo(path)
    click.echo(
        f"\nNow: pip install -e {folder / name}\n     treadle scheduler check {name}", err=True
    )


@scheduler.command("check", epilog=examples(
    "treadle scheduler check rack-power", "treadle scheduler check best-fit --json",
))
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scheduler_check(name: str, as_json: bool) -> None:
    """Run the conformance suite on a package's plug-ins, or on one plug-in. Exits 1 on a fault."""
    from treadle.scheduler.conformance import check, owned
    from treadle.scheduler.registry import Registry

    registry = Registry()
    some = owned(registry, name)
    if not some:
        known = sorted({registry.owner(k, n) for k in ("filter", "weigher", "policy")
                        for n in registry.names(k)})
        raise click.ClickException(
            f"no package or plug-in {name!r} is installed here: packages with plug-ins are "
            f"{', '.join(known)}; for a new one, pip install it first"
        )
    findings = guarded(lambda: [
        finding for kind, one in some for finding in check(kind, one, registry)
    ])
    rows = [
        {"result": "FAULT" if f.problem else "ok", "kind": f.kind, "plugin": f.plugin,
         "rule": f.rule, "problem": f.problem}
        for f in findings
    ]
    show(rows, FINDINGS, as_json, rows)
    if any(finding.problem for finding in findings):
        raise SystemExit(1)
    if not as_json:
        many = "1 plug-in keeps" if len(some) == 1 else f"{len(some)} plug-ins keep"
        click.echo(f"{many} all rules", err=True)
