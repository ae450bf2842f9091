"""Who asks, as every face needs to know it; and what is kept of users and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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
    restricted: bool = False
    """It came of an application credential that may not make or remove others."""
    access: tuple[tuple[str, str, str], ...] | None = None
    """Service, method and path of the calls that it is good for; None: all."""

    @property
    def is_admin(self) -> bool:
        """Whether this is an administrator of the cloud; the one of a domain is not."""
        return "admin" in self.roles and self.domain_id is None


ANYBODY = Caller()

Row = dict[str, Any]
"""One project, user, group or role: its columns, with `options` and `extra` decoded."""


class Scope(StrEnum):
    """What a token is good for: nothing but its user, a project, a domain, or the system."""

    NONE = "unscoped"
    PROJECT = "project"
    DOMAIN = "domain"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. Times in seconds since 1970; `hash` is the SHA-256 in hex."""

    hash: str
    user_id: str
    scope: Scope
    scope_id: str
    methods: tuple[str, ...]
    audit_ids: tuple[str, ...]
    issued_at: float
    expires_at: float
    app_credential_id: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a user is in a scope, at a time of the database's clock.

    `roles` are pairs of id and name, implied ones too. `password_id` names his password: another
    is another.
    """

    user: Row
    user_domain: Row
    password_id: int | None
    password_expires_at: float | None
    at: float
    scope: Scope
    project: Row | None = None
    project_domain: Row | None = None
    domain: Row | None = None
    roles: tuple[tuple[str, str], ...] = ()
    app_credential: Row | None = None
    access: tuple[tuple[str, str, str], ...] | None = None

    def caller(self, token: Token) -> Caller:
        """The same for the faces."""
        project = self.project
        return Caller(
            user_id=self.user["id"], user_name=self.user["name"],
            user_domain_id=self.user["domain_id"],
            project_id=project["id"] if project else None,
            project_name=project["name"] if project else None,
            project_domain_id=project["domain_id"] if project else None,
            domain_id=self.domain["id"] if self.domain else None,
            system=self.scope is Scope.SYSTEM,
            roles=frozenset(name for _, name in self.roles),
            token=token.hash, expires_at=token.expires_at,
            restricted=self.app_credential is not None and not self.app_credential["unrestricted"],
            access=self.access,
        )
