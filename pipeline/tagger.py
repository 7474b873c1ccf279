"""The front door: `Pipeline` turns a file into a record of tags."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

import torch

from vtag.cache import FeatureCache, default_cache_folder
from vtag.config import BackendName, PrecisionName, Sampling, Selection
from vtag.content_id import ContentIds
from vtag.errors import ConfigError, MediaError
from vtag.extractors import FrameExtractor, build_extractor
from vtag.extractors.batches import GPU_BATCH
from vtag.features import ClipFeatures, FeatureMaker, fingerprint_of
from vtag.head import DEFAULT_MODEL, Head, load_head
from vtag.records import Failure, Record, Tag, precision_of
from vtag.remote_cache import RemoteFeatureCache
from vtag.shared_batches import shared
from vtag.stream import in_order
from vtag.uris import is_remote

log = logging.getLogger(__name__)

# Rows that the head is given at once: two passes over windows of one row. More saves no time.
ROWS_AT_ONCE: Final = 512


class Pipeline:
    """Tags videos: decode, features, learnable pooling, tags.

    Usable from a plain script, a notebook or several threads; decoding happens in child
    processes that do not run the script again. Close it, or use it in a `with`, to end them
    early; they end with the process in any case.

    Args:
        model: name of an embedded model, or a folder that `vtag train` wrote.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1" or "mps".
        sampling: which frames are looked at.
        selection: which labels become tags.
        cache: folder where features are kept for the next time (an s3:// or gs:// address is
            one too), or True for the usual one; None keeps nothing.
        batch_size: frames per network pass; None for the extractor's own.
        backend: what computes on a CPU: "torch" (also "auto"), or "openvino", which gives the
            same scores (1e-4) in less time.
        precision: "fp32"; on a CPU "int8", on a CUDA device "fp16" or "bf16": faster, with
            scores a little off and features kept apart. "auto" is fp32, on CUDA fp16.
        frames: the extractor of pictures, in place of one that is made here.

    Raises:
        WeightsError: the model or its weights are missing or damaged.
        EnvironmentProblem: the device is not there.
        CacheError: the cache folder can not be used.

    >>> with Pipeline() as pipeline:  # doctest: +SKIP
    ...     for record in pipeline.tag_many(["a.mp4", "b.mkv"]):
    ...         print(record.path, [tag.name for tag in record.tags])
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        sampling: Sampling = Sampling(),  # noqa: B008  frozen: safe as a default
        selection: Selection = Selection(),  # noqa: B008
        cache: str | Path | bool | FeatureCache | None = None,
        batch_size: int | None = None,
        backend: BackendName = "auto",
        precision: PrecisionName = "auto",
        frames: FrameExtractor | None = None,
    ) -> None:
        self.head = load_head(model)
        self.head.check_selection(selection)
        self.device = resolve_device(device)
        self.sampling = sampling
        self.selection = selection
        self.cache = _open_cache(cache)
        extractors = {
            stream: frames
            if frames is not None and stream == frames.stream
            else build_extractor(
                name,
                device=self.device,
                batch_size=batch_size,
                backend=backend,
                precision=precision,
            )
            for stream, name in self.head.extractor_names.items()
        }
        made_by = {stream: fingerprint_of(e) for stream, e in extractors.items()}
        self.head.check_extractors(made_by)
        self._model = replace(self.head.info, precision=precision_of(made_by.get("visual", "")))
        extractors = shared(extractors, batch_size=batch_size or GPU_BATCH)
        memo = self.cache.root if self.cache else None
        self._maker = FeatureMaker(
            extractors,
            sampling=sampling,
            cache=self.cache,
            content_ids=ContentIds(memo),
            device=self.device,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: object) -> Pipeline:
        """A pipeline with the model of a folder; `options` as for `Pipeline`."""
        return cls(folder, **options)  # type: ignore[arg-type]

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pipeline holds networks and processes; make one in each process")

    def close(self) -> None:
        """Ends the decode children; the pipeline can be used again and starts new ones."""
        self._maker.close()

    def content_id(self, path: Path) -> str:
        """The content id of a file; raises MediaError when it can not be read."""
        return self._maker.content_ids.of(path)

    def features(self, path: str | Path) -> ClipFeatures:
        """The feature rows of a file; raises MediaError when it can not be used."""
        return self._maker.features_of(Path(path))

    def tag(self, path: str | Path) -> Record:
        """The record of one file.

        Raises:
            MediaError: the file can not be used; `tag_many` gives a failed record instead.
        """
        _refuse_address(path)
        return self._tag(path, None)

    def tag_many(self, paths: Iterable[str | Path], *, workers: int = 1) -> Iterator[Record]:
        """A record per path, lazily and in order; a file that can not be used gives a failed one.

        After the last one all features are in the cache, for another pipeline to find.

        Args:
            paths: the files.
            workers: how many files at once; each has a decode child of its own.
        """
        if isinstance(paths, str | bytes | Path):
            raise ConfigError(f"tag_many takes several paths, got {paths!r}; for one there is tag")
        yield from in_order(self.try_tag, paths, workers=workers)
        self._maker.flush()

    def try_tag(self, path: str | Path, content_id: str | None = None) -> Record:
        """The record of one file, a failed one when it can not be used."""
        try:
            if content_id is None:
                _refuse_address(path)
                content_id = self.content_id(Path(path))
            return self._tag(path, content_id)
        except MediaError as err:  # not Exception: a bug must not look like a bad video
            return self.failed(path, err, content_id)

    def failed(self, path: str | Path, err: MediaError, content_id: str | None = None) -> Record:
        """The record of a file that can not be used."""
        log.info("%s", err)
        failure = Failure(code=err.code, stage=err.stage, message=str(err), retryable=err.retryable)
        return Record(
            path=str(path), status="failed", id=content_id, error=failure, model=self._model
        )

    @property
    def frames(self) -> FrameExtractor | None:
        """The network that looks at pictures; None for a model that only listens."""
        found = self._maker.extractors.get("visual")
        return found if found is not None and found.stream == "visual" else None

    @property
    def content_ids(self) -> ContentIds:
        """The content ids that this pipeline remembers."""
        return self._maker.content_ids

    def tag_cached(self, path: str | Path, content_id: str) -> Record | None:
        """The record of a content that the feature cache knows, without its file; else None."""
        started = time.perf_counter()
        clip = self._maker.cached_features(content_id)
        if clip is None:
            return None
        try:
            return self._record(path, clip, started)
        except MediaError as err:
            return self.failed(path, err, content_id)

    def tag_known(self, inputs: Sequence[tuple[str, str]]) -> list[Record | None]:
        """The record of each (path, content id) that the feature cache has all of; else None.

        Nothing is decoded, and the head runs over the rows of several videos at once: to the
        last bit the tags of `try_tag`.
        """
        records: list[Record | None] = [None] * len(inputs)
        some: dict[int, ClipFeatures] = {}
        rows = 0
        for at, (_, content_id) in enumerate(inputs):
            clip = self._maker.cached_features(content_id)
            if clip is not None:
                some[at] = clip
                rows += sum(len(features.rows) for features in clip.streams.values())
            if rows >= ROWS_AT_ONCE or (some and at == len(inputs) - 1):
                for place, record in zip(
                    some, self._records([(inputs[i][0], some[i]) for i in some]), strict=True
                ):
                    records[place] = record
                some, rows = {}, 0
        return records

    def _records(self, clips: Sequence[tuple[str, ClipFeatures]]) -> list[Record]:
        """The records of features that were in the cache."""
        started = time.perf_counter()
        readable = [clip for _, clip in clips if _has_rows(clip)]
        tags = iter(
            self.head.tags_of_many(
                [(dict(clip.streams), clip.media.duration) for clip in readable],
                selection=self.selection,
            )
        )
        share = (time.perf_counter() - started) / max(len(readable), 1)
        timing = {"hash": 0.0, "head": share, "total": share}
        return [
            self._ok(path, clip, next(tags), timing)
            if _has_rows(clip)
            else self.failed(path, _nothing_to_read(path, clip, self.head), clip.content_id)
            for path, clip in clips
        ]

    def _tag(self, path: str | Path, content_id: str | None) -> Record:
        started = time.perf_counter()
        clip = self._maker.features_of(Path(path), content_id)
        return self._record(path, clip, started)

    def _record(self, path: str | Path, clip: ClipFeatures, started: float) -> Record:
        if not _has_rows(clip):
            raise _nothing_to_read(path, clip, self.head)
        head_started = time.perf_counter()
        tags = self.tags_of(clip)
        finished = time.perf_counter()
        timing = {**clip.timing, "head": finished - head_started, "total": finished - started}
        return self._ok(path, clip, tags, timing)

    def _ok(
        self,
        path: str | Path,
        clip: ClipFeatures,
        tags: tuple[Tag, ...],
        timing: Mapping[str, float],
    ) -> Record:
        return Record(
            path=str(path),
            status="ok",
            id=clip.content_id,
            media=clip.media,
            tags=tags,
            model=self._model,
            timing={stage: round(seconds, 4) for stage, seconds in timing.items()},
            warnings=(*clip.warnings, *self.head.notes(clip.streams)),
        )

    def tags_of(self, clip: ClipFeatures) -> tuple[Tag, ...]:
        """The tags of features that are there already, best first."""
        end = clip.media.duration
        return self.head.tags(dict(clip.streams), end_seconds=end, selection=self.selection)


