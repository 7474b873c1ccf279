"""Makes the pictures of the report in docs/pictures, from the sample videos.

    python tools/make_report_pictures.py

Needs chromium, chromedriver, selenium and Pillow. The sample videos are tagged with the default
model; nothing else is shown.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
MAX_BYTES = 200_000
# name -> (width, height, theme, view, what is done in the page)
SHOTS = {
    "report-grid": (1280, 860, "light", "#videos", ""),
    "report-video": (1280, 900, "light", "#video={two_scenes}&t=2.5", "playing"),
    "report-tags-dark": (1280, 760, "dark", "#tags", ""),
    "report-phone": (360, 720, "dark", "#video={two_scenes}&t=8.5", "playing"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "sample_videos", folder / "videos")
        tagged = [sys.executable, "-m", "vtag", "run", "videos", "--out", "tags.jsonl", "-q"]
        subprocess.run(tagged, cwd=folder, check=True)
        title = ["--title", "Sample videos"]
        made = [sys.executable, "-m", "vtag", "report", "tags.jsonl", "--out", "report", *title]
        subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        browser = open_browser()
        try:
            for shot, given in SHOTS.items():
                save(PICTURES / f"{shot}.png", take(browser, folder / "report", *given))
        finally:
            browser.quit()


def open_browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def take(
    browser: Any, report: Path, width: int, height: int, theme: str, view: str, state: str
) -> bytes:
    """PNG of one view of the report."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page = (report / "index.html").as_uri()
    browser.get(page)
    rows = json.loads(browser.execute_script("return JSON.stringify(vtag.rows)"))
    keys = {Path(row[2]).stem: row[0] for row in rows}
    browser.get("about:blank")
    browser.get(page + view.format(**keys))
    time.sleep(0.5)
    if state == "playing":
        browser.execute_script("panel.dialog.focus(); document.activeElement.blur()")
        while browser.execute_script("return panel.media.readyState < 2 || panel.media.seeking"):
            time.sleep(0.05)
    time.sleep(0.5)
    data: bytes = browser.get_screenshot_as_png()
    return data


def save(path: Path, png: bytes) -> None:
    """Fewer colours until it is small enough to be kept with the code."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours in (256, 192, 128, 96, 64):
        buffer = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG).save(
            buffer, "PNG", optimize=True
        )
        if buffer.tell() < MAX_BYTES:
            path.write_bytes(buffer.getvalue())
            print(f"{path.relative_to(ROOT)}: {buffer.tell()} bytes, {colours} colours")
            return
    raise SystemExit(f"{path}: is not small enough")


if __name__ == "__main__":
    main()
