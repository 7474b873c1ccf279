"""The readout: scores against slow loops, and laws that hold for any logits."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtag.models.labels import Label, LabelSet
from vtag.models.readout import (
    OutputGroup,
    Readout,
    evidence,
    rank,
    segments,
    specific_first,
)
from vtag.records import Evidence, Segment

# Two kinds of pet under "animal", a car under nothing; drawn by hand.
LABELS = LabelSet(
    [
        Label("pug", "pug", ("dog",)),
        Label("husky", "husky", ("dog",)),
        Label("tabby", "tabby", ("animal",)),
        Label("car", "car"),
        Label("animal", "animal", members=("pug", "husky", "tabby")),
        Label("dog", "dog", ("animal",), members=("pug", "husky")),
    ]
)
PUG, HUSKY, TABBY, CAR, ANIMAL, DOG = range(6)
SOFTMAX = Readout(labels=LABELS, groups=(OutputGroup(outputs=4, kind="softmax"),))
SIGMOID = Readout(labels=LABELS, groups=(OutputGroup(outputs=4, kind="sigmoid"),))
KINDS = pytest.mark.parametrize("readout", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])

NOISE = LabelSet([Label("/m/bark", "bark", stream="audio"), Label("/m/hum", "hum", stream="audio")])
BOTH = Readout(
    labels=LabelSet([*LABELS[:4], *NOISE, *LABELS[4:]]),
    groups=(
        OutputGroup(outputs=4, stream="visual", kind="softmax"),
        OutputGroup(outputs=2, stream="audio", kind="sigmoid", temperature=2.0),
    ),
)

log_odds = st.floats(-60, 60, width=32)


def windows(least: int = 1, most: int = 45) -> st.SearchStrategy[Tensor]:
    """Logits [W, 4] of a drawn number of windows."""
    row = st.lists(log_odds, min_size=4, max_size=4)
    return st.lists(row, min_size=least, max_size=most).map(torch.tensor)


class TestWindowScores:
    def test_softmax_group_is_exp_over_sum_and_a_rollup_adds_up(self) -> None:
        logits = [1.0, -0.5, 2.0, 0.25]
        total = sum(math.exp(x) for x in logits)
        each = [math.exp(x) / total for x in logits]
        expected = [*each, sum(each[:3]), sum(each[:2])]
        scores = SOFTMAX.window_scores(torch.tensor([logits]))
        assert scores.dtype == torch.float32
        assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_sigmoid_group_stands_alone_and_a_rollup_is_its_best_member(self) -> None:
        logits = [1.0, -0.5, 2.0, 0.25]
        each = [1 / (1 + math.exp(-x)) for x in logits]
        scores = SIGMOID.window_scores(torch.tensor([logits]))
        assert scores[0].tolist() == pytest.approx([*each, each[2], each[0]], abs=1e-6)

    @KINDS
    @given(logits=windows(), factor=st.floats(1.01, 50))
    def test_temperature_divides_the_log_odds(
        self, readout: Readout, logits: Tensor, factor: float
    ) -> None:
        kind = readout.groups[0].kind
        cool = Readout(
            labels=LABELS, groups=(OutputGroup(outputs=4, kind=kind, temperature=factor),)
        )
        torch.testing.assert_close(
            cool.window_scores(logits), readout.window_scores(logits.double() / factor)
        )

    @KINDS
    @given(logits=windows())
    def test_scores_are_probabilities_and_no_label_beats_what_stands_over_it(
        self, readout: Readout, logits: Tensor
    ) -> None:
        scores = readout.window_scores(logits)
        assert scores.min() >= 0
        assert scores.max() <= 1
        for label in LABELS:
            for above in LABELS.ancestors(label):
                assert (scores[:, LABELS.index(above)] >= scores[:, LABELS.index(label)]).all(), (
                    label,
                    above,
                )

    @KINDS
    @given(logits=windows(), at=st.integers(0, 3), more=st.floats(0, 20))
    def test_a_label_and_what_stands_over_it_rise_with_its_log_odds(
        self, readout: Readout, logits: Tensor, at: int, more: float
    ) -> None:
        raised = logits.clone()
        raised[:, at] += more
        before, after = readout.window_scores(logits), readout.window_scores(raised)
        for label in (LABELS[at], *LABELS.ancestors(LABELS[at])):
            column = LABELS.index(label)
            # Double inside; only the rounding to float32 may differ.
            assert (after[:, column] >= before[:, column] - 1e-7).all()

    @given(seed=st.integers(0, 2**32), spread=st.floats(0.1, 30))
    @settings(max_examples=50)
    def test_a_rollup_never_falls_below_one_that_it_contains(
        self, seed: int, spread: float
    ) -> None:
        # Sums of hundreds of rounded numbers: `all` adds to `most` what may be next to nothing.
        ids = [f"x{at}" for at in range(400)]
        labels = LabelSet(
            [
                *(Label(i, f"n{i}", ("most" if at % 7 else "all",)) for at, i in enumerate(ids)),
                Label("all", "all", members=tuple(ids)),
                Label("most", "most", ("all",), members=tuple(i for i in ids if int(i[1:]) % 7)),
            ]
        )
        readout = Readout(labels=labels, groups=(OutputGroup(outputs=400, kind="softmax"),))
        random = torch.Generator().manual_seed(seed)
        scores = readout.window_scores(torch.randn(40, 400, generator=random) * spread)
        everything, most = scores[:, 400], scores[:, 401]
        assert torch.equal(everything, torch.ones(40))
        assert (most <= everything).all()
        assert (scores[:, [at for at in range(400) if at % 7]] <= most[:, None]).all()

    def test_half_precision_logits_are_read_like_their_float32_values(self) -> None:
        logits = torch.tensor([[3.0, -1.25, 0.5, 7.75]])
        for dtype in (torch.float16, torch.bfloat16):
            assert torch.equal(
                SOFTMAX.window_scores(logits.to(dtype)), SOFTMAX.window_scores(logits)
            )

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_no_number_is_refused(self, bad: float) -> None:
        with pytest.raises(ValueError, match="must be finite"):
            SOFTMAX.window_scores(torch.tensor([[0.0, bad, 0.0, 0.0]]))

    @pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 6), (1, 2, 4)])
    def test_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"must be \[W, 4\]"):
            SOFTMAX.window_scores(torch.zeros(shape))


class TestTwoStreams:
    def test_each_group_is_read_by_its_own_rule(self) -> None:
        logits = torch.tensor([[1.0, -0.5, 2.0, 0.25, 3.0, -1.0]])
        scores = BOTH.window_scores(logits)
        visual = SOFTMAX.window_scores(logits[:, :4])
        torch.testing.assert_close(scores[:, [0, 1, 2, 3, 6, 7]], visual)
        sound = [1 / (1 + math.exp(-x / 2)) for x in (3.0, -1.0)]
        assert scores[0, 4:6].tolist() == pytest.approx(sound, abs=1e-6)
        assert BOTH.streams == ("visual", "audio")

    def test_windows_of_one_stream_say_nothing_about_labels_of_the_other(self) -> None:
        logits = torch.tensor([[1.0, -0.5, 2.0, 0.25, 3.0, -1.0]])
        whole = BOTH.window_scores(logits)
        seen = BOTH.window_scores(logits, stream="visual")
        heard = BOTH.window_scores(logits, stream="audio")
        assert seen[0, 4:6].tolist() == [0, 0]
        assert heard[0, [0, 1, 2, 3, 6, 7]].tolist() == [0] * 6
        assert torch.equal(torch.maximum(seen, heard), whole)


class TestVideoScores:
    def loops(self, scores: Tensor) -> tuple[list[float], list[list[float]]]:
        """Mean over the best ceil(W / 10), and shares, one label and window at a time."""
        count, labels = scores.shape
        best = -(-count // 10)
        means, shares = [], [[0.0] * labels for _ in range(count)]
        for label in range(labels):
            column = scores[:, label].tolist()
            order = sorted(range(count), key=lambda at: (-column[at], at))[:best]
            total = math.fsum(column[at] for at in order)
            means.append(total / best)
            for at in order:
                shares[at][label] = column[at] / total if total else 1 / best
        return means, shares

    @KINDS
    @given(logits=windows())
    def test_equals_the_slow_loop(self, readout: Readout, logits: Tensor) -> None:
        scores = readout.window_scores(logits)
        means, shares = self.loops(scores)
        pooled, weights = readout.video_scores(scores)
        torch.testing.assert_close(pooled, torch.tensor(means), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights, torch.tensor(shares), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("windows_there", "score"), [(0, 0.0), (1, 0.5), (2, 1.0), (20, 1.0)])
    def test_what_shows_in_a_tenth_of_the_video_counts_in_full(
        self, windows_there: int, score: float
    ) -> None:
        scores = torch.zeros(20, 6)
        scores[:windows_there, CAR] = 1
        pooled, weights = SOFTMAX.video_scores(scores)
        assert pooled[CAR] == score
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(6))

    def test_among_equal_windows_the_earlier_ones_carry_the_score(self) -> None:
        _, weights = SOFTMAX.video_scores(torch.full((2000, 6), 0.5))
        torch.testing.assert_close(weights[:200], torch.full((200, 6), 1 / 200))
        assert not weights[200:].any()

    @KINDS
    @given(logits=windows())
    def test_no_label_beats_what_stands_over_it(self, readout: Readout, logits: Tensor) -> None:
        pooled, weights = readout.video_scores(readout.window_scores(logits))
        assert pooled.min() >= 0
        assert pooled.max() <= 1
        for label in LABELS:
            for above in LABELS.ancestors(label):
                assert pooled[LABELS.index(above)] >= pooled[LABELS.index(label)]
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(6))

    @KINDS
    @given(logits=windows(), data=st.data())
    def test_the_order_of_windows_is_nothing_to_the_score(
        self, readout: Readout, logits: Tensor, data: st.DataObject
    ) -> None:
        order = data.draw(st.permutations(range(len(logits))))
        scores = readout.window_scores(logits)
        pooled, _ = readout.video_scores(scores)
        shuffled, _ = readout.video_scores(scores[order])
        assert torch.equal(shuffled, pooled)

    @given(logits=windows(), times=st.integers(2, 4))
    def test_playing_a_video_again_does_not_lower_a_score(self, logits: Tensor, times: int) -> None:
        # ceil(W / 10) is too many for W = 11 and right for 20: repeated, the tenth is truer.
        scores = SOFTMAX.window_scores(logits)
        once, _ = SOFTMAX.video_scores(scores)
        again, _ = SOFTMAX.video_scores(scores.repeat(times, 1))
        assert (again >= once - 1e-7).all()
        if len(scores) % 10 == 0:
            torch.testing.assert_close(again, once, atol=1e-7, rtol=0)

    @given(logits=windows(), at=st.integers(0, 44), more=st.floats(0, 0.5))
    def test_a_better_window_does_not_lower_the_score(
        self, logits: Tensor, at: int, more: float
    ) -> None:
        scores = SOFTMAX.window_scores(logits)
        better = scores.clone()
        better[at % len(scores)] += more
        assert (SOFTMAX.video_scores(better)[0] >= SOFTMAX.video_scores(scores)[0]).all()

    @given(
        st.lists(st.floats(0, 1, width=32), min_size=1, max_size=80),
        st.floats(0.0078125, 1, width=32),
    )
    @settings(max_examples=300)
    def test_a_label_over_its_threshold_has_a_segment(
        self, column: list[float], threshold: float
    ) -> None:
        scores = torch.tensor(column)[:, None].repeat(1, 6)
        pooled = SOFTMAX.video_scores(scores)[0][0].item()
        found = segments(np.arange(len(column)), len(column), column, threshold)
        if pooled >= threshold:
            assert found
            assert max(segment.score for segment in found) >= pooled
        # At the very score of the video too, where a rounding upwards would show.
        if pooled > 0:
            assert segments(np.arange(len(column)), len(column), column, pooled)

    def test_the_network_may_score_the_video_itself(self) -> None:
        readout = Readout(labels=LABELS, groups=SIGMOID.groups, window_frames=5, pool="network")
        scores = readout.window_scores(torch.tensor([[0.0, 1, 2, 3], [1, 0, 0, 0]]))
        whole = readout.window_scores(torch.tensor([[-1.0, 0.5, 0, 2]]))
        pooled, weights = readout.video_scores(scores, whole=whole)
        assert torch.equal(pooled, whole[0])
        assert weights[:, CAR].tolist() == [1, 0]
        assert weights[:, PUG].tolist() == [0, 1]

    def test_whole_goes_with_the_network_pool_and_only_with_it(self) -> None:
        network = Readout(labels=LABELS, groups=SIGMOID.groups, pool="network")
        scores = torch.zeros(3, 6)
        with pytest.raises(ValueError, match="pool 'network'"):
            network.video_scores(scores)
        with pytest.raises(ValueError, match="not 'top_tenth'"):
            SIGMOID.video_scores(scores, whole=scores[:1])
        with pytest.raises(ValueError, match=r"whole must be \[1, 6\]"):
            network.video_scores(scores, whole=scores)
        with pytest.raises(ValueError, match=r"window scores must be \[W, C\]"):
            SIGMOID.video_scores(torch.zeros(0, 6))


class TestSegments:
    def test_runs_of_windows_are_half_open_and_the_last_lasts_until_the_end(self) -> None:
        found = segments([0, 1, 2.5, 4, 6], 7.5, [0.9, 0.5, 0.1, 0.0, 0.7], 0.5)
        assert found == (Segment(0, 2.5, 0.9), Segment(6, 7.5, 0.7))

    @pytest.mark.parametrize(
        ("between", "ends"),
        [
            ([0.25], [(0, 3)]),  # half the threshold bridges
            ([0.24], [(0, 1), (2, 3)]),
            ([0.4, 0.4], [(0, 1), (3, 4)]),  # two windows are a gap, however close they come
        ],
    )
    def test_a_single_window_that_keeps_half_the_threshold_is_bridged(
        self, between: list[float], ends: list[tuple[float, float]]
    ) -> None:
        scores = [0.6, *between, 0.8]
        found = segments(range(len(scores)), len(scores), scores, 0.5)
        assert [(segment.start, segment.end) for segment in found] == ends
        assert found[-1].score == 0.8

    def test_nothing_is_added_before_the_first_or_behind_the_last_run(self) -> None:
        assert segments([0, 1, 2], 3, [0.4, 0.6, 0.4], 0.5) == (Segment(1, 2, 0.6),)
        assert segments([0, 1, 2], 3, [0.4, 0.4, 0.4], 0.5) == ()
        assert segments([2], 3, [0.5], 0.5) == (Segment(2, 3, 0.5),)

    @given(
        scores=st.lists(st.floats(0, 1), min_size=1, max_size=40),
        threshold=st.floats(0.05, 1),
        step=st.floats(0.1, 9),
    )
    def test_segments_are_the_windows_over_the_threshold_and_apart(
        self, scores: list[float], threshold: float, step: float
    ) -> None:
        times = [at * step for at in range(len(scores))]
        found = segments(times, times[-1] + step, scores, threshold)
        for at, score in enumerate(scores):
            inside = [s for s in found if s.start <= times[at] < s.end]
            lone = (
                0 < at < len(scores) - 1
                and min(scores[at - 1], scores[at + 1]) >= threshold
                and score >= threshold / 2
            )
            assert len(inside) == (score >= threshold or lone)
            assert all(segment.score >= max(score, threshold) for segment in inside)
        assert all(one.end < two.start for one, two in pairwise(found))

    @pytest.mark.parametrize(
        ("times", "end", "scores"),
        [([0, 1], 1, [1, 1]), ([1, 1], 3, [1, 1]), ([2, 1], 3, [1, 1]), ([0, 1], 2, [1])],
    )
    def test_times_that_do_not_rise_are_refused(
        self, times: list[float], end: float, scores: list[float]
    ) -> None:
        with pytest.raises(ValueError, match="must rise strictly"):
            segments(times, end, scores, 0.5)


class TestEvidence:
    def test_heaviest_first_earlier_among_equals_and_none_without_weight(self) -> None:
        found = evidence([0, 1, 2, 3], [0.2, 0, 0.6, 0.2])
        assert found == (Evidence(2, 0.6), Evidence(0, 0.2), Evidence(3, 0.2))
        assert evidence([0, 1, 2, 3], [0.2, 0, 0.6, 0.2], at_most=1) == (Evidence(2, 0.6),)

    @given(logits=windows())
    def test_weights_of_a_label_add_up_to_one_at_most(self, logits: Tensor) -> None:
        _, weights = SOFTMAX.video_scores(SOFTMAX.window_scores(logits))
        for column in weights.T.numpy():
            found = evidence(range(len(column)), column)
            assert 1 <= len(found) <= 5
            assert 0 < sum(moment.weight for moment in found) <= 1 + 1e-6

    def test_one_weight_for_each_time(self) -> None:
        with pytest.raises(ValueError, match="one weight each"):
            evidence([0, 1], [1.0])


class TestRank:
    def test_best_first_and_the_specific_before_the_general_when_equal(self) -> None:
        scores = [0.0] * 6
        # Equal in four digits, so depth decides: pug (2 above), dog (1), animal (0).
        scores[PUG], scores[DOG], scores[ANIMAL], scores[CAR] = 0.90001, 0.90003, 0.90004, 0.95
        assert rank(scores, LABELS) == (CAR, PUG, DOG, ANIMAL, HUSKY, TABBY)
        scores[ANIMAL] = 0.9002
        assert rank(scores, LABELS) == (CAR, ANIMAL, PUG, DOG, HUSKY, TABBY)

    @given(logits=windows())
    def test_every_label_once_in_falling_order(self, logits: Tensor) -> None:
        scores = SOFTMAX.window_scores(logits)[0].numpy()
        order = rank(scores, LABELS)
        assert sorted(order) == list(range(6))
        ranked = scores[list(order)].astype(np.float64).round(4)
        assert (np.diff(ranked) <= 0).all()

    def test_one_score_for_each_label(self) -> None:
        with pytest.raises(ValueError, match="6 labels need one score each"):
            rank([0.1, 0.2], LABELS)


class TestSettings:
    @pytest.mark.parametrize("readout", [SOFTMAX, SIGMOID, BOTH])
    def test_survives_json(self, readout: Readout) -> None:
        text = json.dumps(readout.to_dict())
        assert Readout.from_dict(json.loads(text), readout.labels) == readout

    @pytest.mark.parametrize(
        ("settings_", "message"),
        [
            ({}, "needs a list of groups"),
            ({"groups": "softmax"}, "needs a list of groups"),
            ({"groups": [{"kind": "softmax"}]}, "a group has"),
            ({"groups": [{"outputs": 4, "size": 4}]}, "a group has"),
            ({"groups": [{"outputs": 3}]}, "groups cover 3 outputs, the labels name 4"),
            ({"groups": [{"outputs": 4, "kind": "relu"}]}, "no kind 'relu'"),
            ({"groups": [{"outputs": 4, "temperature": 0}]}, "temperature must be above 0"),
            ({"groups": [{"outputs": 4, "temperature": math.nan}]}, "temperature must be above"),
            ({"groups": [{"outputs": 4, "stream": "smell"}]}, "no stream 'smell'"),
            ({"groups": [{"outputs": 4, "stream": "audio"}]}, "label pug is of stream 'visual'"),
            ({"groups": [{"outputs": 1}, {"outputs": 3}]}, "roll-up animal lie in different"),
            ({"groups": [{"outputs": 4}], "pool": "max"}, "no pool 'max'"),
            ({"groups": [{"outputs": 4}], "window_frames": 0}, "window_frames must be 1"),
            ({"groups": [{"outputs": 4}], "windows": 2}, "a readout has groups"),
        ],
    )
    def test_nonsense_is_refused(self, settings_: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Readout.from_dict(settings_, LABELS)


class TestWindowsPerGroup:
    """Pictures one by one, sound in windows of several rows."""

    LABELS = LabelSet(
        [
            Label("a", "cat", stream="visual"),
            Label("b", "music", stream="audio"),
            Label("c", "speech", stream="audio"),
        ]
    )

    def test_each_stream_has_its_own_window(self) -> None:
        groups = (OutputGroup(outputs=1), OutputGroup(outputs=2, stream="audio", window_frames=5))
        readout = Readout(labels=self.LABELS, groups=groups, window_frames=2)
        assert readout.window_of("visual") == 2
        assert readout.window_of("audio") == 5
        assert Readout.from_dict(readout.to_dict(), self.LABELS) == readout

    def test_groups_of_one_stream_must_agree(self) -> None:
        groups = tuple(
            OutputGroup(outputs=1, stream=stream, window_frames=size)
            for stream, size in (("visual", 1), ("audio", 5), ("audio", 6))
        )
        with pytest.raises(ValueError, match="disagree"):
            Readout(labels=self.LABELS, groups=groups)  # type: ignore[arg-type]

    def test_a_window_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="window_frames"):
            OutputGroup(outputs=1, window_frames=0)


def test_an_output_that_stands_over_others_is_as_sure_as_the_surest() -> None:
    labels = LabelSet(
        [
            Label("dog", "dog", stream="audio"),
            Label("bark", "bark", parents=("dog",), stream="audio"),
            Label("rain", "rain", stream="audio"),
        ]
    )
    readout = Readout(labels=labels, groups=(OutputGroup(outputs=3, stream="audio"),))
    scores = readout.window_scores(torch.tensor([[-3.0, 2.0, 0.0], [1.0, -2.0, 5.0]]))
    expected = torch.tensor([[2.0, 2.0, 0.0], [1.0, -2.0, 5.0]]).sigmoid()
    torch.testing.assert_close(scores, expected)


KNOWN = Readout(
    labels=BOTH.labels,
    groups=(
        OutputGroup(outputs=4, kind="softmax", temperature=1.5, none_of_these=True),
        OutputGroup(outputs=2, stream="audio"),
    ),
)


class TestNoneOfThese:
    def test_takes_its_share_of_the_softmax_and_gives_it_to_no_label(self) -> None:
        logits, none = [1.0, -0.5, 2.0, 0.25], 1.75
        total = sum(math.exp(x / 1.5) for x in (*logits, none))
        each = [math.exp(x / 1.5) / total for x in logits]
        sound = [1 / (1 + math.exp(-x)) for x in (3.0, -1.0)]
        scores = KNOWN.window_scores(torch.tensor([[*logits, 3.0, -1.0, none]]))
        expected = [*each, *sound, sum(each[:3]), sum(each[:2])]
        assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert KNOWN.outputs == 7
        assert BOTH.outputs == 6

    @given(logits=windows(), none=st.floats(-60, 60), more=st.floats(0.1, 30))
    def test_the_more_of_it_the_less_of_all_labels_in_the_same_order(
        self, logits: Tensor, none: float, more: float
    ) -> None:
        readout = Readout(labels=LABELS, groups=(OutputGroup(
            outputs=4, kind="softmax", none_of_these=True
        ),))  # fmt: skip
        column = torch.full((len(logits), 1), none)
        less = readout.window_scores(torch.cat([logits, column], dim=1))
        least = readout.window_scores(torch.cat([logits, column + more], dim=1))
        assert (least <= less + 1e-7).all()
        order = logits.double().argsort(dim=1, stable=True)
        assert (less[:, :4].gather(1, order).diff(dim=1) >= -1e-7).all()
        for label in LABELS:
            for above in LABELS.ancestors(label):
                assert (least[:, LABELS.index(above)] >= least[:, LABELS.index(label)]).all()

    @given(logits=windows())
    def test_where_it_is_far_away_nothing_changes(self, logits: Tensor) -> None:
        readout = Readout(labels=LABELS, groups=(OutputGroup(
            outputs=4, kind="softmax", none_of_these=True
        ),))  # fmt: skip
        column = torch.full((len(logits), 1), -200.0)
        scores = readout.window_scores(torch.cat([logits, column], dim=1))
        torch.testing.assert_close(scores, SOFTMAX.window_scores(logits))

    def test_is_for_softmax_groups(self) -> None:
        with pytest.raises(ValueError, match="for kind 'softmax'"):
            OutputGroup(outputs=2, none_of_these=True)
        with pytest.raises(ValueError, match="true or false"):
            OutputGroup(outputs=2, kind="softmax", none_of_these=1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"must be \[W, 7\]"):
            KNOWN.window_scores(torch.zeros(1, 6))

    def test_comes_back_from_json(self) -> None:
        settings = json.loads(json.dumps(KNOWN.to_dict()))
        assert Readout.from_dict(settings, KNOWN.labels) == KNOWN


class TestSpecificFirst:
    EQUAL = np.full(6, 0.9)

    def test_what_is_implied_comes_behind_and_the_nearest_first(self) -> None:
        found = specific_first([ANIMAL, DOG, CAR, PUG], self.EQUAL, LABELS)
        assert found == (CAR, PUG, DOG, ANIMAL)
        found = specific_first([ANIMAL, TABBY, DOG, PUG], self.EQUAL, LABELS)
        assert found == (TABBY, PUG, ANIMAL, DOG)

    def test_without_a_child_a_rollup_keeps_its_place(self) -> None:
        for chosen in ([ANIMAL, CAR], [DOG, CAR, ANIMAL], []):
            assert specific_first(chosen, self.EQUAL, LABELS)[:1] == tuple(chosen[:1])
        assert specific_first([ANIMAL, CAR], self.EQUAL, LABELS) == (ANIMAL, CAR)

    def test_a_guess_does_not_imply_what_is_certain(self) -> None:
        scores = np.array([0.5, 0, 0, 0.6, 0.98, 0.97])  # a pug at 0.5, a dog at 0.97
        found = specific_first([ANIMAL, DOG, CAR, PUG], scores, LABELS)
        assert found == (DOG, CAR, PUG, ANIMAL)
        scores[PUG] = 0.74
        found = specific_first([ANIMAL, DOG, PUG, CAR], scores, LABELS)
        assert found == (PUG, CAR, DOG, ANIMAL)

    @given(st.permutations(range(6)), st.integers(0, 6))
    def test_keeps_every_label_and_the_order_among_the_specific(
        self, order: list[int], count: int
    ) -> None:
        chosen = order[:count]
        found = specific_first(chosen, self.EQUAL, LABELS)
        assert sorted(found) == sorted(chosen)
        implied = {LABELS.index(up) for at in chosen for up in LABELS.ancestors(LABELS[at])}
        specific = [at for at in chosen if at not in implied]
        assert list(found[: len(specific)]) == specific


class TestRollupOffset:
    def test_is_added_to_the_log_odds_of_the_sum(self) -> None:
        group = OutputGroup(outputs=4, kind="softmax", rollup_offset=0.75)
        readout = Readout(labels=LABELS, groups=(group,))
        logits = torch.tensor([[0.3, -0.5, 0.6, 2.25]])
        plain, raised = SOFTMAX.window_scores(logits)[0], readout.window_scores(logits)[0]
        assert torch.equal(raised[:4], plain[:4])
        for at in (ANIMAL, DOG):
            odds = plain[at].item() / (1 - plain[at].item()) * math.exp(0.75)
            assert raised[at].item() == pytest.approx(odds / (1 + odds), abs=1e-6)

    @given(logits=windows(), offset=st.floats(0, 10))
    def test_no_label_beats_what_stands_over_it(self, logits: Tensor, offset: float) -> None:
        group = OutputGroup(outputs=4, kind="softmax", rollup_offset=offset)
        scores = Readout(labels=LABELS, groups=(group,)).window_scores(logits)
        assert scores.max() <= 1
        for label in LABELS:
            for above in LABELS.ancestors(label):
                assert (scores[:, LABELS.index(above)] >= scores[:, LABELS.index(label)]).all()

    @pytest.mark.parametrize(
        ("kind", "offset", "message"),
        [("softmax", -0.1, "0 to 10"), ("softmax", math.nan, "0 to 10"), ("sigmoid", 1, "kind")],
    )
    def test_what_makes_no_sense_is_refused(self, kind: str, offset: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OutputGroup(outputs=2, kind=kind, rollup_offset=offset)  # type: ignore[arg-type]
