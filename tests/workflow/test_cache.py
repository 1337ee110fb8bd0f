"""Cached and uncached training give the same bits; what is cached once is not computed again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from finetune import cache_entries
from finetune.checkpoint.run_folder import RunFolder
from finetune.features.cache import Known
from finetune.features.sources import trunk_batch
from finetune.prepare import evidence
from finetune.types import Event
from tests.support import decide, mostly_slow, watch_trunks

SAME = ("model/model.safetensors", "checkpoints/last/model.safetensors", "metrics.jsonl", "metrics.json")
EXACT = {"augment.level": "none", "train.patience": "none"}


LAYOUTS = (
    ("head-only", "test_resnet"), ("top-k", "test_resnet"), ("top-k", "test_vit"), ("top-k", "test_convnext"),
    ("gradual", "test_vit"), ("lp-ft", "test_resnet"),
)  # fmt: skip


CASES = [(*layout, size) for size in (7, 20) for layout in LAYOUTS]
QUICK = (("lp-ft", "test_resnet", 7), ("top-k", "test_vit", 20))


@pytest.mark.parametrize(("strategy", "backbone", "batch_size"), mostly_slow(CASES, *QUICK))
def test_cached_and_uncached_training_are_bit_identical(quick_run, strategy, backbone, batch_size) -> None:
    epochs = 4 if strategy == "gradual" else 2
    more = {"backbone": backbone, "batch_size": batch_size, "epochs": epochs, "image_size": 32}
    cached = quick_run(strategy, out="cached", overrides=EXACT, **more)
    uncached = quick_run(strategy, out="uncached", overrides={**EXACT, "cache.features": "none"}, **more)
    memory = quick_run(strategy, out="memory", overrides={**EXACT, "cache.features": "memory"}, **more)
    for name in SAME:
        assert (cached.folder / name).read_bytes() == (uncached.folder / name).read_bytes(), name
        assert (cached.folder / name).read_bytes() == (memory.folder / name).read_bytes(), name


def test_a_second_run_computes_nothing(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_trunks(monkeypatch)
    first = quick_run("head-only", out="first", epochs=6)
    assert sum(seen) == 48 * 4 + 12
    seen.clear()
    again = quick_run("head-only", out="again", epochs=6)
    assert seen == []
    assert (first.folder / SAME[0]).read_bytes() == (again.folder / SAME[0]).read_bytes()


def test_what_a_classifier_knows_is_told_from_what_the_cache_holds(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_run("head-only", out="first", epochs=6, val=0.4)
    seen = watch_trunks(monkeypatch)
    again = quick_run("head-only", out="again", epochs=6, val=0.4)
    assert seen == [] and RunFolder(again.folder).known.is_file()


def test_runs_with_other_tails_share_the_trunk(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_run("head-only", out="first", overrides=EXACT)
    seen = watch_trunks(monkeypatch)
    quick_run("linear-probe", out="second", overrides=EXACT)
    quick_run("head-only", out="third", overrides=EXACT, lr=0.1)
    assert seen == []


def test_another_seed_of_the_weights_shares_nothing(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_run("head-only", out="first", overrides=EXACT)
    seen = watch_trunks(monkeypatch)
    quick_run("head-only", out="second", overrides=EXACT, seed=1)
    assert sum(seen) == 60


def test_a_damaged_cache_is_never_used(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick_run("head-only", out="first", overrides=EXACT)
    for rows in cache_entries.entries_folder().glob("*/rows.bin"):
        content = bytearray(rows.read_bytes())
        content[:: len(content) // 3] = b"\xff" * len(content[:: len(content) // 3])
        rows.write_bytes(content)
    seen = watch_trunks(monkeypatch)
    again = quick_run("head-only", out="again", overrides=EXACT)
    assert 0 < sum(seen) < 60
    assert (first.folder / SAME[0]).read_bytes() == (again.folder / SAME[0]).read_bytes()


def test_a_half_written_cache_is_completed(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick_run("head-only", out="first", overrides=EXACT)
    for index in cache_entries.entries_folder().glob("*/index.bin"):
        index.write_bytes(index.read_bytes()[: 20 * cache_entries.RECORD.itemsize + 5])
    seen = watch_trunks(monkeypatch)
    again = quick_run("head-only", out="again", overrides=EXACT)
    assert sum(seen) == 40
    assert (first.folder / SAME[0]).read_bytes() == (again.folder / SAME[0]).read_bytes()


def test_what_does_not_fit_trains_without_a_cache_and_warns(quick_run) -> None:
    said: list[Event] = []
    quick_run("head-only", overrides={**EXACT, "cache.limit": 1e-6}, on_event=said.append)
    warned = [event.facts["text"] for event in said if event.kind == "warning"]
    assert any("would not fit" in text for text in warned)
    assert cache_entries.list_entries(cache_entries.entries_folder()) == []


def features() -> list[cache_entries.EntryFacts]:
    return [
        one for one in cache_entries.list_entries(cache_entries.entries_folder()) if one.about["kind"] == "features"
    ]


def test_rows_that_lie_there_need_no_room_on_the_disk(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"overrides": {"cache.views": 3}}
    first = tiny_run("head-only", out="first", **more)
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    seen = watch_trunks(monkeypatch)
    again = tiny_run("head-only", out="again", **more)
    assert seen == []
    assert (first.folder / SAME[0]).read_bytes() == (again.folder / SAME[0]).read_bytes()


def test_what_is_missing_needs_room_and_no_more(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"overrides": {"cache.views": 3, "cache.pixels": "none"}}
    tiny_run("head-only", out="first", **more)
    gone = features()[-1]
    row, count = gone.num_bytes // gone.num_rows, gone.num_rows
    cache_entries.clear(cache_entries.entries_folder(), [gone.name])
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * row * count))
    seen = watch_trunks(monkeypatch)
    tiny_run("head-only", out="again", **more)
    assert sum(seen) == count


def test_a_run_evicts_no_view_that_it_needs(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"cache.views": 3, "cache.pixels": "none"}
    tiny_run("head-only", out="first", overrides=more)
    needed = sum(one.num_bytes for one in features())
    cache_entries.clear(cache_entries.entries_folder())
    seen = watch_trunks(monkeypatch)
    for out in ("second", "third"):
        tiny_run("head-only", out=out, overrides={**more, "cache.limit": 1.3 * needed / 2**30})
    assert sum(seen) == 18 * 3 + 6
    assert len(features()) == 3


def test_views_differ_and_are_drawn_anew_each_epoch(quick_run) -> None:
    many = quick_run("head-only", out="many", epochs=6, overrides={"cache.views": 3})
    plain = quick_run("head-only", out="plain", epochs=6, overrides={"cache.views": 1})
    assert (many.folder / SAME[0]).read_bytes() != (plain.folder / SAME[0]).read_bytes()
    kinds = [entry.about["kind"] for entry in cache_entries.list_entries(cache_entries.entries_folder())]
    assert sorted(kinds) == ["features"] * 3 + ["pixels"]


def test_a_file_where_the_cache_should_be_is_no_error(quick_run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    result = quick_run(
        overrides={**EXACT, "cache.folder": str(tmp_path / "file" / "cache")},
        on_event=lambda event: said.append(str(event.facts.get("text"))),
    )
    assert any("kept in memory" in text for text in said)
    assert (result.folder / "metrics.json").is_file()


HEAD, STAGES = {"strategy": "head-only"}, {"strategy": "linear-probe", "probe_at": "layer2+layer4"}
STAGE = {"strategy": "linear-probe", "probe_at": "layer3"}


@pytest.mark.parametrize(
    "more", mostly_slow([(HEAD,), ({"strategy": "linear-probe"},), (STAGES,), (STAGE,)], (HEAD,), (STAGES,))
)
def test_what_the_evidence_computed_is_not_computed_again(
    quick_run, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    name = more["strategy"]
    alone = quick_run(out="alone", **more, overrides=EXACT)
    decide(monkeypatch, "few", "similar", name, probe_at=more.get("probe_at"))
    seen = watch_trunks(monkeypatch)
    fresh = {"cache.folder": str(alone.folder.parent / "fresh")}
    auto = quick_run("auto", out="auto", overrides={**EXACT, **fresh})
    assert auto.strategy == name
    # the evidence, one batch to see that the bits agree, and val
    assert sum(seen) == 48 + trunk_batch(torch.device("cpu")) + 12
    assert (alone.folder / SAME[0]).read_bytes() == (auto.folder / SAME[0]).read_bytes()


def test_rows_that_differ_are_computed(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = quick_run("linear-probe", out="alone", overrides=EXACT)
    known = evidence.Tapped.known

    def wrong(self: evidence.Tapped, model: torch.nn.Module) -> Known | None:
        found = known(self, model)
        return found and Known(found.digests, tuple(tensor + 1e-6 for tensor in found.boundary))

    monkeypatch.setattr(evidence.Tapped, "known", wrong)
    fresh = {"cache.folder": str(alone.folder.parent / "fresh"), "strategy.assume": "few,similar"}
    seen = watch_trunks(monkeypatch)
    auto = quick_run("auto", out="auto", overrides={**EXACT, **fresh})
    assert auto.strategy == "linear-probe"
    assert sum(seen) == 48 + 48 + 12


@pytest.mark.parametrize("norm_statistics", ["frozen", "updated"])
def test_top_k_trains_on_the_cache_whatever_its_norms_do(quick_run, norm_statistics: str) -> None:
    said: list[str] = []
    quick_run(
        "top-k", epochs=6, overrides={**EXACT, "strategy.norm_statistics": norm_statistics},
        on_event=lambda event: said.append(str(event.facts.get("text"))),
    )  # fmt: skip
    assert any("phase top-1: frozen layers run once for each image" in text for text in said)
