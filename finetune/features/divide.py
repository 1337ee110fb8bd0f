"""Trunk and tail of a model under a freeze plan, derived from the data flow.

A node of the graph belongs to the trunk when neither it nor anything before it depends on a
trainable parameter, or on an operation that is random or updates statistics. The rest is the tail.
The trunk is a function of the image alone: it can run once, and what crosses into the tail can be kept.

The graph is traced twice over the same parameters: in training mode, where dropout shows, and in
eval mode. The cut is found in the first and carried over to the second by structure.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from finetune.backbone.blank import channels_of, set_channels
from finetune.backbone.freeze import moved_parameters, still_modules
from finetune.backbone.trace import TRACE_ERRORS, Tracer, without_traces
from finetune.device import is_channels_last
from finetune.features.graphs import IndivisibleError, ModelGraph, Rows, classify
from finetune.types import FreezePlan, LayerGroup


class Tail(nn.Module):
    """The tail as a module of the boundary tensors; its layers are the model's own. A whole model is one of the images.

    What the freeze plan holds in eval mode (`still`: norms of trained layers that keep their statistics)
    stands in it whenever the tail computes.
    """

    def __init__(self, in_training: nn.Module, in_eval: nn.Module, still: Sequence[nn.Module]) -> None:
        super().__init__()
        self.still = tuple(still)
        self.in_training = in_training
        self.in_eval = in_eval

    def forward(self, boundary: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        for module in self.still:
            if module.training:
                module.training = False
        part = self.in_training if self.training else self.in_eval
        output: Tensor | tuple[Tensor, ...] = part(boundary) if isinstance(boundary, Tensor) else part(*boundary)
        return output


class Trunk(nn.Module):
    """The trunk as a module of images; always in eval mode, without gradients.

    `channels_last` tells of every boundary tensor how it lies in memory, once the trunk has run: a row
    of the cache must lie likewise, or the tail would take other kernels, with other last bits.
    """

    def __init__(self, graph: fx.GraphModule, folds: Sequence[int]) -> None:
        super().__init__()
        self.graph = graph.eval()
        self.folds = tuple(folds)
        self.channels_last = (False,) * len(self.folds)
        self.run: Callable[[Tensor], tuple[Tensor, ...]] | None = None  # in place of torch: see `engines`
        self.engine = ""  # what that depends on; empty for torch
        set_channels(self, channels_of(graph))
        self.at_once = 1  # batches that it computes at a time, each called by another thread

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # (B, 3, H, W)
        """Return the boundary tensors, each (B, ...)."""
        if self.run is not None:
            crossing = self.run(images)
        else:
            self.graph.eval()
            with torch.no_grad():
                crossing = self.graph(images)
        count = len(images)
        boundary = [
            tensor if fold == 1 else tensor.reshape(count, fold, *tensor.shape[1:])
            for tensor, fold in zip(crossing, self.folds, strict=True)
        ]
        if self.run is None:
            self.channels_last = tuple(map(is_channels_last, boundary))
        return self.laid(boundary)

    def laid(self, boundary: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Return boundary tensors laid out in memory as they come from the trunk."""
        formats = (torch.channels_last if is_last else torch.contiguous_format for is_last in self.channels_last)
        return tuple(t.contiguous(memory_format=form) for t, form in zip(boundary, formats, strict=True))


@dataclass(frozen=True, slots=True)
class Divided:
    """A model cut in two: `tail(trunk(images))` equals `model(images)`.

    `shapes` are those of the boundary tensors for one image.
    """

    trunk: Trunk
    tail: Tail
    shapes: tuple[tuple[int, ...], ...]


def divide(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, image_size: tuple[int, int]) -> Divided:
    """Cut a model where its freeze plan allows it.

    Raises:
        IndivisibleError: torch.fx cannot follow the model, nothing is frozen before what is trained,
            or what crosses the cut belongs to no single image.
    """
    with without_traces(model):
        return _divide(model, plan, groups, image_size)


