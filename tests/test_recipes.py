"""Every shipped recipe loads, writes out what its strategy means, and its header says what was measured and how."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from finetune import recipe as recipes
from finetune.prepare.inputs import skeleton_of
from finetune.prepare.resolve import plan_phases, resolve_numbers
from finetune.settings import Recipe
from finetune.strategy.matrix import CELLS
from finetune.strategy.strategies import STRATEGIES
from finetune.values import STRATEGY_NAMES
from finetune.workflow.recipes import header_of, list_recipes, load_recipe, recipe_text
from tests.support import ROOT, parsed, tool

FILES = sorted((ROOT / "recipes").glob("*.toml"))
SETTLED = [file for file in FILES if load_recipe(file.stem).strategy.name in STRATEGIES]
SHARE = r"[01]\.\d{3}"
FIGURES = rf"{SHARE} \[{SHARE}, {SHARE}\] on \d+ test images: mean \[least, most\] of 5 seeds, at [0-9a-f]{{7,}}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_header_has_every_key_and_says_what_was_measured(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, header = tool("measure_recipes", monkeypatch).KEYS, header_of(recipe_text(file.stem))
    assert [key for key in header if not key.startswith("Top1 on ")] == list(keys)
    assert re.fullmatch(FIGURES, header["Top1"])
    assert re.search(r"drawn images of 6 classes, Apache-2\.0 .*; \d+ train, \d+ test", header["Data"])
    assert re.search(r"one thread of .+; \d+ CPU seconds a run", header["Machine"])
    assert all(re.fullmatch(FIGURES, text) for key, text in header.items() if key.startswith("Top1 on "))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_of_a_header_is_one_that_the_tool_takes(file: Path) -> None:
    taken = parsed(header_of(recipe_text(file.stem))["Command"])
    assert taken["recipe"] == file.stem
    named = {flag: value for flag, value in taken.items() if flag in recipes.ALIASES and value is not None}
    settings = {
        recipes.ALIASES[flag]: recipes.parse_flag(flag, value) if isinstance(value, str) else value
        for flag, value in named.items()
    }
    assert {"backbone.name", "backbone.image_size", "split.test", "train.seed"} <= set(settings)
    recipes.update(load_recipe(file.stem), settings)


def test_every_strategy_and_every_cell_of_the_matrix_has_a_recipe() -> None:
    listed = {recipe.name: recipe.strategy for recipe in list_recipes()}
    assert set(STRATEGY_NAMES) | {"-".join(cell) for cell in CELLS} == set(listed)
    assert all(listed[name] == name for name in STRATEGY_NAMES)


@pytest.mark.parametrize("file", SETTLED, ids=lambda file: file.stem)
@pytest.mark.parametrize("images", [40, 4000])
def test_what_a_recipe_writes_out_is_what_its_strategy_means(file: Path, images: int) -> None:
    """Else `--recipe full` and `--strategy full` would be two things."""
    written, numbers = load_recipe(file.stem), ("strategy.name", "strategy.top_k", "strategy.probe_at")
    named = recipes.update(Recipe(), {key: recipes.value(written, key) for key in numbers})
    backbone = skeleton_of(recipes.update(written, {"backbone.name": "mobilenetv2_050"}), num_classes=3)
    by_file, by_name = (resolve_numbers(recipe, backbone, None, num_train=images) for recipe in (written, named))
    assert plan_phases(by_file, backbone) == plan_phases(by_name, backbone)
    differ = {key for key in recipes.fields() if recipes.value(by_file, key) != recipes.value(by_name, key)}
    assert {key: recipes.value(by_name, key) for key in differ} == dict.fromkeys(differ, "auto")


def test_what_auto_means_is_what_recipes_write_in_its_place() -> None:
    """Of the keys that stay auto where only numbers are settled: their help says what that is."""
    helps = {key: str(info.description) for key, info in recipes.fields().items()}
    assert "auto: medium" in helps["augment.level"] and "auto: 0.1" in helps["optim.warmup"]
    assert "auto: frozen, but updated in what is re-initialised" in helps["strategy.norm_statistics"]
    for file in SETTLED:
        keys = tomllib.loads(file.read_text(encoding="utf-8"))
        assert keys["augment"]["level"] == "medium" and keys.get("optim", {}).get("warmup", 0.1) == 0.1
        expected = "updated" if file.stem == "scratch" else "frozen"
        assert keys["strategy"].get("norm_statistics", expected) == expected


def test_rewriting_a_header_changes_its_lines_alone_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = tool("measure_recipes", monkeypatch)
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert measure.rewritten(text, {}) == text
        once = measure.rewritten(text, {"Top1": "x", "Top1 on flowers (their terms)": "y"})
        assert measure.rewritten(once, {"Top1": "x", "Top1 on flowers (their terms)": "y"}) == once
        assert set(once.splitlines()) - set(text.splitlines()) == {"# Top1: x", "# Top1 on flowers (their terms): y"}
        assert (
            once.splitlines().index("# Top1 on flowers (their terms): y") == list(header_of(once)).index("Source") - 1
        )
        assert tomllib.loads(once) == tomllib.loads(text)


def test_a_header_is_measured_by_its_own_command_under_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = tool("measure_recipes", monkeypatch)
    command = header_of(recipe_text("top-k"))["Command"]
    words = measure.command_for(command, Path("/drawn"), seed=3, out=Path("/run"))
    other = [word.replace("imgs", "/drawn").replace("split.seed=0", "split.seed=3") for word in command.split()]
    other[other.index("--seed") + 1] = "3"
    assert words == [*other, "--out", "/run"]


def test_figures_are_the_mean_the_least_and_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = tool("measure_recipes", monkeypatch)
    outcomes = [measure.Outcome(top1, 144, 173, 10.0) for top1 in (0.5, 0.75, 0.7, 0.6, 0.7)]
    assert measure.figures(outcomes, "abc1234") == (
        "0.650 [0.500, 0.750] on 144 test images: mean [least, most] of 5 seeds, at abc1234"
    )


@pytest.mark.slow
def test_the_script_measures_a_recipe_and_rewrites_its_header(tmp_path: Path) -> None:
    """In a clone of its own, since it asks git which commit gave the figures."""
    clone = tmp_path / "clone"
    for name in ("finetune", "recipes", "tools"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", clone)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=clone, check=True)
    script = [sys.executable, str(clone / "tools" / "measure_recipes.py"), "few-similar", "--seeds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    before = header_of((clone / "recipes" / "few-similar.toml").read_text(encoding="utf-8"))
    subprocess.run(script, check=True, env=environment)
    after = header_of((clone / "recipes" / "few-similar.toml").read_text(encoding="utf-8"))
    assert re.fullmatch(FIGURES.replace("5 seeds", "2 seeds"), after["Top1"])
    assert {key: before[key] for key in ("Purpose", "Command", "Source")} == {
        key: after[key] for key in ("Purpose", "Command", "Source")
    }
    (clone / "recipes" / "few-similar.toml").write_text("[strategy]\nname = 'full'\n")
    refused = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "commit first" in refused.stderr and "few-similar" in refused.stderr
