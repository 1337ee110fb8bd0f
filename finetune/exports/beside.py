"""What stands beside an export, for who has nothing else: its classes, a page to read, and a program that asks it.

The program is made of the functions that the proof of the export goes through (`client`), so that both see the same.
Letters: B batch, K classes.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.exports import client
from finetune.exports.card import card
from finetune.exports.client import PROOF
from finetune.exports.exporting import Exporting
from finetune.types import BRIGHTNESS

SHARED: tuple[Any, ...] = (
    client.prepared,
    client.of_stack,
    client.of_channels,
    client._own_range,
    client._cut,
    client._normalised,
    client._middle,
    client._resize,
    client._crop,
    client._start,
)

HEAD = '''"""Say what images show; give the names of their files as arguments.

Needs numpy, pillow and {needs}. {where} says what the classes are and how an image is prepared.
Prints a line for each image: the file, the answer, its probability. Ends with 3 where one cannot be read.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

MODEL = Path(__file__).with_name({model!r})
BRIGHTNESS = {brightness!r}  # of red, green and blue


def main(files):
    network, facts = loaded()
    rows, is_bad = csv.writer(sys.stdout, delimiter="\\t", lineterminator="\\n"), False
    for file in files:
        try:
            taken = input_of(file, facts["preprocessing"], facts.get("inside", "none"))
            logits = network(taken[None])[0]
        except Exception as error:  # whatever Pillow finds in a file
            rows.writerow([file, "", "", f"cannot be read: {{error}}"])
            is_bad = True
            continue
        rows.writerow([file, *answer(logits, facts)])
    return 3 if is_bad else 0


def loaded():
    """Return what makes logits (B, K) of a batch, and what is said of the network."""
{loading}


def answer(logits, facts):
    """Return what logits (K,) say, and how probable that is: a class, the classes of several, or a number."""
    activation = facts.get("activation", "softmax")
    if activation == "none":
        return f"{{logits[0]:g}}", ""
    if activation == "sigmoid":
        shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
        said = [place for place, least in enumerate(facts["thresholds"]) if shares[place] >= least]
        return "|".join(facts["classes"][place] for place in said), "|".join(f"{{shares[place]:.3f}}" for place in said)
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    best = int(logits.argmax())
    return facts["classes"][best], f"{{shares[best] / shares.sum():.3f}}"


def input_of(file, facts, inside):
    """Return what the network takes: of the numbers (H, W, C) of a .npy file, or of a picture."""
    if facts.get("depth", 8) != "full":
        return prepared(opened(file, facts), facts, inside)
    numbers = array_in(file) if is_array(file) else all_channels(file, facts)
    return of_stack(numbers, facts)


def is_array(file):
    return str(file).lower().endswith(".npy")


def array_in(file):
    """Return the numbers (H, W, C) of a .npy file."""
    numbers = np.load(file, mmap_mode="r", allow_pickle=False)
    if numbers.dtype.kind not in "uif" or numbers.ndim not in (2, 3) or not np.isfinite(numbers).all():
        kind = f"{{numbers.dtype}} of the shape {{numbers.shape}}"
        raise ValueError(f"{{kind}}: an image is (H, W) or (H, W, C), of finite numbers")
    return numbers[:, :, None] if numbers.ndim == 2 else numbers


def all_channels(file, facts):
    """Return what Pillow reads without a loss: 8 bits of each channel, or one deeper channel."""
    with Image.open(file) as found:
        bits = any(";16" in str(tile[3]) for tile in getattr(found, "tile", ())) and len(found.getbands()) > 1
        if bits or found.mode in ("P", "PA", "1") or len(found.getbands()) != facts["channels"]:
            raise ValueError(f"Pillow alone reads no {{facts['channels']}} channels of it: save it as .npy (H, W, C)")
        numbers = np.asarray(ImageOps.exif_transpose(found))
        return numbers[:, :, None] if numbers.ndim == 2 else numbers


def opened(file, facts):
    """Return the image of a file, upright: RGB on white with 8 bits a channel, or its four channels as CMYK."""
    if is_array(file):
        return pictured(array_in(file), facts)
    with Image.open(file) as found:
        if any(";16" in str(tile[3]) for tile in getattr(found, "tile", ())) and len(found.getbands()) > 1:
            raise ValueError("colours of 16 bits, of which Pillow keeps 8: save it with 8 bits a channel")
        image = ImageOps.exif_transpose(found)
    if facts.get("channels", 3) == 4:
        if len(image.getbands()) != 4:
            raise ValueError(f"it has not four channels, but is {{image.mode}}")
        return Image.merge("CMYK", image.split())
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(eight_bits(np.asarray(image), facts["value_range"]))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def pictured(numbers, facts):
    """Return numbers (H, W, C) as a picture: of one or three channels in RGB, of four as CMYK."""
    if numbers.shape[2] not in ((4,) if facts.get("channels", 3) == 4 else (1, 3)):
        raise ValueError(f"it has {{numbers.shape[2]}} channels, which the model does not take")
    levels = numbers if numbers.dtype == np.uint8 else eight_bits(numbers, facts["value_range"])
    if levels.shape[2] == 4:
        return Image.frombytes("CMYK", levels.shape[1::-1], levels.tobytes())
    return Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).convert("RGB")


def eight_bits(numbers, value_range):
    """Return deeper numbers as levels from black to white; without a range by as many bits as they fill."""
    low, high = value_range or _own_range(numbers)
    values = numbers.astype(np.float64)
    return np.nan_to_num(255 * (values - low) / (high - low)).clip(0, 255).round().astype(np.uint8)


