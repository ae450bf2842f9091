"""Controllers over simulated machines: one a test, or one that many tests only ask."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloudkit import ROOMY, Cloud, Start, start_cloud
from computekit import Api

from treadle.db.schema import image
from treadle.identity import passwords


@pytest.fixture(scope="module", autouse=True)
def quick_passwords() -> Iterator[None]:
    """Real hashes that take less: what they cost by default is tested in tests/unit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "MEMORY_KIB", 64)
        patch.setattr(passwords, "PASSES", 1)
        passwords._hasher.cache_clear()
        yield
    passwords._hasher.cache_clear()


@pytest.fixture(scope="session")
def disk_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, empty qcow2 image of 1 MiB."""
    path = tmp_path_factory.mktemp("images") / "tiny.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True, timeout=30
    )
    return path


@pytest.fixture
def start(
    tmp_path: Path, sqlite_template: Path, disk_image: Path
) -> Iterator[Start]:
    """Starts controllers, each on a folder of its own, and stops them at the end."""
    started: list[Cloud] = []

    def begin(*hosts: str, **options: Any) -> Cloud:
        settings = options.pop("settings", {})
        folder = options.pop("folder", None) or tmp_path / f"state-{len(started)}"
        if not folder.exists():
            folder.mkdir()
            shutil.copy(sqlite_template, folder / "treadle.sqlite")
        cloud = start_cloud(
            folder, hosts=hosts or (f"fake://h1{ROOMY}", f"fake://h2{ROOMY}"),
            image=options.pop("image", disk_image), settings=settings, **options,
        )
        started.append(cloud)
        return cloud

    yield begin
    for cloud in started:
        cloud.stop()


@pytest.fixture
def cloud(start: Start) -> Cloud:
    """Two roomy hosts, one image, three flavors."""
    return start()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, disk_image: Path
) -> Iterator[Cloud]:
    """A controller that many tests ask without changing it, on both databases."""
    folder = tmp_path_factory.mktemp("shared")
    settings: dict[str, object] = {}
    drop = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        settings["database.url"] = cluster.url(name)
        drop = (cluster, name)
    made = start_cloud(
        folder, hosts=(f"fake://h1{ROOMY}",), image=disk_image, settings=settings,
    )
    made.create("resident")
    yield made
    made.stop()
    if drop is not None:
        drop[0].drop(drop[1])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, disk_image: Path
) -> Iterator[Api]:
    """Compute v2.1 over two hosts, on both databases; tests take names of their own."""
    folder = tmp_path_factory.mktemp("compute")
    settings: dict[str, object] = {}
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        settings["database.url"] = cluster.url(name)
    made = start_cloud(
        folder, hosts=(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}"), image=disk_image,
        settings=settings,
    )
    yield Api(made)
    made.stop()
    if request.param == "postgresql":
        cluster.drop(name)


@pytest.fixture(scope="module")
def image_id(api: Api) -> str:
    """The UUID of its one image."""
    found: str = api.cloud.treadle.database.read(
        lambda conn: conn.execute(image.select()).one().uuid
    )
    return found
