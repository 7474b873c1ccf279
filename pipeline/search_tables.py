"""What is in an index of `vtag search`: its tables, and how records get there.

    labels, texts   each label once, and each different name, id and category once
    text_words      FTS5 over texts: from a word to the names that hold it
    postings        for a label, and for the records that were read at once, an array of `ROW`s
    path_words      FTS5 over paths
    batches         for the records that were read at once, an array of `VIDEO`s
    videos          one row per path: what is shown of it, its tags with all segments
    dead            numbers whose record was replaced by a later one; their rows stay behind

Names repeat a million times and labels are some thousands, so the full-text index is over the
names, and the videos of a label are arrays: as rows of SQL they took three to five times as
long to search.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterable
from typing import Any, Final

import numpy as np

from vtag.search_match import SOURCE_BITS, StoredTag
from vtag.search_tree import Origin, count_words

_BATCH: Final = 10_000  # records that are written at once; some 50 MB

_TOKENS: Final = "tokenize='unicode61 remove_diacritics 2'"
TABLES: Final = {
    "source": "(only_one INTEGER PRIMARY KEY CHECK (only_one = 1), state TEXT NOT NULL)",
    "videos": "(id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, "
    "facts TEXT NOT NULL, tags TEXT NOT NULL)",
    "labels": "(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "texts": "(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, words INTEGER NOT NULL)",
    "label_texts": "(text INTEGER, kind TEXT, label INTEGER, PRIMARY KEY (text, kind, label)) "
    "WITHOUT ROWID",
    "postings": "(label INTEGER NOT NULL, rows BLOB NOT NULL)",
    "batches": "(first INTEGER PRIMARY KEY, videos BLOB NOT NULL)",
    "dead": "(video INTEGER PRIMARY KEY)",
    "text_words": f"fts5(text, {_TOKENS})",
    "path_words": f"fts5(path, {_TOKENS})",
}

# A tag at one of its segments; times are NaN for a tag that has none.
ROW: Final = np.dtype(
    [("video", "<u4"), ("sources", "<u4"), ("score", "<f8"), ("start", "<f8"), ("end", "<f8")]
)
# A duration that is not known is NaN.
VIDEO: Final = np.dtype([("duration", "<f8"), ("failed", "?")])


def make_tables(index: sqlite3.Connection) -> None:
    """Empty tables, whatever was there."""
    for name, columns in TABLES.items():
        kind = "VIRTUAL TABLE" if columns.startswith("fts5") else "TABLE"
        using = "USING " if columns.startswith("fts5") else ""
        index.execute(f"DROP TABLE IF EXISTS {name}")
        index.execute(f"CREATE {kind} {name} {using}{columns}")
    index.execute("CREATE INDEX postings_of ON postings (label)")


class Writer:
    """Collects records and writes what they say of a label as one array."""

    def __init__(self, index: sqlite3.Connection) -> None:
        self._index = index
        self._labels: dict[tuple[str, str, tuple[str, ...]], int] = {}
        for number, name in index.execute("SELECT id, name FROM labels"):
            id_, word, categories = json.loads(name)
            self._labels[id_, word, tuple(categories)] = number
        last = index.execute("SELECT first, videos FROM batches ORDER BY first DESC").fetchone()
        self._first = 0 if last is None else last[0] + len(last[1]) // VIDEO.itemsize
        self._videos: list[tuple[float, bool]] = []
        self._rows: list[tuple[int, int, int, float, float, float]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record; it replaces an earlier one of the same path."""
        media, error = record.get("media"), record.get("error")
        duration = None if media is None else _finite(media["duration"])
        facts = {
            "path": record["path"],
            "id": record.get("id"),
            "status": record["status"],
            "duration": duration,
            "error": None if error is None else [str(error["code"]), str(error["message"])],
        }
        by_person = frozenset((record.get("corrections") or {}).get("added", ()))
        tags: dict[int, StoredTag] = {}
        for tag in record["tags"]:
            stored = self._stored(tag, by_person)
            tags[stored.label] = _united(tags.get(stored.label), stored)
        number = self._first + len(self._videos)
        self._write_video(number, record["path"], json.dumps(facts), tags_to_text(tags.values()))
        self._videos.append(
            (math.nan if duration is None else duration, record["status"] == "failed")
        )
        for label, tag in tags.items():
            for start, end, _ in tag.segments or ((math.nan, math.nan, 0.0),):
                self._rows.append((label, number, tag.sources, tag.score, start, end))
        if len(self._videos) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected."""
        if not self._videos:
            return
        self._index.execute(
            "INSERT INTO batches VALUES (?, ?)",
            (self._first, np.array(self._videos, VIDEO).tobytes()),
        )
        if self._rows:
            self._write_rows()
        self._first += len(self._videos)
        self._videos, self._rows = [], []

    def _write_rows(self) -> None:
        """One array per label."""
        labelled = np.array(self._rows, [("label", "<i8"), *ROW.descr])
        labelled = labelled[np.argsort(labelled["label"], kind="stable")]
        labels, starts = np.unique(labelled["label"], return_index=True)
        rows = np.empty(len(labelled), ROW)
        for name in ROW.names or ():
            rows[name] = labelled[name]
        self._index.executemany(
            "INSERT INTO postings VALUES (?, ?)",
            (
                (label, part.tobytes())
                for label, part in zip(labels.tolist(), np.split(rows, starts[1:]), strict=True)
            ),
        )

    def _write_video(self, number: int, path: str, facts: str, tags: str) -> None:
        """Writes the row of a video; the one that had this path is dead then."""
        key = path.encode("utf-8", "surrogatepass")
        old = self._index.execute("SELECT id FROM videos WHERE path = ?", (key,)).fetchone()
        if old is not None:
            self._index.execute("INSERT INTO dead VALUES (?)", old)
            self._index.execute("DELETE FROM videos WHERE id = ?", old)
            self._index.execute("DELETE FROM path_words WHERE rowid = ?", old)
        self._index.execute("INSERT INTO videos VALUES (?, ?, ?, ?)", (number, key, facts, tags))
        self._index.execute(
            "INSERT INTO path_words (rowid, path) VALUES (?, ?)", (number, plain(path))
        )

    def _stored(self, tag: dict[str, Any], by_person: Collection[str]) -> StoredTag:
        sources: set[Origin] = {*tag["sources"]}
        if tag["id"] in by_person:
            sources.add("person")
        return StoredTag(
            self._label(str(tag["id"]), str(tag["name"]), tuple(map(str, tag["categories"]))),
            _finite(tag["score"]),
            sum(SOURCE_BITS[source] for source in sources),
            tuple(
                (_finite(s["start"]), _finite(s["end"]), _finite(s["score"]))
                for s in tag["segments"]
            ),
        )

    def _label(self, id_: str, name: str, categories: tuple[str, ...]) -> int:
        known = self._labels.get((id_, name, categories))
        if known is not None:
            return known
        number = int(
            self._index.execute(
                "INSERT INTO labels (name) VALUES (?)", (json.dumps([id_, name, categories]),)
            ).lastrowid
            or 0
        )
        self._labels[id_, name, categories] = number
        kinds = [("id", id_), ("name", name), *(("category", c) for c in categories)]
        for kind, text in kinds:
            self._index.execute(
                "INSERT OR IGNORE INTO label_texts VALUES (?, ?, ?)",
                (self._text(plain(text)), kind, number),
            )
        return number

    def _text(self, text: str) -> int:
        found = self._index.execute("SELECT id FROM texts WHERE text = ?", (text,)).fetchone()
        if found is not None:
            return int(found[0])
        number = int(
            self._index.execute(
                "INSERT INTO texts (text, words) VALUES (?, ?)", (text, count_words(text))
            ).lastrowid
            or 0
        )
        self._index.execute("INSERT INTO text_words (rowid, text) VALUES (?, ?)", (number, text))
        return number


def plain(text: str) -> str:
    """The text without what SQLite takes for an end or can not encode; for words only."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")


def tags_to_text(tags: Iterable[StoredTag]) -> str:
    """Tags as JSON, for the column `tags`."""
    return json.dumps([[t.label, t.score, t.sources, t.segments] for t in tags])


def tags_from_text(text: str) -> tuple[StoredTag, ...]:
    """What `tags_to_text` was given."""
    return tuple(
        StoredTag(label, score, sources, tuple((s[0], s[1], s[2]) for s in segments))
        for label, score, sources, segments in json.loads(text)
    )


def _united(first: StoredTag | None, second: StoredTag) -> StoredTag:
    """A label that a record names twice, as one tag."""
    if first is None:
        return second
    return StoredTag(
        first.label,
        max(first.score, second.score),
        first.sources | second.sources,
        tuple(sorted(first.segments + second.segments)),
    )


def _finite(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no finite number: {value!r:.40}")
    return float(value)
