"""Which networks of timm can be exported, and how near the exports are: a table of families, formats and forms.

    python benchmarks/exports.py [--only NAME] [--out exports.jsonl]

Each network has random weights and six classes and sees drawn images at 64 pixels or the least size that it takes; what
is measured is whether it can be written, and how far a client's logits from files lie from the model's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import timm
import torch

from finetune.backbone.preprocessing import preprocessing_of
from finetune.data.sample import write_sample
from finetune.errors import FinetuneError
from finetune.exports.described import Described
from finetune.exports.exporting import Exporting
from finetune.exports.form import OnnxForm
from finetune.exports.onnx import write_in_form
from finetune.exports.proof import ProofImages, WholeSplit
from finetune.exports.torch_formats import write_torch
from finetune.images.decode import read_rgb
from finetune.images.transforms import normalise, plain_view
from finetune.types import ignore

CLASSES = ("a", "b", "c", "d", "e", "f")
NETWORKS = {  # the smallest of a family that there is, at a size that it takes
    "resnet18": 64, "resnext50_32x4d": 64, "seresnet50": 64, "regnetx_002": 64, "regnety_002": 64, "densenet121":
    64, "vgg11_bn": 64, "mobilenetv1_100": 64, "mobilenetv2_035": 64, "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64, "efficientnet_b0": 64, "tf_efficientnet_lite0": 64, "efficientnetv2_rw_t": 64,
    "mnasnet_050": 64, "ghostnet_050": 64, "rexnet_100": 64, "hardcorenas_a": 64, "repvgg_a0": 64, "mobileone_s0":
    64, "convnext_atto": 64, "convnextv2_atto": 64, "convmixer_768_32": 64, "poolformer_s12": 64,
    "edgenext_xx_small": 64, "fastvit_t8": 64, "nfnet_l0": 64, "inception_v3": 96, "xception41": 64,
    "hrnet_w18_small": 64, "dla34": 64, "res2net50_26w_4s": 64, "levit_128s": 224, "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "mixer_s32_224": 224,
    "maxvit_rmlp_pico_rw_256": 256, "efficientformer_l1": 224, "mobilevit_xxs": 64, "visformer_tiny": 224,
    "pit_ti_224": 224, "cait_xxs24_224": 224, "coat_lite_tiny": 224, "crossvit_tiny_240": 240, "tiny_vit_5m_224":
    224, "volo_d1_224": 224, "beit_base_patch16_224": 224, "eva02_tiny_patch14_224": 224, "hiera_tiny_224": 224,
    "repvit_m0_9": 64, "starnet_s1": 64, "inception_next_atto": 64,
}  # fmt: skip
FORMS = {
    "onnx": OnnxForm(),
    "full": OnnxForm("full"),
    "saliency": OnnxForm(saliency=True),
    "int8": OnnxForm(precision="int8", max_loss=100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--forms", nargs="*", default=["onnx", "torch"], choices=[*FORMS, "torch"])
    parser.add_argument("--out", type=Path, default=Path("exports.jsonl"))
    args = parser.parse_args()
    done = {json.loads(line)["network"] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    with tempfile.TemporaryDirectory() as place:
        write_sample(Path(place, "images"), per_class=3)
        for name in args.only or NETWORKS:
            if name not in done:
                row = {"network": name, **measured(name, NETWORKS.get(name, 224), Path(place), args.forms)}
                with args.out.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def measured(name: str, size: int, place: Path, forms: list[str]) -> dict[str, object]:
    """Return how far the export of each form is from the model, relative to the largest logit, or why there is none."""
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, num_classes=len(CLASSES)).eval().requires_grad_(False)
        own = preprocessing_of(model, name, size)
        files = sorted(Path(place, "images").rglob("*.jpg"))
        view = plain_view(own)
        images = normalise(torch.stack([view(read_rgb(file)) for file in files]), own)
        logits = model(images)
    except Exception as error:  # timm and torch have many
        return {"failed": str(error).split("\n")[0][:200]}
    proof = ProofImages(images[:7], files[:7], WholeSplit("val", files, logits, logits.argmax(dim=1)), files)
    row: dict[str, object] = {"size": size}
    for form in forms:
        began = time.perf_counter()
        try:
            what = Exporting(model, Described(CLASSES, own, architecture=name), proof, FORMS.get(form, OnnxForm()))
            if form == "torch":
                parity = write_torch(what, place, ignore)
            else:
                parity = write_in_form(model, place / "model.onnx", proof, what.described, what.form)
            row[form] = parity.largest_difference / max(parity.largest_logit, 1e-12)
            row[f"{form} seconds"] = round(time.perf_counter() - began, 1)
            if form == "int8":
                row["int8 alike"] = f"{parity.whole.num_same}/{parity.whole.num_images}" if parity.whole else ""
            elif not parity.is_proven:
                row[form] = parity.failure
        except (FinetuneError, Exception) as error:
            row[form] = str(error).split("\n")[0][:200]
    return row


if __name__ == "__main__":
    main()
