"""What runs a frozen trunk: torch as it is, torch with batch norms folded into convolutions, or another library.

An engine is used only if it is proven on a batch of the data: its boundary tensors are within `TOLERANCE` of torch's,
and an image gives the same bits at any place in the batch, so that cached and recomputed values are the same. "auto"
takes the fastest if that pays for building it. Timings are kept for this machine (`timings`), so that the same run
takes the same engine again.

To add one: a row in `ENGINES`, its name in `values.EngineName`, a line in docs/performance.md.

Letters: B batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx

from finetune import ranks
from finetune.backbone.onnx_graph import EXPORT_ERRORS, write_quickly
from finetune.errors import BackboneError, ResourceError
from finetune.features.divide import Trunk
from finetune.features.folding import folded_graph
from finetune.features.sources import through_trunk
from finetune.timings import remember, remembered
from finetune.wording import counted, first_line

TOLERANCE = 1e-4  # of the largest value of a boundary tensor
FEWEST = 32  # batches: a shorter pass is not worth timing engines
FASTER = 1.15  # times torch's speed, or it is not worth other last bits
LONG = 0.2  # seconds: a longer pass is timed only once
MOST_AT_ONCE = 8  # batches: each holds a network's activations in memory
Run = Callable[[Tensor], tuple[Tensor, ...]]  # images (B, 3, H, W), as many as it was built for, to what crosses
Built = tuple[Run | None, str, int]  # what runs a trunk, what that depends on, batches at once


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is built, and what it needs.

    `guess` is how many seconds building it takes, as long as that was not timed; `gain` is the share of torch's time
    that it may save.
    """

    build: Callable[[fx.GraphModule, Tensor], Run]
    library: str | None
    guess: float
    gain: float
    is_for_cpu: bool = False
    is_parallel: bool = False  # may be called from several threads, which share torch's number of threads

    @property
    def package(self) -> str:
        """What pip installs for it."""
        return "'finetune[openvino]'" if self.library == "openvino" else str(self.library)

    @property
    def label(self) -> str:
        """The name and version of its library, for what depends on them."""
        return f"{self.library} {version(self.library)}, {self.shares}" if self.library else ""

    @property
    def shares(self) -> Shares:
        """How the threads that torch has now are shared among batches."""
        return shares(torch.get_num_threads()) if self.is_parallel else Shares(1, torch.get_num_threads())


@dataclass(frozen=True, slots=True)
class Shares:
    """How many batches are computed at once, and by how many threads each: the bits may depend on the latter."""

    at_once: int
    threads: int

    def __str__(self) -> str:
        return f"{counted(self.threads, 'thread')} a batch"


