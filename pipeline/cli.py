"""The command line: parse, call, print, exit status. Only the cli files print.

stdout carries data only; progress, notes and errors go to stderr.
Exit statuses: `vtag.cli_status`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vtag import __version__
from vtag.cli_config import add_config_commands
from vtag.cli_flags import (
    add_common_flags,
    add_pipeline_flags,
    pipeline_of,
    sampling_of,
    selection_of,
    share_cores,
)
from vtag.cli_learning import add_commands
from vtag.cli_models import add_model_commands
from vtag.cli_parse import Parser, parse_arguments, schema_of
from vtag.cli_progress import configure_logging, say
from vtag.cli_report import add_report_command
from vtag.cli_run import add_run_command
from vtag.cli_scale import (
    add_scale_commands,
)
from vtag.cli_search import add_search_commands
from vtag.cli_sidecar import add_sidecar_command
from vtag.cli_status import ENVIRONMENT, INTERRUPTED, OK, QUIET_PIPE, SOME_FAILED, USAGE
from vtag.cli_upkeep import add_upkeep_commands
from vtag.errors import ConfigError, EnvironmentProblem, MediaError
from vtag.settings_files import odd_variables
from vtag.table import printable, record_table
from vtag.uris import is_remote

if TYPE_CHECKING:
    from vtag.tagger import Pipeline

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = build_parser()
    try:
        args = parse_arguments(parser, argv, os.environ)
    except ConfigError as err:
        say(printable(str(err)))
        return USAGE
    if not hasattr(args, "command"):
        parser.print_help(sys.stderr)
        return USAGE
    configure_logging(args)
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode gets escapes and not a traceback. Python itself lets only
        # undecodable names through there ("surrogateescape").
        if isinstance(stream, io.TextIOWrapper) and (
            stream.errors == "strict" or stream.encoding.lower().replace("-", "") != "utf8"
        ):
            stream.reconfigure(errors="backslashreplace")
    for warning in odd_variables(schema_of(parser), os.environ):
        log.warning("%s", printable(warning))
    try:
        status: int = args.command(args)
        sys.stdout.flush()
        return status
    except ConfigError as err:
        say(f"{printable(str(err))}")
        return USAGE
    except MediaError as err:
        say(f"{printable(str(err))} [{err.code}]")
        return SOME_FAILED
    except EnvironmentProblem as err:
        say(f"{printable(str(err))}")
        return ENVIRONMENT
    except KeyboardInterrupt:
        # Before the run took the signals over, or in a command that has nothing to end first.
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # `vtag … | head`: the reader has enough. The descriptor is replaced so that Python's
        # own flush at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return QUIET_PIPE


# -- the commands ---------------------------------------------------------------------------


def tag_command(args: argparse.Namespace) -> int:
    """`vtag tag`: one clip, as a table for people or as JSON."""
    share_cores(1)
    status = OK
    with pipeline_of(args, sampling_of(args), selection_of(args)) as pipeline:
        for clip in args.clips:
            if os.path.isdir(clip):
                say(f"{printable(clip)}: is a folder; tag it: vtag run FOLDER --out tags.jsonl")
                status = SOME_FAILED
                continue
            if is_remote(clip):
                say(f"{printable(clip)}: an address; tag it: vtag run ADDRESS --out tags.jsonl")
                status = SOME_FAILED
                continue
            try:
                record = pipeline.tag(clip)
            except MediaError as err:
                say(f"{printable(str(err))} [{err.code}]")
                status = SOME_FAILED
                if not args.json:
                    continue
                record = pipeline.failed(clip, err)
            if args.json:
                print(json.dumps(record.to_dict(), ensure_ascii=True))
            else:
                colour = not args.no_color and _colour()
                print(record_table(record, colour=colour, encoding=sys.stdout.encoding))
    return status


# -- what the commands share ----------------------------------------------------------------


def _colour() -> bool:
    # no-color.org: the variable counts when it is not empty.
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


# -- the parser -----------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = Parser(
        prog="vtag",
        description="Tags videos by what is seen and heard in them, offline.",
        epilog="begin with: vtag run ./videos --out tags.jsonl (a folder) or vtag tag clip.mp4; "
        "vtag doctor looks at this machine, vtag COMMAND --help explains a command",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vtag {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = partial(_command, commands)
    add_run_command(command)
    tag = command("tag", tag_command, "tag one clip and print the result")
    tag.add_argument("clips", nargs="+", metavar="CLIP")
    tag.add_argument("--json", action="store_true", help="print the record as JSON")
    tag.add_argument("--no-color", action="store_true", help="no colours, as with NO_COLOR=1")
    add_pipeline_flags(tag)

    add_model_commands(command)
    add_upkeep_commands(command)

    def learning(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        def call(args: argparse.Namespace) -> int:
            def open_pipeline() -> Pipeline:
                share_cores(1)
                return pipeline_of(args, sampling_of(args), selection_of(args))

            status: int = run(args, open_pipeline)
            return status

        return command(name, call, text)

    add_commands(learning, add_pipeline_flags)
    add_search_commands(learning, add_pipeline_flags)
    add_sidecar_command(command)
    add_scale_commands(command)
    add_report_command(command)

    add_config_commands(command, build_parser)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(command=run)
    add_common_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
