"""Handwritten digits, 8x8 pixels, with the CIFAR networks: `--config=configs/digits.py:plain56`.

The images are scikit-learn's; the paper does not use them. The recipe is that of Sec. 4.2, with 20
epochs (240 steps) and no augmentation. The learning rate is divided by 10 after a half and after
three quarters of the steps. Accepts any `plainN` or `resnetN` with N = 6n+2.

Command:
 .venv/bin/python -m experiments.train --config=configs/digits.py:plain56 --workdir=runs/plain56
Expected: resnet56 learns, plain56 does not. Cost: see experiments/results.
"""

import ml_collections

from configs import cifar10


def get_config(net: str = "resnet20") -> ml_collections.ConfigDict:
    config = cifar10.get_config(net)
    config.steps = 240
    config.log_every = 12
    config.eval_every = 24
    config.checkpoint_every = 120
    config.steps_per_dispatch = 12
    config.optim.boundaries = (120, 180)
    config.optim.warmup_steps = 0
    config.data.name = "digits"
    config.data.eval_batch_size = 512
    config.data.pad = 0
    config.data.flip = False
    return config
