"""Which streams of a file are used, and which files are refused by their header alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from vtag.errors import MediaError
from vtag.mp4_boxes import mp4_facts


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may claim before it is refused. Checked before anything is decoded."""

    max_pixels: int = 8192 * 8192
    max_seconds: float = 48 * 3600
    max_streams: int = 64  # video, sound and data; subtitles and attached fonts do not count
    max_packets: int = 20_000_000  # 48 h at 100 frames/s; 17 bytes each are kept


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Chosen:
    """The streams that are looked at and listened to, and what was left out."""

    video: VideoStream | None
    audio: AudioStream | None
    warnings: tuple[str, ...]


def choose_streams(path: Path, family: str, container: InputContainer, limits: Limits) -> Chosen:
    """The video and the audio stream to use: default ones first, then larger, then earlier.

    Cover art is no video.

    Raises:
        MediaError: encrypted, too_large, unsupported_codec or no_video_no_audio.
    """
    sound_is_locked = family == "mp4" and _is_sound_locked(path)
    videos = [s for s in container.streams.video if not is_cover_art(s)]
    sounds = list(container.streams.audio)
    if not videos and not sounds:
        raise MediaError(
            f"{path}: neither video nor sound in it", code="no_video_no_audio", stage="probe"
        )
    if any("enc_key_id" in stream.metadata for stream in (*videos, *sounds)):  # Matroska
        raise MediaError(f"{path}: the streams are encrypted", code="encrypted", stage="probe")
    good_videos = [s for s in videos if _has_decoder(s)]
    good_sounds = [s for s in sounds if _has_decoder(s) and not sound_is_locked]
    if not good_videos and sound_is_locked:
        raise MediaError(f"{path}: the sound is encrypted", code="encrypted", stage="probe")
    if not good_videos and not good_sounds:
        raise MediaError(
            f"{path}: no decoder for any of its streams", code="unsupported_codec", stage="probe"
        )
    _check_limits(path, container.streams, good_videos, limits)
    warnings = []
    if videos and not good_videos:
        warnings.append("no decoder for the video; only the sound was used")
    if sounds and not good_sounds:
        why = "the sound is encrypted" if sound_is_locked else "no decoder for the sound"
        warnings.append(f"{why}; only the pictures were used")
    return Chosen(
        max(good_videos, key=_merit, default=None),
        max(good_sounds, key=_merit, default=None),
        tuple(warnings),
    )


def is_cover_art(stream: Stream) -> bool:
    """Whether a video stream is a picture attached to the file, such as an album cover."""
    return stream.type == "video" and bool(
        stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
    )


def check_picture_size(path: Path, size: tuple[int, int], limits: Limits) -> None:
    """Raises MediaError too_large for pictures of more than `limits.max_pixels`."""
    if size[0] * size[1] > limits.max_pixels:
        raise MediaError(
            f"{path}: pictures of {size[0]}x{size[1]}, the limit is {limits.max_pixels} pixels",
            code="too_large",
            stage="probe",
        )


def prepare_video(stream: VideoStream, limits: Limits = DEFAULT_LIMITS) -> None:
    """Settings of a video stream's decoder, before its first picture.

    One thread: frame threads would hand pictures out late, after the packet whose skip mode
    they depend on. The limit on pixels holds for the decoder too: pictures may grow after the
    header.
    """
    context = stream.codec_context
    context.thread_type = "NONE"
    context.thread_count = 1
    context.options = {**context.options, "max_pixels": str(limits.max_pixels)}


def _check_limits(
    path: Path, streams: Iterable[Stream], videos: list[VideoStream], limits: Limits
) -> None:
    counted = [s for s in streams if s.type in ("video", "audio", "data") and not is_cover_art(s)]
    if len(counted) > limits.max_streams:
        raise MediaError(
            f"{path}: {len(counted)} streams, the limit is {limits.max_streams}; copy those that "
            "matter into a file of their own",
            code="too_large",
            stage="probe",
        )
    for stream in videos:
        context = stream.codec_context
        check_picture_size(path, (context.width, context.height), limits)


def _has_decoder(stream: Stream) -> bool:
    # PyAV gives no context to a stream whose codec it has no decoder for.
    return getattr(stream, "codec_context", None) is not None


def _merit(stream: VideoStream | AudioStream) -> tuple[bool, int, int]:
    area = 0
    if isinstance(stream, VideoStream):
        area = stream.codec_context.width * stream.codec_context.height
    return bool(stream.disposition & Disposition.default), area, -stream.index


def _is_sound_locked(path: Path) -> bool:
    try:
        facts = mp4_facts(path)
    except OSError as err:
        raise MediaError(f"{path}: can not be read ({err.strerror})", code="unreadable") from err
    if facts.locked_video:
        # FFmpeg opens some of these and decodes them to noise.
        raise MediaError(f"{path}: the video is encrypted", code="encrypted", stage="probe")
    return facts.locked_sound
