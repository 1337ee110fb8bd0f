"""Calibration at the end of training: a temperature from val, folded into the head."""

from __future__ import annotations

import torch
from torch import nn

from finetune import ranks
from finetune.backbone.groups import head_modules
from finetune.data.split import units_of
from finetune.evaluation.forward import collect_logits
from finetune.evaluation.temperature import FEWEST, Temperature, divide_logits, fit_temperature
from finetune.prepare.batches import Feeder
from finetune.types import Event, OnEvent
from finetune.wording import counted


def calibrate(feeder: Feeder, *, on_event: OnEvent) -> Temperature | None:
    """Fold into the head of a trained model the temperature that val tells, where the recipe wants one; else None.

    "auto" does it where that is warranted (`Temperature.is_warranted`). A class that is likeliest stays so.
    """
    prepared = feeder.prepared
    samples, asked = prepared.manifest.split("val"), prepared.recipe.train.calibrate
    if asked is False or not samples:
        return None
    heads = last_layers(prepared.backbone.model)
    if heads is None:
        if asked is True:
            text = "not calibrated: the head of this network is more than one layer, which no temperature can be put in"
            on_event(Event.warning(text))
        return None
    units = units_of(samples)
    if asked == "auto" and len(set(units)) < FEWEST:
        return None
    run, batches = feeder.judged("val")
    logits, targets = collect_logits(run, batches.epoch(), autocast=prepared.compute.autocast)
    temperature = ranks.agreed(lambda: fit_temperature(logits, targets, units=units))
    if asked == "auto" and not temperature.is_warranted:
        return None
    divide_logits(heads, temperature.value)
    on_event(Event.message(sentence(temperature)))
    return temperature


def sentence(temperature: Temperature) -> str:
    """Say in one sentence what was done."""
    return (
        f"calibrated on {counted(temperature.num_images, 'val image')}: logits are divided by {temperature.value:.2f},"
        f" in the head (val loss lower by {temperature.gain:.3f}); train.calibrate = false leaves them"
    )


def last_layers(model: nn.Module) -> tuple[nn.Module, ...] | None:
    """Return the classifiers of a network where each is one linear or convolution layer, else None."""
    heads = head_modules(model)
    is_plain = all(isinstance(head, (nn.Linear, torch.nn.modules.conv._ConvNd)) for head in heads)
    return heads if heads and is_plain else None
