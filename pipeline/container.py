"""Opens a media file with PyAV so that it can reach nothing but itself, and explains failures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import av
import av.error
import av.logging
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from vtag.errors import MediaError
from vtag.mp4_boxes import Mp4Facts, mp4_facts
from vtag.signatures import DEMUXERS

# PyAV's log callback takes Python's lock from inside FFmpeg, which has deadlocked; what FFmpeg
# has to say arrives as exceptions anyway.
av.logging.set_level(None)

# Containers that know where each of their packets lies, and so can be entered anywhere.
INDEXED: Final = frozenset({"mp4", "matroska"})

_TRUNCATED: Final = (av.error.EOFError,)


@contextmanager
def open_container(path: Path, family: str) -> Iterator[InputContainer]:
    """An open file, closed at the end.

    Only the demuxers of `family` may look at it and only the file protocol is allowed, so that
    what is read is this file. The absolute path keeps FFmpeg from taking `12:30.mp4` for a
    protocol or `-i.mp4` for an option.

    Raises:
        MediaError: not readable as what it claims to be; the code says why.
    """
    options = {"format_whitelist": DEMUXERS[family], "protocol_whitelist": "file"}
    try:
        container = av.open(
            "file:" + os.path.realpath(path), container_options=options, metadata_errors="ignore"
        )
    except (av.error.FFmpegError, ValueError) as err:
        # ValueError: PyAV met something in the header that it has no name for.
        raise explain(path, family, err, stage="open") from err
    with container:
        yield container


def read_only(container: InputContainer, family: str, *streams: Stream) -> None:
    """Tells the demuxer to skip what the other streams hold, where it then reads less.

    Only in containers with an index: elsewhere times are worked out from all packets.
    """
    discard = getattr(av.stream, "Discard", None)  # PyAV 18 and later
    if family not in INDEXED or discard is None:
        return
    kept = {stream.index for stream in streams}
    for other in container.streams:
        if other.index not in kept:
            other.discard = discard.all


def packets_of(
    container: InputContainer, *streams: Stream, failures: list[av.error.FFmpegError]
) -> Iterator[Packet[Stream]]:
    """The packets of some streams that carry data, in the order of the file.

    A read error ends the packets, as the end of the file does, and is put into `failures`.
    Empty packets are left out: one would put the decoder into its draining state, and it would
    refuse what comes after; FFmpeg ends every stream with one.
    """
    while True:
        try:
            for packet in container.demux(*streams):
                if packet.size:
                    yield packet
            return
        except IndexError:
            # PyAV knows the streams of the header only. A broadcast may start another one
            # later; its first packet ends `demux`, which can be taken up again behind it.
            continue
        except av.error.FFmpegError as err:
            failures.append(err)
            return


def explain(path: Path, family: str, err: Exception, *, stage: str) -> MediaError:
    """The `MediaError` that says what an error of FFmpeg means for this file."""
    said = getattr(err, "strerror", None) or str(err)
    if isinstance(err, MemoryError):
        return MediaError(f"{path}: {said} while reading it", code="oom", stage=stage)
    if isinstance(err, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError)):
        return MediaError(
            f"{path}: FFmpeg can not decode this ({said})", code="unsupported_codec", stage=stage
        )
    if isinstance(err, av.error.FileNotFoundError):
        return MediaError(f"{path}: gone before it was opened", code="vanished", stage=stage)
    if isinstance(err, (av.error.PermissionError, av.error.OSError)) and not isinstance(
        err, (av.error.InvalidDataError, av.error.EOFError)
    ):
        return MediaError(f"{path}: can not be read ({said})", code="unreadable", stage=stage)
    return unusable(path, family, said, stage=stage, cut=isinstance(err, _TRUNCATED))


def unusable(path: Path, family: str, said: str, *, stage: str, cut: bool) -> MediaError:
    """The `MediaError` for a file that yields nothing: encrypted, cut short, or damaged.

    Args:
        said: FFmpeg's own words, or what was missed.
        cut: the decoder ran into the end of the file.
    """
    facts = _facts(path) if family == "mp4" else None
    if facts and (facts.locked_video or facts.locked_sound):
        return MediaError(f"{path}: encrypted ({said})", code="encrypted", stage=stage)
    if facts and not facts.has_index:
        return MediaError(
            f"{path}: the index (moov) is missing, the file was cut off or is an init-less "
            f"fragment ({said}); copy it again",
            code="truncated",
            stage=stage,
        )
    if cut or (facts and (facts.cut_short or not facts.has_media)):
        return MediaError(
            f"{path}: ends before anything could be decoded ({said}); copy it again",
            code="truncated",
            stage=stage,
        )
    return MediaError(f"{path}: damaged ({said}); copy it again", code="corrupt", stage=stage)


def _facts(path: Path) -> Mp4Facts | None:
    try:
        return mp4_facts(path)
    except OSError:
        return None
