"""Which files are images, by their names, and how large one may be."""

from __future__ import annotations

from PIL import features

HAS_AVIF = bool(features.check("avif"))  # Pillow may have been built without it
LARGEST_FILE = 2**30  # bytes; as many pixels as Pillow takes, at 16 bits, are hardly more

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"}
    | ({".avif"} if HAS_AVIF else set())
)


def is_image_name(name: str) -> bool:
    """Return whether a file should be an image, by its name without folders."""
    dot = name.rfind(".")  # `Path(name).suffix` takes ten times as long, and folders hold a million names
    return 0 < dot < len(name) - 1 and name[dot:].lower() in EXTENSIONS
