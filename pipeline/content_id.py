"""The content id of a file: a hash of all its bytes, remembered as long as the file is the same.

Names and dates never say what a file holds; they only say whether it may have changed since
it was last read. That is all the memo uses them for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

from vtag.errors import MediaError
from vtag.storage import make_private_folder, reason

log = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 1 << 20
_BUSY_SECONDS: Final = 5.0
_CONTENT_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")

# A file system may stamp two writes that follow each other with the same time (some
# milliseconds on Linux, two seconds on FAT). A file that changed so shortly before it was read
# may change again without a trace, so it is not remembered: git's "racily clean" entries.
SETTLED_SECONDS: float = 2.0

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS content_ids "
    "(path BLOB PRIMARY KEY, stamp TEXT NOT NULL, id TEXT NOT NULL, proof TEXT NOT NULL) "
    "WITHOUT ROWID"
)

_Answer = TypeVar("_Answer")


class ContentIds:
    """Content ids of files, with a memo that many threads and processes may share.

    The memo is a small SQLite database in `folder`. It is a convenience: if it can not be
    written the files are hashed each time, and a damaged one is made anew. It holds the
    absolute names of the files that were read, so the folder is for its owner only.

    Args:
        folder: where the memo lives; made if it is not there. None: no memo.
        max_bytes: larger files are refused before they are read. Reading a terabyte takes hours;
            what claims more is a disk image or a file of holes.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int = 10**12) -> None:
        self._max_bytes = max_bytes
        # One file per layout of the table: two versions of vtag do not meet.
        self._memo = folder / "content-ids-1.sqlite" if folder is not None else None
        self._made_anew = False
        if folder is not None:
            try:
                make_private_folder(folder)
            except OSError as err:
                self._give_up(f"{folder}: {reason(err)}")

    def of(self, path: Path) -> str:
        """The content id of the file: "sha256:" and 64 hex digits, of all its bytes.

        Raises:
            MediaError: vanished, unreadable, not_a_file, empty, too_large, or
                changed_during_read (its size, its date or the file under this name changed while
                it was read).
        """
        status = _status(path)
        if status.st_size > self._max_bytes:
            raise MediaError(
                f"{path}: {status.st_size} bytes, the limit is {self._max_bytes}; cut the file "
                "into parts",
                code="too_large",
            )
        real_path = os.fsencode(os.path.realpath(path))
        stamp = _stamp(status)
        remembered = self._recall(real_path, stamp)
        if remembered is not None:
            return remembered
        started = time.time()
        content_id = _hash(path, status)
        if _last_change(status) <= started - SETTLED_SECONDS:
            self._remember(real_path, stamp, content_id)
        return content_id

    def recall(self, name: str, stamp: str) -> str | None:
        """The content id that a remote object had under this stamp; None if it is not known."""
        return self._recall(_remote_name(name), stamp)

    def remember(self, name: str, stamp: str, content_id: str) -> None:
        """Keeps the content id of a remote object.

        Args:
            name: its public address.
            stamp: what its storage says of the content; another content has another.
        """
        self._remember(_remote_name(name), stamp, content_id)

    @staticmethod
    def fits(text: str) -> bool:
        """Whether a text has the form of a content id."""
        return _CONTENT_ID.fullmatch(text) is not None

    def forget(self) -> None:
        """Removes the memo, and with it the names of all files that were read."""
        if self._memo is not None:
            _remove(self._memo)

    def _recall(self, real_path: bytes, stamp: str) -> str | None:
        def ask(memo: sqlite3.Connection) -> tuple[str, str] | None:
            row: tuple[str, str] | None = memo.execute(
                "SELECT id, proof FROM content_ids WHERE path = ? AND stamp = ?",
                (real_path, stamp),
            ).fetchone()
            return row

        row = self._with_memo(ask)
        # A damaged disk changes bytes that SQLite does not check; a wrong id would give one
        # video the tags of another.
        if row is None or row[1] != _proof(real_path, stamp, row[0]):
            return None
        return row[0] if _CONTENT_ID.fullmatch(row[0]) else None

    def _remember(self, real_path: bytes, stamp: str, content_id: str) -> None:
        proof = _proof(real_path, stamp, content_id)

        def store(memo: sqlite3.Connection) -> None:
            with memo:
                memo.execute(
                    "INSERT OR REPLACE INTO content_ids VALUES (?, ?, ?, ?)",
                    (real_path, stamp, content_id, proof),
                )

        self._with_memo(store)

    def _with_memo(self, use: Callable[[sqlite3.Connection], _Answer]) -> _Answer | None:
        """What `use` answers; None if there is no memo to ask."""
        path = self._memo  # another thread may give up meanwhile
        if path is None:
            return None
        try:
            # Opened for each question: a connection must not be carried into a forked child
            # or another thread, and opening costs far less than reading a video.
            with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as memo:
                # What a power cut may do here is found by `proof` or by SQLite, and costs
                # hashing again; waiting for the disk would cost milliseconds per file.
                memo.execute("PRAGMA synchronous = OFF")
                memo.execute(_SCHEMA)
                return use(memo)
        except sqlite3.OperationalError as err:
            if "locked" in str(err):
                log.debug("%s: busy, the file is hashed instead", path)
            else:
                self._give_up(f"{path}: {err}")
        except (sqlite3.DatabaseError, TypeError, ValueError) as err:
            if self._made_anew:
                self._give_up(f"{path}: {err}")
            else:
                log.warning("%s: damaged (%s); made anew", path, err)
                self._made_anew = True
                _remove(path)
        return None

    def _give_up(self, why: str) -> None:
        log.warning("%s; content ids are not remembered, every file is hashed again", why)
        self._memo = None


