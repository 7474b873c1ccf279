"""Tensors of a weights file into a network: all of them, of the right shapes, without pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vtag.errors import WeightsError


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in `path`, by name: safetensors, or a .pth/.pt state without other objects.

    Raises:
        WeightsError: the file can not be read, is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise WeightsError(f"{path}: no such file") from err
    except pickle.UnpicklingError as err:
        raise WeightsError(
            f"{path}: is damaged or holds more than tensors; save its state_dict as safetensors"
        ) from err
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as err:
        raise WeightsError(f"{path}: is not a readable weights file; fetch it again") from err
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"{path}: holds something else than one dict of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def fill(network: nn.Module, path: Path) -> None:
    """Puts the tensors of `path` into `network`, made on the "meta" device, as float32.

    Names and shapes must be exactly the network's; only the step counters of batch norms,
    which nothing reads after training, may be absent.

    Raises:
        WeightsError: they are not.
    """
    state = {name: t for name, t in read_state(path).items() if not _is_counter(name)}
    wanted = {n: t.shape for n, t in network.state_dict().items() if not _is_counter(n)}
    found = {name: tensor.shape for name, tensor in state.items()}
    if wanted != found:
        odd = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise WeightsError(
            f"{path}: does not hold the weights of {type(network).__name__}: {len(odd)} tensors "
            f"are missing, unknown or of another shape, the first is {odd[0]}"
        )
    filled = {name: tensor.float() for name, tensor in state.items()}
    for name in filter(_is_counter, network.state_dict()):
        filled[name] = torch.zeros((), dtype=torch.long)
    network.load_state_dict(filled, assign=True)


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
