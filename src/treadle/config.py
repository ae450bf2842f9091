"""Settings: defaults, then a TOML file, then environment variables; the later ones win.

A variable is `TREADLE_SECTION__KEY=value`; lists are comma separated or JSON, tables are
`name=number` pairs, comma separated, or JSON. Every fault is a `BadSetting` that names the key.
What there is to set stands in `sections.py`. Imported by everything: only msgspec and the standard
library here.
"""

from __future__ import annotations

import os
import stat
import tomllib
import typing
from collections.abc import Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from treadle.errors import InvalidInput
from treadle.sections import (
    CHECKS,
    SECRET,
    Console,
    Controller,
    Database,
    Fencing,
    Guest,
    HostDefaults,
    Identity,
    Image,
    Instances,
    Log,
    Moves,
    Scheduler,
    Server,
    State,
)

PREFIX = "TREADLE_"
_MAX_FILE = 1 << 20


class BadSetting(InvalidInput):
    """A setting that cannot be taken: `field` is `section.key`, or names the file."""


class Settings(Struct, frozen=True):
    """All settings, checked."""

    server: Server = Server()
    state: State = State()
    database: Database = Database()
    controller: Controller = Controller()
    instances: Instances = Instances()
    moves: Moves = Moves()
    fencing: Fencing = field(default_factory=Fencing)
    scheduler: Scheduler = field(default_factory=Scheduler)
    host_defaults: HostDefaults = HostDefaults()
    guest: Guest = Guest()
    console: Console = Console()
    image: Image = Image()
    identity: Identity = Identity()
    log: Log = Log()

    def with_overrides(self, overrides: Mapping[str, object]) -> Settings:
        """A copy with other values, named `section.key`; checked as those of a file are."""
        sections = _Sections(self)
        for name, value in overrides.items():
            sections.put(name, value, "")
        return sections.settings()


class SettingDoc(NamedTuple):
    """One setting for the reference. `type` says what is taken; `default` is TOML."""

    name: str
    type: str
    default: str
    description: str


def load(path: Path | None, env: Mapping[str, str]) -> Settings:
    """Read the settings. `path` None: no file; a file that is named must be there.

    Errors: `BadSetting`.
    """
    sections = _Sections(Settings())
    if path is not None:
        for section, keys in _read_toml(path).items():
            if section not in _fields():
                mend = f"{_no_such(section, _fields())} (in {path})"
                raise BadSetting(section, "(a section)", mend)
            if not isinstance(keys, dict):
                raise BadSetting(section, keys, f"a table [{section}] is expected (in {path})")
            for key, value in keys.items():
                sections.put(f"{section}.{key}", value, f" (in {path})")
    for variable, text in env.items():
        name = _name_of(variable)
        if name:
            sections.put(name, text, f" (in {variable})", from_env=True)
    return sections.settings()


def describe() -> list[SettingDoc]:
    """Every setting, in the order of the file: what docs/reference/settings.md is made of."""
    docs = []
    defaults = Settings()
    for section, keys in _fields().items():
        for key, hint in keys.items():
            value = getattr(getattr(defaults, section), key)
            docs.append(SettingDoc(f"{section}.{key}", _expected(hint), _toml(value), _about(hint)))
    return docs


def state_folder(settings: Settings, uid: int, env: Mapping[str, str]) -> Path:
    """The state folder of the user `uid`; nothing is made. Errors: `BadSetting`."""
    if settings.state.folder:
        return Path(settings.state.folder)
    if uid == 0:
        return Path("/var/lib/treadle")
    xdg = env.get("XDG_STATE_HOME", "")
    if xdg.startswith("/"):
        return Path(xdg) / "treadle"
    home = env.get("HOME", "")
    if not home.startswith("/"):
        raise BadSetting("HOME", home, "set it, or set state.folder to an absolute path")
    return Path(home) / ".local" / "state" / "treadle"