def _remote_name(name: str) -> bytes:
    # No real path begins like this, so an address never meets a file.
    return b"//remote/" + name.encode("utf-8", "surrogatepass")


def _status(path: Path) -> os.stat_result:
    # Looked at before it is opened: to open a device may already make it act.
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as err:
        raise MediaError(f"{path}: no such file; was it moved?", code="vanished") from err
    except OSError as err:
        raise _unreadable(path, err) from err
    _refuse_unfit(path, status)
    return status


def _refuse_unfit(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK):
        # A walk hands these on, so that what it could not see is not missed in silence.
        raise MediaError(
            f"{path}: a folder that can not be opened; check its permissions", code="unreadable"
        )
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(
            f"{path}: a folder, pipe, socket or device; name a regular file", code="not_a_file"
        )
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty; copy it again", code="empty")


def _unreadable(path: Path, err: OSError) -> MediaError:
    return MediaError(
        f"{path}: can not be read ({reason(err)}); check its permissions and the disk",
        code="unreadable",
    )


def _hash(path: Path, expected: os.stat_result) -> str:
    """The content id of the file that `expected` describes, read from its first byte."""
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            opened = os.fstat(file.fileno())
            _refuse_unfit(path, opened)
            digest, size = _digest(file, at_most=opened.st_size)
            closed = os.fstat(file.fileno())
        named = os.stat(path)
    except FileNotFoundError as err:
        raise MediaError(f"{path}: no such file; was it moved?", code="vanished") from err
    except OSError as err:
        raise _unreadable(path, err) from err
    # The last two: the decoder will open the name again, and must meet the same bytes there.
    same = {_identity(status) for status in (expected, opened, closed, named)}
    if len(same) > 1 or size != opened.st_size:
        raise MediaError(
            f"{path}: was changed while it was read; run again when it is complete",
            code="changed_during_read",
        )
    return f"sha256:{digest}"


def _digest(file: FileIO, *, at_most: int) -> tuple[str, int]:
    """SHA-256 as hex, and how many bytes were read: up to a chunk more than `at_most`."""
    sha256 = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size = 0
    # Bounded: a file that is being downloaded could grow for as long as it is read.
    while size <= at_most and (taken := file.readinto(buffer)):
        sha256.update(buffer[:taken])
        size += taken
    return sha256.hexdigest(), size


def _open_without_waiting(path: str, flags: int) -> int:
    # The name may by now be that of a pipe, and to open one waits for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stamp(status: os.stat_result) -> str:
    """All that can be told of a file without reading it, as one word.

    The time of the last change of status is in it because it can not be set: a copy that
    keeps dates may put other bytes of the same length under the same time of writing.
    """
    return ":".join(map(str, (*_identity(status), status.st_ctime_ns)))


def _last_change(status: os.stat_result) -> float:
    """Seconds since the epoch; on Windows `st_ctime` is when the file was made."""
    return status.st_mtime if sys.platform == "win32" else status.st_ctime


def _proof(real_path: bytes, stamp: str, content_id: str) -> str:
    return hashlib.sha256(b"\0".join([real_path, f"{stamp} {content_id}".encode()])).hexdigest()


def _remove(memo: Path) -> None:
    # The journal first: SQLite would roll what it holds back into the next database.
    for name in (f"{memo.name}-journal", f"{memo.name}-wal", f"{memo.name}-shm", memo.name):
        with suppress(OSError):
            memo.with_name(name).unlink()
