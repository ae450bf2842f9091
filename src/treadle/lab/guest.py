"""Builds the small Linux guest that the demo and the tests boot.

The image is a FAT disk with a boot loader, a distribution kernel and an initramfs of busybox and
dropbear. Everything comes from Debian or Ubuntu packages that are downloaded and unpacked, never
installed; nothing here needs root or a loop device.

What the guest does: reads a NoCloud seed (a volume labelled ``cidata``), takes the hostname and the
SSH keys from it, asks DHCP for an address, serves SSH, prints one line on the serial console::

    TREADLE-GUEST-UP hostname=NAME ip=ADDRESS

(``ip=none`` without a network card), and then runs a root shell there. A ``user-data`` that
begins with ``#!`` is run as a script after that line. ``/root`` is kept on the root disk, so a file
written there survives a reboot and is part of a snapshot. The ACPI power button powers it off.
Processors and memory that are added while it runs are put to use.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from treadle.errors import Permanent

__all__ = ["GuestBuildError", "build_guest"]

DISK_MIB = 64
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
DOWNLOAD_SECONDS = 300
TOOL_SECONDS = 60

#: Loaded before the seed is read; a kernel that has one built in just lacks the file.
EARLY_MODULES = (
    "virtio_pci", "virtio_rng", "virtio_blk", "virtio_net", "isofs", "button", "evdev",
    "vfat", "nls_ascii", "nls_iso8859_1", "nls_cp437",
)  # fmt: skip
#: Loaded once the guest is up: memory statistics and the agent's channel.
LATE_MODULES = ("virtio_balloon", "virtio_console")
#: Loaded only when no virtio disk carries the seed.
CDROM_MODULES = ("ahci", "ata_piix", "virtio_scsi", "sr_mod")

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=1 mitigations=off nokaslr no_timer_check tsc=reliable "
    "i8042.noaux i8042.nokbd lsm=capability random.trust_cpu=on panic=5 "
    "cryptomgr.notests noreplace-smp no5lvl audit=0 nowatchdog kfence.sample_interval=0 "
    "init_on_alloc=0 rcupdate.rcu_expedited=1"
)

SYSLINUX_CONFIG = f"""\
DEFAULT treadle
PROMPT 0
TIMEOUT 0
LABEL treadle
  LINUX vmlinuz
  INITRD initrd
  APPEND {KERNEL_ARGUMENTS}
"""

INIT = r"""#!/bin/sh
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts
exec /sbin/init
"""

INITTAB = """\
::sysinit:/etc/rc
ttyS0::respawn:/etc/console
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""

# Forks are what costs under emulation (about 10 ms each): hence builtins, and one awk for the seed.
RC = r"""#!/bin/sh
seed() {
    for disk in "$@"; do
        [ -b "$disk" ] || continue
        case $(dd if="$disk" bs=8 skip=4101 count=1 2>/dev/null) in
        cidata*|CIDATA*) mount -t iso9660 -o ro "$disk" /seed && return ;;
        esac
    done
    return 1
}
modprobe -a $(cat /etc/modules.early) 2>/dev/null
if ! seed /dev/vd[b-z] /dev/vda; then
    modprobe -a $(cat /etc/modules.cdrom) 2>/dev/null
    for try in 1 2 3 4 5 6 7 8; do
        seed /dev/sr[0-9] /dev/sd[a-z] && break
        usleep 100000
    done
fi
name= instance=
[ -e /seed/meta-data ] && eval "$(awk -f /etc/seed.awk /seed/meta-data /seed/user-data 2>/dev/null)"
name=${name:-treadle-guest}
echo "$name" > /proc/sys/kernel/hostname
echo "127.0.0.1 localhost $name" > /etc/hosts
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -s /etc/dhcp -x hostname:"$name" -t 5 -T 1 -A 2 -b -S \
        -p /run/udhcpc.pid >/dev/null 2>&1 &
else
    echo none > /run/ip
fi
acpid -c /etc/acpi -l /dev/null -p /run/acpid.pid 2>/dev/null

for disk in /dev/vda /dev/sda; do
    [ -b $disk ] && mount -t vfat -o umask=077,noatime $disk /disk 2>/dev/null || continue
    owner=
    mount -o bind /disk/root /root
    mount -o bind /disk/dropbear /etc/dropbear
    [ -e /disk/instance ] && read -r owner < /disk/instance
    if [ "$owner" != "$instance" ]; then
        rm -f /etc/dropbear/*
        echo "$instance" > /disk/instance
    fi
    break
done
[ -d /root/.ssh ] || mkdir /root/.ssh
mount -t tmpfs -o mode=700 tmpfs /root/.ssh
[ -e /run/keys ] && cp /run/keys /root/.ssh/authorized_keys
dropbear -R -s -P /run/dropbear.pid 2>/dev/null
: > /run/ssh
[ -e /run/ip ] && /etc/up
(
    modprobe -a $(cat /etc/modules.late) 2>/dev/null
    echo 100 > /proc/sys/vm/dirty_expire_centisecs
    echo 100 > /proc/sys/vm/dirty_writeback_centisecs
    sync
    echo online > /sys/devices/system/memory/auto_online_blocks
    exec uevent /etc/hotplug >/dev/null 2>&1
) &
"""

# What comes while the guest runs; memory is put to use by the kernel (auto_online_blocks).
HOTPLUG = r"""#!/bin/sh
[ "$ACTION-$SUBSYSTEM" = add-cpu ] && echo 1 > "/sys$DEVPATH/online"
"""

SEED_AWK = r"""function value(word,   rest) {
    if (!match($0, word "[\"']?[ ]*:[ ]*[\"']?")) return ""
    rest = substr($0, RSTART + RLENGTH)
    return match(rest, /^[A-Za-z0-9._-]+/) ? substr(rest, 1, RLENGTH) : ""
}
FILENAME ~ /meta-data/ && (found = value("local-hostname")) { print "name=" found }
FILENAME ~ /meta-data/ && (found = value("instance-id")) { print "instance=" found }
{
    rest = $0
    while (match(rest, /(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ AAAA[A-Za-z0-9+\/=]+/)) {
        print substr(rest, RSTART, RLENGTH) > "/run/keys"
        rest = substr(rest, RSTART + RLENGTH)
    }
}
"""

DHCP = r"""#!/bin/sh
case $1 in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up ;;
bound|renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
    : > /etc/resolv.conf
    [ -n "$domain" ] && echo "search $domain" >> /etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
    echo "$ip" > /run/ip
    [ -e /run/ssh ] && /etc/up ;;
esac
exit 0
"""

# DHCP and SSH become ready in either order; whichever is last calls this, and it acts once.
UP = r"""#!/bin/sh
set -C
{ : > /run/up; } 2>/dev/null || exit 0
read -r ip < /run/ip
read -r name < /proc/sys/kernel/hostname
printf '\r\nTREADLE-GUEST-UP hostname=%s ip=%s\r\n' "$name" "$ip" > /dev/ttyS0
if [ -e /seed/user-data ] && read -r first < /seed/user-data && [ "${first#\#!}" != "$first" ]; then
    cp /seed/user-data /run/user-data && chmod 700 /run/user-data
    /run/user-data > /run/user-data.log 2>&1 < /dev/null &
fi
"""

CONSOLE = r"""#!/bin/sh
tries=0
while [ ! -e /run/up ] && [ $tries -lt 200 ]; do
    usleep 100000
    tries=$((tries + 1))
done
exec sh -l
"""

PROFILE = r"""export PATH=/sbin:/bin HOME=/root TERM=${TERM:-vt100} PS1='\u@\h:\w# '
cd
"""

POWER_BUTTON = r"""#!/bin/sh
kill -TERM -1
usleep 100000
umount -a -r
sync
exec poweroff -f
"""


class GuestBuildError(Permanent):
    """The guest image cannot be built here; the message says what to do about it."""


def _silent(line: str) -> None:
    """Report nothing."""


def build_guest(cache_dir: Path, progress: Callable[[str], None] = _silent) -> Path:
    """Return the guest's qcow2 image, building it in ``cache_dir`` when no current one is there.

    The name holds a digest of this builder and of the versions of the packages that go in, so an
    image is made again only when one of these changes. A build takes about 5 seconds and a
    download of 27 MB. Raises GuestBuildError with a way out when a package or a program is missing.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise GuestBuildError(f"the demo guest is built for x86_64 only, not {platform.machine()}")
    cache_dir.mkdir(parents=True, exist_ok=True)
    packages = _wanted_packages(cache_dir)
    if packages is None:
        newest = max(cache_dir.glob("treadle-guest-*.qcow2"), key=_mtime, default=None)
        if newest is None:
            raise GuestBuildError(
                "no kernel package is known here: run 'apt-get update' (as root) and try again"
            )
        return newest
    image = cache_dir / f"treadle-guest-{_digest(packages)}.qcow2"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir) as work:
        built = _build(Path(work), packages, progress)
        os.replace(built, image)
    return image


def _build(work: Path, packages: dict[str, str], progress: Callable[[str], None]) -> Path:
    progress("guest image: downloading a kernel, busybox and dropbear")
    root = _unpack(work, packages)
    progress("guest image: building")
    kernel = next(iter(sorted(root.glob("boot/vmlinuz-*"))), None)
    busybox = next((p for p in _busybox_paths(root) if p.exists()), None)
    if kernel is None or busybox is None:
        raise GuestBuildError("the packages hold no kernel or no busybox: remove the cache, retry")
    (work / "initrd").write_bytes(_compressed(_initramfs(root, busybox), work))
    (work / "vmlinuz").write_bytes(kernel.read_bytes())
    (work / "syslinux.cfg").write_text(SYSLINUX_CONFIG)
    disk = work / "disk.img"
    with disk.open("wb") as stream:
        stream.truncate(DISK_MIB << 20)
    tools = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    format_as = f"-F -v TREADLE -h 64 -s 32 -T {DISK_MIB * 2048}".split()
    contents = [str(work / name) for name in ("syslinux.cfg", "vmlinuz", "initrd")]
    on = ["-i", str(disk)]
    _run(["mformat", *on, *format_as, "::"], env=tools)
    _run(["mcopy", *on, *contents, "::"], env=tools)
    _run(["mmd", *on, "::root", "::root/.ssh", "::dropbear"], env=tools)
    _run(["syslinux", "--install", str(disk)], env=tools)
    image = work / "guest.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1"]
    _run([*convert, str(disk), str(image)])
    return image


# -- packages -----------------------------------------------------------------------------------


def _wanted_packages(cache_dir: Path) -> dict[str, str] | None:
    """Package names and versions that go into the image; None when apt knows no kernel.

    apt takes half a second to answer, so what it said is kept until its lists change.
    """
    try:
        lists = str(os.stat("/var/lib/apt/lists").st_mtime_ns)
    except OSError:
        lists = "none"
    stamp = cache_dir / "packages.json"
    try:
        known = json.loads(stamp.read_text())
        if known["lists"] == lists:
            return dict(known["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    packages = _resolve()
    if packages is not None:
        _write(stamp, json.dumps({"lists": lists, "packages": packages}))
    return packages


def _resolve() -> dict[str, str] | None:
    for meta in KERNEL_PACKAGES:
        shown = _apt_show([meta])
        if not shown:
            continue
        depends = re.findall(r"linux-(?:image|modules)-[0-9][^ ,(|]*", shown[meta]["Depends"])
        images = [name for name in depends if name.startswith("linux-image-")]
        if not images:
            continue
        modules = [images[0].replace("linux-image-", "linux-modules-", 1)]
        wanted = [images[0], "busybox-static", "dropbear-bin", "libtomcrypt1", "libtommath1"]
        found = _apt_show([*wanted, *modules, "libgmp10"])
        if images[0] in found and "dropbear-bin" in found and "busybox-static" in found:
            return {name: fields["Version"] for name, fields in sorted(found.items())}
    return None


def _apt_show(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The control fields of those of the packages that apt can download."""
    try:
        done = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", *names],
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, dict[str, str]] = {}
    for paragraph in done.stdout.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, flags=re.MULTILINE))
        if "Package" in fields and "Filename" in fields:
            fields.setdefault("Depends", "")
            found[fields["Package"]] = fields
    return found


