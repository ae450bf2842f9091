"""Which extra specs a flavor may have, from microversion 2.86 on.

A key whose namespace is known must be one of its namespace, and its value of the right kind; what
is in no namespace, or in one that nobody knows, is let pass. Traits and capabilities have more
names than can be listed, so theirs are checked by their form.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from treadle.api.openstack.compute.common import FALSE, TRUE
from treadle.compute.model import HA_KEY, MOST_KEYS
from treadle.errors import InvalidInput

Kind = Callable[[str], str | None]
"""What a value must be, where it is not; None where it is."""

_MASK = r"\^?\d+((-\d+)?(,\^?\d+(-\d+)?)?)*"


def _any(_value: str) -> str | None:
    return None


def _boolean(value: str) -> str | None:
    return None if value.strip().lower() in TRUE | FALSE else "a valid boolean-like value"


def _whole(low: int | None = None, high: int | None = None) -> Kind:
    def check(value: str) -> str | None:
        if not re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value, re.ASCII):
            return "a valid integer value"
        if low is not None and int(value) < low:
            return f"at least {low}"
        if high is not None and int(value) > high:
            return f"at most {high}"
        return None

    return check


def _word(*words: str) -> Kind:
    return lambda value: None if value in words else f"one of: {', '.join(words)}"


def _form(pattern: str) -> Kind:
    return lambda value: (
        None if re.fullmatch(pattern, value) else f"of the format '{pattern}'"
    )


_SPECS: dict[str, Kind] = {
    HA_KEY: _word("evacuate", "wait"),
    **dict.fromkeys(MOST_KEYS, _whole(1)),
    "accel:device_profile": _any,
    "group_policy": _word("isolate", "none"),
    "hide_hypervisor_id": _boolean,
    "hw:boot_menu": _boolean,
    "hw:cpu_cores": _whole(1),
    "hw:cpu_dedicated_mask": _form(_MASK),
    "hw:cpu_max_cores": _whole(1),
    "hw:cpu_max_sockets": _whole(1),
    "hw:cpu_max_threads": _whole(1),
    "hw:cpu_policy": _word("dedicated", "shared", "mixed"),
    "hw:cpu_realtime": _boolean,
    "hw:cpu_realtime_mask": _form(_MASK),
    "hw:cpu_sockets": _whole(1),
    "hw:cpu_thread_policy": _word("prefer", "isolate", "require"),
    "hw:cpu_threads": _whole(1),
    "hw:emulator_threads_policy": _word("isolate", "share"),
    "hw:ephemeral_encryption": _boolean,
    "hw:ephemeral_encryption_format": _word("plain", "luks", "luksv2"),
    "hw:hide_hypervisor_id": _boolean,
    "hw:locked_memory": _boolean,
    "hw:mem_encryption": _boolean,
    "hw:mem_encryption_model": _word("amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx"),
    "hw:mem_page_size": _form(r"large|small|any|\d+([kKMGT]i?)?(b|bit|B)?"),
    "hw:numa_nodes": _whole(1),
    "hw:pci_numa_affinity_policy": _word("required", "preferred", "legacy", "socket"),
    "hw:pmem": _form("([a-zA-Z0-9_]+,?)+"),
    "hw:pmu": _boolean,
    "hw:redirected_usb_ports": _whole(0, 15),
    "hw:serial_port_count": _whole(0),
    "hw:sound_model": _word(
        "sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio",
    ),
    "hw:tpm_model": _word("tpm-tis", "tpm-crb"),
    "hw:tpm_version": _word("1.2", "2.0"),
    "hw:usb_model": _word(
        "piix3-uhci", "piix4-uhci", "ehci", "ich9-ehci1", "vt82c686b-uhci", "pci-ohci", "nec-xhci",
        "qusb1", "qusb2", "qemu-xhci", "none",
    ),
    "hw:vif_multiqueue_enabled": _boolean,
    "hw:viommu_model": _word("intel", "smmuv3", "virtio", "auto"),
    "hw:virtio_packed_ring": _boolean,
    "hw:watchdog_action": _word("none", "pause", "poweroff", "reset", "disabled"),
    "hw_rng:allowed": _boolean,
    "hw_rng:rate_bytes": _whole(0),
    "hw_rng:rate_period": _whole(0),
    "hw_video:ram_max_mb": _whole(0),
    "os:secure_boot": _word("disabled", "required"),
    "pci_passthrough:alias": _form(r"[^:]+:\d+(\s*,\s*[^:]+:\d+)*"),
    "quota:cpu_period": _whole(0),
    "quota:cpu_quota": _whole(),
    "quota:cpu_shares": _whole(0),
    "vmware:hw_version": _any,
    "vmware:storage_policy": _any,
}
_FORMS: tuple[tuple[str, Kind], ...] = (
    (r"aggregate_instance_extra_specs:.+", _any),
    (r"capabilities:\w[\w.-]*(:\w+)*", _any),
    (r"hw:numa_cpus\.\d+", _form(_MASK)),
    (r"hw:numa_mem\.\d+", _whole(1)),
    (r"quota:(cpu|memory|disk_io|vif)_(limit|shares_share)", _whole(0)),
    (r"quota:(cpu|memory|disk_io|vif)_reservation", _whole()),
    (r"quota:(cpu|memory|disk_io|vif)_shares_level", _word("custom", "high", "normal", "low")),
    (r"quota:disk_(read|write|total)_(bytes|iops)_sec", _whole(0)),
    (r"quota:vif_(inbound|outbound)_(average|peak|burst)", _whole(0)),
    (r"resources[a-zA-Z0-9_-]{0,64}:[A-Z0-9_]+", _whole()),
    (r"trait[a-zA-Z0-9_-]{0,64}:[A-Z0-9_]+", _word("required", "forbidden")),
)
_NAMESPACES = re.compile(
    "accel|aggregate_instance_extra_specs|capabilities|hw|hw_rng|hw_video|os|pci_passthrough|quota"
    "|treadle|vmware|resources[a-zA-Z0-9_-]{0,64}|trait[a-zA-Z0-9_-]{0,64}"
)


def check(key: str, value: str) -> None:
    """Errors: `InvalidInput` for a key that its namespace has not, or a value it cannot have."""
    kind = _SPECS.get(key) or next(
        (kind for pattern, kind in _FORMS if re.fullmatch(pattern, key, re.ASCII)), None
    )
    if kind is not None:
        wanted = kind(value)
        if wanted is not None:
            raise InvalidInput(key, value, f"Validation failed; it is not {wanted}")
        return
    namespace, colon, _ = key.partition(":")
    if colon and _NAMESPACES.fullmatch(namespace):
        raise InvalidInput(
            "extra spec", key, "Validation failed; it does not appear to be a valid extra spec"
        )
