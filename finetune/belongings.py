"""Keys of the recipe that mean something only with certain values of another key."""

from __future__ import annotations

from typing import Any

from finetune.values import OptimiserName

BELONGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "strategy.whiten": ("strategy.name", ("linear-probe", "lp-ft")),
    "strategy.whiten_epsilon": ("strategy.whiten", ("pca", "zca")),
    "strategy.lora_rank": ("strategy.name", ("lora",)),
    "loss.focal_gamma": ("loss.name", ("focal",)),
    "loss.label_smoothing": ("loss.name", ("auto", "cross-entropy", "bce", "mse", "focal")),
    "optim.momentum": ("optim.name", ("momentum", "nesterov", "rmsprop", "muon")),
    "optim.drop": ("optim.schedule", ("step", "plateau")),
    "optim.drop_every": ("optim.schedule", ("step",)),
    "optim.drop_patience": ("optim.schedule", ("plateau",)),
    "optim.power": ("optim.schedule", ("polynomial",)),
}
OFF: dict[str, tuple[Any, ...]] = {
    "loss.label_smoothing": ("auto", 0.0)
}  # values that change nothing; else the default
HAVE_MOMENTUM: tuple[OptimiserName, ...] = (
    "momentum", "nesterov", "rmsprop", "muon", "adamw", "adam", "nadamw", "lion", "lamb",
)  # fmt: skip
