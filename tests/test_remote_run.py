"""The real command on a real S3 server: the same records as from the disk, whatever fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import draw_clip
from s3_server import Fault, Server, s3_server

from vtag.cache_entry import CacheEntry
from vtag.cli import main
from vtag.content_id import ContentIds
from vtag.errors import CacheError, ConfigError, MediaError
from vtag.records import Failure, Features, Record
from vtag.remote import RemoteSettings
from vtag.remote_cache import RemoteFeatureCache, SharedIds
from vtag.remote_errors import Patience
from vtag.remote_spool import Spool
from vtag.remote_tagger import SourceTagger
from vtag.run import Summary, run
from vtag.sources import Source

CLIPS = 4
FAST = ["--storage-attempts", "3", "--storage-timeout", "5"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as made:
        yield made


@pytest.fixture(scope="module")
def library(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files in a folder and under s3://library/v/: good ones, copies, broken ones."""
    folder = tmp_path_factory.mktemp("library")
    for n in range(CLIPS):
        draw_clip(folder / f"clip {n}.mp4", seconds=1 + n / 5, fps=10, size=(96, 64))
    (folder / "copy.mp4").write_bytes((folder / "clip 0.mp4").read_bytes())
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mkv").write_bytes(b"")
    for file in folder.iterdir():
        server.client.put_object(Bucket="library", Key=f"v/{file.name}", Body=file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.faults, server.asked = [], []
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VTAG_SPOOL_DIR", str(tmp_path / "spool"))


def essence(line: str) -> str:
    """A record without what may differ: where it lies, what was told of it, how long it took."""
    fields = json.loads(line)
    for name in ("timing", "source"):
        fields.pop(name, None)
    fields["path"] = fields["path"].rpartition("/")[2]
    if "error" in fields:
        fields["error"].pop("message")
    return json.dumps(fields, sort_keys=True)


def lines(out: Path) -> list[str]:
    return out.read_text(encoding="utf-8").splitlines()


def test_the_records_are_those_of_the_disk(library: Path, server: Server, tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert main(["run", str(library), "--out", str(here), "--no-cache"]) == 1
    server.faults = [
        Fault(part="clip 1", status=500),
        Fault(part="clip 2", status=503, code="SlowDown", times=2),
        Fault(part="clip 3", cut=300),
        Fault("HEAD", "clip 4", status=500),
    ]
    assert main(["run", "s3://library/v/", "--out", str(there), "--no-cache", *FAST]) == 1
    assert Counter(map(essence, lines(there))) == Counter(map(essence, lines(here)))
    for line in lines(there):
        fields = json.loads(line)
        assert fields["path"].startswith("s3://library/v/")
        assert str(tmp_path) not in line
        assert (
            fields["source"]["size"] == (library / fields["path"].rpartition("/")[2]).stat().st_size
        )
    assert list((tmp_path / "spool").iterdir()) == []

    # Again: only the object that was replaced is fetched, and for the others only the listing.
    server.asked.clear()
    body = (library / "clip 3.mp4").read_bytes()
    server.client.put_object(Bucket="library", Key="v/copy.mp4", Body=body)
    try:
        main(["run", "s3://library/v/", "--out", str(there), "--no-cache", *FAST])
    finally:
        old = (library / "copy.mp4").read_bytes()
        server.client.put_object(Bucket="library", Key="v/copy.mp4", Body=old)
    assert {p for _, p, _ in server.asked} == {"/library", "/library/v/copy.mp4"}
    ids = {json.loads(line)["path"]: json.loads(line)["id"] for line in lines(there)}
    assert ids["s3://library/v/copy.mp4"] == ids["s3://library/v/clip 3.mp4"]
    assert len(ids) == len(lines(there)) == CLIPS + 3


def test_shards_of_a_plan_merge_to_the_whole(
    library: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(tmp_path / "plan.csv")
    assert main(["plan", "s3://library/v/", "--out", plan, "--probe", "--shards", "2"]) == 0
    assert f"{CLIPS + 3} inputs" in capsys.readouterr().err
    bucket = f"s3://library/{tmp_path.name}"
    shared = f"{bucket}-cache"
    for index in (1, 2):
        arguments = ["--manifest", plan, "--shard", f"{index}/2", "--cache", shared]
        assert main(["run", *arguments, "--out", bucket, *FAST]) in (0, 1)
    merged = tmp_path / "all.jsonl"
    assert main(["merge", bucket, "--out", str(merged), "--plan", plan]) == 1
    whole = tmp_path / "whole.jsonl"
    # From the cache that the shards filled: nothing is fetched but what has no features.
    server.asked.clear()
    (tmp_path / "cache").rename(tmp_path / "another machine's")
    assert main(["run", "s3://library/v/", "--cache", shared, "--out", str(whole), *FAST]) == 1
    assert Counter(map(essence, lines(merged))) == Counter(map(essence, lines(whole)))
    assert len(lines(whole)) == CLIPS + 3
    assert {p for m, p, _ in server.asked if m == "GET" and "/v/" in p} == {"/library/v/text.mp4"}


def test_kills_of_a_shard_lose_and_double_nothing(library: Path, tmp_path: Path) -> None:
    expected = Counter(file.name for file in library.iterdir())
    out = f"s3://library/{tmp_path.name}-killed"
    command = [sys.executable, "-m", "vtag", "run", "s3://library/v/", "--out", out, "--quiet"]
    code = (
        "import vtag.parts, vtag.cli, sys; vtag.parts.PartWriter.__init__.__kwdefaults__.update("
        "max_records=2); sys.exit(vtag.cli.main(sys.argv[1:]))"
    )
    small_parts = [sys.executable, "-c", code, *command[3:], "--workers", "1"]
    rng = random.Random(5)
    from vtag.parts import parts_of
    from vtag.remote_folder import open_folder

    folder = open_folder(out)
    kills = 0
    for wanted in (1, 2):
        process = subprocess.Popen(small_parts, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(parts_of(folder)) < wanted:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        kills += process.wait() < 0
    assert kills >= 1  # else the rest would prove nothing
    final = subprocess.run(small_parts, stderr=subprocess.PIPE, text=True, timeout=120)
    assert final.returncode == 1, final.stderr
    merged = tmp_path / "all.jsonl"
    assert main(["merge", out, "--out", str(merged)]) == 1
    found = [json.loads(line)["path"].rpartition("/")[2] for line in lines(merged)]
    assert Counter(found) == expected
    # The next spool in that folder removes what the kills left there.
    Spool(tmp_path / "spool").close()
    assert [p for p in (tmp_path / "spool").iterdir() if p.is_dir()] == []


def test_secrets_of_addresses_are_in_no_output(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "abcdef0123456789abcdef"
    host = server.url.removeprefix("http://")
    names = [
        f"http://user:{secret}@{host}/none.mp4",
        f"{server.url}/x.mp4?X-Amz-Signature={secret}",
    ]
    (tmp_path / "m.txt").write_text(f"{server.url}/y.mp4?token={secret}\n")
    out, counts = tmp_path / "tags.jsonl", tmp_path / "counts.json"
    arguments = ["run", *names, "--manifest", str(tmp_path / "m.txt"), "--out", str(out), "-vv"]
    assert main([*arguments, "--summary-json", str(counts), *FAST, "--no-cache"]) == 1
    assert [json.loads(line)["error"]["code"] for line in lines(out)]
    assert {json.loads(line)["path"] for line in lines(out)} == {
        f"http://{host}/none.mp4",
        f"{server.url}/x.mp4",
        f"{server.url}/y.mp4",
    }
    captured = capsys.readouterr()
    written = [p.read_text(errors="replace") for p in tmp_path.glob("*.json*")]
    for text in (captured.err, captured.out, *written):
        assert secret not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s3://b/a::https://h/x", "--out", "t.jsonl"], "chains of protocols"),
        (["memory://x", "--out", "t.jsonl"], "memory is not spoken"),
        (["v", "--out", "https://h/x"], "nothing is written over http"),
        (["v", "--out", "memory://h/x"], "not spoken"),
        (["--out", "t.jsonl"], "nothing to tag"),
        (["v", "--out", "t", "--spool-size", "1G", "--max-object-size", "2G"], "does not fit"),
        (["v", "--out", "t", "--spool-size", "0"], "above 0"),
        (["v", "--out", "t", "--storage-attempts", "0"], "above 0"),
        (["--manifest", "none.csv", "--out", "t"], "none.csv: can not be read"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main(["run", *arguments, "--no-cache"]) == 2
    finally:
        os.chdir(before)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# -- the parts, with a scripted pipeline --------------------------------------------------------


class ScriptedPipeline:
    """Tags whatever it gets and remembers what it opened."""

    def __init__(self, folder: Path) -> None:
        self.cache = None
        self.content_ids = ContentIds(folder)
        self.opened: list[bytes] = []
        self.features: set[str] = set()

    def try_tag(self, path: str | Path, content_id: str | None = None) -> Record:
        data = Path(path).read_bytes()
        self.opened.append(data)
        if b"bad" in data:
            err = MediaError(f"{path}: broken", code="corrupt", stage="video")
            return self.failed(path, err, content_id)
        return Record(
            path=str(path), status="ok", id=content_id, warnings=(f"{path}: odd",), timing={"x": 1}
        )

    def tag_cached(self, path: str, content_id: str) -> Record | None:
        known = content_id in self.features
        return Record(path=path, status="ok", id=content_id) if known else None

    def failed(self, path: str | Path, err: MediaError, content_id: str | None = None) -> Record:
        error = Failure(code=err.code, stage=err.stage, message=str(err), retryable=err.retryable)
        return Record(path=str(path), status="failed", id=content_id, error=error)


class Memory:
    """Results in a list."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def done(self, path: str, content_id: str | None) -> bool:
        found = self.records.get(path)
        return found is not None and content_id in (None, found.id)

    def done_as(self, path: str, stamp: str | None) -> bool:
        found = self.records.get(path)
        return bool(found and found.source and stamp and found.source.stamp == stamp)

    def failed(self, path: str) -> bool:
        return not self.records[path].ok

    def write(self, record: Record) -> None:
        assert record.path not in self.records or not self.done_as(
            record.path, record.source.stamp if record.source else None
        )
        self.records[record.path] = record


def test_a_scripted_storm_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    rng = random.Random(11)
    sources, expected = [], {}
    for n in range(60):
        key = f"storm/{n}.mp4"
        body = (b"bad" if n % 10 == 3 else b"good") + bytes([n]) * rng.randrange(1, 5000)
        server.client.put_object(Bucket="library", Key=key, Body=body)
        sources.append(Source(f"s3://library/{key}"))
        expected[f"s3://library/{key}"] = "corrupt" if n % 10 == 3 else None
    for n, kind in ((7, "gone"), (17, "denied"), (27, "dead")):
        path = f"s3://library/storm/{n}.mp4"
        expected[path] = {
            "gone": "source_not_found",
            "denied": "source_denied",
            "dead": "source_unreachable",
        }[kind]
    server.client.delete_object(Bucket="library", Key="storm/7.mp4")
    server.faults = [
        Fault(part="storm/17.mp4", status=403, code="AccessDenied", times=999),
        Fault(part="storm/27.mp4", status=503, code="SlowDown", times=999),
        *(
            Fault(
                part="storm/",
                status=rng.choice([500, 503, 0]),
                cut=rng.choice([-1, 0]),
                skip=rng.randrange(30),
            )
            for _ in range(15)
        ),
    ]
    settings = RemoteSettings(timeout_seconds=5, patience=Patience(8, 0.01, 0.1))
    pipeline: Any = ScriptedPipeline(tmp_path)
    results, summary = Memory(), Summary()
    with Spool(tmp_path / "s", max_bytes=20_000, settings=settings) as spool:
        tagger = SourceTagger(pipeline, spool)
        list(run(tagger, sources, results, summary, workers=4))
    assert {p: r.error.code if r.error else None for p, r in results.records.items()} == expected
    assert (summary.inputs, summary.tagged + summary.failed, summary.unfinished) == (60, 60, 0)
    assert not any(str(tmp_path) in json.dumps(r.to_dict()) for r in results.records.values())

    # A second run touches nothing that has its record, and failures stay failures.
    before = len(pipeline.opened)
    second = Summary()
    with Spool(tmp_path / "s", settings=settings) as spool:
        list(run(SourceTagger(pipeline, spool), sources, results, second, workers=4))
    assert (second.skipped, second.tagged, len(pipeline.opened)) == (60, 0, before)


def test_what_is_known_is_not_fetched(server: Server, tmp_path: Path) -> None:
    server.client.put_object(Bucket="library", Key="k/a.mp4", Body=b"good")
    source = Source("s3://library/k/a.mp4")
    pipeline: Any = ScriptedPipeline(tmp_path)
    with Spool(tmp_path / "s") as spool:
        tagger = SourceTagger(pipeline, spool)
        first = tagger.tag(source)
        assert first.id is not None
        pipeline.features.add(first.id)
        again = tagger.tag(source)
        assert len(server.gets("k/a.mp4")) == 1
        assert (again.id, again.source) == (first.id, first.source)
        # Another content under the same name has another stamp.
        server.client.put_object(Bucket="library", Key="k/a.mp4", Body=b"good too")
        assert tagger.tag(source).id != first.id


def test_a_storage_that_is_away_does_not_turn_tags_into_failures(
    server: Server, tmp_path: Path
) -> None:
    server.client.put_object(Bucket="library", Key="k/b.mp4", Body=b"good")
    source = Source("s3://library/k/b.mp4")
    settings = RemoteSettings(patience=Patience(attempts=1))
    pipeline: Any = ScriptedPipeline(tmp_path)
    results = Memory()
    with Spool(tmp_path / "s", settings=settings) as spool:
        tagger = SourceTagger(pipeline, spool)
        results.write(tagger.tag(source))
        server.faults = [Fault("", "k/b.mp4", status=500, times=9)]
        assert tagger.tag_unless_done(source, results) == source.path
        failed = tagger.tag(source)
        assert failed.error is not None
        assert (failed.error.code, failed.error.retryable) == ("source_unreachable", True)


# -- the shared cache ---------------------------------------------------------------------------


def entry(seed: int) -> CacheEntry:
    rows = np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float16)
    return CacheEntry(Features(rows, np.arange(5.0), "x@1"), {"seed": seed})


def key(n: int) -> str:
    return f"{n:064x}"


def test_many_writers_share_one_cache_and_read_whole_entries(
    server: Server, tmp_path: Path
) -> None:
    caches = [RemoteFeatureCache(f"s3://library/{tmp_path.name}-many") for _ in range(4)]
    wrong: list[object] = []

    def work(cache: RemoteFeatureCache, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            n = rng.randrange(6)
            if rng.random() < 0.5:
                cache.put(key(n), entry(n))
            else:
                found = cache.get(key(n))
                if found is not None and not np.array_equal(
                    found.features.rows, entry(n).features.rows
                ):
                    wrong.append(n)

    threads = [threading.Thread(target=work, args=[c, n]) for n, c in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    assert caches[0].info().entries == 6
    assert caches[0].verify() == []


def test_a_damaged_entry_is_a_miss_and_replaced(server: Server, tmp_path: Path) -> None:
    where = f"s3://library/{tmp_path.name}-bad"
    cache = RemoteFeatureCache(where)
    assert cache.get(key(1)) is None
    cache.put(key(1), entry(1))
    name = f"{tmp_path.name}-bad/{key(1)[:2]}/{key(1)}.safetensors"
    data = bytearray(server.client.get_object(Bucket="library", Key=name)["Body"].read())
    data[-3] ^= 1
    server.client.put_object(Bucket="library", Key=name, Body=bytes(data))
    assert cache.get(key(1)) is None
    assert [bad.why for bad in cache.verify()] == ["the checksum does not fit"]
    cache.put(key(1), entry(1))
    assert cache.get(key(1)) is not None
    with pytest.raises(ConfigError):
        cache.prune(0)
    with pytest.raises(ConfigError):
        cache.clear()


def test_a_cache_that_is_away_is_a_miss_and_a_warning(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = RemoteFeatureCache(
        f"s3://library/{tmp_path.name}", settings=RemoteSettings(patience=Patience(attempts=1))
    )
    server.faults = [Fault("", tmp_path.name, status=403, code="AccessDenied", times=9)]
    assert cache.get(key(1)) is None
    assert cache.get(key(2)) is None
    assert len(caplog.records) == 1  # once, and not for each of a million
    with pytest.raises(CacheError, match="can not be stored"):
        cache.put(key(1), entry(1))


def test_content_ids_travel_between_machines(server: Server, tmp_path: Path) -> None:
    cache = RemoteFeatureCache(f"s3://library/{tmp_path.name}-ids")
    one, two = (SharedIds(ContentIds(tmp_path / name), cache) for name in ("one", "two"))
    content_id = "sha256:" + "ab" * 32
    one.remember("s3://b/x", "stamp", content_id)
    assert two.recall("s3://b/x", "stamp") == content_id
    assert two.recall("s3://b/x", "another") is None
    server.asked.clear()
    assert two.recall("s3://b/x", "stamp") == content_id
    assert server.asked == []  # by now it knows by itself