def _has_rows(clip: ClipFeatures) -> bool:
    return any(len(features.rows) for features in clip.streams.values())


def resolve_device(device: str) -> str:
    """The device to use; "auto" becomes the best one that is there.

    A device that is asked for by name is checked where the network is put on it.
    """
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _refuse_address(path: str | Path) -> None:
    if is_remote(os.fspath(path)):
        raise MediaError(
            f"{path}: is an address and no file; vtag run reads it, or fetch it first",
            code="vanished",
        )


def _open_cache(cache: str | Path | bool | FeatureCache | None) -> FeatureCache | None:
    if cache is None or cache is False:
        return None
    if isinstance(cache, FeatureCache):
        return cache
    if cache == "":
        raise ConfigError("the cache is a folder, got an empty name; False keeps nothing")
    if isinstance(cache, str) and is_remote(cache):
        return RemoteFeatureCache(cache)
    return FeatureCache(default_cache_folder() if cache is True else Path(cache))


def _nothing_to_read(path: str | Path, clip: ClipFeatures, head: Head) -> MediaError:
    media = clip.media
    streams = {"pictures": media.has_video, "sound": media.has_audio}
    has = [stream for stream, there in streams.items() if there]
    reads = {"visual": "pictures", "audio": "sound"}
    wanted = " and ".join(reads.get(stream, stream) for stream in head.extractor_names)
    return MediaError(
        f"{path}: holds {' and '.join(has) or 'neither pictures nor sound'} only, and the model "
        f"{head.info.name} reads {wanted}",
        code="no_usable_stream" if has else "no_video_no_audio",
        stage="probe",
    )
