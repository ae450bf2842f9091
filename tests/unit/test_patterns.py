"""Name patterns: the same answers as a real matcher, in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.compute.patterns import is_literal, matcher

atoms = st.sampled_from(["a", "b", "-", ".", "[ab]", "[^a]", "[0-9]", r"\.", r"\d", r"\-"])
pieces = st.tuples(atoms, st.sampled_from(["", "", "*", "+", "?"])).map("".join)
patterns = st.tuples(
    st.sampled_from(["", "^"]), st.lists(pieces, min_size=1, max_size=6).map("".join),
    st.sampled_from(["", "$"]),
).map("".join)


@given(patterns, st.text("ab-.01", max_size=12))
def test_it_finds_what_a_regular_expression_finds(pattern: str, text: str) -> None:
    assert matcher(pattern)(text) == (re.search(pattern, text) is not None)


@pytest.mark.parametrize(("pattern", "text", "found"), [
    ("web", "my-web-1", True), ("web", "wab", False),
    (r"^.*\-instance\-[0-9]+$", "tempest-x-instance-42", True),
    (r"^.*\-instance\-[0-9]+$", "tempest-x-instance-", False),
    ("(a|b)", "x(a|b)y", True), ("(a|b)", "a", False),
    ("[", "a[b", True), ("[", "ab", False), ("*a", "x*a", True), ("a\\", "a\\", True),
    ("", "anything", True), ("^$", "", True), ("^$", "x", False),
])
def test_what_is_no_pattern_is_text(pattern: str, text: str, found: bool) -> None:
    assert matcher(pattern)(text) is found


def test_a_pattern_that_would_keep_a_backtracking_matcher_busy_for_ever_ends() -> None:
    """Twenty times `a*` over 255 letters: 255 to the power of 20 ways."""
    assert not matcher("^" + "a*" * 20 + "b$")("a" * 255)
    assert is_literal("(a+)+$")
