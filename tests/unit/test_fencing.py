"""Fences that are programs: what they are told, and what is believed of them."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import wait_for

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


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[dict[str, str]]:
    """OpenIPMI's management controller on a loopback port; its machine's power is a file, which
    refuses nothing unless there is a file `refuses` beside it."""
    program = tmp_path / "chassis"
    program.write_text(f"""#!/bin/sh
case "$2 $3 $4" in
  "get power ") echo "power:$(cat {tmp_path}/power)";;
  "set power 0") [ ! -e {tmp_path}/refuses ] && echo 0 > {tmp_path}/power;;
esac
""")
    program.chmod(0o755)
    (tmp_path / "power").write_text("1")
    (tmp_path / "password").write_text("secret")
    (tmp_path / "state").mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    auths = "".join(f"allowed_auths_{who} md5\n" for who in ("user", "operator", "admin"))
    (tmp_path / "lan.conf").write_text(
        f'name "bmc"\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n{auths}'
        f'guid a123456789abcdefa123456789abcdef\nendlan\nchassis_control "{program} 0x20"\n'
        'user 2 true "fence" "secret" admin 10\n'
    )
    (tmp_path / "commands").write_text(
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n"
        "mc_enable 0x20\n"
    )
    process = subprocess.Popen(
        ["ipmi_sim", "-n", "-c", "lan.conf", "-f", "commands", "-s", "state"], cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: f":{port:04X} " in Path("/proc/net/udp").read_text(), 10, "its port")
        yield {
            "address": "127.0.0.1", "port": str(port), "cipher": "3", "user": "fence",
            "password_file": str(tmp_path / "password"),
        }
    finally:
        process.kill()
        process.wait(10)


def test_a_real_ipmitool_switches_off_a_real_controllers_machine(
    controller: dict[str, str], tmp_path: Path
) -> None:
    fence = Ipmi(Fencing(options=controller))
    (tmp_path / "refuses").touch()
    with pytest.raises(FenceFailed, match="Down/Off failed"):
        fence.off(HOST, 20.0)
    (tmp_path / "password").write_text("guessed")
    with pytest.raises(FenceFailed, match="Unable to establish"):
        fence.off(HOST, 20.0)
    (tmp_path / "password").write_text("secret")
    (tmp_path / "refuses").unlink()
    assert (tmp_path / "power").read_text() == "1"
    fence.off(HOST, 20.0)
    assert (tmp_path / "power").read_text() == "0\n"
    # Off already, and a controller that refuses it then: it is off.
    (tmp_path / "refuses").touch()
    fence.off(HOST, 20.0)


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
