"""`vtag cache` and `vtag doctor`: what vtag keeps, and what it stands on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from vtag.cli_flags import needed, open_cache, parse_size
from vtag.cli_progress import say
from vtag.cli_status import ENVIRONMENT, OK, SOME_FAILED


def add_upkeep_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds both; `command` is given a name, what runs it, and its help."""
    cache = command("cache", cache_command, "look after the feature cache")
    cache.add_argument(
        "action", nargs="?", choices=["info", "verify", "prune", "clear"], default="info"
    )
    cache.add_argument("--cache", metavar="DIR", help="the cache folder (default: VTAG_CACHE_DIR)")
    cache.add_argument("--max-size", metavar="10G", help="for prune: what may stay")
    doctor = command("doctor", doctor_command, "check this machine")
    doctor.add_argument("--cache", metavar="DIR")


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
        removed = cache.prune(parse_size(needed(args.max_size, "cache prune --max-size 10G")))
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
