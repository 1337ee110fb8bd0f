"""A network as a graph (torch.fx): where each layer group ends, and the part that comes before.

Every node has a *rank*: the index of the last layer group whose weights it depends on. So what
belongs to a layer group follows from the data flow and is never named by hand.

Letters: B batch, C channels, H W pixels, N tokens, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from finetune.backbone.blank import blank_images
from finetune.backbone.groups import head_modules
from finetune.errors import BackboneError
from finetune.types import LayerGroup

PROBE_BATCH = 2
# What torch.fx raises on a network whose path depends on values.
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, NameError, LookupError, AssertionError)
# Functions and methods that move or pad values without changing them: the end of a group comes before them.
MOVES = frozenset({"permute", "transpose", "contiguous", "reshape", "view", "flatten", "movedim", "to", "float", "pad"})


CONSTANT = "_tensor_constant"  # what torch.fx calls the tensors that it finds in the code


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Remove the constants that tracing attaches to a model; graphs made meanwhile keep theirs."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in [name for name in set(vars(model)) - before if name.startswith(CONSTANT)]:
            delattr(model, name)


@dataclass(frozen=True, slots=True)
class Traced:
    """A network's graph in eval mode, the rank of every node, and the output node of every group.

    Of every output: its dimensions that are positions (of feature maps or tokens), and how many
    features are left when they are averaged away. `maps` has every tensor with positions, in the order of the network,
    with its shape for a batch of `PROBE_BATCH` and these dimensions.
    """

    module: fx.GraphModule
    ranks: dict[str, int]
    ends: dict[str, str]
    positions: dict[str, tuple[int, ...]]
    widths: dict[str, int]
    maps: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


class Tracer(fx.Tracer):
    """torch.fx's tracer with timm's own leaf modules and functions."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a network as a function of its images alone: other arguments have their defaults."""
        options = list(inspect.signature(root.forward).parameters.values())[1:]
        defaults = {option.name: option.default for option in options if option.default is not option.empty}
        with _without_caches(root):
            graph = super().trace(root, {**defaults, **(concrete_args or {})} or None)
        for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
            if node.args:  # an option; what depends on it asserts that it has this value
                _erase(graph, node)
        return graph


@contextmanager
def _without_caches(root: nn.Module) -> Iterator[None]:
    """Empty what modules cache between passes: a trace would take it for constants, and leave its own there."""
    caches = [
        (value, dict(value))
        for module in root.modules()
        for name, value in vars(module).items()
        if name.endswith("_cache") and isinstance(value, dict)
    ]
    for cache, _ in caches:
        cache.clear()
    try:
        yield
    finally:
        for cache, before in caches:
            cache.clear()
            cache.update(before)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


class _Shapes(fx.Interpreter):
    """Runs a graph once and remembers which nodes yield a tensor of features."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.features: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_tensor = isinstance(result, Tensor) and result.is_floating_point() and result.ndim in (2, 3, 4)
        if is_tensor and result.shape[0] == PROBE_BATCH:  # what has no batch dimension is a constant
            self.features[n.name] = tuple(result.shape)
        return result


def trace(model: nn.Module, groups: Sequence[LayerGroup], *, image_size: tuple[int, int]) -> Traced:
    """Return the graph of a network in eval mode, and where each layer group of its backbone ends.

    Raises:
        BackboneError: torch.fx cannot follow the network.
    """
    was_training = model.training
    model.eval()
    try:
        with without_traces(model), torch.no_grad():
            tracer = Tracer()
            graph = tracer.trace(model)
            module = fx.GraphModule(tracer.root, graph)
            shapes = _Shapes(module)
            shapes.run(blank_images(model, image_size, count=PROBE_BATCH))
    except TRACE_ERRORS as error:
        raise BackboneError(
            f"this network cannot be traced, so its inner layer groups cannot be reached: {str(error)[:200]}",
            hint="Strategies that use only the last layer group still work.",
        ) from error
    finally:
        model.train(was_training)
    ranks = _ranks(module, groups)
    ends = _ends(module, model, groups, ranks, shapes.features)
    usual = getattr(model, "output_fmt", "NCHW") == "NHWC"
    end_shapes = {group: shapes.features[node] for group, node in ends.items()}
    dims = {
        name: position_dims(len(shape), is_channels_last=_is_channels_last(shape, usual))
        for name, shape in shapes.features.items()
    }
    positions = {group: dims[ends[group]] for group in end_shapes}
    maps = {name: (shape, dims[name]) for name, shape in shapes.features.items() if dims[name]}
    widths = {
        group: next(size for at, size in enumerate(shape) if at and at not in positions[group])
        for group, shape in end_shapes.items()
    }
    return Traced(module, ranks, ends, positions, widths, maps)


def prefix(traced: Traced, ends: Sequence[str], *, is_pooled: bool = False) -> fx.GraphModule:
    """Return the part of a graph that computes the outputs of some layer groups, as a tuple of tensors.

    Pooled, each is averaged over its positions: (B, D).
    """
    nodes = {node.name: node for node in traced.module.graph.nodes}
    needed = ancestors([nodes[traced.ends[end]] for end in ends])
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in traced.module.graph.nodes:
        if node in needed or node.op == "placeholder":
            copied[node] = graph.node_copy(node, lambda old: copied[old])
    outputs = []
    for end in ends:
        output = copied[nodes[traced.ends[end]]]
        where = traced.positions[end] if is_pooled else ()
        outputs.append(graph.call_method("mean", (output,), {"dim": where}) if where else output)
    graph.output(tuple(outputs))
    return fx.GraphModule(traced.module, graph)


def position_dims(ndim: int, *, is_channels_last: bool) -> tuple[int, ...]:
    """Return the dimensions of feature maps or tokens that are positions."""
    if ndim == 4:
        return (1, 2) if is_channels_last else (2, 3)
    return (1,) if ndim == 3 else ()


def ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return some nodes of a graph and everything that they are computed from."""
    reached: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(node.all_input_nodes)
    return reached


