"""`plan` over the whole table: goal × state × phase × host × seen × generation × image × late ×
tries × batch. It is pure, so every combination is simply asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest

from treadle.compute.lifecycle import (
    GONE,
    LOST_TRIES,
    POWER_OF,
    STATE_OF,
    Action,
    Adopt,
    AwaitImage,
    Call,
    Context,
    End,
    Fail,
    ImageOnHost,
    Lost,
    Place,
    Rehome,
    Release,
    Retry,
    Settle,
    after_error,
    new_here,
    plan,
)
from treadle.compute.model import SETTLED, Goal, Instance, Phase, State, is_settled
from treadle.hypervisor.base import (
    Domain,
    HostFull,
    HostRefused,
    HostUnreachable,
    ImageBroken,
    Power,
    StopCause,
    Unsupported,
    VerbTimeout,
)

UUID = "11111111-2222-4333-8444-555555555555"
BASE = Instance(
    id=1, uuid=UUID, name="vm", flavor_id=1, vcpus=1, memory_mib=256, disk_gib=1, image_id=1,
    mac="02:00:00:00:00:01", user_data="", ssh_keys=(), goal=Goal.RUNNING, state=State.BUILDING,
    phase=Phase.QUEUED, revision=1, generation=1, settled_generation=0, graceful=False,
    deadline=100.0, attempts=0, excluded=frozenset(), batch="b", rollback=False, host_id=None,
    address=None, fault=None, created_at=0.0, launched_at=None, deleted_at=None,
)
Seen = Domain | Lost | None
NEW = (State.BUILDING, State.OFFLOADED)


@dataclass(frozen=True)
class Asked:
    """One row of the table."""

    instance: Instance
    seen: Seen
    context: Context

    @property
    def answer(self) -> Action:
        """What `plan` says."""
        return plan(self.instance, self.seen, self.context)


def instances() -> Iterator[Instance]:
    """Every combination of what `plan` reads of an instance."""
    for goal, state, phase, generation, graceful in product(
        Goal, State, Phase, (1, 2), (False, True)
    ):
        placed = phase is not Phase.QUEUED
        yield replace(
            BASE, goal=goal, state=state, phase=phase, generation=generation,
            settled_generation=0 if state in NEW else 1, graceful=graceful,
            host_id=7 if placed else None, attempts=1 if placed else 0,
            launched_at=None if state in NEW else 1.0,
        )


def sights() -> Iterator[Seen]:
    """Everything that a host can show."""
    yield None
    yield Lost.HOST
    for power, generation in product(Power, (1, 2)):
        off = (StopCause.GUEST, StopCause.FORCED, StopCause.UNKNOWN)
        causes = off if power is Power.OFF else (StopCause.NONE,)
        for cause in causes:
            yield Domain(UUID, power, generation, cause)


def contexts() -> Iterator[Context]:
    """Every kind of surroundings."""
    for image, late, tries in product(ImageOnHost, (False, True), (0, 1, LOST_TRIES)):
        yield Context(image, late, tries, 3, "why")


TABLE = [
    Asked(instance, seen, context)
    for instance in instances()
    for seen in (sights() if instance.host_id is not None else [None])
    for context in contexts()
]


def test_the_table_is_large_and_every_row_has_an_answer() -> None:
    assert len(TABLE) > 150_000
    kinds = {type(row.answer) for row in TABLE}
    assert kinds == {
        Place, AwaitImage, Call, Release, Settle, Adopt, Rehome, Fail, Retry,
    }


def test_delete_is_legal_from_every_state_and_leads_to_nothing_else() -> None:
    for row in TABLE:
        if row.instance.goal is not Goal.DELETED:
            continue
        answer = row.answer
        if row.instance.host_id is None:
            assert answer == Settle(State.DELETED)
        elif row.seen is None:
            assert answer == Release(again=False)
        elif row.seen is Lost.HOST:
            started = row.instance.phase is not Phase.PLACED
            assert isinstance(answer, Retry if started else Release)
        else:
            assert answer == Call("undefine")


def test_what_may_have_been_started_is_never_let_go_of_unseen() -> None:
    """While its host is silent, only what was never started there may go elsewhere."""
    for row in TABLE:
        if row.seen is Lost.HOST and isinstance(row.answer, Release):
            assert row.instance.phase in (Phase.PLACED, Phase.LEAVING)


def test_room_is_given_back_only_when_nothing_is_seen_in_it() -> None:
    for row in TABLE:
        if isinstance(row.answer, Release):
            assert row.seen is None or row.seen is Lost.HOST


def test_the_disk_of_what_once_ran_is_removed_only_on_a_users_word() -> None:
    """No undefine, no other host, no giving up of what the host still shows."""
    for row in TABLE:
        instance = row.instance
        if instance.goal in GONE or new_here(instance):
            continue
        if instance.phase is not Phase.DEFINED or row.seen is None:
            continue
        assert not isinstance(row.answer, Fail | Release | Rehome | Place), row
        assert row.answer != Call("undefine"), row


def test_a_silent_host_makes_nothing_of_what_once_ran_but_waiting() -> None:
    for row in TABLE:
        once = not new_here(row.instance) and row.instance.host_id is not None
        wanted = row.instance.goal not in GONE
        if once and wanted and row.seen is Lost.HOST:
            assert isinstance(row.answer, Retry)


def test_no_verb_is_called_on_a_silent_host_or_on_none() -> None:
    for row in TABLE:
        if isinstance(row.answer, Call):
            assert row.instance.host_id is not None
            assert row.seen is not Lost.HOST
            assert row.seen is not None or row.answer == Call("define")


def test_it_is_settled_exactly_where_what_is_seen_is_wanted() -> None:
    for row in TABLE:
        seen, goal = row.seen, row.instance.goal
        if not isinstance(seen, Domain) or goal in GONE:
            continue
        if row.instance.phase is Phase.LEAVING:
            continue
        as_wanted = (
            seen.power is POWER_OF[goal] and seen.generation >= row.instance.generation
        )
        assert isinstance(row.answer, Settle) == as_wanted, row
        if as_wanted:
            assert row.answer == Settle(STATE_OF[seen.power])


def test_only_a_late_build_is_given_up_for_being_late() -> None:
    for row in TABLE:
        if isinstance(row.answer, Fail) and "deadline" in row.answer.reason:
            assert row.context.late
            assert new_here(row.instance) or row.instance.host_id is None


def test_drift_of_what_was_settled_is_mended_whatever_old_deadline_has_passed() -> None:
    for row in TABLE:
        instance, seen = row.instance, row.seen
        settled = SETTLED.get(instance.state) is instance.goal
        if not settled or instance.generation != instance.settled_generation:
            continue
        if isinstance(row.answer, Adopt):
            assert "deadline" not in row.answer.reason
            assert isinstance(seen, Domain)
            assert seen.cause is StopCause.GUEST or instance.goal is Goal.SUSPENDED


def test_a_guest_is_cut_off_only_when_the_user_said_so_or_it_took_too_long() -> None:
    for row in TABLE:
        if row.answer not in (Call("power_off"), Call("restart")):
            continue
        seen = row.seen
        assert isinstance(seen, Domain)
        reboot = seen.generation < row.instance.generation
        assert reboot or row.instance.goal is Goal.STOPPED
        if row.answer == Call("restart"):
            assert (row.instance.goal, row.context.late) == (Goal.RUNNING, False)
        if seen.power is Power.RUNNING:
            assert row.context.late or (reboot and not row.instance.graceful)


def test_a_mode_whose_time_is_up_ends_whatever_its_host_says() -> None:
    for instance in instances():
        for seen in sights():
            answer = plan(instance, seen, Context(ended=True))
            assert (answer == End()) == (instance.goal is not Goal.DELETED)


def test_what_somebody_did_by_hand_is_taken_over_only_by_the_policy_that_says_so() -> None:
    adopted = set()
    for row in TABLE:
        instance, seen = row.instance, row.seen
        keeps = row.answer
        takes = plan(instance, seen, replace(row.context, adopt_drift=True))
        if takes == keeps:
            continue
        assert is_settled(instance)
        assert isinstance(seen, Domain)
        assert isinstance(takes, Adopt)
        assert takes.state is STATE_OF[seen.power]
        assert "not by Treadle" in takes.reason
        assert not isinstance(keeps, Settle)
        assert (seen.power, seen.cause) != (Power.OFF, StopCause.UNKNOWN), "a power cut"
        adopted.add((instance.goal, seen.power))
    running, off = (Goal.RUNNING, Power.OFF), (Goal.STOPPED, Power.RUNNING)
    assert {running, off, (Goal.RUNNING, Power.PAUSED), (Goal.PAUSED, Power.RUNNING)} <= adopted


def test_what_is_as_wanted_is_told_to_start_with_its_host_or_not() -> None:
    for goal, power in POWER_OF.items():
        one = replace(
            BASE, goal=goal, state=STATE_OF[power], phase=Phase.DEFINED, host_id=7,
            settled_generation=1,
        )
        for autostart in (None, True, False):
            answer = plan(one, Domain(UUID, power, 1, autostart=autostart), Context())
            right = autostart in (None, goal is Goal.RUNNING)
            assert answer == (Settle(STATE_OF[power]) if right else Call("autostart"))


def test_a_guest_runs_on_until_the_image_for_its_new_disk_is_there() -> None:
    seen = Domain(UUID, Power.RUNNING, 1)
    base = replace(
        BASE, state=State.RUNNING, phase=Phase.DEFINED, host_id=7, generation=2,
        settled_generation=1,
    )
    for one in (replace(base, disks=(5,)), replace(base, rescue_image_id=2)):
        assert plan(one, seen, Context(ImageOnHost.PENDING)) == AwaitImage()
        for image in (ImageOnHost.BROKEN, ImageOnHost.REFUSED):
            answer = plan(one, seen, Context(image, last_error="it is no image"))
            assert answer == Adopt(State.RUNNING, "it is no image")
        assert plan(one, seen, Context(ImageOnHost.PENDING, late=True)) == AwaitImage()
        assert plan(one, seen, Context()) == Call("restart")
        assert plan(one, Domain(UUID, Power.OFF, 1), Context()) == Call("define")
    plain = replace(base, disks=(3, 1))
    assert plan(plain, seen, Context(ImageOnHost.PENDING)) == Call("restart")


def test_a_failure_has_a_reason() -> None:
    for row in TABLE:
        if isinstance(row.answer, Fail | Adopt | Rehome | Retry):
            assert row.answer.reason


# -- it ends: what the acts do, done again and again


POWER_AFTER = {
    "start": Power.RUNNING, "resume": Power.RUNNING, "pause": Power.PAUSED,
    "suspend": Power.SAVED, "shut_down": Power.OFF, "power_off": Power.OFF,
}


def shown_after(verb: str, seen: Seen, generation: int) -> Domain | None:
    """What the host shows when the verb is done."""
    if verb == "undefine":
        return None
    if verb in ("define", "restart"):
        return Domain(UUID, Power.OFF if verb == "define" else Power.RUNNING, generation)
    assert isinstance(seen, Domain)
    cause = {"shut_down": StopCause.GUEST, "power_off": StopCause.FORCED}
    return replace(seen, power=POWER_AFTER[verb], cause=cause.get(verb, StopCause.NONE))


def step(row: Asked, answer: Action) -> Asked | None:
    """What the pass makes of the answer where all goes well; None where it rests."""
    instance, seen, context = row.instance, row.seen, row.context
    match answer:
        case Place():
            instance = replace(
                instance, host_id=7, phase=Phase.PLACED, attempts=instance.attempts + 1
            )
            seen, context = None, replace(context, image=ImageOnHost.PENDING)
        case AwaitImage():
            context = replace(context, image=ImageOnHost.READY)
        case Call(verb):
            seen = shown_after(verb, seen, instance.generation)
            if verb == "define" and instance.phase is Phase.PLACED:
                instance = replace(instance, phase=Phase.DEFINED)
            if verb in ("define", "power_off"):
                context = replace(context, late=False)
        case Release():
            instance = replace(instance, host_id=None, phase=Phase.QUEUED)
            seen = None
        case Rehome():
            instance = replace(instance, phase=Phase.LEAVING)
        case Fail():
            instance = replace(instance, goal=Goal.FAILED, state=State.ERROR)
        case Adopt(state, _):
            instance = replace(
                instance, goal=SETTLED[state], state=state,
                generation=1, settled_generation=1,
            )
        case Retry():
            if seen is not Lost.HOST or context.tries >= LOST_TRIES:
                return None
            context = replace(context, tries=context.tries + 1)
        case Settle():
            return None
    return Asked(instance, seen, context)


def test_every_row_comes_to_rest_in_a_few_steps() -> None:
    steps_left: dict[Asked, int] = {}
    for first in TABLE:
        path: list[Asked] = []
        row: Asked | None = first
        while row is not None and row not in steps_left:
            path.append(row)
            assert len(path) < 14, f"it goes on and on: {first}"
            answer = row.answer
            row = step(row, answer)
            if row is None:
                assert isinstance(answer, Settle | Retry)
        rest = 0 if row is None else steps_left[row]
        for passed in reversed(path):
            rest += 1
            steps_left[passed] = rest
    assert max(steps_left.values()) <= 14


# -- what a failed act means


ERRORS = [
    HostUnreachable("gone"), VerbTimeout("late"), HostRefused("no"), HostFull("full"),
    Unsupported("cannot"), ImageBroken("broken"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_error_takes_the_disk_of_what_once_ran(error: Exception) -> None:
    for row in TABLE:
        if new_here(row.instance) or row.context.image is not ImageOnHost.READY:
            continue
        after = after_error(row.instance, row.seen, error, row.context)
        assert isinstance(after, Retry | Adopt)
        if isinstance(after, Adopt) and isinstance(row.seen, Domain):
            assert after.state is STATE_OF.get(row.seen.power, State.STOPPED)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_removal_is_tried_until_it_succeeds(error: Exception) -> None:
    for goal in GONE:
        for state in State:
            one = replace(BASE, goal=goal, state=state, phase=Phase.DEFINED, host_id=7)
            assert isinstance(after_error(one, Domain(UUID, Power.OFF), error, Context()), Retry)


def test_a_build_that_a_host_refuses_goes_to_another_a_few_times() -> None:
    one = replace(BASE, phase=Phase.PLACED, host_id=7, attempts=1)
    full = HostFull("full")
    assert after_error(one, None, full, Context()) == Rehome("full")
    last = after_error(replace(one, attempts=3), None, full, Context())
    assert last == Fail("full (tried 3 hosts)")
    assert after_error(one, None, ImageBroken("broken"), Context()) == Fail("broken")
    assert after_error(one, None, HostUnreachable("gone"), Context()) == Retry("gone")


def test_a_refusal_is_looked_at_once_more_before_it_is_believed() -> None:
    """The guest may have changed between the look and the act."""
    one = replace(BASE, state=State.RUNNING, goal=Goal.PAUSED, phase=Phase.DEFINED, host_id=7)
    seen = Domain(UUID, Power.RUNNING, 1)
    error = HostRefused("it is off")
    assert after_error(one, seen, error, Context()) == Retry("it is off")
    assert after_error(one, seen, error, Context(tries=1)) == Adopt(State.RUNNING, "it is off")


def test_a_changed_definition_is_put_back_or_said_as_the_policy_is() -> None:
    for goal, power in POWER_OF.items():
        one = replace(
            BASE, goal=goal, state=STATE_OF[power], phase=Phase.DEFINED, host_id=7,
            settled_generation=1,
        )
        seen = Domain(UUID, power, 1, changed=("memory", "disks"))
        assert plan(one, seen, Context()) == Call("define")
        said = plan(one, seen, Context(adopt_drift=True))
        assert isinstance(said, Adopt)
        assert said.state is STATE_OF[power]
        assert said.reason.endswith("not by Treadle: memory, disks")
        wished = replace(one, goal=Goal.RUNNING, state=State.STOPPED)
        assert not isinstance(plan(wished, seen, Context(adopt_drift=True)), Adopt)


@pytest.mark.parametrize("adopt", [False, True])
def test_one_that_lost_a_part_of_its_memory_is_started_anew(adopt: bool) -> None:
    """Whoever has paused it: it can never go on."""
    one = replace(
        BASE, goal=Goal.RUNNING, state=State.RUNNING, phase=Phase.DEFINED, host_id=7,
        settled_generation=1,
    )
    for power in (Power.PAUSED, Power.RUNNING):
        seen = Domain(UUID, power, 1, split=True, torn=True)
        assert plan(one, seen, Context(adopt_drift=adopt)) == Call("power_off")
    left = Domain(UUID, Power.PAUSED, 1, split=True)
    assert plan(one, left, Context(adopt_drift=adopt)) == Call("power_off")
