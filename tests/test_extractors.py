"""What every extractor promises (extractors/base.py), over the table of extractors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn_frames import drawn_frames
from drawn_weights import draw_network, draw_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtag.errors import ConfigError, EnvironmentProblem, WeightsError
from vtag.extractors import EXTRACTORS, FrameExtractor, SoundExtractor, build_extractor
from vtag.extractors.devices import checked_device, devices_here
from vtag.extractors.log_mel import HOP_SAMPLES, WINDOW_SAMPLES, log_mel_segments
from vtag.extractors.vggish_small import InvertedBottleneck
from vtag.weights import SOURCES

Extractor = FrameExtractor | SoundExtractor
Weights = Callable[[str], Path]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Drawn weights of an extractor, one file for all tests here."""
    folder = tmp_path_factory.mktemp("weights")

    def of(name: str) -> Path:
        file = folder / f"{name}-0.safetensors"
        return file if file.exists() else draw_weights(name, folder)

    return of


@pytest.fixture(params=EXTRACTORS, scope="module")
def extractor(request: pytest.FixtureRequest, weights: Weights) -> Extractor:
    return build_extractor(request.param, weights=weights(request.param))


def items(extractor: Extractor, count: int) -> Tensor:
    """Input for `count` rows, none like another."""
    if extractor.stream == "visual":
        pictures = torch.from_numpy(drawn_frames()).permute(0, 3, 1, 2)
        turned = [pictures, pictures.flip(3), pictures.flip(2)]
        return torch.cat(turned)[:count]
    t = torch.arange((count - 1) * HOP_SAMPLES + WINDOW_SAMPLES) / 16_000
    return 0.4 * torch.sin(2 * math.pi * (200 * t + 120 * t**2))


def part(extractor: Extractor, whole: Tensor, at: int) -> Tensor:
    """The input of row `at` alone."""
    if extractor.stream == "visual":
        return whole[at : at + 1]
    return whole[at * HOP_SAMPLES : at * HOP_SAMPLES + WINDOW_SAMPLES]


