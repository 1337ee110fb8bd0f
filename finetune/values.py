"""What values a key of the recipe may have: the types of numbers and words, with their ranges."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
NoneWord = Literal["none"]

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
TIME = r"^([1-9]\d*h(\d+m)?(\d+s)?|[1-9]\d*m(\d+s)?|[1-9]\d*s)$"
Time = Annotated[str, Field(pattern=TIME)]
WARMUP = r"^\d+ (epochs?|steps?)$"
Warmup = Annotated[str, Field(pattern=WARMUP)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


StrategyName = Literal[
    "auto", "head-only", "top-k", "full", "linear-probe", "lp-ft", "gradual", "norm-only", "bias-only", "lora",
    "scratch", "race",
]  # fmt: skip
STRATEGY_NAMES: tuple[str, ...] = get_args(StrategyName)
OptimiserName = Literal[
    "adamw", "adam", "sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "nadamw", "lion", "lamb", "muon"
]
AugmentLevel = Literal["auto", "none", "light", "medium", "heavy", "basic"]
AUTO_LEVEL: AugmentLevel = "medium"
Schedule = Literal["cosine", "constant", "step", "polynomial", "one-cycle", "plateau"]
Loss = Literal["auto", "cross-entropy", "nll", "bce", "mse", "focal", "asymmetric", "huber"]
TaskName = Literal["auto", "classify", "multilabel", "regress"]
TASK_LOSSES: dict[str, tuple[Loss, ...]] = {  # of each task, "auto" is the first
    "classify": ("cross-entropy", "nll", "bce", "mse", "focal"),
    "multilabel": ("bce", "asymmetric"),
    "regress": ("mse", "huber"),
}
Initialiser = Literal["auto", "gaussian", "xavier", "kaiming", "orthogonal", "random-walk", "lsuv", "zero"]
EngineName = Literal["auto", "torch", "folded", "onnxruntime", "openvino"]
ExportFormat = Literal["onnx", "timm", "torch", "safetensors", "openvino", "coreml", "litert"]
ExportLayout = Literal["file", "triton"]
ExportPrecision = Literal["fp32", "fp16", "int8"]
InsideGraph = Literal["none", "uint8", "full"]  # what of the preprocessing an ONNX file does itself

Assumption = Literal[
    "none",
    "few",
    "many",
    "similar",
    "dissimilar",
    "few,similar",
    "few,dissimilar",
    "many,similar",
    "many,dissimilar",
]


def size_first(words: Any) -> Any:
    """Return what is assumed with the size before the similarity, however it was written."""
    if not isinstance(words, str):
        return words
    return ",".join(sorted((word.strip() for word in words.split(",")), key=lambda word: word not in ("few", "many")))


def _black_and_white(value: Any) -> tuple[float, float]:
    """Return TOML's array of two numbers as black and white."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not is_pair or any(isinstance(part, bool) or not isinstance(part, (int, float)) for part in value):
        raise ValueError("must be two numbers, black and white, e.g. [0, 4095]")
    black, white = map(float, value)
    if not (isfinite(black) and isfinite(white) and black < white):
        raise ValueError("must be two finite numbers, black the smaller one, e.g. [0, 4095]")
    return black, white


ValueRange = Annotated[tuple[float, float], BeforeValidator(_black_and_white)]


def _mean_and_deviation(value: Any) -> tuple[Any, Any]:
    """Return TOML's two arrays of a number for each channel as tuples."""
    parts = value if isinstance(value, (list, tuple)) and not isinstance(value, str) else ()
    rows = [tuple(map(_number, part)) if isinstance(part, (list, tuple)) else () for part in parts]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or not rows[0] or not all(number > 0 for number in rows[1]):
        raise ValueError(
            "must be two arrays of a number for each channel, the second above 0: [[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]]"
        )
    return rows[0], rows[1]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError("must be finite numbers")
    return float(value)


Statistics = Annotated[tuple[tuple[float, ...], tuple[float, ...]], BeforeValidator(_mean_and_deviation)]


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, `true` is no 1, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
