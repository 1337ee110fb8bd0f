"""What is known to be wrong with real sets is found: `make realdata`."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune
from tests.support import cases_of

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason="no real data beside the checkout")]


def test_the_picture_in_two_classes_of_the_ultrasound_set_is_found() -> None:
    found = cases_of(finetune.check(DATA / "breast_ultrasound", quick=True), "conflict")
    exact = [files for note, files in found if note == "same bytes"]
    assert exact == [["benign/benign (433).png", "malignant/malignant (145).png"]]


def test_the_eight_val_pictures_that_are_in_train_too_are_found() -> None:
    leaks = cases_of(finetune.check(DATA / "pneumoniamnist", quick=True), "leak")
    assert len(leaks) == 8
    assert all({"train", "val"} <= {file.split("/")[0] for file in files} for _, files in leaks)


@pytest.mark.parametrize("name", ["hymenoptera", "omniglot_small1"])
def test_sets_without_copies_have_none(name: str) -> None:
    found = finetune.check(DATA / name, quick=True)
    assert {"leak", "conflict", "copies"} & {finding.kind for finding in found.findings} == set()
