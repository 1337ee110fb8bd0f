"""A run and the process that it is in: threads, launchers, scripts that workers import, other devices."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import finetune
from finetune.checkpoint.saved import load_run
from finetune.process import is_unguarded

SCRIPT = """
import multiprocessing, sys, finetune
multiprocessing.set_start_method("spawn", force=True)
finetune.run(sys.argv[1], out=sys.argv[2], strategy="full", backbone="lenet5", pretrained=False, image_size=32,
             batch_size=8, workers=1, device="cpu", epochs=1)
"""


def test_two_runs_in_threads_of_one_process_end_as_each_alone(tiny_run, tmp_path: Path) -> None:
    whole = tiny_run(out="whole").folder
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda name: tiny_run(out=name).folder, ["one", "two"]))
    for folder in ended:
        for name in ("model/model.safetensors", "metrics.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "PMI_SIZE": "4", "PMI_RANK": "1"}


@pytest.mark.parametrize("names", [TORCHRUN, MPIRUN], ids=["torchrun", "mpirun"])
def test_several_processes_of_a_launcher_are_one_error(tiny_run, tmp_path: Path, monkeypatch, names) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(finetune.ResourceError, match=r"a launcher .* has started [24] processes") as caught:
        tiny_run()
    assert "without the launcher" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [SLURM, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "2"}])
def test_a_job_of_a_cluster_or_one_process_of_a_launcher_runs_like_any(tiny_run, monkeypatch, names) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert tiny_run(epochs=1).num_epochs == 1
    assert {name: os.environ[name] for name in names} == names


def test_a_script_that_workers_run_anew_is_told_so(few: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(finetune.__file__).parents[1])}
    command = [sys.executable, script, few, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert "script.py does its work whenever it is imported" in last, done.stderr
    assert "memory" not in last


@pytest.mark.parametrize(
    ("script", "is_told"),
    [
        ("import logging\nlog = logging.getLogger(__name__)\nwork()", True),
        ("if __name__ == '__main__':\n    work()", False),
        ("if '__main__' == __name__:\n    work()", False),
        ("def broken(", False),
    ],
)
def test_a_script_counts_as_guarded_only_where_it_compares_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, is_told: bool
) -> None:
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert is_unguarded() is is_told


def test_a_precision_settled_for_a_gpu_is_float32_on_a_processor(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    recipe, environment = folder / "recipe.toml", json.loads((folder / "environment.json").read_text())
    recipe.write_text(recipe.read_text().replace('precision = "float32"\n', 'precision = "float16"\n', 1))
    assert load_run(folder, device="cpu").recipe.train.precision == "float32"
    recipe.write_text(recipe.read_text().replace('precision = "float16"\n', 'precision = "bfloat16"\n', 1))
    environment["devices"] = {"cpu": "4 cores"}
    (folder / "environment.json").write_text(json.dumps(environment))
    assert load_run(folder, device="cpu").recipe.train.precision == "bfloat16"
    environment["devices"]["cuda:0"] = "a GPU"
    (folder / "environment.json").write_text(json.dumps(environment))
    assert load_run(folder, device="cpu").recipe.train.precision == "float32"
    assert finetune.evaluate(folder, device="cpu").metrics == finetune.evaluate(finished, device="cpu").metrics


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda run: finetune.export(run, format="tflite"), finetune.ExportError, "'tflite' is not one of onnx, timm"),
        (lambda run: finetune.export(run, format=None), finetune.RecipeError, "None: must be one of onnx, timm"),
        (lambda run: finetune.evaluate(run, split="dev"), finetune.DataError, "'dev' is not one of train, val, test"),
        (lambda run: finetune.evaluate(run, device="gpu"), finetune.RecipeError, "train.device = 'gpu'"),
        (lambda run: finetune.load(run, device="cuda:9"), finetune.RecipeError, "train.device = 'cuda:9'"),
        (lambda run: finetune.load(run, batch_size=-1), finetune.RecipeError, "batch_size = -1"),
        (lambda run: finetune.load(run, batch_size=1.5), finetune.RecipeError, "batch_size = 1.5"),
        (lambda run: finetune.evaluate(run, batch_size=0), finetune.RecipeError, "batch_size = 0"),
        (lambda run: finetune.load(run).predict(run, top=0), finetune.RecipeError, "top = 0"),
    ],
)
def test_an_unknown_word_is_an_error_that_names_the_known_ones(finished: Path, call, kind, text) -> None:
    with pytest.raises(kind, match=text):
        call(finished)
    assert not (finished / "exports").exists()
