"""How well each video of an index matches a query: a score per video, all at once.

The index answers which labels and paths have a word (FTS5, the word is a bound value) and
gives the rows of those labels; the rest is arithmetic on arrays, one number per video.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from vtag.search_match import SOURCE_BITS
from vtag.search_tables import ROW, VIDEO, plain
from vtag.search_tree import (
    After,
    And,
    Before,
    Duration,
    InPath,
    Node,
    Not,
    Or,
    Score,
    Sign,
    Source,
    Status,
    Tagged,
    Words,
)

Scores = NDArray[np.float64]  # [N], N videos; -inf where a video does not match
Mask = NDArray[np.bool_]

TRUE: Final = Not(Or(()))  # an OR of nothing never holds
_COMPARE: Final[dict[Sign, Any]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}
_OPPOSITE: Final[dict[Sign, Sign]] = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}
_KINDS: Final = {
    "any": ("name", "id", "category"),
    "tag": ("name", "id"),
    "category": ("category",),
}


class Index:
    """The answers of one index to one query; each part of it is read once.

    Args:
        database: as `vtag.search_index.with_index` opens it.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        blocks = database.execute("SELECT videos FROM batches ORDER BY first").fetchall()
        self._videos = np.frombuffer(b"".join(block for (block,) in blocks), VIDEO)
        self.dead = np.zeros(len(self._videos), bool)
        dead = database.execute("SELECT video FROM dead").fetchall()
        self.dead[np.array(dead, np.int64).reshape(-1)] = True
        self.labels_of = cache(self._labels_of)
        self.paths_of = cache(self._paths_of)

    def scores(self, node: Node) -> Scores:
        """The score of each video, dead ones included; as `Matcher.score` defines it."""
        if isinstance(node, And):
            return cast(Scores, np.minimum.reduce([self.scores(part) for part in node.parts]))
        if isinstance(node, Or):
            parts = [self._nothing(), *(self.scores(part) for part in node.parts)]
            return cast(Scores, np.maximum.reduce(parts))
        if isinstance(node, Not):
            return self._where(np.isneginf(self.scores(node.part)))
        if isinstance(node, Tagged):
            return self._tagged(node)
        if isinstance(node, InPath):
            scores = self._nothing()
            scores[list(self.paths_of(node.words))] = node.score
            return scores
        if isinstance(node, Status):
            return self._where(self._videos["failed"] == (node.value == "failed"))
        assert isinstance(node, Duration)
        # Unknown is NaN, which is neither above nor below.
        return self._where(_COMPARE[node.sign](self._videos["duration"], node.seconds))

    def _tagged(self, node: Tagged) -> Scores:
        labels = None if node.words is None else self.labels_of(node.words)
        rows, weights = self._any_rows() if labels is None else self._rows(labels)
        worth = rows["score"] * weights
        if node.fits is not None:
            fitting = _fitting(node.fits, rows, wanted=True)
            rows, worth = rows[fitting], worth[fitting]
        scores = self._nothing()
        np.maximum.at(scores, rows["video"], worth)
        return scores

    def _any_rows(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        blocks = self.database.execute("SELECT rows FROM postings")
        rows = np.frombuffer(b"".join(block for (block,) in blocks), ROW)
        return rows, np.ones(len(rows))

    def _rows(self, labels: Mapping[int, float]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """The rows of some labels, and the weight of the label of each."""
        blocks: list[bytes] = []
        weights: list[float] = []
        for label, weight in labels.items():
            query = "SELECT rows FROM postings WHERE label = ?"
            found = [block for (block,) in self.database.execute(query, (label,))]
            blocks += found
            weights += [weight] * len(found)
        counts = [len(block) // ROW.itemsize for block in blocks]
        return np.frombuffer(b"".join(blocks), ROW), np.repeat(np.array(weights, float), counts)

    def _labels_of(self, words: Words) -> dict[int, float]:
        """Label to how much of a name of it the words are, 0..1: "dog" is half of "hot dog"."""
        rows = self.database.execute(
            "SELECT label, kind, words FROM text_words JOIN texts ON id = text_words.rowid "
            "JOIN label_texts ON label_texts.text = id WHERE text_words MATCH ?",
            (_phrase(words),),
        )
        found: dict[int, float] = {}
        for label, kind, count in rows:
            # A category holds the tag that is called like it.
            itself = words.field == "category" and kind == "name" and count <= words.count
            if kind in _KINDS[words.field] or itself:
                found[label] = max(found.get(label, 0.0), min(1.0, words.count / count))
        return found

    def _paths_of(self, words: Words) -> frozenset[int]:
        """Numbers of the videos that have the words in their path."""
        rows = self.database.execute(
            "SELECT rowid FROM path_words WHERE path_words MATCH ?", (_phrase(words),)
        )
        return frozenset(number for (number,) in rows)

    def _nothing(self) -> Scores:
        return np.full(len(self._videos), -np.inf)

    def _where(self, holds: Mask) -> Scores:
        return np.where(holds, 1.0, -np.inf)


def without_nots(node: Node) -> Node:
    """The tree with every NOT taken for true."""
    if isinstance(node, And | Or):
        return type(node)(tuple(without_nots(part) for part in node.parts))
    return TRUE if isinstance(node, Not) else node


def _fitting(node: Node, rows: NDArray[Any], *, wanted: bool) -> Mask:
    """Which rows a tree of conditions describes; `wanted` False: which its opposite does.

    A tag without segments has one row, whose times are NaN: no comparison of them holds, so
    the opposite of one is another comparison and not the rest.
    """
    if isinstance(node, Not):
        return _fitting(node.part, rows, wanted=not wanted)
    if isinstance(node, And | Or):
        parts = [_fitting(part, rows, wanted=wanted) for part in node.parts]
        every = isinstance(node, And) == wanted
        return cast(Mask, (np.logical_and if every else np.logical_or).reduce(parts))
    if isinstance(node, Source):
        return cast(Mask, ((rows["sources"] & SOURCE_BITS[node.origin]) != 0) == wanted)
    if isinstance(node, Score):
        field, sign, limit = "score", node.sign, node.value
    elif isinstance(node, After):
        field, sign, limit = "end", ">", node.seconds
    else:
        assert isinstance(node, Before)
        field, sign, limit = "start", "<", node.seconds
    return cast(Mask, _COMPARE[sign if wanted else _OPPOSITE[sign]](rows[field], limit))


def _phrase(words: Words) -> str:
    """The words for FTS5: in quotation marks nothing is an operator ("FTS5 Phrases")."""
    quoted = plain(words.text).replace('"', '""')
    return f'"{quoted}" *' if words.prefix else f'"{quoted}"'
