"""What adaptive sampling asks for and how it fills the grid, over choices that hypothesis draws."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import draw_clip, flip_bytes
from torch import Tensor

from vtag.adaptive import (
    FEWEST_LOOKS,
    PASS_SECONDS,
    UNSEEN_SECONDS,
    AdaptiveRows,
    Effort,
    first_look,
    nearest_of_shot,
    next_look,
    thumbnail_of,
)
from vtag.cache import FeatureCache
from vtag.config import Sampling
from vtag.decode_wire import Choices
from vtag.features import FeatureMaker
from vtag.records import Frames


@st.composite
def choices(draw: st.DrawFn) -> Choices:
    """1 to 120 seconds of a grid, key frames anywhere between, some of them at cuts."""
    length = draw(st.integers(1, 120))
    between = draw(st.sets(st.integers(1, 4 * length - 1), max_size=60))
    quarters = sorted({4 * second for second in range(length)} | between)
    n = len(quarters)
    is_key = np.array([(q in between and q % 4 > 0) or draw(st.booleans()) for q in quarters])
    is_key[0] = True
    is_cut = is_key & np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    is_cut[0] = False
    seconds = np.array(quarters) / 4
    work = np.array(draw(st.lists(st.floats(0, 0.5), min_size=n, max_size=n)))
    return Choices(seconds, seconds % 1 == 0, is_key, is_cut, work * ~is_key)


efforts = st.builds(Effort, noise=st.floats(0, 2), share=st.floats(0.05, 1))


@given(choices(), efforts)
def test_the_first_look_leaves_no_long_stretch_unseen(choices: Choices, effort: Effort) -> None:
    places = first_look(choices, effort)
    times = int(choices.on_grid.sum())
    assert (np.diff(places) > 0).all()
    assert places[0] == 0
    fewest = min(times, FEWEST_LOOKS)
    assert len(places) <= max(fewest, effort.seconds(choices) / PASS_SECONDS)
    if len(places) < fewest or effort.share == 1:
        # A point of the grid is at most half a second from where it is wanted.
        stretches = np.diff([*choices.seconds[places], choices.seconds[-1]])
        assert stretches.max() <= 1.1 * UNSEEN_SECONDS + 1


def test_what_may_be_spent_is_a_share_of_what_uniform_costs() -> None:
    # 40 s in two groups of 20 pictures: 0.05 s more for each picture into the group.
    work = np.tile(np.arange(20) * 0.05, 2)
    yes = np.ones(40, dtype=bool)
    choices = Choices(np.arange(40.0), yes, work == 0, ~yes, work)
    uniform = 40 * PASS_SECONDS + 2 * 19 * 0.05
    assert Effort(share=0.5).seconds(choices) == pytest.approx(uniform / 2)
    assert Effort(share=0.01).seconds(choices) == pytest.approx(FEWEST_LOOKS * PASS_SECONDS)


@given(choices(), st.data())
def test_each_time_is_filled_from_its_own_shot(choices: Choices, data: st.DataObject) -> None:
    everywhere = range(len(choices))
    seen = np.array(sorted(data.draw(st.sets(st.sampled_from(everywhere), min_size=1))))
    stands = nearest_of_shot(choices, seen)
    assert (stands[seen] == seen).all()
    for place in everywhere:
        # Slowly: a seen place counts when no cut lies between; the nearest of them is taken.
        same = [s for s in seen if not choices.is_cut[min(s, place) + 1 : max(s, place) + 1].any()]
        far = [abs(choices.seconds[s] - choices.seconds[place]) for s in same]
        if same:
            assert abs(choices.seconds[stands[place]] - choices.seconds[place]) == min(far)
        elif seen[0] < place:
            assert stands[place] == max(s for s in seen if s < place)


@given(choices(), st.integers(0, 2**31), efforts)
def test_looking_ends_where_nothing_differs_or_the_budget_is_spent(
    choices: Choices, seed: int, effort: Effort
) -> None:
    draw = np.random.default_rng(seed)
    kinds = np.cumsum(draw.random(len(choices)) < 0.1)  # what is to be seen, place by place
    asked = np.zeros(len(choices), dtype=bool)
    asked[first_look(choices, effort)] = True

    def distance(left: int, right: int) -> float:
        return 3.0 * (kinds[left] != kinds[right])

    costs = PASS_SECONDS + choices.work_seconds
    left = effort.seconds(choices) - costs[asked].sum()
    for _ in range(len(choices)):
        seen = np.flatnonzero(asked)
        places = next_look(
            choices, effort.noise, seen=seen, asked=asked, distance=distance, left_seconds=left
        )
        if not len(places):
            break
        assert not asked[places].any()
        asked[places] = True
        left -= costs[places].sum()
        assert left > -1e-9
    if left > costs.max():
        for before, after in pairwise(np.flatnonzero(asked)):
            cut = choices.is_cut[before + 1 : after + 1].any()
            nothing_left = not choices.on_grid[before + 1 : after].any()
            assert cut or nothing_left or kinds[before] == kinds[after]


@pytest.mark.parametrize(("is_cut", "expected"), [(True, [5, 16]), (False, [5, 10, 16])])
def test_a_cut_explains_a_difference_and_needs_no_look(is_cut: bool, expected: list[int]) -> None:
    # Seen: 0, 9 and 11, 20. Rows differ everywhere; a shot may begin at 11.
    places = np.arange(21)
    yes = places >= 0
    choices = Choices(places * 1.0, yes, places == 0, (places == 11) & is_cut, np.zeros(21))
    asked = np.isin(places, [0, 9, 11, 20])
    found = next_look(
        choices,
        0.3,
        seen=np.flatnonzero(asked),
        asked=asked,
        distance=lambda left, right: 1.0,
        left_seconds=10,
    )
    assert found.tolist() == expected


def test_an_effort_that_makes_no_sense_is_refused() -> None:
    for bad in ({"noise": -0.1}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(ValueError, match="noise is 0 to 2"):
            Effort(**bad)


class MeanColour:
    """The mean colour of each frame, made longer, and how many frames it saw."""

    name, dim, stream = "mean_colour", 3, "visual"

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.frames += len(pixels)
        return pixels.float().mean(dim=(2, 3)) / 255

    def fingerprint(self) -> str:
        return "1" * 12


def test_a_picture_that_looks_like_its_neighbour_costs_no_pass() -> None:
    network = MeanColour()
    rows = AdaptiveRows(network, Effort(share=1))
    seconds = np.arange(6.0)
    yes = seconds >= 0
    rows.begin(Choices(seconds, yes, yes, ~yes, np.zeros(6)))
    assert rows.wanted().tolist() == [0, 1, 2, 3, 4, 5]
    noise = np.random.default_rng(0)
    pixels = np.full((6, 64, 96, 3), 100, np.uint8)
    pixels[3:] = 180
    pixels[4, 40:48, 40:48] -= 9  # something small and faint enters, and leaves
    grainy = (pixels + noise.integers(0, 4, pixels.shape)).astype(np.uint8)
    rows.add(Frames(grainy, np.ones(6, np.int64), seconds))
    assert rows.wanted().tolist() == []
    assert rows.looks == network.frames == 4
    found = rows.features("x")
    assert found.seconds.tolist() == seconds.tolist()
    assert (found.rows[0] == found.rows[2]).all()
    means = grainy.mean(axis=(1, 2)) / 255  # the slow way, of every picture
    assert np.abs(found.rows - means).max() < 0.01


def test_thumbnails_are_means_of_cells() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    found = thumbnail_of(pixels)
    for row in range(16):
        for column in range(16):
            cell = pixels[3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
            assert found[row, column] == pytest.approx(cell.mean(axis=(0, 1)), abs=1e-3)


STILL = {"x264-params": "keyint=250:min-keyint=1:scenecut=0:bframes=3"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 s in key frame periods of 10 s; the colour changes every second."""
    path = tmp_path_factory.mktemp("adaptive") / "c.mp4"
    return draw_clip(path, seconds=60, fps=25, gop=250, options=STILL, tone_hz=300.0)


