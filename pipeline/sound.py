"""The sound of a file as 16 kHz mono, in windows, on the clock of the pictures.

PyAV only: decord reads sound late by 1 ms and fails as a whole on a file without any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Stream
from numpy.typing import NDArray

from vtag.container import open_container, packets_of, read_only, unusable
from vtag.decode_report import DecodeReport
from vtag.errors import MediaError
from vtag.packet_table import LARGEST_GAP_SECONDS
from vtag.probe import Probe
from vtag.records import Sound

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ: Final = 16_000
_GAP_SECONDS: Final = 0.1  # smaller ones are rounding of the container's clock
_LONGEST_SILENCE_SECONDS: Final = 60.0  # a longer gap starts a new window at its own time
# A header that says 1 Hz would turn one packet into hours of sound, and gigabytes.
_SLOWEST_HZ, _FASTEST_HZ = 1000, 1_000_000
_FULL_SCALE: Final = 32768.0


def read_sound(
    probe: Probe, *, window_seconds: float = 9.6, report: DecodeReport | None = None
) -> Iterator[Sound]:
    """Windows of sound that follow each other without a gap; the last one may be shorter.

    Silence stands where the file has none for more than 0.1 s, so that times stay true; a gap of
    more than a minute is skipped instead, and the next window says so by its `start`. Channels
    are mixed down evenly. Damaged packets are left out and counted.

    Yields:
        Sound of `window_seconds` each (9.6 s are ten segments of VGGish). Nothing for a file
        without sound.

    Raises:
        MediaError: stage "audio"; there is a sound stream but nothing in it can be decoded
            (corrupt, truncated, encrypted), resampled (unsupported_codec), or it is shorter than
            the resampler's filter (no_video_no_audio).
    """
    if probe.audio_index is None:
        return
    report = report if report is not None else DecodeReport()
    windows = _Windows(max(1, round(window_seconds * SAMPLE_RATE_HZ)))
    line = _TimeLine(windows, probe, report)
    for frame in _frames(probe, report):
        yield from line.add(frame)
    yield from line.finish()
    if not windows.given:
        raise _why_silent(probe, line)


def _why_silent(probe: Probe, line: _TimeLine) -> MediaError:
    if line.frames:
        return MediaError(
            f"{probe.path}: less sound than can be resampled (about "
            f"{1000 * probe.media.duration:.0f} ms); nothing to tag here",
            code="no_video_no_audio",
            stage="audio",
        )
    if line.refused:
        return MediaError(
            f"{probe.path}: sound of {line.refused} is not read; convert it to stereo at 48000 Hz",
            code="unsupported_codec",
            stage="audio",
        )
    return unusable(probe.path, probe.family, "no sound can be decoded", stage="audio", cut=False)


def _frames(probe: Probe, report: DecodeReport) -> Iterator[AudioFrame]:
    with open_container(probe.path, probe.family) as container:
        stream = container.streams[probe.audio_index or 0]
        assert isinstance(stream, AudioStream)
        read_only(container, probe.family, stream)
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        failures: list[av.error.FFmpegError] = []
        for packet in packets_of(container, stream, failures=failures):
            yield from _decoded(stream, packet, report)
        yield from _decoded(stream, None, report)
        for err in failures:
            report.warn(f"the sound could not be read to its end: {err.strerror}")


def _decoded(
    stream: AudioStream, packet: Packet[Stream] | None, report: DecodeReport
) -> list[AudioFrame]:
    try:
        return stream.codec_context.decode(packet)
    except MemoryError as err:
        raise MediaError(
            f"{stream.container.name}: the decoder ran out of memory", code="oom", stage="audio"
        ) from err
    except av.error.FFmpegError as err:
        log.debug("sound packet: %s", err.strerror)
        report.damaged_audio += packet is not None
        return []


class _TimeLine:
    """Puts decoded frames where they belong in time."""

    def __init__(self, windows: _Windows, probe: Probe, report: DecodeReport) -> None:
        self._windows = windows
        self._probe = probe
        self._report = report
        self._resampler: AudioResampler | None = None
        self._shape: tuple[str, str, int] | None = None
        self._shift = Fraction(0)  # seconds added to the file's times, after a jump of its clock
        self._now: Fraction | None = None  # when the next frame should begin
        self._joins = probe.family in ("mpegts", "mpegps")
        self.frames = 0
        self.refused = ""  # what kind of sound was decoded but can not be used

    def add(self, frame: AudioFrame) -> Iterator[Sound]:
        if not frame.samples:
            return
        if not _SLOWEST_HZ <= frame.sample_rate <= _FASTEST_HZ:
            self._report.damaged_audio += 1
            self.refused = f"{frame.sample_rate} Hz"
            return
        begins = self._begin_of(frame)
        if self._now is None:
            self._now = begins
            yield from self._windows.jump(float(begins))
        late = begins - self._now
        if abs(late) > _GAP_SECONDS:
            if self._joins and not 0 < late < LARGEST_GAP_SECONDS:
                self._shift -= late
            elif late > 0:
                yield from self._flush()
                yield from self._windows.silence(float(late))
                self._now = begins
            else:
                return  # heard already
        self._now += Fraction(frame.samples, frame.sample_rate)
        yield from self._resampled(frame)

    def finish(self) -> Iterator[Sound]:
        yield from self._flush()
        yield from self._windows.finish()

    def _begin_of(self, frame: AudioFrame) -> Fraction:
        if frame.pts is None or frame.time_base is None:
            return self._now if self._now is not None else Fraction(0)
        return frame.pts * Fraction(frame.time_base) - self._probe.origin + self._shift

    def _resampled(self, frame: AudioFrame) -> Iterator[Sound]:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:  # also in the middle: broadcasts switch from stereo to 5.1
            yield from self._flush()
            self._shape = shape
            self._resampler = AudioResampler("s16", "mono", SAMPLE_RATE_HZ)
        assert self._resampler is not None
        try:
            pieces = self._resampler.resample(frame)
        except (av.error.FFmpegError, ValueError) as err:  # channels that no layout has a name for
            log.debug("sound frame can not be resampled: %s", err)
            self._report.damaged_audio += 1
            self.refused = f"{len(frame.layout.channels)} channels"
            self._resampler = self._shape = None
            return
        self.frames += 1
        for piece in pieces:
            yield from self._windows.add(_samples_of(piece))

    def _flush(self) -> Iterator[Sound]:
        if self._resampler is not None:
            for piece in self._resampler.resample(None):
                yield from self._windows.add(_samples_of(piece))
        self._resampler = self._shape = None


def _samples_of(frame: AudioFrame) -> NDArray[np.float32]:
    return frame.to_ndarray().reshape(-1).astype(np.float32) / np.float32(_FULL_SCALE)


class _Windows:
    """Cuts a stream of samples into windows of equal length."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._parts: list[NDArray[np.float32]] = []
        self._held = 0
        self._start = 0.0
        self._skip = 0
        self.given = 0

    def jump(self, start: float) -> Iterator[Sound]:
        """What is held so far; the next sample is at `start`. What is before 0 is dropped."""
        yield from self.finish()
        self._skip = max(0, round(-start * SAMPLE_RATE_HZ))
        self._start = max(0.0, start)

    def silence(self, seconds: float) -> Iterator[Sound]:
        if seconds > _LONGEST_SILENCE_SECONDS:
            yield from self.jump(self._start + self._held / SAMPLE_RATE_HZ + seconds)
        else:
            yield from self.add(np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32))

    def add(self, samples: NDArray[np.float32]) -> Iterator[Sound]:
        if self._skip:
            dropped = min(self._skip, len(samples))
            samples, self._skip = samples[dropped:], self._skip - dropped
        while self._held + len(samples) >= self._length:
            cut = self._length - self._held
            yield self._give([*self._parts, samples[:cut]])
            samples = samples[cut:]
        if len(samples):
            self._parts.append(samples)
            self._held += len(samples)

    def finish(self) -> Iterator[Sound]:
        if self._held:
            yield self._give(self._parts)

    def _give(self, parts: list[NDArray[np.float32]]) -> Sound:
        sound = Sound(np.concatenate(parts), self._start)
        self._start += len(sound.samples) / SAMPLE_RATE_HZ
        self._parts, self._held = [], 0
        self.given += 1
        return sound
