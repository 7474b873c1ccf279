"""The pictures that calibrate the default model's head: which packages, and which views of them.

Photographs come from Debian packages whose licence allows it, drawings too; writing, noise,
plain colours, shapes, blur and darkness are drawn here. Every picture is fixed by its name: the
same name gives the same views.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Kind = Literal[
    "named", "photo", "painting", "drawing", "text", "noise", "plain", "shapes", "blurred", "dark"
]
Pixels = NDArray[np.uint8]

SIDE: Final = 256  # pixels; the backbone looks at the central 224
SMALLEST: Final = 90  # pixels of the short side of a picture that is taken
LARGEST: Final = 40_000_000  # pixels in all
SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}
# For these the right answer is that there is nothing to name.
NOTHING: Final[frozenset[str]] = frozenset(
    {"drawing", "text", "noise", "plain", "shapes", "blurred", "dark"}
)


@dataclass(frozen=True)
class Package:
    """Pictures of one Debian package.

    Attributes:
        kind: of its pictures; "named" if a picture's file name says what it shows.
        within: a pattern that the path must hold, without: one that it must not.
        views: how many of each picture.
        most: pictures taken at most, drawn by their names.
    """

    name: str
    kind: Kind
    within: str = ""
    without: str = r"^$"
    views: int = 2
    most: int = 10_000


PACKAGES: Final = (
    Package(
        "tuxpaint-stamps-default",
        "named",
        r"/stamps/",
        r"cartoon|/symbols/|_mirror|flags",
        views=3,
    ),
    Package("tuxpaint-stamps-default", "drawing", r"cartoon|/symbols/|flags", "_mirror", 1, 120),
    Package(
        "gcompris-qt-data",
        "named",
        r"/(categorization|explore_\w+_animals|erase|lang)/",
        r"/(lang/resource/[^w]|cover)",
        views=3,
    ),
    Package("gcompris-qt-data", "photo", r"/explore_(monuments|world_music)/", views=3),
    Package("gcompris-qt-data", "painting", r"/(paintings|details)/", r"_[a-z]?\d\.", views=2),
    Package("mate-backgrounds", "photo", r"/(nature|abstract)/", views=5),
    Package("gnome-backgrounds", "photo", views=4),
    Package("lomiri-wallpapers-16.04", "photo", views=5),
    Package("lomiri-wallpapers-20.04", "photo", views=5),
    Package("ukui-wallpapers", "photo", views=4),
    Package("plasma-workspace-wallpapers", "photo", r"/images/\d{4}x", views=3),
    Package("lxqt-themes", "photo", r"/wallpapers/", views=3),
    Package("python3-skimage", "photo", r"/skimage/data/", views=2),
    Package("opencv-doc", "photo", r"/examples/data/", r"tmpl|mask|logo", views=2),
    Package("opencv-doc", "photo", r"/opencv4/html/.*\.jpg$", r"/(?=.*(diagram|plot))", 1, 100),
    Package("pysiogame", "drawing", views=1, most=250),
    Package("openclipart-png", "drawing", views=1, most=300),
)
DRAWN: Final[dict[Kind, int]] = {
    "text": 160,
    "noise": 70,
    "plain": 60,
    "shapes": 110,
    "blurred": 80,
    "dark": 60,
}
WORDS: Final = re.findall(
    r"\S+",
    "the quick brown fox jumps over a lazy dog chapter one end of film directed produced by music "
    "thanks for watching subscribe next previous loading menu price total name date page "
    "holiday family part two episode news live today good morning 2024 100% hello world",
)


@dataclass(frozen=True)
class Picture:
    """One picture, or the recipe of one.

    Attributes:
        name: unique; what is drawn of it depends on nothing else.
        words: what its file name says it shows.
        file: None for one that is drawn here.
    """

    name: str
    kind: Kind
    views: int
    words: str = ""
    file: Path | None = None


def number_of(text: str) -> int:
    """A number below 2³² for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def unpack_resources(bundle: Path, folder: Path) -> None:
    """Writes the pictures of a Qt resource bundle (rcc, version 1 to 3) as files."""
    data = bundle.read_bytes()
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 14 if version < 2 else 22

    def name(at: int) -> str:
        (length,) = struct.unpack(">H", data[names + at : names + at + 2])
        return data[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be")

    def walk(node: int, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bytes]]:
        at = tree + node * size
        name_at, flags = struct.unpack(">IH", data[at : at + 6])
        if flags & 2:
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, (*path, name(name_at)) if node else path)
            return
        start = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
        (length,) = struct.unpack(">I", data[start : start + 4])
        body = data[start + 4 : start + 4 + length]
        yield (*path, name(name_at)), zlib.decompress(body[4:]) if flags & 1 else body

    for parts, body in walk(0, ()):
        if Path(parts[-1]).suffix in SUFFIXES and ".." not in parts:
            file = folder.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)


