"""`vtag train`, `eval`, `run`: from drawn clips in folders to tags of clips it has not seen."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch

import vtag.export_onnx
from vtag.cli import main
from vtag.evaluate import gap_at_k
from vtag.extractors import build_extractor
from vtag.kaggle import read_video_submission
from vtag.models.checkpoint import load_checkpoint, save_checkpoint
from vtag.models.net_config import HeadConfig
from vtag.models.presets import small_config
from vtag.models.tagger_net import TaggerNet
from vtag.tagger import Pipeline
from vtag.train_run import TrainRun
from vtag.youtube8m import Video, write_videos

torch.set_num_threads(1)

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200)}
QUICK = ("--epochs", "1", "-q")


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> Path:
    """A second of a coloured disc on grey noise; the seed says where, how large, how bright."""
    random = np.random.default_rng(seed)
    height, width = 96, 128
    y, x = np.mgrid[:height, :width]
    radius = random.uniform(25, 40)
    inside = (y - random.uniform(35, 60)) ** 2 + (x - random.uniform(45, 80)) ** 2 < radius**2
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        for _ in range(5):
            pixels = random.integers(90, 150, (height, width, 3))
            pixels[inside] = np.asarray(colour) * random.uniform(0.7, 1.2)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clips/<colour>/`: six clips of each; `unseen/`: two of each, named by their colour."""
    root = tmp_path_factory.mktemp("learning")
    for number, (name, colour) in enumerate(COLOURS.items()):
        for n in range(6):
            draw(root / "clips" / name / f"{n}.mp4", colour, 100 * number + n)
        for n in range(2):
            draw(root / "unseen" / f"{name}-{n}.mp4", colour, 1000 + 100 * number + n)
    return root


@pytest.fixture(scope="module", autouse=True)
def one_backbone(world: Path) -> Iterator[None]:
    """The real extractor, built once: freezing it takes longer than all trainings here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTAG_CACHE_DIR", str(world / "cache"))
        patch.setattr("vtag.tagger.build_extractor", functools.cache(build_extractor))
        yield


@pytest.fixture(scope="module")
def printed(world: Path) -> str:
    """What `vtag train` prints, given nothing but the two names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["train", str(world / "clips"), "--out", str(world / "colours")]) == 0
    return said.getvalue()


@pytest.fixture(scope="module")
def model(world: Path, printed: str) -> Path:
    """The model that it made."""
    return world / "colours"


