"""Trunk and tail of a model under a freeze plan, derived from the data flow.

A node of the graph belongs to the trunk when neither it nor anything before it depends on a
trainable parameter, or on an operation that is random or updates statistics. The rest is the tail.
The trunk is a function of the image alone: it can run once, and what crosses into the tail be kept.

The graph is traced twice over the same parameters: in training mode, where dropout shows, and in
eval mode. The cut is found in the first and carried over to the second by structure.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from finetune.backbone.freeze import still_modules
from finetune.backbone.trace import TRACE_ERRORS, Tracer
from finetune.features.randomops import is_random
from finetune.types import FreezePlan, LayerGroup

PROBES = (2, 3)  # two batch sizes tell what grows with the batch from what does not


class IndivisibleError(Exception):
    """When a model has no trunk, or one that cannot be cut off; the message says why."""


class Tail(nn.Module):
    """The tail as a module of the boundary tensors; its layers are the model's own."""

    def __init__(self, in_training: nn.Module, in_eval: nn.Module) -> None:
        super().__init__()
        self.in_training = in_training
        self.in_eval = in_eval

    def forward(self, boundary: Sequence[Tensor]) -> Tensor:
        part = self.in_training if self.training else self.in_eval
        logits: Tensor = part(*boundary)
        return logits


