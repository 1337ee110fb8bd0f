"""The networks of the notes that timm lacks: importing this registers them with timm.

After `import finetune.backbone.classics`, `timm.create_model("lenet5")` works.
"""

from __future__ import annotations

from timm.models import register_model

from finetune.backbone.classics.alexnet import alexnet
from finetune.backbone.classics.cifar_resnet import resnet32
from finetune.backbone.classics.googlenet import googlenet
from finetune.backbone.classics.inception_v2 import inception_v2
from finetune.backbone.classics.lenet import lenet5
from finetune.backbone.classics.zfnet import zfnet

ENTRIES = (lenet5, alexnet, zfnet, googlenet, inception_v2, resnet32)
CLASSICS: tuple[str, ...] = tuple(entry.__name__ for entry in ENTRIES)
for _entry in ENTRIES:
    register_model(_entry)
