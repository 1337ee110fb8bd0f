"""Weights that timm fetches through torch.hub rather than the model hub: torchvision's, and a few old ones."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from timm.models import get_pretrained_cfg
from torch.hub import download_url_to_file

from finetune.errors import BackboneError

HASH = re.compile(r"-([0-9a-f]{8})\.")  # torch's convention: the first 8 digits of the file's SHA-256


@dataclass(frozen=True, slots=True)
class HubFile:
    """A weights file by its address, and its place in torch hub's folder of checkpoints."""

    url: str
    path: Path


def hub_file_of(name: str) -> HubFile | None:
    """Return the file that timm reads for a network through torch.hub; None if it reads from the model hub."""
    config = get_pretrained_cfg(name)
    if config is None or config.hf_hub_id or not config.url:
        return None
    return HubFile(config.url, Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(config.url).path).name))


def download(file: HubFile, name: str, *, hint: str) -> None:
    """Download a file to its place; a hash in its name is checked, and no partial file is left.

    Raises:
        BackboneError: it cannot be fetched, or is not what its name says.
    """
    digest = HASH.search(file.path.name)
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        expected = digest.group(1) if digest else None
        download_url_to_file(file.url, str(file.path), expected, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise BackboneError(f"the weights of {name} could not be downloaded: {error}", hint=hint) from error
