"""A data centre on one machine: real libvirt hosts out of namespaces, and a guest for them."""

from treadle.lab.fabric import Lab, LabError, LabHost, can_run
from treadle.lab.guest import GuestBuildError, build_guest

__all__ = ["GuestBuildError", "Lab", "LabError", "LabHost", "build_guest", "can_run"]
