"""The split: stratified, seeded, and without a leak, whatever the groups and copies."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from finetune.data.clashes import leaks
from finetune.data.split import assign, in_folds, read, units_of, write
from finetune.errors import CheckpointError, DataError
from finetune.randomness import derive
from finetune.tasks import Target
from finetune.types import SPLITS, Manifest, Sample, Split

SEEDS = range(30)


def sample(
    file: str, label: int = 0, *, split: Split | None = None, group: str | None = None, digest: str = ""
) -> Sample:
    return Sample(file, Target(label), split, group, digest or blake2b(os.fsencode(file), digest_size=16).hexdigest())


def manifest_of(*samples: Sample) -> Manifest:
    num_classes = 1 + max(s.target.index for s in samples)
    return Manifest("/data", tuple(f"class {index}" for index in range(num_classes)), samples)


def singles(*counts: int) -> Manifest:
    """So many images of each class, each alone."""
    return manifest_of(*(sample(f"{label}/{n}.jpg", label) for label, count in enumerate(counts) for n in range(count)))


def grouped(rng: random.Random, *, is_pure: bool) -> Manifest:
    """Random groups and copies; a pure group or copy stays in one class."""
    samples = []
    for label in range(rng.randint(2, 5)):
        for number in range(rng.randint(3, 40)):
            word = f"{label} " if is_pure else ""
            group = f"{word}g{rng.randint(0, 9)}" if rng.random() < 0.6 else None
            digest = f"{word}d{rng.randint(0, 30)}".encode().hex() if rng.random() < 0.2 else ""
            samples.append(sample(f"{label}/{number}.jpg", label, group=group, digest=digest))
    rng.shuffle(samples)
    return manifest_of(*samples)


def splits_of(manifest: Manifest) -> dict[str, Split | None]:
    return {s.file: s.split for s in manifest.samples}


def num_units(manifest: Manifest, label: int) -> int:
    """Count by flooding, in another way than the code, what can be divided of a class."""
    ties = [({s.file, s.digest, s.group} - {None, ""}, s.target.index) for s in manifest.samples]
    units: list[tuple[set[str | None], set[int]]] = []
    for names, index in ties:
        joined = [unit for unit in units if unit[0] & names]
        units = [unit for unit in units if not unit[0] & names]
        merged = (names.union(*(unit[0] for unit in joined)), {index}.union(*(unit[1] for unit in joined)))
        units.append(merged)
    return sum(label in labels for _, labels in units)


@pytest.mark.parametrize(("val", "test"), [(0.2, 0.0), (0.25, 0.25), (0.1, 0.3), (0.5, 0.0)])
def test_every_class_gives_its_share(val: float, test: float) -> None:
    done = assign(singles(100, 40, 20), val=val, test=test, seed=0)
    for share, split in ((val, "val"), (test, "test"), (1 - val - test, "train")):
        assert list(done.counts(split).values()) == pytest.approx([100 * share, 40 * share, 20 * share])


def test_shares_are_rounded_to_the_nearest_image() -> None:
    done = assign(singles(9, 11), val=0.2, test=0.0, seed=0)
    assert list(done.counts("val").values()) == [2, 2]


def test_every_sample_keeps_its_place_and_gets_a_split() -> None:
    before = singles(7, 9)
    done = assign(before, val=0.2, test=0.2, seed=0)
    assert [replace(s, split=None) for s in done.samples] == list(before.samples)
    assert {s.split for s in done.samples} == set(SPLITS)


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    found = [splits_of(assign(singles(30, 30), val=0.2, test=0.1, seed=seed)) for seed in (0, 0, 1, 2**62)]
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]


def plain_units(samples: list[Sample]) -> list[list[Sample]]:
    """Units by first sight, their samples sorted by name: joined one by one."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for one in samples:
        for tie in (f"digest {one.digest}" * bool(one.digest), f"group {one.group}" * bool(one.group)):
            if tie:
                parent[find(tie)] = find(f"file {one.file}")
    units: dict[str, list[Sample]] = {}
    for one in samples:
        units.setdefault(find(f"file {one.file}"), []).append(one)
    return [sorted(unit, key=lambda s: s.file) for unit in units.values()]


