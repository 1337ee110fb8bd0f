"""The lock names every dependency within its bounds, with hashes; the check of it finds what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = '[project]\ndependencies = ["here>=1,<3"]\n[project.optional-dependencies]\ndev = ["Late_Comer>=2"]\n'


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "tools" / "lock.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module
    spec.loader.exec_module(module)
    return module


def test_the_lock_covers_what_pyproject_asks_for(lock: ModuleType) -> None:
    assert list(lock.faults_of_lock((ROOT / "pyproject.toml").read_text(), lock.LOCK.read_text())) == []


def test_every_dependency_has_a_bound_on_its_next_major_version(lock: ModuleType) -> None:
    free = [str(r) for r in lock.declared((ROOT / "pyproject.toml").read_text()) if "9999" in r.specifier]
    assert free == []


@pytest.mark.parametrize(
    ("locked", "fault"),
    [
        ("here==2.0 \\\n    --hash=sha256:00\nlate-comer==2.1 --hash=sha256:11", None),
        ("here==2.0 --hash=sha256:00", "Late_Comer is not locked"),
        ("here==2.0\nlate-comer==2.1 --hash=sha256:11", "here is locked without a hash"),
        ("here==3.0 --hash=sha256:00\nlate-comer==2.1 --hash=sha256:11", "here is locked at 3.0"),
    ],
)
def test_a_lock_that_has_drifted_is_found(lock: ModuleType, locked: str, fault: str | None) -> None:
    faults = list(lock.faults_of_lock(PYPROJECT, locked))
    assert len(faults) == (fault is not None)
    assert fault is None or faults[0].startswith(fault)


def test_another_version_than_the_locked_one_is_found(lock: ModuleType) -> None:
    text = "pytest==0.1 --hash=sha256:00\nno-such-package==1 --hash=sha256:00\n"
    text += "nor-this==1 ; python_version < '3' --hash=sha256:00\n"
    found = list(lock.faults_of_environment(text))
    assert [fault.split()[0] for fault in found] == ["pytest", "no-such-package"]


def test_the_oldest_versions_lie_within_the_bounds(lock: ModuleType) -> None:
    oldest = {r.requirement.name: r.version for r in lock.read_lock((ROOT / "requirements" / "oldest.txt").read_text())}
    wanted = lock.declared((ROOT / "pyproject.toml").read_text())
    wrong = [str(r) for r in wanted if oldest[r.name.replace("_", "-").lower()] not in r.specifier]
    assert wrong == []
    assert oldest["torch"].startswith("2.6.")
