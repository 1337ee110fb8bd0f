"""The filters of the first layer as one picture, each between its own least and greatest weight."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finetune.report.looked import FILTER_SIDE, first_filters


def test_every_filter_is_a_tile_of_its_own_weights() -> None:
    conv = nn.Conv2d(3, 20, 4)
    shown = first_filters(nn.Sequential(conv))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.removeprefix("data:image/png;base64,")))))
    step = FILTER_SIDE + 2
    assert sheet.shape == (2 * step, 16 * step, 3)
    weight = conv.weight.detach()[17]
    expected = ((weight - weight.min()) / (weight.max() - weight.min()) * 255).round().permute(1, 2, 0)
    tile = torch.tensor(sheet[step : step + FILTER_SIDE : 8, step : step + FILTER_SIDE : 8].astype(np.float32))
    assert torch.allclose(tile, expected, atol=1)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)])
def test_there_is_no_picture_of_what_is_no_filter_over_colours(model: nn.Module) -> None:
    assert first_filters(nn.Sequential(model)) == ""
