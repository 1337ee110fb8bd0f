"""What a run began with, and what has changed since: recipe, versions, data. Resume refuses, or allows it.

A resumed run ends with the bits of one that was never stopped only if nothing has changed that its
numbers depend on. `--allow recipe`, `--allow version` and `--allow data` each let one kind of change
pass; the report then says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from finetune import environment
from finetune import recipe as recipes
from finetune.backbone.freeze import group_state
from finetune.backbone.load import Backbone
from finetune.checkpoint.contents import Beginning
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.data.targets import known_target
from finetune.device import Compute
from finetune.errors import CheckpointError, DataError, RecipeError, did_you_mean
from finetune.settings import FORMAT_VERSION, Recipe
from finetune.types import Manifest, Sample
from finetune.wording import counted, listed

KINDS = ("data", "version", "recipe")
ARITHMETIC = ("finetune", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
HARMLESS = (  # what is computed does not depend on them
    "data.path", "backbone.weights", "train.workers", "train.checkpoint_every", "train.track",
    "cache.folder", "cache.pixels", "export.onnx_at_end",
)  # fmt: skip
FIXED = ("data", "split", "backbone", "strategy")  # sections: another one is another run
FIXED_KEYS = ("optim.name", "train.batch_size")
SHOWN = 3


def check_kinds(allow: Iterable[str]) -> frozenset[str]:
    """Return the kinds of change that are allowed.

    Raises:
        RecipeError: there is no such kind.
    """
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    strange = [kind for kind in allow if kind not in KINDS]
    if strange:
        near = did_you_mean(strange[0], KINDS)
        raise RecipeError(f"--allow {strange[0]}: no such kind of change.{near}", hint=f"There are {', '.join(KINDS)}.")
    return frozenset(allow)


def note_beginning(
    folder: RunFolder, recipe: Recipe, backbone: Backbone, compute: Compute, *, allowed: Sequence[str] = ()
) -> None:
    """Write began.json: what a resumed run is compared with, and the changes that were allowed since."""
    content = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.model_dump(),
        "versions": versions(),
        "weights": weights_digest(backbone),
        "threads": compute.threads,
        "processes": compute.processes,
        "allowed": list(allowed),
    }
    write_json(folder.began, content)


@cache
def versions() -> dict[str, str]:
    """Return the versions that the bits of a result depend on; `code` is the hash of the tool's own modules."""
    digest = blake2b(digest_size=8)
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    installed = environment.packages()
    return {**{name: installed[name] for name in ARITHMETIC}, "finetune's code": digest.hexdigest()}


def weights_digest(backbone: Backbone) -> str:
    """Return the hash of what was loaded: not of the head, which is new, but of the classifier whose rows it keeps."""
    digest = blake2b(digest_size=16)
    names = [group.name for group in backbone.groups if not group.is_head]
    own = backbone.model.state_dict()
    loaded = {key: own[key] for key in group_state(backbone.model, backbone.groups, names)}
    if backbone.known and backbone.classifier is not None:
        loaded |= {f"classifier.{key}": tensor for key, tensor in backbone.classifier.state_dict().items()}
    for key, tensor in loaded.items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_weights(folder: RunFolder, began: Beginning, backbone: Backbone) -> None:
    """Check that the pretrained weights are those that the run began with.

    Raises:
        CheckpointError: they are not.
    """
    if weights_digest(backbone) != began.weights:
        raise CheckpointError(
            f"the pretrained weights of {backbone.architecture.label} are not those that {folder.path} began with",
            hint=f"Name the right ones with --weights, or {folder.anew}",
        )


def settle_changes(folder: RunFolder, recipe: Recipe, began: Beginning, *, allow: Collection[str]) -> list[str]:
    """Return what changed in recipe and versions and was allowed, in words.

    Raises:
        CheckpointError: something changed that was not allowed, or never can be.
    """
    allowed = []
    if changed := list(_recipe_changes(began.recipe, recipe)):
        is_fixed = folder.holds_runs  # its runs share one recipe
        fixed = [text for key, text in changed if is_fixed or key.split(".")[0] in FIXED or key in FIXED_KEYS]
        if fixed:
            raise CheckpointError(
                f"{folder.path} was begun with another recipe: {_some(fixed)}; this cannot change within a"
                f" {folder.what}",
                hint=f"Put it back, or {folder.anew} with your changes.",
            )
        _refuse_unless("recipe", "the recipe", [text for _, text in changed], allow, folder)
        allowed += [f"recipe: {text}" for _, text in changed]
    now = versions()
    if changed_versions := [f"{name} {was} -> {now.get(name, '-')}" for name, was in began.versions.items()
                            if now.get(name) != was]:  # fmt: skip
        _refuse_unless("version", "the software", changed_versions, allow, folder)
        allowed += [f"version: {text}" for text in changed_versions]
    return allowed


