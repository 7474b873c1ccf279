"""The report and the model card of a training, for people to read.

The report is one HTML file: no script, nothing loaded from elsewhere, every name escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import jinja2
from markupsafe import Markup

from vtag.models.net_config import TaggerNetConfig
from vtag.train_config import TrainConfig
from vtag.train_curves import curves_svg

MAX_LABEL_ROWS: Final = 1000  # a browser shows a table of that length; labels.json has all

METRIC_NAMES: Final = {
    "gap": "GAP@20",
    "map": "mAP (top 20 of each clip)",
    "hit_at_one": "Hit@1",
    "perr": "PERR",
    "f1": "F1 at the thresholds",
    "calibration_error": "calibration error",
}


@dataclass(frozen=True)
class Side:
    """Figures on one side of the split.

    Attributes:
        figures: metric to value; keys of `METRIC_NAMES`.
        intervals: metric to the ends of its 95 % bootstrap interval.
    """

    name: str
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelFigures:
    """How one label does on the validation clips.

    Attributes:
        train_clips, checked_clips: clips that have it, in training and in validation.
        average_precision: None where no validation clip has it.
        found, wrong: validation clips at or above the threshold that have it, and that do not.
    """

    name: str
    train_clips: int
    checked_clips: int
    average_precision: float | None
    threshold: float
    found: int
    wrong: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Validation clips of one label that scored best for another."""

    true: str
    said: str
    clips: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is told about a training.

    Attributes:
        clips: how many in training, validation and test.
        streams: what was learnt from, in words.
        history: one row of numbers per epoch.
        best_epoch: whose weights were kept, from 1.
        confusions: what was taken for what, most often first.
        advice: what the curves say, in plain words.
        notes: clips left out, copies, rare labels.
    """

    name: str
    config: TrainConfig
    network: TaggerNetConfig
    parameters: int
    clips: Mapping[str, int]
    streams: Mapping[str, str]
    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    sides: tuple[Side, ...]
    labels: tuple[LabelFigures, ...]
    confusions: tuple[Confusion, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def weakest_first(self) -> list[LabelFigures]:
        """Labels by average precision, unchecked ones first: where more clips help most."""
        return sorted(
            self.labels,
            key=lambda label: -1.0 if label.average_precision is None else label.average_precision,
        )


def report_html(report: Report) -> str:
    """A self-contained HTML page."""
    # The picture is drawn from numbers and fixed words only.
    curves = Markup(curves_svg(report.history, report.best_epoch - 1))
    return _HTML.render(
        r=report,
        curves=curves,
        metric_names=METRIC_NAMES,
        labels=report.weakest_first()[:MAX_LABEL_ROWS],
        settings=json.dumps(report.config.to_dict(), indent=1),
        network=json.dumps(report.network.to_dict(), indent=1),
    )


def model_card(report: Report) -> str:
    """Markdown for people who get the model without its report."""
    return _CARD.render(r=report, metric_names=METRIC_NAMES)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _markdown(text: object) -> str:
    """Text that can not become markup or a new table cell."""
    one_line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#|!&~" else c for c in one_line)


_ENVIRONMENT: Final = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)
_ENVIRONMENT.filters["share"] = _share
_PLAIN: Final = jinja2.Environment(
    autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)
_PLAIN.filters["share"] = _share
_PLAIN.filters["markdown"] = _markdown

_HTML: Final = _ENVIRONMENT.from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ r.name }}: training report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.advice { background: #fff4e5; border-left: 4px solid #d55e00; padding: .6rem 1rem; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ r.name }}</h1>
<p>{{ r.labels | length }} labels, {{ "{:,}".format(r.parameters) }} parameters, preset
{{ r.config.preset }}. {{ r.clips.training }} training clips, {{ r.clips.validation }} validation
clips, {{ r.clips.test }} test clips. Weights of epoch {{ r.best_epoch }} of
{{ r.history | length }} were kept.
{%- if r.config.refit %} Then it was trained once more for as many epochs with the validation clips
too: the figures below are those of the training before, and so a little too low.{% endif %}</p>
{% for text in r.advice %}
<p class="advice">{{ text }}</p>
{% endfor %}
<h2>How good it is</h2>
<table>
<tr><th>figure</th>{% for side in r.sides %}<th class="n">{{ side.name }}</th>{% endfor %}</tr>
{% for key, name in metric_names.items() %}
<tr><td>{{ name }}</td>
{% for side in r.sides %}
<td class="n">{{ side.figures[key] | share }}
{%- if key in side.intervals %} ({{ side.intervals[key][0] | share }} to \
{{ side.intervals[key][1] | share }}){% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</table>
<p>In brackets: where the figure lies in 95 of 100 resamplings of the clips. Thresholds and the
kept epoch were chosen on the validation clips, so their figures flatter a little.</p>
<h2>Curves</h2>
{{ curves }}
<h2>Labels, weakest first</h2>
<table>
<tr><th>label</th><th class="n">training clips</th><th class="n">validation clips</th>
<th class="n">average precision</th><th class="n">threshold</th><th class="n">found</th>
<th class="n">wrong</th></tr>
{% for label in labels %}
<tr><td>{{ label.name }}</td><td class="n">{{ label.train_clips }}</td>
<td class="n">{{ label.checked_clips }}</td><td class="n">{{ label.average_precision | share }}</td>
<td class="n">{{ label.threshold | share }}</td><td class="n">{{ label.found }}</td>
<td class="n">{{ label.wrong }}</td></tr>
{% endfor %}
</table>
{% if r.labels | length > labels | length %}
<p>{{ r.labels | length - labels | length }} more labels are in labels.json.</p>
{% endif %}
{% if r.confusions %}
<h2>What was taken for what</h2>
<table>
<tr><th>it is</th><th>scored best</th><th class="n">validation clips</th></tr>
{% for confusion in r.confusions %}
<tr><td>{{ confusion.true }}</td><td>{{ confusion.said }}</td>\
<td class="n">{{ confusion.clips }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if r.notes %}
<h2>Notes on the clips</h2>
<ul>
{% for note in r.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
<h2>Epochs</h2>
<table>
<tr><th class="n">epoch</th><th class="n">step</th><th class="n">learning rate</th>
<th class="n">training loss</th><th class="n">validation loss</th><th class="n">GAP@20</th>
<th class="n">mAP</th><th class="n">Hit@1</th></tr>
{% for row in r.history %}
<tr><td class="n">{{ row.epoch }}</td><td class="n">{{ row.step }}</td>
<td class="n">{{ "%.3g" | format(row.learning_rate) }}</td>
<td class="n">{{ "%.4g" | format(row.train_loss) }}</td>
<td class="n">{{ "%.4g" | format(row.validation_loss) }}</td>
<td class="n">{{ row.gap | share }}</td><td class="n">{{ row.map | share }}</td>
<td class="n">{{ row.hit_at_one | share }}</td></tr>
{% endfor %}
</table>
<h2>Settings</h2>
<table>
{% for stream, text in r.streams.items() %}
<tr><td>{{ stream }}</td><td>{{ text }}</td></tr>
{% endfor %}
</table>
<pre>{{ settings }}</pre>
<h2>Network</h2>
<pre>{{ network }}</pre>
</body>
</html>
""")

