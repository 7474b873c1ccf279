"""The audio half of a head: which AudioSet labels vggish_small can tell, and a layer that does.

    python tools/make_ear_head.py --work DIR --teacher TEACHERS     # after make_ear.py

Fits one linear layer from the mean of a few rows to the teacher's probabilities, on the training
shards and on ESC-10's folds 1 to 3, whose own labels are added; then measures each label on
held-out sound (held.npz, and mixtures of held-out recordings with each other), keeps the labels
that are told apart, calibrates their scores where that helps (ear_calibration.py; it goes into
the layer), and sets a threshold for each. Writes

    DIR/audio_head_527.npz   weight [527, 128], bias [527], rows: every label, for check_ear.py
    DIR/audio_head.npz       weight [C, 128], bias [C], thresholds [C], ids [C], rows
    DIR/audio_labels.json    the C labels as models/labels.py reads them
    DIR/audio_labels.md      the figures behind them
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from check_ear import KINDS, POSITIVE, Head, average_precision, mean_average_precision, sigmoid
from ear_calibration import (
    ENOUGH_RECORDINGS,
    Platt,
    calibration_error,
    careful_threshold,
    cross_calibrated,
    fit_platt,
    group_threshold,
    rare_threshold,
)
from make_ear_windows import (
    CLASSES,
    PARTS,
    Corpus,
    Mixer,
    Teacher,
    log_mel,
    make_shards,
    padded,
)
from numpy.typing import NDArray
from torch.nn import functional as F

from vtag.extractors.state import fill
from vtag.extractors.vggish_small import VGGishSmallNet, freeze

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]

# A label is kept when held-out sound has it often enough and it is found there.
LEAST_POSITIVES: Final = 3
LEAST_PRECISION: Final = 0.3  # average precision
LOWER_POSITIVE: Final = 0.1  # of the teacher's three likeliest labels, see `right`
MIXTURE_WEIGHT: Final = 0.25  # of a mixture, which holds nothing that is not there alone too
MIXTURES: Final = 4  # shards of 400
CALIBRATION_PARTS: Final = 5  # of the held-out recordings, for cross-fitting
LABELLED_TIMES: Final = 40  # how often each of ESC-10's labelled clips counts

# Not things that a person would look for: moods, places, channels, absence, and labels for which
# noise or silence itself is the example.
LEFT_OUT: Final = frozenset({
    "Silence", "Inside, small room", "Inside, large room or hall", "Inside, public space",
    "Outside, urban or manmade", "Outside, rural or natural", "Reverberation", "Echo", "Noise",
    "Environmental noise", "Static", "Mains hum", "Distortion", "Sidetone", "Cacophony",
    "White noise", "Pink noise", "Throbbing", "Vibration", "Television", "Radio",
    "Field recording", "Happy music", "Funny music", "Sad music", "Tender music",
    "Exciting music", "Angry music", "Scary music", "Background music", "Theme music",
    "Jingle (music)", "Soundtrack music", "Sound effect", "Effects unit", "Pulse", "Sine wave",
    "Harmonic", "Chirp tone", "Sampler", "Hum", "Single-lens reflex camera",
})  # fmt: skip


def rows_of(network: VGGishSmallNet, file: Path) -> tuple[Floats, Floats]:
    """(rows [n, 5, 128], the teacher's logits [n, 3, 527]) of a file of windows."""
    with np.load(file) as shard:
        mel, logits = torch.from_numpy(shard["mel"]), shard["logits"].astype(np.float32)
    with torch.inference_mode():
        parts = [network(m.float()) for m in mel.flatten(0, 1).split(80)]
    return torch.cat(parts).unflatten(0, mel.shape[:2]).numpy(), logits


def labelled(
    corpus: Corpus, teacher: Teacher, network: VGGishSmallNet, names: list[str]
) -> tuple[Floats, Floats]:
    """(means of rows [n, 128], targets [n, 527]) of ESC-10's folds 1 to 3, unmixed.

    The targets are the teacher's probabilities, with the kind that a person heard at 0.8 at least.
    """
    means, wanted = [], []
    for clip in corpus.clips:
        if clip.label and clip.split != "fold4":
            wave = padded(corpus.wave(clip), np.random.default_rng(0), repeat=False)
            with torch.inference_mode():
                rows = network(torch.from_numpy(log_mel(wave)).float())
            target = sigmoid(teacher(wave[None])[0][0])
            kind = names.index(KINDS[clip.label][0])
            target[kind] = max(target[kind], 0.8)
            means.append(rows.mean(0).numpy())
            wanted.append(target)
    return np.stack(means), np.stack(wanted)


def fit(x: Floats, targets: Floats, epochs: int) -> tuple[Floats, Floats]:
    """(weight [527, 128], bias [527]) that give `targets` [n, 527] from `x` [n, 128]."""
    data, y = torch.from_numpy(x), torch.from_numpy(targets)
    torch.manual_seed(0)
    layer = torch.nn.Linear(data.shape[1], CLASSES)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.logit(y.mean(0).clamp(1e-5, 1 - 1e-5)))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.02, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, epochs)
    for _ in range(epochs):
        for at in torch.randperm(len(data)).split(1024):
            loss = F.binary_cross_entropy_with_logits(layer(data[at]), y[at]) * CLASSES
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    print(f"head: cross entropy {loss.item():.3f}")
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@dataclass(frozen=True)
class Measured:
    """One label on held-out sound."""

    positives: int
    precision: float  # average
    threshold: float = 1.0
    recall: float = 0.0


