"""Pretrain the embedded backbone on images from formulas alone: python tools/embedded/formula.py --out build/formula

The network learns to tell the formulas' categories apart. No photograph and no foreign weight takes part.

Source: Kataoka et al. 2020 (FractalDB); Takashima et al. 2023 (VisualAtom).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pictures import draw
from student import Average, student, train, views, write
from torch import Tensor
from torch.nn.functional import cross_entropy


def main() -> None:
    options = _options()
    torch.manual_seed(options.seed)
    drawn, labels = draw(num_categories=options.categories, per_category=options.per_category, seed=options.seed)
    pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2).to(options.device)
    targets = torch.from_numpy(labels).to(options.device)
    print(f"{len(pictures)} images in {options.categories} categories", flush=True)
    model = student(num_classes=options.categories, seed=options.seed, device=options.device)
    average = Average(model)

    def loss() -> Tensor:
        chosen = torch.randint(len(pictures), (options.batch,))
        seen = views([pictures[i] for i in chosen], smallest=options.smallest)
        return cross_entropy(model(seen), targets[chosen], label_smoothing=0.1)

    train(list(model.parameters()), loss, steps=options.steps, lr=options.lr, at_step=average.update)
    write(average.state, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--categories", type=int, default=400)
    parser.add_argument("--per-category", type=int, default=30)
    parser.add_argument("--smallest", type=float, default=0.3, help="smallest share of an image in a view")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
