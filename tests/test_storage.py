"""Files are whole or absent, whatever system call fails."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from faulty_calls import FAULTS, Crash, Fault, for_every_call

from vtag import storage
from vtag.storage import (
    PART_NAME,
    Appender,
    make_private_folder,
    open_regular,
    reason,
    write_whole,
)

OLD, NEW = b"the old content\n", b"the new content, which is longer\n"


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", NEW)
    write_whole(tmp_path / "b", iter([b"one ", b"", b"two"]))
    assert (tmp_path / "a").read_bytes() == NEW
    assert (tmp_path / "b").read_bytes() == b"one two"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("old", [OLD, None])
def test_write_whole_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, fault: Fault, old: bytes | None
) -> None:
    path = tmp_path / "file"

    def prepare() -> None:
        for name in os.listdir(tmp_path):
            (tmp_path / name).unlink()
        if old is not None:
            path.write_bytes(old)

    def check(raised: BaseException | None) -> None:
        now = path.read_bytes() if path.exists() else None
        assert now in (old, NEW)
        if raised is None:
            assert now == NEW
        left = {name for name in os.listdir(tmp_path) if name != "file"}
        if isinstance(raised, Crash):
            assert all(PART_NAME.fullmatch(name) for name in left)
        else:
            assert not left

    met = for_every_call(
        fault,
        prepare=prepare,
        act=lambda: write_whole(path, iter([NEW[:7], NEW[7:]])),
        check=check,
        expected=OSError,
    )
    # 2 writes; with them open, fsync, close, replace, and open, fsync, close of the folder
    assert met >= (2 if fault in ("short write", "crash in a write") else 9)


def test_an_error_while_the_content_is_made_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def content() -> object:
        yield b"begun"
        raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        write_whole(path, content())  # type: ignore[arg-type]
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_a_symbolic_link_is_written_through_only_if_asked(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to("target")
    with pytest.raises(OSError, match="is a symbolic link") as caught:
        write_whole(link, NEW)
    assert caught.value.errno == errno.ELOOP
    assert target.read_bytes() == OLD

    write_whole(link, NEW, through_symlink=True)
    assert link.is_symlink()
    assert target.read_bytes() == NEW


def test_permissions(tmp_path: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "private", NEW)
        write_whole(tmp_path / "asked", NEW, mode=0o664)
        write_whole(tmp_path / "usual", NEW, mode=None)
        (tmp_path / "kept").write_bytes(OLD)
        (tmp_path / "kept").chmod(0o606)
        write_whole(tmp_path / "kept", NEW, mode=None)
    finally:
        os.umask(before)
    assert [oct(mode(n)) for n in ("private", "asked", "usual", "kept")] == [
        "0o600",
        "0o664",  # as asked, whatever the umask
        "0o640",  # 0666 without the umask
        "0o606",
    ]


def test_a_name_of_255_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, NEW)
    assert path.read_bytes() == NEW


RECORDS = [b"first\n", b"second, longer\n", b"third\n"]


@pytest.mark.parametrize("fault", FAULTS)
def test_appender_keeps_whole_records(tmp_path: Path, fault: Fault) -> None:
    path = tmp_path / "log"
    returned: list[bytes] = []

    def act() -> None:
        appender = Appender(path, sync_records=2)
        try:
            for record in RECORDS:
                appender.append(record)
                returned.append(record)
        finally:
            appender.close()

    def prepare() -> None:
        returned.clear()
        path.unlink(missing_ok=True)

    def check(raised: BaseException | None) -> None:
        now = path.read_bytes() if path.exists() else b""
        whole = [b"".join(RECORDS[:n]) for n in range(len(RECORDS) + 1)]
        if isinstance(raised, Crash):  # the last may be torn, those that returned are not
            assert b"".join(RECORDS).startswith(now)
            assert now.startswith(b"".join(returned))
        else:
            assert now in whole
            # One more may be there: a sync that fails comes after its record.
            assert whole.index(now) - len(returned) in (0, 1)
        if raised is None:
            assert returned == RECORDS

    assert for_every_call(fault, prepare=prepare, act=act, check=check, expected=OSError) >= len(
        RECORDS
    )


def test_appender_cuts_what_it_could_not_cut_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(storage.SystemCalls):
        """Takes three bytes of the record, then nothing; the first cut fails too."""

        writes = cuts = 0

        def write(self, fd: int, data: memoryview) -> int:
            self.writes += 1
            if self.writes == 2:
                return super().write(fd, data[:3])
            if self.writes == 3:
                raise OSError(errno.ENOSPC, "injected")
            return super().write(fd, data)

        def ftruncate(self, fd: int, size: int) -> None:
            self.cuts += 1
            if self.cuts == 1:
                raise OSError(errno.EIO, "injected")
            super().ftruncate(fd, size)

    monkeypatch.setattr(storage, "system", Stubborn())
    appender = Appender(tmp_path / "log")
    appender.append(b"one\n")
    with pytest.raises(OSError, match="injected"):
        appender.append(b"lost\n")
    assert (tmp_path / "log").read_bytes() == b"one\nlos"
    appender.append(b"two\n")
    appender.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_appender_syncs_by_count_and_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(storage.SystemCalls):
        syncs = 0

        def fsync(self, fd: int) -> None:
            self.syncs += 1

    now = 100.0
    calls = Counting()
    monkeypatch.setattr(storage, "system", calls)
    monkeypatch.setattr(storage.time, "monotonic", lambda: now)
    (tmp_path / "log").touch()  # a new file would have its folder synced
    appender = Appender(tmp_path / "log", sync_records=3, sync_seconds=5)
    seen = []
    for step_seconds in (0, 0, 0, 4.9, 0.1, 0, 0, 0):
        now += step_seconds
        appender.append(b"x\n")
        seen.append(calls.syncs)
    # The third record; the fifth, 5 s after that; the eighth, three after the fifth.
    assert seen == [0, 0, 1, 1, 2, 2, 2, 3]
    appender.close()
    assert calls.syncs == 4
    appender.close()
    assert calls.syncs == 4


@pytest.mark.parametrize("moved", ["renamed", "deleted", "replaced"])
def test_appender_says_when_its_file_was_taken_away(tmp_path: Path, moved: str) -> None:
    path = tmp_path / "log"
    appender = Appender(path)
    appender.append(b"one\n")
    if moved == "renamed":
        path.rename(tmp_path / "other")
    else:
        path.unlink()
    if moved == "replaced":
        path.write_bytes(b"")
    with pytest.raises(OSError, match=r"No such file|moved or replaced"):
        appender.sync()
    with pytest.raises(OSError, match=r"No such file|moved or replaced"):
        appender.close()
    appender.close()


def test_appender_takes_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=r"symbolic links|No such device"):
            Appender(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        Appender(Path("/dev/null"))


def test_open_regular_takes_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(NEW)
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    with open_regular(tmp_path / "file") as file:
        assert file.read() == NEW
    for name in ("link", "pipe", "."):
        with pytest.raises(OSError, match=r"symbolic links|not a regular file"):
            open_regular(tmp_path / name)


def test_a_private_folder_is_made_for_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    import pwd

    me = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {me}"):
        make_private_folder(folder)


def test_reasons_are_words() -> None:
    assert reason(OSError(errno.ENOSPC, "x")) == "no space left on the disk"
    assert reason(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert reason(TimeoutError()) == "TimeoutError"
