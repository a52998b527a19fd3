"""ImageNet as in Sec. 4.1 and Table 1: `--config=configs/imagenet.py:resnet34`.

Also `plain34`, `vgg19` and other depths: 18, 34, 50, 101 or 152 layers; for VGG 16 or 19.

Command:
 .venv/bin/python -m experiments.train --config=configs/imagenet.py:resnet34 --workdir=runs/resnet34

Top-1 errors of the paper, 10-crop:

    plain18  27.94 %    resnet18  27.88 %
    plain34  28.54 %    resnet34  25.03 %

We have not trained on ImageNet. We ran the same commands on a smaller set, see experiments/results.
The paper divides the learning rate by 10 when the error plateaus. Here the rate drops after a half
and after three quarters of the steps. The paper subtracts the mean of each pixel; here it is one of
each channel.
"""

import re

import ml_collections

from configs import cifar10


def get_config(net: str = "resnet34") -> ml_collections.ConfigDict:
    match = re.fullmatch(r"(plain|resnet|vgg)(\d+)", net)
    if not match:
        raise ValueError(f"Expected plainN, resnetN or vggN, such as resnet34, got {net!r}.")
    kind, depth = match[1], int(match[2])

    config = cifar10.get_config()
    config.steps = 600_000
    config.steps_per_dispatch = 1
    config.eval_every = 10_000
    config.checkpoint_every = 10_000
    config.model.family = "vgg" if kind == "vgg" else "imagenet"
    config.model.depth = depth
    config.model.shortcut = _shortcut(kind, depth)
    config.model.widths = ()
    config.optim.boundaries = (300_000, 450_000)
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.batch_size = 256
    config.data.eval_batch_size = 256
    config.data.pad = 0
    config.data.crop = "scale"
    config.data.color = True
    return config


def _shortcut(kind: str, depth: int) -> str:
    """The shortcut of Sec. 4.1: option A for twins of plain nets, option B from 50 layers on."""
    if kind != "resnet":
        return "none"
    return "pad" if depth < 50 else "projection"
