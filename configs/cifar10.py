"""CIFAR-10 as in Sec. 4.2: `--config=configs/cifar10.py:plain56`, `resnet56` or any depth 6n+2.

Command:
 .venv/bin/python -m experiments.train --config=configs/cifar10.py:resnet20 --workdir=runs/resnet20
It trains on all 50,000 images.

Test errors of the paper:

    resnet20   8.75 %
    resnet32   7.51 %
    resnet44   7.17 %
    resnet56   6.97 %
    resnet110  6.43 % (best of 5; mean 6.61 +- 0.16)
    plain56    above plain20 (Fig. 6)

Cost: 64k steps. Measured times and errors are in experiments/results.
"""

import re

import ml_collections


def get_config(net: str = "resnet20") -> ml_collections.ConfigDict:
    match = re.fullmatch(r"(plain|resnet)(\d+)", net)
    if not match:
        raise ValueError(f"Expected plainN or resnetN, such as plain56 or resnet110, got {net!r}.")
    kind, depth = match[1], int(match[2])

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 64_000
    config.log_every = 100
    config.eval_every = 2_000
    config.checkpoint_every = 2_000
    config.keep_every = 0
    config.init_from = ""
    config.init_partial = False
    config.steps_per_dispatch = 10
    config.parallel = "pmap"

    config.model = ml_collections.ConfigDict()
    config.model.family = "cifar"
    config.model.depth = depth
    config.model.shortcut = "none" if kind == "plain" else "pad"
    config.model.shortcut_scale = 1.0
    config.model.zero_init_residual = False
    config.model.negative_slope = 0.0
    config.model.init = "he"
    config.model.bn_bias = 0.0
    config.model.block = "postactivation"
    config.model.widths = ()
    config.model.bottleneck_stride = "1x1"
    config.model.dtype = "float32"
    config.model.norm = "batch"
    config.model.bn_momentum = 0.9
    config.model.bn_epsilon = 1e-5
    config.model.bn_scope = "device"
    config.model.scan = "auto"
    config.model.remat = False

    config.optim = ml_collections.ConfigDict()
    config.optim.optimizer = "sgd"
    config.optim.adam_beta2 = 0.999
    config.optim.adam_epsilon = 1e-8
    config.optim.clip_norm = 0.0
    config.optim.norms_of = ""
    config.optim.frozen = ()
    config.optim.lr = 0.1
    config.optim.boundaries = (32_000, 48_000)
    config.optim.decay_factor = 0.1
    # Sec. 4.2: depth 110 trains at 0.01 until the training error is below 80 %, about 400 steps.
    config.optim.warmup_steps = 400 if depth >= 110 else 0
    config.optim.warmup_lr = 0.01
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.weight_decay = 1e-4
    config.optim.decay_bn_and_bias = True

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.batch_size = 128
    config.data.eval_batch_size = 1_000
    config.data.pad = 4
    config.data.flip = True
    config.data.crop = "none"
    config.data.image_size = 224
    config.data.shorter_side = (256, 480)
    config.data.channel_mean = (123.675, 116.28, 103.53)
    config.data.color = False
    return config
