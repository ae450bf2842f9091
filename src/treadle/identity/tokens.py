"""Whose token it is: asked on every request, so what is known stays in memory."""

from __future__ import annotations

from hashlib import sha256

from treadle.errors import Unauthorized
from treadle.identity.model import Caller

REFUSAL = "The request you have made requires authentication."


def hash_of(token: str) -> str:
    """What is kept of a token: its SHA-256, in hex."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The tokens that this process knows."""

    async def check(self, token: str) -> Caller:
        """Whoever holds it. Errors: `Unauthorized`."""
        raise Unauthorized(REFUSAL if token else "There is no token.")
