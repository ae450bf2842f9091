"""What the demo shows: a live view of its steps on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Screen:
    """Steps, one under way at a time, each with its time; safe to use from several threads."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._done: list[tuple[str, str, float]] = []
        self._current: tuple[str, float] | None = None
        self._detail = ""
        self._live: Any = None

    def __enter__(self) -> Screen:
        if self._tty:
            from rich.live import Live

            self._live = Live(get_renderable=self._view, refresh_per_second=12)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that `name` is under way, and afterwards how long it took."""
        started = time.monotonic()
        with self._lock:
            self._current, self._detail = (name, started), ""
        if not self._tty:
            print(f"{name} ...", flush=True)
        mark = "failed"
        try:
            yield
            mark = "ok"
        finally:
            took = time.monotonic() - started
            with self._lock:
                self._done.append((mark, name, took))
                self._current = None
            if not self._tty:
                print(f"{name}: {mark} ({took:.1f} s)", flush=True)

    def detail(self, line: str) -> None:
        """What the step under way is doing."""
        with self._lock:
            if line == self._detail:
                return
            self._detail = line
        if not self._tty:
            print(f"  {line}", flush=True)

    def note(self, line: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def _view(self) -> Any:
        from rich.text import Text

        text = Text()
        with self._lock:
            for mark, name, took in self._done:
                style = "green" if mark == "ok" else "red"
                text.append("✓ " if mark == "ok" else "✗ ", style=style)
                text.append(f"{name:<34}{took:6.1f} s\n")
            if self._current is not None:
                name, started = self._current
                frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(time.monotonic() * 12) % 10]
                text.append(f"{frame} ", style="cyan")
                text.append(f"{name:<34}{time.monotonic() - started:6.1f} s  ")
                text.append(self._detail[:60], style="dim")
        return text

    def table(self, hosts: list[dict[str, Any]], vms: list[dict[str, Any]], url: str) -> None:
        """What there is now."""
        where = {one["pmid"]: one["address"] for one in hosts}
        columns = ("vmid", "name", "machine", "address", "state", "running ms", "guest up ms")
        rows = [
            (
                str(vm["vmid"]), vm["name"], f"{vm['pmid']} ({where.get(vm['pmid'], '?')})",
                vm["ip"] or "-", vm["state"], _ms(vm["running_ms"]), _ms(vm["guest_up_ms"]),
            )
            for vm in vms
        ]
        print()
        if self._tty:
            from rich.console import Console
            from rich.table import Table

            table = Table(title=f"Treadle at {url}", title_justify="left", header_style="bold")
            for name in columns:
                table.add_column(name, justify="right" if name.endswith("ms") else "left")
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
        widths = [
            max(len(line[n]) for line in (columns, *rows)) for n in range(len(columns))
        ]
        for line in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))

    def hints(self, hints: list[tuple[str, str]]) -> None:
        """Commands to copy."""
        print("\nTry next (Ctrl-C ends the demo and leaves nothing behind):")
        for what, command in hints:
            print(f"  # {what}\n  {command}")
        print(flush=True)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
