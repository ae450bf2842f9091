"""The composition root: the only place that picks a driver, a scheduler and a database."""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import sqlalchemy as sa
import structlog

from treadle.api.app import make_app
from treadle.api.consoles import MESSAGE_MAX
from treadle.api.context import Context
from treadle.cli.base import on_fault
from treadle.cli.files import FlavorEntry, HostEntry, ImageEntry, check_uri
from treadle.compute import store
from treadle.compute.failure import fencing
from treadle.compute.failure.evacuation import EvacuationHandler
from treadle.compute.failure.fencing import FenceHandler
from treadle.compute.failure.verdict import Patience
from treadle.compute.failure.watch import Watch, WatchPolicy
from treadle.compute.fleet import Fleet
from treadle.compute.hosts import HostHandler, HostImageHandler, HostPolicy, setup_of
from treadle.compute.inventory import register_host, register_image
from treadle.compute.kinds import (
    EVACUATION_KIND,
    HOST_KIND,
    IMAGE_KIND,
    KIND,
    MOVE_KIND,
    SNAPSHOT_KIND,
)
from treadle.compute.moves.cold_handler import EveryMove
from treadle.compute.moves.handler import MovePolicy
from treadle.compute.reconciler import InstanceHandler, Timing
from treadle.compute.snapshots import SnapshotHandler
from treadle.config import Settings, make_private, state_folder
from treadle.controller import queue
from treadle.controller.signals import Signals
from treadle.controller.worker import Controller, Handler
from treadle.db.engine import Database, open_database
from treadle.db.migrate import upgrade
from treadle.db.schema import meta
from treadle.errors import Permanent
from treadle.hypervisor.base import DriverFactory, HostSetup, Hypervisor, MoveOptions, Reach
from treadle.hypervisor.fake import FakeFleet
from treadle.identity.bootstrap import CLOUDS_FILE, bootstrap
from treadle.identity.login import Login
from treadle.identity.passwords import Passwords
from treadle.identity.rules import load_rules
from treadle.identity.tokens import Tokens
from treadle.identity.vault import Vault
from treadle.image.actions import KIND as FETCH_KIND
from treadle.image.blobs import open_blobs
from treadle.image.contents import Contents
from treadle.image.fetch import FetchLimits
from treadle.image.handler import ImageHandler
from treadle.image.sources import HttpUrl
from treadle.memory import give_freed_memory_back, trim
from treadle.placement import ledger
from treadle.placement.board import Board
from treadle.scheduler.engine import Scheduler
from treadle.sections import HostDefaults

if TYPE_CHECKING:
    import uvicorn

    from treadle.api.openstack.wire import Faced

log = structlog.get_logger("treadle")

GIB = 1 << 30


class CannotStart(Permanent):
    """The controller cannot start; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What `bin/script` was given: None leaves what the database has."""

    hosts: Sequence[HostEntry] | None = None
    images: Sequence[ImageEntry] | None = None
    flavors: Sequence[FlavorEntry] | None = None


def driver_factory(folder: Path, hosts: HostDefaults | None = None) -> DriverFactory:
    """Makes the driver for a URI: the fake for `fake://`, libvirt for everything else.

    `folder` keeps the hosts' SSH keys as they were first seen.
    """
    wanted = hosts or HostDefaults()
    identity = Path(wanted.identity_file) if wanted.identity_file else None
    fakes = FakeFleet()

    def make(uri: str) -> Hypervisor:
        check_uri(uri)
        if urlsplit(uri).scheme == "fake":
            return fakes.driver(uri)
        from treadle.hypervisor.libvirt import LibvirtDriver, LibvirtOptions

        return LibvirtDriver(uri, LibvirtOptions(
            state_dir=folder, identity_file=identity, anti_spoofing=wanted.anti_spoofing
        ))

    return make


def ssh_config(folder: Path, hosts: HostDefaults) -> Path:
    """The configuration with which hosts and images are reached, written into `folder`."""
    from treadle.hypervisor.libvirt import ssh

    ssh.write_files(folder, Path(hosts.identity_file) if hosts.identity_file else None)
    return folder / "ssh_config"


@dataclass
class Treadle:
    """All parts of one process, put together."""

    settings: Settings
    folder: Path
    database: Database
    signals: Signals
    fleet: Fleet
    controller: Controller
    watch: Watch
    context: Context
    app: Faced

    def register(self, inventory: Inventory) -> None:
        """Take what the start named into the database; ids stay what they were."""
        self.database.write(lambda conn: _register(conn, self.settings.host_defaults, inventory))
        self.signals.work_is_due()

    def close(self) -> None:
        """Stop the work, let the hosts and the database go."""
        self.watch.stop()
        self.controller.stop()
        self.context.login.passwords.close()
        self.fleet.close()
        self.database.close()


