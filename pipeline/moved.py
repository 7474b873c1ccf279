"""Folders that change between runs: what moved keeps its tags, what is gone is named.

A file is known by its content. When it has a new name its record is repeated under that name,
without decoding anything; the record of the old name leaves once nothing has that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

from vtag.records import (
    Corrected,
    Evidence,
    Failure,
    Media,
    ModelInfo,
    Record,
    Segment,
    SourceFacts,
    Tag,
)
from vtag.stdout_results import Counts

Made = TypeVar("Made")


class KnownResults(Protocol):
    """Results that can be read again: `vtag.results.ResultsWriter` or `StdoutResults`."""

    @property
    def counts(self) -> Counts: ...

    def done(self, path: str, content_id: str | None) -> bool: ...

    def done_as(self, path: str, stamp: str | None) -> bool: ...

    def failed(self, path: str) -> bool: ...

    def write(self, record: Record) -> None: ...

    def of_content(self, content_id: str) -> dict[str, Any] | None: ...

    def each(self) -> Iterator[dict[str, Any]]: ...

    def drop(self, predicate: Callable[[dict[str, Any]], bool]) -> int: ...


@dataclass(frozen=True)
class Gone:
    """Paths that have a record, and are no inputs any more.

    Attributes:
        moved: the same content has a record under another name, where there is a file.
        deleted: all others.
        stale: failures of what is no input any more.
    """

    moved: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


class Library:
    """The results of a run, with a memory of which inputs it met; itself results for `run`.

    Args:
        results: where the records are.
    """

    def __init__(self, results: KnownResults) -> None:
        self._results = results
        self._met: set[str] = set()  # inputs of this run that have a record
        # Old names of what was repeated: gone, or another way to write the new one.
        self._left: set[str] = set()

    def done(self, path: str, content_id: str | None) -> bool:
        """Whether this input, with this content, has its record."""
        found = self._results.done(path, content_id)
        if found and "://" not in path:
            self._met.add(path)
        return found

    def done_as(self, path: str, stamp: str | None) -> bool:
        """Whether this remote input has its record. Only what lies here is looked for later."""
        return self._results.done_as(path, stamp)

    def failed(self, path: str) -> bool:
        """Whether the record of this path is a failed one."""
        return self._results.failed(path)

    def write(self, record: Record) -> None:
        """Adds the record of one input."""
        self._results.write(record)
        if "://" not in record.path:
            self._met.add(record.path)

    def earlier(self, path: str, content_id: str) -> Record | None:
        """The record that `path` gets because a file of the same content was tagged before.

        Its tags are those of that time, also where this run has another `--threshold`: just
        as a file that kept its name keeps its record.
        """
        fields_ = self._results.of_content(content_id)
        record = record_from(fields_) if fields_ else None
        if record is None or not record.ok:
            return None
        if record.path != path and (is_gone(record.path) or _is_same_path(record.path, path)):
            self._left.add(record.path)
        return replace(record, path=path, timing={})

    def unmeet(self, paths: Iterable[str]) -> None:
        """These were met, and are gone since."""
        self._met.difference_update(paths)

    def gone(self, sources: Sequence[str]) -> Gone:
        """The records of files that are no longer there.

        Only what this run would have met is looked for: paths that begin with one of
        `sources`, and that were not met. A source that is not there itself, or that gave no
        input at all, says nothing of its files: a disk may be missing.

        Stale are failures of what is no input any more: a folder that could not be read and now
        can, a name that was never there beside files that are.
        """
        counts = self._results.counts
        if not self._left and len(self._met) == counts.ok + counts.failed:
            return Gone()  # every record is of an input that was met
        roots = [os.path.normpath(source) for source in sources if os.path.isdir(source)]
        roots = [root for root in roots if any(is_under(path, root) for path in self._met)]
        lost: dict[str, str | None] = {}
        stale: list[str] = []
        beside = {os.path.dirname(path) for path in self._met}
        for fields_ in self._results.each():
            path = fields_["path"]
            if fields_["status"] == "failed" and path not in self._met:
                walked = any(path == root or is_under(path, root) for root in roots)
                never = fields_["id"] is None and is_gone(path) and os.path.dirname(path) in beside
                if never or (walked and os.path.isdir(path)):
                    stale.append(path)
                    continue
            here = any(is_under(path, root) for root in roots) and is_gone(path)
            if (here or path in self._left) and path not in self._met:
                lost[path] = fields_["id"]
        if not lost:
            return Gone(stale=tuple(stale))
        contents = {content_id for content_id in lost.values() if content_id}
        elsewhere = {
            fields_["id"]
            for fields_ in self._results.each()
            if fields_["id"] in contents
            and fields_["path"] not in lost
            and not is_gone(fields_["path"])
        }
        moved = tuple(path for path, content in lost.items() if content in elsewhere)
        deleted = tuple(path for path in lost if path not in set(moved))
        return Gone(moved, deleted, tuple(stale))

    def forget(self, paths: Collection[str]) -> int:
        """How many records left the output: those of these paths."""
        wanted = set(paths)
        return self._results.drop(lambda fields_: fields_["path"] in wanted) if wanted else 0


def is_under(path: str, root: str) -> bool:
    """Whether `path` is in the folder `root`, by their names (both as they were written)."""
    if root == os.curdir:
        return not os.path.isabs(path) and path.split(os.sep, 1)[0] != os.pardir
    return path.startswith(root if root.endswith(os.sep) else root + os.sep)


def _is_same_path(one: str, other: str) -> bool:
    """Whether both lead to one place, by their names: "b/x.mp4" and "/home/me/b/x.mp4"."""
    return "://" not in one + other and os.path.abspath(one) == os.path.abspath(other)


def is_gone(path: str) -> bool:
    """Whether nothing has this name; False when that can not be told (a disk that fails)."""
    if "://" in path:  # an address on the network
        return False
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def record_from(fields_: Mapping[str, Any]) -> Record | None:
    """The record of which `Record.to_dict` gave these fields; None if they are not such.

    Fields that this version does not know are left out.
    """
    try:
        media, model, error = (fields_.get(name) for name in ("media", "model", "error"))
        return Record(
            path=fields_["path"],
            status=fields_["status"],
            id=fields_["id"],
            media=None if media is None else Media.from_dict(media),
            tags=tuple(_tag(tag) for tag in fields_["tags"]),
            model=None if model is None else _made(ModelInfo, model),
            timing=dict(fields_["timing"]),
            warnings=tuple(fields_["warnings"]),
            error=None if error is None else _made(Failure, error),
            corrections=_corrected(fields_.get("corrections")),
            source=_source(fields_.get("source")),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _tag(fields_: Mapping[str, Any]) -> Tag:
    lists: dict[str, Any] = {
        "categories": tuple(fields_["categories"]),
        "sources": tuple(fields_["sources"]),
        "segments": tuple(_made(Segment, segment) for segment in fields_["segments"]),
        "evidence": tuple(_made(Evidence, evidence) for evidence in fields_["evidence"]),
    }
    return _made(Tag, {**fields_, **lists})


def _corrected(fields_: Mapping[str, Any] | None) -> Corrected | None:
    if fields_ is None:
        return None
    removed = tuple(_tag(tag) for tag in fields_["removed"])
    return Corrected(
        time=fields_["time"],
        removed=removed,
        added=tuple(fields_["added"]),
        removed_at=tuple(fields_.get("removed_at", ())),
    )


def _source(fields_: Mapping[str, Any] | None) -> SourceFacts | None:
    return None if fields_ is None else _made(SourceFacts, fields_)


def _made(kind: Callable[..., Made], fields_: Mapping[str, Any]) -> Made:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in fields_.items() if name in names})
