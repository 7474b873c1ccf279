"""Adaptive sampling: look where something changes, and take the rest from its neighbours.

The rows stand on the uniform grid (one a second), so that segments, evidence and the best tenth of
a video mean what they mean there; what differs is how many of them the network has seen:

1. Key frames, which are decoded on their own, and so many points of the grid that nothing longer
   than `UNSEEN_SECONDS` goes unseen (and a short video is looked at `FEWEST_LOOKS` times).
2. Between neighbours of one shot whose rows differ by more than noise, the middle; and so on,
   until nothing differs or a share of the work of uniform sampling (`Effort`) is spent.
3. A time that was not looked at gets the row of the nearest picture of its shot.

Shots come from the packets: an encoder that puts a key frame where its period does not call for
one has seen a cut. A picture that looks like its neighbour costs no pass of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtag.decode_wire import Choices
from vtag.extractors.base import FrameExtractor
from vtag.records import Features, Frames

UNSEEN_SECONDS: Final = 10.0  # the longest period of key frames that encoders use by default
FEWEST_LOOKS: Final = 10
REGULAR_KEY_SECONDS: Final = 5.0  # key frames that come by the clock: one in so many seconds
# What a pass of the network takes on one core (ResNet-50); only against decoding does it count.
PASS_SECONDS: Final = 0.1
SAME_PICTURE_LEVELS: Final = 2.5  # of 255, in the worst of 16 x 16 cells

_CELLS: Final = 16

Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How closely a video is looked at; the curve of docs/decoding.md goes through these.

    Attributes:
        share: of the work of uniform sampling, that may be spent.
        noise: cosine distance up to which two rows count as equal. Neighbouring seconds of one
            take differ by 0.03 to 0.2, those on both sides of a cut by 0.5.
    """

    share: float = 1 / 6
    noise: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.noise <= 2 and 0 < self.share <= 1):
            raise ValueError(f"noise is 0 to 2 and the share at most 1, not {self}")

    def seconds(self, choices: Choices) -> float:
        """What may be spent on a video: at least `FEWEST_LOOKS` passes."""
        work = choices.work_seconds[choices.on_grid]
        # The walk of uniform decodes each group of pictures once, up to its last one.
        ends_group = np.append(work[1:] <= work[:-1], True)
        uniform = len(work) * PASS_SECONDS + float(work[ends_group].sum())
        return max(self.share * uniform, min(len(work), FEWEST_LOOKS) * PASS_SECONDS)


def first_look(choices: Choices, effort: Effort) -> Places:
    """int64 [k], rising: the places that are looked at before anything is known."""
    if not choices.is_key.any():  # nothing is cheap: then all of it, once
        return np.flatnonzero(choices.on_grid)
    grid = np.flatnonzero(choices.on_grid)
    length = float(choices.seconds[-1] - choices.seconds[0])
    if not length:
        return grid
    apart = max(min(UNSEEN_SECONDS, length / FEWEST_LOOKS), length / max(1, len(grid) - 1))
    found = {0, *_thinned_keys(choices)}
    for start, end in pairwise(choices.seconds[[*sorted(found), -1]].tolist()):
        parts = math.ceil((end - start) / apart - 0.1)
        times = start + (end - start) * np.arange(1, parts) / max(1, parts)
        nearest = np.abs(choices.seconds[grid] - times[:, None]).argmin(axis=1)
        found |= set(grid[nearest].tolist())
    places = np.array(sorted(found), np.int64)
    cost = float(PASS_SECONDS + choices.work_seconds[places].mean())
    return _evenly(places, max(min(len(grid), FEWEST_LOOKS), int(effort.seconds(choices) / cost)))


def _thinned_keys(choices: Choices) -> list[int]:
    """Key frames at cuts, and of the others one in `REGULAR_KEY_SECONDS`."""
    kept: list[int] = []
    last = -math.inf
    for place in np.flatnonzero(choices.is_key).tolist():
        second = float(choices.seconds[place])
        if choices.is_cut[place] or second - last >= REGULAR_KEY_SECONDS:
            kept.append(place)
            last = second
    return kept


