"""Labelled clips: what is read, what is refused, how it is split and batched."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtag.batches import batches_in_order, collate, epoch_order, generator_of
from vtag.dataset import Dataset, Sample, build_dataset, youtube8m_dataset
from vtag.dataset_items import DatasetError, Item, check_items, read_items
from vtag.dataset_split import merge_copies, split_items
from vtag.errors import MediaError
from vtag.records import Features
from vtag.youtube8m import Video, VocabularyEntry, write_videos


def clip(path: Path, content: str) -> Path:
    """A file that stands for a video: nothing here decodes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def content_id(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drawn_features(path: Path) -> dict[str, Features]:
    """Three visual rows of size 4 and two of sound, drawn from the content."""
    random = np.random.default_rng(int(content_id(path)[:8], 16))
    return {
        stream: Features(
            random.standard_normal((rows, dim)).astype(np.float16),
            np.arange(rows, dtype=np.float64),
            f"{stream}@1",
        )
        for stream, rows, dim in (("visual", 3, 4), ("audio", 2, 5))
    }


def folders(root: Path, **clips: int) -> Path:
    for tag, count in clips.items():
        for n in range(count):
            clip(root / tag / f"{n}.mp4", f"{tag} {n}")
    return root


def problems_of(items: list[Item] | tuple[Item, ...], **options: object) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        check_items(items, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def test_a_stream_that_no_clip_has_is_none_of_the_dataset(tmp_path: Path) -> None:
    # A model with an ear gives silent clips a stream of no rows.
    def silent(path: Path) -> dict[str, Features]:
        nothing = Features(np.zeros((0, 5), np.float16), np.zeros(0), "audio@1")
        return {"visual": drawn_features(path)["visual"], "audio": nothing}

    items = read_items(folders(tmp_path, dog=3, rain=3))
    dataset = build_dataset(items, silent, content_id=content_id)
    assert dataset.dims == {"visual": 4}
    assert dataset.made_by == {"visual": "visual@1"}


class TestReading:
    def test_a_folder_per_tag(self, tmp_path: Path) -> None:
        root = folders(tmp_path / "clips", dog=2, rain=1)
        clip(root / "dog" / "deep" / "x.mkv", "deep")
        clip(root / "dog" / "notes.txt", "not a clip")
        clip(root / ".cache" / "y.mp4", "hidden")
        (root / "rain" / "also.mp4").symlink_to(root / "dog" / "0.mp4")
        found = {item.path.relative_to(root).as_posix(): item.labels for item in read_items(root)}
        assert found == {
            "dog/0.mp4": ("dog", "rain"),
            "dog/1.mp4": ("dog",),
            "dog/deep/x.mkv": ("dog",),
            "rain/0.mp4": ("rain",),
        }

    def test_csv_and_json_lines_say_the_same(self, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        table.write_text(
            'path,note,labels,split,group\na.mp4,x,dog| rain ,train,g1\n"b,c.mp4",,,validation,\n'
        )
        lines = tmp_path / "t.jsonl"
        lines.write_text(
            json.dumps(
                {"path": "a.mp4", "labels": ["rain", "dog"], "split": "train", "group": "g1"}
            )
            + "\n\n"
            + json.dumps({"path": "b,c.mp4", "labels": "", "split": "validation"})
        )
        for source in (table, lines):
            first, second = read_items(source)
            assert first.path == tmp_path / "a.mp4"
            assert (first.labels, first.split, first.group) == (("dog", "rain"), "train", "g1")
            assert second.path == tmp_path / "b,c.mp4"
            assert (second.labels, second.split, second.group) == ((), "validation", None)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("t.csv", "file,labels\n", "no column path"),
            ("t.csv", "path,labels\n", "holds no clip"),
            ("t.csv", "path,labels\n,dog\n", "line 2: path must be text"),
            ("t.csv", "path,labels,split\na,dog,dev\n", "line 2: split must be train"),
            ("t.jsonl", '{"path": "a", "labels": ["d"]}\n{"path":', "line 2: not JSON"),
            ("t.jsonl", "[1]\n", "line 1: not a JSON object"),
            ("t.jsonl", '{"path": "a", "labels": 3}\n', "line 1: labels must be text"),
            ("t.txt", "", "a table must be named"),
        ],
    )
    def test_a_bad_table(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_items(tmp_path / name)

    def test_all_bad_lines_are_listed(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("path,labels,split\n,dog,\na,dog,dev\nb,dog,\n")
        with pytest.raises(DatasetError, match=r"line 2: .* \(and 1 more\)") as caught:
            read_items(tmp_path / "t.csv")
        assert len(caught.value.problems) == 2

    def test_empty_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no such folder or table"):
            read_items(tmp_path / "none")
        with pytest.raises(DatasetError, match="has no sub-folder"):
            read_items(tmp_path)
        (tmp_path / "dog").mkdir()
        with pytest.raises(DatasetError, match="dog: holds no video"):
            read_items(tmp_path)


class TestChecking:
    def test_good_items_pass(self, tmp_path: Path) -> None:
        check_items(read_items(folders(tmp_path, dog=2, rain=2)), known=["dog", "rain", "wind"])

    def test_everything_that_is_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        clip(tmp_path / "a.mp4", "a")
        (tmp_path / "t.csv").write_text(
            "path,labels,split\n"
            "a.mp4,dog,train\n"
            "gone.mp4,Dog,train\n"
            "a.mp4,dog|cat,\n"
            "./a.mp4,7,train\n"
        )
        problems = problems_of(read_items(tmp_path / "t.csv"), known=["dog", "cat", "7"])
        assert [p.replace(str(tmp_path), "") for p in problems] == [
            "/t.csv: line 3: /gone.mp4: no such file",
            "/t.csv: line 4: /a.mp4 is there already (/t.csv: line 2)",
            "/t.csv: line 5: /a.mp4 is there already (/t.csv: line 2)",
            "/t.csv: line 3: label 'Dog' is not one of the 3 known ones",
            "labels 'Dog' and 'dog' look like one label written in two ways; use one of them",
            "labels are of two kinds, numbers (7) and names ('Dog'); use one kind",
            "/t.csv: line 4: has no split, others have; fill the column for all clips or for none",
        ]

    def test_one_class_only(self, tmp_path: Path) -> None:
        (problem,) = problems_of(read_items(folders(tmp_path, dog=3)))
        assert "every clip has the label 'dog': there is nothing to tell it from" in problem

    def test_no_label_at_all(self, tmp_path: Path) -> None:
        items = [Item(path=clip(tmp_path / "a.mp4", "a"), labels=(), where="here")]
        assert problems_of(items) == ["no clip has a label"]
        assert problems_of([]) == ["no clip to learn from"]


class TestSplitting:
    @settings(max_examples=60)
    @given(st.integers(0, 2**32 - 1))
    def test_laws_of_any_split(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        items = [
            Item(
                path=Path(f"{n}.mp4"),
                labels=tuple(
                    sorted({f"l{x}" for x in random.integers(0, 5, random.integers(0, 4))})
                ),
                group=f"g{random.integers(0, 12)}" if random.random() < 0.4 else None,
            )
            for n in range(40)
        ]
        split = split_items(items, validation=0.25, seed=seed)
        assert [item.path for item in split] == [item.path for item in items]
        sides: dict[str, set[str | None]] = {}
        for item in split:
            if item.group:
                sides.setdefault(item.group, set()).add(item.split)
        assert all(len(side) == 1 for side in sides.values())
        checked = [item for item in split if item.split == "validation"]
        assert 4 <= len(checked) <= 18
        for label in {label for item in items for label in item.labels}:
            holders = {i.group or str(i.path) for i in items if label in i.labels}
            on = {item.split for item in split if label in item.labels}
            # Greedy by label, so a group may be placed for the sake of another label; with
            # five holders and more there is always one left for each side.
            assert len(on) == 2 or len(holders) < 5
        turned = split_items(items[::-1], validation=0.25, seed=seed)
        assert turned[::-1] == split

    def test_each_tag_is_on_both_sides_in_its_share(self) -> None:
        items = [Item(path=Path(f"{t}{n}.mp4"), labels=(t,)) for t in "abc" for n in range(10)]
        split = split_items(
            [*items, Item(path=Path("d0"), labels=("d",)), Item(path=Path("d1"), labels=("d",))],
            seed=3,
        )
        counts = {t: sum(i.split == "validation" and t in i.labels for i in split) for t in "abcd"}
        assert counts == {"a": 2, "b": 2, "c": 2, "d": 1}
        assert split_items(items, seed=3) != split_items(items, seed=4)

    def test_given_splits_are_kept_and_checked(self) -> None:
        items = [
            Item(path=Path("a"), labels=("x",), split="train", group="g"),
            Item(path=Path("b"), labels=("x",), split="validation", group="g"),
        ]
        with pytest.raises(DatasetError, match="group 'group g' is given to train and validation"):
            split_items(items)

    def test_one_group_can_not_be_split(self) -> None:
        items = [Item(path=Path(f"{n}"), labels=("x",), group="g") for n in range(9)]
        with pytest.raises(DatasetError, match="too few"):
            split_items(items)

    def test_copies_become_one_clip_with_all_labels_and_join_their_groups(self) -> None:
        items = [
            Item(path=Path("a"), labels=("x",), group="g"),
            Item(path=Path("b"), labels=("y",), group="h"),
            Item(path=Path("c"), labels=("z",), group="h"),
        ]
        merged = merge_copies(items, {Path("a"): "1", Path("b"): "1", Path("c"): "2"})
        assert [(str(i.path), i.labels) for i in merged.items] == [("a", ("x", "y")), ("c", ("z",))]
        assert merged.items[0].group == merged.items[1].group
        assert merged.notes == ("b is a copy of a; they count as one clip",)

    def test_a_copy_on_the_other_side_is_refused(self) -> None:
        items = [
            Item(path=Path("a"), labels=("x",), split="train"),
            Item(path=Path("b"), labels=("x",), split="validation", where="t.csv: line 3"),
        ]
        with pytest.raises(DatasetError, match=r"line 3: b is a copy of a, but one is for"):
            merge_copies(items, {Path("a"): "1", Path("b"): "1"})


class TestBuilding:
    def test_samples_hold_the_features_of_their_clips(self, tmp_path: Path) -> None:
        root = folders(tmp_path / "clips", dog=5, rain=5)
        dataset = build_dataset(
            read_items(root), drawn_features, content_id=content_id, sampling="s1"
        )
        assert dataset.label_ids == ("dog", "rain")
        assert dataset.dims == {"visual": 4, "audio": 5}
        assert dataset.made_by == {"visual": "visual@1", "audio": "audio@1"}
        assert (len(dataset.train), len(dataset.validation), dataset.notes) == (8, 2, ())
        assert dataset.positives().tolist() == [4, 4]
        for sample in (*dataset.train, *dataset.validation):
            assert dataset.label_ids[sample.labels[0]] == Path(sample.name).parent.name
            expected = drawn_features(Path(sample.name))
            for stream, rows in sample.load().items():
                np.testing.assert_array_equal(rows, expected[stream].rows)

    def test_what_does_not_fit_into_memory_is_asked_for_again(self, tmp_path: Path) -> None:
        root = folders(tmp_path, dog=3, rain=3)
        asked: list[Path] = []

        def features(path: Path) -> dict[str, Features]:
            asked.append(path)
            return drawn_features(path)

        one_clip = 3 * 4 * 2 + 2 * 5 * 2  # bytes in half precision
        dataset = build_dataset(
            read_items(root), features, content_id=content_id, memory_bytes=2 * one_clip
        )
        assert len(asked) == 6
        samples = (*dataset.train, *dataset.validation)
        before = [sample.load()["visual"].tolist() for sample in samples]
        assert len(asked) == 6 + 4
        assert before == [drawn_features(Path(s.name))["visual"].rows.tolist() for s in samples]

    def test_a_clip_that_can_not_be_used_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        root = folders(tmp_path, dog=5, rain=5)

        def features(path: Path) -> dict[str, Features]:
            if path == root / "dog" / "3.mp4":
                raise MediaError(f"{path}: nothing could be decoded", code="corrupt")
            return drawn_features(path)

        dataset = build_dataset(read_items(root), features, content_id=content_id)
        assert len(dataset.train) + len(dataset.validation) == 9
        assert dataset.notes == (f"left out: {root}/dog/3.mp4: nothing could be decoded",)

    def test_labels_that_no_clip_is_left_for(self, tmp_path: Path) -> None:
        root = folders(tmp_path, dog=3, rain=3)

        def features(path: Path) -> dict[str, Features]:
            if path.parent.name == "dog":
                raise MediaError(f"{path}: gone", code="vanished")
            return drawn_features(path)

        with pytest.raises(DatasetError, match="label 'dog' has no usable training clip"):
            build_dataset(read_items(root), features, content_id=content_id)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"visual": (np.zeros((0, 4)), "visual@1")}, "has no stream with a single row"),
            ({}, "has no stream with a single row"),
            ({"visual": (np.full((2, 4), np.nan), "visual@1")}, "visual rows hold NaN"),
            ({"visual": (np.zeros((2, 6)), "visual@1")}, "visual rows have . columns, others have"),
            (
                {"visual": (np.zeros((2, 4)), "visual@2")},
                "visual rows were made by visual@., others",
            ),
        ],
    )
    def test_rows_that_can_not_be_learnt_from(
        self, tmp_path: Path, change: Mapping[str, tuple[np.ndarray, str]], message: str
    ) -> None:
        root = folders(tmp_path, dog=3, rain=3)

        def features(path: Path) -> dict[str, Features]:
            if path != root / "dog" / "1.mp4":
                return drawn_features(path)
            return {
                stream: Features(rows.astype(np.float16), np.arange(len(rows), dtype=float), by)
                for stream, (rows, by) in change.items()
            }

        with pytest.raises(DatasetError, match=message):
            build_dataset(read_items(root), features, content_id=content_id)

    def test_nothing_is_decoded_before_the_list_is_sound(self, tmp_path: Path) -> None:
        def never(path: Path) -> dict[str, Features]:
            raise AssertionError(path)

        items = [Item(path=tmp_path / "gone.mp4", labels=("x",), where="here")]
        with pytest.raises(DatasetError, match="no such file"):
            build_dataset(items, never, content_id=content_id)

    def test_labels_that_no_model_could_have_are_refused_early(self) -> None:
        sample = Sample("a", (0,), dict)
        for names, message in (
            (("Dog", "dog"), "share an id or a name: dog"),
            (("dog ", "cat"), "without blanks around, not 'dog '"),
            (("dog",), "needs labels"),
        ):
            with pytest.raises(DatasetError, match=message):
                Dataset(
                    label_ids=("1", "2"),
                    label_names=names,
                    dims={"visual": 3},
                    made_by={},
                    train=(sample,),
                    validation=(sample,),
                )

    def test_the_fingerprint_tells_splits_apart(self, tmp_path: Path) -> None:
        items = read_items(folders(tmp_path, dog=9, rain=9))
        one, same, other = (
            build_dataset(items, drawn_features, content_id=content_id, seed=seed).fingerprint()
            for seed in (1, 1, 2)
        )
        assert one == same != other


