"""Logging in: who it is, what he asks to act on, and the token he gets for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from treadle.db.engine import Database
from treadle.db.schema import app_credential, project, user_account
from treadle.errors import Forbidden, InvalidInput, NotFound, Overloaded, Unauthorized
from treadle.identity import store
from treadle.identity.model import Row, Scope, Standing, Token
from treadle.identity.passwords import Passwords
from treadle.identity.tokens import REFUSAL, Tokens, hash_of, new_token
from treadle.sections import Identity

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import RateLimiter

METHODS = ("password", "token", "application_credential")
SYSTEM_ID = "system"
PURGE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was made, and what it is worth."""

    text: str
    token: Token
    standing: Standing


@dataclass(slots=True)
class Proof:
    """Who has been proved to ask, and what that leaves open."""

    user_id: str
    password_id: int | None = None
    failures: int = 0
    parent: Token | None = None
    credential: Row | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The scope as the request names it. `name` and `domain` stand where `id` is None."""

    scope: Scope | None = None
    id: str | None = None
    name: str | None = None
    domain: Mapping[str, Any] = field(default_factory=dict)


class Attempts:
    """How often logging in has failed of late, by user and by address, in this process.

    Only failures count: who knows his password may log in as often as he likes.
    """

    def __init__(self, settings: Identity) -> None:
        self._settings = settings
        self._first = Lock()
        self._limiter: RateLimiter | None = None
        self._items: dict[str, RateLimitItem] = {}

    def check(self, user: str, address: str) -> None:
        """Errors: `Overloaded` where one of the two has failed too often."""
        if self._limiter is None:
            return
        for kind, key in (("user", user), ("address", address)):
            item = self._items[kind]
            if not self._limiter.test(item, kind, key):
                raise Overloaded(
                    "too many log-ins have failed: try again later", int(item.get_expiry())
                )

    def failed(self, user: str, address: str) -> None:
        """Count a failure; the first one loads what counts, so call it off the event loop."""
        with self._first:
            if self._limiter is None:
                self._items, self._limiter = self._load()
        self._limiter.hit(self._items["user"], "user", user)
        self._limiter.hit(self._items["address"], "address", address)

    def _load(self) -> tuple[dict[str, RateLimitItem], RateLimiter]:
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        items: dict[str, RateLimitItem] = {
            "user": RateLimitItemPerMinute(self._settings.failures_per_user),
            "address": RateLimitItemPerMinute(self._settings.failures_per_address),
        }
        return items, MovingWindowRateLimiter(MemoryStorage())


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or its /64, as one customer of IPv6 has all of it."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ip_network((found, 64), strict=False))
    return str(found)


class Login:
    """Makes tokens for those who can prove who they are."""

    def __init__(
        self, database: Database, tokens: Tokens, passwords: Passwords, settings: Identity
    ) -> None:
        self._database = database
        self._tokens = tokens
        self.passwords = passwords
        self._settings = settings
        self._attempts = Attempts(settings)
        self._counting: set[asyncio.Future[None]] = set()
        self._purged_at = 0.0

    async def __call__(self, auth: Mapping[str, Any], address: str) -> Issued:
        """A token for what the body's `auth` says.

        Errors: `InvalidInput`, `Unauthorized` (the same for whatever is not right),
        `NotFound` for a token that is not known, `Overloaded`.
        """
        identity = auth["identity"]
        methods = list(dict.fromkeys(identity["methods"]))
        if not methods or not set(methods) <= set(METHODS):
            raise Unauthorized("Attempted to authenticate with an unsupported method.")
        wanted = wanted_of(auth.get("scope"))
        found: Proof | None = None
        for method in methods:
            if method not in identity:
                raise InvalidInput("identity", methods, f"there is no {method!r} beside methods")
            given = identity[method]
            if method == "password":
                proof = await self.by_password(given["user"], address)
            elif method == "token":
                proof = await self._by_token(given)
            else:
                proof = await self._by_credential(given, address)
            if found is not None and found.user_id != proof.user_id:
                raise Unauthorized(REFUSAL)
            found = proof if found is None else replace(
                proof, parent=proof.parent or found.parent,
                password_id=proof.password_id or found.password_id,
                credential=proof.credential or found.credential,
            )
        assert found is not None
        proof = found
        if proof.credential is not None and wanted.scope is not None:
            raise Unauthorized("Application credentials cannot request a scope.")
        stamp = self._tokens.stamp
        issued, left_s = await asyncio.wrap_future(self._database.submit(
            # A token that a power cut takes away is asked for again.
            lambda conn: self._issue(conn, proof, methods, wanted), durable=False
        ))
        self._tokens.remember(
            issued.token.hash, issued.standing.caller(issued.token), left_s, stamp
        )
        return issued

    # -- proofs

    async def by_password(self, given: Mapping[str, Any], address: str) -> Proof:
        """The user whose password it is. Errors: `Unauthorized`, `Overloaded`."""
        if self._counting:
            await asyncio.wait(self._counting)
        who = _digest(given)
        self._attempts.check(who, network_of(address))
        lockout_s = self._settings.lockout_s

        def look(conn: sa.Connection) -> tuple[Row, Row | None, bool] | None:
            user = find_user(conn, given)
            if user is None:
                return None
            locked = (
                0 < self._settings.lockout_failures <= user["failures"]
                and store.time(conn) < user["failed_at"] + lockout_s
                and not user["options"].get("ignore_lockout_failure_attempts")
            )
            return user, store.password_of(conn, user["id"]), locked

        found = await self._read(look)
        password = found[1] if found else None
        right = await self.passwords.verify(given["password"], password and password["hash"])
        if not right:
            await self._failed(who, address, found[0]["id"] if found else None)
        if not right or found is None or password is None or found[2]:
            raise Unauthorized(REFUSAL)
        return Proof(found[0]["id"], password["id"], found[0]["failures"])

    async def _by_token(self, given: Mapping[str, Any]) -> Proof:
        text = given["id"]
        try:
            caller = await self._tokens.check(text)
        except Unauthorized:
            raise NotFound("Could not find token.") from None
        token = await self._read(lambda conn: store.get_token(conn, caller.token))
        if token is None:
            raise NotFound("Could not find token.")
        if token.app_credential_id is not None:
            raise Forbidden(
                "A token of an application credential cannot be exchanged for another."
            )
        return Proof(token.user_id, parent=token)

    async def _by_credential(self, given: Mapping[str, Any], address: str) -> Proof:
        who = _digest(given)
        self._attempts.check(who, network_of(address))

        def look(conn: sa.Connection) -> Row | None:
            if "id" in given:
                return store.get(conn, app_credential, given["id"])
            user = find_user(conn, given["user"])
            mine = user and store.select(
                conn, app_credential, app_credential.c.user_id == user["id"],
                app_credential.c.name == given["name"],
            )
            return mine[0] if mine else None

        found = await self._read(look)
        if not await self.passwords.verify(given["secret"], found and found["hash"]):
            await self._failed(who, address, None)
            raise Unauthorized(REFUSAL)
        assert found is not None
        return Proof(found["user_id"], credential=found)

    async def _failed(self, who: str, address: str, user_id: str | None) -> None:
        network = network_of(address)
        await self.passwords.run(lambda: self._attempts.failed(who, network))
        if user_id is not None and self._settings.lockout_failures:
            # Not waited for here: it would tell a user that is known from one that is not.
            lockout_s = self._settings.lockout_s
            counted = asyncio.wrap_future(self._database.submit(
                lambda conn: store.note_failure(conn, user_id, lockout_s)
            ))
            self._counting.add(counted)
            counted.add_done_callback(self._counting.discard)

    # -- the token

    def _issue(
        self, conn: sa.Connection, proof: Proof, methods: list[str], wanted: Wanted
    ) -> tuple[Issued, float]:
        standing = self._standing(conn, proof, wanted)
        time = standing.at
        if proof.password_id is not None:
            self._check_password(conn, proof, standing)
        _check_factors(standing, {*methods, *(proof.parent.methods if proof.parent else ())})
        ends = time + self._settings.token_s
        audit = [secrets.token_urlsafe(16)]
        if proof.parent is not None:
            ends = min(ends, proof.parent.expires_at)
            audit.append(proof.parent.audit_ids[-1])
            methods = list(dict.fromkeys([*methods, *proof.parent.methods]))
            if store.get_token(conn, proof.parent.hash) is None:
                raise NotFound("Could not find token.")
        if standing.app_credential is not None:
            last = standing.app_credential["expires_at"]
            ends = ends if last is None else min(ends, last)
        target = standing.project or standing.domain
        text = new_token()
        token = Token(
            hash_of(text), proof.user_id, standing.scope,
            target["id"] if target else SYSTEM_ID if standing.scope is Scope.SYSTEM else "",
            tuple(methods), tuple(audit), time, ends,
            standing.app_credential["id"] if standing.app_credential else None,
        )
        store.add_token(conn, token)
        if time - self._purged_at > PURGE_EVERY_S:
            self._purged_at = time
            store.forget_expired(conn)
        return Issued(text, token, standing), ends - time

    def _check_password(self, conn: sa.Connection, proof: Proof, standing: Standing) -> None:
        """It is still the password, and may still be used. Errors: `Unauthorized`."""
        if standing.password_id != proof.password_id:
            raise Unauthorized(REFUSAL)
        if proof.failures:
            store.update(conn, user_account, proof.user_id, {"failures": 0, "failed_at": None})
        ends = standing.password_expires_at
        if ends is not None and ends <= standing.at and not standing.user["options"].get(
            "ignore_password_expiry"
        ):
            raise Unauthorized(
                f"The password is expired and needs to be changed for user: {proof.user_id}."
            )

    def _standing(self, conn: sa.Connection, proof: Proof, wanted: Wanted) -> Standing:
        user_id, made = proof.user_id, None
        if proof.credential is not None:
            credential = proof.credential
            made = store.standing(
                conn, user_id, Scope.PROJECT, credential["project_id"], credential["id"]
            )
        elif wanted.scope is None:
            user = store.get(conn, user_account, user_id)
            preferred = user and user["default_project_id"]
            if preferred:
                made = store.standing(conn, user_id, Scope.PROJECT, preferred)
            made = made or store.standing(conn, user_id, Scope.NONE, "")
        else:
            target = _target(conn, wanted)
            if target is not None:
                made = store.standing(conn, user_id, wanted.scope, target)
        if made is None:
            raise Unauthorized(REFUSAL)
        return made

    async def _read(self, work: Any) -> Any:
        return await asyncio.wrap_future(self._database.glance(work))


def _check_factors(standing: Standing, methods: set[str]) -> None:
    """The methods are enough where the user's options ask for several. Errors: `Unauthorized`."""
    options = standing.user["options"]
    rules = options.get("multi_factor_auth_rules")
    if (
        options.get("multi_factor_auth_enabled") and rules and standing.app_credential is None
        and not any(methods >= set(rule) for rule in rules)
    ):
        raise Unauthorized(REFUSAL)


