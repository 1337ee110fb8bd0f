"""Judge a backbone on real sets: python tools/embedded/measure.py --data SET... --embedded FOLDER --other FOLDER...

For every set, seed and start (the same network from scratch, the embedded weights, others' weights):
a head solved on frozen features, and full fine-tuning, val top1. Sets must not have taken part in the
pretraining. Results are appended to a file, so a stopped run goes on where it was.

Source: the share of the way from scratch to ImageNet weights, as in Kataoka et al. 2020.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import finetune
from finetune.data import sources

VAL = 0.3


def starts(chosen: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield who starts (a name), with which strategy, and the settings of the run."""
    embedded = {"weights": chosen.embedded}
    yield "scratch", "scratch", {**embedded, "pretrained": False, "epochs": chosen.scratch_epochs}
    for name, weights in (("embedded", embedded), *((other.name, {"weights": other}) for other in chosen.other)):
        yield name, "linear-probe", weights
        yield name, "full", {**weights, "epochs": chosen.epochs}


def subset(data: Path, place: Path, *, most: int, seed: int) -> Path:
    """Lay links to at most `most` images of a set, its classes equally thinned."""
    manifest = sources.read(data)
    by_class: dict[int, list[str]] = {}
    for sample in manifest.samples:
        by_class.setdefault(sample.target.index, []).append(sample.file)
    share = min(1.0, most / len(manifest.samples))
    for index, files in by_class.items():
        folder = place / data.name / manifest.classes[index]
        folder.mkdir(parents=True)
        chosen = random.Random(seed).sample(files, max(4, round(share * len(files))))
        for number, file in enumerate(chosen):
            source = Path(manifest.root, file).resolve()
            (folder / f"{number}{source.suffix}").symlink_to(source)
    return place / data.name


def main() -> None:
    """Measure what is missing, then print the table."""
    chosen = _options()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    lines = chosen.out.read_text().splitlines() if chosen.out.is_file() else []
    done = {tuple(row[:4]): row[4] for row in map(json.loads, lines)}
    for seed in range(chosen.seeds):
        for data in chosen.data:
            with tempfile.TemporaryDirectory() as place:
                images = subset(data, Path(place), most=chosen.most, seed=seed)
                for name, strategy, settings in starts(chosen):
                    key = (data.name, seed, name, strategy)
                    if key not in done:
                        done[key] = _top1(images, Path(place), strategy, seed, chosen.image_size, settings)
                        with chosen.out.open("a") as stream:
                            stream.write(json.dumps([*key, done[key]]) + "\n")
                        print(*key, f"{done[key]:.3f}", flush=True)
    _show(done)


def _top1(images: Path, place: Path, strategy: str, seed: int, size: int, settings: dict[str, object]) -> float:
    result = finetune.run(
        images, strategy=strategy, seed=seed, val=VAL, image_size=size, out=Path(tempfile.mkdtemp(dir=place)) / "run",
        overrides={"cache.folder": str(place), "split.seed": seed}, **settings,
    )  # fmt: skip
    return result.metrics["val"]["top1"]["value"]


def _show(done: dict[tuple[str, int, str, str], float]) -> None:
    columns = list(dict.fromkeys((name, strategy) for _, _, name, strategy in done))
    print("\n| set | " + " | ".join(f"{name}, {strategy}" for name, strategy in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    means: dict[str, list[float]] = {}
    for data in dict.fromkeys(key[0] for key in done):
        means[data] = [
            statistics.mean(value for key, value in done.items() if (key[0], key[2], key[3]) == (data, *column))
            for column in columns
        ]
    means["mean"] = [statistics.mean(values) for values in zip(*means.values(), strict=True)]
    for data, values in means.items():
        print(f"| {data} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--embedded", type=Path, required=True, help="the folder to judge")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="folders to compare with")
    parser.add_argument("--out", type=Path, default=Path("build/measured.jsonl"))
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--most", type=int, default=600, help="images of a set")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scratch-epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
