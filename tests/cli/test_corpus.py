"""Every command does its work on a folder that holds the whole corpus, and says what it left out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.csv_cells import unguarded_cell
from tests.corpus import EITHER, LISTED, USED, Odd, noise, write_corpus
from tests.support import FLAGS

CLASSES = ["<script>alert(1)<∕script>", "=cmd|' -C calc'!A0"]
KINDS = {".toml", ".csv", ".json", ".jsonl", ".html", ".safetensors", ".txt"}


@pytest.fixture
def odd_data(tmp_path: Path) -> tuple[Path, dict[str, Odd]]:
    root = tmp_path / "<b>imgs"
    odd = write_corpus(root / CLASSES[0])
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(exist_ok=True)
        for index in range(12):
            noise(seed=900 + 20 * number + index).save(root / name / f"good-{number}-{index}.png")
    return root, odd


def rows(text: str) -> list[dict[str, str]]:
    found = csv.DictReader(io.StringIO(text, newline=""))
    return [{key: unguarded_cell(cell) for key, cell in row.items()} for row in found]


def text_of(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]


def test_all_commands_work_on_a_folder_with_the_whole_corpus(finetune_cli, odd_data, tmp_path: Path) -> None:
    root, odd = odd_data
    run = tmp_path / "run"
    done = finetune_cli("run", "--data", root, "--strategy", "head-only", "--epochs", 1, *FLAGS, "--out", run)
    assert done.code == 0, done.err
    must = {name for name, one in odd.items() if one.verdict is LISTED}
    may = must | {name for name, one in odd.items() if one.verdict is EITHER}
    problems = {Path(row["file"]).name: row["reason"] for row in rows(text_of(run / "problems.csv"))}
    assert must <= set(problems) <= may
    assert all(odd[name].reason in reason for name, reason in problems.items())
    kept = {Path(row["file"]).name for row in rows(text_of(run / "split.csv"))}
    assert {name for name, one in odd.items() if one.verdict is USED} <= kept
    assert kept & set(problems) == set()

    for name in ("problems.csv", "split.csv", "predictions.csv"):
        assert_safe_cells(text_of(run / name))
    measured = rows(text_of(run / "predictions.csv"))
    assert {row["class"] for row in measured} == set(CLASSES)
    assert {Path(row["file"]).name for row in measured} < kept
    page = text_of(run / "report.html")
    assert page.count("<script") == 1 and "<b>imgs" not in page and "&lt;script&gt;" in page  # that of ours
    assert {file.suffix for file in run.rglob("*") if file.is_file() and file.suffix} <= KINDS  # no other to escape in

    done = finetune_cli("plan", "--data", root, *FLAGS)
    assert done.code == 0, done.err
    assert f"{len(problems)} left out" in done.err
    assert_safe_for_terminals(done.out + done.err)

    done = finetune_cli("eval", run, "--data", root, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["num_images"] == len(kept), done.err

    assert_predictions_agree(finetune_cli, run, root, problems, kept)


def test_check_tells_of_the_whole_corpus(finetune_cli, odd_data, tmp_path: Path) -> None:
    root, odd = odd_data
    sheet = tmp_path / "worst.png"
    done = finetune_cli("check", root, "--quick", "--json", "--sheet", sheet)
    assert done.code == 9, done.err  # of so many files some are damaged: that spoils a result
    found = json.loads(done.out)
    damaged = next(finding for finding in found["findings"] if finding["kind"] == "damaged")
    reasons = {Path(case["files"][0]["file"]).name: case["reason"] for case in damaged["cases"]}
    must = {name for name, one in odd.items() if one.verdict is LISTED}
    assert must <= set(reasons) <= must | {name for name, one in odd.items() if one.verdict is EITHER}
    assert all(odd[name].reason in reason for name, reason in reasons.items())
    assert found["num_images"] == sum(count["images"] for count in found["classes"].values()) > 100
    assert set(found["classes"]) == set(CLASSES)
    assert sheet.stat().st_size > 1000

    done = finetune_cli("check", root, "--quick", "--show", 1000)
    assert done.code == 9, done.err
    assert_safe_for_terminals(done.out + done.err)

    done = finetune_cli("check", root, "--quick", "--groups", tmp_path / "imgs.csv")
    assert (done.code, "cannot be written into a table" in done.err) == (3, True)  # some names are not UTF-8
    assert not (tmp_path / "imgs.csv").exists()


def assert_predictions_agree(finetune_cli, run: Path, root: Path, problems: dict[str, str], kept: set[str]) -> None:
    printed = predicted_csv(run, root)
    assert_safe_cells(printed)
    found = {Path(row["file"]).name: row for row in rows(printed)}
    unread = {name: row["problem"] for name, row in found.items() if row["problem"]}
    assert {name: why for name, why in unread.items() if "floats" not in why} == {
        name: why for name, why in problems.items() if "floats" not in why
    }
    assert {name for name, row in found.items() if row["class1"]} >= kept
    named = {name for row in found.values() if row["class1"] for name in (row["class1"], row["class2"])}
    assert named == set(CLASSES)

    done = finetune_cli("predict", run, root, "--json")
    assert {Path(row["file"]).name for row in json.loads(done.out)} == set(found)

    done = finetune_cli("predict", run, root)
    assert done.code == 0, done.err
    assert_safe_for_terminals(done.out + done.err)


UNHURRIED = (  # however long it takes, no line says how far it is
    "from finetune.cli import main, screen; screen.SILENCE = float('inf'); main()"
)


def predicted_csv(run: Path, root: Path) -> str:
    """Predict in a process of its own, within a time, whose output takes no byte that is not UTF-8 of itself."""
    done = subprocess.run(
        [sys.executable, "-c", UNHURRIED, "predict", run, root, "--csv", "--top", "2", "--device", "cpu"],
        capture_output=True, timeout=300, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0
    assert all(line.startswith("note: ") for line in done.stderr.decode().splitlines())
    assert "files are of kinds not read" in done.stderr.decode()
    return done.stdout.decode(errors="surrogateescape")


def assert_safe_cells(text: str) -> None:
    assert [cell for cell in cells(text) if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))] == []


def assert_safe_for_terminals(text: str) -> None:
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text) == []
