"""What goes with a network into an export, so that who has nothing else can use it. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetune.exports.client import scale_size
from finetune.images.decoding import decoding_steps
from finetune.tasks import TASKS, Task
from finetune.types import LONGEST, Preprocessing


@dataclass(frozen=True, slots=True)
class Described:
    """What a network's input and output mean: its classes, how an image becomes its input, its task.

    Of several classes each is said from its threshold on; `deviation` is that of the numbers of train. `licence` is
    that of the pretrained weights, as timm has it, where it is known.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    task: Task = "classify"
    thresholds: tuple[float, ...] = ()
    deviation: float | None = None
    run: str = ""  # the name of its folder
    architecture: str = ""
    licence: str = ""

    def facts(self) -> dict[str, Any]:
        """Return all a program has to know to use it; `exports/client.py` is one that does."""
        named = {"run": self.run, "architecture": self.architecture, "licence": self.licence}
        return {
            "classes": list(self.classes),
            "preprocessing": preprocessing_facts(self.preprocessing),
            "task": self.task,
            "activation": TASKS[self.task].activation,
            **({"thresholds": list(self.thresholds)} if self.thresholds else {}),
            **{key: value for key, value in named.items() if value},
        }


def preprocessing_facts(own: Preprocessing) -> dict[str, Any]:
    """Return what a program has to know to prepare images."""
    return {
        **asdict(own),
        "resize": scale_size(own.image_size, own.crop_pct),
        "longest": LONGEST,
        "decoding": decoding_steps(own),
    }