def assemble(
    settings: Settings, folder: Path, factory: DriverFactory | None = None
) -> Treadle:
    """Put a process together over the state folder; nothing is started yet.

    Errors: `InvalidInput`, `DatabaseUnfit`, `CannotStart`.
    """
    driver = factory or driver_factory(folder, settings.host_defaults)
    scheduler = Scheduler(
        settings.scheduler.policy, settings.scheduler.filters, settings.scheduler.weighers,
        on_fault=on_fault(settings.scheduler), predictor=settings.scheduler.predictor,
    )
    database = open_database(
        settings.database.url, folder, synchronous=settings.database.synchronous,
        pool_size=settings.database.pool_size,
    )
    upgrade(database)
    cloud_id = database.write(_cloud_id)
    signals = Signals()
    limits = settings.controller
    hosts = settings.host_defaults
    evacuates = settings.instances.on_host_failure == "evacuate"
    policy = HostPolicy(
        HostSetup(
            pool=hosts.pool, pool_path=hosts.pool_path, network=hosts.network,
            bridge=hosts.bridge, virt_type=hosts.virt_type,
        ),
        guest_pool=hosts.guest_pool, resync_s=limits.resync_s, image_share=limits.image_share,
        evacuates=evacuates,
    )
    fleet = Fleet(driver, lambda id: _setup_of(database, policy, id))
    timing = Timing(
        limits.lease_s, limits.build_deadline_s, limits.build_attempts,
        reclaim_s=settings.instances.reclaim_s,
        confirm_s=settings.instances.confirm_resize_s,
        offload_s=settings.instances.shelve_offload_s,
        adopt_drift=settings.instances.drift == "adopt", evacuates=evacuates,
    )
    fence = fencing.load(settings.fencing)
    tokens, rules = Tokens(database), load_rules(settings.server.rules_file)
    bootstrap(
        database, folder, region_name=settings.identity.region,
        url=settings.server.public_url or f"http://127.0.0.1:{settings.server.port}",
    )
    contents = image_contents(settings, folder)
    context = Context(
        database, signals, settings, driver, fleet, admin_token(folder), tokens, rules,
        Login(database, tokens, Passwords(), settings.identity), scheduler, contents,
        Vault(folder),
    )
    watching = HostHandler(database, fleet, signals, policy)
    board = Board(database, scheduler, settings.scheduler.batch_limit_s)
    handlers: dict[str, Handler] = {
        KIND: InstanceHandler(database, fleet, board, timing, cloud_id),
        HOST_KIND: watching,
        MOVE_KIND: EveryMove(
            database, fleet, board, MovePolicy(
                MoveOptions(
                    settings.moves.deadline_s, settings.moves.bandwidth_mib_s,
                    settings.moves.auto_converge, settings.moves.post_copy,
                ),
                settings.moves.at_once, limits.lease_s, evacuates, limits.build_deadline_s,
            ), cloud_id,
        ),
        EVACUATION_KIND: EvacuationHandler(
            database, fleet, board, limits.build_deadline_s, cloud_id, evacuates=evacuates
        ),
        fencing.KIND: FenceHandler(
            database, fence, settings.fencing.plugin, settings.fencing.deadline_s, evacuates
        ),
        IMAGE_KIND: HostImageHandler(database, fleet, signals, policy, contents),
        SNAPSHOT_KIND: SnapshotHandler(
            database, fleet, signals, contents, context.image_limits
        ),
        FETCH_KIND: ImageHandler(
            database, contents, context.image_limits, ssh_config(folder, hosts),
            context.guard,
        ),
    }
    controller = Controller(
        database, handlers, signals, lease_s=limits.lease_s, poll_s=limits.poll_s,
        threads=limits.threads,
        # A move holds a thread of its lane for as long as it lasts.
        host_threads=max(limits.host_threads, settings.moves.at_once),
    )
    watching.hint = controller.hint
    watch = _watch(settings, folder, database, fleet, signals)
    watch.hint = controller.hint
    return Treadle(
        settings, folder, database, signals, fleet, controller, watch, context, make_app(context)
    )


def _watch(
    settings: Settings, folder: Path, database: Database, fleet: Fleet, signals: Signals
) -> Watch:
    wanted = settings.fencing
    config = ssh_config(folder, settings.host_defaults)

    def reach(uri: str, seconds: float) -> Reach:
        from treadle.hypervisor.libvirt.reach import reach

        return reach(uri, config, seconds)

    def reach_from(peer: str, uri: str, seconds: float) -> Reach:
        from treadle.hypervisor.libvirt.reach import reach_from

        return reach_from(peer, uri, config, seconds)

    return Watch(
        database, fleet, signals,
        WatchPolicy(
            Patience(wanted.silent_s, wanted.share), wanted.beat_s, wanted.peers,
            fences=wanted.plugin != fencing.NONE,
        ),
        reach, reach_from,
    )


