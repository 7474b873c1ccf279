"""Prints how far vggish_small agrees with its teacher, and how well it tells sounds apart.

    python tools/check_ear.py --work DIR --teacher TEACHERS --esc10 ESC10 [--weights FILE]

DIR is the folder of make_ear.py, with held.npz and audio_head.npz. Everything goes
through `build_extractor("vggish_small")`, so what is measured is what is shipped. Held-out means:
ten percent of the files of every source and fold 4 of ESC-10.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from make_ear_corpus import decoded
from make_ear_windows import CLASSES, Corpus, Teacher, padded, samples_of
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch.nn import functional as F

from vtag.extractors import build_extractor
from vtag.extractors.log_mel import log_mel_segments

Floats = NDArray[np.float32]
Ear = Callable[[Floats], Floats]
POSITIVE: Final = 0.3  # the teacher's probability from which a label counts as present

# ESC-10's kinds in AudioSet's words.
KINDS: Final = {
    "baby cry": ("Baby cry, infant cry", "Crying, sobbing"),
    "chainsaw": ("Chainsaw",),
    "clock tick": ("Tick-tock", "Tick", "Clock"),
    "dog bark": ("Dog", "Bark"),
    "fire crackling": ("Fire", "Crackle"),
    "helicopter": ("Helicopter",),
    "person sneeze": ("Sneeze",),
    "rain": ("Rain", "Raindrop", "Rain on surface"),
    "rooster": ("Crowing, cock-a-doodle-doo", "Chicken, rooster"),
    "sea waves": ("Waves, surf", "Ocean"),
}


def average_precision(scores: Floats, hits: NDArray[np.bool_]) -> float:
    """Mean of the precision at each hit, the highest score first."""
    order = np.argsort(-scores, kind="stable")
    found = hits[order]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found].mean())


def mean_average_precision(
    scores: Floats, hits: NDArray[np.bool_], least: int
) -> tuple[float, int]:
    """(mean over the labels with at least so many hits, how many those are)."""
    chosen = [c for c in range(hits.shape[1]) if hits[:, c].sum() >= least]
    values = [average_precision(scores[:, c], hits[:, c]) for c in chosen]
    return (float(np.mean(values)) if values else float("nan")), len(chosen)


def sigmoid(x: Floats) -> Floats:
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def at_16_khz(wave: Floats) -> torch.Tensor:
    return torch.from_numpy(resample_poly(wave, 1, 2).astype(np.float32))


@dataclass(frozen=True)
class Head:
    """audio_head.npz: one linear layer on the mean of `rows` rows, highest over the places."""

    weight: Floats
    bias: Floats
    rows: int

    def __call__(self, rows: Floats) -> Floats:
        """Probabilities [C] of one sound from its rows [S, 128]."""
        width = min(self.rows, len(rows))
        sums = np.cumsum(np.vstack([np.zeros((1, rows.shape[1])), rows]), axis=0)
        means = (sums[width:] - sums[:-width]) / width
        return sigmoid((means @ self.weight.T + self.bias).max(0).astype(np.float32))


def held_table(work: Path, ear: Ear, head: Head, names: list[str]) -> None:
    """Agreement with the teacher on held-out windows, by kind of source."""
    corpus = Corpus(work)
    with np.load(work / "held.npz") as held:
        windows, wanted = held["windows"], sigmoid(held["logits"][:, 0].astype(np.float32))
    rng = np.random.default_rng(2)
    found = np.stack(
        [head(ear(padded(corpus.wave(corpus.clips[c], s), rng, repeat=False))) for c, s in windows]
    )
    groups = np.array([corpus.clips[c].group for c, _ in windows])
    print("| held-out sound | windows | labels | mAP | labels (>= 10) | mAP (>= 10) | "
          "mean abs. difference | top label in the teacher's top 3 |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for group in ("all", *sorted(set(groups))):
        here = (groups == group) | (group == "all")
        hits = wanted[here] >= POSITIVE
        some, labels = mean_average_precision(found[here], hits, 3)
        many, more = mean_average_precision(found[here], hits, 10)
        difference = np.abs(found[here] - wanted[here]).mean()
        top = found[here].argmax(1)[:, None] == np.argsort(-wanted[here], 1)[:, :3]
        print(f"| {group} | {here.sum()} | {labels} | {some:.3f} | {more} | {many:.3f} | "
              f"{difference:.4f} | {100 * top.any(1).mean():.1f} % |")  # fmt: skip
    for name in ("Speech", "Music"):
        c = names.index(name)
        said, is_so = found[:, c] >= 0.5, wanted[:, c] >= 0.5
        recall, precision = (said & is_so).sum() / is_so.sum(), (said & is_so).sum() / said.sum()
        group = groups == ("speech" if name == "Speech" else "music")
        print(f"{name}: {is_so.sum()} windows have it by the teacher; recall {recall:.3f}, "
              f"precision {precision:.3f} at 0.5; AP {average_precision(found[:, c], is_so):.3f}; "
              f"among windows of {name.lower()} sources: ear {said[group].mean():.3f}, "
              f"teacher {is_so[group].mean():.3f}")  # fmt: skip


def ten_way(scores: Floats, kinds: list[list[int]], truth: NDArray[np.int64]) -> str:
    """Ten-way accuracy by the best of a kind's labels, and 'a label of the kind in the top 5'."""
    best = np.stack([scores[:, k].max(1) for k in kinds], axis=1).argmax(1)
    top = np.argsort(-scores, 1)[:, :5]
    within = [bool(set(t) & set(kinds[k])) for t, k in zip(top, truth, strict=True)]
    return f"{100 * np.mean(best == truth):.1f} % | {100 * np.mean(within):.1f} %"


