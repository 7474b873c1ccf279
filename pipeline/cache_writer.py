"""Writes to the feature cache beside the work: no video waits for the disk of the one before it."""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from vtag.cache import CacheEntry, FeatureCache
from vtag.errors import CacheError

log = logging.getLogger(__name__)

# Some fifty videos of five minutes; a disk that is slower than decoding slows decoding down.
WAITING_BYTES: Final = 64 << 20


class CacheWriter:
    """A cache whose entries are stored by a thread of its own, one after the other.

    What waits to be stored is found by `get` already. The thread lives while something waits, and
    the interpreter does not exit before it is done; a killed process leaves each entry whole or
    absent, as the cache itself does. After the first entry that can not be stored none is:
    tagging does not need the cache, and a full disk would say so a hundred thousand times.

    Args:
        cache: where the entries go; one that is read only takes none.
        waiting_bytes: `put` waits while entries of more bytes than this wait to be stored. A
            larger one is taken when nothing else waits.
    """

    def __init__(self, cache: FeatureCache, *, waiting_bytes: int = WAITING_BYTES) -> None:
        self.cache = cache
        self._most = waiting_bytes
        self._gave_up = False
        self._thread: threading.Thread | None = None
        self._reset()

    def get(self, key: str) -> CacheEntry | None:
        """The entry of this key, stored or waiting; None if there is none that is whole."""
        self._leave_parent()
        with self._changed:
            waiting = self._waiting.get(key)
        return waiting if waiting is not None else self.cache.get(key)

    def put(self, key: str, entry: CacheEntry) -> None:
        """Lets the entry be stored soon. That it could not be is logged once."""
        self._leave_parent()
        size = _bytes(entry)
        with self._changed:
            while self._waiting and self._bytes + size > self._most:
                self._changed.wait()
            if self._gave_up or self.cache.read_only or key in self._waiting:
                return
            self._waiting[key] = entry
            self._bytes += size
            if self._thread is None:
                # Not a daemon: what was computed is worth the second that it takes at exit.
                self._thread = threading.Thread(target=self._run, name="vtag-cache-writer")
                self._thread.start()

    def flush(self) -> None:
        """Returns when nothing waits any more."""
        self._leave_parent()
        with self._changed:
            while self._waiting:
                self._changed.wait()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._waiting: dict[str, CacheEntry] = {}
        self._bytes = 0
        self._thread = None

    def _leave_parent(self) -> None:
        """After a fork: the thread, and what it was to store, are the parent's."""
        if os.getpid() != self._owner:
            self._reset()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                key, entry = next(iter(self._waiting.items()))
            stored = False
            try:
                self.cache.put(key, entry)
                stored = True
            except CacheError as err:
                log.warning("features are no longer kept: %s", err)
            finally:
                self._drop(key, stored=stored)

    def _drop(self, key: str, *, stored: bool) -> None:
        with self._changed:
            if stored:
                self._bytes -= _bytes(self._waiting.pop(key))
            else:
                self._gave_up = True
                self._waiting.clear()
                self._bytes = 0
            self._changed.notify_all()


def _bytes(entry: CacheEntry) -> int:
    return entry.features.rows.nbytes + entry.features.seconds.nbytes
