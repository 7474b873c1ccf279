"""The spool: remote objects as local files, as long as they are decoded, in bounded space."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

from vtag.errors import EnvironmentProblem, MediaError, OutputError
from vtag.remote import BLOCK_BYTES, ObjectStat, RemoteSettings, store_for
from vtag.remote_errors import RemoteError, media_error
from vtag.room import Room
from vtag.run_lock import RunLock
from vtag.sniff import sniff
from vtag.sources import Source
from vtag.storage import make_private_folder, reason

log = logging.getLogger(__name__)

DEFAULT_BYTES: Final = 10 * 10**9
FOLDER_VARIABLE: Final = "VTAG_SPOOL_DIR"


@dataclass(frozen=True)
class Fetched:
    """A remote object on the local disk.

    Attributes:
        path: the file; gone when the `with` ends.
        content_id: "sha256:…" of its bytes as they came.
        source: with what the storage said when it was read.
        seconds: how long that took.
    """

    path: Path
    content_id: str
    source: Source
    seconds: float


def default_spool_folder() -> Path:
    """`VTAG_SPOOL_DIR`, else a folder of this user among the system's temporary files."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"vtag-spool-{user}"


class Spool:
    """Space for the objects that one process works on; any number of threads.

    An object has its space set aside before its first byte comes, in the order of asking, and
    gives it back when its file is no longer needed. So `max_bytes` holds whatever the number of
    workers, and a large object is not overtaken for ever. What a killed process left behind is
    removed by the next spool in the same folder.

    Args:
        folder: a local disk; each spool makes a folder of its own in it. None: the usual one.
        max_bytes: of all files at once.
        max_object_bytes: larger objects are refused before they are read; None: `max_bytes`.
        settings: how long the storage is waited for.

    Raises:
        EnvironmentProblem: the folder can not be used.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_bytes: int = DEFAULT_BYTES,
        max_object_bytes: int | None = None,
        settings: RemoteSettings | None = None,
    ) -> None:
        self.settings = settings or RemoteSettings()
        self.max_bytes = max_bytes
        self.max_object_bytes = min(max_bytes, max_object_bytes or max_bytes)
        root = folder or default_spool_folder()
        # The host's name: what another machine left here may still be in use there.
        self._prefix = f"spool-{socket.gethostname()}-"
        self.folder = root / f"{self._prefix}{os.getpid()}-{os.urandom(6).hex()}"
        try:
            make_private_folder(root)
            self._lock = RunLock(self.folder)
            self.folder.mkdir(mode=0o700)
            if self._locks_hold():
                self._remove_leftovers(root)
        except (OSError, OutputError) as err:
            why = reason(err) if isinstance(err, OSError) else err
            raise EnvironmentProblem(
                f"{root}: can not hold what is fetched ({why}); choose another folder with --spool"
            ) from err
        self._room = Room(max_bytes)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes all files; the second time nothing happens."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    @property
    def used_bytes(self) -> int:
        """How much is set aside now."""
        return self._room.used_bytes

    def look(self, source: Source) -> Source:
        """The source with what its storage says of it now; a local one as it is.

        Raises:
            RemoteError: it can not be asked, or there is no such object.
        """
        if source.remote is None:
            return source
        found = store_for(source.remote, self.settings).stat(source.remote)
        return replace(source, size=found.size, etag=found.etag, modified=found.modified)

    @contextmanager
    def fetch(self, source: Source) -> Iterator[Fetched]:
        """A remote object as a local file, for the time of the `with`.

        An object that is replaced while it is read is read once more from its beginning.

        Args:
            source: as `look` gave it.

        Raises:
            MediaError: the codes that begin with source_, empty, and not_media for a large
                object whose beginning is no media.
            EnvironmentProblem: the local disk is full.
        """
        with ExitStack() as stack:
            try:
                try:
                    got = self._attempt(source, stack)
                except RemoteError as err:
                    if err.kind != "changed":
                        raise
                    log.info("%s: was replaced while it was read; read again", source.path)
                    got = self._attempt(self.look(source), stack)
            except RemoteError as err:
                raise media_error(source.path, err) from err
            yield got

    def _attempt(self, source: Source, stack: ExitStack) -> Fetched:
        """The object, read once; its room is given back with the stack, or at once if it fails."""
        with ExitStack() as inner:
            got = self._copy(source, inner.enter_context(self._reserved(source)))
            stack.callback(inner.pop_all().close)
        return got

    @contextmanager
    def _reserved(self, source: Source) -> Iterator[Path]:
        """The name of a file with room for the source; the file and its room are then given up."""
        if source.size == 0:
            raise MediaError(f"{source.path}: the file is empty; copy it again", code="empty")
        wanted = self.max_object_bytes if source.size is None else source.size
        if wanted > self.max_object_bytes:
            raise _too_large(source.path, wanted, self.max_object_bytes)
        with self._room.reserved(wanted):
            path = self.folder / f"{next(self._numbers)}"
            try:
                yield path
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()

    def _copy(self, source: Source, path: Path) -> Fetched:
        assert source.remote is not None, "a local file is not fetched"
        store = store_for(source.remote, self.settings)
        like = ObjectStat(source.remote.key, source.size, source.etag, source.modified)
        started = time.perf_counter()
        sha256, size = hashlib.sha256(), 0
        blocks = store.blocks(source.remote, like)
        with self._local_disk():
            file = path.open("xb", buffering=0)
        with file:
            for block in blocks:
                self._write(file, block)
                sha256.update(block)
                looked = size >= BLOCK_BYTES
                size += len(block)
                if size > self.max_object_bytes:
                    raise _too_large(source.path, size, self.max_object_bytes)
                if not looked and size >= BLOCK_BYTES and size != source.size:
                    self._refuse_other(path, source.path)
        if size == 0:
            raise MediaError(f"{source.path}: the file is empty; copy it again", code="empty")
        seconds = time.perf_counter() - started
        return Fetched(path, f"sha256:{sha256.hexdigest()}", replace(source, size=size), seconds)

    def _refuse_other(self, path: Path, name: str) -> None:
        """Ends the reading of a large object that is no media by its beginning."""
        try:
            sniff(path)
        except MediaError as err:
            raise renamed(err, str(path), name) from err

    def _write(self, file: FileIO, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            with self._local_disk():
                rest = rest[file.write(rest) :]

    @contextmanager
    def _local_disk(self) -> Iterator[None]:
        """An error of the local disk is not one of the input, and ends the run."""
        try:
            yield
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "give it a larger disk with --spool, or a smaller --spool-size"
            raise EnvironmentProblem(
                f"{self.folder.parent}: can not hold what is fetched ({reason(err)}); "
                + (remedy if full else "choose another folder with --spool")
            ) from err

    def _locks_hold(self) -> bool:
        """Whether a second lock is refused here, as it must be; not so on some network disks."""
        try:
            RunLock(self.folder).release()
        except OutputError:
            return True
        return False

    def _remove_leftovers(self, root: Path) -> None:
        """Removes the folders of spools whose process is gone: their lock went with it."""
        for left in root.glob(f"{self._prefix}*"):
            if left == self.folder:
                continue
            try:
                with RunLock(left):
                    log.info("%s: left by a process that was killed; removed", left)
                    shutil.rmtree(left, ignore_errors=True)
            except OutputError:
                continue  # at work


def renamed(error: MediaError, local: str, name: str) -> MediaError:
    """The error with the public name of a source in place of its file in the spool."""
    return MediaError(str(error).replace(local, name), code=error.code, stage=error.stage)


def _too_large(path: str, size: int, limit: int) -> MediaError:
    return MediaError(
        f"{path}: {size} bytes or more, the limit is {limit}; raise --max-object-size and "
        "--spool-size",
        code="source_too_large",
    )
