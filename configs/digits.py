"""scikit-learn's handwritten digits, 8x8, the CIFAR networks: `--config=configs/digits.py:plain56`.

Not in the paper: Sec. 4.2's recipe shrunk to 20 epochs (240 steps, the rate divided by 10 at a half
and at three quarters), without augmentation. Any `plainN` or `resnetN`, N = 6n+2.
Command: python -m experiments.train --config=configs/digits.py:plain56 --workdir=runs/plain56
Cost: see experiments/results. Expected: plain56 does not learn, resnet56 does.
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
