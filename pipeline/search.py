"""Searching files of results: which videos, which tags in them, and when.

The front door of the `search` files: `search_query` reads the query into a tree
(`search_tree`), `search_index` keeps the index (`search_tables`), `search_scores` asks it, and
`search_match` looks closely at single videos.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vtag.records import Segment, Stream
from vtag.search_index import default_index_folder, with_index
from vtag.search_match import SOURCE_BITS, Matcher, Span, StoredTag, StoredVideo
from vtag.search_query import parse
from vtag.search_scores import Index, Scores, without_nots
from vtag.search_tables import tags_from_text
from vtag.search_tree import Node


@dataclass(frozen=True)
class Match:
    """A tag that the query asked for, with the segments that fit; `score` is the tag's."""

    id: str
    name: str
    score: float
    sources: tuple[Stream, ...]
    segments: tuple[Segment, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in a record."""
        segments = [{"start": s.start, "end": s.end, "score": s.score} for s in self.segments]
        return {
            "id": self.id,
            "name": self.name,
            "score": self.score,
            "sources": list(self.sources),
            "segments": segments,
        }


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One video that matches.

    Attributes:
        score: 0..1, how well (see `Matcher.score`).
        library: the file of results that has its record.
        error: code and message of a failed one.
        matches: the tags that were asked for, best first; empty if only filters matched.
        together: when everything holds at once; only where that was asked for.
    """

    score: float
    path: str
    library: Path
    content_id: str | None
    status: str
    duration: float | None
    error: tuple[str, str] | None = None
    matches: tuple[Match, ...] = ()
    together: tuple[Span, ...] = ()

    @property
    def start(self) -> float:
        """Seconds at which to begin to look: the first moment of what matched best."""
        if self.together:
            return self.together[0][0]
        starts = [match.segments[0].start for match in self.matches if match.segments]
        return starts[0] if starts else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for JSON."""
        together = [
            {"start": start, "end": None if math.isinf(end) else end}
            for start, end in self.together
        ]
        error = {"error": {"code": self.error[0], "message": self.error[1]}} if self.error else {}
        return {
            "score": self.score,
            "path": self.path,
            "id": self.content_id,
            "library": str(self.library),
            "status": self.status,
            "duration": self.duration,
            "matches": [match.to_dict() for match in self.matches],
            **({"together": together} if together else {}),
            **error,
        }


@dataclass(frozen=True)
class Found:
    """The best hits, best first, and how many there are in all."""

    hits: tuple[Hit, ...]
    total: int


def search(
    query: str,
    libraries: Sequence[Path],
    *,
    limit: int | None = 20,
    together: bool = False,
    folder: Path | None = None,
) -> Found:
    """The videos in some files of results that match a query.

    Args:
        query: as `vtag.search_query.parse` reads it.
        libraries: files that `vtag run` wrote.
        limit: how many hits at most; None for all.
        together: everything must hold at the same moment, not only somewhere in the video.
        folder: where indexes are kept; None for the usual place.

    Raises:
        QueryError: the query can not be understood.
        ConfigError, OutputError, CacheError, EnvironmentProblem: as `with_index`.
    """
    node = parse(query)
    folder = default_index_folder() if folder is None else folder
    hits: list[Hit] = []
    total = 0
    for library in dict.fromkeys(libraries):

        def ask(database: sqlite3.Connection, library: Path = library) -> Found:
            query = _Search(Index(database), library, node)
            return query.together(limit) if together else query.anywhere(limit)

        found = with_index(library, folder, ask)
        hits += found.hits
        total += found.total
    # Sorting is stable: among equals the order is that of the libraries and their lines.
    hits.sort(key=lambda hit: -hit.score)
    return Found(tuple(hits[:limit]), total)


class _Search:
    """One query over one index."""

    def __init__(self, index: Index, library: Path, node: Node) -> None:
        self._index = index
        self._library = library
        self._node = node
        self._matcher = Matcher(index.labels_of, index.paths_of)
        self._names: dict[int, str] = {}

    def anywhere(self, limit: int | None) -> Found:
        """The videos in which everything holds, whenever."""
        scores = self._index.scores(self._node)
        best = self._best_first(scores)
        hits = [
            self._hit(self._node, self._video(number), float(scores[number]), [])
            for number in best[:limit].tolist()
        ]
        return Found(tuple(hits), len(best))

    def together(self, limit: int | None) -> Found:
        """The videos in which everything holds at one moment at least."""
        # A NOT is about moments here: it must not take away whole videos beforehand.
        node = without_nots(self._node)
        scores = self._index.scores(node)
        hits: list[Hit] = []
        total = 0
        for number in self._best_first(scores).tolist():
            video = self._video(number)
            spans = self._matcher.spans(self._node, video)
            if not spans:
                continue
            total += 1
            if limit is None or len(hits) < limit:
                hits.append(self._hit(node, video, float(scores[number]), spans))
        return Found(tuple(hits), total)

    def _best_first(self, scores: Scores) -> NDArray[np.int64]:
        """Numbers of the videos that match; among equals the order of the records."""
        found = np.flatnonzero(np.isfinite(scores) & ~self._index.dead)
        return found[np.argsort(-scores[found], kind="stable")]

    def _video(self, number: int) -> StoredVideo:
        facts, tags = self._index.database.execute(
            "SELECT facts, tags FROM videos WHERE id = ?", (number,)
        ).fetchone()
        return StoredVideo(number, json.loads(facts), tags_from_text(tags))

    def _hit(self, node: Node, video: StoredVideo, score: float, spans: list[Span]) -> Hit:
        known = video.facts
        error = known["error"]
        return Hit(
            score=round(score, 4),
            path=known["path"],
            library=self._library,
            content_id=known["id"],
            status=known["status"],
            duration=known["duration"],
            error=None if error is None else (error[0], error[1]),
            matches=tuple(self._match(tag) for tag, _ in self._matcher.matches(node, video)),
            together=tuple(spans),
        )

    def _match(self, tag: StoredTag) -> Match:
        if tag.label not in self._names:
            (self._names[tag.label],) = self._index.database.execute(
                "SELECT name FROM labels WHERE id = ?", (tag.label,)
            ).fetchone()
        id_, name, _ = json.loads(self._names[tag.label])
        sources = [s for s in get_args(Stream) if tag.sources & SOURCE_BITS[s]]
        return Match(
            id_,
            name,
            tag.score,
            tuple(sources),
            tuple(Segment(*segment) for segment in tag.segments),
        )