def plainly_taken(units: list[list[Sample]], *, share: float, keep: int, seed: int) -> list[list[Sample]]:
    """The taking of units one after the other, as it was defined first: every split that was ever made rests on it."""
    drawn = sorted(units, key=lambda unit: (-len(unit), derive(seed, "split", unit[0].file)))
    inside = [Counter(s.target.index for s in unit) for unit in drawn]
    images = Counter(s.target.index for unit in drawn for s in unit)
    wanted = Counter({label: round(count * share) for label, count in images.items()})
    left = Counter(label for found in inside for label in found)
    missing, taken = set(left), []

    def is_spared(place: int) -> bool:
        return all(left[label] > keep for label in inside[place])

    def take(place: int) -> None:
        taken.append(drawn[place])
        wanted.subtract(inside[place])
        left.subtract(inside[place].keys())
        missing.difference_update(inside[place])

    for place, unit in enumerate(drawn):
        gain = sum(min(count, max(wanted[label], 0)) for label, count in inside[place].items())
        if 2 * gain > len(unit) and is_spared(place):
            take(place)
    for place in reversed(range(len(drawn))):
        if not missing.isdisjoint(inside[place]) and is_spared(place):
            take(place)
    return taken


def plainly_assigned(manifest: Manifest, *, val: float, test: float, seed: int) -> list[Split]:
    """The split of every sample, in order."""
    has = {split: any(s.split == split for s in manifest.samples) for split in ("val", "test")}
    shares = {"test": 0.0 if has["test"] else test, "val": 0.0 if has["val"] else val}
    splits: dict[str, Split] = {s.file: s.split for s in manifest.samples if s.split in ("val", "test")}
    pool = plain_units([s for s in manifest.samples if s.file not in splits])
    for split in ("test", "val"):
        if shares[split]:
            share = shares[split] / (1 - (shares["test"] if split == "val" else 0))
            keep = 2 if split == "test" and shares["val"] else 1
            taken = plainly_taken(pool, share=share, keep=keep, seed=seed)
            splits.update({s.file: split for unit in taken for s in unit})
            pool = [unit for unit in pool if unit[0].file not in splits]
    return [splits.get(s.file, "train") for s in manifest.samples]


@pytest.mark.parametrize("kind", ["alone", "pure groups", "groups across classes", "set aside in part", "listed twice"])
@pytest.mark.parametrize(("val", "test"), [(0.2, 0.0), (0.2, 0.1), (0.02, 0.0), (0.5, 0.3), (0.35, 0.6)])
def test_the_split_is_that_of_units_taken_one_by_one(kind: str, val: float, test: float) -> None:
    compared = 0
    for seed in range(10):
        rng = random.Random(seed)
        if kind == "alone":
            data = singles(*(rng.randint(1, 60) for _ in range(rng.randint(2, 30))))
        else:
            data = grouped(rng, is_pure=kind == "pure groups")
        if kind == "set aside in part":
            word = rng.choice(("val", "test"))
            some = (replace(s, split=word) if rng.random() < 0.1 else s for s in data.samples)
            data = replace(data, samples=tuple(some))
        if kind == "listed twice":
            data = replace(data, samples=(*data.samples, *(replace(s, group=None) for s in data.samples[::5])))
        shuffled = list(data.samples)
        rng.shuffle(shuffled)
        data = replace(data, samples=tuple(shuffled))
        unit_of = {id(s): number for number, unit in enumerate(plain_units(shuffled)) for s in unit}
        assert units_of(shuffled) == [unit_of[id(s)] for s in shuffled]
        try:
            found = [s.split for s in assign(data, val=val, test=test, seed=seed).samples]
        except DataError:
            continue  # a class would not be in train: whether it is refused is tested elsewhere
        assert found == plainly_assigned(data, val=val, test=test, seed=seed)
        compared += 1
    assert compared > 1


def test_the_order_of_the_files_does_not_matter() -> None:
    for seed in SEEDS:
        before = grouped(random.Random(seed), is_pure=bool(seed % 2))
        shuffled = list(before.samples)
        random.Random(seed + 1).shuffle(shuffled)
        first = assign(before, val=0.2, test=0.1, seed=seed)
        second = assign(replace(before, samples=tuple(shuffled)), val=0.2, test=0.1, seed=seed)
        assert splits_of(first) == splits_of(second), seed


