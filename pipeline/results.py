"""The results of a run: one line per input, exactly one, whatever killed the runs before."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from vtag.done_index import DoneIndex, path_key
from vtag.errors import ConfigError, OutputError
from vtag.record_lines import Line, TornTail, line_of, lines, read_records, to_line
from vtag.records import Record
from vtag.run_lock import RunLock
from vtag.stdout_results import Counts, StdoutResults
from vtag.storage import Appender, open_regular, reason, write_whole

__all__ = ["Counts", "ResultsWriter", "StdoutResults", "read_records"]

log = logging.getLogger(__name__)

_READ_BUFFER_BYTES: Final = 1 << 20


class ResultsWriter:
    """The file of results, open for one writer; made or resumed.

    Opening takes the lock, cuts off the torn record that a killed run may have left, gives a
    last record that lacks only its newline that newline, and reads which inputs are done. An
    input is done when its pair of path and content id has a record, failed ones included.

    Keeps some 350 bytes of memory per record of the file.

    Args:
        out: the file; its parent folders are made.
        model_fingerprint: of the model that will tag. A file with tags of another model is
            refused, since nobody could tell the two apart later. None: not compared.

    Raises:
        ConfigError: `out` is a folder, a device or a pipe.
        OutputError: another run writes it, it is a symbolic link, it can not be written, it
            is no file of results, a line is damaged, or its tags are another model's.
    """

    def __init__(self, out: Path, *, model_fingerprint: str | None = None) -> None:
        self.path = out
        self._model_fingerprint = model_fingerprint
        self._guard = threading.RLock()
        self._index = DoneIndex()
        self._found = self._written = 0
        # Content, hashed as paths are -> where a tagged record starts; None until somebody asks.
        self._places: dict[int, int] | None = None
        self._closed = False
        _refuse_unfit(out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise _cannot_write(out, err) from err
        self._lock = RunLock(out)
        try:
            self._appender = Appender(out)
            try:
                self._resume()
                self._compact()
            except BaseException:
                self._appender.close()
                raise
        except OSError as err:
            self._lock.release()
            raise _cannot_write(out, err) from err
        except BaseException:
            self._lock.release()
            raise
        self._found = self._index.ok + self._index.failed

    @property
    def counts(self) -> Counts:
        """How many inputs have a record by now."""
        return Counts(self._index.ok, self._index.failed, self._found, self._written)

    def done(self, path: str, content_id: str | None) -> bool:
        """Whether this input, with this content, has its record.

        Without a content id (the file can not be read now) any record of the path will do:
        a disk that is offline for an hour must not turn its tags into failures.
        """
        return self._index.done(path, content_id)

    def done_as(self, path: str, stamp: str | None) -> bool:
        """Whether this remote input has its record, by the stamp of `vtag.records.SourceFacts`."""
        return self._index.done_as(path, stamp)

    def failed(self, path: str) -> bool:
        """Whether the record of this path is a failed one."""
        return self._index.is_failed(path)

    def stale(self, path: str, content_id: str | None) -> bool:
        """Whether the record of this path is about another content.

        Such an input is to be tagged again; `write` replaces the old record.
        """
        return self._index.content(path) is not None and not self.done(path, content_id)

    def write(self, record: Record) -> None:
        """Adds the record of one input.

        If its path has a record already the new one counts. The old one leaves the file on
        `close`, or when the file is opened again.

        Raises:
            OutputError: it could not be written; the file ends with a whole record, or is
                repaired when it is opened again.
        """
        line = to_line(record)
        with self._guard:
            start = self._appender.size
            try:
                self._appender.append(line)
            except OSError as err:
                raise _cannot_write(self.path, err) from err
            stamp = record.source.stamp if record.source else None
            self._index.add(record.path, record.id, failed=not record.ok, stamp=stamp)
            if self._places is not None and record.ok and record.id is not None:
                self._places[path_key(record.id)] = start
            self._written += 1

    def of_content(self, content_id: str) -> dict[str, Any] | None:
        """A tagged record of this content, whatever its path; None where there is none."""
        with self._guard:
            try:
                if self._places is None:
                    self._places = self._find_places()
                start = self._places.get(path_key(content_id))
                if start is None:
                    return None
                with _buffered(self.path) as file:
                    file.seek(start)
                    line = next(lines(self.path, file), None)
            except OSError as err:
                log.debug("%s: not read again (%s)", self.path, reason(err))
                return None
        found = line.record if isinstance(line, Line) else None
        return found if found and found["id"] == content_id else None

    def each(self) -> Iterator[dict[str, Any]]:
        """Every record in the file, in its order; of a replaced one, the old and the new.

        Raises:
            OutputError: the file can not be read.
        """
        try:
            with _buffered(self.path) as file:
                found = (line for line in lines(self.path, file) if isinstance(line, Line))
                yield from (line.record for line in found)
        except OSError as err:
            raise _cannot_write(self.path, err) from err

    def drop(self, predicate: Callable[[dict[str, Any]], bool]) -> int:
        """How many records left the file: those for which `predicate` is true.

        They are no longer done. The file is rewritten whole or not at all.

        Raises:
            OutputError: it could not be rewritten; the file is as it was, or without them.
        """
        with self._guard:
            try:
                self._compact()
                gone = self._find(predicate)
                self._remove(gone)
            except OSError as err:
                raise _cannot_write(self.path, err) from err
            for path in gone.values():
                self._index.remove(path)
        return len(gone)

    def amend(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> int:
        """How many records were changed: those for which `change` gave a new one.

        A new one is about the same input: its path, id and status are the old one's. The file
        is rewritten whole or not at all.

        Raises:
            OutputError: it could not be rewritten, or a record is damaged.
        """
        with self._guard:
            try:
                self._compact()
                changed = self._changed(change)
                self._rewrite(changed)
            except OSError as err:
                raise _cannot_write(self.path, err) from err
        return len(changed)

    def close(self) -> None:
        """Removes replaced records, syncs, closes and unlocks; the second time nothing happens.

        Raises:
            OutputError: not everything may be on the disk; what is missing is done by the
                next run.
        """
        with self._guard:
            if self._closed:
                return
            self._closed = True
            try:
                self._compact()
                self._appender.close()
            except OSError as err:
                raise _cannot_write(self.path, err) from err
            finally:
                self._let_go()

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except OutputError as err:
            if error is None:
                raise
            # The run ends with its own error; a full disk often gives both.
            log.warning("%s", err)

    def _resume(self) -> None:
        end: Line | TornTail | None = None
        with _buffered(self.path) as file:
            for end in lines(self.path, file):
                if isinstance(end, Line):
                    record = end.record
                    self._refuse_other_model(record)
                    self._index.add_fields(record)
        if isinstance(end, TornTail):
            log.warning("%s: the last line was torn (a run was killed); removed", self.path)
            self._appender.truncate(end.start)
        elif end is not None and not end.raw.endswith(b"\n"):
            self._appender.append(b"\n")

    def _refuse_other_model(self, record: dict[str, Any]) -> None:
        model = record.get("model")
        theirs = model.get("fingerprint") if isinstance(model, dict) else None
        ours = self._model_fingerprint
        if ours is not None and theirs is not None and theirs != ours:
            raise OutputError(
                f"{self.path}: holds tags of model {theirs!r:.80}, this run uses {ours!r}; "
                "choose another --out, or the model of before"
            )

    def _compact(self) -> None:
        """Removes all but the last record of each path, if there is any such."""
        if not self._index.replaced:
            return
        last: dict[int, int] = {}  # hash of path -> where its last record starts
        gone = set()
        with _buffered(self.path) as file:
            for line in lines(self.path, file):
                path = path_key(line.record["path"]) if isinstance(line, Line) else -1
                if path in self._index.replaced:
                    # Seen in the file and not remembered: if the last rewrite failed in its
                    # last step, the old ones may be gone already.
                    if path in last:
                        gone.add(last[path])
                    last[path] = line.start
        self._remove(gone)
        self._index.replaced.clear()

    def _find_places(self) -> dict[int, int]:
        """Where a tagged record of each content starts; the last one, if there are several."""
        with _buffered(self.path) as file:
            found = (line for line in lines(self.path, file) if isinstance(line, Line))
            return {
                path_key(line.record["id"]): line.start
                for line in found
                if line.record["status"] == "ok" and line.record["id"] is not None
            }

    def _find(self, predicate: Callable[[dict[str, Any]], bool]) -> dict[int, str]:
        """Where the records start for which `predicate` is true, with their paths."""
        with _buffered(self.path) as file:
            found = (line for line in lines(self.path, file) if isinstance(line, Line))
            return {line.start: line.record["path"] for line in found if predicate(line.record)}

    def _remove(self, starts: Iterable[int]) -> None:
        """Rewrites the file without the lines that start at these bytes, if there are any."""
        self._rewrite({start: b"" for start in starts})

    def _changed(
        self, change: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> dict[int, bytes]:
        """Where the records start that `change` changes, with their new lines."""
        changed = {}
        with _buffered(self.path) as file:
            for line in lines(self.path, file):
                if isinstance(line, Line):
                    try:
                        after = change(line.record)
                    except ValueError as err:
                        raise OutputError(
                            f"{self.path}: the record of {line.record['path']!r} is damaged "
                            f"({err}); delete that line, and its input is tagged again"
                        ) from err
                    if after is not None:
                        changed[line.start] = line_of(after)
        return changed

    def _rewrite(self, changed: Mapping[int, bytes]) -> None:
        """Puts other bytes for the lines that start at these bytes, if there are any."""
        if not changed:
            return
        self._appender.close()
        try:
            with _buffered(self.path) as file:
                write_whole(self.path, _with(file, changed), mode=None)
        finally:
            self._appender = Appender(self.path)
            self._places = None  # they moved

    def _let_go(self) -> None:
        try:
            self._appender.close()
        except OSError as err:  # only if `close` is already raising for the same reason
            log.debug("%s: %s", self.path, reason(err))
        finally:
            self._lock.release()


def _buffered(path: Path) -> BufferedReader:
    raw = open_regular(path)
    return BufferedReader(raw, _READ_BUFFER_BYTES)


def _with(file: BufferedReader, changed: Mapping[int, bytes]) -> Iterator[bytes]:
    """The lines of the file, other ones for those that start at these bytes."""
    start = 0
    for raw in file:
        yield changed.get(start, raw)
        start += len(raw)


def _refuse_unfit(out: Path) -> None:
    try:
        status = os.lstat(out)
    except OSError:
        return  # not there, or the lock will say what is wrong with its folder
    if stat.S_ISLNK(status.st_mode):
        raise OutputError(
            f"{out}: is a symbolic link, and results are not written through links; "
            "name the file that it points to"
        )
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{out}: is a folder; name a file in it, such as {out / 'tags.jsonl'}")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{out}: is not a regular file; for standard output say --out -")


def _cannot_write(out: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space" if full else "check the disk and the permissions"
    return OutputError(
        f"{out}: results can not be written ({reason(error)}); {remedy} and run the same "
        "command again: it goes on where this one stopped"
    )
