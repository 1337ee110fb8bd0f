"""One step of training: a batch, its gradient, and the optimiser. Letters: B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetune import ranks
from finetune.device import Accelerator
from finetune.optim.losses import Criterion
from finetune.train.adapters import Adapters
from finetune.train.averages import Averages
from finetune.train.dropconnect import dropped
from finetune.train.mixing import brightened, mixed
from finetune.train.objectives import CLASSES, Objective
from finetune.train.outputs import aux_weight, loss_of
from finetune.train.settings import FitSettings
from finetune.train.shared_statistics import shared_statistics

Seeded = Callable[[], AbstractContextManager[object]]


@dataclass(slots=True)
class Step:
    """What a step of a phase needs besides its batch."""

    model: nn.Module
    optimiser: Any
    settings: FitSettings
    accelerator: Accelerator
    averages: Averages | None = None
    adapters: Adapters | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)  # pretrained values, by name, that weights stay near
    objective: Objective = CLASSES
    connections: tuple[str, ...] = ()  # weights of the head, by name, that are dropped in part

    def take(
        self, run: nn.Module, inputs: Any, targets: Tensor, *, num_images: int = 0, num_steps: int, seeded: Seeded
    ) -> tuple[Tensor, Tensor]:
        """Take one step on the mean loss of a batch, its gradient summed over micro-batches, after `num_steps` others.

        Of several processes of a run each has its part of the `num_images` of the batch (0: this is all), and
        gradients are summed over all. What is random is drawn inside `seeded()`. Returns loss and hits, both (), on the
        device: nothing here waits for it.
        """
        num_images = num_images or len(targets)
        with seeded():
            loss, hits = self._gradient(run, inputs, self.objective.seen(targets), num_images)
            self._penalise()
        if self.settings.optim.sam:
            with self._uphill(), seeded():
                self._gradient(run, inputs, self.objective.seen(targets), num_images)
                self._penalise()
        clip = self.settings.optim.clip
        if clip != "none":
            self.accelerator.clip_grad_norm_(self.trained, clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.adapters is not None:
            self.adapters.put()
        if self.averages is not None:
            self.averages.update(num_steps + 1)
        return loss, hits

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that the optimiser moves."""
        return [weight for group in self.optimiser.param_groups for weight in group["params"]]

    def _gradient(self, run: nn.Module, inputs: Any, targets: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        losses, hits = [], []
        num_classes = int(getattr(self.model, "num_classes", 0))
        inputs = brightened(inputs, self.settings.augment_features)
        inputs, mixture = mixed(inputs, targets, regularise=self.settings.regularise, num_classes=num_classes)
        parts = _micro_batches((inputs, targets, mixture), _num_parts(num_images, self.settings.micro_batch))
        for part, shown, wanted in parts:
            with self.accelerator.autocast(), shared_statistics(run):
                output = self._output(run, part)
            against = partial(_against, self.settings.criterion, wanted)
            loss, logits = loss_of(output, against, aux_weight=aux_weight(self.model))
            share = len(wanted) / num_images
            self.accelerator.backward(loss * share if share < 1 else loss)
            losses.append(loss.detach() * share)
            hits.append(self.objective.hits(logits.detach(), shown))
        return self._summed(torch.stack(losses).sum(), torch.stack(hits).sum())

    def _summed(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Sum gradients, loss and hits over all processes of a run, in one message.

        Not by torch's DistributedDataParallel: that wraps the model, knows no factors beside it, and lays its messages
        out anew after the first step of a process, so that a resumed run would round otherwise.
        """
        if ranks.count() > 1:
            slopes = [weight.grad for weight in self.trained if weight.grad is not None]
            both = torch.stack([loss, hits.to(loss)])
            ranks.sum_up([*slopes, both])
            loss, hits = both[0], both[1].to(hits)
        return loss, hits

    def _output(self, run: nn.Module, inputs: Any) -> Any:
        """Return a network's output with the weights that training substitutes for its own, if any."""
        weights = self.adapters.weights() if self.adapters else {}
        if self.connections:
            weights |= dropped(run, self.connections, self.model, self.settings.regularise.drop_connect)
        if not weights:
            return run(inputs)
        # Tied, a layer that stands in both parts of a tail would be replaced twice, and put back once.
        return functional_call(run, weights, (inputs,), tie_weights=not self.connections)

    @contextmanager
    def _uphill(self) -> Iterator[None]:
        """Move weights inside the block by `optim.sam` in the direction in which the loss rises fastest.

        Statistics that follow batches stand still meanwhile: they have seen this one.
        Source: Foret et al. 2021, arXiv:2010.01412.
        """
        slopes = {weight: weight.grad for weight in self.trained if weight.grad is not None}
        share = self.settings.optim.sam / (torch.stack([slope.norm() for slope in slopes.values()]).norm() + 1e-12)
        stood = [weight.detach().clone() for weight in slopes]
        following: list[Any] = [
            m for m in self.model.modules() if m.training and getattr(m, "running_mean", None) is not None
        ]
        momenta = [module.momentum for module in following]
        with torch.no_grad():
            for weight, slope in slopes.items():
                weight.add_(slope * share)
        self.optimiser.zero_grad()
        for module in following:
            module.momentum = 0.0
        try:
            yield
        finally:
            for module, momentum in zip(following, momenta, strict=True):
                module.momentum = momentum
            with torch.no_grad():
                for weight, before in zip(slopes, stood, strict=True):
                    weight.copy_(before)

    def _penalise(self) -> None:
        """Add the gradient of the penalties on weights.

        Source of L2-SP: Li et al. 2018, arXiv:1802.01483.
        """
        l1, l2_sp = self.settings.regularise.l1, self.settings.regularise.l2_sp
        terms = []
        if l1:
            groups = (group["params"] for group in self.optimiser.param_groups if group["is_decayed"])
            terms += [l1 * weight.abs().sum() for params in groups for weight in params]
        if l2_sp:
            weights = dict(self.model.named_parameters())
            near = {name: anchor for name, anchor in self.anchors.items() if weights[name].requires_grad}
            terms += [l2_sp / 2 * (weights[name] - anchor).square().sum() for name, anchor in near.items()]
        if terms:
            self.accelerator.backward(torch.stack(terms).sum())


def _against(criterion: Criterion, targets: Tensor, logits: Tensor) -> Tensor:
    return criterion(logits, targets)


def _num_parts(num_images: int, size: int | None) -> int:
    """Return how many parts of at most `size` images a batch is divided into, the same in every process."""
    most, least = -(-num_images // ranks.count()), num_images // ranks.count()  # that a process has of it
    return min(-(-most // (size or most)), least)


def _micro_batches(batch: tuple[Any, Tensor, Tensor], count: int) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yield evenly sized parts of a batch; inputs are a tensor or a tuple of them."""
    inputs, *targets = batch
    if count == 1:
        yield batch
        return
    columns = inputs if isinstance(inputs, tuple) else (inputs,)
    for *parts, shown, wanted in zip(*(tensor.tensor_split(count) for tensor in (*columns, *targets)), strict=True):
        yield tuple(parts) if isinstance(inputs, tuple) else parts[0], shown, wanted
