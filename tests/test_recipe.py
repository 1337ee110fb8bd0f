"""The recipe: defaults that are valid, a way to TOML and back, and every problem by name at once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe import ALIASES, describe_type, dump, fields, load, loads, parse_flag, parse_set, update
from finetune.settings import SECTIONS, Recipe
from finetune.values import STRATEGY_NAMES

NUMBERS = {
    "split.val": 0.5,
    "split.test": 0.25,
    "split.seed": 2**63 - 1,
    "backbone.image_size": 96,
    "strategy.top_k": 0,
    "train.epochs": 7,
    "train.batch_size": 3,
    "train.workers": 0,
    "train.seed": 5,
    "train.patience": 2,
    "train.checkpoint_every": 0.5,
    "optim.lr": 1e-30,
    "optim.weight_decay": 0.0,
    "optim.layer_decay": 1.0,
    "optim.warmup": 0.0,
    "optim.clip": 1e22,
    "loss.label_smoothing": 0.1,
    "augment.min_crop": 0.01,
    "augment.horizontal_flip": 1.0,
    "augment.vertical_flip": 0.0,
    "augment.color_jitter": 0.3,
}
NUMBER_KEYS = [key for key, info in fields().items() if "number" in describe_type(info)]
ODD_TEXTS = [
    "",
    "a=b",
    'quo"te',
    "back\\slash",
    "new\nline",
    "tab\t",
    "ünï 🐜",
    "'''",
    '"""',
    "# no comment",
    " x ",
    "\x7f\x01",
]


def value_of(recipe: Recipe, key: str) -> Any:
    section, name = key.split(".", 1)
    return getattr(getattr(recipe, section), name)


