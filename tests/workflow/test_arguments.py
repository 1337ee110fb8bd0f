"""What Python code gives the functions: results where paths are asked for, one thing in place of a list, mistakes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune
from finetune import recipe as recipes
from finetune.arguments import Settings
from finetune.errors import check_count
from finetune.prepare.asked import recipe_of


def test_a_result_stands_for_its_folder(tiny_run: Any) -> None:
    result = tiny_run(epochs=1)
    assert finetune.evaluate(result, device="cpu") == finetune.evaluate(result.folder, device="cpu")
    assert finetune.load(result).classes == finetune.load(str(result.folder)).classes
    assert Path(finetune.export(result)) == result.folder / "exports" / "model.onnx"


def test_one_text_in_place_of_several_is_one_and_not_its_letters(few: Path) -> None:
    with pytest.raises(finetune.RecipeError, match="an ensemble of 1 run"):
        finetune.ensemble("runs/one")
    with pytest.raises(finetune.BackboneError, match="unknown backbone 'no_such_net'"):
        finetune.rank(few, "no_such_net", sample=24, device="cpu")
    with pytest.raises(finetune.RecipeError, match="no such key"):
        finetune.tune(few, search="optim.rate=1,2")


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ({"strategie": "full"}, "strategie: no such setting. Did you mean 'strategy'?", "There are data, task"),
        ({"learning_rate": 0.1}, "learning_rate: no such setting.", "lr, "),
        ({"overrides": ["optim.lr=1"]}, "overrides = ['optim.lr=1']: must be a mapping", ""),
        ({"overrides": "optim.lr=1"}, "overrides = 'optim.lr=1': must be a mapping of keys to values, as {", ""),
        ({"recipe": {"optim": {}}}, "recipe = {'optim': {}}: must be a recipe, its name or its file", "overrides"),
        ({"recipe": "head-onl"}, "no recipe file head-onl. Did you mean 'head-only'", "recipes ls"),
    ],
)
def test_what_a_function_does_not_take_is_told(few: Path, given: dict[str, Any], said: str, hint: str) -> None:
    for function in (finetune.run, finetune.check, finetune.tune):
        with pytest.raises(finetune.RecipeError, match=re.escape(said)) as refused:
            function(few, **given)
        assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("name", "args", "given", "said"),
    [
        ("run", ["imgs"], {"out": 5}, "out = 5: must be a path or None"),
        ("load", [5], {}, "run = 5: must be a path"),
        ("load", ["r"], {"device": None}, "device = None: must be text"),
        ("evaluate", ["r"], {"overrides": 5, "known_only": "no"}, "overrides = 5: must be a mapping of keys"),
        ("run", ["imgs"], {"overrides": {5: 1}}, "overrides = {5: 1}: must be a mapping of keys"),
        (
            "plan",
            [],
            {"backbone": "test_resnet", "strategy": "full", "images": 0},
            "images = 0: must be a whole number",
        ),
        ("plan", [], {"backbone": "test_resnet", "strategy": "full", "memory": -5}, "memory = -5: must be a whole"),
        ("write_sample", ["d"], {"seed": -1}, "seed = -1: must be a whole number of 0 or more"),
        ("evaluate", ["r"], {"overrides": {}, "known_only": "no"}, "known_only = 'no': must be True or False"),
        ("evaluate", ["r"], {"workers": True}, "workers = True: must be a whole number or None"),
        ("export", ["r"], {"format": ["onnx"]}, "format = ['onnx']: must be one of onnx, timm"),
        ("soup", [5], {}, "runs = 5: must be a list, each a path"),
        ("compare", ["imgs"], {"strategies": [1]}, "strategies = [1]: must be a list, each text"),
        ("resume", ["r"], {"on_event": "print"}, "on_event = 'print': must be a function"),
        ("check", ["imgs"], {"alike": "0.9"}, "alike = '0.9': must be a number"),
        ("write_sample", ["a\0b"], {}, "'a\\x00b': a null character is in no name"),
        ("run", ["imgs"], {"weights": "a\0b"}, "a null character is in no name"),
    ],
)
def test_an_argument_of_another_type_is_one_line(name: str, args: list[Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(finetune.RecipeError, match=re.escape(said)):
        getattr(finetune, name)(*args, **given)


def test_a_call_that_python_refuses_names_the_function() -> None:
    with pytest.raises(TypeError, match=r"load\(\) takes 1 positional argument but 2"):
        finetune.load("run", "cpu")  # type: ignore[misc]


def test_every_public_function_checks_the_types_of_its_arguments() -> None:
    functions = {name: getattr(finetune, name) for name in finetune.__all__}
    unchecked = [
        name
        for name, found in functions.items()
        if inspect.isfunction(found) and inspect.signature(found).parameters and not hasattr(found, "__wrapped__")
    ]
    assert not unchecked


def test_numbers_of_numpy_are_numbers() -> None:
    asked = recipe_of(settings={"epochs": np.int64(3), "lr": np.float32(0.5)}, overrides={"train.seed": np.uint8(7)})
    assert asked == recipe_of(settings={"epochs": 3, "lr": 0.5}, overrides={"train.seed": 7})
    assert "epochs = 3" in recipes.dump(asked)
    check_count("top", np.int64(2))
    for wrong in (np.bool_(True), np.float64(2.5)):
        with pytest.raises(finetune.RecipeError, match=r"train\.epochs = "):
            recipe_of(settings={"epochs": wrong})
        with pytest.raises(finetune.RecipeError, match="must be a whole number"):
            check_count("top", wrong)


def test_a_shipped_recipe_is_taken_by_its_name() -> None:
    assert recipe_of("head-only") == recipes.loads(recipes.shipped_text("head-only"), source="head-only")


def test_the_help_of_run_names_every_setting() -> None:
    named = re.search(r"flags of `finetune run`: ([^.]*)\.", finetune.run.__doc__ or "")
    assert named and re.split(r",\s+", named[1]) == list(Settings.__annotations__)
