"""The shipped head: exactly the backbone's classifier, with the right words at its outputs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vtag.extractors
import vtag.models
from vtag.config import Selection
from vtag.extractors import build_extractor
from vtag.extractors.resnet50 import ResNet50
from vtag.features import fingerprint_of
from vtag.head import load_head
from vtag.models.checkpoint import Checkpoint, check_extractors, load_checkpoint
from vtag.models.labels import LabelSet
from vtag.models.readout import Readout, rank
from vtag.records import Features
from vtag.weights import find_weights

FOLDER = Path(vtag.models.__file__).parent / "weights" / "vtag-base"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def head() -> Checkpoint:
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def labels(head: Checkpoint) -> LabelSet:
    return LabelSet.from_list(head.labels)


@pytest.fixture(scope="module")
def backbone() -> ResNet50:
    extractor = build_extractor("resnet50")
    assert isinstance(extractor, ResNet50)
    return extractor


def classified(rows: Tensor) -> Tensor:
    """The backbone's own last layer on the mean row, float64 [B, 1000]."""
    state = load_file(find_weights("resnet50"))
    weight, bias = state["fc.weight"].double(), state["fc.bias"].double()
    return rows.double().mean(dim=1) @ weight.T + bias


def logits_of(head: Checkpoint, rows: Tensor, stream: str = "visual") -> Tensor:
    """Log-odds of all outputs [B, C]: what is seen, what is heard, and "none of these".

    Those of the other stream say nothing.
    """
    with torch.inference_mode():
        mask = torch.ones(rows.shape[:2], dtype=torch.bool)
        logits: Tensor = head.net({stream: rows}, {stream: mask})
    return logits


def seen(logits: Tensor) -> Tensor:
    """The log-odds of ImageNet's classes [B, 1000]."""
    return logits[:, :1000]


class Drawing:
    """A picture of 256x256 pixels, drawn on a grid of coordinates."""

    def __init__(self, colour: tuple[int, int, int]) -> None:
        self.pixels = np.empty((256, 256, 3), np.uint8)
        self.pixels[:] = colour
        self.y, self.x = np.mgrid[:256, :256].astype(float)

    def fill(self, where: np.ndarray, colour: tuple[int, int, int]) -> None:
        self.pixels[where] = colour

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, grey: int
    ) -> None:
        """A straight line between two points (x, y)."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        along = ((self.x - x0) * (x1 - x0) + (self.y - y0) * (y1 - y0)) / length
        nearest = np.clip(along, 0, length) / length
        away = np.hypot(self.x - x0 - nearest * (x1 - x0), self.y - y0 - nearest * (y1 - y0))
        self.fill(away <= width / 2, (grey, grey, grey))

    def spoke(self, degrees: float, inner: float, outer: float, width: float, grey: int) -> None:
        """A line from the centre outwards, clockwise from the right."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        ends = [(128 + r * cos, 128 + r * sin) for r in (inner, outer)]
        self.line(ends[0], ends[1], width, grey)


def crossword_puzzle() -> Drawing:
    drawing = Drawing((255, 255, 255))
    rng = random.Random(0)
    for row in range(15):
        for column in range(15):
            black = rng.random() < 0.25
            cell = (abs(drawing.x - 16 - 16 * column) <= 8) & (abs(drawing.y - 16 - 16 * row) <= 8)
            edge = cell & (
                (abs(drawing.x - 16 - 16 * column) > 7) | (abs(drawing.y - 16 - 16 * row) > 7)
            )
            drawing.fill(cell if black else edge, (0, 0, 0))
    return drawing


def analog_clock() -> Drawing:
    drawing = Drawing((180, 170, 150))
    away = np.hypot(drawing.x - 128, drawing.y - 128)
    drawing.fill(away <= 98, (0, 0, 0))
    drawing.fill(away <= 90, (255, 255, 255))
    for hour in range(12):
        drawing.spoke(30 * hour, 80, 90, 5, 0)
    drawing.spoke(-90, 0, 68, 5, 0)
    drawing.spoke(25, 0, 52, 7, 0)
    return drawing


