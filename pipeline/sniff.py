"""Which container a file is, told from its first bytes and never from its name.

This comes before any decoder sees the file. FFmpeg also reads formats that are lists of other
files (playlists, ffconcat, DASH manifests, SDP), and those would let one file make the decoder
open another, or the network; decord's interface has no way to forbid them. So only binary
signatures are accepted, and PyAV is then told which demuxers it may use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vtag.errors import MediaError
from vtag.signatures import HEAD_BYTES, family_of, reads_as_text

_TEXT_NAMES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"#extm3u", "an HLS or M3U playlist"),
    (b"ffconcat", "an ffconcat script"),
    (b"file ", "a concat script"),
    (b"<mpd", "a DASH manifest"),
    (b"v=0", "an SDP session description"),
    (b"<?xml", "an XML file"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<smil", "a SMIL playlist"),
    (b"[playlist]", "a PLS playlist"),
    (b"webvtt", "subtitles"),
    (b"[script info]", "subtitles"),
    (b"#!", "a script"),
)

_UNKNOWN: Final = "bytes of no known format"


def sniff(path: Path) -> str:
    """Container family of a file: a key of `vtag.signatures.DEMUXERS`.

    Opens regular files only (a symlink to one is fine); a pipe or a device is refused before
    it is opened, so that nothing can hang here.

    Raises:
        MediaError: code vanished, unreadable, not_a_file, empty or not_media.
    """
    head = _head_of(path)
    if not head:
        raise MediaError(f"{path}: the file is empty; copy it again", code="empty")
    family = family_of(head)
    if family is None:
        raise MediaError(
            f"{path}: {_what_it_is(head)}, not video or sound; check what the file really is",
            code="not_media",
        )
    return family


def _head_of(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_a_file(path)
        # Non-blocking: between stat and open the file may have been replaced by a pipe.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        handle = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0))
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _not_a_file(path)
            return _read_up_to(file.read, HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise MediaError(f"{path}: no such file; was it moved?", code="vanished") from err
    except ValueError as err:  # a NUL in the name: no file can be called that
        raise MediaError(f"{path!r}: no such file ({err})", code="vanished") from err
    except OSError as err:
        if err.errno == errno.ENXIO:  # a socket
            raise _not_a_file(path) from err
        raise MediaError(f"{path}: can not be read ({err.strerror})", code="unreadable") from err


def _read_up_to(read: Callable[[int], bytes | None], wanted: int) -> bytes:
    parts: list[bytes] = []
    while wanted > 0 and (part := read(wanted)):
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


def _not_a_file(path: Path) -> MediaError:
    return MediaError(
        f"{path}: a folder, pipe, socket or device; name a regular file", code="not_a_file"
    )


def _what_it_is(head: bytes) -> str:
    if not reads_as_text(head):
        return _UNKNOWN
    start = head[:4096].lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").replace(b"\x00", b"").lower()
    for begins, name in _TEXT_NAMES:
        if start.startswith(begins):
            if b"<mpd" in start[:2048]:
                name = "a DASH manifest"
            return name
    return "a text file" if any(chr(byte).isalpha() for byte in start if byte < 128) else _UNKNOWN
