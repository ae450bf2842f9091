"""Settings: where they come from, what is refused, and the folder they name."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.config import (
    BadSetting,
    Settings,
    describe,
    load,
    make_private,
    state_folder,
)
from treadle.errors import InvalidInput

Put = Callable[[str | bytes], Path]
KEY = "ssh-ed25519 " + "A" * 68 + " me@here"


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "treadle.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path: Path | None, env: dict[str, str] | None = None) -> str:
    with pytest.raises(BadSetting) as caught:
        load(path, env or {})
    return str(caught.value)


# ---------------------------------------------------------------------- values


def test_defaults() -> None:
    assert load(None, {}) == Settings()
    assert Settings().server.port == 80


def test_file_then_environment(put: Put) -> None:
    path = put(
        '\ufeff[server]\r\nport = 8080\r\nhost = "::"\n[controller]\nlease_s = 60\n'
        "[scheduler.weighers]\ncpu_free = 2\n"
    )
    settings = load(path, {"TREADLE_SERVER__PORT": "8081", "PATH": "/bin", "TREADLE_DEMO": "1"})
    assert settings.server.port == 8081
    assert settings.server.host == "::"
    assert settings.controller.lease_s == 60.0
    assert isinstance(settings.controller.lease_s, float)
    assert settings.scheduler.weighers == {"cpu_free": 2.0}
    assert settings.log == Settings().log


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("CONTROLLER__ENABLED", "false", False),
        ("CONTROLLER__ENABLED", "0", False),
        ("CONTROLLER__ENABLED", "true", True),
        ("CONTROLLER__LEASE_S", "12.5", 12.5),
        ("CONTROLLER__THREADS", "9", 9),
        ("DATABASE__SYNCHRONOUS", "NORMAL", "NORMAL"),
        ("DATABASE__URL", "postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("STATE__FOLDER", "/srv/a b", "/srv/a b"),
        ("STATE__FOLDER", "", ""),
        ("SERVER__CLASSIC_NETWORKS", "10.0.0.0/8, ::/0", ("10.0.0.0/8", "::/0")),
        ("SERVER__CLASSIC_NETWORKS", '["10.0.0.0/8"]', ("10.0.0.0/8",)),
        ("SERVER__CLASSIC_NETWORKS", "", ()),
        ("SCHEDULER__WEIGHERS", "cpu_free=2, disk_free = -1", {"cpu_free": 2.0, "disk_free": -1.0}),
        ("SCHEDULER__WEIGHERS", '{"cpu_free": 2}', {"cpu_free": 2.0}),
        ("SCHEDULER__FILTERS", "state,capacity", ("state", "capacity")),
        ("GUEST__SSH_KEYS", KEY, (KEY,)),
        ("GUEST__USER_DATA", "#cloud-config\nusers: []\n", "#cloud-config\nusers: []\n"),
        ("HOST_DEFAULTS__BRIDGE", "br0", "br0"),
    ],
)
def test_environment(variable: str, text: str, value: object) -> None:
    section, key = variable.lower().split("__")
    settings = load(None, {f"TREADLE_{variable}": text})
    assert getattr(getattr(settings, section), key) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server.port", 0),
        ("server.port", 65536),
        ("server.port", True),
        ("server.port", "80"),
        ("server.port", 80.5),
        ("server.host", "localhost"),
        ("server.host", ""),
        ("server.classic_networks", "10.0.0.0/8"),
        ("server.classic_networks", ["10.0.0.0"]),
        ("server.classic_networks", ["10.0.0.1/8"]),
        ("server.classic_networks", [1]),
        ("state.folder", "relative"),
        ("state.folder", "/x\n"),
        ("database.synchronous", "OFF"),
        ("database.url", "mysql://h/d"),
        ("database.url", "sqlite:///x y"),
        ("controller.enabled", 1),
        ("controller.enabled", "no"),
        ("controller.lease_s", 2.9),
        ("controller.lease_s", float("nan")),
        ("controller.lease_s", float("inf")),
        ("controller.image_share", 0),
        ("scheduler.policy", ""),
        ("scheduler.policy", "a b"),
        ("scheduler.filters", ["state", "state"]),
        ("scheduler.filters", [""]),
        ("scheduler.weighers", {"cpu_free": "much"}),
        ("scheduler.weighers", {"cpu_free": float("nan")}),
        ("scheduler.weighers", {"cpu free": 1}),
        ("scheduler.weighers", ["cpu_free"]),
        ("host_defaults.guest_pool", "10.64.0.0"),
        ("host_defaults.guest_pool", "10.64.0.0/30"),
        ("host_defaults.guest_pool", "10.64.0.1/16"),
        ("host_defaults.guest_pool", "fd00::/16"),
        ("host_defaults.bridge", "a" * 16),
        ("host_defaults.pool", "../x"),
        ("host_defaults.virt_type", "KVM"),
        ("guest.ssh_keys", ["-----BEGIN OPENSSH PRIVATE KEY-----"]),
        ("guest.ssh_keys", [KEY + "\nmore"]),
        ("guest.user_data", "x" * 65536),
        ("image.max_gib", 0),
        ("log.level", "loud"),
    ],
)
def test_value_refused(name: str, value: object) -> None:
    with pytest.raises(BadSetting) as caught:
        Settings().with_overrides({name: value})
    assert caught.value.field == name
    assert caught.value.mend
    assert isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize(
    "text", ["{", "cpu_free", "a=1,a=2", "=1", "[1]", "a=", "{" * 9999, "[" * 99999]
)
def test_table_in_a_variable_refused(text: str) -> None:
    assert "TREADLE_SCHEDULER__WEIGHERS" in refused(None, {"TREADLE_SCHEDULER__WEIGHERS": text})


def test_message_says_where_and_what_is_taken(put: Put) -> None:
    path = put("[server]\nport = 70000\n")
    expected = f"server.port is 70000: a whole number from 1 to 65535 is expected (in {path})"
    assert refused(path) == expected
    message = refused(None, {"TREADLE_LOG__FORMAT": "xml"})
    assert message == (
        'log.format is \'xml\': "auto" or "json" or "console" is expected (in TREADLE_LOG__FORMAT)'
    )


def test_secrets_are_not_shown() -> None:
    assert "secret" not in refused(None, {"TREADLE_DATABASE__URL": "mysql://u:secret@h/"})
    assert "secret" not in refused(None, {"TREADLE_DATABASE__ULR": "sqlite://u:secret@h/"})
    settings = load(None, {"TREADLE_DATABASE__URL": "postgresql://u:secret@h/d"})
    assert "secret" not in repr(settings)


# ------------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("content", "near"),
    [
        ("[server]\nprot = 80\n", "server.port"),
        ("[sever]\nport = 80\n", "server"),
        ("port = 80\n", "there is no such setting"),
        ("[host_defaults]\ncpu_ration = 1\n", "host_defaults.cpu_ratio"),
        ("[server.port]\nx = 1\n", "a whole number"),
    ],
)
def test_unknown_key(put: Put, content: str, near: str) -> None:
    assert near in refused(put(content))


def test_unknown_variable() -> None:
    assert "server.port" in refused(None, {"TREADLE_SERVER__PROT": "1"})
    assert "TREADLE_SERVER__PORT" in refused(None, {"TREADLE_SERVER_PORT": "1"})
    assert "no such setting" in refused(None, {"TREADLE___": "1"})


def test_section_that_is_no_table(put: Put) -> None:
    assert "[server]" in refused(put("server = 1\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[server\n", "line 1"),
        (b"[server]\nport = \n", "line 2"),
        (b"\xff", "not UTF-8"),
        (b"\0", "not valid TOML"),
        (b"a = " + b"[" * 20000, "not valid TOML"),
        (b"#" * ((1 << 20) + 1), "1 MiB"),
    ],
)
def test_broken_file(put: Put, content: bytes, words: str) -> None:
    assert words in refused(put(content))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none")
    assert "Is a directory" in refused(tmp_path)


@given(
    st.dictionaries(
        st.sampled_from(["server", "controller", "scheduler", "x", ""]) | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["port", "lease_s", "weighers"]), inner, max_size=3
                )
            ),
            max_leaves=5,
        ),
        max_size=3,
    )
)
def test_only_bad_setting_is_raised(values: dict[str, object]) -> None:
    overrides = {
        f"{section}.{key}": value
        for section, keys in values.items()
        for key, value in (keys.items() if isinstance(keys, dict) else [("port", keys)])
    }
    try:
        Settings().with_overrides(overrides)
    except BadSetting as error:
        assert error.mend  # noqa: PT017


# ------------------------------------------------------------------- overrides


def test_with_overrides_leaves_the_original() -> None:
    settings = Settings()
    changed = settings.with_overrides({"server.port": 1, "log.level": "debug"})
    assert (changed.server.port, changed.log.level) == (1, "debug")
    assert settings == Settings()
    assert changed.server.host == settings.server.host
    assert changed.with_overrides({}) == changed
    with pytest.raises(AttributeError):
        settings.server.port = 2  # type: ignore[misc]


# ------------------------------------------------------------------- reference


def test_every_setting_is_described() -> None:
    docs = describe()
    assert len({doc.name for doc in docs}) == len(docs)
    for doc in docs:
        assert doc.type
        assert doc.description.endswith(".")
        section, key = doc.name.split(".")
        value = getattr(getattr(Settings(), section), key)
        plain = list(value) if isinstance(value, tuple) else value
        assert tomllib.loads(f"x = {doc.default}") == {"x": plain}
    known = sum(
        len(type(getattr(Settings(), s)).__struct_fields__) for s in Settings().__struct_fields__
    )
    assert len(docs) == known


def test_the_described_defaults_are_a_file(put: Put) -> None:
    content = ""
    for doc in describe():
        section, key = doc.name.split(".")
        content += f"[{section}]\n" if f"[{section}]" not in content else ""
        content += f"{key} = {doc.default}\n"
    assert load(put(content), {}) == Settings()


def test_defaults_pass_their_own_checks() -> None:
    settings = Settings()
    for doc in describe():
        section, key = doc.name.split(".")
        value = msgspec.to_builtins(getattr(getattr(settings, section), key))
        assert settings.with_overrides({doc.name: value}) == settings


def test_import_is_light() -> None:
    code = "import sys, treadle.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"sqlalchemy", "numpy", "urllib3", "starlette", "libvirt", "asyncio"}


# ---------------------------------------------------------------- state folder


def test_state_folder() -> None:
    home = {"HOME": "/home/a"}
    xdg = {"XDG_STATE_HOME": "/xdg"}
    assert state_folder(Settings(), 0, home) == Path("/var/lib/treadle")
    assert state_folder(Settings(), 7, home) == Path("/home/a/.local/state/treadle")
    assert state_folder(Settings(), 7, home | xdg) == Path("/xdg/treadle")
    relative = home | {"XDG_STATE_HOME": "x"}
    assert state_folder(Settings(), 7, relative) == Path("/home/a/.local/state/treadle")
    chosen = Settings().with_overrides({"state.folder": "/srv/t"})
    assert state_folder(chosen, 7, home) == Path("/srv/t")
    with pytest.raises(BadSetting, match="HOME"):
        state_folder(Settings(), 7, {})


def test_make_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_private(folder) == folder
    assert folder.stat().st_mode & 0o7777 == 0o700
    (folder / "x").touch()
    assert make_private(folder) == folder


def test_make_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert make_private(tmp_path / "a").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_make_private_of_a_folder_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(0o755)
    assert make_private(folder).stat().st_mode & 0o777 == 0o700
    (folder / "x").touch()
    folder.chmod(0o755)
    assert make_private(folder).stat().st_mode & 0o777 == 0o755
    for mode in (0o770, 0o707, 0o1777):
        folder.chmod(mode)
        with pytest.raises(BadSetting, match="chmod go-w"):
            make_private(folder)


def test_make_private_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadSetting, match="another folder"):
        make_private(tmp_path / "file")
    with pytest.raises(BadSetting, match="another folder"):
        make_private(tmp_path / "file" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(BadSetting, match="another folder"):
        make_private(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_make_private_of_another_user(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(BadSetting, match="another user owns it"):
        make_private(folder)
    os.chown(folder, 0, 0)
    (tmp_path / "link").symlink_to(folder)
    assert make_private(tmp_path / "link") == tmp_path / "link"
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(BadSetting, match="another user owns it"):
        make_private(tmp_path / "link")
