"""Signatures of the containers that vtag reads, and the FFmpeg demuxers that may open each."""

from __future__ import annotations

from typing import Final

from vtag.sync_words import family_by_sync_words

HEAD_BYTES: Final = 64 * 1024  # as far as FFmpeg's own MXF and MP3 probes look past junk

# Family -> the FFmpeg demuxers that may open it. Families of sound that hide behind an ID3 tag
# or behind junk name several; none names a demuxer that opens other files.
DEMUXERS: Final[dict[str, str]] = {
    "mp4": "mov,mp4",
    "matroska": "matroska,webm",
    "avi": "avi",
    "amv": "amv,avi",
    "wav": "wav,w64",
    "xwma": "xwma",
    "flv": "flv,live_flv,kux",
    "mpegts": "mpegts",
    "mpegps": "mpeg",
    "elementary": "h264,hevc,vvc,m4v,mpegvideo,vc1,cavsvideo,obu,h263,h261",
    "ogg": "ogg",
    "asf": "asf,asf_o",
    "mp3": "mp3,aac,flac,ape,tta,wv,mpc,mpc8,ac3,eac3,dts,dtshd,aiff,tak,dsf",
    "aac": "aac,loas",
    "ac3": "ac3,eac3,ac4",
    "dts": "dts,dtshd",
    "truehd": "truehd,mlp",
    "flac": "flac",
    "aiff": "aiff,iff",
    "au": "au",
    "caf": "caf",
    "amr": "amr",
    "gif": "gif",
    "apng": "apng",
    "mxf": "mxf",
    "wtv": "wtv",
    "dv": "dv",
    "rm": "rm",
    "y4m": "yuv4mpegpipe",
    "ivf": "ivf",
    "lossless": "ape,wv,tta,mpc,mpc8,tak,shn,osq,qoa,dsf",
    "nut": "nut",
    "nsv": "nsv",
    "nuv": "nuv",
    "swf": "swf",
    "voc": "voc",
    "bink": "bink",
    "smacker": "smk",
    "flic": "flic",
    "gxf": "gxf",
    "vivo": "vivo",
    "roq": "roq",
    "4xm": "4xm",
    "usm": "usm",
    "dhav": "dhav",
    "mlv": "mlv",
    "r3d": "r3d",
    "oma": "oma",
    "vqf": "vqf",
}

_MP4_BOXES: Final = frozenset(
    b"ftyp moov mdat free skip wide pnot styp sidx moof emsg prft ssix junk udta uuid pdin".split()
)

