"""openstacksdk, the library under Ansible's modules and many programs."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.process import RunningTreadle

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import openstack
    from openstack import exceptions

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cloud(treadle: RunningTreadle) -> Iterator[Any]:
    """A connection by the clouds.yaml that the first start wrote, to this test's port."""
    connection = openstack.connect(
        auth=treadle.auth, region_name="RegionOne", load_yaml_config=False,
        load_envvars=False,
    )
    yield connection
    connection.close()


def test_the_clouds_yaml_of_the_first_start_is_ready(treadle: RunningTreadle) -> None:
    config = openstack.config.OpenStackConfig(
        config_files=[str(treadle.clouds)], load_envvars=False
    )
    [region] = config.get_all()
    connection = openstack.connection.Connection(config=region)
    assert [one.name for one in connection.network.networks()] == ["default"]
    assert os.stat(treadle.clouds).st_mode & 0o077 == 0
    connection.close()


def test_the_cloud_layer_creates_a_server(cloud: Any) -> None:
    image = cloud.list_images()[0]
    server = cloud.create_server(
        "one", image=image.id, flavor="type-1", network="default", auto_ip=False, wait=True,
        timeout=60, meta={"a": "b"},
    )
    assert server.status == "ACTIVE"
    [port] = cloud.list_ports({"device_id": server.id})
    assert server.private_v4 == port.fixed_ips[0]["ip_address"]
    assert server.access_ipv4 in ("", server.private_v4)
    assert cloud.get_server("one").id == server.id
    assert [one.id for one in cloud.list_servers(filters={"name": "one"})] == [server.id]
    assert [group["name"] for group in cloud.list_server_security_groups(server)] == ["default"]
    assert cloud.get_server_console(server) is not None
    assert cloud.delete_server("one", wait=True, timeout=60)
    assert cloud.get_server("one") is None


def test_pages_end(cloud: Any) -> None:
    image, flavor = cloud.list_images()[0], cloud.get_flavor("type-1")
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        cloud.compute.create_server(
            name=name, image_id=image.id, flavor_id=flavor.id, networks="none",
        )
    found = [one.name for one in cloud.compute.servers(limit=2)]
    assert sorted(found) == names
    assert found == names[::-1]
    ascending = cloud.compute.servers(limit=2, sort_key="created_at", sort_dir="asc")
    assert [one.name for one in ascending] == names
    for limit in (1, 2, 100):
        assert len(list(cloud.compute.flavors(limit=limit))) == 2
        assert len(list(cloud.image.images(limit=limit))) >= 2
        assert len(list(cloud.network.networks(limit=limit))) == 1
        assert len(list(cloud.compute.hypervisors(limit=limit))) == 3
    for one in cloud.compute.servers():
        cloud.compute.delete_server(one)
    for one in cloud.compute.servers():
        cloud.compute.wait_for_delete(one, interval=0.1, wait=60)


def test_an_image_goes_up_and_comes_down(cloud: Any, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(3 << 20))
    image = cloud.create_image(
        "blob", filename=str(path), disk_format="raw", container_format="bare", wait=True,
    )
    assert image.status == "active"
    digest = hashlib.sha256()
    for chunk in cloud.image.download_image(image, stream=True).iter_content(1 << 16):
        digest.update(chunk)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    cloud.image.update_image(image, visibility="shared", colour="blue")
    assert cloud.image.get_image(image.id).properties["colour"] == "blue"
    cloud.image.add_tag(image, "warm")
    assert [one.id for one in cloud.image.images(tag="warm")] == [image.id]
    assert cloud.delete_image("blob", wait=True)


def test_projects_users_and_quotas(cloud: Any) -> None:
    project = cloud.create_project("sdk", domain_id="default")
    user = cloud.create_user(
        name="sdk-user", password="sdk-secret-1234", default_project=project.id,
        domain_id="default",
    )
    assert cloud.grant_role("member", user=user.id, project=project.id)
    cloud.set_compute_quotas(project.id, instances=3, cores=5)
    quotas = cloud.get_compute_quotas(project.id)
    assert (quotas.instances, quotas.cores) == (3, 5)
    assert cloud.get_network_quotas(project.id).networks == 0
    mine = cloud.connect_as(
        username="sdk-user", password="sdk-secret-1234", project_id=project.id,
        project_name=None, user_domain_name="Default",
    )
    assert mine.current_project_id == project.id
    assert list(mine.compute.servers()) == []
    with pytest.raises(exceptions.ForbiddenException):
        list(mine.identity.users())
    cloud.delete_compute_quotas(project.id)
    assert cloud.delete_user(user.id)
    assert cloud.delete_project(project.id)


def test_errors_say_what_is_wrong(cloud: Any) -> None:
    with pytest.raises(exceptions.NotFoundException, match="could not be found"):
        cloud.compute.get_server("11111111-2222-4333-8444-555555555555")
    with pytest.raises(exceptions.ForbiddenException, match="not there yet"):
        cloud.network.create_network(name="mine")
    with pytest.raises(exceptions.BadRequestException, match="name"):
        cloud.compute.create_server(
            name="", image_id=cloud.list_images()[0].id, flavor_id="1", networks="none"
        )
