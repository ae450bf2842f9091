"""The driver for any host that libvirt can reach."""

from treadle.hypervisor.libvirt.connection import Deadlines, LibvirtOptions
from treadle.hypervisor.libvirt.driver import LibvirtDriver

__all__ = ["Deadlines", "LibvirtDriver", "LibvirtOptions"]
