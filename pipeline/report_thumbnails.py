"""Small pictures of videos: decoded in the decode child, encoded here; nothing is copied.

A video gets two files: the poster, and one strip with all its moments side by side. Their names
are made of the content and of the times, so a later report finds them again.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtag.config import Moments
from vtag.decode_process import DecoderProcess, Finished, Restarted
from vtag.errors import MediaError
from vtag.records import Frames
from vtag.report_entries import Entry
from vtag.stream import as_finished

log = logging.getLogger(__name__)

POSTER_PX: Final = 480  # long side at most
CELL_HEIGHT_PX: Final = 108
CELL_WIDTH_PX: Final = (61, 256)  # between portrait and panorama; what is beyond is cut
_VERSION: Final = 1  # part of the names: raise it when the pictures come out differently
_QUALITY: Final = 74

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of one video, as names below the folder of thumbnails.

    Attributes:
        poster, strip: names of files; None where there is none.
    """

    poster: str | None = None
    strip: str | None = None


def names_of(entry: Entry) -> Thumbnails:
    """The names that the pictures of an entry have; none without pictures or content."""
    if entry.poster is None or entry.id is None:
        return Thumbnails()
    content = hashlib.sha256(entry.id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    strip = None
    if entry.moments:
        strip = f"{content[:2]}/{content}-{_short(entry.moments)}s.jpg"
    return Thumbnails(f"{content[:2]}/{content}-{_short((entry.poster,))}p.jpg", strip)


def make_thumbnails(
    entries: Iterable[Entry], folder: Path, *, workers: int
) -> Iterator[tuple[Entry, MediaError | None]]:
    """Writes the pictures of videos into `folder`, several at once; gives each as it is done.

    A video that can not be used has no pictures; its error comes with it.

    Raises:
        OSError: a picture can not be written.
        EnvironmentProblem: no decode child can be started here.
    """
    children: SimpleQueue[DecoderProcess] = SimpleQueue()
    every = [DecoderProcess() for _ in range(workers)]
    for child in every:
        children.put(child)

    def work(entry: Entry) -> tuple[Entry, MediaError | None]:
        child = children.get()
        try:
            _write(entry, folder, child)
        except MediaError as err:
            log.info("no thumbnails: %s", err)
            return entry, err
        finally:
            children.put(child)
        return entry, None

    try:
        yield from as_finished(work, entries, workers=workers)
    finally:
        for child in every:
            child.close()


def cell_width(width: int, height: int) -> int:
    """Pixels of one moment's width in a strip of videos of this size."""
    low, high = CELL_WIDTH_PX
    return min(high, max(low, round(CELL_HEIGHT_PX * width / height)))


def _write(entry: Entry, folder: Path, child: DecoderProcess) -> None:
    assert entry.video is not None
    assert entry.poster is not None
    names = names_of(entry)
    pictures = _pictures(entry.video, (entry.poster, *entry.moments), child)
    assert names.poster is not None
    _put(folder / names.poster, _poster(_nearest(pictures, entry.poster)))
    if names.strip is not None:
        _put(folder / names.strip, _strip([_nearest(pictures, t) for t in entry.moments]))


def _pictures(video: Path, times: tuple[float, ...], child: DecoderProcess) -> dict[float, Pixels]:
    """Second -> picture, uint8 [H, W, 3], at those of the times that could be read."""
    asked = Moments(times=tuple(sorted(set(times))), max_frames=len(set(times)), mode="uniform")
    found: dict[float, Pixels] = {}
    for event in child.decode(video, sampling=asked, want_video=True, want_sound=False):
        if isinstance(event, Restarted):
            found.clear()
        elif isinstance(event, Frames):
            which = np.repeat(np.arange(len(event.pixels)), event.repeats)
            for second, at in zip(event.seconds.tolist(), which, strict=True):
                found[second] = event.pixels[at]
        elif isinstance(event, Finished):
            break
    if not found:
        raise MediaError(f"{video}: holds no picture", code="no_usable_stream", stage="video")
    return found


def _nearest(pictures: dict[float, Pixels], time: float) -> Pixels:
    return pictures[min(pictures, key=lambda second: abs(second - time))]


def _poster(pixels: Pixels) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((POSTER_PX, POSTER_PX), Image.Resampling.BICUBIC)
    return _jpeg(image)


def _strip(pictures: list[Pixels]) -> bytes:
    height, width = pictures[0].shape[:2]
    cell = cell_width(width, height)
    strip = Image.new("RGB", (cell * len(pictures), CELL_HEIGHT_PX))
    for at, pixels in enumerate(pictures):
        scale = max(cell / pixels.shape[1], CELL_HEIGHT_PX / pixels.shape[0])
        size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - cell) // 2, (size[1] - CELL_HEIGHT_PX) // 2
        strip.paste(image.crop((left, top, left + cell, top + CELL_HEIGHT_PX)), (at * cell, 0))
    return _jpeg(strip)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def _put(path: Path, data: bytes) -> None:
    # The whole folder is put in its place when it is complete: no care is needed here.
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _short(times: tuple[float, ...]) -> str:
    return hashlib.sha256(f"{_VERSION} {times!r}".encode()).hexdigest()[:8]
