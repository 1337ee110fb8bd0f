"""A finished run loaded from its folder, and what a run writes there at its end: the model and tables."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune import recipe as recipes
from finetune.backbone import folder as timm_folder
from finetune.backbone import load as backbones
from finetune.backbone.adapted import cut_at, with_depth, with_range
from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier
from finetune.bands import Bands
from finetune.checkpoint import run_folder
from finetune.checkpoint.contents import PROBLEMS
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import written_beside
from finetune.csv_cells import guarded_cell
from finetune.data import split
from finetune.data.places import root_of
from finetune.device import Compute, in_fast_layout, resolve_device
from finetune.errors import CheckpointError, DataError, RecipeError
from finetune.images.stores import address_of
from finetune.settings import Recipe
from finetune.tasks import AnyTarget, Task
from finetune.types import EpochLine, Manifest, Split, to_json
from finetune.whole import write_text
from finetune.wording import first_line

GUESS_COLUMNS = ("file", "split", "class", "predicted")  # of predictions.csv; those of probabilities follow
SURE_COLUMNS = ("confidence", "second", "confidence of second")  # of one class


@dataclass(slots=True)
class SavedRun:
    """A finished run, loaded: its model with class names and preprocessing, its recipe."""

    folder: RunFolder
    recipe: Recipe
    backbone: Backbone
    classes: tuple[str, ...]
    compute: Compute
    task: Task = "classify"
    thresholds: tuple[float, ...] = ()  # of several classes: the probability from which on each is said
    deviation: float | None = None  # of the numbers of train, where a number is estimated

    def manifest(self) -> Manifest:
        """Return the data that the run was trained on."""
        return trained_on(self.folder, self.recipe, self.classes, bands=self.backbone.preprocessing.bands)


def load_run(path: str | Path, *, device: str = "auto") -> SavedRun:
    """Return a finished run with its model, loaded.

    Raises:
        CheckpointError: no run folder, or a run that has no model yet.
    """
    folder = run_folder.open_finished(path)
    recipe = _on(resolve_device(device), recipes.update(recipes.load(folder.recipe), {"train.device": device}), folder)
    return _loaded(folder, folder.model, recipe)


def load_timm(path: str | Path, *, device: str = "auto") -> SavedRun:
    """Return the model of a timm folder that names its classes, as if a run had left it; its data is unknown.

    Raises:
        BackboneError: it cannot be loaded. CheckpointError: it does not say what its classes are called.
    """
    recipe = recipes.update(Recipe(), {"train.device": device})
    return _loaded(RunFolder(Path(path)), Path(path), recipe, labels=_labels_beside(Path(path)))


def _loaded(folder: RunFolder, model: Path, recipe: Recipe, *, labels: tuple[str, ...] = ()) -> SavedRun:
    """Return the loaded model of a timm folder; `labels` are its classes if its config.json names none.

    Raises:
        CheckpointError: it cannot be used, or has no names of classes.
    """
    compute = Compute.of(recipe.train)
    config = timm_folder.read_config(model)
    classes = config.classes or labels
    if not classes:
        raise CheckpointError(
            f"{model / timm_folder.CONFIG} does not say what its classes are called",
            hint=f'Name them in it: "label_names": [...], or one a line in {model / timm_folder.LABELS}.',
        )
    of = replace(backbones.architecture("auto", weights=model), pretrained=False)
    backbone = with_range(backbones.load(of, num_classes=len(classes)), config.value_range)
    backbone = with_depth(backbone, config.depth)
    try:
        backbone = cut_at(backbone, config.probe_at) if config.probe_at else backbone
    except RecipeError as error:
        raise CheckpointError(
            f"{model / timm_folder.CONFIG} names a layer group that is none: {config.probe_at}"
        ) from error
    weights = model / timm_folder.WEIGHTS
    try:
        backbone.model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights} cannot be used: {first_line(error)}") from error
    in_fast_layout(backbone.model, compute.device).eval()
    of_task = (config.task, config.thresholds, config.deviation)
    return SavedRun(folder, recipe, backbone, classes, compute, *of_task)


def _labels_beside(model: Path) -> tuple[str, ...]:
    """Return the class names in the labels.txt of a timm folder; none if there is no such file."""
    try:
        return tuple((model / timm_folder.LABELS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return ()


def _on(device: torch.device, recipe: Recipe, folder: RunFolder) -> Recipe:
    """Return the recipe of a run for a device: on a CPU, what was settled for a GPU is computed in float32.

    A run computed on a CPU keeps its arithmetic.
    """
    if device.type != "cpu" or recipe.train.precision == "float32":
        return recipe
    environment = run_folder.read_json(folder.environment) if folder.environment.is_file() else {}
    devices = (environment.get("devices") if isinstance(environment, dict) else None) or {}
    is_of_cpu = recipe.train.precision == "bfloat16" and not any(name != "cpu" for name in devices)
    return recipe if is_of_cpu else recipes.update(recipe, {"train.precision": "float32"})


def write_model(
    place: Path,
    backbone: Backbone,
    classes: Sequence[str],
    *,
    task: Task = "classify",
    thresholds: Sequence[float] = (),
    deviation: float | None = None,
) -> None:
    """Write the model as a timm folder; a probe at an inner layer group says so in its config.json."""
    with written_beside(place, keeps_before=False) as beside:
        timm_folder.write(
            backbone.model,
            beside,
            architecture=backbone.architecture.registered,
            model_args=backbone.model_args,
            preprocessing=backbone.preprocessing,
            classes=classes,
            pretrained_cfg=getattr(backbone.model, "pretrained_cfg", {}),
            probe_at=backbone.model.at if isinstance(backbone.model, StagedClassifier) else None,
            task=task,
            thresholds=thresholds,
            deviation=deviation,
            pool=backbone.architecture.pool,
        )


def data_gone(folder: RunFolder, root: str) -> DataError:
    """Return the error of data that is no longer where a run found it."""
    link = f"Put it there, or a link to where it is now: ln -s NEW {shlex.quote(root)}"
    moved = "" if folder.is_finished or folder.holds_runs else f"; or go on with: {folder.resuming} --data NEW"
    return DataError(f"the data of {folder.path} is not in {root} any more", hint=link + moved)


def trained_on(folder: RunFolder, recipe: Recipe, classes: tuple[str, ...], *, bands: Bands) -> Manifest:
    """Return the data that a run was trained on, as split.csv pins it; what a refit took from val is in train.

    Raises:
        CheckpointError: split.csv is missing or damaged. DataError: the data is no longer where it was.
    """
    root = data_root(recipe)
    pinned = split.read(folder.split, root=root, classes=classes, task=pinned_task(recipe))
    if address_of(root) is None and not (Path(root).is_dir() or Path(root, pinned.samples[0].file).is_file()):
        raise data_gone(folder, root)
    pinned = replace(pinned, bands=bands)
    return split.val_in_train(pinned) if recipe.train.refit else pinned


def data_root(recipe: Recipe) -> str:
    """Return the folder that the files of split.csv are relative to."""
    return root_of(recipe.data.path)


def pinned_task(recipe: Recipe) -> Task:
    """Return the task in a run's resolved recipe; older recipes, which name none, have one class per image."""
    return "classify" if recipe.data.task == "auto" else recipe.data.task


