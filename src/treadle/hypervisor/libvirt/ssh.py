"""How ssh is run for `...+ssh` URIs: host keys always checked, never a question asked.

libvirt runs the program that the URI's `command` names, with the host and its own options as
separate arguments, so nothing of a URI reaches a shell here. Ours is a script that adds a
configuration file: a host's key is recorded at first use and a changed one is refused.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from treadle.errors import InvalidInput

CONNECT_SECONDS = 5
ALIVE_SECONDS = 5
ALIVE_COUNT = 3


def is_ssh(uri: str) -> bool:
    """Whether libvirt reaches this URI through the ssh program."""
    return urlsplit(uri).scheme.endswith("+ssh")


def with_ssh(uri: str, state_dir: Path, identity_file: Path | None) -> str:
    """The URI with our ssh program in it; unchanged if not ssh, or if it names a program itself.

    Errors: `InvalidInput` where the URI turns the check of host keys off.
    """
    if not is_ssh(uri):
        return uri
    parts = urlsplit(uri)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if given.get("no_verify", "0") != "0":
        raise InvalidInput("uri", uri, "host keys are always checked: take no_verify out")
    if "command" in given:
        return uri
    script = write_files(state_dir, identity_file)
    added = f"command={quote(str(script), safe='/')}"
    query = f"{parts.query}&{added}" if parts.query else added
    return urlunsplit(parts._replace(query=query))


def ssh_config(state_dir: Path, identity_file: Path | None) -> str:
    """The configuration: ours first, because ssh takes the first value that it finds.

    A user's own file still names aliases, users and jump hosts.
    """
    lines = [
        "Host *",
        "  StrictHostKeyChecking accept-new",
        f"  UserKnownHostsFile {_quoted(state_dir / 'known_hosts')} ~/.ssh/known_hosts",
        "  HashKnownHosts no",
        "  UpdateHostKeys no",
        "  BatchMode yes",
        "  ClearAllForwardings yes",
        f"  ConnectTimeout {CONNECT_SECONDS}",
        f"  ServerAliveInterval {ALIVE_SECONDS}",
        f"  ServerAliveCountMax {ALIVE_COUNT}",
    ]
    if identity_file is not None:
        lines += [f"  IdentityFile {_quoted(identity_file)}", "  IdentitiesOnly yes"]
    return "\n".join([*lines, "Include ~/.ssh/config", "Include /etc/ssh/ssh_config", ""])


def _quoted(path: Path) -> str:
    text = str(path.absolute())
    if '"' in text or "\n" in text:
        raise InvalidInput("path", text, "ssh's configuration cannot name such a path")
    return '"' + text.replace("%", "%%") + '"'


def write_files(state_dir: Path, identity_file: Path | None) -> Path:
    """Write `ssh_config`, and `ssh`, the program that uses it, whose path comes back."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = state_dir.absolute() / "ssh_config"
    script = state_dir.absolute() / "ssh"
    _replace(config, ssh_config(state_dir, identity_file), 0o600)
    _replace(script, f'#!/bin/sh\nexec ssh -F {shlex.quote(str(config))} "$@"\n', 0o700)
    return script


def _replace(path: Path, text: str, mode: int) -> None:
    """Write the file whole or not at all: another driver may be running it right now."""
    with_same_text = path.is_file() and path.read_text() == text
    if with_same_text and path.stat().st_mode & 0o777 == mode:
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.replace(name, path)
