"""The corpus of bad and odd files: each becomes what it should, quietly, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data import checks, scan_memory, sources
from finetune.data.asked_images import asked_images
from finetune.images import decode, levels
from tests.corpus import EITHER, FLIPS, IGNORED, LISTED, USED, Odd, corpus, noise, write_corpus
from tests.support import mostly_slow, scanned

SECONDS = 300  # after which a child counts as hanging
PEAK = """
def peak():  # in MiB; the usual `ru_maxrss` of a child begins at what its parent had
    if sys.platform == "linux":
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
"""


def laid(root: Path) -> dict[str, Odd]:
    """Lay the corpus into a class of a data set, beside good images."""
    odd = write_corpus(root / "ant")
    for number, name in enumerate(["ant", "bee"]):
        (root / name).mkdir(exist_ok=True)
        for index in range(3):
            noise(seed=900 + 10 * number + index).save(root / name / f"good-{index}.png")
    return odd


def test_the_corpus_has_every_verdict_and_many_kinds() -> None:
    made = corpus()
    assert len({odd.name for odd in made}) == len(made) >= 60 + FLIPS
    counts = Counter(odd.verdict for odd in made)
    assert counts[EITHER] == FLIPS
    assert min(counts[USED], counts[LISTED]) >= 60 and counts[IGNORED] >= 5
    assert [odd.name for odd in made if odd.verdict is LISTED and not odd.reason] == [
        odd.name for odd in made if odd.name.startswith("cut-1.")
    ]


def test_every_file_becomes_what_it_should_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = laid(tmp_path)
    manifest = scanned(tmp_path)
    used = {sample.file for sample in manifest.samples}
    listed = {problem.file: problem.reason for problem in manifest.problems}
    verdicts = {name: USED if f"ant/{name}" in used else LISTED if f"ant/{name}" in listed else IGNORED for name in odd}
    wrong = {
        name: (found, odd[name].verdict)
        for name, found in verdicts.items()
        if found is not odd[name].verdict and (odd[name].verdict is not EITHER or found is IGNORED)
    }
    assert wrong == {}
    reasons = {name: listed.get(f"ant/{name}", "") for name in odd}
    assert [(name, reasons[name]) for name in odd if odd[name].reason not in reasons[name]] == []
    assert not used & set(listed)
    assert {Path(file).name for file in used if "good-" in file} == {f"good-{index}.png" for index in range(3)}
    assert all("\n" not in reason for reason in listed.values())
    assert capfd.readouterr() == ("", "")


def test_a_second_scan_of_the_corpus_says_the_same(tmp_path: Path) -> None:
    laid(tmp_path)
    assert scanned(tmp_path) == scanned(tmp_path)


def in_a_child(code: str, *arguments: object, cache: Path) -> int:
    """Run Python code in a process of its own and yield by how many MiB its `work()` made it grow."""
    frame = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)  # rather a MemoryError than a sick machine\n"
        f"{code}\n"
        f"{PEAK}\n"
        "before = peak()\nwork()\nprint(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", frame, *map(str, arguments)],
        capture_output=True, text=True, timeout=SECONDS, cwd=Path(__file__).parents[2],
        env={**os.environ, "FINETUNE_CACHE": str(cache)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


def test_a_scan_of_the_corpus_takes_little_memory(tmp_path: Path) -> None:
    """It holds a file of 2 GiB, bombs of up to 3,600 MP, and 100 MB of text in a small image."""
    laid(tmp_path / "imgs")
    code = (
        "from finetune.data import checks, sources\n"
        "def work(): checks.scan(sources.read(sys.argv[1]), workers=4)\n"
    )  # fmt: skip
    assert in_a_child(code, tmp_path / "imgs", cache=tmp_path / "cache") < 200


def test_views_of_strips_take_little_memory(tmp_path: Path) -> None:
    write_corpus(tmp_path / "imgs")
    strips = [tmp_path / "imgs" / name for name in ("one-row.png", "one-column.png", "wide.jpg", "wide.tif")]
    code = (
        "from pathlib import Path\n"
        "from finetune.images.decode import read_rgb\n"
        "from finetune.images.transforms import picture_side, plain_view, augmented_view\n"
        "from finetune.settings import AugmentSection\n"
        "from finetune.types import Preprocessing\n"
        "how = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3)\n"
        "def work():\n"
        "    for file in sys.argv[1:]:\n"
        "        image = read_rgb(Path(file), side=picture_side(how))\n"
        "        assert plain_view(how)(image).shape == (3, 224, 224)\n"
        "        assert augmented_view(how, AugmentSection())(image).shape == (3, 224, 224)\n"
    )
    assert in_a_child(code, *strips, cache=tmp_path / "cache") < 300


@pytest.mark.parametrize(
    ("name", "mode", "most"),
    mostly_slow(
        [("x.png", "RGB", 1), ("x.png", "RGBA", 2), ("x.png", "LA", 2), ("x.tif", "I;16", 2), ("x.tif", "F", 3)],
        *[("x.png", "RGBA", 2), ("x.tif", "F", 3)],
    ),
)
def test_a_large_picture_lies_in_memory_little_more_than_twice(tmp_path: Path, name: str, mode: str, most: int) -> None:
    """Once as it is decoded, once in RGB where it is not already, a band on the way; a TIFF's file is as large."""
    Image.new(mode, (5000, 4000)).save(tmp_path / name)
    code = (
        "from pathlib import Path\n"
        "from finetune.images.decode import read_rgb\n"
        "def work(): assert min(read_rgb(Path(sys.argv[1]), side=300).size) == 300\n"
    )
    once = 5000 * 4000 * 4 / 2**20
    assert in_a_child(code, tmp_path / name, cache=tmp_path / "cache") < (most + 0.5) * once