class Trunk(nn.Module):
    """The trunk as a module of images; always in eval mode, without gradients."""

    def __init__(self, graph: fx.GraphModule, folds: Sequence[int]) -> None:
        super().__init__()
        self.graph = graph.eval()
        self.folds = tuple(folds)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # (B, 3, H, W)
        """Yield the boundary tensors, each (B, ...)."""
        self.graph.eval()
        with torch.no_grad():
            crossing = self.graph(images)
        count = len(images)
        return tuple(
            tensor if fold == 1 else tensor.reshape(count, fold, *tensor.shape[1:])
            for tensor, fold in zip(crossing, self.folds, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Divided:
    """A model cut in two: `tail(trunk(images))` is what `model(images)` is.

    `shapes` are those of the boundary tensors for one image; `num_trunk` and `num_tail` count the
    nodes of the graph.
    """

    trunk: Trunk
    tail: Tail
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    num_trunk: int
    num_tail: int


def divide(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, image_size: tuple[int, int]) -> Divided:
    """Cut a model where its freeze plan lets it.

    Raises:
        IndivisibleError: torch.fx cannot follow the model, nothing is frozen before what is trained,
            or what crosses the cut belongs to no single image.
    """
    trained = {name for group in groups if not plan[group.name].is_frozen for name in group.parameters}
    still = still_modules(model, plan, groups)
    in_training, in_eval = _Graph(model, still, is_training=True), _Graph(model, still, is_training=False)
    trunk = in_training.trunk(trained)
    crossing = _narrowed(trunk, in_training, in_eval)
    kinds = _classify(model, in_training, crossing, image_size)
    tensors = [key for key, kind in kinds.items() if isinstance(kind, _Rows)]
    if not tensors or in_training.input_key in tensors:
        raise IndivisibleError("nothing is frozen before what is trained")
    graph = in_training.part(tensors)
    tail = Tail(in_training.rest(trunk, kinds), in_eval.rest(trunk, kinds))
    rows = [kind for kind in kinds.values() if isinstance(kind, _Rows)]
    names = tuple(in_training.by_key[key].name for key in tensors)
    total = len(in_training.keys)
    return Divided(
        Trunk(graph, [row.fold for row in rows]),
        tail,
        tuple(row.shape for row in rows),
        names,
        len(trunk),
        total - len(trunk),
    )


def _narrowed(trunk: set[str], in_training: _Graph, in_eval: _Graph) -> list[str]:
    """Yield what crosses, in order; what follows from the rest without weights is left to the tail.

    A pooled or permuted copy beside the tensor itself would only make the cache larger.
    """
    while True:
        crossing = in_training.crossing(trunk) | in_eval.crossing(trunk)
        order = list(dict.fromkeys(key for key in in_training.keys.values() if key in crossing))
        follows = next((key for key in reversed(order) if in_training.follows_from(key, crossing - {key})), None)
        if follows is None:
            return order
        trunk.discard(follows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A boundary tensor: `fold` rows and a shape for each image."""

    fold: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that crosses: `per_image` times the batch size, or just `value`."""

    value: float | int
    per_image: bool


_Kind = _Rows | _Number | tuple[Any, ...]


class _Graph:
    """One trace of a model, its nodes named by structure, so that two traces can be compared."""

    def __init__(self, model: nn.Module, still: Sequence[nn.Module], *, is_training: bool) -> None:
        modes = [(module, module.training) for module in model.modules()]
        model.train(is_training)
        for module in still:
            module.training = False
        try:
            tracer = Tracer()
            graph = tracer.trace(model)
        except TRACE_ERRORS as error:
            raise IndivisibleError(f"torch.fx cannot follow this network ({str(error)[:120]})") from error
        self.root = tracer.root
        self.graph = graph
        self.random = {node for node in graph.nodes if is_random(node, tracer.root)}
        for module, mode in modes:
            module.training = mode
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.input, self.options = placeholders[0], placeholders[1:]
        self.keys = self._keys()
        self.by_key = {key: node for node, key in reversed(self.keys.items())}
        self.input_key = self.keys[self.input]
        self.independent = self._independent()

    def _keys(self) -> dict[fx.Node, str]:
        keys: dict[fx.Node, str] = {}
        short: dict[str, str] = _SHORT
        for node in self.graph.nodes:
            args = fx.map_arg((node.args, node.kwargs), lambda source: _Reference(keys[source]))
            target = node.target if isinstance(node.target, str) else f"{node.target!r}"
            text = repr((node.op, target, args))
            keys[node] = short.setdefault(text, f"n{len(short)}")
        return keys

    def _independent(self) -> set[fx.Node]:
        """Nodes that no image influences: constants, parameters and what is computed from them."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node is not self.input and node.op != "output" and all(s in found for s in node.all_input_nodes):
                found.add(node)
        return found

    def trunk(self, trained: set[str]) -> set[str]:
        """Yield the keys of the nodes that nothing trainable and nothing random can influence."""
        tainted: set[fx.Node] = set()
        for node in self.graph.nodes:
            touches = node.op == "output" or node in self.random or self._is_trained(node, trained)
            if touches or any(source in tainted for source in node.all_input_nodes):
                tainted.add(node)
        return {key for node, key in self.keys.items() if node not in tainted}

    def _is_trained(self, node: fx.Node, trained: set[str]) -> bool:
        if node.op == "get_attr":
            return str(node.target) in trained
        if node.op != "call_module":
            return False
        module = self.root.get_submodule(str(node.target))
        return any(f"{node.target}.{name}" in trained for name, _ in module.named_parameters())

    def crossing(self, trunk: set[str]) -> set[str]:
        """Yield the keys of trunk nodes that depend on the image and that the tail reads."""
        return {
            self.keys[source]
            for node, key in self.keys.items()
            if key not in trunk
            for source in node.all_input_nodes
            if self.keys[source] in trunk and source not in self.independent
        }

    def follows_from(self, key: str, others: set[str]) -> bool:
        """Tell whether a node computes from other crossing nodes alone, without weights."""
        node = self.by_key[key]
        if node.op == "call_module" and any(True for _ in self.root.get_submodule(str(node.target)).parameters()):
            return False
        sources = [source for source in node.all_input_nodes if source not in self.independent]
        return bool(sources) and all(self.keys[source] in others for source in sources)

    def part(self, outputs: Sequence[str]) -> fx.GraphModule:
        """Yield the part of the graph that computes some nodes of the trunk from the image."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        needed = self._ancestors([self.by_key[key] for key in outputs])
        for node in self.graph.nodes:
            if node in needed or node.op == "placeholder":
                copied[node] = graph.node_copy(node, lambda old: copied[old])
        graph.output(tuple(copied[self.by_key[key]] for key in outputs))
        return fx.GraphModule(self.root, graph)

    def rest(self, trunk: set[str], kinds: dict[str, _Kind]) -> fx.GraphModule:
        """Yield the tail as a graph of the boundary tensors."""
        return fx.GraphModule(self.root, _TailBuilder(self, trunk, kinds).build())

    def _ancestors(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(node.all_input_nodes)
        return found


_SHORT: dict[str, str] = {}


class _Reference(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self!s}>"


class _TailBuilder:
    """Copies the tail's nodes, with what crosses as placeholders, numbers and copied constants."""

    def __init__(self, source: _Graph, trunk: set[str], kinds: dict[str, _Kind]) -> None:
        self.source, self.trunk, self.kinds = source, trunk, kinds
        self.graph = fx.Graph()
        self.copied: dict[fx.Node, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.batch: Any = None

    def build(self) -> fx.Graph:
        """Yield the graph: boundary tensors in, the model's output out."""
        for key, kind in self.kinds.items():
            if isinstance(kind, _Rows):
                self.inputs[key] = self.graph.placeholder(f"boundary_{len(self.inputs)}")
        first = next(iter(self.inputs.values()))
        self.batch = self.graph.call_method("size", (first, 0))
        for key, kind in self.kinds.items():
            self.inputs[key] = self._unfolded(kind, self.inputs[key]) if isinstance(kind, _Rows) else self._number(kind)
        for node in self.source.graph.nodes:
            if self.source.keys[node] not in self.trunk:
                self.copied[node] = self.graph.node_copy(node, self._resolve)
        return self.graph

    def _unfolded(self, kind: _Rows, node: fx.Node) -> fx.Node:
        return node if kind.fold == 1 else self.graph.call_method("flatten", (node, 0, 1))

    def _number(self, kind: _Kind) -> Any:
        if isinstance(kind, tuple):
            return tuple(self._number(part) for part in kind)
        assert isinstance(kind, _Number)
        return self.graph.call_function(_times, (self.batch, kind.value)) if kind.per_image else kind.value

    def _resolve(self, node: fx.Node) -> Any:
        if node in self.copied:
            return self.copied[node]
        key = self.source.keys[node]
        if key in self.inputs:
            return self.inputs[key]
        if node.op == "placeholder":
            self.copied[node] = node.args[0] if node.args else None
        else:  # a constant, or computed from constants: copied to this side as well
            self.copied[node] = self.graph.node_copy(node, self._resolve)
        return self.copied[node]


def _times(batch: int, number: int) -> int:
    return batch * number


def _classify(
    model: nn.Module, source: _Graph, crossing: Sequence[str], image_size: tuple[int, int]
) -> dict[str, _Kind]:
    """Run what crosses at two batch sizes and tell rows of images from numbers."""
    part = source.part(crossing).eval()
    device = next(model.parameters()).device
    seen = []
    with torch.no_grad():
        for count in PROBES:
            seen.append(part(torch.zeros(count, 3, *image_size, device=device)))
    return {key: _kind(*values) for key, values in zip(crossing, zip(*seen, strict=True), strict=True)}


def _kind(few: Any, more: Any) -> _Kind:
    if isinstance(few, Tensor):
        return _rows(few, more)
    if isinstance(few, (tuple, list)):
        return tuple(_kind(a, b) for a, b in zip(few, more, strict=True))
    if isinstance(few, (int, float)):
        if few == more:
            return _Number(few, per_image=False)
        if few * PROBES[1] == more * PROBES[0] and few % PROBES[0] == 0:
            return _Number(few // PROBES[0], per_image=True)
    raise IndivisibleError(f"a {type(few).__name__} that is neither of one image nor constant crosses the cut")


def _rows(few: Tensor, more: Tensor) -> _Rows:
    if few.ndim == 0 or len(few) * PROBES[1] != len(more) * PROBES[0] or few.shape[1:] != more.shape[1:]:
        raise IndivisibleError("a tensor that is not made of one part for each image crosses the cut")
    fold = len(few) // PROBES[0]
    shape = tuple(few.shape[1:]) if fold == 1 else (fold, *few.shape[1:])
    return _Rows(fold, shape)


Forward = Callable[..., Tensor]


def agrees(model: nn.Module, divided: Divided, images: Tensor, *, fork: Callable[[], Any]) -> bool:
    """Tell whether `tail(trunk(images))` is bit for bit `model(images)`, in training and in eval mode.

    `fork` is a context that seeds the random generators alike each time. Statistics that the passes
    update are put back.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    try:
        for is_training in (True, False):
            whole = _output(model, is_training, fork, images, buffers)
            parts = _output(divided.tail, is_training, fork, divided.trunk(images), buffers, owner=model)
            if not torch.equal(whole, parts):
                return False
        return True
    finally:
        model.train(was_training)


def _output(
    module: nn.Module,
    is_training: bool,
    fork: Callable[[], Any],
    inputs: Any,
    buffers: dict[str, Tensor],
    *,
    owner: nn.Module | None = None,
) -> Tensor:
    module.train(is_training)
    if not isinstance(inputs, Tensor):
        inputs = tuple(tensor.clone() for tensor in inputs)  # the tail may work in place
    with fork(), torch.no_grad():
        found = module(inputs)
    for name, buffer in (owner or module).named_buffers():
        buffer.copy_(buffers[name])
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits
