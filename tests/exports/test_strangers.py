"""The clients of docs/export.md give a run's answers from files; each is skipped where its language is not."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from functools import cache
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import pytest
from PIL import Image

import finetune
from finetune.exports.client import Client
from tests.support import QUICK, ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), "")
WEB = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


class Shared(NamedTuple):
    """What a stranger is given: a file that does everything inside, one that standardises; and the run's answers."""

    full: Path
    uint8: Path
    labels: Path
    files: list[str]
    answers: list[str]


@pytest.fixture(scope="module")
def shared(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    place = tmp_path_factory.mktemp("shared")
    run = finetune.run(
        drawn,
        strategy="linear-probe",
        backbone="test_resnet",
        out=place / "run",
        overrides={"split.val": 0.4},
        **QUICK,
    ).folder
    full, uint8 = (
        finetune.export(run, out=place / inside / "model.onnx", preprocessing=inside).path  # type: ignore[arg-type]
        for inside in ("full", "uint8")
    )
    root = tomllib.loads((run / "recipe.toml").read_text())["data"]["path"]
    rows = csv.DictReader((run / "split.csv").open())
    files = [str(Path(root, row["file"])) for row in rows if row["split"] == "val"]
    answers = finetune.load(run, device="cpu").predict(files).labels
    assert len(set(answers)) >= 3  # else a client that sees nothing would be right, too
    return Shared(full, uint8, full.with_name("labels.txt"), files, answers)


def block(language: str, *, of: str) -> str:
    """Return the code of the docs in a language that has some words in it."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    return next(code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if of in code)


def answers_of(command: list[object], *, cwd: Path) -> list[str]:
    said = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    return [line.split(" ", 1)[0] for line in said.stdout.splitlines()]


@cache
def node_modules() -> Path | None:
    """Return where Node's packages lie: on NODE_PATH, or where npm puts those of the whole machine."""
    if not shutil.which("node"):
        return None
    places = [place for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    if shutil.which("npm"):
        places += subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.split()
    return next((Path(place) for place in places if (Path(place) / "onnxruntime-web").is_dir()), None)


def needs(package: str) -> Path:
    found = node_modules()
    if found is None or not (found / package).is_dir():
        pytest.skip(f"Node or its package {package} is not there (NODE_PATH)")
    return found


def test_python_takes_files(shared: Shared, tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    client.write_text(block("python", of="image[None]}"))
    assert answers_of([sys.executable, client, shared.full, *shared.files], cwd=tmp_path) == shared.answers


def test_node_takes_files(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(needs("sharp"))
    client = tmp_path / "client.mjs"
    client.write_text(block("js", of="onnxruntime-node"))
    command = ["node", client, shared.full, shared.labels, *shared.files]
    assert answers_of(command, cwd=tmp_path) == shared.answers


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")
def test_opencv_takes_pixels(shared: Shared, tmp_path: Path) -> None:
    code, known = block("python", of="cv2.dnn"), Client(shared.uint8)
    side = known.preprocessing["image_size"][0]
    client = tmp_path / "client.py"
    client.write_text(code.replace("182, 160", f"{side}, {side}"))  # pixels that are cut out already stay as they are
    pixels = []
    for number, file in enumerate(shared.files):
        pixels.append(tmp_path / f"{number}.png")
        Image.fromarray(known.read(Path(file))).save(pixels[-1])
    command = [sys.executable, client, shared.uint8, shared.labels, *pixels]
    assert "182, 160" in code and answers_of(command, cwd=tmp_path) == shared.answers


def serving(root: Path, posted: Queue[str]) -> ThreadingHTTPServer:
    """Return a server of a folder that keeps what its pages post."""

    class Page(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(root))

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def guess_type(self, path: Any) -> str:
            return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Page)


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_browser_takes_files(shared: Shared, tmp_path: Path) -> None:
    web, root = needs("onnxruntime-web") / "onnxruntime-web" / "dist", tmp_path / "root"
    (root / "ort").mkdir(parents=True)
    for name in WEB:
        shutil.copy(web / name, root / "ort")
    for file in (shared.full, shared.labels):
        shutil.copy(file, root)
    for number, file in enumerate(shared.files):
        shutil.copy(file, root / f"{number}.jpg")
    asks = f"""
const said = [];
for (let n = 0; n < {len(shared.files)}; n++) said.push(await named(await (await fetch(`${{n}}.jpg`)).blob()));
await fetch("said", {{ method: "POST", body: JSON.stringify(said) }});
</script>"""
    (root / "index.html").write_text(block("html", of="ort.wasm").replace("</script>", asks))

    posted: Queue[str] = Queue()
    with serving(root, posted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        with subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", address],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as browser:  # fmt: skip
            try:
                said = posted.get(timeout=120)
            finally:
                browser.terminate()
                server.shutdown()
    assert json.loads(said) == shared.answers
