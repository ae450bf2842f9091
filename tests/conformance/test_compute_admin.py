"""What an operator does with `openstack` beside servers: flavors, keys, quotas, hosts, usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conformance.conftest import OpenStack, command_line
from tests.conformance.process import RunningTreadle


def test_flavors(openstack: OpenStack) -> None:
    made = openstack.json(
        "flavor create m1.cli --ram 256 --vcpus 2 --disk 3 --swap 64 --ephemeral 1 --id cli"
        " --description words --property hw:cpu_policy=shared --property own:thing=yes"
    )
    assert (made["id"], made["ram"], made["vcpus"], made["disk"], made["swap"]) == (
        "cli", 256, 2, 3, 64
    )
    shown = openstack.json("flavor show m1.cli")
    assert shown["properties"] == {"hw:cpu_policy": "shared", "own:thing": "yes"}
    assert shown["description"] == "words"
    openstack("flavor unset m1.cli --property own:thing")
    openstack("flavor set m1.cli --description other --property quota:cpu_shares=5")
    shown = openstack.json("flavor show cli")
    assert shown["properties"] == {"hw:cpu_policy": "shared", "quota:cpu_shares": "5"}
    assert shown["description"] == "other"
    assert "m1.cli" in [one["Name"] for one in openstack.json("flavor list")]
    assert "already exists" in openstack.refused(
        "flavor create m1.cli --ram 1 --vcpus 1 --disk 1"
    )
    openstack("flavor create m1.own --ram 1 --vcpus 1 --disk 1 --private --project admin")
    shown = openstack.json("flavor show m1.own")
    assert len(shown["access_project_ids"]) == 1
    openstack("flavor unset m1.own --project admin")
    assert "m1.own" in [one["Name"] for one in openstack.json("flavor list --all")]
    openstack("flavor delete m1.cli m1.own")
    assert "No Flavor found" in openstack.refused("flavor show m1.cli")


def test_key_pairs(openstack: OpenStack, tmp_path: Path) -> None:
    private = tmp_path / "id"
    openstack("keypair create made --private-key", str(private))
    assert "PRIVATE KEY" in private.read_text()
    public = openstack("keypair show made --public-key").strip()
    (tmp_path / "id.pub").write_text(public)
    imported = openstack.json("keypair create given --public-key", str(tmp_path / "id.pub"))
    found = {one["Name"]: one for one in openstack.json("keypair list")}
    assert set(found) == {"made", "given"}
    assert found["made"]["Fingerprint"] == imported["fingerprint"]
    assert found["made"]["Type"] == "ssh"
    openstack("keypair delete made given")
    assert openstack.json("keypair list") == []


def test_quotas_and_limits(openstack: OpenStack) -> None:
    openstack("quota set admin --cores 33 --ram 12345 --key-pairs 7 --server-groups 3")
    shown = {one["Resource"]: one["Limit"] for one in openstack.json("quota show admin")}
    assert (shown["cores"], shown["ram"], shown["key-pairs"], shown["instances"]) == (
        33, 12345, 7, 10
    )
    used = {one["Resource"]: one for one in openstack.json("quota show --usage admin")}
    assert used["cores"]["In Use"] == 0
    limits = {one["Name"]: one["Value"] for one in openstack.json("limits show --absolute")}
    assert limits["max_total_cores"] == 33
    openstack("quota set --class default --instances 11")
    shown = {one["Resource"]: one["Limit"] for one in openstack.json("quota show --default")}
    assert shown["instances"] == 11
    openstack("quota delete --compute admin")
    shown = {one["Resource"]: one["Limit"] for one in openstack.json("quota show admin")}
    assert (shown["cores"], shown["instances"]) == (20, 11)
    openstack("quota set --class default --instances 10")


def test_hosts_zones_and_aggregates(openstack: OpenStack) -> None:
    services = openstack.json("compute service list")
    names = [one["Host"] for one in services]
    assert {(one["Binary"], one["Zone"], one["Status"], one["State"]) for one in services} == {
        ("nova-compute", "nova", "enabled", "up")
    }
    openstack("compute service set --disable --disable-reason dust", names[0], "nova-compute")
    listed = openstack.json("compute service list --long")
    found = next(one for one in listed if one["Host"] == names[0])
    assert (found["Status"], found["Disabled Reason"]) == ("disabled", "dust")
    openstack("compute service set --enable --down", names[0], "nova-compute")
    found = {one["Host"]: one for one in openstack.json("compute service list")}[names[0]]
    assert (found["Status"], found["State"]) == ("enabled", "down")
    openstack("compute service set --up", names[0], "nova-compute")

    assert [one["Hypervisor Hostname"] for one in openstack.json("hypervisor list")] == names
    shown = openstack.json("hypervisor show", names[0])
    assert (shown["hypervisor_hostname"], shown["state"]) == (names[0], "up")
    assert openstack.json("hypervisor stats show")["count"] == len(names)

    openstack("aggregate create fast --zone z1 --property ssd=true")
    openstack("aggregate add host fast", names[0])
    shown = openstack.json("aggregate show fast")
    assert (shown["hosts"], shown["availability_zone"]) == ([names[0]], "z1")
    assert shown["properties"] == {"ssd": "true"}
    zones = {one["Zone Name"] for one in openstack.json("availability zone list --compute")}
    assert zones == {"z1", "nova"}
    openstack("availability zone list --compute --long")
    assert "Conflict" in openstack.refused("aggregate add host fast", names[0])
    openstack("aggregate unset fast --property ssd")
    openstack("aggregate remove host fast", names[0])
    openstack("aggregate set fast --name slow")
    openstack("aggregate delete slow")
    assert openstack.json("aggregate list") == []


def test_groups_usage_and_the_rest(openstack: OpenStack) -> None:
    made = openstack.json("server group create apart --policy anti-affinity --rule"
                          " max_server_per_host=2")
    assert (made["policy"], made["rules"]) == ("anti-affinity", {"max_server_per_host": 2})
    assert [one["Name"] for one in openstack.json("server group list")] == ["apart"]
    assert openstack.json("server group show apart")["id"] == made["id"]
    openstack("server group delete apart")
    image = openstack.json("image list --status active")[0]["ID"]
    openstack("server create worker --flavor 1 --nic none --wait --image", image)
    assert [len(one["Servers"]) for one in openstack.json("usage list")] == [1]
    shown = openstack.json("usage show --project admin")
    assert len(shown["Servers"]) == 1
    assert shown["CPU Hours"] >= 0
    openstack("server delete worker --wait")
    openstack("server migration list")
    aliases = [one["Alias"] for one in openstack.json("extension list --compute")]
    assert "os-keypairs" in aliases
    openstack("versions show --service compute")


def test_members_are_refused(openstack: OpenStack, treadle: RunningTreadle) -> None:
    openstack("project create work")
    openstack("user create --password sesame-open ann")
    openstack("role add --user ann --project work member")
    member: dict[str, Any] = {
        "OS_USERNAME": "ann", "OS_PASSWORD": "sesame-open", "OS_PROJECT_NAME": "work",
    }
    with command_line(treadle, **member) as ann:
        assert ann.json("flavor list")
        assert ann.json("availability zone list --compute")
        assert {one["Resource"] for one in ann.json("quota show")} >= {"cores"}
        for command in (
            "flavor create x --ram 1 --vcpus 1 --disk 1", "compute service list",
            "hypervisor list", "aggregate list", "usage list",
        ):
            said = ann.refused(command)
            assert "403" in said or "Forbidden" in said or "Policy" in said, said
