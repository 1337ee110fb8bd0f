"""What a training step takes of memory, and how many images fit into one.

Memory is a fixed part (weights, gradients, the optimiser's averages) and a part for each image: what
the forward pass keeps for the backward pass, counted tensor by tensor without computing anything, and
what the layer with the largest input and output holds on the way.

What is not covered: workspaces of kernels, and what other processes take; `SHARE` leaves room for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from finetune.backbone.blank import blank_images, channels_of
from finetune.backbone.freeze import freezing
from finetune.errors import ResourceError
from finetune.optim.optimisers import OPTIMISERS
from finetune.types import FreezePlan, LayerGroup

SHARE = 0.6  # of what is free
GRADIENTS = 1.5  # what an image takes at most, against what its forward pass keeps
PASSING = 3  # tensors of the size of the largest layer's that live at once


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training takes: whatever the batch, and for each image in it."""

    fixed: int
    per_image: int

    def of(self, batch: int) -> int:
        """Return the bytes for a batch of so many images."""
        return self.fixed + batch * self.per_image


def step_memory(
    skeleton: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, image_size: tuple[int, int], optimiser: str
) -> Memory:
    """Return what a training step under a freeze plan takes; `skeleton` may lie on the meta device."""
    weights = sum(p.numel() * p.element_size() for p in skeleton.parameters())
    trained = sum(group.num_trained(plan[group.name]) for group in groups) * 4
    with freezing(skeleton, plan, groups):
        kept, passing = _forward_memory(skeleton.train(), blank_images(skeleton, image_size, count=2))
    pixels = 4 * channels_of(skeleton) * image_size[0] * image_size[1]
    per_image = pixels + max(GRADIENTS * kept, kept + PASSING * passing) / 2
    states = OPTIMISERS[optimiser].averages
    return Memory(weights + trained * (1 + states), round(per_image))


def _forward_memory(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the backward pass, and those of its largest output."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}
    outputs = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    def look(_: nn.Module, __: object, output: object) -> None:
        outputs.append(output.nbytes if isinstance(output, Tensor) else 0)

    watched = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
            held = model(images)  # as long as this lives, no storage is freed and taken again
        del held
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), max(outputs)
    finally:
        for hook in watched:
            hook.remove()


def fitting_batch(wanted: int, memory: Memory, free: int) -> int:
    """Return how many of `wanted` images fit into a step at once: all of them, or a half, a quarter, ...

    Raises:
        ResourceError: not even one does.
    """
    size = wanted
    while size > 1 and memory.of(size) > SHARE * free:
        size = -(-size // 2)
    if memory.of(size) > free:
        raise ResourceError(
            f"one image in a training step takes {memory.of(1) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            hint="Train fewer layers (--strategy head-only), smaller images (--image-size) or a smaller backbone.",
        )
    return size


def tried_batch(wanted: int, attempt: Callable[[int], None]) -> int:
    """Return the largest of `wanted`, its half, its quarter, ... with which `attempt` does not run out of memory.

    Raises:
        ResourceError: it does with a single image.
    """
    size = wanted
    while True:
        try:
            with out_of_memory(size):
                attempt(size)
            return size
        except ResourceError:
            if size == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-size // 2)


@contextmanager
def out_of_memory(micro_batch: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors inside the block into ours, with the flag that helps.

    Raises:
        ResourceError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        less = f"fewer images at once: --micro-batch {micro_batch // 2} (the result stays that of --batch-size), or "
        raise ResourceError(
            f"memory ran out with {micro_batch} images at once",
            hint=f"Take {less if micro_batch > 1 else ''}smaller images (--image-size), or fewer trained layers.",
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error of torch says that memory ran out; on a CPU it is a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    )
