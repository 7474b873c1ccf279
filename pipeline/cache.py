"""The feature cache: what the extractors made of a video, so that it is made only once.

The key is made of contents only, never of paths or dates: a video that is moved is still
found, and a setting that is changed can not serve yesterday's rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from vtag.cache_entry import JSON, MAX_ENTRY_BYTES, CacheEntry, OtherVersion, decode, encode
from vtag.errors import CacheError
from vtag.storage import PART_NAME, make_private_folder, open_regular, reason, remove, write_whole

__all__ = [
    "JSON",
    "BadEntry",
    "CacheEntry",
    "CacheInfo",
    "FeatureCache",
    "default_cache_folder",
]

log = logging.getLogger(__name__)

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_SUFFIX: Final = ".safetensors"
# No write takes so long: what is older was left behind by a process that was killed.
_PART_SECONDS: Final = 3600.0


@dataclass(frozen=True)
class CacheInfo:
    """How much the cache holds."""

    root: Path
    entries: int
    bytes: int
    oldest: float | None  # seconds since the epoch: when the least recently used was used


@dataclass(frozen=True)
class BadEntry:
    """A file of the cache that is not what was stored under its key, and why."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class _Stored:
    path: Path
    bytes: int
    used_ns: int  # the time of the last `put` or `get`, as the file's time of writing


