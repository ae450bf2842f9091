"""The storage of simulated hosts, which several of them may share.

What a host has of an instance (`FakeHost.guests`) stands for what libvirt's driver writes into a
pool: a host that is in no one's way has its disks, and a disk goes with the last host that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.hypervisor.fake_host import FakeHost


@dataclass(slots=True)
class Disks:
    """The volumes of one instance's root disk by number, with what is on each; the mapping is never
    changed in place. Hosts that share it have the same."""

    volumes: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class FakeStorage:
    """A pool: the hosts that see it, and the images in it."""

    hosts: list[FakeHost] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    prepared: int = 0

    def token(self, host: FakeHost) -> str:
        """What the host has written there."""
        return f"{host.uuid}.{host.prepared:012x}-fake"

    def others(self, host: FakeHost) -> list[FakeHost]:
        """The other hosts that have been prepared."""
        return [one for one in self.hosts if one is not host and one.prepared]

    def elsewhere(self, host: FakeHost, uuid: str) -> list[FakeHost]:
        """The other hosts that have the instance."""
        return [one for one in self.others(host) if uuid in one.guests]


def share(hosts: list[FakeHost]) -> None:
    """From now on the hosts see one pool."""
    storage = FakeStorage(list(hosts))
    for host in hosts:
        host.storage = storage