def pictures_of(package: Package, folder: Path) -> list[Picture]:
    """The pictures of an unpacked package, without those that are too small or damaged."""
    paths = [
        "/" + file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.is_symlink()
    ]
    fit = [
        path
        for path in sorted(paths, key=lambda path: number_of(package.name + path))
        if re.search(package.within, path) and not re.search(package.without, path)
    ]
    found: list[Picture] = []
    for path in fit:
        file = folder / path[1:]
        if len(found) < package.most and _large(file):
            words = " ".join([re.sub(r"[\W\d_]+", " ", _spaced(file.stem)), _caption(file)])
            name = f"{package.name}{path}"
            found.append(Picture(name, package.kind, package.views, words.lower(), file))
    return found


def drawn_pictures() -> list[Picture]:
    """Recipes of what is drawn here."""
    return [Picture(f"{kind}/{n}", kind, 1) for kind, count in DRAWN.items() for n in range(count)]


def _spaced(stem: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)


def _caption(file: Path) -> str:
    """First line of the text that lies beside a stamp."""
    text = file.with_suffix(".txt")
    if not text.is_file():
        return ""
    return text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]


def _large(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
            width, height = picture.size
    except (OSError, Image.DecompressionBombError):
        return False
    return min(width, height) >= SMALLEST and width * height <= LARGEST


def views_of(picture: Picture, backgrounds: list[Path]) -> list[Pixels]:
    """The views [256, 256, 3] of a picture.

    The first view is its central square. Of a picture with a see-through surrounding the others
    show it before photographs, smaller and off the centre; of any other they are crops.
    """
    random = np.random.default_rng(number_of(picture.name))
    if picture.file is None:
        return [_draw(picture.kind, random, backgrounds)]
    with Image.open(picture.file) as opened:
        opened.draft("RGB", (1600, 1600))
        whole = opened.convert("RGBA")
    whole.thumbnail((1600, 1600))
    cut_out = np.asarray(whole)[..., 3].min() < 128 and picture.kind == "named"
    views = [_square(_on_colour(whole, (255, 255, 255)))]
    for _ in range(picture.views - 1):
        views.append(_before(whole, backgrounds, random) if cut_out else _crop(whole, random))
    return views


def _on_colour(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", picture.size, (*colour, 255))
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def _square(picture: Image.Image) -> Pixels:
    """As a frame is made: short side 256, then the centre."""
    width, height = picture.size
    scale = SIDE / min(width, height)
    size = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)).convert("RGB"))


def _crop(picture: Image.Image, random: np.random.Generator) -> Pixels:
    """A crop of a third of the area or more, mirrored in half of the cases."""
    width, height = picture.size
    share = random.uniform(0.6, 1.0)
    size = round(width * share), round(height * share)
    left, top = random.integers(width - size[0] + 1), random.integers(height - size[1] + 1)
    part = _on_colour(picture, (255, 255, 255)).crop(
        (int(left), int(top), int(left) + size[0], int(top) + size[1])
    )
    if random.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _square(part)


def _before(picture: Image.Image, backgrounds: list[Path], random: np.random.Generator) -> Pixels:
    """The picture before a photograph."""
    with Image.open(backgrounds[random.integers(len(backgrounds))]) as opened:
        opened.draft("RGB", (800, 800))
        ground = Image.fromarray(_crop(opened.convert("RGBA"), random)).convert("RGBA")
    if random.random() < 0.5:
        ground = ground.filter(ImageFilter.GaussianBlur(random.uniform(0, 4)))
    side = SIDE * random.uniform(0.55, 0.95)
    thing = picture.crop(picture.getbbox() or (0, 0, *picture.size))
    scale = side / max(thing.size)
    thing = thing.resize((max(1, round(thing.width * scale)), max(1, round(thing.height * scale))))
    if random.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = int(random.integers(SIDE - thing.width + 1))
    top = int(random.integers(SIDE - thing.height + 1))
    ground.alpha_composite(thing, (left, top))
    return np.asarray(ground.convert("RGB"))


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue


