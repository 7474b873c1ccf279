"""A query as a tree: what its leaves ask of a video, and which tags its conditions describe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Field = Literal["any", "tag", "category", "path"]
Sign = Literal[">", ">=", "<", "<="]
Origin = Literal["visual", "audio", "person"]  # a stream, or somebody who added the tag

# A word that is only in the file's name counts like a tag of this score: somebody chose the
# name, but it says nothing of when, and names like "new folder" say nothing at all.
PATH_SCORE: Final = 0.5
_WORD: Final = re.compile(r"[^\W_]+")


def count_words(text: str) -> int:
    """How many words the text has; 1 at least."""
    return max(1, len(_WORD.findall(text)))


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit to search for."""
    return _WORD.search(text) is not None


@dataclass(frozen=True)
class Words:
    """One word, or several that must follow each other."""

    text: str
    field: Field = "any"
    prefix: bool = False  # the last word may go on

    @property
    def count(self) -> int:
        """How many words."""
        return count_words(self.text)


@dataclass(frozen=True)
class Score:
    """The tag's score is above (below) `value`."""

    sign: Sign
    value: float


@dataclass(frozen=True)
class Source:
    """The tag was found in this stream (too), or a person added it."""

    origin: Origin


@dataclass(frozen=True)
class After:
    """A segment of the tag ends after this second."""

    seconds: float


@dataclass(frozen=True)
class Before:
    """A segment of the tag starts before this second."""

    seconds: float


@dataclass(frozen=True)
class Status:
    """The input was tagged, or failed."""

    value: Literal["ok", "failed"]


@dataclass(frozen=True)
class Duration:
    """The video is longer (shorter) than this."""

    sign: Sign
    seconds: float


@dataclass(frozen=True)
class And:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


@dataclass(frozen=True)
class Tagged:
    """The video has a tag that the words name and that fits.

    Attributes:
        words: None: any tag.
        fits: a tree of Score, Source, After and Before; None: always. It holds for the tag
            together with one of its segments.
    """

    words: Words | None
    fits: Node | None = None


@dataclass(frozen=True)
class InPath:
    """The words are in the file's path; `score` is what that counts."""

    words: Words
    score: float


Condition: TypeAlias = Score | Source | After | Before
Node: TypeAlias = Words | Condition | Status | Duration | And | Or | Not | Tagged | InPath


def described(node: Node) -> Node:
    """The tree with every condition moved to the tags that it describes.

    Its leaves are then Tagged, InPath, Status and Duration.
    """
    return _resolve(node, None)


def _resolve(node: Node, given: Node | None) -> Node:
    """The node with every condition moved to the tags that it describes."""
    if _is_condition(node):
        return Tagged(None, _both(given, node))
    if isinstance(node, Words):
        if node.field == "path":
            return InPath(node, 1.0)
        tagged = Tagged(node, given)
        return Or((tagged, InPath(node, PATH_SCORE))) if _anywhere(node, given) else tagged
    if isinstance(node, Not):
        return Not(_resolve(node.part, given))
    if isinstance(node, Or):
        return Or(tuple(_resolve(part, given) for part in node.parts))
    if not isinstance(node, And):
        return node
    conditions = [part for part in node.parts if _is_condition(part)]
    rest = [part for part in node.parts if not _is_condition(part)]
    own = given
    for condition in conditions:
        own = _both(own, condition)
    if conditions and not any(_names_tags(part) for part in rest):
        return And((*(_resolve(part, given) for part in rest), Tagged(None, own)))
    found = tuple(_resolve(part, own) for part in rest)
    return found[0] if len(found) == 1 else And(found)


def _anywhere(words: Words, given: Node | None) -> bool:
    return words.field == "any" and given is None


def _both(first: Node | None, second: Node) -> Node:
    return second if first is None else And((first, second))


def _is_condition(node: Node) -> bool:
    if isinstance(node, Not):
        return _is_condition(node.part)
    if isinstance(node, And | Or):
        return all(_is_condition(part) for part in node.parts)
    return isinstance(node, Score | Source | After | Before)


def _names_tags(node: Node) -> bool:
    if isinstance(node, Not):
        return _names_tags(node.part)
    if isinstance(node, And | Or):
        return any(_names_tags(part) for part in node.parts)
    return _is_condition(node) or (isinstance(node, Words) and node.field != "path")