def _evenly(places: Places, most: int) -> Places:
    if len(places) <= most:
        return places
    return places[np.arange(most) * len(places) // most]


def next_look(
    choices: Choices,
    noise: float,
    *,
    seen: Places,
    asked: NDArray[np.bool_],
    distance: Callable[[int, int], float],
    left_seconds: float,
) -> Places:
    """int64 [k], rising: where the rows seen so far do not tell what lies between them.

    Args:
        noise: distance up to which two rows count as equal.
        seen: rising places whose rows are there.
        asked: bool [n], places that were asked for, seen or not.
        distance: of the rows at two seen places.
        left_seconds: what may still be spent. The most seconds of difference for the work come
            first.
    """
    shots = np.cumsum(choices.is_cut)
    found: list[tuple[float, int, float]] = []
    for left, right in pairwise(seen.tolist()):
        if shots[left] != shots[right]:
            continue
        middle = _middle(choices, left, right, asked)
        apart = distance(left, right)
        if middle is not None and apart > noise:
            cost = PASS_SECONDS + float(choices.work_seconds[middle])
            length = float(choices.seconds[right] - choices.seconds[left])
            found.append((-apart * length / cost, middle, cost))
    taken = []
    for _, middle, cost in sorted(found):
        if cost <= left_seconds:
            left_seconds -= cost
            taken.append(middle)
    return np.array(sorted(taken), np.int64)


def _middle(choices: Choices, left: int, right: int, asked: NDArray[np.bool_]) -> int | None:
    """The place to look at between two: a key frame of the middle half, or the middle of the grid.

    None where no time of the grid lies between them that was not looked at.
    """
    between = np.arange(left + 1, right)
    between = between[~asked[between]]
    grid = between[choices.on_grid[between]]
    if not len(grid):
        return None
    start, end = choices.seconds[left], choices.seconds[right]
    off = np.abs(choices.seconds[between] - (start + end) / 2)
    cheap = choices.is_key[between] & (off <= (end - start) / 4)
    if cheap.any():
        return int(between[cheap][off[cheap].argmin()])
    return int(grid[len(grid) // 2])


def nearest_of_shot(choices: Choices, seen: Places) -> Places:
    """int64 [n]: for each place the seen one that stands for it.

    The nearest in time of the same shot; where nothing of the shot was seen, the one before it.
    """
    everywhere = np.arange(len(choices))
    before = seen[(np.searchsorted(seen, everywhere, side="right") - 1).clip(min=0)]
    after = seen[np.searchsorted(seen, everywhere, side="left").clip(max=len(seen) - 1)]
    shots = np.cumsum(choices.is_cut)
    to_before = np.abs(choices.seconds - choices.seconds[before])
    to_after = np.abs(choices.seconds[after] - choices.seconds)
    in_shot = shots[after] == shots
    take_after = in_shot & ((shots[before] != shots) | (to_after < to_before))
    stands: Places = np.where(take_after, after, before)
    return stands


_USUAL: Final = Effort()


class AdaptiveRows:
    """Asks for pictures, turns them into rows as they come, and fills the grid: an `Explorer`.

    Args:
        extractor: makes the rows.
        effort: how closely to look.
    """

    def __init__(self, extractor: FrameExtractor, effort: Effort = _USUAL) -> None:
        self._extractor = extractor
        self._effort = effort
        self._choices: Choices | None = None
        self._clear(0)

    def _clear(self, places: int) -> None:
        self._asked = np.zeros(places, dtype=bool)
        self._row_of = np.full(places, -1, np.int64)
        self._rows: list[Tensor] = []
        self._thumbnails: list[NDArray[np.float32]] = []
        self._waiting: list[NDArray[np.uint8]] = []

    @property
    def looks(self) -> int:
        """Passes of the network so far."""
        return len(self._thumbnails)

    def begin(self, choices: Choices) -> None:
        """A video; what was known of another attempt at it is void."""
        self._choices = choices
        self._clear(len(choices))

    def wanted(self) -> Places:
        """int64 [k], rising: the places to look at next; none when enough is known."""
        assert self._choices is not None
        if not self._asked.any():
            places = first_look(self._choices, self._effort)
        else:
            unit = self._unit_rows()
            places = next_look(
                self._choices,
                self._effort.noise,
                seen=self._seen(),
                asked=self._asked,
                left_seconds=self._effort.seconds(self._choices) - self._spent_seconds(),
                distance=lambda a, b: 1 - float(unit[self._row_of[a]] @ unit[self._row_of[b]]),
            )
            if not len(self._seen()) and not self._asked[self._choices.on_grid].all():
                places = np.flatnonzero(self._choices.on_grid & ~self._asked)
        self._asked[places] = True
        return places

    def add(self, frames: Frames) -> None:
        """Some pictures that were asked for."""
        assert self._choices is not None
        places = np.searchsorted(self._choices.seconds, frames.seconds)
        ends = np.cumsum(frames.repeats)
        for pixels, end, count in zip(frames.pixels, ends, frames.repeats, strict=True):
            mine = places[end - count : end]
            self._row_of[mine] = self._row_for(pixels, int(mine[0]))
        self._run()

    def _row_for(self, pixels: NDArray[np.uint8], place: int) -> int:
        """The number of the row of a picture: a neighbour's where it looks the same."""
        thumbnail = thumbnail_of(pixels)
        seen = self._seen()
        at = int(np.searchsorted(seen, place))
        for neighbour in seen[max(0, at - 1) : at + 1]:
            row = int(self._row_of[neighbour])
            if np.abs(self._thumbnails[row] - thumbnail).max() <= SAME_PICTURE_LEVELS:
                return row
        self._thumbnails.append(thumbnail)
        self._waiting.append(pixels)
        return len(self._thumbnails) - 1

    def _spent_seconds(self) -> float:
        assert self._choices is not None
        decoded = float(self._choices.work_seconds[self._asked].sum())
        return decoded + self.looks * PASS_SECONDS

    def _seen(self) -> Places:
        return np.flatnonzero(self._row_of >= 0)

    def _run(self) -> None:
        """Runs the network on all pictures that wait for it."""
        if self._waiting:
            # [n, H, W, 3] seen as [n, 3, H, W]: this is channels_last, nothing is copied.
            pixels = torch.from_numpy(np.stack(self._waiting)).permute(0, 3, 1, 2)
            self._rows.append(self._extractor(pixels).half())
            self._waiting = []

    def _unit_rows(self) -> NDArray[np.float32]:
        """float32 [rows, D], each of length 1."""
        if not self._rows:
            return np.zeros((0, self._extractor.dim), np.float32)
        rows = torch.cat(self._rows).float()
        return np.asarray(torch.nn.functional.normalize(rows, dim=1).numpy())

    def features(self, made_by: str) -> Features:
        """A row for each time of the grid."""
        seen = self._seen()
        if self._choices is None or not len(seen):
            return Features(
                np.zeros((0, self._extractor.dim), np.float16), np.zeros(0, np.float64), made_by
            )
        grid = self._choices.on_grid
        rows = torch.cat(self._rows).numpy()
        stands = self._row_of[nearest_of_shot(self._choices, seen)[grid]]
        return Features(rows[stands], self._choices.seconds[grid], made_by)


def thumbnail_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [16, 16, 3]: the mean colour of each cell of a picture."""
    height, width = (side - side % _CELLS for side in pixels.shape[:2])
    if not (height and width):
        return np.broadcast_to(pixels.mean(axis=(0, 1), dtype=np.float32), (_CELLS, _CELLS, 3))
    cells = pixels[:height, :width].reshape(
        _CELLS, height // _CELLS, _CELLS, width // _CELLS, pixels.shape[2]
    )
    means: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return means
