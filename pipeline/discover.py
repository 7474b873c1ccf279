"""Which files of a folder are inputs: every file of a media suffix, or with a media beginning."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtag.errors import ConfigError, MediaError
from vtag.shards import Shard
from vtag.sniff import sniff

__all__ = [
    "AUDIO_SUFFIXES",
    "MEDIA_SUFFIXES",
    "OTHER_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Discovery",
    "Shard",
    "find_inputs",
]

VIDEO_SUFFIXES: Final = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".h265",
        ".hevc",
        ".heic",
        ".heif",
        ".ivf",
        ".m1v",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".wtv",
        ".y4m",
    ]
)
AUDIO_SUFFIXES: Final = frozenset(
    [
        ".aac",
        ".ac3",
        ".aif",
        ".aiff",
        ".amr",
        ".ape",
        ".au",
        ".caf",
        ".flac",
        ".m4a",
        ".m4b",
        ".mka",
        ".mp2",
        ".mp3",
        ".oga",
        ".ogg",
        ".opus",
        ".wav",
        ".weba",
        ".wma",
        ".wv",
    ]
)
MEDIA_SUFFIXES: Final = VIDEO_SUFFIXES | AUDIO_SUFFIXES
# Never opened to look: a photo folder holds a hundred thousand of these beside its videos.
OTHER_SUFFIXES: Final = frozenset(
    [
        ".ass",
        ".bmp",
        ".cr2",
        ".csv",
        ".db",
        ".dng",
        ".doc",
        ".docx",
        ".gz",
        ".htm",
        ".html",
        ".idx",
        ".ini",
        ".jpeg",
        ".jpg",
        ".json",
        ".jsonl",
        ".log",
        ".lrv",
        ".md",
        ".nef",
        ".nfo",
        ".odt",
        ".parquet",
        ".pdf",
        ".png",
        ".py",
        ".raw",
        ".rtf",
        ".srt",
        ".ssa",
        ".sub",
        ".tar",
        ".thm",
        ".tif",
        ".tiff",
        ".txt",
        ".vtt",
        ".webp",
        ".xml",
        ".xmp",
        ".yaml",
        ".yml",
        ".zip",
        ".lock",
        # Not complete yet: programs that copy or load take this away when they are done.
        ".crdownload",
        ".download",
        ".filepart",
        ".part",
        ".partial",
        ".tmp",
    ]
)
# Where systems keep what was thrown away, old states of everything, and small pictures of it all.
PASSED_OVER: Final = frozenset(
    [
        "$recycle.bin",
        "recycler",
        "system volume information",
        ".trash",
        ".trashes",
        ".documentrevisions-v100",
        ".fseventsd",
        ".spotlight-v100",
        ".temporaryitems",
        ".thumbnails",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        ".snapshot",
        ".snapshots",
        ".stversions",
        ".zfs",
    ]
)
APPLE_DOUBLE: Final = bytes.fromhex("00051607")  # what macOS leaves as "._name" on foreign disks


@dataclass
class Discovery:
    """What a walk has met so far, besides the inputs that it yielded."""

    ignored: int = 0  # files that are no media by name and beginning
    folders: int = 0
    passed_over: int = 0  # folders of trash and the like
    warnings: list[str] = field(default_factory=list)


def find_inputs(
    sources: Sequence[str | Path], discovery: Discovery, *, shard: Shard | None = None
) -> Iterator[str]:
    """Paths to tag, in a stable order, as the user would write them.

    A source that is a folder is walked (links to folders are not followed, and what
    `is_passed_over` is not looked into); any other source is an input whatever its name, so that
    a missing or odd one ends in a record and not in silence. Inside a folder, what has a media
    suffix is an input even when it is a pipe, a device or an empty folder, for the same reason.

    Raises:
        ConfigError: no source given.
    """
    if not sources:
        raise ConfigError("nothing to tag: name at least one folder or file")
    seen: set[str] = set()  # only two sources can name one file twice
    for source in sources:
        text = os.path.normpath(os.fspath(source)) if os.fspath(source) else ""
        is_folder = bool(text) and os.path.isdir(text)
        names = _walk(text, discovery) if is_folder else iter([os.path.basename(text)])
        for name in names:
            if shard is not None and not shard.holds(name):
                continue
            path = text if not is_folder else os.path.join(text, name) if text != "." else name
            if len(sources) > 1:
                if path in seen:
                    continue
                seen.add(path)
            yield path


def _walk(root: str, discovery: Discovery) -> Iterator[str]:
    """Names relative to root, folder by folder, each sorted."""
    pending = [""]
    while pending:
        folder = pending.pop()
        discovery.folders += 1
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                listing = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as err:
            # The folder becomes an input: it fails with a record that names it, and the run's
            # exit status tells that something was not seen.
            discovery.warnings.append(f"{os.path.join(root, folder)}: {err.strerror}")
            yield folder or "."
            continue
        if not listing and _suffix(folder) in MEDIA_SUFFIXES:
            yield folder
        below = []
        for entry in listing:
            name = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if is_passed_over(entry.name):
                    discovery.passed_over += 1
                else:
                    below.append(name)
            elif is_input(entry.path):
                yield name
            else:
                discovery.ignored += 1
        pending.extend(reversed(below))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_passed_over(folder: str) -> bool:
    """Whether a folder of this name, met on a walk, is one of trash, old states or thumbnails."""
    name = folder.lower()
    return name in PASSED_OVER or name.startswith(".trash-")


def is_input(path: str) -> bool:
    """Whether a walk takes this file, by its name and, where that says nothing, its beginning."""
    name, suffix = os.path.basename(path), _suffix(path)
    if suffix in MEDIA_SUFFIXES:
        return not (name.startswith("._") and _is_apple_double(path))
    if suffix in OTHER_SUFFIXES:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        sniff(Path(path))
    except (MediaError, OSError):
        return False
    return True


def _is_apple_double(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(4) == APPLE_DOUBLE
    except OSError:
        return False
