"""Whose token it is: asked on every request, so what is known stays in memory.

A token is 256 random bits; the database keeps its SHA-256, to whom it belongs and for how long.
What it is worth is worked out from the user, the project and the roles as they are *now*, and is
kept in memory until one of them changes.

What must hold: once a call that ends a token has answered, no controller takes it any more.
Inside this process the database's own `watch` sees to that. Where several controllers share
PostgreSQL, each trusts its memory for `TRUST_S` after it has begun to read the number that every
such change raises; and whoever changes something answers only after a little more than that.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Set
from hashlib import sha256
from itertools import count, islice
from threading import Lock
from time import monotonic

import sqlalchemy as sa

from treadle.db.engine import Database
from treadle.errors import Unauthorized
from treadle.identity import store
from treadle.identity.model import Caller

REFUSAL = "The request you have made requires authentication."
MOST = 10_000
TRUST_S = 0.1
MARGIN = 1.25


def new_token() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """What is kept of a token: its SHA-256, in hex."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The tokens that this process knows, each with its end on this process's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shared = database.dialect == "postgresql"
        self._known: dict[str, tuple[float, Caller]] = {}
        self._lock = Lock()
        self._numbers = count(1)
        self._looked_at = -TRUST_S
        self._epoch = -1
        self.stamp = 0
        """Another number after every change of what tokens are worth that was seen here."""
        database.watch(self._noted)

    async def check(self, token: str) -> Caller:
        """Whoever holds it. Errors: `Unauthorized`."""
        if self._shared and monotonic() - self._looked_at >= TRUST_S:
            await self._look()
        key = hash_of(token)
        found = self._known.get(key)
        if found is not None and found[0] > monotonic():
            return found[1]
        return await self._learn(key)

    async def settled(self, stamp: int) -> None:
        """Wait until no controller trusts what it knew, if there was a change since `stamp`."""
        if self._shared and stamp != self.stamp:
            await asyncio.sleep(TRUST_S * MARGIN)

    def remember(self, key: str, caller: Caller, left_s: float, stamp: int) -> None:
        """Keep what was read after `stamp`, unless something has changed since."""
        with self._lock:
            if stamp != self.stamp:
                return
            if len(self._known) >= MOST:
                for old in list(islice(self._known, MOST // 10)):
                    del self._known[old]
            self._known[key] = (monotonic() + left_s, caller)

    async def _learn(self, key: str) -> Caller:
        stamp = self.stamp

        def ask(conn: sa.Connection) -> tuple[Caller, float] | None:
            token = store.get_token(conn, key)
            if token is None:
                return None
            found = store.standing(
                conn, token.user_id, token.scope, token.scope_id, token.app_credential_id
            )
            if found is None:
                return None
            ends = token.expires_at
            if found.app_credential is not None and found.app_credential["expires_at"] is not None:
                ends = min(ends, found.app_credential["expires_at"])
            return found.caller(token), ends - found.at

        found = await asyncio.wrap_future(self._database.submit_read(ask))
        if found is None:
            raise Unauthorized(REFUSAL)
        self.remember(key, *found, stamp)
        return found[0]

    async def _look(self) -> None:
        began = monotonic()
        epoch = await asyncio.wrap_future(self._database.submit_read(store.epoch))
        if epoch > self._epoch:
            self._epoch = epoch
            self._forget({store.ALL})
        self._looked_at = max(self._looked_at, began)

    def _noted(self, noted: Mapping[str, Set[int | str]]) -> None:
        """Forget what a transaction of this process has changed, before its caller knows."""
        if what := noted.get(store.TOKENS):
            self._forget(what)

    def _forget(self, what: Set[int | str]) -> None:
        with self._lock:
            self.stamp = next(self._numbers)
            if store.ALL in what:
                self._known.clear()
            for key in what:
                self._known.pop(str(key), None)
