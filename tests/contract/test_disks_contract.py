"""The volumes of an instance, the copies of its disk, and what starts with its host: of each driver
alike."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.contract.conftest import World
from treadle.hypervisor.base import (
    NOT_BY_HOST,
    Beats,
    HostRefused,
    ImageSpec,
    Power,
    Snapshots,
    Unsupported,
)


def disks(world: World, uuid: str) -> set[str]:
    """Names of the volumes with data, without the UUID; nothing of the simulated host's."""
    if world.behind is None:
        return set()
    mine = [name for name in world.behind.volumes() if name.startswith(uuid)]
    return {name.removeprefix(uuid) for name in mine if name.endswith(".qcow2")}


def second_image(world: World, folder: Path) -> ImageSpec:
    """Another image that nothing boots from, on the host."""
    import hashlib
    import os

    content = folder / "second.raw"
    content.write_bytes(os.urandom(1 << 20))
    sha256 = hashlib.sha256(content.read_bytes()).hexdigest()
    image = ImageSpec(sha256, "raw", 1 << 20, 1 << 20)
    world.driver.ensure_image(image, content)
    return image


# -- volumes


def test_a_new_number_is_a_new_disk_and_the_old_one_goes(world: World) -> None:
    uuid = world.new()
    world.driver.define(world.spec(uuid, 2, disks=(2,)))
    world.driver.define(world.spec(uuid, 2, disks=(2,)))
    if world.behind is not None:
        assert disks(world, uuid) == {".2.qcow2"}
    world.driver.start(uuid)
    assert world.power(uuid) is Power.RUNNING
    world.driver.undefine(uuid)
    assert world.driver.observe(uuid) is None
    assert world.leftovers(uuid) == []


def test_a_larger_disk_lies_over_the_old_one_and_can_be_taken_off_again(world: World) -> None:
    uuid = world.new()
    world.driver.define(world.spec(uuid, 2, disks=(2, 1), disk_gib=2))
    if world.behind is not None:
        assert disks(world, uuid) == {".2.qcow2", ".qcow2"}
        large = world.behind.pool().storageVolLookupByName(f"{uuid}.2.qcow2")
        assert large.info()[1] == 2 << 30
    world.driver.start(uuid)
    world.driver.power_off(uuid)
    world.driver.define(world.spec(uuid, 3, disks=(1,), disk_gib=1))
    if world.behind is not None:
        assert disks(world, uuid) == {".qcow2"}
    world.driver.start(uuid)
    assert world.power(uuid) is Power.RUNNING


def test_what_runs_loses_no_disk_to_a_new_definition(world: World) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    world.driver.define(world.spec(uuid, 2, disks=(2,)))
    if world.behind is not None:
        assert disks(world, uuid) == {".qcow2", ".2.qcow2"}
    assert world.power(uuid) is Power.RUNNING


def test_a_disk_whose_ground_is_gone_is_not_made_up(world: World) -> None:
    uuid = str(uuid4())
    world.driver.ensure_image(world.image, world.content)
    with pytest.raises(HostRefused, match="gone"):
        world.driver.define(world.spec(uuid, 2, disks=(2, 1)))


def test_a_lost_definition_of_a_later_disk_is_a_remnant(world: World) -> None:
    uuid = world.new()
    world.driver.define(world.spec(uuid, 2, disks=(2,)))
    world.remove_domain(uuid)
    assert world.power(uuid) is Power.REMNANT
    assert [one.power for one in world.driver.observe_all() if one.uuid == uuid] == [
        Power.REMNANT
    ]


def test_a_rescue_disk_comes_and_goes_with_the_definition(world: World, tmp_path: Path) -> None:
    uuid = world.new()
    rescue = second_image(world, tmp_path)
    world.driver.define(world.spec(uuid, 2, rescue=rescue))
    if world.behind is not None:
        assert disks(world, uuid) == {".qcow2", f".rescue-{rescue.sha256[:16]}.qcow2"}
    with pytest.raises(HostRefused, match="in use"):
        world.driver.remove_image(rescue.sha256)
    world.driver.start(uuid)
    world.driver.power_off(uuid)
    world.driver.define(world.spec(uuid, 3))
    if world.behind is not None:
        assert disks(world, uuid) == {".qcow2"}
    world.driver.remove_image(rescue.sha256)
    world.driver.start(uuid)
    assert world.power(uuid) is Power.RUNNING


