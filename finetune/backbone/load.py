"""A backbone by name, with its weights, its layer groups and its preprocessing.

    backbone = load(architecture("resnet18.a1_in1k"), num_classes=10)

H W are the height and width of the input in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from timm.models import is_model, is_model_pretrained, load_model_config_from_hf
from torch import nn

from finetune.backbone import catalogue, packaged, torch_hub
from finetune.backbone import folder as timm_folder
from finetune.backbone.automatic import NO_HUB_HINT, chosen
from finetune.backbone.blank import USUAL, set_channels
from finetune.backbone.classics import CLASSICS
from finetune.backbone.groups import head_modules, layer_groups
from finetune.backbone.heads import keep_rows, linear_classifier, renew_head
from finetune.backbone.layers import NETWORK_ERRORS
from finetune.backbone.pools import AUTO, OURS, put_pool, restore_pool
from finetune.backbone.preprocessing import check_image_size, preprocessing_of
from finetune.backbone.weights import (
    DAMAGE_ERRORS,
    LoadReport,
    file_of,
    load_into,
    model_of_run,
    read_weights,
)
from finetune.errors import BackboneError
from finetune.hub import hub_is_reachable
from finetune.randomness import derive, forked
from finetune.settings import EMBEDDED, EMBEDDED_FULL
from finetune.tasks import Task
from finetune.types import LayerGroup, Preprocessing
from finetune.wording import first_line, listed

TRAINING_ARGS = {"drop_rate": "regularise.dropout", "drop_path_rate": "regularise.drop_path"}  # and their keys
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Which network: timm's name, its arguments and data config, and where its weights are.

    `registered` is the name in timm's registry, without source or tag.
    """

    name: str
    registered: str
    weights: Path | None = None
    pretrained: bool = True
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    training_args: dict[str, Any] = field(default_factory=dict)  # of no effect in eval mode, so not kept
    classes: tuple[str, ...] = ()  # class names of the classifier of its weights, if a folder has them
    task: Task = "classify"  # of that classifier
    pool: str = AUTO  # of feature maps; auto: the network's own

    @property
    def label(self) -> str:
        """A short name for tables and folders."""
        return EMBEDDED if self.is_embedded else self.registered

    @property
    def is_embedded(self) -> bool:
        """Whether it is the backbone whose weights lie in this package."""
        return self.name == EMBEDDED

    @property
    def channels(self) -> int:
        """How many channels its images have."""
        return int(self.model_args.get("in_chans", USUAL))

    @property
    def pool_args(self) -> dict[str, str]:
        """The argument that makes timm build the network with one of its pools, if one is named."""
        return {} if self.pool in (AUTO, *OURS) else {"global_pool": self.pool}


@dataclass(slots=True)
class Backbone:
    """A plain timm model with a head for the data's classes, its layer groups and preprocessing."""

    model: nn.Module
    architecture: Architecture
    groups: tuple[LayerGroup, ...]
    preprocessing: Preprocessing
    weights: LoadReport | None
    model_args: dict[str, Any]
    classifier: nn.Linear | None = None  # the one that came with the weights
    known: tuple[str, ...] = ()  # classes whose rows of the head are those of the weights

    @property
    def network(self) -> list[Any]:
        """What distinguishes this network from others, for the keys of what is timed or counted once."""
        own = [self.architecture.name, self.model_args]
        return [*own, self.architecture.pool] if self.architecture.pool in OURS else own


def architecture(
    name: str,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    model_args: dict[str, Any] | None = None,
) -> Architecture:
    """Return the architecture of "embedded", a timm name, `local-dir:FOLDER`, `hf-hub:NAME` or a weights folder.

    A folder's config.json is obeyed: architecture, model arguments and data config. `name` may be
    "auto" then; without weights, "auto" is what `automatic.chosen` finds.

    Raises:
        BackboneError: the name is unknown, or the folder is another network's.
    """
    model_args = timm_folder.checked_args(model_args or {})
    if name.startswith("local-dir:"):
        weights, name = Path(name.removeprefix("local-dir:")), "auto"
    if name == "auto" and weights is None:
        name = chosen(is_pretrained=pretrained).name
    if name in (EMBEDDED, EMBEDDED_FULL):
        if weights is not None:
            raise BackboneError(
                f"the weights of {EMBEDDED} are part of this package, but --weights names others: {weights}",
                hint=f"Leave one of the two out; the network itself is {EMBEDDED_FULL.partition('.')[0]}.",
            )
        return replace(_of_folder("auto", EMBEDDED_FOLDER, pretrained, model_args), name=EMBEDDED)
    if weights is not None:
        weights = model_of_run(weights)
    if weights is not None and not file_of(weights)[0].exists():
        raise BackboneError(f"no weights at {weights}", hint="Give a timm folder, a .safetensors or a .pth file.")
    if weights is not None and weights.is_dir():
        return _of_folder(name, weights, pretrained, model_args)
    if name == "auto" and weights is not None:
        raise BackboneError(
            f"{weights} does not say which network it is for",
            hint="Name it with --backbone, or give a timm folder, whose config.json names it.",
        )
    if name.startswith("hf-hub:"):
        config, registered, args = _hub_config(name)
        args = timm_folder.checked_args(args)
        return Architecture(name, registered, weights, pretrained, {**args, **model_args}, config)
    if not is_model(name):
        raise BackboneError(
            f"unknown backbone {name!r}.{catalogue.nearest(name, timm.list_models())}",
            hint=f"Any timm name works (`finetune backbones` lists them), and {EMBEDDED}, {', '.join(CLASSICS)},"
            " hf-hub:OWNER/NAME, local-dir:FOLDER.",
        )
    return Architecture(name, name.split(".")[0], weights, pretrained, model_args)


def load(
    of: Architecture,
    *,
    num_classes: int | None,
    image_size: int | None = None,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Backbone:
    """Return a network with its weights and a fresh head for `num_classes` (None keeps its own).

    Where the weights come with a classifier whose classes are named, those of `classes` that it knows keep its rows.

    What is random (the head, or all with `pretrained` off) depends on the seed alone.

    Raises:
        BackboneError: no weights, weights that do not fit, no network, or an image size that the
            network does not take.
    """
    size_args = _size_args(of, image_size)
    with forked(derive(seed, "backbone")):
        model, report = _with_weights(of, size_args)
    is_whole = report is not None and report.has_classifier and of.pool == AUTO
    classifier = linear_classifier(model) if is_whole else None
    old = head_modules(model) if report is not None and report.has_classifier and num_classes else ()
    with forked(derive(seed, "head")):
        renew_head(model, of.name, num_classes, pool=of.pool)
    known = keep_rows(old, head_modules(model), of.classes, classes) if old else ()
    preprocessing = preprocessing_of(model, of.name, image_size)
    model.eval()
    check_image_size(model, preprocessing.image_size, of.label)
    if of.pool in OURS:
        put_pool(model, of.pool, image_size=preprocessing.image_size, seed=seed, label=of.label)
        if report is not None and of.weights is not None:
            report = replace(report, unexpected=restore_pool(model, read_weights(of.weights), report.unexpected))
    arguments = {**of.model_args, **size_args, **of.pool_args}
    return Backbone(model, of, layer_groups(model), preprocessing, report, arguments, classifier, known)


def skeleton(of: Architecture, *, num_classes: int | None, image_size: int | None = None) -> Backbone:
    """Return a network without memory for its weights (on the meta device), for looking at its layers."""
    size_args = _size_args(of, image_size)
    with torch.device("meta"):
        model = _create(of, pretrained=False, **size_args)
        renew_head(model, of.name, num_classes, pool=of.pool)
    preprocessing = preprocessing_of(model, of.name, image_size)
    if of.pool in OURS:
        put_pool(model, of.pool, image_size=preprocessing.image_size, seed=0, label=of.label)
    arguments = {**of.model_args, **size_args, **of.pool_args}
    return Backbone(model, of, layer_groups(model), preprocessing, None, arguments)


def _of_folder(name: str, folder: Path, pretrained: bool, model_args: dict[str, Any]) -> Architecture:
    config = timm_folder.read_config(folder)
    if not is_model(config.architecture):
        raise BackboneError(f"{folder / timm_folder.CONFIG} names an unknown network, {config.architecture!r}")
    if name != "auto" and name.split(".")[0] != config.architecture.split(".")[0]:
        raise BackboneError(
            f"{folder} holds the weights of {config.architecture}, not of {name}",
            hint="Leave --backbone out: the folder names its network.",
        )
    arguments = {**config.model_args, **model_args}
    registered = config.architecture.split(".")[0]
    of = Architecture(config.architecture, registered, folder, pretrained, arguments, config.pretrained_cfg)
    return replace(of, classes=config.classes, task=config.task, pool=config.pool)


def _size_args(of: Architecture, image_size: int | None) -> dict[str, Any]:
    if image_size is None or not _has_fixed_size(of):
        return {}
    return {"img_size": image_size}


def _has_fixed_size(of: Architecture) -> bool:
    if of.pretrained_cfg:
        return bool(of.pretrained_cfg.get("fixed_input_size"))
    config = timm.models.get_pretrained_cfg(of.name)
    return bool(config is not None and config.fixed_input_size)


def _with_weights(of: Architecture, size_args: dict[str, Any]) -> tuple[nn.Module, LoadReport | None]:
    if not of.pretrained:
        return _create(of, pretrained=False, **size_args), None
    if of.weights is not None:
        model = _create(of, pretrained=False, **size_args)
        tensors = read_weights(of.weights)
        source = "this package" if of.is_embedded else str(of.weights)
        return model, load_into(model, tensors, architecture=of.registered, source=source)
    if not of.name.startswith("hf-hub:") and not is_model_pretrained(of.name):
        raise BackboneError(
            f"timm has no pretrained weights for {of.name}",
            hint="Give some with --weights PATH, or start from random ones: --strategy scratch (or --no-pretrained).",
        )
    installed = packaged.packaged_file_of(of.name)
    if installed is not None:
        return _from_package(of, size_args, installed)
    file = None if of.name.startswith("hf-hub:") else torch_hub.hub_file_of(of.name)
    if file is not None:
        return _from_torch_hub(of, size_args, file), LoadReport(f"torch hub ({file.path.name})", 1.0)
    return _from_hub(of, size_args), LoadReport(f"timm ({of.name})", 1.0)


def _create(of: Architecture, *, pretrained: bool, **size_args: Any) -> nn.Module:
    is_on_hub = of.name.startswith("hf-hub:") and pretrained
    overlay = {"pretrained_cfg_overlay": of.pretrained_cfg} if of.pretrained_cfg and not is_on_hub else {}
    is_foreign = of.is_embedded or (of.name.startswith("hf-hub:") and not pretrained)
    name = of.registered if is_foreign else of.name
    arguments = {**of.model_args, **of.training_args, **size_args}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **overlay, **arguments)
        set_channels(model, of.channels)
        return model
    except (OSError, HfHubHTTPError):
        raise  # the caller reports what is missing
    except TypeError as error:
        keys = [
            "backbone.model_args",
            *(["--image-size"] if size_args else []),
            *(TRAINING_ARGS[name] for name in of.training_args),
        ]
        raise BackboneError(f"{of.name} does not take these arguments: {error}", hint=f"See {listed(keys)}.") from error
    except RuntimeError as error:
        raise BackboneError(f"{of.name} cannot be built: {error}") from error
    except (*NETWORK_ERRORS, MemoryError) as error:
        raise BackboneError(f"{of.name} cannot be built with {arguments}: {error}") from error


