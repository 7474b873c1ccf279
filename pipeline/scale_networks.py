"""Picture networks in Ray actors of their own: a GPU that many decoding workers share.

A worker sends the few pictures that its decode child just gave (some megabytes) and waits for
their rows. So one batch per worker is on its way at most, and a GPU that falls behind holds up
the decoding instead of filling memory.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtag.errors import EnvironmentProblem
from vtag.extractors import FrameExtractor, build_extractor

log = logging.getLogger(__name__)

# How long one batch may take, with those before it in the queue and a restart of the actor.
PATIENCE_SECONDS: Final = 300.0
START_SECONDS: Final = 600.0  # a cluster that grows needs minutes for a machine with a GPU


@dataclass(frozen=True)
class NetworkFacts:
    """What the rows of a network elsewhere are."""

    name: str
    dim: int
    fingerprint: str


class FrameNetwork:
    """The actor: one picture network on its device."""

    def __init__(self, name: str, device: str, batch_size: int | None) -> None:
        found: Any = build_extractor(name, device=device, batch_size=batch_size)
        self._network: FrameExtractor = found

    def facts(self) -> NetworkFacts:
        """What its rows are."""
        return NetworkFacts(self._network.name, self._network.dim, self._network.fingerprint())

    def rows(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows float32 [n, D] of pictures uint8 [n, H, W, 3]."""
        # Ray's memory is read-only, and torch warns of tensors over such.
        found: NDArray[np.float32] = self._network(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
        return found


class RemoteFrames:
    """A `FrameExtractor` whose network runs in actors; can be sent to other processes."""

    stream: Final[Literal["visual"]] = "visual"
    device: Final = torch.device("cpu")  # where its rows are

    def __init__(self, facts: NetworkFacts, actors: tuple[Any, ...]) -> None:
        self._facts, self._actors = facts, actors

    @property
    def name(self) -> str:
        """The key in `EXTRACTORS`."""
        return self._facts.name

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self._facts.dim

    def fingerprint(self) -> str:
        """That of the network in the actors."""
        return self._facts.fingerprint

    def __call__(self, pixels: Tensor) -> Tensor:
        """Rows float32 [n, D] of pictures uint8 [n, 3, H, W]; see `FrameExtractor`.

        Raises:
            EnvironmentProblem: no actor answered, each asked once.
        """
        import ray

        batch = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        why = ""
        for actor in random.sample(self._actors, len(self._actors)):
            try:
                return torch.tensor(ray.get(actor.rows.remote(batch), timeout=PATIENCE_SECONDS))
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as err:
                why = type(err).__name__
        raise EnvironmentProblem(
            f"none of {len(self._actors)} network actors answered ({why}); see whether the "
            "machines with GPUs are there"
        )


class NetworkActors:
    """The actors of one picture network; they end with this object's process or when dropped.

    Args:
        name: of the extractor.
        actors: how many; together they take `gpus`.
        device: "cuda", or "cpu" to try the same without a GPU.
        can_grow: whether machines with GPUs may still come.

    Raises:
        EnvironmentProblem: they can not be started, or the cluster has not enough GPUs in time.
    """

    def __init__(
        self,
        name: str,
        *,
        actors: int,
        gpus: int,
        device: str,
        batch_size: int | None,
        can_grow: bool = True,
    ) -> None:
        import ray

        have = ray.cluster_resources().get("GPU", 0)
        if have < gpus:
            if not can_grow:
                raise EnvironmentProblem(
                    f"--gpus {gpus}, and the Ray that was started here has {have:g}; lower it, or "
                    "leave it out to work on CPUs"
                )
            log.warning(
                "%g of %d GPUs are in the cluster; waiting %.0f s at most for the others",
                have,
                gpus,
                START_SECONDS,
            )
        # More than one GPU for one network would leave all but the first idle.
        make = ray.remote(num_cpus=0, num_gpus=min(gpus / actors, 1.0), max_restarts=-1)(
            FrameNetwork
        )
        self._actors = tuple(make.remote(name, device, batch_size) for _ in range(actors))
        try:
            facts = ray.get([actor.facts.remote() for actor in self._actors], timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError as err:
            raise EnvironmentProblem(
                f"no room for {actors} network actors on {gpus} GPUs within {START_SECONDS:.0f} "
                "seconds; lower --gpus"
            ) from err
        except ray.exceptions.RayError as err:
            last_line = str(err).strip().rpartition("\n")[2]
            raise EnvironmentProblem(f"a network actor can not start: {last_line}") from err
        self._facts: NetworkFacts = facts[0]

    def frames(self) -> RemoteFrames:
        """The extractor that workers use."""
        return RemoteFrames(self._facts, self._actors)
