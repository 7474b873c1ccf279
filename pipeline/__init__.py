"""vtag tags videos by what is seen and heard in them, offline.

>>> from vtag import Pipeline
>>> record = Pipeline().tag("clip.mp4")  # doctest: +SKIP
>>> [tag.name for tag in record.tags]  # doctest: +SKIP
['dog', 'golden retriever']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtag.errors import (
    CacheError,
    ConfigError,
    EnvironmentProblem,
    MediaError,
    OutputError,
    VtagError,
    WeightsError,
)

if TYPE_CHECKING:
    from vtag.config import Sampling, Selection
    from vtag.records import Evidence, Failure, Media, Record, Segment, Tag
    from vtag.tagger import Pipeline

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "ConfigError",
    "EnvironmentProblem",
    "Evidence",
    "Failure",
    "Media",
    "MediaError",
    "OutputError",
    "Pipeline",
    "Record",
    "Sampling",
    "Segment",
    "Selection",
    "Tag",
    "VtagError",
    "WeightsError",
    "__version__",
]

# The decode child imports vtag too, and must start in a fraction of a second and without
# torch. So the names that need more are looked up when they are first asked for.
_LAZY = {
    "Pipeline": "vtag.tagger",
    "Sampling": "vtag.config",
    "Selection": "vtag.config",
    **dict.fromkeys(["Evidence", "Failure", "Media", "Record", "Segment", "Tag"], "vtag.records"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vtag' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
