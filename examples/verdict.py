"""Trains on drawn images, and reads from Python what was measured of them, what was decided, and how it came out.

    python examples/verdict.py [FOLDER]

Needs no network and no data: the images are drawn, the backbone lies in the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import finetune


def main(place: Path) -> None:
    """Plan, train, measure and predict in an empty folder."""
    finetune.write_sample(place / "imgs", per_class=20)
    settings = {"backbone": "embedded", "image_size": 96}
    plan = finetune.plan(place / "imgs", **settings)
    assert plan.evidence is not None and plan.verdict is not None  # only a named strategy measures nothing

    print("top1 of a linear classifier on each layer group, with its 95 % interval:")
    for group, top1 in plan.evidence.probe.items():
        print(f"  {group:10} {top1.value:.2f} [{top1.low:.2f}, {top1.high:.2f}]")
    print(f"{plan.verdict.size} images, {plan.verdict.similarity}: {plan.verdict.strategy}")
    print(plan.verdict.reason)
    for phase in plan.phases:
        print(f"phase {phase.name}: {phase.epochs} epochs, trains {', '.join(phase.plan.trained)}")

    result = finetune.run(place / "imgs", out=place / "run", **settings)  # finds the features of the plan in the cache
    val = result.metrics["val"]["top1"]
    print(f"val top1 {val['value']:.2f} [{val['low']:.2f}, {val['high']:.2f}], report: {result.folder / 'report.html'}")
    new = finetune.write_sample(place / "new", per_class=1, seed=1)
    for prediction in finetune.load(result.folder).predict(new, top=2):
        likeliest = zip(prediction.classes, prediction.probabilities, strict=True)
        print(f"{Path(prediction.file).name}: {', '.join(f'{name} {share:.3f}' for name, share in likeliest)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-verdict"))
