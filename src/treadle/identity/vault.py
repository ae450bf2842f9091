"""What users leave here in secret, sealed at rest with a key that is not in the database.

The key is in a file of the state folder, which the first use makes. The database keeps a mark of
it, so that of several controllers one whose folder has another key says so, and seals nothing that
the others cannot open. To change the key, put a new one on a line above the old one: what is sealed
from then on is sealed with the first line, and what was sealed before opens with any.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import sqlalchemy as sa

from treadle.errors import NotAvailable
from treadle.identity import store

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

FILE = "credential-key"
MARK = "credential_key"


class Vault:
    """Seals and opens texts. The key is read when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def seal(self, conn: sa.Connection, text: str) -> str:
        """The text as the database may hold it. Errors: `NotAvailable` where this controller has
        not got the cloud's key."""
        mark = store.get_meta(conn, MARK)
        if mark is None:
            store.put_meta(conn, MARK, self._marks[0])
        elif mark not in self._marks:
            raise self._foreign()
        return self._keys.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """What was sealed. Errors: `NotAvailable` where it was with a key that is not here."""
        from cryptography.fernet import InvalidToken

        try:
            return self._keys.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise self._foreign() from error

    def _foreign(self) -> NotAvailable:
        return NotAvailable(
            f"the key of the credentials is another than that of this controller: copy the file "
            f"{FILE} from the state folder of the first one"
        )

    @cached_property
    def _lines(self) -> list[str]:
        from cryptography.fernet import Fernet

        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        part = self._path.with_name(f"{FILE}.{uuid4().hex}")
        if not self._path.exists():
            with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                file.write(Fernet.generate_key() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another thread has been quicker: its key it is
                self._path.hardlink_to(part)
            part.unlink()
        lines = self._path.read_text().split()
        if not lines:
            raise NotAvailable(f"there is no key in {self._path}: put back the one that was there")
        return lines

    @cached_property
    def _marks(self) -> list[str]:
        return [hashlib.sha256(line.encode()).hexdigest()[:16] for line in self._lines]

    @cached_property
    def _keys(self) -> MultiFernet:
        from cryptography.fernet import Fernet, MultiFernet

        try:
            return MultiFernet([Fernet(line) for line in self._lines])
        except ValueError as error:
            raise NotAvailable(
                f"{self._path} has a line that is no key: put back what was there"
            ) from error
