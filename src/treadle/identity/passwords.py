"""Passwords: hashed with argon2id, in threads of their own, so that log-ins hold up nothing else.

19 MiB, two passes, one lane: the least that OWASP's password storage cheat sheet names for
argon2id. More would be paid in resident memory: two at a time are checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from treadle.errors import Overloaded

if TYPE_CHECKING:
    from argon2 import PasswordHasher

T = TypeVar("T")

THREADS = 2
MOST_WAITING = 64
MEMORY_KIB, PASSES, LANES = 19 * 1024, 2, 1
NOBODYS = (
    "$argon2id$v=19$m=19456,t=2,p=1$w6p+qXdVoAlX47upwhB8eQ$"
    "VyespLg5PqM3+EITFlyZ0DXCvawua5fxz2n6yWRA8/E"
)
"""What the password of an unknown user is compared with, so that it takes as long."""


@cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher(PASSES, MEMORY_KIB, LANES)


def hash_now(password: str) -> str:
    """The hash, made in this thread: tens of milliseconds."""
    return _hasher().hash(password.encode("utf-8", "surrogatepass"))


def verify_now(password: str, hash: str | None) -> bool:
    """Whether it is the password; None: of nobody. As long in either case."""
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        _hasher().verify(hash or NOBODYS, password.encode("utf-8", "surrogatepass"))
    except (Argon2Error, InvalidHashError):
        return False
    return hash is not None


class Passwords:
    """The threads in which passwords are hashed and checked."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """What is kept of a password. Errors: `Overloaded`."""
        return await self._run(lambda: hash_now(password))

    async def verify(self, password: str, hash: str | None) -> bool:
        """Whether it is the password of `hash`; None: of nobody. Errors: `Overloaded`."""
        return await self._run(lambda: verify_now(password, hash))

    async def run(self, work: Callable[[], T]) -> T:
        """Anything else that takes a while when somebody logs in. Errors: `Overloaded`."""
        return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise Overloaded("too many log-ins at once: try again in a moment", 2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(cancel_futures=True)
