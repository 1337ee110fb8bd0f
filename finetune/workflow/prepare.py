"""From a recipe to everything settled: data, backbone, evidence, verdict, phases, resolved recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.backbone import automatic
from finetune.backbone import load as backbones
from finetune.backbone.load import Architecture, Backbone
from finetune.backbone.staged import StagedClassifier, check_stage, stages
from finetune.backbone.weights import refuse_random
from finetune.checkpoint import run_folder
from finetune.data import balance, checks, sources, split
from finetune.data.pixels import PixelCache, opened_or_none
from finetune.device import in_fast_layout, reserve_workspace, resolve_device, resolve_precision
from finetune.errors import BackboneError, DataError, RecipeError
from finetune.settings import EMBEDDED, Recipe
from finetune.strategy.matrix import decide
from finetune.strategy.strategies import (
    SGD_FACTOR,
    Choice,
    epochs_for,
    is_full,
    is_pretrained,
    phases,
    strategy,
    taking,
)
from finetune.train.phases import linear_head
from finetune.types import Event, Evidence, Manifest, OnEvent, Phase, Verdict, ignore
from finetune.workflow.evidence import Tapped, measure

BATCHES = {2000: 64, 256: 32, 64: 16, 0: 8}  # from so many train images on, a step takes so many


@dataclass(slots=True)
class Prepared:
    """A run before its first step: nothing is left to decide."""

    recipe: Recipe
    manifest: Manifest
    backbone: Backbone
    phases: tuple[Phase, ...]
    evidence: Evidence | None
    verdict: Verdict | None
    pixels: PixelCache | None = None
    tapped: Tapped | None = None  # what the evidence has computed already
    notes: tuple[str, ...] = ()


def recipe_of(
    base: Recipe | str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Yield a recipe from a file or the defaults, with settings by flag name and by dotted key on top.

    Naming a number of a strategy names the strategy: `top_k` alone means top-k, `probe_at` alone
    linear-probe.

    Raises:
        RecipeError: what is not allowed, all of it at once.
    """
    changes: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        if value is not None:
            changes[recipes.ALIASES.get(name, name)] = str(value) if isinstance(value, Path) else value
    changes.update(overrides or {})
    if isinstance(base, Recipe):
        flat = {key: getattr(getattr(base, key.split(".")[0]), key.split(".")[1]) for key in recipes.fields()}
        recipe = recipes.load(overrides={**flat, **changes})
    else:
        recipe = recipes.load(base, overrides=changes)
    _check_numbers(recipe, changes)
    for number in ("top_k", "probe_at"):  # names the strategy that it is of, where none is named
        if changes.get(f"strategy.{number}", "auto") != "auto" and recipe.strategy.name == "auto":
            recipe = recipes.update(recipe, {"strategy.name": taking(number)[0]})
    return recipe


