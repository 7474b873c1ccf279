"""Finding, checking and fetching weights, against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vtag import weights
from vtag.download import fetch, offline_variable
from vtag.errors import ConfigError, WeightsError
from vtag.weights import (
    SOURCES,
    WeightsSource,
    card_of,
    download_weights,
    embedded_folder,
    find_weights,
    installed,
    list_weights,
    searched_folders,
    sha256_of,
)

DATA = bytes(range(256)) * 5000  # 1.28 MB: more than one block of the reader
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA well and badly; remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.meeting: threading.Barrier | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.meeting is not None:
            self.server.meeting.wait(timeout=20)
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = {
            "/good": DATA,
            "/wrong": DATA[:-1] + b"!",
            "/short": DATA,
            "/long": DATA + b"more",
            "/endless": DATA + DATA,
        }.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # A client that has seen enough closes first.
        try:
            self.wfile.write(body[:700_000] if self.path == "/short" else body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's own output stays clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$VTAG_WEIGHTS, empty, and no other folder of this user in sight."""
    for name in ("VTAG_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("VTAG_WEIGHTS", str(tmp_path / "chosen"))
    return tmp_path / "chosen"


def know(monkeypatch: pytest.MonkeyPatch, *urls: str, sha256: str = SHA256) -> WeightsSource:
    """Makes vtag know weights called "tiny" at these addresses."""
    source = WeightsSource(
        name="tiny",
        file="tiny.bin",
        about="for tests",
        licence="none",
        card="tiny.md",
        sha256=sha256,
        size_bytes=len(DATA),
        urls=urls,
    )
    monkeypatch.setitem(SOURCES, "tiny", source)
    return source


def parts(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


class TestDownload:
    def test_puts_the_file_and_nothing_else(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))
        seen: list[tuple[int, int]] = []
        file = download_weights("tiny", on_progress=lambda done, total: seen.append((done, total)))
        assert file == folder / "tiny.bin"
        assert file.read_bytes() == DATA
        assert parts(folder) == ["tiny.bin"]
        assert seen[-1] == (len(DATA), len(DATA))
        assert seen == sorted(seen)
        assert find_weights("tiny") == file

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/wrong", r"other bytes: sha256 [0-9a-f]{64}, expected " + SHA256),
            ("/short", r"broke off after 700000 of 1280000 bytes"),
            ("/long", r"1280004 bytes are offered, expected 1280000"),
            ("/endless", r"more than the expected 1280000 bytes"),
            ("/nothing", r"the server answers 404"),
            ("/to?http://192.0.2.1/tiny.bin", r"only https is downloaded from"),
            ("/to?ftp://127.0.0.1/tiny.bin", r"only https is downloaded from"),
            ("/to?file:///etc/hostname", r"'file:///etc/hostname' is not allowed"),
            ("/to?/wrong", r"other bytes"),
        ],
    )
    def test_leaves_nothing_of_what_is_not_right(
        self,
        path: str,
        message: str,
        server: Server,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        know(monkeypatch, server.url(path))
        with pytest.raises(WeightsError, match=message) as caught:
            download_weights("tiny")
        assert "\n" not in str(caught.value)
        assert parts(folder) == []

    def test_follows_a_redirect_and_checks_what_it_finds(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/to?/good"))
        assert download_weights("tiny").read_bytes() == DATA
        assert server.asked == ["/to?/good", "/good"]

    def test_goes_on_to_the_next_address(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/nothing"), server.url("/good"))
        assert download_weights("tiny").read_bytes() == DATA

    def test_nobody_listens(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiny.bin"
        know(monkeypatch, url)
        with pytest.raises(WeightsError, match=r"can not be reached \(.*refused") as caught:
            download_weights("tiny")
        for part in ("tiny.bin", "1280000 bytes", SHA256, url, str(folder)):
            assert part in str(caught.value)

    def test_plain_http_to_another_machine_is_not_even_tried(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, "http://192.0.2.1/tiny.bin")
        with pytest.raises(WeightsError, match="only https is downloaded from"):
            download_weights("tiny")

    def test_a_good_file_is_not_fetched_again(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))
        folder.mkdir()
        (folder / "tiny.bin").write_bytes(DATA)
        assert download_weights("tiny") == folder / "tiny.bin"
        assert download_weights("tiny", folder=folder) == folder / "tiny.bin"
        assert server.asked == []

    def test_a_damaged_file_is_replaced(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))
        folder.mkdir()
        (folder / "tiny.bin").write_bytes(DATA[:-1] + b"!")
        assert download_weights("tiny").read_bytes() == DATA

    def test_a_failed_fetch_leaves_the_old_file(self, server: Server, tmp_path: Path) -> None:
        target = tmp_path / "tiny.bin"
        target.write_bytes(b"old")
        with pytest.raises(WeightsError, match="other bytes"):
            fetch(server.url("/wrong"), target, size_bytes=len(DATA), sha256=SHA256)
        assert target.read_bytes() == b"old"

    def test_two_at_once_do_not_disturb_each_other(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))
        server.meeting = threading.Barrier(2)  # both have asked before either is answered
        found: list[Path] = []
        threads = [
            threading.Thread(target=lambda: found.append(download_weights("tiny")))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [folder / "tiny.bin"] * 2
        assert parts(folder) == ["tiny.bin"]
        assert (folder / "tiny.bin").read_bytes() == DATA
        assert len(server.asked) == 2

    @pytest.mark.parametrize("variable", ["VTAG_OFFLINE", "HF_HUB_OFFLINE"])
    def test_offline_means_no_request(
        self, variable: str, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))
        monkeypatch.setenv(variable, "1")
        with pytest.raises(
            WeightsError,
            match=f"{variable} forbids the network.*: unset {variable} and run .*tiny.bin",
        ):
            download_weights("tiny")
        assert server.asked == []

    def test_offline_variables_switched_off(self) -> None:
        assert offline_variable({"VTAG_OFFLINE": "0", "HF_HUB_OFFLINE": ""}) is None
        assert offline_variable({"HF_HUB_OFFLINE": "true"}) == "HF_HUB_OFFLINE"

    def test_a_full_disk_is_said_and_leaves_nothing(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, server.url("/good"))

        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("vtag.download.os.fsync", full)
        with pytest.raises(WeightsError, match=r"can not write tiny\.bin there \(No space left"):
            download_weights("tiny")
        assert parts(folder) == []

    def test_what_the_package_holds_is_not_fetched(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch)
        with pytest.raises(WeightsError, match="is part of vtag: install it again"):
            download_weights("tiny")


class TestFind:
    def test_order_of_folders(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "package"
        monkeypatch.setattr(weights, "embedded_folder", lambda: package)
        know(monkeypatch, "https://example.org/tiny.bin")
        expected = [
            folder,
            package,
            tmp_path / "cache" / "vtag" / "weights",
            tmp_path / "torch" / "hub" / "checkpoints",
        ]
        assert searched_folders() == tuple(expected)
        for place in reversed(expected):
            place.mkdir(parents=True)
            (place / "tiny.bin").write_bytes(DATA)
            assert find_weights("tiny") == place / "tiny.bin"
        own = tmp_path / "own.bin"
        own.write_bytes(b"mine")
        assert find_weights("tiny", path=own) == own

    def test_the_message_lets_one_finish_by_hand(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, "https://example.org/tiny.bin")
        with pytest.raises(WeightsError) as caught:
            find_weights("tiny")
        assert str(caught.value) == (
            "tiny: run `vtag models download tiny`, or put tiny.bin (1280000 bytes, "
            f"sha256 {SHA256}) from https://example.org/tiny.bin into {folder}. "
            f"Looked in: {folder}, {embedded_folder()}, "
            f"{tmp_path}/cache/vtag/weights, {tmp_path}/torch/hub/checkpoints"
        )

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (DATA[:-1], "has 1279999 bytes instead of 1280000"),
            (DATA[:-1] + b"!", r"has sha256 [0-9a-f]{64}"),
        ],
    )
    def test_a_damaged_file_is_named(
        self, data: bytes, problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, "https://example.org/tiny.bin")
        folder.mkdir()
        (folder / "tiny.bin").write_bytes(data)
        with pytest.raises(
            WeightsError, match=rf"{folder}/tiny\.bin is there but {problem}\. tiny:"
        ):
            find_weights("tiny")
        assert installed("tiny") is None

    def test_a_good_file_behind_a_damaged_one_is_found(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, "https://example.org/tiny.bin")
        good = tmp_path / "torch" / "hub" / "checkpoints"
        for place, data in ((folder, b"bad"), (good, DATA)):
            place.mkdir(parents=True)
            (place / "tiny.bin").write_bytes(data)
        assert find_weights("tiny") == good / "tiny.bin"

    def test_first_digits_of_a_hash_are_enough_where_no_more_are_known(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        know(monkeypatch, "https://example.org/tiny.bin", sha256=SHA256[:8])
        folder.mkdir()
        (folder / "tiny.bin").write_bytes(DATA)
        assert find_weights("tiny") == folder / "tiny.bin"
        (folder / "tiny.bin").write_bytes(DATA[:-1] + b"!")
        with pytest.raises(WeightsError, match=rf"sha256 {SHA256[:8]}…\)"):
            find_weights("tiny")

    def test_a_file_of_the_users_own_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"gone\.bin: no such file \(weights for resnet50\)"):
            find_weights("resnet50", path=tmp_path / "gone.bin")

    def test_unknown_names(self) -> None:
        with pytest.raises(ConfigError, match="no weights 'resnet51'; there are: resnet50, "):
            installed("resnet51")
        with pytest.raises(ConfigError, match="no weights 'resnet51'"):
            download_weights("resnet51")
        with pytest.raises(WeightsError, match="resnet51 comes without weights"):
            find_weights("resnet51")


def test_the_hash_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    assert sha256_of(file) == SHA256
    file.write_bytes(b"other")
    assert sha256_of(file) == hashlib.sha256(b"other").hexdigest()
    with pytest.raises(WeightsError, match="can not be read"):
        sha256_of(tmp_path / "gone")


class TestTheRecords:
    def test_every_embedded_file_is_there_and_is_the_one_recorded(self, folder: Path) -> None:
        embedded = [source for source in list_weights() if source.embedded]
        assert "resnet50" in [source.name for source in embedded]
        for source in embedded:
            assert len(source.sha256) == 64
            assert find_weights(source.name) == embedded_folder() / source.file

    def test_every_embedded_file_is_recorded(self) -> None:
        files = {file.name for file in embedded_folder().glob("*.safetensors")}
        assert files == {source.file for source in list_weights() if source.embedded}

    @pytest.mark.parametrize("name", SOURCES)
    def test_every_record_has_a_card_with_its_licence(self, name: str) -> None:
        text = card_of(name).read_text(encoding="utf-8")
        assert SOURCES[name].licence in text
        assert SOURCES[name].file in text
        assert SOURCES[name].sha256 in text

    @pytest.mark.parametrize("name", SOURCES)
    def test_addresses_are_https(self, name: str) -> None:
        assert all(url.startswith("https://") for url in SOURCES[name].urls)
        assert all(url.endswith(SOURCES[name].file) for url in SOURCES[name].urls)

    @pytest.mark.parametrize(
        "wrong", [{"sha256": "0676"}, {"size_bytes": 0}, {"file": "../etc/passwd"}]
    )
    def test_nonsense_is_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="usable file name, hash or size"):
            replace(SOURCES["resnet50"], **wrong)


def test_the_import_is_cheap() -> None:
    code = (
        "import sys, vtag.weights as w; w.installed('resnet50');"
        "sys.exit(bool({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
