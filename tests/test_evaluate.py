"""Metrics: worked examples of the published code, slow loops, and laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtag.errors import ConfigError, OutputError
from vtag.evaluate import (
    average_precision_at_n,
    average_precision_per_label,
    best_f1_thresholds,
    bootstrap_interval,
    expected_calibration_error,
    f1_at,
    gap_at_k,
    hit_at_one,
    mean_average_precision,
    perr,
    precision_thresholds,
    segment_map_at_k,
)
from vtag.kaggle import (
    read_segment_submission,
    read_video_submission,
    write_segment_submission,
    write_video_submission,
)

# Golden A and B: results of eval_util of google/youtube-8m (e6f6bf6), run once on these arrays.
SCORES_A = np.array(
    [
        [0.9, 0.1, 0.3, 0.2, 0.05],
        [0.2, 0.8, 0.1, 0.7, 0.6],
        [0.4, 0.35, 0.3, 0.25, 0.2],
        [0.6, 0.5, 0.1, 0.2, 0.3],
    ]
)
LABELS_A = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])


def golden_b() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(7)
    scores = random.rand(200, 50)
    return scores, random.rand(200, 50) < 0.2 * scores


class TestPublishedValues:
    def test_golden_a(self) -> None:
        assert hit_at_one(SCORES_A, LABELS_A) == 0.5
        assert perr(SCORES_A, LABELS_A) == 0.375

    @pytest.mark.parametrize(
        ("k", "gap", "mean_ap"), [(20, 0.7533333, 1.0), (2, 0.62, 0.75), (1, 0.4, 0.375)]
    )
    def test_golden_a_at_k(self, k: int, gap: float, mean_ap: float) -> None:
        # A holds ties that matter at k = 20, which the published code breaks by accident. Its
        # accidents, said by a hair's breadth: in the one list of GAP a miss comes first at 0.6
        # and at 0.3, in label 2's own list the hit comes first at 0.3.
        one_list, lists = SCORES_A.copy(), SCORES_A.copy()
        one_list[[3, 2, 0], [0, 2, 2]] += [1e-9, 1e-9, 5e-10]
        lists[0, 2] += 1e-9
        assert gap_at_k(one_list, LABELS_A, k) == pytest.approx(gap, abs=1e-7)
        assert mean_average_precision(lists, LABELS_A, k) == pytest.approx(mean_ap, abs=1e-12)
        # Four of the five labels have a positive; the code of 2017 counts the fifth as 0.
        assert mean_average_precision(lists, LABELS_A, k, empty="zero") == pytest.approx(
            mean_ap * 4 / 5, abs=1e-12
        )

    def test_golden_a_with_its_ties(self) -> None:
        # 0.9 and 0.8 hit, 0.7 misses, 0.6 is a tie of a hit and a miss (3 of 5), 0.5 hits
        # (4 of 6), 0.3 is a tie of one hit and two misses (5 of 11).
        expected = (1 + 1 + 3 / 5 + 4 / 6 + 5 / 11) / 5
        assert gap_at_k(SCORES_A, LABELS_A) == pytest.approx(expected, abs=1e-12)
        # Label 2: its hit shares 0.3 with a miss, 1 of 2; the other three rank it first.
        assert mean_average_precision(SCORES_A, LABELS_A) == pytest.approx((1 + 1 + 0.5 + 1) / 4)

    def test_golden_b(self) -> None:
        scores, labels = golden_b()
        assert labels.sum() == 995
        assert (labels.sum(axis=1) == 0).sum() == 3
        assert gap_at_k(scores, labels) == pytest.approx(0.115260999762, abs=1e-12)
        assert mean_average_precision(scores, labels) == pytest.approx(0.145233465831, abs=1e-12)
        assert hit_at_one(scores, labels) == 0.195
        assert perr(scores, labels) == pytest.approx(0.179845238095, abs=1e-12)

    def test_average_precision_of_one_list(self) -> None:
        scores, labels = [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1]
        # (1/1 + 2/3 + 3/4) / 3, and cut at two: (1/1) / min(3, 2).
        assert average_precision_at_n(scores, labels) == pytest.approx(0.805556, abs=1e-6)
        assert average_precision_at_n(scores, labels, 2) == 0.5
        assert average_precision_at_n(scores, labels, 2, total_positives=1) == 1.0

    def test_more_labels_than_places_can_not_reach_one(self) -> None:
        scores = np.linspace(1, 0.5, 30)[None]
        labels = np.arange(30)[None] < 25
        assert gap_at_k(scores, labels) == pytest.approx(20 / 25)

    def test_nothing_to_find_is_zero(self) -> None:
        for metric in (hit_at_one, perr, gap_at_k, mean_average_precision):
            assert metric(SCORES_A, np.zeros((4, 5))) == 0
            assert metric(np.zeros((0, 5)), np.zeros((0, 5))) == 0

    def test_zero_scores_are_ranked_but_never_equal_recall_hits(self) -> None:
        labels = np.array([[1, 1, 0, 0]])
        assert perr(np.zeros((1, 4)), labels) == 0
        assert gap_at_k(np.zeros((1, 4)), labels) == 0.5  # one tie of four with two positives


def slow_gap(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The definition with tie-free scores, one pair at a time."""
    pairs = []
    for row, truth in zip(scores, labels, strict=True):
        pairs += sorted(zip(row, truth, strict=True), reverse=True)[:k]
    hits, total = 0, 0.0
    for rank, (_, hit) in enumerate(sorted(pairs, reverse=True), start=1):
        hits += hit
        total += hits / rank * hit
    return total / max(1, labels.sum())