@pytest.mark.filterwarnings("error")
def test_bands_of_a_large_picture_are_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = [o for o in corpus() if o.name.split(".")[0] in ODD_MODES]
    assert {o.name.split(".")[0] for o in odd} == set(ODD_MODES)
    for one in odd:
        content = content_of(one)
        whole = decode.decode(content)
        with monkeypatch.context() as patched:
            patched.setattr(decode, "LARGE", 10)
            patched.setattr(levels, "BAND", 100)
            assert decode.decode(content).tobytes() == whole.tobytes(), one.name


ODD_MODES = (
    "alpha", "cmyk", "palette", "see-through-palette", "see-through", "float", "not-a-number", "32-bit", "16-bit",
    "16-bit-colours", "one-bit", "grey", "lab", "fax", "nothing-to-see",
)  # fmt: skip


def content_of(odd: Odd) -> bytes:
    kept: list[bytes] = []

    class Kept:
        def write_bytes(self, content: bytes) -> None:
            kept.append(content)

    odd.write(Kept())  # type: ignore[arg-type]
    return kept[0]


def test_of_large_pictures_one_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are decoded side by side: two threads meet; large ones must not."""
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        noise(seed=number).save(file)
    monkeypatch.setattr(scan_memory, "cache_folder", lambda: Path("/dev/null/cache"))
    inside: list[int] = []
    most = watch(monkeypatch, inside)
    list(checks.scan_files(files, workers=4))
    assert most() > 1
    monkeypatch.setattr(decode, "LARGE", 10)
    inside.clear()
    list(checks.scan_files(files, workers=4))
    assert most() == 1


def watch(monkeypatch: pytest.MonkeyPatch, inside: list[int]) -> Callable[[], int]:
    """Count the threads that convert images at the same time; each waits a little for others to come."""
    lock, now, others = threading.Lock(), [0], threading.Semaphore(0)
    original = decode._rgb

    def counted(image: Any) -> Any:
        with lock:
            now[0] += 1
            inside.append(now[0])
        others.release()
        others.acquire()
        others.acquire(timeout=0.2)  # another thread's, if one can come
        others.release()
        with lock:
            now[0] -= 1
        return original(image)

    monkeypatch.setattr(decode, "_rgb", counted)
    return lambda: max(inside)


def test_large_files_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "x.png")
    monkeypatch.setattr(checks, "LARGE_FILE", 10)
    asked: list[bool] = []
    original = decode.alone
    monkeypatch.setattr(checks, "alone", lambda is_large: asked.append(is_large) or original(is_large))
    assert next(checks.scan_files([tmp_path / "x.png"])).problem == ""
    assert asked == [True]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid(tmp_path)
    (tmp_path / "ant" / "closed").mkdir()
    original = os.scandir

    def guarded(path: Any = ".") -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = {problem.file: problem.reason for problem in sources.read(tmp_path).problems}
    assert found == {"ant/closed": "a folder that cannot be read: Permission denied"}
    assert str(tmp_path / "ant" / "closed") in [source.name for source in asked_images([tmp_path])]