_CARD: Final = _PLAIN.from_string("""\
# {{ r.name | markdown }}

A tagger for {{ r.labels | length }} labels, trained with vtag (preset {{ r.config.preset }}).

- Parameters: {{ "{:,}".format(r.parameters) }}
- Clips: {{ r.clips.training }} to learn from, {{ r.clips.validation }} to choose epoch and \
thresholds, {{ r.clips.test }} to test
{% for stream, text in r.streams.items() %}
- Reads {{ stream | markdown }}: {{ text | markdown }}
{% endfor %}
- Kept: epoch {{ r.best_epoch }} of {{ r.history | length }}\
{% if r.config.refit %}, then trained again for as long with the validation clips too{% endif %}


## Figures

| figure |{% for side in r.sides %} {{ side.name }} |{% endfor %}

| --- |{% for side in r.sides %} ---: |{% endfor %}

{% for key, name in metric_names.items() %}
| {{ name }} |{% for side in r.sides %} {{ side.figures[key] | share }} |{% endfor %}

{% endfor %}

## Limits

- Says nothing beyond its labels, and is no better than the clips it was shown: what is rare or
  missing among them is missed in other videos too.
- Thresholds were chosen for the best F1 on the validation clips.
{% for text in r.advice %}
- {{ text | markdown }}
{% endfor %}

## Labels

| label | training clips | validation clips | average precision | threshold |
| --- | ---: | ---: | ---: | ---: |
{% for label in r.labels[:200] %}
| {{ label.name | markdown }} | {{ label.train_clips }} | {{ label.checked_clips }} | \
{{ label.average_precision | share }} | {{ label.threshold | share }} |
{% endfor %}
{% if r.labels | length > 200 %}

{{ r.labels | length - 200 }} more labels are in `labels.json`.
{% endif %}
""")
