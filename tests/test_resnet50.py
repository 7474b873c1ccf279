"""The embedded ResNet-50 against Keras' graph and against torchvision, and its preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_frames import drawn_frames
from drawn_weights import draw_network
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import resnet50

from vtag.errors import ConfigError, EnvironmentProblem, WeightsError
from vtag.extractors import convolution as convolution_module
from vtag.extractors.batches import Batches
from vtag.extractors.resnet50 import ResNet50, normalised, resized_crop
from vtag.extractors.resnet50_network import (
    MEAN,
    STD,
    VARIANTS,
    FrozenResNet50,
    folded_resnet50,
    frozen_resnet50,
)
from vtag.weights import find_weights, sha256_of

GOLDEN = Path(__file__).parent / "golden" / "resnet50_he2015.npz"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedded() -> ResNet50:
    return ResNet50("resnet50")


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.from_numpy(drawn_frames()).permute(0, 3, 1, 2)


class TestTheEmbeddedWeights:
    """Against golden/make_resnet50.py: Keras' own layer list in float64, weights as published."""

    def test_features(self, embedded: ResNet50, frames: Tensor) -> None:
        # Features reach 13 here; float16 weights alone move them by 0.015.
        with np.load(GOLDEN) as golden:
            wanted = torch.from_numpy(golden["features"])
        torch.testing.assert_close(embedded(frames), wanted, atol=0.03, rtol=0)

    def test_logits_with_the_classifier_in_the_file(
        self, embedded: ResNet50, frames: Tensor
    ) -> None:
        state = load_file(find_weights("resnet50"))
        logits = embedded(frames) @ state["fc.weight"].float().T + state["fc.bias"]
        with np.load(GOLDEN) as golden:
            wanted = torch.from_numpy(golden["logits"])
        torch.testing.assert_close(logits, wanted, atol=0.05, rtol=0)
        assert torch.equal(logits.argmax(1), wanted.argmax(1))

    def test_the_border_is_the_mean_colour_of_2015(self) -> None:
        # A picture of exactly that colour goes on behind its edge, so no corner may show. With
        # torchvision's black border the outermost values differ by some hundredths.
        variant = VARIANTS["resnet50"]
        folded = folded_resnet50(find_weights("resnet50"), variant)
        network = frozen_resnet50(folded, variant, CPU)
        flat = network.border.expand(1, 3, 224, 224).contiguous()
        maps: list[Tensor] = []
        network.stem.register_forward_hook(lambda _module, _inputs, out: maps.append(out))
        network(flat)
        assert maps[0].shape == (1, 64, 112, 112)
        spread = maps[0].amax(dim=(2, 3)) - maps[0].amin(dim=(2, 3))
        assert spread.max().item() < 1e-5
        assert maps[0].max().item() > 0.1


@pytest.fixture(scope="module")
def drawn_state() -> dict[str, Tensor]:
    """Weights nobody has seen, without step counters, as in the embedded file."""
    state = draw_network("resnet50").state_dict()
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


