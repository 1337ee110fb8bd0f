"""What is known about every backbone, from two tables that ship with the package: no torch, no timm, no network.

    networks()["resnet50"].weights[0].top1

tools/write_catalogue.py writes the tables. A row of networks.csv is an architecture; a row of
weights.csv is one set of pretrained weights for it (timm's tag), the default one first.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from finetune.errors import did_you_mean
from finetune.settings import EMBEDDED, EMBEDDED_FULL

NETWORKS = ("name", "family", "origin", "parameters", "head_parameters", "image_size", "gmacs", "groups")
WEIGHTS = ("name", "tag", "image_size", "gmacs", "num_classes", "licence", "hub", "file", "top1")
PACKAGE = "package"  # in the column hub: the weights ship with this package
REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
MIN_RUN = 3  # names that are worth folding

Sort = Literal["top1", "gmacs", "params", "name"]


@dataclass(frozen=True, slots=True)
class Weights:
    """One set of pretrained weights: its input (H, W), compute, classes and terms, and where it is kept.

    `hub` is a name on the model hub, "package", or empty; `file` is then a name among torch.hub's
    checkpoints. `top1` is ImageNet-1k val accuracy in percent at `image_size`, where it is published.
    """

    tag: str
    image_size: tuple[int, int]
    gmacs: float | None
    num_classes: int
    licence: str
    hub: str
    file: str
    top1: float | None


@dataclass(frozen=True, slots=True)
class Network:
    """One architecture as it is built by default: its size, its input (H, W), its layer groups, its weights.

    `num_parameters` counts the head that comes with it, too (`num_head_parameters`; one for ImageNet-12k
    or 21k as one for 1k); `gmacs` are billions of multiply-adds for one image.
    """

    name: str
    family: str
    origin: str  # the package that builds it: timm or finetune
    num_parameters: int
    num_head_parameters: int
    image_size: tuple[int, int]
    gmacs: float | None
    folded_groups: str
    weights: tuple[Weights, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of its layer groups in a run, with a head where it can have one, from input to output."""
        return unfold(self.folded_groups)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A line of the list: a network, with the set of weights asked for, if it has any."""

    network: Network
    weights: Weights | None = None

    @property
    def name(self) -> str:
        """What --backbone takes: with the tag only where the weights are not the default ones."""
        is_default = self.weights is None or self.weights == self.network.weights[0]
        return self.network.name if is_default else self.full_name

    @property
    def full_name(self) -> str:
        """The name with the tag of the weights."""
        return self.network.name if self.weights is None else f"{self.network.name}.{self.weights.tag}"

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.weights or self.network).image_size

    @property
    def gmacs(self) -> float | None:
        return (self.weights or self.network).gmacs

    @property
    def top1(self) -> float | None:
        return self.weights.top1 if self.weights else None

    @property
    def licence(self) -> str:
        return self.weights.licence if self.weights else ""


@cache
def networks() -> dict[str, Network]:
    """Return every network of the tables by name, except those that the installed timm does not have."""
    weights: dict[str, list[Weights]] = {}
    for row in _rows("weights.csv"):
        weights.setdefault(row["name"], []).append(
            Weights(
                tag=row["tag"],
                image_size=_size(row["image_size"]),
                gmacs=_number(row["gmacs"]),
                num_classes=int(row["num_classes"]),
                licence=row["licence"],
                hub=f"timm/{row['name']}.{row['tag']}" if row["hub"] == "timm" else row["hub"],
                file=row["file"],
                top1=_number(row["top1"]),
            )
        )
    is_there = _is_installed()
    return {
        row["name"]: Network(
            name=row["name"],
            family=row["family"],
            origin=row["origin"],
            num_parameters=int(row["parameters"]),
            num_head_parameters=int(row["head_parameters"]),
            image_size=_size(row["image_size"]),
            gmacs=_number(row["gmacs"]),
            folded_groups=row["groups"],
            weights=tuple(weights.get(row["name"], ())),
        )
        for row in _rows("networks.csv")
        if is_there(row["name"], row["origin"])
    }


def entries() -> Iterator[CatalogueEntry]:
    """Yield every network with each of its sets of weights; a network without weights once."""
    for network in networks().values():
        yield from (CatalogueEntry(network, weights) for weights in network.weights or (None,))


def find(name: str) -> CatalogueEntry | None:
    """Return the entry of a name, with or without a tag; None where there is none."""
    name = EMBEDDED_FULL if name == EMBEDDED else name
    bare, _, tag = name.partition(".")
    network = networks().get(bare)
    if network is None or (not tag and not network.weights):
        return None if network is None or tag else CatalogueEntry(network)
    return next(
        (CatalogueEntry(network, weights) for weights in network.weights if not tag or weights.tag == tag), None
    )


def search(pattern: str = "", *, keep: Callable[[CatalogueEntry], bool] = lambda entry: True) -> list[CatalogueEntry]:
    """Return what a pattern finds (a glob, or a part of the name) and `keep` keeps, one entry per network.

    The entry is for the default weights or, if those do not match or are not kept, for the first that do. A
    pattern with a dot is about weights: every set that matches is an entry.
    """
    kept: dict[str, CatalogueEntry] = {}
    for entry in matching(pattern):
        key = entry.full_name if "." in pattern else entry.network.name
        if key not in kept and keep(entry):
            kept[key] = entry
    return list(kept.values())


def matching(pattern: str) -> Iterator[CatalogueEntry]:
    """Yield every network with each of its weights whose name a pattern matches."""
    for entry in entries():
        names = (entry.full_name,) if "." in pattern else (entry.network.name, entry.full_name)
        if any(_matches(name, pattern) for name in names):
            yield entry


def ordered(chosen: Iterable[CatalogueEntry], by: Sort) -> list[CatalogueEntry]:
    """Return entries sorted: the most accurate first, else the smallest; unknown values come last."""
    keys: dict[Sort, Callable[[CatalogueEntry], float | None]] = {
        "top1": lambda entry: None if entry.top1 is None else -entry.top1,
        "gmacs": lambda entry: entry.gmacs,
        "params": lambda entry: entry.network.num_parameters,
        "name": lambda entry: 0,
    }
    values = [(keys[by](entry), entry) for entry in chosen]
    values.sort(key=lambda pair: (pair[0] is None, pair[0] or 0, pair[1].full_name))
    return [entry for _, entry in values]


def front(candidates: Iterable[CatalogueEntry]) -> list[CatalogueEntry]:
    """Return the entries that no other beats (none as cheap or cheaper is as accurate), the cheapest first."""
    known = [
        (entry.gmacs, -entry.top1, entry) for entry in candidates if entry.gmacs is not None and entry.top1 is not None
    ]
    best: list[CatalogueEntry] = []
    for _, _, entry in sorted(known, key=lambda point: (point[0], point[1], point[2].full_name)):
        if not best or (entry.top1 or 0) > (best[-1].top1 or 0):
            best.append(entry)
    return best


def families() -> list[str]:
    """Return the families (the module that builds a network), in order."""
    return sorted({network.family for network in networks().values()})


def licences() -> list[str]:
    """Return every licence of some weights, in order."""
    return sorted({entry.licence for entry in entries() if entry.licence})


def nearest(name: str, others: Iterable[str] = ()) -> str:
    """Return " Did you mean ...?" for an unknown name: near networks, or near weights of a known network."""
    bare, dot, _ = name.partition(".")
    if dot and bare in networks():
        names = [f"{bare}.{weights.tag}" for weights in networks()[bare].weights]
    else:
        name, names = bare, list(dict.fromkeys([EMBEDDED, *networks(), *others]))
    longer = sorted((other for other in names if len(name) > 2 and other.startswith(name)), key=len)
    return did_you_mean(name, longer[:3], cutoff=0.0) if longer else did_you_mean(name, names)


def sources() -> dict[str, str]:
    """Return the sources of the facts: of the networks, and of the top-1 figures."""
    return {"networks": _about("networks.csv")["source"], "top1": _about("weights.csv")["source"]}


def fold(names: Sequence[str]) -> str:
    """Return names as one short text: `stem blocks.0..11 head`."""
    words: list[str] = []
    at = 0
    while at < len(names):
        length = _run(names[at:])
        words.append(names[at] if length < MIN_RUN else f"{names[at]}..{_numbered(names[at + length - 1])[1]}")
        at += 1 if length < MIN_RUN else length
    return " ".join(words)


def unfold(text: str) -> tuple[str, ...]:
    """Return the names in a text made by `fold`."""
    names: list[str] = []
    for word in text.split():
        first, dots, last = word.partition("..")
        path, start = _numbered(first)
        names += [f"{path}{number}" for number in range(start, int(last) + 1)] if dots else [word]
    return tuple(names)


def _run(names: Sequence[str]) -> int:
    path, start = _numbered(names[0])
    length = 1
    while start >= 0 and length < len(names) and names[length] == f"{path}{start + length}":
        length += 1
    return length


def _numbered(name: str) -> tuple[str, int]:
    path = name.rstrip("0123456789")
    return path, int(name[len(path) :] or -1)


def _matches(name: str, pattern: str) -> bool:
    is_glob = any(sign in pattern for sign in "*?[")
    return fnmatchcase(name, pattern.lower()) if is_glob else pattern.lower() in name


def _is_installed() -> Callable[[str, str], bool]:
    """Return a test for a network's name and origin: does the installed timm have it?

    With the timm that the tables were made with there is nothing to look up. Another one is not
    imported, which takes seconds: its registered names are read from its source.
    """
    try:
        installed = importlib.metadata.version("timm")
        spec = importlib.util.find_spec("timm")
    except (importlib.metadata.PackageNotFoundError, ImportError):
        return lambda name, origin: True
    if installed == _about("networks.csv")["timm"] or spec is None or spec.origin is None:
        return lambda name, origin: True
    names = registered(Path(spec.origin).parent / "models")
    return lambda name, origin: origin != "timm" or name in names


def registered(folder: Path) -> frozenset[str]:
    """Return the names of the networks that a folder of source registers with timm."""
    return frozenset(name for file in folder.glob("*.py") for name in REGISTERED.findall(file.read_text("utf-8")))


@cache
def _lines(table: str) -> tuple[str, ...]:
    return tuple((files("finetune") / "backbone" / "tables" / table).read_text(encoding="utf-8").splitlines())


def _about(table: str) -> dict[str, str]:
    comments = (line.removeprefix("# ") for line in _lines(table) if line.startswith("#"))
    return {key: value for key, _, value in (line.partition(": ") for line in comments)}


def _rows(table: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(line for line in _lines(table) if not line.startswith("#"))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _number(text: str) -> float | None:
    return float(text) if text else None
