"""A network without values, to be filled from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vtag.models.net_config import TaggerNetConfig
from vtag.models.tagger_net import TaggerNet

_DRAWS: Final = (Tensor.normal_, Tensor.uniform_)


def blank_net(config: TaggerNetConfig) -> TaggerNet:
    """The network of `config` with shapes but no memory; load_state_dict(assign=True) fills it.

    Draws no random numbers: 25 million of them cost more than reading the weights.
    """
    with torch.device("meta"), _NoDraws():
        return TaggerNet(config)


class _NoDraws(TorchFunctionMode):
    """Random fills do nothing.

    On meta they would do nothing either, but in PyTorch 2.11 the first one imports the whole
    compiler, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in _DRAWS:
            return args[0]
        return func(*args, **(kwargs or {}))
