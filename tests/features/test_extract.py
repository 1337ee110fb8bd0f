"""Features as they are tapped: of the right place, in the right order, of the network in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from finetune.backbone.groups import head_modules, layer_groups
from finetune.backbone.trace import trace
from finetune.errors import BackboneError
from finetune.features.divide import divide
from finetune.features.extract import before_head, extract, taps
from finetune.types import FreezePlan, GroupPlan
from tests.support import LAYOUTS, network

SIZE = 160


def batches(*counts: int, size: int = SIZE) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(count, 3, size, size, generator=generator), torch.full((count,), number))
        for number, count in enumerate(counts)
    ]


def test_rows_stay_in_order_and_with_their_targets() -> None:
    images = torch.arange(7.0)
    given = [(images[:3], torch.tensor([0, 1, 2])), (images[3:6], torch.tensor([3, 4, 5])), (images[6:], images[6:])]
    (one, two), targets = extract(lambda x: (x[:, None], x[:, None] * 10), given)
    assert torch.equal(one[:, 0], images)
    assert torch.equal(two[:, 0], images * 10)
    assert torch.equal(targets, images)


def test_features_carry_no_gradient_and_can_be_trained_on() -> None:
    layer = nn.Linear(4, 2)
    (features,), _ = extract(lambda x: (layer(x),), [(torch.randn(3, 4), torch.zeros(3))])
    assert not features.requires_grad
    assert not features.is_inference()
    nn.Linear(2, 2)(features).sum().backward()


def test_features_of_any_arithmetic_become_float32_on_the_cpu() -> None:
    entered = []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield

    layer = nn.Linear(4, 2)
    images = torch.randn(3, 4)
    (features,), _ = extract(lambda x: (layer(x),), [(images, torch.zeros(3))] * 2, autocast=autocast)
    assert entered == [True, True]
    assert features.dtype == torch.float32
    assert torch.equal(features[:3], features[:3].bfloat16().float())
    assert not torch.equal(features[:3], layer(images))


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_pass_taps_every_layer_group(name: str) -> None:
    model = network(name).eval()
    groups = layer_groups(model)
    names = [group.name for group in groups if not group.is_head]
    tap = taps(trace(model, groups, image_size=(SIZE, SIZE)), names)
    features, targets = extract(tap, batches(3, 2))
    assert [tuple(tensor.shape) for tensor in features] == [(5, tensor.shape[1]) for tensor in features]
    assert targets.tolist() == [0, 0, 0, 1, 1]
    (last,), _ = extract(before_head(model, head_modules(model)[0]), batches(3, 2))
    assert torch.equal(features[-1], last)


@pytest.mark.parametrize(("name", "at"), [("test_resnet", "layer2"), ("test_vit", "blocks.3")])
def test_an_inner_tap_is_the_average_of_the_modules_output(name: str, at: str) -> None:
    model = network(name).eval()
    seen: list[Tensor] = []
    tap = taps(trace(model, layer_groups(model), image_size=(SIZE, SIZE)), [at])
    (features,), _ = extract(tap, batches(4))
    model.get_submodule(at).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model(batches(4)[0][0])
    wanted = seen[0].mean(dim=(2, 3)) if seen[0].ndim == 4 else seen[0].mean(dim=1)
    assert torch.equal(features, wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_reaches_the_head_gives_the_logits(name: str) -> None:
    model = network(name).eval()
    head = head_modules(model)[0]
    (features,), _ = extract(before_head(model, head), batches(4))
    with torch.no_grad():
        assert torch.equal(head(features), model(batches(4)[0][0]))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "caformer_s18", "levit_128s"])
def test_a_head_that_a_trace_goes_through_is_reached_in_a_tail_as_in_the_whole(name: str) -> None:
    side = 224 if name == "levit_128s" else 64
    model = network(name).eval()
    groups, head = layer_groups(model), head_modules(model)[0]
    plans = (GroupPlan(group.name, trains="all" if group.is_head else "none") for group in groups)
    divided = divide(model, FreezePlan(tuple(plans)), groups, image_size=(side, side))
    (wanted,), _ = extract(before_head(model, head), batches(2, size=side))
    boundaries = [(divided.trunk(images), targets) for images, targets in batches(2, size=side)]
    (found,), _ = extract(before_head(divided.tail, head), boundaries)
    assert torch.equal(found, wanted)


def test_what_reaches_a_head_that_is_never_called_cannot_be_told() -> None:
    with pytest.raises(BackboneError, match="cannot be found"):
        extract(before_head(nn.Flatten(), nn.Linear(2, 2)), batches(2, size=4))


@pytest.mark.parametrize("name", LAYOUTS)
def test_extraction_is_that_of_eval_mode_and_changes_nothing(name: str) -> None:
    model = network(name, drop_path_rate=0.5, drop_rate=0.5).eval()
    groups, head = layer_groups(model), head_modules(model)[0]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (wanted,), _ = extract(before_head(model.eval(), head), batches(4))
    tap = taps(trace(model.train(), groups, image_size=(SIZE, SIZE)), [groups[-2].name])
    for source in (before_head(model.train(), head), tap):
        model.train()
        (found,), _ = extract(source, batches(4))
        assert torch.equal(found, wanted)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_head_that_sees_a_map_gives_it_flat() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    (features,), _ = extract(before_head(model, model[2]), batches(3, size=8))
    assert features.shape == (3, 4)


def test_the_hook_is_gone_after_an_error() -> None:
    model = network("test_resnet").eval()
    tap = before_head(model, model.fc)
    with pytest.raises(RuntimeError):
        tap(torch.zeros(1, 5, 64, 64))
    assert not model.fc._forward_pre_hooks
