"""Tags as a WebVTT track (w3.org/TR/webvtt1): chapters for people, or metadata for programs.

The file is vtag's alone, and says so in a NOTE that holds a hash of what follows it. A file
without it, or that was changed since, is never replaced or deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from vtag.records import Tag
from vtag.sidecar_change import Change
from vtag.sidecar_xml import Unmergeable, one_line, xml_text

Kind = Literal["chapters", "metadata"]

_OWN: Final = re.compile(rb"WEBVTT\n\nNOTE vtag ([0-9a-f]{64})\n\n")


def merge_webvtt(old: bytes | None, tags: Sequence[Tag], *, kind: Kind) -> Change:
    """The track with these tags; no file where no tag has a time.

    Raises:
        Unmergeable: `old` is not as vtag wrote it.
    """
    before = () if old is None else _cues(_body(old))
    cues = tuple(_chapters(tags) if kind == "chapters" else _metadata(tags))
    if not cues:
        return Change(None, taken=before)
    body = ("\n\n".join(cues) + "\n").encode()
    head = f"WEBVTT\n\nNOTE vtag {hashlib.sha256(body).hexdigest()}\n\n"
    added = tuple(_shown(cue) for cue in cues if _shown(cue) not in before)
    taken = tuple(cue for cue in before if cue not in {_shown(cue) for cue in cues})
    return Change(head.encode() + body, added, taken)


def remove_webvtt(old: bytes) -> Change:
    """No file.

    Raises:
        Unmergeable: `old` is not as vtag wrote it.
    """
    return Change(None, taken=_cues(_body(old)))


def _body(data: bytes) -> bytes:
    head = _OWN.match(data)
    body = data[head.end() :] if head else b""
    if head is None or hashlib.sha256(body).hexdigest().encode() != head.group(1):
        raise Unmergeable("was not written by vtag, or was changed since; move it away")
    return body


def _cues(body: bytes) -> tuple[str, ...]:
    return tuple(_shown(cue) for cue in body.decode().rstrip("\n").split("\n\n"))


def _shown(cue: str) -> str:
    return cue.replace("\n", " ")


def _chapters(tags: Sequence[Tag]) -> Iterator[str]:
    """Stretches in which the same tags hold, one after the other without overlap.

    A chapter track is a sequence (WebVTT, 6.6), and players show one title at a time.
    """
    spans = [(s.start, s.end, n) for n, tag in enumerate(tags) for s in tag.segments]
    spans = [span for span in spans if 0 <= span[0] < span[1]]
    bounds = sorted({bound for start, end, _ in spans for bound in (start, end)})
    starting: dict[float, list[int]] = {}
    ending: dict[float, list[int]] = {}
    for start, end, n in spans:
        starting.setdefault(start, []).append(n)
        ending.setdefault(end, []).append(n)
    holding = [0] * len(tags)  # how many segments of each tag hold now: they may overlap
    since, title = 0.0, ""
    for bound in bounds:
        for n in ending.get(bound, ()):
            holding[n] -= 1
        for n in starting.get(bound, ()):
            holding[n] += 1
        now = ", ".join(xml_text(_name(tags[n])) for n, count in enumerate(holding) if count)
        if now != title:
            if title:
                yield f"{_span(since, bound)}\n{title}"
            since, title = bound, now


def _metadata(tags: Sequence[Tag]) -> Iterator[str]:
    """One cue per segment in order of time: a line of JSON, that no text can end early."""
    cues = [
        (segment.start, segment.end, tag.id, tag, segment.score)
        for tag in tags
        for segment in tag.segments
        if 0 <= segment.start < segment.end
    ]
    for start, end, _, tag, score in sorted(cues, key=lambda cue: cue[:3]):
        fields = {"id": tag.id, "name": tag.name, "score": score, "sources": list(tag.sources)}
        text = json.dumps(fields)
        for sign in "<>&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        yield f"{_span(start, end)}\n{text}"


def _name(tag: Tag) -> str:
    return one_line(tag.name) or one_line(tag.id)


def _span(start: float, end: float) -> str:
    return f"{_timestamp(start)} --> {_timestamp(max(end, start + 0.001))}"


def _timestamp(seconds: float) -> str:
    """`00:01:02.500`: hours of two digits or more (WebVTT, 4.4)."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
