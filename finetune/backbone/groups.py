"""Layer groups: every parameter of a timm network in exactly one group, from input to output.

The head is what `get_classifier()` names. The rest is grouped by the network's own
`group_matcher(coarse=True)`; the few networks whose matcher does not work are grouped by
`feature_info` or by their top-level children.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from timm.models._manipulate import group_with_matcher
from torch import nn

from finetune.backbone.pools import pool_parameters
from finetune.types import Kind, LayerGroup


def layer_groups(model: nn.Module) -> tuple[LayerGroup, ...]:
    """Return the layer groups of a network in order, the head last.

    Names can be typed: `stem`, then the path of the stage or block (`layer3`, `blocks.7`,
    `stages.2`), then `head`. A parameter that two modules share counts once. A normalisation layer
    that would stand alone belongs to the group before it.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    head = head_parameters(model)
    backbone = [name for name in sizes if name not in head]
    members = _by_matcher(model, backbone) or _by_features(model, backbone) or _by_child(backbone)
    members = _join_norms(members, _norm_parameters(model))
    names = _names([_without_auxiliary(group) for group in members], sizes)
    groups = [group_of(model, name, group) for name, group in zip(names, members, strict=True)]
    if head:
        groups.append(group_of(model, "head", head, is_head=True))
    return tuple(groups)


def group_of(model: nn.Module, name: str, members: Sequence[str], *, is_head: bool = False) -> LayerGroup:
    """Return the layer group made of some parameters of a network."""
    parameters = [model.get_parameter(member) for member in members]
    norms, matrices = _norm_parameters(model), _matrices(model)
    return LayerGroup(
        name,
        tuple(members),
        sum(parameter.numel() for parameter in parameters),
        is_head,
        tuple(_kind(member, norms, matrices) for member in members),
        tuple(tuple(parameter.shape) for parameter in parameters),
    )


def _kind(name: str, norms: Collection[str], matrices: Collection[str]) -> Kind:
    is_bias = name.rpartition(".")[2] == "bias"
    if name in norms:
        return "norm bias" if is_bias else "norm weight"
    if is_bias:
        return "bias"
    return "matrix" if name in matrices else "other"


def _matrices(model: nn.Module) -> frozenset[str]:
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return frozenset(f"{name}.weight".lstrip(".") for name, m in model.named_modules() if isinstance(m, layers))


def head_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifier, and its twins: the one of distillation, VOLO's on the patch tokens."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    classifiers = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    return tuple(module for module in (*classifiers, getattr(model, "aux_head", None)) if isinstance(module, nn.Module))


def head_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the parameter names of the head and of a pool of ours, which is as new as the head."""
    owned = {id(parameter) for module in head_modules(model) for parameter in module.parameters()}
    owned |= {id(parameter) for parameter in pool_parameters(model)}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in owned)


def _by_matcher(model: nn.Module, names: Sequence[str]) -> list[list[str]]:
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return []
    try:
        matched = group_with_matcher(((name, name) for name in names), matcher(coarse=True))
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError, re.error):
        return []
    groups = [matched[key] for key in sorted(matched) if matched[key]]
    if len(groups) < 2 or sum(map(len, groups)) != len(names):
        return []
    *blocks, last = groups
    if len(blocks) > 1 and max(map(names.index, last)) < min(map(names.index, blocks[1])):
        return [[*blocks[0], *last], *blocks[1:]]  # the matcher forgot it: a rope or position bias for all blocks
    return groups


def _by_features(model: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Return the names split before the first and after every module of `feature_info`, in order of registration."""
    info = getattr(model, "feature_info", None)
    modules = [entry["module"] for entry in _entries(info) if entry.get("module")]
    under = [[i for i, name in enumerate(names) if name.startswith(module + ".")] for module in modules]
    under = [places for places in under if places]
    if not under:
        return []
    ends = sorted({places[-1] for places in under} | {under[0][0] - 1, len(names) - 1} - {-1})
    starts = [0, *(end + 1 for end in ends[:-1])]
    groups = [list(names[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    return groups if len(groups) > 1 else []


def _entries(info: object) -> Iterable[dict[str, str]]:
    entries = getattr(info, "info", info)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _by_child(names: Sequence[str]) -> list[list[str]]:
    """Return one group per top-level child; where one child holds the whole network, per child of that."""
    for depth in range(1, 6):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        if len(groups) > 1:
            return list(groups.values())
    return [list(names)] if names else []


def _norm_parameters(model: nn.Module) -> frozenset[str]:
    return frozenset(
        f"{name}.{key}"
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__  # BatchNormAct2d, LayerNorm2d, RmsNorm and the like
        for key, _ in module.named_parameters(recurse=False)
    )


def _join_norms(groups: Sequence[list[str]], norms: frozenset[str]) -> list[list[str]]:
    joined: list[list[str]] = []
    for group in groups:
        if joined and norms.issuperset(group):
            joined[-1] = [*joined[-1], *group]
        else:
            joined.append(list(group))
    return joined


def _without_auxiliary(members: list[str]) -> list[str]:
    """Return a group without its auxiliary classifier (GoogLeNet's `aux1`), which outweighs the block it belongs to."""
    return [member for member in members if not member.startswith("aux")] or members


def _names(groups: Sequence[list[str]], sizes: dict[str, int]) -> list[str]:
    """Return a name for each group: the path its parameters share, `features.3` rather than `features.3.conv`.

    Where that is vague, the whole of that path, else its heaviest child.
    """
    shared = [_shared_path([member.split(".")[:-1] for member in group]) for group in groups]
    names = [_cut(path) for path in shared]
    for longer in (
        [".".join(path) for path in shared],
        [_heaviest_path(group, sizes, _has_digit) for group in groups],
        [_heaviest_path(group, sizes, str.isdigit) for group in groups],
    ):
        vague = _vague(names)
        names = [new if name in vague else name for name, new in zip(names, longer, strict=True)]
    if len(names) > 1:
        names[0] = "stem"
    return _unique(names)


def _vague(names: Sequence[str]) -> frozenset[str]:
    """Return the paths that cannot name one group of the backbone: empty, the head's, shared, or another's parent."""
    counts = Counter(names)
    parents = {name for name in counts for other in counts if other.startswith(f"{name}.")}
    return frozenset({"", "head"} | parents | {name for name, count in counts.items() if count > 1})


def _has_digit(part: str) -> bool:
    return any(character.isdigit() for character in part)


def _cut(path: Sequence[str]) -> str:
    for depth, part in enumerate(path, 1):
        if _has_digit(part):
            return ".".join(path[:depth])
    return ".".join(path)


def _heaviest_path(members: Sequence[str], sizes: dict[str, int], is_end: Callable[[str], bool]) -> str:
    """Return the path down through the children with the most weights, to the first numbered one."""
    path: list[str] = []
    while not any(map(is_end, path)):
        weight: Counter[str] = Counter()
        for member in members:
            parts = member.split(".")
            if parts[: len(path)] == path and len(parts) > len(path) + 1:
                weight[parts[len(path)]] += sizes[member]
        if not weight:
            break
        path.append(weight.most_common(1)[0][0])
    return ".".join(path) or members[0]


def _shared_path(paths: Sequence[list[str]]) -> list[str]:
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _unique(names: Sequence[str]) -> list[str]:
    seen = Counter({"head": 1})
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique
