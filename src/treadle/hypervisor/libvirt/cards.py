"""The network card of a guest that runs: given to it, and taken with its consent.

A card that is to go is cut off first, which takes nobody's consent: from then on nothing goes
through it, and the cut tells whoever looks next that the guest was asked to let go of it.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import libvirt

from treadle.hypervisor.base import DomainSpec, HostRefused, Power, Unsupported
from treadle.hypervisor.libvirt import domains, errors
from treadle.hypervisor.libvirt.domain_xml import Place, add_nic
from treadle.hypervisor.libvirt.domains import LIVE, Subject

LOOK_S = 0.25
ASK_AGAIN_S = 6.0
"""QEMU takes no second request for 5 s."""


def ready(it: Subject, spec: DomainSpec) -> None:
    """Errors: `HostRefused` where it does not run, or is past the spec; `Unsupported`."""
    if it.link.kind != "QEMU":
        raise Unsupported(f"guests of {it.link.kind} hosts are given no interface while they run")
    domains.expect(it, spec, Power.RUNNING, Power.PAUSED)


def give(it: Subject, spec: DomainSpec, place: Place, seconds: float) -> None:
    """Give it the card of `spec`, where it lacks it. One that it was to let go of goes first, as in
    `take`: that may go at any time. Errors: `HostRefused` where it does not."""
    there = find(it, spec.mac)
    if there is not None and not _cut(there):
        return
    if there is not None and not _lets_go(it, spec.mac, seconds):
        raise HostRefused(
            "its guest has not let go of the interface that it had before: start it anew first"
        )
    devices = ET.Element("devices")
    add_nic(devices, spec, place)
    try:
        it.attempt(it.domain.attachDeviceFlags, ET.tostring(devices[0], "unicode"), LIVE)
    except libvirt.libvirtError:
        # A call that was given up, and that libvirt has carried out all the same.
        if find(it, spec.mac) is None:
            raise


def take(it: Subject, seconds: float) -> bool:
    """Cut its card off, ask the guest to let go of it, and wait that long for it to do so, unless
    it is paused. Whether it has."""
    there = find(it, it.mark.mac)
    if there is None:
        return True
    if not _cut(there):
        for link in there.findall("link"):
            there.remove(link)
        ET.SubElement(there, "link", {"state": "down"})
        it.attempt(it.domain.updateDeviceFlags, ET.tostring(there, "unicode"), LIVE)
    return _lets_go(it, it.mark.mac, seconds)


def _lets_go(it: Subject, mac: str, seconds: float) -> bool:
    """A guest that is still booting does not hear it: it is asked more than once."""
    if domains.power(it.attempt, it.domain) is Power.PAUSED:
        seconds = 0.0
    begun, asked = time.monotonic(), -ASK_AGAIN_S
    while True:
        there = find(it, mac)
        if there is None:
            return True
        spent = time.monotonic() - begun
        if spent - asked >= ASK_AGAIN_S:
            asked = spent
            _ask(it, there)
        elif spent >= seconds:
            return False
        time.sleep(LOOK_S)


def _ask(it: Subject, card: ET.Element) -> None:
    alias = card.find("alias")
    try:
        it.attempt(it.domain.detachDeviceAlias, "" if alias is None else alias.get("name"), LIVE)
    except libvirt.libvirtError as error:
        # It may have been asked before, or have let go meanwhile.
        if errors.is_broken(error) or not it.link.alive():
            raise


def tell(it: Subject, spec: DomainSpec) -> None:
    """Write on what runs that it is as `spec` has it."""
    mark = replace(
        it.mark, generation=spec.generation, mac=spec.mac.lower(), values=spec.metadata,
        forward=it.mark.forward if spec.mac else 0,
    )
    domains.write_mark(it.attempt, it.domain, mark)
    if spec.mac and it.link.session:
        domains.forward(it)


def find(it: Subject, mac: str) -> ET.Element | None:
    """The card of what runs with this MAC address."""
    if not mac:
        return None
    text = it.attempt(it.domain.XMLDesc, 0)
    for card in ET.fromstring(text).iterfind("devices/interface"):
        found = card.find("mac")
        if found is not None and found.get("address", "").lower() == mac.lower():
            return card
    return None


def _cut(card: ET.Element) -> bool:
    link = card.find("link")
    return link is not None and link.get("state") == "down"
