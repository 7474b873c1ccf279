"""Witnesses: a file that notices being opened, and a port that notices being called."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from pathlib import Path

IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it


class WatchedFiles:
    """Knows which of its files were opened by any process, by way of Linux' inotify."""

    def __init__(self, *files: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        self._files = {
            libc.inotify_add_watch(self._fd, os.fsencode(file), IN_OPEN): file for file in files
        }
        assert -1 not in self._files

    def opened(self) -> set[Path]:
        """The files that were opened since the last call."""
        try:
            events = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return set()
        found, at = set(), 0
        while at < len(events):
            watch, _, _, length = _EVENT.unpack_from(events, at)
            found.add(self._files[watch])
            at += _EVENT.size + length
        return found

    def close(self) -> None:
        os.close(self._fd)


class Listener:
    """A port on the loopback that counts the connections made to it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.calls = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def close(self) -> None:
        # shutdown wakes the thread out of accept; close alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=5)
