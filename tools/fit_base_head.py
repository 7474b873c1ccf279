"""Fits what the default head adds to the backbone's classifier: "none of these", and thresholds.

    python tools/fit_base_head.py --work DIR        # after make_head_data.py --work DIR
    python tools/make_base_head.py                  # builds the model with it

The backbone's 1000 logits stay as they are. A 1001st, "none of these", is fitted together with
one temperature by the likelihood of what is right (head_targets.py). Every figure and threshold
comes from cross-fitting by origin: a picture is scored by a fit that saw no picture of its
package, nor of the packages that are like it. A split by pictures would flatter: the path could
learn how the pictures of a package look.

Writes into tools/head
    none_path.npz   the fitted path of none_path.py, temperature, ids and thresholds of labels
    figures.md      what was measured, before and after
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from head_pictures import NOTHING
from head_targets import LEAVES, Floats, Truth, Vocabulary, recast, roll_up_matrix, truth_of
from none_path import NonePath
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from vtag.models.labels import LabelSet
from vtag.weights import find_weights

ROOT: Final = Path(__file__).parent
LABELS: Final = ROOT.parent / "models" / "weights" / "vtag-base" / "labels.json"
# Packages whose pictures look alike are one fold; those that are not named are the last.
FOLDS: Final = (
    ("tuxpaint-stamps-default",),
    ("gcompris-qt-data",),
    ("mate-backgrounds", "gnome-backgrounds", "lomiri", "ukui", "plasma", "lxqt-themes"),
    ("opencv-doc", "python3-skimage"),
)
EPOCHS: Final = 3
BATCH: Final = 256
RATE: Final = 2e-3
DECAY: Final = 1.0
# How much a picture of each kind counts; of a photo without a name the truth is an opinion.
WEIGHT: Final = {"named": 1.0, "photo": 0.5, "painting": 0.25}
NOTHING_WEIGHT: Final = 0.1
PRECISION: Final = 0.8
PRIOR: Final = 20.0  # views that a label needs before its own record outweighs its group's
MARGIN: Final = 0.05  # of a group above the precision wanted, before a label has a record
# Scores are calibrated: from here on a tag is likelier right than wrong. A label that is common in
# these pictures (animals) could go lower at the precision wanted, and would then be seen in people.
LOWEST: Final = 0.5
HIGHEST: Final = 0.98
RESAMPLES: Final = 300


@dataclass(frozen=True)
class Views:
    """All views: rows [N, 2048], the backbone's logits [N, 1000], truth, and their pictures."""

    rows: Tensor
    logits: Tensor
    truth: Truth
    kinds: NDArray[np.str_]
    picture: NDArray[np.int32]
    fold: NDArray[np.int64]
    weight: Tensor  # of each view; those of one picture share its weight


@dataclass(frozen=True)
class Fitted:
    path: NonePath
    temperature: float


def scores_of(logits: Tensor, roll_up: Floats) -> Floats:
    """[N, 1000 + roll-ups] from logits [N, 1000 or 1001]."""
    leaves = logits.softmax(dim=1)[:, :LEAVES].numpy()
    return np.concatenate([leaves, np.clip(leaves @ roll_up, 0, 1)], axis=1)


def read_views(work: Path, labels: LabelSet, file: str) -> Views:
    with np.load(work / file) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    picture = data["picture"]
    words = data["words"][picture]
    cast = [recast(kind, name) for kind, name in zip(data["kinds"], data["names"], strict=True)]
    kinds = np.array(cast)[picture]
    wordnet = work / "x" / "wordnet-base" / "usr" / "share" / "wordnet" / "data.noun"
    first = np.searchsorted(picture, picture)  # the first view of the picture of each view
    second = data["second"].astype(np.float32)
    second = np.where(second.max(1, keepdims=True) > 0, second, second[first])
    vocabulary = Vocabulary(wordnet, labels)
    truth = truth_of(labels, vocabulary, list(kinds), list(words), second, NOTHING)
    rows = torch.from_numpy(data["rows"].astype(np.float32))
    state = load_file(find_weights("resnet50"))
    logits = rows @ state["fc.weight"].float().T + state["fc.bias"].float()
    views = np.bincount(picture)[picture]
    weight = [WEIGHT.get(kind, NOTHING_WEIGHT) for kind in kinds]
    fold = np.array([_fold_of(name) for name in data["names"]])[picture]
    shares = torch.tensor(weight, dtype=torch.float32) / torch.from_numpy(views).float()
    return Views(rows, logits, truth, kinds, picture, fold, shares)


