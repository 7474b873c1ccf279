"""A record as a table that a person reads in a terminal."""

from __future__ import annotations

import shutil
import unicodedata

from vtag.records import Record, Segment, Tag

_BAR = 10  # characters of a full score bar
_SENSES = {"visual": "seen", "audio": "heard"}


def record_table(record: Record, *, colour: bool) -> str:
    """Lines with one tag each: name, score bar, seen or heard, when."""
    head = f"{printable(record.path)}  {_facts(record)}"
    if record.error:
        return f"{head}\n  failed: {printable(record.error.message)}"
    if not record.tags:
        return f"{head}\n  no tag is above its threshold (try --threshold 0 --top-k 5)"
    width = min(max(len(tag.name) for tag in record.tags), 28)
    room = max(20, shutil.get_terminal_size().columns - width - 32)
    lines = [_line(tag, width, room, colour) for tag in record.tags]
    notes = [f"  note: {printable(warning)}" for warning in record.warnings]
    return "\n".join([head, *lines, *notes])


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


def _line(tag: Tag, width: int, room: int, colour: bool) -> str:
    filled = round(tag.score * _BAR)
    bar = "█" * filled + "·" * (_BAR - filled)
    name = tag.name if len(tag.name) <= width else tag.name[: width - 1] + "…"
    if colour:
        bar = f"\x1b[32m{bar}\x1b[0m"
    senses = "+".join(_SENSES[source] for source in tag.sources)
    padded = f"\x1b[1m{name:<{width}}\x1b[0m" if colour else f"{name:<{width}}"
    return f"  {padded}  {bar} {tag.score:4.2f}  {senses:<10}  {_when(tag.segments, room)}".rstrip()


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
