"""The main job, offline: draws a data set, plans, trains, measures, predicts and exports on it.

    python tools/demo.py [FOLDER]

Works with no network and no data at hand: the images are drawn, the pretrained backbone lies in the package.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def step(*words: object) -> float:
    """Run `finetune WORDS...` as a user would, and yield its seconds."""
    console.print(f"\n[bold cyan]$ finetune {' '.join(map(str, words))}[/bold cyan]")
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "finetune", *map(str, words)], check=True)
    return time.monotonic() - began


def main(place: Path) -> None:
    """Run the session and print what it made."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    imgs, run = place / "imgs", place / "run"
    network = ("--backbone", "embedded")
    console.print("No model hub and no data needed: the images are drawn, the pretrained backbone lies in the package.")
    seconds = [
        ("drawn images", imgs, step("sample", imgs)),
        ("evidence and freeze plan", "(above)", step("plan", "--data", imgs, *network)),
        ("run folder", run, step("run", "--data", imgs, *network, "--strategy", "top-k", "--top-k", 2, "--test", 0.2,
                                 "--out", run)),
        ("report", run / "report.html", 0.0),
        ("measured on test", "(above)", step("eval", run, "--split", "test")),
        ("predictions", "(above)", step("predict", run, imgs / "striped-disc" / "striped-disc-000.jpg", "--top", 3)),
        ("ONNX, proven equal", run / "exports" / "model.onnx", step("export", run, "--format", "onnx")),
        ("timm folder", run / "exports" / "timm", step("export", run, "--format", "timm")),
    ]  # fmt: skip
    table = Table(title="What was made", title_justify="left", box=None, header_style="bold")
    for column in ("what", "where", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for what, where, took in seconds:
        table.add_row(what, str(where), f"{took:.1f}" if took else "")
    console.print()
    console.print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
