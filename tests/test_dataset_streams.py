"""Streams from files: what is read, what is refused, and that they are learnt from."""

from __future__ import annotations

import dataclasses
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from vtag.batches import collate
from vtag.config import Selection
from vtag.dataset import build_dataset
from vtag.dataset_items import DatasetError, Item, read_items
from vtag.dataset_split import merge_copies
from vtag.dataset_streams import check_file_streams, file_features, read_rows, with_streams
from vtag.errors import ConfigError
from vtag.head import Head
from vtag.records import Features
from vtag.score_model import score_model
from vtag.train import train
from vtag.train_config import check_streams, network_for, preset

torch.set_num_threads(1)

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 8  # exact in half precision


def npy(values: ArrayLike) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=True)
    return file.getvalue()


class TestFiles:
    @pytest.mark.parametrize(
        ("values", "want"),
        [
            (ROWS, ROWS),
            (ROWS[0], ROWS[:1]),
            (np.asfortranarray(ROWS), ROWS),
            (ROWS.astype(">f8"), ROWS),
            (np.array([[1, 2]], np.int8), [[1, 2]]),
        ],
    )
    def test_rows_of_an_array(self, tmp_path: Path, values: ArrayLike, want: ArrayLike) -> None:
        (tmp_path / "a.npy").write_bytes(npy(values))
        found = read_rows(tmp_path / "a.npy", "text")
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, want)

    def test_of_an_archive_the_array_of_that_name_or_the_only_one(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "two.npz", text=ROWS, other=ROWS + 1)
        np.savez(tmp_path / "one.npz", ROWS)
        for name in ("two.npz", "one.npz"):
            np.testing.assert_array_equal(read_rows(tmp_path / name, "text"), ROWS)
        with pytest.raises(ValueError, match=r"named 'words', or one only; it holds other, text"):
            read_rows(tmp_path / "two.npz", "words")

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (npy(np.array([{"a": 1}], dtype=object)), "numbers are needed, it holds object"),
            (npy(np.array(["a"])), "numbers are needed"),
            (npy([[1.0, np.nan]]), "holds NaN or infinity"),
            (npy([[1.0, -np.inf]]), "holds NaN or infinity"),
            (npy([1e6, 0.0]), "holds values beyond 65504"),
            (npy(np.zeros((2, 2, 2))), r"it holds \[2, 2, 2\]"),
            (npy(1.0), r"it holds \[\]"),
            (npy(np.zeros((0, 4))), r"it holds \[0, 4\]"),
            (npy(ROWS)[:-1], "ends too early"),
            (npy(ROWS).replace(b"(3, 4)", b"(-3,4)"), r"it holds \[-3, 4\]"),
            (npy(ROWS).replace(b"(3, 4), }   ", b"(3,99999), }"), "ends too early"),
            (npy(ROWS).replace(b"{", b"("), "can not be used as text rows"),
            (npy(ROWS).replace(b"\x01\x00", b"\x09\x09", 1), "version"),
            (b"", "can not be used as text rows"),
            (b"path,labels\n" * 20, "can not be used as text rows"),
        ],
    )
    def test_anything_else_is_told_in_a_line(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        file = tmp_path / "a.npy"
        file.write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("text.npy", content)
        for name in ("a.npy", "a.npz"):
            with pytest.raises(ValueError, match=complaint) as refused:
                read_rows(tmp_path / name, "text")
            assert str(refused.value).startswith(str(tmp_path / name))
            assert "\n" not in str(refused.value)

    def test_nothing_that_is_pickled_runs(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "ran",))

        (tmp_path / "a.npy").write_bytes(npy(np.array([Trap()], dtype=object)))
        with pytest.raises(ValueError, match="numbers are needed"):
            read_rows(tmp_path / "a.npy", "text")
        assert not (tmp_path / "ran").exists()

    def test_a_promise_of_terabytes_takes_no_memory(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(
            npy(ROWS).replace(b"(3, 4), }         ", b"(3, 4000000000), }")
        )
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "a.npy", "text.npy")
        tracemalloc.start()
        for name in ("a.npy", "a.npz"):
            with pytest.raises(ValueError, match="MiB of rows, at most 256 can be read"):
                read_rows(tmp_path / name, "text")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10e6

    def test_flipped_bytes_are_read_or_refused(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "good.npz", text=ROWS)
        (tmp_path / "good.npy").write_bytes(npy(ROWS))
        random = np.random.default_rng(4)
        refused = 0
        for name in ("good.npy", "good.npz"):
            whole = (tmp_path / name).read_bytes()
            for _ in range(300):
                broken = bytearray(whole)
                for at in random.integers(len(whole), size=2):
                    broken[at] = random.integers(256)
                file = tmp_path / f"broken{Path(name).suffix}"
                file.write_bytes(broken)
                try:
                    found = read_rows(file, "text")
                except ValueError:
                    refused += 1
                else:
                    assert np.isfinite(found).all()
        assert refused > 200