'''
FACTS_FILE = 'facts = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))'


@dataclass(frozen=True, slots=True)
class Loading:
    """How a program gets a network of one format: what it imports, and the lines that return it with its facts."""

    needs: str
    imports: str
    lines: tuple[str, ...]
    where: str = "The file facts.json beside this one"


LOADINGS = {
    "onnx": Loading(
        "onnxruntime",
        "import onnxruntime",
        (
            'session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])',
            "facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}",
            'return (lambda batch: session.run(["logits"], {"images": batch})[0]), facts',
        ),
        "The metadata of the ONNX file beside this one",
    ),
    "timm": Loading(
        "timm",
        "import timm\nimport torch",
        (
            FACTS_FILE,
            'model = timm.create_model(f"local-dir:{MODEL.parent}", pretrained=True).eval().requires_grad_(False)',
            "return (lambda batch: model(torch.from_numpy(batch)).numpy()), facts",
        ),
    ),
    "safetensors": Loading(
        "timm",
        "import timm\nimport torch\nfrom safetensors.torch import load_file",
        (
            FACTS_FILE,
            'shape = {"num_classes": len(facts["classes"]), "in_chans": facts["preprocessing"]["channels"]}',
            'model = timm.create_model(facts["architecture"], **{**shape, **facts["model_args"]})',
            "model.load_state_dict(load_file(MODEL))",
            "model.eval().requires_grad_(False)",
            "return (lambda batch: model(torch.from_numpy(batch)).numpy()), facts",
        ),
    ),
    "torch": Loading(
        "torch",
        "import torch",
        (
            FACTS_FILE,
            "model = torch.export.load(MODEL).module().requires_grad_(False)",
            "return (lambda batch: model(torch.from_numpy(batch)).numpy()), facts",
        ),
    ),
    "openvino": Loading(
        "openvino",
        "import openvino",
        (
            FACTS_FILE,
            'model = openvino.Core().compile_model(MODEL, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
            'return (lambda batch: model({"images": batch})["logits"]), facts',
        ),
    ),
    "coreml": Loading(
        "coremltools, on macOS",
        "import coremltools",
        (
            FACTS_FILE,
            "model = coremltools.models.MLModel(str(MODEL), compute_units=coremltools.ComputeUnit.CPU_ONLY)",
            'return (lambda batch: model.predict({"images": batch})["logits"]), facts',
        ),
    ),
    "litert": Loading(
        "ai-edge-litert",
        "from ai_edge_litert.interpreter import Interpreter",
        (
            FACTS_FILE,
            "model = Interpreter(model_path=str(MODEL)).get_signature_runner()",
            'return (lambda batch: model(images=batch)["logits"]), facts',
        ),
    ),
}
FILES = {
    "timm": "model.safetensors",
    "safetensors": "model.safetensors",
    "torch": "model.pt2",
    "openvino": "model.xml",
    "coreml": "model.mlpackage",
    "litert": "model.tflite",
}
DOCKERFILE = """FROM python:3.12-slim
RUN pip install --no-cache-dir numpy=={numpy} pillow=={pillow} onnxruntime=={onnxruntime}
WORKDIR /model
COPY {copied}
ENTRYPOINT {run}
"""
TAIL = """

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1:]))
"""


def names_beside(path: Path) -> dict[str, Path]:
    """Return where each of them lies beside the ONNX file of a run (model.onnx), or one with a name of its own."""
    before = "" if path.name == "model.onnx" else f"{path.stem}."
    names = ("labels.txt", "README.md", "predict.py", "Dockerfile", PROOF)
    return {name: path.with_name(f"{before}{name}") for name in names}


def texts_beside(what: Exporting, path: Path, *, format: str, proof: dict[str, Any], name: str = "") -> dict[Path, str]:
    """Return labels.txt, README.md and predict.py of a folder that was proven, or of an ONNX file, by their places.

    `name` is what a folder will be called that is still written beside its place. For a server there is no predict.py;
    an ONNX file has a Dockerfile, too.

    Raises:
        CheckpointError: a file of the run, of which the page tells, is missing or damaged.
    """
    names = ("labels.txt", "README.md", "predict.py")
    places = names_beside(path) if format == "onnx" else {name: path / name for name in names}
    labels, script = places["labels.txt"], places["predict.py"]
    lines = (" ".join(name.splitlines()) for name in what.described.classes)
    texts = {labels: "".join(f"{line}\n" for line in lines)}
    if format in LOADINGS:
        texts[script] = program(FILES.get(format, path.name), format)
    build = places["Dockerfile"].name if format == "onnx" else ""
    texts[places["README.md"]] = card(what, format, name or path.name, script.name, labels.name, proof, build)
    if format == "onnx":
        pinned = {name: version(name) for name in ("numpy", "pillow", "onnxruntime")}
        copied, run = json.dumps([path.name, script.name, "./"]), json.dumps(["python", script.name])
        texts[places["Dockerfile"]] = DOCKERFILE.format(copied=copied, run=run, **pinned)
    return texts


def program(model: str, format: str = "onnx") -> str:
    """Return the source of a program that asks a model file beside it what images show."""
    loading = LOADINGS[format]
    head = HEAD.format(
        model=model,
        brightness=BRIGHTNESS,
        needs=loading.needs,
        where=loading.where,
        imports=loading.imports,
        loading="\n".join(f"    {line}" for line in loading.lines),
    )
    return head + "\n\n".join(inspect.getsource(function) for function in SHARED) + TAIL
