"""Storage that fails: what is tried again, what is not, and what comes out is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import Fault, Server, s3_server

from vtag.errors import EnvironmentProblem, MediaError
from vtag.remote import RemoteSettings, store_for
from vtag.remote_errors import Kind, Patience, RemoteError, classify, patiently
from vtag.remote_http import refuse_inside
from vtag.remote_spool import Spool
from vtag.sources import Source
from vtag.uris import Uri, parse

FAST = RemoteSettings(timeout_seconds=1.0, patience=Patience(attempts=3, base_seconds=0.01))
BLOCK_BYTES = 1 << 16  # instead of 8 MiB, so that many ranges are small
HEAD = b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"


def media(size: int, seed: int = 0) -> bytes:
    """Bytes that begin like an MP4."""
    return (HEAD + hashlib.shake_128(bytes([seed])).digest(max(0, size - len(HEAD))))[:size]


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with s3_server() as made:
        yield made


@pytest.fixture
def server(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in one_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vtag.remote.BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr("vtag.remote_spool.BLOCK_BYTES", BLOCK_BYTES)
    one_server.faults, one_server.asked = [], []
    return one_server


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool", max_bytes=40_000_000, settings=FAST) as made:
        yield made
    assert list((tmp_path / "spool").iterdir()) == []


def put(server: Server, key: str, data: bytes) -> Source:
    server.client.put_object(Bucket="library", Key=key, Body=data)
    return Source(f"s3://library/{key}")


def fetched(spool: Spool, source: Source) -> bytes:
    with spool.fetch(spool.look(source)) as got:
        data = got.path.read_bytes()
        assert got.content_id == sha(data)
        assert spool.used_bytes == len(data)
    assert spool.used_bytes == 0
    assert not got.path.exists()
    return data


def code_of(spool: Spool, source: Source) -> str:
    with pytest.raises(MediaError) as caught, spool.fetch(source):
        pass
    assert spool.used_bytes == 0
    assert list(spool.folder.iterdir()) == []
    assert str(spool.folder) not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("size", [1, 1000, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 77])
def test_an_object_comes_whole_in_ranges(server: Server, spool: Spool, size: int) -> None:
    data = media(size)
    assert fetched(spool, put(server, "whole.mp4", data)) == data
    assert len(server.gets("whole.mp4")) == -(-size // BLOCK_BYTES)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=2),
        Fault(status=503, code="SlowDown", times=2),
        Fault(status=429, code="TooManyRequests", times=2),
        Fault(cut=100, times=2),
        Fault(cut=0, times=1),
        Fault(cut=100, lie=True, times=2),
        Fault(seconds=2.5, times=1),
        Fault(method="HEAD", status=500, times=2),
    ],
    ids=lambda fault: f"{fault.method}-{fault.status}-{fault.cut}-{fault.lie}-{fault.seconds}",
)
def test_what_passes_is_tried_again(server: Server, spool: Spool, fault: Fault) -> None:
    data = media(BLOCK_BYTES + 50_000)
    source = put(server, "flaky.mp4", data)
    server.faults = [replace(fault, part="flaky.mp4", skip=int(fault.method == "GET"))]
    assert fetched(spool, source) == data
    tries = len(server.asked)
    assert tries == 3 + fault.times  # one HEAD, two ranges, and each failed one again


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(status=404, code="NoSuchKey"), "source_not_found"),
        (Fault(status=403, code="AccessDenied"), "source_denied"),
        (Fault(status=400, code="ExpiredToken"), "source_denied"),
        (Fault(status=400, code="InvalidRequest"), "source_denied"),
    ],
)
def test_a_refusal_is_asked_once(server: Server, spool: Spool, fault: Fault, code: str) -> None:
    source = spool.look(put(server, "refused.mp4", media(5000)))
    server.asked, server.faults = [], [replace(fault, part="refused.mp4", times=9)]
    assert code_of(spool, source) == code
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [Fault(status=500, times=99), Fault(cut=10, times=99)])
def test_patience_ends(server: Server, spool: Spool, fault: Fault) -> None:
    source = spool.look(put(server, "dead.mp4", media(5000)))
    server.asked, server.faults = [], [replace(fault, part="dead.mp4")]
    assert code_of(spool, source) == "source_unreachable"
    assert len(server.asked) == FAST.patience.attempts


def test_an_object_that_vanishes_in_mid_read_is_not_found(server: Server, spool: Spool) -> None:
    source = spool.look(put(server, "gone.mp4", media(BLOCK_BYTES + 5)))
    delete = lambda: server.client.delete_object(Bucket="library", Key="gone.mp4")  # noqa: E731
    server.faults = [Fault(part="gone.mp4", skip=1, before=delete)]
    assert code_of(spool, source) == "source_not_found"


def test_an_object_replaced_in_mid_read_is_read_anew_and_never_mixed(
    server: Server, spool: Spool
) -> None:
    old, new = media(BLOCK_BYTES + 500, seed=1), media(BLOCK_BYTES + 500, seed=2)
    source = spool.look(put(server, "new.mp4", old))
    server.faults = [
        Fault(part="new.mp4", skip=1, before=lambda: put(server, "new.mp4", new) and None)
    ]
    with spool.fetch(source) as got:
        assert got.path.read_bytes() == new
        assert (got.content_id, got.source.stamp) == (sha(new), spool.look(source).stamp)


def test_an_object_that_changes_all_the_time_fails_by_its_own_code(
    server: Server, spool: Spool
) -> None:
    source = spool.look(put(server, "log.mp4", media(BLOCK_BYTES + 5)))
    seeds = iter(range(3, 100))

    def change() -> None:
        put(server, "log.mp4", media(BLOCK_BYTES + 5, seed=next(seeds)))

    server.faults = [Fault(part="log.mp4", times=99, before=change)]
    assert code_of(spool, source) == "source_changed"


def test_size_limits_hold_before_a_byte_is_moved(server: Server, tmp_path: Path) -> None:
    source = put(server, "large.mp4", media(5000))
    with Spool(tmp_path, max_bytes=10_000, max_object_bytes=4999, settings=FAST) as small:
        assert code_of(small, small.look(source)) == "source_too_large"
    assert server.gets("large.mp4") == []


def test_an_empty_object_is_empty(server: Server, spool: Spool) -> None:
    assert code_of(spool, spool.look(put(server, "empty.mp4", b""))) == "empty"


def test_of_a_large_object_that_is_no_media_only_the_beginning_is_read(
    server: Server, spool: Spool
) -> None:
    source = put(server, "backup.mp4", b"PK\3\4" + bytes(3 * BLOCK_BYTES))
    assert code_of(spool, spool.look(source)) == "not_media"
    assert server.gets("backup.mp4") == [f"bytes=0-{BLOCK_BYTES - 1}"]


def bytes_in(folder: Path) -> int:
    """Bytes of the files in `folder`; one that another thread removes meanwhile counts nothing."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def test_threads_never_exceed_the_spool_and_none_waits_for_ever(
    server: Server, tmp_path: Path
) -> None:
    sizes = [400, 3_000, 900, 2_999, 10, 1_500] * 3
    sources = [put(server, f"many/{n}.mp4", media(s, seed=n)) for n, s in enumerate(sizes)]
    seen: list[int] = []
    with Spool(tmp_path, max_bytes=3_000, settings=FAST) as small:

        def work(source: Source) -> None:
            with small.fetch(small.look(source)) as got:
                seen.append(bytes_in(small.folder))
                assert got.path.stat().st_size == got.source.size

        threads = [threading.Thread(target=work, args=[s]) for s in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert len(seen) == len(sizes)
    assert max(seen) <= 3_000


def test_a_full_disk_ends_the_run_and_blames_no_input(
    server: Server, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = spool.look(put(server, "full.mp4", media(5000)))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(EnvironmentProblem, match="--spool"), spool.fetch(source):
        pass


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from vtag.remote_spool import Spool\n"
        "s = Spool(Path(sys.argv[1])); (s.folder / '1').write_bytes(bytes(1000))\n"
        "print(s.folder, flush=True); time.sleep(60)"
    )
    dead, alive = (
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        assert dead.stdout is not None
        assert alive.stdout is not None
        left, used = Path(dead.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        dead.kill()
        dead.wait()
        assert (left / "1").stat().st_size == 1000
        with Spool(tmp_path):
            assert not left.exists()
            assert (used / "1").exists()
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()


def test_credentials_that_are_not_there_are_a_denial(
    server: Server, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    other = replace(FAST, timeout_seconds=1.5)  # another connection than that of the other tests
    uri = parse("s3://library/x.mp4")
    assert isinstance(uri, Uri)
    with pytest.raises(RemoteError) as caught:
        store_for(uri, other).stat(uri)
    assert caught.value.kind == "denied"


# -- how often, how long ------------------------------------------------------------------------


def test_waits_are_drawn_below_a_bound_that_doubles() -> None:
    patience = Patience(attempts=9, base_seconds=0.5, cap_seconds=20)
    tops = [patience.wait_seconds(k, draw=lambda: 1.0) for k in range(1, 9)]
    assert tops == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert patience.wait_seconds(3, draw=lambda: 0.25) == 0.5


@given(st.integers(1, 8), st.integers(0, 12))
def test_calls_are_as_many_as_allowed_and_needed(attempts: int, failures: int) -> None:
    calls: list[int] = []
    waits: list[float] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return "done"

    patience = Patience(attempts=attempts, base_seconds=1, cap_seconds=4)
    if failures < attempts:
        assert patiently(call, patience, sleep=waits.append) == "done"
    else:
        with pytest.raises(RemoteError):
            patiently(call, patience, sleep=waits.append)
    assert len(calls) == min(attempts, failures + 1)
    assert len(waits) == len(calls) - 1
    assert all(0 <= wait <= 4 for wait in waits)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), "not_found"),
        (PermissionError("x"), "denied"),
        (TimeoutError("x"), "unreachable"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "unreachable"),
        (BrokenPipeError(errno.EPIPE, "x"), "unreachable"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), "unreachable"),
        (OSError(errno.EIO, "who knows"), "refused"),
        (ValueError("who knows"), "refused"),
    ],
)
def test_the_kind_of_an_error(error: Exception, kind: Kind) -> None:
    assert classify(error).kind == kind