def probe(features: Floats, truth: NDArray[np.int64], folds: NDArray[np.str_]) -> list[float]:
    """Accuracy of a logistic regression on each fold, trained on the others."""
    return [_accuracy(features, truth, test=folds == fold) for fold in sorted(set(folds.tolist()))]


def _accuracy(features: Floats, truth: NDArray[np.int64], *, test: NDArray[np.bool_]) -> float:
    mean, std = features[~test].mean(0), features[~test].std(0) + 1e-6
    x = torch.from_numpy((features - mean) / std).float()
    y = torch.from_numpy(truth)
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], len(KINDS))
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=300)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x[~test]), y[~test])
        loss = loss + 3e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return float((layer(x[test]).argmax(1) == y[test]).float().mean())


def esc10_tables(esc10: Path, teacher: Teacher, ear: Ear, head: Head, names: list[str]) -> None:
    """ESC-10: tags by name, and a linear probe on the features."""
    with (esc10 / "manifest.csv").open() as table:
        rows = list(csv.DictReader(table))
    waves = [decoded(esc10 / r["path"], 5).astype(np.float32) / 32768 for r in rows]
    waves = [np.pad(w, (0, max(0, samples_of(5) - len(w)))) for w in waves]
    kinds = [[names.index(n) for n in of_kind] for of_kind in KINDS.values()]
    truth = np.array([list(KINDS).index(r["labels"]) for r in rows])
    folds = np.array([r["split"] for r in rows])
    heard = [teacher(wave[None]) for wave in waves]
    taught = np.stack([sigmoid(logits[0]) for logits, _ in heard])
    ear_rows = [ear(wave) for wave in waves]
    found = np.stack([head(x) for x in ear_rows])
    print("| ESC-10 | ten-way | a label of the kind in the top 5 of 527 |")
    print("|---|---|---|")
    held = folds == "fold4"
    print(f"| teacher, fold 4 | {ten_way(taught[held], kinds, truth[held])} |")
    print(f"| ear, fold 4 (held out) | {ten_way(found[held], kinds, truth[held])} |")
    print(f"| ear, folds 1-3 (heard in training) | {ten_way(found[~held], kinds, truth[~held])} |")
    for width in (1, 2, 3, 4, 5):
        other = np.stack([Head(head.weight, head.bias, width)(x) for x in ear_rows])
        print(f"| ear, fold 4, windows of {width} rows | "
              f"{ten_way(other[held], kinds, truth[held])} |")  # fmt: skip
    mels = [log_mel_segments(at_16_khz(w)).flatten(0, 1).numpy() for w in waves]
    features = {
        "log-mel mean and deviation (floor), 128-d": [np.r_[m.mean(0), m.std(0)] for m in mels],
        "vggish_small, mean of rows, 128-d": [x.mean(0) for x in ear_rows],
        "teacher, 384-d": [r[0] for _, r in heard],
    }
    print("| linear probe | fold 1 | fold 2 | fold 3 | fold 4 | mean |")
    print("|---|---|---|---|---|---|")
    for name, values in features.items():
        accuracy = probe(np.stack(values).astype(np.float32), truth, folds)
        cells = " | ".join(f"{100 * a:.1f}" for a in (*accuracy, float(np.mean(accuracy))))
        print(f"| {name} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--esc10", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=None, help="in place of the shipped file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    extractor = build_extractor("vggish_small", weights=args.weights)

    def ear(wave: Floats) -> Floats:
        return extractor(at_16_khz(wave)).numpy()

    with (args.teacher / "audioset_class_labels_indices.csv").open() as table:
        names = [row["display_name"] for row in csv.DictReader(table)]
    assert len(names) == CLASSES
    with np.load(args.work / "audio_head_527.npz") as file:
        head = Head(file["weight"], file["bias"], int(file["rows"]))
    teacher = Teacher(args.teacher, "cpu")
    esc10_tables(args.esc10, teacher, ear, head, names)
    held_table(args.work, ear, head, names)


if __name__ == "__main__":
    main()
