"""Sidecars whose video is gone: it was moved or deleted, and no record names them any more.

They are known by what is in them. Only one that vtag alone wrote is given, of which taking
out what vtag wrote leaves nothing; one that holds anything of others is theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vtag.sidecar_change import Change
from vtag.sidecar_files import COMPANIONS, Existing, look
from vtag.sidecar_nfo import remove_nfo
from vtag.sidecar_webvtt import remove_webvtt
from vtag.sidecar_xml import Unmergeable
from vtag.sidecar_xmp import remove_xmp

# What stands behind the name that a sidecar of each format is about.
_ENDINGS: Final = {"xmp": ".xmp", "nfo": ".nfo", "vtt": ".vtag.vtt"}


@dataclass(frozen=True)
class Orphan:
    """A sidecar that vtag alone wrote and whose video is gone; `change` deletes it."""

    format: str
    existing: Existing
    change: Change


def orphans_in(folder: Path, formats: Sequence[str]) -> Iterator[Orphan]:
    """The orphans among the files of a folder, in the order of their names.

    Args:
        formats: of "xmp", "nfo" and "vtt".

    Raises:
        OSError: the folder can not be read.
    """
    names = set(os.listdir(folder))
    # Anything else of the name `clip` may be what `clip.nfo` or `clip.xmp` is about.
    taken = {
        stem
        for stem, suffix in map(os.path.splitext, names)
        if suffix and suffix.lower() not in COMPANIONS
    }
    for name in sorted(names):
        for format_ in formats:
            about = name[: -len(_ENDINGS[format_])]
            if not about or not name.lower().endswith(_ENDINGS[format_]):
                continue
            if about not in taken and not _is_there(folder / about, names):
                yield from _own(folder / name, format_, about)


def _is_there(path: Path, names: Collection[str]) -> bool:
    # Asking the disk too: where case does not matter `CLIP.MP4` is the video of clip.mp4.xmp.
    return path.name in names or os.path.lexists(path)


def _own(path: Path, format_: str, about: str) -> Iterator[Orphan]:
    removers: dict[str, Callable[[bytes], Change]] = {
        "xmp": remove_xmp,
        "nfo": lambda data: remove_nfo(data, title=about),
        "vtt": remove_webvtt,
    }
    try:
        existing = look(path)
        if existing.data is None:
            return
        change = removers[format_](existing.data)
    except (OSError, Unmergeable):
        return  # not known to be vtag's
    if change.data is None:
        yield Orphan(format_, existing, change)
