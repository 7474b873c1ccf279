"""What a file holds and when, without decoding more than one picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vtag.container import explain, open_container, packets_of, unusable
from vtag.decord_fit import why_not_decord
from vtag.errors import MediaError
from vtag.h264_units import begins_with_idr, length_bytes
from vtag.orientation import Orientation
from vtag.packet_table import PacketLog, PacketTable, build_table
from vtag.records import Media
from vtag.sniff import sniff
from vtag.stream_choice import (
    DEFAULT_LIMITS,
    Chosen,
    Limits,
    check_picture_size,
    choose_streams,
    prepare_video,
)

log = logging.getLogger(__name__)

# Sound that starts so little before the picture is the encoder's run-in, not an offset.
_SAME_START_SECONDS: Final = 0.1
_KEYS_TRIED: Final = 8  # pictures tried before the header's word is taken for size and orientation


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One media file, looked at but not decoded.

    Attributes:
        path: where it lies.
        family: container, a key of `vtag.signatures.DEMUXERS`.
        media: facts for the record.
        video_index: number of the stream that is looked at, None without pictures.
        audio_index: number of the stream that is listened to, None without sound.
        table: packets of the video stream (empty without pictures).
        origin: seconds on the file's own clock that are 0 on vtag's.
        orientation: how decoded pictures must be turned and mirrored to stand upright.
        size: width and height of decoded pictures, before that.
        pixel_aspect: width of a pixel by its height, before that.
        decord_reason: why decord can not be trusted with this file; empty if it can.
        warnings: what the owner of the file should know.
    """

    path: Path
    family: str
    media: Media
    video_index: int | None
    audio_index: int | None
    table: PacketTable
    origin: Fraction
    orientation: Orientation
    size: tuple[int, int]
    pixel_aspect: Fraction
    decord_reason: str
    warnings: tuple[str, ...] = ()

    @property
    def decord_fit(self) -> bool:
        """Whether decord was measured to give the right pictures for files like this one."""
        return not self.decord_reason

    @property
    def first_picture_seconds(self) -> float:
        """When the first picture is shown, on vtag's clock."""
        if not len(self.table.shown):
            return 0.0
        return float(int(self.table.shown_ticks[0]) * self.table.time_base - self.origin)


