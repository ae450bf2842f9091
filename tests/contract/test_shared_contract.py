"""Two hosts that see one pool: of each driver alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract.conftest import small_image
from tests.labs import a_lab
from treadle.hypervisor.base import (
    DomainSpec,
    HostRefused,
    HostSetup,
    Hypervisor,
    ImageSpec,
    Power,
    Seed,
    SharedStorage,
)
from treadle.hypervisor.fake import FakeHypervisor
from treadle.hypervisor.fake_host import FakeHost
from treadle.hypervisor.fake_storage import share
from treadle.hypervisor.libvirt import LibvirtDriver, LibvirtOptions


@dataclass
class Pair:
    """Two prepared hosts, and what is in their pool of an instance."""

    here: Hypervisor
    there: Hypervisor
    image: ImageSpec
    content: Path
    volumes: Callable[[str], set[str]]
    again: Callable[[], None]
    """Look at who is there: what a controller's next pass does."""

    def spec(self, uuid: str, generation: int = 1, disks: tuple[int, ...] = (1,)) -> DomainSpec:
        return DomainSpec(
            uuid=uuid, name="web", generation=generation, vcpus=1, memory_mib=64, disk_gib=1,
            mac="52:54:00:00:00:07", image=self.image, seed=Seed("web"), disks=disks,
        )

    def new(self) -> str:
        """Defined on the first; its UUID."""
        uuid = str(uuid4())
        self.here.ensure_image(self.image, self.content)
        self.here.define(self.spec(uuid))
        return uuid


def fakes(folder: Path) -> Iterator[Pair]:
    hosts = [FakeHost("one"), FakeHost("two")]
    share(hosts)
    here, there = map(FakeHypervisor, hosts)

    def volumes(uuid: str) -> set[str]:
        return {
            str(number) for host in hosts if uuid in host.guests
            for number in host.guests[uuid].disks
        }

    yield Pair(here, there, *small_image(folder), volumes, lambda: None)


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[object]:
    with a_lab("shc", 2, shared=True) as lab:
        yield lab


def lab_hosts(lab: object, folder: Path) -> Iterator[Pair]:
    options = LibvirtOptions(
        state_dir=folder / "state", identity_file=lab.key, anti_spoofing=False
    )
    drivers = [LibvirtDriver(host.uri, options) for host in lab.status()]

    def volumes(uuid: str) -> set[str]:
        return {
            name for name in os.listdir(lab.shared)
            if name.startswith(uuid) and name.endswith(".qcow2")
        }

    def again() -> None:
        for driver in drivers:
            driver.facts()

    yield Pair(*drivers, *small_image(folder), volumes, again)


@pytest.fixture(params=["fake", pytest.param("lab-qemu", marks=pytest.mark.lab)])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    if request.param == "fake":
        worlds = fakes(tmp_path)
    else:
        worlds = lab_hosts(request.getfixturevalue("shared_lab"), tmp_path)
    found = next(worlds)
    for number, driver in enumerate((found.here, found.there)):
        driver.prepare(HostSetup(subnet=f"10.77.{20 + number}.0/24", virt_type="qemu"))
    # Whoever came first learns of the other when he is prepared again.
    found.here.prepare(HostSetup(subnet="10.77.20.0/24", virt_type="qemu"))
    found.again()
    yield found
    for driver in (found.here, found.there):
        for domain in driver.observe_all():
            driver.undefine(domain.uuid)
        driver.close()


def power(driver: Hypervisor, uuid: str) -> Power | None:
    found = driver.observe(uuid)
    return None if found is None else found.power


def test_hosts_see_each_other_in_their_pool(pair: Pair) -> None:
    here, there = pair.here.facts(), pair.there.facts()
    assert here.storage_token in there.storage_others
    assert there.storage_token in here.storage_others
    assert here.storage_token.startswith(f"{here.host_uuid}.")
    assert isinstance(pair.here, SharedStorage)
    assert isinstance(pair.there, SharedStorage)
    assert pair.here.shares(pair.there)
    assert pair.there.shares(pair.here)


