"""`treadle console`: this terminal at a VM's serial port, through the controller's one port."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from treadle.cli.base import asks_where, client, examples

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

ESCAPE = b"\x1d"
CHUNK = 4096
OPEN_SECONDS = 30.0


@click.command(epilog=examples("treadle console 3"))
@click.argument("vm", type=click.IntRange(1))
@asks_where
def console(vm: int, url: str, token: str | None, config: Path | None) -> None:
    """Put this terminal at VM's serial port. Ctrl-] leaves.

    Whoever was there before is put out. Without a terminal, standard input is typed in, and what
    the VM prints goes to standard output until its console ends.
    """
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    controller = client(url, token, config)
    opened = controller.call("POST", f"/instances/{vm}/console", {"kind": "serial"})
    address = "ws" + controller.url.removeprefix("http") + opened["socket"]
    try:
        with connect(
            address, subprotocols=["binary"],  # type: ignore[list-item]
            compression=None, max_size=None, open_timeout=OPEN_SECONDS,
        ) as line, _raw_terminal() as is_terminal:
            if is_terminal:
                click.echo(f"VM {vm}: Ctrl-] leaves\r", err=True)
            reason = _attach(line, is_terminal)
    except (InvalidStatus, OSError) as error:
        raise click.ClickException(f"the console cannot be reached: {error}") from error
    click.echo(reason, err=True)


def _attach(line: ClientConnection, is_terminal: bool) -> str:
    """Carry until either side ends; why it ended."""
    from websockets.exceptions import ConnectionClosed

    why: list[str] = []
    ended, tell = os.pipe()

    def show() -> None:
        try:
            while True:
                said = line.recv()
                os.write(1, said if isinstance(said, bytes) else said.encode())
        except ConnectionClosed as error:
            reason = error.rcvd.reason if error.rcvd is not None else ""
            why.append(reason or "the console has ended")
        except OSError as error:
            why.append(f"standard output: {error.strerror}")
        finally:
            os.close(tell)

    reader = threading.Thread(target=show, name="console", daemon=True)
    reader.start()
    watched = [sys.stdin.fileno(), ended]
    try:
        while True:
            ready, _, _ = select.select(watched, [], [])
            if ended in ready:
                break
            typed = os.read(watched[0], CHUNK)
            if is_terminal and ESCAPE in typed:
                return "left"
            if not typed:
                watched.pop(0)
                continue
            line.send(typed)
    except ConnectionClosed:
        pass
    except KeyboardInterrupt:
        return "left"
    finally:
        line.close()
        reader.join(OPEN_SECONDS)
        os.close(ended)
    return why[0] if why else "the console has ended"


@contextmanager
def _raw_terminal() -> Iterator[bool]:
    """Every key goes to the VM; whether standard input is a terminal at all."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield True
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
