"""What a benchmark computes by itself is what it says."""

from __future__ import annotations

import ast
import importlib.util
import runpy
from pathlib import Path

import pytest

from finetune.prepare.asked import recipe_of

ROOT = Path(__file__).parents[1]
rank = runpy.run_path(str(ROOT / "benchmarks" / "rank.py"))
growth = runpy.run_path(str(ROOT / "benchmarks" / "growth.py"))


def test_weighted_tau_has_the_values_that_scipy_documents() -> None:
    assert rank["weighted_tau"]([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.56694968153682723)


def test_weighted_tau_goes_from_the_same_order_to_the_reverse_and_weighs_the_top() -> None:
    tau = rank["weighted_tau"]
    assert tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert tau([1, 2, 3, 4], [1, 2, 4, 3]) < tau([1, 2, 3, 4], [2, 1, 3, 4])


def test_results_are_found_again_and_half_a_line_is_not(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rank.jsonl"
    rank["Results"](file).add({"data": "a"}, {"top1": 1.0})
    with file.open("a") as stream:
        stream.write('{"key": {"data": "b"')
    found = rank["Results"](file)
    assert found.find({"data": "a"}) == {"key": {"data": "a"}, "top1": 1.0}
    assert found.find({"data": "b"}) is None
    found.add({"data": "b"}, {"top1": 0.5})
    assert rank["Results"](file).find({"data": "b"}) == {"key": {"data": "b"}, "top1": 0.5}


def test_regret_is_what_is_lost_by_the_favourite_of_a_score() -> None:
    def record(name: str, predicted: float, gmacs: float) -> dict[str, object]:
        scores = {"gmacs": gmacs, "knn_top1": 0, "logme": 0, "h_score": 0}
        return {"name": name, "predicted_top1": {"value": predicted}, **scores}

    ranking = {"candidates": [record("a", 0.9, 1), record("b", 0.8, 5)], "recommended": "a", "shortlist": ["a", "b"]}
    rows = {name: (tau, regret) for name, tau, regret in rank["agreement"](ranking, {"a": 0.7, "b": 0.8})}
    assert rows["predicted_top1"] == (pytest.approx(-1), pytest.approx(0.1))
    assert rows["gmacs"] == (pytest.approx(1), 0)
    assert rows["recommended"][1] == pytest.approx(0.1)
    assert rows["best of the shortlist"][1] == 0


def test_what_benchmarks_and_tools_import_of_the_package_is_there() -> None:
    gone = [
        f"{file}: {node.module}.{alias.name}"
        for folder in ("benchmarks", "tools")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune"
        for alias in node.names
        if not hasattr(importlib.import_module(str(node.module)), alias.name) and not is_module(node, alias.name)
    ]
    assert gone == []


def is_module(node: ast.ImportFrom, name: str) -> bool:
    return importlib.util.find_spec(f"{node.module}.{name}") is not None


@pytest.mark.parametrize(("scenes", "noise", "sizes"), [(1, 6, [40]), (4, 6, [10] * 4), (1, 30, []), (40, 6, [])])
def test_frames_of_a_scene_are_copies_where_the_noise_is_small(scenes: int, noise: int, sizes: list[int]) -> None:
    assert [len(one.members) for one in growth["copies"](40, scenes, noise)()] == sizes


def test_the_other_cases_of_growth_are_what_they_say() -> None:
    assert {"top1", "top5", "macro_f1", "ece", "auroc"} <= set(growth["metrics"](60, 10, 2)())
    sample, evidence = growth["evidence"](8, 90)()
    assert (len(sample), evidence.size.num_probed, len(evidence.probe)) == (600, 600, 10)
    assert evidence.probe["group 0"].value < 0.3 < 0.9 < evidence.probe["group 9"].value
    divided = growth["splitting"](20_000, 4)()
    counts = {name: len(divided.split(name)) for name in ("train", "val", "test")}
    assert counts == {"train": 12_000, "val": 4_000, "test": 4_000}  # of the five groups of a class one each
    sides = {(sample.group, sample.split) for sample in divided.samples}
    assert len(sides) == len({group for group, _ in sides}) == 5_000


def test_a_piece_is_compared_with_its_strategy_on_the_same_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "strategy")
    bench = runpy.run_path(str(ROOT / "benchmarks" / "strategy" / "regularisers.py"))
    rows = [
        {"data": data, "size": 10, "seed": seed, "case": case, "top1": top1}
        for data, seed, case, top1 in (
            ("a", 0, "full", 0.5),
            ("a", 1, "full", 0.7),
            ("b", 0, "full", 0.1),
            ("a", 0, "full: mixup 0.2", 0.52),
            ("a", 1, "full: mixup 0.2", 0.74),
            ("b", 1, "full: mixup 0.2", 0.9),  # without its baseline
        )
    ]
    lines = list(bench["table"](rows))
    assert lines[0].startswith("| | a, 10 a class | b, 10 a class |")
    assert lines[2] == "| full | 0.600 ± 0.141 | 0.100 |  |"
    assert lines[3] == "| full: mixup 0.2 | 0.630 ± 0.156 | 0.900 | +3.0 ± 2.0 (2) |"
    assert {case.partition(":")[0] for case in bench["CASES"]} == {"full", "top-k", "head-only", "linear-probe"}
    for settings in bench["CASES"].values():  # every one is a recipe
        flags = {key: value for key, value in settings.items() if "." not in key and key != bench["TIMES"]}
        recipe_of(settings=flags, overrides={key: value for key, value in settings.items() if "." in key})
