"""Who asks, as every face needs to know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds a token, and what it is good for.

    `token` is the SHA-256 of the token in hex, never the token itself. `expires_at` is in seconds
    since 1970.
    """

    user_id: str = ""
    user_name: str = ""
    user_domain_id: str = ""
    project_id: str | None = None
    project_name: str | None = None
    project_domain_id: str | None = None
    domain_id: str | None = None
    system: bool = False
    roles: frozenset[str] = frozenset()
    token: str = ""
    expires_at: float = 0.0

    @property
    def is_admin(self) -> bool:
        """Whether this is an administrator of the cloud; the one of a domain is not."""
        return "admin" in self.roles and self.domain_id is None


ANYBODY = Caller()
