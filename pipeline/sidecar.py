"""Tags of a file of results, carried to the programs that the videos live in.

    tags.jsonl ─► latest_records ─► one record ─► its video ─► the file beside it ─► Outcome
                        └─► rows of one table (CSV, Parquet)

What others wrote into a sidecar stays to the byte; what vtag wrote is exactly what the records
say now, so a second run changes nothing; and `remove` leaves what was there before.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from vtag.errors import ConfigError, OutputError
from vtag.record_lines import read_records
from vtag.records import Tag
from vtag.sidecar_change import Change, tags_of
from vtag.sidecar_files import (
    Existing,
    Siblings,
    existing_nfo,
    find_video,
    look,
    may_hold_ours,
    nfo_place,
    put,
    webvtt_place,
    xmp_places,
)
from vtag.sidecar_nfo import merge_nfo, remove_nfo
from vtag.sidecar_orphans import orphans_in
from vtag.sidecar_tables import Row, rows, write_table
from vtag.sidecar_webvtt import Kind, merge_webvtt, remove_webvtt
from vtag.sidecar_xml import Unmergeable
from vtag.sidecar_xmp import merge_xmp, remove_xmp
from vtag.storage import reason

log = logging.getLogger(__name__)

BESIDE: Final = ("xmp", "nfo", "vtt")  # one file per video
TABLES: Final = ("csv", "parquet")  # one file for all

What = Literal[
    "created",  # a file that was not there
    "changed",
    "deleted",  # held nothing but tags of vtag, and holds none now
    "unchanged",  # holds already what it is to hold
    "nothing",  # no file, and none is needed
    "gone",  # there is no such video any more
    "orphan",  # made by vtag, and its video is gone; `remove` and `orphans` delete it
    "untagged",  # the run could not tag it; its sidecars are left as they are
    "failed",
]
# Nothing more can be written there, whatever the file: going on would fail a million times.
_HOPELESS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class SidecarConfig:
    """What is written for a record; refuses nonsense when made.

    Attributes:
        formats: of `BESIDE` and `TABLES`.
        remove: take out what vtag wrote instead, in the formats of `BESIDE`; tables stay.
        orphans: only delete sidecars that vtag alone wrote and whose video is gone.
        min_score: tags below it are left out (the record's own thresholds hold anyway).
        max_tags: so many per video at most, the best ones; None for all.
        create_nfo: make a .nfo where there is none.
        webvtt: what a track of the format vtt is for.
        dry_run: tell what would be done and do nothing.
    """

    formats: tuple[str, ...] = ("xmp",)
    remove: bool = False
    orphans: bool = False
    min_score: float = 0.0
    max_tags: int | None = None
    create_nfo: bool = False
    webvtt: Kind = "chapters"
    dry_run: bool = False

    def __post_init__(self) -> None:
        known = (*BESIDE, *TABLES)
        for one in self.formats:
            if one not in known:
                raise ConfigError(f"--format is one of {', '.join(known)}, not {one!r:.40}")
        if not self.formats:
            raise ConfigError(f"--format needs at least one of {', '.join(known)}")
        if self.remove and self.orphans:
            raise ConfigError("--remove deletes the orphans too: leave out --orphans")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"--min-score is between 0 and 1, not {self.min_score}")
        if self.max_tags is not None and self.max_tags < 1:
            raise ConfigError(f"--max-tags is 1 or more, not {self.max_tags}")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are to be written."""
        takes_out = self.remove or self.orphans
        return () if takes_out else tuple(one for one in self.formats if one in TABLES)

    def selected(self, record: Mapping[str, Any]) -> list[Tag]:
        """The tags of a record that are to be written, in its order; raises ValueError."""
        return [tag for tag in tags_of(record) if tag.score >= self.min_score][: self.max_tags]


@dataclass(frozen=True)
class Outcome:
    """What was done, or in a dry run would be, about one file.

    Attributes:
        path: of the sidecar; of the video where it is about no sidecar.
        format: of the sidecar; empty where it is about the video.
        change: tags that came and went.
        why: of a failure, without the path.
    """

    what: What
    path: Path
    format: str = ""
    change: Change = field(default=Change(None))
    why: str = ""


def latest_records(results: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of results, the later one where two have the same path.

    Raises:
        ConfigError: there is no such file, or it can not be read.
        OutputError: a line is damaged.
    """
    last = {record["path"]: number for number, record in enumerate(read_records(results))}
    for number, record in enumerate(read_records(results)):
        # A run may be adding lines just now: those are for the next time.
        if last.get(record["path"]) == number:
            yield record


def write_sidecars(
    records: Iterable[Mapping[str, Any]], config: SidecarConfig, *, folders: Sequence[Path]
) -> Iterator[Outcome]:
    """Writes, or removes, the files beside the videos; one outcome per video and format.

    Then the orphans in the folders of these videos, one outcome each.

    Args:
        records: as `latest_records` gives them.
        folders: below which relative paths are looked for, in this order.

    Raises:
        OutputError: the disk is full or read-only.
    """
    formats = [one for one in config.formats if one in BESIDE]
    siblings = Siblings()
    visited: dict[str, Path] = {}  # without a folder that has two names twice
    for record in records if formats else ():
        video = find_video(record["path"], folders)
        for folder in _folders_of(record["path"], video, folders):
            visited.setdefault(os.path.realpath(folder), folder)
        if config.orphans:
            continue
        if video is None:
            yield Outcome("gone", Path(record["path"]))
        elif record["status"] != "ok" and not config.remove:
            yield Outcome("untagged", video)
        else:
            yield from _sidecars_of(video, record, formats, config, siblings)
    for folder in visited.values():
        yield from _orphans_of(folder, formats, config)


def write_tables(results: Path, config: SidecarConfig, *, out: Path) -> Iterator[Outcome]:
    """Writes one table per format of `TABLES` into the folder `out`, named after `results`.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        ConfigError: there are no such results.
        OutputError: a file can not be written, is none of vtag, or a record is damaged.
    """
    if not config.tables:
        return
    next(read_records(results), None)  # no folder for results that can not be read
    if not config.dry_run:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(
                f"{out}: can not be made ({reason(err)}); choose another folder with --out"
            ) from err

    def table() -> Iterator[Row]:
        for record in latest_records(results):
            try:
                yield from rows(record, min_score=config.min_score, max_tags=config.max_tags)
            except ValueError as err:
                raise OutputError(f"{results}: {_told(record['path'], err)}") from err

    for one in config.tables:
        path = out / f"{results.stem}.{one}"
        if path == results:
            raise ConfigError(f"{results}: the table would replace the results; use --out")
        was_there = path.exists()
        changed = write_table(path, one, table, dry_run=config.dry_run)
        what: What = "unchanged" if not changed else "changed" if was_there else "created"
        yield Outcome(what, path, one)


def _sidecars_of(
    video: Path,
    record: Mapping[str, Any],
    formats: Sequence[str],
    config: SidecarConfig,
    siblings: Siblings,
) -> Iterator[Outcome]:
    try:
        tags = [] if config.remove else config.selected(record)
    except ValueError as err:
        for one in formats:
            yield Outcome("failed", video, one, why=_told(record["path"], err))
        return
    steps = {"xmp": _xmp, "nfo": _nfo, "vtt": _webvtt}
    for one in formats:
        places: list[Path] = [video]
        try:
            yield from steps[one](video, tags, config, siblings, places)
        except (Unmergeable, OSError) as err:
            failed = _failed(places[-1], one, err)
            # What others made, and vtag can not read, is no obstacle to taking its own out.
            nothing = config.remove and not may_hold_ours(places[-1])
            yield Outcome("unchanged", places[-1], one) if nothing else failed


def _folders_of(path: str, video: Path | None, folders: Sequence[Path]) -> list[Path]:
    """Where a record's sidecars are, also when its video is gone."""
    if video is not None:
        return [video.parent]
    try:
        return [one for one in ((base / path).parent for base in folders) if one.is_dir()]
    except (OSError, ValueError):  # a name that no file can have
        return []


def _orphans_of(folder: Path, formats: Sequence[str], config: SidecarConfig) -> Iterator[Outcome]:
    """The sidecars in a folder whose video is gone: told, or deleted."""
    removing = config.remove or config.orphans
    try:
        found = list(orphans_in(folder, formats))
    except OSError as err:
        if removing:
            yield Outcome("failed", folder, why=reason(err))
        return
    for orphan in found:
        path = orphan.existing.path
        try:
            if removing:
                yield _done(orphan.existing, orphan.change, orphan.format, config)
            else:
                yield Outcome("orphan", path, orphan.format)
        except (Unmergeable, OSError) as err:
            yield _failed(path, orphan.format, err)


def _failed(path: Path, format_: str, err: Unmergeable | OSError) -> Outcome:
    """The outcome; raises OutputError where all that follows would fail too."""
    if isinstance(err, Unmergeable):
        return Outcome("failed", path, format_, why=str(err))
    if err.errno in _HOPELESS:
        raise OutputError(
            f"{path}: can not be written ({reason(err)}); the same command goes on from there"
        ) from err
    return Outcome("failed", path, format_, why=reason(err))


def _xmp(
    video: Path, tags: list[Tag], config: SidecarConfig, siblings: Siblings, places: list[Path]
) -> Iterator[Outcome]:
    places.append(video.with_suffix(".xmp"))
    target, others = xmp_places(video, siblings)
    places.append(target)
    existing = look(target)
    if config.remove:
        change = Change(None) if existing.data is None else remove_xmp(existing.data)
    else:
        change = merge_xmp(existing.data, tags)
    yield _done(existing, change, "xmp", config)
    for other in others:
        # Tags went there when it was the only file; two would show each of them twice.
        places.append(other)
        found = look(other)
        if found.data is not None:
            change = remove_xmp(found.data)
            if change.data != found.data:
                yield _done(found, change, "xmp", config)


def _nfo(
    video: Path, tags: list[Tag], config: SidecarConfig, siblings: Siblings, places: list[Path]
) -> Iterator[Outcome]:
    places.append(existing_nfo(video) or video.with_name(f"{video.stem}.nfo"))
    place = nfo_place(video, siblings, create=config.create_nfo and not config.remove)
    if place is None:
        yield Outcome("nothing", places[-1], "nfo")
        return
    existing = look(place)
    if config.remove:
        # Without a file nothing is known to remove, and `nfo_place` gave None above.
        change = remove_nfo(existing.data or b"", title=video.stem)
    else:
        title = video.stem if config.create_nfo else None
        change = merge_nfo(existing.data, tags, title=title)
    yield _done(existing, change, "nfo", config)


def _webvtt(
    video: Path, tags: list[Tag], config: SidecarConfig, siblings: Siblings, places: list[Path]
) -> Iterator[Outcome]:
    places.append(webvtt_place(video))
    existing = look(places[-1])
    if config.remove:
        change = Change(None) if existing.data is None else remove_webvtt(existing.data)
    else:
        change = merge_webvtt(existing.data, tags, kind=config.webvtt)
    yield _done(existing, change, "vtt", config)


def _done(existing: Existing, change: Change, format_: str, config: SidecarConfig) -> Outcome:
    """Makes the change, unless in a dry run, and tells it."""
    if change.data == existing.data:
        same: What = "nothing" if change.data is None else "unchanged"
        return Outcome(same, existing.path, format_)
    if not config.dry_run:
        put(existing, change.data)
    if change.data is None:
        return Outcome("deleted", existing.path, format_, change)
    what: What = "created" if existing.data is None else "changed"
    return Outcome(what, existing.path, format_, change)


def _told(path: str, err: ValueError) -> str:
    return f"the record of {path} is damaged ({err}); tag it again"
