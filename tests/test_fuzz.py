"""Readers under fire: any bytes, or a valid file with some changed, give a value or one of our errors.

pytest -m slow tests/test_fuzz.py        ten times as many
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from finetune import recipe
from finetune.backbone import folder as timm_folder
from finetune.backbone import load as backbones
from finetune.backbone.weights import read_weights
from finetune.cache_entries import CacheEntry, list_entries, open_entry
from finetune.checkpoint import run_folder, state
from finetune.checkpoint.contents import Beginning, Measured, PlanFile, PlannedGroup, read_as
from finetune.checkpoint.state import Best, Checkpoint, TrainState
from finetune.cli.cache import _what
from finetune.data import sources, split
from finetune.errors import FinetuneError
from finetune.features.store import Layout, RowsOnDisk
from finetune.images.pixels import PixelCache
from finetune.images.transforms import View
from finetune.report import page
from finetune.report.content import report_content
from finetune.settings import FORMAT_VERSION, Recipe
from finetune.tasks import Target
from finetune.types import (
    EpochLine,
    Evidence,
    FreezePlan,
    GroupPlan,
    Interval,
    Manifest,
    Phase,
    Preprocessing,
    Sample,
    Size,
    Verdict,
)
from tests.support import mutated

FEW, MANY = 100, 1000
EXAMPLES = pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def fire(read: Callable[[bytes], object], valid: bytes, examples: int) -> None:
    """Hand a reader any bytes and mutated valid ones; every error must be ours, and have a message."""

    def check(content: bytes) -> None:
        try:
            read(content)
        except FinetuneError as error:
            assert error.message

    read(valid)
    asked = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    asked(given(st.one_of(mutated(valid), mutated(valid), st.binary(max_size=200)))(check))()


def pictures(folder: Path) -> None:
    for number, name in enumerate(["a.png", "b.png", "ü,x.png"]):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)


TABLE = 'image,label,split,who\na.png,ant,train,x\nb.png,bee,train,\n"ü,x.png","ant",val,y\n'.encode()


@EXAMPLES
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_tables(tmp_path: Path, name: str, examples: int) -> None:
    pictures(tmp_path)

    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        found = sources.read(tmp_path / name, group_by="who", needs_two_classes=False)
        assert all((tmp_path / sample.file).is_file() for sample in found.samples)
        assert all(0 <= sample.target.index < len(found.classes) for sample in found.samples)

    fire(read, TABLE.replace(b",", b"\t") if name == "t.tsv" else TABLE, examples)


@EXAMPLES
def test_parquet(tmp_path: Path, examples: int) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures(tmp_path)
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": ["a.png", "b.png"], "label": ["a", "b"]}), stream)

    def read(content: bytes) -> None:
        (tmp_path / "t.parquet").write_bytes(content)
        assert isinstance(sources.read(tmp_path / "t.parquet", needs_two_classes=False), Manifest)

    fire(read, stream.getvalue(), examples)


@EXAMPLES
def test_recipes(tmp_path: Path, examples: int) -> None:
    def read(content: bytes) -> None:
        (tmp_path / "r.toml").write_bytes(content)
        found = recipe.load(tmp_path / "r.toml", overrides={"train.seed": 1})
        assert recipe.loads(recipe.dump(found), source="again") == found

    fire(read, recipe.dump(Recipe()).encode(), examples)


@EXAMPLES
def test_words_of_set(examples: int) -> None:
    def read(content: bytes) -> None:
        key, value = recipe.parse_set(content.decode(errors="surrogateescape"))
        recipe.load(overrides={key: value})

    fire(read, b"optim.lr=0.1", examples)


@pytest.mark.parametrize("opening", ["[", "{a=", '{"a":'])
def test_what_is_nested_without_end_is_an_error(tmp_path: Path, opening: str) -> None:
    deep = opening * 100_000
    (tmp_path / "r.toml").write_text(f"a = {deep}")
    (tmp_path / "config.json").write_text(deep)
    (tmp_path / "entries" / "x").mkdir(parents=True)
    (tmp_path / "entries" / "x" / "about.json").write_text(deep)
    recipe.parse_set(f"data.path={deep}")
    for read in (
        lambda: recipe.load(tmp_path / "r.toml"),
        lambda: run_folder.read_json(tmp_path / "config.json"),
        lambda: timm_folder.read_config(tmp_path),
    ):
        with pytest.raises(FinetuneError):
            read()
    assert [entry.about for entry in list_entries(tmp_path / "entries")] == [{}]


@EXAMPLES
def test_json_of_run_folders(tmp_path: Path, examples: int) -> None:
    def read(content: bytes) -> None:
        (tmp_path / "plan.json").write_bytes(content)
        run_folder.read_json(tmp_path / "plan.json")

    written = json.dumps({"classes": ["a", "ü\udcff"], "x": [1, 2.5, None]}, ensure_ascii=False)
    fire(read, written.encode(errors="surrogateescape"), examples)


INTERVAL = Interval(0.5, 0.25, 0.75)
SIZE = Size(8, 2, 4, 4.0, 1.0, 8, INTERVAL)
MEASURED = Measured(
    Evidence(SIZE, {"stem": INTERVAL, "layer1": INTERVAL}, INTERVAL, INTERVAL, 0.5, 1.5, INTERVAL, {"stem": 0.5}),
    Verdict("few", "similar", "head-only", "few and similar", INTERVAL, INTERVAL),
)
PLAN = PlanFile(
    data="8 images",
    groups=(PlannedGroup("stem", 10), PlannedGroup("head", 4)),
    phases=(Phase("head", FreezePlan((GroupPlan("stem", "none"), GroupPlan("head", "all"))), epochs=2, lr=0.1),),
    notes=("a note",),
)
BEGINNING = Beginning({"train": {"seed": 0}}, {"torch": "2"}, "00ff", 1, [])
LAID: dict[str, str] = {
    "began.json": json.dumps({"format_version": FORMAT_VERSION, **asdict(BEGINNING)}),
    "plan.json": json.dumps(asdict(PLAN)),
    "evidence.json": json.dumps(asdict(MEASURED)),
    "environment.json": json.dumps({"packages": {"finetune": "0.1", "torch": "2", "timm": "1"}, "threads": 1}),
    "problems.csv": 'file,reason\r\n"ü,x.png",the file is empty\r\n\'=a.png,cut\r\n',
}


@EXAMPLES
@pytest.mark.parametrize("name", LAID)
def test_what_a_run_goes_on_from_and_its_report_shows(tmp_path: Path, name: str, examples: int) -> None:
    """What is read without an error makes a report."""
    folder = run_folder.RunFolder(tmp_path)
    for other, content in LAID.items():
        (tmp_path / other).write_text(content)

    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        read_as(Beginning, folder.began, has_format=True)
        told = report_content(folder, Recipe(), {}, [], delivered_epoch=1)
        page.write(folder.report, {**told, "computed": [], "refit": None})

    fire(read, LAID[name].encode(), examples)


@EXAMPLES
def test_splits(tmp_path: Path, examples: int) -> None:
    samples = [Sample(f"{n}/=x,ü{n}.png", Target(n % 2), "train", "g" * n or None, f"{n:032x}") for n in range(4)]
    split.write(Manifest("/data", ("=ant", "bee"), tuple(samples)), tmp_path / "valid.csv")

    def read(content: bytes) -> None:
        (tmp_path / "split.csv").write_bytes(content)
        found = split.read(tmp_path / "split.csv", root="/data", classes=("=ant", "bee"))
        assert all(bytes.fromhex(sample.digest) is not None and sample.file for sample in found.samples)

    fire(read, (tmp_path / "valid.csv").read_bytes(), examples)


def checkpoint(place: Path) -> Path:
    now = TrainState(
        phase=1, epoch=2, best=Best(0.5, 1.25, 0, 1), history=[EpochLine("head", 1, 0.1, 1.0, 0.5, None, None)]
    )
    state.save(place, {"x": torch.zeros(3)}, {"0.step": torch.ones(1)}, now)
    return place


@EXAMPLES
@pytest.mark.parametrize("name", [state.STATE, state.MODEL, state.OPTIMISER, state.COMPLETE])
@pytest.mark.parametrize("is_signed", [False, True], ids=["as it lies", "with its hash"])
def test_checkpoints(tmp_path: Path, name: str, is_signed: bool, examples: int) -> None:
    """Damage is found by the hash; where the hash fits too, every field is of its type still."""
    place = checkpoint(tmp_path / "last")
    kinds = {field.name: type(getattr(TrainState(), field.name)) for field in fields(TrainState)}
    valid, complete = (place / name).read_bytes(), (place / state.COMPLETE).read_bytes()

    def read(content: bytes) -> None:
        (place / state.COMPLETE).write_bytes(complete)
        (place / name).write_bytes(content)
        if is_signed and name != state.COMPLETE:
            (place / state.COMPLETE).write_text(json.dumps(state._digests(place)))
        found = state.load(place)
        if found is None:  # pragma: no cover - what is damaged may be moved away
            checkpoint(place)
            return
        assert isinstance(found, Checkpoint)
        for key in ("phase", "epoch", "step", "is_initialised", "history", "scaler"):
            assert type(getattr(found.state, key)) is kinds[key]
        assert all(isinstance(tensor, torch.Tensor) for tensor in (*found.model.values(), *found.optimiser.values()))

    fire(read, valid, examples)


def test_a_state_with_fields_of_other_types_is_an_error(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "last")
    good = json.loads((place / state.STATE).read_text())
    wrong = [{"phase": "1"}, {"best": [1]}, {"history": {}}, {"epoch": 1.5}, {"best": {"top1": 1}}, {"phase": None}]
    for change in [*wrong, None]:
        (place / state.STATE).write_text(json.dumps([] if change is None else {**good, **change}))
        (place / state.COMPLETE).write_text(json.dumps(state._digests(place)))
        with pytest.raises(FinetuneError, match="is not a valid checkpoint"):
            state.load(place)


def test_a_checkpoint_of_another_model_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(FinetuneError, match="another model's"):
        state.restore_model(model, {"x": torch.zeros(1)})
    for key in ("5.step", "x", "-1.step", "0", "٣.step"):
        with pytest.raises(FinetuneError, match="another optimiser"):
            state.restore_optimiser(torch.optim.AdamW(model.parameters()), {key: torch.zeros(1)})


CONFIG = {
    "architecture": "test_resnet", "num_classes": 2, "label_names": ["a", "b"], "model_args": {"drop_rate": 0.1},
    "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9,
                       "interpolation": "bicubic", "crop_mode": "center", "first_conv": "conv1", "num_classes": 2},
}  # fmt: skip


@EXAMPLES
def test_configs_of_timm_folders(tmp_path: Path, examples: int) -> None:
    def read(content: bytes) -> None:
        (tmp_path / "config.json").write_bytes(content)
        config = timm_folder.read_config(tmp_path)
        assert all(isinstance(name, str) for name in config.classes)

    fire(read, json.dumps(CONFIG).encode(), examples)


WRONG = [None, True, -1, 0, 10**12, 1.5, float("nan"), "", "x", [], [1], ["a"] * 3, {}, {"a": 1}]
PLACES = [
    *CONFIG,
    *(f"pretrained_cfg.{key}" for key in CONFIG["pretrained_cfg"]),
    "model_args.drop_rate",
    "model_args.x",
]  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", PLACES)
def test_a_config_with_another_value_anywhere_builds_or_is_an_error(tmp_path: Path, place: str) -> None:
    for value in WRONG:
        config = json.loads(json.dumps(CONFIG))
        section, _, key = place.rpartition(".")
        (config[section] if section else config)[key] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            of = backbones.architecture("auto", weights=tmp_path, pretrained=False)
            backbones.load(of, num_classes=2)
        except FinetuneError as error:
            assert error.message


@EXAMPLES
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_weights(tmp_path: Path, name: str, examples: int) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    stream = io.BytesIO()
    torch.save(tensors, stream)

    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(tmp_path / name).values())

    fire(read, stream.getvalue() if name == "x.pth" else save(tensors), examples)


ROWS = [np.full(24, number, dtype=np.uint8) for number in range(5)]
DIGESTS = [f"{number:032x}" for number in range(5)]


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[CacheEntry]:
    made = open_entry(tmp_path, {"kind": "pixels", "root": "/x", "side": 2})
    made.add(DIGESTS, ROWS, heights=[2] * 5)
    yield made


def assert_right_or_absent(entry: CacheEntry) -> None:
    """Each row holds a plain view of 2x2 pixels and a smaller image of the same size."""
    found = PixelCache(CacheEntry(entry.folder), Preprocessing((2, 2), (0.5,) * 3, (0.5,) * 3)).find(DIGESTS)
    for index, row in enumerate(ROWS):
        plain, small = found.tensor(index, View(as_tensor)), found.tensor(index, View(as_tensor, side=2))
        assert (plain is None) == (small is None)
        if plain is not None and small is not None:
            assert plain.numpy().tobytes() + small.numpy().tobytes() == row.tobytes()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


@EXAMPLES
@pytest.mark.parametrize("name", ["index.bin", "rows.bin"])
def test_cached_pictures_are_right_or_absent(entry: CacheEntry, name: str, examples: int) -> None:
    file = entry.folder / name
    valid = {other: (entry.folder / other).read_bytes() for other in ("index.bin", "rows.bin")}

    def read(content: bytes) -> None:
        for other, whole in valid.items():
            (entry.folder / other).write_bytes(whole)
        file.write_bytes(content)
        assert_right_or_absent(entry)
        list_entries(entry.folder.parent)

    fire(read, valid[name], examples)


@EXAMPLES
@pytest.mark.parametrize("name", ["index.bin", "rows.bin"])
def test_cached_features_are_right_or_computed_again(entry: CacheEntry, name: str, examples: int) -> None:
    file = entry.folder / name
    valid = {other: (entry.folder / other).read_bytes() for other in ("index.bin", "rows.bin")}

    def read(content: bytes) -> None:
        for other, whole in valid.items():
            (entry.folder / other).write_bytes(whole)
        file.write_bytes(content)
        kept = RowsOnDisk(CacheEntry(entry.folder), Layout(((6,),), "float32"))
        kept.drop_damaged(DIGESTS)
        lost = [index for index, digest in enumerate(DIGESTS) if digest not in kept]
        if lost:
            kept.add([DIGESTS[index] for index in lost], np.stack([ROWS[index] for index in lost]))
        assert kept.drop_damaged(DIGESTS) == []
        np.testing.assert_array_equal(kept.mapped()[kept.places(DIGESTS)], np.stack(ROWS))

    fire(read, valid[name], examples)


def test_any_bit_of_the_index_may_flip(entry: CacheEntry) -> None:
    """An image or a row of features is right or counts as lost, and what is added lies in step with the rest."""
    index, num_lost = entry.index_file.read_bytes(), 0
    entry.rows_file.write_bytes(entry.rows_file.read_bytes() + bytes(1000))  # as a killed process leaves it
    for place in range(8 * len(index)):
        damaged = bytearray(index)
        damaged[place // 8] ^= 1 << place % 8
        entry.index_file.write_bytes(damaged)
        assert_right_or_absent(entry)
        kept = RowsOnDisk(CacheEntry(entry.folder), Layout(((6,),), "float32"))
        kept.drop_damaged(DIGESTS)
        whole = [number for number in range(5) if DIGESTS[number] in kept]
        places = kept.places([DIGESTS[number] for number in whole])
        np.testing.assert_array_equal(kept.mapped()[places], np.stack(ROWS)[whole])
        assert kept.entry.end % kept.layout.row_bytes == 0
        num_lost += len(ROWS) - len(whole)
    assert num_lost >= 8 * len(index)  # each flip costs the record that it is in, at the least


@pytest.mark.parametrize(
    "about",
    [{"kind": "pixels", "root": ""}, {"kind": "looks", "root": "/"}, {"network": {"name": ""}}, {"network": {}}],
)
def test_an_entry_that_does_not_say_what_it_is_of(about: dict[str, Any]) -> None:
    assert _what(about)[0] == "?"


@EXAMPLES
def test_what_an_entry_says_of_itself(entry: CacheEntry, examples: int) -> None:
    about = entry.folder / "about.json"

    def read(content: bytes) -> None:
        about.write_bytes(content)
        for facts in list_entries(entry.folder.parent):
            assert json.loads(json.dumps(asdict(facts)))["name"] == entry.folder.name
            assert all(map(str, _what(facts.about)))

    fire(read, about.read_bytes(), examples)
