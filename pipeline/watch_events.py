"""What the system tells about changes in folders, as far as it does; by the library `watchdog`."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vtag.errors import EnvironmentProblem

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent


class SystemEvents:
    """Paths that the system says something about; see `start`."""

    # More than that and walking is cheaper, and a flood must not fill the memory.
    MAX_WAITING: Final = 100_000

    def __init__(self, observer: Any) -> None:
        self._observer = observer
        self._queue: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self._something = threading.Event()
        self._lost = threading.Event()
        self._complaints = _Complaints(self._lost)
        logging.getLogger("watchdog").addHandler(self._complaints)
        self._threads: list[threading.Thread] = []

    @classmethod
    def start(cls, sources: Sequence[str]) -> SystemEvents:
        """Listens to these folders.

        Raises:
            EnvironmentProblem: the library is missing.
            OSError: the system has no room for that.
        """
        try:
            from watchdog.events import FileSystemEventHandler
            from watchdog.observers import Observer
        except ImportError as err:
            raise EnvironmentProblem(
                "--watch needs the library watchdog: pip install 'vtag[watch]' (or walk the "
                "folders now and then, without it: --watch-poll 10)"
            ) from err

        # Of a folder made within a new folder the library hears twice, and warns of itself.
        warnings.filterwarnings(
            "ignore", "Callback with id", category=RuntimeWarning, module="watchdog"
        )
        events = None
        try:
            events = cls(Observer())
            handler = FileSystemEventHandler()
            handler.on_any_event = events.tell  # type: ignore[method-assign]
            for source in sources:
                events._observer.schedule(handler, source, recursive=True)
            events._observer.start()
        except OSError:
            if events is not None:
                events.close()
            raise
        events._threads = [
            thread
            for thread in threading.enumerate()
            if type(thread).__module__.startswith("watchdog.")
        ]
        return events

    def tell(self, event: FileSystemEvent) -> None:
        """Takes an event, in a thread of the library."""
        # Not "opened" and its like: reading a file must not look like a change of it.
        if event.event_type not in ("created", "modified", "closed", "moved", "deleted"):
            return
        if event.is_directory and event.event_type == "modified":
            return  # what changed in it is told as well
        if self._queue.qsize() > self.MAX_WAITING:
            self._lost.set()
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._queue.put((os.path.normpath(os.fsdecode(path)), event.is_directory))
        self._something.set()

    def take(self) -> list[tuple[str, bool]]:
        """Paths and whether they are folders, each once."""
        self._something.clear()
        found: dict[tuple[str, bool], None] = {}
        while True:
            try:
                found[self._queue.get_nowait()] = None
            except queue.Empty:
                return list(found)

    def lost(self) -> bool:
        """Whether events were lost since the last call."""
        lost = self._lost.is_set()
        self._lost.clear()
        return lost

    def wait(self, seconds: float) -> None:
        """Returns after so long, or with the next event."""
        if self._something.wait(seconds):
            time.sleep(min(seconds, 0.05))  # events come in bursts

    def alive(self) -> bool:
        """Whether anybody still listens."""
        return all(thread.is_alive() for thread in self._threads)

    def may_miss_folders(self) -> bool:
        """Whether the system limits how many folders can be watched, and says how many are."""
        return self.watched_folders() is not None

    def watched_folders(self) -> int | None:
        """How many folders Linux watches for this process; None on other systems."""
        found = None
        try:
            descriptors = os.listdir("/proc/self/fd")
        except OSError:
            return None
        for name in descriptors:
            try:  # another thread may close it meanwhile
                if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:inotify":
                    continue
                with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as file:
                    watches = sum(line.startswith("inotify ") for line in file)
            except OSError:
                continue
            found = (found or 0) + watches
        return found

    def close(self) -> None:
        """Listens no longer."""
        logging.getLogger("watchdog").removeHandler(self._complaints)
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join(timeout=5)


class _Complaints(logging.Handler):
    """Sets a flag when the library complains: that is how it tells that events were lost."""

    def __init__(self, flag: threading.Event) -> None:
        super().__init__(logging.WARNING)
        self._flag = flag

    def emit(self, record: logging.LogRecord) -> None:
        """Any complaint will do: to look once too often costs little."""
        self._flag.set()
