"""ResNet-50 by OpenVINO, in fp32 and int8, against torch; needs the extra `openvino`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_frames import drawn_frames
from drawn_weights import draw_weights
from torch import Tensor

from vtag import Pipeline, Sampling, Selection
from vtag.decode import plan, probe, read_frames
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.extractors import openvino_network
from vtag.extractors.int8_ranges import load_ranges
from vtag.extractors.openvino_resnet50 import weight_steps
from vtag.extractors.resnet50 import ResNet50
from vtag.weights import find_weights

SAMPLES = Path(__file__).parent.parent / "sample_videos"


def real_frames() -> Tensor:
    """One picture of each of four sample videos, uint8 [4, 3, 256, W]."""
    found = []
    for name in ("bird", "coffee", "dog", "rocket"):
        probed = probe(SAMPLES / f"{name}.mp4")
        frames = next(iter(read_frames(probed, plan(probed, Sampling()), decoder="pyav")))
        found.append(torch.from_numpy(frames.pixels[3:4]))
    return torch.cat(found).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    drawn = torch.from_numpy(drawn_frames()).permute(0, 3, 1, 2)[:, :, :, :256]
    return torch.cat([real_frames()[:, :, :, 100:356], drawn])


@pytest.fixture(scope="module")
def by_torch() -> ResNet50:
    return ResNet50("resnet50", backend="torch")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def by_openvino(request: pytest.FixtureRequest) -> ResNet50:
    return ResNet50("resnet50", backend="openvino", precision=request.param)


@pytest.fixture(scope="module")
def int8() -> ResNet50:
    return ResNet50("resnet50", precision="int8", backend="auto")


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest distance of a row, in parts of its norm."""
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


class TestFp32:
    """torch's own path is checked against Keras and torchvision in test_resnet50.py."""

    def test_the_embedded_weights(self, by_torch: ResNet50, pictures: Tensor) -> None:
        assert off(ResNet50("resnet50", backend="openvino")(pictures), by_torch(pictures)) < 1e-4

    def test_a_variant_with_black_border_and_other_strides(
        self, pictures: Tensor, tmp_path: Path
    ) -> None:
        file = draw_weights("resnet50_v1", tmp_path)
        here, there = (
            ResNet50("resnet50_v1", weights=file, backend=backend)
            for backend in ("openvino", "torch")
        )
        assert off(here(pictures[:2]), there(pictures[:2])) < 1e-4
        assert here.fingerprint() == there.fingerprint()

    def test_auto_is_torch_even_where_openvino_is_installed(self) -> None:
        assert ResNet50("resnet50", backend="auto").compute.backend == "torch"


