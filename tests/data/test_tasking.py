"""What an image has, one class, several or a number: told from labels, or as it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data.sources import read
from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.types import Manifest
from tests.support import scanned


def table(tmp_path: Path, header: str, *rows: str) -> Path:
    for row in rows:
        (tmp_path / row.replace(";", ",").split(",")[0]).touch()
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
    return tmp_path / "t.csv"


def labels(manifest: Manifest) -> dict[str, str]:
    return {sample.file: manifest.label(sample.target) for sample in manifest.samples}


def said(manifest: Manifest) -> str:
    return " / ".join(manifest.notes)


@pytest.mark.parametrize("label", ["ant|bee", "ant; bee", "ant,bee", "ant bee", "bee+ant"])
def test_labels_that_name_other_labels_are_several_classes_and_that_is_said(tmp_path: Path, label: str) -> None:
    manifest = read(table(tmp_path, "image,label", "1.jpg,ant", "2.jpg,bee", f'3.jpg,"{label}"'), task="auto")
    assert manifest.task == "multilabel"
    assert manifest.classes == ("ant", "bee")
    assert labels(manifest) == {"1.jpg": "ant", "2.jpg": "bee", "3.jpg": "ant|bee"}
    assert "task multilabel: 1 label names several classes" in said(manifest)
    assert "--task classify takes each as a class of its own" in said(manifest)


def test_labels_whose_parts_are_no_labels_are_classes(tmp_path: Path) -> None:
    rows = ("1.jpg,great white", "2.jpg,black tip", "3.jpg,white")
    assert read(table(tmp_path, "image,label", *rows), task="auto").task == "classify"


def test_a_separator_that_is_named_parts_labels_alone(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", "1.jpg,red ant;bee", "2.jpg,bee", "3.jpg,red ant")
    manifest = read(path, task="auto", separator=";")
    assert manifest.task == "multilabel"
    assert manifest.classes == ("bee", "red ant")


def test_an_image_without_a_label_has_no_class_where_it_may_have_none(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", "1.jpg,ant|bee", "2.jpg,bee", "3.jpg,ant", "4.jpg,")
    several = read(path, task="multilabel")
    assert labels(several)["4.jpg"] == "" and several.problems == ()
    assert "1 image has no class: taken as having none" in said(several)
    one = read(path, task="classify")
    assert "4.jpg" not in labels(one) and [problem.file for problem in one.problems] == ["4.jpg"]


def test_an_image_that_is_listed_again_has_all_of_its_classes_where_it_may_have_several(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", "1.jpg,ant", "2.jpg,bee", "1.jpg,bee")
    assert labels(read(path, task="multilabel")) == {"1.jpg": "ant|bee", "2.jpg": "bee"}
    assert labels(read(path)) == {"1.jpg": "ant", "2.jpg": "bee"}


def test_columns_of_0_and_1_are_classes(tmp_path: Path) -> None:
    path = table(tmp_path, "image,a,b,c", "1.jpg,0,1,0", "2.jpg,1,true,0", "3.jpg,0.0,0,0")
    manifest = read(path, task="auto", label_column="a, b,c")
    assert manifest.task == "multilabel"
    assert labels(manifest) == {"1.jpg": "b", "2.jpg": "a|b", "3.jpg": ""}
    assert "1 label column is 0 in every row: no class (c)" in said(manifest)


@pytest.mark.parametrize("cell", ["2", "0.5", "", "yes"])
def test_a_label_column_with_anything_but_0_and_1_is_an_error_that_names_the_place(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, "image,a,b", "1.jpg,0,1", f"2.jpg,1,{cell}")
    with pytest.raises(DataError, match=rf"line 3: the label column 'b' is '{cell}', neither 0 nor 1"):
        read(path, task="auto", label_column="a,b")


def test_columns_that_exclude_each_other_are_one_class_for_each_image(tmp_path: Path) -> None:
    path = table(tmp_path, "image,a,b", "1.jpg,0,1", "2.jpg,1,0", "3.jpg,0,1")
    manifest = read(path, task="auto", label_column="a,b")
    assert (manifest.task, labels(manifest)) == ("classify", {"1.jpg": "b", "2.jpg": "a", "3.jpg": "b"})
    assert "each image has exactly one of the classes; --task multilabel" in said(manifest)
    assert read(path, task="multilabel", label_column="a,b").task == "multilabel"
    for row in ("4.jpg,0,0", "4.jpg,1,1", "1.jpg,1,0"):  # none, several, another one listed again
        path = table(tmp_path, "image,a,b", "1.jpg,0,1", "2.jpg,1,0", "3.jpg,0,1", row)
        assert read(path, task="auto", label_column="a,b").task == "multilabel"
    path = table(tmp_path, "image,a,b", "1.jpg,0,1", "2.jpg,1,0", "3.jpg,0,0")
    assert labels(read(path, task="classify", label_column="a,b")) == {"1.jpg": "b", "2.jpg": "a"}


def test_several_columns_are_no_single_class(tmp_path: Path) -> None:
    path = table(tmp_path, "image,a,b", "1.jpg,0,1", "2.jpg,1,0")
    with pytest.raises(RecipeError, match="several label columns, or lists, mean several classes for an image"):
        read(path, task="regress", label_column="a,b")
    both = table(tmp_path, "image,a,b", "1.jpg,0,1", "2.jpg,1,1")
    with pytest.raises(RecipeError, match=r"which is not classify: 2\.jpg has a, b"):
        read(both, task="classify", label_column="a,b")
    with pytest.raises(RecipeError, match="has no column 'x'"):
        read(path, task="auto", label_column="a,x")


def test_lists_of_classes_are_several_classes_whoever_wrote_them(tmp_path: Path) -> None:
    rows = ("1.jpg,\"['ant', 'bee']\"", "2.jpg,['ant' 'bee']", '3.jpg,"[""it\'s""]"', "4.jpg,[]", "5.jpg,[ 7]")
    manifest = read(table(tmp_path, "image,label", *rows), task="auto")
    assert manifest.task == "multilabel" and manifest.classes == ("7", "ant", "bee", "it's")
    assert labels(manifest) == {"1.jpg": "ant|bee", "2.jpg": "ant|bee", "3.jpg": "it's", "4.jpg": "", "5.jpg": "7"}
    cells = pyarrow.table({"image": ["1.jpg", "2.jpg"], "label": [["ant", "bee"], ["ant"]]})
    parquet.write_table(cells, tmp_path / "t.parquet")
    assert labels(read(tmp_path / "t.parquet", task="auto")) == {"1.jpg": "ant|bee", "2.jpg": "ant"}
    one = read(table(tmp_path, "image,label", "1.jpg,['ant']", "2.jpg,['bee']"), task="auto")
    assert one.task == "classify" and one.classes == ("ant", "bee")
    with pytest.raises(DataError, match=r"'a\|b' has '\|' in its name"):
        read(table(tmp_path, "image,label", "1.jpg,['a|b']", "2.jpg,['bee']"), task="auto")


@pytest.mark.parametrize("cell", ["[ant]", "['ant'", "ant", "[" + "1" * 5000 + "x]"])
def test_labels_that_are_not_all_lists_are_names(tmp_path: Path, cell: str) -> None:
    manifest = read(table(tmp_path, "image,label", f"1.jpg,{cell}", "2.jpg,['bee']"), task="auto")
    assert manifest.task == "classify" and set(manifest.classes) == {cell, "['bee']"}


def test_numbers_that_look_measured_are_numbers_and_that_is_said(tmp_path: Path) -> None:
    path = table(tmp_path, "image,length", *(f"{place}.jpg,{place * 1.5}" for place in range(9)))
    manifest = read(path, task="auto", label_column="length")
    assert manifest.task == "regress" and manifest.classes == ("length",)
    assert labels(manifest)["3.jpg"] == "4.5"
    assert "task regress: the labels look like measurements" in said(manifest)


def test_whole_numbers_with_many_images_each_are_classes(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", *(f"{place}.jpg,{place % 10}" for place in range(40)))
    assert read(path, task="auto").task == "classify"
    assert read(path, task="regress").task == "regress"


def test_a_label_that_is_no_number_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    for wrong in ("tall", "nan", "inf"):
        path = table(tmp_path, "image,label", "1.jpg,1.5", f"2.jpg,{wrong}")
        with pytest.raises(DataError, match=rf"the label '{wrong}' of 2.jpg is not a number"):
            read(path, task="regress")


@pytest.mark.parametrize("task", ["auto", "regress"])
def test_a_decimal_comma_is_read_as_a_point_and_that_is_said(tmp_path: Path, task: Any) -> None:
    rows = [f"{n}.jpg;{n},{n}5" for n in range(8)]
    found = read(table(tmp_path, "image;label", *rows, "0.jpg;0,05"), task=task)
    assert found.task == "regress"
    assert labels(found)["3.jpg"] == "3.35"
    assert "decimal commas, read as points: '0,05' is 0.05" in said(found)
    assert "another label" not in said(found)


@pytest.mark.parametrize(
    ("label", "match"), [("1,234", "may be 1.234 or 1234"), ("1.5", "'0,1' of 0.jpg is not a number")]
)
def test_commas_that_may_mean_something_else_are_no_decimals(tmp_path: Path, label: str, match: str) -> None:
    rows = [f"{n}.jpg;{label if n else label.replace('.', ',').replace('1,5', '0,1')}" for n in range(3)]
    with pytest.raises(DataError, match=match):
        read(table(tmp_path, "image;label", *rows), task="regress")


def test_a_class_with_the_sign_between_classes_in_its_name_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", "1.jpg,a|b;c", "2.jpg,c", "3.jpg,d")
    with pytest.raises(DataError, match=r"the class 'a\|b' has '\|' in its name"):
        read(path, task="multilabel", separator=";")


@pytest.fixture
def tree(tmp_path: Path, image_folder: Any) -> Path:
    """Four ants and four bees, of which one is both: copied, and one more by a link."""
    root: Path = image_folder("tree", per_class=4)
    shutil.copy(root / "ant" / "ant-00.jpg", root / "bee" / "copied.jpg")
    (root / "ant" / "linked.png").symlink_to(root / "bee" / "bee-01.png")
    return root


def test_a_folder_is_of_single_classes_unless_several_are_asked_for(tree: Path) -> None:
    assert read(tree, task="auto").task == "classify"
    once = scanned(tree)
    assert len(once.samples) == 10 and all(len(sample.target.classes) == 1 for sample in once.samples)


def test_an_image_in_several_class_folders_has_all_of_these_classes_where_several_are_asked_for(tree: Path) -> None:
    from finetune.data import checks

    manifest = checks.scan(read(tree, task="multilabel"))
    assert len(manifest.samples) == 8
    both = {file for file, label in labels(manifest).items() if label == "ant|bee"}
    assert both == {"ant/ant-00.jpg", "ant/linked.png"}
    assert "2 files are copies of others: an image that lies in several class folders" in said(manifest)


def test_class_folders_may_be_numbers(image_folder: Any) -> None:
    manifest = read(image_folder("ages", classes="7 30 65", per_class=2), task="regress")
    assert manifest.task == "regress"
    assert set(labels(manifest).values()) == {"7.0", "30.0", "65.0"}


def test_one_class_alone_is_refused_as_before(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", "1.jpg,ant", "2.jpg,ant", "3.jpg,")
    with pytest.raises(FinetuneError, match="only one class"):
        read(path, task="multilabel")
