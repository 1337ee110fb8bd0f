"""Racing strategies: the likeliest start, the worse stop at rungs, the winner goes on as if it had run alone.

    OUT/race.json             who started, what each rung showed, who won, what it took
    OUT/race/<candidate>/     a run folder for each, stopped where it lost; the winner's becomes OUT itself

A race that is stopped goes on with `finetune run --resume OUT`: what a candidate has done lies in its
checkpoints, and what follows at a rung follows from them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint import run_folder
from finetune.checkpoint.run_folder import RunFolder, read_json, write_json
from finetune.errors import CheckpointError, FinetuneError, Interrupted, RecipeError
from finetune.settings import FORMAT_VERSION, Recipe
from finetune.strategy.race import MOST_OVERHEAD, Place, RacePlan, Work, candidates, judge, plan_race
from finetune.types import Event, Manifest, OnEvent, ignore, to_json
from finetune.workflow.batch_size import with_micro_batch
from finetune.workflow.prepare import (
    Prepared,
    architecture_of,
    load_backbone,
    plan_phases,
    prepare,
    resolve,
    with_head,
)
from finetune.workflow.run import RunResult, lay_folder, reopen, resume_alone
from finetune.workflow.timed import within_time
from finetune.workflow.training import train
from finetune.workflow.work import work_of


def race(
    recipe: Recipe, *, out: Path | None = None, manifest: Manifest | None = None, on_event: OnEvent = ignore
) -> RunResult:
    """Race the likeliest strategies on the data of a recipe, and finish the winner in a new run folder.

    Raises:
        FinetuneError: one of its kinds; of a candidate only if every one of them fails.
    """
    own = prepare(as_auto(recipe), manifest=manifest, on_event=on_event)
    auto = as_auto(recipe)
    own = _in_time(own, auto, may_fall=True, on_event=on_event)
    made, late = _in_time_each(field_of(auto, own), auto)
    works, plan = planned(made)
    plan = replace(plan, left_out={**late, **plan.left_out})
    words = (Path(own.recipe.data.path).stem, own.backbone.architecture.label, "race")
    folder = run_folder.create(out, words=words)
    on_event(Event("message", {"text": f"run folder: {folder.path}"}))
    for label in plan.starts:
        lay_folder(with_micro_batch(made[label], on_event=on_event), candidate_folder(folder, label).path)
    content = {
        "format_version": FORMAT_VERSION,
        "starts": list(plan.starts),
        "rungs": list(plan.rungs),
        "left_out": plan.left_out,
        "work": {label: to_json(works[label]) for label in plan.starts if label in works},
        "results": [],
        "failed": {},
        "winner": None,
    }
    write_json(folder.race, content)
    on_event(Event("message", {"text": told(plan)}))
    return go_on_racing(folder, on_event=on_event)


def _in_time(made: Prepared, asked: Recipe, *, may_fall: bool, on_event: OnEvent) -> Prepared:
    """Yield a candidate that leaves the race its share of the time."""
    num_images, share = len(made.manifest.samples), 1 / (1 + MOST_OVERHEAD)
    return within_time(made, asked, may_fall=may_fall, num_images=num_images, share=share, on_event=on_event)


def _in_time_each(made: Mapping[str, Prepared], asked: Recipe) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Yield the candidates that have time, the first of which is settled, and why others have not."""
    own, *others = made
    found, late = {own: made[own]}, {}
    for label in others:
        try:
            found[label] = _in_time(made[label], asked, may_fall=False, on_event=ignore)
        except RecipeError as error:
            late[label] = error.message
    return found, late


def go_on_racing(folder: RunFolder, *, on_event: OnEvent = ignore) -> RunResult:
    """Race from where the candidates' checkpoints stand to the winner's end.

    Raises:
        CheckpointError: race.json is damaged or of another version.
    """
    content = read_json(folder.race)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder.race} has format_version {content.get('format_version')};"
            f" this version of finetune reads {FORMAT_VERSION}",
            hint="Use the version of finetune that wrote it.",
        )
    began = time.monotonic()
    if content["winner"] is None:
        _run_rungs(folder, content, on_event)
        write_json(folder.race, content)
    _promote(folder, content["winner"])
    return resume_alone(folder, seconds={"race": time.monotonic() - began}, on_event=on_event)


def is_racing(folder: RunFolder) -> bool:
    """Tell whether a folder holds a race whose winner has not taken its place yet."""
    return folder.race.is_file() and not folder.recipe.is_file()


def candidate_folder(folder: RunFolder, label: str) -> RunFolder:
    """Yield the run folder of a candidate."""
    return RunFolder(folder.path / "race" / label)


def as_auto(recipe: Recipe) -> Recipe:
    """Yield a recipe of a race as auto would have it."""
    return recipes.update(recipe, {"strategy.name": "auto"})


def field_of(recipe: Recipe, own: Prepared) -> dict[str, Prepared]:
    """Yield every candidate as it is prepared, the verdict's own choice first."""
    assert own.evidence is not None and own.verdict is not None  # auto measures both
    plain = load_backbone(own.recipe, architecture_of(own.recipe), num_classes=len(own.manifest.classes))
    names = [group.name for group in plain.groups if not group.is_head]
    first, *others = candidates(own.verdict, own.evidence, names)
    found = {first.label: own}
    for entrant in others:
        settled = resolve(recipes.update(recipe, entrant.keys()), own.manifest, plain, None)
        backbone = with_head(settled, plain)
        found[entrant.label] = replace(own, recipe=settled, backbone=backbone, phases=plan_phases(settled, plain))
    return found