class TestInt8:
    def test_features_of_real_pictures(
        self, int8: ResNet50, by_torch: ResNet50, pictures: Tensor
    ) -> None:
        cosine = torch.nn.functional.cosine_similarity(int8(pictures[:4]), by_torch(pictures[:4]))
        assert cosine.min() > 0.997
        assert cosine.max() < 0.99999  # else it was not computed in 8 bits

    def test_the_same_rows_on_processors_without_vnni(
        self, int8: ResNet50, pictures: Tensor, tmp_path: Path
    ) -> None:
        # There, products are added in 16 bits: weights that are too large overflow silently. Black
        # and white pictures make the largest numbers: with ordinary steps rows move by 2 %.
        harsh = ((pictures[:4].float() - 128) * 8 + 128).clamp(0, 255).byte()
        code = (
            "import sys, numpy, torch; from vtag.extractors.resnet50 import ResNet50;"
            "pixels = torch.from_numpy(numpy.load(sys.argv[1]));"
            "net = ResNet50('resnet50', backend='openvino', precision='int8');"
            "numpy.save(sys.argv[1], net(pixels).numpy())"
        )
        file = tmp_path / "there.npy"
        np.save(file, harsh.numpy())
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
        subprocess.run([sys.executable, "-c", code, file], check=True, env=environment)
        assert off(torch.from_numpy(np.load(file)), int8(harsh)) < 1e-4

    def test_no_pair_of_weights_can_overflow(self) -> None:
        generator = np.random.default_rng(0)
        weight = generator.standard_normal((32, 7, 3, 3)).astype(np.float32)
        weight[0, :2] = 5.0  # neighbours, both large
        weight[1, 0], weight[1, 1] = 5.0, 0.01  # a large one alone
        steps = weight_steps(weight)
        whole = np.round(weight / steps[:, None, None, None]).astype(int)
        for row in whole:
            for at in range(0, 7, 2):
                pair = row[at : at + 2]
                sums = (np.maximum(pair, 0).sum(axis=0), np.minimum(pair, 0).sum(axis=0))
                assert all(np.abs(255 * total).max() <= 32767 for total in sums)
        assert np.abs(whole).max() <= 127
        assert whole[0].max() in (63, 64)
        assert whole[1].max() >= 126

    def test_weights_without_ranges_are_refused(self, tmp_path: Path) -> None:
        file = draw_weights("resnet50_v1", tmp_path)
        with pytest.raises(ConfigError, match=r"int8 is not there .* use --precision fp32"):
            ResNet50("resnet50_v1", weights=file, backend="openvino", precision="int8")

    def test_the_ranges_are_those_of_the_embedded_weights(self) -> None:
        with pytest.raises(ConfigError, match="measured for the embedded resnet50"):
            load_ranges("resnet50", weights_sha256="0" * 64)


class TestSameRows:
    def test_whatever_the_batch(self, by_openvino: ResNet50, pictures: Tensor) -> None:
        together = by_openvino(pictures)
        alone = torch.cat([by_openvino(picture[None]) for picture in pictures])
        assert off(alone, together) < 1e-4
        assert off(by_openvino(pictures.flip(0)).flip(0), together) < 1e-4

    def test_from_several_threads(self, by_openvino: ResNet50, pictures: Tensor) -> None:
        wanted = by_openvino(pictures)
        found: list[tuple[int, Tensor]] = []
        orders = [torch.arange(8).roll(shift) for shift in range(4)]

        def work(at: int) -> None:
            for _ in range(2):
                found.append((at, by_openvino(pictures[orders[at]])))

        threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        for at, rows in found:
            assert off(rows, wanted[orders[at]]) < 1e-4

    def test_rows_stay_what_they_are(self, by_openvino: ResNet50, pictures: Tensor) -> None:
        # A request writes its next rows where the last ones were.
        first = by_openvino(pictures[:1])
        before = first.clone()
        by_openvino(pictures[1:2])
        assert torch.equal(first, before)

    def test_nothing_gives_no_row(self, by_openvino: ResNet50, pictures: Tensor) -> None:
        assert by_openvino(pictures[:0]).shape == (0, 2048)


class TestPrecisionsAreKeptApart:
    """In the cache, and in what a model accepts; with the real model and a real clip."""

    def test_no_row_of_one_is_served_for_another(self, tmp_path: Path) -> None:
        clip, cache = SAMPLES / "dog.mp4", tmp_path / "cache"
        decoded = {}
        for precision in ("fp32", "int8", "fp32 again", "int8 again"):
            kind = precision.split()[0]
            with Pipeline(device="cpu", cache=cache, precision=kind) as pipeline:  # type: ignore[arg-type]
                decoded[precision] = pipeline.features(clip)
        rows = {name: clip.streams["visual"].rows for name, clip in decoded.items()}
        assert [clip.cached for clip in decoded.values()] == [False, False, True, True]
        assert (rows["fp32"] == rows["fp32 again"]).all()
        assert (rows["int8"] == rows["int8 again"]).all()
        assert (rows["fp32"] != rows["int8"]).any()

    def test_the_record_says_so_and_sees_the_same(self) -> None:
        found = {}
        for precision in ("fp32", "int8"):
            with Pipeline(
                device="cpu",
                precision=precision,  # type: ignore[arg-type]
                selection=Selection(top_k=5),
            ) as pipeline:
                found[precision] = pipeline.tag(SAMPLES / "cockatoo.mp4")
        for precision, record in found.items():
            assert record.to_dict()["model"]["precision"] == precision
        one, other = (found[p].tags for p in ("fp32", "int8"))
        # Not the place in the list: the bird and its roll-ups stand close to each other.
        scores = {tag.id: tag.score for tag in other}
        assert scores[one[0].id] == pytest.approx(one[0].score, abs=0.1)
        assert [tag.score for tag in one] != [tag.score for tag in other]

    def test_torch_and_openvino_share_fp32_rows(self, tmp_path: Path) -> None:
        clip = SAMPLES / "dog.mp4"
        with Pipeline(device="cpu", cache=tmp_path, backend="openvino") as pipeline:
            there = pipeline.tag(clip)
        with Pipeline(device="cpu", cache=tmp_path, backend="torch") as pipeline:
            assert pipeline.features(clip).cached
        with Pipeline(device="cpu", backend="torch") as pipeline:
            here = pipeline.tag(clip)
        assert {t.id: t.score for t in here.tags} == pytest.approx(
            {t.id: t.score for t in there.tags}, abs=1.01e-4
        )


