"""auto on data sets that are small, odd or broken: a sane verdict or a clear refusal, the same every time."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.types import Verdict
from finetune.workflow.plan import Plan
from tests.support import mostly_slow

QUICK = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "device": "cpu", "workers": 0}


def write_pictures(folder: Path, counts: list[int], *, side: int = 32, mode: str = "RGB", seed: int = 0) -> Path:
    """Write images of noise around a shade of their own for each class."""
    rng = np.random.default_rng(seed)
    for label, count in enumerate(counts):
        place = folder / f"class-{label:03}"
        place.mkdir(parents=True)
        shade = rng.integers(0, 256, 3)
        for number in range(count):
            values = np.clip(shade + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(values).convert(mode).save(place / f"{number}.png")
    return folder


def planned(data: Path, **more: object) -> tuple[Plan, Verdict]:
    plan = finetune.plan(data, **{**QUICK, **more})
    assert plan.verdict is not None
    assert plan.evidence is not None
    assert plan.strategy == plan.verdict.strategy
    return plan, plan.verdict


@pytest.mark.parametrize(
    ("counts", "more"),
    [
        ([5, 5], {}),
        ([12, 4, 8], {}),
        ([40, 4], {}),
        pytest.param([3] * 120, {}, marks=pytest.mark.slow),
    ],
    ids=["10 images", "three classes", "imbalanced", "120 classes"],
)
def test_odd_sets_get_a_sane_verdict(tmp_path: Path, counts: list[int], more: dict[str, object]) -> None:
    plan, verdict = planned(write_pictures(tmp_path / "d", counts), **more)
    assert verdict.size == "few"
    assert plan.evidence.size.num_classes == len(counts)
    for value in (verdict.size_score, verdict.similarity_score):
        assert value.low <= value.value <= value.high
    assert plan.phases


@pytest.mark.slow
def test_500_classes_get_a_verdict(tmp_path: Path) -> None:
    plan, verdict = planned(write_pictures(tmp_path / "d", [4] * 500))
    assert plan.evidence.size.num_classes == 500
    assert verdict.size == "few"


def test_grey_pictures_of_28_pixels_are_seen_to_be_that(tmp_path: Path) -> None:
    plan, _ = planned(write_pictures(tmp_path / "d", [20, 20], side=28, mode="L"))
    assert (plan.evidence.short_side, plan.evidence.grey_share) == (28, 1.0)
    colour, _ = planned(write_pictures(tmp_path / "e", [20, 20]))
    assert (colour.evidence.short_side, colour.evidence.grey_share) == (32, 0.0)


def test_a_class_of_one_image_is_measured_with_the_others(tmp_path: Path) -> None:
    plan, verdict = planned(write_pictures(tmp_path / "d", [10, 1]))
    assert (plan.evidence.size.images_per_class_min, plan.evidence.size.imbalance) == (1, 8)
    assert verdict.size == "few"


def test_half_of_the_files_corrupt_is_a_verdict_on_the_other_half(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "d", [20, 20])
    whole, _ = planned(data)
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        if number % 2:
            file.write_bytes(file.read_bytes()[:60])
    plan, verdict = planned(data)
    assert plan.evidence.size.num_images < whole.evidence.size.num_images == 32
    assert plan.evidence.size.num_images == 16
    assert "16 images, 2 classes" in verdict.reason


def test_the_same_data_gives_the_same_evidence_cached_or_not(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "d", [12, 12, 12])
    first = planned(data)[0].to_json()
    again = planned(data)[0].to_json()
    uncached = planned(data, overrides={"cache.features": "none", "cache.pixels": "none"})[0].to_json()
    for key in ("evidence", "verdict"):
        assert json.dumps(first[key]) == json.dumps(again[key]) == json.dumps(uncached[key])


CELLS = list(product(["few", "many"], ["similar", "dissimilar"]))


@pytest.mark.parametrize(("size", "similarity"), mostly_slow(CELLS, CELLS[0], CELLS[3]))
def test_a_user_may_override_what_was_measured(tmp_path: Path, size: str, similarity: str) -> None:
    data = write_pictures(tmp_path / "d", [8, 8])
    _, verdict = planned(data, assume=f"{size},{similarity}")
    assert (verdict.size, verdict.similarity) == (size, similarity)
    assert f"assumed {similarity}; assumed {size}" in verdict.reason
    assert planned(data, assume=f"{similarity}, {size}")[1] == verdict
    _, half = planned(data, assume=similarity)
    assert (half.size, half.similarity) == ("few" if similarity == "similar" else "many", similarity)


def test_an_assumption_without_auto_is_refused(tmp_path: Path) -> None:
    with pytest.raises(finetune.RecipeError, match=r"strategy\.assume has no meaning"):
        finetune.plan(tmp_path, strategy="full", assume="similar")


def test_a_network_that_cannot_be_traced_is_measured_on_its_last_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise finetune.BackboneError("this network cannot be traced")

    monkeypatch.setattr("finetune.prepare.evidence.trace", refuse)
    said: list[str] = []
    plan = finetune.plan(
        write_pictures(tmp_path / "d", [8, 8]),
        **QUICK,
        on_event=lambda event: said.append(str(event.facts.get("text", ""))),
    )
    assert plan.evidence is not None
    assert list(plan.evidence.probe) == ["layer4"]
    assert any("last layer group alone" in text for text in said)


def test_a_probe_on_all_stages_together_is_loaded_and_measured_again(quick_run) -> None:
    result = quick_run("linear-probe", image_size=32, probe_at="all")
    found = finetune.evaluate(result.folder, split="val")
    assert found.metrics["top1"].value == result.metrics["val"]["top1"]["value"]


def altered_copies(folder: Path, *, photos: int, copies: int) -> Path:
    """Write photos of noise in copies of other brightness, labels at random; return the table that groups them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["image,label,photo"]
    for photo in range(photos):
        values = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8)
        label = rng.choice(["ant", "bee"])
        for copy in range(copies):
            Image.fromarray(values + np.uint8(10 * copy)).save(folder / f"{photo:02}-{copy}.png")
            rows.append(f"{photo:02}-{copy}.png,{label},{photo}")
    (folder / "photos.csv").write_text("\n".join(rows))
    return folder / "photos.csv"


def test_the_verdict_counts_photos_and_not_their_altered_copies(tmp_path: Path) -> None:
    table = altered_copies(tmp_path / "imgs", photos=60, copies=4)
    plan, verdict = planned(table, group_by="photo")
    assert plan.evidence is not None
    size = plan.evidence.size
    assert (size.num_images, size.num_independent, size.num_probed) == (192, 48, 48)
    median = f"median {size.images_per_class_median:g} per class"
    assert verdict.reason.startswith(f"192 images (48 independent), 2 classes ({median})")
    assert size.images_per_class_median == 24
    at = plan.evidence.probe[plan.evidence.last]
    assert f"the last stage separates them at {at.value:.0%} ± {(at.high - at.low) / 2:.0%}" in verdict.reason
    assert at.high - at.low > 0.2  # 48 photos: as wide as theirs, half as wide by file
    assert "as little is left to gain" not in verdict.reason
    assert planned(table)[1].reason.startswith("192 images, 2 classes")
