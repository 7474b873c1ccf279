"""A record as a table that a person reads in a terminal."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vtag.records import Record, Segment, Tag

_MOST_OF_NAME = 28
_LEAST_OF_NAME = 8
_CUT_NAME = 16
_ONE_SPAN = len("0:00-0:00, …")
_SENSES = {"visual": "seen", "audio": "heard"}
_IN_ASCII: Final[Mapping[str, str]] = {"█": "#", "·": "-", "…": "~"}


def record_table(record: Record, *, colour: bool, encoding: str = "utf-8") -> str:
    """Lines with one tag each: name, score bar, seen or heard, when.

    Args:
        colour: with the escapes of a terminal.
        encoding: of where it is printed; what it lacks of our signs is drawn in ASCII.
    """
    text = _record_table(record, colour)
    try:
        "".join(_IN_ASCII).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate({ord(sign): other for sign, other in _IN_ASCII.items()})
    return text


def _record_table(record: Record, colour: bool) -> str:
    head = f"{printable(record.path)}  {_facts(record)}"
    if record.error:
        return f"{head}\n  failed: {printable(record.error.message)}"
    if not record.tags:
        return f"{head}\n  no tag is above its threshold (try --threshold 0 --top-k 5)"
    layout = _Layout.of(record.tags, shutil.get_terminal_size().columns)
    lines = [_line(tag, layout, colour) for tag in record.tags]
    notes = [f"  note: {printable(warning)}" for warning in record.warnings]
    return "\n".join([head, *lines, *notes])


def model_text(about: Mapping[str, Any]) -> str:
    """What `Head.describe` says of a model, for people: one fact a line."""
    streams = {"visual": "seen", "audio": "heard"}
    labels = ", ".join(
        f"{count} {streams.get(stream, stream)}"
        for stream, count in about["labels_per_stream"].items()
    )
    rows = [
        ("model", f"{about['name']} ({about['fingerprint']})"),
        ("labels", f"{about['labels']} ({labels})" if labels else str(about["labels"])),
        *((f"{stream} rows", by) for stream, by in sorted(about["extractors"].items())),
        ("parameters", f"{about['parameters']:,}"),
        ("more", "--json has the network; `vtag labels --model NAME` lists the labels"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {printable(str(value))}" for name, value in rows)


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes shown instead of sent.

    A file name may hold escape sequences that rewrite the terminal, or newlines that forge a
    log line.
    """
    return "".join(
        c
        if c == " " or unicodedata.category(c)[0] not in "CZ"
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def columns_of(text: str) -> int:
    """How many columns a terminal needs for a printable text: two for a wide character."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fitted(text: str, columns: int) -> str:
    """A printable text in exactly so many columns: filled with spaces, or cut with a sign."""
    if columns_of(text) > columns:
        while text and columns_of(text) > columns - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (columns - columns_of(text))


def clock(seconds: float) -> str:
    """`1:02` or `1:00:02`: minutes and seconds as players show them."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _facts(record: Record) -> str:
    media = record.media
    if media is None:
        return ""
    size = f" {media.width}x{media.height}" if media.has_video else ""
    codecs = "+".join(codec for codec in (media.video_codec, media.audio_codec) if codec)
    return f"{clock(media.duration)}{size} {codecs}"


@dataclass(frozen=True)
class _Layout:
    """Columns of the parts of a line; 0 for what has no room."""

    name: int
    bar: int
    senses: int
    when: int

    @classmethod
    def of(cls, tags: Sequence[Tag], columns: int) -> _Layout:
        """What fits into a terminal of this width; the name and the score always stay."""
        bar = 10 if columns >= 66 else 5 if columns >= 50 else 0
        longest = max(len(_senses(tag)) for tag in tags)
        senses = len("seen+heard") if columns >= 66 else longest
        rest = columns - len("    0.00    ") - (bar + 1 if bar else 0) - senses
        longest = max(columns_of(printable(tag.name)) for tag in tags)
        # A cut name that still says something, rather than no times.
        with_times = rest - _ONE_SPAN if rest - _ONE_SPAN >= _CUT_NAME else rest
        name = max(_LEAST_OF_NAME, min(longest, _MOST_OF_NAME, with_times))
        when = rest - name
        return cls(name, bar, senses, when if when >= _ONE_SPAN else 0)


def _line(tag: Tag, layout: _Layout, colour: bool) -> str:
    name = fitted(printable(tag.name), layout.name)
    filled = round(tag.score * layout.bar)
    bar = "█" * filled + "·" * (layout.bar - filled)
    if colour:
        name = f"\x1b[1m{name}\x1b[0m"
        bar = f"\x1b[32m{bar}\x1b[0m" if bar else ""
    parts = [
        f"  {name}  {bar}{' ' if bar else ''}{tag.score:4.2f}",
        f"{_senses(tag):<{layout.senses}}",
    ]
    if layout.when:
        parts.append(_when(tag.segments, layout.when))
    return "  ".join(parts).rstrip()


def _senses(tag: Tag) -> str:
    return "+".join(_SENSES.get(source, source) for source in tag.sources)


def _when(segments: tuple[Segment, ...], room: int) -> str:
    """As many segments as fit, and a sign when there are more."""
    text = ""
    for segment in segments:
        span = f"{clock(segment.start)}-{clock(segment.end)}"
        longer = f"{text}, {span}" if text else span
        if len(longer) > room:
            return f"{text} …"
        text = longer
    return text
