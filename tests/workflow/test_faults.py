"""What may go wrong while a run runs: one error with the way out, what was done is kept, it can be gone on with."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune import cache_entries
from finetune.data import loaders
from finetune.images import decode
from finetune.optim import losses
from finetune.runs import single as running
from finetune.runs import start
from finetune.train import loop
from finetune.train.step import Step
from finetune.types import Event
from tests.support import EVERY_STEP, TINY, assert_same, unfinished_files

OnEvent = Callable[[Event], None]


def at(kind: str, number: int, do: Callable[[], object], **facts: object) -> OnEvent:
    """Return an `on_event` that does something at the event of a kind with this number, from 1 on."""
    seen = 0

    def on_event(event: Event) -> None:
        nonlocal seen
        if event.kind == kind and facts.items() <= event.facts.items():
            seen += 1
            if seen == number:
                do()

    return on_event


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def fails(kind: type[BaseException], *arguments: object) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise kind(*arguments)

    return fail


@pytest.fixture(scope="module")
def whole(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing went wrong with; how often checkpoints are written and what is cached changes nothing."""
    place = tmp_path_factory.mktemp("whole") / "run"
    return finetune.run(few, strategy="full", epochs=2, out=place, **TINY).folder


def resumed_is_exact(whole: Path, tmp_path: Path) -> None:
    finetune.resume(tmp_path / "run")
    assert_same(whole, tmp_path / "run")
    assert unfinished_files(tmp_path / "run") == []


