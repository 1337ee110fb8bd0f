"""Trains on drawn images, exports one ONNX file with all preprocessing inside, and has a stranger's program ask it.

    python examples/deploy.py [FOLDER]

The program is client.py: ten lines for onnxruntime, NumPy and Pillow, which know nothing of finetune.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import finetune

CLIENT = Path(__file__).with_name("client.py")


def main(place: Path) -> None:
    """Train, export and ask in an empty folder."""
    images = finetune.write_sample(place / "imgs", per_class=20)
    result = finetune.run(
        place / "imgs", strategy="linear-probe", backbone="embedded", image_size=96, out=place / "run"
    )
    export = finetune.export(result.folder, preprocessing="full", out=place / "model.onnx")
    print(f"{export.path}: proven on {export.proof['whole']['num_images']} images")  # or an error, and no file

    command = [sys.executable, str(CLIENT), str(export.path), *map(str, images)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answers = [line.split(" ", 1)[0] for line in said.splitlines()]
    own = finetune.load(result.folder).predict(images).labels
    print(f"the client and the run agree on {sum(map(str.__eq__, answers, own))} of {len(images)} images")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-deploy"))
