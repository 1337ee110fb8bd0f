"""Images from formulas, in labelled categories: fractals, visual atoms, dead leaves, waves.

    images, labels = draw(num_categories=400, per_category=40, seed=0)

A category is one draw of a formula's parameters; its images differ by small changes of them and by
colours. No photograph takes part.

N images, S side in pixels.

Source: Kataoka et al. 2020 (FractalDB); Takashima et al. 2023 (VisualAtom); Baradad et al. 2021 (dead
leaves, spectra).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SIDE = 144
Plane = NDArray[np.float32]  # [S, S], or [S, S, 3] for an image in 0..1
Picture = NDArray[np.uint8]  # [S, S, 3]


def draw(*, num_categories: int, per_category: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [N, S, S, 3] and their categories [N], N = num_categories * per_category."""
    pictures = np.empty((num_categories * per_category, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(num_categories), per_category)
    for at, category in enumerate(labels):
        formula = FORMULAS[category % len(FORMULAS)]
        pictures[at] = formula(np.random.default_rng([seed, category]), np.random.default_rng([seed, category, at]))
    return pictures, labels


def fractal(kind: Generator, rng: Generator) -> Picture:
    """Draw the attractor of an iterated function system of 2 to 5 contracting affine maps."""
    num_maps = int(kind.integers(2, 6))
    maps = kind.uniform(-0.8, 0.8, (num_maps, 2, 2)) * rng.uniform(0.92, 1.08, (num_maps, 1, 1))
    sizes = np.linalg.svd(maps, compute_uv=False)[:, 0]
    maps = maps / np.maximum(sizes / 0.85, 1.0)[:, None, None]
    shifts = kind.uniform(-1, 1, (num_maps, 2))
    weights = np.abs(np.linalg.det(maps)) + 0.02
    points = rng.uniform(-1, 1, (400, 2))
    visited = []
    for step in range(70):
        chosen = rng.choice(num_maps, size=len(points), p=weights / weights.sum())
        points = np.einsum("nij,nj->ni", maps[chosen], points) + shifts[chosen]
        if step >= 10:
            visited.append(points)
    cloud = np.concatenate(visited)
    low, high = np.percentile(cloud, 1, axis=0), np.percentile(cloud, 99, axis=0)
    at = ((cloud - low) / np.maximum(high - low, 1e-6) * 0.86 + 0.07) * SIDE
    inside = ((at >= 0) & (at < SIDE)).all(axis=1)
    column, row = at[inside].astype(int).T
    density = np.bincount(row * SIDE + column, minlength=SIDE * SIDE).reshape(SIDE, SIDE)
    return _colour(_plane(np.clip(np.log1p(density) / 2.0, 0, 1)), rng)


def atom(kind: Generator, rng: Generator) -> Picture:
    """Draw rings whose radius is a sum of two sine waves in the angle."""
    x, y = _grid(rng, centre=0.25)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    first, second = kind.integers(1, 13, 2)
    high, low = kind.uniform(0.05, 0.3, 2)
    wave = high * np.sin(first * angle + rng.uniform(0, 6.3)) + low * np.sin(second * angle + rng.uniform(0, 6.3))
    rings = int(kind.integers(1, 5))
    width = rng.uniform(0.02, 0.07)
    shade = np.zeros((SIDE, SIDE))
    for ring in range(1, rings + 1):
        shade = np.maximum(shade, np.clip(1.5 - np.abs(radius - ring / rings * 0.75 * (1 + wave)) / width, 0, 1))
    if kind.random() < 0.4:
        shade = np.maximum(shade, 0.6 * (radius < 0.75 * (1 + wave)))
    return _colour(_plane(shade), rng)


def leaves(kind: Generator, rng: Generator) -> Picture:
    """Draw overlapping shapes of one kind, whose sizes follow a power law."""
    corners, exponent = int(kind.integers(2, 7)), kind.uniform(1.5, 3.5)
    stripes, stretch = kind.uniform(0, 14), kind.uniform(0.4, 1.0)
    palette = kind.random((4, 3))
    picture = np.broadcast_to(rng.choice(palette), (SIDE, SIDE, 3)).astype(np.float32).copy()
    for size in np.sort(0.06 * (1 - rng.random(45)) ** (-1 / exponent))[::-1]:
        x, y = _grid(rng, centre=1.0, zoom=1.0)
        y = y / stretch
        angle = np.arctan2(y, x)
        sector = 2 * np.pi / corners
        reach = np.hypot(x, y) * (1.0 if corners == 2 else np.cos((angle % sector) - sector / 2))
        colour = np.clip(rng.choice(palette) + rng.normal(0, 0.08, 3), 0, 1)
        light = 1 - 0.35 * (np.sin(stripes / max(size, 0.1) * x) > 0) if stripes > 5 else np.ones_like(x)
        inside = reach < min(size, 0.7)
        picture[inside] = (colour * light[..., None])[inside]
    return (picture * 255).astype(np.uint8)


def waves(kind: Generator, rng: Generator) -> Picture:
    """Draw noise with a spectrum of its own: a power law, with a few bands and directions in it."""
    frequency = np.fft.fftfreq(SIDE)
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    size = np.hypot(fx, fy) + 1 / SIDE
    spectrum = size ** -kind.uniform(0.6, 2.2)
    turn = rng.normal(0, 0.15)
    for _ in range(int(kind.integers(0, 4))):
        at, direction = kind.uniform(0.03, 0.3), kind.uniform(0, np.pi) + turn
        near = np.exp(-(((size - at) / 0.02) ** 2)) * np.exp(-((np.sin(np.arctan2(fy, fx) - direction) / 0.3) ** 2))
        spectrum = spectrum + kind.uniform(2, 12) * near * at**-1
    field = np.fft.ifft2(spectrum * np.exp(2j * np.pi * rng.random((SIDE, SIDE)))).real
    low, high = np.percentile(field, [2, 98])
    shade = np.clip((field - low) / max(high - low, 1e-9), 0, 1)
    if kind.random() < 0.4:
        shade = np.floor(shade * 3.99) / 3
    return _colour(_plane(shade), rng)


FORMULAS: tuple[Callable[[Generator, Generator], Picture], ...] = (fractal, atom, leaves, waves)


def _grid(rng: Generator, *, centre: float, zoom: float | None = None) -> tuple[Plane, Plane]:
    """Return coordinates [S, S] in -1..1, moved, turned and scaled at random."""
    line = np.linspace(-1, 1, SIDE)
    y, x = np.meshgrid(line - rng.uniform(-centre, centre), line - rng.uniform(-centre, centre), indexing="ij")
    turn, scale = rng.uniform(0, 2 * np.pi), zoom or rng.uniform(0.9, 1.4)
    return (
        _plane((x * np.cos(turn) - y * np.sin(turn)) * scale),
        _plane((x * np.sin(turn) + y * np.cos(turn)) * scale),
    )


def _colour(shade: Plane, rng: Generator) -> Picture:
    ends = rng.random((3, 3)) if rng.random() < 0.8 else np.repeat(rng.random((3, 1)), 3, axis=1)
    middle = np.clip(1 - np.abs(shade - 0.5) * 2, 0, 1)[..., None]
    picture = ends[0] * (1 - shade[..., None]) + ends[1] * shade[..., None] + (ends[2] - ends[0]) * 0.5 * middle
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _plane(values: NDArray[np.floating]) -> Plane:
    return values.astype(np.float32)
