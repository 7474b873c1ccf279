"""The commands that find videos again: search, similar.

Exit status: 0 found, 1 nothing found, 2 wrong query.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vtag.cli_progress import say
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.table import clock, printable

if TYPE_CHECKING:
    from vtag.records import Features
    from vtag.search import Hit, Match
    from vtag.similar import Candidate
    from vtag.tagger import Pipeline

FOUND, NOTHING_FOUND = 0, 1
DEFAULT_LIBRARY: Final = "tags.jsonl"
MAX_TAGS: Final = 4  # of a hit, in a terminal; --json has all
MAX_SPANS: Final = 4  # of a tag


def search_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """The videos that match, best first, with the times of what matched."""
    from vtag.search import search

    query = " ".join(args.query)
    found = search(
        query,
        _libraries(args),
        limit=_limit(args),
        together=args.together,
        folder=_index_folder(args),
    )
    for hit in found.hits:
        print(json.dumps(hit.to_dict(), ensure_ascii=True) if args.json else hit_line(hit))
    if not found.hits:
        _say(f"nothing matches{_advice(args.query)}", args)
        return NOTHING_FOUND
    if found.total > len(found.hits):
        _say(f"{len(found.hits)} of {found.total} videos; --limit 0 shows all", args)
    if args.open:
        first = found.hits[0]
        play(media_path(first.path, first.library), first.start)
    return FOUND


def similar_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """The videos that look and sound most like a clip."""
    from vtag.similar import candidates_of, nearest

    if args.no_cache:
        raise ConfigError("similar compares features from the cache: leave out --no-cache")
    folder = _index_folder(args)
    candidates = candidates_of(_libraries(args), folder=folder)
    with open_pipeline() as pipeline:
        assert pipeline.cache is not None
        clip = pipeline.features(args.clip)
        # A copy elsewhere is worth knowing; the clip itself is not.
        others = [
            candidate
            for candidate in candidates
            if candidate.content_id != clip.content_id or not _is_same(candidate, args.clip)
        ]
        result = nearest(
            clip.streams,
            _bar(others, args),
            cache=pipeline.cache,
            sampling=pipeline.sampling,
            limit=_limit(args) or max(1, len(others)),
            folder=folder,
        )
    for neighbour in result.found:
        if args.json:
            print(json.dumps(neighbour.to_dict(), ensure_ascii=True))
            continue
        senses = {"visual": "looks", "audio": "sounds"}
        alike = ", ".join(
            f"{senses.get(stream, stream)} {cosine:.2f}"
            for stream, cosine in neighbour.streams.items()
        )
        print(f"{neighbour.similarity:4.2f}  {printable(neighbour.video.path)}  {alike}")
    if result.missing:
        _say(
            f"{result.missing} of {len(others)} videos have no features of this model and "
            "sampling in the cache; `vtag extract` with the same flags makes them",
            args,
        )
    if result.apart:
        _say(f"{result.apart} of {len(others)} videos {_why_apart(clip.streams)}", args)
    if not result.found:
        _say("nothing to compare with", args)
        return NOTHING_FOUND
    if args.open:
        best = result.found[0].video
        play(media_path(best.path, best.library), 0.0)
    return FOUND


def hit_line(hit: Hit) -> str:
    """One line: how well, which video, and each matching tag with its times."""
    parts = [f"{hit.score:4.2f}", printable(hit.path)]
    if hit.error:
        code, message = hit.error
        why = message.removeprefix(f"{hit.path}: ")  # which stands before it already
        parts.append(f"failed: {printable(why)} [{printable(code)}]")
    if hit.together:
        parts.append(f"together {_times(hit.together)}")
    shown = [_match(match) for match in hit.matches[:MAX_TAGS]]
    if len(hit.matches) > MAX_TAGS:
        shown.append("…")
    if shown:
        parts.append("; ".join(shown))
    return "  ".join(parts)


def media_path(path: str, library: Path) -> str:
    """The absolute path of a video: seen from here or, if it is not there, from its library.

    A record has the path as it was named on the command line, which may be relative.
    """
    here = os.path.abspath(path)
    beside = os.path.abspath(library.parent / path)
    return beside if not os.path.isfile(here) and os.path.isfile(beside) else here


def play(path: str, seconds: float) -> None:
    """Plays a video from that second on, and returns when the player ends.

    Args:
        path: an absolute one: it begins with a slash, so no player takes it for an option or
            for an address on the network.

    Raises:
        ConfigError: the video is not there.
        EnvironmentProblem: there is no player, or it failed.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file; was it moved? Run vtag where the paths start")
    command = player_command(path, max(0.0, seconds))
    if command is None:
        raise EnvironmentProblem(
            "no player was found for --open; install mpv (or VLC), for example: apt install mpv"
        )
    # stdout carries data only, and players talk.
    status = subprocess.run(command, stdout=sys.stderr.fileno(), check=False).returncode
    if status:
        raise EnvironmentProblem(f"{path}: {Path(command[0]).name} ended with status {status}")