def test_an_address_in_somebody_elses_message_loses_its_signature() -> None:
    found = classify(OSError(errno.EIO, "GET https://h/x.mp4?X-Amz-Signature=deadbeef failed"))
    assert "https://h/x.mp4" in str(found)
    assert "deadbeef" not in str(found)


# -- http ---------------------------------------------------------------------------------------


class Web:
    """A web server that the test scripts."""

    def __init__(self) -> None:
        self.body = b""
        self.ranges = True
        self.etag = True
        self.length = True
        self.cuts: list[int] = []  # bytes after which each answer to come breaks off
        self.drip = 0.0  # seconds between two bytes
        self.redirect = ""
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        asked = to.headers.get("Range", "")
        self.asked.append(asked)
        self.logins.append(to.headers.get("Authorization"))
        if self.redirect:
            to.send_response(302)
            to.send_header("Location", self.redirect)
            to.end_headers()
            return
        start, end = 0, len(self.body)
        if asked and self.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1 if last else end)
            if start >= len(self.body):
                to.send_response(416)
                to.send_header("Content-Range", f"bytes */{len(self.body)}")
                to.end_headers()
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.body)}")
        else:
            to.send_response(200)
        if self.length:
            to.send_header("Content-Length", str(end - start))
        if self.etag:
            to.send_header("ETag", f'"{hashlib.md5(self.body).hexdigest()}"')
        to.end_headers()
        data = self.body[start:end]
        if self.cuts and len(data) > 1:
            data = data[: self.cuts.pop(0)]
        try:
            if self.drip:
                for byte in data:
                    to.wfile.write(bytes([byte]))
                    time.sleep(self.drip)
            to.wfile.write(b"" if self.drip else data)
        except OSError:
            pass  # the client gave up


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cuts", [[], [1000, 3000, 0]])
def test_an_http_object_comes_whole_and_goes_on_where_it_broke(
    web: Web, spool: Spool, ranges: bool, cuts: list[int]
) -> None:
    web.body, web.ranges = media(20_000), ranges
    source = spool.look(Source(f"{web.url}/x.mp4"))
    assert source.size == 20_000
    web.cuts = list(cuts)
    assert fetched(spool, source) == web.body
    if ranges and cuts:
        assert "bytes=1000-" in web.asked


