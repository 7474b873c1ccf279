"""From a path to pictures: sniff, probe, plan, decode. What both decoders share.

Imports neither torch nor decord, so that a decoding process starts in a fraction of a second.

    probed = probe(path)
    wanted = plan(probed, sampling)
    report = DecodeReport()
    for frames in read_frames(
        probed, wanted, decoder=choose_decoder(probed, sampling, report=report), report=report
    ): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from vtag.decode_report import DecodeReport
from vtag.plan import Candidates, Plan, candidates, choose_decoder, plan
from vtag.probe import Probe, probe
from vtag.records import Frames
from vtag.sniff import sniff
from vtag.stream_choice import Limits

__all__ = [
    "Candidates",
    "DecodeReport",
    "Limits",
    "Plan",
    "Probe",
    "candidates",
    "choose_decoder",
    "plan",
    "probe",
    "read_frames",
    "sniff",
]


def read_frames(
    probe: Probe,
    plan: Plan,
    *,
    decoder: Literal["decord", "pyav"],
    report: DecodeReport | None = None,
    batch: int = 8,
) -> Iterator[Frames]:
    """The planned pictures in batches, in order of time; short side `FRAME_SIDE_PX`.

    Both decoders give the same times and, within the precision of their scalers, the same
    pixels. PyAV streams: one batch is in memory at a time. decord holds all pictures at once.

    Args:
        report: filled while reading: damaged packets, warnings.
        batch: most pictures in one `Frames`.

    Raises:
        MediaError: stage "video"; corrupt, truncated, encrypted or unsupported_codec where no
            picture can be decoded. From decord also decoder_misbehaved, and corrupt at the first
            damaged packet: PyAV may still read what is left.
    """
    report = report if report is not None else DecodeReport()
    if decoder == "decord":
        from vtag.decode_decord import read_frames_decord

        return read_frames_decord(probe, plan, batch=batch)
    from vtag.decode_pyav import read_frames_pyav

    return read_frames_pyav(probe, plan, report=report, batch=batch)