class TestTeachingTags:
    def test_clips_it_has_not_seen_get_the_right_tag(self, world: Path, model: Path) -> None:
        out = world / "tags.jsonl"
        assert main(["run", str(world / "unseen"), "--model", str(model), "--out", str(out)]) == 0
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(records) == 6
        for record in records:
            wanted = Path(record["path"]).stem.split("-")[0]
            assert record["tags"][0]["name"] == wanted
            assert record["model"]["name"] == "colours"

    def test_the_folder_can_be_read_by_others(self, model: Path) -> None:
        names = {file.name for file in model.iterdir()}
        assert {"model.safetensors", "README.md", "report.html", "curves.png"} <= names
        mask = os.umask(0)
        os.umask(mask)
        for file in model.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask, file.name

    def test_one_label_per_clip_is_noticed(self, model: Path) -> None:
        assert load_checkpoint(model).config.output == "single_label"

    def test_eval_says_how_good_it_is(
        self, world: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = world / "unseen.csv"
        lines = [f"unseen/{c}-{n}.mp4,{c}" for c in COLOURS for n in range(2)]
        table.write_text("\n".join(["path,labels", *lines]))
        assert main(["eval", str(table), "--model", str(model), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["clips"] == 6
        assert found["values"]["Hit@1"] == 1.0
        assert found["values"]["mAP"] == 1.0

    def test_a_clip_of_another_tag_lowers_the_figures(
        self, world: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = world / "mislabelled.csv"
        table.write_text("path,labels\nunseen/red-0.mp4,blue\nunseen/blue-0.mp4,blue\n")
        command = ["eval", str(table), "--model", str(model), "--json"]
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out)["values"]["Hit@1"] == 0.5
        assert main([*command, "--only-given-labels"]) == 0  # there is only one: blue
        assert json.loads(capsys.readouterr().out)["values"]["Hit@1"] == 1.0

    def test_a_table_is_printed(self, printed: str, model: Path) -> None:
        for name in COLOURS:
            (line,) = [line for line in printed.splitlines() if line.startswith(name)]
            assert line.split()[1] in ("4", "5")  # a fifth of 18 clips is held out
        assert str(model / "report.html") in printed

    def test_several_labels_weights_and_fine_tuning(self, world: Path, model: Path) -> None:
        table = world / "two.jsonl"
        rows = [
            {"path": f"clips/{c}/{n}.mp4", "labels": ["warm" if c == "red" else "cold", "disc"][:k]}
            for c in COLOURS
            for n, k in enumerate((1, 2, 1, 2, 2))
        ]
        table.write_text("\n".join(map(json.dumps, rows)))
        out = world / "two labels"
        command = ["train", str(table), "--out", str(out), "--class-weights", *QUICK]
        assert main(command) == 0
        assert load_checkpoint(out).config.output == "multi_label"
        tuned = world / "tuned"
        command = ["train", str(table), "--out", str(tuned), "--start", "vtag-base", *QUICK]
        assert main(command) == 0
        assert [label["id"] for label in load_checkpoint(tuned).labels] == ["cold", "disc", "warm"]


@pytest.fixture(scope="module")
def told(world: Path) -> Path:
    """Clips whose tag only their text tells: colours and places say nothing of it."""
    random = np.random.default_rng(8)
    (world / "text").mkdir()
    lines = ["path,labels,features.text"]
    for colour in COLOURS:
        for n in range(6):
            file = f"text/{colour}-{n}.npy"
            np.save(world / file, (-1) ** n + 0.3 * random.standard_normal((2, 7)))
            lines.append(f"clips/{colour}/{n}.mp4,{('odd', 'even')[n % 2 == 0]},{file}")
    (world / "told.csv").write_text("\n".join(lines))
    return world / "told.csv"


class TestStreamsFromFiles:
    def test_are_learnt_from_measured_with_and_missed(
        self, world: Path, told: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, tags = world / "told", world / "told.jsonl"
        command = ["train", str(told), "--out", str(out)]
        assert main([*command, "--epochs", "4", "-q"]) == 0
        assert load_checkpoint(out).extractors["text"] == "file:text"
        capsys.readouterr()
        measure = ["eval", str(told), "--model", str(out), "--json"]
        assert main(measure) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["values"]["Hit@1"] == 1.0
        assert said.err == ""
        silent = world / "untold.csv"
        silent.write_text("\n".join(",".join(x.split(",")[:2]) for x in told.read_text().split()))
        assert main(["eval", str(silent), "--model", str(out), "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["values"]["Hit@1"] < 1.0
        assert "note: the model also reads text rows from files; scored without" in said.err
        # A plain video gets its tags, and a word about what was missing.
        command = ["run", str(world / "unseen"), "--model", str(out), "--out", str(tags)]
        assert main(command) == 0
        for record in map(json.loads, tags.read_text().splitlines()):
            assert record["status"] == "ok"
            assert record["warnings"] == [
                "the model also reads text rows from files; scored without them"
            ]
        # A model without the stream leaves the column out, and says so.
        table_of_colours = world / "colours.csv"
        table_of_colours.write_text(
            "path,labels,features.text\nunseen/red-0.mp4,red,text/red-0.npy\n"
        )
        capsys.readouterr()
        assert main(["eval", str(table_of_colours), "--model", str(model)]) == 0
        assert "does not read text rows; left out" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            (["--preset", "paper"], "preset 'paper' reads visual and audio rows only, not text"),
            (["--streams", "text"], "text alone can not be learnt from"),
            (["--streams", "visual,smell"], "no stream 'smell'"),
            (["--start", "vtag-base"], "the model 'vtag-base' reads no text rows"),
        ],
    )
    def test_flags_that_do_not_go_with_them(
        self,
        told: Path,
        tmp_path: Path,
        flags: list[str],
        complaint: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main(["train", str(told), "--out", str(tmp_path / "m"), *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert complaint in line

    def test_bad_files_are_told_before_a_model_is_loaded(
        self,
        told: Path,
        world: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        np.save(tmp_path / "nan.npy", [1.0, np.nan])
        text = told.read_text().replace("text/red-0.npy", "text/gone.npy")
        bad = world / "bad text.csv"
        bad.write_text(text.replace("text/blue-5.npy", str(tmp_path / "nan.npy")))
        monkeypatch.setattr(
            "vtag.tagger.Pipeline", lambda *_, **__: pytest.fail("a model was loaded")
        )
        assert main(["train", str(bad), "--out", str(tmp_path / "m")]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert "line 2: " in first
        assert "gone.npy: no such file" in first
        assert "nan.npy: can not be used as text rows (it holds NaN or infinity)" in second
        assert main(["train", str(bad), "--out", str(tmp_path / "m"), "--streams", "text"]) == 2


class TestStopping:
    def test_interrupted_and_resumed_it_is_the_same_model(
        self, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def command(where: str) -> list[str]:
            out = str(tmp_path / where / "m")
            return ["train", str(world / "clips"), "--out", out, "--epochs", "2", "-q"]

        assert main(command("undisturbed")) == 0
        end_epoch = TrainRun._end_epoch

        def interrupted(run: TrainRun) -> None:
            end_epoch(run)
            if run.progress.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(TrainRun, "_end_epoch", interrupted)
            assert main(command("stopped")) == 130
        assert not (tmp_path / "stopped" / "m").exists()
        assert main(command("stopped")) == 2  # it does not start anew by accident
        assert main([*command("stopped"), "--resume"]) == 0
        one, other = (load_checkpoint(tmp_path / w / "m") for w in ("undisturbed", "stopped"))
        assert one.fingerprint == other.fingerprint
        assert not (tmp_path / "stopped" / "m.training").exists()


def test_the_default_model_is_exported_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx]")
    assert main(["export", "vtag-base", "--onnx", str(tmp_path / "m.onnx")]) == 0


class TestBadData:
    @pytest.mark.parametrize(
        ("table", "complaints"),
        [
            ("path,labels\nno.mp4,red\nnor.mp4,blue\n", ["no.mp4: no such", "nor.mp4: no such"]),
            ("path,labels\nclips/red/0.mp4,red\nclips/red/1.mp4,red\n", ["label"]),
            ("path,labels\n", ["holds no clip"]),
            (
                "path,labels,split\nclips/red/0.mp4,red,train\nclips/green/0.mp4,green,train\n"
                "clips/blue/1.mp4,blue,test\n",
                ["label 'blue' has clips for validation or test only"],
            ),
        ],
    )
    def test_is_told_line_by_line_before_anything_is_decoded(
        self,
        world: Path,
        tmp_path: Path,
        table: str,
        complaints: list[str],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = world / "bad.csv"
        file.write_text(table)
        monkeypatch.setattr(
            "vtag.tagger.Pipeline", lambda *_, **__: pytest.fail("a model was loaded")
        )
        assert main(["train", str(file), "--out", str(tmp_path / "m")]) == 2
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) == len(complaints)
        for line, complaint in zip(lines, complaints, strict=True):
            assert complaint in line
        assert said.out == ""
        assert not (tmp_path / "m").exists()

    def test_a_place_that_is_none_is_refused_before_anything_is_decoded(
        self, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "vtag.tagger.Pipeline", lambda *_, **__: pytest.fail("a model was loaded")
        )
        assert main(["train", str(world / "clips"), "--out", str(world)]) == 3
        assert "exists and is no vtag model" in capsys.readouterr().err

    def test_labels_that_the_model_has_not(
        self, world: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = world / "other.csv"
        file.write_text("path,labels\nunseen/red-0.mp4,crimson\nunseen/blue-0.mp4,azure\n")
        assert main(["eval", str(file), "--model", str(model)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert [("'azure'" in said[0]), ("'crimson'" in said[1])] == [True, True]

    def test_a_model_of_other_extractors_is_refused_with_both_names(
        self, world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made_by = load_checkpoint(model).extractors["visual"]
        foreign = replace(load_checkpoint(model), extractors={"visual": "resnet50@0123456789ab"})
        save_checkpoint(tmp_path / "foreign", foreign)
        for command in (
            ["run", str(world / "unseen"), "--out", str(tmp_path / "tags.jsonl"), "--model"],
            ["eval", str(world / "clips"), "--model"],
        ):
            assert main([*command, str(tmp_path / "foreign")]) == 3
            said = capsys.readouterr().err
            assert made_by in said
            assert "resnet50@0123456789ab" in said

    def test_a_start_that_is_not_there(self, world: Path, tmp_path: Path) -> None:
        command = ["train", str(world / "clips"), "--out", str(tmp_path / "m"), "--start", "nobody"]
        assert main(command) == 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of videos whose class shows in ten columns, and one to measure on."""
    random = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("shards")

    def videos(count: int, name: str) -> list[Video]:
        found = []
        for n in range(count):
            rows = 0.05 * random.standard_normal((1, 1152)).astype(np.float32)
            rows[0, 10 * (n % 3) : 10 * (n % 3) + 10] += 1
            streams = {"visual": rows[:, :1024], "audio": rows[:, 1024:]}
            found.append(Video(f"{name}{n}", (n % 3,), streams, "video"))
        return found

    (root / "learn").mkdir()
    (root / "check").mkdir()
    write_videos(root / "learn" / "a.tfrecord", videos(45, "a"))
    write_videos(root / "learn" / "b.tfrecord", videos(45, "b"))
    write_videos(root / "check" / "c.tfrecord", videos(30, "c"))
    return root


class TestYouTube8M:
    def test_train_eval_and_submission(
        self, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, file = tmp_path / "m", tmp_path / "submission.csv"
        command = ["train", str(shards / "learn"), "--out", str(model), "--multi-label", *QUICK]
        assert main(command) == 0
        capsys.readouterr()
        command = ["eval", str(shards / "check"), "--model", str(model), "--json"]
        assert main([*command, "--submission", str(file)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["clips"] == 30
        assert found["values"]["Hit@1"] > 0.9
        # The file alone, read by its own reader, has the GAP that was printed.
        scores = np.zeros((30, 3))
        for video, pairs in read_video_submission(file):
            for label, score in pairs.items():
                scores[int(video.removeprefix("c")), label] = score
        truth = np.eye(3)[np.arange(30) % 3]
        assert gap_at_k(scores, truth) == pytest.approx(found["values"]["GAP@20"], abs=1e-4)

    def test_a_model_of_own_clips_is_not_measured_on_them(self, shards: Path, model: Path) -> None:
        assert main(["eval", str(shards / "check"), "--model", str(model)]) == 3


class TestOtherForms:
    def test_the_mean_of_a_model_with_itself(self, world: Path, model: Path) -> None:
        out = world / "averaged"
        assert main(["average", str(model), str(model), "--out", str(out)]) == 0
        ours, mean = load_checkpoint(model), load_checkpoint(out)
        assert mean.name == "averaged"
        for name, tensor in ours.net.state_dict().items():
            assert torch.equal(tensor, mean.net.state_dict()[name])

    def test_several_models_as_one(
        self, world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other, both = tmp_path / "other", tmp_path / "both"
        command = ["train", str(world / "clips"), "--out", str(other), "--seed", "5", *QUICK]
        assert main(command) == 0
        command = ["ensemble", str(model), str(other), "--weights", "3,1", "--out", str(both)]
        assert main(command) == 0
        clip = world / "unseen" / "red-0.mp4"
        scores = {}
        for folder in (model, other, both):
            with Pipeline(folder, cache=world / "cache") as pipeline:
                scores[folder] = pipeline.head.scores(pipeline.features(clip).streams)
                assert pipeline.tag(clip).tags[0].name == "red"
        np.testing.assert_allclose(
            scores[both], 0.75 * scores[model] + 0.25 * scores[other], atol=1e-6
        )
        parts = [load_checkpoint(folder) for folder in (model, other, both)]
        thresholds = [[label["threshold"] for label in part.labels] for part in parts]
        for ours, theirs, mean in zip(*thresholds, strict=True):
            assert mean == pytest.approx(0.75 * ours + 0.25 * theirs, abs=1e-6)  # type: ignore[operator]
        capsys.readouterr()
        assert main(["eval", str(world / "clips"), "--model", str(both), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["values"]["Hit@1"] == 1.0
        if find_spec("onnxruntime") and find_spec("onnx"):
            assert main(["export", str(both), "--onnx", str(tmp_path / "both.onnx")]) == 0
        # It teaches (distillation), but training does not go on from it.
        command = ["train", str(world / "clips"), "--out", str(tmp_path / "small"), *QUICK]
        assert main([*command, "--teacher", str(both)]) == 0
        capsys.readouterr()
        assert main([*command, "--start", str(both)]) == 2
        assert "start from one of its members" in capsys.readouterr().err
        command = ["ensemble", str(model), "vtag-base", "--out", str(tmp_path / "no")]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "'vtag-base'" in line
        assert main([*command, "--weights", "a,b"]) == 2

    def test_onnx_that_is_not_installed_is_said(
        self,
        model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(vtag.export_onnx, "find_spec", lambda name: None)
        assert main(["export", str(model), "--onnx", str(tmp_path / "m.onnx")]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install 'vtag[onnx]'" in line

    def test_onnx_says_the_same(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        trained = load_checkpoint(model)
        # The network of the preset, and the paper's head: other operators are exported there.
        config = replace(small_config(3, {"visual": 2048}), head=HeadConfig())
        paper = replace(trained, net=TaggerNet(config).eval())
        save_checkpoint(tmp_path / "paper", paper)
        for folder in (model, tmp_path / "paper"):
            self.says_the_same(runtime, folder, tmp_path / "m.onnx")

    def says_the_same(self, runtime: ModuleType, model: Path, file: Path) -> None:
        assert main(["export", str(model), "--onnx", str(file)]) == 0
        session = runtime.InferenceSession(str(file))
        net = load_checkpoint(model).net
        for length in (1, 17):
            rows, mask = torch.rand(2, length, 2048), torch.ones(2, length, dtype=torch.bool)
            with torch.no_grad():
                wanted = net.probabilities({"visual": rows}, {"visual": mask}).numpy()
            feeds = {"visual": rows.numpy(), "visual_mask": mask.numpy()}
            (found,) = session.run(None, feeds)
            np.testing.assert_allclose(found, wanted, atol=1e-4)
