"""From a decoder's frame to the pixels that the networks get: small, upright, RGB."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vtag.config import FRAME_SIDE_PX
from vtag.probe import Probe

_LONGEST_SIDE_PX: Final = 4 * FRAME_SIDE_PX
_ANY_TIME_BASE: Final = Fraction(1, 1000)  # the graph wants one; no filter here looks at it


def picture_size(probe: Probe) -> tuple[int, int]:
    """Width and height of the decoder's output, before it is turned upright.

    The short side is `FRAME_SIDE_PX` and the shape is what a player shows: pixels that are not
    square are stretched. What is longer than 4:1 is cut to its middle, so that a strip of
    8192x2 pixels does not become a gigabyte.
    """
    width, height = probe.size
    shown = float(width * probe.pixel_aspect)
    if shown < height:
        return FRAME_SIDE_PX, min(_LONGEST_SIDE_PX, round(height * FRAME_SIDE_PX / shown))
    return min(_LONGEST_SIDE_PX, round(shown * FRAME_SIDE_PX / height)), FRAME_SIDE_PX


class PictureMaker:
    """Converts frames of one video; the size stays that of the first, whatever comes later.

    FFmpeg's scale filter and not its bare scaler: the filter minds where the chroma samples
    lie, and so does decord. Their pictures are the same bytes; without it saturated edges are a
    quarter of a pixel off (37 dB).
    """

    def __init__(self, probe: Probe) -> None:
        self._width, self._height = picture_size(probe)
        self._orientation = probe.orientation
        self._aspect = float(probe.pixel_aspect)
        self._graph: tuple[tuple[object, ...], Graph] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB, upright.

        Of FFmpeg's filters, bilinear is nearest to what the networks were trained on (PIL's
        antialiased bilinear).

        Raises:
            FFmpegError, ValueError: no way from this pixel format to RGB.
        """
        graph = self._graph_for(frame)
        graph.push(frame)
        small = graph.pull()
        assert isinstance(small, VideoFrame)
        pixels = np.asarray(small.to_ndarray(), np.uint8)
        return pixels if self._orientation.is_upright else self._orientation.apply(pixels)

    def _graph_for(self, frame: VideoFrame) -> Graph:
        # A graph is made for one kind of frame; broadcasts change theirs on the way.
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or self._graph[0] != kind:
            self._graph = kind, self._new_graph(frame)
        return self._graph[1]

    def _new_graph(self, frame: VideoFrame) -> Graph:
        keep_width = min(frame.width, max(1, int(4 * frame.height / self._aspect)))
        keep_height = min(frame.height, max(1, int(4 * frame.width * self._aspect)))
        graph = Graph()
        if hasattr(graph, "threads"):  # PyAV 18 and later
            graph.threads = 1
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=_ANY_TIME_BASE,
            )
        ]
        if (keep_width, keep_height) != (frame.width, frame.height):
            nodes.append(graph.add("crop", f"{keep_width}:{keep_height}"))
        nodes.append(graph.add("scale", f"{self._width}:{self._height}:flags=bilinear"))
        nodes.append(graph.add("format", "rgb24"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph
