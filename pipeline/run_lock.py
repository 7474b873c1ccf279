"""One output, one writer: a lock file beside the output, held as long as a run writes.

The lock itself is the kernel's (flock; msvcrt.locking on Windows), so it is gone with its
owner, whatever ends that. The text in the file only says who it is. On network file systems
that know no locks the run goes on with a warning.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from vtag.errors import OutputError
from vtag.storage import reason

log = logging.getLogger(__name__)

_MAX_TEXT_BYTES: Final = 1024
_FAR_AWAY: Final = 1 << 30  # Windows locks bytes, and a locked one can not be read by others

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
_at_fork: list[str] = []  # holds a word once the hook below is in place


class RunLock:
    """The right to write `out`, from the moment this is made until `release`.

    The lock file is `.NAME.lock` in the same folder and is removed on release. Child
    processes do not inherit the lock: one that outlives its parent blocks nobody.

    Raises:
        OutputError: another run holds it (the message says who), or the folder can not be
            written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.lock")
        try:
            self._fd = self._acquire()
        except OSError as err:
            raise OutputError(
                f"{out}: can not be locked for writing ({reason(err)}); "
                "check the permissions of its folder or choose another --out"
            ) from err
        _held.add(self)
        _close_in_children()

    def release(self) -> None:
        """Gives the right back and removes the lock file; the second time nothing happens.

        Nor does anything in a forked child, which has no right to give back.
        """
        if self._fd < 0:
            return
        # Removed before it is unlocked: whoever locked this file in between looks again
        # whether it still has its name, and starts anew if not.
        if sys.platform != "win32":
            with suppress(OSError):
                os.unlink(self.path)
            self._forget()
        else:  # an open file can not be removed there
            self._forget()
            with suppress(OSError):
                os.unlink(self.path)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _acquire(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        while True:
            fd = os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                if not self._try_lock(fd):
                    raise OutputError(self._refusal(fd))
                if self._is_named(fd):
                    self._sign(fd)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _try_lock(self, fd: int) -> bool:
        try:
            _lock(fd)
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return False
            if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            log.warning(
                "%s: this file system knows no locks (%s); take care that no second run "
                "writes the same file",
                self.out,
                reason(err),
            )
        return True

    def _is_named(self, fd: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _sign(self, fd: int) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        os.ftruncate(fd, 0)
        os.write(fd, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode())

    def _refusal(self, fd: int) -> str:
        text = os.pread(fd, _MAX_TEXT_BYTES, 0) if sys.platform != "win32" else b""
        # The file may be anybody's: no control character of it reaches a terminal.
        holder = ascii(text.decode("utf-8", "replace").strip())[1:-1]
        return (
            f"{self.out}: is being written by {holder or 'another run'}; "
            "wait for it or choose another --out"
        )

    def _forget(self) -> None:
        # First -1, then close: a number that was closed may by now be another file's.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _close_in_children() -> None:
    """Makes forked children close their copies of the lock files, once per process.

    O_CLOEXEC acts when a child starts another program; one that is only forked keeps a copy,
    and a flock is held as long as any copy is open.
    """
    if not _at_fork and hasattr(os, "register_at_fork"):
        _at_fork.append("in place")
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


def _lock(fd: int) -> None:
    """Locks the open file for this process alone, without waiting."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(fd, _FAR_AWAY, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
