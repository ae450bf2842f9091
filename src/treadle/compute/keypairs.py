"""Key pairs: public keys that users keep under names, to be put into their instances.

A key belongs to a user, not to a project. A private key is made on request, handed out once, and
never kept. The SQL is here; the functions take an open connection of the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treadle.compute import quota
from treadle.db.clock import now
from treadle.db.prepared import Prepared
from treadle.db.schema import keypair as table
from treadle.errors import Conflict, NotFound

SSH, X509 = "ssh", "x509"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One public key. `type` is `SSH` or `X509`; the time is seconds since 1970."""

    id: int
    user_id: str
    name: str
    type: str
    fingerprint: str
    public_key: str
    created_at: float


def add(
    conn: sa.Connection, project_id: str | None, user_id: str, name: str, type: str,
    public_key: str,
) -> KeyPair:
    """Keep a public key; the project's quota says how many a user may have.

    Errors: `InvalidInput`, `Conflict`, `QuotaExceeded`.
    """
    from treadle.compute.key_material import fingerprint

    quota.check_key_pairs(conn, project_id, user_id)
    if find(conn, user_id, name) is not None:
        raise Conflict(f"Key pair '{name}' already exists.")
    conn.execute(sa.insert(table).values(
        user_id=user_id, name=name, type=type, fingerprint=fingerprint(type, public_key),
        public_key=public_key, created_at=now(),
    ))
    return get(conn, user_id, name)


def find(conn: sa.Connection, user_id: str, name: str) -> KeyPair | None:
    """The user's key of that name, or None."""
    row = _GET(conn, {"u": user_id, "n": name}).one_or_none()
    return None if row is None else _keypair(row)


def get(conn: sa.Connection, user_id: str, name: str) -> KeyPair:
    """The user's key of that name. Errors: `NotFound`."""
    found = find(conn, user_id, name)
    if found is None:
        raise NotFound(f"Keypair {name} not found for user {user_id}")
    return found


def of_user(conn: sa.Connection, user_id: str) -> list[KeyPair]:
    """All keys of a user, by name."""
    rows = conn.execute(sa.select(table).where(table.c.user_id == user_id).order_by(table.c.name))
    return [_keypair(row) for row in rows]


def delete(conn: sa.Connection, user_id: str, name: str) -> None:
    """Forget a key. Instances that have it keep it. Errors: `NotFound`."""
    conn.execute(sa.delete(table).where(table.c.id == get(conn, user_id, name).id))


def _keypair(row: Any) -> KeyPair:
    return KeyPair(row.id, row.user_id, row.name, row.type, row.fingerprint, row.public_key,
                   row.created_at)


_GET = Prepared(
    sa.select(table).where(
        table.c.user_id == sa.bindparam("u"), table.c.name == sa.bindparam("n")
    )
)
