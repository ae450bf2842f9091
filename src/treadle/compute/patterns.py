"""Name patterns of users: a part of regular expressions that is matched in linear time.

What tenants send is never given to a backtracking matcher: a pattern of a few characters can keep
one busy for hours. Supported: literals, `.`, classes such as `[a-z0-9]` and `[^x]`, escapes, the
anchors `^` and `$`, and `*`, `+`, `?` after one of these. Anything else is taken as literal text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PLAIN = frozenset("\\^$.[]*+?")
NOT_TAKEN = frozenset("(){}|")
CLASSES = {"d": str.isdecimal, "w": lambda c: c.isalnum() or c == "_", "s": str.isspace}
MOST = 255

Test = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Atom:
    test: Test
    many: bool
    none: bool


def is_literal(pattern: str) -> bool:
    """Whether it holds nothing but text to find."""
    return not PLAIN & set(pattern) or bool(NOT_TAKEN & set(pattern)) or len(pattern) > MOST


def matcher(pattern: str) -> Callable[[str], bool]:
    """A function that says whether the pattern is found somewhere in a text."""
    atoms = None if is_literal(pattern) else _parse(pattern)
    if atoms is None:
        return lambda text: pattern in text
    start = pattern.startswith("^")
    end = pattern.endswith("$") and not pattern.endswith("\\$")
    return lambda text: _found(atoms, text, start, end)


def _parse(pattern: str) -> list[_Atom] | None:
    """The atoms between the anchors; None where it is no pattern of the supported kind."""
    body = pattern.removeprefix("^")
    if body.endswith("$") and not body.endswith("\\$"):
        body = body[:-1]
    atoms, at = [], 0
    while at < len(body):
        found = _atom(body, at)
        if found is None:
            return None
        test, at = found
        mark = body[at:at + 1]
        if mark and mark in "*+?":
            at += 1
        atoms.append(_Atom(test, mark in ("*", "+"), mark in ("*", "?")))
    return atoms


def _atom(body: str, at: int) -> tuple[Test, int] | None:
    char = body[at]
    if char == ".":
        return (lambda _c: True), at + 1
    if char == "\\":
        if at + 1 >= len(body):
            return None
        escaped = body[at + 1]
        return CLASSES.get(escaped, escaped.__eq__), at + 2
    if char == "[":
        end = body.find("]", at + 2)
        return None if end < 0 else (_class(body[at + 1:end]), end + 1)
    if char in "*+?^$":
        return None
    return char.__eq__, at + 1


def _class(inside: str) -> Test:
    negated = inside.startswith("^")
    text = inside[1:] if negated else inside
    ranges, at = [], 0
    while at < len(text):
        if at + 2 < len(text) and text[at + 1] == "-":
            ranges.append((text[at], text[at + 2]))
            at += 3
        else:
            ranges.append((text[at], text[at]))
            at += 1
    return lambda char: any(low <= char <= high for low, high in ranges) is not negated


def _found(atoms: list[_Atom], text: str, start: bool, end: bool) -> bool:
    """Simulate all ways at once: the states are the numbers of the atom that is next."""
    last = len(atoms)

    def closed(states: set[int]) -> set[int]:
        for state in sorted(states):
            at = state
            while at < last and atoms[at].none:
                at += 1
                states.add(at)
        return states

    states = closed({0})
    for char in text:
        if last in states and not end:
            return True
        following = set() if start else {0}
        for state in states:
            if state < last and atoms[state].test(char):
                following.add(state + 1)
                if atoms[state].many:
                    following.add(state)
        states = closed(following)
        if not states:
            return False
    return last in states
