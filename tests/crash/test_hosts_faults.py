"""Hosts, their images and what lies on them, where two things happen at once or go wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from brain import BUILD_S, LEASE_S, Brain
from memory import world_time
from world import World

from treadle.compute import creating
from treadle.compute.creating import Wish
from treadle.compute.kinds import HOST_KIND, IMAGE_KIND
from treadle.compute.model import Goal, State
from treadle.compute.reconciler import NO_EFFECT_S
from treadle.controller import queue
from treadle.db.schema import host_image, image, instance, orphan, work
from treadle.hypervisor.base import Power, Seed
from treadle.hypervisor.fake_host import Fault, FaultKind, Guest
from treadle.placement import ledger
from treadle.placement.ledger import ImageState


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two hosts of four cores each, empty."""
    made = World(tmp_path)
    with world_time(made.clock):
        yield made
    made.database.close()


def settle(world: World, seconds: float = 130.0) -> None:
    """Let one controller bring all to rest."""
    brain = Brain(world, "settler")
    assert world.drive(brain, seconds), [str(row) for row in world.rows()]
    brain.close()


def sound(world: World) -> None:
    """The faults are over: everything comes to rest, and the invariants hold."""
    world.finish()
    assert world.wrong == []


def at_each_seam(
    world: World, begin: Callable[[World], None], strike: Callable[[World], None],
    end: Callable[[World], None],
) -> int:
    """`begin`, and at one seam of what follows `strike`, once for each seam; how many."""
    saved = world.save("seams")
    position = 0
    while True:
        world.restore(saved)
        begin(world)
        victim = Brain(world, "victim")
        passed = [0]

        def on_seam(
            _name: str, victim: Brain = victim, passed: list[int] = passed, at: int = position
        ) -> None:
            if world.actor is victim:
                passed[0] += 1
                if passed[0] - 1 == at:
                    with world.acting(None):
                        strike(world)

        world.on_seam = on_seam
        world.drive(victim)
        world.on_seam = None
        victim.close()
        if passed[0] <= position:
            return position
        end(world)
        position += 1


def second_image(world: World) -> str:
    """One more image; its digest."""
    content = b"another disk"
    path = world.folder / "other.qcow2"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    world.database.apply(lambda conn: conn.execute(sa.insert(image).values(
        name="other", source=str(path), state="active", path=str(path), sha256=sha256,
        format="qcow2", size_bytes=len(content), virtual_bytes=1 << 20, added_at=0.0,
    )))
    return sha256


def create_of(world: World, image_id: int, name: str = "other") -> int:
    """Ask for one of that image."""
    made = world.ask(lambda conn: creating.create(
        conn, Wish(name, 1, image_id), request_id="req", build_deadline_s=BUILD_S
    ))
    return int(made[0].id)


def image_states(world: World) -> dict[tuple[int, str], str]:
    """By host and the beginning of the digest."""
    rows = world.database.apply(lambda conn: conn.execute(sa.select(host_image)).all())
    return {(row.host_id, row.sha256): row.state for row in rows}


# -- images


def test_instances_that_wait_for_one_image_share_one_upload(world: World) -> None:
    world.create(3)
    settle(world)
    assert world.machines[1].uploads == {world.sha256: 1}
    assert all(row.state is State.RUNNING for row in world.rows())
    sound(world)


def test_where_a_host_cannot_take_the_image_all_who_wait_go_to_another(world: World) -> None:
    world.machines[1].faults = [Fault("ensure_image", 1, FaultKind.FULL, times=9)]
    world.create(3)
    settle(world)
    assert {(row.host_id, row.state) for row in world.rows()} == {(2, State.RUNNING)}
    assert image_states(world)[1, world.sha256] == ImageState.REFUSED
    sound(world)


def test_a_broken_image_fails_at_once_says_why_and_is_tried_anew_when_asked(world: World) -> None:
    path = world.folder / "image.qcow2"
    content = path.read_bytes()
    path.write_bytes(b"something else")
    ids = world.create(2)
    settle(world)
    for id in ids:
        row = world.get(id)
        assert row.state is State.ERROR
        assert "has changed" in (row.fault or "")
        assert row.attempts == 1
    path.write_bytes(content)
    again = world.create()
    settle(world)
    assert world.get(again[0]).state is State.RUNNING
    sound(world)


def test_an_image_that_is_wanted_while_it_is_evicted_ends_on_the_host(world: World) -> None:
    world.policy = replace(world.policy, image_share=0.0)
    other = second_image(world)
    (first,) = world.create()
    settle(world)
    world.act(first, "delete")
    settle(world)

    def end(world: World) -> None:
        sound(world)
        assert all(row.state in (State.RUNNING, State.DELETED) for row in world.rows())
        states = image_states(world)
        assert states[1, other] == states[1, world.sha256] == ImageState.READY

    count = at_each_seam(
        world, lambda world: void(create_of(world, 3)), lambda world: void(world.create()), end
    )
    assert count >= 25


