"""Which tags of one video a query matches, how well, and when.

What SQL answers for the whole library, this answers for one video, exactly: to the segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vtag.search_tree import (
    After,
    And,
    Before,
    Duration,
    InPath,
    Node,
    Not,
    Or,
    Origin,
    Score,
    Sign,
    Source,
    Status,
    Tagged,
    Words,
)

SOURCE_BITS: Final[dict[Origin, int]] = {"visual": 1, "audio": 2, "person": 4}

Span = tuple[float, float]  # [start, end) in seconds


@dataclass(frozen=True)
class StoredTag:
    """A tag as the index keeps it; `label` is the number of the label in the index."""

    label: int
    score: float
    sources: int  # sum of SOURCE_BITS
    segments: tuple[tuple[float, float, float], ...]  # start, end, score


@dataclass(frozen=True)
class StoredVideo:
    """A record as the index keeps it."""

    number: int
    facts: Mapping[str, Any]  # path, id, status, duration, error
    tags: tuple[StoredTag, ...]


@dataclass(frozen=True)
class Matcher:
    """Compares videos with one query.

    Args:
        labels_of: the labels that some words name, and how much of its name they are (0..1).
        paths_of: numbers of the videos that have the words in their path.
    """

    labels_of: Callable[[Words], Mapping[int, float]]
    paths_of: Callable[[Words], Collection[int]]

    def score(self, node: Node, video: StoredVideo) -> float | None:
        """How well the video matches, 0..1; None if it does not.

        AND is as good as its weakest part and OR as its best (Zadeh, "Fuzzy sets",
        1965, union and intersection); a filter that holds is 1, and so is a NOT.
        """
        if isinstance(node, And):
            scores = [self.score(part, video) for part in node.parts]
            found = [score for score in scores if score is not None]
            return min(found) if len(found) == len(scores) else None
        if isinstance(node, Or):
            scores = [self.score(part, video) for part in node.parts]
            return max((score for score in scores if score is not None), default=None)
        if isinstance(node, Not):
            return 1.0 if self.score(node.part, video) is None else None
        if isinstance(node, Tagged):
            return max(
                (tag.score * weight for tag, weight, _ in self._tags(node, video)), default=None
            )
        if isinstance(node, InPath):
            return node.score if video.number in self.paths_of(node.words) else None
        return 1.0 if _holds(node, video) else None

    def matches(self, node: Node, video: StoredVideo) -> list[tuple[StoredTag, float]]:
        """The tags that the query asks for, each with the segments that fit, best first.

        The number is the tag's score times its weight.
        """
        best: dict[int, tuple[StoredTag, float]] = {}
        for tag, weight in self._wanted(node, video):
            before = best.get(tag.label)
            if before is not None:
                both = sorted({*before[0].segments, *tag.segments})
                tag = StoredTag(tag.label, tag.score, tag.sources, tuple(both))
                weight = max(weight, before[1])
            best[tag.label] = (tag, weight)
        return sorted(best.values(), key=lambda match: (-match[1], match[0].label))

    def _wanted(self, node: Node, video: StoredVideo) -> list[tuple[StoredTag, float]]:
        if isinstance(node, And | Or):
            # A part of an OR that does not match as a whole has nothing to show.
            parts = [p for p in node.parts if self.score(p, video) is not None]
            return [match for part in parts for match in self._wanted(part, video)]
        if not isinstance(node, Tagged):
            return []
        return [
            (StoredTag(tag.label, tag.score, tag.sources, segments), tag.score * weight)
            for tag, weight, segments in self._tags(node, video)
        ]

    def _tags(
        self, node: Tagged, video: StoredVideo
    ) -> list[tuple[StoredTag, float, tuple[tuple[float, float, float], ...]]]:
        """The tags that fit, with their weight and the segments that fit."""
        weights = None if node.words is None else self.labels_of(node.words)
        found = []
        for tag in video.tags:
            weight = 1.0 if weights is None else weights.get(tag.label)
            if weight is None:
                continue
            fitting = tuple(s for s in tag.segments if fits(node.fits, tag, s))
            if fitting or fits(node.fits, tag, None):
                found.append((tag, weight, fitting))
        return found

    def spans(self, node: Node, video: StoredVideo) -> list[Span]:
        """When all of the query holds at once, in order; empty if never.

        What has no time (path, status, duration) holds all the time or never.
        """
        if isinstance(node, And):
            spans = [_whole(video)]
            for part in node.parts:
                spans = _common(spans, self.spans(part, video))
            return spans
        if isinstance(node, Or):
            return _merged([span for part in node.parts for span in self.spans(part, video)])
        if isinstance(node, Not):
            return _common([_whole(video)], _gaps(self.spans(node.part, video)))
        if isinstance(node, Tagged):
            tags = self._tags(node, video)
            return _merged([(start, end) for _, _, fit in tags for start, end, _ in fit])
        return [_whole(video)] if self.score(node, video) is not None else []


def fits(
    node: Node | None,
    tag: StoredTag,
    segment: tuple[float, float, float] | None,
    *,
    wanted: bool = True,
) -> bool:
    """Whether the tag, at that segment, is what a tree of conditions describes.

    Args:
        segment: None for a tag without one: neither after: nor before: nor their opposite
            holds for it.
        wanted: False asks for the opposite.
    """
    if node is None:
        return True
    if isinstance(node, Not):
        return fits(node.part, tag, segment, wanted=not wanted)
    if isinstance(node, And | Or):
        every = isinstance(node, And) == wanted  # the opposite of AND is an OR of opposites
        answers = (fits(part, tag, segment, wanted=wanted) for part in node.parts)
        return all(answers) if every else any(answers)
    if isinstance(node, Score):
        return compare(tag.score, node.sign, node.value) == wanted
    if isinstance(node, Source):
        return bool(tag.sources & SOURCE_BITS[node.origin]) == wanted
    if segment is None:
        return False
    if isinstance(node, After):
        return (segment[1] > node.seconds) == wanted
    assert isinstance(node, Before)
    return (segment[0] < node.seconds) == wanted


def compare(value: float, sign: Sign, limit: float) -> bool:
    """`value sign limit`."""
    if sign[0] == ">":
        return value > limit or (sign == ">=" and value == limit)
    return value < limit or (sign == "<=" and value == limit)


def _holds(node: Node, video: StoredVideo) -> bool:
    if isinstance(node, Status):
        return bool(video.facts["status"] == node.value)
    assert isinstance(node, Duration)
    duration = video.facts["duration"]
    return duration is not None and compare(duration, node.sign, node.seconds)


def _whole(video: StoredVideo) -> Span:
    """From the beginning to the end, which is where the last tag ends if that is later."""
    ends = [end for tag in video.tags for _, end, _ in tag.segments]
    duration = video.facts["duration"]
    return 0.0, max([*ends, math.inf if duration is None else duration])


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return merged


def _common(first: list[Span], second: list[Span]) -> list[Span]:
    shared = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return _merged([span for span in shared if span[0] < span[1]])


def _gaps(spans: list[Span]) -> list[Span]:
    edges = [0.0, *(edge for span in spans for edge in span), math.inf]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
