"""Every command once, as a user types it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from finetune.checkpoint.run_folder import RunFolder, read_classes
from tests.support import FLAGS

QUICK = (*FLAGS, "--epochs", "1")


def test_a_session_from_sample_to_export(finetune_cli, tmp_path: Path) -> None:
    imgs, run = tmp_path / "imgs", tmp_path / "run"
    assert finetune_cli("sample", imgs, "--per-class", "8").err == ""
    assert "becomes part of it" in finetune_cli("sample", imgs / "more", "--per-class", "1").err
    shutil.rmtree(imgs / "more")
    done = finetune_cli("run", "--data", imgs, "--strategy", "head-only", *QUICK, "--out", run, "--json")
    assert json.loads(done.out)["strategy"] == "head-only"
    assert "val, " in finetune_cli("eval", run).out
    (tmp_path / "t.csv").write_text(
        f"file,label\n{next(imgs.rglob('*.jpg'))},{next(imgs.rglob('*.jpg')).parent.name}\n"
    )
    refused = finetune_cli("eval", run, "--data", tmp_path / "t.csv")
    assert "--set data.image_column=NAME" in refused.err
    assert finetune_cli("eval", run, "--data", tmp_path / "t.csv", "--set", "data.image_column=file").code == 0
    rows = list(csv.DictReader(io.StringIO(finetune_cli("predict", run, imgs, "--top", "2", "--csv").out)))
    assert len(rows) == 48
    assert float(rows[0]["probability1"]) >= float(rows[0]["probability2"])
    assert "proven on" in finetune_cli("export", run).out
    assert finetune_cli("export", run, "--format", "timm").code == 0


def test_plan_prints_groups_and_json(finetune_cli) -> None:
    shown = finetune_cli("plan", "--backbone", "resnet18", "--strategy", "head-only")
    assert all(word in shown.out for word in ("layer4", "8,393,728", "frozen", "513,000 trained"))
    given = json.loads(
        finetune_cli("plan", "--backbone", "test_resnet", "--strategy", "full", "--layers", "--json").out
    )
    assert given["num_parameters"] == sum(row["num_parameters"] for row in given["layers"]["rows"])


def test_plan_prints_the_memory_of_a_gpu_and_refuses_what_is_no_size(finetune_cli) -> None:
    asked = ("plan", "--backbone", "test_resnet", "--no-pretrained", "--strategy", "full", "--memory")
    shown = finetune_cli(*asked, "--within", "1GB")
    assert all(words in shown.out for words in ("float32", "bfloat16", "kept for the backward", "within 953.7 MiB"))
    assert json.loads(finetune_cli(*asked, "--json").out)["memory"][0]["step"]["kept"] > 0
    refused = finetune_cli(*asked, "--within", "much")
    assert refused.code == 2 and "not a size" in refused.err


def test_recipes_are_listed_shown_copied_and_checked(finetune_cli, tmp_path: Path) -> None:
    assert "head-only" in finetune_cli("recipes", "ls").out
    assert "[optim]" in finetune_cli("recipes", "show", "default").out
    assert finetune_cli("recipes", "copy", "full", tmp_path).code == 0
    assert finetune_cli("recipes", "validate", tmp_path / "full.toml").out.endswith("valid\n")
    assert finetune_cli("recipes", "copy", "full", tmp_path).code == 5
    assert "Did you mean 'full'" in finetune_cli("recipes", "show", "ful").err


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("run",),
        ("compare",),
        ("ensemble",),
        ("soup",),
        ("plan",),
        ("eval",),
        ("predict",),
        ("export",),
        ("recipes",),
    ],
)
def test_help_answers(finetune_cli, command: tuple[str, ...]) -> None:
    done = finetune_cli(*command, "--help")
    assert done.code == 0
    assert "Usage" in done.out


def test_doctor_tells_versions_and_the_hub(finetune_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = json.loads(finetune_cli("doctor", "--json").out)
    assert found["hub_is_reachable"] is False
    assert found["packages"]["torch"][0].isdigit()


def test_resume_takes_no_other_recipe_and_no_other_folder(finetune_cli, tmp_path: Path) -> None:
    for flags in (("--recipe", "full"), ("--out", "elsewhere")):
        done = finetune_cli("run", "--resume", tmp_path, *flags)
        assert done.code == 2
        assert "no --recipe, --out" in done.err


def test_compare_prints_a_table_of_80_columns_and_json(finetune_cli, place: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("--data", place / "imgs", "--strategies", "head-only,linear-probe", *QUICK, "--out", tmp_path / "c")
    shown = finetune_cli("compare", *asked)
    assert shown.code == 0, shown.err
    assert "behind the best" in shown.out and "val also chose" in shown.out
    assert max(map(len, shown.out.split("in brackets")[0].splitlines())) <= 80
    curves = shown.out.split("val top1 over epochs")[1].splitlines()[1:3]
    assert {line.split()[0] for line in curves} == {"head-only", "linear-probe"}
    assert all(set(line.split()[3]) <= set("▁▂▃▄▅▆▇█") for line in curves)
    refused = finetune_cli("compare", "--resume", tmp_path / "c", "--json")
    assert (refused.code, "is finished" in refused.err) == (6, True)
    again = finetune_cli("compare", *asked[:-1], tmp_path / "again", "--json")
    assert {one["label"] for one in json.loads(again.out)["standings"]} == {"head-only", "linear-probe"}
    assert finetune_cli("compare", "--resume", tmp_path / "c", "--epochs", "3").code == 2


def test_finished_runs_are_compared_as_a_table_as_markdown_and_as_json(
    finetune_cli, place: Path, tmp_path: Path
) -> None:
    one = place / "runs" / "one"
    two = shutil.copytree(one, tmp_path / "two")
    recipe = (two / "recipe.toml").read_text()
    (two / "recipe.toml").write_text(recipe.replace("epochs = 1\n", "epochs = 9\n"))
    shown, marked = finetune_cli("compare", one, two), finetune_cli("compare", one, two, "--md")
    assert "train.epochs" in shown.out and "| train.epochs | 1 | 9 |" in marked.out
    assert json.loads(finetune_cli("compare", one, two, "--json").out)["differences"] == {"train.epochs": [1, 9]}
    for more in (["--seeds", "2"], ["--epochs", "3"], ["--md", "--json"], ["--strategies", "full"], ["--resume", two]):
        assert finetune_cli("compare", one, two, *more).code == 2
    assert finetune_cli("compare", "--data", place / "imgs", "--md").code == 2


def test_predict_guards_against_formulas(finetune_cli, place: Path, tmp_path: Path, monkeypatch) -> None:
    picture = next((place / "imgs").rglob("*.jpg"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=cmd.jpg").write_bytes(picture.read_bytes())
    done = finetune_cli("predict", place / "runs" / "one", "=cmd.jpg", "--csv")
    assert "\n'=cmd.jpg," in done.out.replace("\r", "")


def test_the_cache_is_listed_and_cleared(finetune_cli, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    data = ("--data", place / "imgs", "--strategy", "head-only", "--set", "augment.level=none")
    where = ("--set", f"cache.folder={folder}")
    assert finetune_cli("run", *data, *QUICK, *where, "--out", tmp_path / "run").code == 0
    listed = json.loads(finetune_cli("cache", "ls", "--folder", folder, "--json").out)["entries"]
    assert {entry["about"]["kind"]: entry["num_rows"] for entry in listed} == {"features": 48, "pixels": 48}
    assert "test_resnet" in finetune_cli("cache", "ls", "--folder", folder).out
    assert finetune_cli("cache", "clear", "zzz", "--folder", folder).code == 3
    assert finetune_cli("cache", "clear", "--folder", folder).out.endswith("MB freed\n")
    assert json.loads(finetune_cli("cache", "ls", "--folder", folder, "--json").out)["entries"] == []


def test_run_and_plan_take_the_data_as_an_argument(
    finetune_cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgs = place / "imgs"
    quick = (*QUICK, "--strategy", "head-only", "--json")
    done = finetune_cli("run", imgs, *quick, "--out", tmp_path / "argument")
    assert done.code == 0, done.err
    assert json.loads(finetune_cli("plan", imgs, *quick).out)["num_classes"] == 6
    for command in ("run", "plan"):
        done = finetune_cli(command, imgs, "--data", place, *QUICK)
        assert (done.code, f"two data sets: {imgs} and --data {place}" in done.err) == (2, True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()  # the name of a network stays one, whatever lies here
    assert json.loads(finetune_cli("plan", "resnet18", *quick[2:]).out)["backbone"].startswith("resnet18")


@pytest.mark.parametrize("name", ["nowhere/imgs", "./imgs", "table.csv", "https://example.org/imgs.zip", "imgs.zip"])
def test_plan_takes_what_looks_like_a_path_for_data_that_is_not_there(finetune_cli, name: str) -> None:
    done = finetune_cli("plan", name)
    assert done.code == 3 and "network" not in done.err


def test_plan_says_of_a_name_that_is_nothing_that_it_is_neither_network_nor_data(finetune_cli) -> None:
    done = finetune_cli("plan", "imgz")
    assert done.code == 2 and "'imgz' is neither a network nor a file or folder here" in done.err
    assert "neither" not in finetune_cli("plan", "resnet18").err


def test_doctor_names_the_ways_out_where_there_is_no_hub(finetune_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import hub

    monkeypatch.setattr(hub, "_status", lambda *_, **__: None)
    said = " ".join(finetune_cli("doctor").out.split())
    assert all(words in said for words in ("unreachable", "finetune[weights]", "--weights PATH", "HF_HOME"))


def test_predict_where_nothing_can_be_read_ends_with_3_after_the_table(finetune_cli, place: Path, tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    for how in ((), ("--csv",), ("--json",)):
        done = finetune_cli("predict", place / "runs/one", tmp_path, *how)
        assert done.code == 3 and str(tmp_path / "a.jpg") in done.out
        assert done.err.startswith(
            f"error: none of 2 images can be read\nhint: {tmp_path / 'a.jpg'}: no image in a format"
        )
    single = finetune_cli("predict", place / "runs/one", tmp_path / "a.jpg")
    assert single.code == 3 and single.err.startswith(f"error: {tmp_path / 'a.jpg'} cannot be read\nhint: no image in")
    readable = next((place / "imgs").rglob("*.jpg"))
    assert finetune_cli("predict", place / "runs/one", tmp_path, readable).code == 0


def test_predict_has_as_many_columns_as_there_are_classes(finetune_cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    readable = next((place / "imgs").rglob("*.jpg"))
    done = finetune_cli("predict", place / "runs/one", tmp_path, readable, "--csv", "--top", "99")
    head, bad, good = list(csv.reader(io.StringIO(done.out)))
    num_classes = len(read_classes(RunFolder(place / "runs/one")))
    assert len(head) == len(bad) == len(good) == 2 + 2 * num_classes
    assert head[-2] == f"probability{num_classes}" and all(good[:-1]) and not any(bad[1:-1])


def test_ensemble_and_soup_print_tables_of_80_columns_and_json(
    finetune_cli, place: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = [place / "runs" / "one", tmp_path / "two"]
    more = ("--data", place / "imgs", "--strategy", "head-only", *QUICK, "--lr", "0.02", "--out", runs[1])
    assert finetune_cli("run", *more).code == 0
    for verb in ("ensemble", "soup"):
        shown = finetune_cli(verb, *runs)
        assert shown.code == 0, shown.err
        assert "the best run" in shown.out and "val also chose the epochs" in shown.out
        assert max(map(len, shown.out.splitlines()[:6])) <= 80
        given = json.loads(finetune_cli(verb, *runs, "--json").out)
        assert [member["run"] for member in given["members"]] == list(map(str, runs)) and given["folder"] is None
    left = finetune_cli("ensemble", *runs, "--greedy", "--out", tmp_path / "e")
    assert left.code == 0 and "next: finetune predict" in left.out
    assert finetune_cli("predict", tmp_path / "e", place / "imgs").code == 0
    assert finetune_cli("ensemble", runs[0]).code == 2
    assert finetune_cli("soup", *runs, "--out", tmp_path / "e").code == 5


def test_folds_print_a_table_of_80_columns_and_json_and_are_gone_on_with(
    finetune_cli, place: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("run", place / "imgs", "--strategy", "head-only", *QUICK, "--set", "export.onnx_at_end=false")
    shown = finetune_cli(*asked, "--folds", "2", "--out", tmp_path / "f")
    assert shown.code == 0, shown.err
    assert all(words in shown.out for words in ("fold-1", "fold-2", "mean", "out of fold: top1", "out_of_fold.csv"))
    assert (
        finetune_cli("run", "--resume", tmp_path / "f").code,
        finetune_cli("predict", tmp_path / "f", place).code,
    ) == (6, 6)
    given = json.loads(finetune_cli(*asked, "--seeds", "2", "--out", tmp_path / "s", "--json").out)
    assert given["kind"] == "seeds" and list(given["runs"]) == ["seed-0", "seed-1"]
    assert finetune_cli(*asked, "--seeds", "2", "--folds", "2").code == 2
    refused = finetune_cli("run", "--resume", tmp_path / "f", "--epochs", "3")
    assert (refused.code, "the only other flag is --allow" in refused.err) == (2, True)


def test_find_lr_draws_a_curve_of_80_columns_and_prints_json(finetune_cli, place: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("find-lr", place / "imgs", "--strategy", "head-only", *FLAGS)
    shown = finetune_cli(*asked)
    assert shown.code == 0, shown.err
    assert "•" in shown.out and "▲ valley" in shown.out and "next: finetune run ... --lr" in shown.out
    assert max(map(len, shown.out.split("next:")[0].splitlines())) <= 80
    given = json.loads(finetune_cli(*asked, "--steps", "20", "--json").out)
    assert given["suggested"] == given["curve"]["valley"] and len(given["curve"]["rates"]) <= 20
    refused = finetune_cli("find-lr", place / "imgs", "--strategy", "linear-probe", *FLAGS)
    assert (refused.code, "without a learning rate" in refused.err) == (2, True)


def test_tune_tells_its_steps_and_trials_and_prints_a_table_and_json(
    finetune_cli, place: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lenet = ("--backbone", "lenet5", *FLAGS[2:])
    asked = ("tune", place / "imgs", "--strategy", "head-only", *lenet, "--epochs", "3", "--trials", "3")
    shown = finetune_cli(*asked, "--out", tmp_path / "s")
    assert shown.code == 0, shown.err
    assert all(f"\n{number}. " in shown.err for number in (1, 2, 3, 4, 5, 6)) and "coarse 1/2" in shown.err
    assert "next: finetune run --recipe" in shown.out and "usual" in shown.out
    refused = finetune_cli("tune", "--resume", tmp_path / "s")
    assert (refused.code, "is finished" in refused.err) == (6, True)
    given = json.loads(finetune_cli(*asked, "--json", "--search", "optim.name=adamw,lion", "--out", tmp_path / "j").out)
    assert {one["params"]["optim.name"] for one in given["trials"]} <= {"adamw", "lion"} and given["score"] == "top1"
    assert finetune_cli("tune", "--resume", tmp_path / "s", "--trials", "9").code == 2


def test_one_argument_of_compare_that_is_no_run_is_the_data(finetune_cli, tmp_path: Path) -> None:
    done = finetune_cli("compare", tmp_path / "nothing", "--strategies", "head-only")
    assert (done.code, f"no such file or folder: {tmp_path / 'nothing'}" in done.err) == (3, True)
    done = finetune_cli("compare", tmp_path, tmp_path / "other", "--strategies", "head-only")
    assert (done.code, "finished runs are compared unchanged" in done.err) == (2, True)


def test_data_that_stands_among_the_candidates_of_a_ranking_is_told_its_flag(finetune_cli, tmp_path: Path) -> None:
    done = finetune_cli("backbones", "rank", tmp_path)
    assert (done.code, f"hint: Name data with a flag here: finetune backbones rank --data {tmp_path}"[:70] in
            done.err) == (2, True)  # fmt: skip


def test_a_value_that_a_flag_does_not_take_is_refused_in_our_words(finetune_cli) -> None:
    for arguments in (("tune", "--trials", "2"), ("predict", "x", "y", "--top", "many"), ("check", "--show", "-1")):
        done = finetune_cli(*arguments)
        assert done.code == 2
        assert "Input should" not in done.err and "Value error" not in done.err


def test_runs_before_the_first_run_are_none(finetune_cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = finetune_cli("runs")
    assert (done.code, done.out.startswith("runs holds no run folder")) == (0, True)
    assert finetune_cli("runs", "--json").out.strip() == "[]"
    assert finetune_cli("runs", "elsewhere").code == 6


def test_shards_of_one_class_are_told_that_a_run_needs_two(finetune_cli, few: Path, tmp_path: Path) -> None:
    data = tmp_path / "imgs"
    shutil.copytree(sorted(folder for folder in few.iterdir() if folder.is_dir())[0], data / "ant")
    done = finetune_cli("shard", data, "--out", tmp_path / "shards")
    assert done.code == 0 and "next:" not in done.out
    assert "all images are of one class, 'ant': a run needs two" in done.err
