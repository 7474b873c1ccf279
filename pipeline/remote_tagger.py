"""From a source to its record, wherever it lies: the step that one machine and a cluster share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vtag.errors import MediaError
from vtag.records import Record
from vtag.remote_cache import RemoteFeatureCache, SharedIds
from vtag.remote_errors import RemoteError, media_error
from vtag.remote_spool import Spool
from vtag.sources import Source
from vtag.tagger import Pipeline


class Done(Protocol):
    """What the output holds already: `vtag.results.ResultsWriter`, `vtag.parts.PartResults`."""

    def done(self, path: str, content_id: str | None) -> bool: ...

    def done_as(self, path: str, stamp: str | None) -> bool: ...


class Memo(Protocol):
    """Which content a remote object had under a stamp: `vtag.content_id.ContentIds`."""

    def recall(self, name: str, stamp: str) -> str | None: ...

    def remember(self, name: str, stamp: str, content_id: str) -> None: ...


class SourceTagger:
    """Tags local and remote inputs with one pipeline; any number of threads.

    A remote object is fetched only when it has to be decoded: what the output holds is told by
    its stamp (size, etag, date), and what the feature cache holds by the memo, which knows the
    content that a stamp stands for.

    Args:
        pipeline: what tags one file.
        spool: where remote objects lie meanwhile, or what makes it when it is first needed;
            None: the usual one.
        memo: None: that of the pipeline's cache.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        spool: Spool | Callable[[], Spool] | None = None,
        *,
        memo: Memo | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._spool = spool if isinstance(spool, Spool) else None
        self._make_spool = Spool if spool is None or isinstance(spool, Spool) else spool
        self._guard = threading.Lock()
        self._memo: Memo = memo or _memo_of(pipeline)

    @property
    def spool(self) -> Spool:
        """The spool, made now if it was not before."""
        with self._guard:
            if self._spool is None:
                self._spool = self._make_spool()
            return self._spool

    def close(self) -> None:
        """Removes the spool."""
        if self._spool is not None:
            self._spool.close()

    def tag(self, source: Source) -> Record:
        """The record of an input, a failed one when it can not be used or fetched."""
        if source.remote is None:
            return self.pipeline.try_tag(source.path)
        found = self.tag_unless_done(source, _NothingDone())
        assert isinstance(found, Record)
        return found

    def tag_unless_done(self, source: Source, results: Done) -> Record | str:
        """The record of an input, or its path when the output has a record of it already.

        The content decides and not the name alone: an input that was replaced is tagged again.
        """
        if source.remote is None:
            return self._local_unless_done(source.path, results)
        path = source.path
        if results.done_as(path, source.stamp):
            return path
        try:
            source = self.spool.look(source)
        except RemoteError as err:
            # What can not be read is known by its path: a storage that is away for an hour must
            # not turn its tags into failures.
            if results.done(path, None):
                return path
            return self.pipeline.failed(path, media_error(path, err))
        if results.done_as(path, source.stamp):
            return path
        known = self._memo.recall(path, source.stamp) if source.stamp else None
        if known is not None:
            if results.done(path, known):
                return path
            record = self.pipeline.tag_cached(path, known)
            if record is not None:
                return replace(record, source=source.facts)
        return self._fetch_and_tag(source, results)

    def _local_unless_done(self, path: str, results: Done) -> Record | str:
        try:
            content_id = self.pipeline.content_id(Path(path))
        except MediaError as err:
            return path if results.done(path, None) else self.pipeline.failed(path, err)
        if results.done(path, content_id):
            return path
        return self.pipeline.try_tag(path, content_id)

    def _fetch_and_tag(self, source: Source, results: Done) -> Record | str:
        started = time.perf_counter()
        path = source.path
        try:
            with self.spool.fetch(source) as got:
                if got.source.stamp:
                    self._memo.remember(path, got.source.stamp, got.content_id)
                if results.done(path, got.content_id):
                    return path
                record = self.pipeline.try_tag(got.path, got.content_id)
        except MediaError as err:
            return replace(self.pipeline.failed(path, err), source=source.facts)
        total = time.perf_counter() - started
        return _public(record, got.path, got.source, got.seconds, total)


def _public(
    record: Record, local: Path, source: Source, fetch_seconds: float, total_seconds: float
) -> Record:
    """The record with the source's public name in place of its file in the spool."""
    error = record.error
    if error is not None:
        error = replace(error, message=error.message.replace(str(local), source.path))
    timing = dict(record.timing)
    if timing:
        timing["hash"] = 0.0  # it was made of the bytes as they came
        timing = {"fetch": round(fetch_seconds, 4), **timing, "total": round(total_seconds, 4)}
    return replace(
        record,
        path=source.path,
        source=source.facts,
        error=error,
        timing=timing,
        warnings=tuple(text.replace(str(local), source.path) for text in record.warnings),
    )


def _memo_of(pipeline: Pipeline) -> Memo:
    if isinstance(pipeline.cache, RemoteFeatureCache):
        return SharedIds(pipeline.content_ids, pipeline.cache)
    return pipeline.content_ids


class _NothingDone:
    def done(self, path: str, content_id: str | None) -> bool:
        return False

    def done_as(self, path: str, stamp: str | None) -> bool:
        return False
