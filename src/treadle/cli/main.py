"""The command line. Nothing heavy is imported before a command needs it: --help stays quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from treadle.cli.base import asks_controller, client, examples, guarded, show
from treadle.cli.console import console
from treadle.cli.hosts import (
    host_disable,
    host_drain,
    host_enable,
    host_evacuate,
    host_fence_confirmed,
)
from treadle.cli.placing import explain, place
from treadle.cli.rebalance import rebalance
from treadle.cli.scheduler import scheduler
from treadle.cli.simulate import simulate

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Treadle turns Linux machines with libvirt into one cloud.

    \b
    Start a cloud:      bin/demo, or: treadle serve
    Use it:             export OS_CLIENT_CONFIG_FILE=/var/lib/treadle/clouds.yaml OS_CLOUD=treadle
                        openstack server list
    Look after it:      treadle host list, treadle image add ...
    Something is wrong: treadle doctor
    """


main.add_command(scheduler)
main.add_command(simulate)
main.add_command(console)
main.add_command(place)
main.add_command(explain)
main.add_command(rebalance)


@main.command(epilog=examples("treadle version", "treadle version --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print this version, and those of what it runs on."""
    from importlib.metadata import version as installed

    found = {name: installed(name) for name in ("treadle", "libvirt-python", "sqlalchemy")}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo("\n".join(f"{name} {number}" for name, number in found.items()))


@main.command(epilog=examples(
    "treadle serve", "treadle serve --config /etc/treadle.toml",
    "TREADLE_SERVER__PORT=8080 treadle serve",
))
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False),
              envvar="TREADLE_CONFIG", help="Settings file (TOML).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
def serve(config: Path | None, port: int | None) -> None:
    """Run the controller: all faces on one port, until Ctrl-C or SIGTERM."""
    _serve(config, port, None)


@main.command(epilog=examples("treadle script PM_FILE IMAGE_FILE FLAVOR_FILE"))
@click.argument("pm_file", type=click.Path(path_type=Path))
@click.argument("image_file", type=click.Path(path_type=Path))
@click.argument("flavor_file", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False),
              envvar="TREADLE_CONFIG", help="Settings file (TOML).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
def script(
    pm_file: Path, image_file: Path, flavor_file: Path, config: Path | None, port: int | None
) -> None:
    """Run the controller with its machines, images and flavors taken from three files."""
    _serve(config, port, (pm_file, image_file, flavor_file))


def _serve(config: Path | None, port: int | None, files: tuple[Path, Path, Path] | None) -> None:
    from treadle.cli.files import read_flavor_file, read_image_file, read_pm_file
    from treadle.config import load
    from treadle.errors import TreadleError

    try:
        settings = load(config, os.environ)
        if port is not None:
            settings = settings.with_overrides({"server.port": port})
        entries = None
        if files is not None:
            entries = (
                read_pm_file(files[0]), read_image_file(files[1]), read_flavor_file(files[2])
            )
        from treadle.cli.serve import Inventory
        from treadle.cli.serve import serve as run

        run(settings, None if entries is None else Inventory(*entries))
    except TreadleError as error:
        raise click.ClickException(str(error)) from error


@main.group()
def host() -> None:
    """Physical machines."""


@host.command("add", epilog=examples(
    "treadle host add qemu+ssh://root@192.0.2.11/system", "treadle host add qemu:///system",
))
@click.argument("uri")
@click.option("--name", help="What to call it; else its URI.")
@asks_controller
def host_add(uri: str, name: str | None, as_json: bool, **where: Any) -> None:
    """Add a host by its libvirt URI; it joins when it answers."""
    added = client(**where).call("POST", "/hosts", {"uri": uri, "name": name})
    _one_host(added, as_json)


@host.command("list", epilog=examples("treadle host list", "treadle host list --json"))
@asks_controller
def host_list(as_json: bool, **where: Any) -> None:
    """List the hosts with what they have and what is taken."""
    found = client(**where).call("GET", "/hosts")["hosts"]
    show([_host_row(one) for one in found], HOST_COLUMNS, as_json, found)


@host.command("show", epilog=examples("treadle host show 1"))
@click.argument("id", type=int)
@asks_controller
def host_show(id: int, as_json: bool, **where: Any) -> None:
    """Show one host in full."""
    _one_host(client(**where).call("GET", f"/hosts/{id}"), as_json)


@host.command("remove", epilog=examples("treadle host remove 3"))
@click.argument("id", type=int)
@asks_controller
def host_remove(id: int, as_json: bool, **where: Any) -> None:
    """Forget a host that has no instances."""
    client(**where).call("DELETE", f"/hosts/{id}")
    click.echo(json.dumps({"removed": id}) if as_json else f"host {id} removed")


host.add_command(host_disable)
host.add_command(host_enable)
host.add_command(host_drain)
host.add_command(host_fence_confirmed)
host.add_command(host_evacuate)


HOST_COLUMNS = ("id", "name", "state", "virt", "vcpus", "memory_mib", "disk_mib", "vms", "error")


def _host_row(one: dict[str, Any]) -> dict[str, Any]:
    row = {
        key: f"{one[key]['used']}/{one[key]['limit']}"
        for key in ("vcpus", "memory_mib", "disk_mib")
    }
    return row | {
        "id": one["id"], "name": one["name"], "state": one["state"], "virt": one["virt_type"],
        "vms": one["instances"], "error": one["fence"]["note"] or one["error"],
    }


def _one_host(one: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(one, indent=2))
        return
    rows = [{"field": key, "value": value} for key, value in _host_row(one).items()]
    rows.append({"field": "uri", "value": one["uri"]})
    for key, value in (one["facts"] or {}).items():
        shown = ", ".join(value) if isinstance(value, list) else value
        rows.append({"field": key, "value": shown})
    show(rows, ("field", "value"), False, one)


@main.group()
def image() -> None:
    """Images that instances start from."""


@image.command("add", epilog=examples(
    "treadle image add /srv/images/debian-12.qcow2",
    "treadle image add root@192.0.2.7:/srv/images/debian-12.qcow2",
))
@click.argument("source")
@click.option("--name", help="What to call it; else the file's name.")
@asks_controller
def image_add(source: str, name: str | None, as_json: bool, **where: Any) -> None:
    """Add an image: a path on the controller, USER@ADDRESS:/path or a URL."""
    added = client(**where).call("POST", "/images", {"source": source, "name": name})
    show([added], IMAGE_COLUMNS, as_json, added)


@image.command("list", epilog=examples("treadle image list"))
@asks_controller
def image_list(as_json: bool, **where: Any) -> None:
    """List the images and what is known of them."""
    found = client(**where).call("GET", "/images")["images"]
    show(found, IMAGE_COLUMNS, as_json, found)


IMAGE_COLUMNS = ("id", "name", "state", "format", "size_bytes", "virtual_bytes", "source", "error")


@main.group()
def flavor() -> None:
    """Sizes of instances."""


@flavor.command("add", epilog=examples("treadle flavor add --vcpus 2 --memory 2048 --disk 20"))
@click.option("--vcpus", type=click.IntRange(1), required=True, help="Virtual processors.")
@click.option("--memory", type=click.IntRange(1), required=True, help="Memory in MiB.")
@click.option("--disk", type=click.IntRange(1), required=True, help="Disk in GiB.")
@click.option("--id", "id_", type=click.IntRange(1), help="Its number; else the next free one.")
@asks_controller
def flavor_add(
    vcpus: int, memory: int, disk: int, id_: int | None, as_json: bool, **where: Any
) -> None:
    """Offer a size."""
    added = client(**where).call("POST", "/flavors", {
        "vcpus": vcpus, "memory_mib": memory, "disk_gib": disk, "id": id_,
    })
    show([added], FLAVOR_COLUMNS, as_json, added)


@flavor.command("list", epilog=examples("treadle flavor list"))
@asks_controller
def flavor_list(as_json: bool, **where: Any) -> None:
    """List the sizes on offer."""
    found = client(**where).call("GET", "/flavors")["flavors"]
    show(found, FLAVOR_COLUMNS, as_json, found)


FLAVOR_COLUMNS = ("id", "vcpus", "memory_mib", "disk_gib")


@main.group()
def lab() -> None:
    """A data centre of real libvirt hosts on this machine."""


def _lab(name: str) -> Any:
    from treadle.lab.fabric import Lab, can_run

    problem = can_run()
    if problem:
        raise click.ClickException(problem)
    return Lab(name)


lab_name = click.option("--name", default="lab", show_default=True, help="Which lab.")
LAB_COLUMNS = ("name", "address", "state", "pid", "uri")


def _lab_rows(hosts: Sequence[Any]) -> list[dict[str, Any]]:
    return [{key: str(getattr(one, key)) for key in LAB_COLUMNS} for one in hosts]


@lab.command("up", epilog=examples("treadle lab up", "treadle lab up --hosts 5 --shared"))
@click.option("--hosts", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--shared", is_flag=True, help="The hosts share their storage, and lock disks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@lab_name
def lab_up(hosts: int, shared: bool, name: str, as_json: bool) -> None:
    """Bring the hosts up (needs root)."""
    found = _lab_rows(guarded(lambda: _lab(name).up(hosts, _progress, shared=shared)))
    show(found, LAB_COLUMNS, as_json, found)


@lab.command("down", epilog=examples("treadle lab down"))
@lab_name
def lab_down(name: str) -> None:
    """Take the hosts down; nothing of them is left."""
    guarded(lambda: _lab(name).down(_progress))


@lab.command("status", epilog=examples("treadle lab status --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@lab_name
def lab_status(name: str, as_json: bool) -> None:
    """List the hosts of the lab."""
    found = _lab_rows(guarded(lambda: _lab(name).status()))
    show(found, LAB_COLUMNS, as_json, found)


@lab.command("shell", epilog=examples(
    "treadle lab shell host1", "treadle lab shell host1 virsh list",
))
@click.argument("host_name", metavar="HOST")
@click.argument("command", nargs=-1)
@lab_name
def lab_shell(host_name: str, command: Sequence[str], name: str) -> None:
    """Open a shell on a host of the lab, or run a command there."""
    the_lab = _lab(name)
    known = [one.name for one in guarded(the_lab.status) if one.state == "up"]
    if host_name not in known:
        raise click.ClickException(
            f"no host {host_name!r} is up in the lab: there are {', '.join(known) or 'none'}"
        )
    argv = ["ssh", "-F", str(the_lab.ssh_config), host_name, "--", *command]
    os.execvp(argv[0], argv if command else argv[:-1])


def _progress(line: str) -> None:
    click.echo(line, err=True)


@main.command(epilog=examples(
    "treadle doctor", "treadle doctor qemu+ssh://root@192.0.2.11/system",
))
@click.argument("uri", required=False)
@click.option("--seconds", type=click.FloatRange(1, 120), default=10.0, show_default=True,
              help="Time limit of a probe guest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False),
              envvar="TREADLE_CONFIG", help="Settings file (TOML).")
def doctor(uri: str | None, seconds: float, as_json: bool, config: Path | None) -> None:
    """Check this machine, or a host: what is wrong is told with its mend. Exits 1 then."""
    from treadle.cli.doctor import check

    if not check(uri, seconds, as_json, config):
        raise SystemExit(1)


@main.command(epilog=examples(
    "treadle completion bash > /etc/bash_completion.d/treadle", "treadle completion zsh",
))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(main, {}, "treadle", "_TREADLE_COMPLETE").source())


@main.command(
    context_settings={"ignore_unknown_options": True}, hidden=True, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: Sequence[str]) -> None:
    """What bin/demo runs."""
    from treadle.cli.demo import main as run

    raise SystemExit(run(list(arguments)))


if __name__ == "__main__":
    main()