class TestLaws:
    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 7), st.integers(1, 8))
    def test_gap_is_the_slow_loop_on_distinct_scores(
        self, seed: int, clips: int, labels: int, k: int
    ) -> None:
        random = np.random.default_rng(seed)
        scores = random.permutation(clips * labels).reshape(clips, labels) / 64
        truth = random.random((clips, labels)) < 0.4
        assert gap_at_k(scores, truth, k) == pytest.approx(slow_gap(scores, truth, k))

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_the_order_of_clips_and_labels_changes_nothing_even_with_ties(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        scores = random.integers(0, 4, (6, 5)) / 4
        truth = random.random((6, 5)) < 0.4
        rows, columns = random.permutation(6), random.permutation(5)
        moved = scores[rows][:, columns], truth[rows][:, columns]
        assert gap_at_k(*moved) == pytest.approx(gap_at_k(scores, truth))
        assert mean_average_precision(*moved) == pytest.approx(
            mean_average_precision(scores, truth)
        )

    def test_one_tie_gives_the_base_rate(self) -> None:
        labels = np.arange(20).reshape(4, 5) % 4 == 0
        assert gap_at_k(np.full((4, 5), 0.3), labels) == pytest.approx(5 / 20)

    def test_a_million_pairs(self) -> None:
        random = np.random.default_rng(3)
        scores = random.random((1000, 1000))
        truth = random.random((1000, 1000)) < 0.01
        per_label = average_precision_per_label(scores, truth)
        assert mean_average_precision(scores, truth, None) == pytest.approx(np.mean(per_label))

    def test_a_nan_or_a_wrong_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            gap_at_k(np.array([[np.nan]]), np.array([[1]]))
        with pytest.raises(ValueError, match=r"\[N, C\]"):
            perr(np.zeros((2, 3)), np.zeros((3, 2)))


def test_average_precision_per_label_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5]])
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    found = average_precision_per_label(scores, labels)
    # (1/1 + 2/3) / 2; the only positive comes third; no positive.
    assert found.tolist() == pytest.approx([5 / 6, 1 / 3, float("nan")], nan_ok=True)


class TestSegments:
    def test_unrated_segments_go_after_the_cut(self) -> None:
        ratings = {3: {"a:0": True, "b:5": False, "c:0": True}}
        ranked = {3: ["x:0", "b:5", "a:0", "c:0"]}
        # b (no), a (yes), c (yes): (1/2 + 2/3) / 2.
        assert segment_map_at_k(ranked, ratings) == pytest.approx((1 / 2 + 2 / 3) / 2)
        # Cut at three before x is removed: only b and a are left. The other order would keep c.
        assert segment_map_at_k(ranked, ratings, k=3) == pytest.approx(1 / 2 / 2)

    def test_classes_without_a_positive_are_left_out(self) -> None:
        ratings = {1: {"a:0": True}, 2: {"a:0": False}}
        assert segment_map_at_k({1: ["a:0"], 2: ["a:0"], 9: ["a:0"]}, ratings) == 1.0
        assert segment_map_at_k({}, ratings) == 0.0

    def test_a_segment_listed_twice_counts_once(self) -> None:
        assert segment_map_at_k({1: ["a:0", "a:0"]}, {1: {"a:0": True}}) == 1.0