def test_a_run_has_the_grid_of_uniform_and_looks_at_less(clip: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    found, looked = {}, {}
    for mode in ("uniform", "adaptive"):
        network = MeanColour()
        maker = FeatureMaker({"visual": network}, sampling=Sampling(mode=mode), cache=cache)
        made = maker.features_of(clip)
        found[mode], looked[mode] = made.streams["visual"], network.frames
        assert made.media.sampled_frames == network.frames
        again = maker.features_of(clip)
        assert again.cached
        assert again.media == made.media
        assert (again.streams["visual"].rows == found[mode].rows).all()
        maker.close()
    maker = FeatureMaker({"visual": MeanColour()}, sampling=Sampling(mode="adaptive"))
    once_more = maker.features_of(clip).streams["visual"]
    maker.close()
    assert (once_more.rows == found["adaptive"].rows).all()
    assert looked["uniform"] == 60
    assert 6 <= looked["adaptive"] <= 30
    assert (found["adaptive"].seconds == found["uniform"].seconds).all()
    # The picture of 0 s is the same; of the others, those that were looked at.
    same = (found["adaptive"].rows == found["uniform"].rows).all(axis=1)
    assert same[0]
    assert same.sum() >= 6


@pytest.mark.parametrize("name", ["c.avi", "c.ts", "c.webm"])
def test_what_can_not_be_entered_anywhere_is_read_too(name: str, tmp_path: Path) -> None:
    codecs = {"c.avi": "mpeg4", "c.ts": "libx264", "c.webm": "libvpx-vp9"}
    options = STILL if name == "c.ts" else {}
    clip = draw_clip(tmp_path / name, seconds=12, codec=codecs[name], gop=50, options=options)
    rows = {}
    for mode in ("uniform", "adaptive"):
        maker = FeatureMaker({"visual": MeanColour()}, sampling=Sampling(mode=mode))
        rows[mode] = maker.features_of(clip).streams["visual"]
        maker.close()
    assert (rows["adaptive"].seconds == rows["uniform"].seconds).all()
    # Five colours in turn, one a second: neighbours of another colour would be far off.
    off = np.abs(rows["adaptive"].rows.astype(float) - rows["uniform"].rows).max(axis=1)
    assert (off < 0.02).sum() >= 10


def test_damage_costs_the_pictures_that_it_hits(clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(clip.read_bytes())
    flip_bytes(bad, count=3000, first=0.05)
    maker = FeatureMaker({"visual": MeanColour()}, sampling=Sampling(mode="adaptive"))
    found = maker.features_of(bad)
    maker.close()
    assert found.streams["visual"].seconds.tolist() == list(range(60))
    assert found.media.corrupt_frames > 0
