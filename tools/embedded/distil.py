"""Pretrain the embedded backbone by distillation: python tools/embedded/distil.py --out build/distilled ...

The student begins as the teacher made narrower (narrow.py). Then both see the same strongly cropped and
recoloured view of a photograph, or an image drawn by a formula. The student learns the teacher's
feature maps at strides 8, 16 and 32 (through one 1x1 convolution each, dropped afterwards), its pooled
features, and what the teacher's own classifier makes of the student's features.

B batch, C channels, S side of a view, D features.

Source: Beyer et al. 2022 (a patient and consistent teacher); Asano & Saeed 2023 (few images are
enough); Romero et al. 2015 (hints); Chen et al. 2022 (the teacher's classifier reused).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from narrow import least_squares, narrow, rows
from pictures import draw
from safetensors.torch import load_file
from student import Average, mixed, student, train, views, write
from torch import Tensor, nn
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as pixels

STRIDES = (8, 16, 32)
SAMPLED = 640  # views that the student is narrowed and its adapters are fitted on
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    options = _options()
    torch.manual_seed(options.seed)
    photographs = [_read(path).to(options.device) for folder in options.images for path in _files(folder)]
    drawn = torch.from_numpy(draw(num_categories=options.formulas // 10, per_category=10, seed=options.seed)[0])
    drawn = drawn.permute(0, 3, 1, 2).to(options.device)
    print(f"{len(photographs)} photographs, {len(drawn)} drawn images", flush=True)

    teacher = timm.create_model(f"local-dir:{options.teacher}", pretrained=True).eval()
    teacher.to(device=options.device, memory_format=torch.channels_last)
    model = student(num_classes=0, seed=options.seed, device=options.device)
    if options.init:
        tensors = {key: tensor.float() for key, tensor in load_file(options.init / "model.safetensors").items()}
        model.load_state_dict(tensors, strict=False)
    sample = views([photographs[i] for i in torch.randint(len(photographs), (SAMPLED,))], smallest=0.3)
    if not options.init:
        narrow(model, teacher, sample)
    imitation = Imitation(model, teacher).to(options.device)
    imitation.fit_adapters(sample)
    average = Average(model)
    num_drawn = round(options.batch * options.share_drawn)

    def loss() -> Tensor:
        chosen = [photographs[i] for i in torch.randint(len(photographs), (options.batch - num_drawn,))]
        chosen += [drawn[i] for i in torch.randint(len(drawn), (num_drawn,))]
        return imitation(mixed(views(chosen, smallest=options.smallest)))

    def at_step(step: int) -> None:
        average.update(step)
        if step % 500 == 0:
            write(average.state, options.out)

    train(list(imitation.parameters()), loss, steps=options.steps, lr=options.lr, at_step=at_step)
    write(average.state, options.out)


class Imitation(nn.Module):
    """How far a student's features lie from its teacher's on the same batch."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model = model
        object.__setattr__(self, "teacher", teacher)  # no parameter of ours
        widths = [_by_stride(net) for net in (model, teacher)]
        self.adapters = nn.ModuleList(nn.Conv2d(widths[0][s], widths[1][s], 1) for s in STRIDES)
        self.norms = nn.ModuleList(nn.BatchNorm2d(widths[1][s], affine=False) for s in STRIDES)
        self.pooled_norm = nn.BatchNorm1d(teacher.head_hidden_size, affine=False)

    @torch.no_grad()
    def fit_adapters(self, batch: Tensor) -> None:
        """Begin with the adapters that suit the student as it is."""
        self.model.eval()
        for at, adapter in enumerate(self.adapters):
            ours, theirs = (
                rows(batch, lambda x, net=net, at=at: _features(net, x)[at]) for net in (self.model, self.teacher)
            )
            wanted = (theirs - theirs.mean(0)) / (theirs.std(0) + 1e-3)
            weight = least_squares(ours, wanted)
            adapter.weight.copy_(weight[:, :, None, None])
            adapter.bias.copy_(wanted.mean(0) - weight @ ours.mean(0))
        self.model.train()

    def forward(self, batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(batch.device.type, dtype=torch.bfloat16):
            *maps, pooled = _features(self.teacher, batch)
        teacher_maps, teacher_pooled = [m.float() for m in maps], pooled.float()
        *student_maps, student_pooled = _features(self.model, batch)
        loss = batch.new_zeros(())
        for adapter, norm, ours, theirs in zip(self.adapters, self.norms, student_maps, teacher_maps, strict=True):
            loss = loss + functional.smooth_l1_loss(adapter(ours), norm(theirs)) / len(STRIDES)
        with torch.no_grad():
            self.pooled_norm(teacher_pooled)  # running statistics only
        scale = torch.rsqrt(self.pooled_norm.running_var + 1e-4)
        loss = loss + functional.smooth_l1_loss(student_pooled * scale, teacher_pooled * scale)
        logits, targets = (self.teacher.classifier(f) for f in (student_pooled, teacher_pooled))
        return loss + functional.kl_div(
            logits.log_softmax(-1), targets.log_softmax(-1), log_target=True, reduction="batchmean"
        )


def _features(net: nn.Module, batch: Tensor) -> list[Tensor]:
    final, maps = net.forward_intermediates(batch)
    by_stride = {batch.shape[-1] // m.shape[-1]: m for m in maps}
    return [by_stride[s] for s in STRIDES] + [net.forward_head(final, pre_logits=True)]


def _by_stride(net: nn.Module) -> dict[int, int]:
    return {info["reduction"]: info["num_chs"] for info in net.feature_info}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read(path: Path, short_side: int = 208) -> Tensor:
    picture = decode_image(str(path), ImageReadMode.RGB)
    return pixels.resize(picture, [short_side], antialias=True) if min(picture.shape[-2:]) > short_side else picture


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="timm folder with a classifier")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from the weights of this folder")
    parser.add_argument("--formulas", type=int, default=4000, help="how many drawn images take part")
    parser.add_argument("--share-drawn", type=float, default=0.2, help="of every batch")
    parser.add_argument("--smallest", type=float, default=0.08, help="smallest share of an image in a view")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
