"""What flows through vtag. Frozen records that check themselves when made.

Letters of shapes, the same everywhere: B batch, T frames (rows in time), S sound segments,
D feature size, K clusters, C labels, N samples, H W pixels. Times are in seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

SCHEMA: Final = (
    1  # of the JSON record; a field may be added within a number, never change its meaning
)

Stream = Literal["visual", "audio"]

MADE_BY_FILE: Final = "file:"  # and the stream's name: what a model says of rows from files


@dataclass(frozen=True, kw_only=True)
class Media:
    """What a file holds. Facts come from its packets where a header may lie."""

    duration: float  # seconds, from the first to the end of the last picture (or sound)
    fps: float | None = None  # average frames per second; None without pictures
    width: int | None = None  # pixels as shown, after rotation
    height: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None
    has_video: bool = False
    has_audio: bool = False
    corrupt_frames: int = 0  # damaged packets or pictures met while decoding
    decoder: str | None = None  # which one served the pictures: "decord", "pyav" or "torchcodec"
    sampled_frames: int = 0  # times at which the network looked

    def to_dict(self) -> dict[str, Any]:
        """The `media` object of a record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: object) -> Media:
        """What `to_dict` gave; raises ValueError when a field is missing or of another type."""
        if not isinstance(facts, dict) or set(facts) != {f.name for f in fields(cls)}:
            raise ValueError(f"not the facts of a file: {facts!r:.200}")
        for field_ in fields(cls):
            value, kinds = facts[field_.name], str(field_.type)
            known: dict[str, tuple[type, ...]] = {
                "float": (int, float),
                "int": (int,),
                "str": (str,),
                "bool": (bool,),
            }
            fits = isinstance(value, known[kinds.split(" ")[0]])
            if not fits and not (value is None and kinds.endswith("None")):
                raise ValueError(f"{field_.name} of a file is {kinds}, not {value!r:.80}")
        return cls(**facts)


@dataclass(frozen=True)
class Frames:
    """Some pictures of one video, in order of time.

    Attributes:
        pixels: uint8 [n, H, W, 3], RGB, upright (rotation applied).
        repeats: int64 [n], how many sampled times each picture serves (1 unless the video
            shows one picture longer than the sampling step).
        seconds: float64 [sum(repeats)], the sampled times, strictly rising.
    """

    pixels: NDArray[np.uint8]
    repeats: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise ValueError(
                f"pixels must be uint8 [n, H, W, 3], got {self.pixels.dtype} {self.pixels.shape}"
            )
        if self.repeats.shape != (len(self.pixels),) or (self.repeats < 1).any():
            raise ValueError(f"repeats must be {len(self.pixels)} counts of 1 or more")
        if self.seconds.shape != (int(self.repeats.sum()),):
            raise ValueError(f"seconds must be [{self.repeats.sum()}], got {self.seconds.shape}")
        if (np.diff(self.seconds) <= 0).any():
            raise ValueError("seconds must rise strictly")

    def __repr__(self) -> str:
        return f"Frames({self.pixels.shape = }, {self.seconds.shape = })"


@dataclass(frozen=True)
class Sound:
    """A stretch of mono sound.

    Attributes:
        samples: float32 [N] in [-1, 1] at 16 kHz.
        start: seconds on the video's clock of the first sample.
    """

    samples: NDArray[np.float32]
    start: float

    def __post_init__(self) -> None:
        if self.samples.dtype != np.float32 or self.samples.ndim != 1:
            raise ValueError(
                f"samples must be float32 [N], got {self.samples.dtype} {self.samples.shape}"
            )

    def __repr__(self) -> str:
        return f"Sound({self.samples.shape = }, {self.start = })"


@dataclass(frozen=True)
class Features:
    """Rows that one extractor made of one stream of one video.

    Attributes:
        rows: float16 [T, D]. Half precision on purpose: it is what the cache keeps, so that
            a cold and a warm run give the same scores to the last bit.
        seconds: float64 [T], the time of each row.
        made_by: fingerprint of the extractor.
    """

    rows: NDArray[np.float16]
    seconds: NDArray[np.float64]
    made_by: str

    def __post_init__(self) -> None:
        if self.rows.dtype != np.float16 or self.rows.ndim != 2:
            raise ValueError(
                f"rows must be float16 [T, D], got {self.rows.dtype} {self.rows.shape}"
            )
        if self.seconds.dtype != np.float64 or self.seconds.shape != (len(self.rows),):
            raise ValueError(
                f"seconds must be float64 [{len(self.rows)}], "
                f"got {self.seconds.dtype} {self.seconds.shape}"
            )

    def __repr__(self) -> str:
        return f"Features({self.rows.shape = }, {self.made_by = })"


