"""Which kind of host an instance needs, by its image's properties and its flavor's extra specs."""

from __future__ import annotations

import pytest

from treadle.compute.placing import CONTAINER, MACHINE, kind_of


@pytest.mark.parametrize(("properties", "specs", "needed"), [
    ((), (), MACHINE),
    ((("hypervisor_type", "lxc"),), (), CONTAINER),
    ((("img_hv_type", "LXC"),), (), CONTAINER),
    ((), (("hypervisor_type", "lxc"),), CONTAINER),
    ((), (("capabilities:hypervisor_type", "lxc"),), CONTAINER),
    ((("hypervisor_type", "qemu"),), (("hypervisor_type", "kvm"),), MACHINE),
    ((("os_distro", "lxc"),), (("trait:lxc", "required"),), MACHINE),
])
def test_the_kind_of_host(
    properties: tuple[tuple[str, str], ...], specs: tuple[tuple[str, str], ...],
    needed: frozenset[str],
) -> None:
    assert kind_of(properties, specs) == needed
