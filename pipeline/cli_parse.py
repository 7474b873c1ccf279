"""Words on the command line into arguments: settings as defaults, and errors that help."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from vtag.cli_flags import add_common_flags, add_pipeline_flags
from vtag.errors import ConfigError
from vtag.settings import Settings, apply, apply_sums
from vtag.settings_schema import Schema
from vtag.table import printable

# What a new user has most likely meant; shown where a command lacks something.
EXAMPLES: Final = {
    "run": "vtag run ./videos --out tags.jsonl",
    "tag": "vtag tag clip.mp4",
    "train": "vtag train my_clips/ --out my_model",
    "eval": "vtag eval my_clips/ --model my_model",
    "extract": "vtag extract ./videos",
    "search": "vtag search 'dog AND beach' --library tags.jsonl",
    "similar": "vtag similar clip.mp4 --library tags.jsonl",
    "sidecar": "vtag sidecar tags.jsonl --dry-run",
    "report": "vtag report tags.jsonl --out report/",
    "export": "vtag export my_model --onnx model.onnx",
    "average": "vtag average run1 run2 --out mean",
    "ensemble": "vtag ensemble model1 model2 --out both",
    "completion": "vtag completion bash",
}
# They must work whatever is in the files of settings: they show them, or are run by shells.
WITHOUT_SETTINGS: Final = ("config", "completion")
_KIND_NAMES: Final[dict[object, str]] = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        """Says it and ends with the status of wrong usage."""
        command = self.prog.rpartition(" ")[2]
        text = message.replace("the following arguments are required:", "still needs")
        if text != message and command in EXAMPLES:
            text += f"; for example: {EXAMPLES[command]}"
        self.exit(2, f"{self.prog}: {printable(text)} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        close = difflib.get_close_matches(str(value), map(str, action.choices), n=2)
        if not isinstance(action, argparse._SubParsersAction):
            what = "/".join(action.option_strings) or action.metavar or action.dest
            choices = ", ".join(map(str, action.choices))
            advice = f"did you mean {' or '.join(close)}?" if close else f"choose from {choices}"
            self.error(f"{what} can not be {value!r}; {advice}")
        if close:
            self.error(f"no command {value!r}; did you mean {' or '.join(close)}?")
        if os.path.isdir(value):
            self.error(f"{value!r} is a folder; to tag it: vtag run {value} --out tags.jsonl")
        if os.path.exists(value):
            self.error(f"{value!r} is a file; to tag it: vtag tag {value}")
        self.error(f"no command {value!r}; commands: {', '.join(action.choices)}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as err:
            kind = _KIND_NAMES.get(action.type)
            if kind is None:
                raise
            what = "/".join(action.option_strings) or action.dest
            self.exit(2, f"{self.prog}: {what} is {kind}, got {printable(repr(arg_string))}\n")
            raise AssertionError("not reached") from err

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Ends because of words that nothing took; names flags that look like them."""
        known = [name for action in self._actions for name in action.option_strings]
        flag = next((word for word in words if word.startswith("-")), None)
        if flag is None:
            self.error(f"nothing to do with {words[0]!r}")
        name = flag.partition("=")[0]
        close = difflib.get_close_matches(name, known, n=2)
        begun = [other for other in known if len(name) > 3 and other.startswith(name)]
        nearest = list(dict.fromkeys([*begun, *close]))[:2]
        advice = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        if os.path.lexists(flag):
            advice = f"; a file of that name is given after --, or as ./{flag}"
        self.error(f"no flag {name}{advice}")


def parsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def schema_of(parser: argparse.ArgumentParser) -> Schema:
    """What can be set: the flags of all commands but those that are about settings."""
    shared = argparse.ArgumentParser(add_help=False)
    add_common_flags(shared)
    add_pipeline_flags(shared)
    commands = {
        name: command
        for name, command in parsers_of(parser).items()
        if name not in WITHOUT_SETTINGS
    }
    return Schema(commands, shared)


def parse_arguments(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, environment: Mapping[str, str]
) -> argparse.Namespace:
    """The arguments of one command, with what is set in files and variables as defaults.

    Raises:
        ConfigError: a setting makes no sense.
        SystemExit: the words make no sense (2), or asked for help (0).
    """
    words = sys.argv[1:] if words is None else list(words)
    commands = parsers_of(parser)
    name = next((word for word in words if not word.startswith("-")), None)
    command = commands.get(name or "")
    values = {}
    if command is not None and name not in WITHOUT_SETTINGS and not _asks_for_help(words):
        assert name is not None
        try:
            values = Settings(schema_of(parser), environment).of(name)
        except ConfigError:
            if name != "doctor":  # which tells of it
                raise
        apply(command, values)
    args, unknown = parser.parse_known_args(words)
    if command is not None:
        apply_sums(command, values, args)
        # What was said here and now, and not in files or variables, which are defaults.
        args.given = [
            name for name, value in vars(args).items() if value != command.get_default(name)
        ]
    if unknown and name == "config":
        args.words = unknown
    elif unknown:
        owner = command or parser
        assert isinstance(owner, Parser)
        owner.unknown(unknown)
    return args


def _asks_for_help(words: Sequence[str]) -> bool:
    flags = words[: words.index("--")] if "--" in words else words
    return "-h" in flags or "--help" in flags
