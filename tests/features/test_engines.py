"""What runs a trunk is taken where it is proven and pays, and else torch does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, fx, nn

from finetune import timings
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.errors import BackboneError, ResourceError
from finetune.features import engines
from finetune.features.divide import Trunk, divide, network_trunk
from finetune.features.engines import ENGINES, Shares, equip, shares
from finetune.features.folding import folded_graph
from finetune.features.graphs import IndivisibleError
from finetune.features.sources import through_trunk
from finetune.randomness import forked
from finetune.strategy.strategies import Choice, phases
from finetune.threads import threads_at

SIZE = 64
ABOUT = {"network": "one of the tests"}


def trunk_of(name: str, *, strategy: str = "head-only") -> Trunk:
    with forked(0):
        model = timm.create_model(name, num_classes=5).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    groups = layer_groups(model)
    plan = phases(Choice(strategy, epochs=1, lr=1e-3, layer_decay=1.0, top_k=1), groups)[0].plan
    size = model.pretrained_cfg["input_size"][-1] if model.pretrained_cfg.get("fixed_input_size") else SIZE
    with freezing(model, plan, groups):
        trunk = divide(model, plan, groups, image_size=(size, size)).trunk
    trunk(images(trunk, size))
    return trunk


def images(trunk: Trunk, size: int = SIZE) -> Tensor:
    return torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(1))


def side(name: str) -> int:
    cfg = timm.get_pretrained_cfg(name)
    return int(cfg.input_size[-1]) if cfg is not None and cfg.fixed_input_size else SIZE


@pytest.mark.parametrize("strategy", ["head-only", "top-k"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "mobilenetv2_035", "regnetx_002"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_proven_on_these_networks(engine: str, name: str, strategy: str) -> None:
    if ENGINES[engine].library:
        pytest.importorskip(str(ENGINES[engine].library))
    trunk = trunk_of(name, strategy=strategy)
    batch = images(trunk, side(name))
    expected = trunk(batch)
    chosen, text = equip(trunk, batch, asked=engine, num_images=16, precision="float32", about=ABOUT)
    assert chosen == engine and f"by {engine}, within" in text
    found = trunk(batch)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.stride() == other.stride()
        assert float((one - other).abs().max()) <= engines.TOLERANCE * float(one.abs().max())


def test_folding_takes_every_batch_norm_behind_a_convolution_and_leaves_the_graph_as_it_was() -> None:
    trunk = trunk_of("mobilenetv2_035")
    before = {name: tensor.clone() for name, tensor in trunk.graph.state_dict().items()}
    folded = folded_graph(trunk.graph)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.graph.state_dict().items())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in trunk.graph.modules()) == 52


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_whole_network_is_a_trunk_that_ends_at_its_logits(name: str) -> None:
    with forked(0):
        model = timm.create_model(name, num_classes=5).train()
    trunk = network_trunk(model)
    assert model.training
    batch = images(trunk, side(name))
    (logits,) = trunk(batch)
    with torch.no_grad():
        assert torch.equal(logits, model.eval()(batch))


def test_a_network_with_other_outputs_is_none() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(IndivisibleError, match="more than logits"):
        network_trunk(Pair())


class Twice(nn.Module):
    """A convolution whose output is used beside its batch norm, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        nn.init.uniform_(self.norm.running_var, 2.0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = self.norm(x) + x
        return self.norm(self.one(x))


def test_layers_that_are_used_twice_are_not_folded() -> None:
    graph = fx.symbolic_trace(Twice().eval())
    batch = torch.rand(2, 3, 4, 4)
    assert torch.equal(folded_graph(graph)(batch), graph(batch))


def off(change: Callable[[Tensor], Tensor]) -> engines.Engine:
    def build(graph: fx.GraphModule, images: Tensor) -> engines.Run:
        def run(images: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return tuple(change(tensor) for tensor in graph(images))

        return run

    return engines.Engine(build, None, guess=0.0, gain=1.0)


WRONG = {
    "off": lambda tensor: tensor * (1 + 1e-3),
    "undefined": lambda tensor: tensor * torch.nan,
    "cut": lambda tensor: tensor[:, :1],
    "by place": lambda tensor: tensor + 1e-6 * torch.arange(len(tensor)).view(-1, *[1] * (tensor.ndim - 1)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("asked", ["auto", "folded"])
def test_what_is_not_proven_is_not_taken(monkeypatch: pytest.MonkeyPatch, name: str, asked: str) -> None:
    trunk = trunk_of("test_resnet")
    batch = images(trunk)
    expected = trunk(batch)
    for engine in ENGINES:
        monkeypatch.setitem(ENGINES, engine, off(WRONG[name]))
    chosen, text = equip(trunk, batch, asked=asked, num_images=10**9, precision="float32", about=ABOUT)
    assert chosen == "torch" and trunk.engine == ""
    assert text == "" if asked == "auto" else text.startswith("by torch, since folded")
    assert all(map(torch.equal, expected, trunk(batch)))


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Make up what a batch takes by each engine, building nothing; return the list of what is timed."""
    asked: list[str] = []

    def look(trunk: Trunk, images: Tensor) -> float:
        asked.append(trunk.engine or "torch")
        return seconds[asked[-1]]

    for engine in list(ENGINES):
        if engine in seconds:
            monkeypatch.setitem(ENGINES, engine, off(lambda tensor: tensor))
        else:
            monkeypatch.delitem(ENGINES, engine)
    monkeypatch.setattr(
        engines.Engine, "label", property(lambda self: next(n for n, e in ENGINES.items() if e is self))
    )
    monkeypatch.setattr(engines, "_seconds", look)
    monkeypatch.setattr(engines, "FEWEST", 0)
    return asked


@pytest.mark.parametrize(
    ("seconds", "num_images", "expected"),
    [
        ({"torch": 1.0, "folded": 0.8, "onnxruntime": 0.2}, 16_000, "onnxruntime"),
        ({"torch": 1.0, "folded": 0.2, "onnxruntime": 0.8}, 16_000, "folded"),
        ({"torch": 1.0, "folded": 0.95, "onnxruntime": 1.1}, 16_000, "torch"),  # too little for other last bits
        ({"torch": 1e-7, "folded": 1e-9}, 16, "torch"),  # building takes longer than the pass
    ],
)
def test_auto_takes_what_ends_first_and_the_same_again_without_timing(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], num_images: int, expected: str
) -> None:
    asked = timed(monkeypatch, seconds)
    for _ in range(2):
        trunk = trunk_of("test_resnet")
        chosen, text = equip(
            trunk, images(trunk), asked="auto", num_images=num_images, precision="float32", about=ABOUT
        )
        assert chosen == expected == (trunk.engine or "torch")
        assert ("times as fast as torch here" in text) == (expected != "torch")
        assert len(asked) == len(seconds)  # of the first time alone


def test_short_passes_build_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"torch": 0.01, "folded": 0.001, "onnxruntime": 0.001})
    for name in ("folded", "onnxruntime"):
        monkeypatch.setitem(ENGINES, name, engines.Engine(ENGINES[name].build, None, guess=1.0, gain=0.5))
    trunk = trunk_of("test_resnet")
    assert equip(trunk, images(trunk), asked="auto", num_images=160, precision="float32", about=ABOUT)[0] == "torch"
    assert asked == ["torch"]


def test_what_a_longer_pass_has_timed_does_not_change_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"torch": 0.01, "onnxruntime": 0.001})
    monkeypatch.setitem(ENGINES, "onnxruntime", engines.Engine(ENGINES["onnxruntime"].build, None, guess=1.0, gain=0.5))
    trunk, chosen = trunk_of("test_resnet"), []
    for num_images in (1600, 160_000, 1600):
        chosen.append(
            equip(trunk, images(trunk), asked="auto", num_images=num_images, precision="float32", about=ABOUT)[0]
        )
    assert chosen == ["torch", "onnxruntime", "torch"]


def test_an_engine_that_is_not_installed_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_is_installed", lambda library: False)
    trunk = trunk_of("test_resnet")
    with pytest.raises(BackboneError, match=r"pip install 'finetune\[openvino\]'"):
        equip(trunk, images(trunk), asked="openvino", num_images=16, precision="float32", about=ABOUT)
    assert (
        equip(trunk, images(trunk), asked="auto", num_images=10**9, precision="float32", about=ABOUT)[0] != "openvino"
    )
    with pytest.raises(ResourceError, match="began with its frozen layers run by openvino"):
        equip(trunk, images(trunk), asked="auto", num_images=16, precision="float32", about=ABOUT, kept="openvino")


def test_in_another_precision_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of("test_resnet")
    assert equip(trunk, images(trunk), asked="auto", num_images=10**9, precision="bfloat16", about=ABOUT)[0] == "torch"
    with pytest.raises(BackboneError, match="it computes in float32, but this run in bfloat16"):
        equip(trunk, images(trunk), asked="folded", num_images=16, precision="bfloat16", about=ABOUT)


def test_a_network_that_cannot_be_exported_is_run_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand a long tale of it")

    monkeypatch.setattr(engines, "write_quickly", refuse)
    trunk = trunk_of("test_resnet")
    chosen, text = equip(trunk, images(trunk), asked="onnxruntime", num_images=16, precision="float32", about=ABOUT)
    assert (chosen, text) == ("torch", "by torch, since onnxruntime cannot run this network: no such operator")


def test_what_was_timed_is_kept_and_what_is_damaged_is_timed_again() -> None:
    assert timings.remembered(ABOUT) is None
    timings.remember(ABOUT, {"torch": 1.5, "folded": None})
    timings.remember({"network": "another"}, {"torch": 2.0})
    assert timings.remembered(ABOUT) == {"torch": 1.5, "folded": None}
    for damaged in ("", "[]", '{"a": 1}'):
        timings._file().write_text(damaged)
        assert timings.remembered(ABOUT) is None
    timings.remember(ABOUT, {"torch": 1.5})
    assert timings.remembered(ABOUT) == {"torch": 1.5}


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "MOST", 2)
    for number in range(4):
        timings.remember({"network": number}, {"torch": float(number)})
    assert [timings.remembered({"network": number}) for number in range(4)] == [
        None,
        None,
        {"torch": 2.0},
        {"torch": 3.0},
    ]


@pytest.mark.parametrize(("num_threads", "at_once", "each"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (12, 8, 1), (16, 8, 2)])
def test_threads_are_shared_among_batches(num_threads: int, at_once: int, each: int) -> None:
    assert shares(num_threads) == Shares(at_once, each)


def batches_of(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(16 if place else 5, 3, SIZE, SIZE, generator=generator) for place in reversed(range(count))]


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.is_parallel])
def test_the_bits_are_the_same_however_many_batches_are_computed_at_once(engine: str) -> None:
    pytest.importorskip(str(ENGINES[engine].library))
    found = {}
    for num_threads in (1, 2, 4):
        trunk = trunk_of("test_resnet")
        with threads_at(num_threads):
            equip(trunk, images(trunk), asked=engine, num_images=16, precision="float32", about=ABOUT)
            assert (trunk.at_once, trunk.engine.endswith("1 thread a batch")) == (num_threads, True)
            parts = [boundary for boundary, _ in through_trunk(trunk, batches_of(12), autocast=nullcontext)]
        found[num_threads] = b"".join(tensor.numpy().tobytes() for part in parts for tensor in part)
    assert found[1] == found[2] == found[4]


def numbering(act: Callable[[int], None]) -> Trunk:
    """Return a trunk that yields of each batch its first number, after `act` on it."""
    trunk = Trunk(fx.symbolic_trace(nn.Identity()), [1])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        act(int(images[0, 0]))
        return (images[:, :1],)

    trunk.run, trunk.at_once = run, 3
    return trunk


def numbered(count: int, taken: list[int]) -> Iterator[Tensor]:
    for number in range(count):
        taken.append(number)
        yield torch.full((16, 2), float(number))


def test_batches_come_in_order_and_a_few_are_taken_ahead() -> None:
    taken: list[int] = []
    trunk = numbering(lambda number: time.sleep(0.02 * (number % 3 == 0)))  # every third is the slowest
    for place, (boundary, count) in enumerate(through_trunk(trunk, numbered(20, taken), autocast=nullcontext)):
        assert (int(boundary[0][0]), count) == (place, 16)
        assert len(taken) <= place + 1 + trunk.at_once
    assert taken == list(range(20))


def test_where_batches_are_computed_in_threads_they_are_made_by_one_thread_of_torch() -> None:
    making: list[int] = []

    def batches() -> Iterator[Tensor]:
        for images in numbered(5, []):
            making.append(torch.get_num_threads())
            yield images

    with threads_at(4):
        for at_once in (3, 1):
            trunk = numbering(lambda number: None)
            trunk.at_once = at_once
            used = [torch.get_num_threads() for _ in through_trunk(trunk, batches(), autocast=nullcontext)]
            assert used == [4] * 5
        assert making == [1] * 5 + [4] * 5


def test_an_error_in_a_thread_comes_out_and_none_is_left_behind() -> None:
    def fail(number: int) -> None:
        if number == 4:
            raise MemoryError("none left")

    before, seen = threading.active_count(), []
    with pytest.raises(MemoryError, match="none left"):
        for boundary, _ in through_trunk(numbering(fail), numbered(20, []), autocast=nullcontext):
            seen.append(int(boundary[0][0]))
    assert seen == [0, 1, 2, 3] and threading.active_count() == before


def test_who_leaves_early_leaves_no_thread_behind() -> None:
    before, taken = threading.active_count(), []
    passes = through_trunk(numbering(lambda number: None), numbered(20, taken), autocast=nullcontext)
    next(passes)
    passes.close()
    assert threading.active_count() == before and len(taken) < 20