class TestYouTube8M:
    def videos(self, first: int, count: int, level: str) -> list[Video]:
        random = np.random.default_rng(first)
        rows = 6 if level == "frame" else 1
        return [
            Video(
                f"v{n}",
                (n % 3, 3),
                {
                    "visual": random.uniform(-1, 1, (rows, 4)).astype(np.float32),
                    "audio": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
                },
                level,  # type: ignore[arg-type]
            )
            for n in range(first, first + count)
        ]

    @pytest.mark.parametrize("level", ["frame", "video"])
    @pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
    def test_rows_and_labels(self, tmp_path: Path, level: str, memory_bytes: int) -> None:
        videos = self.videos(0, 4, level)
        write_videos(tmp_path / "a", videos)
        write_videos(tmp_path / "b", self.videos(2, 4, level))
        dataset = youtube8m_dataset([tmp_path / "a"], [tmp_path / "b"], memory_bytes=memory_bytes)
        assert dataset.label_ids == ("0", "1", "2", "3")
        assert dataset.dims == {"visual": 4, "audio": 2}
        assert [sample.name for sample in dataset.train] == ["v0", "v1", "v2", "v3"]
        assert [sample.name for sample in dataset.validation] == ["v4", "v5"]
        assert dataset.notes == (f"{tmp_path}/b: 2 videos are in an earlier file; left out",)
        for video, sample in zip(videos, dataset.train, strict=True):
            assert sample.labels == video.labels
            # Half precision, and 8 bits for frames (0.0157 a step, 0.0078 of offset).
            np.testing.assert_allclose(
                sample.load()["visual"],
                video.rows["visual"],
                atol=0.018 if level == "frame" else 1e-3,
            )

    def test_gzip_beyond_memory(self, tmp_path: Path) -> None:
        write_videos(tmp_path / "a.gz", self.videos(0, 4, "frame"))
        write_videos(tmp_path / "b", self.videos(4, 4, "frame"))
        with pytest.raises(DatasetError, match=r"a\.gz: .*gunzip"):
            youtube8m_dataset([tmp_path / "a.gz"], [tmp_path / "b"], memory_bytes=0)
        assert len(youtube8m_dataset([tmp_path / "a.gz"], [tmp_path / "b"]).train) == 4

    def test_the_vocabulary_names_classes_uniquely(self, tmp_path: Path) -> None:
        write_videos(tmp_path / "a", self.videos(0, 3, "video"))
        write_videos(tmp_path / "b", self.videos(3, 3, "video"))
        entries = [
            VocabularyEntry(index, f"/m/{index}", name, (), -1)
            for index, name in ((0, "Jaguar"), (1, "jaguar"), (3, "Car"), (5, "Bus"))
        ]
        dataset = youtube8m_dataset([tmp_path / "a"], [tmp_path / "b"], vocabulary=entries)
        assert dataset.label_names == (
            "Jaguar (/m/0)",
            "jaguar (/m/1)",
            "class 2",
            "Car",
            "class 4",
            "Bus",
        )
        with pytest.raises(DatasetError, match="class 3 is not in the vocabulary of 2 classes"):
            youtube8m_dataset([tmp_path / "a"], [tmp_path / "b"], vocabulary=entries[:2])

    def test_a_side_without_new_videos(self, tmp_path: Path) -> None:
        write_videos(tmp_path / "a", self.videos(0, 3, "video"))
        with pytest.raises(DatasetError, match="no clip is in the split 'validation'"):
            youtube8m_dataset([tmp_path / "a"], [tmp_path / "a"])


