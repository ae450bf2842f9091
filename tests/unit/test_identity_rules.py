"""Who may do what, by role, project, domain and owner; and what an operator may change of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle.api.app import SERVICES
from treadle.errors import Forbidden, InvalidInput
from treadle.identity.model import Caller
from treadle.identity.rules import PREDICATES, RULES, Rules, load_rules

ADMIN = Caller("a", project_id="p0", roles=frozenset({"admin", "member", "reader"}))
MEMBER = Caller("m", project_id="p1", roles=frozenset({"member", "reader"}))
READER = Caller("r", project_id="p1", roles=frozenset({"reader"}))
NO_ROLE = Caller("n", project_id="p1", roles=frozenset({"other"}))
UNSCOPED = Caller("u")
DOMAIN_ADMIN = Caller("d", domain_id="d1", roles=frozenset({"admin", "member", "reader"}))
SYSTEM_READER = Caller("s", system=True, roles=frozenset({"reader"}))
SERVICE = Caller("v", project_id="p2", roles=frozenset({"service"}))
EVERYBODY = {
    "admin": ADMIN, "member": MEMBER, "reader": READER, "no_role": NO_ROLE, "unscoped": UNSCOPED,
    "domain_admin": DOMAIN_ADMIN, "system_reader": SYSTEM_READER, "service": SERVICE,
}
TARGET = {"project_id": "p1", "user_id": "m", "domain_id": "d1"}
OTHER = {"project_id": "p9", "user_id": "x", "domain_id": "d9"}
NOTHING: dict[str, str | None] = {"project_id": None, "user_id": None, "domain_id": None}


def who(name: str, target: dict[str, str] | dict[str, str | None] | None) -> set[str]:
    return {one for one, caller in EVERYBODY.items() if PREDICATES[name](caller, target)}


@pytest.mark.parametrize(("name", "without", "own", "foreign"), [
    ("nobody", set(), set(), set()),
    ("token", set(EVERYBODY), set(EVERYBODY), set(EVERYBODY)),
    ("admin", {"admin"}, {"admin"}, {"admin"}),
    ("reader", *[{"admin", "system_reader"}] * 3),
    ("service", *[{"admin", "service"}] * 3),
    ("project_reader", *[{"admin", "member", "reader"}] * 2, {"admin"}),
    ("project_member", *[{"admin", "member"}] * 2, {"admin"}),
    ("owner", set(EVERYBODY), {"admin", "member"}, {"admin"}),
    ("domain_admin", *[{"admin", "domain_admin"}] * 2, {"admin"}),
    ("domain_reader", *[{"admin", "domain_admin", "system_reader"}] * 2,
     {"admin", "system_reader"}),
    ("project_or_domain_reader",
     *[{"admin", "member", "reader", "domain_admin", "system_reader"}] * 2,
     {"admin", "system_reader"}),
    ("owner_or_reader", set(EVERYBODY), {"admin", "member", "system_reader"},
     {"admin", "system_reader"}),
    ("owner_or_domain_admin", set(EVERYBODY), {"admin", "member", "domain_admin"}, {"admin"}),
    ("owner_or_domain_reader", set(EVERYBODY),
     {"admin", "member", "domain_admin", "system_reader"}, {"admin", "system_reader"}),
    ("owner_or_service", set(EVERYBODY), {"admin", "member", "system_reader", "service"},
     {"admin", "system_reader", "service"}),
])
def test_predicates(name: str, without: set[str], own: set[str], foreign: set[str]) -> None:
    assert who(name, None) == without
    assert who(name, TARGET) == own
    assert who(name, OTHER) == foreign
    assert who(name, NOTHING) == foreign, "what belongs to nobody belongs to none of these"


def test_every_predicate_is_tested() -> None:
    tested = {one[0] for one in test_predicates.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert tested == set(PREDICATES)


def test_every_rule_has_a_predicate_and_a_service() -> None:
    assert set(RULES.values()) <= set(PREDICATES)
    assert {name.partition(":")[0] for name in RULES} <= {
        "identity", "compute", "image", "network", "treadle"
    }


WITHOUT_TOKEN = {
    "POST /identity/v3/auth/tokens", "POST /identity/v3/users/{user_id}/password",
}


def test_every_call_of_every_service_has_a_rule_or_is_known_to_need_none() -> None:
    """Version documents are for everybody, and logging in is; nothing else."""
    for service in SERVICES:
        for call in service.calls:
            name = f"{call.method} {service.root}{call.path}"
            if call.rule:
                assert call.rule in RULES, name
                assert call.rule.startswith(f"{service.root.strip('/')}:"), name
            else:
                version = call.method == "GET" and call.path.count("/") <= 2
                assert version or name in WITHOUT_TOKEN, name


def test_a_refusal_names_the_rule() -> None:
    rules = Rules({"identity:auth": "admin"})
    rules.check("identity:auth", ADMIN)
    assert not rules.allows("identity:auth", MEMBER)
    with pytest.raises(Forbidden, match="identity:auth"):
        rules.check("identity:auth", MEMBER)


def test_a_rule_that_is_not_in_the_table_lets_nobody_pass() -> None:
    with pytest.raises(KeyError):
        Rules().check("identity:no_such_rule", ADMIN)


def test_an_operators_file_changes_rules(tmp_path: Path) -> None:
    assert load_rules("").allows("identity:auth", UNSCOPED)
    path = tmp_path / "rules.toml"
    path.write_text('"identity:auth" = "nobody"\n')
    assert not load_rules(str(path)).allows("identity:auth", ADMIN)


@pytest.mark.parametrize(("content", "says"), [
    ('"identity:autth" = "admin"', "did you mean identity:auth"),
    ('"identity:auth" = "root"', "it must be one of nobody, token"),
    ('"identity:auth" = 7', "it must be one of nobody, token"),
    ("identity:auth = nobody", "it is not TOML"),
    (None, "it cannot be read"),
])
def test_a_file_with_a_fault_says_where(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "rules.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=says):
        load_rules(str(path))
