"""One shared connection to a host, on which no verb outlives its deadline.

A call that waits in libvirt cannot be cancelled. So a verb's body runs in a thread of the host's
own; whoever asked waits for it until the deadline and no longer. A body that comes back late finds
that it was given up at its next step, and does nothing more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import libvirt

from treadle.hypervisor.base import HostUnreachable, VerbTimeout
from treadle.hypervisor.libvirt import errors, events
from treadle.hypervisor.libvirt.memory import ALL, RUNNING, Memory
from treadle.hypervisor.libvirt.ssh import with_ssh

T = TypeVar("T")
P = TypeVar("P")

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
MAX_STUCK = 4
IDLE_SECONDS = 30.0
EACH = 3
"""How many long calls share a connection. libvirtd takes five of one at once (its
`max_client_requests`) and reads no more meanwhile, not even keepalive's: some must stay free for
calls that look for something or end another."""
SPARE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each kind of verb may take, the opening of the connection included.

    `look`: observing. `change`: defining, starting, stopping. `per_gib`: what is added for each
    GiB of memory that is written or read. `copy_mib_s`: the slowest speed at which an image may
    be copied, in MiB/s. `agent`: what a guest's agent is asked. `let_go`: how long a guest is
    waited for that was asked to let go of a device.
    """

    connect: float = 10.0
    look: float = 20.0
    change: float = 60.0
    per_gib: float = 20.0
    copy_mib_s: float = 2.0
    agent: float = 15.0
    let_go: float = 20.0


@dataclass(frozen=True, slots=True)
class LibvirtOptions:
    """What all hosts share. `state_dir` keeps ssh's files and is made with mode 0700.

    `anti_spoofing` puts a network filter before each guest, where the host can; it adds 0.3 s to
    a start.
    """

    state_dir: Path
    identity_file: Path | None = None
    anti_spoofing: bool = True
    deadlines: Deadlines = field(default_factory=Deadlines)