def _hub_config(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    config: tuple[dict[str, Any], str, dict[str, Any]] = _ask_hub(
        lambda: load_model_config_from_hf(name.removeprefix("hf-hub:")), name
    )
    return config


def _from_hub(of: Architecture, size_args: dict[str, Any]) -> nn.Module:
    model: nn.Module = _ask_hub(lambda: _create(of, pretrained=True, **size_args), of.name)
    return model


def _from_package(of: Architecture, size_args: dict[str, Any], file: Path) -> tuple[nn.Module, LoadReport]:
    """Return a network with the weights of an installed package, as timm builds it with those of the hub.

    Raises:
        BackboneError: the file is damaged, or another network's.
    """
    with torch.device("meta"):
        own = timm.create_model(of.registered).state_dict()
    tensors = packaged.in_order(read_weights(file), own, name=of.registered, file=file)
    given = replace(of, pretrained_cfg={**of.pretrained_cfg, "state_dict": tensors})
    with _quiet():
        model = _create(given, pretrained=True, **size_args)
    model.pretrained_cfg["state_dict"] = None  # type: ignore[index, operator, assignment]
    return model, LoadReport(f"{packaged.distribution_of(of.name)} ({file.name})", 1.0)


def _from_torch_hub(of: Architecture, size_args: dict[str, Any], file: torch_hub.HubFile) -> nn.Module:
    """Return a network whose weights timm reads with torch.hub, from its folder of checkpoints.

    Raises:
        BackboneError: the file is not there and cannot be fetched, or is damaged.
    """
    with torch.device("meta"):
        _create(of, pretrained=False, **size_args)  # what is wrong with the arguments is not the file's fault
    if not file.path.is_file():
        if not hub_is_reachable(file.url):
            raise BackboneError(
                f"the weights of {of.name} are not on this machine (no {file.path}), and the network cannot be reached",
                hint=NO_HUB_HINT,
            )
        torch_hub.download(file, of.name, hint=NO_HUB_HINT)
    try:
        with _quiet():
            return _create(of, pretrained=True, **size_args)
    except (BackboneError, *DAMAGE_ERRORS) as error:
        raise BackboneError(
            f"{file.path} cannot be used as the weights of {of.name}: {first_line(error)}",
            hint="Remove the file to download it again, or use --weights PATH.",
        ) from error


def _ask_hub(read: Any, name: str) -> Any:
    """Return what `read` reads from the hub's cache; the network is asked only for what is missing.

    Raises:
        BackboneError: the hub cannot be reached or does not have it, or the name is invalid.
    """
    with _offline(), _quiet():
        try:
            return read()
        except HFValidationError as error:
            raise BackboneError(f"{name} is not the name of a model on the hub: {error}") from error
        except (OSError, HfHubHTTPError):
            pass  # not in the cache
    if not hub_is_reachable():
        raise BackboneError(
            f"the weights of {name} are not on this machine, and the model hub cannot be reached",
            hint=NO_HUB_HINT,
        )
    try:
        return read()
    except (OSError, HfHubHTTPError) as error:
        raise BackboneError(
            f"the weights of {name} could not be downloaded: {first_line(error)}", hint=NO_HUB_HINT
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    constants = huggingface_hub.constants
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
