"""The sections of the settings: what there is to set, what is taken, and what it is without a word.

`description` is for the reference, `title` what a message says that it expects. A leaf: only
msgspec and the standard library here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
_PATH_OR_NOTHING = r"\A(/[^\x00-\x1f\x7f]{0,4094})?\Z"

Name = Annotated[str, Meta(pattern=_NAME, title="a name of letters, digits and . _ -")]
Text = Annotated[str, Meta(max_length=65535)]
Weight = Annotated[float, Meta(ge=-1000, le=1000)]
SECRET = frozenset({"database.url", "guest.user_data", "image.s3_secret_key"})
"""Whose values no message shows."""


class Server(Struct, frozen=True):
    """The HTTP server."""

    host: Annotated[
        str, Meta(title="an IP address", description="Address to listen on; all of IPv4 as set.")
    ] = "0.0.0.0"
    port: Annotated[int, Meta(ge=1, le=65535, description="Port to listen on.")] = 80
    classic_networks: Annotated[
        tuple[str, ...],
        Meta(
            title="a list of networks such as 192.0.2.0/24",
            description="Who may call the classic API, which asks for no password.",
        ),
    ] = ("127.0.0.0/8", "::1/128")
    names: Annotated[
        tuple[str, ...],
        Meta(
            max_length=32,
            title="a list of host names",
            description="Names, beside its own, under which clients address this machine.",
        ),
    ] = ()
    max_body_kib: Annotated[
        int, Meta(ge=1, le=65536, description="Largest body of a request, in KiB.")
    ] = 64
    public_url: Annotated[
        str,
        Meta(
            pattern=r"\A(https?://[A-Za-z0-9.:_\[\]-]{1,255})?\Z",
            title="a URL such as https://cloud.example.org, without a path",
            description="Address under which clients reach this cloud, for links and the service "
            "catalog. Empty: the one that the client used.",
        ),
    ] = ""
    rules_file: Annotated[
        str,
        Meta(
            pattern=_PATH_OR_NOTHING,
            title="an absolute path",
            description="TOML file that says who may do what, where that differs from what is "
            'built in: "compute:servers:create" = "admin".',
        ),
    ] = ""


class State(Struct, frozen=True):
    """Where the controller keeps what is its own."""

    folder: Annotated[
        str,
        Meta(
            pattern=_PATH_OR_NOTHING,
            title="an absolute path",
            description="Folder of the database and the images. Empty: /var/lib/treadle for root, "
            "$XDG_STATE_HOME/treadle or ~/.local/state/treadle for everybody else.",
        ),
    ] = ""


class Database(Struct, frozen=True):
    """The database."""

    url: Annotated[
        str,
        Meta(
            pattern=r"\A((sqlite|postgresql)(\+[a-z0-9]+)?://\S*)?\Z",
            title="a URL that starts with sqlite:// or postgresql://",
            description="Where it is. Empty: an SQLite file in the state folder.",
        ),
    ] = ""
    synchronous: Annotated[
        Literal["FULL", "NORMAL"],
        Meta(description="SQLite only. With NORMAL, a power cut may take the last commits."),
    ] = "FULL"
    pool_size: Annotated[int, Meta(ge=1, le=200, description="Connections kept open.")] = 8

    def __repr__(self) -> str:
        """Without the URL, which may carry a password."""
        url = "'(set)'" if self.url else "''"
        return f"Database(url={url}, synchronous={self.synchronous!r}, pool_size={self.pool_size})"


class Controller(Struct, frozen=True):
    """The engine that carries out what was asked for. All times in seconds."""

    enabled: Annotated[
        bool, Meta(description="Off: this process answers requests and leaves the work to others.")
    ] = True
    lease_s: Annotated[
        float, Meta(ge=3, le=600, description="How long a claimed row is this process's own.")
    ] = 30.0
    poll_s: Annotated[
        float, Meta(ge=0.05, le=60, description="How often it looks for work without a wake-up.")
    ] = 1.0
    threads: Annotated[int, Meta(ge=1, le=64, description="Threads that work on rows.")] = 8
    host_threads: Annotated[int, Meta(ge=1, le=32, description="Threads of each host.")] = 4
    resync_s: Annotated[
        float, Meta(ge=1, le=3600, description="How often a settled instance is looked at.")
    ] = 30.0
    build_deadline_s: Annotated[
        float, Meta(ge=5, le=86400, description="How long a new instance may take to run.")
    ] = 300.0
    stop_deadline_s: Annotated[
        float,
        Meta(ge=1, le=3600, description="How long a guest may take to shut down when asked."),
    ] = 60.0
    build_attempts: Annotated[
        int, Meta(ge=1, le=20, description="On how many hosts a new instance is tried.")
    ] = 3
    image_share: Annotated[
        float,
        Meta(ge=0.01, le=0.95, description="Share of a host's disk that cached images may use."),
    ] = 0.25


class Instances(Struct, frozen=True):
    """The life of instances. All times in seconds."""

    reclaim_s: Annotated[
        float,
        Meta(ge=0, le=1 << 30, description="How long a deleted instance can be restored. "
             "0: a delete is for good."),
    ] = 0.0
    confirm_resize_s: Annotated[
        float,
        Meta(ge=0, le=1 << 30, description="After how long a resize is confirmed by itself. "
             "0: never."),
    ] = 0.0
    shelve_offload_s: Annotated[
        float,
        Meta(ge=-1, le=1 << 30, description="After how long a shelved instance is taken off its "
             "host. -1: never."),
    ] = 0.0
    drift: Annotated[
        Literal["keep", "adopt"],
        Meta(description="What becomes of a guest that somebody starts, stops, pauses or suspends "
             "on its host, not through Treadle. keep: it is brought back to what was asked for. "
             "adopt: it is taken as asked for, and the instance says so. Likewise a definition "
             "that somebody changes: put back for the next start, or left and said."),
    ] = "keep"
    on_host_failure: Annotated[
        Literal["wait", "evacuate"],
        Meta(description="What becomes of an instance whose host is off for sure, where neither "
             "its metadata nor its flavor say it by treadle:ha. wait: it is left until its host is "
             "back. evacuate: it is built anew on another host, from its image; what was on its "
             "disk is lost. What may be evacuated is not started by its host alone."),
    ] = "wait"


class Moves(Struct, frozen=True):
    """How instances are moved from host to host."""

    deadline_s: Annotated[
        float, Meta(ge=10, le=86400, description="When a move is given up, in seconds.")
    ] = 600.0
    at_once: Annotated[
        int, Meta(ge=1, le=16, description="Moves under way to or from one host.")
    ] = 2
    bandwidth_mib_s: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Most MiB a second of one move. 0: no bound.")
    ] = 0
    auto_converge: Annotated[
        bool, Meta(description="Slow a guest down that writes faster than is sent.")
    ] = True
    post_copy: Annotated[
        bool, Meta(description="Let a guest go on at the target before all its memory is there, if "
                   "need be. A fault of the network then holds it up, one of the source ends it.")
    ] = False
    resize_to_same_host: Annotated[
        bool, Meta(description="Keep an instance that gets another size on its host where that has "
                   "room for it. false: always move it to another.")
    ] = True


class Fencing(Struct, frozen=True):
    """When a host is taken for dead, and how it is switched off then."""

    plugin: Annotated[
        Name, Meta(description="What switches a host off that is taken for dead: an installed "
                   "plug-in (command, ipmi, lab). none: nobody does; instances are evacuated once "
                   "an operator says that it is off.")
    ] = "none"
    deadline_s: Annotated[
        float, Meta(ge=1, le=600, description="How long one attempt may take, in seconds.")
    ] = 30.0
    command: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=64,
            title="a list of a program and its arguments",
            description="For the plug-in command: a program that ends with 0 once the host is off. "
            "{id}, {name}, {address} and {uri} are filled in. No shell.",
        ),
    ] = ()
    options: Annotated[
        dict[Name, Text],
        Meta(
            max_length=1024,
            title="a table of texts",
            description="What the plug-in needs. ipmi: address (may have {name} in it) or "
            "address.HOST, user, password_file; port and cipher, where they are not ipmitool's. "
            "lab: folder.",
        ),
    ] = field(default_factory=dict)
    beat_s: Annotated[
        float, Meta(ge=0.1, le=60, description="How often each host is asked for a sign of life, "
                    "in seconds, over the connection that there is.")
    ] = 2.0
    silent_s: Annotated[
        float, Meta(ge=1, le=3600, description="How long nothing may have been heard of a host "
                    "before it is taken for dead, in seconds.")
    ] = 8.0
    share: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Where more than this part of all hosts is silent "
                    "at once, it is the controller that is cut off, and none is taken for dead.")
    ] = 0.5
    peers: Annotated[
        int, Meta(ge=0, le=16, description="How many other hosts are asked whether they reach it, "
                  "through their SSH, before a host is taken for dead.")
    ] = 2


class Scheduler(Struct, frozen=True):
    """Which host takes an instance. The names are those of installed plug-ins."""

    policy: Annotated[Name, Meta(description="How the hosts that are left are ranked.")] = (
        "adaptive"
    )
    filters: Annotated[
        tuple[Name, ...],
        Meta(
            max_length=64,
            title="a list of names",
            description="What a host must pass, in this order.",
        ),
    ] = (
        "state", "pinned", "retry", "excluded", "zone", "aggregate_specs", "image_properties",
        "capabilities", "affinity", "anti_affinity", "capacity", "instance_limit", "numa", "pci",
    )
    weighers: Annotated[
        dict[Name, Weight],
        Meta(
            max_length=64,
            title="a table of numbers from -1000 to 1000",
            description="What counts for a host, and how much. Only those named here are used; "
            "a negative number turns a preference round.",
        ),
    ] = field(default_factory=lambda: {
        "cpu_free": 1.0, "memory_free": 1.0, "image_local": 0.5, "group": 1.0,
    })
    predictor: Annotated[
        Name, Meta(description="What says how long an instance will live, for policies that ask.")
    ] = "size-means"
    on_filter_fault: Annotated[
        Literal["fail", "skip"],
        Meta(
            description="A filter that raises, gives nonsense or answers too late: fail the "
            "placement, or let every host pass it."
        ),
    ] = "fail"
    on_policy_fault: Annotated[
        str,
        Meta(
            pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]{0,62})?\Z",
            title="a name, or nothing",
            description="The policy that orders the hosts where the chosen one raises, gives "
            "nonsense or answers too late. Empty: fail the placement.",
        ),
    ] = "first-fit"
    batch_limit_s: Annotated[
        float,
        Meta(
            ge=0, le=30,
            description="How long a policy that places together (solver) may take over the "
            "instances of one request, in seconds; then they are placed one by one. 0: always so.",
        ),
    ] = 2.0
    plugin_limit_s: Annotated[
        float,
        Meta(
            ge=0.001, le=60,
            description="How long a plug-in may take over one question; a later answer is "
            "dropped, and counts as a fault.",
        ),
    ] = 1.0


class HostDefaults(Struct, frozen=True):
    """What a host is given when it is added and nothing else is said."""

    cpu_ratio: Annotated[
        float, Meta(ge=0.1, le=64, description="Virtual processors for each real one.")
    ] = 4.0
    memory_ratio: Annotated[
        float, Meta(ge=0.1, le=16, description="Memory given away for each MiB there is.")
    ] = 1.0
    disk_ratio: Annotated[
        float, Meta(ge=0.1, le=64, description="Disk given away for each GiB there is.")
    ] = 1.0
    reserved_memory_mib: Annotated[
        int, Meta(ge=0, le=1 << 24, description="Memory kept for the host itself, in MiB.")
    ] = 512
    pool: Annotated[Name, Meta(description="libvirt storage pool of the volumes.")] = "treadle"
    pool_path: Annotated[
        str,
        Meta(
            pattern=_PATH_OR_NOTHING,
            title="an absolute path",
            description="Folder of that pool, where Treadle has to make it. Empty: the driver's.",
        ),
    ] = ""
    network: Annotated[Name, Meta(description="libvirt network that guests join.")] = "treadle"
    guest_pool: Annotated[
        str,
        Meta(
            title="an IPv4 network from /8 to /24 such as 10.64.0.0/12",
            description="Where the hosts' guest networks are taken from.",
        ),
    ] = "10.64.0.0/12"
    bridge: Annotated[
        str,
        Meta(
            pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]{0,14})?\Z",
            title="the name of a bridge, at most 15 characters",
            description="Bridge of the host to join. Empty: Treadle makes a network.",
        ),
    ] = ""
    anti_spoofing: Annotated[
        bool,
        Meta(description="Let no guest speak with another's MAC address or as a DHCP server. "
             "It makes a start 0.3 s longer."),
    ] = True
    identity_file: Annotated[
        str,
        Meta(
            pattern=_PATH_OR_NOTHING,
            title="an absolute path",
            description="SSH private key for hosts and images. Empty: what ssh itself would take.",
        ),
    ] = ""
    virt_type: Annotated[
        str,
        Meta(
            pattern=r"\A[a-z][a-z0-9]{0,31}\Z",
            title='"auto" or a libvirt domain type such as "kvm"',
            description="How guests run. auto: the best that is found to boot.",
        ),
    ] = "auto"


class Guest(Struct, frozen=True):
    """What every guest is told at its first boot, beside what its owner says."""

    ssh_keys: Annotated[
        tuple[str, ...],
        Meta(
            max_length=100,
            title="a list of SSH public keys, each in one line",
            description="Public keys that may log in.",
        ),
    ] = ()
    user_data: Annotated[
        Text, Meta(title="text of at most 65535 characters", description="cloud-init user data.")
    ] = ""


class Console(Struct, frozen=True):
    """Getting at guests' serial ports and screens."""

    token_s: Annotated[
        float, Meta(ge=1, le=86400, description="How long a console's link is good for, in "
                    "seconds. It lets one client in, once.")
    ] = 600.0
    idle_s: Annotated[
        float, Meta(ge=1, le=30 * 86400, description="When a console on which neither side says "
                    "anything is ended, in seconds.")
    ] = 1800.0
    max_open: Annotated[
        int, Meta(ge=0, le=10_000, description="Consoles that may be open in one process.")
    ] = 200


