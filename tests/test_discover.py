"""Which files of a folder are inputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtag.discover import Discovery, Shard, find_inputs
from vtag.errors import ConfigError

MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"


def fill(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def found(*sources: object, shard: Shard | None = None) -> tuple[list[str], Discovery]:
    discovery = Discovery()
    return list(find_inputs([str(s) for s in sources], discovery, shard=shard)), discovery


def test_media_suffixes_in_any_case_and_folder_and_nothing_else(tmp_path: Path) -> None:
    fill(
        tmp_path, **{"b.MP4": b"", "a b/ü.mkv": b"", "a b/c/x.Mp3": b"", "n.txt": MP4, "p.jpg": b""}
    )
    names, discovery = found(tmp_path)
    assert names == [str(tmp_path / n) for n in ("b.MP4", "a b/ü.mkv", "a b/c/x.Mp3")]
    assert discovery.ignored == 2


def test_a_strange_or_missing_suffix_is_decided_by_the_beginning(tmp_path: Path) -> None:
    fill(tmp_path, **{"MVI_0001": MP4, "film.xyz": MP4, "README": b"read me\n" * 40})
    names, discovery = found(tmp_path)
    assert [Path(n).name for n in names] == ["MVI_0001", "film.xyz"]
    assert discovery.ignored == 1


def test_what_is_named_like_a_video_is_an_input_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    fill(tmp_path / "folder.mp4", **{"inside.mp4": b""})
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    names, _ = found(tmp_path)
    assert sorted(Path(n).name for n in names) == sorted(
        ["inside.mp4", "pipe.mp4", "loop.mp4", "gone.mp4"]
    )
    (tmp_path / "empty.mp4").mkdir()  # nothing in it would tell of it
    assert str(tmp_path / "empty.mp4") in found(tmp_path)[0]


@pytest.mark.parametrize(
    "name", ["$RECYCLE.BIN", ".Trash-1000", "#recycle", "@eaDir", ".snapshots"]
)
def test_trash_snapshots_and_thumbnails_are_passed_over(tmp_path: Path, name: str) -> None:
    fill(tmp_path, **{"a.mp4": MP4, f"deep/{name}/b/c.mp4": MP4, ".hidden/d.mp4": MP4})
    names, discovery = found(tmp_path)
    assert [Path(n).name for n in names] == ["a.mp4", "d.mp4"]
    assert discovery.passed_over == 1
    own, _ = found(tmp_path / "deep" / name)  # whoever names it wants it
    assert [Path(n).name for n in own] == ["c.mp4"]


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    fill(tmp_path, **{"a/x.mp4": b""})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(found(tmp_path)[0]) == 1


def test_apple_double_files_are_left_out_but_not_real_ones(tmp_path: Path) -> None:
    fill(tmp_path, **{"._a.mp4": bytes.fromhex("00051607") + b"\0" * 60, "._b.mp4": MP4})
    names, discovery = found(tmp_path)
    assert [Path(n).name for n in names] == ["._b.mp4"]
    assert discovery.ignored == 1


def test_a_named_file_is_an_input_even_when_it_does_not_exist(tmp_path: Path) -> None:
    assert found(tmp_path / "nothing.here")[0] == [str(tmp_path / "nothing.here")]


def test_odd_names_survive(tmp_path: Path) -> None:
    odd = [b"-rf.mp4", b"12:30.mp4", b"new\nline.mp4", b"\xff\xfe.mp4", b"tab\t.mp4"]
    for name in odd:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert sorted(os.fsencode(os.path.basename(n)) for n in found(tmp_path)[0]) == sorted(odd)


def test_paths_are_as_the_user_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, **{"videos/a.mp4": b""})
    monkeypatch.chdir(tmp_path)
    assert found("./videos/")[0] == ["videos/a.mp4"]
    assert found(".")[0] == ["videos/a.mp4"]


def test_nothing_named_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="nothing to tag"):
        found()


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 9))
def test_every_name_is_in_exactly_one_shard(names: list[str], count: int) -> None:
    shards = [Shard(i, count) for i in range(1, count + 1)]
    for name in names:
        encodable = name.encode("utf-8", "ignore").decode()
        assert sum(shard.holds(encodable) for shard in shards) == 1


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/4/2", "²/4"])
def test_a_shard_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"shard"):
        Shard.parse(text)


def test_shards_split_a_folder_without_loss(tmp_path: Path) -> None:
    fill(tmp_path, **{f"{n}.mp4": b"" for n in range(40)})
    parts = [found(tmp_path, shard=Shard.parse(f"{i}/3"))[0] for i in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(found(tmp_path)[0])
    assert all(parts)


def test_a_file_named_twice_is_one_input(tmp_path: Path) -> None:
    fill(tmp_path, **{"a.mp4": b"", "b/c.mp4": b""})
    names, _ = found(tmp_path, tmp_path / "a.mp4", tmp_path / "b")
    assert sorted(Path(n).name for n in names) == ["a.mp4", "c.mp4"]
