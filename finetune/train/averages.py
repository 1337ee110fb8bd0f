"""Averages of trained weights over the steps of a phase: what val judges, and what is delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."  # of their names in a checkpoint


class Averages:
    """An exponential moving average of the trained weights, and of statistics that are updated.

    What is frozen is in no average. The decay is at most (1 + n) / (10 + n) after n steps, so that a short phase does
    not lag behind. Source: Polyak & Juditsky 1992; the rise of the decay as in TensorFlow and timm.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], decay: float) -> None:
        """Begin at the model's values; `names` are the keys of what is trained, weights and statistics."""
        state = model.state_dict()
        self.model, self.decay = model, decay
        self.names = [name for name in names if state[name].is_floating_point()]
        self.tensors = {name: tensor.clone() for name, tensor in self._current().items()}
        self.held: dict[str, Tensor] | None = None  # the weights, while the model holds its averages

    def _current(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: state[name] for name in self.names}

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Take in the weights after a number of steps of the phase."""
        decay = min(self.decay, (1 + num_steps) / (10 + num_steps))
        current = self._current()
        torch._foreach_lerp_([self.tensors[name] for name in self.names], [*current.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model hold its averages inside the block."""
        self.held = {name: tensor.clone() for name, tensor in self._current().items()}
        self.put()
        try:
            yield
        finally:
            self._set(self.held)
            self.held = None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Have the model hold its weights inside the block, if it holds its averages."""
        if self.held is None:
            yield
            return
        self._set(self.held)
        try:
            yield
        finally:
            self.put()

    def put(self) -> None:
        """Set the model to its averages."""
        self._set(self.tensors)

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._current().items():
                tensor.copy_(tensors[name])

    def saved(self) -> dict[str, Tensor]:
        """Return the averages as a checkpoint holds them, beside the optimiser's."""
        form = torch.contiguous_format  # safetensors takes no other
        return {
            f"{PREFIX}{name}": tensor.detach().cpu().clone(memory_format=form) for name, tensor in self.tensors.items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `saved` gave."""
        for name, tensor in self.tensors.items():
            if f"{PREFIX}{name}" in saved:
                tensor.copy_(saved[f"{PREFIX}{name}"])