def test_the_split_of_a_class_does_not_depend_on_the_other_classes() -> None:
    alone = splits_of(assign(singles(30), val=0.2, test=0.0, seed=0))
    together = splits_of(assign(singles(30, 50), val=0.2, test=0.0, seed=0))
    assert {file: split for file, split in together.items() if file in alone} == alone


def test_the_test_images_do_not_depend_on_the_share_of_val() -> None:
    tests = [
        {
            file
            for file, split in splits_of(assign(singles(30, 20), val=val, test=0.2, seed=0)).items()
            if split == "test"
        }
        for val in (0.1, 0.5)
    ]
    assert tests[0] == tests[1] and len(tests[0]) == 10


@pytest.mark.parametrize("test", [0.0, 0.2])
def test_copies_and_groups_never_straddle(test: float) -> None:
    for seed in SEEDS:
        done = assign(grouped(random.Random(seed), is_pure=True), val=0.25, test=test, seed=seed)
        for key in ("digest", "group"):
            sides: dict[str, set[str | None]] = {}
            for s in done.samples:
                sides.setdefault(getattr(s, key) or s.file, set()).add(s.split)
            assert all(len(found) == 1 for found in sides.values()), (seed, key)
        assert (list(leaks(done)), done.notes) == ([], ()), seed


@pytest.mark.parametrize(("val", "test"), [(0.05, 0.0), (0.2, 0.0), (0.6, 0.0), (0.2, 0.2), (0.1, 0.7)])
def test_every_class_is_in_train_and_where_it_can_be_divided_in_val_and_test(val: float, test: float) -> None:
    for seed in SEEDS:
        before = grouped(random.Random(seed), is_pure=True)
        done = assign(before, val=val, test=test, seed=seed)
        for label, name in enumerate(done.classes):
            assert done.counts("train")[name] > 0, (seed, name)
            assert (done.counts("val")[name] > 0) == (num_units(before, label) > 1), (seed, name)
            assert (done.counts("test")[name] > 0) == (num_units(before, label) > 2 and test > 0), (seed, name)


def test_groups_across_classes_keep_every_class_in_train_or_are_refused() -> None:
    for seed in SEEDS:
        before = grouped(random.Random(seed), is_pure=False)
        try:
            done = assign(before, val=0.2, test=0.0, seed=seed)
        except DataError as error:
            assert all(num_units(before, label) == 1 for label in range(len(before.classes))), (seed, error.message)
        else:
            assert min(done.counts("train").values()) > 0, seed
            assert list(leaks(done)) == [], seed


def test_a_chain_of_copies_and_groups_stays_together() -> None:
    rest = [sample(f"{n}.jpg") for n in range(10)]
    chain = [
        sample("a.jpg", digest="same"),
        sample("b.jpg", digest="same", group="burst"),
        sample("c.jpg", group="burst", digest="again"),
        sample("d.jpg", digest="again"),
    ]
    found = set()
    for seed in range(20):
        done = splits_of(assign(manifest_of(*rest, *chain), val=0.4, test=0.3, seed=seed))
        assert len({done[s.file] for s in chain}) == 1
        found.add(done["a.jpg"])
    assert found <= set(SPLITS)


def test_a_group_and_a_copy_of_one_name_are_not_tied() -> None:
    tied = [sample(f"{n}.jpg", group="x" if n % 2 else None, digest="" if n % 2 else "x") for n in range(2)]
    done = splits_of(assign(manifest_of(*tied), val=0.5, test=0.0, seed=0))
    assert sorted(map(str, done.values())) == ["train", "val"]


def test_samples_without_group_or_hash_stand_alone() -> None:
    samples = [replace(sample(f"{n}.jpg"), digest="", group=None) for n in range(10)]
    assert len(assign(manifest_of(*samples), val=0.3, test=0.0, seed=0).split("val")) == 3