def dataset_of(lengths: list[tuple[int, int]], *, aligned: bool = False) -> Dataset:
    """Samples whose rows count upwards from 100 * their number; 0 rows: the stream is absent."""
    samples = []
    for n, (visual, audio) in enumerate(lengths):
        rows = {
            stream: (100 * n + np.arange(count)[:, None] + np.zeros((1, dim))).astype(np.float16)
            for stream, count, dim in (("visual", visual, 3), ("audio", audio, 2))
            if count
        }
        samples.append(Sample(f"s{n}", (n % 2,), lambda rows=rows: rows))  # type: ignore[misc]
    return Dataset(
        label_ids=("a", "b"),
        label_names=("a", "b"),
        dims={"visual": 3, "audio": 2},
        made_by={},
        train=tuple(samples),
        validation=tuple(samples),
        aligned=aligned,
    )


class TestBatches:
    def test_padding_and_absent_streams(self) -> None:
        dataset = dataset_of([(2, 0), (3, 1)])
        batch = collate(dataset.train, dataset, frames=9)
        assert batch.rows["visual"][:, :, 0].tolist() == [[0, 1, 0], [100, 101, 102]]
        assert batch.mask["visual"].tolist() == [[True, True, False], [True, True, True]]
        assert batch.rows["audio"].tolist() == [[[0, 0]], [[100, 100]]]
        assert batch.mask["audio"].tolist() == [[False], [True]]
        assert batch.labels.tolist() == [[1, 0], [0, 1]]

    def test_a_long_sample_is_covered_evenly(self) -> None:
        dataset = dataset_of([(10, 1)])
        batch = collate(dataset.train, dataset, frames=5)
        # Middles of five stretches of two rows.
        assert batch.rows["visual"][0, :, 0].tolist() == [1, 3, 5, 7, 9]

    def test_random_frames_are_drawn_with_replacement_from_all_rows(self) -> None:
        dataset = dataset_of([(4, 3)])
        batch = collate(
            dataset.train, dataset, frames=4000, sampling="random", generator=generator_of(1)
        )
        counts = torch.bincount(batch.rows["visual"][0, :, 0].long(), minlength=4)
        # Binomial: 1000 expected, a deviation of 27; six of them is 160.
        assert (counts - 1000).abs().max() < 160
        assert batch.mask["visual"].all()

    @pytest.mark.parametrize("aligned", [True, False])
    def test_aligned_streams_are_drawn_together(self, aligned: bool) -> None:
        dataset = dataset_of([(50, 50)], aligned=aligned)
        batch = collate(
            dataset.train, dataset, frames=20, sampling="random", generator=generator_of(1)
        )
        same = torch.equal(batch.rows["visual"][..., 0], batch.rows["audio"][..., 0])
        assert same == aligned

    def test_random_frames_need_a_generator(self) -> None:
        dataset = dataset_of([(4, 3)])
        with pytest.raises(ValueError, match="generator"):
            collate(dataset.train, dataset, frames=2, sampling="random")

    def test_the_order_is_decided_by_seed_and_epoch_alone(self) -> None:
        before = epoch_order(50, seed=1, epoch=2)
        torch.rand(7)
        assert epoch_order(50, seed=1, epoch=2) == before
        assert sorted(before) == list(range(50))
        assert before != epoch_order(50, seed=1, epoch=3)
        assert before != epoch_order(50, seed=2, epoch=2)
        state = torch.get_rng_state()
        epoch_order(50, seed=1, epoch=2)
        assert torch.equal(state, torch.get_rng_state())

    def test_evaluation_reads_all_in_order(self) -> None:
        dataset = dataset_of([(2, 1)] * 5)
        batches = list(batches_in_order(dataset.validation, dataset, batch_size=2, frames=9))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        first = torch.cat([batch.rows["visual"][:, 0, 0] for batch in batches])
        assert first.tolist() == [0, 100, 200, 300, 400]


def test_validation_is_taken_from_training_where_the_table_has_none() -> None:
    items = [
        Item(path=Path(f"{label}{n}.mp4"), labels=(label,), split="test" if n == 9 else "train")
        for label in ("a", "b")
        for n in range(10)
    ]
    split = split_items(items, validation=0.25)
    sides = Counter(item.split for item in split)
    assert sides == {"train": 14, "validation": 4, "test": 2}
    assert {item.path for item in split if item.split == "test"} == {Path("a9.mp4"), Path("b9.mp4")}
