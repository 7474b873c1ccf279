"""Weights files that tests draw, for networks whose own weights are large or not there."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import resnet50

from vtag.extractors.log_mel import log_mel_segments
from vtag.extractors.vggish import VGGishNet
from vtag.extractors.vggish_small import VGGishSmallNet

_NETWORKS = {
    "resnet50": resnet50,
    "resnet50_v1": resnet50,
    "resnet50_v2": resnet50,
    "vggish": VGGishNet,
    "vggish_small": VGGishSmallNet,
}


def draw_network(name: str, *, seed: int = 0) -> nn.Module:
    """The unfolded network of an extractor with drawn weights, in eval mode.

    Batch norms get the statistics of drawn inputs. With made-up ones signals die or explode in
    50 layers, and every comparison of two ways to compute them becomes vacuous or chaotic.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        network = _NETWORKS[name]()
    network.to_empty(device="cpu")
    for key, tensor in network.state_dict().items():
        if tensor.dim() > 1:
            fan_in = tensor[0].numel()
            tensor.uniform_(-1, 1, generator=generator).mul_((6 / fan_in) ** 0.5)
        elif key.endswith("running_var"):
            tensor.fill_(1)
        elif key.endswith(("running_mean", "num_batches_tracked")):
            tensor.zero_()
        elif key.endswith("weight"):
            tensor.uniform_(0.5, 1, generator=generator)
        else:
            tensor.uniform_(-0.2, 0.2, generator=generator)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            network.train()(_usual_input(name, generator))
    return network.eval()


def _usual_input(name: str, generator: torch.Generator) -> torch.Tensor:
    if name.startswith("resnet50"):
        return torch.randn(4, 3, 96, 96, generator=generator)
    t = torch.arange(160_000) / 16_000
    grain = torch.rand(len(t), generator=generator) * t / 100
    return log_mel_segments(0.3 * torch.sin(2 * torch.pi * (100 * t + 300 * t**2)) + grain)


def draw_weights(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A safetensors file with them."""
    file = folder / f"{name}-{seed}.safetensors"
    save_file(draw_network(name, seed=seed).state_dict(), file)
    return file
