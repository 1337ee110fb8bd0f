"""The output, parameters and receptive field of every layer of a network, from one forward pass without weights.

Shapes: B images (here one), C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from os.path import commonpath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from finetune.backbone.blank import channels_of
from finetune.errors import BackboneError

_SKIPPED = ("identity", "flatten")
_WORDS = ("multihead", "pool", "norm", "drop", "activation", "conv", "linear", "embed", "relu")
_KIND_OF_WORD = {"multihead": "other", "drop": "dropout", "relu": "activation"}  # else the word


# What networks raise in `forward` for a size that they do not take, or for lack of values.
NETWORK_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer: its output for one image, its parameters and the pixels that one unit sees.

    A layer called several times has one row, at its first call, with its last output. `shape`
    leaves the batch out, unless the network folds windows into it. A parameter that no layer holds
    (class token, scale) is a row of type 'Parameter' with its own shape and no activations.
    `receptive_field`: along H, borders and statistics of norms aside; None if all or unknown.
    """

    name: str
    kind: str  # conv, pool, linear, norm, activation, dropout, embed or other
    type: str
    shape: tuple[int, ...]
    num_activations: int
    num_parameters: int
    receptive_field: int | None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The layers of a network in the order of execution, for one image of `input_shape` (C, H, W).

    Not covered: function calls (a relu in `forward`) and layers that only hand on their input.
    """

    input_shape: tuple[int, int, int]
    rows: tuple[LayerRow, ...]

    @property
    def num_parameters(self) -> int:
        """Every parameter of the network, a shared one counted once."""
        return sum(row.num_parameters for row in self.rows)

    @property
    def num_activations(self) -> int:
        """The count of the notes: input, convolutions, pools and fully connected layers."""
        counted = (row for row in self.rows if row.kind in ("conv", "pool", "linear"))
        return prod(self.input_shape) + sum(row.num_activations for row in counted)

    @property
    def num_activations_all(self) -> int:
        """Input and every layer except activations and dropout, which can work in place."""
        counted = (row for row in self.rows if row.kind not in ("activation", "dropout"))
        return prod(self.input_shape) + sum(row.num_activations for row in counted)

    def shapes_channels_last(self) -> Iterator[tuple[int, ...]]:
        """Yield the shape of every row in the form of the notes: maps as (H, W, C), the rest as it is.

        Layers of torch and timm with 2d in their name put out (C, H, W); so does one without that hands
        on such a shape (an activation, dropout).
        """
        previous: LayerRow | None = None
        is_first = False
        for row in self.rows:
            is_handed_on = previous is not None and previous.shape == row.shape
            is_first = len(row.shape) == 3 and ("2d" in row.type or (is_handed_on and is_first))
            yield (*row.shape[1:], row.shape[0]) if is_first else row.shape
            previous = row

    def activation_bytes(self) -> int:
        """Return the memory of `num_activations` in float32: forward, one image."""
        return 4 * self.num_activations


def layer_table(model: nn.Module, *, image_size: tuple[int, int]) -> LayerTable:
    """Return the layers of a network for one image of (H, W), leaving it untouched.

    A copy without values runs on the meta device; a network that needs values runs on the CPU.

    Raises:
        BackboneError: the network does not run at this image size.
    """
    input_shape = (channels_of(model), *image_size)
    copies: dict[str, Callable[[nn.Module], nn.Module]] = {"meta": _copy_without_values}
    if not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        copies["cpu"] = lambda given: deepcopy(given).cpu()
    for device, make_copy in copies.items():
        try:
            rows = _run(make_copy(model), input_shape, device=device)
            return LayerTable(input_shape, rows=tuple(_with_parameters(model, rows)))
        except NETWORK_ERRORS as error:
            failure = error
    message = f"{type(model).__name__} does not run on an image of {image_size}: {failure}"
    raise BackboneError(message, hint="give the image size (H, W) that the network was made for")


def _copy_without_values(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}  # deepcopy takes what stands here as copied
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return deepcopy(model, memo)


def _run(model: nn.Module, input_shape: Sequence[int], *, device: str) -> dict[str, LayerRow]:
    """Return the rows of a copy's layers from one pass of it, their parameters not yet counted."""
    rows: dict[str, LayerRow] = {}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    image = torch.zeros(1, *input_shape, dtype=dtype, device=device)
    tracker = _FieldTracker(image)

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        name, kind = names[layer], _kind(layer)
        out = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        is_handed_on = kind in ("pool", "other") and any(out is given for given in inputs)
        if out is None or is_handed_on or kind in _SKIPPED:
            return
        if not out.numel():  # torch before 2.7 computes shapes of such tensors without a word
            raise RuntimeError(f"nothing is left of the image at {name}")
        if kind == "norm":
            tracker.fields[out] = tracker.fields.get(inputs[0] if inputs else out)
        field = tracker.fields.get(out)
        seen = None if field is None else field.high - field.low + 1
        shape = tuple(out.shape[1:] if out.shape[:1] == (1,) else out.shape)
        rows[name] = LayerRow(name, kind, type(layer).__name__, shape, out.numel(), 0, seen)

    for module in model.modules():
        module._forward_hooks.clear()  # hooks are copied with their closures: they must not see this pass
    names = _layers(model)
    for layer in names:
        layer.register_forward_hook(record)
    # Inference mode hands the tracker whole operations (linear, conv2d), not their pieces.
    with torch.inference_mode(), tracker:
        model.eval()(image)
    return rows


