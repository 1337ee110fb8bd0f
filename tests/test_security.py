"""Nothing is executed from a file, nothing is written outside of its folder, and names stay names."""

from __future__ import annotations

import ast
import csv
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from finetune import recipe
from finetune.backbone import load as backbones
from finetune.backbone.folder import read_config
from finetune.backbone.weights import read_weights
from finetune.cli.terminal import escape, printable
from finetune.csv_cells import FORMULA_SIGNS, guarded_cell, unguarded_cell
from finetune.data import sources
from finetune.errors import BackboneError, DataError
from finetune.prepare.asked import recipe_of
from tests.support import network

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("finetune", "tools", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
FLAGS = {"shell", "trust_remote_code", "allow_pickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads", "subprocess.getoutput",
    "subprocess.getstatusoutput", "torch.hub.load", "torch.jit.load", "shutil.unpack_archive",
    "tarfile.open", "zipfile.ZipFile",
}  # fmt: skip
# Of shards the bytes of members are read; nothing is unpacked to a place that a name in a file says.
OPENED = ["benchmarks/memory.py", "finetune/data/shard_writer.py", "finetune/images/shards.py"]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(tree: ast.AST) -> dict[str, str]:
    """What names of a module stand for: `from os import system as s` makes `s` os.system."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return found


def is_word(node: ast.AST | None, word: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is word


def dangers(text: str) -> Iterator[str]:
    """Name every call that could run what a file says."""
    tree = ast.parse(text)
    stands_for = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in FLAGS and not is_word(node.value, False):
            yield f"{node.arg}="
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = dotted(node.func).partition(".")
        name = ".".join(filter(None, (stands_for.get(first, first), rest)))
        if name.endswith((".extractall", ".extract")) and first not in stands_for:
            yield name
        if name in BUILTINS or name in CALLS or name.removeprefix("builtins.") in BUILTINS:
            yield name
        given_ = {word.arg: word.value for word in node.keywords}
        if name == "torch.load" and not is_word(given_.get("weights_only"), True):
            yield "torch.load without weights_only=True"


def test_no_module_can_run_what_a_file_says() -> None:
    assert {"finetune", "tools", "benchmarks"} == {file.relative_to(ROOT).parts[0] for file in SOURCES}
    found = [f"{file.relative_to(ROOT)}: {what}" for file in SOURCES for what in dangers(file.read_text("utf-8"))]
    assert sorted(found) == [f"{file}: tarfile.open" for file in OPENED]


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(x)", "compile(x, '', 'exec')", "__import__('os')", "import builtins; builtins.eval(x)",
        "import os; os.system('x')", "from os import popen as p; p('x')", "import yaml; yaml.load(f)",
        "import pickle; pickle.load(f)", "from pickle import loads; loads(f)", "import torch as t; t.load(f)",
        "import torch; torch.load(f, weights_only=False)", "import torch; torch.load(f, weights_only=x)",
        "import subprocess; subprocess.run('x', shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "import numpy as np; np.load(f, allow_pickle=True)", "import zipfile; zipfile.ZipFile(f)",
        "tar.extractall()", "tar.extract('x')",
        "from tarfile import open as o; o(f)",
    ],
)  # fmt: skip
def test_the_search_for_dangers_finds_them(code: str) -> None:
    assert len(list(dangers(code))) == 1


@pytest.mark.parametrize(
    "code", ["model.eval()", "re.compile(x)", "torch.load(f, weights_only=True)", "pickle.dumps(x)"]
)
def test_the_search_for_dangers_finds_no_others(code: str) -> None:
    assert list(dangers(code)) == []


class Payload:
    """What a malicious pickle holds: read without care, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.proof, "executed")


