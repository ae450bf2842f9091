"""The page of a comparison: one HTML file with tables and drawings, which loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from treadle.cli.simulate import DIFFERENCES, bound_of, measures_of, words
from treadle.errors import InvalidInput
from treadle.scheduler.simulate import CLASSES, Outcome, Series
from treadle.scheduler.simulate_compare import Comparison, Spread

# Okabe and Ito's colours, which most people with a colour vision deficiency can tell apart.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a08a00", "#7f7f7f")
_DASHES = ("", "6 3", "2 2", "9 3 2 3")
_LEFT, _RIGHT = 54.0, 548.0
_TOP, _BOTTOM = 8.0, 214.0
_BAR_LEFT, _BAR_RIGHT = 150.0, 470.0


def write_report(found: Comparison, path: Path) -> None:
    """Write the page. Errors: `InvalidInput` where the file cannot be written."""
    environment = Environment(
        loader=PackageLoader("treadle.cli"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=False,
    )
    page = environment.get_template("simulate.html").render(
        source=found.source, vms=found.vms, hours=found.hours, hosts=found.hosts,
        seeds=found.seeds, legend=_legend(found), table=_table(found), bars=_bars(found),
        lines=_lines(found),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        problem = f"it cannot be written: {error.strerror}"
        raise InvalidInput("report", str(path), problem) from error


def _look(place: int) -> dict[str, str]:
    return {
        "colour": _COLOURS[place % len(_COLOURS)],
        "dash": _DASHES[place // len(_COLOURS) % len(_DASHES)],
    }


def _legend(found: Comparison) -> list[dict[str, str]]:
    return [{"policy": row.policy} | _look(place) for place, row in enumerate(found.rows)]


_MORE_IS_BETTER = frozenset({"before_first", "cores_%", "memory_%", "fairness"})


def _table(found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for name, value, form in measures_of(found):
        spreads = [row.spread(value) for row in found.rows]
        means = [spread.mean for spread in spreads]
        best = max(means) if name in _MORE_IS_BETTER else min(means)
        rows.append({
            "name": name.replace("_", " "), "bound": bound_of(found, name),
            "cells": [
                {"text": words(spread, form),
                 "best": len(means) > 1 and min(means) != max(means) and spread.mean == best}
                for spread in spreads
            ],
        })
    if len(found.rows) > 1:
        for name, value, form in DIFFERENCES:
            rows.append({
                "name": f"{name.replace('_', ' ')} than {found.rows[0].policy}", "bound": "",
                "cells": [{"text": "", "best": False}, *(
                    {"text": words(found.against_first(row, value), form), "best": False}
                    for row in found.rows[1:]
                )],
            })
    return rows


# -- bars


def _bars(found: Comparison) -> list[dict[str, Any]]:
    charts = [
        _bar_chart(found, "Core-hours lost", "Of refused VMs. Fewer is better.",
                   lambda one: one.lost_core_hours, "{:,.0f}", found.bound.lost_core_hours),
        _bar_chart(found, "Host-hours", "Hosts that could not be switched off. Fewer is better, "
                   "where as much was placed.", lambda one: one.host_hours, "{:,.0f}",
                   found.bound.host_hours),
        _bar_chart(found, "Placed before the first refusal", "VMs. More is better.",
                   lambda one: one.before_first_refusal, "{:,.0f}", None),
        _bar_chart(found, "Median time of a decision", "Microseconds, on this machine.",
                   lambda one: one.decision_us[1], "{:,.0f}", None),
    ]
    for size in CLASSES:
        def part(one: Outcome, size: str = size) -> float:
            of = one.classes[size]
            return 100 * of.refused / of.asked if of.asked else 0.0

        charts.append(_bar_chart(
            found, f"Refused: {size} VMs", "Per cent of those asked for.", part, "{:.2f}%", None
        ))
    charts.append(_bar_chart(
        found, "Fairness", "Jain's index over tenants or batches; 1 is all alike.",
        lambda one: one.fairness_batches, "{:.4f}", None,
    ))
    return charts


def _bar_chart(
    found: Comparison, title: str, note: str, of: Callable[[Outcome], float], form: str,
    bound: float | None,
) -> dict[str, Any]:
    spreads = [row.spread(of) for row in found.rows]
    most = max([_high(one) for one in spreads] + [bound or 0.0]) or 1.0

    def x(value: float) -> float:
        return round(_BAR_LEFT + (_BAR_RIGHT - _BAR_LEFT) * value / most, 1)

    bars = []
    for place, (row, spread) in enumerate(zip(found.rows, spreads, strict=True)):
        half = spread.half or 0.0
        bars.append({
            "label": _short(row.policy), "y": 4 + place * 24, "colour": _look(place)["colour"],
            "width": max(1.0, x(spread.mean) - _BAR_LEFT), "end": x(spread.mean + half),
            "text": form.format(spread.mean),
            "whisker": (x(max(0.0, spread.mean - half)), x(spread.mean + half)) if half else None,
        })
    return {
        "title": title, "note": note, "bars": bars, "left": _BAR_LEFT,
        "height": 10 + 24 * len(bars) + (18 if bound else 0),
        "bound": x(bound) if bound else None, "bound_text": form.format(bound or 0.0),
    }


def _high(spread: Spread) -> float:
    return spread.mean + (spread.half or 0.0)


def _short(policy: str) -> str:
    return policy if len(policy) <= 20 else policy[:19] + "…"


# -- lines


def _lines(found: Comparison) -> list[dict[str, Any]]:
    def part(pick: Callable[[Series], Sequence[float]]) -> Callable[[Series], list[float]]:
        return lambda series: [100 * value for value in pick(series)]

    return [
        _line_chart(found, title, note, of, unit) for title, note, of, unit in (
            ("Cores in use", "Of all cores that are up.", part(lambda s: s.cores), "%"),
            ("Memory in use", "Of all memory that is up.", part(lambda s: s.memory), "%"),
            ("Stranded cores", "Free, with too little memory beside them.",
             part(lambda s: s.stranded_cores), "%"),
            ("Stranded memory", "Free, with too few cores beside it.",
             part(lambda s: s.stranded_memory), "%"),
            ("Empty hosts", "Could be switched off.", lambda s: list(map(float, s.empty)), ""),
            ("Core-hours lost so far", "Counted when a VM is refused.", lambda s: s.lost, ""),
        )
    ]


def _line_chart(
    found: Comparison, title: str, note: str, of: Callable[[Series], list[float]], unit: str
) -> dict[str, Any]:
    series = [row.outcomes[0].series for row in found.rows]
    values = [of(one) for one in series]
    most = max((max(one, default=0.0) for one in values), default=0.0)
    top, step = _scale(most)
    hours = max((one.hours[-1] for one in series if one.hours), default=1.0) or 1.0

    def x(hour: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * hour / hours, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * value / top, 1)

    every = _scale(hours)[1]
    return {
        "title": title, "note": note,
        "y_ticks": [
            {"at": y(step * tick), "text": f"{step * tick:,g}{unit}"}
            for tick in range(round(top / step) + 1)
        ],
        "x_ticks": [
            {"at": x(every * tick), "text": f"{every * tick:g}"}
            for tick in range(int(hours / every + 1e-9) + 1)
        ],
        "lines": [
            {
                "policy": row.policy, **_look(place),
                "path": "M" + "L".join(
                    f"{x(hour)} {y(value)}"
                    for hour, value in zip(one.hours, numbers, strict=True)
                ),
            }
            for place, (row, one, numbers) in enumerate(
                zip(found.rows, series, values, strict=True)
            )
        ],
    }


def _scale(most: float) -> tuple[float, float]:
    """A round top of an axis, at least `most`, and the step between its marks."""
    if most <= 0:
        return 1.0, 1.0
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    return step * math.ceil(most / step - 1e-9), step