def shares(num_threads: int) -> Shares:
    """Divide threads among batches: on a small network one thread per batch costs less than two."""
    at_once = min(num_threads, MOST_AT_ONCE)
    return Shares(at_once, num_threads // at_once)


def equip(
    trunk: Trunk,
    images: Tensor,
    *,
    asked: str,
    num_images: int,
    precision: str,
    about: Mapping[str, Any],
    kept: str | None = None,
) -> tuple[str, str]:
    """Choose what runs a trunk from now on; return its name, and a description of the gain (empty for torch).

    `images` is a batch of the data of the size in which the trunk runs, `num_images` what it will run over, `about`
    what describes the network, `kept` the engine that a run which goes on began with. Of several processes of a run
    the first chooses.

    Raises:
        BackboneError: the engine that is asked for is not installed, or not for this device or precision.
        ResourceError: the run began with an engine that cannot be used here.
    """
    choose = partial(_chosen, trunk, images, num_images=num_images, precision=precision, about=about)
    name, text = ranks.agreed(lambda: choose(asked, kept))
    return (name, text) if ranks.is_first() else choose(name, name)


def _chosen(
    trunk: Trunk,
    images: Tensor,
    asked: str,
    kept: str | None,
    *,
    num_images: int,
    precision: str,
    about: Mapping[str, Any],
) -> tuple[str, str]:
    if asked not in ("auto", kept):
        kept = None  # the recipe was changed
    if kept is not None and kept != "torch":
        try:
            _take(trunk, kept, images, precision)
        except BackboneError as error:
            raise ResourceError(
                f"this run began with its frozen layers run by {kept}, which cannot be used now: {error.message}",
                hint="Results would differ. Continue with --set cache.engine=torch --allow recipe.",
            ) from error
        return kept, f"by {kept}, as before"
    if kept == "torch" or asked == "torch":
        return "torch", ""
    if asked == "auto" and images.device.type != "cpu":
        return "torch", ""  # what pays on a GPU was not measured yet
    if asked != "auto":
        check_engine(asked, images.device, precision)
        try:
            difference = _take(trunk, asked, images, precision)
        except BackboneError as error:
            return "torch", f"by torch, since {error.message}"
        return asked, f"by {asked}, within {difference:.0e} of torch"
    return _fastest(trunk, images, num_images, precision, about)


def check_engine(name: str, device: torch.device, precision: str) -> None:
    """Check, before anything is computed, that the engine a recipe names is available.

    Raises:
        BackboneError: it is not installed, or not for this device or precision.
    """
    if name in ENGINES and (reason := _reason_against(name, device, precision)):
        raise BackboneError(f"cache.engine = {name!r}: {reason}", hint="Use cache.engine = 'auto' or 'torch'.")


def _fastest(
    trunk: Trunk, images: Tensor, num_images: int, precision: str, about: Mapping[str, Any]
) -> tuple[str, str]:
    """Use the engine that finishes a pass over this number of images first, building included."""
    there = [name for name in ENGINES if _reason_against(name, images.device, precision) is None]
    key = {
        **about,
        "shape": list(images.shape),
        "threads": torch.get_num_threads(),
        "engines": {name: ENGINES[name].label for name in there},
        "torch": torch.__version__,
    }
    num_batches = -(-num_images // len(images))
    if num_batches < FEWEST:
        return "torch", ""
    times = dict(remembered(key) or {})  # seconds of a batch by engine, None for one that cannot be used; "+": building
    if "torch" not in times:
        times["torch"] = _seconds(trunk, images)
    whole = num_batches * (times["torch"] or 0.0)
    # Engines that a longer pass has timed since do not count: the same pass must take the same engine again.
    worth = [name for name in there if whole * ENGINES[name].gain > ENGINES[name].guess]
    built: dict[str, tuple[Built, float]] = {}  # what was built to be timed, and its distance from torch
    for name in worth:
        if name not in times:
            began = time.perf_counter()
            try:
                difference = _take(trunk, name, images, precision)
                times[f"{name}+"] = time.perf_counter() - began
                times[name] = _seconds(trunk, images)
                built[name] = (trunk.run, trunk.engine, trunk.at_once), difference
            except BackboneError:
                times[name] = None
            _give_back(trunk)
    remember(key, times)
    ends = {"torch": whole / FASTER}
    for name in worth:
        seconds, building = times.get(name), times.get(f"{name}+")
        if seconds is not None and building is not None:
            ends[name] = building + num_batches * seconds
    best = min(ends, key=lambda name: ends[name])
    if best == "torch":
        return "torch", ""
    try:
        difference = _again(trunk, built[best]) if best in built else _take(trunk, best, images, precision)
    except BackboneError:  # with these weights it differs by more than with others of this network
        return "torch", ""
    speedup = (times["torch"] or 0.0) / max(times[best] or 0.0, 1e-9)
    return best, f"by {best}, {speedup:.1f} times as fast as torch here and within {difference:.0e} of it"


def _take(trunk: Trunk, name: str, images: Tensor, precision: str) -> float:
    """Have an engine run a trunk, and return its distance from torch, relative to the largest value.

    Raises:
        BackboneError: it is not available or not proven; the trunk is left as it was.
    """
    if name not in ENGINES:
        raise BackboneError(f"there is no engine {name!r}")
    if reason := _reason_against(name, images.device, precision):
        raise BackboneError(reason)
    engine = ENGINES[name]
    _give_back(trunk)
    expected = trunk(images)
    try:
        run = engine.build(trunk.graph, images)
        trunk.run, trunk.engine, trunk.at_once = run, engine.label or name, engine.shares.at_once
        computed, turned = trunk(images), trunk(images.flip(0))
    except (*EXPORT_ERRORS, ImportError, NotImplementedError, LookupError, AttributeError) as error:
        _give_back(trunk)
        raise BackboneError(f"{name} cannot run this network: {first_line(error)}") from error
    difference = max(_difference(*pair) for pair in zip(expected, computed, strict=True))
    is_one = all(torch.equal(tensor.flip(0), other) for tensor, other in zip(computed, turned, strict=True))
    if not difference <= TOLERANCE or not is_one:
        _give_back(trunk)
        why = (
            f"differs from torch by {difference:.1e}"
            if is_one
            else "gives an image other bits at another place in a batch"
        )
        raise BackboneError(f"{name} {why}")
    return difference


def _again(trunk: Trunk, built: tuple[Built, float]) -> float:
    """Have a built engine run a trunk, and return its distance from torch."""
    (trunk.run, trunk.engine, trunk.at_once), difference = built
    return difference


def _give_back(trunk: Trunk) -> None:
    """Have torch run a trunk again."""
    trunk.run, trunk.engine, trunk.at_once = None, "", 1


def _difference(expected: Tensor, computed: Tensor) -> float:
    if expected.shape != computed.shape:
        return float("inf")
    largest = float(expected.abs().max())
    return float((expected - computed).abs().max()) / largest if largest else float(computed.abs().max())


def _reason_against(name: str, device: torch.device, precision: str) -> str | None:
    engine = ENGINES[name]
    if precision != "float32":
        return f"it computes in float32, but this run in {precision}"
    if engine.is_for_cpu and device.type != "cpu":
        return "it is for a CPU"
    if engine.library and not _is_installed(engine.library):
        return f"{engine.library} is not installed: pip install {engine.package}"
    return None


def _is_installed(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None


def _seconds(trunk: Trunk, images: Tensor) -> float:
    """Return the seconds that a batch of a pass takes, with as many at once as the engine computes.

    The best of two after a warm-up; long batches, which vary less, are timed once after it.
    """
    taken, count = [], 1 if trunk.at_once == 1 else 2 * trunk.at_once
    for _ in range(3):
        began = time.perf_counter()
        deque(through_trunk(trunk, [images] * count, autocast=nullcontext), maxlen=0)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / count)
        if len(taken) == 2 and taken[-1] * count > LONG:
            break
    return min(taken[1:])


def _torch(graph: fx.GraphModule) -> Run:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(graph(images))

    return run


def _folded(graph: fx.GraphModule, images: Tensor) -> Run:
    return _torch(folded_graph(graph))


def _onnxruntime(graph: fx.GraphModule, images: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = shares(torch.get_num_threads()).threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else others wait
    with TemporaryDirectory() as folder:
        file = _write(graph, images, Path(folder))
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {name: images.contiguous().numpy()})))

    return run


