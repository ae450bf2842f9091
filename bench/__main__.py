"""bin/bench [NAME ...] [--json]"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench import parts
from bench.life import life, moves
from bench.openstack import openstack
from bench.parts import TARGETS

PARTS = {**parts.PARTS, "openstack": openstack, "life": life, "moves": moves}


def main() -> int:
    """Run the parts asked for and print what they measured."""
    parser = argparse.ArgumentParser(prog="bin/bench", description="Measure Treadle here.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    figures: dict[str, float] = {}
    for name in options.names or PARTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="treadle-bench-") as folder:
            figures |= PARTS[name](Path(folder))
    for key, (unit, target) in TARGETS.items():
        if key in figures:
            print(f"{key:<24}{figures[key]:>12,.2f} {unit:<3} {target}")
    for key in sorted(figures.keys() - TARGETS.keys()):
        print(f"{key:<32}{figures[key]:>12,.3f}")
    if options.json:
        print(json.dumps({key: round(value, 3) for key, value in figures.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
