"""The learned part: from the feature rows of a video to its tags.

A head is a model folder (network, labels, readout) ready to be used. The backbones that make
the rows are named in it, and checked against what the rows were made with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vtag.models
from vtag.config import Selection
from vtag.errors import ConfigError, WeightsError
from vtag.models.checkpoint import check_extractors, load_checkpoint
from vtag.models.ensemble import Net
from vtag.models.labels import Label, LabelSet
from vtag.models.readout import Readout, evidence, rank, segments, specific_first
from vtag.records import Features, ModelInfo, Stream, Tag, is_of_file

DEFAULT_MODEL: Final = "vtag-base"
MAX_EVIDENCE: Final = 5  # moments named per tag
WINDOWS_AT_ONCE: Final = 256  # bounds the memory of a pass over videos of any length
CELLS_AT_ONCE: Final = 1 << 21  # windows x labels that are sorted together, at some 40 bytes each
# A matrix product is shared out among threads by rows, and rows left over from the blocks of 4
# take another way through the library, which rounds otherwise. In multiples of this many a window
# has the same scores to the last bit, whatever it is scored beside.
WINDOWS_TOGETHER: Final = 8
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
        """The tags of a video, best first; see `specific_first` for what a tag implies.

        Args:
            streams: rows per stream; a stream without rows, or left out, is not there.
            end_seconds: where the last window ends.
            selection: which labels become tags. With a `threshold` of its own the order is
                that of the scores alone.

        Raises:
            ConfigError: the selection names a label that is not there.
        """
        clip = [(streams, end_seconds)]
        return self.tags_of_many(clip, selection=selection)[0]

    def tags_of_many(
        self, clips: Sequence[tuple[Mapping[str, Features], float]], *, selection: Selection
    ) -> list[tuple[Tag, ...]]:
        """What `tags` gives for each of (streams, end_seconds), to the last bit, in less time.

        Memory grows with the rows of all clips together.
        """
        all_present = [
            {s: f for s, f in streams.items() if s in self.extractors and len(f.rows)}
            for streams, _ in clips
        ]
        thresholds = self._thresholds(selection)
        return [
            self._choose(scores, windows, end_seconds, selection, thresholds)
            for (scores, windows), (_, end_seconds) in zip(
                self._scores_of_many(all_present), clips, strict=True
            )
        ]

    def _choose(
        self,
        scores: Tensor,
        windows: Mapping[Stream, Windows],
        end_seconds: float,
        selection: Selection,
        thresholds: Sequence[float],
    ) -> tuple[Tag, ...]:
        """The labels that become tags, best first."""
        scores = scores.minimum(torch.tensor(thresholds).clamp(min=HIGHEST_SCORE))
        reached = scores.numpy().astype(np.float64) >= np.asarray(thresholds)
        chosen = [
            at
            for at in rank(scores.numpy(), self.labels)
            if reached[at] and self.labels[at].stream in windows
        ]
        if selection.threshold is None:
            chosen = list(specific_first(chosen, scores.numpy(), self.labels))
        return tuple(
            self._tag(
                self.labels[at],
                at,
                float(scores[at]),
                thresholds[at],
                windows[self.labels[at].stream],
                end_seconds,
            )
            for at in chosen[: selection.top_k]
        )

    def check_selection(self, selection: Selection) -> None:
        """Raises ConfigError if it names a label that is not there, or one label twice."""
        self._thresholds(selection)

    def _thresholds(self, selection: Selection) -> list[float]:
        """The score from which each label is a tag."""
        common = selection.threshold
        found = [label.threshold if common is None else common for label in self.labels]
        named: dict[int, str] = {}
        for text, threshold in selection.thresholds.items():
            at = self._find(text)
            if at in named:
                raise ConfigError(f"thresholds: {named[at]!r} and {text!r} are the same label")
            named[at] = text
            found[at] = threshold
        return [max(threshold, selection.min_score) for threshold in found]

    def _find(self, text: str) -> int:
        try:
            return self.labels.index(self.labels.find(text))
        except KeyError:
            names = {label.name.casefold(): label.name for label in self.labels}
            near = difflib.get_close_matches(text.casefold(), names, n=3, cutoff=0.6)
            hint = f"; near it: {', '.join(repr(names[name]) for name in near)}" if near else ""
            raise ConfigError(
                f"thresholds: the model {self.info.name!r} has no label {text!r}{hint} "
                "(`vtag labels` lists all)"
            ) from None

    def _scores(self, streams: Mapping[str, Features]) -> tuple[Tensor, dict[Stream, Windows]]:
        """Score of each label, float32 [C], and the windows of each stream that was read."""
        return self._scores_of_many([streams])[0]

    def _scores_of_many(
        self, clips: Sequence[Mapping[str, Features]]
    ) -> list[tuple[Tensor, dict[Stream, Windows]]]:
        """What `_scores` gives for each; the windows of all go through the network together."""
        wholes = [self._whole(streams) for streams in clips]
        found: list[dict[Stream, Windows]] = [{} for _ in clips]
        scores = [torch.zeros(len(self.labels)) for _ in clips]
        for stream in self.readout.streams:
            having = [at for at, streams in enumerate(clips) if stream in streams]
            features = [clips[at][stream] for at in having]
            for at, windows in zip(having, self._window_scores(stream, features), strict=True):
                times = clips[at][stream].seconds[:: self.readout.window_of(stream)]
                video, shares = self._video_scores(windows, wholes[at])
                scores[at] = torch.where(self._columns[stream], video, scores[at])
                found[at][stream] = Windows(times, windows, shares)
        return list(zip(scores, found, strict=True))

    def _whole(self, streams: Mapping[str, Features]) -> Tensor | None:
        """[1, C] from all rows of a video at once, where the readout asks for it."""
        if self.readout.pool != "network":
            return None
        rows = {s: _tensor(f)[None] for s, f in streams.items()}
        full = {s: torch.ones(1, r.shape[1], dtype=torch.bool) for s, r in rows.items()}
        return self.readout.window_scores(self._logits(rows, full))

    def _window_scores(self, stream: Stream, videos: Sequence[Features]) -> list[Tensor]:
        """[W, C] of each video: the scores of its windows."""
        if not videos:
            return []
        cut = [_windows(features, self.readout.window_of(stream)) for features in videos]
        rows, real = (torch.cat(parts) for parts in zip(*cut, strict=True))
        scores = [
            self._some_scores(stream, some, mask)
            for some, mask in zip(
                torch.split(rows, WINDOWS_AT_ONCE), torch.split(real, WINDOWS_AT_ONCE), strict=True
            )
        ]
        return list(torch.split(torch.cat(scores), [len(windows) for windows, _ in cut]))

    def _video_scores(self, windows: Tensor, whole: Tensor | None) -> tuple[Tensor, Tensor]:
        """`Readout.video_scores`, some labels at a time where the windows are very many."""
        columns = max(1, CELLS_AT_ONCE // len(windows))
        wholes = (None,) * len(self.labels) if whole is None else torch.split(whole, columns, dim=1)
        parts = [
            self.readout.video_scores(some, whole=one)
            for some, one in zip(torch.split(windows, columns, dim=1), wholes, strict=False)
        ]
        videos, shares = zip(*parts, strict=True)
        return torch.cat(videos), torch.cat(shares, dim=1)

    def _some_scores(self, stream: Stream, rows: Tensor, real: Tensor) -> Tensor:
        """[W, C] of windows [W, n, D]."""
        count = len(rows)
        missing = -count % WINDOWS_TOGETHER
        if missing:
            places = torch.arange(count + missing) % count
            rows, real = rows[places], real[places]
        logits = self._logits({stream: rows}, {stream: real})
        return self.readout.window_scores(logits, stream=stream)[:count]

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


def _windows(features: Features, size: int) -> tuple[Tensor, Tensor]:
    """[W, size, D] rows of each window, the last one filled up, and bool [W, size]: the real."""
    rows = _tensor(features)
    real = torch.ones(len(rows), dtype=torch.bool)
    missing = -len(rows) % size
    rows = torch.nn.functional.pad(rows, (0, 0, 0, missing)).view(-1, size, rows.shape[1])
    return rows, torch.nn.functional.pad(real, (0, missing)).view(-1, size)


def _tensor(features: Features) -> Tensor:
    return torch.from_numpy(features.rows).float()
