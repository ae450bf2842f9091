"""The network card of a guest that runs: given to it, and taken with its consent.

A card that is to go is cut off first, which takes nobody's consent: from then on nothing goes
through it, and the cut tells whoever looks next that the guest was asked to let go of it.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import libvirt

from treadle.hypervisor.base import DomainSpec, HostRefused, Power
from treadle.hypervisor.libvirt import domains, errors
from treadle.hypervisor.libvirt.connection import Attempt
from treadle.hypervisor.libvirt.domain_xml import Place, add_nic
from treadle.hypervisor.libvirt.domains import LIVE, Subject

LOOK_S = 0.25


def ready(it: Subject, spec: DomainSpec) -> None:
    """Errors: `HostRefused` where it does not run, or is past the spec."""
    if domains.power(it.attempt, it.domain) not in (Power.RUNNING, Power.PAUSED):
        raise HostRefused("it does not run")
    if it.mark.generation > spec.generation:
        raise HostRefused("it was started anew since")


def give(it: Subject, spec: DomainSpec, place: Place) -> None:
    """Give it the card of `spec`, where it lacks it. Errors: `HostRefused` where it is still to let
    go of the one it had, which may go at any time."""
    there = find(it.attempt, it.domain, spec.mac)
    if there is None:
        devices = ET.Element("devices")
        add_nic(devices, spec, place)
        try:
            it.attempt(it.domain.attachDeviceFlags, ET.tostring(devices[0], "unicode"), LIVE)
        except libvirt.libvirtError:
            # A call that was given up, and that libvirt has carried out all the same.
            if find(it.attempt, it.domain, spec.mac) is None:
                raise
    elif _cut(there):
        raise HostRefused(
            "its guest has not let go of the interface that it had before: start it anew first"
        )


def take(it: Subject, seconds: float) -> bool:
    """Cut its card off, ask the guest to let go of it, and wait that long for it to do so, unless
    it is paused. Whether it has."""
    there = find(it.attempt, it.domain, it.mark.mac)
    if there is None:
        return True
    if not _cut(there):
        for link in there.findall("link"):
            there.remove(link)
        ET.SubElement(there, "link", {"state": "down"})
        it.attempt(it.domain.updateDeviceFlags, ET.tostring(there, "unicode"), LIVE)
    alias = there.find("alias")
    try:
        it.attempt(it.domain.detachDeviceAlias, "" if alias is None else alias.get("name"), LIVE)
    except libvirt.libvirtError as error:
        # It may have been asked before, or have let go meanwhile.
        if errors.is_broken(error) or not it.link.alive():
            raise
    if domains.power(it.attempt, it.domain) is Power.PAUSED:
        seconds = 0.0
    end = time.monotonic() + seconds
    while find(it.attempt, it.domain, it.mark.mac) is not None:
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_S)
    return True


def tell(it: Subject, spec: DomainSpec) -> None:
    """Write on what runs that it is as `spec` has it."""
    mark = replace(
        it.mark, generation=spec.generation, mac=spec.mac.lower(), values=spec.metadata,
        forward=it.mark.forward if spec.mac else 0,
    )
    domains.write_mark(it.attempt, it.domain, mark)
    if spec.mac and it.link.session:
        domains.forward(it)


def find(attempt: Attempt, domain: Any, mac: str) -> ET.Element | None:
    """The card of what runs with this MAC address."""
    if not mac:
        return None
    for card in ET.fromstring(attempt(domain.XMLDesc, 0)).iterfind("devices/interface"):
        found = card.find("mac")
        if found is not None and found.get("address", "").lower() == mac.lower():
            return card
    return None


def _cut(card: ET.Element) -> bool:
    link = card.find("link")
    return link is not None and link.get("state") == "down"
