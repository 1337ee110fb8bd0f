"""The layer table against the figures of the notes, published values and measured gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from finetune.backbone.layers import LayerRow, LayerTable, layer_table
from finetune.errors import BackboneError
from tests.support import mostly_slow, on_meta

SIZES = {
    **dict.fromkeys(["test_resnet", "test_vit", "test_convnext"], 160),
    **dict.fromkeys(["vgg16", "resnet18", "densenet121", "mobilenetv3_small_050"], 224),
    **dict.fromkeys(["efficientnet_b0", "levit_128s", "xcit_nano_12_p16_224"], 224),
    **dict.fromkeys(["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"], 224),
    "inception_v3": 299,
    "mobilevit_xxs": 256,
}


def _table(name: str) -> LayerTable:
    return layer_table(on_meta(name), image_size=(SIZES[name], SIZES[name]))


def _row(table: LayerTable, name: str) -> LayerRow:
    return next(row for row in table.rows if row.name == name)


def _fields(model: nn.Module, *, size: int = 64) -> list[int | None]:
    return [row.receptive_field for row in layer_table(model, image_size=(size, size)).rows]


def _measured_field(model: nn.Module, *, size: int) -> int:
    """Count the input rows that the central unit of the output depends on."""
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.1)  # nothing cancels, no relu cuts
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    out = model(image)
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(dim=(0, 2)) > 0
    assert not seen[0]  # else the border hides part of the field
    assert not seen[-1]
    return int(seen.sum())


class Residual(nn.Module):
    """Two convolutions (the second dilated) beside a strided shortcut."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False)
        self.shortcut = nn.Conv2d(channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.conv2(self.norm(self.conv1(x)).relu()))


class Branches(nn.Sequential):
    """Branches on one input, their outputs added or joined along the channels."""

    def __init__(self, *branches: nn.Module, join: bool = False) -> None:
        super().__init__(*branches)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        outs = [branch(x) for branch in self]
        return torch.cat(outs, dim=1) if self.join else outs[0] + outs[1]


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _needs_values() -> nn.Module:
    return nn.Sequential(Call(lambda x: x + float(x.sum())), nn.Conv2d(3, 4, 3))


def test_lenet_has_the_figures_of_the_notes() -> None:
    lenet = nn.Sequential(
        *(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    table = layer_table(lenet, image_size=(32, 32))
    rows = [row for row in table.rows if row.kind != "activation"]
    assert [(r.kind, r.shape, r.num_activations, r.num_parameters) for r in rows] == [
        ("conv", (8, 28, 28), 6272, 608),
        ("pool", (8, 14, 14), 1568, 0),
        ("conv", (16, 10, 10), 1600, 3216),
        ("pool", (16, 5, 5), 400, 0),
        ("linear", (120,), 120, 48120),
        ("linear", (84,), 84, 10164),
        ("linear", (10,), 10, 850),
    ]
    assert [row.receptive_field for row in rows] == [5, 6, 14, 16, None, None, None]
    assert table.num_activations == 3 * 32 * 32 + 6272 + 1568 + 1600 + 400 + 120 + 84 + 10
    assert table.num_activations_all == table.num_activations


def test_vgg16_holds_61_megabytes_of_activations_and_138_million_parameters() -> None:
    table = _table("vgg16")
    assert table.num_activations == pytest.approx(15.2e6, abs=0.05e6)
    assert table.activation_bytes() == 4 * table.num_activations
    assert round(table.activation_bytes() / 1e6) == 61
    assert table.num_parameters == pytest.approx(138.36e6, abs=0.005e6)


def test_vgg16_holds_most_memory_early_and_most_parameters_in_the_first_connected_layer() -> None:
    rows = _table("vgg16").rows
    assert max(rows, key=lambda row: row.num_activations).name == "features.0"
    assert max(rows, key=lambda row: row.num_parameters).name == "pre_logits.fc1"


@pytest.mark.parametrize("name", mostly_slow([(name,) for name in SIZES], *[(n,) for n in [*SIZES][::3]]))
def test_rows_hold_every_parameter_once(name: str) -> None:
    model = on_meta(name)
    table = layer_table(model, image_size=(SIZES[name], SIZES[name]))
    assert table.num_parameters == sum(p.numel() for p in model.parameters())
    assert len({row.name for row in table.rows}) == len(table.rows)


def test_parameters_of_no_layer_stand_before_the_first_row_of_their_module() -> None:
    names = [row.name for row in _table("test_vit").rows]
    assert names[:3] == ["cls_token", "pos_embed", "patch_embed.proj"]
    table = _table("test_convnext")
    names = [row.name for row in table.rows]
    gamma = names.index("stages.0.blocks.0.gamma")
    assert names[gamma + 1] == "stages.0.blocks.0.conv_dw"
    row = table.rows[gamma]
    assert (row.kind, row.type, row.num_activations) == ("other", "Parameter", 0)
    assert row.num_parameters == 24


def test_parameters_of_layers_that_are_never_called_are_counted() -> None:
    class HalfUsed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 1), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(self.used(x), self.used.weight.transpose(0, 1))

    rows = layer_table(HalfUsed(), image_size=(8, 8)).rows
    counts = {row.name: row.num_parameters for row in rows}
    assert counts == {"used": 16, "unused.weight": 30, "unused.bias": 6}


def test_a_shared_parameter_is_counted_once_and_a_shared_layer_has_one_row() -> None:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    table = layer_table(nn.Sequential(first, second, first), image_size=(8, 8))
    assert [(row.name, row.num_parameters) for row in table.rows] == [("0", 84), ("1", 3)]
    assert table.rows[0].receptive_field == 7  # of its last call


def test_three_convolutions_of_three_see_seven_with_27_weights_in_the_place_of_49() -> None:
    channels = 4
    stack = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3)))
    assert _fields(stack) == [3, 5, 7]
    assert _fields(nn.Sequential(nn.Conv2d(3, 3, 7))) == [7]
    many = [nn.Conv2d(channels, channels, 3, bias=False) for _ in range(3)]
    assert sum(conv.weight.numel() for conv in many) == 27 * channels**2
    assert nn.Conv2d(channels, channels, 7, bias=False).weight.numel() == 49 * channels**2


