"""From file to rows: windows of sound, content in work, the cache, a disk that is full."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_calls import FaultyCalls
from media import draw_clip
from torch import Tensor

from vtag import MediaError, OutputError, Sampling, storage
from vtag.cache import FeatureCache
from vtag.decoder_pool import DecoderPool
from vtag.feature_rows import SoundRows
from vtag.features import FeatureMaker, InWork
from vtag.records import Media, Record, Sound
from vtag.results import ResultsWriter
from vtag.room import Room


class Loudness:
    """A row of two numbers per window: its mean square, and its first sample."""

    name, dim, stream, rate_hz = "loudness", 2, "audio", 16_000
    window_samples, hop_samples = 15_600, 15_360

    def __call__(self, wave: Tensor) -> Tensor:
        missing = self.window_samples - len(wave)
        padded = torch.nn.functional.pad(wave, (0, max(0, missing)))
        windows = padded.unfold(0, self.window_samples, self.hop_samples)
        return torch.stack([windows.square().mean(1), windows[:, 0]], dim=1)

    def fingerprint(self) -> str:
        return "0" * 12


class MeanColour:
    """The mean colour of each frame, and how often it was asked."""

    name, dim, stream = "mean_colour", 3, "visual"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        return pixels.float().mean(dim=(2, 3)) / 255

    def fingerprint(self) -> str:
        return "1" * 12


@pytest.mark.parametrize("piece", [1_000, 15_360, 50_000, 3_000_000])
@pytest.mark.parametrize("length", [0, 1, 15_599, 15_600, 30_959, 30_960, 1_600_000])
def test_rows_of_sound_do_not_depend_on_the_pieces(length: int, piece: int) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)
    rows = SoundRows(Loudness())
    for at in range(0, length, piece):
        rows.add(Sound(wave[at : at + piece], start=2.5 + at / 16_000))
    found = rows.features("x")
    # The number of windows is that of VGGish's own front end (method of `vggish_input.py`);
    # a sound shorter than one window is padded to one.
    expected = 0 if length == 0 else max(1, 1 + (length - 15_600) // 15_360)
    assert found.rows.shape == (expected, 2)
    assert found.seconds == pytest.approx(2.5 + 0.96 * np.arange(expected))
    if length:
        whole = Loudness()(torch.from_numpy(wave)).half().numpy()
        assert (found.rows == whole).all()


def test_the_same_content_is_decoded_once(tmp_path: Path) -> None:
    clip = draw_clip(tmp_path / "a.mp4", seconds=2)
    copies = [clip, *(tmp_path / f"copy{n}.mp4" for n in range(3))]
    for copy in copies[1:]:
        copy.write_bytes(clip.read_bytes())
    extractor = MeanColour()
    maker = FeatureMaker(
        {"visual": extractor}, sampling=Sampling(), cache=FeatureCache(tmp_path / "cache")
    )
    found = []
    threads = [
        threading.Thread(target=lambda c=copy: found.append(maker.features_of(c)))
        for copy in copies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maker.close()
    assert extractor.calls == 1
    assert [len(clip.streams["visual"].rows) for clip in found] == [2, 2, 2, 2]
    assert sorted(clip.cached for clip in found) == [False, True, True, True]


class Together:
    """The mean colour, at leisure, and how many threads wanted it at once."""

    name, dim, stream = "together", 3, "visual"

    def __init__(self) -> None:
        self.now = self.most = 0
        self._changed = threading.Condition()

    def __call__(self, pixels: Tensor) -> Tensor:
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.now > 1, timeout=0.5)
        time.sleep(0.05)
        with self._changed:
            self.now -= 1
        return pixels.float().mean(dim=(2, 3)) / 255

    def fingerprint(self) -> str:
        return "2" * 12


@pytest.mark.parametrize(("videos_at_once", "in_work"), [(1, 1), (3, 3)])
def test_videos_are_decoded_at_once_as_far_as_the_memory_goes(
    tmp_path: Path, videos_at_once: int, in_work: int
) -> None:
    clips = [draw_clip(tmp_path / f"{n}.mp4", seconds=2, fps=10 + n) for n in range(3)]
    extractor = Together()
    maker = FeatureMaker({"visual": extractor}, sampling=Sampling())
    with maker._pool.memory_for(Media(duration=1.0, width=160, height=96)):
        one = maker._pool.room.used_bytes
    maker._pool.room = Room(videos_at_once * one)
    rows: list[int] = []
    threads = [
        threading.Thread(
            target=lambda c=clip: rows.append(len(maker.features_of(c).streams["visual"].rows))
        )
        for clip in clips
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maker.close()
    assert rows == [2, 2, 2]
    assert extractor.most <= in_work
    assert (extractor.most > 1) == (in_work > 1)
    assert maker._pool.room.used_bytes == 0


def test_the_cores_may_decode_4k_or_one_of_them_8k(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(cores: int, *sides: tuple[int, int]) -> bool:
        monkeypatch.setattr("vtag.decoder_pool.usable_cores", lambda: cores)
        pool = DecoderPool("no:BACKENDS")
        needed = 0
        for width, height in sides:
            with pool.memory_for(Media(duration=1.0, width=width, height=height)):
                needed += pool.room.used_bytes
        return needed <= pool.room.max_bytes

    hd, k4, k8 = (1920, 1080), (3840, 2160), (7680, 4320)
    assert fits(1, k8)
    assert fits(2, k8, hd)
    assert not fits(2, k8, k8)
    assert fits(8, *[k4] * 8)


def test_other_contents_do_not_wait_for_each_other() -> None:
    in_work, inside = InWork(), threading.Barrier(2, timeout=5)

    def work(content: str) -> None:
        with in_work.alone(content):
            inside.wait()

    threads = [threading.Thread(target=work, args=(c,)) for c in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not inside.broken
    assert in_work._locks == {}


def test_a_full_cache_disk_is_one_warning_and_tagging_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [draw_clip(tmp_path / f"{n}.mp4", seconds=1, fps=10 + n) for n in range(3)]
    cache = FeatureCache(tmp_path / "cache")
    maker = FeatureMaker({"visual": MeanColour()}, sampling=Sampling(), cache=cache)
    monkeypatch.setattr(storage, "system", FaultyCalls("disk stays full", 0))
    with caplog.at_level(logging.WARNING):
        found = [maker.features_of(clip) for clip in clips]
    maker.close()
    assert all(len(clip.streams["visual"].rows) == 1 for clip in found)
    warnings = [r.getMessage() for r in caplog.records if "no longer kept" in r.getMessage()]
    assert len(warnings) == 1
    assert "No space left" in warnings[0] or "disk" in warnings[0]
    assert cache.info().entries == 0


def test_a_full_output_disk_ends_the_run_with_a_valid_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.jsonl"
    record = Record(path="a.mp4", status="ok", id="sha256:0")
    with ResultsWriter(out) as results:
        results.write(record)
    before = out.read_bytes()
    results = ResultsWriter(out)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "system", FaultyCalls("disk stays full", 0))
        with pytest.raises(OutputError, match="run the same command again"):
            results.write(Record(path="b.mp4", status="ok", id="sha256:1"))
    results.close()
    assert out.read_bytes() == before


def test_a_file_that_changes_while_it_is_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = draw_clip(tmp_path / "growing.mp4", seconds=2)

    class Meddling(MeanColour):
        def __call__(self, pixels: Tensor) -> Tensor:
            time.sleep(0.02)
            with clip.open("ab") as file:
                file.write(b"more")
            return super().__call__(pixels)

    maker = FeatureMaker({"visual": Meddling()}, sampling=Sampling())
    with pytest.raises(MediaError, match=r"growing\.mp4") as caught:
        maker.features_of(clip)
    maker.close()
    assert caught.value.code == "changed_during_read"
    assert caught.value.retryable


def test_a_picture_that_stands_still_costs_one_pass(tmp_path: Path) -> None:
    # Shown at 0 s and at 9.5 s only: ten sampled times, two pictures.
    clip = draw_clip(tmp_path / "slides.mkv", times=[0.0, 9.5, 10.0])

    class Counting(MeanColour):
        pictures = 0

        def __call__(self, pixels: Tensor) -> Tensor:
            Counting.pictures += len(pixels)
            return super().__call__(pixels)

    maker = FeatureMaker({"visual": Counting()}, sampling=Sampling())
    features = maker.features_of(clip).streams["visual"]
    maker.close()
    assert len(features.rows) >= 10
    assert Counting.pictures <= 3
    assert (features.rows[0] == features.rows[9]).all()
