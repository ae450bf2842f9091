"""The connections of calls that take long: who shares one, and when one is let go."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from treadle.hypervisor.libvirt.connection import EACH, Connection, LibvirtOptions, Spares


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    return Spares("test:///default", LibvirtOptions(tmp_path))


def is_open(one: Connection) -> bool:
    return one.beat(5.0) is not None


def used(one: Connection) -> Connection:
    """It, opened."""
    one.run("look", 5.0, lambda link, _attempt: link.conn.getType())
    return one


def fail_on(spares: Spares, expected: Connection) -> None:
    """Have a call fail on the connection that is lent next."""
    with spares.borrowed() as one:
        assert one is expected
        raise ZeroDivisionError


def test_as_many_share_one_as_a_host_takes_calls_of(spares: Spares) -> None:
    with ExitStack() as stack:
        lent = [stack.enter_context(spares.borrowed()) for _ in range(EACH + 1)]
        assert len(set(lent[:EACH])) == 1
        assert lent[EACH] is not lent[0]


def test_one_that_was_given_back_is_lent_again_open(spares: Spares) -> None:
    with spares.borrowed() as first:
        used(first)
    with spares.borrowed() as second:
        assert second is first
        assert is_open(second)


def test_one_on_which_something_failed_is_closed_after_its_last_user(spares: Spares) -> None:
    with spares.borrowed() as kept:
        used(kept)
        with pytest.raises(ZeroDivisionError):
            fail_on(spares, kept)
        assert is_open(kept)  # the other one's call goes on
        with spares.borrowed() as fresh:
            assert fresh is not kept
    assert not is_open(kept)


def test_tidying_closes_those_that_nobody_has(spares: Spares) -> None:
    with spares.borrowed() as one:
        used(one)
        spares.tidy(0.0)
        assert is_open(one)
    spares.tidy(60.0)
    assert is_open(one)
    spares.tidy(0.0)
    assert not is_open(one)
