"""What the first bytes say: signatures from the specifications, text from the manuals."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest
from media import draw_clip

from vtag.errors import MediaError
from vtag.signatures import DEMUXERS, family_of
from vtag.sniff import sniff

REFUSED_TEXT = {
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\nother.ts\n",
    "HLS after blanks": b"\n  \t#EXTM3U\nother.ts\n",
    "HLS after a byte order mark": b"\xef\xbb\xbf#EXTM3U\nother.ts\n",
    "HLS in UTF-16": "#EXTM3U\nother.ts\n".encode("utf-16"),
    "ffconcat": b"ffconcat version 1.0\nfile 'other.mp4'\n",
    "concat without header": b"file 'other.mp4'\n",
    "DASH": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "DASH without prolog": b'<MPD type="static"></MPD>',
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "XML": b"<?xml version='1.0'?><x/>",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "PLS": b"[playlist]\nFile1=other.mp3\n",
    "a shell script": b"#!/bin/sh\nrm -rf x\n",
    "subtitles": b"WEBVTT\n\n00:00.000 --> 00:01.000\nhi\n",
    "text that begins like a box": b"abcdftyp and more prose, none of it binary at all",
    "text about ID3": b"ID3 is a tagging format for MP3 files, says this text.",
    "text that begins like Ogg": b"OggS are what this text is about, not sound.",
}


@pytest.mark.parametrize("kind", REFUSED_TEXT)
def test_no_text_passes_for_media(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "holiday.mp4"
    file.write_bytes(REFUSED_TEXT[kind])
    with pytest.raises(MediaError) as caught:
        sniff(file)
    assert caught.value.code == "not_media"


def test_the_message_names_the_kind_of_text(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    for kind, name in (("HLS", "playlist"), ("DASH", "DASH"), ("HTML", "HTML"), ("SDP", "SDP")):
        file.write_bytes(REFUSED_TEXT[kind])
        with pytest.raises(MediaError, match=name):
            sniff(file)


def _mpeg_ts(distance: int, phase: int, packets: int) -> bytes:
    packet = b"\x47\x1f\xff\x10" + b"\xff" * 184
    padded = b"\x01\x02\x03\x04" + packet if distance == 192 else packet.ljust(distance, b"\x09")
    return (padded * (packets + 1))[phase:]


def _mp3(frames: int) -> bytes:
    # MPEG-1 layer III, 128 kbit/s, 44.1 kHz, no padding: 144 * 128000 / 44100 = 417 bytes.
    return (b"\xff\xfb\x90\x64" + bytes(413)) * frames


def _adts(frames: int, size: int = 200) -> bytes:
    header = bytes([0xFF, 0xF1, 0x50, 0x80 | size >> 11, size >> 3 & 0xFF, (size & 7) << 5, 0xFC])
    return (header + bytes(size - 7)) * frames


SIGNATURES: list[tuple[str, bytes]] = [
    ("mp4", struct.pack(">I", 24) + b"ftypisom" + bytes(12)),
    ("mp4", struct.pack(">I", 1) + b"mdat" + struct.pack(">Q", 1 << 33) + bytes(8)),
    ("mp4", struct.pack(">I", 8) + b"wide" + struct.pack(">I", 0) + b"mdat"),
    ("mp4", struct.pack(">I", 24) + b"ftypheic" + bytes(12)),
    ("mp4", struct.pack(">I", 24) + b"styp" + b"msdh" + bytes(12)),
    ("matroska", b"\x1a\x45\xdf\xa3\x9f" + bytes(20)),
    ("avi", b"RIFF\x10\x00\x00\x00AVI LIST"),
    ("wav", b"RIFF\x10\x00\x00\x00WAVEfmt "),
    ("wav", b"RF64\xff\xff\xff\xffWAVEds64\x1c\x00\x00\x00"),
    ("mpegps", b"RIFF\x10\x00\x00\x00CDXAfmt "),
    ("flv", b"FLV\x01\x05\x00\x00\x00\x09"),
    ("mpegts", _mpeg_ts(188, 0, 5)),
    ("mpegts", _mpeg_ts(192, 0, 5)),
    ("mpegts", _mpeg_ts(204, 0, 5)),
    ("mpegts", _mpeg_ts(188, 100, 5)),  # recorded from the middle of a packet
    ("mpegts", bytes(1000) + _mpeg_ts(188, 0, 9)),  # behind what another program left
    ("mpegts", bytes(8100) + _mpeg_ts(204, 0, 9)),
    ("mpegps", b"\x00\x00\x01\xba\x44" + bytes(20)),
    ("elementary", b"\x00\x00\x01\xb3\x16\x01\x20\x13" + bytes(20)),  # MPEG-2 sequence header
    ("elementary", b"\x00\x00\x00\x01\x67\x64\x00\x1e" + bytes(20)),  # H.264 SPS
    ("elementary", b"\x00\x00\x00\x01\x40\x01\x0c\x01" + bytes(20)),  # HEVC VPS
    ("ogg", b"OggS\x00\x02" + bytes(20)),
    ("asf", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9" + bytes(20)),
    ("mp3", b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(20)),
    ("mp3", _mp3(4)),
    ("mp3", bytes(1000) + b"\xff\x00junk" + _mp3(4)),
    ("mp3", _mp3(1)),  # a file of one frame
    ("aac", _adts(4)),
    ("flac", b"fLaC\x00\x00\x00\x22" + bytes(20)),
    ("aiff", b"FORM\x00\x00\x10\x00AIFFCOMM"),
    ("au", b".snd\x00\x00\x00\x18" + bytes(20)),
    ("caf", b"caff\x00\x01\x00\x00desc"),
    ("amr", b"#!AMR\n\x3c\x08"),
    ("gif", b"GIF89a\x04\x00\x04\x00"),
    ("mxf", b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02\x04\x00" + bytes(20)),
    ("y4m", b"YUV4MPEG2 W16 H16 F25:1\nFRAME\n" + bytes(384)),
    ("ivf", b"DKIF\x00\x00\x20\x00VP80"),
    ("rm", b".RMF\x00\x00\x00\x12"),
    ("dv", (b"\x1f\x07\x00\xbf" + bytes(76) + b"\x3f" + bytes(500))),
    ("lossless", b"wvpk\x10\x00\x00\x00"),
]


@pytest.mark.parametrize(("family", "head"), SIGNATURES)
def test_signature(family: str, head: bytes) -> None:
    assert family_of(head) == family
    assert family in DEMUXERS


@pytest.mark.parametrize(
    "head",
    [
        b"\x7fELF\x02\x01\x01" + bytes(60),
        b"PK\x03\x04\x14\x00" + bytes(60),
        b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n\x00\x01",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(30),  # a still picture
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100),
        bytes(5000),
        b"\x47" + bytes(187) + b"\x47" + bytes(187),  # two sync bytes are chance
        _mp3(2) + bytes(3000),  # two frame headers may be too
    ],
)
def test_other_binary_is_refused(head: bytes) -> None:
    assert family_of(head) is None


def test_no_family_opens_a_list_of_other_files() -> None:
    # The demuxers of FFmpeg that open files named inside the file they read.
    listing = {"hls", "applehttp", "concat", "dash", "sdp", "rtsp", "imf", "image2", "lavfi"}
    allowed = {name for names in DEMUXERS.values() for name in names.split(",")}
    assert not allowed & listing


def test_every_demuxer_that_is_named_exists() -> None:
    from av import formats_available

    known = {name for full in formats_available for name in full.split(",")}
    assert {name for names in DEMUXERS.values() for name in names.split(",")} <= known


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    # A blocking open of a pipe without a writer would hang here for ever.
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, Path("/dev/zero")):
        with pytest.raises(MediaError) as caught:
            sniff(path)
        assert caught.value.code == "not_a_file"


def test_a_pipe_put_in_place_of_the_file_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the look at the file and its opening somebody may exchange it.
    os.mkfifo(tmp_path / "pipe.mp4")
    regular = os.stat(__file__)
    monkeypatch.setattr("vtag.sniff.os.stat", lambda path: regular)

    def too_long(*_: object) -> None:
        raise TimeoutError("the open waited for a writer")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        with pytest.raises(MediaError) as caught:
            sniff(tmp_path / "pipe.mp4")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.code == "not_a_file"


def test_a_socket_is_refused(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    # Relative: the path of a socket may have 107 bytes at most.
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        server.bind("s.mp4")
    finally:
        os.chdir(before)
    with server, pytest.raises(MediaError) as caught:
        sniff(tmp_path / "s.mp4")
    assert caught.value.code == "not_a_file"


def test_what_is_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    expected = {"empty.mp4": "empty", "gone.mp4": "vanished", "empty.mp4/x.mp4": "vanished"}
    for name, code in expected.items():
        with pytest.raises(MediaError) as caught:
            sniff(tmp_path / name)
        assert caught.value.code == code
    with pytest.raises(MediaError) as caught:
        sniff(tmp_path / "nul\0.mp4")
    assert caught.value.code == "vanished"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    file = tmp_path / "secret.mp4"
    file.write_bytes(b"x")
    file.chmod(0)
    with pytest.raises(MediaError) as caught:
        sniff(file)
    assert caught.value.code == "unreadable"


def test_a_loop_of_links_is_unreadable_and_a_link_to_a_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(MediaError) as caught:
        sniff(tmp_path / "a")
    assert caught.value.code == "unreadable"
    draw_clip(tmp_path / "clip.mkv", seconds=0.2)
    (tmp_path / "link.avi").symlink_to(tmp_path / "clip.mkv")
    assert sniff(tmp_path / "link.avi") == "matroska"  # by content, not by name