def test_an_http_server_that_tells_no_size(web: Web, spool: Spool) -> None:
    web.body, web.ranges, web.length = media(30_000), False, False
    assert spool.look(Source(f"{web.url}/x.mp4")).size is None
    with spool.fetch(spool.look(Source(f"{web.url}/x.mp4"))) as got:
        assert got.path.read_bytes() == web.body
        assert spool.used_bytes == spool.max_object_bytes  # until its size is known
    assert got.source.size == 30_000


def test_an_http_object_that_changes_between_two_answers_is_read_anew(
    web: Web, spool: Spool
) -> None:
    web.body = media(20_000)
    source = spool.look(Source(f"{web.url}/x.mp4"))
    web.body = media(20_000, seed=7)
    with spool.fetch(source) as got:
        assert got.path.read_bytes() == web.body


def test_a_login_in_the_address_is_for_its_server_alone(web: Web, spool: Spool) -> None:
    web.body = media(500)
    address = web.url.replace("http://", "http://me:a%20word@")
    with spool.fetch(spool.look(Source(f"{address}/x.mp4"))) as got:
        assert got.path.read_bytes() == web.body
    assert set(web.logins) == {"Basic bWU6YSB3b3Jk"}  # base64 of "me:a word"
    web.logins, web.redirect = [], f"{web.url}/elsewhere"
    with pytest.raises(RemoteError):
        spool.look(Source(f"{address}/x.mp4"))
    assert web.logins[0] is not None
    assert set(web.logins[1:]) == {None}


