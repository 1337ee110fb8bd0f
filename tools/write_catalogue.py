"""Writes the catalogue of backbones: finetune/backbone/tables/networks.csv and weights.csv.

    OMP_NUM_THREADS=1 nice -n 15 python tools/write_catalogue.py

Builds every network that is registered with timm, ours included, on the meta device: no weights, no
network. What is measured is kept line by line in build/, so a stopped run goes on where it was.
Top-1 on ImageNet comes from tools/top1.csv, which is kept by hand.

Not covered: networks that cannot be built on the meta device (listed at the end), and the compute of
networks whose forward pass needs values.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # of several checkouts this one, whichever is installed

from finetune.backbone.catalogue import NETWORKS, PACKAGE, WEIGHTS, fold
from finetune.backbone.groups import head_parameters, layer_groups
from finetune.backbone.load import EMBEDDED_FOLDER  # which registers our own networks, too
from finetune.settings import EMBEDDED_FULL

ROOT = Path(__file__).parents[1]
TOP1 = Path(__file__).parent / "top1.csv"
TIMM = importlib.metadata.version("timm")
MEASURED = ROOT / "build" / f"catalogue-timm-{TIMM}.jsonl"
TABLES = ROOT / "finetune" / "backbone" / "tables"
MANY_CLASSES = 10_000  # of ImageNet-12k and 21k: such a head is counted as one of ImageNet-1k


def measure(name: str, tags: list[str]) -> dict[str, Any]:
    """Return what a network is, and for each of its weights the input, the compute and the terms."""
    began = time.monotonic()
    default = get_pretrained_cfg(name)
    tags = sorted(tags, key=lambda tag: tag != default.tag)  # the default first, the others as timm has them
    found: dict[str, Any] = {"name": name, "weights": [], "problems": []}
    try:
        model = on_meta(name)
    except Exception as error:
        return found | {"problems": [f"cannot be built: {error!r}"]}
    usual = on_meta(name, num_classes=1000) if default.num_classes > MANY_CLASSES else model
    head = set(head_parameters(usual))
    sizes = {key: parameter.numel() for key, parameter in usual.named_parameters()}
    module = model_entrypoint(name).__module__
    size = input_size(model)
    gmacs = {size: compute(model, size, found["problems"])}
    found |= {
        "family": module.rpartition(".")[2],
        "origin": module.partition(".")[0],
        "parameters": sum(sizes.values()),
        "head_parameters": sum(sizes[key] for key in head),
        "image_size": size[1:],
        "gmacs": gmacs[size],
        "groups": groups_of_a_run(model),
    }
    for tag in tags:
        cfg = get_pretrained_cfg(f"{name}.{tag}")
        if cfg.input_size not in gmacs:
            gmacs[cfg.input_size] = compute(on_meta(f"{name}.{tag}"), cfg.input_size, found["problems"])
        found["weights"].append(
            {
                "tag": tag,
                "image_size": cfg.input_size[1:],
                "gmacs": gmacs[cfg.input_size],
                "num_classes": cfg.num_classes,
                "licence": cfg.license or "",
                "hub": cfg.hf_hub_id or "",
                "url": cfg.url or "",
            }
        )
    return found | {"seconds": time.monotonic() - began}


def on_meta(name: str, **arguments: Any) -> torch.nn.Module:
    """Return a network in eval mode, without memory for its weights."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **arguments)
    return model.eval().requires_grad_(False)  # else the counter of operations hooks gradients


def groups_of_a_run(model: torch.nn.Module) -> list[str]:
    """Return the names of the layer groups as a run has them: with a head where the network can have one."""
    if not head_parameters(model) and hasattr(model, "reset_classifier"):
        with torch.device("meta"):
            model.reset_classifier(1000)
    return [group.name for group in layer_groups(model)]


