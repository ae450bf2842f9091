"""Files for a guest's first boot: what is taken, and how the guest is told."""

from __future__ import annotations

import base64
import email
import email.policy
import json
from typing import Any

import pytest

from treadle.compute import injected
from treadle.errors import InvalidInput
from treadle.hypervisor.base import Seed
from treadle.hypervisor.libvirt import seed


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_what_is_given_comes_back_in_its_shortest_form() -> None:
    found = injected.read([("etc/motd", " aGk=\n"), ("/root/a b", encoded("x" * 90))], "")
    assert found == (("/etc/motd", "aGk="), ("/root/a b", encoded("x" * 90)))
    assert injected.of(injected.text(found)) == found
    assert injected.of(injected.text(())) == () == injected.of("")


@pytest.mark.parametrize("path", ["/", "/etc/", "../x", "/a/../b", "/a//b", "/a/./b", "/a\nb", ""])
def test_a_path_that_is_no_files(path: str) -> None:
    with pytest.raises(InvalidInput, match="personality/path"):
        injected.read([(path, "")], "")


@pytest.mark.parametrize("content", ["a", "====", "a b c d e", "\u00e9\u00e9\u00e9\u00e9"])
def test_a_content_that_is_no_base64(content: str) -> None:
    with pytest.raises(InvalidInput, match="base64"):
        injected.read([("/a", content)], "")


def test_files_are_not_told_beside_what_is_not_cloud_inits() -> None:
    with pytest.raises(InvalidInput, match="personality"):
        injected.read([("/a", "")], '{"ignition": {}}')
    for told in ("#!/bin/sh\n", "#cloud-config\n{}", "Content-Type: multipart/mixed\n"):
        assert injected.read([("/a", "")], told)


def parts(told: bytes) -> list[tuple[str, Any, str]]:
    """Type, merge type and content of each part that is not a container."""
    message = email.message_from_bytes(told, policy=email.policy.default)
    assert not message.defects
    return [
        (part.get_content_type(), part["Merge-Type"], part.get_payload(decode=True).decode())
        for part in message.walk() if not part.is_multipart()
    ]


FILES = (("/etc/motd", encoded("hello\n")), ('/srv/"x": y\u00e9', encoded("--a\n")))


@pytest.mark.parametrize("own", ["", "#!/bin/sh\necho --\n", "#cloud-config\nwrite_files: []\n"])
def test_a_guest_is_told_both(own: str) -> None:
    told = Seed("name", own, ("key",), FILES)
    [(first, _, text), (second, merge, files)] = parts(seed.user_data(told))
    assert (first, second) == ("text/plain", "text/cloud-config")
    assert text == (own or seed.user_data(Seed("name", "", ("key",))).decode())
    assert merge == "list(append)+dict(recurse_array)+str()"
    lines = files.splitlines()
    assert lines[:2] == ["#cloud-config", "write_files:"]
    assert [json.loads(line.removeprefix("  - path: ")) for line in lines if "path:" in line] == [
        path for path, _ in FILES
    ]
    assert [json.loads(line.removeprefix("    content: ")) for line in lines if "content:" in line
            ] == [content for _, content in FILES]


def test_a_message_of_the_users_own_stays_whole() -> None:
    own = (
        'Content-Type: multipart/mixed; boundary="b"\nMIME-Version: 1.0\n\n'
        "--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n\n--b--\n"
    )
    [(first, _, text), (second, _, _)] = parts(seed.user_data(Seed("name", own, (), FILES)))
    assert (first, text, second) == ("text/x-shellscript", "#!/bin/sh\n", "text/cloud-config")


def test_the_same_is_told_each_time_and_without_files_nothing_new() -> None:
    told = Seed("name", "#cloud-config\n", (), FILES)
    assert seed.user_data(told) == seed.user_data(told)
    assert seed.digest("u", told) != seed.digest("u", Seed("name", "#cloud-config\n"))
    assert seed.user_data(Seed("name", "#cloud-config\n")) == b"#cloud-config\n"