def test_maps_are_shown_with_channels_last_whatever_the_network_has() -> None:
    def shown(name: str) -> dict[str, tuple[int, ...]]:
        table = _table(name)
        return {row.name: shape for row, shape in zip(table.rows, table.shapes_channels_last(), strict=True)}

    convnext, vit, swin = shown("test_convnext"), shown("test_vit"), shown("swin_tiny_patch4_window7_224")
    assert convnext["stages.0.blocks.0.conv_dw"] == (40, 40, 24)  # (24, 40, 40) in torch
    assert convnext["stages.0.blocks.0.mlp.fc2"] == (40, 40, 24)  # so in torch too
    assert vit["patch_embed.proj"] == (10, 10, 64)
    assert vit["blocks.0.attn.proj"] == (101, 64)
    assert swin["layers.0.blocks.0.attn.qkv"] == (64, 49, 288)
    resnet = _table("resnet18")
    assert list(resnet.shapes_channels_last())[:3] == [(112, 112, 64)] * 3  # convolution, norm, activation


def test_a_layer_that_is_never_called_and_has_nothing_around_it_stands_at_the_end() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge, self.used = nn.Linear(2, 3), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert [row.name for row in layer_table(Unused(), image_size=(4, 4)).rows] == ["used", "judge.weight", "judge.bias"]


@pytest.mark.parametrize(
    ("network", "layer", "field"),
    [
        ("vgg16", "features.28", 196),
        ("vgg16", "features.30", 212),
        ("resnet18", "layer4.1.conv2", 435),
        # Source: Araujo, Norris and Sim, "Computing Receptive Fields of CNNs", Distill 2019
        ("inception_v3", "Mixed_7c.branch3x3dbl_3b.conv", 1311),
    ],
)
def test_receptive_field_has_the_published_value(network: str, layer: str, field: int) -> None:
    assert _row(_table(network), layer).receptive_field == field


def test_receptive_field_is_what_gradients_measure_on_a_residual_network() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False), nn.AvgPool2d(3, 2, 1)),
        *(Residual(4, stride=1), Residual(4, stride=2), nn.Conv2d(4, 4, 2, bias=False)),
    )
    assert _fields(model)[-1] == _measured_field(model, size=256)


def test_receptive_field_is_what_gradients_measure_on_timm_layers() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    model.maxpool = nn.AvgPool2d(3, 2, 1)  # the gradient of a maximum reaches one input only
    trunk = nn.Sequential(*list(model.children())[:-2])  # without pool and head
    rows = layer_table(trunk, image_size=(64, 64)).rows
    assert rows[-1].receptive_field == _measured_field(trunk, size=512)