def test_an_evicted_image_leaves_nothing_behind(world: World) -> None:
    world.policy = replace(world.policy, image_share=0.0)
    other = second_image(world)
    (first,) = world.create()
    settle(world)
    world.act(first, "delete")
    settle(world)
    create_of(world, 3)
    settle(world)
    world._work_that_is_due(Brain(world, "evicts"))
    assert world.machines[1].images == {other}
    assert set(image_states(world)) == {(1, other)}
    sound(world)


def test_an_image_that_is_in_use_all_the_same_is_kept(world: World) -> None:
    """A disk that no row tells of, a copy that an operator made, is built on it."""
    world.policy = replace(world.policy, image_share=0.0)
    (first,) = world.create()
    settle(world)
    world.act(first, "delete")
    kept = replace(world.guest(first), power=Power.OFF)
    settle(world)
    machine = world.machines[1]
    stranger = "00000000-0000-4000-8000-00000000abcd"
    machine.guests[stranger] = replace(kept, spec=replace(kept.spec, uuid=stranger))
    other = second_image(world)
    create_of(world, 3)
    settle(world)
    assert machine.images >= {world.sha256, other}
    assert image_states(world)[1, world.sha256] == ImageState.READY
    sound(world)


def test_a_host_that_was_made_anew_is_given_its_images_again(world: World) -> None:
    world.create()
    settle(world)
    machine = world.machines[1]
    machine.power_failure()
    world.look()
    brain = Brain(world, "sees it down")
    world.drive(brain, 2.0)
    brain.close()
    machine.images.clear()
    machine.boot()
    world.look()
    settle(world)
    assert machine.images == {world.sha256}
    assert image_states(world)[1, world.sha256] == ImageState.READY
    sound(world)


# -- hosts


def test_a_host_that_is_removed_at_any_moment_leaves_no_work(world: World) -> None:
    def remove(world: World) -> None:
        def forget(conn: sa.Connection) -> None:
            if ledger.remove_host(conn, 2):
                queue.enqueue(conn, HOST_KIND, "2", lane=2)

        world.database.apply(forget)

    def end(world: World) -> None:
        settle(world)
        world._work_that_is_due(Brain(world, "last"))
        jobs = world.database.apply(lambda conn: conn.execute(
            sa.select(work.c.id).where(work.c.kind.in_([HOST_KIND, IMAGE_KIND]))
        ).scalars().all())
        assert [id for id in jobs if id.split(":")[0] == "2"] == []

    def begin(world: World) -> None:
        world.look()
        world.database.apply(lambda conn: queue.enqueue(
            conn, IMAGE_KIND, f"2:{world.sha256}", lane=2
        ))
        world.database.apply(lambda conn: ledger.want_image(conn, 2, world.sha256, 1))

    assert at_each_seam(world, begin, remove, end) >= 15


def test_what_is_left_over_is_swept_under_the_lease_of_its_host(world: World) -> None:
    (id,) = world.create()
    settle(world)
    row, machine = world.get(id), world.machines[2]
    machine.guests[row.uuid] = replace(world.guest(id), power=Power.OFF)
    leases: list[float] = []
    trap = machine.trap

    def look(when: str, verb: str, uuid: str) -> None:
        assert trap is not None
        trap(when, verb, uuid)
        if (when, verb) == ("before", "undefine"):
            until = world.database.one("SELECT lease_until FROM work WHERE kind='host' AND id='2'")
            leases.append(until - world.clock.now)

    machine.trap = look
    world.look()
    settle(world)
    assert row.uuid not in machine.guests
    assert leases
    assert min(leases) > 0
    machine.trap = trap
    sound(world)


def test_a_sweep_that_fails_is_made_again(world: World) -> None:
    (id,) = world.create()
    settle(world)
    machine = world.machines[2]
    machine.guests[world.get(id).uuid] = replace(world.guest(id), power=Power.OFF)
    machine.faults = [Fault("undefine", 1, FaultKind.REFUSE)]
    world.look()
    settle(world)
    assert machine.guests
    world.look()
    settle(world)
    assert not machine.guests


def test_an_unknown_domain_is_reported_and_left_alone(world: World) -> None:
    (id,) = world.create()
    settle(world)
    stranger = "00000000-0000-4000-8000-00000000abcd"
    spec = replace(world.guest(id).spec, uuid=stranger, seed=Seed("stranger"))
    world.machines[2].guests[stranger] = Guest(spec, power=Power.RUNNING)
    world.look()
    settle(world)
    assert world.machines[2].guests[stranger].power is Power.RUNNING
    known = world.database.apply(lambda conn: conn.execute(sa.select(orphan)).all())
    assert [(row.host_id, row.uuid, row.power) for row in known] == [(2, stranger, "running")]
    del world.machines[2].guests[stranger]
    world.look()
    settle(world)
    assert not world.database.apply(lambda conn: conn.execute(sa.select(orphan)).all())


