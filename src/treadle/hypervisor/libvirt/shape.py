"""What a definition gives to a guest, in a few words: so that somebody else's change of it shows.

The mark keeps the shape that the definition had when we wrote it. libvirt fills a definition up
with much of its own; only what we decide is part of the shape.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET

PARTS = ("memory", "vcpus", "disks", "cards", "devices", "nodes")
KIB = {"b": 1 / 1024, "bytes": 1 / 1024, "KiB": 1, "k": 1, "MiB": 1024, "GiB": 1 << 20}
OTHERS = ("hostdev", "redirdev", "shmem", "tpm", "vsock", "nvram")


def shape_of(root: ET.Element) -> str:
    """The parts of `PARTS` of a definition, as one word each, with ":" between them."""
    most = kib(root.find("memory"))
    now = root.find("currentMemory")
    vcpu = root.find("vcpu")
    count = (vcpu.text or "").strip() if vcpu is not None else ""
    current = vcpu.get("current", count) if vcpu is not None else ""
    room = kib(root.find("maxMemory"))
    devices = root.find("devices")
    found = ET.Element("devices") if devices is None else devices
    return ":".join((
        f"{kib(now) if now is not None else most}/{most}" + (f"/{room}" if room else ""),
        f"{current}/{count}",
        _digest([_disk(one) for one in found if one.tag in ("disk", "filesystem")]),
        _digest([_card(one) for one in found if one.tag == "interface"]),
        _digest([one.tag for one in found if one.tag in OTHERS]),
        _nodes(root),
    ))


def changed(text: str, mark: str) -> tuple[str, ...]:
    """Those of `PARTS` in which a definition differs from the shape in its mark, which is the
    element `mark` of its metadata; where none was kept, none."""
    root = ET.fromstring(text)
    element = root.find(f"metadata/{mark}")
    kept = "" if element is None else element.get("shape", "")
    if not kept:
        return ()
    found = shape_of(root).split(":")
    return tuple(
        name for name, was, now in zip(PARTS, kept.split(":"), found, strict=False) if was != now
    )


def kib(element: ET.Element | None) -> int:
    """An amount of memory in KiB; 0 where it is not there."""
    if element is None:
        return 0
    return round(int((element.text or "0").strip()) * KIB.get(element.get("unit", "KiB"), 1))


def _nodes(root: ET.Element) -> str:
    """What binds it to NUMA cells of its host; "" for nothing."""
    found = [
        f"{one.tag}|{one.get('mode', '')}|{one.get('cellid', '')}|{one.get('nodeset', '')}"
        for one in root.iterfind("numatune/*")
    ]
    found += [
        f"{one.get('vcpu', '')}|{one.get('cpuset', '')}" for one in root.iterfind("cputune/vcpupin")
    ]
    vcpu = root.find("vcpu")
    if vcpu is not None and vcpu.get("cpuset"):
        found.append(vcpu.get("cpuset", ""))
    return _digest(found) if found else ""


def _disk(element: ET.Element) -> str:
    source, target = element.find("source"), element.find("target")
    named = {} if source is None else source.attrib
    return "|".join((
        element.get("device", ""),
        *(named.get(key, "") for key in ("file", "dev", "dir", "name", "volume")),
        "" if target is None else target.get("dev", target.get("dir", "")),
        "" if element.find("readonly") is None else "readonly",
    ))


def _card(element: ET.Element) -> str:
    mac, source = element.find("mac"), element.find("source")
    named = {} if source is None else source.attrib
    guard = element.find("filterref")
    return "|".join((
        element.get("type", ""), "" if mac is None else mac.get("address", "").lower(),
        named.get("network", named.get("bridge", named.get("dev", ""))),
        "" if guard is None else guard.get("filter", ""),
    ))


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:12]