def settle_processes(folder: RunFolder, now: int, began: Beginning, *, allow: Collection[str]) -> list[str]:
    """Return, in words, that another number of processes shares the run, where it does and that was allowed.

    Raises:
        CheckpointError: it does, and that was not allowed: sums of parts are rounded otherwise.
    """
    if now == began.processes:
        return []
    if "recipe" not in allow:
        launcher = f"torchrun --nproc-per-node {began.processes} -m " if began.processes > 1 else ""
        again = f"{launcher}{folder.command} --resume {shlex.quote(str(folder.path))}"
        raise CheckpointError(
            f"{folder.path} was begun by {counted(began.processes, 'process', 'processes')}, but now"
            f" there {'is' if now == 1 else 'are'} {now}: sums over their parts round differently",
            hint=f"Start as many: {again} (on several machines --nnodes, too); or continue, no longer exactly:"
            f" {folder.resuming} --allow recipe",
        )
    return [f"recipe: processes {began.processes} -> {now}"]


def settle_data(
    folder: RunFolder, kept: Manifest, now: Manifest, *, allow: Collection[str]
) -> tuple[Manifest, list[str]]:
    """Return the manifest to go on with, and in words what changed in the data and was allowed.

    Images that are gone are left out then, changed ones are read as they are now, added ones wait for a new run.

    Raises:
        CheckpointError: the data changed, and that was not allowed.
        DataError: what is left cannot be trained on.
    """
    there = {sample.file: sample for sample in now.samples}
    labels = {sample.file: now.label(sample.target) for sample in now.samples}
    changed = list(_data_changes(kept, there, labels))
    if not changed:
        return replace(kept, problems=now.problems), []
    _refuse_unless("data", "the images", changed, allow, folder)
    index = {name: place for place, name in enumerate(kept.classes)}
    targets = {file: known_target(kept.task, label, index) for file, label in labels.items()}
    samples = tuple(
        replace(sample, target=target, digest=there[sample.file].digest)
        for sample in kept.samples
        if (target := targets.get(sample.file)) is not None
    )
    left = replace(kept, samples=samples, problems=now.problems)
    for name in ("train", "val"):
        if not any(sample.split == name for sample in samples):
            raise DataError(f"no image of {name} is left", hint="Put the images back, or start a new run.")
    counts = left.counts("train")
    if emptied := [name for name, count in kept.counts("train").items() if count and not counts[name]]:
        raise DataError(
            f"no train image of {listed(map(repr, emptied))} is left",
            hint="Put the images back (was a folder renamed?), or start a new run.",
        )
    return left, [f"data: {text}" for text in changed]


def _recipe_changes(began: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    now = recipe.model_dump(mode="json")  # as it was written: arrays are lists
    for key in recipes.fields():
        section, name = key.split(".")
        if key in HARMLESS or name not in began.get(section, {}):
            continue
        if began[section][name] != now[section][name]:
            yield key, f"{key} {began[section][name]!r} -> {now[section][name]!r}"


def _data_changes(kept: Manifest, there: Mapping[str, Sample], labels: Mapping[str, str]) -> Iterator[str]:
    own = {sample.file: sample for sample in kept.samples}
    gone = [file for file in own if file not in there]
    added = [file for file in there if file not in own]
    both = [file for file in own if file in there]
    changed = [file for file in both if own[file].digest != there[file].digest]
    relabelled = [file for file in both if kept.label(own[file].target) != labels[file]]
    moved = [file for file in both if there[file].split in ("val", "test") and there[file].split != own[file].split]
    for word, files in (
        ("gone or unreadable", gone), ("added", added), ("changed", changed), ("given another label", relabelled),
        ("put into another split", moved),
    ):  # fmt: skip
        if files:
            yield f"{len(files)} {word} ({_some(files)})"


def _refuse_unless(kind: str, what: str, changed: Sequence[str], allow: Collection[str], folder: RunFolder) -> None:
    if kind not in allow:
        raise CheckpointError(
            f"{what} changed since {folder.path} began: {_some(changed)}",
            hint=f"Put it back; or {folder.anew}; or continue, no longer exactly: {folder.resuming} --allow {kind}",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
