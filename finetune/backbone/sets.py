"""Sets of weights in one file: raw and averaged, teacher and student, in containers or under prefixes.

A container becomes a prefix of its keys (`model_ema.conv1.weight`), so that both are one thing here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, strided

from finetune.errors import BackboneError

PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.")
# Where files keep a set of weights; of equals the averaged ones are taken first, as timm takes them.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "model_state_dict", "weights", "student",
)  # fmt: skip
AVERAGED = frozenset({"ema", "averaged", "swa", "teacher"})
MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Matched:
    """The set that was taken, its keys as the network has them, and the names of the sets that were not."""

    tensors: dict[str, Tensor]
    name: str = ""
    others: tuple[str, ...] = ()

    def remarks(self, source: str) -> list[str]:
        """Return which set was taken and how to name another, where there are several."""
        file, mark, named = source.rpartition("#")
        file, prefix = (file, f"{named}.") if mark else (source, "")
        others = ", ".join(f"{Path(file).name}#{prefix}{name}" for name in self.others if name)
        if not self.others:
            return []
        other = f" (--weights takes the other as {others})" if others else ""
        return [f"of its sets of weights {self.name or 'the one without a name'}{other}"]


def flat(content: Any) -> dict[str, dict[str, Tensor]]:
    """Return the sets of weights of a file by name, "" for what is in no container."""
    return dict(_sets(content, ""))


def of_set(sets: Mapping[str, Mapping[str, Tensor]], named: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors of the named set; without a name those of all sets, prefixed with their names if several.

    Raises:
        BackboneError: there are no tensors, or no set of that name.
    """
    if not sets:
        raise BackboneError(f"{file} holds no tensors by name")
    keyed = {_join(name, key): tensor for name, tensors in sets.items() for key, tensor in tensors.items()}
    only = dict(next(iter(sets.values()))) if len(sets) == 1 else keyed
    if not named:
        return only
    chosen = _under(keyed, f"{named}.") or _under(only, f"{named}.")
    if not chosen:
        tops = dict.fromkeys(key.split(".")[0] for key in only)
        names = [name for name in sets if name] if len(sets) > 1 else [top for top in tops if _is_set(top)]
        raise BackboneError(
            f"{file} holds no set of weights {named!r}",
            hint=f"It holds {', '.join(names)}." if names else "It holds one set only: leave the # out.",
        )
    return chosen


def matched(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Matched:
    """Return the tensors under the prefix that has most of the network's keys, with keys as the network has them.

    Among prefixes with equally many, an averaged set comes first. What is under no set keeps its key, but for the usual
    prefixes of wrappers, and so does a whole file whose keys have another layout, which timm may know.
    """
    counts = _counts_of(tensors, own)
    most = max(counts.values(), default=0)
    if most * 4 < sum(map(is_counted, own)):
        return _in_another_layout(tensors, own)
    best = min((prefix for prefix, count in counts.items() if count == most), key=lambda name: (_rank(name), len(name)))
    others = [p for p, count in counts.items() if p != best and count * 2 >= most and not p.startswith(best or "?")]
    left = {k: v for k, v in tensors.items() if not k.startswith((best or "?", *(p for p in others if p)))}
    taken = _under(tensors, best) if best else {}
    rest = left if best == "" else {_bare(key, own): tensor for key, tensor in left.items() if key not in own}
    return Matched({**rest, **taken}, best.rstrip("."), tuple(prefix.rstrip(".") for prefix in others))


def _sets(content: Any, name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or name.count(".") >= MAX_DEPTH:
        return
    tensors = {str(k): _dense(v) for k, v in content.items() if isinstance(v, Tensor)}
    if tensors and (not name or name.split(".")[-1] in CONTAINERS or any("." in key for key in tensors)):
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and not key.startswith("optim"):  # its state has tensors of the same names
            yield from _sets(value, _join(name, key))


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == strided else tensor.to_dense()


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _counts_of(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for key in filter(is_counted, tensors):
        parts = key.split(".")
        counts.update(
            "".join(f"{p}." for p in parts[:cut]) for cut in range(len(parts)) if ".".join(parts[cut:]) in own
        )
    return counts


def is_counted(key: str) -> bool:
    """Return whether a key counts where keys are matched: how many batches a norm has seen does not."""
    return not key.endswith("num_batches_tracked")  # averages of parameters often lack it


def _in_another_layout(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Matched:
    """Return the first set by its names alone, without the prefix that all of its keys share."""
    name = ""
    others: list[str] = []
    while True:
        tops = list(dict.fromkeys(key.split(".")[0] for key in tensors))
        sets = sorted(filter(_is_set, tops), key=_rank)
        top = tops[0] if len(tops) == 1 else (sets[0] if sets else "")
        inner = _under(tensors, f"{top}.") if top else {}
        if not inner:
            return Matched({_bare(key, own): tensor for key, tensor in tensors.items()}, name, tuple(others))
        others += [_join(name, other) for other in sets if other != top]
        name, tensors = _join(name, top), inner


def _is_set(name: str) -> bool:
    return name in CONTAINERS or _is_averaged(name)


def _is_averaged(name: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[._]", name))


def _rank(name: str) -> tuple[bool, int]:
    places = [CONTAINERS.index(part) for part in name.split(".") if part in CONTAINERS]
    return not _is_averaged(name), min(places, default=len(CONTAINERS))


def _bare(key: str, own: Mapping[str, Tensor]) -> str:
    while key not in own:
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            break
        key = key[len(prefix) :]
    return key