def told_apart(measured: Measured) -> bool:
    """Whether a label is good enough to be said."""
    often = measured.positives >= LEAST_POSITIVES
    return often and measured.precision >= LEAST_PRECISION


def measure(scores: Floats, wanted: Floats) -> list[Measured]:
    """Every label, on scores [n, 527] and the teacher's probabilities; without thresholds."""
    hits = wanted >= POSITIVE
    return [
        Measured(int(hit.sum()), average_precision(score, hit) if hit.any() else 0.0)
        for score, hit in zip(scores.T, hits.T, strict=True)
    ]


def right(wanted: Floats) -> NDArray[np.bool_]:
    """[n, C]: whether a person who trusts the teacher would let the label stand.

    The teacher gives it 0.3, or 0.1 where only two labels are likelier: its probabilities are
    low (helicopters it knows it gives 0.2), its order is good.
    """
    place = np.argsort(np.argsort(-wanted, axis=1, kind="stable"), axis=1, kind="stable")
    found: NDArray[np.bool_] = (wanted >= POSITIVE) | ((wanted >= LOWER_POSITIVE) & (place < 3))
    return found


def with_thresholds(
    figures: list[Measured],
    scores: Floats,
    wanted: Floats,
    weight: Floats,
    *,
    sources: Counts,
    chosen: list[int],
) -> list[Measured]:
    """The figures with a threshold for each chosen label and the recall there.

    Args:
        scores: [n, C], cross-calibrated.
        weight: [n], see `careful_threshold`.
        sources: [C], in how many recordings each label is.
        chosen: the labels that are kept.
    """
    hits = right(wanted)
    rare = [c for c in chosen if sources[c] < ENOUGH_RECORDINGS]
    group = group_threshold(scores[:, rare], hits[:, rare], weight)
    print(f"{len(rare)} labels with fewer than {ENOUGH_RECORDINGS} recordings: from {group:.3f} on")
    found = list(figures)
    for c in chosen:
        score, hit = scores[:, c], hits[:, c]
        threshold = (
            rare_threshold(score, hit, weight, group)
            if c in rare
            else careful_threshold(score, hit, weight)
        )
        recall = float((hit & (score >= threshold)).sum() / max(hit.sum(), 1))
        found[c] = replace(figures[c], threshold=threshold, recall=recall)
    return found


def sources_of(recording: Counts, wanted: Floats) -> Counts:
    """[C]: in how many recordings each label is."""
    return np.array(
        [len(np.unique(recording[wanted[:, c] >= POSITIVE])) for c in range(wanted.shape[1])]
    )


def ancestors(ontology: list[dict[str, object]]) -> dict[str, list[str]]:
    """Every id above each id, the nearest first."""
    above: dict[str, list[str]] = {}
    for entry in ontology:
        for child in entry["child_ids"]:  # type: ignore[attr-defined]
            above.setdefault(child, []).append(str(entry["id"]))
    out = {}
    for entry in ontology:
        level, seen = above.get(str(entry["id"]), []), dict[str, None]()
        while level:
            fresh = [i for i in level if i not in seen]
            seen |= dict.fromkeys(fresh)
            level = [up for i in fresh for up in above.get(i, [])]
        out[str(entry["id"])] = list(seen)
    return out


def label_table(
    chosen: list[int], ids: list[str], names: list[str], thresholds: list[float], teacher: Path
) -> list[dict[str, object]]:
    """The chosen labels: parents are the nearest chosen labels above in the ontology."""
    above = ancestors(json.loads((teacher / "audioset_ontology.json").read_text()))
    kept, table = {ids[c] for c in chosen}, []
    for c, threshold in zip(chosen, thresholds, strict=True):
        near = [i for i in above.get(ids[c], []) if i in kept]
        further = {j for i in near for j in above.get(i, [])}
        entry: dict[str, object] = {"id": ids[c], "name": names[c]}
        if parents := [i for i in near if i not in further]:
            entry["parents"] = parents
        table.append(entry | {"threshold": round(threshold, 3), "stream": "audio"})
    return table