def spider_web() -> Drawing:
    drawing = Drawing((40, 60, 40))
    for spoke in range(18):
        drawing.spoke(20 * spoke, 0, 150, 1.2, 230)
    for ring in range(8, 140, 7):
        corners = [
            (128 + ring * math.cos(k * math.pi / 9), 128 + ring * math.sin(k * math.pi / 9))
            for k in range(19)
        ]
        for start, end in pairwise(corners):
            drawing.line(start, end, 1.2, 230)
    return drawing


def tennis_ball() -> Drawing:
    drawing = Drawing((60, 110, 60))
    for step in range(90):
        radius = 90 - 0.75 * step
        centre = 128 - 0.25 * step
        inside = np.hypot(drawing.x - centre, drawing.y - centre) <= radius
        drawing.fill(inside, (150 + step, 190 + step // 2, 40))
    seam = abs(np.hypot(drawing.x - 25, drawing.y - 145) - 85) <= 3
    drawing.fill(seam & (np.hypot(drawing.x - 128, drawing.y - 128) <= 90), (255, 255, 255))
    return drawing


def honeycomb() -> Drawing:
    drawing = Drawing((210, 150, 30))
    side = 12.0
    for row in range(-1, 16):
        for column in range(-1, 16):
            x = drawing.x - (column + row % 2 / 2) * side * math.sqrt(3)
            y = drawing.y - row * side * 1.5
            # A hexagon with its points up: inside three pairs of parallel lines.
            reach = np.max(
                [abs(x * math.cos(a) + y * math.sin(a)) for a in (0, math.pi / 3, -math.pi / 3)],
                axis=0,
            )
            drawing.fill(reach <= 0.9 * side * math.sqrt(3) / 2, (140, 80, 10))
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "crossword puzzle": crossword_puzzle,
    "analog clock": analog_clock,
    "spider web": spider_web,
    "tennis ball": tennis_ball,
    "honeycomb": honeycomb,
}


@pytest.fixture(scope="module")
def drawn_rows(backbone: ResNet50) -> Tensor:
    """Rows [5, 2048] of the drawings, through the real backbone."""
    pixels = np.stack([draw().pixels for draw in DRAWINGS.values()])
    return backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def pictures_of_nothing() -> list[np.ndarray]:
    """Pixels [256, 256, 3]: black, grey, slopes, noise, stripes and writing-like dashes."""
    rng = np.random.default_rng(8)
    slope = np.linspace(0, 255, 256)[None, :, None] * np.ones((256, 1, 3))
    dashes = np.full((256, 256, 3), 250.0)
    for line in range(20, 240, 18):
        for start in range(20, 220, 24):
            dashes[line : line + 8, start : start + int(rng.integers(6, 20))] = 10
    drawn = [
        np.zeros((256, 256, 3)),
        np.full((256, 256, 3), 128.0),
        slope,
        slope[:, ::-1] * [0.2, 0.9, 0.4],
        rng.normal(128, 60, (256, 256, 3)),
        rng.normal(40, 10, (256, 256, 1)).repeat(3, axis=2),
        np.kron(rng.normal(128, 50, (8, 8, 3)), np.ones((32, 32, 1))),
        255 - dashes,
    ]
    return [np.clip(pixels, 0, 255).astype(np.uint8) for pixels in drawn]


def tags_of(backbone: ResNet50, pixels: np.ndarray) -> list[str]:
    """What a clip that shows one picture for three seconds is tagged with."""
    row = backbone(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)).half().numpy()
    features = Features(rows=row.repeat(3, axis=0), seconds=np.arange(3.0), made_by="drawn")
    head = load_head("vtag-base")
    found = head.tags({"visual": features}, end_seconds=3, selection=Selection())
    return [tag.name for tag in found]


