"""What augmentation does to images: a grid to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from finetune import recipe as recipes
from finetune.data.places import check_outside
from finetune.errors import RecipeError
from finetune.images.augmentation import LEVELS
from finetune.images.decode import UndecodableError, read_rgb
from finetune.images.transforms import View, augmented_view, plain_view
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import list_data, range_named
from finetune.randomness import derive, forked
from finetune.report.sheet import ACROSS, Cell, SheetSection, write
from finetune.settings import Recipe
from finetune.types import Manifest, Preprocessing, Sample
from finetune.whole import check_new_file

SIDE = 180  # pixels: as large as the grid shows them
SHOWN = ("light", "medium", "heavy")


def augment(
    data: str | Path,
    *,
    out: str | Path,
    images: int = 4,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a grid of some images, each as it is and as training may see it, and return its file.

    Every level has a section; where the recipe or `overrides` name something of `augment`, that is shown alone.

    Raises:
        DataError, RecipeError, ResourceError: what cannot be read or written, and the way out.
    """
    file = Path(out)
    check_new_file(file, ".png")
    if images < 1:
        raise RecipeError(f"images = {images}: at least one")
    chosen = recipe_of(recipe, settings={"data": data}, overrides=overrides)
    check_outside(file, chosen.data.path)
    manifest = list_data(chosen, is_to_train=False)
    drawn = _drawn(manifest, images, seed)
    pictures = [(sample, read) for sample in drawn if (read := _read(manifest, sample, chosen)) is not None]
    sections = [_section(title, view, pictures, seed) for title, view in _views(chosen)]
    write(file, sections)
    return file


def _views(recipe: Recipe) -> list[tuple[str, View]]:
    preprocessing = Preprocessing((SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if recipe.augment != Recipe().augment:
        keys = [key for key in recipes.fields() if key.startswith("augment.")]
        named = {key: recipes.value(recipe, key) for key in keys if recipes.value(recipe, key) != _default(key)}
        title = ", ".join(f"{key} = {value}" for key, value in named.items())
        return [(title, augmented_view(preprocessing, recipe.augment))]
    levels = [level for level in SHOWN if recipe.data.bands.are_colours or LEVELS[level].policy == "none"]
    settings = {level: recipes.update(recipe, {"augment.level": level}).augment for level in levels}
    return [(level, augmented_view(preprocessing, section)) for level, section in settings.items()]


def _default(key: str) -> Any:
    return recipes.fields()[key].default


def _section(title: str, view: View, pictures: Sequence[tuple[Sample, Image.Image]], seed: int) -> SheetSection:
    plain = plain_view(Preprocessing((SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    cells = []
    for sample, picture in pictures:
        cells.append(Cell(_image(plain(picture)), (Path(sample.file).name,)))
        for number in range(1, ACROSS):
            with forked(derive(seed, "grid", sample.file, number)):
                cells.append(Cell(_image(view(picture)), ()))
    return SheetSection(title, tuple(cells))


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _drawn(manifest: Manifest, count: int, seed: int) -> list[Sample]:
    order = np.random.default_rng(derive(seed, "grid")).permutation(len(manifest.samples))
    return [manifest.samples[place] for place in order[:count].tolist()]


def _read(manifest: Manifest, sample: Sample, recipe: Recipe) -> Image.Image | None:
    try:
        return read_rgb(Path(manifest.root, sample.file), value_range=range_named(recipe))
    except UndecodableError:
        return None
