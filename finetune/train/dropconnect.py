"""DropConnect: in each step a random share of the head's weights is left out, the others scaled up.

As with `adapters`, the network stays plain: weights are replaced for the forward pass of a step alone, so that val,
checkpoints and exports have the whole ones, by which the mean of all draws is approximated.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.functional import dropout


def dropped(run: nn.Module, names: Collection[str], model: nn.Module, share: float) -> dict[str, Tensor]:
    """Return some of a model's weights with dropout: each is 0 with probability `share`, else divided by 1 - share.

    They go by the names that they have in `run`, which shares its weights with the model. One draw serves all images
    of a forward pass, where the paper has one for each.
    Source: Wan et al. 2013, Regularization of neural networks using DropConnect, ICML; scaled in training, as in
    dropout.
    """
    chosen = {id(weight) for name, weight in model.named_parameters() if name in names}
    return {name: dropout(weight, share) for name, weight in run.named_parameters() if id(weight) in chosen}
