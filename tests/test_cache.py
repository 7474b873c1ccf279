"""The cache gives back what was stored under a key, or nothing."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from faulty_calls import FAULTS, Crash, Fault, for_every_call
from hypothesis import given, settings
from hypothesis import strategies as st

from vtag import cache as cache_module
from vtag import cache_entry
from vtag.cache import CacheEntry, FeatureCache, default_cache_folder
from vtag.errors import CacheError
from vtag.records import Features

KEY = FeatureCache.key("sha256:00", "resnet50@1", "aa")
OTHER_KEY = FeatureCache.key("sha256:01", "resnet50@1", "aa")


def an_entry(seed: int = 0, frames: int = 3, size: int = 5) -> CacheEntry:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((frames, size)).astype(np.float16)
    seconds = np.sort(rng.random(frames)) * 100
    info = {"media": {"duration": 1.5, "name": "ü\udc80\n"}, "warnings": ["a", "b"], "none": None}
    return CacheEntry(Features(rows, seconds, f"resnet50@{seed}"), info)


def same(left: CacheEntry | None, right: CacheEntry) -> bool:
    return (
        left is not None
        and left.features.rows.tobytes() == right.features.rows.tobytes()
        and left.features.rows.shape == right.features.rows.shape
        and left.features.seconds.tobytes() == right.features.seconds.tobytes()
        and left.features.made_by == right.features.made_by
        and left.info == right.info
    )


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def file_of(cache: FeatureCache, key: str = KEY) -> Path:
    return cache.root / key[:2] / f"{key}.safetensors"


@given(frames=st.integers(0, 9), size=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_an_entry_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, frames: int, size: int, seed: int
) -> None:
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    entry = an_entry(seed, frames, size)
    assert cache.get(KEY) is None
    cache.put(KEY, entry)
    found = FeatureCache(cache.root).get(KEY)
    assert same(found, entry)
    assert cache.get(OTHER_KEY) is None
    assert found is not None
    assert found.features.rows.flags.writeable  # torch warns of arrays that are not


def test_rows_that_do_not_lie_in_one_piece(cache: FeatureCache) -> None:
    whole = np.arange(24, dtype=np.float16).reshape(4, 6)
    entry = CacheEntry(Features(whole.T, np.arange(6.0), "x@1"), {})
    cache.put(KEY, entry)
    assert same(cache.get(KEY), entry)


def test_the_file_is_a_safetensors_file(cache: FeatureCache) -> None:
    entry = an_entry()
    cache.put(KEY, entry)
    tensors = safetensors.numpy.load_file(file_of(cache))
    assert set(tensors) == {"rows", "seconds"}
    assert tensors["rows"].tobytes() == entry.features.rows.tobytes()
    assert stat.S_IMODE(file_of(cache).stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_each_part_changes_the_key() -> None:
    keys = {
        FeatureCache.key(*parts)
        for parts in [
            ("a", "b", "c"),
            ("x", "b", "c"),
            ("a", "x", "c"),
            ("a", "b", "x"),
            ("ab", "", "c"),
            ("", "ab", "c"),
            ("a", "bc", ""),
        ]
    }
    assert len(keys) == 7
    assert FeatureCache.key("a", "b", "c") in keys
    with pytest.raises(ValueError, match="not a cache key"):
        FeatureCache(Path("."), read_only=True).get("../../etc/passwd")


def test_every_flipped_byte_is_a_miss(
    cache: FeatureCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = an_entry(frames=40, size=50)
    cache.put(KEY, entry)
    file = file_of(cache)
    good = file.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(0)
    body = rng.integers(header_end, len(good), 100).tolist()
    flips = [(at, mask) for at in range(header_end) for mask in (0x01, 0x20, 0x80)]
    flips += [(at, 1 << int(rng.integers(8))) for at in body]
    for at, mask in flips:
        bad = bytearray(good)
        bad[at] ^= mask
        file.write_bytes(bad)
        assert cache.get(KEY) is None, f"byte {at} ^ {mask}"
        assert not file.exists()
    assert len(caplog.records) == len(flips)
    file.write_bytes(good)
    assert same(cache.get(KEY), entry)


def test_every_cut_and_every_addition_is_a_miss(cache: FeatureCache) -> None:
    cache.put(KEY, an_entry())
    file = file_of(cache)
    good = file.read_bytes()
    for bad in [good[:size] for size in range(len(good))] + [good + b"\0", good + good]:
        file.write_bytes(bad)
        assert cache.get(KEY) is None
        assert not file.exists()


def signed(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A file whose checksum fits, whatever is in it: what only somebody else could write."""
    blob = safetensors.numpy.save(tensors, {**metadata, "checksum": "0" * 64})
    begin, end = cache_entry._checksum_span(blob)
    return blob[:begin] + cache_entry.hashlib.sha256(blob).hexdigest().encode() + blob[end:]


