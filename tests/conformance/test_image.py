"""Images as people who know only `openstack` and openstacksdk use them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openstack.connection
import pytest

from tests.conformance.conftest import OpenStack
from tests.conformance.process import QUICK, RunningTreadle, running
from tests.waiting import wait_for

# What openstacksdk says of itself whenever it is used.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def treadle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTreadle]:
    """One that fetches from this machine too."""
    settings = QUICK + '[image]\nimport_networks = ["127.0.0.0/8"]\nimport_ports = []\n'
    with running(tmp_path_factory.mktemp("treadle"), settings=settings) as one:
        yield one


@pytest.fixture(scope="module")
def sdk(treadle: RunningTreadle) -> Iterator[Any]:
    with openstack.connection.Connection(
        auth=treadle.auth, region_name="RegionOne", identity_api_version="3",
    ) as one:
        yield one


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """A web server over a folder; its URL."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def await_active(openstack: OpenStack, id: str) -> None:
    """Wait until the image can be used."""
    wait_for(lambda: openstack.json("image show", id)["status"] == "active", 20.0, "the image")


def test_the_life_of_an_image(openstack: OpenStack, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    file, back = tmp_path / "mine.raw", tmp_path / "back.raw"
    file.write_bytes(content)
    made = openstack.json(
        "image create mine --disk-format raw --container-format bare --private --min-ram 64 "
        "--property os_distro=debian --tag first --file", str(file),
    )
    assert made["status"] in ("queued", "active")
    shown = openstack.json("image show mine")
    assert (shown["status"], shown["size"], shown["visibility"], shown["min_ram"]) == (
        "active", len(content), "private", 64
    )
    assert shown["checksum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert shown["properties"]["os_distro"] == "debian"
    assert shown["properties"]["os_hash_value"] == hashlib.sha512(content).hexdigest()
    assert {"ID": shown["id"], "Name": "mine", "Status": "active"} in openstack.json("image list")
    openstack("image save mine --file", str(back))
    assert back.read_bytes() == content
    openstack("image set mine --name yours --property speed=fast --tag second --min-disk 1")
    openstack("image set yours --protected --tag third")
    changed = openstack.json("image show yours")
    assert (changed["properties"]["speed"], changed["min_disk"]) == ("fast", 1)
    assert sorted(changed["tags"]) == ["first", "second", "third"]
    assert "protected" in openstack.refused("image delete yours")
    openstack("image unset yours --property speed --tag first")
    openstack("image set yours --unprotected --deactivate")
    changed = openstack.json("image show yours")
    assert (changed["status"], changed["tags"]) == ("deactivated", ["second", "third"])
    assert "speed" not in changed["properties"]
    openstack("image set yours --activate")
    openstack("image delete yours")
    assert "yours" not in openstack("image list")


def test_an_image_is_shared_with_a_project(openstack: OpenStack) -> None:
    openstack("project create friends")
    friends = openstack.json("project show friends")["id"]
    openstack("image create offered --disk-format raw --container-format bare --shared")
    openstack("image add project offered friends")
    openstack("image set offered --project friends --accept")
    [member] = openstack.json("image member list offered")
    assert (member["Member ID"], member["Status"]) == (friends, "accepted")
    openstack("image remove project offered friends")
    assert openstack.json("image member list offered") == []
    openstack("image delete offered")


def test_content_is_imported_from_a_stage_and_from_the_web(
    openstack: OpenStack, sdk: Any, tmp_path: Path
) -> None:
    content = os.urandom(5000)
    (tmp_path / "some.raw").write_bytes(content)
    assert "web-download" in openstack("image import info")
    assert openstack("image stores list").strip()
    for method in ("glance-direct", "web-download"):
        # Not by the command line: without a terminal it takes its standard input as the content.
        id = sdk.image.create_image(method, disk_format="raw", container_format="bare").id
        if method == "glance-direct":
            openstack("image stage", id, "--file", str(tmp_path / "some.raw"))
            assert openstack.json("image show", id)["status"] == "uploading"
            openstack("image import --method glance-direct", id)
        else:
            with web_server(tmp_path) as url:
                openstack("image import --method web-download --uri", f"{url}/some.raw", id)
                await_active(openstack, id)
        await_active(openstack, id)
        shown = openstack.json("image show", id)
        assert shown["properties"]["os_hash_value"] == hashlib.sha512(content).hexdigest()
        openstack("image set --property speed=fast", id)
        assert openstack.json("image show", id)["properties"]["speed"] == "fast"
        [task] = openstack.json("image task list")[:1]
        assert task["Status"] == "success"
        openstack("image delete", id)


def test_the_sdk_uploads_downloads_and_lists(sdk: Any, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    file = tmp_path / "sdk.raw"
    file.write_bytes(content)
    made = sdk.create_image(
        "sdk", filename=str(file), disk_format="raw", container_format="bare", wait=True,
        speed="slow", validate_checksum=True,
    )
    assert made.status == "active"
    found = sdk.image.find_image("sdk")
    assert found.properties["speed"] == "slow"
    assert sdk.image.download_image(found).content == content
    streamed = sdk.image.download_image(found, stream=True)
    assert b"".join(streamed.iter_content(1 << 20)) == content
    for number in range(5):
        sdk.image.create_image(f"page-{number}", disk_format="raw", container_format="bare")
    names = [one.name for one in sdk.image.images(limit=2, sort="name:asc")]
    assert [name for name in names if name.startswith("page-")] == [
        f"page-{number}" for number in range(5)
    ]
    by_name = list(sdk.image.images(name="page-3"))
    assert [one.name for one in by_name] == ["page-3"]
    sdk.image.update_image(by_name[0], is_hidden=True, speed="9")
    assert list(sdk.image.images(name="page-3")) == []
    assert sdk.image.find_image("page-3").properties["speed"] == "9"
    for one in [*sdk.image.images(), *sdk.image.images(is_hidden=True)]:
        if one.name == "sdk" or one.name.startswith("page-"):
            sdk.image.delete_image(one)
    assert sdk.image.find_image("sdk") is None


def test_what_is_no_image_is_said_to_be_none(openstack: OpenStack, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(4000))
    said = openstack.refused(
        "image create bad --disk-format qcow2 --container-format bare --file",
        str(tmp_path / "noise"),
    )
    assert "no qcow2" in said
    assert "bad" not in openstack("image list")
