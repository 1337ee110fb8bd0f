"""The page beside an export, a model card: how it is used, how equal it is to the model, what that was trained on."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from finetune.exports.card_facts import RunFacts, in_markdown, run_facts
from finetune.exports.client import scale_size
from finetune.exports.described import Described
from finetune.exports.exporting import Exporting
from finetune.exports.form import FEATURES, OUTPUT, PROBABILITIES, SALIENCY, OnnxForm
from finetune.images.decoding import decoding_steps
from finetune.tasks import Task

LIBRARIES = {
    "onnx": "onnx",
    "triton": "onnx",
    "timm": "timm",
    "torch": "pytorch",
    "safetensors": "timm",
    "openvino": "openvino",
    "coreml": "coreml",
    "litert": "litert",
}
NEEDS = {  # of pip, to run it
    "onnx": "onnxruntime",
    "timm": "timm",
    "safetensors": "timm",
    "torch": "torch",
    "openvino": "openvino",
    "coreml": "coremltools",
    "litert": "ai-edge-litert",
}
ONE_BY_ONE = ("coreml", "litert")  # formats whose batch is one image
HUB_NAMES = {"top1": "accuracy"}  # of metrics that the Hub calls otherwise
MEANINGS: dict[Task, str] = {
    "classify": "softmax turns them into probabilities, in the order of {labels}.",
    "multilabel": "sigmoid gives the probability of each class, in the order of {labels}. A class is named from its own"
    " threshold on (see `thresholds`).",
    "regress": "the number.",
}
MORE = {
    PROBABILITIES: "`probabilities` (B, {num}), float32: the same, precomputed.",
    FEATURES: "`features` (B, D), float32: what reaches the classifier. Similar images have similar features.",
    SALIENCY: "`saliency` (B, {num}, h, w), float32: how much each place speaks for each class. A logit is the mean"
    " of its map, plus the bias of its class.",
}
TIMM = """
```python
import timm

model = timm.create_model("local-dir:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model, use_test_size=True))
```
"""


TRITON = """    tritonserver --model-repository=FOLDER

FOLDER is the one that holds `{name}`; or, in NVIDIA's container,

    docker run --rm -p 8000:8000 -v "$PWD:/models:ro" nvcr.io/nvidia/tritonserver:VERSION-py3 \\
        tritonserver --model-repository=/models"""


def card(
    what: Exporting, format: str, name: str, script: str, labels: str, proof: dict[str, Any], dockerfile: str = ""
) -> str:
    """Return the page beside an export called `name`, whose program is `script`, as Markdown with the Hub's front."""
    described = what.described
    run = None if what.saved is None else run_facts(what.saved)
    num, meaning = len(described.classes), MEANINGS[described.task]
    batch = "1" if format in ONE_BY_ONE else "B"
    outputs = [f"`{OUTPUT}` ({batch}, {num}), float32: " + meaning.format(labels=labels)]
    outputs += [MORE[output].format(num=num) for output in what.form.outputs[1:]]
    shape, number = _input(described, what.form) if batch == "B" else _one_image(described)
    return (
        _template()
        .render(
            front=_front(what, format, run),
            title=described.run or name,
            summary=_summary(what, format, run),
            usage=_usage(format, name, script, dockerfile),
            shape=shape,
            number=number,
            steps=_steps(described, what.form),
            outputs=outputs,
            proof=proof,
            licence=described.licence,
            data_licence=what.data_licence,
            run=run,
        )
        .replace("\n\n\n", "\n\n")
    )


def _usage(format: str, name: str, script: str, dockerfile: str) -> str:
    if format == "triton":
        return TRITON.format(name=name)
    said = f"    pip install numpy pillow {NEEDS[format]}\n    python {shlex.quote(script)} IMAGE [IMAGE ...]"
    if format == "onnx":
        file = "" if dockerfile == "Dockerfile" else f" -f {shlex.quote(dockerfile)}"
        said += (
            f"\n\nOr in a container:\n\n    docker build -t classifier{file} .\n"
            '    docker run --rm -v "$PWD/photos:/photos:ro" classifier /photos/a.jpg'
        )
    return said + (f"\n\nIn Python:\n{TIMM.format(name=name)}" if format == "timm" else "")


def _input(described: Described, form: OnnxForm) -> tuple[str, str]:
    own = described.preprocessing
    height, width = ("H", "W") if form.dynamic_size else own.image_size
    if form.preprocessing == "none":
        return f"B, {own.channels}, {height}, {width}", "float32, any number B of images"
    if form.preprocessing == "uint8":
        return f"B, {height}, {width}, {own.bands.count}", "uint8, any number B of images"
    return f"B, H, W, {own.bands.count}", "uint8, any number B of images of one size, whatever it is"


def _one_image(described: Described) -> tuple[str, str]:
    height, width = described.preprocessing.image_size
    return f"1, {described.preprocessing.channels}, {height}, {width}", "float32, one image at a time"


def _steps(described: Described, form: OnnxForm) -> list[str]:
    own = described.preprocessing
    height, width = own.image_size
    up, across = scale_size(own.image_size, own.crop_pct)
    decoding = decoding_steps(own)
    resize = (
        f"Resize and cut to {height} x {width} pixels: `resize` ({up} x {across}), `crop_mode`"
        f" ({own.crop_mode}) and `interpolation` ({own.interpolation}, with Pillow's antialiasing) of `preprocessing`."
    )
    standardise = (
        f"Divide by 255, subtract the mean {list(own.mean)}, divide by the standard deviation {list(own.std)}."
    )
    if form.preprocessing == "full":
        return [*decoding[: 2 if own.channels == 4 else 3], "The model does the rest."]
    if form.preprocessing == "uint8":
        return [*decoding, resize, "The model does the rest."]
    return [*decoding, resize, standardise]


def _summary(what: Exporting, format: str, run: RunFacts | None) -> str:
    described = what.described
    kind = {"classify": "one of", "multilabel": "any of", "regress": "the number"}[described.task]
    names = ", ".join(map(in_markdown, described.classes[:10])) + (", ..." if len(described.classes) > 10 else "")
    count = f"{len(described.classes)} classes" if described.task != "regress" else in_markdown(described.classes[0])
    says = f"Predicts {kind} {count} for an image" + (f": {names}." if described.task != "regress" else ".")
    headline = f" {run.headline}" if run else ""
    return f"{says}{headline} Trained and exported as {format} by finetune."


def _front(what: Exporting, format: str, run: RunFacts | None) -> str:
    """Return the front matter that the Hub reads."""
    described = what.described
    results = _results(run) if run else []
    facts = ModelCardData(
        license=described.licence or None,
        library_name=LIBRARIES[format],
        tags=["image-classification", "finetune", *(["timm"] if format != "timm" else [])],
        pipeline_tag="image-classification",
        model_name=described.run or None,
        eval_results=results or None,
        ignore_metadata_errors=True,
    )
    return f"---\n{facts.to_yaml()}\n---\n"


def _results(run: RunFacts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=run.data_name,
            dataset_name=run.data_name,
            dataset_split=split,
            metric_type=HUB_NAMES.get(name, name),
            metric_name=name,
            metric_value=round(value["value"], 4),
        )
        for split, metrics in run.measured.items()
        for name, value in metrics.items()
    ]


@cache
def _template() -> Template:
    loader = PackageLoader("finetune.exports")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    return environment.get_template("card.md.j2")
