"""What is kept of servers between requests, so that what has not changed is not made again.

What is shown of an instance in one state of it never changes: it is encoded once and kept under the
instance's version, and a page of servers is put together from what is there.

Where this process alone writes the database (SQLite), a server is even given without asking the
database, as long as no commit has changed it, and a page as long as none has changed any. A commit
is heard of before its caller is told of it, so nobody who knows of a change is shown what was
before. What is shown of hosts may be half a second old.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.server_view import Looks, server, without_hosts
from treadle.api.openstack.wire import to_json
from treadle.compute import listing
from treadle.compute.listing import HostWords, Key, Row
from treadle.compute.store import CHANGED
from treadle.db.engine import Database

KEPT = 4096
PAGES = 32
HOSTS_KEPT_S = 0.5

Read = tuple[Sequence[Key], Mapping[str, bytes], dict[int, Row], Mapping[int, HostWords], int]


@dataclass(frozen=True, slots=True)
class _Now:
    """A server as it is until it changes, and until when that may be said without a look."""

    id: int
    project_id: str
    encoded: bytes
    until: float


def encode(looks: Looks, row: Row, words: Mapping[int, HostWords]) -> bytes:
    """A server as JSON."""
    body = server(looks, row, words.get(row.instance.host_id or 0))
    if "fault" in body and not looks.admin:
        body["fault"]["message"] = without_hosts(row, words)
    return to_json(body)


class Views:
    """Encoded servers, the newest ones."""

    def __init__(self, database: Database) -> None:
        self._alone = database.dialect == "sqlite"
        self._kept: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._now: OrderedDict[tuple[Looks, str], _Now] = OrderedDict()
        self._of: dict[int, set[tuple[Looks, str]]] = {}
        self.commits = 0
        """How many have changed instances, as far as this process knows."""
        self._pages: OrderedDict[Any, tuple[bytes, int, float]] = OrderedDict()
        self._changed: dict[int, int] = {}
        self._floor = 0
        self._words: Mapping[int, HostWords] = {}
        self._words_read_at = 0.0
        if self._alone:
            database.watch(self._committed)

    def hosts(self, conn: sa.Connection) -> Mapping[int, HostWords]:
        """What servers show of their hosts, by the host's number."""
        now = monotonic()
        if now - self._words_read_at > HOSTS_KEPT_S:
            self._words, self._words_read_at = listing.host_words(conn), now
        return self._words

    def unchanged(self, looks: Looks, uuid: str, project_id: str | None) -> bytes | None:
        """The server, where it is known to be as it was; None: look."""
        found = self._now.get((looks, uuid))
        if found is None or found.until < monotonic():
            return None
        return found.encoded if project_id in (None, found.project_id) else None

    def page(self, name: Any) -> bytes | None:
        """What was kept under `name`, where no instance has changed since; None: look.

        `name` has to say who asks, for what, and how it is to look.
        """
        found = self._pages.get(name)
        if found is None or found[1] != self.commits or found[2] < monotonic():
            return None
        return found[0]

    def keep_page(self, name: Any, body: bytes, commits: int) -> None:
        """Keep what was read after `commits`."""
        if self._alone and commits == self.commits:
            self._pages[name] = body, commits, self._words_read_at + HOSTS_KEPT_S
            self._pages.move_to_end(name)
            if len(self._pages) > PAGES:
                self._pages.popitem(last=False)

    def read(
        self, looks: Looks, choose: Callable[[sa.Connection], Sequence[Key]]
    ) -> Callable[[sa.Connection], Read]:
        """A read of what `choose` gives: the keys, what is kept of them, the rows of the rest."""
        # Now, not in the read: its snapshot may be older than its own turn, but not than this.
        asked = self.commits

        def work(conn: sa.Connection) -> Read:
            found = choose(conn)
            words = self.hosts(conn)
            kept: dict[str, bytes] = {}
            for key in found:
                encoded = self._kept.get(_name(looks, key, words))
                if encoded is not None:
                    kept[key.uuid] = encoded
            missing = [key.id for key in found if key.uuid not in kept]
            return found, kept, listing.rows(conn, missing), words, asked

        return work

    def encode(
        self, looks: Looks, keys: Sequence[Key], kept: Mapping[str, bytes], rows: dict[int, Row],
        words: Mapping[int, HostWords], asked: int,
    ) -> list[bytes]:
        """The servers as JSON in the order of `keys`; what was encoded anew is kept."""
        made = []
        for key in keys:
            encoded = kept.get(key.uuid)
            if encoded is None:
                encoded = encode(looks, rows[key.id], words)
                self._kept[_name(looks, key, words)] = encoded
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            made.append(encoded)
        if self._alone and len(keys) == 1:
            self._remember(looks, keys[0], made[0], asked)
        return made

    def _remember(self, looks: Looks, key: Key, encoded: bytes, asked: int) -> None:
        if self._changed_since(key.id, asked):
            return
        name = looks, key.uuid
        self._now[name] = _Now(
            key.id, key.project_id, encoded, self._words_read_at + HOSTS_KEPT_S
        )
        self._of.setdefault(key.id, set()).add(name)
        if self._changed_since(key.id, asked):  # a commit while it was being put there
            self._now.pop(name, None)
        if len(self._now) > KEPT:
            old, gone = self._now.popitem(last=False)
            self._of.get(gone.id, set()).discard(old)

    def _changed_since(self, id: int, asked: int) -> bool:
        return asked < self._floor or self._changed.get(id, 0) > asked

    def _committed(self, noted: Mapping[str, set[int | str]]) -> None:
        changed = noted.get(CHANGED)
        if not changed:
            return
        self.commits += 1
        if len(self._changed) > 10 * KEPT:
            # What was read before is not remembered any more: when it changed is forgotten here.
            self._floor = self.commits
            for kept in (self._changed, self._now, self._of):
                kept.clear()
        for id in map(int, changed):
            self._changed[id] = self.commits
            for name in self._of.pop(id, ()):
                self._now.pop(name, None)


def _name(looks: Looks, key: Key, words: Mapping[int, HostWords]) -> tuple[Any, ...]:
    return looks, key.uuid, key.version, words.get(key.host_id or 0)