def _divide(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], image_size: tuple[int, int]) -> Divided:
    trained = moved_parameters(plan, groups)
    still = still_modules(model, plan, groups)
    names: dict[str, str] = {}
    in_training = ModelGraph(model, still, names, is_training=True)
    in_eval = ModelGraph(model, still, names, is_training=False)
    trunk = in_training.trunk(trained)
    crossing = _narrowed(trunk, in_training, in_eval)
    kinds = classify(model, in_training, crossing, image_size)
    tensors = [key for key, kind in kinds.items() if isinstance(kind, Rows)]
    if not tensors or in_training.input_key in tensors:
        raise IndivisibleError("nothing is frozen before what is trained")
    graph = in_training.part(tensors)
    set_channels(graph, channels_of(model))
    tail = Tail(in_training.rest(trunk, kinds), in_eval.rest(trunk, kinds), still)
    rows = [kind for kind in kinds.values() if isinstance(kind, Rows)]
    return Divided(Trunk(graph, [row.fold for row in rows]), tail, tuple(row.shape for row in rows))


def _narrowed(trunk: set[str], in_training: ModelGraph, in_eval: ModelGraph) -> list[str]:
    """Return what crosses, in order; what can be computed from the rest without weights is left to the tail.

    A pooled or permuted copy beside the tensor itself would only make the cache larger.
    """
    while True:
        crossing = in_training.crossing(trunk) | in_eval.crossing(trunk)
        order = list(dict.fromkeys(key for key in in_training.keys.values() if key in crossing))
        follows = next((key for key in reversed(order) if in_training.follows_from(key, crossing - {key})), None)
        if follows is None:
            return order
        trunk.discard(follows)


def agrees(model: nn.Module, divided: Divided, images: Tensor, *, fork: Callable[[], Any]) -> bool:
    """Return whether `tail(trunk(images))` is bit for bit `model(images)`, in training and in eval mode.

    `fork` is a context that seeds the random generators alike each time. Statistics that the passes
    update are put back.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    try:
        boundary = divided.trunk(images)
        for is_training in (True, False):
            whole = output_of(model, is_training, fork, images, buffers)
            parts = output_of(divided.tail, is_training, fork, boundary, buffers, owner=model)
            if len(whole) != len(parts) or not all(map(torch.equal, whole, parts)):
                return False
        return True
    finally:
        model.train(was_training)


def output_of(
    module: nn.Module,
    is_training: bool,
    fork: Callable[[], Any],
    inputs: Any,
    buffers: dict[str, Tensor],
    *,
    owner: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Run a module; besides the logits it may return those of auxiliary or twin classifiers."""
    module.train(is_training)
    if not isinstance(inputs, Tensor):
        inputs = tuple(tensor.clone() for tensor in inputs)  # the tail may work in place
    with fork(), torch.no_grad():
        outputs = module(inputs)
    for name, buffer in (owner or module).named_buffers():
        buffer.copy_(buffers[name])
    return outputs if isinstance(outputs, tuple) else (outputs,)


def whole_tail(model: nn.Module, still: Sequence[nn.Module]) -> Tail:
    """Return a model that is not cut as a tail: in training mode its graph, in eval mode itself.

    Raises:
        IndivisibleError: torch.fx cannot follow it.
    """
    with without_traces(model):
        source = ModelGraph(model, still, {}, is_training=True)
        return Tail(fx.GraphModule(source.root, source.graph), model, still)


def network_trunk(model: nn.Module) -> Trunk:
    """Return a whole network as a trunk that ends at its logits.

    Raises:
        IndivisibleError: torch.fx cannot follow it, or it has other outputs than logits.
    """
    was_training = model.training
    model.eval()
    try:
        with without_traces(model):
            tracer = Tracer()
            graph = tracer.trace(model)
            (output,) = (node for node in graph.nodes if node.op == "output")
            if not isinstance(output.args[0], fx.Node):
                raise IndivisibleError("this network outputs more than logits")
            output.args = ((output.args[0],),)
            return Trunk(fx.GraphModule(tracer.root, graph), [1])
    except TRACE_ERRORS as error:
        raise IndivisibleError(f"torch.fx cannot follow this network ({str(error)[:120]})") from error
    finally:
        model.train(was_training)
