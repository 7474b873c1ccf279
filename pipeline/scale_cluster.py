"""The Ray cluster that a run joins, and how much of it the run takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from vtag.cores import usable_cores
from vtag.errors import ConfigError, EnvironmentProblem

LOCAL_STORE_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class ClusterShare:
    """How much of a cluster a run may use.

    Args:
        gpus: GPUs on which the picture network runs; 0 runs it where the file is decoded.
        actors: network processes. With GPUs they share these, one for each when None; without,
            each decodes as well, and None takes every core that the cluster has or gets.
        decoders: worker processes that decode for the GPUs; None takes every core.

    Raises:
        ConfigError: a number makes no sense, or decoders without GPUs.
    """

    gpus: int = 0
    actors: int | None = None
    decoders: int | None = None

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ConfigError(f"gpus must be 0 or more, got {self.gpus}")
        for name, value in (("actors", self.actors), ("decoders", self.decoders)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        if self.decoders and not self.gpus:
            raise ConfigError(
                "decoders are apart from the networks only with --gpus; without, say --actors"
            )

    @property
    def workers(self) -> int | None:
        """Worker processes at once; None for as many as there are cores."""
        return self.decoders if self.gpus else self.actors


@contextmanager
def joined_ray(address: str | None) -> Iterator[str]:
    """A connection to Ray, in words; what was started for it ends with it.

    Args:
        address: of a cluster ("auto", "10.0.0.1:6379", "ray://…"), or "local" for a Ray of this
            machine alone. None joins the one that `RAY_ADDRESS` names (`ray job submit` sets
            it), and starts a local one otherwise.

    Raises:
        EnvironmentProblem: Ray is not installed, or the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported, and by what it starts
    # Ray Data shares the cluster out among drivers, and counts a killed one in for so long: with
    # its own 180 seconds a rerun has nothing to do for three minutes (seen with Ray 2.60).
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    # A run that was stopped leaves a thread behind, which must not join again by itself.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
    except ImportError as err:
        raise EnvironmentProblem(
            f"--engine ray needs Ray ({err}); pip install 'vtag[ray]' here and on every node"
        ) from err
    if ray.is_initialized():
        yield f"Ray as it was connected before ({_size()})"
        return
    address = _address(address)
    started = starts_here(address)
    here: dict[str, Any] = {
        "num_cpus": usable_cores(),
        "object_store_memory": LOCAL_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(here if started else {}),
        )
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as err:
        first_line = str(err).strip().partition("\n")[0]
        raise EnvironmentProblem(
            f"Ray at {address} can not be joined ({first_line}); check --ray-address"
        ) from err
    try:
        yield f"{'started Ray here' if started else f'joined Ray at {address}'} ({_size()})"
    finally:
        # What was abandoned by a stop complains of its end.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.shutdown()


def _address(asked: str | None) -> str:
    return asked or os.environ.get("RAY_ADDRESS") or "local"


def starts_here(address: str | None) -> bool:
    """Whether `joined_ray` starts a Ray of this machine alone, which no other will join."""
    return _address(address) == "local"


def _size() -> str:
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    have = ray.cluster_resources()
    return f"{nodes} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
