"""Videos that look and sound like a given one, by the features that are in the cache.

A video becomes one direction per stream, the mean of its rows; two videos are as alike as the
cosine between their directions. That needs no labels, so it also finds what the model has no
tag for.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vtag.cache import FeatureCache
from vtag.config import Sampling
from vtag.features import SOUND_RULE
from vtag.records import Features
from vtag.search_index import default_index_folder, remove_database, with_index
from vtag.storage import make_private_folder

log = logging.getLogger(__name__)

Direction = NDArray[np.float16]  # [D], of length 1

_AT_ONCE: Final = 256  # videos per multiplication, and per question to the memo
_BUSY_SECONDS: Final = 5.0
_MEMO: Final = "directions-1.sqlite"  # one file per layout of its table
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS directions (key TEXT PRIMARY KEY, numbers BLOB NOT NULL) "
    "WITHOUT ROWID"
)


@dataclass(frozen=True)
class Candidate:
    """A video of a file of results: what it could be like."""

    content_id: str
    path: str
    library: Path
    duration: float | None = None


@dataclass(frozen=True)
class Neighbour:
    """A video and how alike it is: the mean of the cosines of the streams that both have."""

    video: Candidate
    similarity: float
    streams: Mapping[str, float]  # stream to its cosine

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for JSON."""
        return {
            "similarity": self.similarity,
            "path": self.video.path,
            "id": self.video.content_id,
            "library": str(self.video.library),
            "duration": self.video.duration,
            "streams": dict(self.streams),
        }


@dataclass(frozen=True)
class Neighbours:
    """The most alike first, and how many videos there were.

    Attributes:
        found: the most alike first.
        compared: with how many videos the clip was compared.
        missing: those that have no features in the cache.
        apart: those whose features are there, without rows of any stream that the clip has: a
            silent video and a clip of sound alone.
    """

    found: tuple[Neighbour, ...]
    compared: int
    missing: int
    apart: int


def direction(features: Features) -> Direction | None:
    """Mean over time of the rows, scaled to length 1: float16 [D]; None without any rows.

    Half precision, as the rows themselves: what is computed and what is remembered are the
    same numbers.
    """
    if not len(features.rows):
        return None
    mean = features.rows.astype(np.float64).mean(axis=0)  # [T, D] -> [D]
    length = np.linalg.norm(mean)
    return None if length == 0 else (mean / length).astype(np.float16)


def candidates_of(libraries: Iterable[Path], *, folder: Path | None = None) -> list[Candidate]:
    """The videos of files of results whose content is known, in the order of the records.

    Raises:
        ConfigError, OutputError, CacheError, EnvironmentProblem: as `with_index`.
    """
    folder = default_index_folder() if folder is None else folder
    found: list[Candidate] = []
    for library in dict.fromkeys(libraries):

        def ask(database: sqlite3.Connection, library: Path = library) -> list[Candidate]:
            rows = database.execute("SELECT facts FROM videos ORDER BY id")
            facts = [json.loads(text) for (text,) in rows]
            return [
                Candidate(known["id"], known["path"], library, known["duration"])
                for known in facts
                if known["id"] is not None and known["status"] == "ok"
            ]

        found += with_index(library, folder, ask)
    return found


