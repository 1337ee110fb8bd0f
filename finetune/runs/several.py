"""One recipe on every fold of its data, or on several seeds: run folders in one folder, resumed like a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from finetune import recipe as recipes
from finetune.checkpoint import changes
from finetune.checkpoint.claim import LINGER, claimed, clear_leftovers, new_folder
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.several import Kind, SeveralRecord, open_several
from finetune.data import split
from finetune.data.places import data_name
from finetune.errors import CheckpointError, FinetuneError, Interrupted
from finetune.prepare.inputs import architecture_of, with_backbone
from finetune.runs.layout import Terms, lay_inputs, with_whole_paths
from finetune.runs.shared import done, read_shared, reopen_shared
from finetune.runs.signals import Stop
from finetune.settings import Recipe
from finetune.types import Event, Manifest, OnEvent

HEADER = "What these runs share; several.json says on which folds or seeds."


@dataclass(slots=True)
class Batch:
    """Several runs of one recipe, in a held folder, and those that failed."""

    folder: RunFolder
    recipe: Recipe
    record: SeveralRecord
    manifest: Manifest
    terms: Terms
    stop: Stop
    errors: list[FinetuneError] = field(default_factory=list)

    @property
    def finished(self) -> list[int]:
        """The folds or seeds whose run came to its end."""
        return [number for number in self.record.numbers if self.record.run(self.folder, number).is_finished]

    def run_all(self, on_event: OnEvent) -> None:
        """Do the unfinished runs, one after the other.

        Raises:
            FinetuneError: every run failed, or the error would stop the others too.
        """
        self.stop.begun(self.folder)
        self.record.failed = {}
        for place, number in enumerate(self.record.numbers, 1):
            folder = self.record.run(self.folder, number)
            if folder.is_finished:
                continue
            on_event(Event.message(f"{self.record.name(number)}, {place} of {len(self.record.numbers)}"))
            self._run_one(folder, number, on_event)
            self.record.write(self.folder)
        if not self.finished:
            raise self.errors[0]

    def _run_one(self, folder: RunFolder, number: int, on_event: OnEvent) -> None:
        try:
            result = done(folder, lambda: self._own(number), self.terms, stop=self.stop, on_event=on_event)
        except Interrupted:
            raise
        except FinetuneError as error:
            self.errors.append(error)
            name = self.record.name(number)
            self.record.failed[name] = {"reason": error.message, "hint": error.hint}
            on_event(Event.warning(f"{name} failed: {error.message}"))
            return
        on_event(Event.message(f"  {_scores(result.metrics)}, epoch {result.delivered_epoch}"))

    def _own(self, number: int) -> tuple[Recipe, Manifest]:
        """Return the recipe and the data of one run."""
        own = self.recipe
        if own.export.onnx_at_end == "auto":
            own = recipes.update(own, {"export.onnx_at_end": False})  # of folds one file holds all of them
        if self.record.kind == "seeds":
            return recipes.update(own, {"train.seed": number}), self.manifest
        folds = len(self.record.numbers)
        parts = split.in_folds(self.manifest, folds=folds, seed=self.recipe.split.seed)
        return recipes.update(own, {"split.fold": number}), parts[number - 1]


@contextmanager
def new_batch(
    recipe: Recipe, kind: Kind, count: int, *, out: Path | None, stop: Stop, on_event: OnEvent
) -> Iterator[Batch]:
    """Yield several runs before the first one begins, in a new, held folder.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    recipe = with_backbone(with_whole_paths(recipe), on_event=on_event)
    if kind == "folds":
        recipe = recipes.update(recipe, {"split.folds": count, "split.fold": 1})
    words = (Path(data_name(recipe.data.path)).stem, architecture_of(recipe).label, kind)
    with new_folder(out, words=words, data=recipe.data.path) as folder:
        inputs = read_shared(recipe, on_event=on_event)
        first = recipe.train.seed if kind == "seeds" else 1
        record = SeveralRecord(
            kind=kind, numbers=list(range(first, first + count)), classes=list(inputs.manifest.classes)
        )
        record.write(folder)
        lay_inputs(folder, inputs, header=HEADER)
        on_event(Event.message(f"folder of {count} runs: {folder.path}"))
        yield Batch(folder, inputs.recipe, record, inputs.manifest, Terms(), stop)


@contextmanager
def reopened_batch(path: Path, *, allow: Iterable[str], stop: Stop, on_event: OnEvent) -> Iterator[Batch]:
    """Yield several stopped runs in their folder, which is held; finished ones are kept.

    Raises:
        CheckpointError: no such folder, nothing in it is left to do, or something changed that may not.
    """
    terms = Terms(changes.check_kinds(allow))
    _unfinished(path)
    place = RunFolder(path)
    with claimed(place, seconds=LINGER, on_event=on_event):
        folder, record = _unfinished(path)
        clear_leftovers(place)
        recipe, manifest = reopen_shared(folder, record.classes, terms, header=HEADER, on_event=on_event)
        yield Batch(folder, recipe, record, manifest, terms, stop)


def _unfinished(path: Path) -> tuple[RunFolder, SeveralRecord]:
    folder, record = open_several(path)
    if record.is_finished:
        raise CheckpointError(f"{folder.path} is finished: there is nothing to resume", hint="See its several.json.")
    return folder, record


def _scores(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return each split's first metric."""
    firsts = [(name, next(iter(values.items()))) for name, values in metrics.items()]
    return ", ".join(f"{name} {metric} {value['value']:.3f}" for name, (metric, value) in firsts)
