"""How large the numbers inside a network get: what int8 needs to know and weights do not tell.

tools/make_int8_ranges.py measures them; they belong to one file of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vtag.errors import ConfigError
from vtag.extractors.base import fingerprint_of_parts
from vtag.weights import embedded_folder

# Part of every fingerprint. Raise it when the same ranges begin to give other rows.
INT8_VERSION: Final = 1


@dataclass(frozen=True)
class Int8Ranges:
    """Largest magnitudes met inside ResNet-50, all above 0.

    Attributes:
        blocks: for each of the 16 blocks, behind `a`, `b`, `shortcut` (where it projects) and the
            block's end. The first block is not computed in int8 and has an end only; the last
            one's end is what the mean is taken of, stays in fp32 too and is left out.
        frames: how many pictures were looked at.
    """

    blocks: tuple[dict[str, float], ...]
    frames: int

    def __post_init__(self) -> None:
        values = [value for block in self.blocks for value in block.values()]
        if not all(value > 0 for value in values) or len(self.blocks) != 16 or self.frames < 1:
            raise ValueError(f"not the ranges of a ResNet-50: {self!r:.200}")

    def fingerprint(self) -> str:
        """6 hex digits that change with any of the numbers, and with how they are used."""
        return fingerprint_of_parts({"blocks": self.blocks, "version": INT8_VERSION})[:6]


def ranges_file(name: str) -> Path:
    """Where the ranges of an extractor lie in the package, if it has any."""
    return embedded_folder() / f"{name}_int8.json"


def load_ranges(name: str, *, weights_sha256: str) -> Int8Ranges:
    """The ranges of extractor `name`.

    Raises:
        ConfigError: none were measured for these weights.
    """
    file = ranges_file(name)
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if facts.get("weights_sha256") != weights_sha256:
        raise ConfigError(
            f"int8 is not there for these weights of {name}: how large its numbers get was "
            "measured for the embedded resnet50 only; use --precision fp32"
        )
    return Int8Ranges(tuple(facts["blocks"]), facts["frames"])
