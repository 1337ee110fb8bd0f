"""The graph of a network: where each layer group ends, and that the cut computes what the network computes."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

from finetune.backbone.groups import head_modules, layer_groups
from finetune.backbone.trace import Traced, Tracer, prefix, trace
from finetune.errors import BackboneError
from tests import support
from tests.support import LAYOUTS, Branching

# Small networks of other families, each with an image size that is quick.
FAMILIES = {
    "test_efficientnet": 64,
    "test_byobnet": 64,
    "test_mambaout": 64,
    "test_nfnet": 64,
    "resnet10t": 64,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "regnetx_002": 64,
    "ghostnet_050": 64,
    "lcnet_035": 64,
    "edgenext_xx_small": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 56,
    "levit_128s": 64,
    "efficientvit_b0": 64,
    "starnet_s050": 64,
}
SMALLER = {
    "test_resnet": {"zero_init_last": False},  # else the residual branches give nothing
    "resnet10t": {"zero_init_last": False},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (1,) * 4, "num_heads": (1,) * 4},
    "levit_128s": {"img_size": 64},
}


def network(name: str, **arguments: object) -> nn.Module:
    model = support.network(name, **{**SMALLER.get(name, {}), **arguments})
    for module in model.modules():  # batch norm that does something, so that a wrong mode is seen
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def traced(model: nn.Module, size: int) -> Traced:
    return trace(model, layer_groups(model), image_size=(size, size))


def outputs_of(model: nn.Module, modules: list[nn.Module], images: Tensor) -> list[Tensor]:
    """Return what some modules give while the model runs, the last output of each."""
    seen: dict[int, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: seen.__setitem__(id(m), out)) for m in modules]
    model(images)
    for hook in hooks:
        hook.remove()
    return [seen[id(module)] for module in modules]


def input_of(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    return seen[-1]


@torch.no_grad()
def check_prefix(name: str, size: int) -> None:
    model, images = network(name), torch.randn(3, 3, size, size)
    found = traced(model, size)
    names = [group.name for group in layer_groups(model) if not group.is_head]
    assert sorted(found.ends) == sorted(names)
    *_, last = prefix(found, names).eval()(images)
    assert torch.equal(last, input_of(model, head_modules(model)[0], images))
    (alone,) = prefix(found, names[-1:]).eval()(images)
    assert torch.equal(alone, last)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_last_tap_is_what_reaches_the_head_bit_for_bit(name: str) -> None:
    check_prefix(name, 160)
    model, images = network(name), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        (last,) = prefix(traced(model, 160), [layer_groups(model)[-2].name])(images)
        assert torch.equal(last, model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_tap_of_small_families_is_what_reaches_their_head(name: str) -> None:
    check_prefix(name, FAMILIES[name])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("test_resnet", ["layer1", "layer2", "layer3"]),
        ("test_vit", [f"blocks.{i}" for i in range(5)]),
        ("test_convnext", ["stages.0", "stages.1", "stages.2"]),
        ("test_efficientnet", ["blocks.0", "blocks.1", "blocks.2"]),
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.1", "layers.2"]),
    ],
)
def test_inner_taps_are_the_outputs_of_the_modules(name: str, names: list[str]) -> None:
    size = FAMILIES.get(name, 160)
    model, images = network(name), torch.randn(2, 3, size, size)
    with torch.no_grad():
        taps = prefix(traced(model, size), names)(images)
        wanted = outputs_of(model, [model.get_submodule(name) for name in names], images)
    # (swin's module lays the tokens out as rows and columns)
    assert all(torch.equal(tap, want.reshape(tap.shape)) for tap, want in zip(taps, wanted, strict=True))


def test_one_pass_gives_the_same_taps_as_many() -> None:
    model, images = network("test_resnet"), torch.randn(2, 3, 64, 64)
    found = traced(model, 64)
    together = prefix(found, ["stem", "layer2", "layer4"])(images)
    alone = [prefix(found, [name])(images)[0] for name in ("stem", "layer2", "layer4")]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_prefix_holds_no_weights_of_later_groups() -> None:
    model = network("test_convnext")
    part = prefix(traced(model, 64), ["stages.1"])
    groups = layer_groups(model)
    assert {name for name, _ in part.named_parameters()} == {name for group in groups[:3] for name in group.parameters}
    assert part.get_parameter("stem.0.weight") is model.get_parameter("stem.0.weight")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tap_does_not_depend_on_later_weights(name: str) -> None:
    model, images = network(name), torch.randn(2, 3, 160, 160)
    found, groups = traced(model, 160), layer_groups(model)
    at = groups[2].name
    with torch.no_grad():
        (before,) = prefix(found, [at])(images)
        for group in groups[3:]:
            for key in group.parameters:
                model.get_parameter(key).add_(1)
        (after,) = prefix(found, [at])(images)
        model.get_parameter(groups[2].parameters[0]).add_(1)
        (other,) = prefix(found, [at])(images)
    assert torch.equal(before, after)
    assert not torch.equal(before, other)


@pytest.mark.parametrize("is_training", [True, False])
def test_tracing_leaves_the_training_mode_as_it_was(is_training: bool) -> None:
    model = network("test_vit").train(is_training)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    traced(model, 160)
    assert all(module.training is is_training for module in model.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_graph_of_a_network_in_training_is_that_of_eval_mode(name: str) -> None:
    model, images = network(name, drop_rate=0.5, drop_path_rate=0.5), torch.randn(2, 3, 160, 160)
    found = traced(model.train(), 160)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(images), model.eval()(images))


def test_tracing_twice_gives_the_same_graph() -> None:
    model = network("levit_128s")
    first, second = traced(model, 64), traced(model, 64)
    assert (first.ends, first.ranks) == (second.ends, second.ranks)


def test_a_network_is_traced_as_a_function_of_its_images_alone() -> None:
    class Choosy(nn.Module):
        """A network that takes more than images, one of it by name alone."""

        def forward(self, images, mask=None, *, is_causal: bool = False, scale: float = 2.0):
            return images.flip(0) if mask is not None or is_causal else images * scale

    graph = Tracer().trace(Choosy())
    assert [node.name for node in graph.nodes if node.op == "placeholder"] == ["images"]
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [operator.mul]


def test_what_a_network_keeps_from_pass_to_pass_is_no_constant_and_stays() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.bias_cache = {"cpu": torch.zeros(2)}

        def forward(self, images):
            if "cpu" not in self.bias_cache:
                self.bias_cache["cpu"] = self.weight * 2
            return images + self.bias_cache["cpu"]

    model = Caching()
    before = dict(model.bias_cache)
    graphs = [Tracer().trace(model) for _ in range(2)]
    assert all(any(node.target == "weight" for node in graph.nodes) for graph in graphs)
    assert model.bias_cache == before


@pytest.mark.parametrize("is_training", [True, False])
def test_a_network_that_cannot_be_traced_is_an_error_and_keeps_its_mode(is_training: bool) -> None:
    model = Branching().train(is_training)
    with pytest.raises(BackboneError, match="cannot be traced") as caught:
        traced(model, 16)
    assert caught.value.hint
    assert model.training is is_training


def test_a_picture_of_another_size_than_the_network_takes_is_an_error() -> None:
    with pytest.raises(BackboneError, match="cannot be traced"):
        traced(network("deit_tiny_distilled_patch16_224"), 96)


def test_positions_are_told_by_the_shape() -> None:
    swin = network("swin_tiny_patch4_window7_224")
    positions = traced(swin, 56).positions
    assert [positions[name] for name in ("stem", "layers.0", "layers.1")] == [(1, 2), (1,), (1,)]
    for name in ("test_resnet", "test_convnext"):
        assert traced(network(name), 160).positions["stem"] == (2, 3)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_resnet"])
def test_positions_are_the_networks_own_word_where_all_sides_are_equal(name: str) -> None:
    class Cube(nn.Module):
        output_fmt = "NHWC" if name.startswith("swin") else "NCHW"

        def __init__(self) -> None:
            super().__init__()
            self.body, self.next, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.next(self.body(images)).mean(dim=(2, 3)))

    assert traced(Cube(), 8).positions["stem"] == ((1, 2) if name.startswith("swin") else (2, 3))


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "test_vit"])
def test_a_pooled_prefix_averages_over_positions_of_every_layout(name: str) -> None:
    size = 56 if name.startswith("swin") else 160
    found = traced(network(name, **({"img_size": 56} if size == 56 else {})), size)
    names = list(found.ends)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole, pooled = prefix(found, names)(images), prefix(found, names, is_pooled=True)(images)
    for group, output, means in zip(names, whole, pooled, strict=True):
        where = found.positions[group]
        assert torch.equal(means, output.mean(dim=where) if where else output)
        assert means.shape == (2, found.widths[group])