def make_private(folder: Path) -> Path:
    """Have a folder (and its parents) that only this user can change; its path comes back.

    A new or empty folder gets mode 0700. One that others may write to, or that another user owns,
    is refused: whoever can put files there could feed them to the controller. Errors: `BadSetting`.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        mend = f"it cannot be made or opened ({error.strerror}); name another folder"
        raise BadSetting("state.folder", str(folder), mend) from error
    try:
        facts = os.fstat(handle)
        # A link that another user owns could be turned to another folder later on.
        owners = {facts.st_uid, os.lstat(folder).st_uid}
        if owners != {os.geteuid()}:
            mend = "another user owns it; give it to this user or name another folder"
            raise BadSetting("state.folder", str(folder), mend)
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mend = f"other users may write to it; run: chmod go-w {folder}"
            raise BadSetting("state.folder", str(folder), mend)
        if stat.S_IMODE(facts.st_mode) != 0o700 and not os.listdir(handle):
            os.fchmod(handle, 0o700)
    finally:
        os.close(handle)
    return folder


class _Sections:
    """Settings while they are put together: section → key → checked value."""

    def __init__(self, base: Settings) -> None:
        self.base = base
        self.changes: dict[str, dict[str, Any]] = {}

    def put(self, name: str, value: object, where: str, from_env: bool = False) -> None:
        section, _, key = name.partition(".")
        hint = _fields().get(section, {}).get(key)
        if hint is None:
            known = [f"{s}.{k}" for s, keys in _fields().items() for k in keys]
            shown = "(hidden)" if section == "database" else value
            raise BadSetting(name, shown, _no_such(name, known) + where)
        self.changes.setdefault(section, {})[key] = _checked(name, value, hint, where, from_env)

    def settings(self) -> Settings:
        made = {}
        for section, keys in self.changes.items():
            made[section] = msgspec.structs.replace(getattr(self.base, section), **keys)
        return msgspec.structs.replace(self.base, **made)


@cache
def _fields() -> dict[str, dict[str, Any]]:
    """Section → key → annotation."""
    sections = typing.get_type_hints(Settings)
    return {
        name: typing.get_type_hints(kind, include_extras=True) for name, kind in sections.items()
    }


def _checked(name: str, value: object, hint: Any, where: str, from_env: bool) -> Any:
    """The value in its own type, or `BadSetting`."""
    expected = f"{_expected(hint)} is expected{where}"
    shown = "(hidden)" if name in SECRET else value
    try:
        if from_env and isinstance(value, str):
            value = _from_text(value, typing.get_origin(_bare(hint)))
        made = msgspec.convert(value, hint, strict=not from_env)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadSetting(name, shown, expected) from error
    numbers = made.values() if isinstance(made, dict) else [made]
    bad = any(isinstance(number, float) and not isfinite(number) for number in numbers)
    check = CHECKS.get(name)
    if bad or (check is not None and not check(made)):
        raise BadSetting(name, shown, expected)
    return made


def _from_text(text: str, kind: object) -> object:
    """What a variable says of a list or a table; other values are left as text."""
    if kind not in (tuple, dict):
        return text
    if text.lstrip()[:1] in ("[", "{"):
        return msgspec.json.decode(text)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind is tuple:
        return parts
    table: dict[str, str] = {}
    for part in parts:
        key, equals, number = part.partition("=")
        if not equals or key.strip() in table:
            raise ValueError(part)
        table[key.strip()] = number.strip()
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    """The file's tables. Errors: `BadSetting`."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        mend = f"it cannot be read ({error.strerror})"
        raise BadSetting("the settings file", str(path), mend) from error
    if len(content) > _MAX_FILE:
        raise BadSetting("the settings file", str(path), "at most 1 MiB of TOML is expected")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        mend = f"it is not valid TOML: {what[:200]}"
        raise BadSetting("the settings file", str(path), mend) from error


def _name_of(variable: str) -> str:
    """`section.key` of a variable, "" for one that is not ours."""
    if not variable.startswith(PREFIX):
        return ""
    section, separator, key = variable.removeprefix(PREFIX).partition("__")
    if separator:
        return f"{section}.{key}".lower()
    for known, keys in _fields().items():
        for key in keys:
            if section == f"{known}_{key}".upper():
                mend = f"write {PREFIX}{known.upper()}__{key.upper()}, with two underscores"
                raise BadSetting(variable, "(set)", mend)
    return ""


def _no_such(name: str, known: typing.Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"there is no such setting; did you mean {near[0]}?"


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _metas(hint: Any) -> list[Meta]:
    return [meta for meta in typing.get_args(hint)[1:] if isinstance(meta, Meta)]


def _about(hint: Any) -> str:
    return next((meta.description for meta in _metas(hint) if meta.description), "")


def _expected(hint: Any) -> str:
    """What is taken, in words that fit before "is expected"."""
    title = next((meta.title for meta in _metas(hint) if meta.title), None)
    if title is not None:
        return title
    kind = _bare(hint)
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        low = next(meta.ge for meta in _metas(hint) if meta.ge is not None)
        high = next(meta.le for meta in _metas(hint) if meta.le is not None)
        return f"a {'whole ' if kind is int else ''}number from {low} to {high}"
    return "text"


def _toml(value: object) -> str:
    """A value as it would stand in the file."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {_toml(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()
