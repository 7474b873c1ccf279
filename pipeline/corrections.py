"""What a person said about tags: read from files of corrections, applied to records.

One JSON object a line, as the report's "Export" writes them (docs/corrections.md):

    {"vtag_corrections": 1, "id": "sha256:…", "path": "a.mp4", "wrong": ["n02084071"],
     "added": ["beach ball"], "time": "2026-11-24T10:00:00Z"}

A line is about a content and not about a name, so a renamed file keeps its corrections. Of two
lines about one content the one with the later `time` counts, whole: who looked later knew what
was said before.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from vtag.errors import ConfigError
from vtag.models.labels import LabelSet
from vtag.records import Corrected, Record, Tag
from vtag.storage import reason

SCHEMA: Final = 1
MARK: Final = "vtag_corrections"  # the field by which such a line is known
MAX_LINE_BYTES: Final = 1 << 20
MAX_NAME_CHARACTERS: Final = 200
THRESHOLD_OF_FREE_TEXT: Final = 0.5  # as of a label that says nothing else


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What one person said about one video.

    Attributes:
        id: of the content: "sha256:…".
        path: of the video when it was looked at; for people, and to find a clip to learn from.
        wrong: ids of tags that are not in it.
        wrong_names: names of the same, where they are known.
        added: names of what is in it, labels of a model or free text.
        kept: names of the tags that were looked at and left as they are.
        time: when, with its zone.
    """

    id: str
    path: str
    time: datetime
    wrong: tuple[str, ...] = ()
    wrong_names: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def read_corrections(paths: Iterable[Path]) -> dict[str, Correction]:
    """The corrections of some files by content id; the later one where two are about one content.

    Raises:
        ConfigError: a file can not be read, or a line is no correction; with its number.
    """
    found: dict[str, Correction] = {}
    for path in paths:
        for number, line in _lines(path):
            try:
                one = _correction(json.loads(line))
            except (ValueError, RecursionError) as err:
                raise ConfigError(
                    f"{path}: line {number} is no correction ({err}); "
                    "export the corrections again from the report"
                ) from err
            if one.id not in found or found[one.id].time <= one.time:
                found[one.id] = one
    return found


class Corrector:
    """Applies corrections to records of one model.

    Args:
        corrections: by content id.
        labels: of the model: what is added by a name that it knows gets its id and categories.
    """

    def __init__(self, corrections: Mapping[str, Correction], labels: LabelSet) -> None:
        self._corrections = corrections
        self._labels = labels

    def apply(self, record: Record) -> Record:
        """The record with its tags as the person said; the same one if nothing was said."""
        one = self._corrections.get(record.id or "")
        if one is None or not record.ok:
            return record
        places = tuple(n for n, tag in enumerate(record.tags) if tag.id in one.wrong)
        removed = tuple(record.tags[n] for n in places)
        kept = tuple(tag for tag in record.tags if tag.id not in one.wrong)
        added = tuple(self._added(one, {tag.id for tag in kept}))
        if not removed and not added:
            return record
        note = Corrected(
            time=one.time.isoformat(),
            removed=removed,
            added=tuple(tag.id for tag in added),
            removed_at=places,
        )
        return replace(record, tags=(*added, *kept), corrections=note)

    def amend(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """A record read from a file, with its tags as the person said; None if it stays as it is.

        What an earlier correction took out comes back first, so the later one replaces it.

        Raises:
            ValueError: the record is not as docs/record.md says.
        """
        one = self._corrections.get(fields.get("id") or "")
        if one is None or fields.get("status") != "ok":
            return None
        before = _uncorrected(fields)
        tags = before["tags"]
        places = [n for n, tag in enumerate(tags) if tag["id"] in one.wrong]
        removed = [tags[n] for n in places]
        kept = [tag for tag in tags if tag["id"] not in one.wrong]
        added = [asdict(tag) for tag in self._added(one, {tag["id"] for tag in kept})]
        if removed or added:
            ids = [tag["id"] for tag in added]
            note = {
                "time": one.time.isoformat(),
                "removed": removed,
                "added": ids,
                "removed_at": places,
            }
            before |= {"tags": [*added, *kept], "corrections": note}
        # Through JSON: a record of this process has tuples where one from a file has lists.
        after: dict[str, Any] = json.loads(json.dumps(before))
        return None if after == fields else after

    def _added(self, one: Correction, there: set[str]) -> Iterator[Tag]:
        """Tags for the added names that are not there already."""
        for name in one.added:
            try:
                label = self._labels.find(name)
            except KeyError:
                tag = Tag(id=name, name=name, score=1.0, threshold=THRESHOLD_OF_FREE_TEXT)
            else:
                above = self._labels.categories(label)
                tag = Tag(
                    id=label.id,
                    name=label.name,
                    score=1.0,
                    threshold=label.threshold,
                    categories=above,
                )
            if tag.id not in there:
                there = there | {tag.id}
                yield tag


def _uncorrected(fields: dict[str, Any]) -> dict[str, Any]:
    """The record as the model gave it; raises ValueError."""
    tags, note = fields.get("tags"), fields.get("corrections")
    if note is not None and not isinstance(note, dict):
        raise ValueError(f"its corrections are an object, not {note!r:.80}")
    removed = note.get("removed", []) if note else []
    by_person = note.get("added", []) if note else []
    for one in (tags, removed):
        if not isinstance(one, list) or not all(isinstance(tag, dict) for tag in one):
            raise ValueError("its tags are a list of objects")
    assert isinstance(tags, list)
    for tag in (*tags, *removed):
        if not isinstance(tag.get("id"), str) or not isinstance(tag.get("score"), int | float):
            raise ValueError("a tag has no id or no score")
    places = note.get("removed_at") if note else []
    own = [tag for tag in tags if tag["id"] not in by_person]
    if isinstance(places, list) and len(places) == len(removed):
        for place, tag in zip(places, removed, strict=True):
            own.insert(int(place), tag)
    elif removed:  # written before places were kept
        own = sorted([*own, *removed], key=lambda tag: -tag["score"])
    rest = {name: value for name, value in fields.items() if name != "corrections"}
    return rest | {"tags": own}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(f"{path}: line {number} is longer than any correction")
                if line.strip():
                    yield number, line
    except OSError as err:
        raise ConfigError(f"{path}: can not be read ({reason(err)})") from err


def _correction(fields: object) -> Correction:
    if not isinstance(fields, dict) or MARK not in fields:
        raise ValueError(f"it has no {MARK!r}")
    if fields[MARK] != SCHEMA:
        raise ValueError(f"it is of schema {fields[MARK]!r:.20}, this version reads {SCHEMA}")
    time = fields.get("time")
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        raise ValueError("id is a text such as sha256:…")
    if not isinstance(fields.get("path"), str) or not isinstance(time, str):
        raise ValueError("path and time are texts")
    when = datetime.fromisoformat(time.replace("Z", "+00:00"))  # 3.10 knows no Z
    if when.tzinfo is None:
        raise ValueError(f"the time {time!r:.40} has no zone")
    return Correction(
        id=fields["id"],
        path=fields["path"],
        time=when,
        wrong=_texts(fields, "wrong"),
        wrong_names=_texts(fields, "wrong_names"),
        added=tuple(_name(text) for text in _texts(fields, "added")),
        kept=_texts(fields, "kept"),
    )


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} is a list of texts, not {value!r:.80}")
    return tuple(dict.fromkeys(value))


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a tag's name has 1 to {MAX_NAME_CHARACTERS} characters: {text!r:.80}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"a tag's name holds control characters: {text!r:.80}")
    return name
