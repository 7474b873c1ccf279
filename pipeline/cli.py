"""The command line: parse, call, print, exit status. Only the cli files print.

stdout carries data only; progress, notes and errors go to stderr.
Exit status: 0 every input has a result, 1 some failed, 2 wrong usage, 3 the machine lacks
something, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtag import __version__
from vtag.cli_config import add_config_commands
from vtag.cli_devices import open_pipeline
from vtag.cli_engine import add_engine_flags, engine_of
from vtag.cli_flags import (
    add_common_flags,
    add_corrections_flag,
    add_pipeline_flags,
    corrector_of,
    open_cache,
    parse_size,
    pipeline_of,
    sampling_of,
    selection_of,
    share_cores,
)
from vtag.cli_learning import add_commands
from vtag.cli_parse import Parser, parse_arguments, schema_of
from vtag.cli_progress import Progress, configure_logging, say
from vtag.cli_report import add_report_command
from vtag.cli_scale import (
    add_scale_commands,
    add_source_flags,
    finish_results,
    open_results,
    spool_maker,
)
from vtag.cli_search import add_search_commands
from vtag.cli_sidecar import add_sidecar_command
from vtag.cli_watch import (
    add_watch_flags,
    batches,
    change_counts,
    comes_again,
    tidy,
    watcher_of,
)
from vtag.errors import ConfigError, EnvironmentProblem, MediaError
from vtag.settings_files import odd_variables
from vtag.table import model_text, printable, record_table

if TYPE_CHECKING:
    from vtag.run import Summary
    from vtag.tagger import Pipeline

log = logging.getLogger(__name__)

OK, SOME_FAILED, USAGE, ENVIRONMENT = 0, 1, 2, 3
INTERRUPTED = 130  # 128 + SIGINT
QUIET_PIPE = 141  # 128 + SIGPIPE: what a program gets that writes into a closed pipe


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
        # A terminal without Unicode gets escapes and not a traceback.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
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


def run_command(args: argparse.Namespace) -> int:
    """`vtag run`: a folder in, one JSON line per input out."""
    from vtag.cores import usable_cores
    from vtag.discover import Discovery
    from vtag.moved import Library
    from vtag.remote_tagger import SourceTagger
    from vtag.run import FailureBudget, Summary, run
    from vtag.shards import Shard
    from vtag.signals import stop_on_signals
    from vtag.sources import find_sources

    sampling, selection = sampling_of(args), selection_of(args)
    shard = Shard.parse(args.shard) if args.shard else None
    budget = FailureBudget(count=0) if args.fail_fast else None
    if args.max_failures is not None:
        budget = FailureBudget.parse(args.max_failures)
    for name in ("workers", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} is 1 or more, got {getattr(args, name)}")
    workers = args.workers or usable_cores()
    summary, discovery = Summary(), Discovery()
    make_spool = spool_maker(args)
    pipeline = open_pipeline(args, sampling, selection, workers=workers)
    tagger = SourceTagger(pipeline, make_spool)
    model = pipeline.head.info.fingerprint
    corrector = corrector_of(args, pipeline)
    with (
        engine_of(args, pipeline) as engine,
        stop_on_signals() as stop,
        watcher_of(args, shard) as watcher,
        open_results(args, shard, model) as results,
    ):
        if args.corrections:
            amended = results.amend(corrector.amend)
            say(f"{amended} earlier records changed by your corrections")
        if args.retry_failed:
            results.drop(lambda record: record.get("status") == "failed")
        inputs = find_sources(args.inputs, discovery, manifest=args.manifest, shard=shard)
        library = Library(results)
        progress = Progress(args)
        try:
            for batch in batches(inputs, watcher, library, stopped=stop, quiet=args.quiet):
                for record in run(
                    tagger,
                    batch,
                    library,
                    summary,
                    workers=workers,
                    limit=args.limit,
                    budget=budget,
                    correct=corrector.apply,
                    engine=engine,
                    known=pipeline.tag_known,
                    earlier=library.earlier,
                    again=partial(comes_again, watcher),
                    stopped=stop,
                ):
                    progress.step(record, summary)
                if summary.stopped:
                    break
        finally:
            progress.close()
            pipeline.close()
            tagger.close()
        if watcher is not None or not stop():
            tidy(args, library, summary)
        finish_results(args, shard, model, results, summary, stopped=stop())
    summary.ignored = discovery.ignored if watcher is None else watcher.ignored
    for warning in discovery.warnings:
        say(f"{printable(warning)}")
    return _finish_run(args, summary, stop.exit_status if stop() else None)


def _finish_run(args: argparse.Namespace, summary: Summary, signal_status: int | None) -> int:
    if signal_status:
        summary.stopped = "interrupted"
    known = f", {summary.repeated} known by content" if summary.repeated else ""
    counts = (
        f"{summary.inputs} inputs, {summary.tagged} tagged ({summary.cached} from cache{known}), "
        f"{summary.failed} failed, {summary.skipped} already done"
    )
    if summary.skipped_failed:
        counts += f" ({summary.skipped_failed} of them failed: --retry-failed tries them again)"
    if summary.unfinished:
        counts += f", {summary.unfinished} unfinished"
    counts += change_counts(args, summary)
    if summary.ignored:
        counts += f"; {summary.ignored} other files ignored"
    if summary.stopped:
        say(f"stopped: {summary.stopped}; run the same command again to go on")
    elif summary.unfinished:
        counts += " (the counts do not add up: this is a bug in vtag, please report it)"
    if args.summary_json:
        from vtag.storage import write_whole

        write_whole(Path(args.summary_json), json.dumps(summary.to_dict()).encode() + b"\n")
    if not args.quiet or summary.failed or summary.stopped:
        say(counts if args.out == "-" else f"{counts} -> {printable(str(args.out))}")
    if summary.skipped and summary.skipped == summary.inputs and not args.quiet:
        # Who came back with another threshold or precision would wait for it in vain.
        say("nothing was new, and records stay as they were made; another --out tags all anew")
    if summary.codes:
        most_first = sorted(summary.codes.items(), key=lambda item: (-item[1], item[0]))
        say(f"failed: {', '.join(f'{count} {code}' for code, count in most_first)}")
    if signal_status:
        # Threads may still be inside a network pass; what they would give is not awaited.
        sys.stderr.flush()
        os._exit(signal_status)
    if summary.inputs == 0:
        say("no video or sound file was found")
        return SOME_FAILED
    bad = summary.failed or summary.skipped_failed or summary.unfinished
    return SOME_FAILED if bad else OK


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
            try:
                record = pipeline.tag(clip)
            except MediaError as err:
                say(f"{printable(str(err))} [{err.code}]")
                status = SOME_FAILED
                continue
            if args.json:
                print(json.dumps(record.to_dict(), ensure_ascii=True))
            else:
                print(record_table(record, colour=not args.no_color and _colour()))
    return status


def labels_command(args: argparse.Namespace) -> int:
    """`vtag labels`: every tag that the model can give."""
    from vtag.head import load_head

    labels = load_head(args.model).labels
    found = labels.search(args.search) if args.search else list(labels)
    if args.json:
        print(json.dumps([label.to_dict() for label in found], ensure_ascii=False))
        return OK
    for label in found:
        above = " > ".join(labels.categories(label))
        row = (label.id, label.name, f"{label.threshold:.2f}", above)
        print("\t".join(map(printable, row)).rstrip())
    if not found:
        near = get_close_matches(args.search or "", [label.name for label in labels], n=3)
        advice = f"; did you mean {', '.join(near)}?" if near else "; `vtag labels` lists all"
        say(printable(f"{args.model} has no label with {args.search!r} in its name{advice}"))
        return SOME_FAILED
    return OK


def models_command(args: argparse.Namespace) -> int:
    """`vtag models list|info|download`."""
    from vtag.head import embedded_models, load_head
    from vtag.weights import download_weights, installed, list_weights

    if args.action == "download":
        print(download_weights(_needed(args.name, "models download NAME")))
    elif args.action == "info":
        head = load_head(_needed(args.name, "models info NAME"))
        about = head.describe()
        print(json.dumps(about, indent=2) if args.json else model_text(about))
    else:
        for name in embedded_models():
            print(f"{name}\tmodel\tembedded")
        for weights in list_weights():
            state = "embedded" if weights.embedded else installed(weights.name) or "not downloaded"
            print(f"{weights.name}\tweights\t{state}\t{weights.about}")
    return OK


def cache_command(args: argparse.Namespace) -> int:
    """`vtag cache info|verify|prune|clear`."""
    cache = open_cache(args)
    if args.action == "verify":
        bad = cache.verify(remove=True)
        for entry in bad:
            print(f"{entry.path}\t{entry.why}")
        say(f"{len(bad)} damaged entries removed from {cache.root}")
        return SOME_FAILED if bad else OK
    if args.action == "prune":
        removed = cache.prune(parse_size(_needed(args.max_size, "cache prune --max-size 10G")))
        say(f"{removed} entries removed from {cache.root}")
    elif args.action == "clear":
        from vtag.content_id import ContentIds
        from vtag.search_index import forget_indexes

        # Both hold names of files.
        ContentIds(cache.root).forget()
        forget_indexes(cache.root / "search")
        say(f"{cache.clear()} entries removed from {cache.root}")
    else:
        info = cache.info()
        print(json.dumps({"folder": str(cache.root), "entries": info.entries, "bytes": info.bytes}))
    return OK


def doctor_command(args: argparse.Namespace) -> int:
    """`vtag doctor`: what is there, what is slow, what to install."""
    from vtag.cache import default_cache_folder
    from vtag.doctor import findings

    worst = OK
    for finding in findings(Path(args.cache) if args.cache else default_cache_folder()):
        print(
            f"[{finding.state}] {finding.what}"
            + (f" -> {finding.advice}" if finding.advice else "")
        )
        worst = ENVIRONMENT if finding.state == "problem" else worst
    return worst


# -- what the commands share ----------------------------------------------------------------


def _needed(value: str | None, usage: str) -> str:
    if not value:
        raise ConfigError(f"usage: vtag {usage}")
    return value


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

    run = _command(commands, "run", run_command, "tag a folder: one JSON line per file")
    run.add_argument("inputs", nargs="*", metavar="FOLDER|FILE|URI")
    run.add_argument(
        "--out", required=True, metavar="TAGS.jsonl", help="where records go; - for stdout"
    )
    add_pipeline_flags(run)
    add_engine_flags(run)
    add_source_flags(run)
    run.add_argument("--workers", type=int, help="files at once (default: one per core)")
    run.add_argument("--limit", type=int, metavar="N", help="stop after so many inputs")
    run.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the inputs")
    run.add_argument(
        "--retry-failed", action="store_true", help="try the failed ones of --out again"
    )
    run.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    run.add_argument("--max-failures", metavar="N|P%", help="stop after so many failures")
    add_corrections_flag(run, "apply what you corrected in the report")
    run.add_argument("--summary-json", metavar="FILE", help="write the final counts there")
    add_watch_flags(run)

    tag = _command(commands, "tag", tag_command, "tag one clip and print the result")
    tag.add_argument("clips", nargs="+", metavar="CLIP")
    tag.add_argument("--json", action="store_true", help="print the record as JSON")
    tag.add_argument("--no-color", action="store_true", help="no colours, as with NO_COLOR=1")
    add_pipeline_flags(tag)

    labels = _command(commands, "labels", labels_command, "list the tags that the model can give")
    labels.add_argument("--search", metavar="TEXT", help="only those with TEXT in their name")
    labels.add_argument("--json", action="store_true")
    labels.add_argument("--model", default="vtag-base", metavar="NAME|FOLDER")

    models = _command(commands, "models", models_command, "list, describe or download models")
    models.add_argument("action", nargs="?", choices=["list", "info", "download"], default="list")
    models.add_argument("name", nargs="?", metavar="NAME|FOLDER")
    models.add_argument("--json", action="store_true", help="for info: as JSON, with the network")

    cache = _command(commands, "cache", cache_command, "look after the feature cache")
    cache.add_argument(
        "action", nargs="?", choices=["info", "verify", "prune", "clear"], default="info"
    )
    cache.add_argument("--cache", metavar="DIR", help="the cache folder (default: VTAG_CACHE_DIR)")
    cache.add_argument("--max-size", metavar="10G", help="for prune: what may stay")

    def learning(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        def call(args: argparse.Namespace) -> int:
            def open_pipeline() -> Pipeline:
                share_cores(1)
                return pipeline_of(args, sampling_of(args), selection_of(args))

            status: int = run(args, open_pipeline)
            return status

        return _command(commands, name, call, text)

    add_commands(learning, add_pipeline_flags)
    add_search_commands(learning, add_pipeline_flags)
    add_sidecar_command(partial(_command, commands))
    add_scale_commands(partial(_command, commands))
    add_report_command(partial(_command, commands))

    add_config_commands(partial(_command, commands), build_parser)
    doctor = _command(commands, "doctor", doctor_command, "check this machine")
    doctor.add_argument("--cache", metavar="DIR")
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