def test_a_disk_that_may_be_the_last_copy_is_never_swept(world: World) -> None:
    """It ran once, its host lost it, it was given up; then the disk shows up after all."""
    (id,) = world.create()
    settle(world)
    row, machine = world.get(id), world.machines[1]
    kept = machine.guests.pop(row.uuid)
    world.look()
    settle(world)
    assert world.get(id).state is State.ERROR
    machine.guests[row.uuid] = replace(kept, power=Power.OFF)
    world.look()
    settle(world)
    assert row.uuid in machine.guests
    assert world.database.apply(lambda conn: conn.execute(sa.select(orphan)).all())
    world.act(id, "delete")
    settle(world)
    world.look()
    settle(world)
    assert row.uuid not in machine.guests
    sound(world)


def test_events_come_again_after_a_host_was_away_for_a_moment(world: World) -> None:
    """Between two of its passes, so that none of them saw it down."""
    (id,) = world.create()
    settle(world)
    brain = Brain(world, "brain")
    machine = world.machines[1]
    machine.power_failure()
    machine.boot()
    assert world.drive(brain)
    assert world.guest(id).power is Power.RUNNING
    before = world.clock.now
    machine.guest_powers_off(world.get(id).uuid)
    assert world.drive(brain)
    assert world.get(id).state is State.STOPPED
    assert world.clock.now - before < 1.0
    brain.close()
    sound(world)


# -- instances


def test_a_guest_that_dies_as_soon_as_it_is_started_is_not_started_in_a_loop(
    world: World,
) -> None:
    (id,) = world.create()
    settle(world)
    uuid, machine = world.get(id).uuid, world.machines[1]
    trap = machine.trap

    def dies(when: str, verb: str, of: str) -> None:
        assert trap is not None
        trap(when, verb, of)
        if (when, verb) == ("after", "start"):
            machine.guests[uuid].power = Power.OFF

    machine.trap = dies
    machine.guests[uuid].power = Power.OFF
    world.look()
    begun, started = world.clock.now, machine.starts[uuid]
    world.drive(Brain(world, "brain"), 60.0)
    assert world.clock.now - begun < 61.0
    assert machine.starts[uuid] - started <= 60.0 / NO_EFFECT_S + 2
    machine.trap = trap
    sound(world)
    assert world.get(id).state is State.RUNNING


def test_a_reboot_that_is_refused_does_not_kill_the_guest_later(world: World) -> None:
    (id,) = world.create()
    settle(world)
    world.machines[1].faults = [Fault("shut_down", 1, FaultKind.REFUSE, times=99)]
    world.act(id, "reboot")
    settle(world)
    row = world.get(id)
    assert (row.goal, row.state) == (Goal.RUNNING, State.RUNNING)
    for _ in range(3):
        world.clock.now += BUILD_S
        world.look()
        settle(world)
    assert world.machines[1].calls["power_off"] == 0
    assert world.guest(id).running_generation == 1
    world.machines[1].faults = []
    world.act(id, "reboot")
    settle(world)
    assert world.guest(id).running_generation == world.get(id).generation == 2
    sound(world)


def test_the_loss_of_one_does_not_take_its_siblings_of_long_ago(world: World) -> None:
    """All or none is a promise about the building of them, not about their lives."""
    first, second = world.create(2, rollback=True)
    settle(world)
    world.clock.now += 2 * BUILD_S
    machine = world.machines[1]
    del machine.guests[world.get(first).uuid]
    world.look()
    settle(world)
    assert (world.get(first).goal, world.get(first).state) == (Goal.FAILED, State.ERROR)
    assert world.get(second).state is State.RUNNING
    assert world.guest(second).power is Power.RUNNING
    sound(world)


def test_a_build_that_runs_when_its_controller_comes_back_late_is_kept(world: World) -> None:
    (id,) = world.create()
    brain = Brain(world, "brain")

    def cut(name: str) -> None:
        if name.startswith("after start"):
            raise KeyboardInterrupt

    world.on_seam = cut
    with pytest.raises(KeyboardInterrupt):
        world.drive(brain)
    world.on_seam = None
    brain.close()
    world.clock.now += BUILD_S + LEASE_S
    settle(world)
    assert world.get(id).state is State.RUNNING
    assert world.machines[1].starts[world.get(id).uuid] == 1
    sound(world)


def test_a_second_reboot_while_the_first_settles_is_made_as_gently(world: World) -> None:
    """At each seam of the first; the guest is never cut off."""
    (id,) = world.create()
    settle(world)

    def end(world: World) -> None:
        sound(world)
        assert world.machines[1].calls["power_off"] == 0
        assert world.get(id).generation == 3

    count = at_each_seam(
        world, lambda world: void(world.act(id, "reboot")),
        lambda world: void(world.act(id, "reboot")), end,
    )
    assert count >= 20


def test_a_delete_asked_for_twice_at_any_moment_is_one_delete(world: World) -> None:
    (id,) = world.create()
    settle(world)
    at_each_seam(
        world, lambda world: void(world.act(id, "delete")),
        lambda world: void(world.act(id, "delete")), sound,
    )
    assert not world.database.apply(
        lambda conn: conn.execute(sa.select(instance.c.id).where(instance.c.state != "deleted"))
    ).first()


def void(_value: object) -> None:
    """Drop a value."""