# Offset, bytes, family. Longest and rarest first where one begins like another.
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"ID3", "mp3"),
    (0, b"APETAGEX", "mp3"),
    (0, b"fLaC", "flac"),
    (0, b".snd\x00", "au"),
    (0, b"caff\x00\x01", "caf"),
    (0, b"#!AMR\n", "amr"),
    (0, b"#!AMR-WB\n", "amr"),
    (0, b"#!AMR_MC1.0\n", "amr"),
    (0, b"#!AMR-WB_MC1.0\n", "amr"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d", "wtv"),
    (0, b".RMF", "rm"),
    (0, b".ra\xfd", "rm"),
    (0, b"YUV4MPEG2 ", "y4m"),
    (0, b"DKIF", "ivf"),
    (0, b"MAC ", "lossless"),
    (0, b"wvpk", "lossless"),
    (0, b"TTA1", "lossless"),
    (0, b"MP+", "lossless"),
    (0, b"MPCK", "lossless"),
    (0, b"tBaK", "lossless"),
    (0, b"ajkg", "lossless"),
    (0, b"OSQ ", "lossless"),
    (0, b"qoaf", "lossless"),
    (0, b"DSD ", "lossless"),
    (0, b"FRM8", "aiff"),
    (0, b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", "wav"),
    (0, b"nut/multimedia container\x00", "nut"),
    (0, b"NSVf", "nsv"),
    (0, b"NSVs", "nsv"),
    (0, b"NuppelVideo\x00", "nuv"),
    (0, b"MythTVVideo\x00", "nuv"),
    (0, b"Creative Voice File\x1a", "voc"),
    (0, b"BIKb", "bink"),
    (0, b"BIKf", "bink"),
    (0, b"BIKg", "bink"),
    (0, b"BIKh", "bink"),
    (0, b"BIKi", "bink"),
    (0, b"BIKk", "bink"),
    (0, b"KB2", "bink"),
    (0, b"SMK2", "smacker"),
    (0, b"SMK4", "smacker"),
    (0, b"\x00\x00\x00\x00\x01\xbc", "gxf"),
    (0, b"\x84\x10\xff\xff\xff\xff", "roq"),
    (0, b"CRID", "usm"),
    (0, b"DHAV", "dhav"),
    (0, b"MLVI", "mlv"),
    (4, b"RED1", "r3d"),
    (4, b"RED2", "r3d"),
    (0, b"ea3\x03", "oma"),
    (0, b"TWIN", "vqf"),
    (0, b"DTSHDHDR", "dts"),
    (0, b"\x7f\xfe\x80\x01", "dts"),
    (0, b"\xfe\x7f\x01\x80", "dts"),
    (0, b"\x1f\xff\xe8\x00", "dts"),
    (0, b"\xff\x1f\x00\xe8", "dts"),
    (4, b"\xf8\x72\x6f\xba", "truehd"),
    (4, b"\xf8\x72\x6f\xbb", "truehd"),
    (0, b"\x0b\x77", "ac3"),
    (0, b"\x77\x0b", "ac3"),
    (0, b"\xac\x40\xff\xff", "ac3"),
    (0, b"\xac\x41\xff\xff", "ac3"),
    (0, b"\x00\x00\x01\xba", "mpegps"),
)

# Families whose files begin with a readable line; anything else that reads as text is refused.
_BEGIN_AS_TEXT: Final = frozenset({"amr", "y4m"})

_RIFF_FORMS: Final[dict[bytes, str]] = {
    b"AVI ": "avi",
    b"AVIX": "avi",
    b"AVI\x19": "avi",
    b"AMV ": "amv",
    b"WAVE": "wav",
    b"XWMA": "xwma",
    b"CDXA": "mpegps",  # a Video CD track: MPEG-PS behind a RIFF header
}


def family_of(head: bytes) -> str | None:
    """Container family told by the first bytes of a file (up to `HEAD_BYTES`), or None."""
    family = _by_signature(head)
    if reads_as_text(head):
        return family if family in _BEGIN_AS_TEXT else None
    return family if family is not None else family_by_sync_words(head)


def reads_as_text(head: bytes) -> bool:
    """Whether the first 512 bytes hold no control characters, as all text and no media does."""
    start = head[:512]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\x00" in start[2:]:
        return True  # UTF-16
    return not any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in start)


def _by_signature(head: bytes) -> str | None:
    if len(head) >= 8 and head[4:8] in _MP4_BOXES and _is_box_size(head[:4]):
        return "mp4"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"ON2 "):
        return "avi" if head[:4] == b"ON2 " else _RIFF_FORMS.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV", b"MAUD"):
        return "aiff"
    if head[:3] in (b"FWS", b"CWS") and len(head) > 8 and 1 <= head[3] <= 50:
        return "swf"
    if head[4:6] in (b"\x11\xaf", b"\x12\xaf") and head[12:14] in (b"\x08\x00", b"\x00\x00"):
        return "flic"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "apng" if b"acTL" in head[:4096] else None  # a still PNG is not a video
    return next((name for at, magic, name in _SIGNATURES if head.startswith(magic, at)), None)


def _is_box_size(size: bytes) -> bool:
    """0 is "to the end of the file", 1 is "64 bits follow"; else it counts its own 8 bytes."""
    number = int.from_bytes(size, "big")
    return number in (0, 1) or number >= 8
