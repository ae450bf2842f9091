"""Databases for tests: both kinds, migrated, and empty for each test.

PostgreSQL is a private cluster in a temporary folder, on a socket only its user can reach. It is
made when the first test asks for it (one per worker process) and stopped by its own process id.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from xdist.scheduler import LoadScopeScheduling

from treadle.db.engine import Database, PostgresDatabase, SqliteDatabase
from treadle.db.migrate import HEAD, upgrade
from treadle.db.schema import metadata

SERVER_USER = "postgres"
START_S = 20.0
SPEED = (
    "fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=",
    "max_connections=120", "shared_buffers=32MB", "log_min_messages=panic", "autovacuum=off",
    "unix_socket_permissions=0700", "deadlock_timeout=100ms",
)


LIVES = ("test_cloud.py", "test_kill.py", "test_life.py", "test_moves.py")
"""The half of the lab's tests that boot most guests."""
ON_REAL_HOSTS = ("test_lab.py", "test_libvirt_host.py", "test_lxc_host.py")
"""Files elsewhere whose tests need the lab."""
FIRST = ("lives", "lab", "tests/conformance", "tests/crash")
"""What takes longest comes first, so that no process is left with it."""


def scope_of(nodeid: str) -> str:
    """What a test stays together with where a run has several processes.

    What needs the lab runs in two of them, from the beginning on: it waits for guests most of the
    time. All else goes by its file, but for the sweeps, whose cases share nothing.
    """
    path, _, name = nodeid.partition("::")
    file = path.rpartition("/")[2]
    if path.startswith("tests/lab/") or file in ON_REAL_HOSTS or "[lab-" in name:
        return "lives" if file in LIVES else "lab"
    return nodeid if path.startswith("tests/crash/") else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    def rank(item: pytest.Item) -> int:
        scope = scope_of(item.nodeid)
        return next((n for n, one in enumerate(FIRST) if scope.startswith(one)), len(FIRST))

    items.sort(key=rank)


class ByScope(LoadScopeScheduling):
    """Gives each free process the next scope, in their order. xdist's own `loadgroup` names groups
    in a way that pytest 9.2 has no eye for."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByScope:
    """In place of that which `--dist` names."""
    return ByScope(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests recorded as figures, wherever they ran."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "figures":
                    terminalreporter.write_line(str(value))


@dataclass
class Cluster:
    """A running PostgreSQL server; `migrated` is a database at the newest schema in it."""

    sockets: Path
    migrated: str = "migrated"
    _names: Iterator[int] = count(1)  # noqa: RUF009 - one cluster a process
    _cleaner: psycopg.Connection | None = None

    def url(self, name: str) -> str:
        """The URL of one of its databases, as the settings take it."""
        return f"postgresql://treadle@/{name}?host={self.sockets}"

    def sql(self, statement: str) -> None:
        """Run one statement outside any transaction."""
        address = f"host={self.sockets} user=treadle dbname=postgres"
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(statement.encode())

    def create(self) -> str:
        """A new database with nothing in it; returns its name."""
        name = f"test_{next(self._names)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def clear(self) -> None:
        """Empty the migrated database: a tenth of the time that a new one takes."""
        if self._cleaner is None:
            address = f"host={self.sockets} user=treadle dbname={self.migrated}"
            self._cleaner = psycopg.connect(
                address, autocommit=True, options="-c lock_timeout=10s"
            )
        emptied = "".join(f"DELETE FROM {one.name};" for one in reversed(metadata.sorted_tables))
        self._cleaner.execute(
            f"{emptied} UPDATE alembic_version SET version_num = '{HEAD}';"
            "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'".encode()
        )

    def close(self) -> None:
        """Let the connection that empties the database go."""
        if self._cleaner is not None:
            self._cleaner.close()

    def open(self, name: str, **options: int) -> PostgresDatabase:
        """A `Database` on one of its databases."""
        url = self.url(name).replace("postgresql://", "postgresql+psycopg://")
        return PostgresDatabase(url, **options)


def _binaries() -> Path:
    """The folder of PostgreSQL's programs, the newest where there are several."""
    folders = [
        path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")
        if (path.parent / "initdb").exists()
    ]
    if folders:
        return max(folders, key=lambda path: int(re.sub(r"\D.*", "", path.parent.name) or 0))
    found = shutil.which("postgres")
    if found and shutil.which("initdb"):
        return Path(found).parent
    pytest.fail(
        "PostgreSQL's server is not installed, and half of these tests need it: "
        "apt-get install postgresql", pytrace=False,
    )