def _draw(kind: Kind, random: np.random.Generator, backgrounds: list[Path]) -> Pixels:
    """A picture of nothing that has a name."""
    if kind == "text":
        return _square(_draw_text(random))
    if kind == "shapes":
        return _square(_draw_shapes(random))
    if kind == "noise":
        return _draw_noise(random)
    if kind == "plain":
        return _draw_plain(random)
    with Image.open(backgrounds[random.integers(len(backgrounds))]) as opened:
        opened.draft("RGB", (800, 800))
        photo = Image.fromarray(_crop(opened.convert("RGBA"), random))
    if kind == "blurred":
        return np.asarray(photo.filter(ImageFilter.GaussianBlur(random.uniform(14, 40))))
    dim = np.asarray(photo) * random.uniform(0.01, 0.06) + random.normal(0, 2, (SIDE, SIDE, 3))
    return np.clip(dim, 0, 255).astype(np.uint8)


def _draw_text(random: np.random.Generator) -> Image.Image:
    ground = [(0, 0, 0), (255, 255, 255), _colour(random)][random.integers(3)]
    ink = (255, 255, 255) if sum(ground) < 380 else (0, 0, 0)
    picture = Image.new("RGB", (640, 360), ground)
    pen, size = ImageDraw.Draw(picture), int(random.integers(12, 70))
    font = ImageFont.load_default(size)
    lines = int(random.integers(1, 12))
    for line in range(lines):
        words = " ".join(random.choice(WORDS, random.integers(1, 9)))
        left = int(random.integers(10, 200)) if lines < 4 else 30
        pen.text((left, 20 + line * size * 1.4 + (120 if lines < 4 else 0)), words, ink, font=font)
    return picture


def _draw_shapes(random: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (640, 360), _colour(random))
    pen = ImageDraw.Draw(picture)
    outline = (0, 0, 0) if random.random() < 0.5 else None
    for _ in range(random.integers(1, 25)):
        x, y = random.integers(-50, 640), random.integers(-50, 360)
        width, height = random.integers(10, 300, 2)
        box = (int(x), int(y), int(x + width), int(y + height))
        shape, colour = random.integers(4), _colour(random)
        if shape == 0:
            pen.ellipse(box, fill=colour, outline=outline, width=4)
        elif shape == 1:
            pen.rectangle(box, fill=colour, outline=outline, width=4)
        elif shape == 2:
            corners = [(int(x + a), int(y + b)) for a, b in random.integers(-150, 150, (5, 2))]
            pen.polygon(corners, fill=colour, outline=outline)
        else:
            pen.arc(box, 0, int(random.integers(90, 360)), fill=colour, width=6)
    return picture


def _draw_noise(random: np.random.Generator) -> Pixels:
    """Noise of a spectrum between white and 1/f², coloured or grey."""
    frequency = np.fft.fftfreq(SIDE)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1
    white = random.normal(size=(SIDE, SIDE, 3 if random.random() < 0.6 else 1))
    slope = random.choice([0.0, 0.0, 0.5, 1.0, 1.5, 2.0])
    shaped = np.fft.ifft2(np.fft.fft2(white, axes=(0, 1)) / radius[..., None] ** slope, axes=(0, 1))
    grain = shaped.real / shaped.real.std() * random.uniform(4, 90) + random.uniform(10, 245)
    return np.clip(np.broadcast_to(grain, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def _draw_plain(random: np.random.Generator) -> Pixels:
    """One colour, or a slope between two; black among them."""
    first, second = np.array(_colour(random)), np.array(_colour(random))
    if random.random() < 0.4:
        first = second = np.full(3, random.choice([0, 3, 16, 40, 128, 235, 255]))
    slope = np.linspace(0, 1, SIDE)[:, None, None]
    colours = np.broadcast_to(first + (second - first) * slope, (SIDE, SIDE, 3))
    return (colours if random.random() < 0.5 else colours.transpose(1, 0, 2)).astype(np.uint8)
