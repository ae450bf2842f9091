"""What a verb asks a host for. Each call waits for its answer: on the way through ssh 0.6 ms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import libvirt
import pytest

from tests.contract.conftest import World
from tests.waiting import wait_for
from treadle.hypervisor.libvirt import connection

ASKS_NOBODY = ("newStream", "send")
#: On whether the guest has its address, and the event of the definition has come.
DEPENDS = ("DHCPLeases", "metadata")


@pytest.fixture
def calls(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The names of libvirt's functions that something calls."""
    if world.name == "fake":
        pytest.skip("the simulated host is called once a verb")
    made: list[str] = []
    whole = connection.Attempt.__call__

    def noted(self: connection.Attempt, function: Any, *arguments: Any) -> Any:
        made.append(function.__name__)
        return whole(self, function, *arguments)

    monkeypatch.setattr(connection.Attempt, "__call__", noted)

    def of(what: Callable[..., object], *arguments: object) -> list[str]:
        made.clear()
        what(*arguments)
        return [name for name in made if name not in ASKS_NOBODY and name not in DEPENDS]

    return of


def test_what_is_known_is_not_asked_for_again(
    world: World, calls: Callable[..., list[str]]
) -> None:
    driver, uuid = world.driver, world.new()
    driver.start(uuid)
    # The events of both come when they come.
    wait_for(lambda: calls(driver.observe, uuid) == ["state"], 5, "it to be known")
    assert calls(driver.pause, uuid) == ["suspend", "setAutostart"]
    assert calls(driver.observe, uuid) == ["state"]
    assert calls(driver.resume, uuid) == ["resume", "setAutostart"]
    assert calls(driver.observe, uuid) == ["state"]
    found = driver.observe(uuid)
    assert found in driver.observe_all()


def test_a_new_instance_takes_few_calls(world: World, calls: Callable[..., list[str]]) -> None:
    driver = world.driver
    driver.ensure_image(world.image, world.content)
    driver.define(world.spec(str(uuid4())))  # what is learnt once
    uuid = str(uuid4())
    assert calls(driver.observe, uuid) == ["lookupByUUIDString", "listAllVolumes"]
    seed = ["createXML", "upload", "finish"] if world.name == "lab-qemu" else ["createXML"]
    assert calls(driver.define, world.spec(uuid)) == [
        "lookupByUUIDString", "storageVolLookupByName", "createXML", *seed, "defineXMLFlags",
    ]
    assert calls(driver.observe, uuid) == ["state", "hasManagedSaveImage"]
    log = ["createXML"] if world.name == "lab-qemu" else []
    assert calls(driver.start, uuid) == [
        "state", "hasManagedSaveImage", *log, "create", "setAutostart",
    ]


def test_each_form_of_definition_is_checked_against_the_schema_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.name == "fake":
        pytest.skip("the simulated host has no definitions")
    checked: list[bool] = []
    whole = connection.Attempt.__call__

    def noted(self: connection.Attempt, function: Any, *arguments: Any) -> Any:
        if function.__name__ == "defineXMLFlags":
            checked.append(bool(arguments[1] & libvirt.VIR_DOMAIN_DEFINE_VALIDATE))
        return whole(self, function, *arguments)

    driver = world.driver
    driver.ensure_image(world.image, world.content)
    driver.close()  # what one connection was told is not known of the next
    monkeypatch.setattr(connection.Attempt, "__call__", noted)
    for mac in ("52:54:00:00:00:01", "52:54:00:00:00:02", "", ""):
        driver.define(replace(world.spec(str(uuid4())), mac=mac))
    assert checked == [True, False, True, False]


def test_a_hard_reboot_takes_few_calls(world: World, calls: Callable[..., list[str]]) -> None:
    driver, uuid = world.driver, world.new()
    driver.start(uuid)
    # The event of the start comes when it comes.
    wait_for(lambda: calls(driver.observe, uuid) == ["state"], 5, "it to be known")
    of_qemu = world.name == "lab-qemu"
    log = ["storageVolLookupByName", "delete", "createXML"] if of_qemu else []
    assert calls(driver.restart, world.spec(uuid, generation=2)) == [
        "destroy", "hasManagedSaveImage",
        "state", "hasManagedSaveImage", "storageVolLookupByName", "defineXMLFlags",
        "listAllVolumes",
        *log, "create",
    ]
    found = driver.observe(uuid)
    assert found is not None
    assert (found.generation, found.stored, found.changed) == (2, 2, ())
    wait_for(lambda: found in driver.observe_all(), 5, "both looks to say the same")