def test_forged_entries_are_a_miss(cache: FeatureCache) -> None:
    rows, seconds = np.ones((2, 3), np.float16), np.arange(2.0)
    tensors = {"rows": rows, "seconds": seconds}
    metadata = {"version": "1", "made_by": "x@1", "key": KEY, "info": "{}"}
    file = file_of(cache)
    file.parent.mkdir()
    file.write_bytes(signed(tensors, metadata))
    assert same(cache.get(KEY), CacheEntry(Features(rows, seconds, "x@1"), {}))

    forged = {
        "of another key": (tensors, {**metadata, "key": OTHER_KEY}),
        "info is no object": (tensors, {**metadata, "info": "[]"}),
        "info is no JSON": (tensors, {**metadata, "info": "{"}),
        "info is deep": (tensors, {**metadata, "info": "[" * 100_000}),
        "no maker": (tensors, {k: v for k, v in metadata.items() if k != "made_by"}),
        "no version": (tensors, {k: v for k, v in metadata.items() if k != "version"}),
        "no rows": ({"seconds": seconds}, metadata),
        "rows of another type": ({**tensors, "rows": rows.astype(np.float32)}, metadata),
        "too few seconds": ({**tensors, "seconds": seconds[:1]}, metadata),
        "not finite": ({**tensors, "rows": rows * np.float16(np.inf)}, metadata),
        "no time": ({**tensors, "seconds": seconds * np.nan}, metadata),
    }
    for what, (bad_tensors, bad_metadata) in forged.items():
        file.write_bytes(signed(bad_tensors, bad_metadata))
        assert cache.get(KEY) is None, what
        assert not file.exists(), what


def test_an_entry_of_another_version_is_a_miss_and_stays(cache: FeatureCache) -> None:
    cache.put(KEY, an_entry(1))
    tensors = {"rows": np.ones((2, 3), np.float16), "seconds": np.arange(2.0)}
    metadata = {"version": "2", "made_by": "x@1", "key": KEY, "info": "{}"}
    file_of(cache).write_bytes(signed(tensors, metadata))
    assert cache.get(KEY) is None
    assert file_of(cache).exists()
    assert cache.verify(remove=True) == []
    cache.put(KEY, an_entry(2))
    assert same(cache.get(KEY), an_entry(2))


