"""What libvirt's states mean to us."""

from __future__ import annotations

import libvirt

from treadle.hypervisor.base import Domain, Power, StopCause
from treadle.hypervisor.libvirt.domain_xml import Mark

#: States in which a domain has a process. A blocked one waits for a device; one that is shutting
#: down still runs.
POWERS = {
    libvirt.VIR_DOMAIN_RUNNING: Power.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Power.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
}

#: States in which asking a guest to shut down means something. In SHUTDOWN it is on its way.
SHUTS_DOWN_WHEN_ASKED = frozenset({libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED})

#: SAVED, where no saved image is left: the image was thrown away.
CAUSES = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: StopCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: StopCause.FORCED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: StopCause.FORCED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: StopCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: StopCause.CRASHED,
}

#: Of a move that ends at the target, on either side: broken off; that, or under way.
TORN = frozenset({
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
})
SPLIT = TORN | {
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
}


def power_of(state: int) -> Power | None:
    """None where there is no process."""
    return POWERS.get(state)


def domain_of(
    uuid: str, state: int, reason: int, saved: bool, mark: Mark, addresses: tuple[str, ...],
    autostart: bool | None = None, *, disk_grows: bool = False,
) -> Domain:
    """What we say of a domain of ours. `disk_grows`: where it runs."""
    power = POWERS.get(state, Power.SAVED if saved else Power.OFF)
    cause = StopCause.NONE
    if power is Power.OFF:
        cause = CAUSES.get(reason, StopCause.UNKNOWN)
        if state == libvirt.VIR_DOMAIN_CRASHED:
            cause = StopCause.CRASHED
    live = power in (Power.RUNNING, Power.PAUSED)
    return Domain(
        uuid, power, mark.generation, cause, addresses, autostart,
        room=mark.most if live else None, disk_grows=live and disk_grows,
        disk=mark.disk if live else 0, split=(state, reason) in SPLIT,
        torn=(state, reason) in TORN,
    )
