"""Results to make reports of, and a browser to look at them with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

REQUIRED = os.environ.get("VTAG_REQUIRE_BROWSER") == "1"
# Names that files really can have here; each would do harm somewhere if it were not escaped.
HOSTILE_NAMES = [
    b"a#b?c%41&d=e;f.mp4",
    b"<script>window.evil=1<%2Fscript>.mp4",
    b"<img src=x onerror=window.evil=1>.mp4",
    b"\"><svg onload='window.evil=1'>.mp4",
    b"');window.evil=1;('.mp4",
    b"two\nlines\tand a tab.mp4",
    b"not utf-8 \xff\xfe.mp4",
    "right to left \u202e4pm.exe.mp4".encode(),
    "\u65e5\u672c \U0001f408 e\u0301.mp4".encode(),
    b"back\\slash.mp4",
    b"javascript:window.evil=1.mp4",
    b"{{7*7}}{% raw %}.mp4",
    b"trailing space .mp4",
    b"%2e%2e%2fup.mp4",
    b"__proto__.mp4",
]


def content_id(path: Path) -> str:
    return "sha256:" + sha256(path.read_bytes()).hexdigest()


def tag(
    name: str,
    score: float = 0.9,
    *,
    segments: Sequence[tuple[float, float]] = ((0.0, 1.0),),
    moments: Sequence[float] = (0.0,),
    sources: Sequence[str] = ("visual",),
    categories: Sequence[str] = (),
    id_: str | None = None,
) -> dict[str, Any]:
    return {
        "id": id_ or f"n-{name}",
        "name": name,
        "score": score,
        "threshold": 0.3,
        "categories": list(categories),
        "sources": list(sources),
        "segments": [{"start": a, "end": b, "score": score} for a, b in segments],
        "evidence": [{"time": t, "weight": round(1 / (n + 2), 2)} for n, t in enumerate(moments)],
    }


def record(path: Path | str, tags: Iterable[dict[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    there = isinstance(path, Path) and path.is_file()
    media = {"duration": 4.0, "fps": 25.0, "width": 160, "height": 96, "video_codec": "h264"}
    media |= {"audio_codec": None, "has_video": True, "has_audio": False, "corrupt_frames": 0}
    return {
        "schema": 1,
        "id": content_id(path) if there else f"sha256:{sha256(repr(path).encode()).hexdigest()}",
        "path": str(path),
        "status": "ok",
        "media": media | changes.pop("media", {}),
        "tags": list(tags),
        "model": {"name": "vtag-base", "fingerprint": "f1", "labels": 3},
        "timing": {},
        "warnings": [],
    } | changes  # fmt: skip


def failure(path: Path | str, code: str, message: str = "no") -> dict[str, Any]:
    error = {"code": code, "stage": "open", "message": message, "retryable": False}
    return record(path, status="failed", media={}, error=error) | {"id": None, "media": None}


def write_results(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="ascii")
    return path


def many_records(number: int) -> Iterator[dict[str, Any]]:
    """So many videos that are not there, with tags as a real library has them."""
    random = Random(1)
    names = [f"thing {n}" for n in range(400)]
    groups = [f"group {n}" for n in range(20)]
    for at in range(number):
        tags = sorted(
            (
                tag(
                    name := random.choice(names),
                    round(random.uniform(0.3, 0.99), 4),
                    segments=[(0.0, 5.5), (20.0, 30.25)],
                    moments=[1.0, 20.0],
                    sources=["audio"] if hash_of(name) % 5 == 0 else ["visual"],
                    categories=[groups[hash_of(name) % 20]],
                )
                for _ in range(random.randint(0, 8))
            ),
            key=lambda one: -one["score"],
        )
        tags = list({one["id"]: one for one in tags}.values())
        path = f"library/{2000 + at % 25}/a trip to somewhere/clip_{at:05d}.mp4"
        yield record(path, tags, media={"duration": round(random.uniform(1, 4000), 2)})


def hash_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")


def open_browser(downloads: Path) -> Any:
    """A headless chromium that keeps what the page logs; skips, or fails, where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "no chromium and chromedriver: apt-get install chromium chromium-driver"
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)
    webdriver = pytest.importorskip("selenium.webdriver") if not REQUIRED else __import__(
        "selenium.webdriver"
    ).webdriver  # fmt: skip
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = ["--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    for flag in flags:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)
