"""`check`: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.grid import Grid
from finetune.cli.help import examples
from finetune.cli.options import DATA, JsonOption, RecipeOption, base_recipe, recipe_options
from finetune.cli.screen import watching
from finetune.cli.terminal import Console, escape
from finetune.errors import RecipeError, printable
from finetune.wording import apart, counted

if TYPE_CHECKING:
    from finetune.data.findings import Case, Finding
    from finetune.data.summary import Pictures
    from finetune.workflow.check import Check, Judged

EXAMPLES = "Ends with 9 when something would spoil a result.\n\n" + examples(
    "check imgs --quick", "check imgs --sheet worst.png", "check imgs --groups imgs.csv"
)
FLAGS = (
    "data", "task", "group_by", "val", "test", "backbone", "weights", "image_size", "seed", "device", "workers",
    "threads",
)  # fmt: skip
MOST_CLASSES = 12  # more are summed up in one line
MOST_FILES = 4  # shown of one case


@partial(recipe_options, flags=FLAGS)
def check(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    name: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Short for --data PATH.", show_default=False)
    ] = None,
    recipe: RecipeOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what needs a backbone: labels, odd images.")
    ] = False,
    alike: Annotated[
        float,
        typer.Option("--alike", metavar="SHARE", help="Least correlation of near copies; 1: exact copies only."),
    ] = 0.98,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Examples of each finding.")] = 5,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PNG", help="Draw the worst images there.", rich_help_panel=DATA)
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            metavar="CSV",
            help="Write a table there in which copies are groups, for `run --group-by group`.",
            rich_help_panel=DATA,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Tell what is wrong with a data set before training: copies, leaks, wrong labels."""
    if name is not None and settings.setdefault("data", name) != name:
        raise RecipeError(f"two data sets: {name} and --data {settings['data']}", hint="Name one of them.")
    base = base_recipe(recipe, settings, overrides)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.check import check as examine

        checked = examine(
            quick=quick, alike=alike, sheet=sheet, groups=groups, recipe=base, overrides=overrides, on_event=on_event,
            **settings,
        )  # fmt: skip
    if json_:
        tables.print_json(checked.to_json())
    else:
        show_check(checked, most=show)
        for path in filter(None, (sheet, groups)):
            tables.out().print(f"written: [bold]{_shown(str(path))}[/bold]")
    checked.raise_if_spoiled()


def show_check(checked: Check, *, most: int) -> None:
    """Print what a data set is and what is wrong with it, with a limited number of examples of each finding."""
    console = tables.out()
    console.print(f"{counted(checked.num_images, 'image')} {_having(checked)}: {_shown(checked.data)}")
    for note in checked.notes:
        console.print(f"[yellow]note:[/yellow] {_shown(note)}")
    console.print(f"{_pictures(checked.pictures, checked.num_images)}\n")
    _show_classes(console, checked.classes)
    for finding in checked.findings:
        console.print()
        _show_finding(console, finding, most)
    console.print()
    if not checked.findings:
        console.print("no problems found")
    if checked.judged and not checked.judged.num_images:
        console.print("labels were not judged: no class has enough images")
    elif checked.judged:
        console.print(_judged(checked.judged))
    else:
        console.print("labels and odd images were not checked (--quick)")


def _having(checked: Check) -> str:
    """Return what the images have, in words."""
    if checked.task == "regress":
        return "with a number"
    count = counted(len(checked.classes), "class", "classes")
    return f"in {count}" if checked.task == "classify" else f"with any of {count}"


def _judged(judged: Judged) -> str:
    """Return one sentence about what judged the labels, and how reliable it is."""
    among = apart(judged.num_images, judged.num_independent)
    scores = {"top1": judged.top1} if judged.top1 else judged.scores
    told = [f"{name} {score.value:.3f} (95 %: {score.low:.3f} to {score.high:.3f})" for name, score in scores.items()]
    model = "classifier" if judged.top1 else "model"
    return (
        f"labels of {counted(judged.num_images, 'image')}{among} were judged by a linear {model} on"
        f" {_shown(judged.backbone)}, {', '.join(told)}"
    )


def _show_classes(console: Console, classes: dict[str, dict[str, int]]) -> None:
    counts = list(classes.values())
    if len(classes) <= MOST_CLASSES:
        rows = [(printable(name), *(f"{n:,}" for n in count.values())) for name, count in classes.items()]
        console.print(tables.table(["class", *counts[0]], rows))
        return
    for part in counts[0]:
        sizes = sorted(count[part] for count in counts)
        console.print(
            f"{part}: {sum(sizes):,}; per class {sizes[0]:,} to {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}"
        )


def _pictures(pictures: Pictures, total: int) -> str:
    formats = ", ".join(f"{count:,} {name}" for name, count in pictures.formats.items())
    colours = {0: "all in colour", total: "all grey"}.get(pictures.num_grey, f"{pictures.num_grey:,} grey")
    seen_in = colours if pictures.channels == 3 else counted(pictures.channels, "channel")
    sizes = [f"{width}x{height}" for width, height in (pictures.smallest, pictures.median, pictures.largest)]
    size = f"all {sizes[0]}" if sizes[0] == sizes[2] else f"{sizes[0]} to {sizes[2]}, median {sizes[1]}"
    seen = ""
    if pictures.shown is not None and pictures.shown[1] < 1:
        seen = (
            f"; the plain view shows {pictures.shown[0]:.0%} of the median one, {pictures.shown[1]:.0%} of the longest"
        )
    return f"{formats}; {seen_in}; {size} pixels{seen}"


def _show_finding(console: Console, finding: Finding, most: int) -> None:
    colour, word = ("red", "spoils results") if finding.spoils else ("yellow", "note")
    console.print(f"[bold {colour}]{finding.kind}[/bold {colour}] ({word}): {_shown(finding.text)}")
    shown = finding.cases[:most]
    if shown and any(case.files for case in shown):
        console.print(_files(shown))
    else:
        for case in shown:
            console.print(f"  {_shown(case.note)}")
    if most and len(finding.cases) > most:
        console.print(f"  and {len(finding.cases) - most:,} more: --show N, or all with --json")
    if finding.advice:
        console.print(f"  [dim]{_shown(finding.advice)}[/dim]")


def _files(cases: tuple[Case, ...]) -> Grid:
    rows: list[tuple[str, ...]] = []
    for case in cases:
        for place, image in enumerate(case.files[:MOST_FILES]):
            note = case.note if place == 0 else ""
            rows.append(
                (f"  {printable(image.file)}", printable(image.label or ""), image.split or "", printable(note))
            )
        if len(case.files) > MOST_FILES:
            rows.append((f"  and {len(case.files) - MOST_FILES} more like it", "", "", ""))
    headers = ("file", "class", "split", "note")
    return tables.table(headers, rows, words=headers[1:], has_header=False)


def _shown(text: str) -> str:
    return escape(printable(text))
