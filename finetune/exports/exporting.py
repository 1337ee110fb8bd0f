"""What is exported, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from finetune import inline
from finetune.checkpoint.saved import SavedRun
from finetune.exports.described import Described
from finetune.exports.form import OnnxForm
from finetune.exports.proof import ProofImages


@dataclass(frozen=True, slots=True)
class Exporting:
    """A network, what it takes and says, the images that its export is proven on, and the form that it gets.

    `saved` is the run that it is the model of; an ensemble is that of several. `data_licence` is that of its images, as
    who exports it says.
    """

    model: nn.Module
    described: Described
    proof: ProofImages
    form: OnnxForm = field(default_factory=OnnxForm)
    saved: SavedRun | None = None
    data_licence: str = ""


@dataclass(frozen=True, slots=True)
class Export:
    """Where an export lies, and the proof that it equals the model, as proof.json has it; on the Hub its address."""

    path: Path
    format: str
    proof: dict[str, Any]
    address: str = ""

    def __fspath__(self) -> str:
        """Return the place, so that the result itself may be named where a path is asked for."""
        return str(self.path)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        told = [[key, value] for key, value in self.proof.items() if isinstance(value, str | int | float)]
        return inline.html_lines(f"{self.format}: {self.path}", self.address) + inline.html_table(["proof", ""], told)
