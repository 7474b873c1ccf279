"""What is right for a view of a picture: the truth that the head is calibrated against."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from make_imagenet_labels import Noun, everything_above, read_nouns
from numpy.typing import NDArray
from torch import Tensor

from vtag.models.labels import LabelSet

Floats = NDArray[np.float32]
LEAVES: Final = 1000
# A noun that stands over more outputs than this (118 are dogs) says too little to confirm one.
TOO_GENERAL: Final = 130
# Looked at: what the file's name says is no noun for these, or they are drawn.
RECAST: Final = ((r"/lang/", "drawing"), (r"/categorization/.*/(monuments|renewable)/", "photo"))
# What WordNet files apart, and a person would not.
ALIASES: Final = {
    "rooster": ("cock (rooster)",), "chicken": ("hen", "cock (rooster)"), "duck": ("drake (duck)",),
    "bull": ("ox",), "cow": ("ox",), "cattle": ("ox",), "calf": ("ox",), "cep": ("bolete",),
    "tombstone": ("memorial tablet", "megalith"), "paratrooper": ("parachute",),
    "bunny": ("hare", "wood rabbit", "Angora rabbit"), "solar": ("solar dish",),
    "rabbit": ("hare", "wood rabbit", "Angora rabbit"), "komodo": ("Komodo dragon",),
    "measuring tape": ("ruler",), "tape measure": ("ruler",), "sheep": ("ram (sheep)",),
    "mushroom": ("agaric", "mushroom", "gyromitra", "bolete"), "horse": ("sorrel (horse)",),
    "tank": ("army tank",), "motorcycle": ("motor scooter", "moped"), "glasses": ("sunglasses",),
    "bicycle": ("mountain bike", "tandem bicycle"), "camera": ("reflex camera", "Polaroid camera"),
    "phone": ("cellphone", "dial telephone"), "telephone": ("cellphone", "dial telephone"),
    "flower": ("daisy",), "watch": ("stopwatch", "analog clock"),
    "boat": ("canoe", "speedboat", "lifeboat"), "hat": ("bonnet (hat)", "cowboy hat", "sombrero"),
    "raptor": ("warplane",), "german gun": ("army tank", "cannon"), "goat": ("ibex",),
    "frog": ("bullfrog", "tree frog", "tailed frog"), "toad": ("bullfrog", "tailed frog"),
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Of N views.

    Attributes:
        target: float32 [N, 1001]: how likely each output is the right one, then "none of these".
            Of a picture whose name allows several outputs, each of them has 1.
        named: bool [N]: whether the target is such a list of allowed outputs.
        right: float32 [N, C]: chance that a label is right, outputs and then roll-ups.
    """

    target: Tensor
    named: NDArray[np.bool_]
    right: Floats


def recast(kind: str, name: str) -> str:
    """The kind of a picture, put right where looking at it says so."""
    found = (other for pattern, other in RECAST if re.search(pattern, name))
    return next(found, kind)


class Vocabulary:
    """From the words of a file name to the outputs that it allows."""

    def __init__(self, wordnet: Path, labels: LabelSet) -> None:
        self._nouns: dict[str, Noun] = read_nouns(wordnet)
        self._of_word: dict[str, set[str]] = defaultdict(set)
        for noun_id, noun in self._nouns.items():
            for word in noun.words:
                self._of_word[word.lower().replace("_", " ")].add(noun_id)
        self._visual = [label for label in labels if label.stream == "visual"]
        self._at = {label.id: at for at, label in enumerate(self._visual)}
        self._by_name = {label.name: at for at, label in enumerate(self._visual)}
        self._below: dict[str, set[int]] = defaultdict(set)
        for at, label in enumerate(self._visual[:LEAVES]):
            for above in everything_above(self._nouns, label.id) | {label.id}:
                self._below[above].add(at)

    def nouns(self, words: str) -> set[str]:
        """Every noun that the longest runs of words name, in all their senses."""
        text = re.findall(r"[a-z']+", words)
        found: set[str] = set()
        taken: set[int] = set()
        for length in (4, 3, 2, 1):
            for first in range(len(text) - length + 1):
                run = " ".join(text[first : first + length])
                forms = (run, run.rstrip("s"), run.replace(" ", ""))
                hits = next((self._of_word[form] for form in forms if form in self._of_word), set())
                if hits and not taken & set(range(first, first + length)):
                    found |= hits
                    taken |= set(range(first, first + length))
        return found

    def allowed(self, words: str) -> Floats:
        """[C]: 1 for each visual label that a picture of these words may be."""
        right = np.zeros(len(self._visual), np.float32)
        for noun_id in self.nouns(words):
            for above in everything_above(self._nouns, noun_id) | {noun_id}:
                if above in self._at:
                    right[self._at[above]] = 1
            below = self._below.get(noun_id, set())
            if len(below) <= TOO_GENERAL:
                right[list(below)] = 1
        for word, names in ALIASES.items():
            if re.search(rf"\b{word}s?\b", words):
                right[[self._by_name[name] for name in names]] = 1
        for at, label in enumerate(self._visual[LEAVES:], LEAVES):
            members = [self._at[member] for member in label.members]
            right[at] = max(right[at], right[members].max())
        return right


