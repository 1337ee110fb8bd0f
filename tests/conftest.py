"""What every test gets: a cache folder of its own, no hub, and small folders of noise to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

MakeImages = Callable[..., Path]
torch.set_num_threads(1)  # tiny networks: a second thread only waits for the first, badly so on a busy machine


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a whole session shares is made before any test's own cache is named."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeImages:
    """A function that writes a labelled folder of noise, JPEG and PNG in turn, no two images alike."""

    def write(
        folder: str | Path = "images", *, classes: str = "ant bee", per_class: int = 6, side: int = 40, seed: int = 0
    ) -> Path:
        root = tmp_path / folder
        rng = np.random.default_rng(seed)
        for label in classes.split():
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                pixels = rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
                suffix = "png" if number % 2 else "jpg"
                Image.fromarray(pixels).save(root / label / f"{label}-{number:02}.{suffix}")
        return root

    return write