def test_sizes_are_looked_at_before_anything_is_read(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(cache)
    file.parent.mkdir()
    with file.open("wb") as sparse:
        sparse.truncate(cache_entry.MAX_ENTRY_BYTES + 1)
    assert cache.get(KEY) is None
    # A header that says it is as long as the file may be
    file.write_bytes((1 << 20 | 1).to_bytes(8, "little") + b"{" * (1 << 21))
    assert cache.get(KEY) is None
    cache.put(KEY, an_entry())
    monkeypatch.setattr(cache_module, "MAX_ENTRY_BYTES", file.stat().st_size)
    assert same(cache.get(KEY), an_entry())
    monkeypatch.setattr(cache_module, "MAX_ENTRY_BYTES", file.stat().st_size - 1)
    assert cache.get(KEY) is None
    monkeypatch.setattr(cache_entry, "MAX_ENTRY_BYTES", 1000)
    with pytest.raises(CacheError, match="too large"):
        cache.put(KEY, an_entry(frames=100))


def test_a_link_or_a_pipe_in_place_of_an_entry_is_a_miss(
    cache: FeatureCache, tmp_path: Path
) -> None:
    cache.put(KEY, an_entry())
    file = file_of(cache)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.get(KEY) is None
    with pytest.raises(CacheError, match="is a symbolic link"):
        cache.put(KEY, an_entry(1))
    assert same(cache_entry.decode(KEY, (tmp_path / "elsewhere").read_bytes()), an_entry())
    file.unlink()
    os.mkfifo(file)
    assert cache.get(KEY) is None


def test_features_that_are_not_finite_are_not_stored(cache: FeatureCache) -> None:
    rows = np.array([[1, np.inf]], np.float16)
    with pytest.raises(CacheError, match="not finite"):
        cache.put(KEY, CacheEntry(Features(rows, np.zeros(1), "x@1"), {}))
    assert cache.info().entries == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("had_one", [True, False])
def test_put_leaves_the_old_entry_or_the_new_one(
    cache: FeatureCache, fault: Fault, had_one: bool
) -> None:
    old, new = an_entry(1), an_entry(2, frames=7)
    real_put = FeatureCache(cache.root).put

    def prepare() -> None:
        cache.clear()
        if had_one:
            real_put(KEY, old)

    def check(raised: BaseException | None) -> None:
        if raised is None:
            assert same(cache.get(KEY), new)
        else:
            found = cache.get(KEY)
            assert same(found, new) or (same(found, old) if had_one else found is None)
        if not isinstance(raised, Crash):
            assert [file.name for file in cache._files()] in ([], [file_of(cache).name])
        cache.put(KEY, new)  # and it goes on as if nothing had been
        assert same(cache.get(KEY), new)

    met = for_every_call(
        fault,
        prepare=prepare,
        act=lambda: cache.put(KEY, new),
        check=check,
        expected=CacheError,
    )
    assert met >= (1 if fault in ("short write", "crash in a write") else 8)


def test_a_full_disk_is_said_in_one_line(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_whole", full)
    with pytest.raises(CacheError) as caught:
        cache.put(KEY, an_entry())
    assert str(caught.value) == (
        f"{file_of(cache)}: features can not be stored (no space left on the disk); free some "
        "space with `vtag cache prune`, or choose another folder with --cache"
    )


def test_where_nothing_may_be_written_no_space_is_asked_for(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache_module, "write_whole", denied)
    with pytest.raises(CacheError, match=r"\(.*ermission.*\); choose another folder with --cache$"):
        cache.put(KEY, an_entry())


def test_an_entry_that_can_not_be_read_is_a_miss_and_said_once(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, an_entry())

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "open_regular", denied)
        assert [cache.get(KEY), cache.get(KEY)] == [None, None]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert same(cache.get(KEY), an_entry())  # it was not removed


def test_somebody_elses_folder_is_refused_by_name(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(KEY, an_entry())
    monkeypatch.setattr(os, "geteuid", lambda: cache.root.stat().st_uid + 1)
    with pytest.raises(CacheError, match=r"\(belongs to user \w+\); choose another folder"):
        FeatureCache(cache.root)
    assert same(FeatureCache(cache.root, read_only=True).get(KEY), an_entry())


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="can not be used as feature cache"):
            FeatureCache(root)


def test_read_only_changes_nothing(cache: FeatureCache) -> None:
    cache.put(KEY, an_entry())
    cache.put(OTHER_KEY, an_entry(1))
    os.utime(file_of(cache), (1e9, 1e9))
    file_of(cache, OTHER_KEY).write_bytes(b"damaged")
    reader = FeatureCache(cache.root, read_only=True)
    assert same(reader.get(KEY), an_entry())
    assert reader.get(OTHER_KEY) is None
    assert [bad.path for bad in reader.verify(remove=True)] == [file_of(cache, OTHER_KEY)]
    reader.put(FeatureCache.key("new", "x", "y"), an_entry())
    for change in (reader.clear, lambda: reader.prune(0)):
        with pytest.raises(CacheError, match="read only"):
            change()
    assert reader.info().entries == 2
    assert file_of(cache).stat().st_mtime == 1e9
    assert FeatureCache(cache.root / "none", read_only=True).get(KEY) is None
    assert FeatureCache(cache.root / "none", read_only=True).info().entries == 0


def filled(cache: FeatureCache, count: int) -> list[str]:
    """Keys of entries of the same size, the first used longest ago: hours before now."""
    keys = [FeatureCache.key(str(n), "x", "y") for n in range(count)]
    for n, key in enumerate(keys):
        cache.put(key, an_entry(n))
        used = time.time() - 3600 * (count - n)
        os.utime(file_of(cache, key), (used, used))
    return keys


def test_prune_removes_what_was_used_longest_ago(cache: FeatureCache) -> None:
    keys = filled(cache, 5)
    size = file_of(cache, keys[0]).stat().st_size
    assert cache.info().bytes == 5 * size
    assert cache.info().oldest == pytest.approx(time.time() - 5 * 3600, abs=60)
    assert same(cache.get(keys[0]), an_entry(0))  # used now, so it stays longest
    assert cache.prune(5 * size) == 0
    assert cache.prune(3 * size) == 2
    assert [n for n in range(5) if cache.get(keys[n])] == [0, 3, 4]
    assert cache.prune(3 * size - 1) == 1
    assert cache.prune(0) == 2
    assert cache.info().entries == cache.info().bytes == 0
    assert cache.info().oldest is None


def test_prune_by_age(cache: FeatureCache) -> None:
    keys = filled(cache, 5)  # used 5, 4, 3, 2, 1 hours ago
    assert cache.prune(older_than_seconds=2.5 * 3600) == 3
    assert [n for n in range(5) if file_of(cache, keys[n]).exists()] == [3, 4]
    assert cache.prune() == 0


def test_prune_spares_what_is_used_meanwhile(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = filled(cache, 3)
    size = file_of(cache, keys[0]).stat().st_size
    real = cache._stored

    def used_after_the_listing() -> list[object]:
        listed = list(real())
        cache.get(keys[0])  # another run uses one
        file_of(cache, keys[1]).unlink()  # and another prune removes one
        return listed

    monkeypatch.setattr(cache, "_stored", used_after_the_listing)
    assert cache.prune(2 * size) == 0
    assert [file_of(cache, key).exists() for key in keys] == [True, False, True]


def test_clear_removes_entries_and_nothing_else(cache: FeatureCache) -> None:
    filled(cache, 3)
    strangers = [cache.root / "notes.txt", cache.root / "ab" / "mine.safetensors"]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_text("mine")
    (cache.root / "ab" / ".vtag-1-0123456789abcdef.part").write_bytes(b"left by a killed run")
    assert cache.clear() == 3
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(strangers)


def test_prune_removes_what_killed_runs_left_but_not_what_is_being_written(
    cache: FeatureCache,
) -> None:
    filled(cache, 1)
    (folder,) = (path for path in cache.root.iterdir() if path.is_dir())
    old, young = (folder / f".vtag-{n}-0123456789abcdef.part" for n in (1, 2))
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    cache.prune()
    assert (old.exists(), young.exists()) == (False, True)


def test_verify_names_what_is_bad_and_why(cache: FeatureCache) -> None:
    keys = filled(cache, 3)
    file_of(cache, keys[1]).write_bytes(file_of(cache, keys[0]).read_bytes())
    data = bytearray(file_of(cache, keys[2]).read_bytes())
    data[-1] ^= 1
    file_of(cache, keys[2]).write_bytes(data)
    expected = sorted(
        [
            f"{file_of(cache, keys[1])}: it was stored under another key",
            f"{file_of(cache, keys[2])}: the checksum does not fit",
        ]
    )
    assert sorted(map(str, cache.verify())) == expected
    assert sorted(map(str, cache.verify(remove=True))) == expected
    assert cache.verify() == []
    assert cache.info().entries == 1


WORK = """
import sys, time
import numpy as np
from pathlib import Path
from vtag.cache import CacheEntry, FeatureCache
from vtag.records import Features

cache, role, seed = FeatureCache(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(seed)
hits = 0
end = time.monotonic() + 1.5
# On a busy machine longer, until it was served once.
while time.monotonic() < end or (role == "use" and not hits and time.monotonic() < end + 40):
    n = int(rng.integers(20))
    key = FeatureCache.key(str(n), "x", "y")
    if role == "prune":
        cache.prune(int(rng.integers(20)) * 4000)
        continue
    found = cache.get(key)
    if found is None:
        rows = np.full((n, 100), n, np.float16)
        cache.put(key, CacheEntry(Features(rows, np.arange(float(n)), f"x@{n}"), {"n": n}))
    else:
        hits += 1
        assert found.info == {"n": n} and found.features.rows.shape == (n, 100)
        assert (found.features.rows == n).all()
print(hits)
"""


def test_processes_that_read_write_and_prune_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path / "cache"), role, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, role in enumerate(["use", "use", "use", "prune"])
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [err for _, err in outputs] == [""] * 4  # no warning of a damaged entry, no error
    assert all(int(out) > 0 for out, _ in outputs[:3])
    assert FeatureCache(tmp_path / "cache").verify() == []
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VTAG_CACHE_DIR", raising=False)
    if sys.platform.startswith("linux"):  # the XDG base directory specification
        assert default_cache_folder() == tmp_path / "vtag"
    monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"


def test_info_is_kept_as_json(cache: FeatureCache) -> None:
    cache.put(KEY, an_entry())
    blob = file_of(cache).read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert json.loads(header["__metadata__"]["info"]) == an_entry().info
