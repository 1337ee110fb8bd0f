"""Comparing strategies: the same images, the same seeds, one run folder each, and who is better beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from finetune import inline
from finetune import recipe as recipes
from finetune.arguments import Settings, typed
from finetune.checkpoint import changes
from finetune.checkpoint.claim import LINGER, claimed, clear_leftovers, new_folder
from finetune.checkpoint.comparison import Clock, ComparisonFolder, ComparisonRecord, open_comparison
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.saved import pinned_task
from finetune.data.places import data_name
from finetune.errors import CheckpointError, FinetuneError, Interrupted, RecipeError
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import architecture_of, describe_data, with_backbone
from finetune.report import comparison as page
from finetune.report.standings import Finished, Standing, finished, sentences, standings
from finetune.runs.layout import Terms, lay_inputs, with_whole_paths
from finetune.runs.shared import done, read_shared, reopen_shared
from finetune.runs.signals import Stop, stop_on_signals
from finetune.settings import Recipe
from finetune.strategy.entrants import USUAL, Entrant, entrants
from finetune.tasks import TASKS
from finetune.train.guard import IN_A_RUN, guarded
from finetune.types import Event, Manifest, OnEvent, ignore, to_json

HEADER = "What the runs of this comparison share."


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that did not come to its end, and why."""

    strategy: str
    seed: int
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How strategies came out, the best first, on `num_images` images of one split."""

    folder: Path
    split: str
    num_images: int
    seeds: tuple[int, ...]
    standings: tuple[Standing, ...]
    failed: tuple[FailedRun, ...]
    said: tuple[str, ...]

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        return inline.html_lines(*self.said) + inline.html_page(self.folder / "compare.html")

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as one JSON document."""
        rows = [{**to_json(standing), "is_told_apart": standing.is_told_apart} for standing in self.standings]
        return {**to_json(self), "folder": str(self.folder), "standings": rows}


@dataclass(slots=True)
class _Asked:
    """What is compared, as compare.json has it, and on what terms its runs go on."""

    folder: ComparisonFolder
    recipe: Recipe
    entrants: tuple[Entrant, ...]
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    data: str
    terms: Terms
    stop: Stop
    failed: dict[str, FailedRun] = field(default_factory=dict)
    errors: list[FinetuneError] = field(default_factory=list)

    def runs(self) -> list[tuple[str, Entrant, int]]:
        """Return every run by name, seed after seed, so that a comparison that is stopped has whole seeds."""
        return [
            (f"{_slug(entrant.label)}-seed{seed}", entrant, seed) for seed in self.seeds for entrant in self.entrants
        ]