def _unpack(work: Path, packages: dict[str, str]) -> Path:
    debs, root = work / "debs", work / "root"
    debs.mkdir()
    root.mkdir()
    pinned = [f"{name}={version}" for name, version in packages.items()]
    # Downloading as the caller's user: apt's own sandbox user could not write into the work folder.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=", *pinned]
    try:
        _run(command, cwd=debs, seconds=DOWNLOAD_SECONDS)
    except GuestBuildError as error:
        raise GuestBuildError(
            f"the guest's packages cannot be downloaded ({error}): check that apt reaches its "
            "mirror and run 'apt-get update' (as root)"
        ) from error
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
    return root


def _digest(packages: dict[str, str]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(json.dumps(packages, sort_keys=True).encode())
    return digest.hexdigest()[:12]


# -- initramfs ----------------------------------------------------------------------------------


def _compressed(archive: bytes, work: Path) -> bytes:
    """The initramfs packed: LZ4 when the program is there, which unpacks 0.3 s sooner."""
    if shutil.which("lz4") is None:
        return gzip.compress(archive, 6, mtime=0)
    plain = work / "initrd.cpio"
    plain.write_bytes(archive)
    return _run_bytes(["lz4", "-l", "-9", "-c", str(plain)])


def _busybox_paths(root: Path) -> list[Path]:
    return [root / "bin/busybox", root / "usr/bin/busybox"]


def _initramfs(root: Path, busybox: Path) -> bytes:
    archive = _Cpio()
    for folder in ("dev", "proc", "sys", "run", "tmp", "root", "disk", "seed", "etc/dropbear"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for path in _applets(busybox):
        archive.link(path, "/bin/busybox")
    archive.file("init", INIT, 0o755)
    for name, text, mode in (
        ("inittab", INITTAB, 0o644),
        ("rc", RC, 0o755),
        ("dhcp", DHCP, 0o755),
        ("up", UP, 0o755),
        ("hotplug", HOTPLUG, 0o755),
        ("console", CONSOLE, 0o755),
        ("seed.awk", SEED_AWK, 0o644),
        ("profile", PROFILE, 0o644),
        ("acpi/PWRF/00000080", POWER_BUTTON, 0o755),
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("group", "root:x:0:\n", 0o644),
        ("shadow", "root:*:19000:0:99999:7:::\n", 0o600),
        ("shells", "/bin/sh\n", 0o644),
        ("nsswitch.conf", "passwd: files\nhosts: files dns\n", 0o644),
    ):
        archive.file(f"etc/{name}", text, mode)
    for name in ("usr/sbin/dropbear", "usr/bin/dropbearkey"):
        archive.file(name.replace("usr/", ""), (root / name).read_bytes(), 0o755)
    for target, source in _shared_libraries(root, ["usr/sbin/dropbear", "usr/bin/dropbearkey"]):
        archive.file(target, source.read_bytes(), 0o755)
    tree = _ModuleTree(root)
    depends: dict[str, list[str]] = {}
    groups = {"early": EARLY_MODULES, "cdrom": CDROM_MODULES, "late": LATE_MODULES}
    for name, wanted in groups.items():
        present = tree.present(wanted)
        archive.file(f"etc/modules.{name}", " ".join(present) + "\n", 0o644)
        for module in tree.closure(present):
            depends[module] = tree.closure([module])[-2::-1]
    home = f"lib/modules/{tree.release}"
    lines = (f"{m}.ko:{''.join(f' {n}.ko' for n in needs)}\n" for m, needs in depends.items())
    archive.file(f"{home}/modules.dep", "".join(lines), 0o644)
    for module in depends:
        archive.file(f"{home}/{module}.ko", tree.content(module), 0o644)
    return archive.finish()


def _applets(busybox: Path) -> Iterable[str]:
    listed = _run([str(busybox), "--list-full"]).split()
    names = {path.rsplit("/", 1)[-1]: path for path in listed}
    names.pop("busybox", None)
    system = {"init", "insmod", "poweroff", "reboot", "halt", "ip", "udhcpc", "acpid", "ifconfig"}
    return [f"sbin/{name}" if name in system else f"bin/{name}" for name in sorted(names)]


def _shared_libraries(root: Path, programs: Sequence[str]) -> list[tuple[str, Path]]:
    """Where each library that the programs need goes in the guest, and where it is now.

    The unpacked packages' own libraries come first; the C library is the building machine's.
    """
    own = sorted({str(path.parent) for path in root.glob("usr/lib/**/lib*.so.*")})
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(own), "LC_ALL": "C"}
    found: dict[str, Path] = {}
    for program in programs:
        path = root / program
        path.chmod(0o755)
        for line in _run(["ldd", str(path)], env=environment).splitlines():
            if "not found" in line:
                raise GuestBuildError(f"{program} needs {line.split()[0]}, which no package gave")
            match = re.search(r"(?:(\S+) => )?(/\S+) \(0x", line)
            if match is None:
                continue
            name, source = match.group(1), Path(match.group(2))
            target = f"usr/lib/{name}" if name else str(source).lstrip("/")
            found[target] = source
    return list(found.items())


class _ModuleTree:
    """The kernel's modules, with what each needs (the package holds no modules.dep yet)."""

    def __init__(self, root: Path) -> None:
        self._paths = {
            path.name.split(".ko")[0].replace("-", "_"): path
            for path in root.glob("**/lib/modules/*/kernel/**/*.ko*")
        }
        self._contents: dict[str, bytes] = {}
        home = next(iter(root.glob("**/lib/modules/*/kernel")), None)
        if home is None:
            raise GuestBuildError("the kernel package holds no modules: remove the cache, retry")
        self.release = home.parent.name

    def present(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self._paths]

    def content(self, name: str) -> bytes:
        """The module as an object file: unpacked, and without its signature.

        Nothing here asks for signed modules, and checking one costs the emulated guest 10 ms.
        """
        if name not in self._contents:
            path = self._paths[name]
            unpacker = {".zst": "zstd", ".xz": "xz", ".gz": "gzip"}.get(path.suffix)
            packed = [unpacker, "-dc", str(path)] if unpacker else None
            content = _run_bytes(packed) if packed else path.read_bytes()
            self._contents[name] = _unsigned(content)
        return self._contents[name]

    def needs(self, name: str) -> list[str]:
        match = re.search(rb"\0depends=([^\0]*)\0", self.content(name))
        listed = match.group(1).decode().replace("-", "_").split(",") if match else []
        return self.present(listed)

    def closure(self, names: Iterable[str]) -> list[str]:
        """The modules and all that they need, needed ones first."""
        ordered: list[str] = []
        for name in names:
            if name not in ordered:
                ordered += [n for n in self.closure(self.needs(name)) if n not in ordered]
                ordered.append(name)
        return ordered


def _unsigned(content: bytes) -> bytes:
    """A module without the signature that its kernel build appended."""
    mark = b"~Module signature appended~\n"
    if not content.endswith(mark):
        return content
    end = len(content) - len(mark)
    signature_bytes = int.from_bytes(content[end - 4 : end], "big")
    return content[: end - 12 - signature_bytes]


class _Cpio:
    """A newc cpio archive, which is what the kernel unpacks as its first root."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 0

    def folder(self, path: str) -> None:
        if path and path not in self._folders:
            self.folder(path.rpartition("/")[0])
            self._folders.add(path)
            self._entry(path, 0o040755, b"")

    def file(self, path: str, content: bytes | str, mode: int) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.folder(path.rpartition("/")[0])
        self._entry(path, 0o100000 | mode, data)

    def link(self, path: str, target: str) -> None:
        self.folder(path.rpartition("/")[0])
        self._entry(path, 0o120777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        self.folder(path.rpartition("/")[0])
        self._entry(path, 0o020600, b"", major, minor)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._parts.append(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))


# -- helpers ------------------------------------------------------------------------------------


def _run(
    command: Sequence[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = TOOL_SECONDS,
) -> str:
    return _run_bytes(command, cwd, env, seconds).decode(errors="replace")


def _run_bytes(
    command: Sequence[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = TOOL_SECONDS,
) -> bytes:
    if shutil.which(command[0]) is None:
        raise GuestBuildError(f"the program {command[0]} is missing: run bin/setup")
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            timeout=seconds,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestBuildError(f"{command[0]} took longer than {seconds:g} s") from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise GuestBuildError(f"{command[0]} failed: {last[0]}")
    return done.stdout


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def _mtime(path: Path) -> float:
    return path.stat().st_mtime