def test_nothing_is_told_to_anybody(tmp_path: Path) -> None:
    # `import openvino` sends an event to Google Analytics from a child process of its own, which
    # inherits the hook; it shows only at the end of the interpreter.
    log = tmp_path / "asked.txt"
    code = (
        "import sys\n"
        "def hook(event, given):\n"
        "    if event in ('socket.getaddrinfo', 'socket.connect'):\n"
        "        open(sys.argv[1], 'a').write(event)\n"
        "        raise OSError('no network here')\n"
        "sys.addaudithook(hook)\n"
        "from vtag.extractors.resnet50 import ResNet50\n"
        "ResNet50('resnet50', backend='openvino')\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, log], check=True)
    assert not log.exists()


def test_the_int8_ranges_name_the_embedded_weights() -> None:
    from vtag.weights import sha256_of

    ranges = load_ranges("resnet50", weights_sha256=sha256_of(find_weights("resnet50")))
    assert ranges.frames >= 100
    assert "end" not in ranges.blocks[15]
    assert [at for at, block in enumerate(ranges.blocks) if "shortcut" in block] == [3, 7, 13]
    assert set(ranges.blocks[0]) == {"end"}


class TestCompilationThatNeverEnds:
    """OpenVINO 2026.4 was once seen to wait for itself."""

    @staticmethod
    def core(monkeypatch: pytest.MonkeyPatch, hangs: int) -> list[str]:
        """`openvino.Core`, whose first compilations wait until the test is over."""
        begun: list[str] = []
        for_ever = threading.Event()

        def compile_model(graph: str, device: str, settings: object) -> str:
            begun.append(graph)
            if len(begun) <= hangs:
                for_ever.wait(30)
            return f"{graph} for {device}"

        fake = SimpleNamespace(compile_model=compile_model)
        monkeypatch.setattr(openvino_network, "ov", SimpleNamespace(Core=lambda: fake))
        monkeypatch.setattr(openvino_network, "COMPILE_SECONDS", 0.1)
        return begun

    def test_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = self.core(monkeypatch, hangs=1)
        assert openvino_network.compiled("graph", {}) == "graph for CPU"
        assert begun == ["graph"] * 2

    def test_is_given_up_with_advice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = self.core(monkeypatch, hangs=2)
        with pytest.raises(EnvironmentProblem, match="--backend torch"):
            openvino_network.compiled("graph", {})
        assert len(begun) == 2

    def test_an_error_is_an_error_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def compile_model(*_: object) -> None:
            raise RuntimeError("no such operation")

        fake = SimpleNamespace(compile_model=compile_model)
        monkeypatch.setattr(openvino_network, "ov", SimpleNamespace(Core=lambda: fake))
        with pytest.raises(RuntimeError, match="no such operation"):
            openvino_network.compiled("graph", {})
