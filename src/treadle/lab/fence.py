"""The fence of a lab: it ends the host's process 1, and with it all that runs there."""

from __future__ import annotations

import json
from pathlib import Path

from treadle.compute.failure.fencing import FenceFailed, Target
from treadle.errors import InvalidInput
from treadle.lab.fabric import ROOT, Lab
from treadle.sections import Fencing


class LabFence:
    """Of `fencing.options`: `folder`, the lab's; else the labs below the usual place are looked
    through for the host's address."""

    def __init__(self, settings: Fencing) -> None:
        given = settings.options.get("folder")
        if given is not None and not (Path(given) / "lab.json").is_file():
            raise InvalidInput("fencing.options", given, "folder is to be that of a lab")
        self._folder = None if given is None else Path(given)

    def off(self, target: Target, seconds: float) -> None:  # noqa: ARG002 - killing takes none
        folders = [self._folder] if self._folder else sorted(ROOT.glob("*"))
        for folder in folders:
            lab = _lab_in(folder)
            if lab is None:
                continue
            for host in lab.status():
                if host.address != target.address:
                    continue
                lab.kill_host(host.name)
                if lab.host(host.name).state != "down":
                    raise FenceFailed(f"{host.name} still runs")
                return
        raise FenceFailed(f"no lab has a host at {target.address}")


def _lab_in(folder: Path) -> Lab | None:
    try:
        return Lab(json.loads((folder / "lab.json").read_text())["name"], folder)
    except FileNotFoundError:
        return None
