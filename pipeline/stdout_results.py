"""Results on standard output (`--out -`), and the counts that both kinds of results keep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from vtag.errors import OutputError
from vtag.record_lines import to_line
from vtag.records import Record
from vtag.storage import reason


@dataclass(frozen=True)
class Counts:
    """How many inputs have a record.

    Attributes:
        ok, failed: by status, each input once; together all that have one.
        found: were there when the file was opened (a resumed run).
        written: were written by this run.
    """

    ok: int
    failed: int
    found: int
    written: int


class StdoutResults:
    """Records on standard output, one line each; nothing is resumed, nothing is kept.

    Written at once and past the buffer of `sys.stdout`, so that a reader that went away
    (`vtag run … --out - | head`) leaves nothing behind for Python to complain about at exit.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._ok = self._failed = 0

    @property
    def counts(self) -> Counts:
        """How many records were written."""
        return Counts(self._ok, self._failed, 0, self._ok + self._failed)

    def done(self, path: str, content_id: str | None) -> bool:
        """False: what was written before is not known."""
        return False

    def done_as(self, path: str, stamp: str | None) -> bool:
        """False: what was written before is not known."""
        return False

    def failed(self, path: str) -> bool:
        """False: what was written before is not known."""
        return False

    def stale(self, path: str, content_id: str | None) -> bool:
        """False: what was written before is not known."""
        return False

    def write(self, record: Record) -> None:
        """Writes the line of one record.

        Raises:
            BrokenPipeError: whoever read went away; there is nothing to say, only to stop.
            OutputError: it could not be written.
        """
        line = to_line(record)
        try:
            _write_past_buffer(self._stream, line)
        except BrokenPipeError:
            raise
        except OSError as err:
            raise OutputError(f"standard output: can not be written ({reason(err)})") from err
        self._ok += record.ok
        self._failed += not record.ok

    def of_content(self, content_id: str) -> dict[str, Any] | None:
        """None: what was written before is not known."""
        return None

    def each(self) -> Iterator[dict[str, Any]]:
        """Nothing: what was written before is not known."""
        return iter(())

    def drop(self, predicate: Callable[[dict[str, Any]], bool]) -> int:
        """0: what was written can not be taken back."""
        return 0

    def amend(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> int:
        """0: what was written can not be taken back."""
        return 0

    def close(self) -> None:
        """Does nothing: standard output belongs to the application."""

    def __enter__(self) -> StdoutResults:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _write_past_buffer(stream: TextIO, line: bytes) -> None:
    binary = getattr(stream, "buffer", None)
    if binary is None:  # a stream in memory
        stream.write(line.decode())
        return
    stream.flush()  # what was printed before comes before
    raw = getattr(binary, "raw", binary)
    rest = memoryview(line)
    while rest:
        written = raw.write(rest)
        if written is None:  # a pipe that does not wait, and is full
            time.sleep(0.01)
        else:
            rest = rest[written:]