def write_problems(path: Path, manifest: Manifest) -> None:
    """Write problems.csv: every image that was left out, and why."""
    _write_table(path, PROBLEMS, ((problem.file, problem.reason) for problem in manifest.problems))


def write_predictions(
    path: Path,
    manifest: Manifest,
    guesses: Mapping[Split, Sequence[AnyTarget]],
    probabilities: Mapping[Split, NDArray[np.float64]],
) -> None:
    """Write predictions.csv: for every measured image its split, its class, and the class that was named.

    Of several classes and of numbers likewise. Of `probabilities` (N, K), where there are any, several classes have
    all, one class has its own and the second likeliest with its own.
    """
    is_single = manifest.task == "classify"
    more = {
        name: _two_likeliest(shares, manifest.classes) if is_single else (map(repr, row) for row in shares.tolist())
        for name, shares in probabilities.items()
    }
    rows = (
        (sample.file, name, manifest.label(sample.target), manifest.label(guess), *shares)
        for name, guessed in guesses.items()
        for sample, guess, shares in zip(
            manifest.split(name), guessed, more[name] if probabilities else repeat(()), strict=False
        )
    )
    columns = SURE_COLUMNS if is_single else tuple(f"probability of {name}" for name in manifest.classes)
    _write_table(path, (*GUESS_COLUMNS, *(columns if probabilities else ())), rows)


def _two_likeliest(shares: NDArray[np.float64], classes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the largest probability (N, K) of each image, and the second class with its own."""
    for row in shares:
        best, second = np.argsort(-row, kind="stable")[:2]
        yield f"{row[best]:.6f}", classes[second], f"{row[second]:.6f}"


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(map(guarded_cell, row) for row in rows)
    write_text(path, text.getvalue())


def line(row: EpochLine) -> str:
    """Return one line of metrics.jsonl."""
    facts = to_json(row)
    scores = facts.pop("scores")
    return json.dumps(facts | ({"scores": scores} if scores else {}), ensure_ascii=False)