def _fold_of(name: str) -> int:
    return next((at for at, fold in enumerate(FOLDS) if name.startswith(fold)), len(FOLDS))


def losses(logits: Tensor, target: Tensor, named: Tensor) -> Tensor:
    """Minus log-likelihood [B] of logits [B, 1001] over the temperature."""
    logs = logits.log_softmax(dim=1)
    allowed = logs.masked_fill(target == 0, -math.inf).logsumexp(dim=1)
    return -torch.where(named, allowed, (target * logs).sum(dim=1))


def fit(views: Views, chosen: NDArray[np.bool_], *, seed: int = 0) -> Fitted:
    """The path and temperature under which what is right is most likely."""
    torch.manual_seed(seed)
    at = torch.from_numpy(np.flatnonzero(chosen))
    rows, logits = views.rows[at], views.logits[at]
    target, named = views.truth.target[at], torch.from_numpy(views.truth.named)[at]
    path, cooling = NonePath(), nn.Parameter(torch.tensor(math.log(1.5)))
    path.start(rows, none=float(logits.logsumexp(1).median()) - 2, seed=seed)
    nn.init.normal_(path.none.weight, std=0.1)
    optimiser = torch.optim.AdamW(
        [{"params": path.parameters(), "weight_decay": DECAY},
         {"params": [cooling], "weight_decay": 0.0}], lr=RATE,
    )  # fmt: skip
    steps = EPOCHS * math.ceil(len(at) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(at)).split(BATCH):
            none = path(rows[batch].unsqueeze(1)).unsqueeze(1)
            scaled = torch.cat([logits[batch], none], dim=1) / cooling.exp()
            each = losses(scaled, target[batch], named[batch])
            weight = views.weight[at[batch]]
            loss = (each * weight).sum() / weight.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return Fitted(path.eval(), float(cooling.detach().exp()))


def cross_fitted(views: Views) -> Tensor:
    """Logit of "none of these" [N] of each view, by a fit without the pictures of its fold."""
    none = torch.zeros(len(views.rows))
    for fold in range(len(FOLDS) + 1):
        out = views.fold == fold
        fitted = fit(views, ~out, seed=fold)
        with torch.inference_mode():
            none[out] = fitted.path(views.rows[out].unsqueeze(1))
    return none


def recalibrated(views: Views, none: Tensor) -> tuple[float, float, float]:
    """(offset of "none", temperature, mean loss) that fit cross-fitted logits `none` [N] best.

    A fit is surer of the origins it saw than of others: what it says of those it did not see
    is what a user's videos are like.
    """
    free = torch.tensor([0.0, math.log(1.5)], requires_grad=True)
    named = torch.from_numpy(views.truth.named)
    optimiser = torch.optim.LBFGS([free], max_iter=60)

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = torch.cat([views.logits, (none + free[0]).unsqueeze(1)], dim=1)
        each = losses(logits / free[1].exp(), views.truth.target, named)
        mean = (each * views.weight).sum() / views.weight.sum()
        mean.backward()
        return mean

    optimiser.step(loss)
    return float(free[0].detach()), float(free[1].detach().exp()), float(loss().detach())


def shifted(chances: Floats, offset: float) -> Floats:
    """As the readout does with a roll-up's sum; see `OutputGroup.rollup_offset`."""
    return chances * math.exp(offset) / (1 + chances * math.expm1(offset))


def offset_of(scores: Floats, right: Floats, weight: Floats) -> float:
    """The offset, 0 or more, with which scores of 0.05 or more add up to what is right."""
    inside = scores >= 0.05
    share = np.broadcast_to(weight[:, None], scores.shape)[inside]
    wanted = (right[inside] * share).sum()
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        found = (shifted(scores[inside], middle) * share).sum()
        low, high = (middle, high) if found < wanted else (low, middle)
    return low


