"""Folds and seeds: one recipe several times, the joint result, and with folds each image by a run that never saw it.

Letters: N images, K classes.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from finetune import inline
from finetune.arguments import Settings, typed
from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.checkpoint.saved import SavedRun, load_run
from finetune.checkpoint.several import Kind, out_of_fold
from finetune.csv_cells import guarded_cell
from finetune.data.places import data_name
from finetune.data.split import units_of
from finetune.errors import ExportError, RecipeError
from finetune.evaluation.answers import answers
from finetune.evaluation.ensembles import averaged
from finetune.evaluation.intervals import over_fold_values, over_seed_values
from finetune.evaluation.labels import best_thresholds
from finetune.evaluation.metrics import bounds_of, measure_task
from finetune.evaluation.predictions import probabilities_of
from finetune.exports.ensemble import write_ensemble
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import describe_data
from finetune.prepare.members import logits_on
from finetune.prepare.proof import proof_of
from finetune.report.together import write_together
from finetune.runs.several import Batch, new_batch, reopened_batch
from finetune.runs.signals import stop_on_signals
from finetune.settings import Recipe
from finetune.tasks import TASKS
from finetune.train.guard import IN_A_RUN, guarded
from finetune.types import Event, Interval, Manifest, OnEvent, Sample, ignore, to_json
from finetune.whole import write_text
from finetune.wording import counted

BATCH = 32
Metrics = dict[str, dict[str, Interval]]  # by split and name


@dataclass(frozen=True, slots=True)
class Several:
    """The results of one recipe on every fold of its data, or on several seeds.

    `mean` has the metrics over the runs, by split; `runs` those of each. Of folds `out_of_fold` has the metrics of all
    images together, each by the run that had it in val, and `ensemble` those of all runs as one, on test.
    """

    folder: Path
    kind: Kind
    runs: dict[str, Metrics]
    mean: Metrics
    out_of_fold: dict[str, Interval]
    ensemble: dict[str, Interval]
    failed: dict[str, str]
    is_exported: bool

    def __fspath__(self) -> str:
        """Return the place, so that the result itself may be named where a path is asked for."""
        return str(self.folder)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        tables = [inline.html_metrics(values, first=name) for name, values in self.runs.items()]
        tables += [inline.html_metrics(self.mean, first="mean")]
        tables += [inline.html_metrics({"all": self.ensemble}, first="together")] if self.ensemble else []
        failed = (f"{name} failed: {why}" for name, why in self.failed.items())
        return "".join(tables) + inline.html_lines(str(self.folder), *failed)

    def to_json(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {**to_json(self), "folder": str(self.folder)}


@guarded(IN_A_RUN)
@typed
def run_several(
    data: str | Path | None = None,
    *,
    folds: int | None = None,
    seeds: int | None = None,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Several:
    """Train one recipe on each fold of its data, or on several seeds, in one folder.

        finetune.run_several("imgs", folds=5, strategy="head-only")

    Folds divide all that is not test; copies and groups stay in one fold. Afterwards the runs answer as one
    (`finetune predict`), and out_of_fold.csv has the prediction for every image by the run that has not seen it. A run
    that fails is reported with its reason, and the others continue. `settings` are the flags of `finetune run`.

    Raises:
        FinetuneError: one of its kinds; of the runs only if every one of them fails.
    """
    kind, count = _asked(folds, seeds)
    base = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    _check_recipe(base, kind)
    with stop_on_signals() as stop, new_batch(
        base, kind, count, out=None if out is None else Path(out), stop=stop, on_event=on_event
    ) as batch:  # fmt: skip
        batch.run_all(on_event)
        return _sum_up(batch, on_event)


@guarded(IN_A_RUN)
@typed
def resume_several(path: str | Path, *, allow: Iterable[str] = (), on_event: OnEvent = ignore) -> Several:
    """Resume the folds or seeds of a folder: finished runs are kept, failed ones are tried again.

    `allow` names the kinds of change ("data", "version") that may have come between.

    Raises:
        CheckpointError: no such folder, nothing in it is left to do, or something changed that may not.
        ResourceError: another process is at it.
    """
    with stop_on_signals() as stop, reopened_batch(Path(path), allow=allow, stop=stop, on_event=on_event) as batch:
        batch.run_all(on_event)
        return _sum_up(batch, on_event)


def _asked(folds: int | None, seeds: int | None) -> tuple[Kind, int]:
    if (folds is None) == (seeds is None):
        raise RecipeError(
            "several runs differ by folds or by seeds", hint="Name one of the two: --folds K or --seeds N."
        )
    kind: Kind = "folds" if seeds is None else "seeds"
    count = folds if seeds is None else seeds
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise RecipeError(f"{kind} = {count!r}: must be a whole number of 2 or more")
    return kind, count


def _check_recipe(recipe: Recipe, kind: Kind) -> None:
    if kind == "folds" and recipe.train.refit:
        raise RecipeError(
            "train.refit has no meaning with folds: each would be trained on the images that it is judged on",
            hint="Leave out --refit, or run without --folds.",
        )


def _sum_up(batch: Batch, on_event: OnEvent) -> Several:
    """Write the joint result of the finished runs, and several.json last."""
    record, folder = batch.record, batch.folder
    runs = {record.name(number): _metrics_of(record.run(folder, number)) for number in batch.finished}
    unseen: dict[str, Interval] = {}
    together: dict[str, Interval] = {}
    is_exported = False
    if record.kind == "folds" and not record.failed:
        unseen, together, is_exported = _as_one(batch, on_event)
    found = Several(
        folder=folder.path,
        kind=record.kind,
        runs=runs,
        mean=_mean(list(runs.values()), record.kind),
        out_of_fold=unseen,
        ensemble=together,
        failed={name: failure["reason"] for name, failure in record.failed.items()},
        is_exported=is_exported,
    )
    write_together(folder.report, _page_content(batch, found))
    record.results = {key: value for key, value in found.to_json().items() if key not in ("folder", "failed", "kind")}
    record.write(folder)
    return found


def _page_content(batch: Batch, found: Several) -> dict[str, Any]:
    recipe = batch.recipe
    return {
        "title": f"{data_name(recipe.data.path)}: {counted(len(found.runs), 'run')} on {found.kind}",
        "data": describe_data(batch.manifest),
        "folder": shlex.quote(str(found.folder)),
        "kind": found.kind,
        "runs": found.runs,
        "mean": found.mean,
        "out_of_fold": found.out_of_fold,
        "ensemble": found.ensemble,
        "failed": found.failed,
        "is_exported": found.is_exported,
    }


def _metrics_of(folder: RunFolder) -> Metrics:
    return {
        name: {key: Interval(**value) for key, value in values.items()}
        for name, values in read_json(folder.metrics).items()
    }


def _mean(runs: Sequence[Metrics], kind: Kind) -> Metrics:
    """Return the mean of each metric over two or more runs; the test images are the same."""
    if len(runs) < 2:
        return {}
    return {
        name: {
            key: _within(
                key,
                over_fold_values([run[name][key].value for run in runs])
                if kind == "folds" and name == "val"
                else over_seed_values([run[name][key] for run in runs]),
            )
            for key in values
            if all(key in run[name] for run in runs)  # a fold may be too small for one
        }
        for name, values in runs[0].items()
    }


def _within(name: str, interval: Interval) -> Interval:
    """Return an interval clipped to the range of a metric."""
    least, most = bounds_of(name)
    return Interval(interval.value, max(least, interval.low), min(most, interval.high))


def _as_one(batch: Batch, on_event: OnEvent) -> tuple[dict[str, Interval], dict[str, Interval], bool]:
    """Return the metrics of all images, each by the run that has not seen it, and of all runs as one; write both."""
    saved = [load_run(batch.record.run(batch.folder, n).path, device=batch.recipe.train.device) for n in batch.finished]
    manifests = [run.manifest() for run in saved]
    task = saved[0].task
    held = [_outputs(run, manifest, manifest.split("val")) for run, manifest in zip(saved, manifests, strict=True)]
    samples = [sample for manifest in manifests for sample in manifest.split("val")]
    outputs, targets = (torch.cat(parts) for parts in zip(*held, strict=True))
    thresholds = best_thresholds(outputs, targets) if task == "multilabel" else ()
    unseen = measure_task(task, outputs, targets, units=units_of(samples), thresholds=thresholds)
    _write_unseen(out_of_fold(batch.folder), saved, manifests, [rows for rows, _ in held])
    together: dict[str, Interval] = {}
    if test := manifests[0].split("test"):
        asked = [_outputs(run, manifests[0], test) for run in saved]
        mean = averaged([rows for rows, _ in asked], [1] * len(saved), task=task, average="probabilities")
        together = measure_task(task, mean, asked[0][1], units=units_of(test), thresholds=thresholds)
    if batch.recipe.export.onnx_at_end is False:
        return unseen, together, False
    return unseen, together, _exported(batch.folder, saved, thresholds, together, on_event)


def _outputs(run: SavedRun, manifest: Manifest, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    return logits_on(run, manifest, samples, batch_size=BATCH)


def _exported(
    folder: RunFolder,
    saved: Sequence[SavedRun],
    thresholds: Sequence[float],
    together: Mapping[str, Interval],
    on_event: OnEvent,
) -> bool:
    """Write one ONNX file of all runs; a failed export is reported and is not an error: the runs are finished."""
    proof = proof_of(saved[0])
    facts = {
        "members": [{"run": str(run.folder.path.relative_to(folder.path)), "count": 1} for run in saved],
        "metrics": {"test": {name: to_json(value) for name, value in together.items()}} if together else {},
    }
    try:
        write_ensemble(
            folder, saved, [1] * len(saved), proof, name=folder.path.name, average="probabilities",
            thresholds=thresholds, facts=facts,
        )  # fmt: skip
    except ExportError as error:
        on_event(Event.warning(f"no ONNX file of all folds: {error.message}"))
        return False
    return True


def _write_unseen(
    path: Path, saved: Sequence[SavedRun], manifests: Sequence[Manifest], outputs: Sequence[Tensor]
) -> None:
    """Write what the run that had an image in val says of it, and how sure it is, for every image."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    classes, task = manifests[0].classes, saved[0].task
    more = {"classify": ("confidence",), "multilabel": tuple(f"probability of {name}" for name in classes)}
    writer.writerow(map(guarded_cell, ("file", "fold", "class", "predicted", *more.get(task, ()))))
    for fold, (run, manifest, rows) in enumerate(zip(saved, manifests, outputs, strict=True), 1):
        said = answers(task, rows, run.thresholds)
        for sample, answer, sure in zip(manifest.split("val"), said, _sure(run, rows), strict=True):
            cells = (sample.file, str(fold), manifest.label(sample.target), manifest.label(answer), *sure)
            writer.writerow(map(guarded_cell, cells))
    write_text(path, text.getvalue())


def _sure(run: SavedRun, rows: Tensor) -> Iterator[tuple[str, ...]]:
    """Yield the probability of what is said of each image, or of each of several classes; nothing for a number."""
    shares = probabilities_of(TASKS[run.task].activation, rows.numpy())  # (N, K)
    for row in shares:
        if run.task == "classify":
            yield (f"{row.max():.6f}",)
        else:
            yield tuple(f"{share:.6f}" for share in row) if run.task == "multilabel" else ()
