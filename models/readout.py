"""From log-odds to scores, segments and evidence: how what the network says is read.

A video is scored window by window (a window is a few sampled frames, or one). The scores of
its windows say when something is there; the best tenth of them says how sure the video is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vtag.models.labels import LabelSet
from vtag.records import Evidence, Segment, Stream

Kind = Literal["softmax", "sigmoid"]
Pool = Literal["top_tenth", "network"]

TOP_SHARE: Final = 10  # the best ceil(W / 10) windows make a video's score
NEARLY_AS_SURE: Final = 0.75  # of the score of a label above
HIGHEST_OFFSET: Final = 10.0
BRIDGE_SHARE: Final = 0.5  # of the threshold, which a lone window must keep to bridge two runs


@dataclass(frozen=True, kw_only=True)
class OutputGroup:
    """A run of network outputs that are read together.

    Attributes:
        outputs: how many; the groups follow each other in the order of the outputs.
        stream: whose windows the group is read from.
        kind: "softmax": one of the outputs is true at a time (so also for a single_label
            network: its log-probabilities come back as they were), and a roll-up is the sum
            of its members, clipped to 1. "sigmoid": each may be true or not, and a roll-up is the
            best of its members, the most that is certain without knowing how they overlap.
            An output that stands over others is at least as sure as the surest of them.
        temperature: log-odds are divided by it; above 1 makes the scores more modest.
        window_frames: rows in time for one window of the group's stream; None takes the
            readout's. Sound may need several rows where one picture says enough.
        none_of_these: the network has one more output for the group, which is no label: "none
            of these" takes part in the softmax and keeps the share that it gets. These outputs
            stand behind those of all labels, in the order of the groups.
        rollup_offset: added to the log-odds of a roll-up's sum, 0 or more: when none of the
            outputs is quite the right one, what stands over several of them often is.

    Raises:
        ValueError: a field makes no sense.
    """

    outputs: int
    stream: Stream = "visual"
    kind: Kind = "sigmoid"
    temperature: float = 1.0
    window_frames: int | None = None
    none_of_these: bool = False
    rollup_offset: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.outputs, int) or self.outputs < 1:
            raise ValueError(f"a group has at least one output, not {self.outputs!r}")
        if self.stream not in get_args(Stream):
            raise ValueError(f"no stream {self.stream!r}; there are: {', '.join(get_args(Stream))}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"no kind {self.kind!r}; there are: {', '.join(get_args(Kind))}")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature!r}")
        size = self.window_frames
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"window_frames must be 1 or more, not {size!r}")
        if not isinstance(self.none_of_these, bool):
            raise ValueError(f"none_of_these must be true or false, not {self.none_of_these!r}")
        if self.none_of_these and self.kind != "softmax":
            raise ValueError(f"none_of_these is for kind 'softmax', not {self.kind!r}")
        offset = self.rollup_offset
        if not isinstance(offset, int | float) or not 0 <= offset <= HIGHEST_OFFSET:
            raise ValueError(f"rollup_offset must be 0 to {HIGHEST_OFFSET}, not {offset!r}")
        if offset and self.kind != "softmax":
            raise ValueError(f"rollup_offset is for kind 'softmax', not {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How the log-odds of a network become the scores of its labels.

    Attributes:
        labels: the network's outputs in order, then the roll-ups.
        groups: cover the outputs from first to last.
        window_frames: how many rows in time the network sees at once for one window.
        pool: "top_tenth": a video's score is the mean over its best windows. "network": the
            network looks at all rows at once for it, and windows only serve the segments.

    Raises:
        ValueError: groups and labels do not fit together, or a field makes no sense.
    """

    labels: LabelSet
    groups: tuple[OutputGroup, ...]
    window_frames: int = 1
    pool: Pool = "top_tenth"
    _members: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _group_of: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _below: tuple[tuple[int, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        covered = sum(group.outputs for group in self.groups)
        if covered != self.labels.outputs:
            raise ValueError(
                f"the groups cover {covered} outputs, the labels name {self.labels.outputs}"
            )
        if not isinstance(self.window_frames, int) or self.window_frames < 1:
            raise ValueError(f"window_frames must be 1 or more, not {self.window_frames!r}")
        if self.pool not in get_args(Pool):
            raise ValueError(f"no pool {self.pool!r}; there are: {', '.join(get_args(Pool))}")
        for stream in self.streams:
            sizes = {group.window_frames for group in self.groups if group.stream == stream}
            if len(sizes) > 1:
                raise ValueError(f"groups of {stream!r} disagree about their windows: {sizes}")
        members = tuple(
            tuple(self.labels.index(member) for member in label.members)
            for label in self.labels[self.labels.outputs :]
        )
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_group_of", self._find_groups(members))
        object.__setattr__(self, "_below", self._find_below())

    @classmethod
    def from_dict(cls, settings: Mapping[str, object], labels: LabelSet) -> Readout:
        """The readout that `to_dict` described, over these labels.

        Raises:
            ValueError: a setting is unknown, missing, or does not fit the labels.
        """
        groups = settings.get("groups")
        if not isinstance(groups, Sequence) or not all(isinstance(g, Mapping) for g in groups):
            raise ValueError(f"a readout needs a list of groups, found {str(groups)[:120]}")
        known = {f.name for f in fields(OutputGroup)}
        for group in groups:
            if "outputs" not in group or not set(group) <= known:
                raise ValueError(f"a group has {', '.join(sorted(known))}; found {dict(group)}")
        rest = {key: value for key, value in settings.items() if key != "groups"}
        if not set(rest) <= {"window_frames", "pool"}:
            raise ValueError(
                f"a readout has groups, window_frames and pool; found {', '.join(settings)}"
            )
        made = tuple(OutputGroup(**group) for group in groups)
        return cls(labels=labels, groups=made, **rest)  # type: ignore[arg-type]  # checked when made

    def to_dict(self) -> dict[str, object]:
        """What config.json holds under "readout"."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "window_frames": self.window_frames,
            "pool": self.pool,
        }

    @property
    def outputs(self) -> int:
        """How many outputs the network has: one per label that is no roll-up, and the nones."""
        return self.labels.outputs + sum(group.none_of_these for group in self.groups)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams whose windows this readout needs, in the order of the groups."""
        return tuple(dict.fromkeys(group.stream for group in self.groups))

    def window_of(self, stream: Stream) -> int:
        """How many rows of a stream make one window."""
        sizes = {
            self.window_frames if group.window_frames is None else group.window_frames
            for group in self.groups
            if group.stream == stream
        }
        return sizes.pop() if sizes else self.window_frames

    def window_scores(self, logits: Tensor, *, stream: Stream | None = None) -> Tensor:
        """float32 [W, C_labels] within [0, 1], on the CPU.

        A label never scores above a roll-up that stands over it.

        Args:
            logits: [W, C_net] log-odds of the network's outputs, on any device; C_net is
                `outputs`.
            stream: where the windows come from. Labels that are read from another stream get
                0: these windows say nothing about them. None takes the windows for all.

        Raises:
            ValueError: the logits are not [W, C_net], or not finite.
        """
        if logits.ndim != 2 or logits.shape[1] != self.outputs:
            raise ValueError(f"logits must be [W, {self.outputs}], got {list(logits.shape)}")
        # In doubles, and rounded once at the end: summed in float32 a roll-up falls below one
        # that it contains. On the CPU, as some accelerators have no doubles.
        logits = logits.detach().to("cpu", torch.float64)
        if not logits.isfinite().all():
            raise ValueError("logits must be finite; the network's weights or input are damaged")
        columns = [
            torch.zeros_like(part)
            if stream not in (None, group.stream)
            else _shares(part / group.temperature, none / group.temperature)
            if group.kind == "softmax"
            else (part / group.temperature).sigmoid()
            for part, none, group in self._by_group(logits)
        ]
        outputs = torch.cat(columns, dim=1)
        for above, below in self._below:
            outputs[:, above] = outputs[:, [above, *below]].amax(dim=1)
        return torch.cat([outputs, self._roll_up(outputs)], dim=1).clamp(0, 1).float()

    def video_scores(
        self, window_scores: Tensor, *, whole: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score of each label for the video, float32 [C], and each window's share in it [W, C].

        "top_tenth" takes the mean over the best ceil(W / 10) windows, so that what shows in a
        tenth of the video still counts in full. A window's share is its part of that sum (0
        outside the best); the shares of a label add up to 1. Among equals the earlier window
        is taken. "network" takes `whole` for the score and shares out the same windows.

        Args:
            window_scores: [W, C], W >= 1, as `window_scores` gives them.
            whole: [1, C] as `window_scores` gives them for the log-odds that the network gave
                for all rows at once; needed by "network" and refused by "top_tenth".

        Raises:
            ValueError: a shape is wrong, or `whole` does not go with the pool.
        """
        if window_scores.ndim != 2 or len(window_scores) == 0:
            raise ValueError(f"window scores must be [W, C], got {list(window_scores.shape)}")
        if (whole is not None) != (self.pool == "network"):
            raise ValueError(
                f"whole goes with the pool 'network' and only with it, not {self.pool!r}"
            )
        scores = window_scores.double()
        best = math.ceil(len(scores) / TOP_SHARE)
        order = scores.argsort(dim=0, descending=True, stable=True)[:best]
        top = scores.gather(0, order)  # [best, C]
        total = top.sum(dim=0)
        # Where nothing scored at all, the best windows share equally.
        share = torch.where(total > 0, top / total.clamp(min=1e-300), 1 / best)
        shares = torch.zeros_like(scores).scatter(0, order, share).float()
        if whole is None:
            return (total / best).float(), shares
        if whole.shape != (1, scores.shape[1]):
            raise ValueError(f"whole must be [1, {scores.shape[1]}], got {list(whole.shape)}")
        return whole[0].float(), shares

    def _by_group(self, logits: Tensor) -> list[tuple[Tensor, Tensor, OutputGroup]]:
        """Each group's part of the logits: of its labels, and [W, 0 or 1] of its "none"."""
        sizes = [group.outputs for group in self.groups]
        nones = [int(group.none_of_these) for group in self.groups]
        parts = torch.split(logits, [*sizes, *nones], dim=1)
        return list(zip(parts[: len(sizes)], parts[len(sizes) :], self.groups, strict=True))

    def _roll_up(self, outputs: Tensor) -> Tensor:
        """[W, roll-ups] from the scores of the outputs [W, C_net]."""
        columns = [
            _shifted(outputs[:, list(members)].sum(dim=1), self.groups[group].rollup_offset)
            if self.groups[group].kind == "softmax"
            else outputs[:, list(members)].amax(dim=1)
            for members, group in zip(self._members, self._group_of, strict=True)
        ]
        return torch.stack(columns, dim=1) if columns else outputs[:, :0]

    def _find_below(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Each output that is a parent of outputs, and all outputs below it.

        AudioSet's "Dog" is an output and stands over "Bark": a bark that is certain is a dog.
        """
        outputs = self.labels[: self.labels.outputs]
        above = {
            label.id: {up.id for up in self.labels.ancestors(label) if not up.is_rollup}
            for label in outputs
        }
        found = []
        for at, label in enumerate(outputs):
            below = tuple(n for n, other in enumerate(outputs) if label.id in above[other.id])
            if below:
                found.append((at, below))
        return tuple(found)

    def _find_groups(self, members: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        """The group of each roll-up; its members must share one."""
        group_at = [at for at, group in enumerate(self.groups) for _ in range(group.outputs)]
        found = []
        for label, columns in zip(self.labels[self.labels.outputs :], members, strict=True):
            groups = {group_at[column] for column in columns}
            if len(groups) != 1:
                raise ValueError(f"the members of roll-up {label.id} lie in different groups")
            found.append(groups.pop())
        for label, at in zip(self.labels, (*group_at, *found), strict=True):
            if label.stream != self.groups[at].stream:
                raise ValueError(
                    f"label {label.id} is of stream {label.stream!r}, "
                    f"its group of {self.groups[at].stream!r}"
                )
        return tuple(found)


def _shifted(chance: Tensor, offset: float) -> Tensor:
    """Chances with `offset` added to their log-odds: p eᵒ / (1 + p (eᵒ - 1)), never lower."""
    chance = chance.clamp(0, 1)
    return torch.maximum(chance, chance * math.exp(offset) / (1 + chance * math.expm1(offset)))


def _shares(labels: Tensor, none: Tensor) -> Tensor:
    """The labels' part of a softmax over labels and none."""
    return torch.cat([labels, none], dim=1).softmax(dim=1)[:, : labels.shape[1]]


def segments(
    times: ArrayLike, end: float, scores: ArrayLike, threshold: float
) -> tuple[Segment, ...]:
    """The stretches [start, end) in which a label scores its threshold or more, in order.

    A window lasts until the next one begins, the last until `end`. Between two runs a single
    window is bridged if it keeps half the threshold: one blurred frame does not end a scene,
    a cut away to something else does. A segment's score is that of its best window.

    Wherever the pool "top_tenth" puts a label over its threshold there is a segment: a mean
    over windows is at most the best of them.

    Args:
        times: [W] seconds at which the windows begin, strictly rising.
        end: seconds at which the last window ends, after all times.
        scores: [W] of one label.
        threshold: from the label.

    Raises:
        ValueError: times do not rise, or there are not as many scores.
    """
    starts, values = np.asarray(times, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    edges = np.append(starts, end)
    if starts.ndim != 1 or starts.shape != values.shape or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"{starts.shape} times must rise strictly towards the end at {end}, "
            f"with one score each, got {values.shape}"
        )
    inside = values >= threshold
    alone = ~inside[1:-1] & inside[:-2] & inside[2:]
    inside[1:-1] |= alone & (values[1:-1] >= BRIDGE_SHARE * threshold)
    turns = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return tuple(
        Segment(float(edges[first]), float(edges[stop]), float(values[first:stop].max()))
        for first, stop in turns.reshape(-1, 2)
    )


def evidence(times: ArrayLike, weights: ArrayLike, at_most: int = 5) -> tuple[Evidence, ...]:
    """The moments that carried a label, the heaviest first and among equals the earlier.

    Args:
        times: [W] seconds of the windows.
        weights: [W] shares of one label, as `Readout.video_scores` gives them; windows that
            had no share are left out.
        at_most: how many moments.

    Raises:
        ValueError: there is not one weight for each time.
    """
    seconds, shares = np.asarray(times, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if seconds.ndim != 1 or seconds.shape != shares.shape:
        raise ValueError(f"{seconds.shape} times need one weight each, got {shares.shape}")
    order = np.lexsort((seconds, -shares))[:at_most]
    return tuple(Evidence(float(seconds[at]), float(shares[at])) for at in order if shares[at] > 0)


def rank(scores: ArrayLike, labels: LabelSet) -> tuple[int, ...]:
    """Positions of all labels, best score first.

    Scores that agree in four digits count as equal, and the more specific label goes first:
    a golden retriever that is certain is more of an answer than a certain animal.

    Args:
        scores: [C] in the order of the labels.

    Raises:
        ValueError: there is not one score for each label.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels need one score each, got {values.shape}")
    depth = np.array(labels.depths)
    return tuple(int(at) for at in np.lexsort((np.arange(len(values)), -depth, -values.round(4))))


def specific_first(chosen: Sequence[int], scores: ArrayLike, labels: LabelSet) -> tuple[int, ...]:
    """The chosen labels, those last that a more specific one implies.

    Whoever is told of a golden retriever knows that it is a dog and an animal: five surer words
    for the same thing would push the next thing out of sight. So what a chosen label that is
    nearly as sure implies comes behind all that is not implied; among the implied the nearest
    come first (a dog before an animal). A cat that is certain, while its breed is a guess, is
    not implied by the breed. Otherwise the order stays.

    Args:
        chosen: positions of labels, best first.
        scores: [C] of all labels.
    """
    values = np.asarray(scores, dtype=np.float64)
    over = {at: [labels.index(label) for label in labels.ancestors(labels[at])] for at in chosen}
    implied = {up for at in chosen for up in over[at] if values[at] >= NEARLY_AS_SURE * values[up]}
    steps: dict[int, int] = {}  # from an implied label down to the nearest that is not
    for at in chosen:
        for step, up in enumerate(over[at], 1):
            if at not in implied and up in implied:
                steps[up] = min(step, steps.get(up, step))
    return tuple(sorted(chosen, key=lambda at: steps.get(at, 0)))
