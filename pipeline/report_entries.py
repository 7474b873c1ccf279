"""What the report shows of each record: checked, short, and with a link that a browser follows."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from vtag.errors import OutputError
from vtag.records import Evidence, Tag
from vtag.sidecar import latest_records
from vtag.sidecar_change import tags_of
from vtag.sidecar_files import find_video

MAX_MOMENTS: Final = 8  # pictures of evidence per video
_SAME_MOMENT_SECONDS: Final = 0.5
# Marks that turn the writing direction: inside a name they could make "exe.4pm" of "mp4.exe".
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One video of the report.

    Attributes:
        key: short, the same in every report, unique within one; part of links.
        id: of the content; None where it could not be read.
        path: as the record has it; may hold lone surrogates.
        video: the file; None where it is gone.
        tags: in the order of the record, with evidence.
        by_person: ids of tags that a correction added.
        media: the record's facts about the file; empty without.
        facts: further fields of the record: warnings, error, model, corrections.
        moments: seconds of the pictures of evidence, rising.
        poster: second of the picture that stands for the video; None without pictures.
    """

    key: str
    id: str | None
    path: str
    video: Path | None
    tags: tuple[Tag, ...]
    by_person: frozenset[str]
    media: Mapping[str, Any]
    facts: Mapping[str, Any]
    moments: tuple[float, ...]
    poster: float | None

    @property
    def has_pictures(self) -> bool:
        """Whether the file has something to see."""
        return self.poster is not None

    @property
    def is_tagged(self) -> bool:
        """Whether there was no failure; without any tag too."""
        return self.facts["error"] is None

    @property
    def is_gone(self) -> bool:
        """Whether it was tagged and is not there any more."""
        return self.is_tagged and self.video is None

    def moment_of(self, tag: Tag) -> int:
        """Which of the moments shows the tag best; -1 where none does."""
        if "visual" not in tag.sources or not tag.evidence or not self.moments:
            return -1
        best = max(tag.evidence, key=lambda one: one.weight).time
        nearest = min(range(len(self.moments)), key=lambda at: abs(self.moments[at] - best))
        return nearest if abs(self.moments[nearest] - best) <= _SAME_MOMENT_SECONDS else -1


def entries_of(results: Sequence[Path], *, base: Path | None) -> list[Entry]:
    """The videos of some files of results, in their order; the later file counts.

    A video that is gone is left out if the same content is found under another name: it was
    moved.

    Args:
        base: where relative paths begin; None: here, else the folder of their file of results.

    Raises:
        ConfigError: a file is not there.
        OutputError: a line is damaged.
    """
    found: dict[str, Entry] = {}
    for file in results:
        folders = [base] if base else [Path(), file.parent]
        for record in latest_records(file):
            try:
                entry = _entry(record, find_video(record["path"], folders))
            except ValueError as err:
                raise OutputError(
                    f"{file}: the record of {shown(record['path'])} is damaged ({err}); "
                    "tag it again"
                ) from err
            place = os.path.abspath(entry.video) if entry.video else entry.path
            found.pop(place, None)  # so that it takes the later place too
            found[place] = entry
    there = {entry.id for entry in found.values() if entry.video is not None}
    kept = [e for e in found.values() if e.video is not None or e.id is None or e.id not in there]
    return _with_own_keys(kept)


def link_to(video: Path, folder: Path) -> str:
    """The relative link from a page in `folder` to a file, for any name that a file can have.

    Every byte that means something in a URL is escaped: "#", "?", "%", ":", quotes, newlines and
    bytes that are no UTF-8.
    """
    try:
        way = os.path.relpath(os.path.abspath(video), os.path.abspath(folder))
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(video)).as_uri()
    return quote(os.fsencode(way.replace(os.sep, "/")), safe="/")


def shown(text: str) -> str:
    """The text with what would not be seen, or would move other text, as escapes."""
    if text.isprintable():  # nearly every name
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # an undecodable byte, PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


def _entry(record: Mapping[str, Any], video: Path | None) -> Entry:
    ok = record["status"] == "ok"
    tags = _tags(record) if ok else ()
    media = record.get("media") or {}
    note = record.get("corrections") or {}
    facts = {
        "warnings": record.get("warnings") or [],
        "error": record.get("error"),
        "model": record.get("model") or {},
    }
    _check(media, note, facts)
    added = note.get("added", [])
    duration = _number(media.get("duration")) or 0.0
    has_pictures = ok and media.get("has_video") is True
    moments = _moments(tags, duration) if has_pictures else ()
    best = next((t.evidence for t in tags if t.evidence and "visual" in t.sources), ())
    poster = max(best, key=lambda one: one.weight).time if best else duration / 3
    return Entry(
        key=hashlib.sha256((record["id"] or record["path"]).encode("utf-8", "surrogatepass"))
        .hexdigest()[:12],
        id=record["id"],
        path=record["path"],
        video=video,
        tags=tags,
        by_person=frozenset(one for one in added if isinstance(one, str)),
        media=media,
        facts=facts,
        moments=moments,
        poster=round(poster, 3) if has_pictures else None,
    )  # fmt: skip


def _check(media: object, note: object, facts: Mapping[str, object]) -> None:
    """Raises ValueError where the parts of a record are not of the kinds that they have."""
    if not all(isinstance(one, dict) for one in (media, note, facts["model"])):
        raise ValueError("its media, model and corrections are objects")
    if not isinstance(facts["warnings"], list):
        raise ValueError("its warnings are a list")
    error = facts["error"]
    if error is not None and not (isinstance(error, dict) and isinstance(error.get("code"), str)):
        raise ValueError("its error is an object with a code")
    assert isinstance(note, dict)
    if not isinstance(note.get("added", []), list):
        raise ValueError("what was added to its tags is a list")


def _tags(record: Mapping[str, Any]) -> tuple[Tag, ...]:
    tags = tags_of(record)
    raw = {tag["id"]: tag.get("evidence") for tag in record["tags"]}
    return tuple(replace(tag, evidence=_evidence(raw[tag.id])) for tag in tags)


def _evidence(found: object) -> tuple[Evidence, ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"a tag's evidence is a list of objects, not {found!r:.80}")
    pairs = ((_number(one.get("time")), _number(one.get("weight"))) for one in found)
    return tuple(Evidence(t, w) for t, w in pairs if t is not None and w is not None)


def _number(value: object) -> float | None:
    """A finite number of at most a century, which is what pages can draw; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 3.2e9 else None


def _moments(tags: Sequence[Tag], duration: float) -> tuple[float, ...]:
    """The best moment of each tag, then their second ones, until there are enough."""
    ranked = [
        sorted(tag.evidence, key=lambda one: -one.weight) for tag in tags if "visual" in tag.sources
    ]
    chosen: list[float] = []
    for rank in range(max(map(len, ranked), default=0)):
        for times in ranked:
            time = round(times[rank].time, 3) if rank < len(times) else None
            if time is None or any(abs(time - other) < _SAME_MOMENT_SECONDS for other in chosen):
                continue
            chosen.append(time)
            if len(chosen) == MAX_MOMENTS:
                return tuple(sorted(chosen))
    if not chosen and duration:
        chosen = [round(duration * share, 3) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return tuple(sorted(chosen))


def _with_own_keys(entries: Sequence[Entry]) -> list[Entry]:
    """Copies of one content get keys of their own: the second one ends in -2."""
    counts: dict[str, int] = {}
    own = []
    for entry in entries:
        counts[entry.key] = number = counts.get(entry.key, 0) + 1
        own.append(entry if number == 1 else replace(entry, key=f"{entry.key}-{number}"))
    return own