class Image(Struct, frozen=True):
    """Images: what may be brought in, and where it is kept."""

    max_gib: Annotated[int, Meta(ge=1, le=65536, description="Largest image file, in GiB.")] = 64
    fetch_seconds: Annotated[
        int, Meta(ge=1, le=7 * 86400, description="How long one may take to arrive, in seconds.")
    ] = 3600
    project_gib: Annotated[
        int, Meta(ge=1, le=1 << 30, description="All images of a project together, in GiB.")
    ] = 1024
    project_images: Annotated[
        int, Meta(ge=0, le=1_000_000, description="How many images a project may have.")
    ] = 1000
    import_networks: Annotated[
        tuple[str, ...],
        Meta(
            title="a list of networks such as 192.0.2.0/24",
            description="Where users' URLs may lead besides public addresses.",
        ),
    ] = ()
    import_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(
            title="a list of ports",
            description="Ports that users' URLs may name. Empty: all.",
        ),
    ] = (80, 443)
    blobs: Annotated[
        str,
        Meta(
            pattern=r"\A(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]{0,200})?)?\Z",
            title="s3://BUCKET/PREFIX",
            description="Where contents are kept. Empty: in the state folder.",
        ),
    ] = ""
    s3_endpoint: Annotated[
        str,
        Meta(
            pattern=r"\A(https?://\S{1,500})?\Z",
            title="a URL that starts with http:// or https://",
            description="Address of the S3 service. Empty: Amazon's.",
        ),
    ] = ""
    s3_region: Annotated[str, Meta(max_length=64, description="Region of the bucket.")] = (
        "us-east-1"
    )
    s3_access_key: Annotated[
        str, Meta(max_length=200, description="Empty: from the environment, as AWS tools do.")
    ] = ""
    s3_secret_key: Annotated[
        str, Meta(max_length=200, description="The secret that belongs to it.")
    ] = ""

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Image(max_gib={self.max_gib}, blobs={self.blobs!r})"