def test_a_rescue_image_that_is_not_there_is_refused_and_changes_nothing(world: World) -> None:
    uuid = world.new()
    with pytest.raises(HostRefused):
        world.driver.define(world.spec(uuid, 2, rescue=ImageSpec("3" * 64, "raw", 10, 10)))
    found = world.driver.observe(uuid)
    assert found is not None
    assert found.generation == 1


# -- what starts with the host


def test_what_shall_run_starts_with_its_host_and_nothing_else(world: World) -> None:
    driver = world.driver
    uuid = world.new()

    def starts() -> bool | None:
        found = driver.observe(uuid)
        assert found is not None
        assert found in driver.observe_all()
        return found.autostart

    assert starts() is False
    for verb, wanted in (
        (driver.start, True), (driver.pause, False), (driver.resume, True),
        (driver.suspend, False), (driver.start, True), (driver.shut_down, False),
        (driver.start, None), (driver.power_off, False),
    ):
        verb(uuid)
        if wanted is not None:
            assert starts() is wanted, verb
    driver.autostart(uuid, True)
    driver.autostart(uuid, True)
    assert starts() is True
    driver.define(world.spec(uuid, 2))
    assert starts() is True
    driver.autostart(uuid, False)
    assert starts() is False
    with pytest.raises(HostRefused):
        driver.autostart(str(uuid4()), True)


def test_what_may_run_elsewhere_by_then_is_not_started_with_its_host(world: World) -> None:
    driver = world.driver
    uuid = world.new(metadata={NOT_BY_HOST: "evacuate"})
    for verb in (driver.start, driver.pause, driver.resume):
        verb(uuid)
        found = driver.observe(uuid)
        assert found is not None
        assert found.autostart is False, verb
    driver.autostart(uuid, True)
    found = driver.observe(uuid)
    assert found is not None
    assert found.autostart is True


def test_a_host_gives_a_sign_of_life_over_the_connection_that_is_open(world: World) -> None:
    driver = world.driver
    assert isinstance(driver, Beats)
    world.new()
    assert driver.beat(10.0) is True


# -- copies


def fetched(driver: Any, uuid: str, into: Path) -> Path:
    with into.open("wb") as file:
        driver.fetch_copy(uuid, lambda block: file.write(block) and None)
    return into


def copied(world: World, uuid: str) -> bool:
    return next(one.copied for one in world.driver.observe_all() if one.uuid == uuid)


def test_a_disk_is_copied_whether_it_runs_or_not(world: World, tmp_path: Path) -> None:
    driver = world.driver
    uuid = world.new()
    if "snapshot" not in driver.facts().capabilities:
        assert isinstance(driver, Snapshots)
        with pytest.raises(Unsupported):
            driver.begin_copy(uuid)
        return
    assert isinstance(driver, Snapshots)
    for state in (driver.power_off, driver.start, driver.pause, driver.suspend):
        state(uuid)
        driver.begin_copy(uuid)
        driver.begin_copy(uuid)
        copy = fetched(driver, uuid, tmp_path / "copy")
        assert copied(world, uuid)
        assert copy.stat().st_size > 0
        if world.runs_guests:
            told = subprocess.run(
                ["qemu-img", "info", "--output=json", copy], capture_output=True, text=True,
                check=True,
            ).stdout
            assert "backing" not in told
            assert '"virtual-size": 1073741824' in told
        driver.drop_copy(uuid)
        driver.drop_copy(uuid)
        assert not copied(world, uuid)
    driver.start(uuid)
    with pytest.raises(HostRefused):
        fetched(driver, uuid, tmp_path / "copy")
    driver.begin_copy(uuid)
    driver.undefine(uuid)
    assert world.leftovers(uuid) == []
