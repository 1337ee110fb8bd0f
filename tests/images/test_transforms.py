"""The views: uint8 of the backbone's size, the plain one always the same, the augmented one as the recipe says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.images.decode import decode
from finetune.images.shapes import GAP, smaller
from finetune.images.stacks import stack_of
from finetune.images.transforms import View, augmented_view, normalise, picture_side, plain_view, source_of
from finetune.randomness import forked
from finetune.sections import AugmentSection
from finetune.types import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(1, 1), (3, 1000), (1000, 3), (64, 64), (63, 65), (500, 200)]


def preprocessing(height: int = 64, width: int = 64, **options: object) -> Preprocessing:
    return Preprocessing((height, width), MEAN, STD, **options)  # type: ignore[arg-type]


def picture(width: int = 90, height: int = 70) -> Image.Image:
    """Smooth blobs, different in every corner."""
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def augment(**options: object) -> AugmentSection:
    off = {"min_crop": 1.0, "horizontal_flip": 0.0, "vertical_flip": 0.0, "color_jitter": 0.0}
    return AugmentSection.model_validate({**off, **options})


def seen(view: View, image: Image.Image, *, seed: int = 0) -> Tensor:
    with forked(seed):
        return view(image).clone()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


@pytest.mark.parametrize(
    ("crop_mode", "size"),
    [*((mode, size) for mode in ("center", "squash") for size in SIZES), *(("border", size) for size in SIZES[3:])],
)
@pytest.mark.parametrize("shape", [(64, 64), (48, 80)], ids=str)
def test_the_plain_view_has_the_size_of_the_backbone(
    crop_mode: str, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    found = plain_view(preprocessing(*shape, crop_mode=crop_mode))(picture(*size))
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, *shape))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_augmented_view_has_the_size_of_the_backbone(size: tuple[int, int]) -> None:
    view = augmented_view(preprocessing(48, 80), AugmentSection(color_jitter=0.4, vertical_flip=0.5))
    found = seen(view, picture(*size))
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 48, 80))


def test_the_plain_view_draws_nothing() -> None:
    view = plain_view(preprocessing())
    before = torch.get_rng_state()
    assert torch.equal(seen(view, picture(), seed=1), seen(view, picture(), seed=2))
    view(picture())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_plain_view_shows_the_middle() -> None:
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[:, 75:125] = 255  # the middle quarter of the width
    found = plain_view(preprocessing(crop_pct=1.0))(Image.fromarray(pixels)).float()
    assert found[:, :, 24:40].mean() > 250
    assert found[:, :, :12].mean() < 5 and found[:, :, -12:].mean() < 5


def test_level_none_is_the_plain_view() -> None:
    view = augmented_view(preprocessing(), AugmentSection(level="none", color_jitter=1.0, horizontal_flip=1.0))
    assert torch.equal(seen(view, picture()), plain_view(preprocessing())(picture()))


def test_augmentation_varies_with_the_seed_and_only_with_it() -> None:
    view = augmented_view(preprocessing(), AugmentSection())
    first = seen(view, picture(), seed=1)
    assert torch.equal(seen(view, picture(), seed=1), first)
    others = [seen(view, picture(), seed=seed) for seed in range(2, 12)]
    assert sum(difference(first, other) > 5 for other in others) >= 8


def test_with_every_piece_off_the_whole_picture_is_shown() -> None:
    square = picture(64, 64)
    found = seen(augmented_view(preprocessing(), augment()), square)
    assert difference(found, torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)) == 0


@pytest.mark.parametrize(("key", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_a_flip_of_probability_one_mirrors_and_of_a_half_mirrors_some(key: str, axis: int) -> None:
    square = picture(64, 64)
    plain = seen(augmented_view(preprocessing(), augment()), square)
    assert torch.equal(seen(augmented_view(preprocessing(), augment(**{key: 1.0})), square), plain.flip(axis))
    view = augmented_view(preprocessing(), augment(**{key: 0.5}))
    num_flipped = sum(torch.equal(seen(view, square, seed=seed), plain.flip(axis)) for seed in range(40))
    assert 8 <= num_flipped <= 32


def test_min_crop_bounds_what_is_cut_away() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3)))
    spans = {}
    for share in (0.1, 0.9):
        view = augmented_view(preprocessing(), augment(min_crop=share))
        found = [seen(view, ramp, seed=seed).float() for seed in range(40)]
        spans[share] = min(float(image.max() - image.min()) / 255 for image in found)
    assert spans[0.1] < 0.5 < 0.75 < spans[0.9]


def test_color_jitter_changes_colours_and_not_shapes() -> None:
    grey = Image.new("RGB", (64, 64), (120, 130, 140))
    view = augmented_view(preprocessing(), augment(color_jitter=0.5))
    found = [seen(view, grey, seed=seed).float() for seed in range(10)]
    assert all(float(image.flatten(1).std(dim=1).max()) < 1 for image in found)
    assert len({tuple(image[:, 0, 0].tolist()) for image in found}) >= 8


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (1000, 3000), (2000, 700)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.5])
def test_a_reduced_picture_shows_the_plain_view_within_two_levels(width: int, height: int, crop_pct: float) -> None:
    stream = io.BytesIO()
    picture(width, height).save(stream, "JPEG", quality=90)
    settings = preprocessing(crop_pct=crop_pct)
    full, draft = decode(stream.getvalue()), decode(stream.getvalue(), side=picture_side(settings))
    assert draft.width < full.width
    view = plain_view(settings)
    assert difference(view(full), view(draft)) < 2


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("size", [(90, 70), (80, 75), (3, 200), (200, 3), (700, 650), (1000, 2100)], ids=str)
def test_views_are_cut_from_the_smaller_image_to_a_few_levels(size: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(0).integers(-20, 20, (size[1], size[0], 1))
    colours = np.clip(np.asarray(picture(*size)) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(colours).convert(mode)
    for side in (64, 72):
        expected, found = smaller(image, side), source_of(image, side)
        assert (found.mode, found.size) == (mode, expected.size)
        apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
        is_averaged = min(size) / side > 2 * GAP
        assert apart.max() <= (8 if is_averaged else 2) and apart.mean() < (1 if is_averaged else 0.1)


def test_an_image_that_is_small_already_and_a_stack_are_as_pillow_has_them() -> None:
    image = picture(90, 70)
    assert source_of(image, 70) is image
    stack = stack_of(np.asarray(image), (0, 255))
    assert np.array_equal(source_of(stack, 32).numbers(), smaller(stack, 32).numbers())


@pytest.mark.parametrize(
    ("shape", "crop_pct", "side"), [((64, 64), 1.0, 80), ((48, 80), 0.5, 200), ((64, 64), 1.2, 80)]
)
def test_a_decoded_picture_keeps_a_quarter_more_than_is_shown(
    shape: tuple[int, int], crop_pct: float, side: int
) -> None:
    assert picture_side(preprocessing(*shape, crop_pct=crop_pct)) == side


def test_normalising_takes_mean_and_deviation_out() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    found = normalise(images, preprocessing())
    for channel in range(3):
        expected = (before[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-6, rtol=1e-6)
    assert found.dtype == torch.float32
    assert torch.equal(images, before)