@pytest.mark.parametrize("stride", [1, 2])
def test_branches_that_look_apart_see_their_union(stride: int) -> None:
    up = nn.Sequential(nn.ZeroPad2d((0, 0, 4, 0)), nn.Conv2d(4, 4, (5, 1), bias=False))
    down = nn.Sequential(nn.ZeroPad2d((0, 0, 0, 4)), nn.Conv2d(4, 4, (5, 1), bias=False))
    first, last = nn.Conv2d(3, 4, 3, stride=stride, bias=False), nn.Conv2d(8, 4, 1, bias=False)
    model = nn.Sequential(first, Branches(up, down, join=True), last)
    field = _fields(model)[-1]
    assert field == 3 + 8 * stride  # one branch alone: 3 + 4 * stride
    assert field == _measured_field(model, size=64)


@pytest.mark.filterwarnings("ignore:Using padding")  # torch: an even kernel costs a copy
def test_same_padding_of_an_even_kernel_is_placed_as_torch_does() -> None:
    even = nn.Conv2d(3, 4, 4, padding="same", bias=False)
    odd = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    last = nn.Conv2d(4, 4, 3, padding="valid", bias=False)
    model = nn.Sequential(Branches(even, odd), last)
    assert _fields(model)[-1] == _measured_field(model, size=64) == 6


def test_receptive_field_follows_function_calls() -> None:
    call = Call(lambda x: nn.functional.avg_pool2d(x, 2).relu())
    assert _fields(nn.Sequential(call, nn.Conv2d(3, 4, 3), nn.Hardswish())) == [2, 6, 6]


def test_receptive_field_is_unknown_for_sums_of_unequal_steps() -> None:
    branches = Branches(nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 2, stride=2))
    assert _fields(nn.Sequential(branches, nn.ReLU()), size=8) == [5, 2, None]


def test_receptive_field_is_unknown_for_weights_made_from_the_image() -> None:
    assert _fields(nn.Sequential(Call(lambda x: nn.functional.conv2d(x, x)))) == [None]


def test_receptive_field_ends_where_the_image_is_mixed() -> None:
    vit = _table("test_vit")
    assert _row(vit, "patch_embed.proj").receptive_field == 16
    assert _row(vit, "blocks.0.attn.proj").receptive_field is None
    assert _row(vit, "head").receptive_field is None
    resnet = _table("resnet18")
    assert _row(resnet, "global_pool").receptive_field is None
    assert _row(resnet, "fc").receptive_field is None
    gated = _table("efficientnet_b0")  # squeeze-and-excitation looks at the whole map
    assert _row(gated, "blocks.0.0.conv_dw").receptive_field == 7
    assert _row(gated, "blocks.0.0.se.conv_reduce").receptive_field is None
    assert _row(gated, "blocks.0.0.conv_pw").receptive_field is None


def test_receptive_field_ends_where_a_tensor_is_written_in_parts() -> None:
    def shift(x: Tensor) -> Tensor:
        x[:, :, 1:] = x[:, :, :-1].clone()
        return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Call(shift), nn.Conv2d(4, 4, 1))
    assert _fields(model) == [3, None]


def test_receptive_field_passes_through_channels_last_layers() -> None:
    table = _table("test_convnext")
    assert _row(table, "stem.0").receptive_field == 4
    assert _row(table, "stages.0.blocks.0.conv_dw").receptive_field == 4 + 6 * 4
    mlp = _row(table, "stages.0.blocks.0.mlp.fc2")
    assert mlp.shape == (40, 40, 24)
    assert mlp.receptive_field == 28
    assert _row(table, "stages.1.downsample.1").receptive_field == 32


def test_a_norm_with_its_activation_is_one_row() -> None:
    table = _table("efficientnet_b0")
    names = [row.name for row in table.rows if row.name.startswith("bn1")]
    row = _row(table, "bn1")
    assert names == ["bn1"]
    assert (row.kind, row.type, row.num_parameters) == ("norm", "BatchNormAct2d", 64)
    frozen = nn.Sequential(FrozenBatchNormAct2d(3))
    assert [row.kind for row in layer_table(frozen, image_size=(8, 8)).rows] == ["norm"]