def refused(**overrides: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(overrides={key.replace("__", "."): value for key, value in overrides.items()})
    return caught.value


def test_the_defaults_are_valid_and_pass_their_own_checks() -> None:
    assert load() == Recipe() == Recipe.model_validate(Recipe().model_dump())
    assert loads("", source="nothing") == Recipe()


def test_every_key_has_one_line_of_help_and_a_type_in_words() -> None:
    for key, info in fields().items():
        assert info.description and info.description.endswith("."), key
        assert describe_type(info), key


@pytest.mark.parametrize("describe", [False, True])
@pytest.mark.parametrize("header", ["", "one line", "two\nlines = 3\n[not a section]"])
def test_the_defaults_survive_the_way_to_toml_and_back(header: str, describe: bool) -> None:
    text = dump(Recipe(), header=header, describe=describe)
    assert loads(text, source="dump") == Recipe()
    assert dump(loads(text, source="dump"), header=header, describe=describe) == text


def test_a_described_dump_says_what_every_key_is() -> None:
    text = dump(Recipe(), describe=True).replace("\n# ", " ")
    for key, info in fields().items():
        assert info.description in text, key
    assert all(f"[{name}]" in text for name in SECTIONS)


def test_all_numbers_survive_the_way_to_toml_and_back() -> None:
    recipe = load(overrides=NUMBERS)
    again = loads(dump(recipe), source="dump")
    assert again == recipe
    assert {key: value_of(again, key) for key in NUMBERS} == NUMBERS
    assert set(NUMBERS) <= set(NUMBER_KEYS)


@pytest.mark.parametrize("text", [*ODD_TEXTS, "\udcff"])
def test_odd_texts_survive_the_way_to_toml_and_back(text: str) -> None:
    recipe = load(overrides={"data.path": text, "backbone.name": text, "backbone.model_args": {"x": [text, {"y": 1}]}})
    assert loads(dump(recipe, describe=True), source="dump") == recipe
    assert recipe.data.path == recipe.backbone.name == text


@pytest.mark.parametrize("seed", range(10))
def test_random_recipes_survive_the_way_to_toml_and_back(seed: int) -> None:
    rng = random.Random(seed)
    chosen = {key: value for key, value in NUMBERS.items() if rng.random() < 0.5}
    chosen["optim.lr"] = rng.uniform(0, 1) * 10 ** rng.randint(-20, 3)
    chosen["strategy.name"] = rng.choice(STRATEGY_NAMES)
    recipe = load(overrides=chosen)
    assert loads(dump(recipe), source="dump") == recipe
    assert recipe.optim.lr == chosen["optim.lr"]


def test_a_file_is_read_and_overrides_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[optim]\nlr = 0.5\nname = "sgd"\n[data]\npath = "ünï"\n', encoding="utf-8")
    recipe = load(path, overrides={"optim.lr": 0.2, "train.epochs": 3})
    assert (recipe.optim.lr, recipe.optim.name, recipe.train.epochs, recipe.data.path) == (0.2, "sgd", 3, "ünï")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("train.epoch", "train.epochs"),
        ("epoch", "train.epochs"),
        ("lr", "optim.lr"),
        ("train.lr", "optim.lr"),
        ("stratgy.name", "strategy.name"),
        ("batchsize", "train.batch_size"),
        ("seed", "split.seed"),
        ("seed", "train.seed"),
        ("backbone.model_arg", "backbone.model_args"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_whole_name(key: str, nearest: str) -> None:
    message = refused(**{key: 1}).message
    assert message.startswith(f"{key}: no such key. Did you mean ")
    assert f"'{nearest}'" in message
    section, _, name = key.rpartition(".")
    if section in SECTIONS:
        with pytest.raises(RecipeError, match=f"'{nearest}'"):
            loads(f"[{section}]\n{name} = 1\n", source="r.toml")


@pytest.mark.parametrize("key", ["", ".", "optim", "optim.", ".lr", "a.b.c", "optim.lr.x", "format_version", "zzz.qqq"])
def test_what_is_no_key_is_refused_by_name(key: str) -> None:
    assert refused(**{key: 1}).message.startswith(f"{key}: no such key.")


def test_an_unknown_section_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"\[optm\]: no such section\. Did you mean 'optim'"):
        loads("[optm]\nlr = 1\n", source="r.toml")


def test_all_problems_come_at_once_file_and_overrides_alike(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[optim]\nlr = -1\nfoo = 1\n[train]\nepochs = true\n[nope]\nx = 1\n")
    with pytest.raises(RecipeError) as caught:
        load(path, overrides={"split.val": 2, "bar": 1, "strategy.name": "hed-only"})
    named = [problem.split(" ")[0].rstrip(":") for problem in caught.value.problems]
    expected = ["[nope]", "bar", "optim.foo", "optim.lr", "split.val", "strategy.name", "train.epochs"]
    assert sorted(named) == expected
    assert caught.value.message.startswith("7 problems")
    assert all(problem in caught.value.message for problem in caught.value.problems)
    assert str(path) in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "must be a "),
        (float("inf"), "must be a "),
        (float("-inf"), "must be a "),
        (-1, "must be greater than"),
        (True, "must be a "),
        ("1", "must be a "),
    ],
    ids=repr,
)
def test_what_is_no_number_that_a_key_can_have_is_refused_by_the_name_of_the_key(value: object, reason: str) -> None:
    messages = {key: refused(**{key: value}).message for key in NUMBER_KEYS}
    assert len(messages) > 20
    wrong = [message for key, message in messages.items() if not message.startswith(f"{key} = {value!r}: {reason}")]
    assert wrong == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split.val", 0),
        ("split.val", 1.0),
        ("split.test", 1),
        ("train.epochs", 0),
        ("train.epochs", 1.5),
        ("train.batch_size", 0),
        ("train.seed", 2**63),
        ("backbone.image_size", 7),
        ("optim.lr", 0),
        ("optim.layer_decay", 1.1),
        ("optim.layer_decay", 0),
        ("augment.min_crop", 0),
        ("augment.horizontal_flip", 1.01),
        ("optim.clip", 0.0),
        ("data.path", 3),
        ("data.path", None),
        ("backbone.pretrained", 1),
        ("backbone.pretrained", "true"),
        ("backbone.model_args", "x=1"),
        ("train.device", "gpu"),
        ("optim.lr", "none"),
        ("optim.clip", "auto"),
        ("train.epochs", []),
        ("train.epochs", {}),
    ],
)
def test_a_value_outside_of_its_range_or_type_is_refused_by_name(key: str, value: Any) -> None:
    error = refused(**{key: value})
    assert error.message.startswith(f"{key} = {value!r}: must be ")
    assert len(error.problems) == 1


def test_a_misspelt_word_is_refused_with_the_nearest() -> None:
    assert "Did you mean 'head-only'?" in refused(strategy__name="hed-only").message
    assert "Did you mean 'none'?" in refused(train__patience="nome").message


