"""The OpenStack face: what a client of that world waits for."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.parts import FAKE_HOSTS, Figures, fake_machines, small_image
from bench.server import (
    Controller,
    controller,
    median_ms,
    requests_per_second,
    taken,
    wait_until,
)
from treadle.db.schema import instance

CONNECTIONS = 8
CLIENTS = 16
BATCH = 100
MANY = 100_000
ROUNDS = 40
ASK_S = 0.002
"""How often a client asks whether its server is ACTIVE."""
VERSION = "2.96"


class Cloud:
    """A session of the cloud's administrator."""

    def __init__(self, one: Controller, folder: Path) -> None:
        self.one = one
        self.password = password_of(folder / "state")
        self.token = ""
        self.token = self.login()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        """One call: status, headers, decoded body."""
        headers = {"Content-Type": "application/json", "OpenStack-API-Version":
                   f"compute {VERSION}"}
        if self.token:
            headers["X-Auth-Token"] = self.token
        answer = self.one.http.request(
            method, f"http://127.0.0.1:{self.one.port}{path}", headers=headers,
            body=None if body is None else json.dumps(body).encode(),
        )
        return answer.status, answer.headers, json.loads(answer.data or b"null")

    def login(self) -> str:
        """A new token."""
        domain = {"id": "default"}
        status, headers, body = self.call("POST", "/identity/v3/auth/tokens", {"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "admin", "domain": domain, "password": self.password,
            }}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }})
        if status != 201:
            raise SystemExit(f"no token: {status} {body}")
        return str(headers["X-Subject-Token"])

    @property
    def lines(self) -> str:
        """The headers of a raw request."""
        return f"X-Auth-Token: {self.token}\r\nOpenStack-API-Version: compute {VERSION}\r\n"

    def create(self, name: str, image: str, flavor: str) -> tuple[str, float]:
        """Ask for a server: its UUID, and the seconds to the 202."""
        started = time.perf_counter()
        status, _, body = self.call("POST", "/compute/v2.1/servers", {"server": {
            "name": name, "imageRef": image, "flavorRef": flavor, "networks": "auto",
        }})
        if status != 202:
            raise SystemExit(f"no server: {status} {body}")
        return body["server"]["id"], time.perf_counter() - started

    def unlimited(self) -> None:
        """Lift the quotas of the administrator's project."""
        _, _, found = self.call("GET", "/identity/v3/auth/projects")
        project = found["projects"][0]["id"]
        status, _, body = self.call("PUT", f"/compute/v2.1/os-quota-sets/{project}", {
            "quota_set": {"instances": -1, "cores": -1, "ram": -1},
        })
        if status != 200:
            raise SystemExit(f"no quota: {status} {body}")


def password_of(state: Path) -> str:
    """The administrator's password, from the file that clients use."""
    text = (state / "clouds.yaml").read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith("password:"))
    return line.partition(":")[2].strip().strip("'\"")


def openstack(folder: Path) -> Figures:
    """Servers through OpenStack's API, on simulated hosts."""
    with controller(folder, fake_machines(FAKE_HOSTS), small_image(folder)) as one:
        cloud = Cloud(one, folder)
        cloud.unlimited()
        image = cloud.call("GET", "/image/v2/images")[2]["images"][0]["id"]
        flavor = cloud.call("GET", "/compute/v2.1/flavors")[2]["flavors"][0]["id"]
        warm, _ = cloud.create("warm", image, flavor)
        wait_until(lambda: _active(cloud) == 1, 30, "the first server")
        classic, native, posts = [], [], []
        for number in range(ROUNDS):
            posted, active = _until_active(cloud, f"a{number}", image, flavor)
            posts.append(posted)
            native.append(active)
            classic.append(_classic(one, f"b{number}"))
        in_a_row = [cloud.create(f"post{n}", image, flavor)[1] * 1000 for n in range(ROUNDS)]
        wait_until(lambda: _building(cloud) == 0, 60, "the servers")
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            crowd = [took * 1000 for _, took in pool.map(
                lambda n: cloud.create(f"crowd{n}", image, flavor), range(ROUNDS * 2)
            )]
        wait_until(lambda: _building(cloud) == 0, 60, "the servers")
        started = time.monotonic()
        before = _active(cloud)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda n: cloud.create(f"vm{n}", image, flavor), range(BATCH)))
        wait_until(lambda: _all_active(cloud, before + BATCH), 60, "a hundred servers")
        hundred = time.monotonic() - started
        page = "/compute/v2.1/servers/detail?limit=100"
        requests_per_second(one.port, [page], 0.5, CONNECTIONS, cloud.lines)
        detail = requests_per_second(one.port, [page], 5.0, CONNECTIONS, cloud.lines)
        path = f"/compute/v2.1/servers/{warm}"
        requests_per_second(one.port, [path], 0.5, CONNECTIONS, cloud.lines)
        shown = requests_per_second(one.port, [path], 5.0, CONNECTIONS, cloud.lines)
        figures = {
            "post_202_ms": statistics.median(posts),
            "post_202_ms_in_a_row": statistics.median(in_a_row),
            "post_202_ms_8_at_once": statistics.median(crowd), "detail_100_per_s": detail,
            "server_show_per_s": shown, "hundred_active_s": hundred,
            "spawn_over_classic_ms": statistics.median(
                a - b for a, b in zip(native, classic, strict=True)
            ),
            "token_ms": median_ms(lambda: _again(cloud), 50),
            "rss_mb": one.rss_mb(),
        }
    return figures | _pages(folder)