def best_thresholds(
    scores: Floats, right: Floats, weight: Floats
) -> tuple[NDArray[np.float64], float]:
    """(threshold of each label [C], of the group): the lowest with which 0.8 of the tags are right.

    The group's threshold falls until the labels' own, which follow it, would let in too much.
    """
    best = np.full(scores.shape[1], HIGHEST), HIGHEST
    for group in np.arange(0.95, LOWEST - 1e-9, -0.01).round(2):
        found = label_thresholds(scores, right, weight, float(group))
        tags = (scores >= found) * weight[:, None]
        if (tags * right).sum() < PRECISION * tags.sum():
            return best
        best = found, float(group)
    return best


def label_thresholds(
    scores: Floats, right: Floats, weight: Floats, group: float
) -> NDArray[np.float64]:
    """A threshold for each label of a group [C]: its own record, shrunk to the group's.

    A label counts as if it had PRIOR more views above any threshold, of which the group's share
    was right, a little more than what is wanted. It gets the lowest threshold from the group's on
    at which its precision then is what is wanted. So a few wrong pictures raise it, one does not.
    """
    grid = np.round(np.arange(group, HIGHEST + 1e-9, 0.01), 2)
    found = np.full(scores.shape[1], group)
    for label in range(scores.shape[1]):
        seen = scores[:, label] >= LOWEST
        own, truth, share = scores[seen, label], right[seen, label], weight[seen]
        if not len(own):
            continue
        for threshold in grid:
            over = own >= threshold
            hits = (truth * share)[over].sum() + PRIOR * (PRECISION + MARGIN)
            precision = hits / (share[over].sum() + PRIOR)
            if precision >= PRECISION:
                found[label] = threshold
                break
        else:
            found[label] = HIGHEST
    return found


def calibration_error(scores: Floats, right: Floats, weight: Floats, bins: int = 15) -> float:
    """Expected calibration error over the given (score, right) pairs."""
    at = np.minimum((scores * bins).astype(int), bins - 1)
    error = 0.0
    for one in range(bins):
        inside = at == one
        if inside.any():
            gap = ((scores - right) * weight)[inside].sum()
            error += abs(float(gap))
    return error / float(weight.sum())


def interval(
    figure: Callable[[NDArray[np.intp]], float], picture: NDArray[np.int32]
) -> tuple[float, float, float]:
    """(value, 2.5 %, 97.5 %) of a figure of views, by drawing pictures with replacement."""
    random = np.random.default_rng(0)
    views = {p: np.flatnonzero(picture == p) for p in np.unique(picture)}
    pictures = list(views)
    drawn = []
    for _ in range(RESAMPLES):
        picks = random.integers(len(pictures), size=len(pictures))
        drawn.append(figure(np.concatenate([views[pictures[at]] for at in picks])))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return figure(np.arange(len(picture))), float(low), float(high)


@dataclass(frozen=True)
class Report:
    """Scores of all views and thresholds of all labels, and the figures of both."""

    views: Views
    scores: Floats
    thresholds: NDArray[np.float64]

    def group(self, name: str) -> slice:
        return slice(0, LEAVES) if name == "outputs" else slice(LEAVES, None)

    def precision(self, name: str, at: NDArray[np.intp]) -> float:
        tags, right, _, _ = self._sums[name]
        return float(right[at].sum() / max(float(tags[at].sum()), 1e-9))

    def recall(self, name: str, at: NDArray[np.intp]) -> float:
        """Of the named pictures that have a right label, the share that is given one."""
        _, _, hit, wanted = self._sums[name]
        return float(hit[at].sum() / max(float(wanted[at].sum()), 1e-9))

    def ece(self, name: str, at: NDArray[np.intp]) -> float:
        scores, right = (x[at][:, self.group(name)] for x in (self.scores, self.views.truth.right))
        if name == "outputs":  # the best output of each view
            best = scores.argmax(1)
            pick = np.arange(len(at)), best
            return calibration_error(scores[pick], right[pick], self.views.weight.numpy()[at])
        inside = scores >= 0.1
        weight = np.broadcast_to(self.views.weight.numpy()[at][:, None], scores.shape)
        return calibration_error(scores[inside], right[inside], weight[inside])

    def tags_per_view(self, kind: str) -> float:
        tags = self.scores >= self.thresholds
        return float(tags[self.views.kinds == kind].sum(1).mean())

    @cached_property
    def _sums(self) -> dict[str, tuple[Floats, Floats, Floats, Floats]]:
        """Per view, weighted: tags, right ones, whether one is right, whether one could be."""
        found = {}
        for name in ("outputs", "roll-ups"):
            group, weight = self.group(name), self.views.weight.numpy()
            tags = self.scores[:, group] >= self.thresholds[group]
            truth = self.views.truth.right[:, group]
            right, named = tags * truth, self.views.truth.named * weight
            found[name] = (
                tags.sum(1) * weight,
                right.sum(1) * weight,
                right.max(1) * named,
                truth.max(1) * named,
            )
        return found


