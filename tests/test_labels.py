"""Labels and their sets: what is refused, how parents lead up, how text is found."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtag.models.labels import Label, LabelSet

# Drawn by hand: a small tree in which `pup` has two parents that meet again in `animal`.
PUP = Label("n1", "Pup", parents=("n3", "n4"), threshold=0.4)
TOM = Label("n2", "tom cat", parents=("n5",), threshold=0.4)
DOG = Label("n3", "dog", parents=("n5",), members=("n1",))
PET = Label("n4", "pet", parents=("n5",), members=("n1",), threshold=0.6)
ANIMAL = Label("n5", "animal", members=("n1", "n2"))
TREE = LabelSet([PUP, TOM, DOG, PET, ANIMAL])


def test_outputs_come_first_and_are_counted() -> None:
    assert TREE.outputs == 2
    assert [label.id for label in TREE] == ["n1", "n2", "n3", "n4", "n5"]
    assert [label.is_rollup for label in TREE] == [False, False, True, True, True]
    assert TREE[1:3] == (TOM, DOG)
    with pytest.raises(ValueError, match="before the roll-ups"):
        LabelSet([DOG, PUP, TOM, PET, ANIMAL])


def test_categories_are_all_labels_above_nearest_first_each_once() -> None:
    assert TREE.categories(PUP) == ("dog", "pet", "animal")
    assert TREE.categories(ANIMAL) == ()
    # Outputs may stand above outputs, as AudioSet's classes do.
    chain = LabelSet([Label("a", "x", ("b",)), Label("b", "y", ("c",)), Label("c", "z")])
    assert chain.categories(chain[0]) == ("y", "z")


def test_find_takes_an_id_or_a_name_in_any_case() -> None:
    assert TREE.find("n2") is TREE.find("TOM Cat") is TREE[1]
    with pytest.raises(KeyError, match="no label 'tom'"):
        TREE.find("tom")


def test_index_is_the_column_and_not_found_is_a_value_error() -> None:
    assert [TREE.index(label) for label in TREE] == [0, 1, 2, 3, 4]
    assert TREE.index("n4") == 3
    with pytest.raises(ValueError, match="no label 'pet'"):
        TREE.index("pet")


def test_search_gives_the_label_itself_then_names_then_what_lies_below() -> None:
    cats = LabelSet(
        [
            Label("1", "lynx", parents=("3",)),
            Label("2", "cat flap"),
            Label("3", "Cat", members=("1",)),
        ]
    )
    assert [label.name for label in cats.search(" cat ")] == ["Cat", "cat flap", "lynx"]
    assert [label.name for label in cats.search("FLAP cat")] == ["cat flap"]
    assert [label.name for label in cats.search("2")] == ["cat flap"]
    assert cats.search("dog") == cats.search("  ") == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([Label("a", "x"), Label("a", "y")], "share an id or a name: a"),
        ([Label("a", "Crane"), Label("b", "crane")], "share an id or a name: crane"),
        ([Label("a", "x", parents=("z",))], "label a: no label 'z'"),
        ([Label("a", "x"), Label("r", "y", members=("z",))], "label r: no label 'z'"),
        (
            [Label("a", "x", parents=("b",)), Label("b", "y", parents=("a",))],
            "label a: its parents lead back",
        ),
        # A member that does not name the roll-up as a parent would get no category, and a
        # child that is no member could score above the roll-up.
        ([Label("a", "x"), Label("r", "y", members=("a",))], "roll-up r: .* about a"),
        (
            [
                Label("a", "x", parents=("r",)),
                Label("b", "z", parents=("r",)),
                Label("r", "y", members=("a",)),
            ],
            "roll-up r: .* about b",
        ),
        (
            [
                Label("a", "x", parents=("r",)),
                Label("r", "y", parents=("s",), members=("a",)),
                Label("s", "z", members=("r",)),
            ],
            "roll-up s: .* about a, r",
        ),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(labels: list[Label], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSet(labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "label's id must be text"),
        ({"name": " dog"}, "label's name must be text without blanks around, not ' dog'"),
        ({"name": 7}, "label's name must be text"),
        ({"threshold": 0}, "label a: threshold must be above 0"),
        ({"threshold": 1.5}, "label a: threshold must be above 0 and at most 1, not 1.5"),
        ({"threshold": float("nan")}, "label a: threshold"),
        ({"threshold": "0.5"}, "label a: threshold"),
        ({"stream": "smell"}, "label a: no stream 'smell'; there are: visual, audio"),
        ({"parents": ["b"]}, "label a: parents must be a tuple"),
        ({"parents": ("b", "b")}, "label a: parents name one id twice"),
        ({"members": ("a",)}, "label a: members name one id twice, or the label itself"),
        ({"members": (1,)}, "label a: members must be a tuple of ids"),
    ],
)
def test_a_label_refuses_nonsense(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Label(**{"id": "a", "name": "x", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "a"}, "a label has id, name and"),
        ({"id": "a", "name": "x", "treshold": 0.4}, "a label has id, name and"),
        ("dog", "a label has id, name and"),
        ({"id": "a", "name": "x", "parents": "bc"}, "label 'a': parents must be a list"),
        ({"id": "a", "name": "x", "threshold": None}, "label a: threshold"),
    ],
)
def test_a_list_from_a_file_is_checked(entry: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSet.from_list([entry])  # type: ignore[list-item]


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)


@given(
    names=st.lists(texts, min_size=1, max_size=12, unique_by=str.casefold),
    stream=st.sampled_from(["visual", "audio"]),
    data=st.data(),
)
def test_a_set_survives_json(names: list[str], stream: str, data: st.DataObject) -> None:
    labels: list[Label] = []
    for at, name in enumerate(names):
        # Parents are drawn among the earlier ones, so that there is no circle.
        parents = data.draw(st.lists(st.sampled_from(range(at)), unique=True)) if at else []
        ids = tuple(f"/m/{parent}" for parent in parents)
        threshold = data.draw(st.floats(0, 1, exclude_min=True))
        labels.append(Label(f"/m/{at}", name, ids, threshold, stream))  # type: ignore[arg-type]
    made = LabelSet(labels)
    read = LabelSet.from_list(json.loads(json.dumps(made.to_list())))
    assert read == made
    assert hash(read) == hash(made)
    assert [read.categories(label) for label in read] == [made.categories(x) for x in made]


def test_sets_that_differ_in_a_threshold_are_not_equal() -> None:
    other = LabelSet([PUP, TOM, DOG, Label("n4", "pet", ("n5",), 0.7, members=("n1",)), ANIMAL])
    assert other != TREE
    assert LabelSet(list(TREE)) == TREE