def _until_active(cloud: Cloud, name: str, image: str, flavor: str) -> tuple[float, float]:
    """Milliseconds to the 202 and to ACTIVE, on a controller that has nothing else to do."""
    started = time.perf_counter()
    uuid, posted = cloud.create(name, image, flavor)
    while True:
        # Without a pause the asking itself would take one of the two cores from the controller.
        time.sleep(ASK_S)
        server = cloud.call("GET", f"/compute/v2.1/servers/{uuid}")[2]["server"]
        if server["status"] == "ACTIVE":
            return posted * 1000, (time.perf_counter() - started) * 1000
        if server["status"] == "ERROR":
            raise SystemExit(f"no server: {server['fault']}")


def _classic(one: Controller, name: str) -> float:
    started = time.perf_counter()
    if not one.get(f"/vm/create?name={name}&instance_type=1")["vmid"]:
        raise SystemExit("a VM was not made")
    return (time.perf_counter() - started) * 1000


def _again(cloud: Cloud) -> None:
    """A token for a token: what a log-in costs but for the password."""
    status, _, _ = cloud.call("POST", "/identity/v3/auth/tokens", {"auth": {
        "identity": {"methods": ["token"], "token": {"id": cloud.token}},
    }})
    if status != 201:
        raise SystemExit(f"no token: {status}")


def _active(cloud: Cloud) -> int:
    return _count(cloud, "ACTIVE")


def _building(cloud: Cloud) -> int:
    return _count(cloud, "BUILD")


def _count(cloud: Cloud, status: str) -> int:
    found = cloud.call("GET", f"/compute/v2.1/servers?status={status}&limit=1000")[2]["servers"]
    return len(found)


def _all_active(cloud: Cloud, wanted: int) -> bool:
    return _active(cloud) >= wanted


def _pages(folder: Path) -> Figures:
    """A page out of many servers beside one out of a thousand, of two controllers in turns."""
    machines, picture = fake_machines(3), small_image(folder)
    path = "/compute/v2.1/servers/detail?limit=100"
    with ExitStack() as both:
        clouds: list[Cloud] = []
        for count in (1000, MANY):
            place = folder / str(count)
            with controller(place, machines, picture) as one:
                Cloud(one, place).create("first", *_refs(Cloud(one, place)))
            _fill(place / "state" / "treadle.sqlite", count)
            clouds.append(Cloud(both.enter_context(controller(place, machines, picture)), place))
        for cloud in clouds:
            page = cloud.call("GET", path)[2]["servers"]
            if len(page) != 100:
                raise SystemExit(f"a page of {len(page)}")
        pairs = [
            [taken(lambda cloud=cloud: cloud.call("GET", path)) for cloud in clouds]
            for _ in range(200)
        ]
    few, many = map(statistics.median, zip(*pairs, strict=True))
    return {"page_ratio_100k_1k": many / few}


def _refs(cloud: Cloud) -> tuple[str, str]:
    image = cloud.call("GET", "/image/v2/images")[2]["images"][0]["id"]
    return image, cloud.call("GET", "/compute/v2.1/flavors")[2]["flavors"][0]["id"]


def _fill(path: Path, count: int) -> None:
    """Copy the one instance there is, as a settled error, into a store that nobody uses."""
    from uuid import uuid4

    from pysqlite3 import dbapi2

    engine = sa.create_engine(f"sqlite:///{path}", module=dbapi2)
    with engine.begin() as conn:
        like = dict(conn.execute(sa.select(instance).limit(1)).one()._mapping)
        like.pop("id")
        like |= {"goal": "failed", "state": "error", "host_id": None}
        for start in range(0, count, 5000):
            conn.execute(sa.insert(instance), [
                {**like, "uuid": str(uuid4()), "name": f"stored{n}",
                 "created_at": like["created_at"] + n / 1000}
                for n in range(start, min(count, start + 5000))
            ])
    engine.dispose()
