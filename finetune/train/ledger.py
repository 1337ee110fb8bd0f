"""What a device holds at the fullest moment of a training step, part by part, without computing anything.

    held = step_held(skeleton, phase, recipe, batch=64, precision="bfloat16")

The step that a run takes (`train.step`) is taken on torch's fake tensors, which have a shape and no numbers. Each
storage is booked when it is made and struck out when it is freed, in the blocks of 512 bytes that CUDA hands out.

What is not covered: workspaces of kernels (cuDNN, cuBLAS), what the allocator loses in pieces, and CUDA's own
few hundred MiB. Letters: B batch, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from finetune.backbone.blank import channels_of
from finetune.backbone.freeze import freezing
from finetune.backbone.load import Backbone
from finetune.checkpoint.state import TrainState
from finetune.device import in_fast_layout
from finetune.features.divide import divide
from finetune.features.folding import folded_run
from finetune.optim.optimisers import OPTIMISERS
from finetune.settings import Recipe
from finetune.train.fit import Fit, Work
from finetune.train.memory import Memory
from finetune.train.moving import connections_of, moving
from finetune.train.objectives import objective_of
from finetune.train.phases import pretrained_weights
from finetune.train.settings import FitSettings
from finetune.train.step import Step
from finetune.types import NEVER, Phase, ignore

BLOCK = 512  # bytes
Part = Literal["weights", "averages", "gradients", "inputs", "kept", "passing"]
# What torch computes in float32 on a GPU inside of autocast, and on a CPU, where fake tensors are, does not.
# Source: torch's "CUDA Ops that can autocast to float32".
IN_FLOAT32 = frozenset(
    {
        "layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss", "mse_loss", "l1_loss",
        "binary_cross_entropy_with_logits", "smooth_l1_loss", "pow", "sum", "prod", "norm", "normalize", "cumsum",
        "exp", "expm1", "log", "log1p", "rsqrt", "reciprocal", "softplus",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes at the fullest moment of a step or a pass.

    `weights` are those of the network, its statistics among them; `averages` the optimiser's, and copies that
    training keeps beside the weights; `kept` is what the forward pass keeps for the backward pass; `passing` what is
    freed on the way.
    """

    weights: int = 0
    averages: int = 0
    gradients: int = 0
    inputs: int = 0
    kept: int = 0
    passing: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books every storage under the part that is at work, while it lives; `fullest` is the moment of the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part: Part = "passing"
        self.held = dict.fromkeys(Held.__dataclass_fields__, 0)
        self.booked: dict[int, tuple[Part, int]] = {}
        self.fullest = Held()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in tree_iter(made):
            if isinstance(item, Tensor) and item.untyped_storage()._cdata not in self.booked:
                self._book(item.untyped_storage())
        if sum(self.held.values()) > self.fullest.total:
            self.fullest = Held(**self.held)
        return made

    def move(self, tensor: Tensor, part: Part) -> None:
        """Book a tensor's storage under another part."""
        place = tensor.untyped_storage()._cdata
        before, size = self.booked[place]
        self.held[before] -= size
        self.held[part] += size
        self.booked[place] = part, size

    def _book(self, storage: torch.UntypedStorage) -> None:
        finalize(storage, self._strike, storage._cdata)
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self.booked[storage._cdata] = self.part, size
        self.held[self.part] += size

    def _strike(self, place: int) -> None:
        part, size = self.booked.pop(place)
        self.held[part] -= size

    def begin(self) -> None:
        """Forget the fullest moment so far."""
        self.fullest = Held(**self.held)


class _InFloat32(TorchFunctionMode):
    """Has fake tensors of a CPU take the precision that those of a GPU would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in IN_FLOAT32:
            args = [arg.float() if _is_half(arg) else arg for arg in args]
        return func(*args, **(kwargs or {}))


def _is_half(item: object) -> bool:
    return isinstance(item, Tensor) and item.dtype in (torch.bfloat16, torch.float16)


class _Arithmetic:
    """What a step asks of an Accelerator, on fake tensors."""

    device, scaler = torch.device("cpu"), None

    def __init__(self, ledger: Ledger, precision: str) -> None:
        self.ledger, self.mixed_precision = ledger, precision

    @contextmanager
    def autocast(self) -> Iterator[None]:
        self.ledger.part = "kept"
        with _autocasting(self.mixed_precision):
            yield

    def backward(self, loss: Tensor) -> None:
        self.ledger.part = "passing"
        torch.autograd.backward(loss)

    def clip_grad_norm_(self, weights: Sequence[Tensor], most: float) -> None:
        nn.utils.clip_grad_norm_(weights, most)


class _Mover:
    """What a step asks of an optimiser, with the averages that it keeps and the copy that torch's loops make."""

    def __init__(self, optimiser: torch.optim.Optimizer, averages: int) -> None:
        self.param_groups = optimiser.param_groups
        self.weights = [weight for group in self.param_groups for weight in group["params"]]
        self.averages = [torch.empty_like(weight) for weight in self.weights for _ in range(averages)]

    def step(self) -> None:
        [torch.empty_like(weight) for weight in self.weights]

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None


