"""A model's graph with its nodes named by structure, cut into a trunk and a tail.

Two traces of a model, in training and in eval mode, name the same computation alike, so that a cut
found in one can be carried over to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from finetune.backbone.blank import blank_images
from finetune.backbone.trace import CONSTANT, TRACE_ERRORS, Tracer, ancestors
from finetune.features.randomops import is_random

PROBES = (2, 3)  # two batch sizes: what grows with the batch differs between them


class IndivisibleError(Exception):
    """When a model has no trunk, or one that cannot be cut off; the message says why."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A boundary tensor: `fold` rows and a shape for each image."""

    fold: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Number:
    """A number that crosses: `per_image` times the batch size, or just `value`."""

    value: float | int
    per_image: bool


Kind = Rows | Number | tuple[Any, ...]


class ModelGraph:
    """One trace of a model, its nodes named by structure, so that two traces can be compared.

    `names` maps structures to short names; traces that are compared share it.
    """

    def __init__(
        self, model: nn.Module, still: Sequence[nn.Module], names: dict[str, str], *, is_training: bool
    ) -> None:
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
        self.input = placeholders[0]
        self.keys = self._keys(names)
        self.by_key = {key: node for node, key in reversed(self.keys.items())}
        self.input_key = self.keys[self.input]
        self.independent = self._independent()

    def _keys(self, names: dict[str, str]) -> dict[fx.Node, str]:
        keys: dict[fx.Node, str] = {}
        for node in self.graph.nodes:
            args = fx.map_arg((node.args, node.kwargs), lambda source: _Reference(keys[source]))
            text = repr((node.op, self._target(node), args))
            keys[node] = names.setdefault(text, f"n{len(names)}")
        return keys

    def _target(self, node: fx.Node) -> str:
        """Return a name for what a node calls or reads; a constant that the tracer found is named by its value."""
        if not isinstance(node.target, str):
            return repr(node.target)
        if node.op == "get_attr" and node.target.startswith(CONSTANT):
            value: Tensor = getattr(self.root, node.target)
            return f"{value.dtype} {tuple(value.shape)} {value.flatten().tolist()}"
        return node.target

    def _independent(self) -> set[fx.Node]:
        """The nodes that no image influences: constants, parameters and what is computed from them."""
        independent: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node is not self.input and node.op != "output" and all(s in independent for s in node.all_input_nodes):
                independent.add(node)
        return independent

    def trunk(self, trained: set[str]) -> set[str]:
        """Return the keys of the nodes that nothing trainable and nothing random can influence."""
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
        """Return the keys of trunk nodes that depend on the image and that the tail reads."""
        return {
            self.keys[source]
            for node, key in self.keys.items()
            if key not in trunk
            for source in node.all_input_nodes
            if self.keys[source] in trunk and source not in self.independent
        }

    def follows_from(self, key: str, others: set[str]) -> bool:
        """Return whether a node computes from other crossing nodes alone, without weights, over any number of steps."""
        node = self.by_key[key]
        if node.op == "call_module" and any(True for _ in self.root.get_submodule(str(node.target)).parameters()):
            return False
        sources = [self.keys[source] for source in node.all_input_nodes if source not in self.independent]
        return bool(sources) and all(source in others or self.follows_from(source, others) for source in sources)

    def part(self, outputs: Sequence[str]) -> fx.GraphModule:
        """Return the part of the graph that computes some nodes of the trunk from the image."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        needed = ancestors([self.by_key[key] for key in outputs])
        for node in self.graph.nodes:
            if node in needed or node.op == "placeholder":
                copied[node] = graph.node_copy(node, lambda old: copied[old])
        graph.output(tuple(copied[self.by_key[key]] for key in outputs))
        return fx.GraphModule(self.root, graph)

    def rest(self, trunk: set[str], kinds: dict[str, Kind]) -> fx.GraphModule:
        """Return the tail as a graph of the boundary tensors."""
        return fx.GraphModule(self.root, TailBuilder(self, trunk, kinds).build())


class _Reference(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self!s}>"


class TailBuilder:
    """Copies the tail's nodes, with what crosses as placeholders, numbers and copied constants."""

    def __init__(self, source: ModelGraph, trunk: set[str], kinds: dict[str, Kind]) -> None:
        self.source, self.trunk, self.kinds = source, trunk, kinds
        self.graph = fx.Graph()
        self.copied: dict[fx.Node, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.batch: Any = None

    def build(self) -> fx.Graph:
        """Return the graph: boundary tensors in, the model's output out."""
        for key, kind in self.kinds.items():
            if isinstance(kind, Rows):
                self.inputs[key] = self.graph.placeholder(f"boundary_{len(self.inputs)}")
        first = next(iter(self.inputs.values()))
        self.batch = self.graph.call_method("size", (first, 0))
        for key, kind in self.kinds.items():
            self.inputs[key] = self._unfolded(kind, self.inputs[key]) if isinstance(kind, Rows) else self._number(kind)
        for node in self.source.graph.nodes:
            if self.source.keys[node] not in self.trunk:
                self.copied[node] = self.graph.node_copy(node, self._resolve)
        return self.graph

    def _unfolded(self, kind: Rows, node: fx.Node) -> fx.Node:
        return node if kind.fold == 1 else self.graph.call_method("flatten", (node, 0, 1))

    def _number(self, kind: Kind) -> Any:
        if isinstance(kind, tuple):
            return tuple(self._number(part) for part in kind)
        assert isinstance(kind, Number)
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


def classify(
    model: nn.Module, source: ModelGraph, crossing: Sequence[str], image_size: tuple[int, int]
) -> dict[str, Kind]:
    """Run what crosses at two batch sizes, to distinguish rows of images from numbers."""
    part = source.part(crossing).eval()
    seen = []
    with torch.no_grad():
        for count in PROBES:
            seen.append(part(blank_images(model, image_size, count=count)))
    return {key: _kind(*values) for key, values in zip(crossing, zip(*seen, strict=True), strict=True)}


def _kind(few: Any, more: Any) -> Kind:
    if isinstance(few, Tensor):
        return _rows(few, more)
    if isinstance(few, (tuple, list)):
        return tuple(_kind(a, b) for a, b in zip(few, more, strict=True))
    if isinstance(few, (int, float)):
        if few == more:
            return Number(few, per_image=False)
        if few * PROBES[1] == more * PROBES[0] and few % PROBES[0] == 0:
            return Number(few // PROBES[0], per_image=True)
    raise IndivisibleError(f"a {type(few).__name__} that is neither of one image nor constant crosses the cut")


def _rows(few: Tensor, more: Tensor) -> Rows:
    if few.ndim == 0 or len(few) * PROBES[1] != len(more) * PROBES[0] or few.shape[1:] != more.shape[1:]:
        raise IndivisibleError("a tensor that is not made of one part for each image crosses the cut")
    fold = len(few) // PROBES[0]
    shape = tuple(few.shape[1:]) if fold == 1 else (fold, *few.shape[1:])
    return Rows(fold, shape)
