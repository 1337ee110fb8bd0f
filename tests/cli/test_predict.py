"""`finetune predict`: what it takes, what it writes, and what it refuses before anything is computed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

import finetune
from finetune.checkpoint.run_folder import RunFolder
from finetune.cli import screen
from finetune.types import Event


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    return place / "runs" / "one"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("exported") / "run"))
    finetune.export(copy)
    return copy


@pytest.fixture
def images(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two images and one that is none."""
    (tmp_path / "imgs").mkdir()
    for number, file in enumerate(sorted((place / "imgs").rglob("*000.jpg"))[:2]):
        shutil.copy(file, tmp_path / "imgs" / f"{number}.jpg")
    (tmp_path / "imgs" / "bad.jpg").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_whatever_names_the_images_the_rows_are_the_same(
    finetune_cli, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["imgs/0.jpg", "imgs/1.jpg", "imgs/bad.jpg"]
    (images / "table.csv").write_text("\n".join(["image", *names]))
    stdin(monkeypatch, "\n".join(names).encode())
    of_folder, *others = [
        finetune_cli("predict", run, given, "--csv") for given in ("imgs", "imgs/*", "table.csv", "-")
    ]
    assert of_folder.code == 0 and of_folder.out.count("\n") == 4 and "no image in a format" in of_folder.out
    assert {other.out for other in others} == {of_folder.out}
    stdin(monkeypatch, (images / "imgs" / "1.jpg").read_bytes())
    (of_bytes,) = map(json.loads, finetune_cli("predict", run, "-", "--format", "jsonl").out.splitlines())
    (of_file,) = map(json.loads, finetune_cli("predict", run, "imgs/1.jpg", "--format", "jsonl").out.splitlines())
    assert of_bytes == of_file | {"file": "standard input"}


def test_whatever_holds_the_model_the_answers_are_the_same(finetune_cli, exported: Path, images: Path) -> None:
    folder = RunFolder(exported)
    models = (exported, folder.exports, folder.exports / "model.onnx", folder.model)
    done = [finetune_cli("predict", model, "imgs", "--json", "--top", "2") for model in models]
    assert [one.code for one in done] == [0] * 4
    answers = [json.loads(one.out) for one in done]
    for other in answers[1:]:
        assert [one["classes"] for one in other] == [one["classes"] for one in answers[0]]
    for others in zip(*answers, strict=True):
        for other in others[1:]:
            assert other["probabilities"] == pytest.approx(others[0]["probabilities"], abs=1e-4)


def test_what_holds_no_model_that_can_be_used_says_so(finetune_cli, exported: Path, images: Path) -> None:
    own = Path(shutil.copytree(exported, images / "own"))
    (own / "exports" / "model.onnx").write_bytes(b"other")
    (images / "other.onnx").write_bytes(b"no network")
    labels = json.loads((own / "model" / "config.json").read_text())
    (own / "model" / "config.json").write_text(json.dumps({k: v for k, v in labels.items() if k != "label_names"}))
    (own / "model" / "labels.txt").unlink()
    said = {
        (own / "exports",): (7, "is not the file that proof.json says was proven"),
        (images / "other.onnx",): (7, "not an ONNX file of this tool"),
        (images / "gone.onnx",): (6, "no such file"),
        (own / "model",): (6, "does not say what its classes are called"),
        (exported / "exports", "--engine", "torch"): (2, "is an ONNX file, which runs on a CPU"),
        (exported / "exports", "--unsure"): (2, "Name the run that it was made from"),
        (exported / "model", "--engine", "onnxruntime"): (2, "is a timm folder"),
        (exported / "model", "--unsure"): (6, "cannot tell what it is unsure of"),
    }
    for (model, *words), (code, text) in said.items():
        done = finetune_cli("predict", model, "imgs", *words)
        assert (done.code, text in " ".join(done.err.split())) == (code, True), done.err


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_file_has_all_that_was_asked_for_and_is_not_written_over(
    finetune_cli, run: Path, images: Path, name: str
) -> None:
    words = ("predict", run, "imgs", "--out", name, "--scores", "--features", "--threshold", "0.999")
    done = finetune_cli(*words)
    assert (done.code, done.out) == (0, f"{name}: 3 images, of which 1 cannot be read\n")
    content = (images / name).read_bytes()
    if name == "a.parquet":
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
        assert len(rows[0]["features"]) == 96 and rows[1]["unsure"] == "less likely than 0.999"
    else:
        assert content.count(b"less likely than 0.999") == 2 and content.count(b"\n") == (3 if "json" in name else 4)
    again = finetune_cli(*words)
    assert (again.code, "already exists" in again.err, again.out) == (5, True, "")
    assert (images / name).read_bytes() == content
    assert sorted(path.name for path in images.iterdir()) == sorted([name, "imgs"])


def test_images_are_sorted_into_class_folders(finetune_cli, run: Path, images: Path) -> None:
    done = finetune_cli("predict", run, "imgs", "--csv", "--copy-to", "sorted")
    label = done.out.splitlines()[1].split(",")[1]
    assert "2 files copied to sorted" in done.err
    assert (images / "sorted" / label / "0.jpg").read_bytes() == (images / "imgs" / "0.jpg").read_bytes()
    assert len([file for file in (images / "sorted").rglob("*") if file.is_file()]) == 2
    again = finetune_cli("predict", run, "imgs", "--csv", "--copy-to", "sorted")
    assert (again.code, "sorted is not empty" in again.err, again.out) == (5, True, "")
    unsure = finetune_cli("predict", run, "imgs", "--copy-to", "linked", "--link", "--threshold", "1", "--csv")
    assert unsure.code == 0
    assert (images / "linked" / "unsure" / "1.jpg").resolve() == (images / "imgs" / "1.jpg").resolve()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--features",), "--features do not fit in a table"),
        (("--link",), "--link needs --copy-to"),
        (("--out", "a.txt"), "does not end in .csv, .tsv, .jsonl, .parquet"),
        (("--out", "nowhere/a.csv"), "no such folder: nowhere"),
        (("--csv", "--format", "jsonl"), "--csv and --format are two output formats"),
        (("--json", "--out", "a.csv"), "--json and --out are two output formats"),
        (("--threshold", "1.5"), "threshold = 1.5 is not a probability"),
        (("--column", "image"), "--column image is for tables"),
        (("--features", "--engine", "onnxruntime", "--csv"), "--features asks for features"),
    ],
)
def test_what_does_not_go_together_is_refused(
    finetune_cli, run: Path, images: Path, words: tuple[str, ...], told: str
) -> None:
    done = finetune_cli("predict", run, "imgs", *words)
    assert done.code in (2, 5) and told in " ".join(done.err.split())
    assert (done.out, sorted(path.name for path in images.iterdir())) == ("", ["imgs"])


