"""The numbers of the recipe that training reads, all settled."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from finetune.optim.losses import Criterion
from finetune.sections import RegulariseSection
from finetune.settings import OptimSection, Recipe
from finetune.tasks import Task


@dataclass(frozen=True, slots=True)
class FitSettings:
    """What the loop and its steps read from a resolved recipe."""

    optim: OptimSection
    criterion: Criterion
    patience: int | None
    checkpoint_every: float | None  # minutes
    seed: int
    micro_batch: int | None = None  # images that go through the network at once; None: the whole batch
    patience_by: str = "score"
    least_gain: float = 0.0
    initialiser: str = "auto"
    whiten: str = "none"
    whiten_epsilon: float = 0.01
    augment_features: float = 0.0
    regularise: RegulariseSection = field(default_factory=RegulariseSection)
    class_weights: Tensor | None = None  # (K,): of the images that a head is solved on

    @classmethod
    def of(cls, recipe: Recipe, *, class_weights: Tensor | None = None) -> FitSettings:
        """Return those of a resolved recipe; `class_weights` (K,) say how much the images of each class count.

        Where classes are drawn by them instead, a solved head, which draws nothing, is weighted all the same.
        """
        train = recipe.train
        is_weighted = train.balance == "weights"
        task: Task = "classify" if recipe.data.task == "auto" else recipe.data.task
        return cls(
            optim=recipe.optim,
            criterion=Criterion(recipe.loss, class_weights if is_weighted else None, task),
            patience=None if train.patience == "none" else int(train.patience),
            checkpoint_every=None if train.checkpoint_every == "none" else train.checkpoint_every,
            seed=train.seed,
            micro_batch=None if train.micro_batch == "auto" else train.micro_batch,
            augment_features=recipe.augment.features,
            patience_by=train.patience_by,
            least_gain=train.least_gain,
            whiten=recipe.strategy.whiten,
            whiten_epsilon=recipe.strategy.whiten_epsilon,
            initialiser=recipe.strategy.initialiser,
            regularise=recipe.regularise,
            class_weights=class_weights,
        )