def input_size(model: torch.nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width of the input that a network was made for."""
    return tuple(timm.data.resolve_model_data_config(model)["input_size"])


def compute(model: torch.nn.Module, size: tuple[int, int, int], problems: list[str]) -> float | None:
    """Return the billions of multiply-adds of one image: convolutions, matrix products, attention."""
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *size))
        return counter.get_total_flops() / 2e9
    except Exception as error:
        problems.append(f"no forward pass at {size}: {error!r}"[:200])
        return None


def measure_all() -> list[dict[str, Any]]:
    """Return every network, from the file where it is there, in the order of their names."""
    tags: dict[str, list[str]] = {}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    MEASURED.parent.mkdir(exist_ok=True)
    lines = MEASURED.read_text().splitlines() if MEASURED.is_file() else []
    done = {line["name"]: line for line in map(json.loads, lines) if not line["problems"]}
    names = timm.list_models()
    with MEASURED.open("a") as stream:
        for index, name in enumerate(names):
            if name not in done:
                done[name] = measure(name, tags.get(name, []))
                stream.write(json.dumps(done[name]) + "\n")
                stream.flush()
                print(f"{index + 1}/{len(names)} {name}", *done[name]["problems"], flush=True)
    return [done[name] for name in names]


def add_embedded(networks: Iterable[dict[str, Any]]) -> None:
    """Add the weights that lie in the package to those of their network."""
    name, _, tag = EMBEDDED_FULL.partition(".")
    config = json.loads((EMBEDDED_FOLDER / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    network = next(network for network in networks if network["name"] == name)
    size = tuple(config["input_size"])
    network["weights"].append(
        {
            "tag": tag,
            "image_size": size[1:],
            "gmacs": compute(on_meta(name), size, network["problems"]),
            "num_classes": config["num_classes"],
            "licence": config["license"],
            "hub": PACKAGE,
            "url": "",
        }
    )


def read_top1() -> tuple[str, dict[tuple[str, int], float]]:
    """Return where the top-1 figures come from, and the figures by name and image size."""
    lines = TOP1.read_text(encoding="utf-8").splitlines()
    source = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    rows = csv.reader(line for line in lines if line and not line.startswith("#"))
    return source, {(name, int(size)): float(top1) for name, size, top1 in rows}


def write(networks: Iterable[dict[str, Any]]) -> None:
    """Write the two tables, with a line about the sources on top of each."""
    networks = [network for network in networks if "groups" in network]
    source, top1 = read_top1()
    about = f"timm {TIMM} on torch's meta device; a multiply-add is two operations of FlopCounterMode"
    rows = [
        (n["name"], n["family"], n["origin"], n["parameters"], n["head_parameters"], side(n["image_size"]),
         short(n["gmacs"]), fold(n["groups"]))
        for n in networks
    ]  # fmt: skip
    write_table("networks.csv", {"timm": TIMM, "source": about}, NETWORKS, rows)
    weights = []
    for n in networks:
        for w in n["weights"]:
            full = f"{n['name']}.{w['tag']}"
            known = top1.pop((full, w["image_size"][0]), "")
            hub = "timm" if w["hub"] == f"timm/{full}" else w["hub"] or ("" if w["url"] else PACKAGE)
            file = "" if w["hub"] else w["url"].rpartition("/")[2]
            weights.append(
                (n["name"], w["tag"], side(w["image_size"]), short(w["gmacs"]), w["num_classes"], w["licence"],
                 hub, file, known)
            )  # fmt: skip
    write_table("weights.csv", {"timm": TIMM, "source": source}, WEIGHTS, weights)
    print(f"{len(rows)} networks, {len(weights)} weights, {sum(row[-1] != '' for row in weights)} with top-1")
    print(f"top-1 figures without weights at that size: {len(top1)}", *sorted(top1)[:20])


def write_table(file: str, about: dict[str, str], columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write one table as CSV, after comment lines."""
    TABLES.mkdir(exist_ok=True)
    with (TABLES / file).open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(f"# {key}: {value}\n" for key, value in about.items())
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def side(size: list[int]) -> str:
    """Return an image's size as its side, or as HxW where it is no square."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def short(gmacs: float | None) -> str:
    """Return compute with four significant digits, or nothing."""
    return "" if gmacs is None else f"{gmacs:.4g}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    began = time.monotonic()
    everything = measure_all()
    add_embedded(everything)
    write(everything)
    for network in everything:
        for problem in network["problems"]:
            print(f"{network['name']}: {problem}")
    print(f"{time.monotonic() - began:.0f} s")
