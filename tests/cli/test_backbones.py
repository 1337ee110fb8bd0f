"""`finetune backbones` as a user types it: the list at once, one network, folders, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from finetune.workflow.backbones import Wish, list_backbones

PEEK = (
    "import sys; sys.argv = ['finetune', *sys.argv[1:]]\n"
    "from finetune.cli import main\n"
    "try: main()\n"
    "finally: print([m for m in ('torch', 'timm', 'numpy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
)


@pytest.mark.parametrize(
    "words", [(), ("resnet",), ("show", "resnet50"), ("--json",), ("--help",), ("--offline",), ("--all",)]
)
def test_the_list_answers_without_torch_and_timm(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", PEEK, "backbones", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert done.stdout


def test_without_a_word_the_best_at_every_compute_are_listed(finetune_cli) -> None:
    lines = finetune_cli("backbones").out.splitlines()
    rows = [line.split() for line in lines[1 : lines.index("")]]
    compute, top1 = [float(row[2]) for row in rows], [float(row[4]) for row in rows]
    assert len(rows) > 10
    assert compute == sorted(compute)
    assert top1 == sorted(top1)
    assert "no other beats" in lines[-2]


def test_a_filter_and_limits_narrow_the_list(finetune_cli) -> None:
    done = finetune_cli("backbones", "resnet", "--max-params", "30")
    num_found = len(list_backbones("resnet", Wish(max_params=30)))
    assert f"30 of {num_found}" in done.out
    assert "--all" in done.out
    rest = finetune_cli("backbones", "resnet", "--max-params", "30", "--all")
    assert len(rest.out.splitlines()) == len(done.out.splitlines()) + num_found - 30
    options_first = finetune_cli("backbones", "--max-params", "30", "resnet")
    assert options_first.out == done.out
    assert "within all limits" in finetune_cli("backbones", "resnet", "--max-params", "0.001").out


@pytest.mark.parametrize("words", [(), ("vit", "--all"), ("swinv2",), ("show", "swinv2_large_window12_192")])
def test_the_output_fits_into_80_columns_of_a_terminal(words: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.argv = ['finetune', *sys.argv[1:]]\n"
        "from rich.console import Console; Console.is_terminal = property(lambda self: True)\n"
        "from finetune.cli import main; main()"
    )
    variables = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", code, "backbones", *words], capture_output=True, text=True, env=variables, check=True
    )
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_one_document_of_everything_that_is_found(finetune_cli) -> None:
    found = json.loads(finetune_cli("backbones", "resnet", "--max-params", "30", "--json").out)
    assert len(found) == len(list_backbones("resnet", Wish(max_params=30)))
    assert {"name", "num_parameters", "gmacs", "imagenet_top1_percent", "licence", "is_on_this_machine"} <= set(
        found[0]
    )
    assert len(json.loads(finetune_cli("backbones", "--json").out)) > 1000
    shown = json.loads(finetune_cli("backbones", "show", "resnet50.tv_in1k", "--json").out)
    assert (shown["licence"], shown["num_parameters"]) == ("bsd-3-clause", 25_557_032)


def test_show_says_how_to_use_it(finetune_cli) -> None:
    out = finetune_cli("backbones", "show", "resnet50").out
    assert all(
        words in out
        for words in ("25,557,032", "stem layer1..4 head", "80.4 %", "apache-2.0", "--backbone resnet50", "tv_in1k")
    )
    assert "--no-pretrained" in finetune_cli("backbones", "show", "mobilenetv2_035").out


def test_help_of_the_group_shows_the_options_of_the_list_and_the_commands(finetune_cli) -> None:
    out = finetune_cli("backbones", "--help").out
    assert all(word in out for word in ("FILTER", "--max-params", "--licence", "--plot", "show", "fetch"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("resnt50",), 4, "Did you mean 'resnet50'"),
        (("show", "resnt50"), 4, "Did you mean 'resnet50'"),
        (("--family", "resnt"), 2, "Did you mean 'resnet'"),
        (("--min-top1", "0.8"), 2, "percent"),
        (("--plot", "a.jpg"), 2, ".svg or .png"),
        (("fetch", "test_resnet", "--to", "weights"), 4, "finetune backbones fetch NAME --to DIR"),
    ],
)
def test_a_mistake_is_one_clear_error(
    finetune_cli, monkeypatch, tmp_path, words: tuple[str, ...], code: int, said: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    done = finetune_cli("backbones", *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_plot_is_written_and_named(finetune_cli, tmp_path) -> None:
    done = finetune_cli("backbones", "resnet18", "--plot", tmp_path / "a.svg")
    assert done.out.strip() == str(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000
