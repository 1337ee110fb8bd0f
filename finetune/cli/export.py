"""`finetune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from finetune.checkpoint.run_folder import open_finished
from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, RunArgument, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.values import ExportFormat, ExportLayout, ExportPrecision, InsideGraph
from finetune.wording import counted

FormatName = StrEnum("FormatName", {name: name for name in get_args(ExportFormat)})  # type: ignore[misc]
PrecisionName = StrEnum("PrecisionName", {name: name for name in get_args(ExportPrecision)})  # type: ignore[misc]
LayoutName = StrEnum("LayoutName", {name: name for name in get_args(ExportLayout)})  # type: ignore[misc]
InsideName = StrEnum("InsideName", {name: name for name in get_args(InsideGraph)})  # type: ignore[misc]


EXAMPLES = examples(
    "export runs/RUN",
    "export runs/RUN --with-preprocessing full --softmax --precision int8",
    "export runs/RUN --format timm --out shared",
)


@with_interrupt
def export(
    run: RunArgument,
    format: Annotated[
        FormatName,
        typer.Option("--format", metavar="NAME", help=f"onnx, a file, or a folder: {', '.join(list(FormatName)[1:])}."),
    ] = FormatName("onnx"),  # noqa: B008
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Default: RUN/exports/.")] = None,
    preprocessing: Annotated[
        InsideName,
        typer.Option(
            "--with-preprocessing",
            metavar="WHAT",
            help="What the ONNX file does to images itself: none; uint8: it standardises pixels; full: it takes images"
            " of any size.",
        ),
    ] = InsideName("none"),  # noqa: B008
    softmax: Annotated[bool, typer.Option("--softmax", help="Also give probabilities.")] = False,
    features: Annotated[bool, typer.Option("--features", help="Also give what reaches the head.")] = False,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="Also give how much each place speaks for each class.")
    ] = False,
    precision: Annotated[
        PrecisionName,
        typer.Option("--precision", metavar="NAME", help="fp32, fp16, or int8, which is calibrated on train images."),
    ] = PrecisionName("fp32"),  # noqa: B008
    max_loss: Annotated[
        float, typer.Option("--max-loss", metavar="POINTS", help="What fp16 and int8 may cost on val.")
    ] = 1.0,
    force: Annotated[
        bool, typer.Option("--force", help="Keep int8 that is hardly smaller than fp32, or no quicker here.")
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width of the input free.")
    ] = False,
    layout: Annotated[
        LayoutName,
        typer.Option("--layout", metavar="NAME", help="file, or triton: a model repository of NVIDIA's server."),
    ] = LayoutName("file"),  # noqa: B008
    data_licence: Annotated[
        str, typer.Option("--data-licence", metavar="TEXT", help="What the model card says of the images' licence.")
    ] = "",
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="USER/NAME", help="Also upload timm's folder to the Hub.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Export a run's model, and prove the export equal to it."""
    open_finished(run)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.export import export as write

        form: dict[str, Any] = {
            "preprocessing": preprocessing.value, "softmax": softmax, "features": features, "saliency": saliency,
            "precision": precision.value, "max_loss": max_loss, "force": force, "dynamic_size": dynamic_size,
            "layout": layout.value,
        }  # fmt: skip
        done = write(
            run, format=cast(ExportFormat, format.value), out=out, data_licence=data_licence, push_to_hub=push_to_hub,
            on_event=on_event, **form,
        )  # fmt: skip
    if json_:
        facts = {"path": str(done.path), "format": done.format, "proof": done.proof}
        tables.print_json(facts | ({"address": done.address} if done.address else {}))
        return
    console = tables.out()
    console.print(f"[bold]{escape(str(done.path))}[/bold]")
    for line in _proof_lines(done.proof):
        console.print(line)
    if done.address:
        console.print(escape(done.address))


def _proof_lines(proof: dict[str, Any]) -> list[str]:
    """Return what was proven, in words."""
    whole, took = proof["whole"], proof["milliseconds"]
    alike = "" if whole["num_same"] is None else f", {whole['num_same']} answers the same"
    megabytes, beside = f"{proof['bytes'] / 1e6:.2f} MB", ""
    if proof["fp32_bytes"]:
        megabytes += f", {proof['bytes'] / proof['fp32_bytes']:.2f} of fp32"
        beside = f", fp32 {took['fp32']:.1f} ms"
    return [
        f"proven on {counted(proof['num_images'], 'image file')} of the data: logits differ by at most"
        f" {proof['largest_difference']:.1e}, the largest is {proof['largest_logit']:.3g}",
        f"{whole['split']}, {counted(whole['num_images'], 'image')}: {whole['measure']} {whole['export']:.3f},"
        f" model {whole['model']:.3f}{alike}",
        f"{megabytes}; an image takes {took['export']:.1f} ms here{beside}, {took['model']:.1f} ms in torch",
    ]
