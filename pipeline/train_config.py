"""Settings of a training run: frozen, checked when made, with the published recipes as presets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal, get_args

from vtag.batches import FrameSampling
from vtag.dataset import Dataset
from vtag.dataset_items import STREAMS_OF_CLIPS
from vtag.errors import ConfigError
from vtag.models.log_probabilities import OutputKind
from vtag.models.losses import LossConfig, check_loss
from vtag.models.net_config import TaggerNetConfig
from vtag.models.presets import (
    blog_config,
    medium_config,
    nextvlad_config,
    paper_config,
    small_config,
)

Preset = Literal["small-data", "medium", "paper", "nextvlad", "blog"]
Schedule = Literal["constant", "staircase", "cosine"]
Clipping = Literal["none", "per_variable", "global"]
Precision = Literal["float32", "bfloat16"]
Goal = Literal["gap", "map"]
FirstGuess = Literal["even", "base_rate", "linear"]

# Training clips below which a preset is the default; from the last one on it is "nextvlad".
SMALL_DATA_CLIPS: Final = 1000
MEDIUM_CLIPS: Final = 100_000
OPEN_PRESETS: Final = ("small-data", "medium")  # take any streams
# Text says so much that a network learns to look at nothing else, and most videos have none.
FURTHER_STREAM_DROPOUT: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        preset: which network is built, see `network_for`.
        output: "multi_label", or "single_label" where every clip has exactly one label.
        epochs: passes over the training clips at most.
        batch_size: clips per step, over all processes and parts together.
        accumulate: parts in which a process works through its share of a step: the same step
            with less memory (batch norm and dropout see the parts).
        frames: rows of a stream per clip; `frame_sampling` says which, while training.
        learning_rate: at its highest.
        schedule: "staircase" times `decay` every `decay_examples` clips (the paper), "cosine" to
            0 at the end of the last epoch, or "constant"; all after a linear rise over
            `warmup_steps`.
        weight_decay: decoupled (AdamW), on matrices only.
        first_guess: what the classifier says before it has learnt anything: "even" for every
            label, as published, or each label's share of the training clips. With many labels
            and few steps the first steps otherwise go into saying no. "linear": what the best
            linear classifier of the mean rows says, see `vtag.train_start`.
        clipping: of gradients at `clip_norm`; each variable by itself (the paper) or all at once.
        ema: decay of the averaged weights that are validated and kept; 0 for none.
        batch_norm_momentum: None leaves the published 0.001, which needs thousands of steps.
        patience: epochs without a better `goal` after which training ends; None for never.
        stop_after: epochs that are made at most, without a change of the schedule, which is laid
            out over `epochs`; None for all.
        refit: after the best epoch is known, train once more for as many epochs on all clips, those
            of validation too. Figures and thresholds are those of the first training: the second
            one has nothing left to be checked on. For few clips, where a fifth is worth much.
        teaching: share of a teacher's probabilities in the targets, where there is a teacher
            (half and half in the winning entry of 2018).
        goal: what "better" means on the validation clips: GAP@20, or mAP over whole rankings.
        precision: "bfloat16" computes in mixed precision, on CUDA only.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a field makes no sense, alone or with the others.
    """

    preset: Preset = "small-data"
    output: OutputKind = "multi_label"
    loss: LossConfig = field(default_factory=LossConfig)
    epochs: int = 60
    batch_size: int = 32
    accumulate: int = 1
    frames: int = 300
    frame_sampling: FrameSampling = "random"
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    decay: float = 0.8
    decay_examples: int = 4_000_000
    warmup_steps: int = 0
    weight_decay: float = 0.0
    first_guess: FirstGuess = "even"
    clipping: Clipping = "global"
    clip_norm: float = 1.0
    ema: float = 0.0
    batch_norm_momentum: float | None = None
    patience: int | None = None
    refit: bool = False
    stop_after: int | None = None
    teaching: float = 0.5
    goal: Goal = "gap"
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("preset", Preset),
            ("frame_sampling", FrameSampling),
            ("schedule", Schedule),
            ("clipping", Clipping),
            ("precision", Precision),
            ("goal", Goal),
            ("first_guess", FirstGuess),
            ("output", OutputKind),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"no {name} {getattr(self, name)!r}; there are: {', '.join(get_args(choices))}"
                )
        for name in ("epochs", "batch_size", "accumulate", "frames", "decay_examples"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)!r}")
        self._check_numbers()
        check_loss(self.loss, self.output)

    def _check_numbers(self) -> None:
        if not (0 < self.learning_rate <= 1 and math.isfinite(self.learning_rate)):
            raise ConfigError(
                f"the learning rate must be above 0 and at most 1, got {self.learning_rate}"
            )
        if not 0 < self.decay <= 1 or not 0 <= self.ema < 1:
            raise ConfigError(
                f"decay must be above 0 and at most 1 and ema 0 to below 1, "
                f"got {self.decay} and {self.ema}"
            )
        if not 0 <= self.teaching <= 1:
            raise ConfigError(f"teaching must be 0 to 1, got {self.teaching}")
        if not 0 <= self.weight_decay <= 1 or not self.clip_norm > 0 or self.warmup_steps < 0:
            raise ConfigError(
                "weight decay must be 0 to 1, clip norm above 0 and warm-up steps 0 or more, got "
                f"{self.weight_decay}, {self.clip_norm} and {self.warmup_steps}"
            )
        for name in ("patience", "stop_after"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 epoch or more, got {getattr(self, name)}")
        if self.batch_norm_momentum is not None and not 0 < self.batch_norm_momentum <= 1:
            raise ConfigError(
                "the batch norm's momentum must be above 0 and at most 1, "
                f"got {self.batch_norm_momentum}"
            )
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"a step of {self.batch_size} clips has no {self.accumulate} parts; "
                "raise the batch size or accumulate less"
            )
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"the seed must be a whole number of 0 or more, got {self.seed!r}")

    def to_dict(self) -> dict[str, object]:
        """A JSON object of all settings."""
        return asdict(self)

    def fingerprint(self) -> str:
        """12 hex digits that change exactly when a setting does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            fall = 1.0
        elif self.schedule == "staircase":
            # By examples and not by steps, as in the published code: another batch size keeps
            # the schedule.
            fall = self.decay ** (step * self.batch_size // self.decay_examples)
        else:
            left = max(1, total_steps - self.warmup_steps)
            fall = 0.5 + 0.5 * math.cos(math.pi * max(0, step - self.warmup_steps) / left)
        return self.learning_rate * rise * fall


# The paper and NeXtVLAD trained for hundreds of thousands of steps (method: 24 M examples are
# 3.8 passes over 6.3 M videos; NeXtVLAD 5 epochs of 120 k steps in all).
PRESETS: Final[Mapping[str, TrainConfig]] = {
    "small-data": TrainConfig(
        preset="small-data",
        epochs=12,
        batch_size=16,
        frames=32,
        learning_rate=2e-4,
        schedule="cosine",
        warmup_steps=10,
        weight_decay=0.01,
        first_guess="linear",
        ema=0.98,
        batch_norm_momentum=0.05,
        patience=6,
        refit=True,
        goal="map",
    ),
    "medium": TrainConfig(
        preset="medium",
        epochs=20,
        batch_size=64,
        frames=64,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        first_guess="base_rate",
        ema=0.99,
        batch_norm_momentum=0.01,
        patience=5,
    ),
    "paper": TrainConfig(
        preset="paper",
        epochs=4,
        batch_size=80,
        learning_rate=2e-4,
        schedule="staircase",
        decay=0.8,
        decay_examples=4_000_000,
        clipping="per_variable",
    ),
    "nextvlad": TrainConfig(
        preset="nextvlad",
        loss=LossConfig(expert_l2=1e-5),
        epochs=5,
        batch_size=160,
        frame_sampling="even",
        learning_rate=2e-4,
        schedule="staircase",
        decay=0.8,
        decay_examples=2_000_000,
    ),
    "blog": TrainConfig(
        preset="blog",
        epochs=60,
        batch_size=32,
        frames=10,
        frame_sampling="even",
        learning_rate=1e-3,
        schedule="cosine",
        batch_norm_momentum=0.05,
        patience=15,
    ),
}


def preset(name: str, **changes: object) -> TrainConfig:
    """The settings of a preset, with changes.

    Raises:
        ConfigError: no such preset or setting, or a value that makes no sense.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    unknown = set(changes) - set(asdict(PRESETS[name])) | {"preset"} & set(changes)
    if unknown:
        raise ConfigError(f"no training setting {min(unknown)!r}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]  # checked when made


def default_preset(dataset: Dataset) -> str:
    """The preset for a dataset of this size."""
    if len(dataset.train) < SMALL_DATA_CLIPS:
        return "small-data"
    if len(dataset.train) < MEDIUM_CLIPS or further_streams(dataset.dims):
        return "medium"
    return "nextvlad"


def further_streams(streams: Iterable[str]) -> list[str]:
    """Those that do not come from the clips themselves, sorted."""
    return sorted(set(streams) - set(STREAMS_OF_CLIPS))


def check_streams(preset_name: str, streams: Iterable[str]) -> None:
    """ConfigError if the preset's network has no place for one of the streams."""
    further = further_streams(streams)
    if further and preset_name not in OPEN_PRESETS:
        raise ConfigError(
            f"preset {preset_name!r} reads visual and audio rows only, not {further[0]}; take "
            f"{' or '.join(OPEN_PRESETS)}, or leave it out with --streams"
        )


def network_for(config: TrainConfig, dataset: Dataset) -> TaggerNetConfig:
    """The network of the config's preset for the streams and labels of a dataset.

    A stream that the dataset lacks is left out. The paper's joint unit length over all streams
    needs rows of the same times; where frames and sound have their own times it is left out.

    Raises:
        ConfigError: "single_label" for clips that do not all have exactly one label, or a
            preset that can not give it.
    """
    check_streams(config.preset, dataset.dims)
    labels, dims = len(dataset.label_ids), dict(dataset.dims)
    # Streams that the dataset lacks are built with any size and dropped below.
    visual, audio = dims.get("visual", 1), dims.get("audio", 1)
    if config.output == "single_label":
        _require_one_label_each(dataset)
        if config.preset in ("paper", "nextvlad"):
            raise ConfigError(
                f"preset {config.preset!r} scores each label on its own; for single_label take "
                "small-data, medium or blog"
            )
    if config.preset == "small-data":
        return _used_to_absence(small_config(labels, dims, output=config.output))
    if config.preset == "medium":
        return _used_to_absence(medium_config(labels, dims, output=config.output))
    if config.preset == "paper":
        net = paper_config(labels, visual_dim=visual, audio_dim=audio)
        net = replace(net, joint_l2=dataset.aligned)
    elif config.preset == "nextvlad":
        net = nextvlad_config(labels, visual_dim=visual, audio_dim=audio)
    else:
        net = blog_config(labels, output=config.output, visual_dim=visual, audio_dim=audio)
    return replace(net, streams=tuple(stream for stream in net.streams if stream.name in dims))


def _used_to_absence(net: TaggerNetConfig) -> TaggerNetConfig:
    """The network with dropout of the streams from files, which other videos will not have."""
    further = further_streams(stream.name for stream in net.streams)
    return replace(
        net,
        streams=tuple(
            replace(stream, stream_dropout=FURTHER_STREAM_DROPOUT)
            if stream.name in further
            else stream
            for stream in net.streams
        ),
    )


def _require_one_label_each(dataset: Dataset) -> None:
    for sample in (*dataset.train, *dataset.validation, *dataset.test):
        if len(sample.labels) != 1:
            raise ConfigError(
                f"{sample.name}: has {len(sample.labels)} labels; single_label needs exactly one "
                "per clip, take multi_label"
            )
