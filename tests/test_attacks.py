"""Files and names that try to make a decoder read, call or wait for something else.

Each goes through the real command; a watched file and a port on the loopback are the witnesses.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from canary import Listener, WatchedFiles
from media import draw_clip


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[tuple[Path, WatchedFiles]]:
    """A video that nobody named: opening it is the offence."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = draw_clip(folder / "canary.mp4", seconds=1)
    watched = WatchedFiles(file)
    yield file, watched
    watched.close()


def run_on(folder: Path, *names: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, records and stderr of `vtag run` on a folder or on names in it."""
    command = [
        sys.executable,
        "-m",
        "vtag",
        "run",
        "--out",
        "-",
        "--no-cache",
        "--",
        *(names or "."),
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    stderr = run.stderr.decode(errors="replace")
    assert "Traceback" not in stderr
    return run.returncode, [json.loads(line) for line in run.stdout.splitlines()], stderr


def test_the_witnesses_see(canary: tuple[Path, WatchedFiles], listener: Listener) -> None:
    # Otherwise all that follows would pass on a blind witness.
    file, watched = canary
    file.read_bytes()
    assert watched.opened() == {file}
    assert watched.opened() == set()
    socket.create_connection(("127.0.0.1", listener.port)).close()
    for _ in range(200):
        if listener.calls:
            break
        socket.create_connection(("127.0.0.1", listener.port)).close()
    assert listener.calls


def scripts(canary: Path, port: int) -> dict[str, bytes]:
    """Texts that FFmpeg would take for lists of further files."""
    sibling = os.path.relpath(canary, canary.parent.parent / "inbox")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    many = "".join(f"file '{sibling}'\n" for _ in range(100_000))
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f"<AdaptationSet><Representation><BaseURL>file://{canary}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>"
    )
    texts = {
        "m3u8 sibling": hls.format(sibling),
        "m3u8 absolute": hls.format(canary),
        "m3u8 http": hls.format(f"http://127.0.0.1:{port}/a.ts"),
        "m3u8 behind a BOM": "\ufeff \n" + hls.format(canary),
        "ffconcat": f"ffconcat version 1.0\nfile '{sibling}'\n",
        "ffconcat absolute": f"ffconcat version 1.0\nfile '{canary}'\n",
        "ffconcat of 100000": "ffconcat version 1.0\n" + many,
        "list": f"file '{canary}'\n",
        "dash": mpd,
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video {port} RTP/AVP 96\n",
        "smil": f'<smil><body><video src="{canary}"/></body></smil>',
        "reference movie": f"RTSPtextrtsp://127.0.0.1:{port}/x\n",
        "internet shortcut": f"[InternetShortcut]\nURL=http://127.0.0.1:{port}/\n",
        "ini playlist": f"[playlist]\nFile1=http://127.0.0.1:{port}/\n",
        "asx": f'<asx version="3.0"><entry><ref href="http://127.0.0.1:{port}/"/></entry></asx>',
    }
    return {name: text.encode() for name, text in texts.items()}


def test_scripts_named_like_videos_lead_nowhere(
    tmp_path: Path, canary: tuple[Path, WatchedFiles], listener: Listener
) -> None:
    file, watched = canary
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    written = scripts(file, listener.port)
    for name, data in written.items():
        for suffix in (".mp4", ".mkv", ".ts"):
            (inbox / f"{name}{suffix}").write_bytes(data)
    status, records, _ = run_on(inbox)
    assert status == 1
    assert len(records) == 3 * len(written)
    assert {record["error"]["code"] for record in records} == {"not_media"}
    assert watched.opened() == set()
    assert listener.calls == 0


def test_a_script_behind_real_media_bytes_leads_nowhere(
    tmp_path: Path, canary: tuple[Path, WatchedFiles], listener: Listener
) -> None:
    file, watched = canary
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for n, (name, data) in enumerate(scripts(file, listener.port).items()):
        for magic in (
            b"\0\0\0\x10ftypisom\0\0\0\0",
            b"\x1aE\xdf\xa3",
            b"RIFF\0\0\0\0AVI ",
            b"OggS",
        ):
            (inbox / f"{n}{magic[:4].hex()} {name}.mp4").write_bytes(magic + data)
    _, records, _ = run_on(inbox)
    assert all(record["status"] == "failed" for record in records)
    assert watched.opened() == set()
    assert listener.calls == 0


def test_protocol_names_are_files_that_do_not_exist(
    tmp_path: Path, canary: tuple[Path, WatchedFiles], listener: Listener
) -> None:
    file, watched = canary
    names = [
        f"concat:{file}|{file}",
        f"subfile,,start,0,end,400,,:{file}",
        f"crypto:{file}",
        f"data:video/mp4;base64,{'A' * 40}",
        "pipe:0",
        "fd:0",
        "lavfi:testsrc",
    ]
    status, records, _ = run_on(tmp_path, *names)
    assert status == 1
    assert len(records) == len(names)
    assert {record["error"]["code"] for record in records} == {"vanished"}
    assert watched.opened() == set()
    assert listener.calls == 0


@pytest.mark.parametrize("name", ["tcp://127.0.0.1:{port}", "ftp://127.0.0.1:{port}/a.mp4"])
def test_protocols_that_are_no_storage_are_refused_before_anything_is_asked(
    name: str, tmp_path: Path, listener: Listener
) -> None:
    status, records, said = run_on(tmp_path, name.format(port=listener.port))
    assert (status, records) == (2, [])
    assert "write ./" in said
    assert listener.calls == 0


def test_a_movie_that_refers_to_another_file_is_read_alone(
    tmp_path: Path, canary: tuple[Path, WatchedFiles]
) -> None:
    file, watched = canary
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    movie = draw_clip(inbox / "refers.mov", seconds=1)
    for kind, entry in {
        "url": b"url " + bytes(4) + f"file://{file}".encode() + b"\0",
        "alis": b"alis" + bytes(4) + alias_record(file),
    }.items():
        (inbox / f"{kind}.mov").write_bytes(with_reference(movie.read_bytes(), entry))
    _, records, _ = run_on(inbox)
    assert len(records) == 3
    assert watched.opened() == set()


def alias_record(target: Path) -> bytes:
    """A Macintosh alias whose absolute path (tag 18) names the target."""
    path = os.fsencode(target)
    name = path.rsplit(b"/", 1)[1]
    head = struct.pack(">IHHH", 0, 0, 2, 0) + b"\x01/" + bytes(26 + 8)
    head += (
        bytes([len(name)])
        + name.ljust(63, b"\0")
        + bytes(16)
        + struct.pack(">HH", 1, 1)
        + bytes(16)
    )
    body = head + struct.pack(">hH", 18, len(path)) + path + bytes(len(path) % 2)
    return body + struct.pack(">hH", -1, 0)


def with_reference(movie: bytes, entry: bytes) -> bytes:
    """The movie with its data reference replaced; the boxes around it grow by the difference.

    The index is behind the media data here, so no offset into the media data changes.
    """
    at = movie.index(b"dref") - 4
    (old_size,) = struct.unpack_from(">I", movie, at)
    box = struct.pack(">I", len(entry) + 4) + entry
    dref = struct.pack(">I4sII", 16 + len(box), b"dref", 0, 1) + box
    grown = len(dref) - old_size
    out = bytearray(movie[:at] + dref + movie[at + old_size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = movie.rindex(name, 0, at) - 4
        (size,) = struct.unpack_from(">I", out, place)
        struct.pack_into(">I", out, place, size + grown)
    assert movie.index(b"mdat") < movie.index(b"moov")
    return bytes(out)


def test_pipes_devices_sockets_loops_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        status, records, _ = run_on(tmp_path)
    codes = {record["path"]: record["error"]["code"] for record in records}
    assert status == 1
    assert codes == {
        "pipe.mp4": "not_a_file",
        "loop.mp4": "unreadable",
        "zero.mp4": "not_a_file",
        "gone.mp4": "vanished",
        "folder.mp4": "not_a_file",
        "socket.mp4": "not_a_file",
    }


def test_names_that_are_no_ordinary_text_are_tagged(tmp_path: Path) -> None:
    clip = draw_clip(tmp_path / "plain.mp4", seconds=1).read_bytes()
    names = [
        b"new\nline.mp4", b"tab\there.mp4", b"bell\x07\x1b[31m.mp4", b"\xff\xfe not utf-8.mp4",
        b"12:30.mp4", b"-leading.mp4", b"--out.mp4", b"quote'\".mp4", b"%s%n{}.mp4",
        b"file:x.mp4", b"a|b.mp4", b" space .mp4", "\u202egpj.mp4".encode(), b"#hash?.mp4",
    ]  # fmt: skip
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(clip)
    status, records, stderr = run_on(tmp_path)
    assert status == 0
    assert sorted(os.fsencode(r["path"]) for r in records) == sorted([b"plain.mp4", *names])
    assert len({record["id"] for record in records}) == 1
    assert "\x1b" not in stderr


def test_a_leading_dash_can_be_named(tmp_path: Path) -> None:
    draw_clip(tmp_path / "-x.mp4", seconds=1)
    status, records, _ = run_on(tmp_path, "-x.mp4")
    assert (status, records[0]["path"]) == (0, "-x.mp4")
