"""What a long command says on stderr while it runs: a bar, or lines, or JSON lines."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtag.records import Record
    from vtag.run import Summary

log = logging.getLogger(__name__)

PROGRESS_LOG_SECONDS = 30.0  # a line so often where there is no terminal for a bar


class Progress:
    """Counts on stderr: a bar in a terminal, a line now and then elsewhere, nothing if quiet."""

    def __init__(self, args: argparse.Namespace) -> None:
        from tqdm import tqdm

        self._quiet = args.quiet
        self._bar: Any = None
        if sys.stderr.isatty() and not args.quiet and not args.log_json:
            self._bar = tqdm(unit="file", dynamic_ncols=True, file=sys.stderr)
        self._started = self._said = time.monotonic()
        self._frames = 0

    def step(self, record: Record | None, summary: Summary) -> None:
        """One more input has its result (None: it had one before)."""
        if record is not None and record.media is not None and "decode" in record.timing:
            self._frames += record.media.sampled_frames
        now = time.monotonic()
        rate = self._frames / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix(failed=summary.failed, frames_per_s=f"{rate:.0f}", refresh=False)
            self._bar.update()
        elif not self._quiet and now - self._said > PROGRESS_LOG_SECONDS:
            self._said = now
            log.warning(
                "%d done, %d failed, %d already done, %.0f frames/s",
                summary.tagged,
                summary.failed,
                summary.skipped,
                rate,
            )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.close()


class JsonLines(logging.Formatter):
    """One JSON object per log line, for `--log-json`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one log record."""
        line = {"time": record.created, "level": record.levelname, "logger": record.name}
        return json.dumps({**line, "message": record.getMessage()})


def configure_logging(args: argparse.Namespace) -> None:
    level = logging.WARNING - 10 * getattr(args, "verbose", 0)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if getattr(args, "log_json", False) else logging.Formatter("vtag: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.DEBUG))


def say(text: str) -> None:
    """One line for people, on stderr."""
    print(f"vtag: {text}", file=sys.stderr)