class TestTables:
    def test_columns_name_streams(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(
            "path,labels,features.text,features.smell\na.mp4,dog,t/a.npy, \nb.mp4,cat,/t/b.npz,s\n"
        )
        lines = [
            {"path": "a.mp4", "labels": "dog", "features.text": "t/a.npy", "features.smell": None},
            {"path": "b.mp4", "labels": "cat", "features.smell": "s", "features.text": "/t/b.npz"},
        ]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for source in (tmp_path / "t.csv", tmp_path / "t.jsonl"):
            one, two = read_items(source)
            assert one.features == {"text": tmp_path / "t/a.npy"}
            assert two.features == {"smell": tmp_path / "s", "text": Path("/t/b.npz")}
            chosen = with_streams([one, two], ["smell"])
            assert [set(item.features) for item in chosen] == [set(), {"smell"}]

    @pytest.mark.parametrize(
        ("column", "complaint"),
        [
            ("features.visual", "visual rows are made from the clip"),
            ("features.Text", "named by a-z"),
            ("features.", "named by a-z"),
        ],
    )
    def test_columns_that_name_none(self, tmp_path: Path, column: str, complaint: str) -> None:
        (tmp_path / "t.csv").write_text(f"path,labels,{column}\na.mp4,dog,a.npy\nb.mp4,dog,b.npy\n")
        (tmp_path / "t.jsonl").write_text(json.dumps({"path": "a", "labels": "b", column: "c"}))
        for source in (tmp_path / "t.csv", tmp_path / "t.jsonl"):
            with pytest.raises(DatasetError, match=complaint) as caught:
                read_items(source)
            assert len(caught.value.problems) == 1

    def test_all_bad_files_are_listed(self, tmp_path: Path) -> None:
        files = {"a": ROWS, "b": ROWS, "narrow": ROWS[:, :3], "nan": ROWS * np.nan}
        for name, values in files.items():
            (tmp_path / f"{name}.npy").write_bytes(npy(values))
        items = [
            Item(path=tmp_path, labels=(), where=f"line {n}", features={"text": tmp_path / name})
            for n, name in enumerate(("narrow.npy", "a.npy", "none.npy", "b.npy", "nan.npy"))
        ]
        with pytest.raises(DatasetError) as caught:
            check_file_streams(items)
        none, nan, narrow = caught.value.problems
        assert none == f"line 2: {tmp_path}/none.npy: no such file"
        assert nan.startswith(f"line 4: {tmp_path}/nan.npy: ")
        assert narrow.startswith(f"line 0: {tmp_path}/narrow.npy: text rows have 3 columns, most")
        assert check_file_streams([items[1], items[3]]) == {"text": 4}
        with pytest.raises(DatasetError, match=r"line 2: .*none\.npy: no such file"):
            file_features(items[2])

    def test_a_copy_keeps_its_rows(self, tmp_path: Path) -> None:
        items = [
            Item(path=tmp_path / "a", labels=("x",)),
            Item(path=tmp_path / "b", labels=("y",), features={"text": tmp_path / "b.npy"}),
            Item(path=tmp_path / "c", labels=("y",), features={"text": tmp_path / "c.npy"}),
        ]
        (merged,) = merge_copies(items, dict.fromkeys((i.path for i in items), "same")).items
        assert merged.features == {"text": tmp_path / "b.npy"}


def noise(path: Path) -> dict[str, Features]:
    """Visual rows that tell nothing, drawn from the name of the clip."""
    random = np.random.default_rng(sum(path.name.encode()))
    rows = random.standard_normal((4, 6)).astype(np.float16)
    return {"visual": Features(rows, np.arange(4.0), "eyes@1")}


def table(root: Path, clips: int = 40) -> list[Item]:
    """Clips whose text alone says which label they have; every eighth has none."""
    random = np.random.default_rng(2)
    items = []
    for n in range(clips):
        (root / f"{n}.mp4").write_text(str(n))
        sign = 1 if n % 2 else -1
        (root / f"{n}.npy").write_bytes(npy(sign + 0.3 * random.standard_normal((1 + n % 3, 5))))
        features = {} if n % 8 == 0 else {"text": root / f"{n}.npy"}
        label = ("calm", "loud")[n % 2]
        items.append(Item(path=root / f"{n}.mp4", labels=(label,), features=features))
    return items


class TestLearning:
    def test_rows_from_files_are_learnt_from_and_can_be_missing(self, tmp_path: Path) -> None:
        items = table(tmp_path)
        dataset = build_dataset(items, noise, content_id=lambda path: path.name)
        assert dataset.dims == {"visual": 6, "text": 5}
        assert dataset.made_by == {"visual": "eyes@1", "text": "file:text"}
        batch = collate(dataset.train, dataset, frames=8)
        for at, sample in enumerate(dataset.train):
            n = int(Path(sample.name).stem)
            rows = 0 if n % 8 == 0 else 1 + n % 3
            assert int(batch.mask["text"][at].sum()) == rows
            stored = np.load(tmp_path / f"{n}.npy").astype(np.float16)[:rows]
            np.testing.assert_array_equal(batch.rows["text"][at, :rows].numpy(), stored)
        config = preset("small-data", epochs=6, output="multi_label")
        train(config, dataset, tmp_path / "model")
        head = Head(tmp_path / "model")
        assert head.file_streams == {"text": 5}
        assert head.extractor_names == {"visual": "eyes"}
        told = [item for item in items if item.features]
        assert score_model(head, told, noise).values["Hit@1"] == 1.0
        silent = with_streams(told, [])
        assert 0.2 < score_model(head, silent, noise).values["Hit@1"] < 0.8  # chance is 0.5
        # Of a video as it is: scores from what there is, and a word about it.
        streams = noise(items[0].path)
        found = head.tags(streams, end_seconds=4, selection=Selection(threshold=0.0))
        assert sorted(tag.name for tag in found) == ["calm", "loud"]
        (note,) = head.notes(streams)
        assert "text rows from files" in note
        assert head.notes(["visual", "text"]) == ()

    def test_rows_of_another_size_do_not_fit_a_model(self, tmp_path: Path) -> None:
        items = table(tmp_path, 12)
        dataset = build_dataset(items, noise, content_id=lambda path: path.name)
        train(preset("small-data", epochs=1), dataset, tmp_path / "model")
        (tmp_path / "wide.npy").write_bytes(npy(np.zeros(9)))
        wide = dataclasses.replace(items[1], features={"text": tmp_path / "wide.npy"})
        with pytest.raises(DatasetError, match="text rows of 9 columns, the model 'model' reads 5"):
            score_model(Head(tmp_path / "model"), [wide], noise)

    def test_files_are_checked_before_features_are_made(self, tmp_path: Path) -> None:
        items = table(tmp_path, 12)
        (tmp_path / "5.npy").write_bytes(npy([1.0, np.nan]))
        with pytest.raises(DatasetError, match=r"5\.npy: .*NaN"):
            build_dataset(
                items, lambda _: pytest.fail("decoded"), content_id=lambda path: path.name
            )

    def test_networks_that_have_no_place_for_it(self, tmp_path: Path) -> None:
        dataset = build_dataset(table(tmp_path, 12), noise, content_id=lambda path: path.name)
        with pytest.raises(ConfigError, match="preset 'paper' reads visual and audio rows only"):
            network_for(preset("paper"), dataset)
        check_streams("paper", ["visual"])
        net = network_for(preset("medium"), dataset)
        assert [stream.stream_dropout > 0 for stream in net.streams] == [False, True]
