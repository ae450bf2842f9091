"""What the command line asks a running controller, over HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click


class Client:
    """The native API of one controller. Every failure is a `click.ClickException` in one line."""

    def __init__(self, url: str, token: str) -> None:
        import urllib3

        self.url = url.rstrip("/")
        self._token = token
        self._pool = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(connect=5.0, read=60.0)
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call under /treadle/v1; the decoded answer."""
        import urllib3

        try:
            response = self._pool.request(
                method, f"{self.url}/treadle/v1{path}",
                body=None if body is None else json.dumps(body),
                headers={
                    "Authorization": f"Bearer {self._token}", "Content-Type": "application/json",
                },
            )
        except urllib3.exceptions.HTTPError as error:
            raise click.ClickException(
                f"no controller answers at {self.url}: start one with 'treadle serve', "
                "or name another with --url"
            ) from error
        try:
            answer = json.loads(response.data)
        except ValueError as error:
            raise click.ClickException(f"{self.url} is not a Treadle controller") from error
        if response.status >= 400:
            problem = answer.get("error", {})
            message = problem.get("message") if isinstance(problem, dict) else str(problem)
            raise click.ClickException(message or f"status {response.status}")
        return answer


def connect(url: str, token: str | None, config: Path | None) -> Client:
    """A client; without a token it is read from the state folder of the settings."""
    if token is None:
        from treadle.config import load, state_folder
        from treadle.errors import TreadleError

        try:
            folder = state_folder(load(config, os.environ), os.geteuid(), os.environ)
            token = (folder / "admin-token").read_text().strip()
        except OSError as error:
            raise click.ClickException(
                f"the token cannot be read ({error.strerror}: {error.filename}): run this as the "
                "controller's user, or give --token"
            ) from error
        except TreadleError as error:
            raise click.ClickException(str(error)) from error
    return Client(url, token)