def is_of_file(made_by: str) -> bool:
    """Whether rows with this fingerprint come from files and not from an extractor."""
    return made_by.startswith(MADE_BY_FILE)


def network_of(made_by: str) -> str:
    """`made_by` without the precision behind its "+": which network it was, however computed."""
    return made_by if is_of_file(made_by) else made_by.partition("+")[0]


def precision_of(made_by: str) -> str:
    """The precision in which rows were computed, such as "int8"; "fp32" where none is named."""
    named = "" if is_of_file(made_by) else made_by.partition("+")[2]
    return named.partition("-")[0] or "fp32"


@dataclass(frozen=True)
class Segment:
    """A stretch of the video in which a tag's score is above its threshold: [start, end)."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Evidence:
    """A moment that carried a tag; the weights of one tag add up to 1 at most."""

    time: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One label that the video got."""

    id: str  # WordNet id (n02099601), AudioSet id (/m/0bt9lr), or the name of a label of your own
    name: str
    score: float  # 0..1
    threshold: float  # the score from which this label counts
    categories: tuple[str, ...] = ()  # names of its parents, nearest first
    sources: tuple[Stream, ...] = ()  # what it was found in
    segments: tuple[Segment, ...] = ()
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """What a person changed about the tags of a record."""

    time: str  # when it was said, ISO 8601
    removed: tuple[Tag, ...] = ()  # as the model gave them
    added: tuple[str, ...] = ()  # ids of the tags that the person gave
    removed_at: tuple[int, ...] = ()  # their places among the tags that the model gave, rising


@dataclass(frozen=True)
class ModelInfo:
    """Which model gave the tags."""

    name: str
    fingerprint: str  # changes with any weight, label or threshold
    labels: int  # how many labels it knows
    precision: str = "fp32"  # in which its pictures were seen; "int8" scores differ a little


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there are no tags; `code` is one of `vtag.errors.ERROR_CODES`."""

    code: str
    stage: str
    message: str
    retryable: bool


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a storage said of an object when it was read. Only of inputs in remote storage."""

    size: int | None  # bytes
    etag: str | None  # the storage's word for this content
    modified: float | None  # seconds since the epoch of its last change

    @property
    def stamp(self) -> str | None:
        """All that can be told of a content without reading it, as one word; None if nothing."""
        if self.etag is None and self.modified is None:
            return None
        return f"{self.etag or ''}:{self.size}:{self.modified or ''}"


def stamp_of(record: dict[str, Any]) -> str | None:
    """The stamp of the source that a record's JSON object is about; None of a local file."""
    facts = record.get("source")
    if not isinstance(facts, dict):
        return None
    return SourceFacts(
        size=facts.get("size"), etag=facts.get("etag"), modified=facts.get("modified")
    ).stamp


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result for one input: one line of the output, failures included."""

    path: str
    status: Literal["ok", "failed"]
    id: str | None = None  # "sha256:…" of the file's bytes; None if they could not be read
    media: Media | None = None
    tags: tuple[Tag, ...] = ()  # best first
    model: ModelInfo | None = None
    timing: dict[str, float] = field(default_factory=dict)  # seconds per stage
    warnings: tuple[str, ...] = ()
    error: Failure | None = None
    corrections: Corrected | None = None
    source: SourceFacts | None = None  # of an input in remote storage

    def __post_init__(self) -> None:
        if (self.status == "failed") != (self.error is not None):
            raise ValueError(f"a failed record has an error and no other has one: {self!r}")

    @property
    def ok(self) -> bool:
        """Whether the input was tagged."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of schema 1; plain lists, dicts, strings and numbers only."""
        extra = {"error": asdict(self.error)} if self.error else {}
        if self.corrections:
            extra["corrections"] = asdict(self.corrections)
        if self.source:
            extra["source"] = asdict(self.source)
        return {
            "schema": SCHEMA,
            "id": self.id,
            "path": self.path,
            "status": self.status,
            "media": self.media.to_dict() if self.media else None,
            "tags": [asdict(tag) for tag in self.tags],
            "model": asdict(self.model) if self.model else None,
            "timing": self.timing,
            "warnings": list(self.warnings),
            **extra,
        }