def test_an_empty_http_object_is_empty(web: Web, spool: Spool) -> None:
    assert spool.look(Source(f"{web.url}/x.mp4")).size == 0


def test_a_server_that_drips_is_given_up(web: Web, tmp_path: Path) -> None:
    web.body, web.drip = media(400), 0.2
    patience = Patience(attempts=1)
    settings = RemoteSettings(timeout_seconds=0.5, slow_bytes_per_second=1e9, patience=patience)
    started = time.monotonic()
    with Spool(tmp_path, settings=settings) as spool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtag.remote.CONNECT_SECONDS", 0.0)
        assert code_of(spool, spool.look(Source(f"{web.url}/x.mp4"))) == "source_unreachable"
    assert time.monotonic() - started < 20  # the whole would take 80 seconds


def test_redirects_are_followed_a_few_times_and_never_out_of_http(web: Web, spool: Spool) -> None:
    web.redirect = f"{web.url}/again"
    with pytest.raises(RemoteError):
        spool.look(Source(f"{web.url}/x.mp4"))
    assert len(web.asked) <= 1 + 5
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"):
        web.asked, web.redirect = [], target
        with pytest.raises(RemoteError):
            spool.look(Source(f"{web.url}/x.mp4"))
        assert len(web.asked) == 1


@pytest.mark.parametrize(
    ("url", "came_from"),
    [
        ("http://169.254.169.254/latest/meta-data", None),
        ("http://[fe80::1]/x", None),
        ("http://169.254.169.254/x", "https://8.8.8.8/x"),
        ("http://127.0.0.1/x", "http://8.8.8.8/x"),
        ("http://10.0.0.7/x", "http://8.8.8.8/x"),
        ("http://[::ffff:10.0.0.7]/x", "http://8.8.8.8/x"),
        ("http://8.8.8.8/x", "https://8.8.4.4/x"),
    ],
)
def test_addresses_inside_are_not_reached_from_outside(url: str, came_from: str | None) -> None:
    with pytest.raises(RemoteError) as caught:
        refuse_inside(url, came_from=came_from)
    assert caught.value.kind == "denied"


def test_addresses_that_were_named_and_redirects_outside_are_fine() -> None:
    refuse_inside("http://127.0.0.1:8000/x", came_from=None)
    refuse_inside("https://8.8.4.4/x", came_from="http://8.8.8.8/x")
    refuse_inside("http://10.0.0.7/x", came_from="http://10.0.0.8/x")


def test_nothing_is_written_over_http() -> None:
    uri = parse("https://8.8.8.8/x")
    assert isinstance(uri, Uri)
    with pytest.raises(RemoteError):
        store_for(uri, FAST).put(uri, b"x")
