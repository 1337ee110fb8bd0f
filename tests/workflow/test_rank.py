"""Candidates are measured on train as a head-only run would see it, kept, and told when they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import finetune
from finetune.backbone import load as backbones
from finetune.backbone.groups import head_modules
from finetune.data import checks
from finetune.features.extract import before_head
from finetune.features.scores import h_score, knn_top1, logme
from finetune.images import decode
from finetune.images.decode import read_rgb
from finetune.images.transforms import normalise, plain_view
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import read_data
from finetune.workflow import rank as ranking
from finetune.workflow.rank import rank
from tests.support import loo_ridge, random_folders, watch_trunks

EXAMINE = decode.examine
TINY = ("test_resnet", "test_vit", "test_convnext")
SIZE = 64
QUICK = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of weights of tiny networks, at random."""
    return random_folders(tmp_path_factory.mktemp("weights"), TINY, side=SIZE)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return watch_trunks(monkeypatch)


def test_scores_are_those_of_the_features_of_train_images(drawn: Path, weights: Path) -> None:
    found = {one.name: one for one in rank(drawn, [weights / name for name in TINY], **QUICK).ranking.candidates}
    manifest = read_data(recipe_of(settings={"data": drawn}))
    for name in TINY:
        backbone = backbones.load(backbones.architecture("auto", weights=weights / name), num_classes=6)
        view, train = plain_view(backbone.preprocessing), manifest.split("train")
        images = torch.stack([view(read_rgb(Path(manifest.root) / sample.file)) for sample in train])
        with torch.no_grad():
            tap = before_head(backbone.model, head_modules(backbone.model)[0])
            (features,) = tap(normalise(images, backbone.preprocessing))
        targets = torch.tensor([sample.target.index for sample in train])
        one = found[name]
        assert len(one.judged) == len(train) == 48
        assert one.predicted.value == pytest.approx(loo_ridge(features, targets), abs=0.03)
        assert one.knn_top1 == pytest.approx(knn_top1(features, targets), abs=0.03)
        assert one.logme == pytest.approx(logme(features, targets), abs=1e-2)
        assert one.h_score == pytest.approx(h_score(features, targets), abs=1e-2)
        assert one.image_size == (SIZE, SIZE)
        assert one.num_parameters == sum(g.num_parameters for g in backbone.groups if not g.is_head)
        assert 0 < one.gmacs < 0.1


def test_a_second_ranking_computes_no_features(drawn: Path, weights: Path, seen: list[int]) -> None:
    first = rank(drawn, [weights / "test_resnet"], sample=30, **QUICK)
    assert sum(seen) == 30 == first.num_images
    seen.clear()
    again = rank(drawn, [weights / "test_resnet"], sample=30, **QUICK)
    assert seen == []
    assert again.ranking == first.ranking


def test_candidates_of_one_size_decode_a_picture_once(
    drawn: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_data(recipe_of(settings={"data": drawn}))  # scanned before
    decoded: list[object] = []
    for module in (checks, decode):
        monkeypatch.setattr(module, "examine", lambda *given, **more: decoded.append(given) or EXAMINE(*given, **more))
    rank(drawn, [weights / name for name in TINY], sample=30, **QUICK)
    assert len(decoded) == 30


def test_a_run_of_the_head_finds_the_features_of_the_ranking(
    drawn: Path, weights: Path, seen: list[int], tmp_path: Path
) -> None:
    rank(drawn, [weights / "test_resnet"], **QUICK)
    assert sum(seen) == 48
    seen.clear()
    plain, out = {"augment.level": "none"}, tmp_path / "run"
    finetune.run(drawn, strategy="linear-probe", weights=weights / "test_resnet", out=out, overrides=plain, **QUICK)
    assert sum(seen) == 12  # val


def test_one_that_cannot_be_used_is_told_and_does_not_stop_the_others(drawn: Path, weights: Path) -> None:
    file = weights / "test_resnet" / "config.json"
    names = ["nosuch", weights / "test_resnet", "resnet18.a1_in1k", weights, weights / "test_vit@63", file]
    events: list[str] = []
    found = rank(drawn, names, on_event=lambda event: events.append(str(event.facts.get("text"))), **QUICK)
    assert [one.name for one in found.ranking.candidates] == ["test_resnet"]
    reasons = {failure.name: failure.reason for failure in found.failed}
    assert "unknown backbone" in reasons["nosuch"]
    assert "not on this machine" in reasons["resnet18"]
    assert "not a timm folder" in reasons[weights.name]
    assert "is a file" in reasons["config.json"]
    assert "not a multiple" in reasons["test_vit@63"]
    assert len(reasons) == 5
    assert all("--weights" not in failure.hint for failure in found.failed)
    assert any(text.startswith("nosuch is left out: unknown backbone") for text in events)


def test_all_failing_is_one_error_that_names_each(drawn: Path) -> None:
    with pytest.raises(finetune.BackboneError, match="none of the 2 candidates") as caught:
        rank(drawn, ["nosuch", "resnet18.a1_in1k"], **QUICK)
    assert all(name in caught.value.message for name in ("nosuch", "resnet18"))
    assert caught.value.hint
    with pytest.raises(finetune.BackboneError, match="unknown backbone 'nosuch'"):
        rank(drawn, ["nosuch"], **QUICK)


def test_the_same_backbone_at_two_sizes_is_two_candidates(drawn: Path, weights: Path) -> None:
    at = str(weights / "test_resnet")
    found = rank(drawn, [at, f"local-dir:{at}@32", f"{at}@32", at], sample=24, **QUICK).ranking.candidates
    assert sorted(one.image_size[0] for one in found) == [32, 32, SIZE]
    smaller, larger = sorted(found, key=lambda one: one.gmacs)[::2]
    assert smaller.gmacs == pytest.approx(larger.gmacs / 4, rel=0.05)
    assert len({one.name for one in found}) == 3


def test_without_candidates_the_short_list_is_taken_as_far_as_it_is_here(
    drawn: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rank(drawn, sample=24, **QUICK).ranking.recommended == "embedded"
    monkeypatch.setattr(ranking, "on_this_machine", lambda: (str(weights / "test_resnet"),))
    assert rank(drawn, sample=24, **QUICK).ranking.recommended == "test_resnet"


def test_a_sample_too_small_for_the_classes_is_an_error(drawn: Path, weights: Path) -> None:
    with pytest.raises(finetune.RecipeError, match="6 classes need 12 images"):
        rank(drawn, [weights / "test_resnet"], sample=11, **QUICK)


def test_no_data_stops_at_once_whatever_the_candidates(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(finetune.DataError, match="no such file or folder"):
        rank(tmp_path / "nowhere", [weights / "test_resnet"], **QUICK)


def test_a_ranking_leaves_the_strategy_of_the_recipe_aside(drawn: Path, weights: Path) -> None:
    found = rank(
        drawn, [weights / "test_resnet"], sample=24, overrides={"strategy.name": "top-k", "strategy.top_k": 2}, **QUICK
    )
    assert found.num_images == 24


def test_an_image_size_of_0_is_refused_and_not_taken_for_none(drawn: Path) -> None:
    with pytest.raises(finetune.BackboneError, match=r"backbone.image_size = 0: must be"):
        rank(drawn, ["test_resnet@0", "test_vit"], sample=24, **QUICK)
