"""What is said of classes with few images: not measured, outweighed, never predicted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from finetune.data.balance import never_predicted, never_predicted_text, outweighed, thin
from finetune.tasks import Target
from finetune.types import Manifest, Sample, Split


def manifest_of(**counts: dict[Split | None, int]) -> Manifest:
    """Return a manifest with so many images of each class in each split."""

    def samples() -> Iterator[Sample]:
        for index, (name, of) in enumerate(counts.items()):
            for split, count in of.items():
                yield from (Sample(f"{name}/{split}{n}.png", Target(index), split) for n in range(count))

    return Manifest("", tuple(counts), tuple(samples()))


def test_a_class_with_one_image_and_one_that_val_or_test_lacks_are_named() -> None:
    found = list(
        thin(
            manifest_of(
                ant={"train": 5, "val": 2, "test": 1}, bee={"train": 1}, cow={"train": 4, "test": 2}, dog={"train": 2}
            )
        )
    )
    assert found == [
        "1 class has a single image: bee",
        "3 classes have no image in val, which cannot judge them: bee, cow, dog",
        "2 classes have no image in test, which cannot judge them: bee, dog",
    ]


def test_nothing_is_said_of_classes_that_stand_in_every_split_that_is_there() -> None:
    assert list(thin(manifest_of(ant={"train": 2, "val": 1}, bee={"train": 2, "val": 1}))) == []
    assert list(thin(manifest_of(ant={None: 2}, bee={None: 2}))) == []


@pytest.mark.parametrize(("large", "is_said"), [(29, False), (30, True), (3000, True)])
def test_a_class_with_a_tenth_of_the_images_of_the_largest_may_never_be_predicted(large: int, is_said: bool) -> None:
    found = list(outweighed(manifest_of(ant={None: large}, bee={None: 3}, cow={None: large})))
    assert bool(found) == is_said
    if is_said:
        assert found[0].startswith(f"bee (3) has at most a tenth of the {large:,} images of ant")


def test_classes_that_are_there_and_never_predicted_are_named_with_their_images() -> None:
    never = never_predicted(("ant", "bee", "cow"), targets=[0, 0, 1, 1], guesses=[0, 0, 0, 0])
    assert never == {"bee": 2}
    assert never_predicted_text(never, "val").startswith("the model never predicts bee (2 images) on val")
    told = never_predicted_text(never, "val", is_refitted=True)
    assert told.startswith("the first fit (the refit, which is delivered, has learned from val) never predicts bee")
    assert never_predicted(("ant", "bee"), targets=[0, 1], guesses=[1, 0]) == {}
