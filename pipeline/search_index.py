"""The index behind `vtag search`: a SQLite database per file of results, made from it alone.

It lives in the folder `search` of the user's cache folder, under a name made of the path of
the file of results: results may lie on a disk that is read only, and an index beside them
would be one more file to explain. It can be deleted at any time.

What is in it: `search_tables`. Only lines that were added are read again. A file that was
replaced, cut or rewritten is told by its inode, its size, and the bytes at its beginning and
around the place where reading stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from vtag.cache import default_cache_folder
from vtag.errors import CacheError, ConfigError, EnvironmentProblem, OutputError
from vtag.record_lines import Line, lines
from vtag.search_tables import Writer, make_tables
from vtag.storage import make_private_folder, reason

log = logging.getLogger(__name__)

VERSION: Final = 2  # of the tables; part of the name, so two versions of vtag do not meet
BUSY_SECONDS: Final = 120.0  # longer than a million records take another process
_EDGE_BYTES: Final = 4096

_Answer = TypeVar("_Answer")


class _Damaged(Exception):
    """The index is not what was written."""


class _Unwritable(Exception):
    """SQLite can not write where the index belongs."""


@dataclass(frozen=True)
class _State:
    """How far the file of results was read, and how to know that it is still the same one."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    offset: int  # bytes that are indexed
    edges: str  # hash of the first and the last bytes before `offset`


def default_index_folder() -> Path:
    """Where indexes live: the folder `search` of the cache folder of this user."""
    return default_cache_folder() / "search"


