"""What stands beside an ONNX file, for who has nothing else: its classes, a page to read, and a program that asks it.

The program is made of the functions that the proof of the export goes through (`client`), so that both see the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.exports import client
from finetune.images.decoding import decoding_steps
from finetune.tasks import Task
from finetune.types import BRIGHTNESS, Preprocessing
from finetune.whole import write_text
from finetune.wording import counted

SHARED: tuple[Any, ...] = (
    client.of_image,
    client.of_stack,
    client.of_channels,
    client._white,
    client._cut,
    client._normalised,
    client._middle,
    client._resize,
    client._crop,
    client._start,
)

HEAD = '''"""Say what images show; give the names of their files as arguments.

Needs numpy, pillow and onnxruntime. The ONNX file beside this one says itself what its classes are and how an image is
prepared. Prints a line for each image: the file, the answer, its probability. Ends with 3 where one cannot be read.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MODEL = {model!r}
BRIGHTNESS = {brightness!r}  # of red, green and blue


def main(files):
    session = onnxruntime.InferenceSession(str(Path(__file__).with_name(MODEL)), providers=["CPUExecutionProvider"])
    facts = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
    rows, is_bad = csv.writer(sys.stdout, delimiter="\\t", lineterminator="\\n"), False
    for file in files:
        try:
            logits = session.run(["logits"], {{"images": input_of(file, facts["preprocessing"])[None]}})[0][0]
        except Exception as error:  # whatever Pillow finds in a file
            rows.writerow([file, "", "", f"cannot be read: {{error}}"])
            is_bad = True
            continue
        rows.writerow([file, *answer(logits, facts)])
    return 3 if is_bad else 0


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


def input_of(file, facts):
    """Return the input (C, H, W) of the network: of the numbers (H, W, C) of a .npy file, or of a picture."""
    if facts.get("depth", 8) != "full":
        return of_image(opened(file, facts), facts)
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
    low, high = value_range or (0, _white(numbers))
    values = numbers.astype(np.float64)
    return np.nan_to_num(255 * (values - low) / (high - low)).clip(0, 255).round().astype(np.uint8)


'''
TAIL = """

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1:]))
"""


def names_beside(path: Path) -> dict[str, Path]:
    """Return where each of them lies beside the ONNX file of a run (model.onnx), or one with a name of its own."""
    before = "" if path.name == "model.onnx" else f"{path.stem}."
    return {name: path.with_name(f"{before}{name}") for name in ("labels.txt", "README.md", "predict.py")}


def write_beside(
    path: Path, *, classes: Sequence[str], preprocessing: Preprocessing, task: Task, proof: dict[str, Any]
) -> None:
    """Write labels.txt, README.md and predict.py beside an ONNX file that was proven.

    Raises:
        ResourceError: one cannot be written.
    """
    places = names_beside(path)
    write_text(places["labels.txt"], "".join(f"{name}\n" for name in classes))
    write_text(places["predict.py"], program(path.name))
    write_text(places["README.md"], _page(path.name, places, classes, preprocessing, task, proof))


def program(model: str) -> str:
    """Return the source of a program that asks an ONNX file beside it what images show."""
    sources = [inspect.getsource(function) for function in SHARED]
    return HEAD.format(model=model, brightness=BRIGHTNESS) + "\n\n".join(sources) + TAIL


OUTPUTS: dict[Task, str] = {
    "classify": "`logits` (B, {num}), float32: softmax makes probabilities of them, in the order of {labels}.",
    "multilabel": "`logits` (B, {num}), float32: sigmoid makes the probability of each class, in the order of {labels}."
    " A class is said from its own threshold on, which the metadata has under `thresholds`.",
    "regress": "`logits` (B, 1), float32: the number.",
}


def _page(
    model: str,
    places: dict[str, Path],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    task: Task,
    proof: dict[str, Any],
) -> str:
    own = preprocessing
    height, width = own.image_size
    steps = [
        *decoding_steps(own),
        f"Resize and cut to {height} x {width} pixels: `resize`, `crop_mode` ({own.crop_mode}) and `interpolation`"
        f" ({own.interpolation}, with Pillow's antialiasing) of the metadata's `preprocessing`.",
        f"Divide by 255, take off the mean {own.mean}, divide by the deviation {own.std}.",
    ]
    output = OUTPUTS[task].format(num=len(classes), labels=places["labels.txt"].name)
    within, largest = f"{proof['largest_difference']:.1e}", f"{proof['largest_logit']:.3g}"
    script, numbered = places["predict.py"].name, (f"{number}. {step}\n" for number, step in enumerate(steps, 1))
    return f"""# {model}

An image model as ONNX, written by finetune. {output}

    pip install numpy pillow onnxruntime
    python {script} IMAGE [IMAGE ...]

## Input

`images` (B, {own.channels}, {height}, {width}), float32, of any number B of images. What `{script}` does to a file:

{"".join(numbered)}
All of it stands in the file's metadata, too (`preprocessing`, `classes`, `task`, `activation`).

## Proof

On {counted(proof["num_images"], "image file")}, by onnxruntime and Pillow alone, the output lies within
{within} of the trained model's, the largest of which is {largest}; the answers are the same.
"""
