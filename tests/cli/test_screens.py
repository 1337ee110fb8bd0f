"""What a terminal of any width shows, and a file: no word is cut, no interval broken, no command split."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from finetune.checkpoint.run_folder import RunFolder
from finetune.cli import terminal
from finetune.cli.tables import table
from finetune.cli.terminal import wrapped
from tests.support import FLAGS, commands

WIDTHS = (120, 80, 60)
LEFT_OUT = re.compile(r"hidden at this width: .*?a\s+wider\s+terminal\s+or\s+a\s+file\s+shows\s+all", re.DOTALL)


def drawn(objects: list[tuple[Any, ...]], width: int | None) -> str:
    """Return what was printed as a terminal of some width shows it, or a file."""
    stream = io.StringIO()
    given = {} if width is None else {"width": width, "force_terminal": True, "color_system": None}
    console = terminal.Console(file=stream, **given)
    for each in objects:
        console.print(*each)
    return stream.getvalue()


@pytest.fixture
def printed(finetune_cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Run a command and return all that it has printed, before it was laid out."""

    def run(*words: object) -> list[tuple[Any, ...]]:
        kept: list[tuple[Any, ...]] = []
        monkeypatch.setattr(terminal.Console, "print", lambda self, *objects, **how: kept.append(objects))
        finetune_cli(*words)
        monkeypatch.undo()
        assert kept
        return kept

    return run


def check_whole(objects: list[tuple[Any, ...]]) -> None:
    """Assert that every width shows the words of the file, and only these, and no interval on two lines."""
    file = drawn(objects, None)
    assert "\x1b" not in file
    for width in WIDTHS:
        shown = drawn(objects, width)
        for line in shown.splitlines():
            assert line.count("[") == line.count("]"), (width, line)
            assert line.count("`") % 2 == 0, (width, line)
            assert not line.endswith("±") and not line.lstrip().startswith("±"), (width, line)
            assert len(line) <= width or "/" in line or "finetune " in line, (width, line)  # paths, commands
        words = set(LEFT_OUT.sub("", shown).split())
        assert words <= set(file.split()), (width, words - set(file.split()))
        if not LEFT_OUT.search(shown):
            assert words == set(file.split()), width


