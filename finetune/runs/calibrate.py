"""Calibration at the end of training: a temperature from val and from what is usual, folded into the head."""

from __future__ import annotations

import torch
from torch import nn

from finetune import ranks
from finetune.backbone.groups import head_modules
from finetune.data.split import units_of
from finetune.evaluation.forward import collect_logits
from finetune.evaluation.temperature import MANY, USUAL, Temperature, Training, divide_logits, fit_temperature
from finetune.prepare.batches import Feeder
from finetune.prepare.prepared import Prepared
from finetune.types import Event, OnEvent
from finetune.values import TASK_LOSSES
from finetune.wording import counted


def calibrate(feeder: Feeder, *, on_event: OnEvent) -> Temperature | None:
    """Fold the temperature that val suggests into the head of a trained model, unless the recipe wants none (None).

    The likeliest class stays so. If a temperature is asked for, a head that cannot be divided is reported.
    """
    prepared = feeder.prepared
    samples, asked = prepared.manifest.split("val"), prepared.recipe.train.calibrate
    if asked is False or not samples:
        return None
    heads = last_layers(prepared.backbone.model)
    if heads is None:
        if asked is True:
            text = "not calibrated: the head of this network has several layers, so no temperature fits in"
            on_event(Event.warning(text))
        return None
    usual = USUAL[training_of(prepared)]
    run, batches = feeder.judged("val")
    logits, targets = collect_logits(run, batches.epoch(), autocast=prepared.compute.autocast)
    temperature = ranks.agreed(lambda: fit_temperature(logits, targets, usual=usual, units=units_of(samples)))
    divide_logits(heads, temperature.value)
    on_event(Event.message(sentence(temperature)))
    return temperature


def sentence(temperature: Temperature) -> str:
    """Return one sentence about what was done."""
    few = temperature.num_independent < MANY
    held = f", pulled towards the {temperature.usual:g} usual after such training" if few else ""
    way = "lower" if temperature.gain >= 0 else "higher"
    return (
        f"calibrated on {counted(temperature.num_images, 'val image')}: logits are divided by {temperature.value:.2f},"
        f" in the head{held} (val loss {way} by {abs(temperature.gain):.3f}); train.calibrate = false leaves them"
    )


def training_of(prepared: Prepared) -> Training:
    """Return how a run trains, as far as its usual temperature depends on it."""
    recipe, phases = prepared.recipe, prepared.phases
    is_mixed = recipe.regularise.mixup or recipe.regularise.cutmix
    if all(phase.solver == "lbfgs" for phase in phases):
        return "solved"
    if is_mixed or recipe.loss.name not in ("auto", TASK_LOSSES["classify"][0]) or recipe.strategy.name == "scratch":
        return "other"
    if all(set(phase.plan.trained) == {"head"} for phase in phases):
        return "other" if recipe.loss.smoothing else "head"
    return "smoothed" if recipe.loss.smoothing else "deep"


def last_layers(model: nn.Module) -> tuple[nn.Module, ...] | None:
    """Return the classifiers of a network if each is one linear or convolution layer, else None."""
    heads = head_modules(model)
    is_plain = all(isinstance(head, (nn.Linear, torch.nn.modules.conv._ConvNd)) for head in heads)
    return heads if heads and is_plain else None
