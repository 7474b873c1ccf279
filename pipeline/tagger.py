"""The front door: `Pipeline` turns a file into a record of tags."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import torch

from vtag.cache import FeatureCache, default_cache_folder
from vtag.config import Sampling, Selection
from vtag.content_id import ContentIds
from vtag.errors import MediaError
from vtag.extractors import build_extractor
from vtag.features import ClipFeatures, FeatureMaker, fingerprint_of
from vtag.head import DEFAULT_MODEL, Head, load_head
from vtag.records import Failure, Record, Tag
from vtag.stream import in_order

log = logging.getLogger(__name__)


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
        cache: folder where features are kept for the next time, or True for the usual one;
            None keeps nothing.
        batch_size: frames per network pass; None for the extractor's own.

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
    ) -> None:
        self.head = load_head(model)
        self.device = resolve_device(device)
        self.sampling = sampling
        self.selection = selection
        self.cache = _open_cache(cache)
        extractors = {
            stream: build_extractor(name, device=self.device, batch_size=batch_size)
            for stream, name in self.head.extractor_names.items()
        }
        self.head.check_extractors({s: fingerprint_of(e) for s, e in extractors.items()})
        memo = self.cache.root if self.cache else None
        self._maker = FeatureMaker(
            extractors, sampling=sampling, cache=self.cache, content_ids=ContentIds(memo)
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
        return self._tag(path, None)

    def tag_many(self, paths: Iterable[str | Path], *, workers: int = 1) -> Iterator[Record]:
        """A record per path, lazily and in order; a file that can not be used gives a failed one.

        Args:
            paths: the files.
            workers: how many files at once; each has a decode child of its own.
        """
        return in_order(self.try_tag, paths, workers=workers)

    def try_tag(self, path: str | Path, content_id: str | None = None) -> Record:
        """The record of one file, a failed one when it can not be used."""
        try:
            content_id = content_id or self.content_id(Path(path))
            return self._tag(path, content_id)
        except MediaError as err:  # not Exception: a bug must not look like a bad video
            return self.failed(path, err, content_id)

    def failed(self, path: str | Path, err: MediaError, content_id: str | None = None) -> Record:
        """The record of a file that can not be used."""
        log.info("%s", err)
        failure = Failure(code=err.code, stage=err.stage, message=str(err), retryable=err.retryable)
        return Record(
            path=str(path), status="failed", id=content_id, error=failure, model=self.head.info
        )

    def _tag(self, path: str | Path, content_id: str | None) -> Record:
        started = time.perf_counter()
        clip = self._maker.features_of(Path(path), content_id)
        if not any(len(features.rows) for features in clip.streams.values()):
            raise _nothing_to_read(path, clip, self.head)
        head_started = time.perf_counter()
        tags = self.tags_of(clip)
        finished = time.perf_counter()
        timing = {**clip.timing, "head": finished - head_started, "total": finished - started}
        return Record(
            path=str(path),
            status="ok",
            id=clip.content_id,
            media=clip.media,
            tags=tags,
            model=self.head.info,
            timing={stage: round(seconds, 4) for stage, seconds in timing.items()},
            warnings=(*clip.warnings, *self.head.notes(clip.streams)),
        )

    def tags_of(self, clip: ClipFeatures) -> tuple[Tag, ...]:
        """The tags of features that are there already, best first."""
        end = clip.media.duration
        return self.head.tags(dict(clip.streams), end_seconds=end, selection=self.selection)


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


def _open_cache(cache: str | Path | bool | FeatureCache | None) -> FeatureCache | None:
    if cache is None or cache is False:
        return None
    if isinstance(cache, FeatureCache):
        return cache
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