@pytest.mark.parametrize(
    "text", ["optim = 3", "[[optim]]\nlr = 1", 'optim = "adam"', "[optim.lr]\nx = 1", "optim = []"]
)
def test_a_section_of_another_shape_is_refused_by_name_with_and_without_overrides(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    for overrides in ({}, {"optim.name": "sgd"}):
        with pytest.raises(RecipeError, match=r"^optim(\.lr)? = .*must be"):
            load(path, overrides=overrides)


@pytest.mark.parametrize("version", ["0", "2", '"1"', "[]"])
def test_another_format_version_is_refused(version: str) -> None:
    with pytest.raises(RecipeError, match=r"format_version = .*must be 1"):
        loads(f"format_version = {version}", source="r.toml")


@pytest.mark.parametrize("text", ["a = ", "[optim", "[optim]\nlr = 1\nlr = 2\n", "lr == 1", "\x00"])
def test_what_is_no_toml_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.toml is not TOML"):
        load(path)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[data]\npath = '\xff'\n")
    for name, message in (("latin.toml", "cannot be read"), ("gone.toml", "no recipe file"), (".", "cannot be read")):
        with pytest.raises(RecipeError, match=message) as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.lr=0.01", "optim.lr", 0.01),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        (" optim.lr = 1 ", "optim.lr", 1),
        ("train.reinit=true", "train.reinit", True),
        ("strategy.name=lp-ft", "strategy.name", "lp-ft"),
        ("data.path=a=b=c", "data.path", "a=b=c"),
        ("data.path=", "data.path", ""),
        ("data.path=/x y/ü#1", "data.path", "/x y/ü#1"),
        ('data.path="123"', "data.path", "123"),
        ("data.path=2024-01-01", "data.path", "2024-01-01"),
        ("data.path=10:30:00", "data.path", "10:30:00"),
        ("data.group_by=/(p\\d+)_", "data.group_by", "/(p\\d+)_"),
        ("backbone.model_args={drop_rate=0.1, a=[1]}", "backbone.model_args", {"drop_rate": 0.1, "a": [1]}),
        ("optim.lr=a\nb = 1", "optim.lr", "a\nb = 1"),
    ],
)
def test_set_is_split_at_the_first_equals_sign_and_its_value_is_toml_or_text(text: str, key: str, value: Any) -> None:
    found = parse_set(text)
    assert found == (key, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize("text", ["optim.lr", "", "optim.lr:1"])
def test_set_without_an_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"section\.key=value"):
        parse_set(text)


def test_every_alias_stands_for_a_key_that_exists_and_none_twice() -> None:
    assert set(ALIASES.values()) <= set(fields())
    assert len(set(ALIASES.values())) == len(ALIASES)


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("lr", ".001", 0.001),
        ("val", ".2", 0.2),
        ("lr", "1", 1),
        ("epochs", "3", 3),
        ("epochs", "auto", "auto"),
        ("data", "123", "123"),
        ("data", "true", "true"),
        ("backbone", "1e3", "1e3"),
        ("group_by", '"x"', '"x"'),
        ("device", "cpu", "cpu"),
    ],
)
def test_a_flag_is_a_number_where_its_key_takes_numbers_and_else_its_text(flag: str, text: str, value: Any) -> None:
    found = parse_flag(flag, text)
    assert (found, type(found)) == (value, type(value))
    assert value_of(load(overrides={ALIASES[flag]: found}), ALIASES[flag]) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "true", "", "1,5", "1e999", "0.5.1"])
def test_a_flag_that_is_no_allowed_number_is_refused_by_name(text: str) -> None:
    assert refused(optim__lr=parse_flag("lr", text)).message.startswith("optim.lr = ")


def test_update_changes_what_it_names_and_nothing_else() -> None:
    before = load(overrides=NUMBERS)
    after = update(before, {"optim.lr": 0.5, "strategy.name": "full"})
    assert (after.optim.lr, after.strategy.name) == (0.5, "full")
    assert before == load(overrides=NUMBERS)
    assert update(after, {"optim.lr": NUMBERS["optim.lr"], "strategy.name": "auto"}) == before


def test_update_shares_no_table_with_what_it_was_made_of() -> None:
    before = load(overrides={"backbone.model_args": {"x": [1]}})
    after = update(before, {"optim.lr": 0.5})
    after.backbone.model_args["x"].append(2)
    assert before.backbone.model_args == {"x": [1]}


@pytest.mark.parametrize(("key", "value"), [("optim.lr", -1), ("nope", 1), ("optim.nope", 1), ("train.device", "gpu")])
def test_update_refuses_what_load_refuses(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key):
        update(Recipe(), {key: value})


def test_a_recipe_cannot_be_changed_in_place() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optim.lr = 0.1  # type: ignore[misc]
    assert recipe == Recipe()


@pytest.mark.parametrize("value", [5, "x", [1], [1, 2, 3], [5, 1], [1, 1], [0, float("inf")], [True, 3], True])
def test_black_and_white_are_two_finite_numbers_that_rise(value: object) -> None:
    assert "black" in refused(**{"data.value_range": value}).message


def test_black_and_white_come_back_from_toml_as_they_went(tmp_path: Path) -> None:
    recipe = load(overrides={"data.value_range": [-1000, 400]})
    (tmp_path / "r.toml").write_text(dump(recipe))
    assert load(tmp_path / "r.toml") == recipe
    assert recipe.data.value_range == (-1000.0, 400.0)
