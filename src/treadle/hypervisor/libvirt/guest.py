"""What a guest uses, and what its agent is told.

The agent's verbs run on a connection of their own: a guest whose agent hangs holds a call of the
host's for seconds, and a connection has only a few of them.
"""

from __future__ import annotations

import math
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import libvirt

from treadle.hypervisor.base import (
    AgentFailed,
    DiskStats,
    GuestStats,
    NicStats,
    Power,
    Unsupported,
)
from treadle.hypervisor.libvirt import errors
from treadle.hypervisor.libvirt.connection import Attempt, Link
from treadle.hypervisor.libvirt.states import power_of

KIB_PER_MIB = 1024
IN_GUEST = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_VCPU_GUEST
NOTICE_TRIES, NOTICE_S = 10, 0.2
"""How often, and how many seconds apart, an agent is asked to use processors that have come."""
COUNTED = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


def stats_of(link: Link, attempt: Attempt, domain: Any, saved: bool) -> GuestStats:
    """The counters of a domain. Errors: `Unsupported`."""
    if link.kind == "LXC":
        return _container_stats(attempt, domain)
    if link.kind != "QEMU":
        raise Unsupported(f"{link.kind} hosts do not count what guests use")
    _, stats = attempt(link.conn.domainListGetStats, [domain], COUNTED, 0)[0]
    macs = _macs(attempt(domain.XMLDesc, 0))
    live = power_of(stats["state.state"])
    power = live or (Power.SAVED if saved else Power.OFF)
    used = stats.get("balloon.rss")
    if "balloon.available" in stats and "balloon.unused" in stats:
        used = stats["balloon.available"] - stats["balloon.unused"]
    return GuestStats(
        power,
        memory_mib=stats.get("balloon.maximum", 0) // KIB_PER_MIB,
        memory_used_mib=None if live is None or used is None else used // KIB_PER_MIB,
        cpu_ns=tuple(
            stats.get(f"vcpu.{n}.time", 0) for n in range(stats.get("vcpu.current", 0))
        ) if live else (),
        nics=tuple(
            _nic(stats, n, macs.get(stats.get(f"net.{n}.name", ""), ""))
            for n in range(stats.get("net.count", 0))
        ),
        disks=tuple(_disk(stats, n) for n in range(stats.get("block.count", 0))) if live else (),
    )


def _nic(stats: Mapping[str, Any], number: int, mac: str) -> NicStats:
    def count(name: str) -> int:
        return int(stats.get(f"net.{number}.{name}", 0))

    return NicStats(
        mac, count("rx.bytes"), count("rx.pkts"), count("rx.errs"), count("rx.drop"),
        count("tx.bytes"), count("tx.pkts"), count("tx.errs"), count("tx.drop"),
    )


def _disk(stats: Mapping[str, Any], number: int) -> DiskStats:
    def count(name: str) -> int:
        return int(stats.get(f"block.{number}.{name}", 0))

    return DiskStats(
        str(stats.get(f"block.{number}.name", "")), count("rd.bytes"), count("rd.reqs"),
        count("wr.bytes"), count("wr.reqs"),
    )


def _macs(text: str) -> dict[str, str]:
    """Name of each card's device on the host to the guest's MAC address."""
    found = {}
    for card in ET.fromstring(text).iterfind("devices/interface"):
        device, mac = card.find("target"), card.find("mac")
        if device is not None and mac is not None:
            found[device.get("dev", "")] = mac.get("address", "")
    return found


def _container_stats(attempt: Attempt, domain: Any) -> GuestStats:
    """libvirt's LXC driver counts cards and the time of all processors together."""
    state, most_kib, used_kib, _, spent = attempt(domain.info)
    power = power_of(state)
    if power is None:
        return GuestStats(Power.OFF, most_kib // KIB_PER_MIB)
    nics = []
    for device, mac in _macs(attempt(domain.XMLDesc, 0)).items():
        seen = attempt(domain.interfaceStats, device)
        nics.append(NicStats(mac, *(max(0, number) for number in seen)))
    return GuestStats(
        power, most_kib // KIB_PER_MIB, math.ceil(used_kib / KIB_PER_MIB), (int(spent),),
        tuple(nics),
    )


# -- the agent


def freeze(link: Link, attempt: Attempt, domain: Any) -> int:
    """Hold the writes of the guest's file systems; how many. Errors: `AgentFailed`."""
    return int(_asked(link, attempt, domain, lambda: domain.fsFreeze(None, 0)))


def thaw(link: Link, attempt: Attempt, domain: Any) -> int:
    """Let the writes go on; how many. Errors: `AgentFailed`."""
    return int(_asked(link, attempt, domain, lambda: domain.fsThaw(None, 0)))


def set_password(link: Link, attempt: Attempt, domain: Any, user: str, password: str) -> None:
    """As `set-user-password` of the agent. Errors: `AgentFailed`."""
    _asked(link, attempt, domain, lambda: domain.setUserPassword(user, password, 0))


def use_processors(link: Link, attempt: Attempt, domain: Any, count: int) -> None:
    """Have the guest put `count` processors to use, once it has noticed them. Errors:
    `AgentFailed`."""
    if _asked(link, attempt, domain, domain.guestVcpus) is None:
        # What the binding (9.0) gives in place of an error.
        raise AgentFailed("the guest's agent does not answer")
    for left in reversed(range(NOTICE_TRIES)):
        try:
            _asked(link, attempt, domain, lambda: domain.setVcpusFlags(count, IN_GUEST))
            return
        except AgentFailed:
            if not left:
                raise
        time.sleep(NOTICE_S)


def _asked(link: Link, attempt: Attempt, domain: Any, ask: Any) -> Any:
    if link.kind != "QEMU":
        raise Unsupported(f"guests of {link.kind} hosts have no agent")
    if power_of(int(attempt(domain.state, 0)[0])) is not Power.RUNNING:
        raise AgentFailed("the guest does not run")
    try:
        # Without it, libvirt waits for a silent agent for ever.
        attempt(domain.agentSetResponseTimeout, max(1, math.floor(attempt.left() - 1)), 0)
        return attempt(ask)
    except libvirt.libvirtError as error:
        if errors.is_broken(error) or not link.alive():
            raise
        raise AgentFailed(f"the guest's agent: {_plain(errors.detail(error))}") from error


def _plain(text: str) -> str:
    """What the agent may have said, without what a terminal would act on."""
    return re.sub(r"[^ -~]", "?", text)