class Identity(Struct, frozen=True):
    """Users, their passwords and their tokens."""

    token_s: Annotated[
        int, Meta(ge=60, le=30 * 86400, description="How long a token is good for, in seconds.")
    ] = 3600
    region: Annotated[
        Name, Meta(description="Name of this cloud's one region in the service catalog.")
    ] = "RegionOne"
    failures_per_user: Annotated[
        int,
        Meta(ge=1, le=100_000, description="How often a minute logging in as one user may fail, "
             "before it is refused for the rest of the minute."),
    ] = 10
    failures_per_address: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="How often a minute logging in from one address may "
             "fail (of IPv6: from one /64)."),
    ] = 100
    lockout_failures: Annotated[
        int,
        Meta(ge=0, le=100, description="Wrong passwords after which an account is locked; 0: "
             "never."),
    ] = 0
    lockout_s: Annotated[
        int, Meta(ge=1, le=30 * 86400, description="How long it stays locked, in seconds.")
    ] = 1800
    password_pattern: Annotated[
        str,
        Meta(max_length=1024, title="a regular expression",
             description="What a password must match from its beginning. Empty: anything."),
    ] = ""
    password_rule: Annotated[
        str,
        Meta(max_length=1024, description="The same in words, for whoever chose another."),
    ] = ""
    password_days: Annotated[
        int, Meta(ge=0, le=3650, description="Days for which a password is good; 0: for ever.")
    ] = 0
    password_min_days: Annotated[
        int, Meta(ge=0, le=365, description="Days that a user must keep a password.")
    ] = 0
    password_history: Annotated[
        int,
        Meta(ge=0, le=24, description="How many of the last passwords a user may not choose "
             "again, the one he has included; 0: he may."),
    ] = 0
    change_first_password: Annotated[
        bool,
        Meta(description="Whether a password that an administrator has given must be changed "
             "before the first log-in."),
    ] = False


class Log(Struct, frozen=True):
    """What the process says on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least that is shown.")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="auto: console on a terminal, json elsewhere."),
    ] = "auto"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return "/" in text


def _is_guest_pool(text: str) -> bool:
    if not _is_network(text):
        return False
    network = ip_network(text)
    return isinstance(network, IPv4Network) and 8 <= network.prefixlen <= 24


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_PUBLIC_KEY = re.compile(
    r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[A-Za-z0-9@.-]{1,64} [A-Za-z0-9+/]{32,16000}={0,3}"
    r"( [^\x00-\x1f\x7f]{0,255})?"
)

CHECKS: dict[str, Callable[[Any], bool]] = {
    "server.host": _is_address,
    "server.classic_networks": lambda networks: all(map(_is_network, networks)),
    "host_defaults.guest_pool": _is_guest_pool,
    "identity.password_pattern": _is_pattern,
    "image.import_networks": lambda networks: all(map(_is_network, networks)),
    "guest.ssh_keys": lambda keys: all(map(_PUBLIC_KEY.fullmatch, keys)),
    "scheduler.filters": lambda names: len(set(names)) == len(names),
}
"""What a value must be that its type does not say."""