class FeatureCache:
    """A folder with one file per (video content, extractor, sampling), made by `encode`.

    Any number of processes may read, write and prune it at the same time: an entry appears
    whole or not at all, two that store the same key hold the same rows, and one that is
    removed while it is read is still read to its end. An entry that is damaged is a miss.

    Args:
        root: the folder; made, for its owner only, if it is not there.
        read_only: change nothing: no entry is stored, marked as used or removed, and the
            folder may belong to somebody else. Whoever may write there is then trusted.

    Raises:
        CacheError: the folder can not be made, or belongs to somebody else.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = root
        self.read_only = read_only
        self._warned = False
        if read_only:
            return
        try:
            make_private_folder(root)
        except OSError as err:
            raise CacheError(
                f"{root}: can not be used as feature cache ({reason(err)}); "
                "choose another folder with --cache, or --no-cache"
            ) from err

    @staticmethod
    def key(content_id: str, extractor_fingerprint: str, sampling_fingerprint: str) -> str:
        """64 hex digits that change with each of the three."""
        # As JSON, because only joined ("a" "bc", "ab" "c") could be the same text.
        text = json.dumps([content_id, extractor_fingerprint, sampling_fingerprint])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> CacheEntry | None:
        """The entry that was stored under `key`; None if there is none that is whole.

        A damaged entry is removed and logged; one that can not be read is logged once.
        """
        path = self._path(key)
        try:
            entry = decode(key, _read(path))
        except FileNotFoundError:
            return None
        except OSError as err:
            if not self._warned:
                log.warning("%s: can not be read (%s); computed again", path, reason(err))
                self._warned = True
            return None
        except OtherVersion as err:
            log.debug("%s: %s", path, err)
            return None
        except ValueError as err:
            log.warning("%s: damaged (%s); computed again", path, err)
            self._discard(path)
            return None
        if not self.read_only:
            # Best effort: at worst an entry in use is pruned, and made again.
            with suppress(OSError):
                os.utime(path)
        return entry

    def put(self, key: str, entry: CacheEntry) -> None:
        """Stores the entry: readers see all of it or none. Does nothing if read only.

        Raises:
            CacheError: it could not be stored (disk full, no permission, features that are
                not finite). What was computed is still good, so a run goes on with a warning.
        """
        if self.read_only:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, encode(key, entry))
        except (OSError, ValueError) as err:
            why = reason(err) if isinstance(err, OSError) else err
            full = isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free some space with `vtag cache prune`, or " if full else ""
            raise CacheError(
                f"{path}: features can not be stored ({why}); {advice}choose another folder with "
                "--cache"
            ) from err

    def info(self) -> CacheInfo:
        """How many entries there are, and their size."""
        stored = list(self._stored())
        return CacheInfo(
            root=self.root,
            entries=len(stored),
            bytes=sum(entry.bytes for entry in stored),
            oldest=min((entry.used_ns / 1e9 for entry in stored), default=None),
        )

    def verify(self, *, remove: bool = False) -> list[BadEntry]:
        """Reads every entry; the ones that are not what was stored, removed if asked."""
        bad = []
        for stored in self._stored():
            try:
                decode(stored.path.name.removesuffix(_SUFFIX), _read(stored.path))
            except (FileNotFoundError, OtherVersion):
                continue
            except (OSError, ValueError) as err:
                why = reason(err) if isinstance(err, OSError) else str(err)
                bad.append(BadEntry(stored.path, why))
                if remove:
                    self._discard(stored.path)
        return bad

    def prune(
        self, max_bytes: int | None = None, *, older_than_seconds: float | None = None
    ) -> int:
        """How many entries were removed: those unused for long, then until the rest fits.

        The least recently used go first.

        Args:
            max_bytes: the most that the entries may take; None: any size.
            older_than_seconds: the longest that an entry may go unused; None: for ever.

        Raises:
            CacheError: the cache is read only.
        """
        self._refuse_if_read_only()
        self._remove_leftovers(_PART_SECONDS)
        oldest_first = sorted(self._stored(), key=lambda entry: entry.used_ns)
        left = sum(entry.bytes for entry in oldest_first)
        limit_ns = (
            -1 if older_than_seconds is None else time.time_ns() - int(older_than_seconds * 1e9)
        )
        removed = 0
        for entry in oldest_first:
            fits = max_bytes is None or left <= max_bytes
            if fits and entry.used_ns >= limit_ns:
                break  # all that follow were used later
            try:
                if not self._remove_unused(entry):
                    continue
                removed += 1
            except FileNotFoundError:  # another prune was faster
                pass
            left -= entry.bytes
        return removed

    def clear(self) -> int:
        """How many entries were removed: all, and nothing else that may lie in the folder.

        Raises:
            CacheError: the cache is read only.
        """
        self._refuse_if_read_only()
        self._remove_leftovers(0.0)
        return sum(self._discard(entry.path) for entry in self._stored())

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a cache key: {key!r}")
        return self.root / key[:2] / f"{key}{_SUFFIX}"

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise CacheError(f"{self.root}: is opened read only, so nothing is removed from it")

    def _files(self) -> Iterator[os.DirEntry[str]]:
        # Folders that vanish or can not be read hold nothing that could be used.
        with suppress(OSError), os.scandir(self.root) as shards:
            for shard in shards:
                if not _SHARD.fullmatch(shard.name):
                    continue
                with suppress(OSError), os.scandir(shard.path) as files:
                    yield from files

    def _stored(self) -> Iterator[_Stored]:
        for file in self._files():
            if file.name.endswith(_SUFFIX) and _KEY.fullmatch(file.name.removesuffix(_SUFFIX)):
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    yield _Stored(Path(file.path), status.st_size, status.st_mtime_ns)

    def _remove_leftovers(self, at_least_seconds: float) -> None:
        for file in self._files():
            if PART_NAME.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    if file.stat(follow_symlinks=False).st_mtime <= time.time() - at_least_seconds:
                        self._discard(Path(file.path))

    def _remove_unused(self, entry: _Stored) -> bool:
        """Removes the entry unless somebody used or stored it since it was listed.

        Raises:
            FileNotFoundError: it is gone already.
        """
        used_ns = os.stat(entry.path, follow_symlinks=False).st_mtime_ns
        return used_ns == entry.used_ns and self._discard(entry.path)

    def _discard(self, path: Path) -> bool:
        """Removes the file if it can; another process may have been faster, or read it."""
        if self.read_only:
            return False
        try:
            remove(path)
        except OSError as err:
            log.debug("%s: not removed (%s)", path, reason(err))
            return False
        return True


def default_cache_folder() -> Path:
    """`VTAG_CACHE_DIR`, or else the folder for caches of this user (XDG_CACHE_HOME on Linux)."""
    chosen = os.environ.get("VTAG_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("vtag", appauthor=False))


def _read(path: Path) -> bytes:
    """All bytes of the file.

    Raises:
        OSError: it can not be read, or is no regular file.
        ValueError: it is larger than an entry can be.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_ENTRY_BYTES:
            raise ValueError(f"larger than an entry can be ({size} bytes)")
        parts = []
        while size > 0 and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
