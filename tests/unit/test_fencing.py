"""Fences that are programs: what they are told, and what is believed of them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from treadle.compute.failure.fencing import Command, FenceFailed, Ipmi, Target, load
from treadle.config import load as load_settings
from treadle.errors import InvalidInput
from treadle.sections import Fencing

HOST = Target(3, "rack1-n3", "192.0.2.3", "qemu+ssh://root@192.0.2.3/system")
IPMITOOL = """#!/bin/sh
# A management controller: what it is told is kept in a folder, and it goes off at the second look.
here=$(dirname "$0")
echo "$@" >> "$here/told"
[ "$(cat "$8")" = secret ] || { echo "Error: Unable to establish session" >&2; exit 1; }
case "${11}" in
  off) echo on > "$here/power"; echo "Chassis Power Control: Down/Off";;
  status) echo "Chassis Power is $(cat "$here/power")"; echo off > "$here/power";;
esac
"""


def test_a_command_is_given_the_host_and_no_shell(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))"
    fence = Command(Fencing(command=(
        sys.executable, "-c", code, str(told), "{name}", "{id}:{address}", "{uri}", "$(id); *",
    )))
    fence.off(HOST, 20.0)
    assert told.read_text() == repr(["rack1-n3", "3:192.0.2.3", HOST.uri, "$(id); *"])


@pytest.mark.parametrize(("command", "says"), [
    (("false",), "failed (1)"),
    (("sh", "-c", "echo no such outlet >&2; exit 4"), "failed (4): no such outlet"),
    (("sleep", "30"), "did not end within"),
    (("/no/such/program",), "cannot be run"),
])
def test_a_command_that_does_not_say_off_is_not_believed(
    command: tuple[str, ...], says: str
) -> None:
    with pytest.raises(FenceFailed) as caught:
        Command(Fencing(command=command)).off(HOST, 0.5)
    assert says in str(caught.value)


def test_a_name_is_never_taken_for_an_option() -> None:
    bad = Target(1, "--force", "192.0.2.1", "qemu+ssh://192.0.2.1/system")
    with pytest.raises(FenceFailed, match="looks like an option"):
        Command(Fencing(command=("true", "{name}"))).off(bad, 5.0)


@pytest.fixture
def ipmi(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "ipmitool"
    program.write_text(IPMITOOL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    password = tmp_path / "password"
    password.write_text("secret")
    return {
        "program": str(program), "address": "{name}.bmc.example.org", "user": "fence",
        "password_file": str(password),
    }


def test_ipmi_waits_until_the_controller_says_that_it_is_off(
    ipmi: dict[str, str], tmp_path: Path
) -> None:
    Ipmi(Fencing(options=ipmi)).off(HOST, 20.0)
    told = (tmp_path / "told").read_text().splitlines()
    assert [line.split()[-1] for line in told] == ["off", "status", "status"]
    assert "-H rack1-n3.bmc.example.org" in told[0]
    assert "secret" not in "".join(told)
    one = ipmi | {"address.rack1-n3": "192.0.2.99"}
    Ipmi(Fencing(options=one)).off(HOST, 20.0)
    assert "-H 192.0.2.99" in (tmp_path / "told").read_text()


def test_ipmi_that_is_refused_or_stays_on_is_a_failure(ipmi: dict[str, str]) -> None:
    Path(ipmi["password_file"]).write_text("guessed")
    with pytest.raises(FenceFailed, match="Unable to establish session"):
        Ipmi(Fencing(options=ipmi)).off(HOST, 20.0)
    Path(ipmi["password_file"]).write_text("secret")
    with pytest.raises(FenceFailed, match="is not"):
        Ipmi(Fencing(options=ipmi)).off(HOST, 0.4)
    with pytest.raises(FenceFailed, match="no address"):
        Ipmi(Fencing(options={k: v for k, v in ipmi.items() if k != "address"})).off(HOST, 5.0)


def test_plugins_are_found_by_name_and_say_what_they_lack() -> None:
    assert load(Fencing()) is None
    assert isinstance(load(Fencing(plugin="command", command=("true",))), Command)
    for wrong in (
        Fencing(plugin="nothing"), Fencing(plugin="command"), Fencing(plugin="ipmi"),
        Fencing(plugin="lab", options={"folder": "/no/such/lab"}),
    ):
        with pytest.raises(InvalidInput):
            load(wrong)


def test_settings_take_a_table_of_texts() -> None:
    settings = load_settings(None, {
        "TREADLE_FENCING__PLUGIN": "ipmi",
        "TREADLE_FENCING__OPTIONS": '{"user": "fence", "address.h1": "192.0.2.1"}',
        "TREADLE_FENCING__COMMAND": '["fence_apc", "--plug={name}"]',
    })
    assert settings.fencing.options == {"user": "fence", "address.h1": "192.0.2.1"}
    assert settings.fencing.command == ("fence_apc", "--plug={name}")