@guarded(IN_A_RUN)
@typed
def compare(
    data: str | Path | None = None,
    *,
    strategies: Sequence[str] = USUAL,
    seeds: int = 1,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Comparison:
    """Run several strategies on the same images and say which are better beyond chance.

        finetune.compare("imgs", strategies=["head-only", "top-k:2", "scratch"], backbone="resnet18")

    `settings` are the flags of `finetune run` and hold for every run, `seeds` how often each strategy is
    run. A strategy that fails is listed with its reason, and the others go on.

    Raises:
        FinetuneError: one of its kinds; of the runs only if every one of them fails.
    """
    chosen = entrants(strategies.split(",") if isinstance(strategies, str) else strategies)
    if not isinstance(seeds, int) or seeds < 1:
        raise RecipeError(f"a comparison on {seeds} seeds has no run", hint="Give --seeds 1 or more.")
    shared = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    own: dict[str, Any] = {"strategy.name": "auto", "strategy.top_k": "auto", "strategy.probe_at": "auto"}
    if shared.export.onnx_at_end == "auto":
        own["export.onnx_at_end"] = False  # most of its models are only compared
    shared = with_backbone(with_whole_paths(recipes.update(shared, own)), on_event=on_event)
    words = (Path(data_name(shared.data.path)).stem, architecture_of(shared).label, "compare")
    where = new_folder(None if out is None else Path(out), words=words, data=shared.data.path)
    with stop_on_signals() as stop, where as place:
        inputs = read_shared(shared, on_event=on_event)
        manifest, first = inputs.manifest, shared.train.seed
        asked = _Asked(
            ComparisonFolder(place.path), inputs.recipe, chosen, tuple(range(first, first + seeds)), manifest.classes,
            describe_data(manifest), Terms(), stop,
        )  # fmt: skip
        _write(asked)
        lay_inputs(place, inputs, header=HEADER)
        on_event(Event.message(f"comparison folder: {place.path}"))
        return _run_all(asked, manifest, on_event)


@guarded(IN_A_RUN)
@typed
def resume_comparison(path: str | Path, *, allow: Iterable[str] = (), on_event: OnEvent = ignore) -> Comparison:
    """Resume a comparison: finished runs are kept, a started one is resumed, a failed one is tried again.

    `allow` names the kinds of change ("data", "version") that may have come between.

    Raises:
        CheckpointError: no comparison folder, nothing in it is left to do, or something changed that may not.
        ResourceError: another process is at it.
    """
    terms = Terms(changes.check_kinds(allow))
    place = RunFolder(Path(path))
    _unfinished(path)
    with stop_on_signals() as stop, claimed(place, seconds=LINGER, on_event=on_event):
        folder, record = _unfinished(path)
        clear_leftovers(place)
        recipe, manifest = reopen_shared(folder, record.classes, terms, header=HEADER, on_event=on_event)
        seeds, classes = tuple(record.seeds), tuple(record.classes)
        asked = _Asked(folder, recipe, entrants(record.strategies), seeds, classes, record.data, terms, stop)
        return _run_all(asked, manifest, on_event)


def _unfinished(path: str | Path) -> tuple[ComparisonFolder, ComparisonRecord]:
    folder, record = open_comparison(path)
    if record.is_finished:
        raise CheckpointError(f"{folder.path} is finished: there is nothing to resume", hint="See its compare.html.")
    return folder, record


def _run_all(asked: _Asked, manifest: Manifest, on_event: OnEvent) -> Comparison:
    asked.stop.begun(asked.folder)
    every = asked.runs()
    for number, (name, entrant, seed) in enumerate(every, 1):
        if asked.folder.run(name).is_finished:
            continue
        of = f", seed {seed}" if len(asked.seeds) > 1 else ""
        on_event(Event.message(f"{number} of {len(every)}: {entrant.label}{of}"))
        _run_one(asked, manifest, name, entrant, seed, on_event)
        if number < len(every):
            _sum_up(asked, is_done=False)
    return _sum_up(asked, is_done=True)


def _run_one(asked: _Asked, manifest: Manifest, name: str, entrant: Entrant, seed: int, on_event: OnEvent) -> None:
    folder, clock = asked.folder.run(name), Clock(asked.folder.clock(name))

    def watch(event: Event) -> None:
        clock(event)
        on_event(event)

    def own() -> tuple[Recipe, Manifest]:
        return recipes.update(asked.recipe, {**entrant.keys(), "train.seed": seed}), manifest

    try:
        result = done(folder, own, asked.terms, stop=asked.stop, on_event=watch)
    except Interrupted:
        raise
    except FinetuneError as error:
        asked.errors.append(error)
        asked.failed[name] = FailedRun(entrant.label, seed, error.message, error.hint)
        on_event(Event.warning(f"{entrant.label} failed: {error.message}"))
        return
    run = _finished(asked, name, seed)
    metric = TASKS[run.task].score
    facts = f"{run.split} {metric} {result.metrics[run.split][metric]['value']:.3f}, epoch {result.delivered_epoch}"
    on_event(Event.message(f"  {facts}, {run.curve[-1].seconds:.0f} s"))


def _finished(asked: _Asked, name: str, seed: int) -> Finished:
    return finished(asked.folder.run(name), asked.folder.clock(name), seed=seed)


def _sum_up(asked: _Asked, *, is_done: bool) -> Comparison:
    """Write compare.json and the page about the runs that are finished.

    Raises:
        FinetuneError: all is done, and every run failed.
    """
    runs: dict[str, list[Finished]] = {each.label: [] for each in asked.entrants}
    for name, entrant, seed in asked.runs():
        if asked.folder.run(name).is_finished:
            runs[entrant.label].append(_finished(asked, name, seed))
    some = next((run for ranked in runs.values() for run in ranked), None)
    ranked = standings(runs)
    comparison = Comparison(
        folder=asked.folder.path,
        split=some.split if some else "val",
        num_images=len(some.files) if some else 0,
        seeds=asked.seeds,
        standings=ranked,
        failed=tuple(asked.failed.values()),
        said=tuple(sentences(ranked, is_pretrained=asked.recipe.backbone.pretrained)),
    )
    page.write(asked.folder.report, _page_content(asked, comparison, is_done=is_done))
    _write(asked, comparison if is_done else None)
    if is_done and some is None:
        raise asked.errors[0]
    return comparison


def _write(asked: _Asked, comparison: Comparison | None = None) -> None:
    record = ComparisonRecord(
        strategies=[entrant.label for entrant in asked.entrants],
        seeds=list(asked.seeds),
        classes=list(asked.classes),
        data=asked.data,
        failed={name: to_json(failure) for name, failure in asked.failed.items()},
    )
    if comparison is not None:
        record.split, record.num_images = comparison.split, comparison.num_images
        record.standings, record.said = comparison.to_json()["standings"], list(comparison.said)
    record.write(asked.folder)


def _page_content(asked: _Asked, comparison: Comparison, *, is_done: bool) -> dict[str, Any]:
    label = architecture_of(asked.recipe).label
    return {
        "title": f"{data_name(asked.recipe.data.path)}: strategies compared on {label}",
        "data": asked.data,
        "comparison": comparison,
        "is_done": is_done,
        "num_classes": len(asked.classes),
        "task": pinned_task(asked.recipe),
        "metric": TASKS[pinned_task(asked.recipe)].score,
        "runs": [(name, entrant.label, seed) for name, entrant, seed in asked.runs()],
        "has_seeds": len(asked.seeds) > 1,
    }


def _slug(label: str) -> str:
    return label.replace(":", "-")