def nearest(
    streams: Mapping[str, Features],
    candidates: Iterable[Candidate],
    *,
    cache: FeatureCache,
    sampling: Sampling,
    limit: int = 10,
    folder: Path | None = None,
) -> Neighbours:
    """The candidates that are most like a clip.

    Features are read from the cache once; the directions are remembered beside the indexes
    of `vtag search`, and stay when the cache is pruned.

    Args:
        streams: the clip's features; a stream without rows is not compared.
        candidates: what to compare with.
        cache: where their features are.
        sampling: with which these were made.
        limit: how many at most.
        folder: where directions are remembered; None for the usual place.
    """
    directions = ((stream, features, direction(features)) for stream, features in streams.items())
    clip = {
        stream: (features.made_by, own.astype(np.float32))
        for stream, features, own in directions
        if own is not None
    }
    memo = Memo(default_index_folder() if folder is None else folder)
    found: list[Neighbour] = []
    compared = missing = apart = 0
    remaining = iter(candidates)
    while group := list(islice(remaining, _AT_ONCE)):
        cosines: list[dict[str, float]] = [{} for _ in group]
        without_rows = [0] * len(group)  # of the clip's streams
        for stream, (made_by, own) in clip.items():
            rule = sampling.fingerprint() if stream == "visual" else SOUND_RULE
            keys = [FeatureCache.key(c.content_id, made_by, rule) for c in group]
            known = memo.directions(keys, cache, len(own))
            own_of = [known.get(key) for key in keys]
            at = [number for number, one in enumerate(own_of) if one is not None]
            for number, key in enumerate(keys):
                without_rows[number] += key in known and known[key] is None
            if at:
                rows = np.stack([one for one in own_of if one is not None]).astype(np.float32)
                for number, cosine in zip(at, (rows @ own).tolist(), strict=True):
                    cosines[number][stream] = min(1.0, cosine)
        for candidate, alike, empty in zip(group, cosines, without_rows, strict=True):
            if alike:
                compared += 1
                found.append(Neighbour(candidate, sum(alike.values()) / len(alike), alike))
            elif empty == len(clip):
                apart += 1
            else:
                missing += 1
        found.sort(key=lambda neighbour: -neighbour.similarity)  # stable: equals keep their order
        del found[limit:]
    return Neighbours(tuple(found), compared, missing, apart)


class Memo:
    """Directions by cache key, in a SQLite database that processes may share.

    A convenience: if it can not be used, features are read from the cache each time.
    """

    def __init__(self, folder: Path) -> None:
        self._path: Path | None = folder / _MEMO
        try:
            make_private_folder(folder)
        except OSError as err:
            log.warning("%s: %s; directions are not remembered", folder, err.strerror)
            self._path = None

    def directions(
        self, keys: Sequence[str], cache: FeatureCache, size: int
    ) -> dict[str, Direction | None]:
        """Key to direction of those videos whose features are remembered or in the cache.

        None for features that have no direction: the video lacks the stream. That is not
        remembered; the entry in the cache says it at once.
        """
        known: dict[str, Direction | None] = dict(self._recall(keys, size))
        made: dict[str, Direction] = {}
        for key in keys:
            entry = None if key in known else cache.get(key)
            if entry is None:
                continue
            own = direction(entry.features)
            if own is None:
                known[key] = None
            elif own.shape == (size,):
                known[key] = made[key] = own
        if made:
            self._remember(made)
        return known

    def _recall(self, keys: Sequence[str], size: int) -> Iterator[tuple[str, Direction]]:
        marks = ", ".join("?" * len(keys))
        query = f"SELECT key, numbers FROM directions WHERE key IN ({marks})"
        for key, numbers in self._use(query, [tuple(keys)]):
            own = np.frombuffer(numbers, np.float16) if len(numbers) == 2 * size else None
            # A damaged disk changes numbers that SQLite does not check.
            if own is not None and abs(np.linalg.norm(own.astype(np.float64)) - 1) < 0.01:
                yield key, own

    def _remember(self, made: Mapping[str, Direction]) -> None:
        rows = [(key, own.tobytes()) for key, own in made.items()]
        self._use("INSERT OR REPLACE INTO directions VALUES (?, ?)", rows)

    def _use(self, query: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """What the statement gives, for each of `rows`; nothing if the memo can not be used."""
        if self._path is None:
            return []
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as memo, memo:
                memo.execute(_TABLE)
                return [answer for row in rows for answer in memo.execute(query, row)]
        except sqlite3.OperationalError as err:
            log.warning("%s: %s; directions are not remembered", self._path, err)
            self._path = None
        except sqlite3.DatabaseError as err:
            log.warning("%s: damaged (%s); made anew", self._path, err)
            remove_database(self._path)
        return []