def test_an_interrupted_command_leaves_nothing_half_written(
    finetune_cli, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation.named import Prediction

    def stop(self: Prediction) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prediction, "to_json", stop)
    done = finetune_cli("predict", run, "imgs", "--out", "a.jsonl", "--copy-to", "sorted")
    assert done.code == 130
    assert [path.name for path in images.iterdir()] == ["imgs"]


def test_a_long_table_in_a_file_is_printed_as_it_comes_with_one_head(
    finetune_cli, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.cli import named

    whole = finetune_cli("predict", run, "imgs").out
    monkeypatch.setattr(named, "ROWS_AT_ONCE", 1)
    assert finetune_cli("predict", run, "imgs").out.split() == whole.split()


def test_of_images_without_a_known_end_a_line_is_printed_after_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with screen.watching() as on_event:
        on_event(Event.progress("predict", 32, None))
        monkeypatch.setattr(screen, "SILENCE", -1.0)
        on_event(Event.progress("predict", 64, None))
    assert capsys.readouterr().err == "predict: 64\n"


def test_answers_over_mirror_images_are_asked_for_by_a_flag(finetune_cli, run: Path, images: Path) -> None:
    plain, mean = (
        json.loads(finetune_cli("predict", run, "imgs/0.jpg", "--json", *more).out) for more in ((), ("--tta", "flip"))
    )
    assert plain[0]["probabilities"] != mean[0]["probabilities"]
    assert "images, tta flip" in finetune_cli("eval", run, "--tta", "flip").out
    assert "images, tta 5crop" in finetune_cli("eval", run, "--tta", "5crop").out
    assert finetune_cli("eval", run, "--tta", "flop").code == 2
