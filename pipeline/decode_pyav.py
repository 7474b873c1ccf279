"""Sampled pictures with PyAV: exact, on every file that FFmpeg reads, and with little work.

Three ways to the same pictures:

* `_key_frames`: each wanted key packet is decoded on its own.
* `_walk`: per group of pictures, decode no further than the last wanted one, and let the decoder
  drop pictures that are neither wanted nor needed by others. Stretches in which nothing is wanted
  are leapt over (`decode_seek`).
* `_linear`: decode everything. For files whose packets do not tell when a picture is shown, and
  where the walk misses a picture.

What is damaged is skipped packet by packet: a picture that can not be decoded is replaced by the
last one before it, as a player does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vtag.container import open_container, read_only, unusable
from vtag.decode_report import DecodeReport
from vtag.decode_seek import SeekMissed, leaps, numbered_packets
from vtag.decode_walk import WANTED, drain_points, walk_roles
from vtag.errors import MediaError
from vtag.packet_table import LARGEST_GAP_SECONDS, PacketTable
from vtag.picture import PictureMaker
from vtag.plan import Plan
from vtag.probe import Probe
from vtag.records import Frames
from vtag.stream_choice import prepare_video

log = logging.getLogger(__name__)

# Codecs with packets that hold a picture nobody sees (VP8's alternate reference): a wanted one
# does not come out, and nothing is wrong.
_HIDDEN_PICTURES: Final = frozenset({"vp8", "vp9", "av1"})


class _PictureMissing(Exception):
    """The walk did not get a picture that the packets promised."""


def read_frames_pyav(
    probe: Probe, plan: Plan, *, report: DecodeReport, batch: int
) -> Iterator[Frames]:
    """Batches of pictures in order of time; memory does not grow with the video.

    Raises:
        MediaError: not one picture could be decoded.
    """
    if not len(plan):
        return
    make = PictureMaker(probe)
    any_picture = False
    pixels: list[NDArray[np.uint8]] = []
    places: list[range] = []  # of the sampled times that each picture serves
    for frame, served in _served(probe, plan, report):
        try:
            pixels.append(make(frame))
        except (av.error.FFmpegError, ValueError) as err:
            raise MediaError(
                f"{probe.path}: pictures of format {frame.format.name} can not be converted",
                code="unsupported_codec",
                stage="video",
            ) from err
        any_picture = True
        places.append(served)
        if len(pixels) == batch:
            yield _batch(pixels, places, plan)
            pixels, places = [], []
    if pixels:
        yield _batch(pixels, places, plan)
    if not any_picture:
        raise unusable(
            probe.path, probe.family, "no picture can be decoded", stage="video", cut=False
        )


def _batch(pixels: list[NDArray[np.uint8]], places: list[range], plan: Plan) -> Frames:
    return Frames(
        np.stack(pixels),
        np.array([len(served) for served in places]),
        plan.seconds[[place for served in places for place in served]],
    )


def _served(probe: Probe, plan: Plan, report: DecodeReport) -> Iterator[tuple[VideoFrame, range]]:
    """Pictures, and which of the sampled times each serves."""
    table, done = probe.table, 0
    way = _key_frames if plan.key_only else _walked
    may_seek = (True, False) if plan.key_only or not (table.counted or table.jumps) else ()
    for seeking in may_seek:
        start = done
        try:
            for frame, served in way(probe, plan.part(slice(start, None)), report, seeking):
                yield frame, range(start + served.start, start + served.stop)
                done = start + served.stop
            return
        except SeekMissed as err:
            log.debug("%s: %s; reading all packets", probe.path, err)
        except _PictureMissing as err:
            log.debug("%s: %s; decoding everything", probe.path, err)
            break
    start = done
    for frame, served in _serve(_linear(probe, report), plan.ticks[start:]):
        yield frame, range(start + served.start, start + served.stop)


def _walked(
    probe: Probe, plan: Plan, report: DecodeReport, may_seek: bool
) -> Iterator[tuple[VideoFrame, range]]:
    return _serve(_walk(probe, plan, report, may_seek), plan.ticks)


def _serve(
    frames: Iterator[tuple[int, VideoFrame]], wanted: NDArray[np.int64]
) -> Iterator[tuple[VideoFrame, range]]:
    """Gives each wanted tick the last frame at or before it, or the first one there is.

    Wanted ticks after the last frame get none.
    """
    held: VideoFrame | None = None
    held_tick = done = 0
    for tick, frame in frames:
        if held is not None and tick < held_tick:
            continue  # out of order: a decoder's slip after damage
        if held is not None:
            stop = int(np.searchsorted(wanted, tick, side="left"))
            if stop > done:
                yield held, range(done, stop)
                done = stop
        held, held_tick = frame, tick
        if len(wanted) and tick >= wanted[-1]:
            break
    if held is not None:
        stop = int(np.searchsorted(wanted, held_tick, side="right"))
        if stop > done:
            yield held, range(done, stop)


def _walk(
    probe: Probe, plan: Plan, report: DecodeReport, may_seek: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """Frames and their ticks, of which all that are wanted and some that are not."""
    table = probe.table
    if not len(plan):
        return
    wanted = np.unique(plan.packets)
    roles = walk_roles(table, wanted)
    stops = drain_points(table, roles)
    strict = probe.media.video_codec not in _HIDDEN_PICTURES
    missing: set[int] = set()
    last = int(np.flatnonzero(roles)[-1])
    with open_container(probe.path, probe.family) as container:
        stream = _stream_of(container, probe)
        context = stream.codec_context
        over = leaps(probe, roles > 0) if may_seek else {}
        for number, packet in numbered_packets(container, stream, probe, report, over=over):
            if number > last:
                break
            if roles[number]:
                is_wanted = roles[number] == WANTED
                if is_wanted:
                    missing.add(int(table.ticks[number]))
                context.skip_frame = "DEFAULT" if is_wanted or not strict else "NONREF"
                for frame in _decoded(stream, packet, number, report):
                    if frame.pts is not None:
                        _tick_off(frame.pts, missing, strict)
                        yield frame.pts, frame
            if stops[number]:
                for frame in _decoded(stream, None, number, report):
                    if frame.pts is not None:
                        _tick_off(frame.pts, missing, strict)
                        yield frame.pts, frame
                context.flush_buffers()
                if missing and strict:
                    raise _PictureMissing(f"{len(missing)} pictures did not come out")
                missing.clear()


def _tick_off(tick: int, missing: set[int], strict: bool) -> None:
    """One picture came out. They come in order, so an earlier one that is missing never will.

    Said before the later picture is used: else the one before it would stand for both.
    """
    missing.discard(tick)
    if strict and missing and min(missing) < tick:
        raise _PictureMissing(f"a later picture came out before {len(missing)} wanted ones")


def _linear(probe: Probe, report: DecodeReport) -> Iterator[tuple[int, VideoFrame]]:
    """All frames with their ticks."""
    with open_container(probe.path, probe.family) as container:
        stream = _stream_of(container, probe)
        clock = _OutputClock(probe.table)
        number = -1
        for number, packet in numbered_packets(container, stream, probe, report, over={}):
            if number >= len(probe.table):
                break  # the file has grown since it was probed
            if number >= probe.table.first_key:
                frames = _decoded(stream, packet, number, report)
                for frame in frames:
                    yield clock.tick_of(frame), frame
        for frame in _decoded(stream, None, number, report):
            yield clock.tick_of(frame), frame


class _OutputClock:
    """When each frame of a linear pass is shown, in the ticks of the table."""

    def __init__(self, table: PacketTable) -> None:
        self._table = table
        self._largest = int(LARGEST_GAP_SECONDS / table.time_base)
        self._count = 0
        self._last: int | None = None
        self._shift = 0

    def tick_of(self, frame: VideoFrame) -> int:
        table = self._table
        if table.counted or frame.pts is None:
            tick = int(table.ticks[min(self._count, len(table) - 1)])
            self._count += 1
            return tick
        if table.jumps:
            raw = frame.pts + self._shift
            if self._last is not None and not 0 <= raw - self._last <= self._largest:
                self._shift += self._last + table.step - raw
            self._last = frame.pts + self._shift
            return self._last
        return frame.pts


def _key_frames(
    probe: Probe, plan: Plan, report: DecodeReport, may_seek: bool
) -> Iterator[tuple[VideoFrame, range]]:
    """Wanted key frames, each from its own packet; one that can not be decoded is left out."""
    wanted = {int(packet): place for place, packet in enumerate(plan.packets)}
    last = int(plan.packets.max(initial=-1))
    needed = np.zeros(len(probe.table), dtype=bool)
    needed[plan.packets] = True
    done = -1
    with open_container(probe.path, probe.family) as container:
        stream = _stream_of(container, probe)
        over = leaps(probe, needed) if may_seek else {}
        for number, packet in numbered_packets(container, stream, probe, report, over=over):
            place = wanted.get(number, -1)
            if place > done:  # also: key frames whose times do not rise are damage
                frames = _decoded(stream, packet, number, report)
                frames += _decoded(stream, None, number, report)
                stream.codec_context.flush_buffers()
                if frames:
                    done = place
                    yield frames[0], range(place, place + 1)
            if number >= last:
                break


def _stream_of(container: InputContainer, probe: Probe) -> VideoStream:
    stream = container.streams[probe.video_index or 0]
    assert isinstance(stream, VideoStream)
    prepare_video(stream)
    read_only(container, probe.family, stream)
    return stream


def _decoded(
    stream: VideoStream, packet: Packet[Stream] | None, number: int, report: DecodeReport
) -> list[VideoFrame]:
    """Frames that come out for one packet (None: what is still inside); damage is noted."""
    try:
        frames = stream.codec_context.decode(packet)
    except MemoryError as err:
        raise MediaError(
            f"{stream.container.name}: the decoder ran out of memory", code="oom", stage="video"
        ) from err
    except av.error.FFmpegError as err:
        log.debug("packet %d: %s", number, err.strerror)
        report.damaged_video.add(number)
        return []
    if any(frame.is_corrupt for frame in frames):
        report.damaged_video.add(number)
    return frames
