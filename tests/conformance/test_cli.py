"""A user who knows only the `openstack` command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server

from tests.conformance.conftest import OpenStack, command_line
from tests.conformance.process import RunningTreadle
from tests.waiting import wait_for
from treadle.api.openstack.compute import HIGHEST

PASSWORD = "a-long-enough-secret-7"


@pytest.fixture(scope="module")
def team(treadle: RunningTreadle, openstack: OpenStack) -> Iterator[OpenStack]:
    """A project of its own, with a user who is a member of it."""
    openstack("project create team --description", "The team's")
    openstack("user create anna --project team --password", PASSWORD)
    openstack("role add member --project team --user anna")
    names = {"OS_USERNAME": "anna", "OS_PASSWORD": PASSWORD, "OS_PROJECT_NAME": "team"}
    with command_line(treadle, **names) as one:
        yield one


def image_names(openstack: OpenStack) -> list[str]:
    return sorted(one["Name"] for one in openstack.json("image list --status active"))


def status(openstack: OpenStack, name: str) -> str:
    found: str = openstack.json(f"server show {name}")["status"]
    return found


def create(openstack: OpenStack, name: str, *more: str) -> Any:
    """A server that is ACTIVE."""
    made = openstack.json(
        "server create --wait --flavor type-1 --network default --image first", *more, name
    )
    assert made["status"] == "ACTIVE", made
    return made


def test_a_token_and_the_catalog(openstack: OpenStack) -> None:
    token = openstack.json("token issue")
    assert set(token) == {"expires", "id", "project_id", "user_id"}
    catalog = {one["Type"]: one["Endpoints"] for one in openstack.json("catalog list")}
    assert {"identity", "compute", "image", "network"} <= set(catalog)
    for name, endpoints in catalog.items():
        assert {one["interface"] for one in endpoints} == {"public", "internal", "admin"}, name
    [compute] = {one["url"] for one in catalog["compute"]}
    assert compute == f"{openstack.treadle.url}/compute/v2.1"


def test_the_client_asks_for_the_newest_version(openstack: OpenStack) -> None:
    """A version document that it cannot read makes it fall back to 2.1 without a word."""
    said = openstack.run("--debug", "server", "list")
    assert said["code"] == 0
    own = int(Server._max_microversion.partition(".")[2])
    assert f"OpenStack-API-Version: compute 2.{min(own, HIGHEST)}" in said["err"]
    assert own >= 100


def test_version_documents_are_there_with_and_without_a_slash(treadle: RunningTreadle) -> None:
    for path in ("/compute/v2.1", "/compute/v2.1/"):
        code, body = treadle.get(path)
        assert code == 200
        assert body["version"]["version"] == f"2.{HIGHEST}"
        assert body["version"]["links"][0] == {
            "rel": "self", "href": f"{treadle.url}/compute/v2.1/"
        }
    for path, statuses in (
        ("/identity", {200, 300}), ("/identity/v3", {200}), ("/image", {200, 300}),
        ("/network", {200}), ("/compute", {200}), ("/compute/v2", {200}),
    ):
        for slash in ("", "/"):
            assert treadle.get(path + slash)[0] in statuses, path + slash


def test_the_default_network_is_seen(openstack: OpenStack, team: OpenStack) -> None:
    [network] = team.json("network list")
    assert network["Name"] == "default"
    shown = team.json("network show default")
    assert (shown["id"], shown["shared"]) == (network["ID"], True)
    [subnet] = team.json("subnet list --network default")
    assert subnet["ID"] in network["Subnets"]
    assert team.json("port list") == []
    [group] = team.json("security group list")
    assert group["Name"] == "default"
    assert openstack.json("network agent list") == []
    assert "virtual networks are not there yet" in team.refused("network create mine")
    for what in ("router", "floating ip", "address scope", "subnet pool"):
        assert team.json(f"{what} list") == []


def test_flavors(openstack: OpenStack, team: OpenStack) -> None:
    assert {one["Name"] for one in team.json("flavor list")} == {"type-1", "type-2"}
    made = openstack.json("flavor create --ram 256 --disk 1 --vcpus 1 --private tiny")
    openstack("flavor set --property hw:cpu_policy=shared tiny")
    assert openstack.json("flavor show tiny")["properties"] == {"hw:cpu_policy": "shared"}
    assert made["id"] not in {one["ID"] for one in team.json("flavor list")}
    openstack("flavor set --project team tiny")
    assert made["id"] in {one["ID"] for one in team.json("flavor list")}
    openstack("flavor delete tiny")
    assert "tiny" in openstack.refused("flavor show tiny")


def test_keypairs(team: OpenStack, tmp_path: Path) -> None:
    private = tmp_path / "key"
    team("keypair create --private-key", str(private), "mine")
    assert private.read_text().startswith("-----BEGIN")
    [listed] = team.json("keypair list")
    assert (listed["Name"], listed["Type"]) == ("mine", "ssh")
    assert team("keypair show --public-key mine").startswith("ssh-")
    team("keypair delete mine")
    assert team.json("keypair list") == []


def test_images(openstack: OpenStack, team: OpenStack, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(range(256)) * 4096)
    made = team.json("image create --disk-format raw --file", str(disk), "--property",
                     "colour=blue", "mine")
    shown = team.json(f"image show {made['id']}")
    assert (shown["status"], shown["size"]) == ("active", disk.stat().st_size)
    assert shown["properties"]["colour"] == "blue"
    copy = tmp_path / "copy.raw"
    team("image save mine --file", str(copy))
    assert copy.read_bytes() == disk.read_bytes()
    team("image set --name yours --tag warm mine")
    assert team.json("image list --tag warm")[0]["Name"] == "yours"
    team("image delete yours")
    assert "yours" not in image_names(openstack)


def test_the_life_of_a_server(team: OpenStack) -> None:
    made = create(team, "web", "--property", "role=front")
    [listed] = team.json("server list")
    assert (listed["Name"], listed["Status"], listed["Flavor"]) == ("web", "ACTIVE", "type-1")
    assert listed["Image"] in image_names(team)
    [address] = listed["Networks"]["default"]
    [port] = team.json("port list --server web")
    assert address in str(port["Fixed IP Addresses"])
    assert "role='front'" in str(made["properties"]) or made["properties"] == {"role": "front"}
    for action, after in (
        ("pause", "PAUSED"), ("unpause", "ACTIVE"), ("suspend", "SUSPENDED"),
        ("resume", "ACTIVE"), ("stop", "SHUTOFF"), ("start", "ACTIVE"),
    ):
        team(f"server {action} web")
        reached(team, "web", after)
    for how in ("--soft", "--hard"):
        team(f"server reboot --wait {how} web")
        assert status(team, "web") == "ACTIVE"
    team("server set --property colour=red --description", "A front door", "--name", "door", "web")
    shown = team.json("server show door")
    assert shown["description"] == "A front door"
    assert shown["properties"] == {"role": "front", "colour": "red"}
    team("server unset --property role door")
    team("console log show door")
    events = team.json("server event list door")
    assert {"create", "pause", "unpause", "stop", "start", "reboot"} <= {
        one["Action"] for one in events
    }
    team("server delete --wait door")
    assert team.json("server list") == []
    assert "door" in team.refused("server show door")


def reached(openstack: OpenStack, name: str, wanted: str) -> None:
    """Wait until the server's status is the wanted one."""
    wait_for(lambda: status(openstack, name) == wanted, 20, f"{name} to be {wanted}")


