"""Files that a guest finds at its first boot: what OpenStack calls the personality of a server."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

import sqlalchemy as sa

from treadle.compute import quota
from treadle.errors import InvalidInput, QuotaExceeded

Files = tuple[tuple[str, str], ...]
"""Pairs of an absolute path and the content in base64."""

SHOWN = 60


def read(given: Sequence[tuple[str, str]], user_data: str) -> Files:
    """Pairs of a path and a content in base64, checked and in their shortest form. The files are
    told to the guest beside `user_data`.

    Errors: `InvalidInput` for a path that no file can have, a content that is not base64, and for
    user data of which cloud-init would not look at what is beside it.
    """
    if given and user_data and not user_data.lstrip().lower().startswith(
        ("#", "content-type:", "mime-version:")
    ):
        raise InvalidInput(
            "personality", len(given),
            "files can only go with user data that is cloud-init's (it begins with #): this is not",
        )
    found = []
    for path, content in given:
        parts = path.strip("/").split("/")
        if path.endswith("/") or not all(parts) or {".", ".."} & set(parts):
            raise InvalidInput("personality/path", path[:SHOWN], "it must be the path of a file")
        if not path.isprintable():
            raise InvalidInput("personality/path", path[:SHOWN], "it must be printable")
        try:
            data = base64.b64decode("".join(content.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(
                "personality/contents", content[:SHOWN],
                f"the content of {path[:SHOWN]} must be base64",
            ) from error
        found.append(("/" + path.lstrip("/"), base64.b64encode(data).decode()))
    return tuple(found)


def check(conn: sa.Connection, project_id: str, files: Files) -> None:
    """Let a server have these files. Errors: `QuotaExceeded`."""
    if not files:
        return
    most = quota.limits(conn, project_id)
    longest = max(len(path.encode()) for path, _ in files)
    largest = max(len(base64.b64decode(content)) for _, content in files)
    for name, value, what in (
        ("injected_files", len(files), "too many files"),
        ("injected_file_path_bytes", longest, "the path of a file is too long"),
        ("injected_file_content_bytes", largest, "a file is too large"),
    ):
        if 0 <= most[name] < value:
            raise QuotaExceeded(f"personality: {what} ({value}): the quota {name} is {most[name]}")


def text(files: Files) -> str:
    """As the column holds them."""
    return json.dumps(files, separators=(",", ":")) if files else ""


def of(column: str) -> Files:
    """What `text` made."""
    return tuple((path, content) for path, content in json.loads(column)) if column else ()
