"""What PyTorch computes with pre-activation networks, written here after He et al. (2016).

Runs by itself, as `reference_torch.py`: `python -m tests.reference_preactivation FOLDER` writes
FOLDER/CASE.npz for each case. `models/test_preactivation.py` compares. Modules have our names.
"""

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference_torch import CLASSES, WIDTHS, write


def convolution(before: int, after: int, side: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, side, stride, side // 2, bias=False)


class Unit(nn.Module):
    """Fig. 4 (e) of the paper: [B, before, H, W] -> [B, shapes[-1][0], H/stride, W/stride].

    `shapes`: the width, side and stride of each convolution.
    """

    def __init__(self, before: int, shapes: list[tuple[int, int, int]], shortcut: str):
        super().__init__()
        widths = [before, *(width for width, _, _ in shapes)]
        self.count, self.shortcut = len(shapes), shortcut
        self.stride = max(stride for _, _, stride in shapes)
        for i, ((reads, writes), shape) in enumerate(zip(pairwise(widths), shapes, strict=True), 1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(reads))
            setattr(self, f"conv{i}", convolution(reads, writes, *shape[1:]))
        if shortcut == "projection":
            self.shortcut_conv = convolution(before, widths[-1], 1, self.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv1(activated)
        for i in range(2, self.count + 1):
            y = getattr(self, f"conv{i}")(F.relu(getattr(self, f"bn{i}")(y)))
        if self.shortcut == "projection":
            return y + self.shortcut_conv(activated)
        if self.shortcut == "pad":
            kept = x[:, :, :: self.stride, :: self.stride]
            return y + F.pad(kept, [0, 0, 0, 0, 0, y.shape[1] - x.shape[1]])
        return y


class Net(nn.Module):
    """Images [B, 3, H, W] -> logits [B, CLASSES].

    `shortcut`: as in our configs. `stride_at`: the side of the bottleneck's strided convolution.
    """

    def __init__(self, family: str, counts: tuple, shortcut: str, stride_at: int | None = None):
        super().__init__()
        self.imagenet, widths = family == "imagenet", WIDTHS[family]
        self.conv = convolution(3, widths[0], *((7, 2) if self.imagenet else (3, 1)))
        before, self.units = widths[0], []
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                shapes = [(width, 3, stride), (width, 3, 1)]
                if stride_at:
                    strides = [stride if side == stride_at else 1 for side in (1, 3)]
                    shapes = [(width, 1, strides[0]), (width, 3, strides[1]), (4 * width, 1, 1)]
                grows = block == 1 and (stage > 1 or stride_at is not None)
                of_unit = {"projection": "projection" if grows else "pad"}.get(shortcut, shortcut)
                unit = Unit(before, shapes, of_unit.removesuffix("_all"))
                self.units.append(f"stage{stage}_block{block}")
                setattr(self, self.units[-1], unit)
                before = shapes[-1][0]
        self.bn_out = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in self.units:
            x = getattr(self, name)(x)
        return self.fc(F.relu(self.bn_out(x)).mean((2, 3)))


# As in `reference_torch.py`. Residual branches end without a norm, and are small as they are. The
# bottlenecks are few: in 50 layers PyTorch's own float32 and float64 gradients part by up to 9 %.
CASES = {
    "none14": (partial(Net, "cifar", (2, 2, 2), "none"), None, (16, 16)),
    "pad20": (partial(Net, "cifar", (3, 3, 3), "pad"), None, (19, 16)),
    "projection18": (partial(Net, "imagenet", (2, 2, 2, 2), "projection"), None, (64, 64)),
    "all18": (partial(Net, "imagenet", (2, 2, 2, 2), "projection_all"), None, (64, 64)),
    "projection_3x3": (partial(Net, "imagenet", (2, 1, 2, 1), "projection", 3), None, (75, 64)),
    "pad_1x1": (partial(Net, "imagenet", (2, 1, 2, 1), "pad", 1), None, (64, 64)),
}

if __name__ == "__main__":
    write(Path(sys.argv[1]), CASES)