def test_a_disk_of_another_host_is_left_alone_by_every_verb(pair: Pair) -> None:
    uuid = pair.new()
    pair.here.start(uuid)
    before = pair.volumes(uuid)
    assert before
    # The other host sees nothing of it, and whatever it is told to, the disk stays.
    assert pair.there.observe(uuid) is None
    assert uuid not in {domain.uuid for domain in pair.there.observe_all()}
    pair.there.undefine(uuid)
    pair.there.power_off(uuid)
    pair.there.ensure_image(pair.image, pair.content)
    with pytest.raises(HostRefused, match="share"):
        pair.there.define(pair.spec(uuid))
    with pytest.raises(HostRefused, match="share"):
        pair.there.expect(pair.spec(uuid))
    with pytest.raises(HostRefused):
        pair.there.remove_image(pair.image.sha256)
    pair.there.undefine(uuid)
    assert pair.volumes(uuid) == before
    assert power(pair.here, uuid) is Power.RUNNING
    assert power(pair.there, uuid) is None


def test_a_disk_that_is_sent_to_where_it_is_is_refused(pair: Pair) -> None:
    uuid = pair.new()
    before = pair.volumes(uuid)
    with pytest.raises(HostRefused):
        pair.here.send_disk(uuid, pair.there, 30.0, lambda *_at: None)
    pair.there.take(pair.spec(uuid))
    with pytest.raises(HostRefused):
        pair.here.send_disk(uuid, pair.there, 30.0, lambda *_at: None)
    with pytest.raises(HostRefused):
        pair.there.expect(pair.spec(uuid))
    assert pair.volumes(uuid) == before
    pair.there.undefine(uuid)
    assert pair.volumes(uuid) == before


def test_a_disk_goes_with_the_last_host_that_has_it(pair: Pair) -> None:
    uuid = pair.new()
    before = pair.volumes(uuid)
    for _ in range(2):
        pair.there.take(pair.spec(uuid))
    assert power(pair.there, uuid) is Power.REMNANT
    # One has it removed, the other goes on with the same disk.
    pair.here.undefine(uuid)
    assert pair.here.observe(uuid) is None
    assert pair.volumes(uuid) == before
    pair.there.define(pair.spec(uuid, 2))
    pair.there.start(uuid)
    assert power(pair.there, uuid) is Power.RUNNING
    # And back, by way of a host that has gone back on it.
    pair.here.take(pair.spec(uuid))
    pair.here.undefine(uuid)
    assert pair.volumes(uuid) == before
    pair.there.undefine(uuid)
    assert not pair.volumes(uuid)
    assert pair.there.observe(uuid) is None
    assert uuid not in {domain.uuid for domain in pair.there.observe_all()}


def test_volumes_that_another_host_needs_are_not_dropped(pair: Pair) -> None:
    uuid = pair.new()
    pair.there.take(pair.spec(uuid))
    pair.there.ensure_image(pair.image, pair.content)
    pair.there.define(pair.spec(uuid, 2, disks=(7, 1)))
    both = pair.volumes(uuid)
    assert len(both) == 2
    # It is rebuilt there; the first host may still be gone back to.
    pair.there.define(pair.spec(uuid, 3, disks=(8,)))
    assert pair.volumes(uuid) > both
    pair.here.undefine(uuid)
    pair.there.define(pair.spec(uuid, 4, disks=(8,)))
    assert len(pair.volumes(uuid)) == 1


def test_what_cannot_be_taken_is_refused(pair: Pair) -> None:
    stranger = str(uuid4())
    with pytest.raises(HostRefused):
        pair.there.take(pair.spec(stranger))
    assert pair.there.observe(stranger) is None
    uuid = pair.new()
    with pytest.raises(HostRefused):
        pair.there.take(pair.spec(uuid, disks=(9, 1)))
    with pytest.raises(HostRefused, match="UUID"):
        pair.here.take(pair.spec(uuid))
    assert pair.there.observe(uuid) is None


def test_an_image_is_brought_once_and_known_to_both(pair: Pair) -> None:
    content = pair.content.with_name("other.raw")
    content.write_bytes(os.urandom(1 << 20))
    digest = hashlib.sha256(content.read_bytes()).hexdigest()
    image = replace(pair.image, sha256=digest, size_bytes=1 << 20, virtual_bytes=1 << 20)
    pair.here.ensure_image(image, content)
    # It is there: the second host does not read the file.
    pair.there.ensure_image(image, content.with_name("gone.raw"))
    pair.there.remove_image(digest)
    with pytest.raises(Exception, match="file"):
        pair.here.ensure_image(image, content.with_name("gone.raw"))
