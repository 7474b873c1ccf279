"""Batches that threads share: every row to whom it belongs, every error too, and nothing left."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtag import Pipeline, Selection
from vtag.errors import EnvironmentProblem
from vtag.extractors import build_extractor
from vtag.shared_batches import BATCHES_WAITING, SharedFrames, SharedSounds, SharedWork

SAMPLES = Path(__file__).parent.parent / "sample_videos"


class Colours:
    """A row is the sum and the first value of its picture; remembers its batches."""

    name, dim, stream, device = "colours", 2, "visual", torch.device("cpu")

    def __init__(self, *, refuse: int | None = None) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.refuse = refuse
        self.may = threading.Event()
        self.may.set()

    def fingerprint(self) -> str:
        return "2" * 12

    def __call__(self, pixels: Tensor) -> Tensor:
        assert self.may.wait(20)
        self.batches.append(len(pixels))
        self.threads.add(threading.get_ident())
        if self.refuse is not None and (pixels[:, 0, 0, 0] == self.refuse).any():
            raise EnvironmentProblem("no memory for one item")
        flat = pixels.double().flatten(1)
        return torch.stack([flat.sum(1), flat[:, 0] if flat.numel() else flat.sum(1)], 1).float()


class Sums:
    """A row is the sum of its window and its first sample."""

    name, dim, stream, device = "sums", 2, "audio", torch.device("cpu")
    rate_hz, window_samples, hop_samples, hop_seconds = 100, 13, 10, 0.1

    def __init__(self) -> None:
        self.calls = 0

    def fingerprint(self) -> str:
        return "3" * 12

    def __call__(self, wave: Tensor) -> Tensor:
        self.calls += 1
        if len(wave) == 0:
            return torch.zeros(0, 2)
        padded = torch.nn.functional.pad(wave, (0, max(0, self.window_samples - len(wave))))
        windows = padded.unfold(0, self.window_samples, self.hop_samples)
        return torch.stack([windows.sum(1), windows[:, 0]], 1)


def pictures(seed: int, count: int, height: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, 5), dtype=torch.uint8, generator=generator)


videos = st.lists(  # of each video: its pieces as (pictures, height)
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([3, 4])), max_size=4), max_size=5
)


@given(videos=videos, batch_size=st.integers(1, 9), order=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_rows_of_mixed_videos_go_back_to_their_own(
    videos: list[list[tuple[int, int]]], batch_size: int, order: object
) -> None:
    network = Colours()
    shared = SharedFrames(network, batch_size=batch_size)
    asked = [
        (pictures(100 * v + n, count, height))
        for v, pieces in enumerate(videos)
        for n, (count, height) in enumerate(pieces)
    ]
    order.shuffle(asked)  # type: ignore[attr-defined]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(shared, asked))
    shared.close()
    for pixels, rows in zip(asked, answers, strict=True):
        assert rows.tolist() == Colours()(pixels).tolist()
    largest = max((len(pixels) for pixels in asked), default=0)
    assert max(network.batches, default=0) <= max(batch_size, largest)


@given(lengths=st.lists(st.integers(0, 60), max_size=8), batch_size=st.integers(1, 30))
@settings(max_examples=60)
def test_rows_of_joined_sounds_are_those_of_each(lengths: list[int], batch_size: int) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    # Whole numbers, so that sums are exact.
    waves = [torch.randint(-9, 9, (n,), generator=generator).float() for n in lengths]
    shared = SharedSounds(Sums(), batch_size=batch_size)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(shared, waves))
    shared.close()
    for wave, rows in zip(waves, answers, strict=True):
        assert rows.tolist() == Sums()(wave).tolist()


def test_what_waits_goes_through_the_network_together_in_one_thread() -> None:
    network = Colours()
    shared = SharedFrames(network, batch_size=8)
    network.may.clear()
    answers = [shared.submit(pictures(0, 1))]
    time.sleep(0.1)  # the first is in the network by now
    answers += [shared.submit(pictures(n, 3)) for n in (1, 2)]
    network.may.set()
    assert [len(answer.result(10)) for answer in answers] == [1, 3, 3]
    assert network.batches == [1, 6]
    assert len(network.threads) == 1
    assert threading.get_ident() not in network.threads
    shared.close()


def test_sounds_are_joined_too() -> None:
    sums = Sums()
    shared = SharedSounds(sums, batch_size=100)
    answers = shared._rows([torch.ones(40), torch.zeros(5), torch.full((33,), 2.0)])
    assert [rows[:, 0].tolist() for rows in answers] == [[13, 13, 13], [0], [26, 26, 26]]
    assert sums.calls == 1


def test_the_queue_is_bounded() -> None:
    network = Colours()
    shared = SharedFrames(network, batch_size=4)
    network.may.clear()
    answers: list[Future[Tensor]] = []

    feeder = ThreadPoolExecutor(1)
    fed = feeder.submit(lambda: [answers.append(shared.submit(pictures(n, 1))) for n in range(20)])
    time.sleep(0.5)
    assert len(answers) == BATCHES_WAITING * 4
    network.may.set()
    fed.result(10)
    assert len(answers) == 20
    shared.close()
    feeder.shutdown()


@pytest.mark.parametrize("refused", range(4))
def test_an_error_reaches_only_whom_it_concerns(refused: int) -> None:
    network = Colours(refuse=refused)
    shared = SharedFrames(network, batch_size=8)
    network.may.clear()
    first = shared.submit(torch.full((1, 3, 2, 2), 9, dtype=torch.uint8))
    time.sleep(0.05)
    parts = [torch.full((2, 3, 2, 2), n, dtype=torch.uint8) for n in range(4)]
    answers = [shared.submit(part) for part in parts]
    network.may.set()
    assert len(first.result(10)) == 1
    for n, answer in enumerate(answers):
        if n == refused:
            with pytest.raises(EnvironmentProblem, match="no memory"):
                answer.result(10)
        else:
            assert answer.result(10)[:, 0].tolist() == [12 * n] * 2
    shared.close()


def test_close_answers_what_was_asked_and_can_be_used_again() -> None:
    network = Colours()
    shared = SharedFrames(network, batch_size=2)
    before = threading.active_count()
    answers = [shared.submit(pictures(n, 1)) for n in range(4)]
    shared.close()
    assert all(answer.done() for answer in answers)
    assert threading.active_count() == before
    assert len(shared(pictures(9, 3))) == 3
    shared.close()
    shared.close()


def test_the_thread_ends_by_itself_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtag.shared_batches.IDLE_SECONDS", 0.1)
    shared = SharedFrames(Colours(), batch_size=2)
    before = threading.active_count()
    shared(pictures(1, 1))
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before
    assert len(shared(pictures(1, 1))) == 1


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        SharedWork(lambda questions: questions, most=0)


def test_scores_do_not_depend_on_whose_frames_share_a_batch() -> None:
    clips = [SAMPLES / name for name in ("dog.mp4", "drums.mp4", "two_scenes.mp4")]
    every = Selection(top_k=None, threshold=0.0)
    with Pipeline(device="cpu", selection=every) as alone:
        expected = [scores(record.tags) for record in alone.tag_many(clips)]
    with Pipeline(device="cpu", selection=every) as together:
        made = together._maker.extractors
        made["visual"] = SharedFrames(build_extractor("resnet50", device="cpu"), batch_size=12)
        made["audio"] = SharedSounds(
            build_extractor(together.head.extractor_names["audio"], device="cpu"), batch_size=64
        )
        found = [scores(record.tags) for record in together.tag_many(clips, workers=3)]
    for one, other in zip(found, expected, strict=True):
        # 1e-4 is the promise; a little more because scores are written with four digits.
        assert one == pytest.approx(other, abs=1.01e-4)


def scores(tags: Sequence[object]) -> dict[str, float]:
    return {tag.id: tag.score for tag in tags}  # type: ignore[attr-defined]
