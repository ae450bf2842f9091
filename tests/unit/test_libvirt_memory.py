"""What a driver keeps of what it has read, and when it reads again."""

from __future__ import annotations

import pytest

from treadle.hypervisor.libvirt.memory import (
    ALL,
    AUTOSTART,
    DEFINED,
    MARK,
    RUNNING,
    STORED,
    Memory,
)


@pytest.fixture
def memory() -> Memory:
    one = Memory()
    one.on = True
    return one


def read(memory: Memory, fact: str, value: object, uuid: str = "a") -> object:
    return memory.get(uuid, fact, lambda: value)


def test_what_was_read_is_kept_for_its_domain(memory: Memory) -> None:
    assert read(memory, MARK, 1) == 1
    assert read(memory, MARK, 2) == 1
    assert read(memory, DEFINED, False) is False
    assert read(memory, DEFINED, True) is False
    assert read(memory, MARK, 3, "b") == 3


def test_nothing_is_kept_where_no_event_would_come() -> None:
    memory = Memory()
    assert read(memory, MARK, 1) == 1
    assert read(memory, MARK, 2) == 2


def test_what_is_not_there_yet_is_asked_for_again(memory: Memory) -> None:
    assert read(memory, MARK, None) is None
    assert read(memory, MARK, 1) == 1


def test_what_is_forgotten_is_read_again(memory: Memory) -> None:
    for fact in ALL:
        read(memory, fact, 1)
    memory.forget("a", RUNNING)
    assert [read(memory, fact, 2) for fact in ALL] == [2 if f in RUNNING else 1 for f in ALL]
    memory.forget("a")
    assert [read(memory, fact, 3) for fact in ALL] == [3] * len(ALL)
    memory.clear()
    assert read(memory, MARK, 4) == 4
    memory.forget("unknown")


def test_what_was_read_while_something_happened_is_not_kept(memory: Memory) -> None:
    def late() -> int:
        memory.forget("a")
        return 1

    assert memory.get("a", MARK, late) == 1
    assert read(memory, MARK, 2) == 2

    def later() -> int:
        memory.put("b", AUTOSTART, True)
        return 1

    assert memory.get("b", AUTOSTART, later) == 1
    assert read(memory, AUTOSTART, 2, "b") == 2


def test_what_a_verb_makes_so_takes_the_place_of_what_is_kept(memory: Memory) -> None:
    memory.put("a", AUTOSTART, True)
    assert read(memory, AUTOSTART, False) is False, "it had not been read"
    memory.put("a", AUTOSTART, True)
    assert read(memory, AUTOSTART, False) is True


def test_what_is_learnt_is_kept_like_what_was_read(memory: Memory) -> None:
    memory.changed("a", {DEFINED: True, AUTOSTART: False}, ALL)
    assert read(memory, DEFINED, False) is True
    assert read(memory, AUTOSTART, True) is False
    memory.on = False
    memory.changed("b", {DEFINED: True}, ALL)
    assert read(memory, DEFINED, False, "b") is False


def test_what_a_look_at_all_contradicts_is_forgotten(memory: Memory) -> None:
    read(memory, AUTOSTART, True)
    memory.check("a", AUTOSTART, True)
    memory.check("b", AUTOSTART, True)
    memory.check("a", DEFINED, False)
    assert read(memory, AUTOSTART, False) is True
    memory.check("a", AUTOSTART, False)
    assert read(memory, AUTOSTART, False) is False


def test_the_event_of_a_definition_of_ours_is_no_news(memory: Memory) -> None:
    for fact in ALL:
        read(memory, fact, 1)
    memory.changing("a")
    memory.changed("a", {STORED: 2}, RUNNING)
    memory.hear("a")
    kept = {fact: read(memory, fact, 3) for fact in ALL}
    assert kept == {**dict.fromkeys(ALL, 1), STORED: 2, **dict.fromkeys(RUNNING, 3)}
    memory.hear("a")  # somebody else's
    assert [read(memory, fact, 4) for fact in ALL] == [4] * len(ALL)


def test_an_event_before_the_end_of_a_definition_is_that_ones_once(memory: Memory) -> None:
    memory.changing("a")
    memory.hear("a")
    memory.changed("a", {STORED: 2}, ())
    assert read(memory, STORED, 3) == 2
    memory.hear("a")
    assert read(memory, STORED, 3) == 3


def test_where_a_definition_fails_no_event_is_waited_for(memory: Memory) -> None:
    memory.changing("a")
    memory.forget("a")
    read(memory, STORED, 1)
    memory.hear("a")
    assert read(memory, STORED, 2) == 2


def test_what_was_read_while_a_definition_changed_is_not_kept(memory: Memory) -> None:
    memory.changing("a")

    def meanwhile() -> int:
        memory.changed("a", {}, ())
        return 1

    assert memory.get("a", STORED, meanwhile) == 1
    assert read(memory, STORED, 2) == 2