def _ranks(module: fx.GraphModule, groups: Sequence[LayerGroup]) -> dict[str, int]:
    order = {name: index for index, group in enumerate(groups) for name in group.parameters}
    ranks: dict[str, int] = {}
    for node in module.graph.nodes:
        own = [ranks[source.name] for source in node.all_input_nodes]
        if node.op == "call_module":
            target = module.get_submodule(str(node.target))
            own += [order.get(f"{node.target}.{name}", -1) for name, _ in target.named_parameters()]
        elif node.op == "get_attr":
            own.append(order.get(str(node.target), -1))
        ranks[node.name] = max(own, default=-1)
    return ranks


def _ends(
    module: fx.GraphModule,
    model: nn.Module,
    groups: Sequence[LayerGroup],
    ranks: dict[str, int],
    features: dict[str, tuple[int, ...]],
) -> dict[str, str]:
    """Return the end of each group: the last tensor of its rank that a later group reads.

    Where that is a pooled or padded copy of a tensor that a later group reads too (beside a strided shortcut), it is
    the tensor.
    """
    backbone = [group for group in groups if not group.is_head]
    last: dict[int, fx.Node] = {}
    read: set[fx.Node] = set()
    for node in module.graph.nodes:
        rank = ranks[node.name]
        if node.name not in features or not 0 <= rank < len(backbone):
            continue
        if any(ranks[user.name] > rank or user.op == "output" for user in node.users):
            last[rank] = node
            read.add(node)
    ends: dict[str, str] = {}
    for rank, node in last.items():
        for source in _sources(node, module):
            node = source if source in read and ranks[source.name] == rank else node
        ends[backbone[rank].name] = _before_moves(node, ranks, features).name
    head_input = _head_input(module, model)
    if head_input in features and backbone:
        ends[backbone[-1].name] = str(head_input)
    return ends


def _sources(node: fx.Node, module: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the nodes that a node is a copy of, nearest first: each is the only input of the next, without weights."""
    while len(node.all_input_nodes) == 1:
        if node.op == "call_module" and any(True for _ in module.get_submodule(str(node.target)).parameters()):
            return
        node = node.all_input_nodes[0]
        yield node


def _before_moves(node: fx.Node, ranks: dict[str, int], features: dict[str, tuple[int, ...]]) -> fx.Node:
    earliest = node
    while _moves(node) and ranks[node.all_input_nodes[0].name] == ranks[node.name]:
        node = node.all_input_nodes[0]
        earliest = node if node.name in features else earliest
    return earliest


def _moves(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in MOVES


def _is_channels_last(shape: tuple[int, ...], usual: bool) -> bool:
    """Return whether the shape of a square input is (B, H, W, C) rather than (B, C, H, W); `usual` where C is H too."""
    if len(shape) != 4 or shape[1] == shape[2] == shape[3]:
        return usual
    return shape[1] == shape[2]


def _head_input(module: fx.GraphModule, model: nn.Module) -> str | None:
    heads = {id(head) for head in head_modules(model)}
    for node in module.graph.nodes:
        if node.op == "call_module" and id(module.get_submodule(str(node.target))) in heads:
            source = node.args[0]
            return source.name if isinstance(source, fx.Node) else None
    return None
