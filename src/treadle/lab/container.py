"""Builds the small root file system that the lab's containers run.

It is an ext4 image of 16 MiB with a static busybox. Its init reads the NoCloud seed where
cloud-init would, sets the hostname, asks DHCP for an address, says as the lab's guest does::

    TREADLE-GUEST-UP hostname=NAME ip=ADDRESS

runs a ``user-data`` that begins with ``#!``, and keeps a shell on its console. SIGTERM ends it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from treadle.lab.guest import GuestBuildError

__all__ = ["build_container"]

SIZE_MIB = 16
TOOL_SECONDS = 60
FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "var/lib/cloud/seed")

INIT = r"""#!/bin/sh
export PATH=/bin:/sbin HOME=/root TERM=linux
seed=/var/lib/cloud/seed/nocloud
name=$(sed -n 's/^local-hostname: *"\{0,1\}\([A-Za-z0-9._-]*\).*/\1/p' $seed/meta-data 2>/dev/null)
name=${name:-treadle-container}
hostname "$name"
mkdir -p /root /run
ip link set lo up
ip=none
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -s /etc/dhcp -x hostname:"$name" -t 10 -T 1 -n -q >/dev/null 2>&1 &&
        read -r ip < /run/ip
fi
echo
echo "TREADLE-GUEST-UP hostname=$name ip=$ip"
if read -r first < $seed/user-data && [ "${first#\#!}" != "$first" ]; then
    cp $seed/user-data /run/user-data && chmod 700 /run/user-data
    /run/user-data > /run/user-data.log 2>&1 < /dev/null &
fi
trap 'exit 0' TERM
while :; do
    setsid -c sh -l < /dev/console > /dev/console 2>&1 &
    wait $!
    sleep 1
done
"""

DHCP = r"""#!/bin/sh
case $1 in
bound|renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
    echo "$ip" > /run/ip ;;
esac
exit 0
"""


def build_container(cache_dir: Path) -> Path:
    """Return the image, a raw file, building it in ``cache_dir`` when no current one is there.

    Raises GuestBuildError where busybox or mke2fs is missing.
    """
    busybox = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists()), None)
    tool = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if busybox is None or tool is None:
        raise GuestBuildError("busybox-static or e2fsprogs is missing: run bin/setup")
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(busybox).read_bytes())
    cache_dir.mkdir(parents=True, exist_ok=True)
    image = cache_dir / f"treadle-container-{digest.hexdigest()[:12]}.raw"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir) as name:
        root, made = Path(name, "root"), Path(name, "image")
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        shutil.copyfile(busybox, root / "bin/busybox")
        (root / "bin/busybox").chmod(0o755)
        for applet in _run(busybox, "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        for path, text in (("sbin/init", INIT), ("etc/dhcp", DHCP)):
            (root / path).write_text(text)
            (root / path).chmod(0o755)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        _run(tool, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(made),
             f"{SIZE_MIB}M")
        os.replace(made, image)
    return image


def _run(*command: str) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=TOOL_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise GuestBuildError(f"{command[0]} failed: {error}") from error
