"""The backbones as a user sees them: the list, one of them, its weights as a folder. Listing needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.backbone import catalogue, packaged
from finetune.backbone.catalogue import CatalogueEntry
from finetune.backbone.stored import place_of
from finetune.errors import BackboneError, RecipeError, ResourceError, did_you_mean
from finetune.types import Event, OnEvent, ignore
from finetune.whole import is_vacant, whole_folder

if TYPE_CHECKING:
    from finetune.backbone.load import Architecture

PLOTS = (".svg", ".png")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a backbone must be; None and empty ask for nothing. `max_params` in millions, `min_top1` in percent."""

    family: str | None = None
    max_params: float | None = None
    max_gmacs: float | None = None
    min_top1: float | None = None
    licences: tuple[str, ...] = ()
    is_here: bool = False

    def suits(self, entry: CatalogueEntry) -> bool:
        """Return whether an entry is what was asked for; unknown values satisfy no limit."""
        network = entry.network
        return (
            (self.family is None or network.family == self.family)
            and (self.max_params is None or network.num_parameters <= self.max_params * 1e6)
            and (self.max_gmacs is None or (entry.gmacs is not None and entry.gmacs <= self.max_gmacs))
            and (self.min_top1 is None or (entry.top1 is not None and entry.top1 >= self.min_top1))
            and (not self.licences or entry.licence in self.licences)
            and (not self.is_here or place_of(entry.weights) is not None)
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A backbone's folder, and whether it was there before."""

    name: str
    path: Path
    was_there: bool = False


def list_backbones(
    pattern: str = "", wish: Wish | None = None, *, is_front: bool = False, sort: catalogue.Sort | None = None
) -> list[CatalogueEntry]:
    """Return the backbones that match a pattern and a wish, the most accurate first.

    With `is_front`, the sets of weights that no other beats at their compute, the cheapest first.

    Raises:
        BackboneError: no backbone is called that.
        RecipeError: no such family or licence, or a top-1 that is no percent.
    """
    wish = wish or Wish()
    _check(wish)
    if not catalogue.search(pattern):
        raise BackboneError(
            f"no backbone is called {pattern!r}.{catalogue.nearest(pattern)}",
            hint="FILTER is a part of a name, or a pattern such as 'resnet*d'; `finetune backbones --all` lists all.",
        )
    if is_front:
        return catalogue.ordered(catalogue.front(filter(wish.suits, catalogue.matching(pattern))), sort or "gmacs")
    return catalogue.ordered(catalogue.search(pattern, keep=wish.suits), sort or "top1")


def facts(entry: CatalogueEntry) -> dict[str, Any]:
    """Return a line of the list as JSON."""
    network, place = entry.network, place_of(entry.weights)
    return {
        "name": entry.name,
        "weights": entry.full_name if entry.weights else None,
        "family": network.family,
        "origin": network.origin,
        "num_parameters": network.num_parameters,
        "num_head_parameters": network.num_head_parameters,
        "gmacs": entry.gmacs,
        "image_size": list(entry.image_size),
        "imagenet_top1_percent": entry.top1,
        "num_layer_groups": len(network.groups),
        "licence": entry.licence or None,
        "is_on_this_machine": place is not None,
    }


def show_backbone(name: str) -> dict[str, Any]:
    """Return everything that is known about one backbone, by its name with or without a tag.

    Raises:
        BackboneError: there is none of that name.
    """
    entry = catalogue.find(name)
    if entry is None:
        raise BackboneError(
            f"unknown backbone {name!r}.{catalogue.nearest(name)}", hint="`finetune backbones` lists them."
        )
    place = place_of(entry.weights)
    weights = entry.weights
    return {
        **facts(entry),
        "num_classes": weights.num_classes if weights else None,
        "source": _source(entry),
        "place": None if place is None else str(place),
        "layer_groups": list(entry.network.groups),
        "all_weights": [facts(CatalogueEntry(entry.network, each)) for each in entry.network.weights],
        "sources": catalogue.sources(),
    }


def plot_backbones(file: Path, pattern: str = "", wish: Wish | None = None) -> None:
    """Draw accuracy against compute as .svg or .png: every matching set of weights, and the front.

    Raises:
        RecipeError: another suffix. BackboneError: nothing with known accuracy. ResourceError: it cannot be written.
    """
    if file.suffix.lower() not in PLOTS:
        raise RecipeError(f"--plot {file}: the name must end in {' or '.join(PLOTS)}")
    every = filter((wish or Wish()).suits, catalogue.matching(pattern))
    known = [entry for entry in every if entry.top1 is not None and entry.gmacs and not _is_toy(entry)]
    if not known:
        raise BackboneError("the ImageNet accuracy of none of these is known", hint="Ask for more networks.")
    from finetune.report.accuracy import draw

    draw(known, file)


def fetch_backbones(names: Sequence[str], to: Path, *, on_event: OnEvent = ignore) -> list[Fetched]:
    """Write backbones with their weights as timm folders TO/NAME, for `--weights` and machines without a network.

    The network is asked only for what the hub's cache lacks; an existing folder is left alone.

    Raises:
        BackboneError: an unknown name, or weights that are neither here nor to be had.
        ResourceError: a folder is taken by something else, or cannot be written.
    """
    from finetune.backbone.load import architecture

    architectures = {name: architecture(name) for name in names}
    there = {name for name, of in architectures.items() if _is_there(of, _target(name, to))}
    done = []
    for name, of in architectures.items():
        if name not in there:
            on_event(Event.message(f"{name}: loading the weights"))
            _write_folder(of, _target(name, to))
        done.append(Fetched(name, _target(name, to), was_there=name in there))
    return done


def _is_toy(entry: CatalogueEntry) -> bool:
    """Return whether it is one of timm's networks for tests, whose accuracy would flatten the image."""
    return entry.name.startswith("test_")


def _check(wish: Wish) -> None:
    for word, what, known in (
        *((licence, "licence", catalogue.licences()) for licence in wish.licences),
        *([(wish.family, "family", catalogue.families())] if wish.family is not None else []),
    ):
        if word not in known:
            few = f" One of {', '.join(known)}." if len(known) < 30 else ""
            raise RecipeError(f"no {what} {word!r}.{did_you_mean(word, known) or few}")
    if wish.min_top1 is not None and not 1 < wish.min_top1 <= 100:
        raise RecipeError(f"--min-top1 {wish.min_top1:g}: give a percentage", hint="For example --min-top1 80.")


def _source(entry: CatalogueEntry) -> str | None:
    """Return where the weights come from, as a user would name it."""
    weights = entry.weights
    if weights is None:
        return None
    if weights.hub == catalogue.PACKAGE:
        return "this package"
    distribution = packaged.distribution_of(entry.full_name)
    if distribution:
        return f"hf-hub:{weights.hub}, or the package {distribution} (`{packaged.INSTALL}`)"
    return f"hf-hub:{weights.hub}" if weights.hub else f"torch.hub's checkpoints: {weights.file}"


def _target(name: str, to: Path) -> Path:
    return to / name.rpartition("/")[2].removeprefix("hf-hub:")


def _is_there(of: Architecture, target: Path) -> bool:
    """Return whether a folder already holds this backbone.

    Raises:
        ResourceError: it holds something else.
    """
    from finetune.backbone import folder

    if is_vacant(target):
        return False
    if folder.is_folder(target) and (target / folder.WEIGHTS).is_file():
        config, wanted = folder.read_config(target), catalogue.find(of.name)
        tag = wanted.weights.tag if wanted and wanted.weights else None
        if tag and (config.architecture, config.pretrained_cfg.get("tag")) == (of.registered, tag):
            return True
    raise ResourceError(f"{target} exists and is not {of.name}", hint="Remove it, or give another --to.")


def _write_folder(of: Architecture, target: Path) -> None:
    from finetune.backbone import folder
    from finetune.backbone.load import load

    backbone = load(of, num_classes=None)
    with whole_folder(target) as beside:
        folder.write(
            backbone.model,
            beside,
            architecture=of.registered,
            model_args=backbone.model_args,
            preprocessing=backbone.preprocessing,
            classes=(),
            num_classes=int(backbone.model.num_classes),  # type: ignore[arg-type]
            pretrained_cfg=dict(backbone.model.pretrained_cfg),  # type: ignore[arg-type]
        )
