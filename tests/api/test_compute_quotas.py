"""Quota sets, classes and limits in every microversion that changed them."""

from __future__ import annotations

from typing import Any

import pytest
from computekit import CALLERS, Api, named, schema
from tempest.lib.services.compute.limits_client import LimitsClient
from tempest.lib.services.compute.quota_classes_client import QuotaClassesClient
from tempest.lib.services.compute.quotas_client import QuotasClient

from treadle.compute import quota
from treadle.db.schema import instance

MINORS = (1, 35, 36, 38, 39, 49, 50, 56, 57, 75, 104)
MINE = CALLERS["member"].project_id


@pytest.mark.parametrize("minor", MINORS)
def test_answers_are_as_tempest_wants_them(api: Api, minor: int) -> None:
    judge = schema(QuotasClient, minor)
    project = api.project()
    path = f"/os-quota-sets/{project}"
    shown = api.get(path, minor=minor, judge=judge.get_quota_set)["quota_set"]
    assert shown["id"] == project
    assert ("floating_ips" in shown) is (minor < 36)
    assert ("injected_files" in shown) is (minor < 57)
    assert api.get(f"{path}/defaults", minor=minor, judge=judge.get_quota_set) == {
        "quota_set": shown
    }
    detail = api.get(f"{path}/detail", minor=minor, judge=judge.get_quota_set_details)["quota_set"]
    assert detail["ram"] == {"limit": 51200, "in_use": 0, "reserved": 0}
    body = {"quota_set": {"ram": "5120", "cores": 3}}
    changed = api.ok("PUT", path, body, minor=minor, judge=judge.update_quota_set)["quota_set"]
    assert (changed["ram"], changed["cores"], changed["instances"]) == (5120, 3, 10)
    assert "id" not in changed
    assert api.get(path, minor=minor)["quota_set"] == {**changed, "id": project}
    gone = api.call("DELETE", path, minor=minor)
    assert (gone.status_code, gone.content) == (202, b"")
    assert api.get(path, minor=minor)["quota_set"] == shown

    judge = schema(QuotaClassesClient, minor)
    name = named("class")
    path = f"/os-quota-class-sets/{name}"
    shown = api.get(path, minor=minor, judge=judge.get_quota_class_set)["quota_class_set"]
    assert shown["id"] == name
    assert ("server_groups" in shown) is (minor >= 50)
    body = {"quota_class_set": {"ram": 77}}
    changed = api.ok("PUT", path, body, minor=minor, judge=judge.update_quota_class_set)
    assert changed["quota_class_set"]["ram"] == 77

    limits = api.get("/limits", minor=minor, by="reader",
                     judge=schema(LimitsClient, minor).get_limit)["limits"]
    assert limits["rate"] == []
    assert ("maxImageMeta" in limits["absolute"]) is (minor < 39)


def test_the_default_class_is_everybodys(api: Api) -> None:
    body = {"quota_class_set": {"metadata_items": 7}}
    api.ok("PUT", "/os-quota-class-sets/default", body)
    path = f"/os-quota-sets/{api.project()}"
    assert api.get(path)["quota_set"]["metadata_items"] == 7
    assert api.get(f"{path}/defaults", by="other")["quota_set"]["metadata_items"] == 7
    assert api.get("/limits", by="other")["limits"]["absolute"]["maxServerMeta"] == 7
    body["quota_class_set"]["metadata_items"] = quota.DEFAULTS["metadata_items"]
    api.ok("PUT", "/os-quota-class-sets/default", body)


def test_users_have_limits_of_their_own(api: Api) -> None:
    project, user = api.project(), named("user")
    path, own = f"/os-quota-sets/{project}", f"/os-quota-sets/{project}?user_id={user}"
    api.ok("PUT", own, {"quota_set": {"ram": 2048}})
    assert api.get(own)["quota_set"]["ram"] == 2048
    assert api.get(f"{path}?user_id=another")["quota_set"]["ram"] == 51200
    assert api.get(f"{path}/detail?user_id={user}")["quota_set"]["ram"]["limit"] == 2048
    api.fails("PUT", path, {"quota_set": {"ram": 2047}}, status=400, says="2048")
    api.fails("PUT", own, {"quota_set": {"ram": 51201}}, status=400, says="51200")
    api.fails("PUT", own, {"quota_set": {"ram": -1}}, status=400, says="51200")
    api.ok("DELETE", own, status=202)
    assert api.get(own)["quota_set"]["ram"] == 51200


def test_what_is_in_use_is_told_and_kept(api: Api) -> None:
    project = api.project()
    id = api.cloud.create("used", tid=2)
    api.cloud.treadle.database.write(lambda conn: conn.execute(
        instance.update().where(instance.c.id == id).values(project_id=project)
    ))
    path = f"/os-quota-sets/{project}"
    detail = api.get(f"{path}/detail")["quota_set"]
    used = {name: one["in_use"] for name, one in detail.items() if name != "id" and one["in_use"]}
    assert used == {"instances": 1, "cores": 2, "ram": 1024}
    absolute = api.get(f"/limits?tenant_id={project}")["limits"]["absolute"]
    assert (absolute["totalInstancesUsed"], absolute["totalCoresUsed"],
            absolute["totalRAMUsed"]) == (1, 2, 1024)
    api.fails("PUT", path, {"quota_set": {"cores": 1}}, status=400,
              says="Quota limit 1 for cores must be greater than or equal to already used and "
              "reserved 2.")
    assert api.ok("PUT", path, {"quota_set": {"cores": 1, "force": "True"}})["quota_set"][
        "cores"] == 1
    assert api.ok("PUT", path, {"quota_set": {"cores": -1}})["quota_set"]["cores"] == -1


@pytest.mark.parametrize("said", [
    {"ram": -2}, {"ram": "x"}, {"ram": 1.5}, {"ram": 2**31}, {"ram": "-2"}, {"ram": True},
    {"ram": None}, {"ram": ""}, {"ram": "9" * 12}, {"color": 5}, {"force": "perhaps"},
    {"networks": 3},
])
def test_bad_limits_are_refused(api: Api, said: dict[str, Any]) -> None:
    path = f"/os-quota-sets/{api.project()}"
    message = api.fails("PUT", path, {"quota_set": said}, status=400)
    assert next(iter(said)) in message
    assert api.get(path)["quota_set"]["ram"] == 51200


def test_limits_that_went_away_cannot_be_set(api: Api) -> None:
    path, of_class = f"/os-quota-sets/{api.project()}", "/os-quota-class-sets/x"
    for name, minor in (("fixed_ips", 36), ("injected_files", 57)):
        api.ok("PUT", path, {"quota_set": {name: 5}}, minor=minor - 1)
        api.fails("PUT", path, {"quota_set": {name: 5}}, minor=minor, status=400, says=name)
    api.fails("PUT", of_class, {"quota_class_set": {"fixed_ips": 5}}, minor=50, status=400)
    api.fails("GET", f"{path}?color=red", minor=75, status=400)
    api.fails("PUT", f"/os-quota-class-sets/{'x' * 256}", {"quota_class_set": {}}, status=400)


def test_projects_see_their_own_and_change_nothing(api: Api) -> None:
    assert api.get(f"/os-quota-sets/{MINE}", by="reader")
    assert api.get(f"/os-quota-sets/{MINE}/detail", by="reader")
    for path in ("", "/detail"):
        api.fails("GET", f"/os-quota-sets/{MINE}{path}", by="other", status=403)
    for method, path, body in (
        ("PUT", f"/os-quota-sets/{MINE}", {"quota_set": {"ram": 0}}),
        ("DELETE", f"/os-quota-sets/{MINE}", None),
        ("GET", "/os-quota-class-sets/default", None),
        ("PUT", "/os-quota-class-sets/default", {"quota_class_set": {}}),
        ("GET", f"/limits?tenant_id={CALLERS['other'].project_id}", None),
    ):
        api.fails(method, path, body, by="member", status=403)


def test_projects_that_are_not_there_have_no_quotas(api: Api) -> None:
    for path in ("", "/detail", "/defaults"):
        api.fails("GET", f"/os-quota-sets/nobody{path}", status=400,
                  says="Project ID nobody is not a valid project.")
    api.fails("PUT", "/os-quota-sets/nobody", {"quota_set": {"ram": 1}}, status=400)
