"""AudioSet's post-processing of VGGish: PCA with whitening, and 8 bits if wanted."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtag.errors import ConfigError, WeightsError
from vtag.extractors.base import fingerprint_of_parts

CLIP: Final = 2.0  # PCA values are clipped to [-2, 2] before they become 8 bits

# "none": the PCA's numbers as they are.
# "truncate": 0..255, cut off below the point, as TensorFlow's uint8 cast and so AudioSet and
#     YouTube-8M have it.
# "round": 0..255, to the nearest, as torchvggish does; half a step above the other on average.
Quantise = Literal["none", "truncate", "round"]


class Pca:
    """y = E (x - mean), clipped and quantised if asked: vggish_postprocess.py.

    The rows of E are eigenvectors divided by the root of their eigenvalue, so y is whitened.

    Args:
        eigenvectors: [128, 128], one per row.
        means: [128].
        quantise: see `Quantise`.

    Raises:
        ConfigError: no such way to quantise.
        ValueError: the shapes are others.
    """

    def __init__(
        self,
        eigenvectors: NDArray[np.float64],
        means: NDArray[np.float64],
        *,
        quantise: Quantise = "none",
    ) -> None:
        if quantise not in get_args(Quantise):
            raise ConfigError(f"no {quantise!r}; there are: {', '.join(get_args(Quantise))}")
        means = np.asarray(means, np.float64).reshape(-1)
        if eigenvectors.shape != (128, 128) or means.shape != (128,):
            raise ValueError(
                f"the PCA must be [128, 128] and [128], got {eigenvectors.shape}, {means.shape}"
            )
        self.quantise: Quantise = quantise
        self._eigenvectors = torch.from_numpy(np.array(eigenvectors, np.float64))
        self._means = torch.from_numpy(means.copy())

    @classmethod
    def load(cls, path: Path, *, quantise: Quantise = "none") -> Pca:
        """The PCA in `path`: `vggish_pca_params.npz` as Google publishes it.

        Raises:
            WeightsError: the file can not be read or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls.of(arrays, quantise=quantise)
        except FileNotFoundError as err:
            raise WeightsError(f"{path}: no such file") from err
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
            raise WeightsError(
                f"{path}: is not VGGish's PCA (pca_eigen_vectors, pca_means); fetch it again"
            ) from err

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float64]], *, quantise: Quantise = "none") -> Pca:
        """The PCA of arrays with the names of Google's file."""
        return cls(arrays["pca_eigen_vectors"], arrays["pca_means"], quantise=quantise)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """float32 [S, 128] of embeddings before any rectifier, float32 [S, 128]."""
        # float64: the last eigenvector is 88 times longer than the first and amplifies rounding.
        rows = (embeddings.double() - self._means) @ self._eigenvectors.T
        if self.quantise == "none":
            return rows.float()
        steps = (rows.clamp(-CLIP, CLIP) + CLIP) * (255 / (2 * CLIP))
        return (steps.floor() if self.quantise == "truncate" else steps.round()).float()

    def fingerprint(self) -> str:
        """12 hex digits that change with the numbers and the way to quantise."""
        numbers = self._eigenvectors.numpy().tobytes() + self._means.numpy().tobytes()
        return fingerprint_of_parts(
            {"numbers": hashlib.sha256(numbers).hexdigest(), "quantise": self.quantise}
        )
