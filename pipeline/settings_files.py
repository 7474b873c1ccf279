"""Settings from files and from VTAG_* variables, checked against the flags.

A `vtag.toml` in the current folder may come with the videos, from anybody. It may say how to
tag (`FOLDER_KEYS`), and nothing that names a place to write, starts a program, removes
something or goes to a network. The user's own file and the environment may set every flag.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from vtag.errors import ConfigError
from vtag.settings_schema import (
    Flag,
    Kind,
    Layer,
    Origin,
    Schema,
    Value,
    typed_value,
)
from vtag.storage import open_regular, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME: Final = "vtag.toml"
MAX_FILE_BYTES: Final = 1 << 20
CONFIG_VARIABLE: Final = "VTAG_CONFIG"
# Variables that are not flags. None of them is a shared flag or a command with a flag.
OTHER_VARIABLES: Final = frozenset(
    [CONFIG_VARIABLE, "VTAG_WEIGHTS", "VTAG_OFFLINE", "VTAG_REQUIRE_GPU", "VTAG_SPOOL_DIR"]
)
# What the file of a folder may set: how to tag, and how much to say. Everything else, and every
# flag to come, is for the owner of the machine alone until it is added here.
FOLDER_KEYS: Final = frozenset(
    [
        "device", "frames-per-second", "max-frames", "sampling", "decoder", "top-k", "threshold",
        "batch-size", "model", "verbose", "quiet", "no-cache", "read-only-cache",
        "workers", "max-failures", "fail-fast", "watch-settle", "watch-poll",
        "preset", "epochs", "learning-rate", "patience", "seed", "validation", "streams",
        "single-label", "multi-label", "class-weights", "k", "split", "only-given-labels",
        "together", "max-tags", "min-score", "vtt", "format",
    ]
)  # fmt: skip

_TABLE_LINE: Final = re.compile(r"\s*\[\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*\]")
_KEY_LINE: Final = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")


@dataclass(frozen=True)
class Source:
    """A file of settings.

    Attributes:
        path: where it is or would be.
        kind: "user" for what only the owner of the machine writes, else "folder".
    """

    path: Path
    kind: Kind


def sources(environment: Mapping[str, str]) -> list[Source]:
    """The files that are read, the one that counts less first.

    With VTAG_CONFIG it is that file alone, so that a script can be sure of what applies.
    Folders above the current one are not searched: they may be anybody's, as /tmp is.
    """
    named = environment.get(CONFIG_VARIABLE)
    if named:
        return [Source(Path(named), "user")]
    user = Path(platformdirs.user_config_dir("vtag", appauthor=False)) / FILE_NAME
    if os.path.realpath(user) == os.path.realpath(FILE_NAME):
        return [Source(user, "user")]
    return [Source(user, "user"), Source(Path(FILE_NAME), "folder")]


def read_layers(schema: Schema, environment: Mapping[str, str]) -> list[tuple[Source, Layer]]:
    """What each file says; a file that is not there says nothing.

    Raises:
        ConfigError: a file can not be read, is no TOML, or has a key or value that makes no
            sense; one line with the place.
    """
    layers = []
    for source in sources(environment):
        text = _read(source, must_exist=bool(environment.get(CONFIG_VARIABLE)))
        if text is not None:
            layers.append((source, _Reader(schema, source, text).layer()))
    return layers


def _read(source: Source, *, must_exist: bool) -> str | None:
    path = source.path
    if must_exist and str(path) == os.devnull:
        return None
    try:
        # Through links: people keep such files in a repository of their own.
        with open_regular(Path(os.path.realpath(path))) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as err:
        if must_exist:
            raise ConfigError(
                f"{path}: no such file, and {CONFIG_VARIABLE} names it; correct or unset it"
            ) from err
        return None
    except OSError as err:
        raise ConfigError(
            f"{path}: settings can not be read ({reason(err)}); check the file or move it away"
        ) from err
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: {len(data)} bytes or more is no file of settings")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: is not UTF-8 (byte {err.start}); save it as UTF-8") from err


class _Reader:
    """One file, checked against the flags."""

    def __init__(self, schema: Schema, source: Source, text: str) -> None:
        self._schema = schema
        self._source = source
        self._lines = _line_numbers(text)
        try:
            self._content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as err:
            # The text of the error has line and column.
            raise ConfigError(f"{source.path}: is no TOML: {err}") from err

    def layer(self) -> Layer:
        """What the file says."""
        shared: dict[str, Value] = {}
        commands: dict[str, dict[str, Value]] = {}
        for key, value in self._content.items():
            if not isinstance(value, dict):
                shared |= self._one(None, key, value)
            elif key not in self._schema.commands:
                close = difflib.get_close_matches(key, self._schema.commands, n=2)
                known = " or ".join(f"[{name}]" for name in close)
                advice = f"did you mean {known}?" if known else "tables are named like commands"
                raise self._error(key, None, f"no command {key!r}; {advice}")
            else:
                found = commands.setdefault(key, {})
                for inner, inner_value in value.items():
                    found |= self._one(key, inner, inner_value)
        return Layer(shared, commands)

    def _one(self, command: str | None, key: str, value: object) -> dict[str, Value]:
        flag = self._schema.flag(command, key)
        if flag is None:
            where = f" of [{command}]" if command else ""
            advice = self._schema.nearest(command, key)
            raise self._error(command, key, f"no setting {key!r}{where}; {advice}")
        if self._source.kind == "folder":
            self._refuse_foreign(command, flag, value)
        try:
            typed = typed_value(flag, value)
        except ConfigError as err:
            raise self._error(command, key, str(err)) from err
        origin = Origin(self._source.kind, self._place(command, key))
        return {flag.dest: Value(flag.key, typed, origin)}

    def _refuse_foreign(self, command: str | None, flag: Flag, value: object) -> None:
        if flag.key not in FOLDER_KEYS:
            raise self._error(
                command,
                flag.key,
                f"the file of a folder may not set {flag.key!r}, since it may come with the "
                f"videos; use {flag.name}, {self._schema.variable(command, flag)}, or your "
                "own file (`vtag config path`)",
            )
        if flag.key == "model" and isinstance(value, str) and not _stays_inside(value):
            raise self._error(
                command,
                flag.key,
                f"the file of a folder may name a model in this folder only, not {value!r}; "
                "use --model, VTAG_MODEL, or your own file (`vtag config path`)",
            )

    def _place(self, command: str | None, key: str) -> str:
        line = self._lines.get((command, key))
        return f"{self._source.path}:{line}" if line else str(self._source.path)

    def _error(self, command: str | None, key: str | None, text: str) -> ConfigError:
        place = self._place(command, key or "")
        return ConfigError(f"{place}: {text}")


def _stays_inside(model: str) -> bool:
    """Whether a model is called by name, or is a folder below the current one."""
    here, there = os.path.realpath(os.curdir), os.path.realpath(model)
    return there != here and os.path.commonpath([here, there]) == here


def _line_numbers(text: str) -> dict[tuple[str | None, str], int]:
    """Where keys and tables are, as far as they are written on lines of their own."""
    found: dict[tuple[str | None, str], int] = {}
    table: str | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _TABLE_LINE.match(line):
            table = header[1]
            found.setdefault((table, ""), number)
        elif key := _KEY_LINE.match(line):
            found.setdefault((table, key[1]), number)
    return found


def read_variables(schema: Schema, environment: Mapping[str, str]) -> Layer:
    """What the VTAG_* variables say; an empty one says nothing.

    Raises:
        ConfigError: a value makes no sense.
    """
    shared: dict[str, Value] = {}
    commands: dict[str, dict[str, Value]] = {}
    for name, (command, flag) in schema.variables().items():
        text = environment.get(name)
        if not text or name in OTHER_VARIABLES:
            continue
        try:
            value = Value(flag.key, typed_value(flag, text, is_text=True), Origin("variable", name))
        except ConfigError as err:
            raise ConfigError(f"{name}: {err}") from err
        (shared if command is None else commands.setdefault(command, {}))[flag.dest] = value
    return Layer(shared, commands)


def odd_variables(schema: Schema, environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each VTAG_* variable that is none but looks like one.

    Others are passed over: they may be for another version, or for something around vtag.
    """
    known = [*schema.variables(), *OTHER_VARIABLES]
    for name in sorted(environment):
        if name.startswith("VTAG_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close:
                yield f"{name} is no setting and does nothing; did you mean {close[0]}?"
