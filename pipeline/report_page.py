"""The files of a report: one page, its scripts and styles, and data that is nothing but data.

A browser fetches nothing for a page that was opened from disk, but it loads scripts. So data
comes as scripts that are one call each, `vtagData("kind", number, JSON)`, and the page's policy
allows no script that is not a file of the report. The JSON is plain ASCII without "<".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import jinja2

from vtag.errors import ERROR_CODES, ConfigError
from vtag.records import Tag
from vtag.report_entries import Entry, link_to, shown
from vtag.report_folder import DATA, PAGE, STATIC
from vtag.report_thumbnails import Thumbnails, cell_width

ROWS_PER_FILE: Final = 1000  # of the grid: all of it is loaded with the page
DETAILS_PER_FILE: Final = 64  # loaded when a video is opened
SOURCE_BITS: Final = {"visual": 1, "audio": 2}
PERSON_BIT: Final = 4
_GONE, _NOTES, _PICTURES, _SOUND = 1, 2, 4, 8
_TEMPLATES: Final = Path(__file__).parent / "templates"

_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass
class PageData:
    """What the scripts of a page get.

    Attributes:
        place: the folder that the report will be in; links are relative to it.
        thumbnails: by key of the entry.
        tags: id -> position in the table of tags.
    """

    place: Path
    thumbnails: dict[str, Thumbnails]
    tags: dict[str, int] = field(default_factory=dict)
    table: list[list[object]] = field(default_factory=list)

    def row(self, entry: Entry, number: int) -> list[object]:
        """One video of the grid; the positions are named in report_data.js."""
        error = entry.facts["error"] or {}
        # Gone is what was tagged: what failed may never have been a file.
        flags = _GONE * entry.is_gone + _NOTES * bool(entry.facts["warnings"])
        flags += _PICTURES * entry.has_pictures + _SOUND * (entry.media.get("has_audio") is True)
        return [
            entry.key,
            entry.id or 0,
            shown(entry.path),
            link_to(entry.video, self.place) if entry.video else 0,
            error.get("code", 0),
            flags,
            _seconds(entry.media.get("duration")),
            self._thumbnails(entry).poster or 0,
            self._thumbnails(entry).strip or 0,
            [_s(time) for time in entry.moments],
            [value for tag in entry.tags for value in self._tag(tag, entry)],
            number // DETAILS_PER_FILE,
        ]

    def detail(self, entry: Entry) -> dict[str, object]:
        """What only the panel of one video shows."""
        error, model = entry.facts["error"], entry.facts["model"]
        media = entry.media
        names = ("width", "height", "fps", "video_codec", "audio_codec", "corrupt_frames")
        width, height = media.get("width") or 16, media.get("height") or 9
        return {
            "key": entry.key,
            "path": entry.path,
            "media": {name: _plain(media.get(name)) for name in names},
            "tags": [
                [
                    round(tag.threshold, 4),
                    [x for s in tag.segments for x in (_s(s.start), _s(s.end), round(s.score, 4))],
                    [x for e in tag.evidence for x in (_s(e.time), round(e.weight, 3))],
                ]
                for tag in entry.tags
            ],
            "cell": cell_width(width, height),
            "notes": [shown(str(note)) for note in entry.facts["warnings"]],
            "error": {name: shown(str(value)) for name, value in error.items()} if error else 0,
            "model": shown(f"{model.get('name', '')} {model.get('fingerprint', '')}".strip()),
        }

    def _thumbnails(self, entry: Entry) -> Thumbnails:
        return self.thumbnails.get(entry.key, Thumbnails())

    def _tag(self, tag: Tag, entry: Entry) -> tuple[int, int, int, int]:
        at = self.tags.setdefault(tag.id, len(self.tags))
        if at == len(self.table):
            self.table.append([tag.id, shown(tag.name), [shown(one) for one in tag.categories]])
        bits = sum(SOURCE_BITS[source] for source in tag.sources)
        bits += PERSON_BIT * (tag.id in entry.by_person)
        return at, round(tag.score * 10_000), bits, entry.moment_of(tag)


def write_page(
    folder: Path,
    entries: Sequence[Entry],
    *,
    place: Path,
    title: str,
    thumbnails: dict[str, Thumbnails],
    labels: Sequence[str],
) -> None:
    """Writes all of a report but its thumbnails.

    Args:
        folder: where it is made.
        place: where it will be.
        labels: names that may be added to a video, for the list of suggestions.

    Raises:
        OSError: a file can not be written.
    """
    data = PageData(place, thumbnails)
    rows = [data.row(entry, number) for number, entry in enumerate(entries)]
    names = []
    for number, part in enumerate(_parts(rows, ROWS_PER_FILE)):
        names.append(_write(folder, "rows", number, part))
    for number, some in enumerate(_parts(entries, DETAILS_PER_FILE)):
        _write(folder, "detail", number, [data.detail(entry) for entry in some])
    codes = {name: [code.meaning, code.remedy] for name, code in ERROR_CODES.items()}
    known = dict.fromkeys([*labels, *(str(tag[1]) for tag in data.table)])
    names += [
        _write(folder, "tags", 0, data.table),
        _write(folder, "codes", 0, codes),
        _write(folder, "labels", 0, list(known)),
    ]
    scripts = sorted(file.name for file in _TEMPLATES.glob("*.js"))
    for name in (*scripts, "report.css"):
        shutil.copyfile(_TEMPLATES / name, folder / STATIC / name)
    page = _ENVIRONMENT.get_template("report.html").render(
        title=title,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        videos=sum(entry.is_tagged for entry in entries),
        failed=sum(not entry.is_tagged for entry in entries),
        scripts=scripts,
        data=names,
    )
    (folder / PAGE).write_text(page, encoding="utf-8", newline="\n")


def script_of(kind: str, number: int, value: object) -> str:
    """The call that hands a value to the page; ASCII, and inert wherever it may end up."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f'vtagData("{kind}",{number},{text.replace("<", chr(92) + "u003c")});\n'


