"""What every hypervisor driver promises, asserted of each alike."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract.conftest import UP, World
from tests.waiting import wait_for
from treadle.errors import InvalidInput
from treadle.hypervisor.base import (
    Console,
    Domain,
    EventKind,
    GuestNode,
    HostRefused,
    HostUnreachable,
    ImageBroken,
    Power,
    Probes,
    Seed,
    StopCause,
    Unsupported,
)

HOSTILE = 'x"><disk/>&lt;]]>\' ${a} $(b) ;`c` \u202e\u00e9\U0001f9f6 --'


# -- the host


def test_facts_say_what_the_host_is(world: World) -> None:
    facts = world.driver.facts()
    assert facts.hostname
    assert facts.vcpus > 0
    assert facts.memory_mib > 256
    assert facts.disk_mib > 0
    assert facts.arch
    assert facts.virt_types
    assert {"pause", "suspend", "graceful_stop", "images"} <= facts.capabilities
    assert bool(facts.features) is ("kvm" in facts.virt_types)
    again = world.driver.facts()
    assert replace(again, load=facts.load) == facts
    if world.runs_guests:
        assert facts.load is None, "nothing to compare with yet"
        [load] = wait_for(
            lambda: [one for one in [world.driver.facts().load] if one is not None], 5,
            "its processors to spend time",
        )
        assert 0 <= load <= 1


def test_a_guest_of_nodes_is_bound_to_cells_of_the_host(world: World) -> None:
    facts = world.driver.facts()
    assert facts.cells
    assert sum(cell.vcpus for cell in facts.cells) == facts.vcpus
    assert [cell.id for cell in facts.cells] == sorted({cell.id for cell in facts.cells})
    cell = facts.cells[-1]
    assert cell.memory_mib > 128
    if world.runs_guests:
        assert sum(one.memory_mib for one in facts.cells) == facts.memory_mib
    uuid = world.new(vcpus=2, memory_mib=129, nodes=(GuestNode(cell.id, 2, 129),))
    world.driver.start(uuid)
    found = world.driver.observe(uuid)
    assert found is not None
    assert (found.power, found.changed, found.room) == (Power.RUNNING, (), None)
    if world.behind is not None:
        root = ET.fromstring(world.behind.conn.lookupByUUIDString(uuid).XMLDesc(0))
        [node], [memory] = root.iterfind("cpu/numa/cell"), root.iterfind("numatune/memory")
        assert (node.get("cpus"), node.get("memory")) == ("0-1", str(129 * 1024))
        assert (memory.get("mode"), memory.get("nodeset")) == ("strict", str(cell.id))
    if world.runs_guests:
        [process] = running_with(uuid)
        status = Path(f"/proc/{process}/status").read_text()
        allowed = next(line for line in status.splitlines() if line.startswith("Cpus_allowed_list"))
        assert allowed.split()[1] == cell.cpus
        given = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        assert f'"host-nodes":[{cell.id}],"policy":"bind"' in given
    none = max(one.id for one in facts.cells) + 1
    with pytest.raises(HostRefused, match=f"no NUMA node {none}"):
        world.new(vcpus=2, nodes=(GuestNode(cell.id, 1, 64), GuestNode(none, 1, 64)))
    if len(facts.cells) > 1:
        both = (GuestNode(facts.cells[1].id, 1, 64), GuestNode(facts.cells[0].id, 2, 65))
        wide = world.new(vcpus=3, memory_mib=129, nodes=both)
        world.driver.start(wide)
        assert world.power(wide) is Power.RUNNING
        world.driver.undefine(wide)
    world.driver.undefine(uuid)


def running_with(uuid: str) -> list[int]:
    """The processes that name the UUID in how they were started, but for their helpers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"qemu" in words[0] and any(uuid.encode() in word for word in words):
                found.append(int(path.parent.name))
    return found


def test_memory_is_all_that_the_kernel_has(world: World) -> None:
    if not world.runs_guests:
        pytest.skip("only a real host has a kernel")
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) // 1024
    assert abs(world.driver.facts().memory_mib - total) <= 1


def test_preparing_twice_is_preparing_once(world: World) -> None:
    world.driver.prepare(world.setup)
    again = world.make()
    again.prepare(world.setup)
    again.close()


