"""The folder of a report: put in its place whole, and nothing removed that is not its own."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from vtag.errors import ConfigError, OutputError
from vtag.run_lock import RunLock
from vtag.storage import PART_NAME, reason

log = logging.getLogger(__name__)

MARKER: Final = "report.json"
PAGE: Final = "index.html"
STATIC: Final = "static"
DATA: Final = "data"
THUMBNAILS: Final = "thumbnails"
# All that a report holds; anything else in the folder is somebody's.
_OWN: Final = re.compile(
    rf"{MARKER}|index\.html|static(/[a-z_]+\.(css|js))?|data(/[a-z]+-?[0-9]*\.js)?"
    r"|thumbnails(/[0-9a-f]{2}(/[0-9a-f]{24}-[0-9a-f]{8}[ps]\.jpg)?)?"
)


class ReportFolder:
    """A report in the making beside its place; `publish` puts it there.

    Before that the earlier report stays as it is. Leaving the `with` without `publish` leaves
    it so, and removes what was made.

    Args:
        out: the place; its parent folders are made.

    Raises:
        ConfigError: something is there that is not a report, or a report with files of others.
        OutputError: another run writes it, or it can not be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))
        _refuse_unfit(self.out, out)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise cannot_write(out, err) from err
        self._lock = RunLock(self.out)
        try:
            _remove_leftovers(self.out)
            self.part = self._new_part()
        except OSError as err:
            self._lock.release()
            raise cannot_write(out, err) from err

    def __enter__(self) -> ReportFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            _remove_own(self.part)
        finally:
            self._lock.release()

    def reuse(self, name: str) -> bool:
        """Whether the earlier report has this thumbnail, which is now in the new one as well."""
        old, new = self.out / THUMBNAILS / name, self.part / THUMBNAILS / name
        try:
            if not stat.S_ISREG(os.lstat(old).st_mode):
                return False
        except OSError:
            return False
        new.parent.mkdir(exist_ok=True)
        try:
            os.link(old, new)
        except FileExistsError:  # of a copy of the same video
            return True
        except OSError:  # a file system without links
            shutil.copyfile(old, new)
        return True

    def publish(self) -> None:
        """Puts the new report in its place and removes the earlier one.

        Raises:
            OutputError: it could not be done; the earlier one is in its place.
        """
        old = self.part.with_name(f"{self.part.name[: -len('.part')]}.old.part")
        try:
            there = self.out.is_dir()
            if there:
                os.rename(self.out, old)
            try:
                os.rename(self.part, self.out)
            except OSError:
                if there:
                    os.rename(old, self.out)
                raise
        except OSError as err:
            raise cannot_write(self.out, err) from err
        if there and not _remove_own(old):
            log.warning("%s: files that are not of the report were left there", old)

    def _new_part(self) -> Path:
        part = self.out.with_name(f".vtag-{os.getpid()}-{secrets.token_hex(8)}.part")
        part.mkdir()
        try:
            for name in (STATIC, DATA, THUMBNAILS):
                (part / name).mkdir()
            marker = {"vtag_report": 1, "for": os.fsencode(self.out.name).hex()}
            (part / MARKER).write_text(json.dumps(marker), encoding="ascii")
        except OSError:
            _remove_own(part)
            raise
        return part


def cannot_write(out: Path, error: OSError) -> OutputError:
    """The error that a report could not be written."""
    return OutputError(
        f"{out}: the report can not be written ({reason(error)}); the earlier one, if there is "
        "one, is as it was; make room or choose another --out"
    )


def _refuse_unfit(folder: Path, named: Path) -> None:
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{named}: is not a folder; name a new one for the report")
    if not any(folder.iterdir()):
        return
    if _marker(folder) is None:
        raise ConfigError(
            f"{named}: is a folder with something else in it, not a report of vtag; "
            f"name a new folder, such as {named / 'report'}"
        )
    foreign = next(_foreign(folder), None)
    if foreign is not None:
        raise ConfigError(
            f"{named}: holds {foreign.relative_to(folder)}, which is not of the report and would "
            "be lost; move it away, or name another folder"
        )


def _marker(folder: Path) -> dict[str, object] | None:
    try:
        marker = json.loads((folder / MARKER).read_bytes()[:4096])
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("vtag_report") == 1 else None


def _foreign(folder: Path) -> Iterator[Path]:
    """What is in the folder and not of a report."""
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            if not _OWN.fullmatch(path.relative_to(folder).as_posix()) or path.is_symlink():
                yield path


def _remove_leftovers(out: Path) -> None:
    """Removes what runs left that were killed while they made this very report."""
    for path in out.parent.iterdir():
        name = path.name.replace(".old.part", ".part")
        if PART_NAME.fullmatch(name) and path.is_dir() and not path.is_symlink():
            marker = _marker(path)
            if marker is not None and marker.get("for") == os.fsencode(out.name).hex():
                if not out.exists() and path.name.endswith(".old.part"):
                    os.rename(path, out)  # killed between the two renames: this is the report
                else:
                    _remove_own(path)


def _remove_own(folder: Path) -> bool:
    """Whether the folder is gone; what is not of a report stays in it."""
    if not folder.is_dir():
        return True
    for above, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(above, name)
            if _OWN.fullmatch(path.relative_to(folder).as_posix()):
                with suppress(OSError):
                    path.unlink()
        for name in folders:
            with suppress(OSError):
                os.rmdir(Path(above, name))
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()
