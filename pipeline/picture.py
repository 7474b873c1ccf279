"""From a decoder's frame to the pixels that the networks get: small, upright, RGB."""

from __future__ import annotations

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vtag.config import FRAME_SIDE_PX
from vtag.probe import Probe

_LONGEST_SIDE_PX = 4 * FRAME_SIDE_PX


def picture_size(probe: Probe) -> tuple[int, int]:
    """Width and height of the decoder's output, before rotation.

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
    """Converts frames of one video; the size stays that of the first, whatever comes later."""

    def __init__(self, probe: Probe) -> None:
        self._width, self._height = picture_size(probe)
        self._turns = probe.rotation // 90
        self._aspect = float(probe.pixel_aspect)
        self._reformatter = VideoReformatter()
        self._crop: tuple[tuple[int, int, str], Graph] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB, upright.

        One step of swscale from the decoder's format to the small RGB picture: of its filters,
        bilinear is nearest to what the networks were trained on (PIL's antialiased bilinear).
        """
        small = self._reformatter.reformat(
            self._middle(frame),
            self._width,
            self._height,
            "rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        pixels = np.asarray(small.to_ndarray(), np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels

    def _middle(self, frame: VideoFrame) -> VideoFrame:
        """The frame without its far ends if it is longer than 4:1."""
        width, height = frame.width, frame.height
        keep_width = min(width, max(1, int(4 * height / self._aspect)))
        keep_height = min(height, max(1, int(4 * width * self._aspect)))
        if (keep_width, keep_height) == (width, height):
            return frame
        shape = (width, height, frame.format.name)
        if self._crop is None or self._crop[0] != shape:
            self._crop = shape, _crop_graph(frame, keep_width, keep_height)
        self._crop[1].push(frame)
        cropped = self._crop[1].pull()
        assert isinstance(cropped, VideoFrame)
        return cropped


def _crop_graph(frame: VideoFrame, width: int, height: int) -> Graph:
    graph = Graph()
    if hasattr(graph, "threads"):  # PyAV 18 and later; cropping alone uses one anyway
        graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base,
    )
    crop = graph.add("crop", f"{width}:{height}")
    source.link_to(crop)
    crop.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
