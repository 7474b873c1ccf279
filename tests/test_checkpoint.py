"""A model folder: what comes back, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vtag.errors import ConfigError, OutputError, WeightsError
from vtag.models import PoolingConfig, checkpoint, model_folder
from vtag.models.checkpoint import (
    Checkpoint,
    check_extractors,
    load_checkpoint,
    save_checkpoint,
)
from vtag.models.combine import average_checkpoints, ensemble_checkpoints
from vtag.models.ensemble import Ensemble, config_from_dict
from vtag.models.tagger_net import (
    HeadConfig,
    StreamConfig,
    TaggerNet,
    TaggerNetConfig,
)

POOLINGS = (PoolingConfig("netvlad", clusters=2), PoolingConfig("lstm", cells=3, layers=2))
CONFIG = TaggerNetConfig(
    streams=(
        StreamConfig(name="visual", dim=6, poolings=POOLINGS, input_norm="batch"),
        StreamConfig(name="audio", dim=4, poolings=(PoolingConfig("bow", clusters=2),)),
    ),
    labels=3,
    hidden=5,
)


def made(seed: int = 0, config: TaggerNetConfig = CONFIG) -> Checkpoint:
    torch.manual_seed(seed)
    net = TaggerNet(config)
    for stack, dim in zip(net.stacks, (6, 4), strict=True):
        for pooling in stack.poolings:  # type: ignore[union-attr]
            if hasattr(pooling, "fit"):
                pooling.fit(torch.randn(20, dim), seed=seed)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return Checkpoint(
        net=net.eval(),
        name="three things",
        labels=[{"id": f"n{i}", "name": f"ding {i} ö"} for i in range(config.labels)],
        extractors={"visual": "aaaaaaaaaaaa", "audio": "bbbbbbbbbbbb"},
        sampling="cccccccccccc",
        readout={"top_k": 5, "window_seconds": 2.5},
        card="# Three things\n",
    )


LABELS: list[dict[str, object]] = [{"id": f"n{i}", "name": f"ding {i}"} for i in range(3)]
READOUT: dict[str, object] = {"groups": [{"outputs": 3}], "window_frames": 5, "pool": "network"}


def saying(seed: int, threshold: float = 0.5) -> Checkpoint:
    """A model whose labels and readout are those of a real one."""
    labels = [{**label, "threshold": threshold} for label in LABELS]
    return dataclasses.replace(made(seed), labels=labels, readout=READOUT)


def batch(seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    rows = {
        "visual": torch.randn(4, 5, 6, generator=random),
        "audio": torch.randn(4, 3, 4, generator=random),
    }
    return rows, {name: torch.ones(r.shape[:2], dtype=torch.bool) for name, r in rows.items()}


def files_in(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


class TestRoundTrip:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        saved = made()
        fingerprint = save_checkpoint(tmp_path / "model", saved)
        back = load_checkpoint(tmp_path / "model")
        assert torch.equal(back.net(*batch()), saved.net(*batch()))
        assert not back.net.training
        assert dataclasses.replace(back, net=saved.net) == dataclasses.replace(
            saved, fingerprint=fingerprint
        )
        assert sorted(files_in(tmp_path)) == [
            "model/README.md",
            "model/config.json",
            "model/labels.json",
            "model/model.safetensors",
        ]

    def test_a_loaded_network_can_be_trained_and_saved_again(self, tmp_path: Path) -> None:
        first = save_checkpoint(tmp_path / "a", made())
        back = load_checkpoint(tmp_path / "a")
        assert save_checkpoint(tmp_path / "b", back) == first
        back.net.train()(*batch()).sum().backward()
        assert all(parameter.grad is not None for parameter in back.net.parameters())

    def test_half_precision_is_for_matrices_only(self, tmp_path: Path) -> None:
        saved = made()
        save_checkpoint(tmp_path / "half", saved, dtype=torch.float16)
        save_checkpoint(tmp_path / "full", saved)
        back = load_checkpoint(tmp_path / "half").net
        for name, tensor in saved.net.state_dict().items():
            stored = tensor.half().float() if tensor.is_floating_point() else tensor
            want = stored if tensor.ndim >= 2 else tensor
            assert torch.equal(back.state_dict()[name], want), name
            assert back.state_dict()[name].dtype == tensor.dtype
        torch.testing.assert_close(back(*batch()), saved.net(*batch()), atol=5e-3, rtol=0)
        sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("half", "full")]
        assert sizes[0] < sizes[1]

    def test_loading_draws_no_random_numbers(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "model", made())
        torch.manual_seed(5)
        want = torch.rand(1)
        torch.manual_seed(5)
        load_checkpoint(tmp_path / "model")
        assert torch.equal(torch.rand(1), want)

    def test_loading_does_not_import_the_compiler(self, tmp_path: Path) -> None:
        # A random fill on the meta device would: seconds at the start of every command.
        save_checkpoint(tmp_path / "model", made())
        code = (
            "import sys; from vtag.models.checkpoint import load_checkpoint; "
            "load_checkpoint(sys.argv[1]); print('torch._dynamo' in sys.modules)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "model")]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        assert out.stdout == "False\n"

    def test_weights_that_do_not_fit_half_precision_are_refused(self, tmp_path: Path) -> None:
        big = made()
        assert big.net.fc is not None
        with torch.no_grad():
            big.net.fc.weight[0, 0] = 1e5
        with pytest.raises(ConfigError, match=r"fc\.weight holds values that are not finite"):
            save_checkpoint(tmp_path / "model", big, dtype=torch.float16)
        assert files_in(tmp_path) == {}

    def test_labels_and_streams_must_be_the_networks(self) -> None:
        with pytest.raises(ConfigError, match="2 labels for a network of 3"):
            dataclasses.replace(made(), labels=[{}, {}])
        with pytest.raises(ConfigError, match="no stream 'text'"):
            dataclasses.replace(made(), extractors={"text": "a"})


class TestFingerprint:
    def test_changes_with_weights_labels_and_settings_only(self, tmp_path: Path) -> None:
        base = made()
        changed = {
            "base": base,
            "weights": made(seed=9),
            "labels": dataclasses.replace(base, labels=[{"id": "n0"}, *base.labels[1:]]),
            "extractors": dataclasses.replace(base, extractors={"visual": "ddd"}),
            "sampling": dataclasses.replace(base, sampling="eee"),
            "readout": dataclasses.replace(base, readout={"top_k": 6}),
            "name": dataclasses.replace(base, name="four things"),
        }
        prints = {name: save_checkpoint(tmp_path / name, c) for name, c in changed.items()}
        assert len(set(prints.values())) == len(changed)
        assert all(len(p) == 12 and int(p, 16) >= 0 for p in prints.values())
        same = dataclasses.replace(base, card="other words")
        assert save_checkpoint(tmp_path / "again", same) == prints["base"]


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_checkpoint(tmp_path / "model", made())
        return tmp_path / "model"

    @pytest.mark.parametrize("name", ["model.safetensors", "labels.json", "config.json"])
    def test_one_flipped_bit_is_refused(self, folder: Path, name: str) -> None:
        whole = (folder / name).read_bytes()
        random_at = random.Random(3)
        spots = [random_at.randrange(len(whole)) for _ in range(60)]
        for at in spots:
            if name == "config.json" and whole[at : at + 1].isspace():
                continue  # blanks of the settings mean nothing
            broken = bytearray(whole)
            broken[at] ^= 1
            (folder / name).write_bytes(broken)
            with pytest.raises(WeightsError) as refused:
                load_checkpoint(folder)
            assert str(folder) in str(refused.value)
            assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("name", ["model.safetensors", "labels.json", "config.json"])
    def test_a_file_cut_short_or_gone_is_refused(self, folder: Path, name: str) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match="damaged"):
            load_checkpoint(folder)
        (folder / name).unlink()
        with pytest.raises(WeightsError, match=f"{name}: missing"):
            load_checkpoint(folder)

    def test_the_card_may_be_gone(self, folder: Path) -> None:
        (folder / "README.md").unlink()
        assert load_checkpoint(folder).card == ""

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"nowhere/config\.json: missing; a model is"):
            load_checkpoint(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"format": 2}, "model format 2, this vtag reads 1; update vtag"),
            ({"format": None}, "model format None"),
            ({"extra": 1}, "unknown key 'extra'"),
            ({"net": 3}, "'net' is missing or not dict"),
            ({"name": "another"}, "damaged or edited"),
        ],
    )
    def test_settings_of_another_kind(
        self, folder: Path, change: dict[str, object], complaint: str
    ) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(WeightsError, match=complaint):
            load_checkpoint(folder)

    @pytest.mark.parametrize("text", ["[]", "{", "\0", "[" * 200_000])
    def test_settings_that_are_no_settings(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json"):
            load_checkpoint(folder)

    def test_well_signed_weights_of_another_network(self, tmp_path: Path) -> None:
        # Every checksum is right, the shapes are not: a forged or badly converted model.
        wide = made(config=dataclasses.replace(CONFIG, hidden=7))
        forged = dataclasses.replace(wide)
        object.__setattr__(forged.net, "config", CONFIG)
        save_checkpoint(tmp_path / "forged", forged)
        with pytest.raises(WeightsError, match=r"does not fit config\.json in \d+ tensors"):
            load_checkpoint(tmp_path / "forged")

    def test_well_signed_settings_that_make_no_sense(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint._StoredSettings, "computed_fingerprint", lambda self: "x")
        settings = json.loads((folder / "config.json").read_text())
        settings["net"]["labels"] = -3
        settings["fingerprint"] = "x"
        (folder / "config.json").write_text(json.dumps(settings))
        with pytest.raises(WeightsError, match="labels is a whole number 1 to 1000000, got -3"):
            load_checkpoint(folder)


class TestWriting:
    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "config.json").write_text('{"theme": "dark"}')
        before = files_in(tmp_path)
        with pytest.raises(OutputError, match="photos: exists and is no vtag model"):
            save_checkpoint(tmp_path / "photos", made())
        assert files_in(tmp_path) == before

    def test_an_old_model_is_replaced_and_what_lies_beside_it_kept(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "model", made())
        (tmp_path / "model" / "notes.txt").write_text("mine")
        new = save_checkpoint(tmp_path / "model", dataclasses.replace(made(seed=9), card=""))
        assert load_checkpoint(tmp_path / "model").fingerprint == new
        assert sorted(files_in(tmp_path)) == [
            "model/config.json",
            "model/labels.json",
            "model/model.safetensors",
            "model/notes.txt",
        ]

    @pytest.mark.parametrize("call", ["save_file", "sync", "put_in_place", "json_bytes"])
    @pytest.mark.parametrize("exists", [False, True])
    def test_a_full_disk_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, exists: bool
    ) -> None:
        if exists:
            save_checkpoint(tmp_path / "model", made())
        before = files_in(tmp_path)

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, call, full)
        with pytest.raises(OutputError, match="model: the model can not be written"):
            save_checkpoint(tmp_path / "model", made(seed=9))
        assert files_in(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == (["model"] if exists else [])

    def test_a_failing_last_rename_puts_the_old_model_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_checkpoint(tmp_path / "model", made())
        before = files_in(tmp_path)
        rename = os.replace

        def stubborn(source: Path, target: Path) -> None:
            if str(source).endswith(".part"):
                raise PermissionError(13, "Permission denied")
            rename(source, target)

        monkeypatch.setattr(model_folder.os, "replace", stubborn)
        with pytest.raises(OutputError, match="Permission denied"):
            save_checkpoint(tmp_path / "model", made(seed=9))
        assert files_in(tmp_path) == before

    def test_a_file_in_the_way_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("x")
        with pytest.raises(OutputError, match="is no vtag model"):
            save_checkpoint(tmp_path / "model", made())
        with pytest.raises(OutputError, match="can not be written"):
            save_checkpoint(tmp_path / "model" / "below", made())
        assert files_in(tmp_path) == {"model": b"x"}


class TestExtractors:
    def test_the_same_or_absent_ones_are_fine(self) -> None:
        check_extractors(made(), {"visual": "aaaaaaaaaaaa", "audio": "bbbbbbbbbbbb"})
        check_extractors(made(), {"visual": "aaaaaaaaaaaa", "text": "x"})

    def test_others_are_refused_by_name(self) -> None:
        with pytest.raises(WeightsError) as refused:
            check_extractors(made(), {"visual": "aaaaaaaaaaaa", "audio": "999999999999"})
        text = str(refused.value)
        assert "audio rows of bbbbbbbbbbbb" in text
        assert "makes 999999999999" in text


class TestEnsemble:
    def test_is_the_weighted_mean_of_probabilities(self) -> None:
        nets = [made(seed).net for seed in (1, 2)]
        one, two = (net.probabilities(*batch()) for net in nets)
        out = Ensemble(nets, [3, 1]).eval()(*batch())
        torch.testing.assert_close(out.sigmoid(), 0.75 * one + 0.25 * two)

    def test_single_label(self) -> None:
        config = dataclasses.replace(
            CONFIG, output="single_label", head=HeadConfig(kind="linear"), gate_output=None
        )
        nets = [made(seed, config).net for seed in (1, 2)]
        one, two = (net.probabilities(*batch()) for net in nets)
        torch.testing.assert_close(Ensemble(nets)(*batch()).exp(), (one + two) / 2)

    def test_refuses_what_can_not_be_averaged(self) -> None:
        net = made().net
        other = made(config=dataclasses.replace(CONFIG, labels=4)).net
        with pytest.raises(ConfigError, match="same labels"):
            Ensemble([net, other])
        for weights in ([1.0], [1.0, 0.0]):
            with pytest.raises(ConfigError, match="as many weights above 0"):
                Ensemble([net, net], weights)
        with pytest.raises(ConfigError, match="0 networks"):
            Ensemble([])

    def test_as_a_model_folder(self, tmp_path: Path) -> None:
        one, two = saying(1, 0.3), saying(2, 0.9)
        made_of = ensemble_checkpoints([one, two], name="both", weights=[2, 1])
        fingerprint = save_checkpoint(tmp_path / "both", made_of)
        back = load_checkpoint(tmp_path / "both")
        want = 2 / 3 * one.net.probabilities(*batch()) + 1 / 3 * two.net.probabilities(*batch())
        torch.testing.assert_close(back.net.probabilities(*batch()), want)
        assert dataclasses.replace(back, net=made_of.net) == dataclasses.replace(
            made_of, fingerprint=fingerprint
        )
        assert not back.net.training
        assert save_checkpoint(tmp_path / "again", back) == fingerprint
        assert {label["threshold"] for label in back.labels} == {0.5}
        settings = json.loads((tmp_path / "both" / "config.json").read_text())["net"]
        assert settings["kind"] == "ensemble"
        assert [member["weight"] for member in settings["members"]] == [2, 1]
        for name in ("model.safetensors", "config.json"):
            file = tmp_path / "both" / name
            whole = file.read_bytes()
            at = whole.index(b'"weight"') + 12 if name == "config.json" else len(whole) - 9
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(WeightsError):
                load_checkpoint(tmp_path / "both")
            file.write_bytes(whole)
        assert load_checkpoint(tmp_path / "both").fingerprint == fingerprint

    def test_a_name_stays_in_its_cell_of_the_card(self) -> None:
        odd = dataclasses.replace(saying(1), name="a|b\n# <b>c</b>", fingerprint="0123456789ab")
        card = ensemble_checkpoints([odd, saying(2)], name="both", weights=[1, 3]).card
        assert "| a&#124;b # &lt;b&gt;c&lt;/b&gt; | `0123456789ab` | 0.2500 |" in card.splitlines()

    def test_an_ensemble_of_ensembles_is_one_of_their_members(self) -> None:
        parts = [saying(seed) for seed in (1, 2, 3)]
        inner = ensemble_checkpoints(parts[:2], name="inner", weights=[1, 3])
        outer = ensemble_checkpoints([inner, parts[2]], name="outer", weights=[4, 6])
        each = [part.net.probabilities(*batch()) for part in parts]
        want = 0.1 * each[0] + 0.3 * each[1] + 0.6 * each[2]
        torch.testing.assert_close(outer.net.probabilities(*batch()), want)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"labels": list(reversed(LABELS))}, r"'one' and 'two' have other labels \(their or"),
            (
                {"labels": [*LABELS[:2], {"id": "n9", "name": "nine"}]},
                r"'one' and 'two' have other labels \('n2', 'n9'\)",
            ),
            (
                {"extractors": {"visual": "aaaaaaaaaaaa", "audio": "zzz"}},
                r"'one' and 'two' read other audio rows \(bbbbbbbbbbbb and zzz\)",
            ),
            ({"readout": {**READOUT, "window_frames": 2}}, "'one' and 'two' read their scores"),
            (
                {"readout": {**READOUT, "groups": [{"outputs": 3, "temperature": 2.0}]}},
                "model 'two' makes its scores",
            ),
            ({"readout": {"groups": [{"outputs": 2}]}}, "model 'two': the groups cover 2 outputs"),
        ],
    )
    def test_models_that_do_not_go_together(
        self, change: dict[str, object], complaint: str
    ) -> None:
        one = dataclasses.replace(saying(1), name="one")
        two = dataclasses.replace(saying(2), name="two", **change)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=complaint) as refused:
            ensemble_checkpoints([one, two], name="both")
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("weights", [[1.0], [1, -1], [1, float("nan")], [1, 1e308], [1, 2, 3]])
    def test_weights_that_make_no_sense(self, weights: list[float]) -> None:
        with pytest.raises(ConfigError, match="need as many weights"):
            ensemble_checkpoints([saying(1), saying(2)], name="both", weights=weights)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"kind": "committee"}, "no network of the kind 'committee'"),
            ({"members": []}, "0 networks"),
            ({"members": [{"weight": "2", "net": CONFIG.to_dict()}]}, "as many weights above 0"),
            ({"members": [{"weight": 2, "net": 3}]}, "net of a member must be an object"),
            ({"members": [{"net": CONFIG.to_dict()}]}, "has weight and net"),
            ({"extra": 1}, "nothing else"),
        ],
    )
    def test_settings_that_make_no_sense(self, change: dict[str, object], complaint: str) -> None:
        good = ensemble_checkpoints([saying(1), saying(2)], name="both").config.to_dict()
        with pytest.raises(ConfigError, match=complaint):
            config_from_dict({**good, **change})

    def test_average_of_weights(self) -> None:
        one, two, three = made(1), made(2), made(3)
        mean = average_checkpoints([one, two, three])
        states = [c.net.state_dict() for c in (one, two, three)]
        for name, tensor in mean.net.state_dict().items():
            want = (states[0][name].float() + states[1][name] + states[2][name]) / 3
            torch.testing.assert_close(tensor.float(), want)
        assert mean.labels == one.labels
        assert torch.equal(one.net(*batch()), made(1).net(*batch()))  # untouched
        other = dataclasses.replace(two, extractors={"visual": "zzz"})
        with pytest.raises(ConfigError, match="can not be averaged"):
            average_checkpoints([one, other])
        with pytest.raises(ConfigError, match="no checkpoint"):
            average_checkpoints([])
