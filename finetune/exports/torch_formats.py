"""What other programs load by torch: timm's folder, a program of torch.export, weights with all that goes with them.

Each is loaded again by what its users have, and proven by that. Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.backbone.classics import CLASSICS
from finetune.backbone.onnx_graph import EXPORT_ERRORS
from finetune.backbone.pools import OURS
from finetune.backbone.staged import StagedClassifier
from finetune.checkpoint.run_folder import write_json
from finetune.checkpoint.saved import SavedRun
from finetune.device import in_fast_layout
from finetune.errors import ExportError
from finetune.exports.client import input_of
from finetune.exports.exporting import Exporting
from finetune.exports.proof import Logits, Parity, prove
from finetune.images.decode import read_rgb
from finetune.types import OnEvent
from finetune.wording import counted, first_line

FACTS = "facts.json"
FULL = " with all bits"


@dataclass(frozen=True, slots=True)
class TorchStranger:
    """A network that another program has loaded, and how that program prepares images."""

    model: Callable[[Tensor], Tensor]
    view: Callable[[Path], Any]  # (C, H, W)

    def read(self, file: Path) -> NDArray[Any]:
        return np.asarray(self.view(file))

    def answer(self, images: Sequence[NDArray[Any]]) -> Logits:
        with torch.no_grad():
            return self.model(torch.from_numpy(np.stack(images))).numpy()


def write_timm(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder that `timm.create_model("local-dir:...")` loads, and prove it by timm's own model and transform.

    Raises:
        ExportError: timm has no such network.
    """
    saved = known_to_timm(what.saved)
    check_transform(saved)
    own = saved.backbone.preprocessing
    shutil.copytree(saved.folder.model, folder, dirs_exist_ok=True)
    write_json(folder / FACTS, what.described.facts())
    model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    in_fast_layout(model, what.proof.images.device)  # as ours is: else other kernels run, with other last bits
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model, use_test_size=True))
    value_range = own.value_range
    stranger = TorchStranger(model, lambda file: transform(read_rgb(file, value_range=value_range)))
    return prove(what.model, stranger, what.proof, what.described, on_event=on_event)


def write_safetensors(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder with weights for `timm.create_model`; what goes with them stands in the file's header, as JSON.

    Raises:
        ExportError: timm has no such network.
    """
    saved = known_to_timm(what.saved)
    facts = {**what.described.facts(), "model_args": saved.backbone.model_args}
    file = folder / "model.safetensors"
    header = {"format": "pt", **{key: json.dumps(fact) for key, fact in facts.items()}}
    save_file({key: value.contiguous() for key, value in what.model.state_dict().items()}, file, metadata=header)
    write_json(folder / FACTS, facts)
    model = in_fast_layout(_of_safetensors(file), what.proof.images.device)
    return prove(what.model, TorchStranger(model, _by(what)), what.proof, what.described, on_event=on_event)


def _of_safetensors(file: Path) -> nn.Module:
    """Return the network in a file of weights, as a program does that has timm alone."""
    with safe_open(file, "pt") as opened:
        facts = {key: json.loads(fact) for key, fact in opened.metadata().items() if key != "format"}
    shape = {"num_classes": len(facts["classes"]), "in_chans": facts["preprocessing"]["channels"]}
    model: nn.Module = timm.create_model(facts["architecture"], **{**shape, **facts["model_args"]})
    model.load_state_dict(load_file(file))
    return model.eval()


def write_torch(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder with a program of torch.export, for batches of any size.

    Raises:
        ExportError: torch cannot export the network.
    """
    own, file = what.described.preprocessing, folder / "model.pt2"
    example = torch.zeros(2, own.channels, *own.image_size)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                what.model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
            )
            torch.export.save(program, file)
    except EXPORT_ERRORS as error:
        raise ExportError(f"torch cannot export this network: {first_line(error)}") from error
    write_json(folder / FACTS, what.described.facts())
    stranger = TorchStranger(torch.export.load(file).module(), _by(what))
    return prove(what.model, stranger, what.proof, what.described, on_event=on_event)


def _by(what: Exporting) -> Callable[[Path], NDArray[Any]]:
    """Return what prepares image files by what is said of an export, as JSON has it."""
    facts = json.loads(json.dumps(what.described.facts()["preprocessing"]))
    return lambda file: input_of(file, facts)


def check_transform(saved: SavedRun) -> None:
    """Check that timm's own transform gives a model what it takes.

    Raises:
        ExportError: it does not.
    """
    own = saved.backbone.preprocessing
    if own.channels != 3 or own.bands.is_full:
        raise ExportError(
            f"this model takes {counted(own.channels, 'channel')} of an image{FULL if own.bands.is_full else ''}, and"
            " timm's transform gives it red, green and blue of 8 bits",
            hint="Use --format onnx, whose metadata says what to do.",
        )


def known_to_timm(saved: SavedRun | None) -> SavedRun:
    """Return a run whose model timm has a network for.

    Raises:
        ExportError: it has none.
    """
    if saved is None:
        raise ExportError("an ensemble is not a timm network", hint="Use --format onnx.")
    if isinstance(saved.backbone.model, StagedClassifier):
        raise ExportError(
            f"this model classifies at the inner layer group {saved.backbone.model.at}, which no timm network can do",
            hint="Use --format onnx.",
        )
    pool, name = saved.backbone.architecture.pool, saved.backbone.architecture.registered
    if pool in OURS:
        raise ExportError(f"this model pools with {pool!r}, which timm's networks lack", hint="Use --format onnx.")
    if name in CLASSICS:
        raise ExportError(
            f"timm itself has no network {name}: its folder could not be loaded",
            hint=f"Use --format onnx. In Python, timm loads {saved.folder.model} after"
            " import finetune.backbone.classics.",
        )
    return saved