@pytest.mark.parametrize("val", [0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_small_class_stands_in_train_and_val_whatever_the_share(val: float, count: int) -> None:
    done = assign(singles(count, 50), val=val, test=0.0, seed=0)
    assert 1 <= done.counts("val")["class 0"] <= count - 1
    assert done.counts("train")["class 0"] + done.counts("val")["class 0"] == count


def test_a_share_that_is_far_from_the_one_asked_for_is_told() -> None:
    few, many = (assign(singles(*[count] * 5), val=0.2, test=0.0, seed=0) for count in (2, 10))
    assert "val has 50% of the images, but 20% was asked for" in "\n".join(few.notes)
    assert not many.notes
    users = replace(few, samples=tuple(replace(s, split=s.split) for s in few.samples), notes=())
    assert not assign(users, val=0.2, test=0.0, seed=0).notes  # nobody asked for a share


def test_of_two_images_val_comes_before_test() -> None:
    done = assign(singles(2, 30), val=0.2, test=0.4, seed=0)
    assert [done.counts(split)["class 0"] for split in SPLITS] == [1, 1, 0]
    assert assign(singles(2, 30), val=0.2, test=0.0, seed=0).counts("val")["class 0"] == 1


def test_of_two_images_beside_a_val_of_the_user_one_is_for_test() -> None:
    samples = [sample("v.jpg", split="val"), sample("a.jpg", split="train"), sample("b.jpg", split="train")]
    done = assign(manifest_of(*samples), val=0.2, test=0.2, seed=0)
    assert [len(done.split(split)) for split in SPLITS] == [1, 1, 1]


def test_a_test_share_that_no_class_can_give_is_an_error() -> None:
    with pytest.raises(DataError, match="no image is left for test"):
        assign(singles(2, 2), val=0.2, test=0.2, seed=0)


def test_three_images_stand_in_train_val_and_test() -> None:
    done = assign(singles(3, 30), val=0.2, test=0.2, seed=0)
    assert [done.counts(split)["class 0"] for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("val", [0.2, 0.8])
def test_a_single_image_stays_in_train(val: float) -> None:
    done = assign(singles(1, 20), val=val, test=0.1, seed=0)
    assert splits_of(done)["0/0.jpg"] == "train"


def test_two_large_groups_are_divided_although_each_is_more_than_the_share() -> None:
    samples = [sample(f"{label}/{n}.jpg", label, group=f"{label}{n % 2}") for label in (0, 1) for n in range(10)]
    done = assign(manifest_of(*samples), val=0.1, test=0.0, seed=0)
    assert done.counts("val") == done.counts("train") == {"class 0": 5, "class 1": 5}


def test_of_groups_that_are_all_larger_than_the_share_the_smallest_is_taken() -> None:
    groups = [group for group, size in (("a", 9), ("b", 6), ("c", 8)) for _ in range(size)]
    samples = [sample(f"{label}/{n}.jpg", label, group=f"{label}{g}") for label in (0, 1) for n, g in enumerate(groups)]
    done = assign(manifest_of(*samples), val=0.1, test=0.0, seed=0)
    assert {s.group for s in done.split("val")} == {"0b", "1b"}
    both = assign(manifest_of(*samples), val=0.1, test=0.1, seed=0)
    assert {s.group for s in both.split("test")} == {"0b", "1b"}
    assert {s.group for s in both.split("val")} == {"0c", "1c"}


def test_a_class_in_one_group_is_not_taken_from_train() -> None:
    samples = [sample(f"0/{n}.jpg", group="all") for n in range(3)] + [sample(f"1/{n}.jpg", 1) for n in range(9)]
    done = assign(manifest_of(*samples), val=0.6, test=0.0, seed=0)
    assert done.counts("val")["class 0"] == 0
    assert done.counts("train")["class 0"] == 3


def test_data_in_one_group_is_an_error_that_names_the_setting() -> None:
    samples = [sample(f"{label}/{n}.jpg", label, group="all") for label in (0, 1) for n in range(9)]
    with pytest.raises(DataError, match="no image is left for val") as caught:
        assign(manifest_of(*samples), val=0.2, test=0.0, seed=0)
    assert "data.group_by" in caught.value.hint


def test_one_image_a_class_is_an_error_that_speaks_of_no_groups() -> None:
    with pytest.raises(DataError, match="no image is left for val") as caught:
        assign(singles(1, 1), val=0.2, test=0.0, seed=0)
    assert "two that differ" in caught.value.hint and "group" not in caught.value.hint


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_shares_that_leave_no_train_are_an_error(val: float, test: float) -> None:
    with pytest.raises(DataError, match=r"split\.val \+ split\.test"):
        assign(singles(10, 10), val=val, test=test, seed=0)


def test_what_the_user_set_aside_stands_and_nothing_is_added() -> None:
    samples = [sample(f"{n}.jpg", split="val" if n < 3 else "train") for n in range(20)]
    done = assign(manifest_of(*samples), val=0.5, test=0.0, seed=0)
    assert splits_of(done) == {s.file: s.split for s in samples}


@pytest.mark.parametrize(("there", "missing"), [("test", "val"), ("val", "test")])
def test_a_missing_split_is_taken_from_train_and_the_other_stands(there: Split, missing: Split) -> None:
    samples = [sample(f"{n}.jpg", split=there if n < 5 else "train") for n in range(25)]
    shares = {there: 0.9, missing: 0.2}
    done = assign(manifest_of(*samples), val=shares["val"], test=shares["test"], seed=0)
    assert [s.file for s in done.split(there)] == [f"{n}.jpg" for n in range(5)]
    assert len(done.split(missing)) == 4


@pytest.mark.parametrize("split", ["val", "test"])
def test_data_without_train_is_an_error(split: Split) -> None:
    with pytest.raises(DataError, match="but no train"):
        assign(manifest_of(*(sample(f"{n}.jpg", split=split) for n in range(5))), val=0.2, test=0.1, seed=0)


def test_leaks_in_a_split_of_the_user_are_reported_with_an_example() -> None:
    samples = [
        sample("a.jpg", split="train", digest="x"),
        sample("b.jpg", split="val", digest="x"),
        sample("c.jpg", split="train", group="p1"),
        sample("d.jpg", split="val", group="p1"),
        sample("e.jpg", split="val", group="p1"),
    ]
    done = assign(manifest_of(*samples), val=0.2, test=0.0, seed=0)
    assert splits_of(done) == {s.file: s.split for s in samples}
    assert done.notes == (
        "leak: 1 images are in more than one split, e.g. a.jpg; `finetune check` lists all",
        "leak: 1 groups are in more than one split, e.g. c.jpg; `finetune check` lists all",
    )


def test_a_copy_of_a_test_image_of_the_user_is_reported() -> None:
    samples = [sample("t.jpg", split="test", digest="x"), sample("c.jpg", split="train", digest="x")]
    rest = [sample(f"{n}.jpg", split="train") for n in range(9)]
    done = assign(manifest_of(*samples, *rest), val=0.2, test=0.0, seed=0)
    assert any("leak: 1 images" in note for note in done.notes)


def test_earlier_notes_are_kept() -> None:
    before = replace(singles(9, 9), notes=("seen before",))
    assert assign(before, val=0.2, test=0.0, seed=0).notes == ("seen before",)


def test_the_counts_of_a_split_are_those_of_an_independent_count() -> None:
    done = assign(grouped(random.Random(3), is_pure=True), val=0.3, test=0.2, seed=0)
    found = Counter((s.split, s.target.index) for s in done.samples)
    for split in SPLITS:
        assert list(done.counts(split).values()) == [found[split, label] for label in range(len(done.classes))]


ODD = [
    "a\nb",
    "a\r\nb",
    "\r",
    "🐜",
    'quo"te',
    "com,ma",
    "-dash",
    " space ",
    "'",
    "tab\t",
    os.fsdecode(b"\xff\xfe"),
    "=1+1",
]


@pytest.mark.parametrize("odd", ODD)
def test_a_written_split_is_read_as_it_was_with_odd_names(tmp_path: Path, odd: str) -> None:
    samples = [
        sample(f"{odd}/1.jpg", 0, split="train", group=odd),
        sample(f"plain/{odd}.jpg", 1, split="val", digest="0f"),
        sample("plain/2.jpg", 1, split="test"),
    ]
    before = Manifest("/data", (odd, "plain"), tuple(samples))
    write(before, tmp_path / "split.csv")
    assert read(tmp_path / "split.csv", root="/data", classes=before.classes) == before


def test_a_split_is_pinned_by_the_bytes_of_its_file(tmp_path: Path) -> None:
    before = assign(grouped(random.Random(0), is_pure=True), val=0.2, test=0.2, seed=0)
    write(before, tmp_path / "a.csv")
    again = read(tmp_path / "a.csv", root=before.root, classes=before.classes)
    write(again, tmp_path / "b.csv")
    assert again == before
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


HEADER = "file,label,split,group,digest\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER,
        "file,label\na.jpg,class 0\n",
        HEADER + "a.jpg,class 0,holdout,,00\n",
        HEADER + "a.jpg,class 9,train,,00\n",
        HEADER + "a.jpg,class 0,train\n",
        HEADER + "a.jpg,class 0\n",
        HEADER + '"a.jpg,class 0,train,,00\n',
        "\0\0\0",
    ],
)
def test_a_damaged_split_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(CheckpointError, match=r"split\.csv"):
        read(tmp_path / "split.csv", root="/", classes=["class 0"])


def test_a_missing_split_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    for path in (tmp_path / "split.csv", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            read(path, root="/", classes=["a"])


def test_a_split_cut_anywhere_is_an_error_or_holds_no_other_images(tmp_path: Path) -> None:
    before = assign(singles(3, 3), val=0.3, test=0.0, seed=0)
    path = tmp_path / "split.csv"
    write(before, path)
    content, num_refused = path.read_bytes(), 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            found = read(path, root=before.root, classes=before.classes)
        except CheckpointError:
            num_refused += 1
        else:
            assert set(splits_of(found).items()) <= set(splits_of(before).items())
    assert num_refused > len(content) / 2


@pytest.mark.parametrize("seed", range(5))
def test_folds_hold_every_image_once_divide_no_unit_and_spread_each_class(seed: int) -> None:
    data = assign(singles(23, 41, 10), val=0.2, test=0.2, seed=seed)
    parts = in_folds(data, folds=5, seed=seed)
    held = Counter(s.file for part in parts for s in part.split("val"))
    assert set(held.values()) == {1}
    assert set(held) == {s.file for s in data.samples if s.split != "test"}
    for part in parts:
        assert {s.file for s in part.split("test")} == {s.file for s in data.split("test")}
    for label in range(3):
        counts = [sum(s.target.index == label for s in part.split("val")) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_folds_keep_copies_and_groups_together_and_every_class_in_train() -> None:
    for seed in SEEDS:
        data = grouped(random.Random(seed), is_pure=True)
        try:
            parts = in_folds(assign(data, val=0.2, test=0.0, seed=seed), folds=3, seed=seed)
        except DataError as error:
            assert "divided into 3 folds" in error.message or "Each class needs" in error.hint
            continue
        for part in parts:
            assert list(leaks(part)) == []
            assert all(part.counts("train").values())


def test_assigning_a_fold_is_the_same_whatever_fold_was_assigned_before() -> None:
    data = singles(20, 30)
    first = assign(data, val=0.2, test=0.1, seed=4, folds=4, fold=1)
    for fold in (1, 2, 3, 4):
        own = assign(data, val=0.2, test=0.1, seed=4, folds=4, fold=fold)
        assert splits_of(own) == splits_of(in_folds(first, folds=4, seed=4)[fold - 1])


def test_a_class_with_fewer_images_than_folds_still_stands_in_train_and_one_image_is_refused() -> None:
    parts = in_folds(assign(singles(30, 2), val=0.2, test=0.0, seed=0), folds=5, seed=0)
    assert all(part.counts("train")["class 1"] for part in parts)
    with pytest.raises(DataError, match="'class 1' would have no image in train, divided into 5 folds"):
        in_folds(assign(singles(30, 1), val=0.2, test=0.0, seed=0), folds=5, seed=0)


def test_a_val_of_the_user_is_divided_with_train_and_that_is_said() -> None:
    own = [replace(s, split="val") if number < 4 else s for number, s in enumerate(singles(20, 20).samples)]
    found = assign(manifest_of(*own), val=0.2, test=0.0, seed=0, folds=5, fold=2)
    assert any("the data's own val is divided" in note for note in found.notes)
    assert len(found.split("val")) == 8