def _identity(folder: Path) -> dict[str, object]:
    """How to start a program that refuses to run as root: as the user of PostgreSQL's package."""
    if os.geteuid() != 0:
        return {}
    try:
        shutil.chown(folder, SERVER_USER)
    except LookupError:
        pytest.fail(
            f"the tests run as root and PostgreSQL does not: there is no user {SERVER_USER}",
            pytrace=False,
        )
    return {"user": SERVER_USER, "group": SERVER_USER, "extra_groups": []}


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(number)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            continue
        return


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of this test run alone."""
    programs = _binaries()
    # The path of a Unix socket may have 107 characters; pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="tpg-", dir="/tmp"))
    server = None
    try:
        identity = _identity(folder)
        data = folder / "data"
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "treadle", "--auth=trust", "--no-sync",
             "--no-instructions", "--locale=C", "--encoding=UTF8"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment, timeout=60,
            **identity,  # type: ignore[call-overload]
        )
        command: list[str | Path] = [programs / "postgres", "-D", data, "-k", folder]
        for setting in SPEED:
            command += ["-c", setting]
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            **identity,  # type: ignore[call-overload]
        )
        cluster = Cluster(folder)
        _await(cluster, server)
        cluster.sql(f"CREATE DATABASE {cluster.migrated} TEMPLATE template0")
        database = cluster.open(cluster.migrated)
        upgrade(database)
        database.close()
        yield cluster
        cluster.close()
    finally:
        if server is not None:
            _stop(server)
        shutil.rmtree(folder, ignore_errors=True)


def _await(cluster: Cluster, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            return cluster.sql("SELECT 1")
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"PostgreSQL's server did not start: {error}", pytrace=False)
        time.sleep(0.02)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated and empty SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("template") / "treadle.sqlite"
    database = SqliteDatabase(path)
    upgrade(database)
    database.close()
    return path


@pytest.fixture
def own_sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[SqliteDatabase]:
    """An empty SQLite database at the newest schema that the test may close or spoil."""
    path = tmp_path / "treadle.sqlite"
    shutil.copy(sqlite_template, path)
    database = SqliteDatabase(path)
    yield database
    database.close()


@pytest.fixture(scope="session")
def _shared_sqlite(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SqliteDatabase]:
    path = tmp_path_factory.mktemp("shared") / "treadle.sqlite"
    shutil.copy(sqlite_template, path)
    database = SqliteDatabase(path, synchronous="NORMAL")
    yield database
    database.close()


@pytest.fixture
def sqlite_database(_shared_sqlite: SqliteDatabase) -> SqliteDatabase:
    """An empty SQLite database at the newest schema."""
    def clear(conn: sa.Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            conn.execute(table.delete())
        conn.exec_driver_sql("DELETE FROM sqlite_sequence")

    _shared_sqlite.write(clear)
    return _shared_sqlite


@pytest.fixture(scope="session")
def _shared_postgres(postgres_cluster: Cluster) -> Iterator[PostgresDatabase]:
    database = postgres_cluster.open(postgres_cluster.migrated)
    yield database
    database.close()


@pytest.fixture
def postgres_database(
    postgres_cluster: Cluster, _shared_postgres: PostgresDatabase
) -> PostgresDatabase:
    """An empty PostgreSQL database at the newest schema."""
    postgres_cluster.clear()
    return _shared_postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """An empty database at the newest schema: each test runs on both kinds."""
    kind = "sqlite_database" if request.param == "sqlite" else "postgres_database"
    opened: Database = request.getfixturevalue(kind)
    return opened


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database in which nothing has been made yet, of both kinds."""
    if request.param == "sqlite":
        made: Database = SqliteDatabase(tmp_path / "fresh.sqlite")
        yield made
        made.close()
        return
    cluster: Cluster = request.getfixturevalue("postgres_cluster")
    name = cluster.create()
    made = cluster.open(name)
    yield made
    made.close()
    cluster.drop(name)