def planned(made: Mapping[str, Prepared]) -> tuple[dict[str, Work], RacePlan]:
    """Yield the work of every candidate that it is known of, and the race that follows."""
    own, *_ = made
    counted = {label: work_of(one.recipe, one.phases, one.manifest) for label, one in made.items()}
    known = {label: work for label, work in counted.items() if work is not None}
    unknown = {label: "its work cannot be counted" for label in made if label != own and label not in known}
    if own not in known:
        return known, RacePlan((own,), (), (), dict.fromkeys((*made,)[1:], f"the work of {own} cannot be counted"))
    plan = plan_race(known)
    return known, replace(plan, left_out={**unknown, **plan.left_out})


def told(plan: RacePlan) -> str:
    """Yield one line about a race."""
    out = "".join(f"; {label} is left out: {why}" for label, why in plan.left_out.items())
    if len(plan.starts) == 1:
        return f"race: {plan.starts[0]} has no rival{out}"
    text = f"race: {', '.join(plan.starts)}"
    if plan.whole:
        all_do = len(plan.whole) == len(plan.starts)
        text += f"; on cached features, so run whole: {'all' if all_do else ', '.join(plan.whole)}"
    if len(plan.whole) < len(plan.starts):
        text += f"; rungs after {' and '.join(map(str, plan.rungs))} epoch{'s' if plan.rungs[-1] > 1 else ''}"
    return text + out


def _run_rungs(folder: RunFolder, content: dict[str, Any], on_event: OnEvent) -> None:
    """Run every rung and name the winner; what is done already only follows again from the checkpoints."""
    works = {label: Work(tuple(work["epochs"]), work["num_images"]) for label, work in content["work"].items()}
    alive, content["results"] = list(content["starts"]), []
    for epochs in content["rungs"]:
        places = [place for label in alive if (place := _run_to(folder, content, label, epochs, works, on_event))]
        ranked = judge(places, works, is_last=epochs == content["rungs"][-1])
        content["results"].append({"epochs": epochs, "places": [to_json(place) for place in ranked]})
        write_json(folder.race, content)
        on_event(Event("message", {"text": f"best val top1: {', '.join(map(_shown, ranked))}"}))
        alive = [place.label for place in ranked if place.is_kept]
        if len(alive) == 1:
            break
    content["winner"] = alive[0]
    if works:
        content["took"] = _took(content, works)
    on_event(Event("message", {"text": f"race: {alive[0]} wins and goes on"}))


def _run_to(
    folder: RunFolder,
    content: dict[str, Any],
    label: str,
    epochs: int,
    works: Mapping[str, Work],
    on_event: OnEvent,
) -> Place | None:
    """Train a candidate up to a rung and yield its place there; None for one that fails while others are left."""
    own = candidate_folder(folder, label)
    until = None if works[label].is_cheap else epochs
    try:
        prepared, checkpoint = reopen(own)
        now = checkpoint.state if checkpoint else None
        if now is None or (now.phase < len(prepared.phases) and (until is None or len(now.history) < until)):
            on_event(Event("message", {"text": f"{label}:"}))
            now = train(own, prepared, checkpoint, until=until, resumed_as=folder, on_event=on_event).state
    except Interrupted:
        raise
    except FinetuneError as error:
        content["failed"][label] = error.message
        if len(content["failed"]) == len(content["starts"]):
            raise
        on_event(Event("warning", {"text": f"{label} failed and leaves the race: {error.message}"}))
        return None
    shown = now.history if until is None else now.history[:until]
    best = max(shown, key=lambda row: (row["val_top1"], -row["val_loss"]))
    return Place(label, len(shown), best["val_top1"], best["val_loss"])


def _promote(folder: RunFolder, winner: str) -> None:
    """Make the winner's run folder the race's own, the recipe last; a move that was stopped is finished."""
    own = candidate_folder(folder, winner)
    if own.path.is_dir():
        for entry in sorted(own.path.iterdir(), key=lambda path: path.name == own.recipe.name):
            os.replace(entry, folder.path / entry.name)
        own.path.rmdir()


def _took(content: dict[str, Any], works: Mapping[str, Work]) -> dict[str, float]:
    """Yield the planned work of the winner alone, what the others took at most, and how much more that is."""
    winner = content["winner"]
    reached: dict[str, int] = {}
    for result in content["results"]:
        reached |= {place["label"]: place["epochs"] for place in result["places"]}
    others = sum(works[label].until(epochs) for label, epochs in reached.items() if label != winner)
    alone = works[winner].whole
    return {"winner_alone": alone, "others": others, "times": (alone + others) / alone}


def _shown(place: Place) -> str:
    after = f"after {place.epochs} epoch{'s' if place.epochs > 1 else ''}"
    return f"{place.label} {place.val_top1:.3f} {after}{'' if place.is_kept else ' (stops)'}"