def probe(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Probe:
    """Looks a file over: streams, size, and the times of all its packets.

    Raises:
        MediaError: any code of opening or probing (see `vtag.errors.ERROR_CODES`); nothing but
            a MediaError for any content of the file.
    """
    family = sniff(path)
    with open_container(path, family) as container:
        chosen = choose_streams(path, family, container, limits)
        found = _read_packets(path, family, container, chosen, limits)
        warnings = [*chosen.warnings, *found.warnings]
        video, audio = chosen.video, chosen.audio
        table = build_table(found.pictures, time_base=_time_base(video), family=family)
        size = found.first.size
        if video is not None and size == (0, 0):
            size = video.codec_context.width, video.codec_context.height
        if video is not None and (not len(table.shown) or 0 in size):
            video, size = None, (0, 0)
            table = build_table(PacketLog(), time_base=Fraction(1), family=family)
            warnings.append("the video stream holds no picture; only the sound was used")
        if audio is not None and not found.sound.packets:
            audio = None
            warnings.append("the audio stream is empty")
        if video is None and audio is None:
            raise unusable(path, family, "streams without data", stage="probe", cut=True)
        check_picture_size(path, size, limits)
        origin, duration = _clock(table, found.sound, audio)
        _check_duration(path, duration, limits)
        orientation = found.first.orientation if video is not None else Orientation()
        shown_size = size[::-1] if orientation.transposed else size
        media = _media(video, audio, table, duration, shown_size)
        return Probe(
            path=path,
            family=family,
            media=media,
            video_index=video.index if video is not None else None,
            audio_index=audio.index if audio is not None else None,
            table=table,
            origin=origin,
            orientation=orientation,
            size=size,
            pixel_aspect=_pixel_aspect(video),
            decord_reason=why_not_decord(
                path,
                family,
                media,
                table,
                first_size=found.first.size,
                orientation=orientation,
                gradual_starts=found.gradual_starts,
            ),
            warnings=tuple(warnings),
        )


@dataclass
class _SoundSpan:
    """From when to when the sound lasts, in ticks, and how many packets say so."""

    first: int | None = None
    end: int = 0
    packets: int = 0

    def add(self, packet: Packet[Stream], stream: AudioStream | None) -> None:
        self.packets += 1
        if packet.pts is None or packet.is_discard:
            return
        if self.first is None:  # not the least of all: the clock of a broadcast may jump back
            self.first = packet.pts + _run_in_ticks(packet, stream)
        self.end = max(self.end, packet.pts + (packet.duration or 0))


def _run_in_ticks(packet: Packet[Stream], stream: AudioStream | None) -> int:
    """Ticks at the start of a packet that the decoder drops: the encoder's run-in.

    The first four bytes of this side data count them in samples (FFmpeg, packet.h).
    """
    if stream is None or not stream.time_base or not packet.has_sidedata("skip_samples"):
        return 0
    skipped = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
    rate = stream.codec_context.sample_rate
    return round(skipped / (rate * stream.time_base)) if rate and skipped < rate else 0


@dataclass
class _FirstPicture:
    """Size and orientation, from the first key frame that can be decoded."""

    tries_left: int = _KEYS_TRIED
    size: tuple[int, int] = (0, 0)
    orientation: Orientation = field(default_factory=Orientation)

    def look(self, stream: VideoStream, packet: Packet[Stream]) -> None:
        """Decodes one key packet on its own; what can not be decoded is left to later."""
        if not self.tries_left:
            return
        self.tries_left -= 1
        context = stream.codec_context
        frames: list[VideoFrame] = []
        try:
            frames = [*context.decode(packet), *context.decode(None)]
        except av.error.FFmpegError:
            log.debug("key packet at %s can not be decoded on its own", packet.pts)
        context.flush_buffers()
        if frames:
            self.tries_left = 0
            self.size = frames[0].width, frames[0].height
            self.orientation = Orientation.of(frames[0])


@dataclass
class _Found:
    """What one pass over the packets collects."""

    pictures: PacketLog = field(default_factory=PacketLog)
    sound: _SoundSpan = field(default_factory=_SoundSpan)
    first: _FirstPicture = field(default_factory=_FirstPicture)
    gradual_starts: int = 0  # key packets at which a picture only begins to build up
    warnings: list[str] = field(default_factory=list)


def _read_packets(
    path: Path, family: str, container: InputContainer, chosen: Chosen, limits: Limits
) -> _Found:
    found = _Found()
    pictures, sound, video = found.pictures, found.sound, chosen.video
    unit_length = 0
    if video is not None:
        prepare_video(video, limits)
        if video.codec_context.name == "h264":
            unit_length = length_bytes(video.codec_context.extradata)
    failures: list[av.error.FFmpegError] = []
    wanted = [stream for stream in (video, chosen.audio) if stream is not None]
    for packet in packets_of(container, *wanted, failures=failures):
        if video is not None and packet.stream_index == video.index:
            pictures.add(
                packet.pts,
                packet.dts,
                packet.duration,
                key=packet.is_keyframe,
                discard=packet.is_discard,
            )
            if packet.is_keyframe:
                found.first.look(video, packet)
                if unit_length and not begins_with_idr(memoryview(packet), unit_length):
                    found.gradual_starts += 1
        else:
            sound.add(packet, chosen.audio)
        if len(pictures) + sound.packets > limits.max_packets:
            raise MediaError(
                f"{path}: more than {limits.max_packets} packets; cut the file into parts",
                code="too_large",
                stage="probe",
            )
    if failures:
        found.warnings.append(f"reading stopped early: {failures[0].strerror}")
        if not len(pictures) and not sound.packets:
            raise explain(path, family, failures[0], stage="probe") from failures[0]
    return found


def _time_base(video: VideoStream | None) -> Fraction:
    return Fraction(video.time_base) if video is not None and video.time_base else Fraction(1)


def _clock(
    table: PacketTable, sound: _SoundSpan, audio: AudioStream | None
) -> tuple[Fraction, float]:
    """Where 0 is on the file's own clock, and how many seconds follow it."""
    starts: list[Fraction] = []
    ends: list[Fraction] = []
    if len(table.shown):
        starts.append(int(table.shown_ticks[0]) * table.time_base)
        ends.append(table.end * table.time_base)
    if audio is not None and sound.first is not None and audio.time_base:
        start = sound.first * Fraction(audio.time_base)
        if not starts or abs(start - starts[0]) > _SAME_START_SECONDS:
            starts.append(start)
        # A joined transport stream repeats its clock: then only the pictures' time is known.
        if not table.jumps:
            ends.append(sound.end * Fraction(audio.time_base))
    origin = min(starts, default=Fraction(0))
    return origin, max(0.0, float(max(ends, default=origin) - origin))


def _pixel_aspect(video: VideoStream | None) -> Fraction:
    aspect = video.sample_aspect_ratio if video is not None else None
    # Beyond 4:1 it is a header's slip and not an anamorphic lens.
    return Fraction(aspect) if aspect and Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def _check_duration(path: Path, duration: float, limits: Limits) -> None:
    if duration > limits.max_seconds:
        raise MediaError(
            f"{path}: {duration / 3600:.1f} h long, the limit is {limits.max_seconds / 3600:g} h; "
            "cut the file into parts",
            code="too_large",
            stage="probe",
        )


def _media(
    video: VideoStream | None,
    audio: AudioStream | None,
    table: PacketTable,
    duration: float,
    shown_size: tuple[int, int],
) -> Media:
    sound_codec = audio.codec_context.codec.canonical_name if audio is not None else None
    if video is None:
        return Media(duration=duration, audio_codec=sound_codec, has_audio=audio is not None)
    length = float((table.end - int(table.shown_ticks[0])) * table.time_base)
    return Media(
        duration=duration,
        fps=len(table.shown) / length,
        width=shown_size[0],
        height=shown_size[1],
        video_codec=video.codec_context.codec.canonical_name,
        audio_codec=sound_codec,
        has_video=True,
        has_audio=audio is not None,
    )
