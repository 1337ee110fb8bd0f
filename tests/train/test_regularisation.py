"""What regularises, against its definition: penalties, mixtures, averages, and what a network leaves to chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import finetune
from finetune import recipe as recipes
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.device import Accelerator
from finetune.errors import BackboneError, RecipeError
from finetune.features.divide import divide
from finetune.randomness import forked
from finetune.sections import RegulariseSection
from finetune.train.averages import Averages
from finetune.train.dropconnect import dropped
from finetune.train.mixing import mixed
from finetune.train.moving import connections_of
from finetune.train.phases import fit_phases
from finetune.train.settings import FitSettings
from finetune.train.step import Step
from tests.support import TINY, mostly_slow
from tests.train.fitting import fit_of, network, planned


def trained(**regularise: Any) -> nn.Module:
    model = network("test_resnet")
    overrides = {"optim.weight_decay": 0.0, **{f"regularise.{key}": value for key, value in regularise.items()}}
    fit_phases(fit_of(model, overrides=overrides), planned("full", model, lr=1e-2), fresh=network("test_resnet"))
    return model


def distance(model: nn.Module) -> float:
    """How far the pretrained weights have moved."""
    start = network("test_resnet").state_dict()
    names = [name for group in layer_groups(model) if not group.is_head for name in group.parameters]
    return sum(float((model.state_dict()[name] - start[name]).square().sum()) for name in names)


def test_weights_stay_nearer_to_where_they_were_by_l2_sp() -> None:
    assert distance(trained(l2_sp=100.0)) < 0.5 * distance(trained())


def test_weights_become_smaller_by_l1_and_norms_do_not() -> None:
    plain, small = trained(), trained(l1=0.1)
    matrices = [name for name, weight in plain.named_parameters() if weight.ndim > 1]
    sizes = [
        sum(float(model.get_parameter(name).detach().abs().sum()) for name in matrices) for model in (small, plain)
    ]
    assert sizes[0] < 0.8 * sizes[1]


@pytest.mark.parametrize(
    ("lr", "more", "num_epochs"),
    [
        (1e-12, {"train.patience": "none"}, 7),
        (1e-12, {"train.patience": 2}, 3),  # the first epoch is as good as any
        (1e-12, {"train.patience": 4}, 5),
        (1e-2, {"train.patience": 2, "train.least_gain": 1.0}, 3),  # it learns, and by less than that
    ],
)
def test_a_phase_ends_after_so_many_epochs_without_a_better_val(
    lr: float, more: dict[str, Any], num_epochs: int
) -> None:
    model = network("test_resnet")
    (phase,) = planned("full", model, lr=lr)
    fit = fit_of(model, overrides=more)
    state = fit_phases(fit, [replace(phase, epochs=7)], fresh=network("test_resnet"))
    assert len(state.history) == num_epochs


def test_sam_takes_the_gradient_from_up_the_hill_and_leaves_the_weights_where_they_were() -> None:
    """On the parabola w^2 / 2 from 1, by plain descent at rate 0.1: the gradient is 1 + rho."""
    weight = nn.Parameter(torch.ones(1, 1))
    model = nn.Module()
    model.weight = weight
    model.num_classes = 1
    recipe = recipes.load(overrides={"optim.sam": 0.5, "optim.name": "sgd", "optim.clip": "none"})
    optimiser = torch.optim.SGD([weight], lr=0.1)
    settings = replace(FitSettings.of(recipe), criterion=lambda logits, _: logits.square().sum() / 2)
    step = Step(model, optimiser, settings, Accelerator(torch.device("cpu"), "float32"))
    run = lambda inputs: weight * inputs  # noqa: E731
    loss, _ = step.take(run, torch.ones(1, 1), torch.zeros(1).long(), num_steps=0, seeded=lambda: forked(0))
    assert float(loss) == 0.5 and float(weight.detach()) == pytest.approx(1 - 0.1 * 1.5)


def test_dropconnect_leaves_out_a_share_of_the_weights_and_scales_up_the_rest() -> None:
    model = nn.Linear(500, 4)
    with forked(0):
        drawn = dropped(model, {"weight"}, model, 0.75)["weight"]
    is_out = drawn == 0
    assert drawn.shape == model.weight.shape and 0.7 < float(is_out.float().mean()) < 0.8
    assert torch.equal(drawn[~is_out], (model.weight / 0.25)[~is_out])
    with forked(0):
        drawn.sum().backward()
    assert torch.equal(model.weight.grad == 0, is_out)  # what is left out is not moved


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_dropped_head_is_drawn_in_training_alone(name: str) -> None:
    """With the tail on what a trunk yields as with the whole network."""
    model, images = network(name).eval(), torch.randn(4, 3, 32, 32)
    groups, plan = layer_groups(model), planned("head-only", model)[0].plan
    fit = fit_of(model, overrides={"regularise.drop_connect": 0.5})
    names, answers = connections_of(fit), model(images)
    assert names == tuple(name for name in groups[-1].parameters if name.endswith("weight"))
    with freezing(model, plan, groups) as hold:
        divided = divide(model, plan, groups, image_size=(32, 32))
        hold(divided.tail)
        step = Step(model, None, fit.settings, fit.accelerator, connections=names)
        outputs = []
        for run, inputs in ((model, images), (divided.tail, divided.trunk(images))):
            run.train()
            with forked(1):
                outputs.append(step._output(run, inputs))
            run.eval()
            assert torch.equal(run(inputs), answers)
    assert torch.equal(*outputs) and not torch.equal(outputs[0], answers)
    assert torch.equal(model.eval()(images), answers) and isinstance(model.get_classifier().weight, nn.Parameter)


def test_mixup_mixes_images_and_classes_by_one_share() -> None:
    images, targets = torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2), torch.arange(4)
    with forked(0):
        mixture, shares = mixed(images, targets, regularise=RegulariseSection(mixup=1.0), num_classes=4)
    assert shares.sum(dim=1) == pytest.approx([1.0] * 4) and 0 < float(shares.max()) < 1
    assert torch.allclose(mixture.mean(dim=(2, 3)), shares)


def test_mixup_mixes_several_tensors_alike() -> None:
    rows = torch.eye(3)
    with forked(0):
        (first, second), shares = mixed(
            (rows, 2 * rows), torch.arange(3), regularise=RegulariseSection(mixup=1.0), num_classes=3
        )
    assert torch.allclose(first, shares) and torch.allclose(second, 2 * shares)


def test_cutmix_shares_classes_by_area() -> None:
    images, targets = torch.eye(4)[:, :, None, None].expand(4, 4, 16, 16), torch.arange(4)
    with forked(1):
        mixture, shares = mixed(images, targets, regularise=RegulariseSection(cutmix=1.0), num_classes=4)
    assert 0 < float(shares.max()) < 1 and torch.allclose(mixture.mean(dim=(2, 3)), shares, atol=1e-6)


def test_nothing_is_mixed_unasked() -> None:
    images, targets = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    same, wanted = mixed(images, targets, regularise=RegulariseSection(), num_classes=2)
    assert same is images and wanted is targets


def test_an_average_is_its_formula_and_gives_the_weights_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    values = [1.0, 2.0, 4.0]
    nn.init.constant_(model.weight, values[0])
    averages = Averages(model, ["weight"], 0.25)
    expected = values[0]
    for step, value in enumerate(values[1:], 1):
        nn.init.constant_(model.weight, value)
        averages.update(step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with averages.in_place():
        assert model.weight.item() == pytest.approx(expected)
        with averages.set_aside():
            assert model.weight.item() == 4.0
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_averages_of_channels_last_weights_are_saved_and_come_back_to_the_bit(tmp_path: Path) -> None:
    model = network("test_resnet").to(memory_format=torch.channels_last)
    names = [name for name, _ in model.named_parameters()]
    averages, again = Averages(model, names, 0.9), Averages(model, names, 0.9)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    averages.update(3)
    save_file(averages.saved(), tmp_path / "averages.safetensors")
    again.restore(load_file(tmp_path / "averages.safetensors"))
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in averages.tensors.items())
    assert all(again.tensors[name].stride() == model.get_parameter(name).stride() for name in names)


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_run_with_averages_is_stopped_and_goes_on_to_the_same_bits(
    image_folder: Any, tmp_path: Path, strategy: str
) -> None:
    more: dict[str, Any] = {**TINY, "backbone": "test_resnet", "strategy": strategy, "epochs": 2}
    overrides = {"regularise.ema": 0.5, "train.checkpoint_every": 1e-6}
    data = image_folder(per_class=10)
    whole = finetune.run(data, out=tmp_path / "whole", overrides=overrides, **more).folder

    def stop(event: finetune.Event) -> None:
        if event.kind == "step" and event.facts["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.run(data, out=tmp_path / "run", overrides=overrides, on_event=stop, **more)
    again = finetune.resume(tmp_path / "run").folder
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, again)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_what_is_frozen_is_in_no_average() -> None:
    model, before = network("test_resnet"), network("test_resnet").state_dict()
    fit_phases(fit_of(model, overrides={"regularise.ema": 0.9}), planned("head-only", model), fresh=model)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {name for group in layer_groups(model) if group.is_head for name in group.parameters}


PAIRS = [(name, key) for name in ("test_resnet", "test_vit") for key in ("dropout", "drop_path")]


@pytest.mark.parametrize(("backbone", "key"), mostly_slow(PAIRS, PAIRS[0], PAIRS[3]))
def test_what_a_network_drops_changes_training_and_no_answer(
    image_folder: Any, tmp_path: Path, backbone: str, key: str
) -> None:
    data = image_folder(per_class=6)
    more: dict[str, Any] = {**TINY, "backbone": backbone, "strategy": "full", "epochs": 2}
    overrides = {**more.pop("overrides", {}), f"regularise.{key}": 0.5}
    plain = finetune.run(data, out=tmp_path / "plain", **more)
    dropped = finetune.run(data, out=tmp_path / "dropped", overrides=overrides, **more)
    losses = [(run.folder / "metrics.jsonl").read_text() for run in (plain, dropped)]
    assert losses[0] != losses[1]
    assert "drop" not in (dropped.folder / "model" / "config.json").read_text()
    judged = finetune.evaluate(dropped.folder, split="val")
    assert judged.metrics["top1"].value == dropped.metrics["val"]["top1"]["value"]


def test_a_network_that_drops_nothing_says_which_key_it_does_not_take() -> None:
    with pytest.raises(BackboneError, match="does not take") as raised:
        finetune.plan(backbone="lenet5", strategy="scratch", overrides={"regularise.drop_path": 0.1})
    assert "regularise.drop_path" in raised.value.hint


def test_a_solved_head_takes_no_mixture() -> None:
    with pytest.raises(RecipeError, match=r"regularise\.mixup"):
        finetune.plan(backbone="test_resnet", pretrained=False, strategy="linear-probe",
                      overrides={"regularise.mixup": 0.2})  # fmt: skip


def test_images_that_are_cut_need_a_phase_that_trains_on_images() -> None:
    settings: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "overrides": {"regularise.cutmix": 1.0}}
    with pytest.raises(RecipeError, match=r"regularise\.cutmix"):
        finetune.plan(strategy="head-only", **settings)
    assert any("phase probe" in note for note in finetune.plan(strategy="lp-ft", **settings).notes)


def test_a_phase_that_trains_no_residual_block_says_that_none_is_left_out() -> None:
    settings: dict[str, Any] = {"pretrained": False, "overrides": {"regularise.drop_path": 0.1}}
    said = "regularise.drop_path is not used"
    of_blocks = finetune.plan(backbone="test_resnet", strategy="full", **settings)
    assert not any(said in note for note in of_blocks.notes)
    of_last_convolution = finetune.plan(backbone="mobilenetv2_050", strategy="top-k", top_k=1, **settings)
    assert any(f"phase top-1 trains no residual blocks: {said}" in note for note in of_last_convolution.notes)
