"""The report: a folder with a page that shows the videos of some results, without a server.

tags.jsonl … ─► entries_of ─► thumbnails (decode child) ─► write_page ─► publish
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtag.cores import usable_cores
from vtag.errors import ConfigError, MediaError
from vtag.report_entries import Entry, entries_of
from vtag.report_folder import THUMBNAILS, ReportFolder, cannot_write
from vtag.report_page import label_names, write_page
from vtag.report_thumbnails import Thumbnails, make_thumbnails, names_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report is made of; refuses nonsense when made.

    Attributes:
        results: files of records; of two records of one video the later file's counts.
        out: the folder.
        title: of the page; empty for the name of the results.
        base: where relative paths begin; None: here, else the folder of their results.
        model: whose labels are suggested when a tag is added; None: that of the records.
        thumbnails: whether new pictures are made; earlier ones are used in any case.
        workers: videos decoded at once; None for one per core.
    """

    results: tuple[Path, ...]
    out: Path
    title: str = ""
    base: Path | None = None
    model: str | None = None
    thumbnails: bool = True
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.results:
            raise ConfigError("a report needs at least one file of results")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers is 1 or more, not {self.workers}")


@dataclass(frozen=True)
class Unpictured:
    """A video without thumbnails, and why."""

    entry: Entry
    error: MediaError


@dataclass(frozen=True, kw_only=True)
class ReportDone:
    """What a report shows.

    Attributes:
        videos: all of them; `failed` could not be tagged, `gone` were and are not there now.
        pictured, reused: thumbnails made now, and taken from the earlier report.
        unpictured: those that could not be made.
    """

    videos: int
    failed: int
    gone: int
    pictured: int
    reused: int
    unpictured: tuple[Unpictured, ...]


def write_report(
    config: ReportConfig, *, progress: Callable[[int, int], None] = lambda done, of: None
) -> ReportDone:
    """Writes the report: afterwards it is there whole, or what was there before.

    Args:
        progress: called with the number of videos whose thumbnails are done, and of all.

    Raises:
        ConfigError: no results, or the folder is not a report.
        OutputError: a record is damaged, or the folder can not be written.
    """
    entries = entries_of(config.results, base=config.base)
    labels = label_names(config.model, entries)
    with ReportFolder(config.out) as folder:
        try:
            thumbnails, reused = _reuse(folder, entries)
            new = _to_make(entries, thumbnails) if config.thumbnails else []
            unpictured = []
            made = folder.part / THUMBNAILS
            for done, (entry, error) in enumerate(
                make_thumbnails(new, made, workers=config.workers or usable_cores()), start=1
            ):
                if error is None:
                    thumbnails[entry.key] = names_of(entry)
                else:
                    unpictured.append(Unpictured(entry, error))
                progress(done, len(new))
            for entry in entries:  # copies of one video share its pictures
                names = names_of(entry)
                if names.poster and (made / names.poster).exists():
                    thumbnails[entry.key] = names
            write_page(
                folder.part,
                entries,
                place=folder.out,
                title=config.title or ", ".join(file.name for file in config.results),
                thumbnails=thumbnails,
                labels=labels,
            )
        except OSError as err:
            raise cannot_write(config.out, err) from err
        folder.publish()
    return ReportDone(
        videos=len(entries),
        failed=sum(not entry.is_tagged for entry in entries),
        gone=sum(entry.is_gone for entry in entries),
        pictured=len(new) - len(unpictured),
        reused=reused,
        unpictured=tuple(unpictured),
    )


def _reuse(folder: ReportFolder, entries: Sequence[Entry]) -> tuple[dict[str, Thumbnails], int]:
    """Thumbnails that the earlier report has, by key; and of how many videos."""
    found = {}
    for entry in entries:
        names = names_of(entry)
        wanted = [name for name in (names.poster, names.strip) if name]
        if wanted and all([folder.reuse(name) for name in wanted]):
            found[entry.key] = names
    return found, len(found)


def _to_make(entries: Sequence[Entry], have: dict[str, Thumbnails]) -> list[Entry]:
    """Videos whose thumbnails are to be made, each content once."""
    new: dict[str, Entry] = {}
    for entry in entries:
        poster = names_of(entry).poster
        if poster and entry.video is not None and entry.key not in have:
            new.setdefault(poster, entry)
    return list(new.values())
