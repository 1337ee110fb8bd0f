"""A small labelled set of drawn images, for trying the tool without data.

Every class is one shape filled with one texture, and nothing else tells the classes apart: place,
size, rotation, colours, background, clutter and light are drawn anew for each image. A linear
classifier on raw pixels therefore stays near chance, while a small network learns the set.

Shape letters: H W the pixels of the enlarged canvas on which an image is drawn.

What is not covered: the set says nothing about photographs, and its bytes are the same only for
the same versions of NumPy and Pillow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from finetune.arguments import typed
from finetune.data.tree import child_folders, has_own_images
from finetune.errors import DataError, RecipeError
from finetune.whole import folder_made, is_vacant, unwritable

__all__ = ["CLASSES", "draw", "write_sample"]

Field = NDArray[np.float32]  # [H, W], or [H, W, 3] for an image in 0..1
Shape = Callable[[Field, Field], Field]
Texture = Callable[[Field, Field, Generator], Field]

SHORTEST_SIDE, LONGEST_SIDE = 96, 160  # of a finished image, in pixels
ENLARGED = 2  # the canvas is this many times larger; shrinking it smooths the edges
RIM = 0.07  # width of the line around a shape, in radii
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


# Shapes: how deep a point lies inside (negative outside), in radii, for a shape of radius about 1.


def _disc(x: Field, y: Field) -> Field:
    return _field(0.95 - np.hypot(x, y))


def _ring(x: Field, y: Field) -> Field:
    return _field(0.32 - np.abs(np.hypot(x, y) - 0.76))


def _polygon(x: Field, y: Field, *, num_sides: int, inner_radius: float) -> Field:
    angles = 2 * np.pi * np.arange(num_sides) / num_sides
    sides = [x * np.cos(a) + y * np.sin(a) for a in angles]
    return _field(inner_radius - np.maximum.reduce(sides))


def _triangle(x: Field, y: Field) -> Field:
    return _polygon(x, y, num_sides=3, inner_radius=0.64)


def _square(x: Field, y: Field) -> Field:
    return _polygon(x, y, num_sides=4, inner_radius=0.82)


def _hexagon(x: Field, y: Field) -> Field:
    return _polygon(x, y, num_sides=6, inner_radius=0.92)


def _star(x: Field, y: Field) -> Field:
    # Folding the plane onto half an arm leaves one straight edge, from tip to notch.
    half_arm = np.pi / 5
    angle = np.abs((np.arctan2(y, x) + half_arm) % (2 * half_arm) - half_arm)
    radius = np.hypot(x, y)
    tip, notch_x, notch_y = 1.25, 0.6 * np.cos(half_arm), 0.6 * np.sin(half_arm)
    along_x, along_y = notch_x - tip, notch_y
    depth = along_x * radius * np.sin(angle) - along_y * (radius * np.cos(angle) - tip)
    return _field(depth / np.hypot(along_x, along_y))


# Textures: the share of the second colour at a point, 0..1; coordinates in radii.


def _stripes(u: Field, v: Field, rng: Generator) -> Field:
    return _field(u * rng.uniform(2.0, 3.0) % 1 < 0.5)


def _checks(u: Field, v: Field, rng: Generator) -> Field:
    cells = rng.uniform(2.6, 3.8)
    return _field((np.floor(u * cells) + np.floor(v * cells)) % 2)


def _dots(u: Field, v: Field, rng: Generator) -> Field:
    cells = rng.uniform(2.8, 3.8)
    return _field(np.hypot(u * cells % 1 - 0.5, v * cells % 1 - 0.5) < 0.31)


def _crosshatch(u: Field, v: Field, rng: Generator) -> Field:
    lines, slant = rng.uniform(2.8, 4.0), rng.uniform(0.9, 1.3)
    other = u * np.cos(slant) + v * np.sin(slant)
    return _field((u * lines % 1 < 0.22) | (other * lines % 1 < 0.22))


def _bricks(u: Field, v: Field, rng: Generator) -> Field:
    rows = v * rng.uniform(2.8, 3.8)
    columns = u * rng.uniform(1.4, 1.8) + 0.5 * (np.floor(rows) % 2)
    return _field((rows % 1 < 0.18) | (columns % 1 < 0.09))


def _grain(u: Field, v: Field, rng: Generator) -> Field:
    speckles = rng.random((64, 64), dtype=np.float32)
    cells = rng.uniform(9.0, 13.0)
    rows, columns = (np.floor(w * cells).astype(np.intp) % 64 for w in (v, u))
    return _field(speckles[rows, columns])


_KINDS: dict[str, tuple[Shape, Texture]] = {
    "brick-hexagon": (_hexagon, _bricks),
    "checkered-triangle": (_triangle, _checks),
    "dotted-ring": (_ring, _dots),
    "grainy-square": (_square, _grain),
    "hatched-star": (_star, _crosshatch),
    "striped-disc": (_disc, _stripes),
}
CLASSES: tuple[str, ...] = tuple(sorted(_KINDS))


@typed
def write_sample(folder: str | Path, *, per_class: int = 60, seed: int = 0) -> list[Path]:
    """Write `folder/<class>/<class>-000.jpg` and so on; return the paths, class by class.

    The images are made in a temporary folder and moved into place once all of them are there,
    so that a failure leaves nothing half-written behind.

    Raises:
        DataError: `folder` is a file or holds anything, or `per_class` is under 1. RecipeError: `seed` is under 0.
        ResourceError: it cannot be written.
    """
    folder = Path(folder)
    if per_class < 1:
        raise DataError(f"{per_class} images per class is too few.", hint="Ask for 1 or more.")
    if seed < 0:
        raise RecipeError(f"seed = {seed}: must be a whole number of 0 or more")
    if not is_vacant(folder):
        raise DataError(
            f"{folder} is not an empty folder.",
            hint="Name a folder that does not exist yet, or empty this one.",
        )
    # A folder that exists may be a mount, which cannot be renamed over from outside.
    is_present = folder.is_dir()
    work = (folder if is_present else folder.parent) / f".sample-{uuid4().hex[:8]}"
    with folder_made(work.parent):
        try:
            names = _write_classes(work, per_class=per_class, seed=seed)
            _move(work, folder, is_present=is_present)
        except OSError as error:
            raise unwritable(folder, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return [folder / name for name in names]


def is_among_images(folder: Path) -> bool:
    """Return whether a new folder lies beside images, or beside folders that hold some themselves, as classes do."""
    around = folder.absolute().parent
    names = [name for name in child_folders(around) if name != folder.name] if around.is_dir() else []
    return any(has_own_images(around / name) for name in (".", *names))


def draw(name: str, *, index: int, seed: int) -> Image.Image:
    """Return one RGB image of class `name`; it depends on nothing but the three arguments."""
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    width, height = (int(n) for n in rng.integers(SHORTEST_SIDE, LONGEST_SIDE + 1, size=2))
    canvas = _background(width * ENLARGED, height * ENLARGED, rng)
    canvas = _light(_put_object(canvas, *_KINDS[name], rng), rng)
    small = _image(canvas).resize((width, height), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6)))
    noise = rng.normal(0.0, rng.uniform(0.005, 0.025), size=(height, width, 1))
    return _image(_pixels(small) + _field(noise))


def _write_classes(work: Path, *, per_class: int, seed: int) -> list[str]:
    names: list[str] = []
    for name in CLASSES:
        (work / name).mkdir(parents=True)
        for index in range(per_class):
            names.append(f"{name}/{name}-{index:03d}.jpg")
            draw(name, index=index, seed=seed).save(work / names[-1], quality=90)
    return names


def _move(work: Path, folder: Path, *, is_present: bool) -> None:
    if not is_present:
        work.rename(folder)
        return
    for name in CLASSES:
        (work / name).rename(folder / name)
    work.rmdir()


def _background(width: int, height: int, rng: Generator) -> Field:
    """Return a two-colour gradient with clouds, some faint texture and clutter; [H, W, 3]."""
    x, y = _grid(width, height)
    first, second = _field(rng.random((2, 3)))
    slope, turn = rng.uniform(0.3, 1.0), rng.uniform(0, 2 * np.pi)
    share = 0.5 + slope * (x * np.cos(turn) + y * np.sin(turn)) / max(width, height)
    share = np.clip(share + 0.25 * _clouds(width, height, rng), 0, 1)[..., None]
    canvas = first + (second - first) * share
    # Any texture may lie faintly behind any shape, so a texture somewhere decides nothing.
    textures = [texture for _, texture in _KINDS.values()]
    pattern = textures[rng.integers(len(textures))]
    scale = rng.uniform(0.2, 0.5) * min(width, height)
    u, v = _turned(x / scale, y / scale, rng.uniform(0, 2 * np.pi))
    strength = rng.uniform(-0.05, 0.05)
    return _clutter(_field(canvas + strength * pattern(u, v, rng)[..., None]), rng)


def _clutter(canvas: Field, rng: Generator) -> Field:
    """Return the canvas with a few plain blots, scraps and lines, half see-through."""
    plain = _image(canvas)
    drawn = plain.copy()
    pen = ImageDraw.Draw(drawn)
    size = np.array(plain.size)
    for _ in range(rng.integers(3, 9)):
        colour = _ink(rng.random(3))
        centre = rng.random(2) * size
        points = centre + rng.normal(0, 0.1, size=(3, 2)) * size.min()
        corners = [(float(px), float(py)) for px, py in points]
        match rng.integers(3):
            case 0:
                reach = rng.uniform(0.02, 0.12, size=2) * size.min()
                pen.ellipse([*(centre - reach), *(centre + reach)], fill=colour)
            case 1:
                pen.polygon(corners, fill=colour)
            case _:
                pen.line(corners, fill=colour, width=int(rng.integers(2, 9)))
    return _pixels(Image.blend(plain, drawn, rng.uniform(0.3, 0.6)))


def _put_object(canvas: Field, shape: Shape, texture: Texture, rng: Generator) -> Field:
    """Return the canvas with the textured shape on it: shadow, fill and rim."""
    height, width, _ = canvas.shape
    radius = rng.uniform(0.3, 0.4) * min(width, height)
    x, y = _grid(width, height)
    free_x, free_y = width / 2 - 1.1 * radius, height / 2 - 1.1 * radius
    x, y = x - rng.uniform(-free_x, free_x), y - rng.uniform(-free_y, free_y)
    x, y = _turned(x / radius, y / radius, rng.uniform(0, 2 * np.pi))
    y = _field(y * rng.uniform(0.9, 1.2))  # slightly foreshortened
    depth = shape(x, y)
    first, second = _contrasting_colours(rng)
    share = texture(*_turned(x, y, rng.uniform(0, 2 * np.pi)), rng)[..., None]
    rim = first if rng.random() < 0.5 else second
    fill = np.where(depth[..., None] < RIM, rim * 0.7, first + (second - first) * share)
    # The shadow falls off with the distance from the edge.
    shaded = canvas * (1 - 0.45 * np.exp(np.minimum(depth, 0) / 0.12))[..., None]
    return _field(np.where(depth[..., None] > 0, fill, shaded))


def _contrasting_colours(rng: Generator) -> tuple[Field, Field]:
    """Return two colours that differ in brightness by 0.4 of the scale or more."""
    while True:
        first, second = _field(rng.random((2, 3)))
        if abs(float((first - second) @ LUMA)) > 0.4:
            return first, second


def _light(canvas: Field, rng: Generator) -> Field:
    """Return the canvas lit from one side, with a random exposure and contrast."""
    height, width, _ = canvas.shape
    x, _ = _turned(*_grid(width, height), rng.uniform(0, 2 * np.pi))
    side = 1 + rng.uniform(0, 0.5) * x / max(width, height)
    lit = (canvas - 0.5) * rng.uniform(0.75, 1.1) + 0.5 + rng.uniform(-0.08, 0.08)
    return _field(lit * side[..., None])


def _clouds(width: int, height: int, rng: Generator) -> Field:
    coarse = rng.normal(size=(int(rng.integers(3, 8)), int(rng.integers(3, 8))))
    clouds = Image.fromarray(_field(coarse))
    return _field(np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)))


def _grid(width: int, height: int) -> tuple[Field, Field]:
    """Return x and y of every pixel, counted from the middle of the canvas; each [H, W]."""
    x, y = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    return _field(x), _field(y)


def _turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    cos, sin = np.cos(angle), np.sin(angle)
    return _field(x * cos - y * sin), _field(x * sin + y * cos)


def _field(values: object) -> Field:
    return np.asarray(values, dtype=np.float32)


def _pixels(image: Image.Image) -> Field:
    return _field(image) / np.float32(255)


def _image(canvas: Field) -> Image.Image:
    return Image.fromarray((np.clip(canvas, 0, 1) * 255).round().astype(np.uint8))


def _ink(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(part * 255) for part in colour)
    return red, green, blue
