"""A search: its steps in order, the same trials after a kill and by two processes, on val alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune import recipe as recipes
from finetune.prepare.asked import recipe_of
from finetune.runs.searchable import with_meaning
from finetune.search.study import TrialFacts
from finetune.types import Event, Manifest
from finetune.workflow import tune as tuning
from tests.killing import forked
from tests.support import TINY, draw_numbers, draw_sets, mostly_slow, unfinished_files

MORE: dict[str, Any] = {**TINY, "strategy": "full", "epochs": 3, "trials": 6}


@pytest.fixture(scope="module")
def whole_and_texts(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[finetune.Tuned, list[str]]:
    """A search and what it told."""
    texts: list[str] = []
    place = tmp_path_factory.mktemp("whole") / "s"
    tell = lambda event: texts.append(str(event.facts.get("text", event.kind)))  # noqa: E731
    return finetune.tune(few, out=place, test=0.2, on_event=tell, **MORE), texts


@pytest.fixture(scope="module")
def whole(whole_and_texts: tuple[finetune.Tuned, list[str]]) -> finetune.Tuned:
    return whole_and_texts[0]


def told(trials: tuple[TrialFacts, ...]) -> list[tuple[Any, ...]]:
    return [(one.study, one.number, one.params, one.state, one.score, one.loss, one.curve) for one in trials]


def test_the_steps_are_told_in_their_order_and_the_winner_is_a_recipe_that_does_what_the_trial_did(
    whole_and_texts: tuple[finetune.Tuned, list[str]], tmp_path: Path
) -> None:
    found, texts = whole_and_texts
    steps = [text for text in texts if text[:2] in {f"{number}." for number in range(1, 8)}]
    assert list(dict.fromkeys(text[0] for text in steps)) == list("1234567")
    last = [text.removeprefix("6. ").removeprefix("the winner: ") for text in texts if text.endswith(found.curves)]
    assert set(found.curves) <= set(last)
    assert "ln 6" in steps[0] and "memorised" in steps[1] and "the loss falls" in steps[2]
    assert texts.count("trial") == 7  # and the recipe as it is
    assert found.best.rank == max(one.rank for one in (*found.trials, found.usual) if one.study != "coarse")
    winner = recipes.load(found.recipe)
    for key, value in found.best.params.items():
        assert recipes.value(winner, key) == value
    again = finetune.run(recipe=found.recipe, out=tmp_path / "again", overrides={"train.calibrate": False})
    lines = [json.loads(line) for line in (again.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_top1"] for line in lines] == list(found.best.curve)
    page = (found.folder / "report.html").read_text()
    assert all(text in page for text in (*found.checks, *found.curves)) and "optim.lr" in page
    assert page.count("<circle") >= sum(len(one.params) for one in found.trials if one.score is not None)
    with pytest.raises(finetune.CheckpointError, match="is finished"):
        finetune.resume_tuning(found.recipe.parent)
    with pytest.raises(finetune.CheckpointError, match="is a search of several runs"):
        finetune.load(found.recipe.parent)


def test_coarse_trials_are_short_and_near_the_best_they_are_whole(whole: finetune.Tuned) -> None:
    assert {len(one.curve) for one in whole.trials if one.study == "coarse"} == {1}
    assert all(len(one.curve) == 3 for one in whole.trials if one.study != "coarse" and one.state == "done")
    coarse = [one for one in whole.trials if one.study == "coarse"]
    finer = [one for one in whole.trials if one.study == "finer"]
    assert finer[0].params == max(coarse, key=lambda one: one.rank).params
    assert len({one.params["optim.lr"] for one in coarse}) == len(coarse) == 4


def test_a_search_killed_inside_a_trial_and_between_trials_ends_with_the_same_ones(
    whole: finetune.Tuned, few: Path, tmp_path: Path
) -> None:
    def dying(after: int) -> None:
        """Go on with the search, or begin it, and die in a trial."""
        left, tried = [after], tuning.tried

        def counted(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                more["goes_on"] = lambda _: os.kill(os.getpid(), 9)
            return tried(*arguments, **more)

        tuning.tried = counted
        if (tmp_path / "s" / "recipe.toml").is_file():
            finetune.resume_tuning(tmp_path / "s")
        else:
            finetune.tune(few, out=tmp_path / "s", test=0.2, **MORE)

    def between() -> None:
        def on_event(event: Event) -> None:
            if event.kind == "trial" and event.facts["study"] == "finer":
                os.kill(os.getpid(), 9)

        finetune.resume_tuning(tmp_path / "s", on_event=on_event)

    for work in (lambda: dying(1), lambda: dying(3), lambda: dying(2), between):
        ended = forked(work)
        assert ended.signal == 9, ended.said
    found = finetune.resume_tuning(tmp_path / "s")
    assert told(found.trials) == told(whole.trials)
    assert (found.usual, found.checks, found.best, found.curves) == (
        whole.usual,
        whole.checks,
        whole.best,
        whole.curves,
    )
    assert recipes.load(found.recipe) == recipes.load(whole.recipe)
    assert [name for name in unfinished_files(tmp_path / "s") if name != ".asking.lock"] == []


def test_two_processes_share_a_search_and_each_trial_is_done_once(
    whole: finetune.Tuned, few: Path, tmp_path: Path
) -> None:
    def stopped(event: Event) -> None:
        if event.kind == "trial":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.tune(few, out=tmp_path / "s", test=0.2, on_event=stopped, **MORE)
    command = [sys.executable, "-m", "finetune", "tune", "--resume", str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as helper:
        found = finetune.resume_tuning(tmp_path / "s")
        said, _ = helper.communicate(timeout=300)
    assert helper.returncode in (0, 6), said  # 6: it came when all was finished
    assert told(found.trials) == told(whole.trials)


def test_test_images_are_never_looked_at(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Manifest] = []
    prepare = tuning.trials.prepare

    def watched(recipe: finetune.Recipe, *, manifest: Manifest, **more: Any) -> Any:
        seen.append(manifest)
        return prepare(recipe, manifest=manifest, **more)

    monkeypatch.setattr(tuning.trials, "prepare", watched)
    finetune.tune(few, out=tmp_path / "s", test=0.25, **{**MORE, "trials": 3})
    assert len(seen) >= 6
    assert all(not manifest.split("test") and manifest.split("val") for manifest in seen)
    assert "test" in (tmp_path / "s" / "split.csv").read_text()


def test_a_grid_covers_the_space(few: Path, tmp_path: Path) -> None:
    space = ["optim.lr=log:1e-4:1e-2", "optim.name=adamw,sgd", "optim.momentum_from=none,0.5"]
    found = finetune.tune(few, out=tmp_path / "s", sampler="grid", search=space, **{**MORE, "trials": 14})
    coarse = [one for one in found.trials if one.study == "coarse"]
    assert len({tuple(one.params.items()) for one in coarse}) == len(coarse) == 8
    assert {one.params["optim.lr"] for one in coarse} == {1e-4, 1e-2}


def test_a_time_ends_a_search_wherever_it_is(few: Path, tmp_path: Path) -> None:
    found = finetune.tune(few, out=tmp_path / "s", time="1s", **{**MORE, "trials": 200})
    assert len(found.trials) < 200
    assert recipes.load(found.recipe).train.time == "none"


def test_a_solved_head_is_searched_too(few: Path, tmp_path: Path) -> None:
    space = ["strategy.whiten=none,pca,zca"]
    more = {**MORE, "strategy": "linear-probe", "trials": 3}
    found = finetune.tune(few, out=tmp_path / "p", search=space, **more)
    assert "no steps" in found.checks[1] and found.score == "top1"


OF_TASKS = [(draw_sets, "label", "mAP"), (draw_numbers, "length", "r2")]


@pytest.mark.parametrize(("draw", "column", "score"), mostly_slow(OF_TASKS, OF_TASKS[1]))
def test_other_tasks_are_searched_too(draw: Callable[..., Path], column: str, score: str, tmp_path: Path) -> None:
    table = draw(tmp_path / score, count=24)
    own = finetune.tune(table, out=tmp_path / f"s{score}", overrides={"data.label_column": column},
                        **{**MORE, "trials": 3})  # fmt: skip
    assert own.score == score and own.best.score is not None


def test_what_cannot_be_searched_is_refused_before_anything_is_run(few: Path, tmp_path: Path) -> None:
    for asked, said in (
        ({"trials": 2}, "trials = 2: must be a whole number of 3 or more"),
        ({"sampler": "bayes"}, "sampler 'bayes' is not one of"),
        ({"search": ["optim.rate=1,2"]}, "no such key"),
        ({"strategy": "race"}, "a race has several strategies"),
        ({"lr": "range-test"}, "has no meaning with tune"),
        ({"search": ["strategy.name=full,race"]}, "a race has several strategies"),
        ({"search": ["optim.lr=0.1,range-test"]}, "has no meaning with tune"),
        ({"search": ["loss.focal_gamma=lin:1:3"]}, "loss.focal_gamma has no meaning with loss.name = 'auto'"),
        ({"search": ["strategy.top_k=1,2"]}, "strategy.top_k has no meaning with strategy.name = 'full'"),
        ({"strategy": "linear-probe"}, "learning rate and weight decay, .* change nothing with linear-probe"),
        ({"strategy": "linear-probe", "search": ["optim.lr=0.1,1"]}, "optim.lr changes nothing with linear-probe"),
    ):
        with pytest.raises(finetune.RecipeError, match=said):
            finetune.tune(few, out=tmp_path / "s", **{**MORE, **asked})
    assert not (tmp_path / "s").exists()
    with pytest.raises(finetune.CheckpointError, match="is not a search folder"):
        finetune.resume_tuning(tmp_path)


def test_what_no_trial_could_begin_with_is_told_before_the_first_one(few: Path, tmp_path: Path) -> None:
    for search, said in (
        ("backbone.name=lenet5,no_such_net", "--search backbone.name: with no_such_net, "),
        ("strategy.top_k=int:1:99", "--search strategy.top_k: with 99, "),
    ):
        with pytest.raises(finetune.FinetuneError, match=said) as failed:
            finetune.tune(few, out=tmp_path / "s", search=[search], **{**MORE, "strategy": "top-k"})
        assert failed.value.hint or "top" in str(failed.value)
    assert not (tmp_path / "s").exists()


def test_a_key_that_belongs_to_another_choice_is_only_in_the_trials_that_use_it(few: Path, tmp_path: Path) -> None:
    space = ["loss.name=focal,cross-entropy", "loss.focal_gamma=1,3"]
    found = finetune.tune(few, out=tmp_path / "s", search=space, sampler="grid", **{**MORE, "trials": 4, "epochs": 1})
    plain = [one for one in found.trials if one.params["loss.name"] == "cross-entropy"]
    assert plain and all("loss.focal_gamma" not in one.params for one in plain)
    coarse = [one.params for one in found.trials if one.study == "coarse"]
    assert len(coarse) == 3 and all(one not in coarse[:place] for place, one in enumerate(coarse))
    assert all("loss.focal_gamma" in one.params for one in found.trials if one not in plain)
    recipe, own = with_meaning(recipes.load(found.folder / "recipe.toml"), plain[0].params | {"loss.focal_gamma": 3})
    assert own == plain[0].params
    assert recipe_of(recipe) == recipe  # can be run: nothing in it is without a meaning


def test_a_storage_that_cannot_be_reached_is_told_at_once_and_leaves_nothing(few: Path, tmp_path: Path) -> None:
    with pytest.raises(finetune.ResourceError, match="cannot be used"):
        finetune.tune(few, out=tmp_path / "s", storage="postgresql+psycopg://x@127.0.0.1:1/none", **MORE)
    assert not (tmp_path / "s").exists()
