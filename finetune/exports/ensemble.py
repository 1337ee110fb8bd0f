"""Several networks as one that takes the input of the first, so that one ONNX file holds all of them.

Letters: B batch, M members, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbone.load import Backbone
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.checkpoint.saved import SavedRun
from finetune.errors import ExportError
from finetune.evaluation.ensembles import Average, averaged
from finetune.exports.client import export_file
from finetune.exports.exporting import Exporting
from finetune.exports.formats import described, write_proven
from finetune.exports.proof import ProofImages
from finetune.settings import FORMAT_VERSION
from finetune.tasks import Task
from finetune.types import Preprocessing

STANDARDISED = ("mean", "std")  # what may differ: pixels are standardised anew inside


class EnsembleNetwork(nn.Module):
    """The average of several networks; images (B, 3, H, W) are standardised as the first one wants them."""

    def __init__(
        self, models: Sequence[nn.Module], counts: Sequence[int], *, views: Sequence[Preprocessing], task: Task,
        average: Average,
    ) -> None:  # fmt: skip
        super().__init__()
        self.members = nn.ModuleList(models)
        self.counts, self.task, self.average = tuple(counts), task, average
        first = views[0]
        self.is_alike = [(view.mean, view.std) == (first.mean, first.std) for view in views]
        for place, view in enumerate(views):
            factor = torch.tensor(first.std) / torch.tensor(view.std)
            offset = (torch.tensor(first.mean) - torch.tensor(view.mean)) / torch.tensor(view.std)
            self.register_buffer(f"factor{place}", factor.view(1, 3, 1, 1))
            self.register_buffer(f"offset{place}", offset.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        outputs = [model(self._seen(images, place)) for place, model in enumerate(self.members)]  # each (B, K)
        return averaged(outputs, self.counts, task=self.task, average=self.average)

    def _seen(self, images: Tensor, place: int) -> Tensor:
        """Return images as a member wants them standardised."""
        if self.is_alike[place]:
            return images
        factor, offset = self.get_buffer(f"factor{place}"), self.get_buffer(f"offset{place}")
        return images * factor + offset


def ensemble_network(
    backbones: Sequence[Backbone], counts: Sequence[int], *, names: Sequence[str], task: Task, average: Average
) -> EnsembleNetwork:
    """Return several networks as one.

    Raises:
        ExportError: one of them wants images cut otherwise, which the input of another does not hold.
    """
    views = [backbone.preprocessing for backbone in backbones]
    first = asdict(views[0])
    for name, view in zip(names[1:], views[1:], strict=True):
        differing = [key for key, value in asdict(view).items() if value != first[key] and key not in STANDARDISED]
        if view.crop_mode == "border" and view.mean != views[0].mean:
            differing.append("mean")  # the colour of the border
        if differing:
            key = differing[0]
            raise ExportError(
                f"{names[0]} and {name} do not see the same pixels: {key} is {first[key]} and {asdict(view)[key]}",
                hint="One file has one input. Leave one of them out, or train them at one --image-size;"
                " without --out the ensemble is measured all the same.",
            )
    models = [backbone.model.cpu().float().eval() for backbone in backbones]
    return EnsembleNetwork(models, counts, views=views, task=task, average=average).eval()


def write_ensemble(
    folder: RunFolder,
    runs: Sequence[SavedRun],
    counts: Sequence[int],
    proof: ProofImages,
    *,
    name: str,
    average: Average,
    thresholds: Sequence[float],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one ONNX file of several runs into a folder, proven equal to them; ensemble.json, with `facts`, last.

    Returns the proof.

    Raises:
        ExportError: one file cannot hold them, or it differs. ResourceError: it cannot be written.
    """
    first = runs[0]
    backbones, names = [run.backbone for run in runs], [str(run.folder.path) for run in runs]
    network = ensemble_network(backbones, counts, names=names, task=first.task, average=average)
    own = replace(described(first), thresholds=tuple(thresholds), run=name, architecture="", licence="")
    found = write_proven(Exporting(network, own, proof), export_file(folder)).proof
    about = {"format_version": FORMAT_VERSION, "average": average, "classes": list(first.classes)}
    write_json(folder.ensemble, {**about, **facts})
    return found
