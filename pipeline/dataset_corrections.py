"""Corrections as labels: what a person said in the report about clips to learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vtag.corrections import Correction
from vtag.dataset_items import Item
from vtag.errors import MediaError

log = logging.getLogger(__name__)


def corrected_items(
    items: Sequence[Item],
    corrections: Mapping[str, Correction],
    *,
    content_id: Callable[[Path], str],
    folders: Sequence[Path],
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The clips with labels as corrected, then the corrected clips that were not among them.

    A clip of `items` loses the labels that were said to be wrong and gets those that were added.
    A clip that is known by its correction only has the labels that were added and, of the tags
    left standing, those that are learnt anyway: whoever corrects a clip has looked at it. One
    without any label then shows what is *not* to be tagged.

    Args:
        content_id: of a clip's bytes; raises MediaError.
        folders: below which relative paths of corrections are looked for.

    Returns:
        The items, and notes: what was changed, added or left out.
    """
    notes: list[str] = []
    changed, seen = [], set()
    for item in items:
        try:
            one = corrections.get(key := content_id(item.path))
        except MediaError as err:  # told again, with all others, where the clips are checked
            log.info("%s", err)
            changed.append(item)
            continue
        seen.add(key)
        labels = _relabelled(item, one) if one else item.labels
        if labels != item.labels:
            said = ", ".join(labels) or "nothing that is learnt"
            notes.append(f"{item.path}: shows {said}, by its correction")
        changed.append(replace(item, labels=labels))
    learnt = {label for item in changed for label in item.labels}
    learnt |= {label for one in corrections.values() for label in one.added}
    split = "train" if any(item.split for item in items) else None
    for key, one in corrections.items():
        if key in seen or not (one.wrong or one.added):
            continue
        path = _clip_of(one, content_id, folders)
        if path is None:
            notes.append(f"left out: {one.path}: the corrected clip is not there any more")
            continue
        labels = tuple(sorted(set(one.added) | (set(one.kept) & learnt)))
        where = f"correction of {one.path}"
        changed.append(Item(path=path, labels=labels, split=split, where=where))  # type: ignore[arg-type]
    return tuple(changed), tuple(notes)


def _relabelled(item: Item, one: Correction) -> tuple[str, ...]:
    wrong = {*one.wrong, *one.wrong_names}
    return tuple(sorted((set(item.labels) - wrong) | set(one.added)))


def _clip_of(
    one: Correction, content_id: Callable[[Path], str], folders: Sequence[Path]
) -> Path | None:
    """The corrected clip, where it was and with the content that was corrected."""
    for folder in folders:
        try:
            if content_id(folder / one.path) == one.id:
                return folder / one.path
        except (MediaError, ValueError):  # ValueError: a name that no file can have
            continue
    return None