def player_command(path: str, seconds: float) -> list[str] | None:
    """The words that start mpv, or else VLC; None where there is neither."""
    mpv = shutil.which("mpv")
    if mpv:
        return [mpv, f"--start={seconds:.3f}", "--", path]
    vlc = shutil.which("vlc")
    if vlc:
        # VLC takes whatever has "://" in it for an address; in an address of a file nothing
        # else is one.
        return [vlc, f"--start-time={seconds:.3f}", "--", Path(path).as_uri()]
    return None


def add_search_commands(
    command: Callable[..., argparse.ArgumentParser], flags: Callable[..., None]
) -> None:
    """Adds the two parsers; `command(name, run, help)` makes one, `flags` adds shared flags."""
    search = command("search", search_command, "find videos by what is in them, and when")
    search.add_argument(
        "query",
        nargs="+",
        metavar="QUERY",
        help="such as: 'dog AND beach', '\"golden retriever\" score:>0.8 NOT cat', 'bark* "
        "source:heard after:1:30', 'path:2019 duration:>60', 'status:failed'",
    )
    _add_shared(search, default_limit=20)
    search.add_argument(
        "--together", action="store_true", help="all at the same moment, not only in one video"
    )
    search.add_argument("--cache", metavar="DIR", help="where the index is (its folder search)")
    _let_queries_begin_with_minus(search)

    similar = command("similar", similar_command, "find videos that look and sound like a clip")
    similar.add_argument("clip", metavar="CLIP")
    _add_shared(similar, default_limit=10)
    flags(similar)


def _add_shared(parser: argparse.ArgumentParser, *, default_limit: int) -> None:
    parser.add_argument(
        "--library",
        nargs="+",
        action="extend",
        metavar="TAGS.jsonl",
        help=f"what vtag run wrote (default: {DEFAULT_LIBRARY})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line and video")
    parser.add_argument(
        "--limit",
        type=int,
        default=default_limit,
        metavar="N",
        help="videos at most (default: %(default)s; 0 for all)",
    )
    parser.add_argument("--open", action="store_true", help="play the first one, with mpv or VLC")


def _let_queries_begin_with_minus(parser: argparse.ArgumentParser) -> None:
    """`-cat` is a query; what is a flag, or a flag's name behind one `-`, is still none."""
    of_parser = parser._parse_optional  # tells flags from other words; argparse has no setting

    def parse_optional(arg_string: str) -> Any:
        word = arg_string
        known = parser._option_string_actions
        letters = [name[1] for name in known if len(name) == 2]
        is_query = word[:1] == "-" and word[1:2] != "-" and len(word) > 2
        # `-vv` is twice a flag, and `-limit` a slip: as a query it would hide that.
        is_flag = set(word[1:]) <= set(letters) or f"-{word.partition('=')[0]}" in known
        return None if is_query and not is_flag else of_parser(word)

    parser._parse_optional = parse_optional  # type: ignore[method-assign]


def _libraries(args: argparse.Namespace) -> list[Path]:
    if args.library:
        return [Path(name) for name in args.library]
    if not Path(DEFAULT_LIBRARY).is_file():
        raise ConfigError(
            f"there is no {DEFAULT_LIBRARY} here; name what `vtag run` wrote: --library FILE"
        )
    return [Path(DEFAULT_LIBRARY)]


def _limit(args: argparse.Namespace) -> int | None:
    if args.limit < 0:
        raise ConfigError(f"--limit is a number of videos, or 0 for all, got {args.limit}")
    return args.limit or None


def _index_folder(args: argparse.Namespace) -> Path | None:
    return Path(args.cache) / "search" if args.cache else None


def _is_same(candidate: Candidate, clip: str) -> bool:
    path = media_path(candidate.path, candidate.library)
    return os.path.isfile(path) and os.path.samefile(path, clip)


def _match(match: Match) -> str:
    name = printable(match.name)
    spans = [(segment.start, segment.end) for segment in match.segments]
    return f"{name} {_times(spans)}" if spans else name


def _times(spans: Sequence[tuple[float, float]]) -> str:
    shown = [f"{_clock(start)}-{_clock(end)}" for start, end in spans[:MAX_SPANS]]
    return ", ".join(shown) + (" …" if len(spans) > MAX_SPANS else "")


def _clock(seconds: float) -> str:
    return "end" if seconds == float("inf") else clock(seconds)


def _advice(words: Sequence[str]) -> str:
    """Why that may be: an operator that was written like a word."""
    plain = [word for word in " ".join(words).split() if word in ("and", "or", "not")]
    return f"; {plain[0]!r} is a word here, the operator is {plain[0].upper()}" if plain else ""


def _why_apart(streams: Mapping[str, Features]) -> str:
    """Why videos whose features are there could not be compared with a clip."""
    names = {"visual": "pictures", "audio": "sound"}
    there = [names.get(stream, stream) for stream, own in streams.items() if len(own.rows)]
    if not there:
        return "were not compared: the clip has neither pictures nor sound"
    only = ", and the clip has nothing else" if len(there) == 1 else ""
    return f"were not compared: they have no {' and no '.join(there)}{only}"


def _bar(candidates: Sequence[Candidate], args: argparse.Namespace) -> Iterable[Candidate]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not args.quiet
    bar: Iterable[Candidate] = tqdm(
        candidates, unit="video", disable=not shown, leave=False, file=sys.stderr
    )
    return bar


def _say(text: str, args: argparse.Namespace) -> None:
    if not args.quiet:
        say(text)