class TestThresholds:
    SCORES = np.array([[0.9, 0.9], [0.7, 0.8], [0.5, 0.6], [0.3, 0.4]])
    LABELS = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])

    def test_best_f1_lies_half_way(self) -> None:
        # Label 0: both above 0.7, next 0.5. Label 1: three taken, two right (F1 0.8), next 0.4.
        assert best_f1_thresholds(self.SCORES, self.LABELS).tolist() == pytest.approx([0.6, 0.5])

    def test_best_f1_without_a_positive_is_the_default(self) -> None:
        assert best_f1_thresholds([[0.2], [0.3]], [[0], [0]], default=0.7).tolist() == [0.7]
        assert best_f1_thresholds(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == [0.5, 0.5]

    def test_precision_first(self) -> None:
        # Label 1: only the first cut (1 of 1) is at least 0.9 right; 2 of 3 is at least 0.6.
        # Label 0 has all its positives at 0.7: a lower threshold would only add misses.
        assert precision_thresholds(
            self.SCORES, self.LABELS, precision=0.9
        ).tolist() == pytest.approx([0.6, 0.85])
        assert precision_thresholds(
            self.SCORES, self.LABELS, precision=0.6
        ).tolist() == pytest.approx([0.6, 0.5])

    def test_a_precision_out_of_reach_silences_the_tag(self) -> None:
        found = precision_thresholds([[0.9], [0.2]], [[0], [1]], precision=0.9)
        assert found.tolist() == [1.0]

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_no_other_threshold_has_a_better_f1(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        scores = random.integers(0, 9, (12, 1)) / 8
        labels = random.random((12, 1)) < 0.5
        labels[0] = True
        best = f1_at(scores, labels, best_f1_thresholds(scores, labels))
        assert best == pytest.approx(max(f1_at(scores, labels, t) for t in np.unique(scores)))

    def test_neighbouring_floats(self) -> None:
        high = np.nextafter(0.5, 1)
        assert (
            f1_at([[high], [0.5]], [[1], [0]], best_f1_thresholds([[high], [0.5]], [[1], [0]])) == 1
        )

    def test_f1_by_hand(self) -> None:
        # At 0.65: label 0 gives 2 of 2; label 1 gives 2, one right of two true: F1 1/2.
        assert f1_at(self.SCORES, self.LABELS, 0.65) == pytest.approx(2 * 3 / (4 + 4))
        assert f1_at(self.SCORES, self.LABELS, 0.65, average="macro") == pytest.approx(0.75)


class TestCalibration:
    def test_by_hand(self) -> None:
        # Two bins: 0.2 and 0.4 promise 0.6 hits and one comes; 0.9 promises 0.9 and one comes.
        found = expected_calibration_error([[0.2, 0.4, 0.9]], [[0, 1, 1]], bins=2)
        assert found == pytest.approx((0.4 + 0.1) / 3)

    def test_scores_that_promise_nothing_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"0\.\.1"):
            expected_calibration_error([[1.5]], [[1]])


def test_bootstrap_interval_shrinks_with_the_clips() -> None:
    # The mean of N coin flips lies within 1.96 * sqrt(0.25 / N) of 0.5 in 95 of 100 cases.
    for clips in (100, 1600):
        labels = np.zeros((clips, 2))
        labels[: clips // 2, 0] = labels[clips // 2 :, 1] = 1
        scores = np.tile([0.9, 0.1], (clips, 1))
        low, high = bootstrap_interval(hit_at_one, scores, labels, rounds=800, seed=5)
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / clips), rel=0.2)
        assert low < 0.5 < high
    assert bootstrap_interval(hit_at_one, scores, labels, rounds=800, seed=5) == (low, high)


class TestKaggleFiles:
    def test_videos_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        write_video_submission(path, ["ab", "cd"], [[0.1, 0.9, 0.5], [0.3, 0.2, 0.25]], top=2)
        assert path.read_text() == (
            "VideoId,LabelConfidencePairs\nab,1 0.900000 2 0.500000\ncd,0 0.300000 2 0.250000\n"
        )
        assert list(read_video_submission(path)) == [
            ("ab", {1: 0.9, 2: 0.5}),
            ("cd", {0: 0.3, 2: 0.25}),
        ]

    def test_segments_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        write_segment_submission(path, {7: ["b:5"], 3: ["a:0", "b:10"]})
        assert path.read_text() == "Class,Segments\n3,a:0 b:10\n7,b:5\n"
        assert read_segment_submission(path) == {3: ("a:0", "b:10"), 7: ("b:5",)}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ab,1 0.5 2\n", "line 1: not pairs"),
            ("VideoId,LabelConfidencePairs\nab;1\n", "line 2: not of the form"),
            ("ab,1 0.5 1 0.4\n", "line 1: a label is listed twice"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "in.csv"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            list(read_video_submission(path))

    def test_a_bad_class_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("Class,Segments\n3,a:0\nx,b:0\n")
        with pytest.raises(ConfigError, match="line 3: class 'x'"):
            read_segment_submission(path)

    def test_an_id_with_a_comma_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="comma"):
            write_video_submission(tmp_path / "out.csv", ["a,b"], [[0.5]])
        assert list(tmp_path.iterdir()) == []

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="can not be written"):
            write_video_submission(tmp_path / "no" / "out.csv", ["a"], [[0.5]])
