"""The part of `vtag run` about folders that change: --watch, moved and deleted files."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Final

from vtag.cli_progress import say
from vtag.errors import ConfigError
from vtag.table import printable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vtag.discover import Shard
    from vtag.moved import Library
    from vtag.records import Record
    from vtag.run import Summary
    from vtag.sources import Source
    from vtag.watch import Watcher

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25  # how late a signal or a settled file may be noticed
# Of a file that is not as it was a moment ago; in a watched folder it comes again.
_UNSETTLED: Final = ("changed_during_read", "vanished")


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `vtag run` knows of folders that change."""
    add = parser.add_argument
    add("--watch", action="store_true", help="go on with files that are added, until Ctrl-C")
    add(
        "--watch-settle",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="a file is complete when it did not change for so long (default: %(default)s)",
    )
    add(
        "--watch-poll",
        type=float,
        metavar="SECONDS",
        help="watch by walking the folders so often: for network mounts",
    )
    add(
        "--list-deleted",
        action="store_true",
        help="print the files that have a record and are no longer there",
    )
    add("--forget-deleted", action="store_true", help="and remove their records")


def watcher_of(
    args: argparse.Namespace, shard: Shard | None
) -> AbstractContextManager[Watcher | None]:
    """What watches the inputs; None without --watch.

    Raises:
        ConfigError: an input is no folder, or --limit was given.
        EnvironmentProblem: the library is missing.
    """
    if not args.watch and args.watch_poll is None:
        return nullcontext()
    from vtag.watch import WatchConfig, Watcher

    if args.limit is not None:
        raise ConfigError("--limit ends a run, and --watch goes on; leave one of them out")
    if not args.inputs:
        raise ConfigError("--watch needs folders: vtag run ./videos --out tags.jsonl --watch")
    if getattr(args, "engine", "local") != "local":
        raise ConfigError("--watch works on this machine; leave out --engine")
    config = WatchConfig(settle_seconds=args.watch_settle, poll_seconds=args.watch_poll)
    return Watcher(args.inputs, config, shard=shard)


def batches(
    inputs: Iterator[Source],
    watcher: Watcher | None,
    library: Library,
    *,
    stopped: Callable[[], bool],
    quiet: bool,
) -> Iterator[Iterator[str | Source]]:
    """The inputs: all at once, or (watched) those that are complete, again and again."""
    if watcher is None:
        yield inputs
        return
    is_first = True
    while not stopped():
        ready = watcher.ready()
        first = next(ready, None)
        library.unmeet(watcher.gone())
        if first is not None:
            yield chain([first], ready)
            continue
        if is_first and not quiet:
            how = "" if watcher.told_by_system else ", by walking them now and then"
            say(f"watching {', '.join(map(printable, watcher.sources))}{how}; Ctrl-C ends it")
        is_first = False
        watcher.wait(LOOK_SECONDS)


def comes_again(watcher: Watcher | None, record: Record) -> bool:
    """Whether this failure is not for keeping: its file changes just now, and is watched."""
    if watcher is None or record.error is None or record.error.code not in _UNSETTLED:
        return False
    watcher.again(record.path)
    log.info("%s: not complete yet; it is tried again", record.path)
    return True


def tidy(args: argparse.Namespace, library: Library, summary: Summary) -> None:
    """Removes the records of old names, and tells of files that are gone."""
    gone = library.gone([os.fspath(source) for source in args.inputs])
    summary.moved = library.forget(gone.moved)
    summary.deleted = len(gone.deleted)
    if args.list_deleted:
        _list(gone.deleted)
    if args.forget_deleted:
        library.forget(gone.deleted)
    if args.limit is None and library.forget(gone.stale):
        log.info("failures of what is no input any more left: %s", ", ".join(gone.stale))


def change_counts(args: argparse.Namespace, summary: Summary) -> str:
    """The part of the last line that is about moved and deleted files."""
    text = f"; {summary.moved} moved" if summary.moved else ""
    if summary.deleted:
        text += f"; {summary.deleted} deleted"
        if args.forget_deleted:
            text += " (their records too)"
        elif not args.list_deleted:
            text += " (--list-deleted names them)"
    return text


def _list(paths: Sequence[str]) -> None:
    for path in paths:
        # On stderr: with --out - the other one carries records.
        say(f"deleted: {printable(path)}")
