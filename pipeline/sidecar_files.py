"""Where the sidecars of a video are, and how one is read and written."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from vtag.discover import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from vtag.sidecar_xml import MAX_BYTES, Unmergeable
from vtag.sidecar_xmp import extension_served
from vtag.storage import open_regular, remove, write_whole

# Files that go with a video of the same stem, and that `clip.xmp` is not about.
COMPANIONS: Final = frozenset(
    (".xmp", ".nfo", ".xml", ".json", ".txt", ".csv", ".md5", ".sha256", ".thm", ".bak")
) | {".vtt", ".srt", ".ass", ".ssa", ".sub", ".idx", ".sup"}


class Siblings:
    """The files of a folder by stem; remembers the last folder, as records come in order."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._suffixes: dict[str, set[str]] = {}

    def suffixes(self, path: Path) -> frozenset[str]:
        """Suffixes in lower case of other files in its folder with the stem of `path`.

        Raises:
            OSError: the folder can not be read.
        """
        if path.parent != self._folder:
            self._suffixes = {}
            for name in os.listdir(path.parent):
                stem, suffix = os.path.splitext(name)
                self._suffixes.setdefault(stem, set()).add(suffix)
            self._folder = path.parent
        stem, suffix = os.path.splitext(path.name)
        others = self._suffixes.get(stem, set()) - {suffix, ""}
        return frozenset(one.lower() for one in others)


@dataclass(frozen=True)
class Existing:
    """What is at the place of a sidecar; `data` is None where there is nothing."""

    path: Path
    data: bytes | None
    state: tuple[int, ...] = ()


def look(path: Path) -> Existing:
    """The file at `path`.

    Raises:
        OSError: it can not be read.
        Unmergeable: it is a symbolic link or no regular file, or too large to be a sidecar.
    """
    if not os.path.lexists(path):
        return Existing(path, None)
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise Unmergeable(
            "is a symbolic link, which vtag does not follow; put the file itself there, or "
            "remove the link"
        )
    if not stat.S_ISREG(mode):
        raise Unmergeable("is no regular file; move it away")
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        data = _content(file)
    if len(data) > MAX_BYTES:
        raise Unmergeable(f"is larger than {MAX_BYTES >> 20} MB and was not read")
    return Existing(path, data, state)


def put(existing: Existing, data: bytes | None) -> None:
    """Replaces what was looked at; None deletes it.

    Raises:
        OSError: it can not be written; then the old file is there.
        Unmergeable: it changed since it was looked at.
    """
    path = existing.path
    if data is not None and len(data) > MAX_BYTES:
        raise Unmergeable(f"would become larger than {MAX_BYTES >> 20} MB")
    now = _state(os.lstat(path)) if os.path.lexists(path) else ()
    if now != existing.state:
        raise Unmergeable("was changed by another program just now; run again")
    if data is not None:
        write_whole(path, data, mode=None)
    elif existing.data is not None:
        remove(path)


def may_hold_ours(path: Path) -> bool:
    """Whether vtag may have written into the file, or into the one that a link there leads to.

    Whatever it writes bears its name, in each format; a file without that, readable as XML or
    not, has nothing to take out. True where that can not be told.
    """
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            data = _content(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    # UTF-16 has a zero between two letters.
    return len(data) > MAX_BYTES or b"vtag" in data.replace(b"\0", b"")


def find_video(path: str, folders: Sequence[Path]) -> Path | None:
    """The file that a record is about: below the first of `folders` that has it."""
    for folder in folders:
        video = folder / path
        try:
            if stat.S_ISREG(os.stat(video).st_mode):
                return video
        except (OSError, ValueError):  # ValueError: a name that no file can have
            continue
    return None


def xmp_places(video: Path, siblings: Siblings) -> tuple[Path, list[Path]]:
    """Where a video's tags go, and the other XMP files of its name that are there.

    `clip.mp4.xmp` is the name that digiKam, darktable and Immich write. Lightroom writes
    `clip.xmp`. Immich reads the first if there are both (immich-app/immich, pull requests 7813
    and 8186), so making a `clip.mp4.xmp` would hide what a `clip.xmp` says. Hence that one is
    added to where it is the video's only one and not about another file, `clip.jpg` say.

    Raises:
        OSError, Unmergeable: `clip.xmp` is there and can not be read.
    """
    own = _existing(video, f"{video.name}.xmp", f"{video.name}.XMP")
    shared = _existing(video, f"{video.stem}.xmp", f"{video.stem}.XMP") if video.suffix else None
    if own is not None:
        return own, [shared] if shared else []
    if shared is None:
        return video.with_name(f"{video.name}.xmp"), []
    said = extension_served(look(shared).data or b"")
    if said is not None:
        serves = said.lower().lstrip(".") == video.suffix.lower().lstrip(".")
    else:
        serves = siblings.suffixes(video) <= COMPANIONS
    return (shared, []) if serves else (video.with_name(f"{video.name}.xmp"), [shared])


def nfo_place(video: Path, siblings: Siblings, *, create: bool) -> Path | None:
    """The .nfo of a video, `clip.nfo`; None where there is none and none is to be made.

    Raises:
        OSError: the folder can not be read.
        Unmergeable: the file is that of several videos.
    """
    path = existing_nfo(video)
    if path is None and not create:
        return None
    others = siblings.suffixes(video) & (VIDEO_SUFFIXES | AUDIO_SUFFIXES)
    if others:
        raise Unmergeable(f"is that of {video.name} and of {video.stem}{min(others)} alike")
    return path or video.with_name(f"{video.stem}.nfo")


def existing_nfo(video: Path) -> Path | None:
    """The .nfo that has the name of the video; None where there is none."""
    return _existing(video, f"{video.stem}.nfo", f"{video.stem}.NFO")


def webvtt_place(video: Path) -> Path:
    """The track of a video; `.vtag` keeps it apart from its subtitles."""
    return video.with_name(f"{video.name}.vtag.vtt")


def _content(file: FileIO) -> bytes:
    """All of a file, or its first `MAX_BYTES` + 1 bytes."""
    data = b""
    while len(data) <= MAX_BYTES and (more := file.read(MAX_BYTES + 1 - len(data))):
        data += more
    return data


def _existing(video: Path, *names: str) -> Path | None:
    paths = (video.with_name(name) for name in names)
    return next((path for path in paths if os.path.lexists(path)), None)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
