"""Near copies are found by a hash that misses none within its radius, and confirmed on the images themselves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.data import near_duplicates
from finetune.data.near_duplicates import ALIKE, PLAIN, RADIUS, Copies, cells, confirmed, copies_of, perceptual_hashes
from finetune.data.sample import CLASSES, draw
from finetune.images.thumbnails import LOOK, Looks, look
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
    pairs = [pair for pair in combinations(hashes, 2) if np.bitwise_count(pair[0] ^ pair[1]) <= 20]
    assert len(pairs) > 10
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
@pytest.mark.parametrize("kind", ["even", "skewed", "alike"])
def test_every_pair_within_the_radius_shares_one_cell_in_which_it_is_new(radius: int, kind: str) -> None:
    rng = np.random.default_rng(1)
    shares = {"even": np.full(63, 0.5), "skewed": rng.beta(0.2, 0.2, 63), "alike": np.full(63, 0.03)}[kind]
    bits = rng.random((300, 63)) < shares
    bits[150:] = bits[:150] ^ (rng.random((150, 63)) < 0.06)
    hashes = (bits * (np.uint64(1) << np.arange(63, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    expected = [pair for pair in combinations(range(300), 2) if (bits[pair[0]] ^ bits[pair[1]]).sum() <= radius]
    found = [
        tuple(sorted(pair))
        for places, seen in cells(hashes, radius=radius)
        for pair in combinations(places.tolist(), 2)
        if np.bitwise_count(differing := hashes[pair[0]] ^ hashes[pair[1]]) <= radius
        and all(differing & part for part in seen)
    ]
    assert sorted(found) == expected
    assert len(expected) > 0 or radius == 0


def test_cells_hold_no_more_pairs_than_there_are() -> None:
    same = np.full(100, 7, dtype=np.uint64)
    assert [places.tolist() for places, _ in cells(same, radius=8)] == [list(range(100))]


def test_a_hash_outlasts_brightness_and_contrast() -> None:
    grey = np.concatenate([look(encoded(picture))["grey"] for picture in pictures(6)])
    dimmed = (grey * 0.6 + 20).astype(np.uint8)
    apart = np.bitwise_count(perceptual_hashes(grey) ^ perceptual_hashes(dimmed))
    assert apart.max() <= 6
    other = np.bitwise_count(perceptual_hashes(grey) ^ perceptual_hashes(np.roll(grey, 1, axis=0)))
    assert other.min() > 8


def of_all_pairs(looks: Looks, digests: list[str]) -> list[tuple[int, ...]]:
    """The groups by their definition: all pairs are compared, and groups that a pair joins become one."""
    count = len(looks)
    left, right = (np.array(side) for side in zip(*combinations(range(count), 2), strict=True))
    hashes = perceptual_hashes(looks["grey"])
    is_telling = looks["grey"].std(axis=(1, 2)) >= PLAIN
    is_near = (np.bitwise_count(hashes[left] ^ hashes[right]) <= RADIUS) & is_telling[left] & is_telling[right]
    near = zip(*confirmed(looks, left[is_near], right[is_near], alike=ALIKE), strict=True)
    same = [
        (one, other) for one, other in combinations(range(count), 2) if looks["pixels"][one] == looks["pixels"][other]
    ]
    number = list(range(count))
    for one, other in [*same, *near]:
        low, high = sorted((number[one], number[other]))
        number = [low if group == high else group for group in number]
    groups = [tuple(place for place in range(count) if number[place] == group) for group in sorted(set(number))]
    return [members for members in groups if len(members) > 1]


def looks_like(grey: np.ndarray, rng: np.random.Generator, *, tint: float = 0.0) -> Looks:
    """Looks of small grey images (N, 32, 32) whose colours differ by so many levels."""
    looks = np.zeros(len(grey), LOOK)
    looks["grey"] = grey.clip(0, 255)
    colour = looks["grey"][:, ::4, ::4, None] + tint * rng.normal(0, 1, (len(grey), 1, 1, 3))
    looks["colour"] = colour.clip(0, 255)
    looks["pixels"] = np.frombuffer(rng.bytes(16 * len(grey)), "V16")
    return looks


def scene(rng: np.random.Generator, coarse: int = 8) -> np.ndarray:
    return np.kron(rng.integers(30, 226, (coarse, coarse)), np.ones((32 // coarse, 32 // coarse)))


def drawn_looks(kind: str, rng: np.random.Generator) -> Looks:
    """Sets of 60 that are easy to get wrong when pairs are left out."""
    base, other = scene(rng), scene(rng)
    noise = rng.normal(0, 1, (60, 32, 32))
    if kind == "no two alike":
        return looks_like(np.stack([scene(rng) for _ in range(60)]), rng)
    if kind == "a fixed camera":
        return looks_like(base + 4 * noise, rng)
    if kind == "frames at the border of being alike":
        return looks_like(base + rng.uniform(5, 13, (60, 1, 1)) * noise, rng)
    if kind == "a chain in which only neighbours are alike":
        shares = rng.permutation(np.linspace(0, 1, 60))[:, None, None]
        return looks_like(base * (1 - shares) + other * shares, rng)
    if kind == "one hash and different grain":
        return looks_like(base + 40 * noise, rng)
    if kind == "one shape in many colours":
        return looks_like(base + 2 * noise, rng, tint=25)
    if kind == "several cameras and strangers":
        scenes = np.stack([scene(rng) for _ in range(4)])[rng.integers(0, 4, 60)]
        scenes[::7] = rng.integers(0, 256, (9, 32, 32))
        return looks_like(scenes + rng.uniform(1, 13, (60, 1, 1)) * noise, rng)
    looks = looks_like(np.full((60, 32, 32), 90) + 3 * (rng.random((60, 1, 1)) < 0.5) * noise, rng)  # plain ones
    looks["pixels"][::5] = looks["pixels"][0]
    return looks


KINDS = [
    "no two alike",
    "a fixed camera",
    "frames at the border of being alike",
    "a chain in which only neighbours are alike",
    "one hash and different grain",
    "one shape in many colours",
    "several cameras and strangers",
    "plain ones",
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("tile", "few", "representatives"), [(1024, 2048, 16), (7, 0, 16), (16, 5, 1), (64, 0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_those_of_a_look_at_every_pair(
    monkeypatch: pytest.MonkeyPatch, kind: str, tile: int, few: int, representatives: int, seed: int
) -> None:
    for name, value in {"TILE": tile, "FEW": few, "REPRESENTATIVES": representatives, "PAIRS_AT_ONCE": 50}.items():
        monkeypatch.setattr(near_duplicates, name, value)
    looks = drawn_looks(kind, np.random.default_rng(seed))
    digests = [str(place) for place in range(60)]
    assert [one.members for one in copies_of(looks, digests)] == of_all_pairs(looks, digests)


def test_the_sets_above_hold_groups_and_what_is_in_none() -> None:
    found = {kind: of_all_pairs(drawn_looks(kind, np.random.default_rng(0)), []) for kind in KINDS}
    assert found["no two alike"] == found["one hash and different grain"] == []
    assert [len(members) for members in found["a fixed camera"]] == [60]
    assert [len(members) for members in found["a chain in which only neighbours are alike"]] == [60]
    for kind in ("frames at the border of being alike", "one shape in many colours", "several cameras and strangers"):
        assert 3 < sum(len(members) for members in found[kind]) < 60
    assert len(found["one shape in many colours"]) > 1


@pytest.mark.parametrize("count", [200, 800])
def test_frames_of_a_fixed_camera_are_each_compared_once(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    asked = []

    def counted(looks: Looks, left: np.ndarray, right: np.ndarray, *, alike: float) -> object:
        asked.append(len(left))
        return confirmed(looks, left, right, alike=alike)

    monkeypatch.setattr(near_duplicates, "confirmed", counted)
    rng = np.random.default_rng(0)
    looks = looks_like(scene(rng) + rng.normal(0, 4, (count, 32, 32)), rng)
    assert len(copies_of(looks, [str(place) for place in range(count)])) == 1
    assert sum(asked) < 2 * count
