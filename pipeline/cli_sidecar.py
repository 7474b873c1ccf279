"""`vtag sidecar`: tags into XMP, .nfo and WebVTT files beside the videos, CSV and Parquet."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vtag.cli_progress import say
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.sidecar import Outcome, SidecarConfig

# Spelled out: `--help` must not wait for what reads and writes them.
FORMATS = ("xmp", "nfo", "vtt", "csv", "parquet")
_DONE = {"created": "create", "changed": "change", "deleted": "delete"}


def sidecar_command(args: argparse.Namespace) -> int:
    """Records in, sidecars out; exit status 1 if one failed or a video is gone."""
    from vtag.errors import ConfigError
    from vtag.sidecar import (
        BESIDE,
        TABLES,
        SidecarConfig,
        latest_records,
        write_sidecars,
        write_tables,
    )

    # Not argparse's default: that would be added to, not replaced.
    default = BESIDE if args.remove or args.orphans else BESIDE[:1]
    asked = ",".join(args.format or default).split(",")
    config = SidecarConfig(
        formats=tuple(dict.fromkeys(asked)),
        remove=args.remove,
        orphans=args.orphans,
        min_score=args.min_score,
        max_tags=args.max_tags,
        create_nfo=args.create_nfo,
        webvtt=args.vtt,
        dry_run=args.dry_run,
    )
    results = Path(args.results)
    folders = [Path(args.base)] if args.base else [Path(), results.parent]
    out = Path(args.out) if args.out else results.parent
    if config.tables and out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is no folder; name another one with --out")
    left = [one for one in config.formats if one in TABLES and one not in config.tables]
    if left and not args.quiet:
        say(f"a table is left as it is, delete it yourself if you want ({', '.join(left)})")
    beside = write_sidecars(latest_records(results), config, folders=folders)
    counts = _told(beside, config, quiet=args.quiet)
    # Consumed above to the end: a problem of the tables (exit status 3) comes after the rest.
    counts += _told(write_tables(results, config, out=out), config, quiet=args.quiet)
    return _finish(counts, config, quiet=args.quiet)


def add_sidecar_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the parser; `command(name, run, help)` makes one."""
    add = command("sidecar", sidecar_command, "carry tags to other programs").add_argument
    add("results", metavar="TAGS.jsonl", help="what `vtag run` wrote")
    add(
        "--format",
        action="append",
        metavar="|".join(FORMATS),
        help="several with commas; default: xmp, and with --remove or --orphans xmp,nfo,vtt",
    )
    add("--remove", action="store_true", help="take out what vtag wrote, and nothing else")
    add(
        "--orphans",
        action="store_true",
        help="only delete sidecars that vtag alone wrote and whose video is gone",
    )
    add("--dry-run", action="store_true", help="print what would be done, do nothing")
    add("--min-score", type=float, default=0.0, metavar="X", help="leave out tags below X")
    add("--max-tags", type=int, metavar="N", help="the first N tags of a record only")
    add(
        "--base",
        metavar="DIR",
        help="where relative paths begin (default: here, else the folder of TAGS.jsonl)",
    )
    add("--create-nfo", action="store_true", help="make a .nfo where there is none")
    add(
        "--vtt",
        choices=["chapters", "metadata"],
        default="chapters",
        help="what a WebVTT track is for (default: chapters)",
    )
    add("--out", metavar="DIR", help="folder of the tables (default: that of TAGS.jsonl)")


def _told(outcomes: Iterable[Outcome], config: SidecarConfig, *, quiet: bool) -> Counter[str]:
    """Prints what was or would be done, one line each, and counts it."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts[outcome.what] += 1
        path = printable(str(outcome.path))
        if outcome.what in _DONE and config.dry_run:
            tags = [f"+{tag}" for tag in outcome.change.added]
            tags += [f"-{tag}" for tag in outcome.change.taken]
            print("\t".join([f"would {_DONE[outcome.what]}", path, *map(printable, tags)]))
        elif outcome.what in _DONE and not quiet:
            print(f"{outcome.what}\t{path}")
        elif outcome.what == "failed":
            say(f"{path}: {printable(outcome.why)}")
        elif outcome.what == "gone":
            say(f"{path}: is gone; tag the folder again if it was moved")
    return counts


def _finish(counts: Counter[str], config: SidecarConfig, *, quiet: bool) -> int:
    """The last line: counts that add up, and the exit status."""
    would = "would be " if config.dry_run else ""
    parts = [f"{counts[what]} {would}{what}" for what in _DONE]
    parts += [f"{counts['unchanged']} unchanged", f"{counts['nothing']} not needed"]
    for what, text in (
        ("gone", "videos gone"),
        ("orphan", "without their video"),
        ("untagged", "without tags by the run"),
    ):
        if counts[what]:
            parts.append(f"{counts[what]} {text}")
    parts.append(f"{counts['failed']} failed")
    bad = counts["failed"] + counts["gone"]
    if not quiet or bad:
        say(f"{counts.total()} files: {', '.join(parts)}")
    if counts["orphan"] and not quiet:
        say(
            f"{counts['orphan']} sidecars of vtag are left of videos that were moved or deleted; "
            "the same command with --orphans deletes them, and --dry-run shows which"
        )
    return 1 if bad else 0
