"""Soups: the weights of several runs averaged into one model, which costs no more to ask than one of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import environment
from finetune import recipe as recipes
from finetune.arguments import typed
from finetune.checkpoint.run_folder import RunFolder, check_new, write_json
from finetune.checkpoint.saved import write_model, write_predictions
from finetune.checkpoint.soups import check_one_start, heads_begin_alike, mean_state
from finetune.errors import CheckpointError
from finetune.evaluation.answers import answers, class_shares
from finetune.prepare.members import Joined, Members, join_members, joined_facts, judge_of, load_members, logits_on
from finetune.settings import FORMAT_VERSION
from finetune.train.guard import OF_A_MODEL, guarded
from finetune.types import Event, OnEvent, Split, ignore
from finetune.whole import new_whole_folder, write_text

HEADER = "The recipe of the first run of a soup; soup.json names all of them."


@dataclass(frozen=True, slots=True)
class Soup:
    """The average of several runs' weights: how it compares with the best of them, and its run folder."""

    joined: Joined
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return the soup as one JSON document."""
        return {**joined_facts(self.joined), "folder": None if self.folder is None else str(self.folder)}


@guarded(OF_A_MODEL, is_shared=True)
@typed
def soup(
    runs: Sequence[str | Path],
    *,
    greedy: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Soup:
    """Average the weights of several finished runs that began at one point, and measure the model on val and test.

        finetune.soup(["runs/a", "runs/b", "runs/c"], greedy=True, out="runs/soup")

    `greedy` goes through the runs from the best on val to the worst, and takes each that makes the soup no worse there;
    without it all are taken. `out` is a new run folder for the model, which `predict`, `evaluate`, `export` and
    `--weights` take like that of any other run. Source: Wortsman et al. 2022, arXiv:2203.05482.

    Raises:
        CheckpointError: a run that is not finished, runs with other classes or images, or that share no start.
        RecipeError: fewer than two runs.
    """
    if out is not None:
        check_new(Path(out))
    members = load_members(
        runs, what="a soup", out=out, device=device, batch_size=batch_size, workers=workers, on_event=on_event
    )
    check_one_start(members.runs)
    if not heads_begin_alike(members.runs):
        text = "their heads started differently (train.seed): a soup does better if the runs share it"
        on_event(Event.warning(text))
    kitchen = _Kitchen(members, batch_size, workers)
    taken = kitchen.greedy() if greedy else list(range(len(members.runs)))
    outputs = kitchen.outputs(taken)
    counts = [int(place in taken) for place in range(len(members.runs))]
    found = join_members(members, outputs, counts)
    if out is not None:
        _leave(Path(out), members, found, outputs)
    return Soup(found, None if out is None else Path(out))


class _Kitchen:
    """Makes soups in the model of the first run, whose own weights are kept."""

    def __init__(self, members: Members, batch_size: int, workers: int | None) -> None:
        self.members, self.batch_size, self.workers = members, batch_size, workers
        self.model = members.runs[0].backbone.model
        self.states = [
            {key: tensor.clone() for key, tensor in run.backbone.model.state_dict().items()} for run in members.runs
        ]

    def outputs(self, taken: Sequence[int], names: Sequence[Split] | None = None) -> dict[Split, Tensor]:
        """Return the outputs (N, K), on some splits, of the soup of some runs, which the model then is."""
        self.model.load_state_dict(mean_state([self.states[place] for place in taken]))
        return {name: self._asked(name) for name in names or list(self.members.judged)}

    def greedy(self) -> list[int]:
        """Return who is taken, from the best run on val on, as long as val does not fall.

        Raises:
            CheckpointError: there is no val.
        """
        if "val" not in self.members.judged:
            raise CheckpointError(
                "a greedy soup is made by val, and these runs have no val images",
                hint="A refit trains on val. Leave out --greedy to use all runs.",
            )
        judged = self.members.judged["val"]
        judge = judge_of(self.members.task, judged.targets)
        ranks = [(score, -loss) for score, loss in map(judge, judged.outputs)]
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        taken, best = order[:1], ranks[order[0]]
        for place in order[1:]:
            score, loss = judge(self.outputs([*taken, place], ["val"])["val"])
            if (score, -loss) >= best:
                taken, best = [*taken, place], (score, -loss)
        return sorted(taken)

    def _asked(self, name: Split) -> Tensor:
        samples = self.members.judged[name].samples
        first, manifest = self.members.runs[0], self.members.manifest
        outputs, _ = logits_on(first, manifest, samples, batch_size=self.batch_size, workers=self.workers)
        return outputs


def _leave(out: Path, members: Members, found: Joined, outputs: dict[Split, Tensor]) -> None:
    """Write a run folder with the soup as its model, whole or not at all."""
    first = members.runs[0]
    said = {name: answers(members.task, rows, found.thresholds) for name, rows in outputs.items()}
    of_task: Any = {"task": first.task, "thresholds": found.thresholds, "deviation": first.deviation}
    with new_whole_folder(out, hint="Give a new folder with --out.") as beside:
        folder = RunFolder(beside)
        for file in (first.folder.split, first.folder.plan, first.folder.problems, first.folder.began):
            if file.is_file():
                shutil.copyfile(file, beside / file.name)
        write_model(folder.model, first.backbone, first.classes, **of_task)
        write_predictions(folder.predictions, members.manifest, said, class_shares(members.task, outputs))
        write_json(folder.environment, environment.describe())
        write_json(beside / "soup.json", {"format_version": FORMAT_VERSION, **joined_facts(found)})
        write_text(folder.recipe, recipes.dump(first.recipe, header=HEADER))
        write_json(folder.metrics, joined_facts(found)["metrics"])
