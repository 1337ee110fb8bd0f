"""What any program does with an exported ONNX file: images from files, prepared as the file's metadata says.

Pillow, NumPy and onnxruntime, and nothing of what trains or evaluates: the proof of an export runs through
this, so that what the metadata says is proven with the network. Letters: B batch, H W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.bands import Bands, bands_of
from finetune.checkpoint.run_folder import RunFolder
from finetune.evaluation.views import NUM_CROPS, Tta
from finetune.exports.form import OUTPUT
from finetune.images.decode import read, read_array, read_rgb
from finetune.images.files import openable
from finetune.images.levels import deep_colour, is_deep
from finetune.images.stacks import Stack
from finetune.tasks import Activation, Task
from finetune.types import BRIGHTNESS, FIVE_CROPS_PCT
from finetune.values import InsideGraph

INPUT = "images"
VERSION = "1"  # the folder in a model repository that a file lies in
PROOF = "proof.json"  # beside an export: what was proven, with the hashes of file and model


class Client:
    """An ONNX file of ours under onnxruntime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others read images meanwhile
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(facts["classes"])
        self.preprocessing: dict[str, Any] = json.loads(facts["preprocessing"])
        self.task: Task = json.loads(facts.get("task", '"classify"'))
        self.activation: Activation = json.loads(facts.get("activation", '"softmax"'))
        self.thresholds: tuple[float, ...] = tuple(json.loads(facts.get("thresholds", "[]")))
        self.inside: InsideGraph = json.loads(facts.get("inside", '"none"'))
        self.outputs = tuple(output.name for output in self.session.get_outputs())

    @property
    def bands(self) -> Bands:
        """In what images are to be decoded."""
        return bands_of(self.preprocessing.get("channels", 3), self.preprocessing.get("depth", 8))

    def prepare(self, image: Image.Image | Stack, tta: Tta = "none") -> NDArray[Any]:
        """Return what the file takes of an image, RGB or of four channels, or of a stack; crops joined in height."""
        if tta == "5crop":
            return five_crops(image, self.preprocessing, self.inside)
        if isinstance(image, Stack):
            return of_channels(image.channels, self.preprocessing)
        return prepared(image, self.preprocessing, self.inside)

    def middle(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the part of an image in RGB that evaluation sees, in 8 bits (H, W, 3)."""
        return prepared(image, self.preprocessing, "uint8")

    def of_middle(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return what a file that does not cut images itself takes of pixels (H, W, 3)."""
        return pixels if self.inside == "uint8" else _normalised(pixels.astype(np.float32), self.preprocessing)

    def read(self, file: Path) -> NDArray[Any]:
        """Return what the file takes of an image file."""
        return input_of(file, self.preprocessing, self.inside)

    def answer(self, images: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return the logits (B, K) of prepared images."""
        logits: NDArray[np.float32] = self.run(images, [OUTPUT])[0]
        return logits

    def run(self, images: Sequence[NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return some outputs (B, ...) of prepared images, which are of several sizes where all is done inside."""
        if len({image.shape for image in images}) > 1:
            each = [self.run([image], outputs) for image in images]
            return [np.concatenate(rows) for rows in zip(*each, strict=True)]
        found: list[NDArray[np.float32]] = self.session.run(list(outputs), {INPUT: np.stack(images)})
        return found

    def answer_over(self, images: Sequence[NDArray[Any]], tta: Tta) -> NDArray[np.float32]:
        """Return the mean of the logits (B, K) over the views that a name stands for."""
        of_each = [self.answer(view) for view in self._views(images, tta)]
        mean: NDArray[np.float32] = np.mean(of_each, axis=0, dtype=np.float32)
        return mean

    def _views(self, images: Sequence[NDArray[Any]], tta: Tta) -> Sequence[Sequence[NDArray[Any]]]:
        """Return the views of prepared images, (C, H, W) or (H, W, C), crops apart again: each of all images."""
        is_planes = self.inside == "none"
        if tta == "flip":
            return images, [image[..., ::-1] if is_planes else image[:, ::-1] for image in images]
        if tta == "5crop":
            return list(zip(*(np.split(image, NUM_CROPS, axis=int(is_planes)) for image in images), strict=True))
        return (images,)


def input_of(file: Path, facts: dict[str, Any], inside: InsideGraph = "none") -> NDArray[Any]:
    """Return what a network takes of an image file, by the preprocessing in its metadata (see `prepared`)."""
    if facts.get("depth", 8) == "full":
        return of_stack(_open_stack(file, facts), facts)
    is_of_four = facts.get("channels", 3) == 4
    if file.suffix.lower() == ".npy":
        between, bands = facts["value_range"], Bands(4) if is_of_four else Bands()
        whole = read(file, value_range=tuple(between) if between else None, bands=bands).content
        return prepared(whole, facts, inside)
    return prepared(_open_four(file) if is_of_four else _open(file, facts["value_range"]), facts, inside)


def prepared(image: Image.Image, facts: dict[str, Any], inside: InsideGraph = "none") -> NDArray[Any]:
    """Return what a network takes of an image, RGB or of four channels, by what is done inside.

    Its input (C, H, W) in float32; its middle in 8 bits (H, W, 3 or 4) where it standardises inside; all of it, of any
    size, where it does everything inside.
    """
    if inside == "full":
        return np.array(image)
    mean = facts["mean"] * (3 if len(facts["mean"]) == 1 else 1)
    middle = np.array(_cut(image, mean, facts))
    return middle if inside == "uint8" else _normalised(middle.astype(np.float32), facts)


def five_crops(image: Image.Image | Stack, facts: dict[str, Any], inside: InsideGraph = "none") -> NDArray[Any]:
    """Return the four corners and the middle of an image as `prepared` gives one view, joined in height.

    See `images.transforms.five_crops_view`.
    """
    nearer = {**facts, "resize": scale_size(facts["image_size"], min(facts["crop_pct"], FIVE_CROPS_PCT))}
    channels = image.channels if isinstance(image, Stack) else [image]
    resized = [np.array(_resize(_middle(channel, facts["longest"]), nearer)) for channel in channels]
    whole = np.stack(resized, axis=-1) if isinstance(image, Stack) else resized[0]  # (H, W, C)
    height, width = facts["image_size"]
    bottom, right = whole.shape[0] - height, whole.shape[1] - width
    corners = [(top, left) for top in (0, bottom) for left in (0, right)]
    middle = (_start(whole.shape[0], height), _start(whole.shape[1], width))
    pixels = np.concatenate([whole[top : top + height, left : left + width] for top, left in (*corners, middle)])
    return pixels if inside == "uint8" else _normalised(pixels.astype(np.float32), facts)


def of_stack(numbers: NDArray[Any], facts: dict[str, Any]) -> NDArray[np.float32]:
    """Return the input (C, H, W) that a network wants of all numbers (H, W, C) of an image, upright."""
    if numbers.shape[2] != facts["channels"]:
        raise ValueError(f"it has {numbers.shape[2]} channels, and the model takes {facts['channels']}")
    low, high = (0, 255) if numbers.dtype == np.uint8 else facts["value_range"] or _own_range(numbers)
    each = (numbers[:, :, place].astype(np.float64) for place in range(numbers.shape[2]))
    levels = ((255 * (channel - low) / (high - low)).clip(0, 255).astype(np.float32) for channel in each)
    return of_channels([Image.fromarray(channel) for channel in levels], facts)


def of_channels(channels: Sequence[Image.Image], facts: dict[str, Any]) -> NDArray[np.float32]:
    """Return the input (C, H, W) that a network wants of channels of floats from 0 to 255."""
    cut = [_cut(channel, [mean], facts) for channel, mean in zip(channels, facts["mean"], strict=True)]
    return _normalised(np.stack([np.array(channel) for channel in cut], axis=-1), facts)


def _own_range(numbers: NDArray[Any]) -> tuple[float, float]:
    """Return what is black and white in an image by itself, where no data said it."""
    finite = numbers[np.isfinite(numbers)]
    low, white = (min(0.0, float(finite.min())), float(finite.max())) if finite.size else (0.0, 0.0)
    if low == 0 and numbers.dtype.kind == "f":
        white = next((step for step in (1.0, 255.0, 65535.0) if step / 8 <= white <= step), white)
    elif low == 0 and white < 2**16:
        white = 2.0 ** max(8, int(white).bit_length()) - 1
    return low, max(white, low + 1e-6)


def _cut(image: Image.Image, mean: Sequence[float], facts: dict[str, Any]) -> Image.Image:
    """Return the view of evaluation of an image; its border has the mean colour."""
    return _crop(_resize(_middle(image, facts["longest"]), facts), mean, facts)


def _normalised(pixels: NDArray[np.float32], facts: dict[str, Any]) -> NDArray[np.float32]:
    """Return pixels (H, W, C), of numbers from 0 to 255, as input (C, H, W)."""
    pixels /= 255
    if pixels.shape[2] > len(facts["mean"]):
        pixels = pixels @ np.array(BRIGHTNESS, dtype=np.float32)[:, None]  # (H, W, 1)
    pixels -= np.array(facts["mean"], dtype=np.float32)
    pixels /= np.array(facts["std"], dtype=np.float32)
    return pixels.transpose(2, 0, 1)


def _open(file: Path, value_range: Sequence[float] | None) -> Image.Image:
    """Return the RGB image of a file: upright, on white, numbers deeper than 8 bits brought into the value range."""
    with Image.open(openable(file)) as opened:
        if deep_colour(opened) or (value_range is None and is_deep(opened)):  # Pillow alone drops bits
            return read_rgb(file, value_range=(value_range[0], value_range[1]) if value_range else None)
        image: Image.Image = ImageOps.exif_transpose(opened)
    if value_range and is_deep(image):
        low, high = value_range
        scaled = 255 * (np.asarray(image).astype(np.float64) - low) / (high - low)
        image = Image.fromarray(np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _open_four(file: Path) -> Image.Image:
    """Return the four channels of a file, upright, in Pillow's mode CMYK, in which none of them is transparency."""
    with Image.open(openable(file)) as opened:
        if opened.mode == "RGB":  # a TIFF whose fourth channel Pillow alone leaves out
            four: Image.Image = read(file, bands=Bands(4)).content
            return four
        image: Image.Image = ImageOps.exif_transpose(opened)
    return Image.merge("CMYK", image.split())


def _open_stack(file: Path, facts: dict[str, Any]) -> NDArray[Any]:
    """Return all channels (H, W, C) of a file: of .npy by NumPy alone, of pictures and TIFF as they were trained on."""
    if file.suffix.lower() == ".npy":
        source = openable(file)
        mapped: Literal["r"] | None = "r" if source is file else None
        numbers: NDArray[Any] = np.load(source, mmap_mode=mapped, allow_pickle=False)
        return numbers[:, :, None] if numbers.ndim == 2 else numbers
    return read_array(file, bands_of(facts["channels"], "full"))


def _middle(image: Image.Image, longest: int) -> Image.Image:
    """Return the middle of a strip that is more than `longest` times as long as wide."""
    width, height = (min(side, longest * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, facts: dict[str, Any]) -> Image.Image:
    height, width = facts["resize"]
    share_h, share_w = image.height / height, image.width / width
    if facts["crop_mode"] == "squash":
        size = (width, height)
    elif facts["crop_mode"] == "border":
        share = max(share_h, share_w)
        size = (round(image.width / share), round(image.height / share))
    elif height != width:
        share = min(share_h, share_w)
        size = (round(image.width / share), round(image.height / share))
    else:  # the shorter side becomes `height`
        short = min(image.size)
        size = (int(height * image.width / short), int(height * image.height / short))
    return image if size == image.size else image.resize(size, Image.Resampling[facts["interpolation"].upper()])


def _crop(image: Image.Image, mean: Sequence[float], facts: dict[str, Any]) -> Image.Image:
    """Return the middle of `image_size` pixels, on a border where the image has fewer."""
    height, width = facts["image_size"]
    fill = tuple(round(255 * value) for value in mean) if facts["crop_mode"] == "border" else (0,) * len(mean)
    left, top = _start(image.width, width), _start(image.height, height)
    whole = Image.new(image.mode, (width, height), fill)
    whole.paste(image, (-left, -top))
    return whole


def _start(there: int, wanted: int) -> int:
    return -((wanted - there) // 2) if there < wanted else round((there - wanted) / 2)


def scale_size(image_size: tuple[int, int], crop_pct: float) -> list[int]:
    """Return the (height, width) that an image is resized to before its middle is cut out."""
    return [math.floor(side / crop_pct) for side in image_size]


def export_file(folder: RunFolder) -> Path:
    """Return where the ONNX file of a run lies, if it has one."""
    return folder.exports / "model.onnx"


def proof_of_file(file: Path) -> Path:
    """Return where the proof of the ONNX file in a folder of exports lies; in a model repository above its version."""
    return (file.parents[1] if file.parent.name == VERSION else file.parent) / PROOF


def proven_export(folder: RunFolder) -> Path | None:
    """Return the ONNX file of a run that was proven equal to the model that stands there; None where there is none.

    That of an ensemble is what it consists of: it must be the file that was proven.
    """
    file, proof = export_file(folder), folder.exports / PROOF
    try:
        facts = json.loads(proof.read_text(encoding="utf-8"))
        is_of_model = folder.ensemble.is_file() or facts["model"] == digest_of(*model_files(folder))
        is_of_model = is_of_model and facts["digest"] == digest_of(file)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return file if is_of_model and facts.get("is_proven") is True else None


def model_files(folder: RunFolder) -> tuple[Path, Path]:
    """Return the files that say what a run's model answers: its weights, and its classes and preprocessing."""
    return folder.weights, folder.model / "config.json"


def digest_of(*files: Path) -> str:
    """Return the hash of some files together."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
