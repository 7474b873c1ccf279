"""A folder that grows: which files are complete by now, told once for each state of a file.

Events of the system are hints and nothing more: what counts is what the file system says when
it is asked. So a lost or doubled event costs time and never a record, and where there are no
events (network mounts) the folders are simply walked again and again.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple

from vtag.discover import Discovery, Shard, find_inputs, is_input, is_passed_over
from vtag.errors import ConfigError
from vtag.moved import is_gone, is_under
from vtag.watch_events import SystemEvents

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 10.0  # between two walks, where the system tells nothing
RESCAN_SECONDS: Final = 600.0  # and where it does: events get lost


@dataclass(frozen=True)
class WatchConfig:
    """How a folder is watched.

    Attributes:
        settle_seconds: a file is complete when its size and date did not change for so long.
        poll_seconds: walk the folders so often instead of being told by the system.
        rescan_seconds: how often they are walked in any case.
    """

    settle_seconds: float = 5.0
    poll_seconds: float | None = None
    rescan_seconds: float = RESCAN_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.settle_seconds < float("inf"):
            raise ConfigError(f"a file settles in 0 seconds or more, got {self.settle_seconds}")
        for seconds in (self.poll_seconds, self.rescan_seconds):
            if seconds is not None and not 0.05 <= seconds < float("inf"):
                raise ConfigError(f"folders are walked every 0.05 s or less often, got {seconds}")


class _Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    mtime_ns: int


class Watcher:
    """The complete files of some folders, as they come.

    A file that changes after it was told is told again when it has settled. Use it in a
    `with`, from one thread.

    Args:
        sources: folders; links to folders below them are not followed.
        config: how they are watched.
        shard: only these files.
        clock: seconds, never falling.

    Raises:
        ConfigError: a source is no folder.
        EnvironmentProblem: the library `watchdog` is missing, and `poll_seconds` is not given.
    """

    def __init__(
        self,
        sources: Sequence[str],
        config: WatchConfig = WatchConfig(),
        *,
        shard: Shard | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sources = [os.path.normpath(source) for source in sources]
        for source in self.sources:
            if not os.path.isdir(source):
                raise ConfigError(f"{source}: is no folder, and only folders can be watched")
        self.config = config
        self.ignored = 0  # files that are no media, at the last walk
        self.passed_over = 0  # folders of trash and the like, at the last walk
        self._shard = shard
        self._clock = clock
        self._waiting: dict[str, tuple[_Stamp, float]] = {}  # since when it is like that
        self._told: dict[str, _Stamp] = {}
        self._gone: list[str] = []
        self._walk_at = clock()
        self._first_walk = True
        self._missing: set[str] = set()
        self._events: SystemEvents | None = None
        if config.poll_seconds is None:
            try:
                self._events = SystemEvents.start(self.sources)
            except OSError as err:
                self._poll_instead(f"the system can not tell of changes ({err.strerror or err})")

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Watches no longer; the second time nothing happens."""
        if self._events is not None:
            self._events.close()
            self._events = None

    @property
    def told_by_system(self) -> bool:
        """Whether changes are told by the system; else the folders are walked."""
        return self._events is not None

    @property
    def waiting(self) -> int:
        """How many files are there that have not settled."""
        return len(self._waiting)

    def ready(self) -> Iterator[str]:
        """The files that are complete by now, without waiting for more."""
        self._take_events()
        if self._clock() >= self._walk_at:
            yield from self._walk()
        for path in [path for path in self._waiting if self._is_due(path)]:
            if self._has_settled(path):
                yield path

    def again(self, path: str) -> None:
        """This file was told and could not be used yet: it is told again when it has settled."""
        self._told.pop(path, None)
        self._look(path)

    def gone(self) -> list[str]:
        """The files that were told and have gone since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def wait(self, seconds: float) -> None:
        """Returns after so long, or earlier when the system tells of a change."""
        if self._events is None:
            time.sleep(seconds)
        else:
            self._events.wait(seconds)

    # -- looking --------------------------------------------------------------------------

    def _walk(self) -> Iterator[str]:
        """Looks at everything; gives what has settled as soon as it is met."""
        met: set[str] = set()
        discovery = Discovery()
        there = [source for source in self.sources if self._is_there(source)]
        for path in find_inputs(there, discovery, shard=self._shard) if there else ():
            met.add(path)
            self._look(path, may_be_old=self._first_walk)
            if path in self._waiting and self._is_due(path) and self._has_settled(path):
                yield path
        self.ignored, self.passed_over = discovery.ignored, discovery.passed_over
        for path in [*self._told, *self._waiting]:
            # A folder that is missing altogether is a disk that is, not a thousand deletions.
            if path not in met and any(is_under(path, source) for source in there):
                self._look(path)
        self._first_walk = False
        if self._events is not None:
            self._check_events(folders=discovery.folders - len(discovery.warnings))
        poll = self.config.poll_seconds or POLL_SECONDS
        pause = poll if self._events is None else self.config.rescan_seconds
        self._walk_at = self._clock() + pause

    def _look(self, path: str, *, may_be_old: bool = False) -> None:
        """Compares a file with what is known of it."""
        stamp = _stamp(path)
        if stamp is None:
            self._waiting.pop(path, None)
            if path in self._told and is_gone(path):
                del self._told[path]
                self._gone.append(path)
            return
        if self._told.get(path) == stamp:
            self._waiting.pop(path, None)
            return
        known = self._waiting.get(path)
        if known is None or known[0] != stamp:
            since = self._clock()
            if may_be_old and _unchanged_seconds(path) >= self.config.settle_seconds:
                since -= self.config.settle_seconds
            self._waiting[path] = (stamp, since)

    def _is_due(self, path: str) -> bool:
        return self._clock() - self._waiting[path][1] >= self.config.settle_seconds

    def _has_settled(self, path: str) -> bool:
        """Whether it is still as it was; then it counts as told."""
        before = self._waiting[path][0]
        self._look(path)
        now = self._waiting.get(path)
        if now is None or now[0] != before:
            return False
        del self._waiting[path]
        self._told[path] = before
        return True

    def _is_there(self, source: str) -> bool:
        if os.path.isdir(source):
            self._missing.discard(source)
            return True
        if source not in self._missing:
            log.warning("%s: the folder is gone; waiting for it to come back", source)
            self._missing.add(source)
        return False

    # -- what the system tells --------------------------------------------------------------

    def _take_events(self) -> None:
        if self._events is None:
            return
        if self._events.lost():
            self._walk_at = self._clock()
        new_folder = False
        for path, is_folder in self._events.take():
            if is_folder and os.path.isdir(path):
                new_folder = True
                for below in find_inputs([path], Discovery()):
                    if self._is_ours(below):
                        self._look(below)
            elif is_folder:
                for known in [p for p in (*self._told, *self._waiting) if is_under(p, path)]:
                    self._look(known)
            elif path in self._told or path in self._waiting or self._is_ours(path):
                self._look(path)
        if new_folder and self._events.may_miss_folders():
            self._walk_at = self._clock()  # which counts the folders
        if not self._events.alive():
            self._poll_instead("the thread that listens to the system has ended")

    def _is_ours(self, path: str) -> bool:
        roots = [source for source in self.sources if is_under(path, source)]
        if not roots or not is_input(path):
            return False
        name = path if roots[0] == os.curdir else os.path.relpath(path, roots[0])
        if any(map(is_passed_over, name.split(os.sep)[:-1])):
            return False
        return self._shard is None or self._shard.holds(name)

    def _check_events(self, *, folders: int) -> None:
        """Polls instead where the system has no room to watch all folders.

        The library goes on without a word when a folder below the first can not be watched.
        """
        assert self._events is not None
        watched = self._events.watched_folders()
        if watched is not None and watched < folders:
            self._poll_instead(
                f"only {watched} of {folders} folders can be watched (raise "
                "fs.inotify.max_user_watches to be told of changes)"
            )

    def _poll_instead(self, why: str) -> None:
        log.warning("%s; the folders are walked every %.0f s instead", why, POLL_SECONDS)
        self.close()
        self._walk_at = self._clock()


def _stamp(path: str) -> _Stamp | None:
    """What changes when the file does; None if it is gone or can not be asked."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        try:  # a link that leads nowhere is there, and does not change
            status = os.lstat(path)
        except (OSError, ValueError):
            return None
    if not stat.S_ISREG(status.st_mode):
        return _Stamp(status.st_ino, 0, 0)  # a folder's date changes with what is in it
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _unchanged_seconds(path: str) -> float:
    """For how long the file is as it is, by the clock of its file system.

    By the date of its status too, which copying programs can not set back.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0.0
    return time.time() - max(status.st_mtime, status.st_ctime)
