"""In which form a model is exported: what its input is, what it puts out beside logits, in which arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from finetune.errors import RecipeError, did_you_mean
from finetune.tasks import Task
from finetune.values import ExportPrecision, InsideGraph

OUTPUT, PROBABILITIES, FEATURES, SALIENCY = "logits", "probabilities", "features", "saliency"


MAX_LOSS = 1.0  # points


@dataclass(frozen=True, slots=True)
class OnnxForm:
    """The form of an ONNX file.

    `preprocessing` is what is done inside: nothing; the standardisation of images (B, H, W, C) of uint8 that are
    resized and cut out ("uint8"); or all of it, of images of any size ("full"). `max_loss` is how many points of the
    task's first metric on val less precise numbers may cost. 8 bits that are hardly smaller than fp32, or no quicker on
    this machine, are taken with `force` only.
    """

    preprocessing: InsideGraph = "none"
    softmax: bool = False
    features: bool = False
    saliency: bool = False
    precision: ExportPrecision = "fp32"
    dynamic_size: bool = False
    max_loss: float = MAX_LOSS
    force: bool = False

    def __post_init__(self) -> None:
        for key, value, kind in (
            ("preprocessing", self.preprocessing, InsideGraph),
            ("precision", self.precision, ExportPrecision),
        ):
            if value not in get_args(kind):
                near = did_you_mean(str(value), get_args(kind))
                raise RecipeError(f"{key} = {value!r} is not one of {', '.join(get_args(kind))}.{near}")
        if not 0 <= self.max_loss <= 100:
            raise RecipeError(f"max_loss = {self.max_loss:g} is not a number of points from 0 to 100")
        if self.max_loss != MAX_LOSS and self.precision == "fp32":
            raise RecipeError(
                "--max-loss is for --precision fp16 and int8: fp32 matches the model", hint="Leave it out."
            )
        if self.force and self.precision != "int8":
            raise RecipeError("--force is for --precision int8: nothing else is refused for its speed or size")
        if self.dynamic_size and self.preprocessing == "full":
            raise RecipeError(
                "--dynamic-size leaves preparing images to others, --with-preprocessing full does it itself",
                hint="Leave one of them out.",
            )

    def check_for(self, task: Task) -> None:
        """Check that a model of a task can have this form.

        Raises:
            RecipeError: it has no probabilities.
        """
        if self.softmax and task == "regress":
            raise RecipeError("this model gives a number, which has no probabilities", hint="Leave out --softmax.")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what the file puts out, in order."""
        more = {PROBABILITIES: self.softmax, FEATURES: self.features, SALIENCY: self.saliency}
        return OUTPUT, *(name for name, is_there in more.items() if is_there)

    @property
    def folder(self) -> str:
        """Return the folder in RUN/exports that its model.onnx lies in; that of the plain form lies in none.

        `finetune predict` computes by the plain one.
        """
        parts = {
            self.precision: self.precision != "fp32",
            self.preprocessing: self.preprocessing != "none",
            "dynamic": self.dynamic_size,
            "softmax": self.softmax,
            FEATURES: self.features,
            SALIENCY: self.saliency,
        }
        return "-".join(part for part, is_there in parts.items() if is_there)
