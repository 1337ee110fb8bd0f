"""The four cells of the matrix, and the numbers that lie between them."""

from __future__ import annotations

import pytest

from finetune.evaluation.intervals import wilson
from finetune.strategy.matrix import decide
from finetune.types import Evidence, LayerGroup, Verdict

GROUPS = tuple(
    LayerGroup(name, (f"{name}.weight",), 1, is_head=name == "head")
    for name in ("stem", "layer1", "layer2", "layer3", "layer4", "head")
)
SIMILAR = [0.3, 0.5, 0.7, 0.8, 0.9]
DISSIMILAR = [0.3, 0.5, 0.7, 0.6, 0.4]


def verdict(probe: list[float], *, num_images: int, per_class: float, num_classes: int = 10) -> Verdict:
    names = [group.name for group in GROUPS[: len(probe)]]
    measured = {name: wilson(value, 500) for name, value in zip(names, probe, strict=True)}
    return decide(Evidence(num_images, num_classes, 1, per_class, 500, measured), GROUPS)


@pytest.mark.parametrize(
    ("probe", "num_images", "per_class", "cell", "strategy"),
    [
        (SIMILAR, 400, 40, ("few", "similar"), "head-only"),
        (DISSIMILAR, 400, 40, ("few", "dissimilar"), "linear-probe"),
        (SIMILAR, 40_000, 4000, ("many", "similar"), "top-k"),
        (DISSIMILAR, 40_000, 4000, ("many", "dissimilar"), "full"),
    ],
)
def test_each_cell_has_its_strategy(
    probe: list[float], num_images: int, per_class: float, cell: tuple[str, str], strategy: str
) -> None:
    found = verdict(probe, num_images=num_images, per_class=per_class)
    assert (found.size, found.similarity) == cell
    assert found.strategy == strategy
    assert (found.top_k, found.probe_at) == {"top-k": (1, None), "linear-probe": (None, "layer2")}.get(
        strategy, (None, None)
    )


@pytest.mark.parametrize(
    ("num_images", "per_class", "size"),
    [(999, 500, "few"), (1000, 500, "many"), (1000, 100, "many"), (5000, 99.5, "few"), (10**6, 99, "few")],
)
def test_few_is_under_100_a_class_or_1000_in_all(num_images: int, per_class: float, size: str) -> None:
    assert verdict(SIMILAR, num_images=num_images, per_class=per_class).size == size


@pytest.mark.parametrize(
    ("probe", "num_classes", "similarity"),
    [
        ([0.9, 0.9], 10, "similar"),
        ([0.91, 0.90], 10, "similar"),  # within two points
        ([0.95, 0.90], 10, "dissimilar"),
        ([0.1, 0.56], 10, "similar"),  # half of the way from 0.1 to 1 is 0.55
        ([0.1, 0.54], 10, "dissimilar"),
        ([0.5, 0.74], 2, "dissimilar"),
        ([0.5, 0.76], 2, "similar"),
    ],
)
def test_similar_is_a_last_group_that_serves(probe: list[float], num_classes: int, similarity: str) -> None:
    assert verdict(probe, num_images=400, per_class=40, num_classes=num_classes).similarity == similarity


def test_of_groups_that_are_equally_good_the_probe_stands_on_the_last() -> None:
    found = verdict([0.4, 0.7, 0.7, 0.6], num_images=400, per_class=40)
    assert found.probe_at == "layer2"
    assert verdict([0.2, 0.3, 0.3], num_images=400, per_class=40).probe_at == "layer2"


def test_one_tapped_group_is_enough_to_decide() -> None:
    evidence = Evidence(400, 10, 1, 40, 400, {"layer4": wilson(0.9, 400)})
    assert decide(evidence, GROUPS).strategy == "head-only"
    evidence = Evidence(400, 10, 1, 40, 400, {"layer4": wilson(0.2, 400)})
    found = decide(evidence, GROUPS)
    assert (found.strategy, found.probe_at) == ("linear-probe", "layer4")
    assert "earlier" not in found.reason


def test_top_k_is_about_a_quarter_of_the_backbone() -> None:
    names = [*(f"blocks.{i}" for i in range(12)), "head"]
    groups = tuple(LayerGroup(name, (name,), 1, is_head=name == "head") for name in names)
    measured = {name: wilson(0.9, 500) for name in names[:-1]}
    assert decide(Evidence(40_000, 10, 1, 4000, 500, measured), groups).top_k == 3


def test_the_reason_says_what_was_counted_and_compared() -> None:
    found = verdict(DISSIMILAR, num_images=400, per_class=40.5)
    assert found.reason == (
        "400 images, 10 classes (40.5 a class in the median); the last stage separates them at 40% ± 4%,"
        " layer2 at 70%: dissimilar; few images → linear probe at layer2"
    )
    found = verdict(SIMILAR, num_images=40_000, per_class=4000)
    assert "earlier stages are no better: similar; many images → train the top 1" in found.reason
