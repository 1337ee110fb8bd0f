"""The tables agree with timm and with what is built; a search finds what was asked for; nothing heavy is imported."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint
from torch.utils.flop_counter import FlopCounterMode

from finetune.backbone import catalogue
from finetune.backbone.catalogue import (
    CatalogueEntry,
    entries,
    find,
    fold,
    front,
    nearest,
    networks,
    ordered,
    search,
    unfold,
)
from finetune.backbone.groups import head_parameters, layer_groups
from tests.support import mostly_slow

ROOT = Path(__file__).parents[2]
OF_TIMM = {name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("timm.")}
IS_SAME_TIMM = importlib.metadata.version("timm") == catalogue._about("networks.csv")["timm"]
FAMILIES = runpy.run_path(str(Path(__file__).with_name("test_groups.py")))["FAMILIES"]
SEEN = {networks()[name].family for name in FAMILIES if name in networks()}
SMALLEST = [
    min((n for n in networks().values() if n.family == family), key=lambda n: n.num_parameters).name
    for family in catalogue.families()
    if family not in SEEN
]


@pytest.fixture
def another_timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A timm of another version, which has two networks."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0")
    monkeypatch.setattr(catalogue, "registered", lambda folder: frozenset({"resnet18", "test_vit"}))
    networks.cache_clear()
    yield
    networks.cache_clear()


def test_every_name_that_is_offered_is_one_of_the_installed_timm() -> None:
    ours = {name for name, network in networks().items() if network.origin == "timm"}
    assert len(ours) > 1000
    assert ours <= OF_TIMM
    if IS_SAME_TIMM:
        assert ours == OF_TIMM
        assert {entry.full_name for entry in entries() if entry.weights} >= {
            name for name in timm.list_pretrained() if name.partition(".")[0] in OF_TIMM
        }


def test_every_network_of_ours_that_is_registered_is_in_the_table() -> None:
    import finetune.backbone.load  # noqa: F401  registers them

    ours = {name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("finetune.")}
    assert ours <= networks().keys(), "run tools/write_catalogue.py"


def test_the_default_weights_are_those_of_timm() -> None:
    import finetune.backbone.load  # noqa: F401  registers ours

    if IS_SAME_TIMM:
        timms = {
            n.name: n.weights[0] for n in networks().values() if n.weights and n.weights[0].hub != catalogue.PACKAGE
        }
        wrong = [name for name, first in timms.items() if get_pretrained_cfg(name).tag != first.tag]
        assert wrong == []


def test_the_names_in_timms_source_are_those_that_it_registers() -> None:
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert catalogue.registered(Path(str(spec.origin)).parent / "models") == OF_TIMM


@pytest.mark.usefixtures("another_timm")
def test_what_another_timm_does_not_have_is_not_offered() -> None:
    offered = {name for name, network in networks().items() if network.origin == "timm"}
    assert offered == {"resnet18", "test_vit"}
    assert find("resnet50") is None


@pytest.mark.skipif(not IS_SAME_TIMM, reason="the tables are of another timm")
@pytest.mark.parametrize("name", mostly_slow([(name,) for name in SMALLEST], *[(n,) for n in [*SMALLEST][::6]]))
def test_one_network_of_every_other_family_is_what_the_table_says(name: str) -> None:
    network = networks()[name]
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    head = set(head_parameters(model))
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    if not network.weights or network.weights[0].num_classes <= 10_000:
        assert sum(sizes.values()) == network.num_parameters
        assert sum(sizes[key] for key in head) == network.num_head_parameters
    if hasattr(model, "reset_classifier"):
        with torch.device("meta"):
            model.reset_classifier(5)
    groups = layer_groups(model)
    assert tuple(group.name for group in groups) == network.groups
    assert sorted(key for group in groups for key in group.parameters) == sorted(k for k, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "tiny_vit_5m_224"])
def test_the_counts_of_parameters_are_those_that_people_know(name: str) -> None:
    known = {"resnet18": 11_689_512, "vit_tiny_patch16_224": 5_717_416, "tiny_vit_5m_224": 5_392_764}
    assert networks()[name].num_parameters == known[name]


@pytest.mark.skipif(not IS_SAME_TIMM, reason="the tables are of another timm")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_compute_and_input_are_those_of_a_forward_pass(name: str) -> None:
    network = networks()[name]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        size = timm.data.resolve_model_data_config(model)["input_size"]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *size))
    assert network.image_size == tuple(size[1:])
    assert network.gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-3)


def test_the_top1_kept_by_hand_is_in_the_table_at_its_image_size() -> None:
    lines = (ROOT / "tools" / "top1.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    known = {entry.full_name: entry for entry in entries() if entry.top1 is not None}
    assert len(rows) > 1000
    assert len(known) == len(rows) or not IS_SAME_TIMM
    for name, size, top1 in rows:
        if name in known:
            assert (known[name].image_size[0], known[name].top1) == (int(size), float(top1)), name


def test_the_tables_are_small_and_name_their_sources() -> None:
    tables = list((ROOT / "finetune" / "backbone" / "tables").glob("*.csv"))
    assert len(tables) == 2
    assert sum(table.stat().st_size for table in tables) < 400_000
    assert "results-imagenet.csv" in catalogue.sources()["top1"]
    assert "meta device" in catalogue.sources()["networks"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["stem", "layer1", "layer2", "layer3", "layer4", "head"], "stem layer1..4 head"),
        (["stem", *(f"blocks.{i}" for i in range(12)), "head"], "stem blocks.0..11 head"),
        (["stem", "features.3", "features.6", "head"], "stem features.3 features.6 head"),
        (["network.0.0", "network.0.1", "network.1"], "network.0.0 network.0.1 network.1"),
        (["stage", "stage-2", "stage-3", "stage-4"], "stage stage-2..4"),
        (["a.9", "a.10", "a.11", "b.1", "b.2", "b.3"], "a.9..11 b.1..3"),
        ([], ""),
    ],
)
def test_names_of_groups_are_folded_and_unfolded(names: list[str], text: str) -> None:
    assert fold(names) == text
    assert unfold(text) == tuple(names)


def test_a_name_is_found_with_its_tag_and_without() -> None:
    plain, tagged = find("resnet50"), find("resnet50.tv_in1k")
    assert plain is not None
    assert tagged is not None
    assert (plain.name, plain.full_name, plain.licence) == ("resnet50", "resnet50.a1_in1k", "apache-2.0")
    assert (tagged.name, tagged.licence, tagged.top1) == ("resnet50.tv_in1k", "bsd-3-clause", 76.156)
    assert find("resnet50.nonesuch") is None
    assert find("nonesuch") is None


def test_a_network_without_weights_is_found_by_its_name_only() -> None:
    bare = find("mobilenetv2_035")
    assert bare is not None
    assert (bare.name, bare.weights, bare.top1, bare.licence) == ("mobilenetv2_035", None, None, "")
    assert find("mobilenetv2_035.a1_in1k") is None


@pytest.mark.parametrize(
    ("pattern", "there", "missing"),
    [
        ("resnet1", "resnet18", "resnet50"),
        ("RESNET1", "resnet18", "resnet50"),
        ("resnet??", "resnet18", "resnet18d"),
        ("resnet*d", "resnet18d", "resnet18"),
        ("swsl", "resnet18.fb_swsl_ig1b_ft_in1k", "resnet18"),
        ("resnet18.*", "resnet18.tv_in1k", "resnet18d"),
        ("", "resnet18", "resnet18.tv_in1k"),
    ],
)
def test_a_pattern_is_a_glob_or_a_part_of_a_name(pattern: str, there: str, missing: str) -> None:
    names = [entry.name for entry in search(pattern)]
    assert there in names
    assert missing not in names
    assert len(set(names)) == len(names)


def test_a_network_whose_default_weights_do_not_suit_stands_with_others() -> None:
    found = {entry.network.name: entry for entry in search("resnet50", keep=lambda e: e.licence == "bsd-3-clause")}
    assert found["resnet50"].name == "resnet50.tv2_in1k"
    assert "resnet50d" not in found


def test_the_front_is_what_no_other_beats() -> None:
    known = [entry for entry in entries() if entry.top1 is not None and entry.gmacs is not None]
    best = front(entries())

    def is_beaten(entry: CatalogueEntry) -> bool:
        return any(
            (other.gmacs, -(other.top1 or 0)) != (entry.gmacs, -(entry.top1 or 0))
            and (other.gmacs or 0) <= (entry.gmacs or 0)
            and (other.top1 or 0) >= (entry.top1 or 0)
            for other in known
        )

    assert 10 < len(best) < 100
    assert not any(is_beaten(entry) for entry in best)
    assert {entry.full_name for entry in known if not is_beaten(entry)} == {entry.full_name for entry in best}


def test_the_best_and_the_smallest_come_first_and_the_unknown_last() -> None:
    found = search("resnet")
    by_top1 = [entry.top1 for entry in ordered(found, "top1")]
    known = [value for value in by_top1 if value is not None]
    assert known == sorted(known, reverse=True)
    assert by_top1[len(known) :] == [None] * (len(by_top1) - len(known)) != []
    sizes = [entry.network.num_parameters for entry in ordered(found, "params")]
    assert sizes == sorted(sizes)
    names = [entry.full_name for entry in ordered(found, "name")]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnt50", "'resnet50'"),
        ("convnext", "'convnext_"),
        ("vit_tiny_patch16", "'vit_tiny_patch16_224'"),
        ("resnet50.a1", "'resnet50.a1"),
        ("mine50", "'mine_50'"),
    ],
)
def test_the_nearest_names_are_named(name: str, near: str) -> None:
    assert near in nearest(name, ["mine_50"])


def test_a_name_near_nothing_has_no_nearest() -> None:
    assert nearest("q" * 20) == ""


def test_reading_the_tables_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from finetune.backbone import catalogue, stored; catalogue.networks();"
        "[stored.place_of(entry.weights) for entry in catalogue.entries()];"
        "print([m for m in ('torch', 'timm', 'numpy', 'httpx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
