"""Near copies are found by a hash that misses none within its radius, and confirmed on the images themselves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.data.near_duplicates import Copies, copies_of, perceptual_hashes, within
from finetune.data.sample import CLASSES, draw
from finetune.data.thumbnails import look
from tests.corpus import encoded


def found_among(contents: list[bytes], **options: float) -> list[Copies]:
    digests = [str(hash(one)) for one in contents]
    return copies_of(np.concatenate([look(one) for one in contents]), digests, **options)


def pictures(count: int) -> list[Image.Image]:
    return [draw(CLASSES[index % len(CLASSES)], index=index, seed=0) for index in range(count)]


def half(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)


CHANGES = {
    "saved as JPEG": lambda picture: encoded(picture, "JPEG", quality=50),
    "half the size": lambda picture: encoded(half(picture)),
    "brighter": lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(1.15)),
    "less contrast": lambda picture: encoded(ImageEnhance.Contrast(picture).enhance(0.8)),
    "a pixel cut off": lambda picture: encoded(picture.crop((1, 1, picture.width - 1, picture.height - 1))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_are_found_and_different_pictures_are_not(change: str) -> None:
    drawn = pictures(24)
    contents = [encoded(picture) for picture in drawn] + [CHANGES[change](picture) for picture in drawn]
    found = found_among(contents)
    assert [one.members for one in found if one.members[1] - one.members[0] != 24 or len(one.members) != 2] == []
    assert len(found) >= (21 if change == "a pixel cut off" else 24)
    assert {one.how for one in found} == {"near"}
    assert found_among(contents, alike=1.0) == []


def test_what_copies_share_is_told_by_the_least_alike() -> None:
    first, second, third = pictures(3)
    png = encoded(first)
    contents = [
        png,
        encoded(second),
        png,
        encoded(second, "BMP"),
        encoded(third),
        encoded(third, "JPEG"),
        encoded(third),
    ]
    assert found_among(contents) == [Copies((0, 2), "bytes"), Copies((1, 3), "pixels"), Copies((4, 5, 6), "near")]
    assert found_among(contents, alike=1.0) == [
        Copies((0, 2), "bytes"),
        Copies((1, 3), "pixels"),
        Copies((4, 6), "bytes"),
    ]


def test_blank_and_plain_pictures_are_copies_only_where_their_pixels_are() -> None:
    rng = np.random.default_rng(0)
    plain = [np.full((40, 40, 3), level) for level in (0, 100, 101, 255, 100)]
    noisy = [np.clip(128 + rng.normal(0, 1.5, (40, 40, 3)), 0, 255) for _ in range(20)]
    found = found_among([encoded(Image.fromarray(values.astype(np.uint8))) for values in plain + noisy])
    assert found == [Copies((1, 4), "bytes")]


def test_pictures_with_one_hash_are_told_apart_by_what_they_show() -> None:
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 2, (4, 4)) * 60 + 90, np.ones((16, 16)))  # the same coarse light and dark
    grains = [base + rng.normal(0, 60, (64, 64)) for _ in range(12)]
    contents = [encoded(Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))) for grain in grains]
    hashes = perceptual_hashes(np.concatenate([look(one)["grey"] for one in contents]))
    pairs = sum(len(left) for left, _ in within(hashes, radius=20))
    assert pairs > 10
    assert found_among(contents) == []


def test_the_same_shape_in_another_colour_is_no_copy() -> None:
    picture = np.asarray(draw(CLASSES[0], index=3, seed=0)).astype(float)
    grey = picture @ [0.299, 0.587, 0.114]
    red, blue = (np.stack([grey * share for share in shares], axis=2) for shares in ((1.2, 0.9, 0.6), (0.6, 0.97, 1.2)))
    contents = [encoded(Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))) for values in (red, blue)]
    first, second = (look(one)["grey"].astype(float).ravel() for one in contents)
    assert np.corrcoef(first, second)[0, 1] > 0.98
    assert found_among(contents) == []


@pytest.mark.parametrize("radius", [0, 3, 8])
@pytest.mark.parametrize("is_skewed", [False, True])
def test_every_pair_within_the_radius_is_found_once(radius: int, is_skewed: bool) -> None:
    rng = np.random.default_rng(1)
    shares = rng.beta(0.2, 0.2, 63) if is_skewed else np.full(63, 0.5)
    bits = rng.random((300, 63)) < shares
    bits[150:] = bits[:150] ^ (rng.random((150, 63)) < 0.06)
    hashes = (bits * (np.uint64(1) << np.arange(63, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    expected = [pair for pair in combinations(range(300), 2) if (bits[pair[0]] ^ bits[pair[1]]).sum() <= radius]
    found = [tuple(sorted(pair)) for left, right in within(hashes, radius=radius) for pair in zip(left, right)]  # noqa: B905
    assert sorted(found) == expected
    assert len(expected) > 0 or radius == 0


def test_a_hash_outlasts_brightness_and_contrast() -> None:
    grey = np.concatenate([look(encoded(picture))["grey"] for picture in pictures(6)])
    dimmed = (grey * 0.6 + 20).astype(np.uint8)
    apart = np.bitwise_count(perceptual_hashes(grey) ^ perceptual_hashes(dimmed))
    assert apart.max() <= 6
    other = np.bitwise_count(perceptual_hashes(grey) ^ perceptual_hashes(np.roll(grey, 1, axis=0)))
    assert other.min() > 8