def index_path(tags: Path, folder: Path) -> Path:
    """The database of a file of results."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(tags))).hexdigest()[:32]
    return folder / f"{name}-{VERSION}.sqlite"


def forget_indexes(folder: Path) -> int:
    """How many indexes were removed; they hold the names of files and what is in them."""
    found = [path for path in folder.glob("*.sqlite") if not path.is_dir()]
    for path in found:
        remove_database(path)
    return len(found)


def with_index(tags: Path, folder: Path, use: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
    """What `use` answers from the index of a file of results, which is up to date then.

    Any number of processes may do so at once: one brings the index up to date, the others
    wait. A damaged index is thrown away and made again. Where the folder can not be written
    the index is made in memory, for this once.

    Raises:
        ConfigError: there is no such file of results, or it can not be read.
        OutputError: a line of it is damaged or no record.
        CacheError: another process holds the index for minutes.
        EnvironmentProblem: SQLite lacks FTS5.
    """
    try:
        regular = stat.S_ISREG(os.stat(tags).st_mode)
    except (OSError, ValueError) as err:
        why = reason(err) if isinstance(err, OSError) else str(err)
        raise ConfigError(f"{tags}: can not be read ({why}); was it moved?") from err
    if not regular:
        raise ConfigError(f"{tags}: is no regular file; name a file that `vtag run` wrote")
    place = index_path(tags, folder)
    for _ in ("as it is", "made anew"):
        try:
            make_private_folder(folder)
            return _ask(tags, str(place), use)
        except _Damaged as err:
            log.warning("%s: damaged (%s); made anew", place, err)
            remove_database(place)
        except (OSError, _Unwritable) as err:
            why = reason(err) if isinstance(err, OSError) else str(err)
            log.warning("%s: %s; the index is made in memory, for this once", folder, why)
            break
    return _ask(tags, ":memory:", use)


def _ask(tags: Path, place: str, use: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
    try:
        with closing(sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None)) as index:
            # What a power cut leaves behind must not look whole: NORMAL syncs where it counts.
            index.execute("PRAGMA synchronous = NORMAL")
            index.execute("PRAGMA cache_size = -65536")  # 64 MiB: insertion is all over a table
            index.execute("PRAGMA temp_store = MEMORY")
            _refresh(index, tags)
            index.execute("BEGIN")  # all that is asked is of one state
            return use(index)
    except sqlite3.OperationalError as err:
        raise _told_apart(err, place) from err
    except (sqlite3.DatabaseError, TypeError, ValueError, LookupError) as err:
        # Also what SQLite does not check: a text that should be JSON and is none.
        raise _Damaged(str(err)) from err


def _told_apart(err: sqlite3.OperationalError, place: str) -> Exception:
    """What a failed statement means: the words are all that Python 3.10 tells."""
    words = str(err)
    if "no such module" in words:
        return EnvironmentProblem(
            f"this Python's SQLite {sqlite3.sqlite_version} has no full-text search ({words}); "
            "use a Python whose SQLite is built with FTS5, as those of python.org, conda and "
            "the Linux distributions are"
        )
    if "locked" in words:
        return CacheError(f"{place}: another process is making this index; try again later")
    if any(word in words for word in ("unable to open", "readonly", "disk", "too big")):
        return _Unwritable(words)
    return _Damaged(words)


# -- bringing it up to date -----------------------------------------------------------------


def _refresh(index: sqlite3.Connection, tags: Path) -> None:
    """Reads what the file of results has more than the index; does nothing if nothing."""
    try:
        with tags.open("rb") as file:
            if _is_current(_state(index), os.fstat(file.fileno())):
                return
            # Waits until no other process is writing, and then what it wrote may be enough.
            index.execute("BEGIN IMMEDIATE")
            try:
                _read(index, tags, file)
                index.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    index.execute("ROLLBACK")
                raise
    except OSError as err:
        raise ConfigError(f"{tags}: can not be read ({reason(err)})") from err


def _read(index: sqlite3.Connection, tags: Path, file: BinaryIO) -> None:
    status = os.fstat(file.fileno())
    state = _state(index)
    if _is_current(state, status):
        return
    if state is not None and _was_extended(state, status, file):
        index.execute("SAVEPOINT more")
        try:
            _add(index, tags, file, status, state.offset)
            return
        except OutputError:
            # Read from the first line the message has the right number, and a tail of zeros
            # after a power cut is told from damage.
            index.execute("ROLLBACK TO more")
    make_tables(index)
    _add(index, tags, file, status, 0)


def _state(index: sqlite3.Connection) -> _State | None:
    if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'source'").fetchone():
        return None
    row = index.execute("SELECT state FROM source").fetchone()
    return None if row is None else _State(**json.loads(row[0]))


def _is_current(state: _State | None, status: os.stat_result) -> bool:
    return state is not None and _stamp(status) == (
        state.device,
        state.inode,
        state.size,
        state.modified_ns,
        state.changed_ns,
    )


def _stamp(status: os.stat_result) -> tuple[int, int, int, int, int]:
    # Without the time of the change of status a copy that keeps dates would go unseen.
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip


def _was_extended(state: _State, status: os.stat_result, file: BinaryIO) -> bool:
    """Whether the file is the one that was read, with more at its end."""
    same_file = (status.st_dev, status.st_ino) == (state.device, state.inode)
    # Of the same size and written to: whatever was changed, it is not at the end.
    longer = status.st_size >= state.offset and status.st_size != state.size
    return same_file and longer and _edges(file, state.offset) == state.edges


def _edges(file: BinaryIO, offset: int) -> str:
    length = min(offset, _EDGE_BYTES)
    file.seek(0)
    digest = hashlib.sha256(file.read(length))
    file.seek(offset - length)
    digest.update(file.read(length))
    return digest.hexdigest()


def _add(
    index: sqlite3.Connection, tags: Path, file: BinaryIO, status: os.stat_result, offset: int
) -> None:
    """Takes in the records from `offset` on, and notes how far that was."""
    file.seek(offset)
    end = offset
    writer = Writer(index)
    for line in lines(tags, file):
        if isinstance(line, Line):
            try:
                writer.add(line.record)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
                raise OutputError(
                    f"{tags}: the record of {line.record['path']} is not one that vtag writes "
                    f"({err!r:.80}); repair or delete that line"
                ) from err
            end = offset + line.start + len(line.raw)
    writer.flush()
    stamp = _stamp(status)
    state = _State(*stamp, offset=end, edges=_edges(file, end))
    index.execute("INSERT OR REPLACE INTO source VALUES (1, ?)", (json.dumps(asdict(state)),))


def remove_database(index: Path) -> None:
    """Removes a SQLite database with what belongs to it, as far as that can be done."""
    # The journal first: SQLite would roll what it holds back into the next database.
    for name in (f"{index.name}-journal", f"{index.name}-wal", f"{index.name}-shm", index.name):
        with suppress(OSError):
            index.with_name(name).unlink()