def legacy(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def newer(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(path: Path, content: object) -> None:
    torch.save(content, path)


@pytest.mark.parametrize("write", [legacy, newer, zipped])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"state_dict": {"conv.weight": evil}},
        lambda evil: {"state_dict": network().state_dict(), "bomb": evil},
    ],
    ids=["alone", "as a tensor", "beside tensors"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, write: Callable[[Path, object], None], wrap: Callable[[object], object]
) -> None:
    proof = tmp_path / "proof"
    for name in ("x.pth", "x.pt", "x.bin", "x.ckpt", "x.safetensors"):
        write(tmp_path / name, wrap(Payload(proof)))
        reason = "" if name == "x.safetensors" else " is refused.*could run code"
        with pytest.raises(BackboneError, match=f"{name}{reason}") as caught:
            read_weights(tmp_path / name)
        assert "safetensors" in caught.value.hint or not reason
    assert not proof.exists()
    file = tmp_path / "x.pth"
    torch.load(file, weights_only=False) if write is zipped else pickle.loads(file.read_bytes())
    assert proof.read_text() == "executed"  # it would have been


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pth"])
def test_a_malicious_file_in_a_timm_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    zipped(tmp_path / name, Payload(tmp_path / "proof"))
    with pytest.raises(BackboneError, match=name):
        backbones.load(backbones.architecture("auto", weights=tmp_path), num_classes=2)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"]
)
def test_arguments_of_the_network_name_no_files(tmp_path: Path, key: str) -> None:
    evil = tmp_path / "x.pth"
    zipped(evil, Payload(tmp_path / "proof"))
    value: object = {"file": str(evil)} if key.startswith("pretrained_") else str(evil)
    config = {"architecture": "test_resnet", "model_args": {key: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    chosen = recipe_of(overrides={"backbone.model_args": {key: value}})
    with pytest.raises(BackboneError, match=f"model_args names '{key}'"):
        backbones.architecture("test_resnet", model_args=chosen.backbone.model_args)
    with pytest.raises(BackboneError, match=f"model_args names '{key}'"):
        read_config(tmp_path)
    assert not (tmp_path / "proof").exists()


def test_the_data_config_of_a_folder_names_no_files(tmp_path: Path) -> None:
    evil = tmp_path / "x.pth"
    zipped(evil, Payload(tmp_path / "proof"))
    places = {"file": str(evil), "url": evil.as_uri(), "hf_hub_id": "a/b", "source": "file", "custom_load": True}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {**places, "crop_pct": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    of = backbones.architecture("auto", weights=tmp_path)
    assert not set(places) & set(of.pretrained_cfg)
    assert of.pretrained_cfg["crop_pct"] == 0.5
    with pytest.raises(BackboneError, match="another network's"):
        backbones.load(of, num_classes=2)
    assert not (tmp_path / "proof").exists()


def test_a_recipe_is_data(tmp_path: Path) -> None:
    text = "__import__('pathlib').Path('proof').write_text('x')"
    (tmp_path / "r.toml").write_text(f'[data]\npath = "{text}"\nlabel_column = "!!python/object:x {{{{1+1}}}} $(id)"\n')
    read = recipe.load(tmp_path / "r.toml")
    assert read.data.path == text
    assert read.data.label_column == "!!python/object:x {{1+1}} $(id)"
    assert recipe.loads(recipe.dump(read), source="again") == read


def test_a_table_may_name_files_outside_of_its_folder_and_says_so(tmp_path: Path) -> None:
    """They are read as images and nothing else; what is written goes to the run folder alone."""
    (tmp_path / "table").mkdir()
    for name in ("out.png", "table/in.png", "table/..x.png"):
        (tmp_path / name).write_bytes(b"")
    whole, inside = tmp_path / "out.png", tmp_path / "table/in.png"
    table = tmp_path / "table" / "t.csv"
    with table.open("w", newline="") as stream:
        named = ["image", "../out.png", str(whole), "in.png", str(inside), "../table/./in.png", "..x.png"]
        csv.writer(stream).writerows(zip(named, ["label", *"ababab"], strict=True))
    read = sources.read(table)
    assert [sample.file for sample in read.samples] == named[1:]
    assert read.notes == ("2 images lie outside the table's folder, e.g. ../out.png",)


def test_a_table_of_other_files_reads_no_text_of_them(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    (tmp_path / "t.csv").write_text("image,label\nsecret.txt,a\nsecret.txt,b\n")
    from finetune.data import checks

    with pytest.raises(DataError) as caught:
        checks.scan(sources.read(tmp_path / "t.csv", needs_two_classes=False))
    assert "the secret" not in caught.value.message + caught.value.hint


def test_every_command_takes_markup_from_the_module_that_spells_names_out() -> None:
    users = [file.name for file in SOURCES if "rich.markup" in file.read_text() or "import markup" in file.read_text()]
    assert users == ["terminal.py"]


NAMES = st.text(st.characters(exclude_categories=()), max_size=30) | st.text(st.sampled_from([*FORMULA_SIGNS, "x"]))


@settings(derandomize=True, database=None, max_examples=300)
@given(NAMES)
@example("'")
@example("''=x")
def test_a_guarded_name_is_no_formula_and_comes_back(name: str) -> None:
    assert unguarded_cell(guarded_cell(name)) == name
    assert not guarded_cell(name).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert unguarded_cell(name) == name or name.startswith("'")


@settings(derandomize=True, database=None, max_examples=300)
@given(NAMES)
@example("\x1b]0;title\x07")
@example("\x9b31m")
@example("\u202egpj.exe")
@example("\udcff")
def test_a_terminal_gets_nothing_to_obey(name: str) -> None:
    shown = printable(name)
    shown.encode()
    assert not any(letter < " " and letter != "\n" for letter in shown)
    assert not {"\x7f", "\x9b", "\u202e", "\u2066"} & set(shown)
    assert "\n" not in escape(name)
    if name.isascii() and name.isprintable():
        assert shown == name
