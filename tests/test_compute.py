"""Which backend and precision come of what was asked for."""

from __future__ import annotations

import pytest
import torch

from vtag import Pipeline
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.extractors import build_extractor, compute
from vtag.extractors.compute import Compute, choose_compute
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, check_extractors
from vtag.models.net_config import StreamConfig, TaggerNetConfig
from vtag.models.tagger_net import TaggerNet
from vtag.records import network_of, precision_of

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(params=[True, False], ids=["openvino", "no openvino"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    there: bool = request.param
    monkeypatch.setattr(compute, "openvino_is_installed", lambda: there)
    return there


def test_auto_never_changes_the_precision(installed: bool) -> None:
    on_cpu = choose_compute(CPU)
    assert on_cpu == Compute("torch", "fp32")
    assert choose_compute(CUDA) == Compute("torch", "fp16")
    assert choose_compute(MPS) == Compute("torch", "fp32")


@pytest.mark.parametrize("asked", [{"backend": "openvino"}, {"precision": "int8"}])
def test_what_needs_openvino_says_how_to_get_it(installed: bool, asked: dict[str, str]) -> None:
    if installed:
        assert choose_compute(CPU, **asked).backend == "openvino"  # type: ignore[arg-type]
        return
    with pytest.raises(EnvironmentProblem, match=r'pip install "vtag\[openvino\]"'):
        choose_compute(CPU, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_computes_in_what_was_asked_for(precision: str) -> None:
    assert choose_compute(CUDA, precision=precision) == Compute("torch", precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "asked", "says"),
    [
        (CPU, {"precision": "bf16"}, "bf16 is for a GPU"),
        (CPU, {"precision": "fp16"}, "fp16 is for a GPU"),
        (CPU, {"backend": "torch", "precision": "int8"}, "leave --backend torch out"),
        (CUDA, {"precision": "int8"}, "add --device cpu"),
        (CUDA, {"backend": "openvino"}, "add --device cpu"),
        (MPS, {"precision": "bf16"}, "mps computes in fp32"),
        (CPU, {"backend": "tensorrt"}, "there are: auto, torch, openvino"),
        (CPU, {"precision": "int4"}, "there are: auto, fp32, fp16, bf16, int8"),
    ],
)
def test_what_is_not_there_is_refused(
    device: torch.device, asked: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_compute(device, **asked)  # type: ignore[arg-type]


def test_a_model_that_only_listens_refuses_the_same() -> None:
    with pytest.raises(ConfigError, match="bf16 is for a GPU"):
        build_extractor("vggish_small", precision="bf16")


def test_torch_alone_does_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)  # importing it now fails
    Pipeline(device="cpu", backend="torch").close()


@pytest.mark.parametrize(
    ("made_by", "network", "precision"),
    [
        ("resnet50@0123456789ab", "resnet50@0123456789ab", "fp32"),
        ("resnet50@0123456789ab+int8-51e469", "resnet50@0123456789ab", "int8"),
        ("resnet50@0123456789ab+bf16", "resnet50@0123456789ab", "bf16"),
        ("file:text+more", "file:text+more", "fp32"),
        ("", "", "fp32"),
    ],
)
def test_the_precision_is_part_of_a_fingerprint(made_by: str, network: str, precision: str) -> None:
    assert network_of(made_by) == network
    assert precision_of(made_by) == precision


def test_a_model_takes_rows_of_the_same_network_in_another_precision() -> None:
    from vtag.errors import WeightsError

    stream = StreamConfig(name="visual", dim=4, poolings=(PoolingConfig("mean"),))
    model = Checkpoint(
        net=TaggerNet(TaggerNetConfig(streams=(stream,), labels=1, hidden=4)).eval(),
        labels=[{"id": "a"}],
        name="m",
        extractors={"visual": "eyes@1+int8-51e469"},
    )
    for same in ("eyes@1", "eyes@1+bf16", "eyes@1+int8-51e469"):
        check_extractors(model, {"visual": same})
    for other in ("eyes@2", "eyes@2+int8-51e469"):
        with pytest.raises(WeightsError, match="other weights or preprocessing"):
            check_extractors(model, {"visual": other})
