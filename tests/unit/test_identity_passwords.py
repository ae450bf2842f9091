"""Passwords, and how often logging in may fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from argon2 import extract_parameters

from treadle.errors import InvalidInput, Overloaded
from treadle.identity import passwords
from treadle.identity.login import Attempts, network_of, wanted_of
from treadle.identity.model import Scope
from treadle.identity.passwords import NOBODYS, Passwords, hash_now, verify_now
from treadle.sections import Identity


def test_a_hash_costs_what_is_documented_and_is_never_the_same() -> None:
    made = hash_now("secret")
    facts = extract_parameters(made)
    assert (facts.memory_cost, facts.time_cost, facts.parallelism) == (19 * 1024, 2, 1)
    assert made.startswith("$argon2id$")
    assert made != hash_now("secret")
    assert verify_now("secret", made)
    assert not verify_now("Secret", made)
    assert not verify_now("secret", "not a hash")


def test_a_start_loads_nothing_that_only_logging_in_needs() -> None:
    code = "import sys, treadle.cli.serve; print({'argon2', 'limits'} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == "set()\n"


def test_the_password_of_nobody_takes_as_long_and_is_never_right() -> None:
    assert extract_parameters(NOBODYS) == extract_parameters(hash_now("secret"))
    assert not verify_now("secret", None)


def test_passwords_are_checked_in_threads_of_their_own_and_not_too_many_wait(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "MOST_WAITING", 3)
    go, here = threading.Event(), []

    def slow() -> None:
        here.append(threading.current_thread().name)
        assert go.wait(10)

    async def many() -> None:
        pool = Passwords()
        waiting = [asyncio.ensure_future(pool.run(slow)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await pool.run(slow)
        assert refused.value.retry_after > 0
        go.set()
        await asyncio.gather(*waiting)
        assert await pool.verify("secret", await pool.hash("secret"))
        pool.close()

    asyncio.run(many())
    assert len(here) == 3
    assert all(name.startswith("password") for name in here)
    assert len(set(here)) <= passwords.THREADS


@pytest.mark.parametrize(("address", "stands_for"), [
    ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
    ("fe80::1%eth0", "fe80::/64"), ("", ""), ("unix", "unix"),
])
def test_one_customer_of_ipv6_counts_once(address: str, stands_for: str) -> None:
    assert network_of(address) == stands_for


def test_failures_are_counted_by_user_and_by_address() -> None:
    attempts = Attempts(Identity(failures_per_user=2, failures_per_address=4))
    attempts.check("a", "1")
    for _ in range(2):
        attempts.failed("a", "1")
    with pytest.raises(Overloaded):
        attempts.check("a", "2")
    attempts.check("b", "1")
    for _ in range(2):
        attempts.failed("b", "1")
    with pytest.raises(Overloaded):
        attempts.check("c", "1")
    attempts.check("c", "2")


@pytest.mark.parametrize(("scope", "kind", "id"), [
    (None, None, None), ("unscoped", Scope.NONE, ""), ({"unscoped": {}}, Scope.NONE, ""),
    ({"system": {"all": True}}, Scope.SYSTEM, "system"),
    ({"project": {"id": "p"}}, Scope.PROJECT, "p"),
    ({"project": {"name": "n", "domain": {"id": "d"}}}, Scope.PROJECT, None),
    ({"domain": {"name": "n"}}, Scope.DOMAIN, None),
])
def test_scopes_are_read(scope: object, kind: Scope | None, id: str | None) -> None:
    wanted = wanted_of(scope)
    assert (wanted.scope, wanted.id) == (kind, id)


@pytest.mark.parametrize("scope", [
    "all", "not unscoped", {}, {"project": {"name": "n"}}, {"domain": {}}, {"system": {"all": 1}},
    {"project": {"id": "p"}, "domain": {"id": "d"}}, {"OS-TRUST:trust": {"id": "t"}},
])
def test_other_scopes_are_refused(scope: object) -> None:
    with pytest.raises(InvalidInput):
        wanted_of(scope)
