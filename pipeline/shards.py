"""Which inputs a shard has, told alike by every shard without asking any other.

Two rules. Without sizes the hash of an input's name decides (`Shard.holds`): nothing has to be
read ahead, and a new input never moves an old one. With sizes the largest go first, each to the
shard that has the least so far (`assign`): longest processing time first, at most 4/3 of the
best possible (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math.
17(2), 1969, theorem 2).
"""

from __future__ import annotations

import hashlib
import heapq
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vtag.errors import ConfigError

# What an input costs besides its bytes or its seconds: asking for it, opening it, its record.
# Without this a thousand empty files would all land on one shard.
BYTES_PER_INPUT: Final = 1 << 20
SECONDS_PER_INPUT: Final = 1.0


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts (from 1) of any set of inputs.

    An input's part is decided by its path inside the folder, so that no part has to read the
    files of another, and parts agree on any machine.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(f"a shard is i/n with 1 <= i <= n, got {self.index}/{self.count}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`Shard.parse("2/8")`; raises ConfigError on anything else."""
        index, slash, count = text.partition("/")
        if not (
            slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()
        ):
            raise ConfigError(f"a shard is written i/n, for example 1/4, got {text!r}")
        return cls(int(index), int(count))

    def holds(self, name: str) -> bool:
        """Whether an input of this name (relative to its folder) belongs to the shard."""
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


@dataclass(frozen=True)
class ShardIdentity:
    """What a file or a folder of results says of itself, so that `vtag merge` can count.

    Attributes:
        shard: which part of the inputs; 1/1 is all of them.
        plan: what was divided: "manifest:…" (a fingerprint of its rows) or "inputs:…" (of the
            names on the command line). Two shards belong together when this is equal.
        model: fingerprint of the model that tags.
    """

    shard: Shard
    plan: str
    model: str

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "index": self.shard.index,
            "count": self.shard.count,
            "plan": self.plan,
            "model": self.model,
        }

    @classmethod
    def from_dict(cls, fields: object) -> ShardIdentity:
        """What `to_dict` gave; raises ValueError on anything else."""
        try:
            if isinstance(fields, dict):
                shard = Shard(int(fields["index"]), int(fields["count"]))
                return cls(shard, str(fields["plan"]), str(fields["model"]))
        except (KeyError, TypeError, ValueError, ConfigError) as err:
            raise ValueError(f"names no shard: {fields!r:.120}") from err
        raise ValueError(f"names no shard: {fields!r:.120}")


def plan_of_names(names: list[str]) -> str:
    """The `plan` of a run over these names on the command line, in any order."""
    digest = hashlib.sha256()
    for name in sorted(os.fsencode(name) for name in names):
        digest.update(len(name).to_bytes(8, "big") + name)
    return f"inputs:{digest.hexdigest()[:16]}"


def name_hash(name: str) -> int:
    """64 bits of a hash of a name, for `assign`."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def weights_of(
    sizes: NDArray[np.float64], durations: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """How much work each input is, float64 [N]; None when nothing is known of any.

    Args:
        sizes: bytes [N], NaN where they are not known.
        durations: seconds [N], NaN likewise. They count where all are known, because decoding
            takes its time by them; else the bytes, with the mean for those that lack them.
    """
    if len(durations) and not np.isnan(durations).any():
        return durations + SECONDS_PER_INPUT
    known = ~np.isnan(sizes)
    if not known.any():
        return None
    return np.where(known, sizes, sizes[known].mean()) + BYTES_PER_INPUT


def assign(
    hashes: NDArray[np.uint64], weights: NDArray[np.float64], count: int
) -> NDArray[np.int32]:
    """The shard of each input, int32 [N], from 0: the heaviest first, to the least loaded.

    The order of the rows does not matter: equal weights go by hash, equal loads to the lower
    number. N log(count) steps; some 20 seconds for ten million inputs.
    """
    order = np.lexsort((hashes, -weights))
    shards = np.empty(len(weights), np.int32)
    loads = [(0.0, number) for number in range(count)]
    for place in order.tolist():
        load, number = loads[0]
        shards[place] = number
        heapq.heapreplace(loads, (load + float(weights[place]), number))
    return shards
