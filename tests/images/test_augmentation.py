"""The levels of augmentation, their pieces, and the grid that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune import recipe as recipes
from finetune.data.directions import flip_hints
from finetune.errors import DataError, RecipeError, ResourceError
from finetune.images.augmentation import LEVELS, Pieces, pieces_of
from finetune.images.transforms import augmented_view, plain_view
from finetune.randomness import forked
from finetune.sections import AugmentSection
from finetune.train.mixing import brightened
from finetune.types import Manifest, Preprocessing, Sample, Target
from finetune.values import AUTO_LEVEL, AugmentLevel
from finetune.workflow.augment import augment
from tests.support import TINY

HOW = Preprocessing((48, 48), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
STILL = {"level": "light", "min_crop": 1.0, "horizontal_flip": 0.0}
PIECES: list[dict[str, Any]] = [
    {"vertical_flip": 1.0}, {"color_jitter": 0.5}, {"hue": 0.5}, {"rotate": 45.0}, {"erase": 1.0},
    {"policy": "randaugment"}, {"policy": "trivial"}, {"policy": "augmix"},
]  # fmt: skip


def image(side: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1))


def seen(section: AugmentSection, seed: int = 0) -> torch.Tensor:
    with forked(seed):
        return augmented_view(HOW, section)(image())


def test_the_names_are_those_of_the_table() -> None:
    assert {"auto", "none", *LEVELS} == set(get_args(AugmentLevel)) and AUTO_LEVEL in LEVELS


def test_a_piece_goes_before_its_level() -> None:
    assert pieces_of(AugmentSection()) == pieces_of(AugmentSection(level="medium")) == LEVELS["medium"]
    assert pieces_of(AugmentSection(level="none", hue=0.2)) is None
    both = pieces_of(AugmentSection(level="heavy", erase=0.0, rotate=5.0))
    assert both is not None and (both.erase, both.rotate, both.policy) == (0.0, 5.0, "trivial")


def test_levels_vary_more_and_more() -> None:
    def distance(level: Any) -> float:
        plain = plain_view(HOW)(image()).float()
        return sum(float((seen(AugmentSection(level=level), s).float() - plain).abs().mean()) for s in range(30))

    assert 0 == distance("none") < distance("light") < distance("heavy")
    assert LEVELS["light"].min_crop > LEVELS["medium"].min_crop > LEVELS["heavy"].min_crop


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_every_piece_changes_the_view_by_the_seed_alone(pieces: dict[str, Any]) -> None:
    section = AugmentSection(**STILL, **pieces)
    views = [seen(section, seed) for seed in range(8)]
    assert all(view.dtype == torch.uint8 and view.shape == (3, 48, 48) for view in views)
    assert torch.equal(views[0], seen(section, 0))
    assert any(not torch.equal(view, seen(AugmentSection(**STILL))) for view in views)


def test_every_piece_is_a_key_of_the_recipe() -> None:
    named = {key.removeprefix("augment.") for key in recipes.fields() if key.startswith("augment.")}
    assert named == set(Pieces.__slots__) | {"level", "features"}


def test_what_is_blotted_out_has_the_mean_colour() -> None:
    view = seen(AugmentSection(**STILL, erase=1.0))
    assert int((view == 128).all(dim=0).sum()) > 20


def test_brighter_maps_stay_in_their_range_and_vectors_as_they_are() -> None:
    maps, rows, tokens = torch.randn(4, 3, 5, 5), torch.randn(4, 6), torch.randn(4, 7, 6)
    with forked(0):
        changed, same, others = brightened((maps, rows, tokens), 0.3)
    assert same is rows
    for before, after, over in ((maps, changed, (2, 3)), (tokens, others, (1,))):
        assert not torch.equal(before, after)
        assert bool((after.amax(over) <= before.amax(over) + 1e-5).all())
        assert bool((after.amin(over) >= before.amin(over) - 1e-5).all())
    flat = torch.ones(2, 3, 4, 4)
    assert torch.equal(brightened((flat,), 1.0)[0], flat)
    assert brightened(maps, 0.3) is maps


def manifest(*classes: str, root: str = "/data/imgs") -> Manifest:
    return Manifest(root, classes, tuple(Sample(f"{name}/0.png", Target(i)) for i, name in enumerate(classes)))


@pytest.mark.parametrize(
    ("classes", "root", "is_hinted"),
    [
        (("turn left", "turn_right"), "/d", True), (("0", "1", "7"), "/d", True), (("digit_0", "digit_1"), "/d", True),
        (("normal", "pneumonia"), "/d/chest-xray", True), (("cat", "dog"), "/d", False),
        (("copyright", "bright"), "/d", False),
        (("a", "bee"), "/d", False), (("ant", "leftover"), "/expert", False),
    ],
)  # fmt: skip
def test_a_hint_where_a_flip_may_be_wrong(classes: tuple[str, ...], root: str, is_hinted: bool) -> None:
    assert bool(list(flip_hints(manifest(*classes, root=root)))) == is_hinted


def test_a_run_says_it_where_it_flips(image_folder: Any, tmp_path: Path) -> None:
    said: list[str] = []
    data = image_folder(classes="left right")
    for flip in (0.5, 0.0):
        more: dict[str, Any] = {**TINY, "strategy": "head-only", "epochs": 1}
        finetune.run(data, out=tmp_path / str(flip), overrides={"augment.horizontal_flip": flip},
                     on_event=lambda event: said.append(str(event.facts.get("text", ""))), **more)  # fmt: skip
    assert sum("left-right flip changes" in text for text in said) == 1


def test_the_grid_shows_levels_or_what_is_named(image_folder: Any, tmp_path: Path) -> None:
    data = image_folder(per_class=3)
    whole = Image.open(augment(data, out=tmp_path / "grid.png", images=2))
    named = Image.open(augment(data, out=tmp_path / "one.png", images=2, overrides={"augment.hue": 0.3}))
    assert whole.height > 2.5 * named.height and whole.width == named.width


def test_what_cannot_be_written_is_refused_before_anything_is_read(image_folder: Any, tmp_path: Path) -> None:
    data = image_folder()
    with pytest.raises(RecipeError, match=r"\.png"):
        augment(data, out=tmp_path / "grid.jpg")
    with pytest.raises(ResourceError, match="no such folder"):
        augment(data, out=tmp_path / "no" / "grid.png")
    with pytest.raises(RecipeError, match="at least one"):
        augment(data, out=tmp_path / "grid.png", images=0)
    with pytest.raises(DataError):
        augment(tmp_path / "nowhere", out=tmp_path / "grid.png")
