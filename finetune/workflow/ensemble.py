"""Ensembles: the answers of several runs averaged, measured against the best of them, and left as one ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from finetune import inline
from finetune.arguments import typed
from finetune.checkpoint.run_folder import RunFolder, check_new
from finetune.checkpoint.saved import write_predictions
from finetune.errors import CheckpointError, RecipeError, did_you_mean
from finetune.evaluation.answers import answers, class_shares
from finetune.evaluation.ensembles import Average, averaged, chosen_greedily
from finetune.exports.ensemble import write_ensemble
from finetune.prepare.members import Joined, Members, join_members, joined_facts, judge_of, load_members
from finetune.prepare.proof import proof_of
from finetune.train.guard import OF_A_MODEL, guarded
from finetune.types import Event, OnEvent, Split, ignore
from finetune.whole import named, new_whole_folder
from finetune.wording import counted


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several runs that answer as one: how they compare with the best of them, and their file."""

    average: Average
    joined: Joined
    folder: Path | None
    proof: dict[str, Any] | None

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        return inline.html_metrics(self.joined.metrics, first="split")

    def to_json(self) -> dict[str, Any]:
        """Return the ensemble as one JSON document."""
        return {"average": self.average, **joined_facts(self.joined), "folder": _named(self.folder),
                "proof": self.proof}  # fmt: skip


@guarded(OF_A_MODEL, is_shared=True)
@typed
def ensemble(
    runs: Sequence[str | Path],
    *,
    average: Average = "probabilities",
    greedy: bool = False,
    once: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Ensemble:
    """Average the answers of several finished runs, and measure that on val and test.

        finetune.ensemble(["runs/a", "runs/b", "runs/c"], greedy=True, out="runs/abc")

    `greedy` chooses on val who takes part, and how often; `once` lets each take part no more than once. `out` is a new
    folder for one ONNX file that holds all members, proven like any other export: `finetune.predict` takes it.

    Raises:
        CheckpointError: a run that is not finished, or runs with other classes, or other val or test images.
        ExportError: one file cannot hold them, or it differs. RecipeError: fewer than two runs.
    """
    if average not in get_args(Average):
        near = did_you_mean(str(average), get_args(Average))
        raise RecipeError(f"average = {average!r} is not one of {', '.join(get_args(Average))}.{near}")
    if once and not greedy:
        raise RecipeError("once has no meaning without greedy: every run is used once anyway")
    if out is not None:
        check_new(Path(out))
    members = load_members(
        runs, what="an ensemble", out=out, device=device, batch_size=batch_size, workers=workers, on_event=on_event
    )
    counts = _counts(members, average, once) if greedy else (1,) * len(members.runs)
    places = [place for place, count in enumerate(counts) if count]
    outputs = {
        name: averaged(
            [judged.outputs[p] for p in places], [counts[p] for p in places], task=members.task, average=average
        )
        for name, judged in members.judged.items()
    }
    found = join_members(members, outputs, counts)
    if out is None:
        return Ensemble(average, found, None, None)
    on_event(Event.message(f"writing one ONNX file of {counted(len(places), 'network')}"))
    return _left(Path(out), members, found, places, average, outputs)


def _counts(members: Members, average: Average, once: bool) -> tuple[int, ...]:
    if "val" not in members.judged:
        raise CheckpointError(
            "a greedy choice is made on val, and these runs have no val images",
            hint="A refit trains on val. Leave out --greedy to use every run once.",
        )
    judge, outputs = judge_of(members.task, members.judged["val"].targets), members.judged["val"].outputs
    return chosen_greedily(outputs, judge, task=members.task, average=average, is_once=once).counts


def _left(
    out: Path, members: Members, found: Joined, places: Sequence[int], average: Average, outputs: dict[Split, Tensor]
) -> Ensemble:
    """Write the folder of an ensemble, whole or not at all."""
    runs = [members.runs[place] for place in places]
    counts = [found.members[place].count for place in places]
    proof, facts = proof_of(runs[0]), joined_facts(found)
    for member in facts["members"]:
        member["run"] = str(Path(member["run"]).absolute())  # so that it is found from any working directory
    with new_whole_folder(out, hint="Give a new folder with --out.") as beside:
        folder = RunFolder(beside)
        proven = write_ensemble(
            folder, runs, counts, proof, name=named(out).name, average=average, thresholds=found.thresholds,
            facts=facts,
        )  # fmt: skip
        said = {name: answers(members.task, rows, found.thresholds) for name, rows in outputs.items()}
        write_predictions(folder.predictions, members.manifest, said, class_shares(members.task, outputs))
    return Ensemble(average, found, out, proven)


def _named(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)
