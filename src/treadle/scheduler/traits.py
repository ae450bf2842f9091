"""The filters that go by what a host's aggregates and an image's properties say."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from treadle.scheduler.columns import BoolArray, HostColumns
from treadle.scheduler.model import HostRow, HostView, Pairs, PlacementRequest
from treadle.scheduler.plugin import Cause

AGGREGATE_SCOPE = "aggregate_instance_extra_specs"
_ARCHES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "i386": "i686"}

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge, "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq, "s!=": operator.ne, "s<": operator.lt, "s<=": operator.le,
    "s>": operator.gt, "s>=": operator.ge,
}


def holds(wanted: str, value: str) -> bool:
    """Whether a value is as an extra spec wants it, in OpenStack's words.

    A first word that is an operator says how to compare: `=` (at least), `==`, `!=`, `>=`, `<=` of
    numbers; `s==`, `s!=`, `s<`, `s<=`, `s>`, `s>=` of texts; `<in>` is part of it, `<all-in>` all
    are part of it, `<or>` one of. Without one, both have to be equal.
    """
    words = wanted.split()
    if not words:
        return value == wanted
    if words[0] == "<or>":
        return value in {word for word in words if word != "<or>"}
    if words[0] == "<all-in>":
        return all(word in value for word in words[1:])
    if words[0] == "<in>":
        return all(word in value for word in words if word != "<in>")
    if len(words) == 2 and words[0] in _TEXTS:
        return _TEXTS[words[0]](value, words[1])
    if len(words) == 2 and words[0] in _NUMBERS:
        try:
            return _NUMBERS[words[0]](float(value), float(words[1]))
        except ValueError:
            return False
    return value == wanted


class Zone:
    """Passes hosts of the availability zone that is asked for.

    passes = (no zone asked for, or it is the host's)
    """

    name = "zone"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests that ask for a zone."""
        return request.zone is not None

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where the zone is right."""
        wanted = request.zone
        return hosts.matching(
            "zone", (self.name, wanted), lambda zone: wanted is None or zone == wanted
        )

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        wanted = request.zone
        return lambda host: wanted is None or host.static.zone == wanted

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say which zone it is in."""
        return f"needs zone {request.zone}, is in {host.zone or 'none'}"

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        text = f"in another zone than {request.zone}"
        return [Cause(self.name, len(refused), f"is {text}", f"are {text}")]


class AggregateSpecs:
    """Passes hosts whose aggregates say what the flavor's extra specs want.

    passes = (for each extra spec without a scope, or with the scope
    `aggregate_instance_extra_specs`: one of the host's properties of that key holds). `holds` has
    the operators. Specs with another scope (`hw:`, `quota:`) are for others.
    """

    name = "aggregate_specs"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests with such specs."""
        return bool(_wanted(request))

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where all of them hold."""
        wanted = _wanted(request)
        return hosts.matching(
            "properties", (self.name, wanted), lambda properties: not _unmet(properties, wanted)
        )

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        wanted = _wanted(request)
        return lambda host: not _unmet(host.static.properties, wanted)

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say which do not hold, and what the host has."""
        said = []
        for key, wanted in _unmet(host.properties, _wanted(request)):
            have = ", ".join(value for other, value in host.properties if other == key)
            said.append(f"needs {key} {wanted}, has {have or 'none'}")
        return "; ".join(said)

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        text = "no aggregate that suits the flavor"
        return [Cause(self.name, len(refused), f"is in {text}", f"are in {text}")]


def _wanted(request: PlacementRequest) -> Pairs:
    """The specs that aggregates answer, without their scope."""
    wanted = []
    for key, value in request.extra_specs:
        scope, colon, rest = key.partition(":")
        if not colon:
            wanted.append((key, value))
        elif scope == AGGREGATE_SCOPE and rest:
            wanted.append((rest, value))
    return tuple(wanted)


def _unmet(properties: Pairs, wanted: Pairs) -> Pairs:
    return tuple(
        (key, spec) for key, spec in wanted
        if not any(other == key and holds(spec, value) for other, value in properties)
    )


class ImageProperties:
    """Passes hosts that can run what the image's properties say it is.

    passes = (`architecture` or `hw_architecture` is the host's) and (`hw_firmware_type` "uefi":
    the host has the capability "uefi") and (`trait:NAME` "required": the host has the capability
    NAME, "forbidden": it has not)
    """

    name = "image_properties"
    row_local = blind = static = True

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only images that say something of it."""
        arch, needed, unwanted = _image(request)
        return arch is not None or bool(needed or unwanted)

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where all of it suits."""
        arch, needed, unwanted = _image(request)
        result = hosts.matching(
            "capabilities", (self.name, needed, unwanted),
            lambda names: needed <= names and not unwanted & names,
        )
        if arch is not None:
            result = result & hosts.has_arch(arch)
        return result

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        arch, needed, unwanted = _image(request)

        def test(host: HostRow) -> bool:
            names = host.static.capabilities
            right = arch is None or host.static.arch == arch
            return right and needed <= names and not unwanted & names

        return test

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say what does not suit."""
        arch, needed, unwanted = _image(request)
        said = []
        if arch is not None and host.arch != arch:
            said.append(f"the image is {arch}, the host {host.arch or 'of unknown architecture'}")
        if needed - host.capabilities:
            said.append(f"the image needs {', '.join(sorted(needed - host.capabilities))}")
        if unwanted & host.capabilities:
            said.append(f"the image forbids {', '.join(sorted(unwanted & host.capabilities))}")
        return "; ".join(said)

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        return [Cause(self.name, len(refused), "cannot run the image", "cannot run the image")]


def _image(request: PlacementRequest) -> tuple[str | None, frozenset[str], frozenset[str]]:
    """The architecture, the capabilities needed, and those forbidden."""
    arch = None
    needed, unwanted = set(), set()
    for key, value in request.image_properties:
        if key in ("architecture", "hw_architecture"):
            arch = _ARCHES.get(value.lower(), value)
        elif key == "hw_firmware_type" and value == "uefi":
            needed.add("uefi")
        elif key.startswith("trait:") and value == "required":
            needed.add(key.removeprefix("trait:"))
        elif key.startswith("trait:") and value == "forbidden":
            unwanted.add(key.removeprefix("trait:"))
    return arch, frozenset(needed), frozenset(unwanted)
