"""Every strategy on tensors that only claim to lie on a GPU: mixed devices and waiting reads show without one.

torch's fake tensors run the forward pass and the loss without a driver, not the backward pass; to read a
value of one, which on a GPU waits for all that was asked before, raises.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from finetune import recipe as recipes
from finetune.backbone.groups import layer_groups
from finetune.checkpoint.state import TrainState
from finetune.evaluation.forward import collect_logits
from finetune.features.divide import divide
from finetune.features.graphs import IndivisibleError
from finetune.features.probe import Probe
from finetune.features.sources import TrunkBatches
from finetune.strategy.strategies import STRATEGIES, Choice, phases
from finetune.train import loop
from finetune.train import phases as by_phase
from finetune.train.fit import Fit, Work
from finetune.train.settings import FitSettings
from finetune.types import NEVER, Phase
from tests.support import mostly_slow

if Version(torch.__version__) < Version("2.7"):
    pytest.skip("torch 2.6 asks the driver of a fake tensor's device, and aborts without one", allow_module_level=True)

SIZE = (64, 64)
GPU = torch.device("cuda")
AUTOCAST = partial(torch.autocast, device_type="cuda", dtype=torch.bfloat16)


class FakeImages:
    """Three batches of six images that claim to lie on a GPU."""

    num_images, device = 18, GPU

    def __len__(self) -> int:
        return 3

    def epoch(self, *_: int, **__: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            yield torch.rand(6, 3, *SIZE, device=GPU), torch.zeros(6, dtype=torch.long, device=GPU)


class FakeAccelerator:
    """What the loop asks of one, without the backward pass."""

    device, scaler, mixed_precision, autocast = GPU, None, "bf16", staticmethod(AUTOCAST)

    def prepare(self, *things: Any) -> tuple[Any, ...]:
        return things

    def backward(self, loss: Tensor) -> None:
        assert loss.device.type == "cuda"

    def clip_grad_norm_(self, *_: Any) -> None: ...
    def unwrap_model(self, *_: Any, **__: Any) -> None: ...
    def free_memory(self) -> None: ...


def put_on_fake_gpu(model: nn.Module) -> None:
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = nn.Parameter(torch.empty(tensor.shape, device=GPU))
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def work_of(model: nn.Module, phase: Phase) -> Work:
    try:
        divided = divide(model, phase.plan, layer_groups(model), image_size=SIZE)
    except IndivisibleError:
        return Work(model, FakeImages(), None)
    return Work(divided.tail, TrunkBatches(divided.trunk, FakeImages(), autocast=AUTOCAST), None)


def fit_of(model: nn.Module) -> Fit:
    recipe = recipes.load(overrides={"loss.label_smoothing": 0.1, "train.micro_batch": 4, "optim.weight_decay": 0.01})
    settings = FitSettings.of(recipe)
    keeper = SimpleNamespace(last=lambda *_: None, best=lambda *_: None)
    made = partial(work_of, model)
    return Fit(
        model, layer_groups(model), made, settings, FakeAccelerator(), keeper, lambda _: None, NEVER  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps' numbers were read each time, with nothing read; a generator has no fake state."""
    found: list[int] = []

    def read(self: Any, fit: Fit, phase: Phase, state: TrainState) -> None:
        assert {part.device.type for loss, hits, _ in self.steps for part in (loss, hits)} == {"cuda"}
        found.append(len(self.steps))
        state.num_seen += sum(count for *_, count in self.steps)
        self.steps.clear()

    monkeypatch.setattr(loop._Unread, "read", read)
    monkeypatch.setattr(loop, "SELDOM", 1e9)
    monkeypatch.setattr(loop, "QUICK", 1e9)
    monkeypatch.setattr(loop, "forked", lambda *_, **__: nullcontext())
    return found


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the features lay of each head that was solved; the solver itself works on a CPU."""
    found: list[str] = []

    def fit_probe(features: Tensor, targets: Tensor, *, num_classes: int, **_: Any) -> Any:
        found.extend([features.device.type, targets.device.type])
        weight = torch.zeros(num_classes, features.shape[1])
        return Probe(weight, torch.zeros(num_classes), strength=1.0, top1=1.0)

    monkeypatch.setattr(by_phase, "fit_probe", fit_probe)
    monkeypatch.setattr(by_phase, "_sum_up", lambda *_: None)
    return found


PAIRS = [(backbone, strategy) for strategy in STRATEGIES for backbone in ("test_resnet", "test_vit")]
QUICK = [("test_vit", "lora"), ("test_resnet", "lp-ft"), ("test_resnet", "top-k"), ("test_vit", "full")]


@pytest.mark.parametrize(("backbone", "strategy"), mostly_slow(PAIRS, *QUICK))
def test_a_strategy_mixes_no_devices_and_reads_once_an_epoch(backbone: str, strategy: str, reads, solved) -> None:
    model = timm.create_model(backbone, num_classes=3)
    planned = phases(Choice(strategy, epochs=4, lr=1e-3, layer_decay=0.7, top_k=1), layer_groups(model))
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CUDA is not available")  # of autocast
        put_on_fake_gpu(model)
        fit, state = fit_of(model), TrainState()
        for phase in planned:
            solve_or_fit = by_phase.solve_phase if phase.solver == "lbfgs" else loop.fit_phase
            solve_or_fit(fit, phase, state)
            state.enter_phase(state.phase + 1)
        logits, targets = collect_logits(model, FakeImages().epoch(), autocast=AUTOCAST)
    assert (logits.device.type, targets.device.type) == ("cpu", "cpu")
    assert reads == [3] * sum(phase.epochs for phase in planned if phase.solver == "gradient")
    assert solved == ["cpu", "cpu"] * sum(phase.solver == "lbfgs" for phase in planned)


def test_a_read_and_a_tensor_elsewhere_would_be_found() -> None:
    with FakeTensorMode():
        there = torch.ones(2, device=GPU)
        with pytest.raises(DataDependentOutputException):
            float(there.sum())
        with pytest.raises(Exception, match="cpu"):
            there + torch.ones(2)