def prepare(recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore) -> Prepared:
    """Read the data, load the backbone, decide what "auto" leaves open, and settle every number.

    `manifest` is the data where it was read before.

    Raises:
        DataError, BackboneError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    of = architecture_of(recipe)
    resolve_device(recipe.train.device)
    listed = manifest or list_data(recipe)
    backbone = load_backbone(recipe, of, num_classes=len(listed.classes))
    if manifest is None:
        backbone, manifest, pixels = read_for(recipe, listed, backbone, on_event=on_event)
    else:
        backbone = at_range(backbone, manifest)
        pixels = pixels_of(recipe, manifest, backbone)
    if backbone.weights is not None:
        on_event(Event("message", {"text": f"{of.label}: {backbone.weights.sentence()}"}))
    evidence = verdict = tapped = None
    if recipe.strategy.name == "auto":
        evidence, tapped = measure(recipe, manifest, backbone, pixels, on_event=on_event)
        verdict = decide(evidence, assume=recipe.strategy.assume.split(","))
        on_event(Event("message", {"text": verdict.line}))
        if not of.pretrained:
            text = "the backbone has random weights, of which the evidence tells little: --strategy scratch trains it"
            on_event(Event("warning", {"text": text}))
    recipe = resolve(recipe, manifest, backbone, verdict)
    planned = plan_phases(recipe, backbone)
    refuse_random(backbone.weights, backbone.groups, trained=planned[0].plan.trained)
    for remark in remarks(recipe, backbone):
        on_event(Event("warning", {"text": remark}))
    model, notes = with_head(recipe, backbone), data_notes(manifest)
    return Prepared(recipe, manifest, model, planned, evidence, verdict, pixels, tapped, notes)


def with_backbone(recipe: Recipe, *, on_event: OnEvent = ignore) -> Recipe:
    """Return the recipe with a backbone by name in place of auto, and say which where it is not the first choice.

    What several runs share, or what is gone on with later, is chosen once: by then the hub may answer otherwise.
    """
    backbone = recipe.backbone
    if backbone.name != "auto" or backbone.weights != "none":
        return recipe
    chosen = automatic.chosen(is_pretrained=_is_pretrained(recipe))
    if chosen.line:
        on_event(Event("warning" if chosen.name == EMBEDDED else "message", {"text": chosen.line}))
    return recipes.update(recipe, {"backbone.name": chosen.name})


def architecture_of(recipe: Recipe) -> Architecture:
    """Yield the architecture that a recipe names."""
    weights = None if recipe.backbone.weights == "none" else Path(recipe.backbone.weights).expanduser()
    name, arguments = recipe.backbone.name, recipe.backbone.model_args
    return backbones.architecture(name, weights=weights, pretrained=_is_pretrained(recipe), model_args=arguments)


def _is_pretrained(recipe: Recipe) -> bool:
    return recipe.backbone.pretrained and is_pretrained(recipe.strategy.name)


def load_backbone(recipe: Recipe, of: Architecture, *, num_classes: int) -> Backbone:
    """Load the backbone of a recipe with a fresh head, on its device."""
    size = recipe.backbone.image_size
    backbone = backbones.load(
        of, num_classes=num_classes, image_size=None if size == "auto" else size, seed=recipe.train.seed
    )
    if not any(group.is_head for group in backbone.groups):
        raise BackboneError(f"{of.name} has no classifier that could be trained")
    device = resolve_device(recipe.train.device)
    if recipe.train.deterministic:
        reserve_workspace(device)  # before CUDA is used
    in_fast_layout(backbone.model, device)
    return with_range(backbone, range_named(recipe))


def range_named(recipe: Recipe) -> tuple[float, float] | None:
    """Return what a recipe says is black and white in images deeper than 8 bits; None where the data is to tell."""
    return None if recipe.data.value_range == "auto" else recipe.data.value_range


def with_range(backbone: Backbone, value_range: tuple[float, float] | None) -> Backbone:
    """Return the backbone with what is black and white in the images that it is shown."""
    return replace(backbone, preprocessing=replace(backbone.preprocessing, value_range=value_range))


def at_range(backbone: Backbone, manifest: Manifest) -> Backbone:
    """Return the backbone with the range of its data, where the recipe has not named one."""
    if backbone.preprocessing.value_range or not manifest.value_range:
        return backbone
    return with_range(backbone, manifest.value_range)


def read_for(
    recipe: Recipe, listed: Manifest, backbone: Backbone, *, on_event: OnEvent = ignore
) -> tuple[Backbone, Manifest, PixelCache | None]:
    """Read, scan and split the data of a recipe for a backbone, say what was found, and fill the pixel cache.

    Images deeper than 8 bits are kept in a second pass: only after the first is it known what is white.
    """
    pixels = pixels_of(recipe, listed, backbone)
    manifest = read_and_tell(recipe, listed, pixels=pixels, on_event=on_event)
    ranged = at_range(backbone, manifest)
    if ranged is not backbone:
        pixels = pixels_of(recipe, manifest, ranged)
        checks.fill(manifest, pixels, on_event=on_event)
    return ranged, manifest, pixels


def skeleton_of(recipe: Recipe, *, num_classes: int | None) -> Backbone:
    """Build the network of a recipe without memory for its weights (None keeps its own number of classes)."""
    size = recipe.backbone.image_size
    of = architecture_of(recipe)
    return backbones.skeleton(of, num_classes=num_classes, image_size=None if size == "auto" else size)


def list_data(recipe: Recipe, *, is_to_train: bool = True) -> Manifest:
    """Read which images and classes the data of a recipe has, without opening a picture.

    Raises:
        DataError, RecipeError: none that can be read; or, where it is to train on, too few classes.
    """
    data = recipe.data
    if not data.path:
        raise RecipeError(
            "data.path is empty: where are the images?",
            hint="Add --data DIR. No data at hand? `finetune sample DIR` draws some.",
        )
    place = Path(data.path).expanduser().resolve()
    if not run_folder.is_utf8(str(place)):
        raise DataError(f"the name of {place} is not UTF-8: the recipe of a run cannot hold it", hint="Rename it.")
    return sources.read(
        data.path,
        image_column=data.image_column,
        label_column=data.label_column,
        split_column=data.split_column,
        group_by=data.group_by,
        layout=data.layout,
        needs_two_classes=is_to_train,
        needs_train=is_to_train,
    )


def pixels_of(recipe: Recipe, manifest: Manifest, backbone: Backbone) -> PixelCache | None:
    """Yield the pixel cache of a recipe's data at its backbone's size, where it is wanted and fits."""
    return opened_or_none(
        manifest.root,
        preprocessing=backbone.preprocessing,
        num_images=len(manifest.samples),
        settings=recipe.cache,
    )


def read_data(
    recipe: Recipe, listed: Manifest | None = None, *, pixels: PixelCache | None = None, on_event: OnEvent = ignore
) -> Manifest:
    """Read, scan and split the data of a recipe; what the scan decodes fills the pixel cache."""
    manifest = checks.scan(
        listed or list_data(recipe), pixels=pixels, value_range=range_named(recipe), on_event=on_event
    )
    return split.assign(manifest, val=recipe.split.val, test=recipe.split.test, seed=recipe.split.seed)


def read_and_tell(
    recipe: Recipe, listed: Manifest, *, pixels: PixelCache | None = None, on_event: OnEvent = ignore
) -> Manifest:
    """Read, scan and split the data of a recipe, and say what was found."""
    manifest = read_data(recipe, listed, pixels=pixels, on_event=on_event)
    on_event(Event("message", {"text": describe_data(manifest)}))
    for note in data_notes(manifest):
        on_event(Event("warning", {"text": note}))
    return manifest


def data_notes(manifest: Manifest) -> tuple[str, ...]:
    """Return what a user should know of their data before anything is trained on it."""
    return (
        *manifest.notes,
        *checks.conflicts(manifest),
        *balance.thin(manifest),
        *balance.outweighed(manifest),
    )


def describe_data(manifest: Manifest) -> str:
    """Yield one line about a data set."""
    counts = [f"{len(manifest.split(name))} {name}" for name in ("train", "val", "test") if manifest.split(name)]
    text = f"{len(manifest.samples)} images in {len(manifest.classes)} classes: {', '.join(counts)}"
    return "; ".join((text, *problem_notes(manifest)))


def problem_notes(manifest: Manifest) -> Iterator[str]:
    """Say how many files cannot be used, and why the first cannot."""
    if manifest.problems:
        first = manifest.problems[0]
        yield f"{len(manifest.problems)} left out, e.g. {first.file} ({first.reason})"


def resolve(recipe: Recipe, manifest: Manifest, backbone: Backbone, verdict: Verdict | None) -> Recipe:
    """Yield the recipe with every "auto" settled that changes what is computed."""
    num_train = len(manifest.split("train"))
    recipe = resolve_numbers(recipe, backbone, verdict, num_train=num_train)
    weights = None if backbone.architecture.is_embedded else backbone.architecture.weights
    device = resolve_device(recipe.train.device)
    changes = {
        "data.path": str(Path(recipe.data.path).expanduser().resolve()),
        "data.value_range": backbone.preprocessing.value_range or "auto",
        "backbone.name": backbone.architecture.name,
        "backbone.weights": str(weights.resolve()) if weights else "none",
        "backbone.image_size": backbone.preprocessing.image_size[0],
        "train.precision": resolve_precision(recipe.train.precision, device),
    }
    return recipes.update(recipe, changes)


def wanted_batch(num_train: int) -> int:
    """Yield the batch size for so many train images."""
    return next(size for least, size in BATCHES.items() if num_train >= least)


def resolve_numbers(
    recipe: Recipe, backbone: Backbone, verdict: Verdict | None, *, num_train: int | None = None
) -> Recipe:
    """Yield the recipe with the strategy and its numbers settled; needs no data but for a verdict."""
    name = verdict.strategy if verdict else recipe.strategy.name
    numbers = strategy(name)
    batch_size = _or(recipe.train.batch_size, wanted_batch(num_train) if num_train else "auto")
    usual = epochs_for(name, num_train, int(batch_size)) if num_train else numbers.epochs
    epochs = _or(recipe.train.epochs, usual)
    top_k = _or(recipe.strategy.top_k, (verdict and verdict.top_k) or numbers.top_k or "auto")
    probe_at = _or(recipe.strategy.probe_at, (verdict and verdict.probe_at) or _last(backbone))
    lr = numbers.lr * (SGD_FACTOR if recipe.optim.name == "sgd" else 1.0)
    changes = {
        "strategy.name": name,
        "strategy.top_k": top_k,
        "strategy.probe_at": check_stage(probe_at, backbone.groups) if "probe_at" in numbers.takes else "auto",
        "train.batch_size": batch_size,
        "train.epochs": epochs,
        "optim.lr": _or(recipe.optim.lr, lr),
        "optim.weight_decay": _or(recipe.optim.weight_decay, numbers.weight_decay),
        "optim.layer_decay": _or(recipe.optim.layer_decay, numbers.layer_decay),
    }
    return recipes.update(recipe, changes)


def plan_phases(recipe: Recipe, backbone: Backbone) -> tuple[Phase, ...]:
    """Yield the phases of a resolved recipe."""
    groups = backbone.groups
    if is_staged(recipe, backbone):
        deepest = stages(str(recipe.strategy.probe_at), groups)[-1]
        cut = [group.name for group in groups].index(deepest)
        groups = (*groups[: cut + 1], groups[-1])
    return phases(choice_of(recipe, backbone), groups)


def choice_of(recipe: Recipe, backbone: Backbone) -> Choice:
    """Yield what a resolved recipe says of its strategy."""
    return Choice(
        recipe.strategy.name,
        epochs=int(recipe.train.epochs),
        lr=float(recipe.optim.lr),
        layer_decay=float(recipe.optim.layer_decay),
        top_k=None if recipe.strategy.top_k == "auto" else recipe.strategy.top_k,
        reinit=recipe.strategy.reinit,
        updates_norms=recipe.strategy.norm_statistics == "updated",
        has_linear_head=is_staged(recipe, backbone) or linear_head(backbone.model) is not None,
    )


def remarks(recipe: Recipe, backbone: Backbone) -> Iterator[str]:
    """Say what a user may not expect of a resolved recipe."""
    choice = choice_of(recipe, backbone)
    if is_full(choice, backbone.groups):
        yield f"top-k {choice.top_k} is all layer groups of this backbone: the same as full"
    if (
        choice.reinit
        and is_pretrained(choice.strategy)
        and any(not phase.plan.frozen for phase in plan_phases(recipe, backbone))
    ):
        yield f"{choice.strategy} with reinit re-initialises every layer: this is training from scratch"
    if not choice.has_linear_head and choice.strategy == "linear-probe":
        yield "the head of this network is more than one linear layer: it is trained by gradient, not solved"


def is_staged(recipe: Recipe, backbone: Backbone) -> bool:
    """Tell whether a resolved recipe asks for a probe at an inner layer group."""
    return recipe.strategy.name in taking("probe_at") and recipe.strategy.probe_at not in ("auto", _last(backbone))


def with_head(recipe: Recipe, backbone: Backbone) -> Backbone:
    """Yield the backbone as it is, or cut at the inner layer group that a probe is to stand on."""
    return cut_at(backbone, str(recipe.strategy.probe_at)) if is_staged(recipe, backbone) else backbone


def cut_at(backbone: Backbone, at: str) -> Backbone:
    """Yield the backbone up to a layer group, with a linear head there."""
    num_classes: int = backbone.model.num_classes  # type: ignore[assignment]
    size = backbone.preprocessing.image_size
    staged = StagedClassifier(backbone.model, backbone.groups, at=at, num_classes=num_classes, image_size=size)
    return replace(backbone, model=staged, groups=staged.layer_groups(backbone.groups))


def _last(backbone: Backbone) -> str:
    return [group.name for group in backbone.groups if not group.is_head][-1]


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value == "auto" else value


def _check_numbers(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Refuse a number that the named strategy would not use: nothing is silently ignored."""
    name = recipe.strategy.name
    problems = []
    users = {"top_k": ("auto", *taking("top_k")), "probe_at": ("auto", *taking("probe_at")), "assume": ("auto", "race")}
    for number, of in users.items():
        if changes.get(f"strategy.{number}", "auto") not in ("auto", "none") and name not in of:
            only = " and ".join(map(repr, [user for user in of if user != "auto" or number == "assume"]))
            problems.append(f"strategy.{number} has no meaning with strategy.name = {name!r}, only with {only}")
    if problems:
        raise RecipeError(problems)
