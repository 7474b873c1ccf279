"""A file with thresholds for single labels, as people write it by hand."""

from __future__ import annotations

import json
from pathlib import Path

from vtag.errors import ConfigError


def read_label_thresholds(path: str | Path) -> dict[str, float]:
    """Id or name of each label in a file, with its threshold.

    The file is a JSON object, or has a line for each label: its id or name, a tab or comma, and
    the threshold. Names may hold commas: the last one counts. Empty lines and lines that begin
    with # are skipped. Which labels there are is not known here.

    Raises:
        ConfigError: the file can not be read, or a line is not of this form (its number is
            named), or a label is there twice.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: the thresholds can not be read ({err})") from err
    entries = _of_json(file, text) if text.lstrip().startswith("{") else _of_lines(file, text)
    found: dict[str, float] = {}
    for where, label, value in entries:
        threshold = _number(value)
        if not label or threshold is None:
            raise ConfigError(
                f"{where}: a threshold is written as `label, 0.6` with a number from 0 to 1, "
                f"got {(f'{label}, {value}' if label else str(value))[:80]!r}"
            )
        if label in found:
            raise ConfigError(f"{where}: label {label!r} is there twice")
        found[label] = threshold
    return found


def _of_lines(file: Path, text: str) -> list[tuple[str, str, object]]:
    entries: list[tuple[str, str, object]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            label, _, value = line.rpartition("\t" if "\t" in line else ",")
            entries.append((f"{file}:{number}", label.strip().strip('"'), value.strip()))
    return entries


def _of_json(file: Path, text: str) -> list[tuple[str, str, object]]:
    try:
        # As a list of pairs: an object would forget the first of two that share a name.
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as err:
        raise ConfigError(f"{file}:{err.lineno}: this is not JSON ({err.msg})") from err
    return [(str(file), label.strip(), value) for label, value in pairs]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 1 else None