@pytest.fixture(scope="module")
def spaced(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place, under a name that no line has room for."""
    return shutil.copytree(place, tmp_path_factory.mktemp("names") / "a folder whose name has spaces and is long")


@pytest.mark.parametrize(
    "words",
    [
        ("backbones",),
        ("backbones", "vit*384*"),
        ("backbones", "show", "resnet50"),
        ("backbones", "show", "eva02_large_patch14_448"),
        ("recipes", "ls"),
        ("cache", "ls"),
        ("plan", "resnet18", "--layers"),
        ("plan", "resnet18", "--strategy", "gradual"),
        ("run", "--resume", "nowhere"),
        ("predict", "runs/nowhere", "imgs/*.jpg"),
        ("--help",),
        *((*words, "--help") for words in commands()),
        ("predict",),
        ("runn",),
        ("run", "--epochs"),
    ],
    ids=" ".join,
)
def test_no_width_cuts_a_word_or_an_interval(printed, words: tuple[str, ...]) -> None:
    check_whole(printed(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("run", "imgs", *FLAGS, "--epochs", "2", "--strategy", "top-k"),
        ("plan", "imgs", *FLAGS),
        ("check", "imgs", "--backbone", "embedded", "--image-size", "32"),
        ("compare", "--data", "imgs", *FLAGS, "--strategies", "head-only,linear-probe", "--epochs", "1"),
        ("backbones", "rank", "--data", "imgs", "embedded"),
        ("eval", "run"),
        ("predict", "run", "imgs", "--top", "3"),
        ("export", "run", "--format", "timm"),
        ("run", "--resume", "run"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_width_cuts_a_word_of_what_is_said_of_data(
    printed, spaced: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    places = {"imgs": str(spaced / "imgs"), "run": str(spaced / "runs" / "one")}
    inside = [places.get(word, word) if at else word for at, word in enumerate(words)]
    monkeypatch.chdir(tmp_path)
    check_whole(printed(*inside))


def test_a_file_has_every_note_on_one_line() -> None:
    note = "a note of many words " * 40
    assert drawn([(note,)], None) == note.rstrip() + "\n"


@pytest.mark.parametrize(
    "whole",
    [
        "`finetune run --resume runs/a`",
        "64% ± 12%",
        "0.812 [0.74, 0.88]",
        "[-0.25, -0.07]",
        "9.0 KiB",
        "98.2 MiB",
        "72 images",
        "--backbone embedded",
        "top1 0.976",
    ],
)
def test_what_is_read_as_one_stays_on_a_line_wherever_it_falls(whole: str) -> None:
    for before in range(1, 60):
        lines = wrapped(Text(f"{'x' * before} {whole} and more"), 60).plain.split("\n")
        assert any(whole in line for line in lines), (before, lines)


def test_a_command_that_is_longer_than_a_line_is_not_broken() -> None:
    command = f"finetune run --resume {'runs/' * 20}one --allow data"
    assert wrapped(Text(f"Resume it: {command}"), 60).plain == f"Resume it:\n{command}"


def test_a_command_in_a_hint_can_be_copied_where_a_path_has_spaces(finetune_cli, spaced: Path) -> None:
    run = spaced / "runs" / "one"
    done = finetune_cli("run", "--resume", run)
    assert f"finetune run --weights '{run}' --data DIR" in done.err
    assert RunFolder(run).resuming == f"finetune run --resume '{run}'"


def test_continued_lines_keep_the_indent_and_the_style() -> None:
    lines = wrapped(Text.from_markup(f"  [bold]{'word ' * 20}[/bold]"), 40)
    assert all(line.startswith("  word") for line in lines.plain.split("\n"))
    assert any(span.style == "bold" for span in lines.spans)


def test_a_narrow_table_drops_what_it_may_and_says_so() -> None:
    rows = [("a-name-of-a-class", "0.512 [0.41, 0.61]", "0.25 [0.11, 0.31]", "12 min")]
    made = table(["strategy", "val top1", "behind", "time"], rows, drop=["time"])
    assert "12 min" in drawn([(made,)], 80)
    narrow = drawn([(made,)], 62)
    assert "12 min" not in narrow and "hidden at this width: time" in narrow
    assert "0.512 [0.41, 0.61]" in narrow and "0.25 [0.11, 0.31]" in narrow


def test_a_name_that_is_too_long_gets_a_line_of_its_own() -> None:
    name = "a folder/" * 12 + "image.jpg"
    made = table(["file", "class"], [(name, "cat 0.987"), ("b.jpg", "dog 0.654")], words=["class"])
    lines = drawn([(made,)], 60).splitlines()
    assert lines[1] == name
    assert lines[2].strip() == "cat 0.987"
    assert lines[3].split() == ["b.jpg", "dog", "0.654"]


def test_names_are_no_emoji_and_no_markup() -> None:
    assert ":cat: [bold]" in drawn([(table(["class"], [(":cat: [bold]",)]),)], 80)
    assert ":cat:" in drawn([("the class :cat:",)], 80)


def test_help_shows_the_flags_of_a_command_whole_and_its_examples_as_they_are_typed(finetune_cli) -> None:
    out = finetune_cli("run", "--help").out
    assert out.startswith("Usage: finetune run [OPTIONS] [DATA]\n")
    for words in ("  --pretrained/--no-pretrained ", "  --set SECTION.KEY=VALUE ", "  --out DIR ", "  --json "):
        assert f"\n{words}" in out
    assert "\n  finetune run imgs --backbone resnet18 --strategy top-k --top-k 2\n" in out
    assert not {"<", "│"} & set(out)


@pytest.mark.parametrize(
    ("words", "message", "asked"),
    [
        (("runn",), "No such command 'runn'", "finetune --help"),
        (("predict",), "Missing argument 'RUN'", "finetune predict --help"),
        (("run", "--epochs"), "requires an argument", "finetune"),
        (("predict", "a", "b", "--top", "0"), "Invalid value for '--top'", "finetune predict --help"),
        (("backbones", "rank", "--sampel", "3"), "No such option: --sampel", "finetune backbones rank --help"),
    ],
)
def test_a_wrong_flag_is_an_error_of_ours_with_its_help(finetune_cli, words, message: str, asked: str) -> None:
    done = finetune_cli(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err.splitlines()[0] and done.err.startswith("error: ")
    assert done.err.splitlines()[1].startswith(f"hint: `{asked}")


def test_no_command_at_all_shows_the_help_and_the_version_is_the_version(finetune_cli) -> None:
    import finetune

    assert finetune_cli().out.rstrip() == finetune_cli("--help").out.rstrip()
    assert finetune_cli("--version")[:2] == (0, f"{finetune.__version__}\n")
