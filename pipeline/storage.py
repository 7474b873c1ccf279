"""The small file layer: the functions by which vtag writes files for keeping.

A file is written whole or not at all (`write_whole`), or it grows by whole records
(`Appender`). Every call that changes the disk goes through `system`, so that a test can put a
failing one in its place and fail the k-th call for every k, as SQLite's tests do
(sqlite.org/testing.html, "I/O Error Testing" and "Crash Testing").

All functions raise OSError; whoever calls knows what the file was for and turns it into a
CacheError or an OutputError, with `reason` as the text.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

# Absent on Windows: there the name of a link opens its target, children inherit nothing, and
# text mode would turn every newline into two bytes.
_NO_FOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: Final[int] = getattr(os, "O_NONBLOCK", 0)
_ALWAYS: Final[int] = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# Fixed and short, whatever the name of the final file: a video may have a name of 255 bytes.
PART_NAME: Final = re.compile(r"\.vtag-[0-9]+-[0-9a-f]{16}\.part")


class SystemCalls:
    """The system calls that change the disk."""

    def open(self, path: Path, flags: int, mode: int) -> int:
        return os.open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)


system = SystemCalls()


def reason(error: OSError) -> str:
    """A few words that say why a system call failed, for the inside of a message."""
    words = {
        errno.ENOSPC: "no space left on the disk",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.ENAMETOOLONG: "the name is too long",
    }
    return words.get(error.errno or 0, error.strerror or type(error).__name__)


def write_whole(
    path: Path,
    data: bytes | Iterable[bytes],
    *,
    mode: int | None = 0o600,
    through_symlink: bool = False,
) -> None:
    """Puts `data` at `path`: afterwards the old file is there or the new one, never a mixture.

    Written under another name in the same folder, synced to the disk, then renamed. Should
    the process be killed on the way, a file with a name like `PART_NAME` may stay behind.

    Args:
        mode: permission bits; None keeps those of the file that is replaced, and gives a new
            file those of any file that the user makes.
        through_symlink: write the file that a symbolic link at `path` points to. Otherwise a
            link there is refused, because somebody else may have laid it.

    Raises:
        OSError: nothing was changed, or (only if the last sync of the folder fails) `path`
            holds the new file but a power cut may bring the old one back.
    """
    if path.is_symlink():
        if not through_symlink:
            raise OSError(errno.ELOOP, "is a symbolic link; name the file itself", str(path))
        path = Path(os.path.realpath(path))
    if mode is None and path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
    part = path.with_name(f".vtag-{os.getpid()}-{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _ALWAYS
    fd = system.open(part, flags, 0o666 if mode is None else mode)
    try:
        try:
            if mode is not None:
                _set_mode(fd, mode)
            for chunk in [data] if isinstance(data, bytes) else data:
                _write_all(fd, chunk)
            system.fsync(fd)
        finally:
            system.close(fd)
        system.replace(part, path)
    except BaseException:
        with suppress(OSError):
            system.unlink(part)
        raise
    sync_folder(path.parent)


class Appender:
    """A file that grows by whole records: each is in the file completely or not at all.

    A record is one write. If the system takes only a part of it the rest follows; if the rest
    fails the file is cut back to where the record began. Only a killed process or a power cut
    can leave a torn record, and only as the last one.

    Records are synced to the disk every `sync_records` records, or with the first record that
    comes `sync_seconds` after the last sync, and on `close`. A killed process loses nothing
    of what was appended; a power cut may lose what was not synced.

    Raises:
        OSError: the path can not be opened for writing, is a symbolic link, or no regular file.
    """

    def __init__(self, path: Path, *, sync_records: int = 100, sync_seconds: float = 5.0) -> None:
        self.path = path
        self._sync_records = sync_records
        self._sync_seconds = sync_seconds
        is_new = not path.exists()
        # NO_WAIT: opening a pipe that nobody reads must fail, not wait.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_FOLLOW | _NO_WAIT | _ALWAYS
        self._fd = system.open(path, flags, 0o666)
        status = os.fstat(self._fd)
        self._place = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self._torn = False
        if not stat.S_ISREG(status.st_mode):
            self._let_go()
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if is_new:
            try:
                sync_folder(path.parent)
            except BaseException:
                self._let_go()
                raise

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def append(self, record: bytes) -> None:
        """Adds `record` at the end of the file.

        Raises:
            OSError: the record is not in the file; or, if it was the sync that failed, the
                file was moved away, or the file could not be cut back, that is not known.
        """
        if self._torn:
            # The end of the file is not that of a record: what followed would be lost with it.
            self.truncate(self._size)
        try:
            _write_all(self._fd, record)
        except BaseException:
            self._torn = True
            with suppress(OSError):
                self.truncate(self._size)
            raise
        self._size += len(record)
        self._unsynced += 1
        waited = time.monotonic() - self._synced_at
        if self._unsynced >= self._sync_records or waited >= self._sync_seconds:
            self.sync()

    def truncate(self, size: int) -> None:
        """Cuts the file back to its first `size` bytes, and syncs it."""
        system.ftruncate(self._fd, size)
        self._size = size
        self._torn = False
        self.sync()

    def sync(self) -> None:
        """Returns when all that was appended is on the disk, under its name.

        Raises:
            OSError: also when `path` no longer leads to this file: what is appended to a
                file that was moved or deleted is lost to whoever looks for it.
        """
        system.fsync(self._fd)
        self._unsynced = 0
        self._synced_at = time.monotonic()
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self._place:
            raise OSError(errno.ESTALE, "was moved or replaced meanwhile", str(self.path))

    def close(self) -> None:
        """Syncs and closes; the second time nothing happens."""
        if self._fd < 0:
            return
        try:
            self.sync()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        # First -1, then close: a number that was closed may by now be another file's.
        fd, self._fd = self._fd, -1
        system.close(fd)


def open_regular(path: Path) -> FileIO:
    """An unbuffered file for reading: a regular one, not reached through a link at its name.

    Raises:
        OSError: it can not be opened, is a symbolic link, or no regular file.
    """
    fd = os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT | _ALWAYS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return open(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def remove(path: Path) -> None:
    """Removes the file.

    Raises:
        OSError: it is not there, or may not be removed.
    """
    system.unlink(path)


def make_private_folder(path: Path) -> None:
    """Makes the folder, for its owner only, unless it is there; refuses one of somebody else.

    What is read back from such a folder is trusted to be what was put there, and a folder of
    another user may be written by that user.

    Raises:
        OSError: it can not be made, is no folder, or belongs to somebody else (EPERM).
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise OSError(errno.EPERM, f"belongs to {_user_name(owner)}", str(path))


def sync_folder(folder: Path) -> None:
    """Returns when the names in `folder` are on the disk, where the file system offers that."""
    if sys.platform == "win32":  # a folder can not be opened there
        return
    unoffered = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EBADF}
    try:
        fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY | _ALWAYS, 0)
        try:
            system.fsync(fd)
        finally:
            system.close(fd)
    except OSError as err:
        if err.errno not in unoffered:
            raise


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = system.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        rest = rest[written:]


def _set_mode(fd: int, mode: int) -> None:
    # The umask takes bits away. File systems without permissions (FAT) refuse; that is no
    # reason not to write.
    if sys.platform != "win32" and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        with suppress(PermissionError):
            os.fchmod(fd, mode)


def _user_name(uid: int) -> str:
    if sys.platform == "win32":
        return str(uid)
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user number {uid}"
