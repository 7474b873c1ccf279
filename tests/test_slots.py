"""Passes of a fixed size: order, remainders, threads and too little memory, without a GPU.

The slot here computes on the CPU and keeps the rules of a GPU's: results come only when asked for,
and a slot that is begun twice has lost the first ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vtag.errors import ConfigError, EnvironmentProblem
from vtag.extractors.batches import Batches
from vtag.extractors.devices import devices_here
from vtag.extractors.resnet50 import CropsNetwork, ResNet50
from vtag.extractors.resnet50_network import VARIANTS, folded_resnet50, frozen_resnet50
from vtag.extractors.slots import SLOTS, SlotPasses
from vtag.weights import find_weights

CPU = torch.device("cpu")


class PatientSlot:
    """Rows are (2x, size of the pass); memory for `fits` items in all slots together."""

    def __init__(self, size: int, log: list[str]) -> None:
        self.size, self._log = size, log
        self._items: Tensor | None = None
        self._user: int | None = None

    def start(self, items: Tensor) -> None:
        assert self._items is None, "begun again before its rows were taken"
        assert 1 <= len(items) <= self.size
        self._log.append("start")
        self._items, self._user = items.clone(), threading.get_ident()

    def rows(self) -> Tensor:
        assert self._items is not None, "nothing was begun"
        assert self._user == threading.get_ident(), "another thread's pass"
        self._log.append("rows")
        items, self._items = self._items, None
        return torch.cat([items * 2, torch.full_like(items, self.size)], dim=1)


def passes(size: int, log: list[str] | None = None) -> SlotPasses:
    made: list[str] = [] if log is None else log
    return SlotPasses(lambda n: PatientSlot(n, made), Batches(size, CPU))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 23])
def test_rows_in_order_whatever_is_left_over(count: int) -> None:
    items = torch.arange(float(count))[:, None]
    found = passes(4).run(items, dim=2)
    assert found.shape == (count, 2)
    assert torch.equal(found[:, :1], items * 2)


def test_the_next_pass_is_begun_before_the_last_is_waited_for() -> None:
    log: list[str] = []
    passes(2, log).run(torch.zeros(6, 1), dim=2)
    assert log == ["start", "start", "rows", "start", "rows", "rows"]


def test_threads_share_the_slots_and_none_waits_for_ever() -> None:
    shared = passes(2)
    wrong: list[str] = []

    def work(at: int) -> None:
        for count in (1, 5, 11):
            items = at * 100 + torch.arange(float(count))[:, None]
            if not torch.equal(shared.run(items, dim=2)[:, :1], items * 2):
                wrong.append(f"thread {at}, {count} items")

    threads = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_an_error_gives_the_slots_back() -> None:
    class Failing(PatientSlot):
        def start(self, items: Tensor) -> None:
            if items.min() < 0:
                raise RuntimeError("device lost")
            super().start(items)

        def rows(self) -> Tensor:
            # A slot that an error left begun is begun again by its next user.
            rows, self._items = super().rows(), None
            return rows

    shared = SlotPasses(lambda n: Failing(n, []), Batches(2, CPU))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="device lost"):
            shared.run(-torch.ones(2, 1), dim=2)
    assert len(shared.run(torch.ones(5, 1), dim=2)) == 5


def memory_for(items: int) -> Callable[[int], PatientSlot]:
    def make(size: int) -> PatientSlot:
        if size > items:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return PatientSlot(size, [])

    return make


def test_slots_that_do_not_fit_are_halved() -> None:
    batches = Batches(64, CPU)
    shared = SlotPasses(memory_for(20), batches)
    assert batches.size == shared.size == 16
    assert shared.run(torch.zeros(3, 1), dim=2)[0, 1] == 16


def test_not_even_one_item_is_said() -> None:
    with pytest.raises(EnvironmentProblem, match="no memory for one item"):
        SlotPasses(memory_for(0), Batches(4, CPU))


def test_there_are_two_slots() -> None:
    assert SLOTS == 2  # copies overlap with computing only when there are at least two


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_recorded_makes_rows_in_half_precision(dtype: torch.dtype) -> None:
    # The very module that a GPU records, run here: types fit together, nothing overflows.
    variant, path = VARIANTS["resnet50"], find_weights("resnet50")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("vtag.extractors.convolution.packs", lambda: False)
        network = frozen_resnet50(folded_resnet50(path, variant), variant, CPU)
    exact = CropsNetwork(network, torch.float32)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (2, 3, 7, 7), generator=generator).float()
    crops = torch.nn.functional.interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 255)
    with torch.inference_mode():
        wanted = exact(crops.byte())
        half = CropsNetwork(network.to(dtype), dtype)
        found = half(crops.byte())
    assert found.dtype == dtype
    cosine = torch.nn.functional.cosine_similarity(found.float(), wanted)
    assert cosine.min() > (0.999 if dtype == torch.bfloat16 else 0.9999)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "off"), [("fp32", 1e-3), ("fp16", 0.01), ("bf16", 0.05), ("auto", 0.01)]
)
def test_the_recorded_graph_gives_the_rows_of_the_cpu(precision: str, off: float) -> None:
    if "cuda:0" not in devices_here():
        missing = pytest.fail if os.environ.get("VTAG_REQUIRE_GPU") == "1" else pytest.skip
        missing("no CUDA device")
    there = ResNet50("resnet50", device="cuda", batch_size=4, precision=precision)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 256, 300), dtype=torch.uint8, generator=generator)
    wanted = ResNet50("resnet50", backend="torch")(pixels)
    for _ in range(2):
        distance = (there(pixels) - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert distance.max() < off


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        passes(0)
