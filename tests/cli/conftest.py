"""A place with images and a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune
from finetune.data.sample import write_sample


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 drawn images in `imgs` and a finished run on them in `runs/one`; tests leave it as it is."""
    place = tmp_path_factory.mktemp("place")
    write_sample(place / "imgs", per_class=8)
    finetune.run(
        place / "imgs", strategy="head-only", backbone="test_resnet", pretrained=False, image_size=32, epochs=1,
        device="cpu", workers=0, out=place / "runs" / "one",
    )  # fmt: skip
    return place
