"""`vtag report`: results as a page that opens from disk."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vtag.cli_progress import say
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.report import ReportDone


def report_command(args: argparse.Namespace) -> int:
    """Results in, a folder with a page out; exit status 1 only if there is no video to show."""
    from tqdm import tqdm

    from vtag.report import ReportConfig, write_report

    config = ReportConfig(
        results=tuple(Path(name) for name in args.results),
        out=Path(args.out),
        title=args.title or "",
        base=Path(args.base) if args.base else None,
        model=args.model,
        thumbnails=not args.no_thumbnails,
        workers=args.workers,
    )
    shown = sys.stderr.isatty() and not args.quiet
    with tqdm(unit="video", disable=not shown, file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        done = write_report(config, progress=progress)
    for one in done.unpictured[:10]:
        say(f"no picture: {printable(str(one.error))}")
    _say_counts(done, args)
    print(printable(os.path.join(os.path.abspath(args.out), "index.html")))
    return 0 if done.videos else 1


def add_report_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the parser; `command(name, run, help)` makes one."""
    add = command("report", report_command, "show results in a browser, from disk").add_argument
    add("results", nargs="+", metavar="TAGS.jsonl", help="what `vtag run` wrote")
    add("--out", required=True, metavar="FOLDER", help="where the report goes, or an earlier one")
    add("--title", metavar="TEXT", help="of the page (default: the name of the results)")
    add(
        "--base",
        metavar="DIR",
        help="where relative paths begin (default: here, else the folder of TAGS.jsonl)",
    )
    add("--model", metavar="NAME|FOLDER", help="whose labels are suggested (default: the records')")
    add("--no-thumbnails", action="store_true", help="make no new pictures")
    add("--workers", type=int, metavar="N", help="videos decoded at once (default: one per core)")


def _say_counts(done: ReportDone, args: argparse.Namespace) -> None:
    if args.quiet:
        return
    parts = [f"{done.videos - done.failed} videos"]
    if done.failed:
        parts.append(f"{done.failed} could not be tagged")
    if done.gone:
        parts.append(f"{done.gone} are gone")
    parts.append(f"{done.pictured} new thumbnails, {done.reused} from before")
    if done.unpictured:
        parts.append(f"{len(done.unpictured)} without a picture")
    say(", ".join(parts))
