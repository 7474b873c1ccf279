"""What can be set: the flags of all commands, with their names, types and choices.

Settings are nothing but flags that are written down, so a new flag can be set at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vtag.errors import ConfigError

# `cache` is a command, so a table; and VTAG_CACHE_DIR is older than settings.
KEYS: Final = {"cache": "cache-dir"}

Kind = Literal["default", "user", "folder", "variable", "flag"]
_NOT_SETTINGS: Final = frozenset(["help", "version"])
_ON: Final = {"1": True, "true": True, "yes": True, "on": True}
_SWITCH: Final = {**_ON, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    Attributes:
        kind: the sort of place.
        place: "default", "/home/me/.config/vtag/vtag.toml:3", "VTAG_DEVICE" or "--device".
    """

    kind: Kind
    place: str


DEFAULT: Final = Origin("default", "default")


@dataclass(frozen=True)
class Value:
    """The value of one setting of one command."""

    key: str
    value: Any
    origin: Origin


@dataclass(frozen=True)
class Flag:
    """One flag of one command, as a setting.

    Attributes:
        key: its name in a file: "frames-per-second"; that of the flag, but for `KEYS`.
        action: what the parser knows of it.
    """

    key: str
    action: argparse.Action

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments."""
        return self.action.dest

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return next(name for name in self.action.option_strings if name.startswith("--"))

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.action.nargs == 0 and not self.is_count

    @property
    def is_count(self) -> bool:
        """Whether it is given several times to say more (-vv)."""
        return isinstance(self.action, argparse._CountAction)

    @property
    def is_list(self) -> bool:
        """Whether several values add up."""
        return isinstance(self.action, argparse._AppendAction | argparse._ExtendAction)

    def same_as(self, other: Flag) -> bool:
        """Whether it means the same in another command."""
        ours, theirs = self.action, other.action
        alike = ("dest", "type", "nargs", "metavar")
        return all(getattr(ours, name) == getattr(theirs, name) for name in alike)


@dataclass(frozen=True)
class Layer:
    """What one place says: the values of the settings it names.

    Attributes:
        shared: key -> value, for every command that has such a flag.
        commands: command -> key -> value.
    """

    shared: Mapping[str, Value] = field(default_factory=dict)
    commands: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)


class Schema:
    """All settings: which command has which, and which are shared.

    Args:
        parsers: command -> its parser.
        shared: a parser with the flags that mean the same in every command that has them.
    """

    def __init__(
        self, parsers: Mapping[str, argparse.ArgumentParser], shared: argparse.ArgumentParser
    ) -> None:
        self.commands = {name: _flags(parser) for name, parser in parsers.items()}
        self.shared = _flags(shared)

    def flag(self, command: str | None, key: str) -> Flag | None:
        """The flag of this key; of the shared ones where `command` is None."""
        flags = self.shared if command is None else self.commands.get(command, {})
        return flags.get(key.replace("_", "-"))

    def is_shared(self, flag: Flag) -> bool:
        """Whether a flag of a command can be set for all at once."""
        shared = self.shared.get(flag.key)
        return shared is not None and shared.same_as(flag)

    def variables(self) -> dict[str, tuple[str | None, Flag]]:
        """VTAG_* -> its command (None for all) and flag."""
        found: dict[str, tuple[str | None, Flag]] = {}
        for key, flag in self.shared.items():
            found[variable_of(None, key)] = (None, flag)
        for command, flags in self.commands.items():
            for key, flag in flags.items():
                found.setdefault(variable_of(command, key), (command, flag))
        return found

    def variable(self, command: str | None, flag: Flag) -> str:
        """The variable that sets this flag, of this command or of all."""
        if command is None or self.is_shared(flag):
            return variable_of(None, flag.key)
        return variable_of(command, flag.key)

    def nearest(self, command: str | None, key: str) -> str:
        """Advice for a key that is not there, as the rest of a sentence."""
        key = key.replace("_", "-")
        if command is None:
            owners = [name for name, flags in self.commands.items() if key in flags]
            if owners:
                return f"it belongs to a command: put it below [{owners[0]}]"
            if key in self.commands:
                return f"a command is a table: [{key}]"
        flags = self.shared if command is None else self.commands[command]
        close = difflib.get_close_matches(key, flags, n=2)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return f"`vtag config show{f' {command}' if command else ''}` lists all"


def variable_of(command: str | None, key: str) -> str:
    """The variable of a setting: VTAG_DEVICE, or VTAG_RUN_WORKERS for one of a command."""
    return "_".join(["VTAG", *([command] if command else []), key]).replace("-", "_").upper()


def _flags(parser: argparse.ArgumentParser) -> dict[str, Flag]:
    found = {}
    for action in parser._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        if names and action.dest not in _NOT_SETTINGS:
            key = KEYS.get(names[0], names[0])
            found[key] = Flag(key, action)
    return found


def typed_value(flag: Flag, value: object, *, is_text: bool = False) -> Any:
    """The value as the parser would have given it.

    Args:
        flag: whose value.
        value: from a TOML file, or the text of a variable.
        is_text: a variable: everything is text, and lists have commas.

    Raises:
        ConfigError: it is not of the flag's type or none of its choices.
    """
    if flag.is_switch:
        return _switched(flag, _SWITCH.get(str(value).lower(), value) if is_text else value)
    if flag.is_list:
        parts = value.split(",") if is_text and isinstance(value, str) else value
        parts = parts if isinstance(parts, list) else [parts]
        return [_single(flag, part, is_text=is_text) for part in parts]
    return _single(flag, value, is_text=is_text)


def _switched(flag: Flag, value: object) -> object:
    if not isinstance(value, bool):
        raise ConfigError(f"{flag.key!r} is true or false, got {value!r:.80}")
    const = flag.action.const
    if value or not isinstance(const, bool):
        return const if value else flag.action.default
    return not const


def _single(flag: Flag, value: object, *, is_text: bool) -> Any:
    action = flag.action
    kind = int if flag.is_count else action.type
    if not is_text and not _is_written_as(kind, value):
        raise ConfigError(f"{flag.key!r} is {_kind_name(flag)}, got {value!r:.80}")
    text = str(value)
    if not is_text and text.startswith("~/"):
        text = os.path.expanduser(text)  # as the shell does with flags and variables
    try:
        typed = kind(text) if callable(kind) else text
    except (ValueError, TypeError, argparse.ArgumentTypeError) as err:
        raise ConfigError(f"{flag.key!r} is {_kind_name(flag)}, got {value!r:.80}") from err
    if action.choices is not None and typed not in action.choices:
        choices = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(typed), choices, n=1)
        advice = f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"
        raise ConfigError(f"{flag.key!r} can not be {value!r:.80}; {advice}")
    return typed


def _is_written_as(kind: object, value: object) -> bool:
    """Whether TOML has the right type: 3 and not "3", "a" and not a date."""
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, str | int | float)  # batch-size = 8, max-failures = 10


def _kind_name(flag: Flag) -> str:
    kind = int if flag.is_count else flag.action.type
    names: dict[object, str] = {int: "a whole number", float: "a number"}
    return names.get(kind, "a text")
