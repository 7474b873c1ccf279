"""What names mean: protocols, secrets in addresses, listings, globs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import Fault, Server, s3_server

from vtag.discover import Discovery, Shard
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.remote import FsspecStore, RemoteSettings
from vtag.remote_errors import Patience
from vtag.remote_glob import Pattern
from vtag.sources import Source, find_sources
from vtag.uris import Uri, is_remote, parse, redact, redact_all

SECRET = "s3cr3tSIGNATUREs3cr3t"


@pytest.mark.parametrize(
    "name",
    [
        "zip://a.mp4::s3://bucket/x.zip",
        "filecache::s3://bucket/x.mp4",
        "simplecache::https://host/x.mp4",
        "s3://bucket/reference::http://host/x",
        "reference://x",
        "memory://x",
        "ftp://host/x.mp4",
        "ssh://host/x.mp4",
        "hdfs://host/x.mp4",
        "data://text/plain,x",
        "concat://a|b",
        "s3:///key",
        "s3://key:secret@bucket/x.mp4",
        "http:///x.mp4",
        "file://otherhost/x.mp4",
    ],
)
def test_protocols_that_are_not_spoken_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        parse(name)


@pytest.mark.parametrize("name", ["12:30.mp4", "a::b.mp4", "C:/x.mp4", "s3:/x", "x", "./s3://x"])
def test_names_that_only_look_odd_stay_local(name: str) -> None:
    assert parse(name) == name


def test_a_file_address_is_the_local_path() -> None:
    assert parse("file:///a%20b/c.mp4") == "/a b/c.mp4"
    assert Source("file:///a%20b/c.mp4").path == "/a b/c.mp4"
    assert Source("file:///x.mp4").remote is None


def test_protocols_have_one_spelling() -> None:
    assert [Source(u).path for u in ("S3://b/k", "s3a://b/k", "gcs://b/k")] == [
        "s3://b/k",
        "s3://b/k",
        "gs://b/k",
    ]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (f"https://u:{SECRET}@h/x.mp4", "https://h/x.mp4"),
        (f"https://h/x.mp4?X-Amz-Signature={SECRET}&X-Amz-Expires=60", "https://h/x.mp4"),
        (f"https://h/watch?v=7&sig={SECRET}", "https://h/watch?v=7"),
        (f"https://h/x.mp4?Access_Token={SECRET}&part=2#t=3", "https://h/x.mp4?part=2"),
        (f"https://a.blob.net/c/x.mp4?sv=2024&sp=r&sig={SECRET}", "https://a.blob.net/c/x.mp4"),
        (f"https://h/x?q={SECRET * 2}", "https://h/x"),
        ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4"),
    ],
)
def test_what_opens_an_address_is_never_shown(address: str, public: str) -> None:
    source = Source(address)
    assert source.path == public
    for shown in (str(source), repr(source), repr(source.remote), redact_all(f"at '{address}'")):
        assert SECRET not in shown
    assert source.to_row()["uri"] == address.partition("#")[0] or "#" in address


def test_an_address_that_is_signed_anew_is_the_same_input() -> None:
    first, second = (redact(f"https://h/x.mp4?Expires={n}&Signature=a{n}") for n in (1, 2))
    assert first == second


@given(st.text(), st.integers(0), st.floats(0, 1e12))
def test_a_row_gives_the_source_back(name: str, size: int, seconds: float) -> None:
    try:
        source = Source(name, size=size, duration=seconds, etag="e", modified=seconds)
    except ConfigError:
        return
    if name and "\0" not in name:
        assert Source.from_row(source.to_row()) == source


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"uri": ""},
        {"uri": 7},
        {"uri": "a\0b"},
        {"uri": "a", "size": -1},
        {"uri": "a", "duration": "x"},
        {"uri": "a", "size": "nan"},
        {"uri": "zip://x"},
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Source.from_row(row)


def names(*given_names: str, shard: Shard | None = None) -> list[str]:
    return [s.path for s in find_sources([*given_names], Discovery(), shard=shard)]


def test_local_folders_files_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("v/a.mp4", "v/deep/b.mkv", "v/c[1].mp4", "v/n.txt", "w/d.mp4"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    assert names("v") == ["v/a.mp4", "v/c[1].mp4", "v/deep/b.mkv"]
    assert names("*/*.mp4") == ["v/a.mp4", "v/c[1].mp4", "w/d.mp4"]
    assert names("v/**") == ["v/a.mp4", "v/c[1].mp4", "v/deep/b.mkv"]
    assert names("v/c[1].mp4") == ["v/c[1].mp4"]  # a name that is there is that file
    assert names("none*.mp4") == ["none*.mp4"]  # it fails with a record, not in silence
    assert names("v", "v/a.mp4") == names("v")
    assert names(f"file://{tmp_path}/w") == [f"{tmp_path}/w/d.mp4"]


def test_nothing_named_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="nothing to tag"):
        names()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as made:
        for key in (
            *(f"v/{n:02}.mp4" for n in range(12)),
            "v/n.txt",
            "v/deep/é x.mkv",
            "v-old/a.mp4",
        ):
            made.client.put_object(Bucket="library", Key=key, Body=b"x" * len(key))
        made.client.put_object(Bucket="library", Key="v/")
        yield made


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pages of five, so that every listing here takes several.
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    if "server" in request.fixturenames:
        for name, value in request.getfixturevalue("server").environment.items():
            monkeypatch.setenv(name, value)


FOLDER = [*(f"s3://library/v/{n:02}.mp4" for n in range(12)), "s3://library/v/deep/é x.mkv"]


def test_a_bucket_is_listed_page_by_page(server: Server) -> None:
    server.asked.clear()
    discovery = Discovery()
    listing = find_sources(["s3://library/v/"], discovery)
    first = next(listing)
    assert (first.path, first.size) == (FOLDER[0], len("v/00.mp4"))
    assert first.stamp is not None
    assert len(server.asked) == 1  # the rest is not taken before it is asked for
    assert [s.path for s in listing] == FOLDER[1:]
    assert len(server.asked) == 3
    assert discovery.ignored == 1  # v/n.txt


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://library/v", FOLDER),
        ("s3://library/v/", FOLDER),
        ("s3://library", sorted([*FOLDER, "s3://library/v-old/a.mp4"], key=str.encode)),
        ("s3://library/v/0[1-3].mp4", FOLDER[1:4]),
        ("s3://library/v/?1.mp4", [FOLDER[1], FOLDER[11]]),
        ("s3://library/v*/*.mp4", ["s3://library/v-old/a.mp4", *FOLDER[:12]]),
        ("s3://library/**/*.mkv", FOLDER[12:]),
        ("s3://library/v/**", FOLDER),
        ("s3://library/v/05.mp4", [FOLDER[5]]),
        ("s3://library/not there.mp4", ["s3://library/not there.mp4"]),
        ("s3://library/nothing", ["s3://library/nothing"]),
        ("s3://library/nothing/", []),
    ],
)
def test_what_a_name_in_a_bucket_means(server: Server, name: str, expected: list[str]) -> None:
    assert sorted(names(name)) == sorted(expected)


@given(st.integers(1, 6))
def test_shards_of_a_bucket_have_every_object_once(count: int) -> None:
    # Without a server: the keys as a listing would give them, through the same rule.
    keys = [name.removeprefix("s3://library/v/") for name in FOLDER]
    for key in keys:
        assert sum(Shard(i, count).holds(key) for i in range(1, count + 1)) == 1


def test_shards_of_a_listing_add_up(server: Server) -> None:
    parts = [names("s3://library/v/", shard=Shard(i, 3)) for i in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(FOLDER)
    assert all(parts)


def test_a_bucket_that_can_not_be_listed_ends_the_run_and_says_so(server: Server) -> None:
    with pytest.raises(EnvironmentProblem, match="s3://no-such-bucket/: can not be listed"):
        names("s3://no-such-bucket/")
    server.faults = [Fault(part="library", status=403, code="AccessDenied")]
    with pytest.raises(EnvironmentProblem, match="access is denied"):
        names("s3://library/v/")


def test_a_listing_that_breaks_in_the_middle_is_never_taken_for_the_whole(server: Server) -> None:
    server.faults = [Fault(part="library", status=403, code="AccessDenied", skip=1)]
    with pytest.raises(EnvironmentProblem):
        names("s3://library/v/")


def test_storage_is_not_asked_when_the_network_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VTAG_OFFLINE", "1")
    with pytest.raises(EnvironmentProblem, match="VTAG_OFFLINE"):
        names("s3://library/v/")


def test_other_storages_are_listed_through_fsspec() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    fs = MemoryFileSystem()
    for key in ("b/v/1.mp4", "b/v/deep/2.mp4", "b/v/deep/er/3.mp4", "b/w/4.mp4"):
        fs.pipe_file(f"/{key}", key.encode())
    settings = RemoteSettings(patience=Patience(attempts=1))
    store = FsspecStore("gs", settings, fs=fs)
    found = list(store.list(Uri("gs", "gs://b/v/", "gs://b/v/")))
    assert [(s.key, s.size) for s in found] == [
        ("v/1.mp4", 9),
        ("v/deep/2.mp4", 14),
        ("v/deep/er/3.mp4", 17),
    ]
    one = Uri("gs", "gs://b/v/1.mp4", "gs://b/v/1.mp4")
    assert store.read(one, 2, 9, store.stat(one)) == b"v/1.mp4"
    store.put(one, b"another")
    assert store.stat(one).size == 7
    store.delete(one)
    store.delete(one)
    assert [s.key for s in store.list(Uri("gs", "gs://b/v/1", "gs://b/v/1"))] == []
    fs.store.clear()


@given(st.text(alphabet="ab*?/[]!.", max_size=8), st.text(alphabet="ab/.", max_size=8))
def test_a_pattern_agrees_with_a_slow_reading_of_it(pattern: str, key: str) -> None:
    text = f"s3://x/{pattern}"
    if not any(mark in pattern for mark in "*?") or "[" in pattern:
        return
    assert Pattern(Uri("s3", text, text)).matches(key) == slow_match(pattern, key)


def slow_match(pattern: str, key: str) -> bool:
    """By trying every way to spend the key on the pattern."""
    if not pattern:
        return not key
    if pattern.startswith("**/"):
        rest = pattern[3:]
        ends = [0, *(i + 1 for i, c in enumerate(key) if c == "/")]
        return any(slow_match(rest, key[end:]) for end in ends)
    if pattern.startswith("**"):
        return any(slow_match(pattern[2:], key[i:]) for i in range(len(key) + 1))
    if pattern[0] == "*":
        stop = key.find("/") if "/" in key else len(key)
        return any(slow_match(pattern[1:], key[i:]) for i in range(stop + 1))
    if not key or (pattern[0] == "?" and key[0] == "/"):
        return False
    return (pattern[0] in ("?", key[0])) and slow_match(pattern[1:], key[1:])


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import vtag.remote

    def gone(*_: object, **__: object) -> None:
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr("fsspec.filesystem", gone)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'vtag\[gcs\]'"):
        vtag.remote._filesystem("gs")


def test_is_remote_tells_addresses_from_paths() -> None:
    assert is_remote("s3://b/k")
    assert not is_remote("/mnt/s3")
    assert not is_remote(os.curdir)