def step_held(
    backbone: Backbone, phase: Phase, recipe: Recipe, *, batch: int, precision: str, is_cut: bool = False
) -> Held:
    """Return what a training step of `batch` images holds; the network may be on the meta device.

    With `is_cut` the tail alone runs, on what the trunk has yielded before.

    Raises:
        IndivisibleError: it cannot be cut. NotImplementedError, RuntimeError: it computes with the values of tensors.
    """
    with _on_paper(backbone, phase) as (model, ledger, hold):
        run: nn.Module = model
        shapes: Sequence[tuple[int, ...]] = [(channels_of(model), *backbone.preprocessing.image_size)]
        if is_cut:
            divided = divide(model, phase.plan, backbone.groups, image_size=backbone.preprocessing.image_size)
            run, shapes = divided.tail, divided.shapes
        if recipe.train.fold_norms is True:
            run = folded_run(run, phase.plan, backbone.groups) or run
        if run is not model:
            hold(run)
        step = _step(model, backbone, phase, recipe, ledger, batch=batch, precision=precision)
        ledger.part = "inputs"
        inputs = tuple(torch.empty(batch, *shape) for shape in shapes)
        targets = _targets(recipe, batch, model)
        run.train()
        ledger.begin()
        step.take(run, inputs if is_cut else inputs[0], targets, num_steps=0, seeded=nullcontext)
        return ledger.fullest


def pass_held(backbone: Backbone, phase: Phase, *, batch: int, precision: str, is_whole: bool = False) -> Held:
    """Return what a pass over `batch` images holds without gradients: of the trunk, or of the whole network.

    Raises:
        IndivisibleError: there is no trunk. NotImplementedError, RuntimeError: as in `step_held`.
    """
    with _on_paper(backbone, phase) as (model, ledger, _):
        size = backbone.preprocessing.image_size
        run = model if is_whole else divide(model, phase.plan, backbone.groups, image_size=size).trunk
        ledger.part = "inputs"
        images = torch.empty(batch, channels_of(model), *size)
        ledger.begin()
        ledger.part = "passing"
        with torch.no_grad(), _autocasting(precision):
            run.eval()(images)
        return ledger.fullest


def step_memory(held: Held, batch: int, *, trained: int) -> Memory:
    """Return what a step takes up to this batch size, from what it holds at that size.

    Without any it would hold gradients of the `trained` bytes and the optimiser's copy of them. The fullest of several
    moments counts, each of which grows evenly: between the two it is never more than this.
    """
    least = held.weights + held.averages + 2 * trained
    per_image = max(0, -(-(held.total - least) // batch))
    return Memory(max(held.total, least) - batch * per_image, per_image)


def largest_batch(total: Callable[[int], int], limit: int, *, most: int = 2**15) -> int:
    """Return the largest batch up to `most` whose `total` is within a limit; 0 where that of one image is not.

    A total is that of the fullest of several moments, each of which grows evenly with the batch: a line between two
    batches is nowhere below what lies between them.
    """
    known = cache(total)
    low, high = 0, 64
    while high < most and known(high) <= limit:
        low, high = high, 8 * high
    high = min(high, most + 1)
    while high - low > 1:
        guess = (low + high) // 2
        if low:
            guess = low + int((limit - known(low)) / (known(high) - known(low)) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if known(guess) <= limit else (low, guess)
    return low


def _step(
    model: nn.Module,
    backbone: Backbone,
    phase: Phase,
    recipe: Recipe,
    ledger: Ledger,
    *,
    batch: int,
    precision: str,
) -> Step:
    """Return the step of a run, on fake tensors, with everything that training keeps beside the weights."""
    ledger.part = "averages"
    settings = replace(FitSettings.of(recipe), micro_batch=batch)
    arithmetic: Any = _Arithmetic(ledger, precision)
    keeper: Any = None
    objective = objective_of(settings.criterion.task)
    fit = Fit(model, backbone.groups, _nothing, settings, arithmetic, keeper, ignore, NEVER, objective=objective)
    if settings.regularise.l2_sp or any(item.trains == "lora" for item in phase.plan.groups):
        fit.anchors = pretrained_weights(fit, [phase])
    optimiser, averages, adapters = moving(fit, phase, TrainState(), {})
    mover: Any = _Mover(optimiser, OPTIMISERS[recipe.optim.name].averages)
    for weight in mover.weights:
        weight.register_post_accumulate_grad_hook(lambda weight: ledger.move(weight.grad, "gradients"))
    arithmetic.delivered = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
    return Step(model, mover, settings, arithmetic, averages, adapters, fit.anchors, objective, connections_of(fit))


def _targets(recipe: Recipe, batch: int, model: nn.Module) -> Tensor:
    if recipe.data.task in ("auto", "classify"):
        return torch.zeros(batch, dtype=torch.long)
    return torch.zeros(batch, int(model.num_classes))  # type: ignore[arg-type]


def _nothing(phase: Phase) -> Work:
    raise NotImplementedError("nothing is trained on paper")


@contextmanager
def _autocasting(precision: str) -> Iterator[None]:
    """Compute inside the block as a GPU does in a precision; float16 takes what bfloat16 does."""
    if precision == "float32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16), _InFloat32():
        yield


@contextmanager
def _on_paper(backbone: Backbone, phase: Phase) -> Iterator[tuple[nn.Module, Ledger, Callable[[nn.Module], None]]]:
    """Yield a model of fake tensors in the place of a backbone's, held to a phase's plan; its ledger; and the hold."""
    model, ledger = copy.deepcopy(backbone.model), Ledger()
    in_fast_layout(model, next(model.parameters()).device)
    # The first backward pass starts a thread for each GPU; under fake tensors there is one on every machine.
    torch.autograd.backward(torch.zeros((), requires_grad=True))
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        ledger.part = "weights"
        fake: dict[int, Tensor] = {}
        for place, tensor in own.items():
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            fake[place] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in tables:
                tensors.update((name, fake[id(tensor)]) for name, tensor in tensors.items() if tensor is not None)
        ledger.part = "passing"
        with freezing(model, phase.plan, backbone.groups) as hold:
            yield model, ledger, hold