class TestNetwork:
    def test_is_the_backbones_classifier_on_drawn_rows(self, head: Checkpoint) -> None:
        # Like real rows: never negative, 0.37 on average, a few far out; four rows an item.
        random = torch.Generator().manual_seed(3)
        scene = torch.randn(32, 1, 2048, generator=random).abs() ** 3 * 0.23
        rows = scene * (0.5 + torch.rand(32, 4, 2048, generator=random))
        expected = classified(rows)
        assert expected.std() > 1
        logits = seen(logits_of(head, rows))
        torch.testing.assert_close(logits.double(), expected, atol=1e-3, rtol=0)
        assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))

    def test_is_the_backbones_classifier_on_drawn_pictures(
        self, head: Checkpoint, drawn_rows: Tensor
    ) -> None:
        rows = torch.cat([drawn_rows, drawn_rows.flip(0)]).unflatten(0, (5, 2))
        expected = classified(rows)
        assert expected.max() > 10
        logits = seen(logits_of(head, rows))
        torch.testing.assert_close(logits.double(), expected, atol=1e-3, rtol=0)
        assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))

    def test_is_the_papers_chain(self, head: Checkpoint, labels: LabelSet) -> None:
        config = head.config
        kinds = {
            stream: [pooling.kind for pooling in config.stream(stream).poolings]
            for stream in ("visual", "audio")
        }
        assert kinds == {"visual": ["mean", "netvlad"], "audio": ["mean"]}
        assert (config.fc, config.hidden) == ("linear", 1152)
        assert config.labels == labels.outputs + 1  # "none of these" is no label
        assert config.gate_hidden is not None
        assert config.gate_hidden.kind == "context"
        assert config.head.kind == "moe"
        assert config.gate_output is not None
        assert config.gate_output.source == "probabilities"

    def test_only_none_of_these_hears_the_netvlad_path(
        self, head: Checkpoint, labels: LabelSet, drawn_rows: Tensor
    ) -> None:
        other = load_checkpoint(FOLDER)
        state = other.net.state_dict()
        for name in ("stacks.0.poolings.1.reduce", "stacks.0.poolings.1.centres"):
            state[name].neg_()
        other.net.load_state_dict(state)
        before, after = (logits_of(x, drawn_rows[:, None]) for x in (head, other))
        assert torch.equal(after[:, : labels.outputs], before[:, : labels.outputs])
        assert not torch.allclose(after[:, -1], before[:, -1])

    def test_none_of_these_is_what_was_fitted(self, head: Checkpoint, drawn_rows: Tensor) -> None:
        # The formulas once more, from the numbers that tools/fit_base_head.py wrote.
        folder = Path(__file__).parent.parent / "tools" / "head"
        with np.load(folder / "none_path.npz") as file:
            a = {name: file[name].astype(float) for name in file.files if name != "ids"}
        found = logits_of(head, drawn_rows[:, None])
        for row, logits in zip(drawn_rows.double().numpy(), found, strict=True):
            reduced = row @ a["netvlad.reduce"]
            share = np.exp(reduced @ a["netvlad.assign.weight"] + a["netvlad.assign.bias"])
            share /= share.sum()
            vlad = ((reduced[:, None] - a["netvlad.centres"]) * share).flatten()
            vlad /= np.linalg.norm(vlad)
            units = a["units.weight"] @ np.concatenate([row, vlad]) + a["units.bias"]
            gates = a["gates.weight"] @ (a["squeeze.weight"] @ units) + a["gates.bias"]
            gated = units / (1 + np.exp(-gates))
            none = (a["none.weight"] @ gated + a["none.bias"]).item()
            assert float(logits[-1]) == pytest.approx(none, abs=1e-2)

    def test_belongs_to_the_backbone_that_is_shipped(
        self, head: Checkpoint, backbone: ResNet50
    ) -> None:
        # Fails when the extractor changes: build the head again with tools/make_base_head.py.
        ear = fingerprint_of(build_extractor("vggish_small"))
        check_extractors(head, {"visual": fingerprint_of(backbone), "audio": ear})

    def test_embedded_weights_fit_the_package(self) -> None:
        roots = (vtag.models.__file__, vtag.extractors.__file__)
        sizes = [
            file.stat().st_size
            for root in roots
            for file in (Path(root).parent / "weights").rglob("*")
            if file.is_file()
        ]
        assert max(sizes) <= 60 * MEGABYTE
        assert sum(sizes) <= 100 * MEGABYTE


