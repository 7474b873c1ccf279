"""Where the value of a flag comes from.

Flag, then VTAG_* variable, then the `vtag.toml` of the current folder, then that of the user,
then the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence

from vtag.settings_files import read_layers, read_variables
from vtag.settings_schema import DEFAULT, Origin, Schema, Value


class Settings:
    """The settings of all places, the later ones before the earlier.

    Args:
        schema: what can be set.
        environment: the variables.

    Raises:
        ConfigError: as `read_layers` and `read_variables`.
    """

    def __init__(self, schema: Schema, environment: Mapping[str, str]) -> None:
        self.schema = schema
        self.files = read_layers(schema, environment)
        self._layers = [layer for _, layer in self.files] + [read_variables(schema, environment)]

    def of(self, command: str) -> dict[str, Value]:
        """What is set for a command, by the name of the parsed argument; defaults are not in it."""
        flags = {flag.dest: flag for flag in self.schema.commands[command].values()}
        found: dict[str, Value] = {}
        for layer in self._layers:
            for dest, value in layer.shared.items():
                if dest in flags and self.schema.is_shared(flags[dest]):
                    found[dest] = value
            found |= layer.commands.get(command, {})
        return found

    def shared(self) -> dict[str, Value]:
        """What is set for all commands at once."""
        found: dict[str, Value] = {}
        for layer in self._layers:
            found |= layer.shared
        return found


def apply(parser: argparse.ArgumentParser, values: Mapping[str, Value]) -> None:
    """Makes settings the defaults of a parser, so that flags replace them."""
    for action in parser._actions:
        if action.option_strings and action.dest in values:
            action.required = False
            if not _adds_up(action):
                action.default = values[action.dest].value


def apply_sums(
    parser: argparse.ArgumentParser, values: Mapping[str, Value], args: argparse.Namespace
) -> None:
    """The same for flags that would add to their default: used where no flag was given."""
    for action in parser._actions:
        given = getattr(args, action.dest, None)
        if action.dest in values and _adds_up(action) and given == action.default:
            setattr(args, action.dest, values[action.dest].value)


def _adds_up(action: argparse.Action) -> bool:
    return isinstance(
        action, argparse._AppendAction | argparse._ExtendAction | argparse._CountAction
    )


def given(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str]:
    """Which arguments some words set by flags, and by which flag. The parser is used up."""
    by_dest: dict[str, str] = {}
    for action in parser._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"
        by_dest.setdefault(action.dest, next(iter(action.option_strings), action.dest))
        action.default = argparse.SUPPRESS
    parser._mutually_exclusive_groups.clear()
    namespace, _ = parser.parse_known_args(list(words))
    return {dest: by_dest[dest] for dest in vars(namespace) if dest in by_dest}


def values_of(
    settings: Settings,
    command: str,
    parsers: Iterable[argparse.ArgumentParser],
    words: Sequence[str],
) -> list[Value]:
    """Every setting of a command with its value and origin, in the order of its help.

    Args:
        settings: of all places.
        command: its name.
        parsers: two fresh parsers of it, which are used up.
        words: flags as on the command line.
    """
    first, second = parsers
    by_flag = given(first, words)
    found = settings.of(command)
    for action in second._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"
    apply(second, found)
    args = second.parse_args(list(words))
    apply_sums(second, found, args)
    values = []
    seen = set()
    for key, flag in settings.schema.commands[command].items():
        if flag.dest in seen:
            continue
        seen.add(flag.dest)
        origin = DEFAULT
        if flag.dest in by_flag:
            origin = Origin("flag", by_flag[flag.dest])
        elif flag.dest in found:
            origin = found[flag.dest].origin
        values.append(Value(key, getattr(args, flag.dest), origin))
    return values