def test_kinds_cover_the_layers_of_torch_and_timm() -> None:
    kinds = {row.type: row.kind for name in SIZES for row in _table(name).rows}
    expected = {
        "conv": ["Conv2d"],
        "pool": ["MaxPool2d", "AvgPool2d", "SelectAdaptivePool2d"],
        "linear": ["Linear"],
        "norm": ["BatchNorm2d", "LayerNorm2d", "BatchNormAct2d"],
        "activation": ["GELU", "Hardswish"],
        "dropout": ["Dropout", "DropPath"],
        "other": ["Parameter"],
    }
    for kind, types in expected.items():
        assert {kinds[type_] for type_ in types} == {kind}
    assert not {"Identity", "Flatten", "Sequential"} & kinds.keys()


def test_attention_of_torch_is_one_row_with_all_its_parameters() -> None:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
            return super().forward(x, x, x)

    model = nn.Sequential(Call(lambda x: x.flatten(2).transpose(1, 2)), Attention(3, 1))
    row = layer_table(model, image_size=(4, 4)).rows[-1]
    assert (row.kind, row.shape, row.num_parameters) == ("other", (16, 3), 48)


def test_a_reparametrised_layer_is_one_row() -> None:
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)))
    (row,) = layer_table(model, image_size=(8, 8)).rows
    assert (row.kind, row.num_parameters) == ("conv", 4 * 3 * 9 + 4 + 4)


def test_identity_and_flatten_leave_no_row() -> None:
    switched_off = SelectAdaptivePool2d(pool_type="")
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1), switched_off, nn.Flatten())
    assert [row.name for row in layer_table(model, image_size=(4, 4)).rows] == ["1"]


def test_windows_folded_into_the_batch_stay_in_the_shape() -> None:
    row = _row(_table("swin_tiny_patch4_window7_224"), "layers.0.blocks.0.attn.qkv")
    assert row.shape == (64, 49, 288)
    assert row.num_activations == 64 * 49 * 288


def test_activations_of_all_layers_add_norms_but_not_activation_functions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout())
    table = layer_table(model, image_size=(4, 5))
    assert table.input_shape == (3, 4, 5)
    assert [row.shape for row in table.rows] == [(2, 4, 5)] * 4
    assert table.num_activations == 60 + 40
    assert table.num_activations_all == 60 + 40 + 40


def test_a_real_network_has_the_table_of_its_meta_twin() -> None:
    real = timm.create_model("test_resnet", pretrained=False)
    assert layer_table(real, image_size=(160, 160)) == _table("test_resnet")
    assert layer_table(real.half(), image_size=(160, 160)) == _table("test_resnet")


def test_a_real_network_is_not_run_on_real_values() -> None:
    class OnMeta(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            assert input.is_meta
            assert self.weight.is_meta
            return super().forward(input)

    assert layer_table(OnMeta(3, 4, 3), image_size=(8, 8)).num_parameters == 112


@pytest.mark.parametrize("needs_values", [False, True])
def test_the_network_is_left_as_it_was(needs_values: bool) -> None:
    model = nn.Sequential(
        _needs_values() if needs_values else nn.Conv2d(3, 4, 3),
        *(nn.BatchNorm2d(4), nn.Dropout(), Residual(4, stride=2)),
    )
    calls: list[nn.Module] = []
    model[1].register_forward_hook(lambda module, inputs, output: calls.append(module))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = [id(p) for p in model.parameters()]
    training = [module.training for module in model.modules()]
    layer_table(model, image_size=(16, 16))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == tensors
    assert [module.training for module in model.modules()] == training
    assert [len(module._forward_hooks) for module in model] == [0, 1, 0, 0]
    assert calls == []


def test_a_network_that_needs_values_is_run_for_real() -> None:
    row = layer_table(_needs_values(), image_size=(8, 8)).rows[-1]
    assert (row.name, row.shape, row.num_parameters) == ("1", (4, 6, 6), 112)


def test_a_meta_network_that_needs_values_is_refused() -> None:
    with torch.device("meta"):
        model = _needs_values()
    with pytest.raises(BackboneError, match="Sequential does not run"):
        layer_table(model, image_size=(8, 8))


def test_a_wrong_image_size_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"VisionTransformer .* \(100, 160\)"):
        layer_table(on_meta("test_vit"), image_size=(100, 160))
    with pytest.raises(BackboneError):
        layer_table(nn.Sequential(nn.Conv2d(3, 4, 9)), image_size=(8, 8))
