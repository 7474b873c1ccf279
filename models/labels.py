"""What the outputs of a model mean: names, parents, thresholds, and tags that sum others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args, overload

from vtag.records import Stream

_FIELDS: Final = {"id", "name", "parents", "threshold", "stream", "members"}


@dataclass(frozen=True)
class Label:
    """One thing that a model can say.

    Attributes:
        id: stable across versions: WordNet id (n02099601), AudioSet id (/m/0bt9lr), or any text.
        name: for people; unique within a set whatever its case.
        parents: ids of the nearest more general labels, in the order they are shown.
        threshold: the score from which the label becomes a tag, above 0 and at most 1.
        stream: what the label is found in.
        members: ids of the network outputs whose scores a roll-up sums; empty for a label
            that is itself an output of the network.

    Raises:
        ValueError: a field makes no sense.
    """

    id: str
    name: str
    parents: tuple[str, ...] = ()
    threshold: float = 0.5
    stream: Stream = "visual"
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("id", "name"):
            text = getattr(self, field)
            if not isinstance(text, str) or not text.strip() or text != text.strip():
                raise ValueError(
                    f"a label's {field} must be text without blanks around, not {text!r}"
                )
        for field in ("parents", "members"):
            ids = getattr(self, field)
            if not isinstance(ids, tuple) or not all(isinstance(i, str) for i in ids):
                raise ValueError(f"label {self.id}: {field} must be a tuple of ids, not {ids!r}")
            if len(set(ids)) != len(ids) or self.id in ids:
                raise ValueError(f"label {self.id}: {field} name one id twice, or the label itself")
        if not isinstance(self.threshold, float | int) or not 0 < self.threshold <= 1:
            raise ValueError(
                f"label {self.id}: threshold must be above 0 and at most 1, not {self.threshold!r}"
            )
        if self.stream not in get_args(Stream):
            raise ValueError(
                f"label {self.id}: no stream {self.stream!r}; "
                f"there are: {', '.join(get_args(Stream))}"
            )

    @property
    def is_rollup(self) -> bool:
        """Whether the score is a sum of other labels' scores and not an output of the network."""
        return bool(self.members)

    def to_dict(self) -> dict[str, object]:
        """The label's object in labels.json; empty parents and members are left out."""
        fields: dict[str, object] = {"id": self.id, "name": self.name}
        if self.parents:
            fields["parents"] = list(self.parents)
        fields |= {"threshold": self.threshold, "stream": self.stream}
        if self.members:
            fields["members"] = list(self.members)
        return fields


