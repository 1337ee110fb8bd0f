"""Wheel and sdist hold what the tool needs and nothing else, and what they install works in another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

KINDS = {".py", ".typed", ".j2", ".csv", ".json", ".safetensors"}  # of files in the package


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of this tree."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def build(tree: Path, place: Path) -> tuple[Path, Path]:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(place)], cwd=tree, check=True, capture_output=True
    )
    return next(place.glob("*.whl")), next(place.glob("*.tar.gz"))


def of_the_package() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "finetune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def recipe_names() -> set[str]:
    return {path.name for path in (ROOT / "recipes").glob("*.toml")}


def in_wheel(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(built: tuple[Path, Path]) -> None:
    assert in_wheel(built[0]) == of_the_package() | {f"finetune/_recipes/{name}" for name in recipe_names()}
    assert {Path(name).suffix for name in of_the_package()} == KINDS
    assert {"finetune/py.typed", "finetune/backbone/embedded/model.safetensors"} <= in_wheel(built[0])


def test_the_wheel_names_its_licence_its_extras_and_its_command(built: tuple[Path, Path]) -> None:
    archive = zipfile.ZipFile(built[0])
    found = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} == set(found)
    assert "finetune = finetune.cli:main" in archive.read(found["entry_points.txt"]).decode()
    metadata = archive.read(found["METADATA"]).decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert {"parquet", "tune", "weights", "tiff"} <= set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))


def test_the_sdist_holds_what_builds_the_wheel_and_nothing_else(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        archive.extractall(tmp_path, filter="data")
    beside = {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == of_the_package() | {f"recipes/{name}" for name in recipe_names()} | beside
    again, _ = build(next(path for path in tmp_path.iterdir() if path.is_dir()), tmp_path / "again")
    assert in_wheel(again) == in_wheel(built[0])


@pytest.mark.slow
def test_what_was_installed_works_in_another_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Without its dependencies, which are those of this environment; no line of the checkout is imported."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(built[0])], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "finetune", *words]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-c", "import finetune; print(finetune.__file__)"]
    own = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    assert own.stdout.startswith(str(site))
    assert json.loads(said("doctor", "--json"))["packages"]["finetune"] == built[0].name.split("-")[1]
    listed = said("recipes", "ls")
    assert all(re.search(rf"^\s*{name.removesuffix('.toml')}\s", listed, re.MULTILINE) for name in recipe_names())
    said("sample", "imgs", "--per-class", "8")
    quick = ("--recipe", "linear-probe", "--backbone", "embedded", "--image-size", "64", "--out", "run")
    said("run", "imgs", *quick)
    assert (elsewhere / "run" / "report.html").is_file()
    said("export", "run")
    assert "striped-disc" in said("predict", "run", "imgs/striped-disc", "--csv")