def test_a_verb_prepares_a_host_that_nobody_has(world: World) -> None:
    """Of another process, which found the host good before."""
    known = None
    late = world.make()
    late.assume(lambda: known)
    known = world.setup
    try:
        assert late.observe(str(uuid4())) is None
        found = late.facts()
        assert replace(found, load=None) == replace(world.driver.facts(), load=None)
        spec = world.spec(str(uuid4()))
        late.ensure_image(world.image, world.content)
        late.define(spec)
        if world.behind is not None:
            mine = world.spec(str(uuid4()))
            world.driver.define(mine)
            for one in (spec.uuid, mine.uuid):
                root = ET.fromstring(world.behind.conn.lookupByUUIDString(one).XMLDesc(0))
                assert root.get("type") == world.setup.virt_type
            world.driver.undefine(mine.uuid)
        late.undefine(spec.uuid)
    finally:
        late.close()


def test_what_a_driver_cannot_do_it_says_and_refuses(world: World) -> None:
    capabilities = world.driver.facts().capabilities
    uuid = world.new()
    if "console" in capabilities:
        assert isinstance(world.driver, Console)
    elif isinstance(world.driver, Console):
        with pytest.raises(Unsupported):
            world.driver.console_log(uuid, 100)
    if "probe" not in capabilities and isinstance(world.driver, Probes):
        with pytest.raises(Unsupported):
            world.driver.probe("qemu", 1)


# -- images


def test_an_image_is_ensured_once(world: World) -> None:
    world.driver.ensure_image(world.image, world.content)
    world.driver.ensure_image(world.image, Path("/nonexistent"))


def test_an_image_that_vanished_is_broken(world: World) -> None:
    image = replace(world.image, sha256="0" * 64)
    with pytest.raises(ImageBroken):
        world.driver.ensure_image(image, Path("/nonexistent/image"))


def test_an_image_of_another_hash_is_broken_and_left_nowhere(world: World) -> None:
    image = replace(world.image, sha256="1" * 64)
    with pytest.raises(ImageBroken):
        world.driver.ensure_image(image, world.content)
    with pytest.raises(HostRefused):
        world.driver.define(world.spec(str(uuid4()), image=image))


