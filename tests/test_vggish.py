"""Google's VGGish: against a slow version of the TensorFlow graph, and its post-processing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_weights import draw_network
from numpy.typing import NDArray
from torch import Tensor

from vtag.errors import ConfigError, WeightsError
from vtag.extractors.log_mel import log_mel_segments
from vtag.extractors.vggish import VGGish, VGGishNet
from vtag.extractors.vggish_pca import Pca

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn weights as torchvggish saves its own: a state dict with torch.save."""
    file = tmp_path_factory.mktemp("vggish") / "vggish-drawn.pth"
    torch.save(draw_network("vggish").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def sound() -> Tensor:
    t = torch.arange(31_200) / 16_000
    return 0.5 * torch.sin(2 * torch.pi * (300 * t + 700 * t**2))


def tensorflow_vggish(log_mel: Array, state: dict[str, Array]) -> Array:
    """vggish_slim.py for one segment [96, 64], in float64 and in TensorFlow's layout.

    Pictures are (time, band, channel), kernels (height, width, in, out), a convolution is a
    sum over nine shifted products, the flatten is C-order.
    """
    x = log_mel[:, :, None]
    for index in (0, 3, 6, 8, 11, 13):
        kernel = state[f"features.{index}.weight"].transpose(2, 3, 1, 0)
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        height, width = x.shape[:2]
        total = np.zeros((height, width, kernel.shape[3])) + state[f"features.{index}.bias"]
        for i in range(3):
            for j in range(3):
                total += padded[i : i + height, j : j + width] @ kernel[i, j]
        x = np.maximum(total, 0)
        if index in (0, 3, 8, 13):
            x = x.reshape(height // 2, 2, width // 2, 2, -1).max(axis=(1, 3))
    row = x.reshape(-1)
    for index in (0, 2):
        weight, bias = state[f"embeddings.{index}.weight"], state[f"embeddings.{index}.bias"]
        row = np.maximum(weight @ row + bias, 0)
    return state["embeddings.4.weight"] @ row + state["embeddings.4.bias"]


def test_equals_the_tensorflow_graph(weights: Path, sound: Tensor) -> None:
    raw = torch.load(weights, weights_only=True)
    state = {name: tensor.double().numpy() for name, tensor in raw.items()}
    wanted = np.stack(
        [tensorflow_vggish(s, state) for s in log_mel_segments(sound).double().numpy()]
    )
    found = VGGish(weights=weights)(sound)
    assert (wanted < -0.01).any(), "the drawn weights must give negative numbers too"
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_has_the_published_number_of_parameters() -> None:
    # vggish_slim.py: 72 141 184, of which the first dense layer has 50 335 744.
    with torch.device("meta"):
        network = VGGishNet()
    assert sum(p.numel() for p in network.parameters()) == 72_141_184
    assert sum(p.numel() for p in network.embeddings[0].parameters()) == 50_335_744
    assert [n for n, _ in network.named_parameters() if n.endswith("weight")] == [
        *(f"features.{i}.weight" for i in (0, 3, 6, 8, 11, 13)),
        *(f"embeddings.{i}.weight" for i in (0, 2, 4)),
    ]


def test_rectified_output(weights: Path, sound: Tensor) -> None:
    plain, rectified = VGGish(weights=weights), VGGish(weights=weights, output="relu")
    torch.testing.assert_close(rectified(sound), plain(sound).clamp_min(0))
    assert plain.fingerprint() != rectified.fingerprint()


def test_pca_follows_the_embedding(weights: Path, sound: Tensor) -> None:
    pca = Pca(rotation(), np.linspace(-0.8, 0.5, 128))
    plain, reduced = VGGish(weights=weights), VGGish(weights=weights, pca=pca)
    wanted = (plain(sound).double().numpy() - np.linspace(-0.8, 0.5, 128)) @ rotation().T
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(reduced(sound).numpy(), wanted, rtol=1e-4, atol=1e-4 * scale)
    assert plain.fingerprint() != reduced.fingerprint()


def test_pca_does_not_follow_the_rectifier(weights: Path) -> None:
    with pytest.raises(ConfigError, match="fitted before the rectifier"):
        VGGish(weights=weights, output="relu", pca=Pca(np.eye(128), np.zeros(128)))


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are: embedding, relu"):
        VGGish(output="softmax")  # type: ignore[arg-type]


def rotation() -> Array:
    """An orthogonal [128, 128], drawn."""
    square = np.random.default_rng(7).standard_normal((128, 128))
    return np.asarray(np.linalg.qr(square)[0])


class TestPca:
    def test_turns_back_what_was_mixed(self) -> None:
        # x = mean + Eᵀ y with orthogonal E, so the PCA of x is y.
        means = np.linspace(-0.841, 0.563, 128)
        wanted = np.random.default_rng(1).uniform(-1, 1, (5, 128))
        mixed = means + wanted @ rotation()
        found = Pca(rotation(), means)(torch.from_numpy(mixed).float())
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)

    @pytest.mark.parametrize(
        ("quantise", "wanted"),
        # (y + 2) * 63.75 of -3, -2, -1, 0, 0.1, 1, 2, 3:
        # clipped 0, 0, 63.75, 127.5, 133.875, 191.25, 255, 255.
        [
            ("truncate", [0, 0, 63, 127, 133, 191, 255, 255]),
            ("round", [0, 0, 64, 128, 134, 191, 255, 255]),
        ],
    )
    def test_eight_bits(self, quantise: str, wanted: list[int]) -> None:
        x = torch.zeros(1, 128)
        x[0, :8] = torch.tensor([-3.0, -2, -1, 0, 0.1, 1, 2, 3])
        found = Pca(np.eye(128), np.zeros(128), quantise=quantise)(x)  # type: ignore[arg-type]
        assert found[0, :8].tolist() == wanted
        assert found.dtype == torch.float32

    def test_one_row_stays_a_row(self) -> None:
        assert Pca(np.eye(128), np.zeros(128))(torch.zeros(1, 128)).shape == (1, 128)

    def test_loads_googles_names(self, tmp_path: Path) -> None:
        # Google's file holds the means as a column in some versions.
        np.savez(
            tmp_path / "pca.npz",
            pca_eigen_vectors=rotation(),
            pca_means=np.linspace(0, 1, 128)[:, None],
        )
        x = torch.linspace(-1, 1, 128)[None]
        wanted = Pca(rotation(), np.linspace(0, 1, 128))(x)
        torch.testing.assert_close(Pca.load(tmp_path / "pca.npz")(x), wanted)

    def test_fingerprint_changes_with_numbers_and_rule(self) -> None:
        means = np.zeros(128)
        prints = {
            Pca(np.eye(128), means).fingerprint(),
            Pca(np.eye(128), means + 1).fingerprint(),
            Pca(rotation(), means).fingerprint(),
            Pca(np.eye(128), means, quantise="round").fingerprint(),
        }
        assert len(prints) == 4

    def test_a_file_of_other_arrays_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", means=np.zeros(3))
        with pytest.raises(WeightsError, match=r"other\.npz: is not VGGish's PCA"):
            Pca.load(tmp_path / "other.npz")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"gone\.npz: no such file"):
            Pca.load(tmp_path / "gone.npz")

    def test_an_unknown_rule_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="there are: none, truncate, round"):
            Pca(np.eye(128), np.zeros(128), quantise="ceil")  # type: ignore[arg-type]
