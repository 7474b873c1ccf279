"""`vtag config`: what is set, where it comes from; `vtag completion`: for shells."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtag.cli_parse import parsers_of, schema_of
from vtag.cli_progress import say
from vtag.errors import ConfigError, EnvironmentProblem, OutputError
from vtag.settings import Settings, values_of
from vtag.settings_files import FILE_NAME, FOLDER_KEYS, Source, sources
from vtag.settings_schema import DEFAULT, Flag, Schema, Value
from vtag.table import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

MakeParser = Callable[[], argparse.ArgumentParser]
SHELLS = ("bash", "zsh", "fish")


def config_command(args: argparse.Namespace, make_parser: MakeParser) -> int:
    """`vtag config show|path|init`."""
    words = getattr(args, "words", [])
    if words and args.action != "show":
        raise ConfigError(f"vtag config {args.action} takes no {printable(words[0])}")
    if args.action == "path":
        for source in sources(os.environ):
            state = "read" if source.path.is_file() else "not there"
            print(f"{printable(str(source.path))}\t{state}\t{_about(source)}")
        return 0
    if args.action == "init":
        return _init(args, schema_of(make_parser()))
    rows = list(_rows(args.name, words, make_parser))
    if args.json:
        print(json.dumps([_to_dict(command, value) for command, value in rows], indent=1))
        return 0
    width = max(len(_name(command, value)) for command, value in rows)
    room = max(min(len(_shown(value.value)), 28) for _, value in rows)
    for command, value in rows:
        shown = printable(_shown(value.value))
        origin = printable(value.origin.place)
        print(f"{_name(command, value):<{width}}  {shown:<{room}}  {origin}")
    return 0


def _rows(
    name: str | None, words: Sequence[str], make_parser: MakeParser
) -> Iterator[tuple[str | None, Value]]:
    """The settings to show, each with its command (None: of all)."""
    schema = schema_of(make_parser())
    settings = Settings(schema, os.environ)
    if name is None:
        if words:
            raise ConfigError("flags belong to a command: vtag config show run --workers 2")
        shared = settings.shared()
        for flag in schema.shared.values():
            value = Value(flag.key, flag.action.default, DEFAULT)
            yield None, shared.get(flag.dest, value)
        for command, flags in schema.commands.items():
            found = settings.of(command)
            for flag in flags.values():
                if flag.dest not in found:
                    continue
                value = found.pop(flag.dest)
                # A shared one that is the same here as everywhere was shown above.
                if not schema.is_shared(flag) or value != shared.get(flag.dest):
                    yield command, value
        return
    if name not in schema.commands:
        raise ConfigError(
            f"no command {name!r} that has settings; there are: {', '.join(schema.commands)}"
        )
    parsers = [parsers_of(make_parser())[name] for _ in range(2)]
    for value in values_of(settings, name, parsers, words):
        yield name, value


def _name(command: str | None, value: Value) -> str:
    return f"{command}.{value.key}" if command else value.key


def _shown(value: Any) -> str:
    """As it is written in a file; `-` where there is none."""
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def _to_dict(command: str | None, value: Value) -> Mapping[str, Any]:
    return {
        "command": command,
        "key": value.key,
        "value": value.value,
        "origin": value.origin.kind,
        "place": value.origin.place,
    }


def _about(source: Source) -> str:
    return "sets everything" if source.kind == "user" else "sets how to tag, no places"


# -- a first file ---------------------------------------------------------------------------


def _init(args: argparse.Namespace, schema: Schema) -> int:
    """Writes a file that names every setting and sets none; never over another one."""
    where = sources(os.environ)
    path = where[-1].path if args.folder else where[0].path
    if args.folder and where[-1].kind != "folder":
        raise ConfigError("--folder: VTAG_CONFIG names the only file that is read; unset it")
    text = template(schema, folder=args.folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as err:
        raise ConfigError(f"{path}: is there already; edit it, or move it away first") from err
    except OSError as err:
        raise OutputError(
            f"{path}: can not be written ({err.strerror}); check the permissions of its folder"
        ) from err
    say(f"{printable(str(path))}: written; take the # from the lines that you want")
    return 0


def template(schema: Schema, *, folder: bool) -> str:
    """A file of settings with every key as a comment.

    Args:
        folder: only what the file of a folder may set.
    """
    lines = [
        f"# {FILE_NAME}: what is in comments is an example; `vtag config show` tells defaults.",
        "# A flag and a VTAG_* variable count more than this file.",
        "",
        *_template_lines(schema, None, schema.shared, folder=folder),
    ]
    for command, flags in schema.commands.items():
        own = {key: flag for key, flag in flags.items() if not schema.is_shared(flag)}
        below = _template_lines(schema, command, own, folder=folder)
        if below:
            lines += ["", f"[{command}]", *below]
    return "\n".join(lines) + "\n"


def _template_lines(
    schema: Schema, command: str | None, flags: Mapping[str, Flag], *, folder: bool
) -> list[str]:
    lines = []
    for key, flag in flags.items():
        if folder and key not in FOLDER_KEYS:
            continue
        help_ = (flag.action.help or "").replace("(default: %(default)s)", "").strip()
        if flag.action.choices:
            help_ = help_ or "one of: " + ", ".join(map(str, flag.action.choices))
        about = f"  # {help_}" if help_ and help_ != argparse.SUPPRESS else ""
        lines.append(f"# {key} = {_example(flag)}{about}".replace("\n", " "))
    return lines


def _example(flag: Flag) -> str:
    default = flag.action.default
    if flag.is_switch:
        return "true"
    if flag.is_count:
        return "1"
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        return json.dumps(default, ensure_ascii=False)
    if flag.action.choices:
        return json.dumps(next(iter(flag.action.choices)))
    named = {int: "10", float: "0.5"}.get(flag.action.type)  # type: ignore[call-overload]
    return named or json.dumps(str(flag.action.metavar or "…").split("|")[0])


# -- completion -----------------------------------------------------------------------------


def completion_command(args: argparse.Namespace, make_parser: MakeParser) -> int:
    """`vtag completion bash|zsh|fish`: a script for the shell, on stdout."""
    try:
        import shtab
    except ImportError as err:
        raise EnvironmentProblem(
            "completion needs the library shtab: pip install 'shtab>=1.7'"
        ) from err
    parser = make_parser()
    for command in parsers_of(parser).values():
        for action in command._actions:
            words = _words_for(action)
            if words is not None and action.choices is None:
                action.complete = words  # type: ignore[attr-defined]
    preamble = _preamble(model_names()).get(args.shell, "")
    print(shtab.complete(parser, args.shell, preamble=preamble))
    return 0


def model_names() -> list[str]:
    """The models in the package; without torch, which a shell must not wait for."""
    # Not imported: that would bring torch.
    spec = find_spec("vtag.models")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "weights"
    return sorted(file.parent.name for file in folder.glob("*/config.json"))


def _words_for(action: argparse.Action) -> Mapping[str, object] | None:
    """What completes a value: files, folders, or models (a name or a folder)."""
    import shtab

    metavar = str(action.metavar or "")
    if metavar in ("MODEL", "NAME|FOLDER"):
        names = " ".join(model_names())
        return {
            "bash": "_vtag_models",
            "zsh": "_vtag_models",
            "fish": f"(printf '%s\\n' {names}; __fish_complete_directories (commandline -ct))",
        }
    if metavar == "DIR":
        return shtab.DIRECTORY
    files = ("FILE", "CLIP", "DATA", "CSV", "TAGS.jsonl", "FOLDER", "ONNX")
    return shtab.FILE if any(part in files for part in metavar.split("|")) else None


def _preamble(models: Sequence[str]) -> dict[str, str]:
    names = " ".join(models)
    return {
        "bash": (f'_vtag_models() {{\n  compgen -W "{names}" -- "$1"\n  compgen -d -- "$1"\n}}\n'),
        "zsh": f"_vtag_models() {{\n  compadd -- {names}\n  _files -/\n}}\n",
    }


def add_config_commands(
    command: Callable[..., argparse.ArgumentParser], make_parser: MakeParser
) -> None:
    """Adds the two parsers; `command(name, run, help)` makes one."""

    def config(args: argparse.Namespace) -> int:
        return config_command(args, make_parser)

    def completion(args: argparse.Namespace) -> int:
        return completion_command(args, make_parser)

    show = command("config", config, "show what is set and where it comes from")
    show.add_argument("action", nargs="?", choices=["show", "path", "init"], default="show")
    show.add_argument("name", nargs="?", metavar="COMMAND", help="with its flags, to try them")
    show.add_argument("--json", action="store_true")
    show.add_argument("--folder", action="store_true", help="for init: ./vtag.toml")
    shell = command("completion", completion, "print a script that completes words in your shell")
    shell.add_argument("shell", choices=SHELLS)
