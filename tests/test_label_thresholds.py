"""Thresholds for single labels: the file, the selection, and what they make of the tags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vtag.config import Selection
from vtag.errors import ConfigError
from vtag.head import Head, load_head
from vtag.label_thresholds import read_label_thresholds
from vtag.records import Features, Tag

GOLDEN_RETRIEVER = "n02099601"


@pytest.fixture(scope="module")
def head() -> Head:
    return load_head("vtag-base")


@pytest.fixture(scope="module")
def rows(head: Head) -> Features:
    """Rows of a golden retriever as the network imagines it: its classifier's own weights."""
    weight = head._net.state_dict()
    units = weight["fc.weight"][:, :2048]  # the mean's columns come first
    direction = (weight["head.experts.weight"][207] @ units).clamp(min=0).numpy()
    row = direction / direction.mean() * 0.12  # weak enough that no score is rounded to 1
    return Features(
        rows=np.stack([row] * 3).astype(np.float16),
        seconds=np.arange(3, dtype=np.float64),
        made_by="drawn",
    )


def tags(head: Head, rows: Features, selection: Selection) -> dict[str, Tag]:
    found = head.tags({"visual": rows}, end_seconds=3, selection=selection)
    return {tag.name: tag for tag in found}


class TestFile:
    def test_lines_and_json_say_the_same(self, tmp_path: Path) -> None:
        lines, objects = tmp_path / "lines.csv", tmp_path / "objects.json"
        lines.write_text(
            '# mine\n\ndog,0.6\nn02099601\t0.25\nChicken, rooster, 1\n"cat" , .5\n',
            encoding="utf-8",
        )
        wanted = {"dog": 0.6, "n02099601": 0.25, "Chicken, rooster": 1.0, "cat": 0.5}
        objects.write_text(json.dumps(wanted), encoding="utf-8")
        assert read_label_thresholds(lines) == wanted
        assert read_label_thresholds(objects) == wanted

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dog", ":1: a threshold is written as"),
            ("# x\ndog,high", ":2: a threshold is written as"),
            ("dog,1.5", "number from 0 to 1"),
            ("dog,nan", "number from 0 to 1"),
            (",0.5", ":1: a threshold is written as"),
            ("dog,0.5\ndog,0.6", ":2: label 'dog' is there twice"),
            ('{"dog": 0.5, "dog": 0.6}', "'dog' is there twice"),
            ('{"dog": true}', "a threshold is written as"),
            ('{"dog": 0.5', ":1: this is not JSON"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "thresholds.csv"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_label_thresholds(file)
        assert message in str(caught.value)
        assert str(file) in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can not be read"):
            read_label_thresholds(tmp_path / "no.csv")


class TestSelection:
    def test_one_label_is_let_in_or_kept_out_by_id_or_name(
        self, head: Head, rows: Features
    ) -> None:
        every = tags(head, rows, Selection(top_k=None, threshold=0))
        dog, bird = every["dog"].score, every["bird"].score
        assert dog > 0.5 > bird
        chosen = tags(head, rows, Selection(thresholds={"n02084071": 1.0, "Bird": 0.0}))
        assert "dog" not in chosen
        assert chosen["bird"].threshold == 0
        assert chosen["bird"].score == bird

    def test_min_score_is_a_floor_under_every_threshold(self, head: Head, rows: Features) -> None:
        every = tags(head, rows, Selection(top_k=None, threshold=0))
        floor = every["dog"].score - 1e-4  # scores are rounded to four digits
        chosen = tags(
            head,
            rows,
            Selection(top_k=None, threshold=0, min_score=floor, thresholds={"bird": 0.0}),
        )
        assert set(chosen) == {name for name, tag in every.items() if tag.score >= floor}
        assert {tag.threshold for tag in chosen.values()} == {floor}

    def test_top_k_counts_tags_and_drops_what_is_implied_first(
        self, head: Head, rows: Features
    ) -> None:
        sure = {GOLDEN_RETRIEVER: 0.05}
        names = list(tags(head, rows, Selection(top_k=None, thresholds=sure)))
        assert names.index("golden retriever") < names.index("dog") < names.index("animal")
        first = list(tags(head, rows, Selection(top_k=1, thresholds=sure)))
        assert first == names[:1]
        assert first != ["animal"]

    def test_a_rollup_whose_children_are_unsure_stands_alone(
        self, head: Head, rows: Features
    ) -> None:
        dog = head.labels.find("dog")
        breeds = dict.fromkeys((*dog.members, "retriever", "hound", "terrier", "spaniel"), 1.0)
        known = {key: 1.0 for key in breeds if _knows(head, key)}
        found = tags(head, rows, Selection(top_k=None, thresholds=known | {"dog": 0.3}))
        assert next(iter(found)) == "dog"
        assert not {head.labels.find(m).name for m in dog.members} & set(found)

    def test_an_unknown_label_is_named_with_what_is_near(self, head: Head) -> None:
        with pytest.raises(ConfigError) as caught:
            head.check_selection(Selection(thresholds={"golden retreiver": 0.5}))
        assert "no label 'golden retreiver'; near it: 'golden retriever'" in str(caught.value)

    def test_one_label_under_two_names_is_refused(self, head: Head) -> None:
        with pytest.raises(ConfigError, match="'dog' and 'n02084071' are the same label"):
            head.check_selection(Selection(thresholds={"dog": 0.5, "n02084071": 0.6}))

    @pytest.mark.parametrize(
        "settings",
        [{"min_score": 1.5}, {"min_score": -0.1}, {"thresholds": {"dog": 2.0}}],
    )
    def test_numbers_outside_0_to_1_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="between 0 and 1"):
            Selection(**settings)  # type: ignore[arg-type]

    def test_later_changes_of_the_mapping_change_nothing(self) -> None:
        mine = {"dog": 0.5}
        selection = Selection(thresholds=mine)
        mine["dog"] = 0.9
        assert selection.thresholds == {"dog": 0.5}


def _knows(head: Head, text: str) -> bool:
    return any(text in (label.id, label.name) for label in head.labels)