class LabelSet(Sequence[Label]):
    """The labels of one model: the network's outputs in their order, then the roll-ups.

    A roll-up's members are exactly the outputs that lead up to it through their parents, so
    that a label can not score higher than any of the roll-ups above it.

    Raises:
        ValueError: an id or a name is there twice, an output follows a roll-up, a parent or
            a member is unknown, parents run in a circle, or members and parents disagree.
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self._labels: Final = tuple(labels)
        self._at: Final = {label.id: at for at, label in enumerate(self._labels)}
        self._by_name: Final = {label.name.casefold(): label for label in self._labels}
        self.outputs: Final = sum(not label.is_rollup for label in self._labels)
        self._check_identity()
        self._ancestors: Final = {label.id: self._climb(label) for label in self._labels}
        self._check_rollups()
        # How many labels stand over each: the order of equal scores needs it for every video.
        self.depths: Final = tuple(len(self._ancestors[label.id]) for label in self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    @overload
    def __getitem__(self, at: int) -> Label: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Label, ...]: ...

    def __getitem__(self, at: int | slice) -> Label | tuple[Label, ...]:
        return self._labels[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and self._labels == other._labels

    def __hash__(self) -> int:
        return hash(self._labels)

    def __repr__(self) -> str:
        return f"LabelSet({self.outputs} outputs, {len(self) - self.outputs} roll-ups)"

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """Position of a label, given itself or its id: its column in a row of scores.

        Raises:
            ValueError: the set has no such label there.
        """
        at = self._at.get(value.id if isinstance(value, Label) else str(value), -1)
        if not start <= at < (len(self) if stop is None else stop):
            raise ValueError(f"no label {value!r} among {len(self)} labels")
        return at

    def find(self, text: str) -> Label:
        """The label with this id or this name (case is ignored in names).

        Raises:
            KeyError: there is none.
        """
        at = self._at.get(text)
        if at is not None:
            return self._labels[at]
        if text.casefold() not in self._by_name:
            raise KeyError(f"no label {text!r}; `search` finds labels by a part of their name")
        return self._by_name[text.casefold()]

    def ancestors(self, label: Label) -> tuple[Label, ...]:
        """Every label above this one, nearest first; one that is reached twice counts once."""
        return self._ancestors[label.id]

    def categories(self, label: Label) -> tuple[str, ...]:
        """Names of every label above this one, nearest first."""
        return tuple(above.name for above in self._ancestors[label.id])

    def search(self, text: str) -> tuple[Label, ...]:
        """Labels that a person may mean by this text.

        First the label of that very id or name, then names that hold every word of the text,
        then whatever lies below one of those.
        """
        words = text.casefold().split()
        if not words:
            return ()
        exact = [
            x for x in self if text.strip() == x.id or text.strip().casefold() == x.name.casefold()
        ]
        named = [x for x in self if all(word in x.name.casefold() for word in words)]
        hits = {label.id for label in (*exact, *named)}
        below = [x for x in self if any(up.id in hits for up in self._ancestors[x.id])]
        return tuple(dict.fromkeys((*exact, *named, *below)))

    def to_list(self) -> list[dict[str, object]]:
        """What labels.json holds."""
        return [label.to_dict() for label in self]

    @classmethod
    def from_list(cls, entries: Iterable[Mapping[str, object]]) -> LabelSet:
        """The set that `to_list` described.

        Raises:
            ValueError: an entry is not a label, or the labels do not fit together.
        """
        return cls(_label(entry) for entry in entries)

    def _check_identity(self) -> None:
        if len(self._at) != len(self) or len(self._by_name) != len(self):
            ids = [label.id for label in self]
            names = [label.name.casefold() for label in self]
            twice = sorted({x for kind in (ids, names) for x in kind if kind.count(x) > 1})
            raise ValueError(f"labels share an id or a name: {', '.join(twice[:5])}")
        if any(label.is_rollup for label in self._labels[: self.outputs]):
            raise ValueError("the outputs of the network must come before the roll-ups")
        for label in self:
            for other in (*label.parents, *label.members):
                if other not in self._at:
                    raise ValueError(f"label {label.id}: no label {other!r} in this set")

    def _climb(self, label: Label) -> tuple[Label, ...]:
        """Every label above, breadth first: a parent comes before a grandparent."""
        seen: dict[str, Label] = {}
        level = label.parents
        while level:
            fresh = dict.fromkeys(i for i in level if i not in seen)
            seen |= {i: self._labels[self._at[i]] for i in fresh}
            level = tuple(up for i in fresh for up in seen[i].parents)
        if label.id in seen:
            raise ValueError(f"label {label.id}: its parents lead back to itself")
        return tuple(seen.values())

    def _check_rollups(self) -> None:
        below: dict[str, set[str]] = {label.id: set() for label in self if label.is_rollup}
        for output in self._labels[: self.outputs]:
            for up in self._ancestors[output.id]:
                if up.is_rollup:
                    below[up.id].add(output.id)
        for label in self._labels[self.outputs :]:
            # An empty or too short list would let a child outscore its own category.
            if set(label.members) != below[label.id]:
                odd = sorted(set(label.members) ^ below[label.id])
                raise ValueError(
                    f"roll-up {label.id}: its members and the parents of outputs disagree "
                    f"about {', '.join(odd[:5])}"
                )


def _label(entry: Mapping[str, object]) -> Label:
    if not isinstance(entry, Mapping) or not {"id", "name"} <= set(entry) <= _FIELDS:
        raise ValueError(
            f"a label has id, name and optionally {', '.join(sorted(_FIELDS - {'id', 'name'}))}; "
            f"found {str(entry)[:120]}"
        )
    fields: dict[str, object] = dict(entry)
    for field in ("parents", "members"):
        ids = fields.get(field, [])
        if not isinstance(ids, list | tuple):
            raise ValueError(f"label {fields['id']!r}: {field} must be a list of ids, not {ids!r}")
        fields[field] = tuple(ids)
    return Label(**fields)  # type: ignore[arg-type]  # Label checks every field itself