def test_a_server_is_resized_and_rebuilt(team: OpenStack) -> None:
    create(team, "grown")
    team("server resize --wait --flavor type-2 grown")
    assert status(team, "grown") == "VERIFY_RESIZE"
    team("server resize confirm grown")
    reached(team, "grown", "ACTIVE")
    assert "type-2" in str(team.json("server show grown")["flavor"])
    team("server rebuild --wait --image second grown")
    assert status(team, "grown") == "ACTIVE"
    team("server delete --wait grown")


def test_a_server_is_locked_tagged_and_copied(team: OpenStack) -> None:
    create(team, "kept")
    team("server lock --reason", "It is dear", "kept")
    assert "locked" in team.refused("server stop kept")
    team("server unlock kept")
    team("server remove network kept default")
    assert team.json("server show kept")["addresses"] == {}
    team("server add network kept default")
    assert list(team.json("server show kept")["addresses"]) == ["default"]
    assert "one network" in team.refused("server add network kept default")
    team("server set --tag dear kept")
    assert [one["Name"] for one in team.json("server list --tags dear")] == ["kept"]
    team("server image create --wait --name copy kept")
    assert "copy" in image_names(team)
    team("image delete copy")
    for name in ("monday", "tuesday", "friday"):
        team(f"server backup create --wait --type daily --rotate 2 --name {name} kept")
    wait_for(
        lambda: {"tuesday", "friday"} == set(image_names(team)) - {"first", "second"}, 20,
        "the oldest backup to go",
    )
    for name in ("tuesday", "friday"):
        team(f"image delete {name}")
    team("server delete --wait kept")


def test_servers_that_stay_apart(openstack: OpenStack, team: OpenStack) -> None:
    group = team.json("server group create --policy anti-affinity apart")
    made = create(team, "apart", "--min", "2", "--max", "2", "--hint", f"group={group['id']}")
    assert made["name"].startswith("apart")
    rows = openstack.json("server list --all-projects --long")
    hosts = {one["Host"] for one in rows if one["Name"].startswith("apart")}
    assert len(hosts) == 2
    for one in team.json("server list"):
        team("server delete --wait", one["ID"])
    team("server group delete apart")


