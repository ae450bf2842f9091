"""What a guest is told at its first boot: cloud-init's NoCloud, as an ISO built in memory.

Every value that a user wrote is put into the YAML as a JSON string, which is YAML as well: none
can begin a line or a key of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence

import pycdlib

from treadle.hypervisor.base import Seed

LABEL = "cidata"


def meta_data(uuid: str, seed: Seed) -> bytes:
    """The instance's identity, its name and its keys."""
    lines = [f"instance-id: {json.dumps(uuid)}", f"local-hostname: {json.dumps(seed.hostname)}"]
    if seed.ssh_keys:
        lines.append("public-keys:")
        lines += [f"  - {json.dumps(key.strip())}" for key in seed.ssh_keys]
    return ("\n".join(lines) + "\n").encode()


def user_data(seed: Seed) -> bytes:
    """The user's own, untouched; or one that only sets the name and the keys. Where there are files
    to write, that and the files as the two parts of one message, which cloud-init merges."""
    own = _own(seed)
    return _with_files(own, seed.files) if seed.files else own


def _own(seed: Seed) -> bytes:
    if seed.user_data:
        return seed.user_data.encode()
    lines = ["#cloud-config", f"hostname: {json.dumps(seed.hostname)}"]
    if seed.ssh_keys:
        lines.append("ssh_authorized_keys:")
        lines += [f"  - {json.dumps(key.strip())}" for key in seed.ssh_keys]
    return ("\n".join(lines) + "\n").encode()


def _with_files(own: bytes, files: Sequence[tuple[str, str]]) -> bytes:
    """A MIME message of both (RFC 2046). Its boundary is made from the content: the same for the
    same, and in no text that was there before it."""
    lines = ["#cloud-config", "write_files:"]
    for path, content in files:
        lines += [
            f"  - path: {json.dumps(path)}", "    encoding: b64",
            f"    content: {json.dumps(content)}", "    owner: root:root",
            "    permissions: '0660'",
        ]
    told = ("\n".join(lines) + "\n").encode()
    line = b"--treadle-" + hashlib.sha256(own + told).hexdigest().encode()
    if own.lstrip().lower().startswith((b"content-type:", b"mime-version:")):
        first = own.lstrip()  # a message already, with headers of its own
    else:
        first = b"%s\n%s" % (_HEADERS % (b"text/plain", b""), base64.encodebytes(own))
    second = b"%s\n%s" % (
        _HEADERS % (b"text/cloud-config", b"Merge-Type: list(append)+dict(recurse_array)+str()\n"),
        base64.encodebytes(told),
    )
    return b"\n".join((
        b'Content-Type: multipart/mixed; boundary="%s"\nMIME-Version: 1.0\n' % line[2:],
        line, first, line, second, line + b"--", b"",
    ))


_HEADERS = (
    b'Content-Type: %s; charset="utf-8"\nMIME-Version: 1.0\n%sContent-Transfer-Encoding: base64\n'
)


def digest(uuid: str, seed: Seed) -> str:
    """Names the content: the same for the same words, whenever the ISO was made."""
    whole = hashlib.sha256()
    for part in (meta_data(uuid, seed), user_data(seed)):
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()[:16]


def iso(uuid: str, seed: Seed) -> bytes:
    """The whole volume."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    files = (
        ("META.DAT", "meta-data", meta_data(uuid, seed)),
        ("USER.DAT", "user-data", user_data(seed)),
    )
    for short, name, data in files:
        image.add_fp(
            io.BytesIO(data), len(data), f"/{short};1", rr_name=name, joliet_path=f"/{name}"
        )
    whole = io.BytesIO()
    image.write_fp(whole)
    image.close()
    return whole.getvalue()
