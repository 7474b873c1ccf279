"""The learned part: from the feature rows of a video to its tags.

A head is a model folder (network, labels, readout) ready to be used. The backbones that make
the rows are named in it, and checked against what the rows were made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vtag.models
from vtag.config import Selection
from vtag.errors import WeightsError
from vtag.models.checkpoint import check_extractors, load_checkpoint
from vtag.models.ensemble import Net
from vtag.models.labels import Label, LabelSet
from vtag.models.readout import Readout, evidence, rank, segments
from vtag.records import Features, ModelInfo, Stream, Tag, is_of_file

DEFAULT_MODEL: Final = "vtag-base"
MAX_EVIDENCE: Final = 5  # moments named per tag
WINDOWS_AT_ONCE: Final = 256  # bounds the memory of a pass over a video of any length
# Digits of a score in a record. The order of tags is by these digits, the more specific first
# among equals, so what is printed is in the order that is printed.
SCORE_DIGITS: Final = 4
# No figure supports a difference between scores above this one, and every roll-up is a little
# surer than what it sums: so scores end here (or at the label's threshold, if that is higher),
# and the more specific label goes first.
HIGHEST_SCORE: Final = 0.99
LAST_WINDOW_SECONDS: Final = 1.0  # how long the last window lasts if the file does not tell


@dataclass(frozen=True)
class Windows:
    """One stream of a video, scored window by window.

    Attributes:
        times: float64 [W], seconds at which each window begins.
        scores: float32 [W, C].
        shares: float32 [W, C], each window's share in the video's score.
    """

    times: np.ndarray[tuple[int], np.dtype[np.float64]]
    scores: Tensor
    shares: Tensor


class Head:
    """Labels of a video from its feature rows.

    Runs on the CPU in float32, whatever made the rows: it is a thousandth of the work, and
    the scores are then the same on every machine.
    """

    def __init__(self, folder: Path) -> None:
        checkpoint = load_checkpoint(folder)
        self._checkpoint = checkpoint
        self._net: Net = checkpoint.net.eval()
        try:
            self.labels = LabelSet.from_list(checkpoint.labels)
            self.readout = Readout.from_dict(checkpoint.readout, self.labels)
        except ValueError as err:
            raise WeightsError(f"{folder}: labels.json or config.json is damaged: {err}") from err
        self.extractors: dict[str, str] = dict(checkpoint.extractors)
        self.info = ModelInfo(checkpoint.name, checkpoint.fingerprint, len(self.labels))
        self._columns = {
            stream: torch.tensor([label.stream == stream for label in self.labels])
            for stream in self.readout.streams
        }

    @property
    def extractor_names(self) -> dict[str, str]:
        """Stream to the name of the extractor whose rows it reads; without streams from files."""
        return {
            stream: made_by.split("@")[0]
            for stream, made_by in self.extractors.items()
            if not is_of_file(made_by)
        }

    @property
    def file_streams(self) -> dict[str, int]:
        """Row size of each stream whose rows the user brings in files, see `dataset_streams`."""
        return {
            stream: self._net.config.stream(stream).dim
            for stream, made_by in self.extractors.items()
            if is_of_file(made_by)
        }

    def notes(self, streams: Iterable[str]) -> tuple[str, ...]:
        """A line for each stream from files that is not among `streams`: what its absence means."""
        return tuple(
            f"the model also reads {stream} rows from files; scored without them"
            for stream in sorted(set(self.file_streams) - set(streams))
        )

    def check_extractors(self, fingerprints: Mapping[str, str]) -> None:
        """Raises WeightsError, naming both, if the rows come from other extractors."""
        check_extractors(self._checkpoint, dict(fingerprints))

    def describe(self) -> dict[str, object]:
        """For `vtag models info`: plain values only."""
        streams = {s: sum(label.stream == s for label in self.labels) for s in self.readout.streams}
        return {
            "name": self.info.name,
            "fingerprint": self.info.fingerprint,
            "labels": self.info.labels,
            "labels_per_stream": streams,
            "extractors": self.extractors,
            "parameters": sum(p.numel() for p in self._net.parameters()),
            "network": self._net.config.to_dict(),
            "readout": self.readout.to_dict(),
        }

    def scores(self, streams: Mapping[str, Features]) -> NDArray[np.float32]:
        """Score of each label for the whole video, float32 [C], without ceilings."""
        present = {s: f for s, f in streams.items() if s in self.extractors and len(f.rows)}
        found: NDArray[np.float32] = self._scores(present)[0].numpy()
        return found

    def tags(
        self, streams: Mapping[str, Features], *, end_seconds: float, selection: Selection
    ) -> tuple[Tag, ...]:
        """The tags of a video, best first.

        Args:
            streams: rows per stream; a stream without rows, or left out, is not there.
            end_seconds: where the last window ends.
            selection: which labels become tags.
        """
        present = {s: f for s, f in streams.items() if s in self.extractors and len(f.rows)}
        scores, windows = self._scores(present)
        scores = scores.minimum(self._ceilings(selection))
        tags: list[Tag] = []
        for at in rank(scores.numpy(), self.labels):
            label, score = self.labels[at], float(scores[at])
            threshold = label.threshold if selection.threshold is None else selection.threshold
            if selection.top_k is not None and len(tags) >= selection.top_k:
                break
            if score >= threshold and label.stream in windows:
                window = windows[label.stream]
                tags.append(self._tag(label, at, score, threshold, window, end_seconds))
        return tuple(tags)

    def _ceilings(self, selection: Selection) -> Tensor:
        """The highest score of each label, float32 [C]."""
        thresholds = torch.tensor([label.threshold for label in self.labels])
        if selection.threshold is not None:
            thresholds = torch.full_like(thresholds, selection.threshold)
        return thresholds.clamp(min=HIGHEST_SCORE)

    def _scores(self, streams: Mapping[str, Features]) -> tuple[Tensor, dict[Stream, Windows]]:
        """Score of each label, float32 [C], and the windows of each stream that was read."""
        whole = None
        if self.readout.pool == "network":
            rows = {s: _tensor(f)[None] for s, f in streams.items()}
            full = {s: torch.ones(1, r.shape[1], dtype=torch.bool) for s, r in rows.items()}
            whole = self.readout.window_scores(self._logits(rows, full))
        scores = torch.zeros(len(self.labels))
        found: dict[Stream, Windows] = {}
        for stream in self.readout.streams:
            if stream not in streams:
                continue
            logits, times = self._window_logits(stream, streams[stream])
            window_scores = self.readout.window_scores(logits, stream=stream)
            video, shares = self.readout.video_scores(window_scores, whole=whole)
            scores = torch.where(self._columns[stream], video, scores)
            found[stream] = Windows(times, window_scores, shares)
        return scores, found

    def _window_logits(
        self, stream: Stream, features: Features
    ) -> tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """[W, C_net] log-odds of each window, and the time at which it begins."""
        size = self.readout.window_of(stream)
        rows = _tensor(features)
        real = torch.ones(len(rows), dtype=torch.bool)
        missing = -len(rows) % size
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing)).view(-1, size, rows.shape[1])
        real = torch.nn.functional.pad(real, (0, missing)).view(-1, size)
        parts = [
            self._logits({stream: part}, {stream: mask})
            for part, mask in zip(
                torch.split(rows, WINDOWS_AT_ONCE), torch.split(real, WINDOWS_AT_ONCE), strict=True
            )
        ]
        return torch.cat(parts), features.seconds[::size]

    def _logits(self, rows: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._net(rows, mask)
        return logits

    def _tag(
        self,
        label: Label,
        at: int,
        score: float,
        threshold: float,
        windows: Windows,
        end_seconds: float,
    ) -> Tag:
        last = float(windows.times[-1])
        ceiling = max(HIGHEST_SCORE, threshold)
        end = end_seconds if end_seconds > last else last + LAST_WINDOW_SECONDS
        return Tag(
            id=label.id,
            name=label.name,
            score=round(score, SCORE_DIGITS),
            threshold=threshold,
            categories=tuple(self.labels.categories(label)),
            sources=(label.stream,),
            segments=tuple(
                replace(segment, score=round(min(segment.score, ceiling), SCORE_DIGITS))
                for segment in segments(
                    windows.times, end, windows.scores[:, at].numpy(), threshold
                )
            ),
            evidence=tuple(
                replace(moment, weight=round(moment.weight, SCORE_DIGITS))
                for moment in evidence(windows.times, windows.shares[:, at].numpy(), MAX_EVIDENCE)
            ),
        )


def embedded_models() -> list[str]:
    """Names of the models that the package holds."""
    return sorted(p.parent.name for p in _embedded_folder().glob("*/config.json"))


def load_head(model: str | Path) -> Head:
    """The head called by name, or in a folder.

    Raises:
        WeightsError: there is no such model, or it is damaged.
    """
    folder = _embedded_folder() / str(model)
    if str(model) in embedded_models():
        return Head(folder)
    if not Path(model).is_dir():
        raise WeightsError(
            f"no model {str(model)!r}: it is neither a folder nor one of the embedded models "
            f"({', '.join(embedded_models()) or 'none'})"
        )
    return Head(Path(model))


def _embedded_folder() -> Path:
    return Path(vtag.models.__file__).parent / "weights"


def _tensor(features: Features) -> Tensor:
    return torch.from_numpy(features.rows).float()
