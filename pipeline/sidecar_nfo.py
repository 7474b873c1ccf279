"""Tags in a .nfo file beside the video, for Kodi, Jellyfin and Emby.

A local .nfo goes before what those programs find online, and can not be turned off in
Jellyfin. So tags are added to a file that is there, and one is made only when asked for.
Each tag of vtag says so itself (`<tag source="vtag">`): an attribute that the readers ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vtag.records import Tag
from vtag.sidecar_change import Change
from vtag.sidecar_xml import Document, Element, Unmergeable, one_line, parse, xml_text

# What one file can be. tvshow, season and artist are about folders.
ROOTS: Final = ("movie", "episodedetails", "musicvideo", "video")
_SOURCE: Final = ("", "source")


def merge_nfo(old: bytes | None, tags: Sequence[Tag], *, title: str | None = None) -> Change:
    """The file with exactly these tags from vtag, and all that others wrote.

    Args:
        old: the bytes that are there; None where there is no file.
        title: of a file to be made where there is none; None makes no file.

    Raises:
        Unmergeable: `old` is no .nfo in XML about one video.
    """
    if old is None and (title is None or not tags):
        return Change(None)
    base, before = _stripped(skeleton(title or "") if old is None else old)
    if before and not tags and title is not None and base == skeleton(title):
        return Change(None, taken=before)
    names = _names(tags)
    new, added = _filled(base, names)
    return Change(
        new,
        tuple(name for name in added if name not in before),
        tuple(name for name in before if name not in added),
    )


def remove_nfo(old: bytes, *, title: str) -> Change:
    """The file without vtag's tags: the very bytes from before where nobody else wrote.

    Args:
        title: of the file that vtag would have made; one that holds only that is to go.

    Raises:
        Unmergeable: `old` is no .nfo in XML about one video.
    """
    base, before = _stripped(old)
    return Change(None if before and base == skeleton(title) else base, taken=before)


def skeleton(title: str) -> bytes:
    """The smallest .nfo that the readers take."""
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    return f"{head}\n<movie>\n  <title>{xml_text(title)}</title>\n</movie>\n".encode()


def _names(tags: Sequence[Tag]) -> list[str]:
    names = dict.fromkeys(one_line(tag.name) or one_line(tag.id) for tag in tags)
    return [name for name in names if name]


def _read(data: bytes) -> Document:
    document = parse(data, trailing_text=True)
    root = document.root
    if not root.is_a("", *ROOTS):
        raise Unmergeable(f"is about a <{one_line(root.name)}>, not about one video")
    if root.closed:
        raise Unmergeable("is an empty element; delete it, it says nothing")
    return document


def _is_ours(element: Element) -> bool:
    return element.is_a("", "tag") and element.attributes.get(_SOURCE) == "vtag"


def _stripped(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    document = _read(data)
    ours = [element for element in document.root.children if _is_ours(element)]
    cuts = [(document.lead(element), element.end, "") for element in ours]
    return document.edited(cuts), tuple(one_line(element.text) for element in ours)


def _filled(base: bytes, names: list[str]) -> tuple[bytes, list[str]]:
    document = _read(base)
    children = document.root.children
    theirs = [element for element in children if element.is_a("", "tag")]
    present = {one_line(element.text).casefold() for element in theirs}
    new = [name for name in names if name.casefold() not in present]
    last = next(reversed(theirs or children), None)
    pad = document.space_before(last).decode() if last else ""
    at = last.end if last else document.root.inside
    text = "".join(f'{pad}<tag source="vtag">{xml_text(name)}</tag>' for name in new)
    return document.edited([(at, at, text)]), new