class Attempt:
    """One verb on its way. Every call to libvirt goes through it: `attempt(domain.create)`."""

    def __init__(self, verb: str, seconds: float) -> None:
        self.verb = verb
        self.deadline = time.monotonic() + seconds
        self.given_up = False

    def left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Allow that much more."""
        self.deadline += seconds

    def check(self) -> None:
        """Errors: `VerbTimeout` when nobody waits for this verb any more."""
        if self.given_up or self.left() <= 0:
            raise VerbTimeout(f"{self.verb} did not end in time")

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.check()
        return function(*arguments)


class Link:
    """An open connection and what was learnt about it."""

    def __init__(self, conn: Any, uri: str) -> None:
        self.conn = conn
        self.kind: str = conn.getType()
        self.session = urlsplit(uri).path.endswith("/session")
        self.known: dict[Hashable, Any] = {}
        self.domains: dict[str, Any] = {}
        """Handles by UUID. Each may be of a domain that is gone."""
        self.memory = Memory()
        self.undo: Callable[[], None] = lambda: None
        self.users = 0
        """How many bodies use it now; it is not closed under any. Under its `Connection`'s lock,
        as is `over`: that it is to be closed."""
        self.over = False

    def alive(self) -> bool:
        """Whether it is not known to be broken. Asks nobody."""
        try:
            return bool(self.conn.isAlive())
        except libvirt.libvirtError:
            return False


class _Job(Generic[T]):
    """A function in a thread of ours, and its outcome."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.started = time.monotonic()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        finally:
            self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(max(0.0, seconds))

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class _Threads:
    """As many daemon threads as there are jobs at once; an idle one ends after 30 s."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Job[Any]]] = []

    def start(self, job: _Job[Any]) -> None:
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = queue.SimpleQueue()
            threading.Thread(
                target=self._serve, args=(inbox,), name=self._name, daemon=True
            ).start()
        inbox.put(job)

    def _serve(self, inbox: queue.SimpleQueue[_Job[Any]]) -> None:
        while True:
            try:
                job = inbox.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                continue
            job.run()
            del job
            with self._lock:
                self._idle.append(inbox)


class Connection:
    """The connection to one host: opened by the first verb, opened again after it broke."""

    def __init__(
        self,
        uri: str,
        options: LibvirtOptions,
        changed: events.Stopped | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self.uri = uri
        self._options = options
        self._changed = changed
        self._lost = lost
        self._lock = threading.Lock()
        self._threads = _Threads(f"host-{urlsplit(uri).hostname or 'local'}")
        self._link: Link | None = None
        self._opening: _Job[Link] | None = None
        self._late: list[_Job[Any]] = []
        self._beat: tuple[Link | None, _Job[int] | None] = None, None

    def forget(self, uuid: str) -> None:
        """What was read of the domain counts no more: it was changed over another connection."""
        with self._lock:
            link = self._link
        if link is not None:
            link.memory.forget(uuid)

    # -- verbs

    def run(self, verb: str, seconds: float, body: Callable[[Link, Attempt], P]) -> P:
        """Run `body` with an open link. Errors: what `body` raises, in types of ours;
        `VerbTimeout`; `HostUnreachable`."""
        attempt = Attempt(verb, seconds)
        used: list[Link] = []

        def carry() -> P:
            link = self._open(attempt)
            used.append(link)
            attempt.check()
            with self.in_use(link):
                try:
                    return body(link, attempt)
                except libvirt.libvirtError as error:
                    if errors.is_broken(error) or not link.alive():
                        self.drop(link)
                        raise HostUnreachable(f"{verb}: {errors.detail(error)}") from error
                    raise errors.translate(error, verb) from error

        job: _Job[P] = _Job(carry)
        self._refuse_if_stuck()
        self._threads.start(job)
        while not job.wait(attempt.left()):
            if attempt.left() <= 0:
                return self._give_up(attempt, job, used)
        return job.result()

    def beat(self, seconds: float) -> bool | None:
        """Whether the host answers within `seconds`; None where no connection is open. What does
        not answer is left to hang, one call at a time, and the connection as it is."""
        with self._lock:
            link, (asked, job) = self._link, self._beat
        if link is None or not link.alive():
            return None
        if job is not None and asked is link and not job.done:
            return False  # it has not answered what it was asked before

        def ask() -> int:
            with self.in_use(link):
                return int(link.conn.getLibVersion())

        job = _Job(ask)
        with self._lock:
            self._beat = link, job
        self._threads.start(job)
        if not job.wait(seconds):
            return False
        try:
            job.result()
        except libvirt.libvirtError as error:
            return not errors.is_broken(error)
        except HostUnreachable:
            return None
        return True

    def stuck(self) -> int:
        """How many threads wait in libvirt with nobody waiting for them."""
        with self._lock:
            self._late = [job for job in self._late if not job.done]
            return len(self._late)

    def close(self) -> None:
        """Let the connection go. The next verb would open it again."""
        with self._lock:
            link = self._link
            self._opening = None
        if link is not None:
            self.drop(link)

    def drop(self, link: Link) -> None:
        """Forget a link, and free it without waiting for it, once nobody uses it: libvirt would
        free what a call that is under way works with."""
        with self._lock:
            if self._link is link:
                self._link = None
            idle = not link.over and not link.users
            link.over = True
        if idle:
            self._threads.start(_Job(lambda: _dispose(link)))

    @contextmanager
    def in_use(self, link: Link) -> Iterator[None]:
        """Keep a link open. Errors: `HostUnreachable` where it was dropped meanwhile."""
        with self._lock:
            if link.over:
                raise HostUnreachable("the connection was given up meanwhile")
            link.users += 1
        try:
            yield
        finally:
            with self._lock:
                link.users -= 1
                last = link.over and not link.users
            if last:
                self._threads.start(_Job(lambda: _dispose(link)))

    def _give_up(self, attempt: Attempt, job: _Job[P], used: list[Link]) -> P:
        attempt.given_up = True
        with self._lock:
            self._late.append(job)
        if used:
            self.drop(used[0])
        raise VerbTimeout(f"{attempt.verb} did not end in time")

    def _refuse_if_stuck(self) -> None:
        count = self.stuck()
        if count > MAX_STUCK:
            raise HostUnreachable(f"the host does not answer: {count} calls to it still hang")

    # -- opening

    def _open(self, attempt: Attempt) -> Link:
        limit = self._options.deadlines.connect
        with self._lock:
            link = self._link
            if link is not None and link.alive():
                return link
            self._link = None
            opening = self._opening
            if opening is not None and not opening.done:
                if time.monotonic() - opening.started > limit:
                    self._late.append(opening)
                    opening = None
            else:
                opening = None
            if opening is None:
                opening = self._new_opening()
        if link is not None:
            self.drop(link)
        left = min(attempt.left(), opening.started + limit - time.monotonic())
        if not opening.wait(left):
            raise HostUnreachable(f"cannot connect: no answer within {limit:g} s")
        return opening.result()

    def _new_opening(self) -> _Job[Link]:
        """Start to open. Called with the lock held."""
        self._late = [job for job in self._late if not job.done]
        if len(self._late) > MAX_STUCK:
            raise HostUnreachable(
                f"the host does not answer: {len(self._late)} calls to it still hang"
            )
        box: list[_Job[Link]] = []

        def work() -> Link:
            link = self._connect()
            with self._lock:
                wanted = self._opening is box[0]
                if wanted:
                    self._link, self._opening = link, None
            if not wanted:
                _dispose(link)
                raise HostUnreachable("cannot connect: it took too long")
            return link

        job = _Job(work)
        box.append(job)
        self._opening = job
        self._threads.start(job)
        return job

    def _connect(self) -> Link:
        events.ensure_loop()
        uri = with_ssh(self.uri, self._options.state_dir, self._options.identity_file)
        try:
            conn = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise errors.translate_open(error) from error
        try:
            _keep_alive(conn)
            link = Link(conn, self.uri)
            if self._changed is not None:
                link.undo, link.memory.on = events.listen(
                    conn, self._telling(link), lambda: self._gone(link)
                )
        except libvirt.libvirtError as error:
            raise errors.translate_open(error) from error
        return link

    def _telling(self, link: Link) -> events.Stopped:
        """From the event thread: what was read of the domain may count no more."""

        def tell(uuid: str, event: int, reason: int) -> None:
            if (event, reason) in events.STORES_A_DEFINITION:
                link.memory.hear(uuid)
            elif (event, reason) not in events.CHANGES_NOTHING_READ:
                left = event in events.LEAVES_THE_DEFINITION
                link.memory.forget(uuid, RUNNING if left else ALL)
            if self._changed is not None:
                self._changed(uuid, event, reason)

        return tell

    def _gone(self, link: Link) -> None:
        """libvirt says that the connection broke: from the event thread, so only hand over."""
        with self._lock:
            current = self._link is link
        if current:
            self.drop(link)
            if self._lost is not None:
                self._lost()


@dataclass
class _Lent:
    """A connection that is lent; `since`: when the last who had it gave it back. `over`: something
    failed on it, so nobody else gets it."""

    one: Connection
    users: int = 0
    since: float = 0.0
    over: bool = False


class Spares:
    """Connections for calls that take long, beside the one that everybody uses: opening one takes
    ten times as long as most calls, so a few share one, and it is kept for a while."""

    def __init__(self, uri: str, options: LibvirtOptions) -> None:
        self._uri = uri
        self._options = options
        self._lock = threading.Lock()
        self._lent: list[_Lent] = []

    @contextmanager
    def borrowed(self) -> Iterator[Connection]:
        """One that has room for one more call, open or not yet. It is closed, once nobody has it,
        where the block ends in an error."""
        with self._lock:
            usable = [it for it in self._lent if not it.over and it.users < EACH]
            lent = max(usable, key=lambda it: it.users, default=None)
            if lent is None:
                lent = _Lent(Connection(self._uri, self._options))
                self._lent.append(lent)
            lent.users += 1
        well = False
        try:
            yield lent.one
            well = True
        finally:
            with self._lock:
                lent.users -= 1
                lent.since = time.monotonic()
                lent.over = lent.over or not well
                ended = lent.over and not lent.users
                if ended:
                    self._lent.remove(lent)
            if ended:
                lent.one.close()

    def tidy(self, seconds: float = SPARE_SECONDS) -> None:
        """Close those that nobody has wanted for so long."""
        oldest = time.monotonic() - seconds
        with self._lock:
            old = [it for it in self._lent if not it.users and it.since <= oldest]
            self._lent = [it for it in self._lent if it not in old]
        for it in old:
            it.one.close()


def _keep_alive(conn: Any) -> None:
    try:
        conn.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        if errors.code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def _dispose(link: Link) -> None:
    link.undo()
    # Each handle holds the connection open.
    link.known.clear()
    link.domains.clear()
    try:
        link.conn.close()
    except libvirt.libvirtError:
        return


def as_value(attempt: Attempt, function: Callable[..., Any], *arguments: Any, missing: int) -> Any:
    """The call's value, or None where libvirt answers with the code `missing`."""
    try:
        return attempt(function, *arguments)
    except libvirt.libvirtError as error:
        if errors.code_of(error) == missing:
            return None
        raise


__all__ = [
    "Attempt",
    "Connection",
    "Deadlines",
    "LibvirtOptions",
    "Link",
    "Spares",
    "as_value",
]