def table(reports: dict[str, Report]) -> str:
    """The figures as Markdown."""
    lines = ["| figure | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]

    def row(title: str, figure: Callable[[Report], str]) -> None:
        lines.append(f"| {title} | " + " | ".join(figure(r) for r in reports.values()) + " |")

    def spanned(value: tuple[float, float, float]) -> str:
        return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"

    for name in ("outputs", "roll-ups"):
        for title, figure in (
            ("precision at the thresholds", Report.precision),
            ("recall there, named pictures", Report.recall),
            ("expected calibration error", Report.ece),
        ):

            def measured(report: Report, figure=figure, name=name) -> str:  # type: ignore[no-untyped-def]
                return spanned(interval(lambda at: figure(report, name, at), report.views.picture))

            row(f"{name}: {title}", measured)
    for kind in ("named", "photo", "painting", *sorted(NOTHING)):
        row(f"tags per picture: {kind}", lambda r, kind=kind: f"{r.tags_per_view(kind):.2f}")  # type: ignore[misc]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--frames", default="frames.npz")
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument("--out", type=Path, default=ROOT / "head")
    args = parser.parse_args()
    known = LabelSet.from_list(json.loads(args.labels.read_text(encoding="utf-8")))
    visual = LabelSet([label for label in known if label.stream == "visual"])
    roll_up = roll_up_matrix(visual)
    views = read_views(args.work, visual, args.frames)
    print(f"{len(np.unique(views.picture))} pictures, {len(views.rows)} views", flush=True)
    none = cross_fitted(views)
    offset, temperature, loss = recalibrated(views, none)
    print(f"cross-fitted loss {loss:.4f}, offset {offset:.3f}, temperature {temperature:.3f}")
    logits = torch.cat([views.logits, (none + offset).unsqueeze(1)], dim=1)
    scores = scores_of(logits / temperature, roll_up)
    weight = views.weight.numpy()
    rollup_offset = offset_of(scores[:, LEAVES:], views.truth.right[:, LEAVES:], weight)
    scores[:, LEAVES:] = shifted(scores[:, LEAVES:], rollup_offset)
    print(f"offset of roll-ups {rollup_offset:.3f}")
    thresholds = np.zeros(scores.shape[1])
    for name, columns in (("outputs", slice(0, LEAVES)), ("roll-ups", slice(LEAVES, None))):
        some, right = scores[:, columns], views.truth.right[:, columns]
        thresholds[columns], group = best_thresholds(some, right, weight)
        own = thresholds[columns]
        print(f"{name}: threshold {group:.2f}; per label {own.min():.2f} to {own.max():.2f}")
    bare = scores_of(views.logits, roll_up)
    old = np.concatenate([np.full(LEAVES, 0.7), np.full(roll_up.shape[1], 0.6)])
    text = table({"before": Report(views, bare, old), "now": Report(views, scores, thresholds)})
    print(text)
    whole = fit(views, np.ones(len(views.rows), bool))
    with torch.no_grad():
        whole.path.none.bias += offset
    args.out.mkdir(exist_ok=True)
    whole.path.write(
        args.out / "none_path.npz",
        temperature=np.array(temperature, np.float32),
        rollup_offset=np.array(rollup_offset, np.float32),
        ids=np.array([label.id for label in visual]),
        thresholds=thresholds.astype(np.float32),
    )
    (args.out / "figures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