def image_contents(settings: Settings, folder: Path) -> Contents:
    """Where images are kept. Errors: `NotAvailable`."""
    wanted = settings.image
    images = folder / "images"
    images.mkdir(mode=0o700, exist_ok=True)
    blobs = open_blobs(
        wanted.blobs, images, endpoint=wanted.s3_endpoint, region=wanted.s3_region,
        access_key=wanted.s3_access_key, secret_key=wanted.s3_secret_key,
    )
    contents = Contents(blobs, images, FetchLimits(wanted.max_gib * GIB, wanted.fetch_seconds))
    contents.sweep()
    return contents


def admin_token(folder: Path) -> str:
    """The secret in the file `admin-token` of the state folder, made at the first start."""
    path = folder / "admin-token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def _cloud_id(conn: sa.Connection) -> str:
    known: str | None = conn.execute(
        sa.select(meta.c.value).where(meta.c.key == "cloud_id")
    ).scalar()
    if known is None:
        known = str(uuid4())
        conn.execute(sa.insert(meta).values(key="cloud_id", value=known))
    return known


def _setup_of(database: Database, policy: HostPolicy, host_id: int) -> HostSetup | None:
    """What the host is set up with; None where its own pass has still to find out what it runs."""
    host = database.read(lambda conn: ledger.get_host(conn, host_id))
    setup = None if host is None else setup_of(policy, host)
    return None if setup is None or setup.virt_type == "auto" else setup


def _register(conn: sa.Connection, defaults: HostDefaults, inventory: Inventory) -> None:
    if inventory.hosts is not None:
        kept = {
            register_host(conn, defaults, entry.uri, entry.address) for entry in inventory.hosts
        }
        for host in ledger.list_hosts(conn):
            if host.id not in kept and not ledger.remove_host(conn, host.id):
                ledger.disable_host(conn, host.id, "it is no longer in the PM_FILE")
    else:
        for host in ledger.list_hosts(conn):
            queue.enqueue(conn, HOST_KIND, str(host.id), lane=host.id)
    for image in inventory.images or ():
        source = image.source.url if isinstance(image.source, HttpUrl) else str(image.source)
        register_image(conn, source, image.name)
    if inventory.flavors is not None:
        for entry in inventory.flavors:
            store.put_flavor(
                conn, store.Flavor(entry.tid, entry.vcpus, entry.memory_mib, entry.disk_gib)
            )
        store.retire_flavors(conn, [entry.tid for entry in inventory.flavors])


def lock_folder(folder: Path) -> int:
    """Make this process the only one on the folder; the descriptor holds it.

    Errors: `CannotStart` where another process has it.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise CannotStart(
            f"another Treadle runs on {folder}: stop it, or name another state.folder"
        ) from error
    return handle


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Errors: `CannotStart` in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        mend = {
            13: "is not allowed for this user: run as root, or use --port 8080",
            98: "is taken: stop what listens there, or use --port",
        }.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise CannotStart(f"port {port} on {host} {mend}") from error
    listener.listen(1024)
    return listener


def server_config(app: Any, **changes: Any) -> uvicorn.Config:
    """How the application is served; `changes` are for tests."""
    import uvicorn

    options: dict[str, Any] = {
        "log_config": None, "access_log": False, "lifespan": "off", "server_header": False,
        "timeout_graceful_shutdown": 5, "ws_max_size": MESSAGE_MAX,
        "ws_per_message_deflate": False,
    }
    return uvicorn.Config(app, **{**options, **changes})


def serve(settings: Settings, inventory: Inventory | None = None) -> None:
    """Run until SIGTERM or SIGINT. Errors: `CannotStart`, `InvalidInput`, `DatabaseUnfit`."""
    import uvicorn

    configure_logging(settings)
    give_freed_memory_back()
    folder = make_private(state_folder(settings, os.geteuid(), os.environ))
    listener = listen(settings.server.host, settings.server.port)
    lock = lock_folder(folder) if not settings.database.url else None
    treadle = assemble(settings, folder)
    try:
        treadle.register(inventory or Inventory())
        if settings.controller.enabled:
            treadle.controller.start()
            treadle.watch.start()
        server = uvicorn.Server(server_config(treadle.app))
        # What is there now stays; a request leaves few cycles behind.
        trim()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        port = listener.getsockname()[1]
        log.info(
            "serving", url=f"http://{settings.server.host}:{port}", state=str(folder),
            clouds=str(folder / CLOUDS_FILE),
        )
        server.run(sockets=[listener])
    finally:
        treadle.close()
        listener.close()
        if lock is not None:
            os.close(lock)


def configure_logging(settings: Settings) -> None:
    """One line an event on standard error; JSON unless it is a terminal."""
    import logging

    style = settings.log.format
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log.level.upper()]
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