def _openvino(graph: fx.GraphModule, images: Tensor) -> Run:
    import openvino

    num_threads = torch.get_num_threads()
    at_once = shares(num_threads).at_once
    config = {"INFERENCE_NUM_THREADS": num_threads, "NUM_STREAMS": at_once, "INFERENCE_PRECISION_HINT": "f32"}
    with TemporaryDirectory() as folder:
        file = _write(graph, images, Path(folder))
        compiled = openvino.Core().compile_model(str(file), "CPU", config)
    own = threading.local()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        outputs = own.request.infer(images.contiguous().numpy())
        return tuple(torch.from_numpy(outputs[output].copy()) for output in compiled.outputs)

    return run


def _write(graph: fx.GraphModule, images: Tensor, folder: Path) -> Path:
    """Write a graph for batches of exactly this shape as ONNX; it is folded first, which halves the exporter's work."""
    (results,) = (node.args[0] for node in graph.graph.nodes if node.op == "output")
    count = len(results) if isinstance(results, Sequence) else 1
    file = folder / "trunk.onnx"
    write_quickly(folded_graph(graph), images.contiguous(), file, outputs=[f"output{place}" for place in range(count)])
    return file


ENGINES: dict[str, Engine] = {
    "folded": Engine(_folded, None, guess=0.2, gain=0.3),
    "onnxruntime": Engine(_onnxruntime, "onnxruntime", guess=0.4, gain=0.6, is_for_cpu=True, is_parallel=True),
    "openvino": Engine(_openvino, "openvino", guess=0.5, gain=0.6, is_for_cpu=True, is_parallel=True),
}
