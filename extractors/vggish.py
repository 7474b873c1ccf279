"""Google's VGGish, 72 million parameters: 128 numbers for each 0.96 s of sound.

Hershey et al., ICASSP 2017; vggish_slim.py and vggish_postprocess.py in tensorflow/models,
research/audioset/vggish. Its 288 MB are not in this package: the file is the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.extractors.base import fingerprint_of_parts
from vtag.extractors.batches import Batches
from vtag.extractors.convolution import convolution
from vtag.extractors.devices import checked_device
from vtag.extractors.log_mel import (
    BANDS,
    HOP_SAMPLES,
    RATE_HZ,
    SEGMENT_FRAMES,
    WINDOW_SAMPLES,
    log_mel_segments,
)
from vtag.extractors.state import fill
from vtag.extractors.vggish_pca import Pca
from vtag.weights import find_weights, sha256_of

# Part of every fingerprint. Raise it when the same weights begin to give other rows.
CODE_VERSION: Final = 1

MAPS: Final = 6 * 4 * 512  # what the convolutions leave of 96x64

# "embedding": the last layer as it is. TensorFlow's VGGish since 2020, the released PCA
#     (its means are partly negative) and YouTube-8M all mean this.
# "relu": rectified, as torchvggish and torchaudio end.
Output = Literal["embedding", "relu"]


class VGGishNet(nn.Module):
    """The published network, with the names of torchvggish's state.

    Shape:
        log_mel: float32 [S, 96, 64] (time, band)
        out: float32 [S, 128], before any activation
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(MAPS, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        rows: Tensor = self.embeddings(self.maps(log_mel))
        return rows

    def maps(self, log_mel: Tensor) -> Tensor:
        """The convolutions' output, float32 [S, 12288]."""
        maps: Tensor = self.features(log_mel[:, None])
        # TensorFlow flattens (time, band, channel); torch's own order would pair every weight
        # of the first dense layer with another map.
        return maps.permute(0, 2, 3, 1).flatten(1)


class VGGish:
    """A `SoundExtractor` (see base.py) with Google's network.

    Args:
        weights: the file, torchvggish's .pth or its state as safetensors.
        device: "cpu", "cuda", "cuda:1", "mps".
        batch_size: segments at once in the convolutions; None chooses by the device.
        output: "embedding" (before any activation) or "relu".
        pca: applied to the embedding when given, as in AudioSet and YouTube-8M.

    Raises:
        ConfigError: no such device or output, or a PCA behind "relu".
        WeightsError: the weights are missing, damaged or of another network.
        EnvironmentProblem: the device is not there.
    """

    name: Final = "vggish"
    dim: Final = 128
    stream: Final[Literal["audio"]] = "audio"
    rate_hz: Final = RATE_HZ
    window_samples: Final = WINDOW_SAMPLES
    hop_samples: Final = HOP_SAMPLES
    hop_seconds: Final = HOP_SAMPLES / RATE_HZ

    # One minute: its maps are 3 MB. The dense layers read 270 MB of weights however many
    # segments they are given, 13 ms for one and 2 ms each for 62.
    _SEGMENTS_AT_ONCE: Final = 64

    def __init__(
        self,
        *,
        weights: Path | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
        output: Output = "embedding",
        pca: Pca | None = None,
    ) -> None:
        if output not in get_args(Output):
            raise ConfigError(f"no output {output!r}; there are: {', '.join(get_args(Output))}")
        if pca is not None and output == "relu":
            raise ConfigError("the PCA was fitted before the rectifier: use output='embedding'")
        self.device = checked_device(device)
        self.batches = Batches(batch_size, self.device)
        self._dense_batches = Batches(self._SEGMENTS_AT_ONCE, self.device)
        self._output, self._pca = output, pca
        path = find_weights(self.name, path=weights)
        self._weights_sha256 = sha256_of(path)
        with torch.device("meta"):
            network = VGGishNet()
        fill(network, path)
        self._network = _frozen(network, self.device)

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version."""
        return fingerprint_of_parts(
            {
                "name": self.name,
                "weights": self._weights_sha256,
                "output": self._output,
                "pca": None if self._pca is None else self._pca.fingerprint(),
                "version": CODE_VERSION,
            }
        )

    def __call__(self, wave: Tensor) -> Tensor:
        """Rows float32 [S, 128] of sound float32 [N]; see `SoundExtractor`."""
        segments = log_mel_segments(wave)
        maps = self.batches.run(self._maps, segments, dim=MAPS)
        rows = self._dense_batches.run(self._dense, maps, dim=self.dim)
        if self._output == "relu":
            return rows.relu_()
        return rows if self._pca is None else self._pca(rows)

    def _maps(self, segments: Tensor) -> Tensor:
        return self._network.maps(segments.to(self.device))

    def _dense(self, maps: Tensor) -> Tensor:
        rows: Tensor = self._network.embeddings(maps.to(self.device))
        return rows

    def __repr__(self) -> str:
        return f"VGGish(device={str(self.device)!r}, {self.fingerprint()})"


def _frozen(network: VGGishNet, device: torch.device) -> VGGishNet:
    """The same network, its convolutions as fast as `device` can."""
    network.requires_grad_(False).eval()
    layers: list[nn.Module] = []
    side = (SEGMENT_FRAMES, BANDS)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            layers.append(convolution(layer, activation="relu", device=device, side=side))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(layer)
            side = (side[0] // 2, side[1] // 2)
    network.features = nn.Sequential(*layers)
    return network.to(device)