def test_an_image_of_another_size_is_broken(world: World, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(world.content.read_bytes()[:-1])
    with pytest.raises(ImageBroken):
        world.driver.ensure_image(replace(world.image, sha256="2" * 64), short)


def test_an_image_that_was_removed_can_be_ensured_again(world: World) -> None:
    world.driver.ensure_image(world.image, world.content)
    world.driver.remove_image(world.image.sha256)
    world.driver.remove_image(world.image.sha256)
    with pytest.raises(HostRefused):
        world.driver.define(world.spec(str(uuid4())))
    world.driver.ensure_image(world.image, world.content)


def test_an_image_that_a_disk_is_built_on_is_not_removed(world: World) -> None:
    spec = world.spec(str(uuid4()))
    world.driver.ensure_image(world.image, world.content)
    world.driver.define(spec)
    with pytest.raises(HostRefused, match="in use"):
        world.driver.remove_image(world.image.sha256)
    world.driver.start(spec.uuid)
    world.driver.undefine(spec.uuid)
    world.driver.remove_image(world.image.sha256)
    with pytest.raises(HostRefused):
        world.driver.define(world.spec(str(uuid4())))
    world.driver.ensure_image(world.image, world.content)


def test_a_half_copied_image_is_not_used_and_is_replaced(world: World) -> None:
    if world.name == "fake":
        pytest.skip("the simulated host copies in one step")
    world.driver.ensure_image(world.image, world.content)
    assert world.behind is not None
    world.behind.pool().storageVolLookupByName(f"image-{world.image.sha256}.ok").delete(0)
    with pytest.raises(HostRefused):
        world.driver.define(world.spec(str(uuid4())))
    world.driver.ensure_image(world.image, world.content)
    assert world.power(world.new()) is Power.OFF


# -- one instance


def test_what_is_not_there_is_none(world: World) -> None:
    uuid = str(uuid4())
    assert world.driver.observe(uuid) is None
    for verb in (world.driver.start, world.driver.pause, world.driver.resume,
                 world.driver.suspend, world.driver.shut_down):
        with pytest.raises(HostRefused):
            verb(uuid)
    world.driver.power_off(uuid)
    world.driver.undefine(uuid)


def test_what_is_defined_is_off(world: World) -> None:
    uuid = world.new(3)
    found = world.driver.observe(uuid)
    assert found is not None
    assert (found.uuid, found.power, found.generation) == (uuid, Power.OFF, 3)
    assert found.cause in (StopCause.NONE, StopCause.UNKNOWN)
    assert found.addresses == ()


def test_every_verb_may_be_said_twice(world: World) -> None:
    uuid = world.new()
    world.driver.define(world.spec(uuid))
    for verb, power in (
        (world.driver.start, Power.RUNNING), (world.driver.pause, Power.PAUSED),
        (world.driver.resume, Power.RUNNING), (world.driver.suspend, Power.SAVED),
        (world.driver.start, Power.RUNNING), (world.driver.power_off, Power.OFF),
    ):
        verb(uuid)
        verb(uuid)
        assert world.power(uuid) is power
    world.driver.shut_down(uuid)
    world.driver.undefine(uuid)
    world.driver.undefine(uuid)
    assert world.driver.observe(uuid) is None
    assert world.leftovers(uuid) == []


def test_a_restart_ends_what_is_older_and_runs_the_new(world: World) -> None:
    driver, uuid = world.driver, str(uuid4())
    with pytest.raises(HostRefused):
        driver.restart(world.spec(uuid))
    uuid = world.new()
    for generation, verb in enumerate(
        (lambda _uuid: None, driver.pause, driver.suspend, driver.power_off), 2
    ):
        driver.start(uuid)
        verb(uuid)
        driver.restart(world.spec(uuid, generation))
        found = driver.observe(uuid)
        assert found is not None
        assert found.power is Power.RUNNING
        assert (found.generation, found.stored, found.autostart) == (generation, generation, True)
    driver.pause(uuid)
    driver.restart(world.spec(uuid, generation))
    assert world.power(uuid) is Power.PAUSED, "what is of this generation is not started anew"
    driver.power_off(uuid)
    driver.restart(world.spec(uuid, generation))
    assert world.power(uuid) is Power.RUNNING
    assert [one.uuid for one in driver.observe_all() if one.autostart] == [uuid]


def test_power_off_forces_and_throws_saved_memory_away(world: World) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    world.driver.power_off(uuid)
    off = Domain(uuid, Power.OFF, 1, StopCause.FORCED, autostart=False)
    assert world.driver.observe(uuid) == off
    world.driver.start(uuid)
    world.driver.suspend(uuid)
    world.driver.power_off(uuid)
    off = Domain(uuid, Power.OFF, 1, StopCause.FORCED, autostart=False)
    assert world.driver.observe(uuid) == off


def test_a_paused_guest_that_was_suspended_runs_when_it_is_started(world: World) -> None:
    uuid = world.new()
    world.driver.start(uuid)
    world.driver.pause(uuid)
    world.driver.start(uuid)
    assert world.power(uuid) is Power.PAUSED
    world.driver.suspend(uuid)
    world.driver.start(uuid)
    assert world.power(uuid) is Power.RUNNING


def test_what_does_not_fit_the_state_is_refused(world: World) -> None:
    uuid = world.new()
    for verb in (world.driver.pause, world.driver.resume, world.driver.suspend):
        with pytest.raises(HostRefused):
            verb(uuid)


def test_the_generation_is_of_what_runs(world: World) -> None:
    uuid = world.new(1)
    world.driver.start(uuid)
    world.driver.define(world.spec(uuid, 2))
    running = world.driver.observe(uuid)
    assert running is not None
    assert (running.power, running.generation) == (Power.RUNNING, 1)
    assert [one.generation for one in world.driver.observe_all()] == [1]
    world.driver.suspend(uuid)
    world.driver.start(uuid)
    restored = world.driver.observe(uuid)
    assert restored is not None
    if world.name != "libvirt-test":  # libvirt's own restores the stored definition
        assert restored.generation == 1
    world.driver.power_off(uuid)
    off = world.driver.observe(uuid)
    assert off is not None
    assert off.generation == 2
    world.driver.start(uuid)
    anew = world.driver.observe(uuid)
    assert anew is not None
    assert anew.generation == 2


def test_a_domain_of_another_is_neither_named_nor_touched(world: World) -> None:
    uuid = str(uuid4())
    world.driver.ensure_image(world.image, world.content)
    world.add_foreign(uuid)
    driver = world.driver
    assert driver.observe(uuid) is None
    assert uuid not in {domain.uuid for domain in driver.observe_all()}
    for act in (driver.start, driver.pause, driver.resume, driver.suspend, driver.shut_down,
                driver.power_off, driver.undefine):
        with pytest.raises(HostRefused):
            act(uuid)
    with pytest.raises(HostRefused):
        driver.define(world.spec(uuid))
    assert world.foreign_is_as_it_was(uuid)


def test_a_lost_definition_leaves_a_remnant_and_its_disk(world: World) -> None:
    uuid = world.new()
    world.remove_domain(uuid)
    assert world.driver.observe(uuid) == Domain(uuid, Power.REMNANT)
    assert Domain(uuid, Power.REMNANT) in world.driver.observe_all()
    world.driver.define(world.spec(uuid, 5))
    found = world.driver.observe(uuid)
    assert found is not None
    assert (found.power, found.generation) == (Power.OFF, 5)
    world.remove_domain(uuid)
    world.driver.undefine(uuid)
    assert world.driver.observe(uuid) is None
    assert world.leftovers(uuid) == []


def test_a_definition_that_somebody_changed_is_seen_and_put_back(world: World) -> None:
    driver, uuid = world.driver, world.new()
    driver.start(uuid)
    before = driver.observe(uuid)
    assert before is not None
    assert before.changed == ()
    world.change_domain(uuid)
    found = driver.observe_all()
    assert [one.changed for one in found] == [("memory", "disks")]
    assert driver.observe(uuid) == found[0]
    driver.define(world.spec(uuid))
    assert driver.observe_all() == [before]
    assert driver.observe(uuid) == before


def gone_in(found: Domain | None) -> Domain | None:
    """The domain where its definition is gone."""
    return found if found is not None and not found.defined else None


def test_what_runs_undefined_is_seen_and_can_be_defined_again(world: World) -> None:
    driver, uuid = world.driver, world.new()
    driver.start(uuid)
    world.forget_domain(uuid)
    found = wait_for(lambda: gone_in(driver.observe(uuid)), 5, "its event to come")
    assert (found.power, found.generation, found.defined) == (Power.RUNNING, 1, False)
    assert driver.observe_all() == [found]
    with pytest.raises(HostRefused, match="definition is gone"):
        driver.autostart(uuid, True)
    driver.define(world.spec(uuid))
    driver.autostart(uuid, True)
    found = driver.observe(uuid)
    assert found is not None
    assert (found.power, found.defined, found.autostart) == (Power.RUNNING, True, True)
    world.forget_domain(uuid)
    driver.power_off(uuid)
    assert world.power(uuid) is Power.REMNANT


def test_all_are_seen_at_once(world: World) -> None:
    running, off, saved = world.new(), world.new(), world.new()
    world.driver.start(running)
    world.driver.start(saved)
    world.driver.suspend(saved)
    found = {domain.uuid: domain for domain in world.driver.observe_all()}
    assert {uuid: one.power for uuid, one in found.items()} == {
        running: Power.RUNNING, off: Power.OFF, saved: Power.SAVED,
    }
    for uuid, domain in found.items():
        assert world.driver.observe(uuid) == domain


def test_hostile_words_stay_words(world: World) -> None:
    seed = Seed("web-1", f"#cloud-config\n{HOSTILE}", (HOSTILE, "ssh-ed25519 AAAA a\nb: c"))
    uuid = world.new(name=HOSTILE, metadata={HOSTILE: HOSTILE, "": ""}, seed=seed)
    world.driver.start(uuid)
    assert world.power(uuid) is Power.RUNNING


@pytest.mark.parametrize("uuid", ["", "../../etc/passwd", "x" * 36])
def test_a_uuid_that_is_none_never_finds_anything(world: World, uuid: str) -> None:
    if world.name == "fake":
        pytest.skip("the simulated host has no names of files")
    with pytest.raises(InvalidInput):
        world.driver.observe(uuid)
    with pytest.raises(InvalidInput):
        world.driver.undefine(uuid)


def test_two_drivers_see_one_host(world: World) -> None:
    uuid = world.new()
    other = world.make()
    other.prepare(world.setup)
    other.start(uuid)
    assert world.power(uuid) is Power.RUNNING
    world.driver.undefine(uuid)
    assert other.observe(uuid) is None
    other.close()


def test_many_at_once_leave_nothing(world: World) -> None:
    driver = world.driver
    driver.ensure_image(world.image, world.content)
    failed: list[BaseException] = []
    uuids = [str(uuid4()) for _ in range(24)]

    def live(mine: list[str]) -> None:
        try:
            for uuid in mine:
                driver.define(world.spec(uuid))
                assert world.power(uuid) is Power.OFF
                driver.undefine(uuid)
                assert driver.observe(uuid) is None
        except (AssertionError, HostRefused, HostUnreachable) as error:
            failed.append(error)

    threads = [threading.Thread(target=live, args=(uuids[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert [name for uuid in uuids for name in world.leftovers(uuid)] == []


def test_changes_are_told(world: World) -> None:
    told: list[tuple[EventKind, str]] = []
    seen = threading.Event()
    uuid = ""

    def watcher(kind: EventKind, about: str) -> None:
        told.append((kind, about))
        if about == uuid:
            seen.set()

    world.driver.watch(watcher)
    uuid = world.new()
    for verb in (world.driver.start, world.driver.power_off):
        seen.clear()
        verb(uuid)
        assert seen.wait(10)
    assert (EventKind.DOMAIN, uuid) in told
    assert EventKind.HOST_LOST not in {kind for kind, _ in told}


def test_a_guest_lives_through_it_all(world: World) -> None:
    """Boot, read the console, save and restore, and ask it to stop: on a real host, once."""
    driver = world.driver
    uuid = world.new(system=True)
    driver.start(uuid)
    if isinstance(driver, Console) and "console" in driver.facts().capabilities:
        console = driver
        wait_for(lambda: UP in console.console_log(uuid, 1 << 16), 90, "the guest to be up")
        whole = console.console_log(uuid, 1 << 20)
        assert b"hostname=web-1" in whole
    found = driver.observe(uuid)
    assert found is not None
    if "network" in driver.facts().capabilities and world.name != "libvirt-test":
        assert len(found.addresses) == 1
    driver.suspend(uuid)
    if world.runs_guests:
        assert isinstance(driver, Console)
        whole = driver.console_log(uuid, 1 << 20)
        assert driver.console_log(uuid, 10) == whole[-10:], "the end, while nothing is added"
    driver.start(uuid)
    if world.runs_guests:
        assert isinstance(driver, Console)
        assert UP in driver.console_log(uuid, 1 << 20), "a restored guest keeps its log"
    driver.shut_down(uuid)
    wait_for(lambda: world.power(uuid) is Power.OFF, 30, "the guest to stop")
    found = driver.observe(uuid)
    assert found is not None
    assert found.cause is StopCause.GUEST


def test_defining_again_keeps_the_disk(world: World) -> None:
    if not world.runs_guests:
        pytest.skip("only a real host has bytes on its disks")
    uuid = world.new()
    assert world.behind is not None
    conn = world.behind.conn
    volume = world.behind.pool().storageVolLookupByName(f"{uuid}.qcow2")
    marked = b"what the guest wrote"
    stream = conn.newStream(0)
    volume.upload(stream, 190 << 10, len(marked), 0)
    stream.send(marked)
    stream.finish()
    world.driver.define(world.spec(uuid, 2, disk_gib=2, name="other"))
    read: list[bytes] = []
    stream = conn.newStream(0)
    volume.download(stream, 190 << 10, len(marked), 0)
    stream.recvAll(lambda _stream, data, into: into.append(data), read)
    stream.finish()
    assert b"".join(read) == marked


def test_a_probe_tells_what_boots(world: World) -> None:
    if not world.runs_guests:
        pytest.skip("only a real host boots a probe")
    assert isinstance(world.driver, Probes)
    assert world.driver.probe("qemu", 20.0)
    assert world.behind is not None
    assert not [d.name() for d in world.behind.conn.listAllDomains(0) if "probe" in d.name()]
    assert not [name for name in world.behind.volumes() if "probe" in name]