def label_names(model: str | None, entries: Sequence[Entry]) -> list[str]:
    """Names of all labels of the models that gave the tags, as far as they are at hand.

    Args:
        model: a name or a folder; None looks for the embedded models that the records name.

    Raises:
        ConfigError: the model that was asked for has no labels here.
    """
    # Found without importing it: that would load torch for a list of words.
    spec = find_spec("vtag.models")
    weights = [
        Path(place) / "weights" for place in (spec and spec.submodule_search_locations) or ()
    ]
    asked = [model] if model else sorted({_model_of(entry) for entry in entries} - {""})
    names: list[str] = []
    for name in asked:
        folders = [Path(name)] if model else []
        folders += [one / name for one in weights if "/" not in name and not name.startswith(".")]
        found = next((one for one in folders if (one / "labels.json").is_file()), None)
        if found is None and model:
            raise ConfigError(f"--model {model}: no model of this name and no folder of a model")
        try:
            labels = json.loads((found / "labels.json").read_bytes()) if found else []
            names += [shown(str(label["name"])) for label in labels]
        except (OSError, ValueError, TypeError, KeyError) as err:
            raise ConfigError(f"{found}: its labels.json is damaged ({err})") from err
    return sorted(set(names), key=str.casefold)


def _model_of(entry: Entry) -> str:
    name = entry.facts["model"].get("name")
    return name if isinstance(name, str) else ""


def _write(folder: Path, kind: str, number: int, value: object) -> str:
    name = f"{kind}-{number:03d}.js"
    (folder / DATA / name).write_text(script_of(kind, number, value), encoding="ascii")
    return f"{DATA}/{name}"


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _plain(value: object) -> object:
    if isinstance(value, str):
        return shown(value)
    return round(value, 3) if isinstance(value, int | float) else None


def _seconds(value: object) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 3.2e9
    return _s(float(value)) if known else 0  # type: ignore[arg-type]


def _s(seconds: float) -> float:
    return round(seconds, 2)