class TestLabels:
    def test_outputs_are_imagenets_in_its_order(self, labels: LabelSet) -> None:
        from torchvision.models import ResNet50_Weights

        # torchvision lists the same classes, with names from another hand.
        theirs = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
        assert len(theirs) == 1000
        assert {label.stream for label in labels[:1000]} == {"visual"}
        assert {label.stream for label in labels[1000 : labels.outputs]} == {"audio"}
        ours = [label.name.split(" (")[0].casefold() for label in labels[:1000]]
        differ = [
            (mine, other)
            for mine, other in zip(ours, theirs, strict=True)
            if not set(mine.replace("-", " ").split()) & set(other.casefold().split())
        ]
        # A tenth of the names were chosen anew (trash can for ashcan); a shift by one place
        # would leave hardly any pair with a word in common.
        assert len(differ) < 60, differ
        assert [label.id for label in labels[:1000]] == sorted(x.id for x in labels[:1000])

    @pytest.mark.parametrize(
        ("at", "noun_id", "name"),
        [
            # From the class index that Keras publishes.
            (0, "n01440764", "tench"),
            (134, "n02012849", "crane (bird)"),
            (207, "n02099601", "golden retriever"),
            (517, "n03126707", "crane (machine)"),
            (638, "n03710637", "maillot (tights)"),
            (639, "n03710721", "tank suit"),
            (999, "n15075141", "toilet paper"),
        ],
    )
    def test_well_known_outputs(self, labels: LabelSet, at: int, noun_id: str, name: str) -> None:
        assert (labels[at].id, labels[at].name) == (noun_id, name)

    def test_rollups_follow_wordnet(self, labels: LabelSet) -> None:
        dog = labels.find("dog")
        assert dog.id == "n02084071"
        # ILSVRC 2012 is known for its 118 dogs, outputs 151 to 268.
        assert sorted(labels.index(member) for member in dog.members) == list(range(151, 269))
        assert labels.categories(labels.find("golden retriever")) == (
            "retriever",
            "dog",
            "mammal",
            "animal",
        )
        # Two lines of hypernyms meet: a piano is struck, has strings, and has keys.
        piano = labels.categories(labels.find("grand piano"))
        assert piano[0] == "piano"
        assert set(piano[1:]) == {
            "stringed instrument",
            "keyboard instrument",
            "percussion instrument",
            "musical instrument",
        }
        assert labels.find("n02510455").name == "giant panda"
        assert 60 <= len(labels) - labels.outputs <= 200
        assert all(len(label.members) >= 2 for label in labels[labels.outputs :])
        assert len({label.members for label in labels}) == len(labels) - labels.outputs + 1

    @pytest.mark.parametrize("leaf", ["minivan", "menu", "website", "seat belt", "missile"])
    def test_what_wordnet_files_oddly_was_left_out(self, labels: LabelSet, leaf: str) -> None:
        odd = {"truck", "food", "computer", "clothing", "vehicle", "weapon"}
        above = set(labels.categories(labels.find(leaf))) & odd
        assert above == ({"vehicle"} if leaf == "minivan" else set())


