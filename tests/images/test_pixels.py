"""An image is the same from the pixel cache and from its file; no file is decoded twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import cache_entries
from finetune.data import checks, loaders, sources
from finetune.data.loaders import ImageDataset
from finetune.errors import ResourceError
from finetune.images.decode import read, read_rgb
from finetune.images.pixels import PixelCache, open_pixels
from finetune.images.transforms import augmented_view, plain_view
from finetune.sections import AugmentSection
from finetune.settings import CacheSection
from finetune.types import Event, Manifest, Preprocessing

SETTINGS = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def listed(image_folder: Callable[..., Path]) -> Manifest:
    return sources.read(image_folder(per_class=6))


def opened(manifest: Manifest, **settings: object) -> PixelCache | None:
    section = CacheSection.model_validate(settings)
    return open_pixels(manifest.root, preprocessing=SETTINGS, num_images=len(manifest.samples), settings=section)


def filled(manifest: Manifest) -> tuple[Manifest, PixelCache]:
    pixels = opened(manifest)
    assert pixels is not None
    return checks.scan(manifest, pixels=pixels), pixels


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    monkeypatch.setattr(loaders, "read", lambda path, **more: seen.append(path) or read(path, **more))
    return seen


@pytest.mark.parametrize("is_augmented", [False, True])
def test_views_from_the_cache_are_those_from_the_files(
    listed: Manifest, is_augmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned, pixels = filled(listed)
    view = augmented_view(SETTINGS, AugmentSection(color_jitter=0.2)) if is_augmented else plain_view(SETTINGS)
    from_files = ImageDataset(scanned.root, scanned.samples, view, SETTINGS, seed=0)
    from_cache = ImageDataset(scanned.root, scanned.samples, view, SETTINGS, seed=0, pixels=pixels)
    expected = [from_files[0, 1, index][0] for index in range(len(scanned.samples))]
    decoded = count_decoded(monkeypatch)
    found = [from_cache[0, 1, index][0] for index in range(len(scanned.samples))]
    assert decoded == []
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_second_scan_opens_nothing(listed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = filled(listed)
    monkeypatch.setattr(checks, "read_content", lambda _: pytest.fail("a file was opened"))
    assert filled(listed)[0] == first


def test_a_scan_that_is_remembered_still_fills_a_cache_that_was_cleared(listed: Manifest) -> None:
    scanned, pixels = filled(listed)
    pixels.entry.rows_file.unlink()
    _, again = filled(listed)
    assert all(sample.digest in again for sample in scanned.samples)


def test_a_damaged_row_is_decoded_anew(listed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned, pixels = filled(listed)
    content = bytearray(pixels.entry.rows_file.read_bytes())
    content[:] = [byte ^ 255 for byte in content]
    pixels.entry.rows_file.write_bytes(content)
    decoded = count_decoded(monkeypatch)
    view = plain_view(SETTINGS)
    dataset = ImageDataset(scanned.root, scanned.samples, view, SETTINGS, seed=0, pixels=pixels)
    expected = view(read_rgb(Path(scanned.root, scanned.samples[0].file)))
    assert torch.equal(dataset[0, 0, 0][0], expected)
    assert len(decoded) == 1


def test_a_worker_gets_places_and_no_pixels(listed: Manifest) -> None:
    scanned, pixels = filled(listed)
    found = pixels.find([sample.digest for sample in scanned.samples])
    before = found.tensor(3, plain_view(SETTINGS))
    assert len(pickle.dumps(found)) < 100 * len(scanned.samples) + 2000
    assert torch.equal(pickle.loads(pickle.dumps(found)).tensor(3, plain_view(SETTINGS)), before)


def test_the_size_of_another_backbone_is_another_cache(listed: Manifest) -> None:
    scanned, pixels = filled(listed)
    larger = Preprocessing((24, 24), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    dataset = ImageDataset(scanned.root, scanned.samples, plain_view(larger), larger, seed=None, pixels=pixels)
    assert dataset.pixels is None


@pytest.mark.parametrize("settings", [{"pixels": "none"}, {"limit": 1e-6}])
def test_no_cache_where_it_is_not_wanted_or_does_not_fit(listed: Manifest, settings: dict[str, object]) -> None:
    assert opened(listed, **settings) is None


def test_a_full_disk_costs_the_cache_and_not_the_scan(listed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, said = opened(listed), []
    assert pixels is not None
    monkeypatch.setattr(
        PixelCache, "add", lambda *_: (_ for _ in ()).throw(ResourceError("the cache cannot be written: full"))
    )
    scanned = checks.scan(listed, pixels=pixels, on_event=lambda event: said.append(event.facts.get("text")))
    assert len(scanned.samples) == len(listed.samples)
    assert "no pixel cache: the cache cannot be written: full" in said


def test_a_process_that_fills_for_too_long_costs_the_cache_and_not_the_scan(listed: Manifest, monkeypatch) -> None:
    monkeypatch.setattr(cache_entries, "SILENCE", 0.01)
    monkeypatch.setattr(cache_entries, "LONGEST_WAIT", 0.02)
    pixels, other = opened(listed), opened(listed)
    said: list[Event] = []
    other.entry.lock.acquire()
    scanned = checks.scan(listed, pixels=pixels, on_event=said.append)
    assert len(scanned.samples) == len(listed.samples)
    texts = [event.facts["text"] for event in said if event.kind == "warning"]
    assert [text.partition(":")[0] for text in texts[1:]] == ["no pixel cache"]
    assert texts[0].startswith("waiting for another process that fills the pixel cache")
