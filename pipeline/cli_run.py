"""`vtag run`: a folder, a list or a bucket in, one record per input out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vtag.cli_devices import open_pipeline
from vtag.cli_engine import add_engine_flags, engine_of
from vtag.cli_flags import (
    add_corrections_flag,
    add_pipeline_flags,
    check_summary_file,
    corrector_of,
    sampling_of,
    selection_of,
    write_summary,
)
from vtag.cli_progress import Progress, say
from vtag.cli_scale import add_source_flags, finish_results, open_results, spool_maker
from vtag.cli_status import OK, SOME_FAILED, STOPPED
from vtag.cli_watch import (
    add_watch_flags,
    batches,
    change_counts,
    comes_again,
    tidy,
    watcher_of,
)
from vtag.errors import ConfigError
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.run import Summary

# Flags that decide what a record says.
_FOR_NEW_RECORDS: Final = (
    "threshold",
    "top_k",
    "min_score",
    "label_thresholds",
    "frames_per_second",
    "max_frames",
    "sampling",
    "precision",
)


def add_run_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `vtag run`; `command` is given its name, what runs it, and its help."""
    run = command("run", run_command, "tag a folder: one JSON line per file")
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
    run.add_argument(
        "--fail-fast", action="store_true", help="stop at the first failure (exit status 4)"
    )
    run.add_argument(
        "--max-failures",
        metavar="N|P%",
        help="stop when more than so many inputs failed (exit status 4)",
    )
    run.add_argument(
        "--failed-ok", action="store_true", help="exit with 0 also if some inputs failed"
    )
    add_corrections_flag(run, "apply what you corrected in the report")
    run.add_argument("--summary-json", metavar="FILE", help="write the final counts there")
    add_watch_flags(run)


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
    check_summary_file(args)
    if args.out.lower().endswith(".parquet"):
        raise ConfigError(
            f"{args.out}: a file of results is JSON lines; for Parquet name a folder for parts "
            "and --out-format parquet, or make a table: vtag sidecar tags.jsonl --format parquet"
        )
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
        amended = 0
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
    walked = discovery if watcher is None else watcher
    summary.ignored, summary.passed_over = walked.ignored, walked.passed_over
    for warning in discovery.warnings:
        say(f"{printable(warning)}")
    return _finish_run(args, summary, stop.exit_status if stop() else None, amended=amended)


def _finish_run(
    args: argparse.Namespace, summary: Summary, signal_status: int | None, *, amended: int
) -> int:
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
    if summary.passed_over:
        counts += f"; {summary.passed_over} folders of trash or thumbnails passed over"
    if summary.stopped:
        say(f"stopped: {summary.stopped}; run the same command again to go on")
    elif summary.unfinished:
        counts += " (the counts do not add up: this is a bug in vtag, please report it)"
    write_summary(args, summary.to_dict())
    if not args.quiet or summary.failed or summary.stopped:
        say(counts if args.out == "-" else f"{counts} -> {printable(str(args.out))}")
    if summary.skipped and not args.quiet:
        _say_what_stays(args, summary, amended)
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
    if summary.stopped:
        return STOPPED
    failed = (summary.failed or summary.skipped_failed) and not args.failed_ok
    return SOME_FAILED if failed or summary.unfinished else OK


def _say_what_stays(args: argparse.Namespace, summary: Summary, amended: int) -> None:
    """Who came back with another threshold would wait in vain for records to change."""
    flags = [f"--{name.replace('_', '-')}" for name in _FOR_NEW_RECORDS if name in args.given]
    if flags:
        said = f"{summary.skipped} records stay as they were made, without {', '.join(flags)}"
    elif summary.skipped == summary.inputs and not (amended or summary.moved or summary.deleted):
        said = "nothing was new, and records stay as they were made"
    else:
        return
    say(f"{said}; another --out tags all anew")
