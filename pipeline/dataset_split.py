"""Which clips are learnt from and which only check what was learnt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from vtag.dataset_items import DatasetError, Item, Split


@dataclass(frozen=True)
class Merged:
    """Items of which no two hold the same bytes.

    Attributes:
        items: in the order of their first appearance.
        notes: what was merged, one line each.
    """

    items: tuple[Item, ...]
    notes: tuple[str, ...]


def merge_copies(items: Sequence[Item], content_ids: Mapping[Path, str]) -> Merged:
    """One item for each content: copies of a clip are one clip with all their labels.

    So the same picture can never be learnt from and then be used to check the learning. Groups
    that share a clip become one group.

    Args:
        content_ids: of every item's path.

    Raises:
        DatasetError: copies of one clip are given to two splits.
    """
    copies: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        copies[content_ids[item.path]].append(item)
    problems, notes, merged = [], [], []
    group_name = _joined_groups([[i.group for i in same if i.group] for same in copies.values()])
    for same in copies.values():
        first = same[0]
        for other in same[1:]:
            if other.split != first.split:
                problems.append(
                    f"{other.where}: {other.path} is a copy of {first.path}, "
                    f"but one is for {other.split} and the other for {first.split}"
                )
            notes.append(f"{other.path} is a copy of {first.path}; they count as one clip")
        labels = tuple(sorted({label for item in same for label in item.labels}))
        groups = [group_name[item.group] for item in same if item.group]
        # Of what several copies have, the first counts.
        features = {stream: file for i in reversed(same) for stream, file in i.features.items()}
        group = groups[0] if groups else None
        merged.append(replace(first, labels=labels, group=group, features=features))
    if problems:
        raise DatasetError(problems)
    return Merged(tuple(merged), tuple(notes))


def split_items(
    items: Sequence[Item], *, validation: float = 0.2, seed: int = 0
) -> tuple[Item, ...]:
    """The items, each with a split: as given, or else stratified by label and whole by group.

    Where the given splits know no validation, it is taken from the training clips.

    Iterative stratification (Sechidis et al., ECML 2011): label by label, the rarest first, each
    group goes to the side that still lacks most of that label. A label with two groups or
    more is on both sides.

    Args:
        validation: share of clips to check with.
        seed: same seed, same split, whatever the order of the items.

    Raises:
        DatasetError: groups that are given to two splits, or too few groups to split.
    """
    if not 0 < validation < 1:
        raise DatasetError([f"the validation share must be between 0 and 1, got {validation}"])
    units = _units(items)
    if any(item.split is not None for item in items):
        problems = [
            f"group {name!r} is given to {' and '.join(sorted(sides))}"
            for name, members in units.items()
            if len(sides := {str(member.split) for member in members}) > 1
        ]
        if problems:
            raise DatasetError(problems)
        if any(item.split == "validation" for item in items):
            return tuple(items)
        learnt = [replace(item, split=None) for item in items if item.split == "train"]
        rest = [item for item in items if item.split != "train"]
        return (*split_items(learnt, validation=validation, seed=seed), *rest)
    side_of = _stratify(units, validation, Random(seed))
    if "validation" not in side_of.values() or "train" not in side_of.values():
        raise DatasetError(
            [
                f"{len(units)} independent clips are too few to set some aside for checking; some "
                "ten of each tag are a start (clips of one group count as one)"
            ]
        )
    return tuple(replace(item, split=side_of[_unit_name(item)]) for item in items)


def _joined_groups(shared: Sequence[Sequence[str]]) -> dict[str, str]:
    """One name for all groups that are connected by a shared clip."""
    above: dict[str, str] = {name: name for names in shared for name in names}

    def top(name: str) -> str:
        while above[name] != name:
            name = above[name]
        return name

    for names in shared:
        for name in names[1:]:
            above[top(name)] = top(names[0])
    return {name: top(name) for name in above}


def _unit_name(item: Item) -> str:
    return f"group {item.group}" if item.group else f"clip {item.path}"


def _units(items: Sequence[Item]) -> dict[str, list[Item]]:
    units: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        units[_unit_name(item)].append(item)
    return units


def _stratify(
    units: Mapping[str, Sequence[Item]], validation: float, random: Random
) -> dict[str, Split]:
    names = sorted(units)
    random.shuffle(names)
    counts = {name: Counter(lb for i in units[name] for lb in i.labels) for name in names}
    holders = Counter(label for name in names for label in counts[name])
    need: dict[Split, dict[str, float]] = {"train": {}, "validation": {}}
    for label in holders:
        total = sum(count[label] for count in counts.values())
        # A little over a half: of two holders the second goes to validation.
        least = 0.51 if holders[label] > 1 else 0.0
        need["validation"][label] = max(validation * total, least)
        need["train"][label] = total - need["validation"][label]
    room: dict[Split, float] = {
        "validation": validation * sum(len(unit) for unit in units.values()),
        "train": (1 - validation) * sum(len(unit) for unit in units.values()),
    }
    side_of: dict[str, Split] = {}

    def put(name: str, side: Split) -> None:
        side_of[name] = side
        room[side] -= len(units[name])
        for label, count in counts[name].items():
            need[side][label] -= count

    for label in sorted(holders, key=lambda label: (holders[label], label)):
        for name in names:
            if name not in side_of and counts[name][label]:
                lack = {side: (need[side][label], room[side]) for side in need}
                put(name, "train" if lack["train"] >= lack["validation"] else "validation")
    for name in names:
        if name not in side_of:  # clips without a label
            put(name, "train" if room["train"] >= room["validation"] else "validation")
    return side_of