class TestTags:
    def test_drawings_get_their_names(
        self, head: Checkpoint, labels: LabelSet, drawn_rows: Tensor
    ) -> None:
        readout = Readout.from_dict(head.readout, labels)
        assert readout.window_frames == 1
        scores = readout.window_scores(logits_of(head, drawn_rows[:, None]))
        for name, row in zip(DRAWINGS, scores, strict=True):
            outputs = [at for at in rank(row.numpy(), labels) if at < labels.outputs]
            assert labels[outputs[0]].name == name

    def test_what_shows_nothing_gets_no_tag(self, backbone: ResNet50) -> None:
        found = [len(tags_of(backbone, pixels)) for pixels in pictures_of_nothing()]
        assert sum(found) <= 0.2 * len(found), found

    def test_sample_frames_keep_the_score_that_strange_ones_lose(
        self, head: Checkpoint, labels: LabelSet, backbone: ResNet50
    ) -> None:
        readout = Readout.from_dict(head.readout, labels)
        rows = backbone(torch.from_numpy(np.stack(pictures_of_nothing())).permute(0, 3, 1, 2))
        logits = logits_of(head, rows[:, None])
        known = readout.window_scores(logits)[:, :1000].sum(dim=1)
        bare = seen(logits).softmax(dim=1).sum(dim=1)
        assert known.max() < 0.6
        torch.testing.assert_close(bare, torch.ones(len(rows)))

    def test_a_clip_that_does_not_change_is_one_segment_with_its_own_score(
        self, head: Checkpoint, labels: LabelSet, drawn_rows: Tensor
    ) -> None:
        rows = drawn_rows[1:2].half().numpy().repeat(25, axis=0)
        features = Features(rows=rows, seconds=np.arange(25.0), made_by="drawn")
        every = Selection(top_k=None, threshold=0.001)
        found = load_head("vtag-base").tags({"visual": features}, end_seconds=25, selection=every)
        assert len(found) > 5
        for tag in found:
            (segment,) = tag.segments
            assert (segment.start, segment.end) == (0, 25)
            assert segment.score == pytest.approx(tag.score, abs=1e-4)

    def test_no_label_beats_what_stands_over_it(
        self, head: Checkpoint, labels: LabelSet, drawn_rows: Tensor
    ) -> None:
        readout = Readout.from_dict(head.readout, labels)
        sound = 2 * torch.randn(9, 3, 128, generator=torch.Generator().manual_seed(4))
        for stream, rows in (("visual", drawn_rows[:, None]), ("audio", sound)):
            windows = readout.window_scores(logits_of(head, rows, stream), stream=stream)
            for scores in (*windows, readout.video_scores(windows)[0]):
                for at, label in enumerate(labels):
                    for above in labels.ancestors(label):
                        assert scores[labels.index(above)] >= scores[at], (label.name, above.name)

    def test_the_ear_is_its_own_layer_on_the_mean_of_three_rows(self, head: Checkpoint) -> None:
        folder = Path(__file__).parent.parent / "tools" / "ear"
        with np.load(folder / "audio_head.npz") as layer:
            weight, bias = layer["weight"].astype(float), layer["bias"].astype(float)
        rows = 2 * torch.randn(20, 3, 128, generator=torch.Generator().manual_seed(5))
        expected = rows.double().mean(dim=1).numpy() @ weight.T + bias
        heard = logits_of(head, rows, "audio")[:, 1000:-1].numpy()
        np.testing.assert_allclose(heard, expected, atol=1e-3)


def test_the_card_names_what_a_user_must_know(head: Checkpoint, labels: LabelSet) -> None:
    rollups = len(labels) - labels.outputs
    for text in (
        f"{rollups}\nbroader tags above them",
        "WordNet 3.0, Copyright 2006 by Princeton University",
        "MIT",
        "none of these",
        "Expected calibration error",
        "tuxpaint-stamps-default",
        "EfficientNet-Lite",
        "What it can not see",
        "Known failures",
    ):
        assert text in head.card
    assert all(0.2 <= label.threshold <= 0.98 for label in labels[:1000])
    assert all(0.3 <= label.threshold <= 0.98 for label in labels[1000 : labels.outputs])
    assert all(0.2 <= label.threshold <= 0.98 for label in labels[labels.outputs :])
