"""The flags of `finetune run` as arguments of the functions, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

from finetune.values import StrategyName, TaskName


class Settings(TypedDict, total=False):
    """The flags of `finetune run` but for the data, each a key of the recipe (`recipe.ALIASES`); None leaves it out."""

    task: TaskName | None
    group_by: str | None
    val: float | None
    test: float | None
    backbone: str | None
    among: str | None
    weights: str | Path | None
    pretrained: bool | None
    image_size: int | Literal["auto"] | None
    strategy: StrategyName | None
    assume: str | None
    top_k: int | Literal["auto"] | None
    probe_at: str | None
    reinit: bool | None
    epochs: int | Literal["auto"] | None
    time: str | None
    batch_size: int | Literal["auto"] | None
    micro_batch: int | Literal["auto"] | None
    lr: float | Literal["auto", "range-test"] | None
    balance: Literal["auto", "weights", "sampling", "none"] | None
    calibrate: bool | Literal["auto"] | None
    refit: bool | None
    track: str | None
    seed: int | None
    device: Literal["auto", "cpu", "cuda", "mps"] | None
    workers: int | Literal["auto"] | None
    threads: int | Literal["auto"] | None


class SettingsWithData(Settings, total=False):
    """The same where the data is no argument of its own."""

    data: str | Path | None


def each_of(named: Any) -> list[Any]:
    """Return what is named as a list; one text or path alone is a list of one."""
    things: Iterable[Any] = [named] if isinstance(named, str | PathLike) else named
    return list(things)