def write_figures(
    file: Path,
    chosen: list[int],
    names: list[str],
    figures: list[Measured],
    sources: NDArray[np.int64],
) -> None:
    lines = ["| label | held-out windows with it | recordings unmixed | average precision | "
             "threshold | recall there |", "|---|---|---|---|---|---|"]  # fmt: skip
    for c in chosen:
        m = figures[c]
        lines.append(f"| {names[c]} | {m.positives} | {sources[c]} | {m.precision:.2f} | "
                     f"{m.threshold:.2f} | {m.recall:.2f} |")  # fmt: skip
    file.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument(
        "--weights", type=Path, default=Path("extractors/weights/vggish_small.safetensors")
    )
    parser.add_argument("--shards", type=int, default=110, help="training shards to fit on")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = args.work
    with (args.teacher / "audioset_class_labels_indices.csv").open() as file:
        listed = list(csv.DictReader(file))
    ids, names = [r["mid"] for r in listed], [r["display_name"] for r in listed]

    corpus, teacher, mixtures = Corpus(work), Teacher(args.teacher, "cpu"), work / "held_mixed"
    if len(list(mixtures.glob("*.npz"))) < MIXTURES:
        mixer = Mixer(corpus, work / "held.npz", without="")
        make_shards(mixer, teacher, mixtures, shards=range(MIXTURES), seed=13)

    with torch.device("meta"):
        network = VGGishSmallNet()
    fill(network, args.weights)
    network = freeze(network, torch.device("cpu"))
    parts = [rows_of(network, f) for f in sorted((work / "shards").glob("*.npz"))[: args.shards]]
    x = [rows[:, a:b].mean(1) for rows, _ in parts for a, b in PARTS]
    y = [sigmoid(logits[:, k]) for _, logits in parts for k in range(len(PARTS))]
    heard, wanted = labelled(corpus, teacher, network, names)
    x += [heard] * LABELLED_TIMES
    y += [wanted] * LABELLED_TIMES
    layer, bias = fit(np.concatenate(x), np.concatenate(y), args.epochs)

    plain = rows_of(network, work / "held.npz")
    mixed = [rows_of(network, f) for f in sorted(mixtures.glob("*.npz"))]
    held_rows, held_logits = (np.concatenate(x) for x in zip(plain, *mixed, strict=True))
    wanted = sigmoid(held_logits[:, 0])
    with np.load(work / "held.npz") as file:
        listened = [corpus.clips[c].label for c, _ in file["windows"]]
    for at, kind in enumerate(listened):  # fold 4: what a person heard counts like the teacher
        if kind:
            c = names.index(KINDS[kind][0])
            wanted[at, c] = max(wanted[at, c], 0.8)
    best, best_width = -1.0, 0
    for width in (1, 2, 3, 4, 5):
        scores = np.stack([Head(layer, bias, width)(r) for r in held_rows])
        value, count = mean_average_precision(scores, wanted >= POSITIVE, LEAST_POSITIVES)
        print(f"windows of {width} rows: mAP {value:.3f} over {count} labels")
        if value > best:
            best, best_width = value, width
    head = Head(layer, bias, best_width)
    scores = np.stack([head(r) for r in held_rows])
    figures = measure(scores, wanted)
    unmixed = len(plain[0])
    alone = measure(scores[:unmixed], wanted[:unmixed])
    chosen = [
        c for c in range(CLASSES)
        if names[c] not in LEFT_OUT and (told_apart(figures[c]) or told_apart(alone[c]))
    ]  # fmt: skip
    figures = [m if told_apart(m) else alone[c] for c, m in enumerate(figures)]
    with np.load(work / "held.npz") as file:
        recording = file["windows"][:, 0]
    sources = sources_of(recording, wanted[:unmixed])
    weight = np.full(len(scores), MIXTURE_WEIGHT, np.float32)
    weight[:unmixed] = 1 / np.bincount(recording)[recording]
    part = np.concatenate([recording, np.arange(len(scores) - unmixed)]) % CALIBRATION_PARTS
    log_odds = np.log(scores.clip(1e-7)) - np.log((1 - scores).clip(1e-7))
    platt, believed = Platt.none(CLASSES), scores
    stands = right(wanted).astype(np.float32)
    crossed = cross_calibrated(log_odds, stands, weight, part)
    errors = [calibration_error(s[:, chosen], stands[:, chosen]) for s in (scores, crossed)]
    print(f"calibration error {errors[0]:.3f}, with Platt's scaling {errors[1]:.3f} (cross-fitted)")
    if errors[1] < errors[0]:
        platt, believed = fit_platt(log_odds, stands, weight), crossed
    figures = with_thresholds(figures, believed, wanted, weight, sources=sources, chosen=chosen)
    thresholds = [figures[c].threshold for c in chosen]
    table = label_table(chosen, ids, names, thresholds, args.teacher)
    (work / "audio_labels.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    write_figures(work / "audio_labels.md", chosen, names, figures, sources)
    np.savez(work / "audio_head_527.npz", weight=layer, bias=bias, rows=best_width)
    np.savez(
        work / "audio_head.npz", rows=best_width,
        weight=(platt.slope[:, None] * layer)[chosen].astype(np.float32),
        bias=(platt.slope * bias + platt.offset)[chosen].astype(np.float32),
        thresholds=np.array(thresholds, np.float32), ids=np.array([ids[c] for c in chosen]),
    )  # fmt: skip
    kept = [figures[c] for c in chosen]
    print(f"{len(chosen)} labels; mean AP {np.mean([m.precision for m in kept]):.3f}, "
          f"mean recall at threshold {np.mean([m.recall for m in kept]):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