class TestAgainstTorchvision:
    """torchvision's network, neither folded nor packed, is the other way to the same rows."""

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("name", ["resnet50", "resnet50_v1"])
    def test_same_rows(
        self,
        name: str,
        packed: bool,
        drawn_state: dict[str, Tensor],
        frames: Tensor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(convolution_module, "packs", lambda: packed)
        file = tmp_path / "drawn.safetensors"
        save_file(drawn_state, file)
        reference = resnet50()
        reference.load_state_dict(drawn_state, strict=False)
        reference.fc = torch.nn.Identity()
        reference.eval()
        x = (frames[:2, :, 16:240, 58:282] / 255 - column(MEAN)) / column(STD)
        if name == "resnet50":
            for stage in (reference.layer2, reference.layer3, reference.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
            # Padded by hand with Caffe's mean, given here as numbers: 123.68, 116.779, 103.939.
            colour = column([8.5624e-05, 0.0087360, 0.0071285])
            x = torch.nn.functional.pad(x - colour, (3, 3, 3, 3)) + colour
            reference.conv1.padding = (0, 0)
        with torch.no_grad():
            wanted = reference(x)
        found = ResNet50(name, weights=file)(frames[:2])
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("name", "preset"),
        [
            ("resnet50_v1", ResNet50_Weights.IMAGENET1K_V1),
            ("resnet50_v2", ResNet50_Weights.IMAGENET1K_V2),
        ],
    )
    @pytest.mark.parametrize("size", [(256, 340), (480, 301), (100, 133), (256, 256), (333, 257)])
    def test_is_torchvisions_preset(
        self, name: str, preset: ResNet50_Weights, size: tuple[int, int]
    ) -> None:
        pictures = torch.from_numpy(drawn_frames(*size)).permute(0, 3, 1, 2)
        wanted = preset.transforms()(pictures)
        found = normalised(resized_crop(pictures, resize_px=VARIANTS[name].resize_px))
        # One level of 255: the two may round a half to different sides.
        torch.testing.assert_close(found, wanted, atol=1.01 / (255 * min(STD)), rtol=0)
        assert (found - wanted).abs().mean() < 1e-4

    def test_short_side_256_is_only_cropped(self, frames: Tensor) -> None:
        assert torch.equal(resized_crop(frames, resize_px=256), frames[:, :, 16:240, 58:282])

    def test_memory_layout_changes_nothing(self, embedded: ResNet50, frames: Tensor) -> None:
        torch.testing.assert_close(embedded(frames.contiguous()), embedded(frames))


class TestFingerprint:
    def test_changes_with_one_weight(self, tmp_path: Path, embedded: ResNet50) -> None:
        state = load_file(find_weights("resnet50"))
        state["layer3.2.conv2.weight"][7, 5, 1, 1] += 0.5
        save_file(state, tmp_path / "other.safetensors")
        other = ResNet50("resnet50", weights=tmp_path / "other.safetensors")
        assert other.fingerprint() != embedded.fingerprint()

    def test_is_that_of_the_bytes_not_of_the_place(
        self, tmp_path: Path, embedded: ResNet50
    ) -> None:
        copy = tmp_path / "copy.safetensors"
        copy.write_bytes(find_weights("resnet50").read_bytes())
        assert ResNet50("resnet50", weights=copy).fingerprint() == embedded.fingerprint()
        assert sha256_of(copy) == sha256_of(find_weights("resnet50"))

    def test_differs_between_variants_with_the_same_file(self, embedded: ResNet50) -> None:
        other = ResNet50("resnet50_v1", weights=find_weights("resnet50"))
        assert other.fingerprint() != embedded.fingerprint()


class TestOutOfMemory:
    def test_halves_the_batch_and_remembers(self) -> None:
        sizes: list[int] = []

        def network(items: Tensor) -> Tensor:
            sizes.append(len(items))
            if len(items) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return items * 2

        batches = Batches(16, CPU)
        items = torch.arange(10.0)[:, None]
        torch.testing.assert_close(batches.run(network, items, dim=1), items * 2)
        assert sizes == [10, 5, 2, 2, 2, 2, 2]
        sizes.clear()
        batches.run(network, items, dim=1)
        assert max(sizes) <= 3

    def test_one_item_that_does_not_fit_is_said(self) -> None:
        def network(_items: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

        with pytest.raises(EnvironmentProblem, match="no memory for one item") as caught:
            Batches(4, CPU).run(network, torch.zeros(3, 1), dim=1)
        assert "\n" not in str(caught.value)

    def test_the_extractor_goes_on_with_smaller_batches(
        self, embedded: ResNet50, frames: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = embedded(frames)
        real = FrozenResNet50.forward

        def tight(network: FrozenResNet50, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(network, x)

        monkeypatch.setattr(FrozenResNet50, "forward", tight)
        monkeypatch.setattr(embedded.batches, "size", 8)
        torch.testing.assert_close(embedded(frames), wanted, rtol=1e-4, atol=1e-4)
        assert embedded.batches.size == 1


class TestWhatIsRefused:
    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        state = load_file(find_weights("resnet50"))
        del state["layer4.2.bn3.bias"]
        save_file(state, tmp_path / "less.safetensors")
        with pytest.raises(WeightsError, match=r"less\.safetensors: .*layer4\.2\.bn3\.bias"):
            ResNet50("resnet50", weights=tmp_path / "less.safetensors")

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        half = tmp_path / "half.safetensors"
        half.write_bytes(find_weights("resnet50").read_bytes()[:1_000_000])
        with pytest.raises(WeightsError, match=r"half\.safetensors: is not a readable"):
            ResNet50("resnet50", weights=half)

    def test_a_pickle_that_runs_code(self, tmp_path: Path) -> None:
        class Harm:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (Path.touch, (tmp_path / "harm",))  # type: ignore[return-value]

        torch.save({"fc.weight": Harm()}, tmp_path / "harm.pth")
        with pytest.raises(WeightsError, match="holds more than tensors"):
            ResNet50("resnet50_v1", weights=tmp_path / "harm.pth")
        assert not (tmp_path / "harm").exists()

    def test_an_unknown_variant(self) -> None:
        with pytest.raises(ConfigError, match="there are: resnet50, resnet50_v1, resnet50_v2"):
            ResNet50("resnet51")

    def test_a_batch_of_nothing(self) -> None:
        with pytest.raises(ConfigError, match="batch size must be 1 or more, got 0"):
            ResNet50("resnet50", batch_size=0)


def column(values: list[float] | tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]
