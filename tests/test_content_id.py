"""A content id says what a file holds, and the memo never makes it say anything else."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vtag import content_id
from vtag.content_id import ContentIds
from vtag.errors import MediaError


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read, in order; any age of file is remembered."""
    names: list[str] = []
    real = content_id._hash

    def counting(path: Path, expected: os.stat_result) -> str:
        names.append(Path(path).name)
        return real(path, expected)

    monkeypatch.setattr(content_id, "_hash", counting)
    monkeypatch.setattr(content_id, "SETTLED_SECONDS", 0.0)
    return names


def test_the_id_is_the_sha_256_of_all_bytes(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1: the message "abc"
    (tmp_path / "abc").write_bytes(b"abc")
    assert ContentIds(None).of(tmp_path / "abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    # Lengths around the chunks in which the file is read; the last byte counts.
    for size in (1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 17):
        data = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
        (tmp_path / "file").write_bytes(data)
        expected = hashlib.sha256(data).hexdigest()
        assert ContentIds(None).of(tmp_path / "file") == f"sha256:{expected}"


def code_of(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        ContentIds(None).of(path)
    assert str(path) in str(caught.value) or "\0" in str(path)
    assert caught.value.stage == "open"
    return caught.value.code


def test_what_is_no_readable_file_has_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert code_of(tmp_path / "none") == "vanished"
    assert code_of(tmp_path / "dangling") == "vanished"
    assert code_of(tmp_path / "file" / "below") == "vanished"
    assert code_of(tmp_path / "nul\0byte") == "vanished"
    assert code_of(tmp_path) == "not_a_file"
    assert code_of(tmp_path / "pipe") == "not_a_file"
    assert code_of(Path("/dev/null")) == "not_a_file"
    assert code_of(tmp_path / "empty") == "empty"
    assert code_of(tmp_path / "loop") == "unreadable"

    def fails_with(number: int) -> None:
        def fail(path: str, flags: int) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(content_id, "_open_without_waiting", fail)

    fails_with(errno.EACCES)
    assert code_of(tmp_path / "file") == "unreadable"
    fails_with(errno.ENOENT)  # gone between the first look and the opening
    assert code_of(tmp_path / "file") == "vanished"


def test_a_file_over_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "holes"
    path.touch()
    os.truncate(path, 10**12 + 1)

    def must_not_be_opened(path: str, flags: int) -> int:
        raise AssertionError(path)

    monkeypatch.setattr(content_id, "_open_without_waiting", must_not_be_opened)
    assert code_of(path) == "too_large"
    (tmp_path / "small").write_bytes(b"12345678901")
    with pytest.raises(MediaError, match="11 bytes, the limit is 10"):
        ContentIds(None, max_bytes=10).of(tmp_path / "small")


@pytest.mark.parametrize("change", ["grows", "shrinks", "is edited", "is replaced", "ends early"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, (1e9, 1e9))
    real = content_id._digest

    def digest_of_a_moving_file(file: content_id.FileIO, *, at_most: int) -> tuple[str, int]:
        if change == "shrinks":
            os.truncate(path, 5)
        if change == "grows":
            with path.open("ab") as more:
                more.write(b"more")
        found = real(file, at_most=at_most)
        if change == "is edited":
            path.write_bytes(b"9876543210")
        if change == "is replaced":
            (tmp_path / "new").write_bytes(b"9876543210")
            os.utime(tmp_path / "new", (1e9, 1e9))
            os.replace(tmp_path / "new", path)
        # A network disk may give less than it said, with no date changed.
        return found if change != "ends early" else (found[0], found[1] - 1)

    monkeypatch.setattr(content_id, "_digest", digest_of_a_moving_file)
    assert code_of(path) == "changed_during_read"


def test_a_file_that_grows_for_ever_is_not_read_for_ever() -> None:
    class Endless:
        given = 0

        def readinto(self, buffer: memoryview) -> int:
            self.given += len(buffer)
            return len(buffer)

    endless = Endless()
    _, size = content_id._digest(endless, at_most=5 << 20)  # type: ignore[arg-type]
    assert size == endless.given == 6 << 20  # one chunk more shows that it grew


def test_a_file_is_read_once(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"abc")
    first = ContentIds(tmp_path / "memo").of(path)
    again = ContentIds(tmp_path / "memo").of(path)
    (tmp_path / "link").symlink_to("clip")
    through_link = ContentIds(tmp_path / "memo").of(tmp_path / "link")
    assert first == again == through_link
    assert hashed == ["clip"]
    ContentIds(None).of(path)
    assert hashed == ["clip", "clip"]
    ContentIds(tmp_path / "memo").forget()
    assert ContentIds(tmp_path / "memo").of(path) == first
    assert hashed == ["clip"] * 3


def test_any_change_is_seen(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "clip"
    ids = ContentIds(tmp_path / "memo")
    seen = []
    for content in (b"one", b"two", b"longer"):
        path.write_bytes(content)
        # A copy that keeps dates: the same size under the same time of writing.
        os.utime(path, (1e9, 1e9))
        seen.append(ids.of(path))
    (tmp_path / "other").write_bytes(b"four 4")
    os.utime(tmp_path / "other", (1e9, 1e9))
    os.replace(tmp_path / "other", path)
    seen.append(ids.of(path))
    expected = [hashlib.sha256(c).hexdigest() for c in (b"one", b"two", b"longer", b"four 4")]
    assert seen == [f"sha256:{digest}" for digest in expected]


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"abc")
    ids = ContentIds(tmp_path / "memo")
    changed = path.stat().st_ctime
    monkeypatch.setattr(content_id, "SETTLED_SECONDS", 2.0)
    now = changed + 1.9
    monkeypatch.setattr(content_id.time, "time", lambda: now)
    ids.of(path)
    ids.of(path)
    assert hashed == ["clip", "clip"]
    now = changed + 2.1
    ids.of(path)
    ids.of(path)
    assert hashed == ["clip"] * 3


@pytest.mark.parametrize("damage", ["no database", "half of it", "zeros in it", "another table"])
def test_a_damaged_memo_costs_hashing_again(
    tmp_path: Path, hashed: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    files = []
    for n in range(300):  # some pages of SQLite
        files.append(tmp_path / f"clip{n}")
        files[-1].write_bytes(b"%d" % n)
    ids = ContentIds(tmp_path / "memo")
    expected = [ids.of(file) for file in files]
    (memo,) = (tmp_path / "memo").iterdir()
    data = memo.read_bytes()
    if damage == "no database":
        memo.write_bytes(b"not a database, but long enough to look at" * 100)
    elif damage == "half of it":
        memo.write_bytes(data[: len(data) // 2])
    elif damage == "zeros in it":
        memo.write_bytes(data[:4096] + bytes(len(data) - 4096))
    else:
        memo.unlink()
        other = sqlite3.connect(memo)
        other.execute("CREATE TABLE content_ids (word TEXT)")
        other.commit()
        other.close()
    ids = ContentIds(tmp_path / "memo")
    assert [ids.of(file) for file in files] == expected
    assert len(caplog.records) == 1  # said, and said once
    if damage != "another table":  # somebody else's is left alone
        hashed.clear()
        ids.of(files[-1])
        assert hashed == []


def test_a_row_that_was_changed_is_not_believed(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"abc")
    expected = ContentIds(tmp_path / "memo").of(path)
    (file,) = (tmp_path / "memo").iterdir()
    data = file.read_bytes()
    at = data.index(expected.encode()) + len(expected) - 1
    file.write_bytes(data[:at] + b"0" + data[at + 1 :])  # the last digit is d
    assert ContentIds(tmp_path / "memo").of(path) == expected
    assert hashed == ["clip", "clip"]


def test_without_a_place_for_the_memo_files_are_hashed(
    tmp_path: Path,
    hashed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"abc")
    expected = "sha256:" + hashlib.sha256(b"abc").hexdigest()
    ids = ContentIds(path)  # a file where the folder should be
    assert [ids.of(path), ids.of(path)] == [expected, expected]
    assert len(caplog.records) == 1

    (tmp_path / "taken" / "content-ids-1.sqlite").mkdir(parents=True)  # can not be opened
    ids = ContentIds(tmp_path / "taken")
    assert [ids.of(path), ids.of(path)] == [expected, expected]
    assert len(caplog.records) == 2

    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert ContentIds(tmp_path / "theirs").of(path) == expected
    assert os.listdir(tmp_path / "theirs") == []
    assert "belongs to user" in caplog.text
    assert hashed == ["clip"] * 5


def test_a_busy_memo_is_not_waited_for_long(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_id, "_BUSY_SECONDS", 0.01)
    path = tmp_path / "clip"
    path.write_bytes(b"abc")
    ids = ContentIds(tmp_path / "memo")
    expected = ids.of(path)
    holder = sqlite3.connect(tmp_path / "memo" / "content-ids-1.sqlite", isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        assert ids.of(path) == expected
        assert hashed == ["clip", "clip"]
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    assert ids.of(path) == expected
    assert hashed == ["clip", "clip"]


def test_threads_share_one_object(tmp_path: Path, hashed: list[str]) -> None:
    files = [tmp_path / f"clip{n}" for n in range(40)]
    for file in files:
        file.write_bytes(file.name.encode())
    ids = ContentIds(tmp_path / "memo")
    answers: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append([ids.of(file) for file in files]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = [f"sha256:{hashlib.sha256(f.name.encode()).hexdigest()}" for f in files]
    assert answers == [expected] * 4
    hashed.clear()
    assert [ids.of(file) for file in files] == expected
    assert hashed == []  # none was lost


def test_processes_share_one_memo(tmp_path: Path, hashed: list[str]) -> None:
    script = """
import sys
from pathlib import Path
from vtag import content_id
content_id.SETTLED_SECONDS = 0.0
folder = Path(sys.argv[1])
ids = content_id.ContentIds(folder / "memo")
for file in sorted(folder.glob("clip*")):
    print(ids.of(file))
"""
    files = sorted(tmp_path / f"clip{n}" for n in range(40))
    for file in files:
        file.write_bytes(file.name.encode())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    expected = [f"sha256:{hashlib.sha256(f.name.encode()).hexdigest()}" for f in files]
    for process in processes:
        assert process.communicate(timeout=60)[0].split() == expected
    ids = ContentIds(tmp_path / "memo")
    assert [ids.of(file) for file in files] == expected
    assert hashed == []