def _digest(given: Mapping[str, Any]) -> str:
    """Who is claimed to log in, in a few bytes, whatever was sent."""
    user = given.get("user", given)
    domain = user.get("domain") or {}
    parts = [
        str(one).casefold() for one in
        (given.get("id"), given.get("name"), user.get("id"), user.get("name"),
         domain.get("id"), domain.get("name"))
    ]
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def wanted_of(scope: Any) -> Wanted:
    """The scope of a request, None where it names none. Errors: `InvalidInput`."""
    if scope is None:
        return Wanted()
    if scope == "unscoped" or (isinstance(scope, dict) and "unscoped" in scope):
        return Wanted(Scope.NONE, "")
    if not isinstance(scope, dict) or len(scope) != 1:
        raise InvalidInput("scope", scope, "it names one of project, domain, system")
    kind, what = next(iter(scope.items()))
    if kind == "system":
        if what.get("all") is not True:
            raise InvalidInput("scope", scope, "of the system, it is {'all': true}")
        return Wanted(Scope.SYSTEM, SYSTEM_ID)
    if kind == "domain" and ("id" in what or "name" in what):
        return Wanted(Scope.DOMAIN, what.get("id"), what.get("name"))
    if kind == "project" and ("id" in what or ("name" in what and "domain" in what)):
        return Wanted(Scope.PROJECT, what.get("id"), what.get("name"), what.get("domain") or {})
    raise InvalidInput("scope", scope, "a project needs an id, or a name and its domain; a domain "
                       "an id or a name")


def _target(conn: sa.Connection, wanted: Wanted) -> str | None:
    if wanted.id is not None:
        return wanted.id
    domain_id: str | None = ""
    if wanted.scope is Scope.PROJECT:
        domain_id = find_domain(conn, wanted.domain)
    if domain_id is None or wanted.name is None:
        return None
    found = store.named(conn, project, wanted.name, domain_id)
    return found["id"] if found else None


def find_domain(conn: sa.Connection, given: Mapping[str, Any]) -> str | None:
    """The id of a domain that is named by its id or its name."""
    if "id" in given:
        id: str = given["id"]
        return id
    found = store.named(conn, project, given.get("name") or "", "")
    return found["id"] if found else None


def find_user(conn: sa.Connection, given: Mapping[str, Any]) -> Row | None:
    """The user who is named by id, or by name and domain."""
    if "id" in given:
        return store.get(conn, user_account, given["id"])
    domain_id = find_domain(conn, given.get("domain") or {})
    return store.named(conn, user_account, given["name"], domain_id) if domain_id else None