def _layers(module: nn.Module, name: str = "") -> dict[nn.Module, str]:
    """Return the name of every layer: a module without children, or one that counts as a layer with them."""
    below = list(module.modules())[1:]
    own = bool(module._parameters or module._buffers)  # timm's norms hold their activation
    is_norm = own and all(_kind(child) in ("activation", "dropout", "identity") for child in below)
    is_whole = type(module).__name__.startswith(("SelectAdaptivePool", "Parametrized"))
    if not below or is_norm or is_whole or isinstance(module, nn.MultiheadAttention):
        return {module: name}
    names: dict[nn.Module, str] = {}
    for child_name, child in module.named_children():
        names = _layers(child, f"{name}.{child_name}".lstrip(".")) | names
    return names


def _kind(module: nn.Module) -> str:
    """Return the kind from the class name, or in torch and timm's layers from the file name."""
    for base in type(module).__mro__:
        is_library = base.__module__.startswith(("torch.nn.modules.", "timm.layers."))
        file = base.__module__.rpartition(".")[2] if is_library else ""
        name = f"{file}.{base.__name__}".lower()
        for word in _SKIPPED + _WORDS:  # first those whose file would mislead: linear.Identity
            if word in name:
                return _KIND_OF_WORD.get(word, word)
    return "other"


def _with_parameters(model: nn.Module, rows: dict[str, LayerRow]) -> list[LayerRow]:
    """Return the rows with each parameter counted in the first layer that has it; others get rows of their own."""
    seen: set[Tensor] = set()
    before: dict[str, list[LayerRow]] = {name: [] for name in [*rows, ""]}
    for name, row in rows.items():
        own = set(model.get_submodule(name).parameters()) - seen
        seen |= own
        rows[name] = replace(row, num_parameters=sum(tensor.numel() for tensor in own))
    for name, tensor in model.named_parameters():
        if tensor not in seen:
            # It stands before the first row of its module, or of the nearest around that has one; at the
            # end where only the network itself has (GoogLeNet's auxiliary classifiers).
            path, shape = name.replace(".", "/"), tuple(tensor.shape)
            shared = {row: len(commonpath([row.replace(".", "/"), path])) for row in rows}
            row = LayerRow(name, "other", "Parameter", shape, 0, tensor.numel(), None)
            nearest = max(shared, key=shared.__getitem__, default="")
            before[nearest if shared.get(nearest) or "/" not in path else ""].append(row)
    return [*chain.from_iterable([*before[name], row] for name, row in rows.items()), *before[""]]


class _Field(NamedTuple):
    """Unit i along `dim` (from the end) sees the rows i * jump + low to i * jump + high."""

    low: int
    high: int
    jump: int
    dim: int


class _FieldTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries the receptive field forward from the image; operations it does not know have none (None)."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: Any = WeakTensorKeyDictionary({image: _Field(0, 0, jump=1, dim=-2)})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fields = [self.fields[tensor] for tensor in tensors if tensor in self.fields]
        if fields and func._schema.name in ("aten::copy_", "aten::index_put_"):
            self.fields.clear()  # written into part of a tensor: what the whole sees is unknown
        elif fields:
            call = {given.name: given.default_value for given in func._schema.arguments}
            call |= dict(zip(call, args, strict=False)) | (kwargs or {})
            field = None if None in fields else _after(func, call, fields, tensors[0].dim())
            results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.fields.update(dict.fromkeys(results, field))
        return out


def _after(func: Any, call: dict[str, Any], fields: list[_Field], ndim: int) -> _Field | None:
    """Return the field of an operation's output, from the union of its inputs' fields."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    is_pointwise = torch.Tag.pointwise in func.tags
    if len({(field.jump, field.dim) for field in fields}) > 1:
        return None
    if len(fields) > 1 and not is_pointwise and name != "cat":  # weights made from the image
        return None
    low, high = min(field.low for field in fields), max(field.high for field in fields)
    field = fields[0]._replace(low=low, high=high)
    match name:
        case "conv2d" | "max_pool2d" | "avg_pool2d" if field.dim == -2:
            return _slide(field, call)
        case "linear" | "cat" | "split" | "split_with_sizes" | "chunk" | "slice":
            return field if call.get("dim", -1) % ndim != field.dim % ndim else None
        case "pad":
            index = 2 * (-field.dim - 1)  # pairs (before, after) from the last dimension on
            shift = call["pad"][index] * field.jump if index < len(call["pad"]) else 0
            return field._replace(low=field.low - shift, high=field.high - shift)
        case "permute":
            dims = [dim % ndim for dim in call["dims"]]
            return field._replace(dim=dims.index(field.dim % ndim) - ndim)
    is_plain = name in ("contiguous", "dropout", "feature_dropout", "hardswish", "prelu", "to")
    return field if is_pointwise or is_plain else None


def _slide(field: _Field, call: dict[str, Any]) -> _Field:
    """Return the field after the window of a convolution or a pool slides along H."""
    first = {key: v[0] if type(v) is list and v else v for key, v in call.items()}
    kernel = call["weight"].shape[-2] if "weight" in call else first["kernel_size"]
    stride = first["stride"] or kernel  # a pool's empty stride stands for its kernel
    reach = (kernel - 1) * first.get("dilation", 1)
    padding = {"same": reach // 2, "valid": 0}.get(first["padding"], first["padding"])
    low, high = field.low - padding * field.jump, field.high + (reach - padding) * field.jump
    return _Field(low, high, field.jump * stride, field.dim)
