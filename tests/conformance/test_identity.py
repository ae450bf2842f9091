"""Users and projects as OpenStack's own clients see them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import openstack as sdk
import pytest
from keystoneauth1.exceptions.http import Unauthorized
from openstack import exceptions

from tests.conformance.conftest import OpenStack, command_line
from tests.conformance.process import RunningTreadle

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


def connect(treadle: RunningTreadle, **auth: Any) -> Any:
    known = {key: value for key, value in treadle.auth.items() if not key.startswith("project")}
    scope = {key: value for key, value in treadle.auth.items() if key.startswith("project")}
    return sdk.connect(
        load_yaml_config=False, load_envvars=False, region_name="RegionOne",
        auth={**known, **(scope if not auth else {}), **auth},
    )


def test_the_file_that_the_first_start_made_is_all_that_a_client_needs(
    treadle: RunningTreadle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names port 80 or the one of the settings, so it is taken as it is."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(treadle.clouds))
    cloud = sdk.connect(cloud="treadle")
    assert cloud.current_project.name == "admin"
    assert cloud.auth["auth_url"] == f"{treadle.url}/identity"


def test_the_command_line_looks_after_users_and_projects(openstack: OpenStack) -> None:
    issued = openstack.json("token issue")
    assert len(issued["id"]) == 43
    project = openstack.json("project create --description d --tag blue --property size=7 lab")
    assert (project["description"], project["size"], project["tags"]) == ("d", "7", ["blue"])
    below = openstack.json("project create --parent lab --domain default bench")
    assert below["parent_id"] == project["id"]
    assert {"admin", "lab", "bench"} <= {one["Name"] for one in openstack.json("project list")}
    openstack(
        "project set --name laboratory --tag red lab"
    )
    assert openstack.json("project show laboratory --parents")["name"] == "laboratory"
    assert openstack.refused("project delete laboratory")
    assert "laboratory" in openstack("project list --tags red -f value -c Name")

    user = openstack.json(
        "user create --project laboratory --password secret --email e@example.org --or-show carol"
    )
    assert user["default_project_id"] == project["id"]
    assert openstack.json("user show carol")["id"] == user["id"]
    openstack("user set --description d --enable carol")
    openstack("role add --user carol --project laboratory member")
    rows = openstack.json("role assignment list --user carol --names")
    assert [(one["Role"], one["User"], one["Project"]) for one in rows] == [
        ("member", "carol@Default", "laboratory@Default")
    ]
    effective = openstack.json("role assignment list --user carol --names --effective")
    assert {one["Role"] for one in effective} == {"member", "reader"}
    assert "carol" in openstack("user list --project laboratory -f value -c Name")

    group = openstack.json("group create --description d crew")
    openstack("group add user crew carol")
    assert "carol" in openstack("group contains user crew carol")
    assert [one["Name"] for one in openstack.json("user list --group crew")] == ["carol"]
    openstack("role add --group crew --project bench reader")
    openstack("group remove user crew carol")
    openstack("group delete", group["id"])

    assert {"admin", "member", "reader"} <= set(openstack("role list -f value -c Name").split())
    openstack("role create --description d painter")
    openstack("implied role create painter --implied-role reader")
    assert "painter" in openstack("implied role list -f value")
    openstack("implied role delete painter --implied-role reader")
    openstack("role delete painter")
    openstack("role remove --user carol --project laboratory member")
    openstack("user delete carol")
    openstack("project delete bench laboratory")
    assert openstack.refused("project show laboratory")


def test_the_command_line_looks_after_domains_and_the_catalog(openstack: OpenStack) -> None:
    openstack("domain create --description d works")
    openstack("user create --domain works --password secret dora")
    openstack("role add --user dora --user-domain works --domain works admin")
    assert openstack.refused("domain delete works")
    openstack("domain set --disable works")
    openstack("domain delete works")
    types = {one["Type"] for one in openstack.json("catalog list")}
    assert {"identity", "compute"} <= types
    assert openstack.json("catalog show compute")["type"] == "compute"
    service = openstack.json("service create --name files --description d shared-file-system")
    endpoint = openstack.json(
        "endpoint create --region RegionOne files public http://files.example/v2"
    )
    assert endpoint["service_id"] == service["id"]
    listed = openstack.json("endpoint list --service files --interface public")
    assert [one["URL"] for one in listed] == ["http://files.example/v2"]
    assert "RegionOne" in openstack("region list -f value -c Region")
    openstack("endpoint delete", endpoint["id"])
    openstack("service delete files")


def test_a_program_logs_in_with_an_application_credential(
    treadle: RunningTreadle, openstack: OpenStack
) -> None:
    made = openstack.json("application credential create --role reader robot")
    assert [one["Name"] for one in openstack.json("application credential list")] == ["robot"]
    environment = {
        "OS_AUTH_TYPE": "v3applicationcredential", "OS_APPLICATION_CREDENTIAL_ID": made["ID"]
        if "ID" in made else made["id"],
        "OS_APPLICATION_CREDENTIAL_SECRET": made.get("secret") or made["Secret"],
        "OS_USERNAME": "", "OS_PASSWORD": "", "OS_PROJECT_NAME": "", "OS_USER_DOMAIN_NAME": "",
        "OS_PROJECT_DOMAIN_NAME": "",
    }
    with command_line(treadle, **environment) as robot:
        assert robot.json("token issue")["user_id"]
        assert robot.refused("project create mine")
    openstack("application credential delete robot")


def test_openstacksdk_does_the_same(treadle: RunningTreadle) -> None:
    cloud = connect(treadle)
    identity = cloud.identity
    project = identity.create_project(name="sdk", description="d")
    user = identity.create_user(name="sven", password="secret", default_project_id=project.id)
    assert identity.find_user("sven").id == user.id
    assert [one.id for one in identity.projects(name="sdk")] == [project.id]
    role = identity.find_role("member")
    identity.assign_project_role_to_user(project, user, role)
    assert identity.validate_user_has_project_role(project, user, role)
    mine = connect(
        treadle, username="sven", password="secret", project_name="sdk",
        project_domain_name="Default",
    )
    assert mine.current_project_id == project.id
    assert [one.id for one in mine.identity.user_projects(user)] == [project.id]
    with pytest.raises(exceptions.ForbiddenException):
        list(mine.identity.users())
    identity.update_user(user, enabled=False)
    with pytest.raises(Unauthorized):
        mine.identity.get_user(user.id)
    identity.delete_user(user)
    identity.delete_project(project)
    assert identity.find_project("sdk") is None


def test_a_wrong_password_is_told_in_one_line(treadle: RunningTreadle) -> None:
    with command_line(treadle, OS_PASSWORD="wrong") as nobody:
        said = nobody.refused("project list")
    assert "HTTP 401" in said
    assert "Traceback" not in said
    assert os.fspath(Path.cwd()) not in said
