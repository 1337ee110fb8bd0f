"""What holds of a folder holds of its shards: the same numbers, exact caches and resume, on a disk and in a store."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.data import sources
from finetune.images import shards as members
from finetune.images.files import read_content
from tests.support import EVERY_STEP, TINY, assert_same, last_weights, stop_after

EXACT = {"augment.level": "none", "train.patience": "none"}
BUCKET = "s3://sets/shapes"


@pytest.fixture
def shards(few: Path, tmp_path: Path) -> str:
    finetune.shard(few, out=tmp_path / "shards", size=30_000)
    return f"wds:{tmp_path / 'shards'}"


def test_shards_give_the_numbers_of_their_folder(tiny_run, few: Path, shards: str, tmp_path: Path) -> None:
    run = tiny_run(data=few).folder
    there, here = (finetune.evaluate(run, data=data).metrics for data in (shards, few))
    assert {name: there[name].value for name in there} == pytest.approx({name: here[name].value for name in here})
    predictions = {Path(p.file).name: p for p in finetune.load(run).predict(shards)}
    (file, *_) = sources.read(shards).samples
    content = read_content(tmp_path / "shards" / file.file)
    (original,) = [path for path in few.rglob("*.jpg") if path.read_bytes() == content]
    (named,) = finetune.load(run).predict(original)
    assert predictions[Path(file.file).name].probabilities == pytest.approx(named.probabilities)
    assert finetune.check(shards, quick=True).num_images == finetune.check(few, quick=True).num_images == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_is_the_same_with_caches_and_without(tiny_run, shards: str, workers: int) -> None:
    more = {"data": shards, "strategy": "top-k", "top_k": 1, "workers": workers}
    cached = tiny_run(out="cached", overrides=EXACT, **more).folder
    none = {**EXACT, "cache.features": "none", "cache.pixels": "none"}
    assert_same(cached, tiny_run(out="uncached", overrides=none, **more).folder)


def test_a_run_on_shards_is_stopped_and_resumed_exactly(tiny_run, shards: str, tmp_path: Path) -> None:
    more = {"data": shards, "overrides": {**EVERY_STEP, "cache.pixels": "none"}}
    whole = tiny_run(out="whole", **more).folder
    with pytest.raises(finetune.Interrupted):
        tiny_run(out="stopped", on_event=stop_after(4, signal.SIGTERM), **more)
    assert finetune.resume(tmp_path / "stopped").folder
    assert_same(whole, tmp_path / "stopped")


def test_a_run_on_shards_is_exported_proven_on_all_of_val(tiny_run, shards: str) -> None:
    run = tiny_run(data=shards).folder
    assert finetune.export(run).path.is_file()
    assert finetune.evaluate(run).num_images > 0


def test_a_shard_that_changes_is_no_longer_the_data_of_a_run(tiny_run, shards: str, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted):
        tiny_run(out="stopped", data=shards, on_event=stop_after(2))
    file = sorted((tmp_path / "shards").glob("*.tar"))[0]
    content = bytearray(file.read_bytes())
    content[800:820] = b"x" * 20
    file.write_bytes(bytes(content))
    with pytest.raises(finetune.CheckpointError, match=r"changed|differ|no longer") as error:
        finetune.resume(tmp_path / "stopped")
    assert "data" in error.value.hint + error.value.message


def test_groups_of_images_in_shards_are_written_into_no_table(shards: str, tmp_path: Path) -> None:
    with pytest.raises(finetune.RecipeError, match="are not files"):
        finetune.check(shards, quick=True, groups=tmp_path / "groups.csv")


def test_webdataset_reads_the_same_bytes_and_labels(few: Path, shards: str) -> None:
    wds = pytest.importorskip("webdataset")
    files = sorted(map(str, Path(shards.removeprefix("wds:")).glob("*.tar")))
    rows = list(wds.WebDataset(files, shardshuffle=False, empty_check=False))
    classes = sources.read(few).classes
    found = sorted((row["jpg"], classes[int(row["cls"])]) for row in rows)
    assert found == sorted((path.read_bytes(), path.parent.name) for path in few.rglob("*.jpg"))


def test_timms_reader_reads_the_same_images_and_classes(few: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    from PIL import Image
    from timm.data.readers.reader_wds import ReaderWds

    table = few.parent / "train.csv"
    rows = [f"{path.relative_to(few.parent)},{path.parent.name},train" for path in sorted(few.rglob("*.jpg"))]
    table.write_text("\n".join(["image,label,split", *rows]))
    finetune.shard(table, out=tmp_path / "timm", size=30_000)
    reader = ReaderWds(str(tmp_path / "timm"), split="train")
    assert len(reader) == 24
    classes = sources.read(few).classes
    found = sorted((image.tobytes(), classes[target]) for image, target in reader)
    wanted = [(Image.open(path).convert("RGB").tobytes(), path.parent.name) for path in few.rglob("*.jpg")]
    assert found == sorted(wanted)


def test_shards_that_webdataset_has_written_are_read(few: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    files = sorted(few.rglob("*.jpg"))
    with wds.ShardWriter(f"{tmp_path}/pets-train-%06d.tar", maxcount=10, verbose=0) as sink:
        for number, file in enumerate(files):
            sink.write({"__key__": f"sample{number:06d}", "jpg": file.read_bytes(), "cls": number % 3})
    manifest = sources.read(f"wds:{tmp_path}")
    assert [s.split for s in manifest.samples] == ["train"] * 24
    assert manifest.classes == ("0", "1", "2")
    assert [read_content(Path(manifest.root, s.file)) for s in manifest.samples] == [f.read_bytes() for f in files]


@pytest.fixture
def store(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store on the loopback, with the shards of a set in it."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    boto3 = pytest.importorskip("boto3")
    server.start()
    s3fs.S3FileSystem.clear_instance_cache()  # of another test's store
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        about = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**about, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="sets")
        finetune.shard(few, out=tmp_path / "local", size=30_000)
        for file in (tmp_path / "local").iterdir():
            client.put_object(Bucket="sets", Key=f"shapes/{file.name}", Body=file.read_bytes())
        yield client
    finally:
        server.stop()


def test_shards_in_an_object_store_are_read_like_those_on_a_disk(store: Any, tmp_path: Path) -> None:
    there, here = sources.read(f"wds:{BUCKET}"), sources.read(f"wds:{tmp_path / 'local'}")
    assert there.root == BUCKET
    assert there.samples == here.samples and there.classes == here.classes
    for sample in there.samples:
        assert read_content(Path(there.root, sample.file)) == read_content(Path(here.root, sample.file))
    assert len(sources.read(f"wds:{BUCKET}/all-{{000000,000001}}.tar").samples) < 24
    assert len(sources.read(f"wds:{BUCKET}/*-000000.tar", needs_two_classes=False).samples) < 24


def test_images_in_a_row_come_from_a_store_in_few_pieces(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = sources.read(f"wds:{BUCKET}")
    asked: list[int] = []
    read = members.read_range
    monkeypatch.setattr(members, "read_range", lambda *args: asked.append(args[2]) or read(*args))
    monkeypatch.setattr(members, "IN_A_ROW", 1)
    for sample in manifest.samples:
        read_content(Path(manifest.root, sample.file))
    num_shards = len({sample.file.partition("/")[0] for sample in manifest.samples})
    assert len(asked) == num_shards < 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_store_is_that_on_the_disk_killed_and_resumed(
    store: Any, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {**TINY, "epochs": 2, "strategy": "full", "workers": workers}
    keys = {**EVERY_STEP, "cache.pixels": "none"}
    local = finetune.run(f"wds:{tmp_path / 'local'}", out=tmp_path / "disk", overrides=keys, **more)
    with pytest.raises(finetune.Interrupted):
        finetune.run(f"wds:{BUCKET}", out=tmp_path / "run", overrides=keys, on_event=stop_after(4), **more)
    finetune.resume(tmp_path / "run")
    weights, wanted = last_weights(tmp_path / "run"), last_weights(local.folder)
    assert all((weights[name] == wanted[name]).all() for name in wanted)
    finetune.evaluate(tmp_path / "run", data=f"wds:{BUCKET}")


def test_a_store_that_is_not_there_is_one_clear_error(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(finetune.DataError, match="no shards there"):
        sources.read("wds:s3://sets/others")
    with pytest.raises(finetune.DataError, match=r"cannot be read|no shards there"):
        sources.read("wds:s3://elsewhere/set")
    with pytest.raises(finetune.DataError, match="nosuch"):
        sources.read("wds:nosuch://bucket/set")
