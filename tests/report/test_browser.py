"""Every page in a real browser: nothing is run that a file brought, nothing overflows, tables sort, dark is dark.

Skipped where there is no Chromium. The pages stand in frames of several widths of one page, which says what it saw.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune import recipe as recipes
from finetune.checkpoint.run_folder import RunFolder
from finetune.report import comparison, page
from finetune.report.answered import answered
from finetune.report.content import report_content
from finetune.report.searched import write_search
from finetune.report.standings import CurvePoint
from finetune.report.together import write_together
from finetune.types import EpochLine, Interval

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")
WIDTHS = (360, 768, 1280)
VILE = ("<script>alert(1)</script>", "x" * 200, "<img src=x onerror=alert(1)>", "a b c " * 30)
WATCH = "<script>window.errors=[];onerror=m=>{errors.push(m)};alert=m=>{errors.push('alert '+m)}</script>"
WRAPPER = """<body><script>
const pages = PAGES, widths = WIDTHS, found = [];
let left = pages.length * widths.length;
for (const name of pages) for (const width of widths) {
  const frame = document.createElement('iframe');
  frame.style.cssText = 'border:0;height:900px;width:' + width + 'px';
  frame.onload = () => {
    const inside = frame.contentDocument, root = inside.documentElement, sorted = [];
    for (const button of inside.querySelectorAll('th button')) {
      button.click();
      sorted.push(button.closest('th').getAttribute('aria-sort'));
    }
    const text = inside.body.innerText, small = [...inside.querySelectorAll('svg text')]
      .map(one => parseFloat(getComputedStyle(one).fontSize) * (one.getScreenCTM() || {a: 1}).a);
    found.push({name, width, over: root.scrollWidth - width, errors: frame.contentWindow.errors, sorted,
      paper: getComputedStyle(inside.body).backgroundColor, vile: text.includes('<script>alert(1)'),
      smallest: Math.min(...small, 99), unnamed: inside.querySelectorAll('svg:not([aria-label])').length});
    if (!--left) { const out = document.createElement('pre'); out.id = 'found'; out.textContent = JSON.stringify(found);
      document.body.append(out); }
  };
  frame.src = name;
  document.body.append(frame);
}
</script></body>"""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")


def large(finished: Path, place: Path) -> None:
    """Write the report of a run as it would be with 1,000 classes, some with names that break pages."""
    folder, torch_random = RunFolder(finished), torch.Generator().manual_seed(0)
    classes = [*VILE, *(f"class {number}" for number in range(1000 - len(VILE)))]
    targets = torch.randint(0, 1000, (3000,), generator=torch_random)
    logits = torch.randn(3000, 1000, generator=torch_random) + 4 * torch.eye(1000)[targets]
    metrics = json.loads(folder.metrics.read_text())
    history = [EpochLine(**json.loads(line)) for line in folder.epochs.read_text().splitlines()]
    files = [f"{VILE[0].replace('/', '|')}/{number}.jpg" for number in range(3000)]
    shown = answered("test", logits, targets, classes=classes, files=files, root=place.parent, num_train=[3] * 1000)
    recipe = recipes.load(folder.recipe)
    content = report_content(folder, recipe, metrics, history, delivered_epoch=2, answers=shown)
    page.write(place, {**content, "computed": [], "refit": None})


def several(place: Path) -> None:
    metrics = {"val": {name: Interval(0.5, 0.4, 0.6) for name in ("top1", "macro_f1", "ece", "balanced_accuracy")}}
    write_together(
        place,
        {
            "title": VILE[0], "data": VILE[1], "folder": VILE[2], "kind": "folds", "mean": metrics, "is_exported": True,
            "runs": {f"fold-{number}": metrics for number in range(1, 6)}, "out_of_fold": metrics["val"],
            "ensemble": metrics["val"], "failed": {"fold-9": VILE[0]},
        },
    )  # fmt: skip


def search(place: Path) -> None:
    def trial(number: int, study: str = "coarse") -> dict[str, Any]:
        score = 0.5 + number / 100
        params = {"optim.lr": 10.0 ** (-number % 5), "optim.name": VILE[number % 4], "train.batch_size": 8 + number}
        return {
            "study": study, "number": number, "params": params, "state": "done", "score": score, "loss": 1 - score,
            "curve": [score / 2, score], "reason": VILE[0],
        }  # fmt: skip

    trials = [trial(number) for number in range(30)]
    content = {"title": VILE[0], "data": VILE[1], "score": "top1", "checks": VILE, "curves": VILE, "recipe": VILE[2]}
    write_search(place, content, trials, usual=trial(0, "usual"), best=trials[-1])


def compared(place: Path) -> None:
    points = [CurvePoint(number, number / 10, 1 / number, float(number)) for number in (1, 2, 3)]
    half = Interval(0.5, 0.4, 0.6)
    standings = [
        SimpleNamespace(
            label=label, strategy=label, curves=[points], delivered_epochs=[3], metric="top1", score=half,
            difference=half, is_told_apart=True, seconds=30.0, num_trained=1000,
        )
        for label in VILE
    ]  # fmt: skip
    failed = (SimpleNamespace(strategy=VILE[0], seed=0, reason=VILE[1], hint=VILE[2]),)
    whole = SimpleNamespace(standings=standings, said=VILE, failed=failed, split="val", num_images=6, seeds=(0,))
    content = {"title": VILE[0], "data": VILE[1], "comparison": whole, "is_done": True, "num_classes": 2}
    more = {"task": "classify", "metric": "top1", "runs": [(name, name, 0) for name in VILE], "has_seeds": False}
    comparison.write(place, {**content, **more})


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the pages are served, each of which notes what goes wrong in it."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copy(finished / "report.html", root / "report.html")
    large(finished, root / "large.html")
    several(root / "several.html")
    search(root / "search.html")
    compared(root / "compare.html")
    pages = sorted(place.name for place in root.iterdir())
    for name in pages:
        text = (root / name).read_text()
        (root / name).write_text(text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{WATCH}', 1))
    wrapper = WRAPPER.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    (root / "all.html").write_text(wrapper)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/all.html"
    server.shutdown()


def seen(address: str, *more: str) -> list[dict[str, Any]]:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--window-size=1400,2000")
    done = subprocess.run(
        [CHROMIUM, *flags, *more, "--dump-dom", address], capture_output=True, text=True, check=True, timeout=300
    )
    found = re.search(r'<pre id="found">(.*)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(unescape(found[1]))
    assert len(rows) == 5 * len(WIDTHS)
    return rows


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)])
def test_pages_hold_in_a_browser(address: str, flags: tuple[str, ...], is_dark: bool) -> None:
    for row in seen(address, *flags):
        where = row["name"], row["width"]
        assert row["errors"] == [], where
        assert row["over"] <= 0, (where, row["over"])
        assert row["unnamed"] == 0, where
        assert row["smallest"] >= 8, (where, row["smallest"])
        assert row["vile"] == (row["name"] != "report.html"), where
        assert all(state in ("ascending", "descending") for state in row["sorted"]), where
        assert bool(row["sorted"]) == (row["name"] in ("report.html", "large.html")), where
        paper = sum(map(int, re.findall(r"\d+", row["paper"])[:3])) / 3
        assert (paper < 60) if is_dark else (paper > 200), (where, row["paper"])
