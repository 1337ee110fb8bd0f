"""Compare the lock with pyproject.toml, and what is installed here with the lock.

    make lock-check

Exits 1 where a dependency is missing from the lock, locked outside of its bounds or without a hash, or where
another version is installed than the locked one.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "locked.txt"
UNLOCKED = {"weights", "openvino", "corrupt", "coreml", "litert", "docs", "remote"}  # extras that no test needs


class Locked(NamedTuple):
    """One entry of the lock: `name==version ; marker`, and how many files of it are allowed."""

    requirement: Requirement
    num_hashes: int

    @property
    def version(self) -> str:
        """The one version that the entry names."""
        return next(iter(self.requirement.specifier)).version

    @property
    def is_for_here(self) -> bool:
        """Return whether the entry is meant for this Python and system."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()


def read_lock(text: str) -> list[Locked]:
    """Return the entries of a lock in pip's format."""
    lines = re.sub(r"^\s*#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE).splitlines()
    entries = (line.partition("--hash=") for line in lines if "==" in line)
    return [Locked(Requirement(name.strip()), (mark + hashes).count("--hash=")) for name, mark, hashes in entries]


def declared(pyproject: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, with its extras but those of data."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name not in UNLOCKED)]
    return [Requirement(text) for group in groups for text in group]


def faults_of_lock(pyproject: str, lock: str) -> Iterator[str]:
    """Yield what a lock lacks of what pyproject.toml asks for."""
    locked = read_lock(lock)
    versions: dict[str, list[Locked]] = {}
    for entry in locked:
        versions.setdefault(canonicalize_name(entry.requirement.name), []).append(entry)
        if not entry.num_hashes:
            yield f"{entry.requirement.name} is locked without a hash"
    for wanted in declared(pyproject):
        entries = versions.get(canonicalize_name(wanted.name), [])
        if not entries:
            yield f"{wanted.name} is not locked"
        yield from (
            f"{wanted.name} is locked at {entry.version}, and pyproject.toml asks for {wanted.specifier}"
            for entry in entries
            if entry.version not in wanted.specifier
        )


def faults_of_environment(lock: str) -> Iterator[str]:
    """Yield what is installed here at another version than the lock names."""
    for entry in read_lock(lock):
        if not entry.is_for_here:
            continue
        try:
            found = metadata.version(entry.requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{entry.requirement.name} is locked at {entry.version} and not installed"
            continue
        if found not in entry.requirement.specifier:
            yield f"{entry.requirement.name} is locked at {entry.version}, and {found} is installed"


def main() -> int:
    """Print every fault; return 1 where there is one."""
    lock = LOCK.read_text()
    faults = [*faults_of_lock((ROOT / "pyproject.toml").read_text(), lock), *faults_of_environment(lock)]
    print("\n".join(faults) or f"locked: {len(read_lock(lock))} packages, as installed here")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
