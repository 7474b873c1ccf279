"""Space that many threads share: set aside in the order of asking, never more than there is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """So many bytes of something, for any number of threads.

    Who asks first is served first, so that what needs much is not overtaken for ever.

    Args:
        max_bytes: of all that is set aside at once.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"room is above 0 bytes, not {max_bytes}")
        self.max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """How much is set aside now."""
        return self._used

    @contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        """So many bytes, for the time of the `with`; waits until they are free.

        More than there is counts as all of it: it is had when nobody else has any.
        """
        wanted = min(wanted, self.max_bytes)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._waiting[0] is ticket and self._used + wanted <= self.max_bytes
                )
                self._used += wanted
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= wanted
                self._changed.notify_all()