def test_memory_that_runs_out_names_the_flag_and_loses_nothing(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        entropy, calls = losses.cross_entropy, []

        def out_of_memory(*arguments: Any, **more: Any) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 4:  # the first step of the second epoch
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return entropy(*arguments, **more)

        patched.setattr(losses, "cross_entropy", out_of_memory)
        with pytest.raises(finetune.ResourceError, match="memory ran out with 8 images") as failed:
            tiny_run(overrides=EVERY_STEP)
    assert "--micro-batch 4" in failed.value.hint
    assert f"finetune run --resume {tmp_path / 'run'}" in failed.value.hint
    resumed_is_exact(whole, tmp_path)


def test_a_worker_that_dies_is_told_and_nothing_is_lost(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    parent = os.getpid()

    class Deadly(loaders.ImageDataset):
        def __getitem__(self, key):
            if os.getpid() != parent and key[1] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(key)

    with monkeypatch.context() as patched:
        patched.setattr("finetune.prepare.passes.ImageDataset", Deadly)
        with pytest.raises(finetune.ResourceError, match="a process that decodes images died") as failed:
            tiny_run(workers=1)
    assert "--workers 0" in failed.value.hint
    finetune.resume(tmp_path / "run", workers=0)
    assert_same(whole, tmp_path / "run")


def test_a_file_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(
    tiny_run, few, whole, tmp_path: Path
) -> None:
    shutil.copytree(few, tmp_path / "own")
    taken = sorted((tmp_path / "own").rglob("*.jpg"))
    elsewhere = tmp_path / "elsewhere"
    more = {"data": tmp_path / "own", "overrides": {"cache.pixels": "none"}}
    with pytest.raises(finetune.DataError, match=r"could be read when the data was scanned and cannot now") as failed:
        tiny_run(on_event=at("epoch", 1, lambda: (tmp_path / "own").rename(elsewhere)), **more)
    assert any(str(file.relative_to(tmp_path / "own")) in failed.value.message for file in taken)
    assert "finetune run --resume" in failed.value.hint
    elsewhere.rename(tmp_path / "own")
    finetune.resume(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


def test_a_folder_that_becomes_unreadable_is_named(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        deny = lambda: patched.setattr(decode, "read_content", fails(PermissionError, 13, "Permission denied"))  # noqa: E731
        with pytest.raises(finetune.DataError, match="Permission denied"):
            tiny_run(on_event=at("epoch", 1, deny), overrides={"cache.pixels": "none"})
    resumed_is_exact(whole, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_good_checkpoint(
    tiny_run, whole, tmp_path: Path, monkeypatch, value: float
) -> None:
    with monkeypatch.context() as patched:
        take, calls = Step.take, []

        def diverging(*arguments: object, **more: object) -> object:
            calls.append(1)
            return (torch.tensor(value), torch.tensor(0)) if len(calls) == 5 else take(*arguments, **more)

        begins = at("phase", 1, lambda: patched.setattr(Step, "take", diverging))  # before, one is taken to be counted
        with pytest.raises(
            finetune.TrainingError, match=f"the loss is {value} in phase full, epoch 2, step 2"
        ) as failed:
            tiny_run(overrides=EVERY_STEP, on_event=begins)
    assert "Lower the learning rate (--lr " in failed.value.hint
    assert "--allow recipe" in failed.value.hint
    resumed_is_exact(whole, tmp_path)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        take, calls = Step.take, []

        def spoiling(step: Step, *arguments: object, **more: object) -> object:
            calls.append(1)
            done = take(step, *arguments, **more)
            if len(calls) == 4:
                with torch.no_grad():
                    next(step.model.parameters()).fill_(float("nan"))
            return done

        begins = at("phase", 1, lambda: patched.setattr(Step, "take", spoiling))
        with pytest.raises(finetune.TrainingError, match="is no longer finite in phase full, epoch 2"):
            tiny_run(overrides=EVERY_STEP, on_event=begins)
    for place in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(place / "model.safetensors").values())
    resumed_is_exact(whole, tmp_path)


def test_a_val_loss_that_is_not_finite_stops_before_the_epoch_counts(
    tiny_run, whole, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patched:
        logits = (torch.full((5, 6), float("nan")), torch.zeros(5, dtype=torch.long))
        patched.setattr(loop, "collect_logits", lambda *_, **__: logits)
        with pytest.raises(finetune.TrainingError, match="the val loss is nan after epoch 1"):
            tiny_run()
    resumed_is_exact(whole, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_data_is_scanned_leaves_nothing(tiny_run, tmp_path: Path, number, code: int) -> None:
    with pytest.raises(finetune.Interrupted, match="before anything was trained") as stopped:
        tiny_run(on_event=at("progress", 1, send(number)))
    assert stopped.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_a_signal_to_the_workers_too_stops_the_run_where_it_is(tiny_run, whole, tmp_path: Path) -> None:
    """What a terminal or a scheduler does: every process of the group gets it. Workers leave it to the run."""

    def send_to_all() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGTERM)
            os.kill(worker.pid or 0, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(finetune.Interrupted, match="SIGTERM"):
        tiny_run(workers=1, on_event=at("step", 4, send_to_all))
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()
    finetune.resume(tmp_path / "run", workers=0)
    assert_same(whole, tmp_path / "run")


def test_a_signal_that_workers_die_of_is_a_signal(tiny_run, whole, tmp_path: Path) -> None:
    def send_to_all() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)

    with pytest.raises(finetune.Interrupted, match="SIGTERM"):
        tiny_run(workers=1, on_event=at("step", 4, send_to_all))
    finetune.resume(tmp_path / "run", workers=0)
    assert_same(whole, tmp_path / "run")


@pytest.mark.parametrize("event", ["val", "evaluation"])
def test_a_signal_while_val_is_measured_is_answered_and_nothing_is_lost(
    tiny_run, whole, tmp_path: Path, monkeypatch, event: str
) -> None:
    with monkeypatch.context() as patched:
        module = loop if event == "val" else running
        collect = module.collect_logits

        def interrupted(model, batches, **more: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return collect(model, batches, **more)

        patched.setattr(module, "collect_logits", interrupted)
        with pytest.raises(finetune.Interrupted, match="what was done is kept") as stopped:
            tiny_run()
    assert stopped.value.exit_code == 143
    resumed_is_exact(whole, tmp_path)


def test_a_second_signal_stops_at_once_with_the_code_of_the_first(tiny_run, whole, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted, match="SIGTERM") as stopped:
        tiny_run(on_event=at("step", 2, twice))
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run" / "checkpoints").exists()
    resumed_is_exact(whole, tmp_path)


def test_a_clock_that_goes_backwards_changes_nothing(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now - 86400 * len(os.listdir(tmp_path)))  # noqa: PTH208
        with pytest.raises(finetune.Interrupted):
            tiny_run(on_event=at("step", 4, send(signal.SIGTERM)))
        patched.setattr(time, "time", lambda: 1.0)
        finetune.resume(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


def test_a_run_that_is_still_running_is_not_resumed(tiny_run, whole, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(start, "LINGER", 0.2)
    refused: list[finetune.ResourceError] = []

    def meddle() -> None:
        with pytest.raises(finetune.ResourceError, match="another process is writing into") as failed:
            finetune.resume(tmp_path / "run")
        refused.append(failed.value)

    tiny_run(on_event=at("step", 4, meddle))
    assert len(refused) == 1
    assert_same(whole, tmp_path / "run")


def test_a_second_run_into_the_same_folder_is_refused_from_the_first_moment(tiny_run, tmp_path: Path) -> None:
    refused: list[finetune.ResourceError] = []

    def meddle() -> None:
        with pytest.raises(finetune.ResourceError, match=r"is not empty|another process") as failed:
            tiny_run()
        refused.append(failed.value)

    tiny_run(on_event=at("progress", 1, meddle))
    assert len(refused) == 1
    assert (tmp_path / "run" / "metrics.json").is_file()


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda _: SimpleNamespace(total=2**40, used=2**40, free=0))


def twice() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("stopped", [("step", 4), ("progress", 1, "cache features")], ids=["trained", "filled"])
def test_a_cached_phase_goes_on_cached_or_not_at_all(tiny_run, tmp_path: Path, monkeypatch, stopped, views) -> None:
    """Stopped after a checkpoint, and before the first one: while the cache is being filled."""
    kind, number, *task = stopped
    more = {"strategy": "head-only", "overrides": {"cache.views": views}}
    facts = {"task": task[0]} if task else {}
    with pytest.raises(finetune.Interrupted):
        tiny_run(on_event=at(kind, number, send(signal.SIGTERM), **facts), **more)
    cache_entries.clear(cache_entries.entries_folder())
    with monkeypatch.context() as patched:
        full_disk(patched)
        with pytest.raises(finetune.ResourceError, match="began on the feature cache, which no longer fits") as failed:
            finetune.resume(tmp_path / "run")
    assert "--allow recipe" in failed.value.hint
    resumed = finetune.resume(tmp_path / "run")
    assert_same(tiny_run(out="whole", **more).folder, resumed.folder)


def test_a_cached_phase_goes_on_with_the_rows_that_lie_there_on_a_full_disk(
    tiny_run, tmp_path: Path, monkeypatch
) -> None:
    more = {"strategy": "head-only", "overrides": {"cache.views": 2}}
    with pytest.raises(finetune.Interrupted):
        tiny_run(on_event=at("step", 4, send(signal.SIGTERM)), **more)
    with monkeypatch.context() as patched:
        full_disk(patched)
        finetune.resume(tmp_path / "run")
    assert_same(tiny_run(out="whole", **more).folder, tmp_path / "run")


@pytest.mark.parametrize("stop", [send(signal.SIGTERM), twice], ids=["with a checkpoint", "before the first one"])
def test_an_uncached_phase_goes_on_uncached_when_there_is_room_again(
    tiny_run, tmp_path: Path, monkeypatch, stop
) -> None:
    more = {"strategy": "head-only", "overrides": {"cache.views": 2, "cache.pixels": "none"}}
    with monkeypatch.context() as patched:
        full_disk(patched)
        with pytest.raises(finetune.Interrupted):
            tiny_run(on_event=at("step", 2, stop), **more)
        whole = tiny_run(out="whole", **more).folder
    finetune.resume(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


def test_a_phase_may_be_told_to_go_on_without_the_cache(tiny_run, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", overrides={"cache.views": 2}, on_event=at("step", 4, send(signal.SIGTERM)))
    without = {"cache.features": "none"}
    with pytest.raises(finetune.CheckpointError, match=r"cache\.features"):
        finetune.resume(tmp_path / "run", overrides=without)
    finetune.resume(tmp_path / "run", overrides=without, allow=["recipe"])


def test_another_limit_of_the_cache_is_a_change_of_the_recipe(tiny_run, tmp_path: Path) -> None:
    """Whether the phases to come fit depends on it."""
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", on_event=at("step", 4, send(signal.SIGTERM)))
    with pytest.raises(finetune.CheckpointError, match=r"cache\.limit 20\.0 -> 1\.0"):
        finetune.resume(tmp_path / "run", overrides={"cache.limit": 1.0})


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1}', '{"format_version": 1, "phases": {"0": 2}}'])
def test_a_damaged_word_on_how_phases_began_is_one_error(tiny_run, tmp_path: Path, content: str) -> None:
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", overrides={"cache.views": 2}, on_event=at("step", 4, send(signal.SIGTERM)))
    (tmp_path / "run" / "cached.json").write_text(content)
    with pytest.raises(finetune.CheckpointError, match=r"cached\.json"):
        finetune.resume(tmp_path / "run")


@pytest.mark.parametrize("what", ["features", "pixels"])
def test_who_waits_for_another_process_says_so_and_can_be_stopped(tiny_run, tmp_path: Path, monkeypatch, what) -> None:
    monkeypatch.setattr(cache_entries, "SILENCE", 0.05)
    more = {"strategy": "head-only", "overrides": {"cache.views": 2}}
    whole = tiny_run(out="whole", **more).folder
    folder = cache_entries.entries_folder()
    held = [
        cache_entries.CacheEntry(folder / one.name)
        for one in cache_entries.list_entries(folder)
        if one.about["kind"] == what
    ]
    for entry in held:
        entry.lock.acquire()
    said: list[str] = []

    def stop_who_waits(event: Event) -> None:
        if event.kind == "warning":
            said.append(event.facts["text"])
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(finetune.Interrupted):
        tiny_run(on_event=stop_who_waits, **more)
    assert len(said) == 1
    assert said[0].startswith("waiting for another process that fills the ")
    for entry in held:
        entry.lock.release()
    again = finetune.resume(tmp_path / "run") if what == "features" else tiny_run(**more)
    assert_same(whole, again.folder)
