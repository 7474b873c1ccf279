"""What a merge gives back, and the parts of a record that sidecars are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from vtag.records import Segment, Stream, Tag


@dataclass(frozen=True)
class Change:
    """What a sidecar is to hold.

    Attributes:
        data: its bytes; None where there is to be no file.
        added: tags that come in, as a person reads them.
        taken: tags that go out.
    """

    data: bytes | None
    added: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


def tags_of(record: Mapping[str, Any]) -> tuple[Tag, ...]:
    """The tags of a record as it was read from a file, in its order: what is implied stands last.

    Raises:
        ValueError: they are not as docs/record.md says.
    """
    found = record.get("tags")
    if not isinstance(found, list):
        raise ValueError("the record has no list of tags")
    return tuple(_tag(tag) for tag in found)


def _tag(tag: object) -> Tag:
    if not isinstance(tag, dict):
        raise ValueError(f"a tag is an object, not {tag!r:.80}")
    sources = _texts(tag, "sources")
    if not set(sources) <= set(get_args(Stream)):
        raise ValueError(f"a tag's sources are visual and audio, not {sources!r:.80}")
    segments = tag.get("segments", [])
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        raise ValueError(f"a tag's segments are a list of objects, not {segments!r:.80}")
    return Tag(
        id=_text(tag, "id"),
        name=_text(tag, "name"),
        score=_number(tag, "score"),
        threshold=_number(tag, "threshold"),
        categories=_texts(tag, "categories"),
        sources=sources,  # type: ignore[arg-type]
        segments=tuple(
            Segment(_number(one, "start"), _number(one, "end"), _number(one, "score"))
            for one in segments
        ),
    )


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} of a tag is a text, not {value!r:.80}")
    return value


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} of a tag is a list of texts, not {value!r:.80}")
    return tuple(value)


def _number(fields: Mapping[str, object], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} of a tag is a number, not {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):  # JSON has no infinity, but 1e999 reads as one
        raise ValueError(f"{name} of a tag is too large")
    return number