def test_a_quota_is_set_and_kept(openstack: OpenStack, team: OpenStack) -> None:
    openstack("quota set --instances 1 --cores 4 team")
    shown = {one["Resource"]: one["Limit"] for one in openstack.json("quota show team")}
    assert (shown["instances"], shown["cores"]) == (1, 4)
    assert shown["networks"] == 0
    create(team, "only")
    refused = team.refused(
        "server create --flavor type-1 --network default --image first more"
    )
    assert "Quota exceeded" in refused
    used = {one["Resource"]: one["In Use"] for one in team.json("quota show --usage")}
    assert used["instances"] == 1
    limits = {one["Name"]: one["Value"] for one in team.json("limits show --absolute")}
    assert (limits["instances"], limits["total_instances_used"]) == (1, 1), limits
    team("server delete --wait only")
    openstack("quota delete team")
    assert "403" in team.refused("quota set --instances 99 team")


def test_one_project_knows_nothing_of_another(openstack: OpenStack, team: OpenStack) -> None:
    create(openstack, "secret")
    id = openstack.json("server show secret")["id"]
    assert team.json("server list") == []
    for what in ("server show", "server delete", "server pause"):
        assert "secret" not in team.refused(what, id)
    assert "No Server found" in team.refused("server show secret")
    assert "403" in team.refused("hypervisor list")
    assert [one["Name"] for one in team.json("project list")] == ["team"]
    openstack("server delete --wait secret")


def test_what_an_operator_sees(openstack: OpenStack) -> None:
    create(openstack, "seen")
    assert len(openstack.json("hypervisor list")) == 3
    name = openstack.json("hypervisor list")[0]["Hypervisor Hostname"]
    assert openstack.json(f"hypervisor show {name}")["hypervisor_hostname"] == name
    assert openstack.json("hypervisor stats show")["count"] == 3
    services = openstack.json("compute service list")
    assert {one["Binary"] for one in services} >= {"nova-compute"}
    usage = openstack.json("usage show")
    assert usage["Servers"]
    openstack("server delete --wait seen")
    openstack("aggregate create --zone shelf rack")
    openstack(f"aggregate add host rack {name}")
    assert "shelf" in {
        one["Zone Name"] for one in openstack.json("availability zone list --compute")
    }
    openstack(f"aggregate remove host rack {name}")
    openstack("aggregate delete rack")
    openstack.json("usage list")
    openstack("extension list")
    openstack("versions show")
    openstack("availability zone list")


def test_projects_users_and_roles(openstack: OpenStack) -> None:
    assert {"admin", "member", "reader"} <= {one["Name"] for one in openstack.json("role list")}
    assert openstack.json("domain show default")["name"] == "Default"
    openstack("project create --enable throwaway")
    openstack("user create --password", PASSWORD, "bert")
    openstack("group create crowd")
    openstack("group add user crowd bert")
    openstack("role add reader --group crowd --project throwaway")
    names = openstack.json("role assignment list --names --effective --user bert")
    assert any(one["Project"].startswith("throwaway") for one in names)
    secret = openstack.json("application credential create robot")
    assert secret.get("Secret") or secret.get("secret")
    assert [one["Name"] for one in openstack.json("application credential list")] == ["robot"]
    openstack("application credential delete robot")
    for what in ("endpoint", "service", "region"):
        assert openstack.json(f"{what} list")
    openstack("group delete crowd")
    openstack("user delete bert")
    openstack("project delete throwaway")


def test_what_few_ask_for(openstack: OpenStack, team: OpenStack) -> None:
    """What a walk through every command of the client found missing."""
    create(team, "looked-at", "--security-group", "default")  # the client sends the group's id
    team("server add security group looked-at default")
    assert "injects no NMI" in team.refused("server dump create looked-at")
    assert team.json("server volume list looked-at") == []
    assert team.json("server share list looked-at") == []
    first = team.json("server event list --limit 1 --changes-since 2020-01-01T00:00:00Z looked-at")
    assert len(first) == 1
    team("server delete --wait looked-at")
    assert team.json("image metadef namespace list") == []
    assert team.json("image metadef resource type list") == []
    made = openstack.json("credential create --type totp anna SEED")
    openstack("credential set --user anna --type totp --data OTHER", made["id"])
    assert team.json(f"credential show {made['id']}")["blob"] == "OTHER"
    assert [one["ID"] for one in team.json("credential list --type totp")] == [made["id"]]
    team(f"credential delete {made['id']}")


def test_a_wrong_password_is_refused(treadle: RunningTreadle) -> None:
    with command_line(treadle, OS_PASSWORD="wrong") as stranger:
        assert "401" in stranger.refused("token issue")