class TestEveryExtractor:
    def test_one_float32_row_per_item_without_gradient(self, extractor: Extractor) -> None:
        rows = extractor(items(extractor, 3))
        assert rows.shape == (3, extractor.dim)
        assert rows.dtype == torch.float32
        assert rows.device.type == "cpu"
        assert not rows.requires_grad
        assert rows.isfinite().all()

    def test_rows_may_be_trained_on(self, extractor: Extractor) -> None:
        # Tensors made in inference mode can not be saved for a backward pass.
        rows = extractor(items(extractor, 1))
        factor = torch.ones(extractor.dim, requires_grad=True)
        (rows * factor).sum().backward()
        torch.testing.assert_close(factor.grad, rows[0])

    def test_nothing_gives_no_row(self, extractor: Extractor) -> None:
        assert extractor(items(extractor, 1)[:0]).shape == (0, extractor.dim)

    def test_a_row_depends_on_its_own_item_only(self, extractor: Extractor) -> None:
        # Fails when a network was left in training mode: batch norm then mixes the items.
        whole = items(extractor, 3)
        together = extractor(whole)
        for at in range(3):
            alone = extractor(part(extractor, whole, at))[0]
            assert (together[at] - alone).norm() < 1e-4 * alone.norm()

    def test_rows_differ_where_items_do(self, extractor: Extractor) -> None:
        rows = extractor(items(extractor, 3))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (rows[a] - rows[b]).norm() > 0.01 * rows[a].norm()

    def test_batch_size_changes_nothing(self, extractor: Extractor, weights: Weights) -> None:
        name = extractor.name
        one = build_extractor(name, weights=weights(name), batch_size=1)
        whole = items(extractor, 9)
        assert len(extractor(whole)) == 9
        difference = (one(whole) - extractor(whole)).norm(dim=1)
        assert (difference < 1e-4 * extractor(whole).norm(dim=1)).all()
        assert one.fingerprint() == extractor.fingerprint()

    def test_the_input_is_left_alone(self, extractor: Extractor) -> None:
        whole = items(extractor, 2)
        before = whole.clone()
        extractor(whole)
        assert torch.equal(whole, before)

    def test_fingerprint_changes_with_one_weight(
        self, extractor: Extractor, weights: Weights, tmp_path: Path
    ) -> None:
        state = load_file(weights(extractor.name))
        next(t for t in state.values() if t.dim() > 1).view(-1)[-1] += 1
        save_file(state, tmp_path / "other.safetensors")
        other = build_extractor(extractor.name, weights=tmp_path / "other.safetensors")
        assert other.fingerprint() != extractor.fingerprint()
        assert len(extractor.fingerprint()) == 12
        int(extractor.fingerprint(), 16)

    def test_the_same_weights_give_the_same_fingerprint(
        self, extractor: Extractor, weights: Weights
    ) -> None:
        again = build_extractor(extractor.name, weights=weights(extractor.name))
        assert again.fingerprint() == extractor.fingerprint()

    def test_other_input_is_refused(self, extractor: Extractor) -> None:
        with pytest.raises(ValueError, match="must be"):
            extractor(items(extractor, 1).double())
        with pytest.raises(ValueError, match="must be"):
            extractor(items(extractor, 1)[None])

    def test_a_device_that_is_not_there(self, extractor: Extractor, weights: Weights) -> None:
        with pytest.raises(EnvironmentProblem, match=r"device cuda:63 .* one of: cpu"):
            build_extractor(extractor.name, weights=weights(extractor.name), device="cuda:63")

    def test_a_weights_file_that_is_not_there(self, extractor: Extractor, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"gone\.safetensors: no such file"):
            build_extractor(extractor.name, weights=tmp_path / "gone.safetensors")

    @pytest.mark.gpu
    def test_cuda_gives_the_same_rows(self, extractor: Extractor, weights: Weights) -> None:
        if "cuda:0" not in devices_here():
            missing = pytest.fail if os.environ.get("VTAG_REQUIRE_GPU") == "1" else pytest.skip
            missing("no CUDA device")
        there = build_extractor(extractor.name, weights=weights(extractor.name), device="cuda")
        whole = items(extractor, 3)
        wanted, found = extractor(whole), there(whole)
        assert found.device.type == "cpu"
        # float16 keeps 11 bits; 50 layers of drawn weights add up to some 0.3 %.
        assert ((found - wanted).norm(dim=1) < 0.01 * wanted.norm(dim=1)).all()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_no_extractor_runs_on_weights_nobody_gave(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("VTAG_WEIGHTS", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    if name in SOURCES and SOURCES[name].embedded:
        monkeypatch.setattr("vtag.weights.embedded_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match=name):
        build_extractor(name)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no extractor 'resnet'; there are: resnet50, resnet"):
        build_extractor("resnet")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "meta", ""])
def test_a_device_of_no_known_kind(name: str) -> None:
    with pytest.raises(ConfigError, match="there are: cpu, cuda, cuda:N, mps"):
        checked_device(name)


def test_the_small_network_is_the_same_when_frozen(weights: Weights) -> None:
    sound = items(build_extractor("vggish_small", weights=weights("vggish_small")), 3)
    with torch.no_grad():
        wanted = draw_network("vggish_small")(log_mel_segments(sound))
    found = build_extractor("vggish_small", weights=weights("vggish_small"))(sound)
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_a_bottleneck_adds_its_input_where_it_fits() -> None:
    # With a silent last norm all that is left is the shortcut.
    def silent(channels: int, out: int, stride: int) -> InvertedBottleneck:
        block = InvertedBottleneck(channels, out, stride=stride, excited=True, activation="relu")
        torch.nn.init.zeros_(block.project.norm.weight)
        return block.eval()

    x = torch.rand(2, 8, 6, 4)
    torch.testing.assert_close(silent(8, 8, 1)(x), x)
    assert not silent(8, 16, 1)(x).any()
    assert silent(8, 8, 2)(x).shape == (2, 8, 3, 2)


def test_the_small_network_fits_the_package() -> None:
    # 15 MB as float16.
    assert sum(p.numel() for p in draw_network("vggish_small").parameters()) < 7_500_000


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [("vtag.extractors", "torchvision"), ("vtag.extractors", "torchaudio")],
)
def test_the_import_is_cheap(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