def roll_up_matrix(labels: LabelSet) -> Floats:
    """[1000, roll-ups]: 1 where an output is a member."""
    rollups = [label for label in labels if label.is_rollup]
    matrix = np.zeros((LEAVES, len(rollups)), np.float32)
    for column, label in enumerate(rollups):
        matrix[[labels.index(member) for member in label.members], column] = 1
    return matrix


def trust(second: Floats, allowed: Floats) -> tuple[float, float]:
    """(slope, offset) of the log-odds that the second opinion is right, in those it has itself.

    Args:
        second: [N, 1000] of named pictures and of drawings.
        allowed: [N, 1000].
    """
    best = second.argmax(1)
    certainty = _log_odds(torch.from_numpy(second.max(1)))
    hit = torch.from_numpy(allowed[np.arange(len(best)), best])
    weights = torch.tensor([1.0, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100)

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = torch.nn.functional.binary_cross_entropy_with_logits(
            weights[0] * certainty + weights[1], hit
        )
        found.backward()
        return found

    optimiser.step(loss)
    slope, offset = weights.tolist()
    return slope, offset


def truth_of(
    labels: LabelSet,
    vocabulary: Vocabulary,
    kinds: list[str],
    words: list[str],
    second: Floats,
    nothing: frozenset[str],
) -> Truth:
    """What is right for each view.

    "named": what WordNet puts on a line with the file's words. `nothing`: no output is right.
    Otherwise the second opinion, as far as it can be trusted: its probabilities, sharpened to
    a sum of 1, times the chance that the best of them is right; the rest is "none of these".
    """
    named = np.array([kind == "named" for kind in kinds])
    allowed = np.stack([
        vocabulary.allowed(text) if is_named else np.zeros(LEAVES + _rollups(labels), np.float32)
        for text, is_named in zip(words, named, strict=True)
    ])  # fmt: skip
    asked = named & (second.max(1) > 0)
    slope, offset = trust(second[asked], allowed[asked][:, :LEAVES])
    print(f"second opinion: right with log-odds {slope:.2f} * its own {offset:+.2f}")
    opinion = torch.from_numpy(second)
    known = torch.sigmoid(slope * _log_odds(opinion.max(1).values) + offset)
    sharp = opinion.square() / opinion.square().sum(1, keepdim=True).clamp(min=1e-12)
    shares = (sharp * known.unsqueeze(1)).numpy()
    empty = np.array([kind in nothing for kind in kinds])
    leaves = np.where(named[:, None], allowed[:, :LEAVES], np.where(empty[:, None], 0, shares))
    none = np.where(named, leaves.max(1) == 0, 1 - leaves.sum(1))
    right = np.concatenate([leaves, leaves @ roll_up_matrix(labels)], axis=1)
    right[named] = allowed[named]
    target = np.concatenate([leaves, none[:, None]], axis=1).astype(np.float32)
    return Truth(torch.from_numpy(target), named, np.clip(right, 0, 1).astype(np.float32))


def _rollups(labels: LabelSet) -> int:
    return sum(label.is_rollup for label in labels)


def _log_odds(chance: Tensor) -> Tensor:
    return torch.logit(chance.clamp(1e-4, 1 - 1e-4))
