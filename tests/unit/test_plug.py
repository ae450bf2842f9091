"""When a guest is given its network card as it is, or has it taken."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from lxml import etree
from tests.unit.test_domain_xml import PLACES, SCHEMAS, spec

from treadle.compute import changes, lifecycle, outcomes
from treadle.compute.lifecycle import Action, Adopt, Call, Context, Settle
from treadle.compute.model import Goal, Instance, Mode, Phase, State
from treadle.compute.store import Loaded, compact
from treadle.hypervisor.base import Domain, ImageSpec, Power, StopCause
from treadle.hypervisor.libvirt import capabilities, shape
from treadle.hypervisor.libvirt.containers import container_xml
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, Mark, domain_xml

MAC = "02:55:55:55:55:55"
BEFORE = compact({"networked": False, "mac": "", "address": None})
ROW = Instance(
    id=1, uuid="11111111-2222-4333-8444-555555555555", name="vm", flavor_id=2, vcpus=2,
    memory_mib=512, disk_gib=1, image_id=1, mac=MAC, user_data="", ssh_keys=(), goal=Goal.RUNNING,
    state=State.RUNNING, phase=Phase.DEFINED, revision=2, generation=5, settled_generation=4,
    graceful=True, deadline=100.0, attempts=1, excluded=frozenset(), batch="b", rollback=False,
    host_id=7, address=None, fault=None, created_at=0.0, launched_at=1.0, deleted_at=None,
    before=BEFORE,
)
SEEN = Domain(ROW.uuid, Power.RUNNING, 4, autostart=True)


def of(goal: Goal, state: State) -> Instance:
    return replace(ROW, goal=goal, state=state)


PAUSED, STOPPED = of(Goal.PAUSED, State.PAUSED), of(Goal.STOPPED, State.STOPPED)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
@pytest.mark.parametrize(("row", "power", "answer"), [
    (ROW, Power.RUNNING, "plug"), (PAUSED, Power.PAUSED, "plug"), (STOPPED, Power.OFF, "define"),
    (ROW, Power.PAUSED, "resume"), (PAUSED, Power.RUNNING, "pause"), (ROW, Power.SAVED, "start"),
    (ROW, Power.OFF, "define"),
], ids=lambda one: str(one) if isinstance(one, str) else "")
def test_nothing_is_started_anew_for_it(
    row: Instance, power: Power, answer: str, late: bool
) -> None:
    """And no time makes it so: it is not the guest that is waited for."""
    seen = replace(SEEN, power=power, autostart=None)
    assert lifecycle.plan(row, seen, Context(late=late)) == Call(answer)
    done = replace(seen, generation=5)
    if power is lifecycle.POWER_OF[row.goal]:
        assert lifecycle.plan(row, done, Context(late=late)) == Settle(row.state)


@pytest.mark.parametrize(("row", "seen"), [
    (replace(ROW, before=""), SEEN),
    (replace(ROW, mode=Mode.RESCUED), SEEN), (ROW, replace(SEEN, generation=3)),
    (replace(ROW, before=compact({**json.loads(BEFORE), "image_id": 1})), SEEN),
], ids=["nothing", "rescue", "older", "rebuild"])
def test_what_is_wished_besides_starts_it_anew(row: Instance, seen: Domain) -> None:
    assert lifecycle.plan(row, seen, Context()) == Call("shut_down")


def test_a_guest_that_shut_itself_down_meanwhile_stays_off() -> None:
    """Its definition has the card by then."""
    seen = replace(SEEN, power=Power.OFF, cause=StopCause.GUEST, autostart=None)
    assert lifecycle.plan(ROW, seen, Context()) == Call("define")
    found: Action = lifecycle.plan(ROW, replace(seen, generation=5), Context())
    assert found == Adopt(State.STOPPED, "the guest shut itself down")


def test_a_wish_says_what_it_replaces() -> None:
    was = replace(ROW, mac="", generation=4, before="")
    for made, mac in ((changes.attached(was, MAC), MAC), (changes.detached(replace(was, mac=MAC)),
                                                          "")):
        names = made[changes.KEEP]
        row = replace(
            was, mac=made["mac"], generation=made["generation"],
            before=compact(dict.fromkeys(names)),
        )
        assert changes.plugged(row)
        assert (row.mac, made["networked"]) == (mac, bool(mac))
        assert set(changes.undone(row)) == {"mode", "before", *names}
    assert not changes.plugged(was)


def test_an_address_is_looked_for_after_it_too() -> None:
    image = ImageSpec("ab" * 32, "qcow2", 1, 1)
    old = replace(ROW, launched_at=-10_000.0, deadline=outcomes.ADDRESS_PATIENCE_S)

    def after(row: Instance, now: float) -> float:
        loaded = Loaded(row, image, None, None, None, None, None, now)
        return outcomes.look_again(loaded, State.RUNNING, {})

    assert after(old, 1.0) == outcomes.ADDRESS_POLL_S
    assert after(old, 80.0) == 10.0
    assert after(old, outcomes.ADDRESS_PATIENCE_S) == outcomes.FAR_S
    for settled in (replace(old, mac=""), replace(old, address="10.0.0.9")):
        assert after(settled, 1.0) == outcomes.FAR_S


@pytest.mark.parametrize("place", ["emulated", "kvm", "rootless", "bridge", "arm", "test"])
def test_a_definition_without_a_card_is_valid(place: str) -> None:
    text = domain_xml(spec(mac=""), PLACES[place], Mark(7))
    schema = etree.RelaxNG(etree.parse(str(SCHEMAS / "domain.rng")))
    assert schema.validate(etree.fromstring(text.encode())), schema.error_log
    assert ET.fromstring(text).find("devices/interface") is None
    mark = f"{{{NAMESPACE}}}instance"
    assert not shape.changed(text, mark)
    other = ET.fromstring(domain_xml(spec(), PLACES[place], Mark(7)))
    card = other.find("devices/interface")
    assert card is not None
    changed = ET.fromstring(text)
    devices = changed.find("devices")
    assert devices is not None
    devices.append(card)
    assert shape.changed(ET.tostring(changed, "unicode"), mark) == ("cards",)


def test_a_container_may_be_without_one_and_is_not_given_it_while_it_runs() -> None:
    place = replace(PLACES["emulated"], virt_type="lxc", machine="")
    root = ET.fromstring(container_xml(spec(mac=""), place, Mark(7)))
    assert root.find("devices/interface") is None
    assert root.find("features/privnet") is not None, "else it would have the host's"
    assert "plug" not in capabilities.of_kind("LXC", session=False, filtered=False)
    assert "plug" in capabilities.of_kind("QEMU", session=False, filtered=False)
