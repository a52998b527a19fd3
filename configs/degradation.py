"""The degradation experiment, kind x depth x seed: `--config=configs/degradation.py:digits`.

- `digits`: 20 runs of 20 epochs on the embedded set. Takes minutes on a laptop. `make sweep` runs
  it.
- `cifar10`: Sec. 4.2 and Fig. 6, 64k steps a run. Needs an accelerator.
- `cifar10_short`: as `cifar10`, with an eighth of the steps and only 20 and 56 layers. Takes hours
  on a CPU.
- `imagenet`: Sec. 4.1 and Fig. 4, plain and residual, 18 and 34 layers. Needs several accelerators.

Command:
 .venv/bin/python -m experiments.sweep --config=configs/degradation.py:digits --workdir=runs/digits
Expected: the training error of plain networks rises with depth. That of residual networks does not.
Measured: see experiments/results.
"""

import ml_collections

from configs import cifar10, digits, imagenet


def narrow_cifar10() -> ml_collections.ConfigDict:
    """CIFAR-10 as two CPU cores can afford it: half the widths and a 32nd of the steps."""
    run = cifar10.get_config("resnet56")
    run.model.widths = (8, 16, 32)
    run.steps = 2_000
    run.eval_every = 500
    run.checkpoint_every = 500
    run.optim.boundaries = (1_000, 1_500)
    return run


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(convert_dict=False)  # A dict keeps the order of kinds.
    config.kinds = {"plain": "none", "residual": "pad"}
    if data == "digits":
        config.run = digits.get_config()
        # Both save time on a CPU with such small maps: experiments/results/benchmarks/depth.md.
        config.run.model.scan = "on"
        config.run.model.remat = True
        config.depths = (8, 20, 32, 44, 56)
        config.seeds = (0, 1)
    elif data == "cifar10":
        config.run = cifar10.get_config("resnet56")
        config.from_depth = {"110": {"optim": {"warmup_steps": 400}}}  # Sec. 4.2.
        config.depths = (20, 56, 32, 44, 110)  # In this order, the first four runs show the claim.
        config.seeds = (0, 1, 2)
    elif data == "cifar10_short":
        config.run = cifar10.get_config("resnet56")
        config.run.steps = 8_000
        config.run.eval_every = 500
        config.run.checkpoint_every = 250
        config.run.optim.boundaries = (4_000, 6_000)
        config.depths = (20, 56)
        config.seeds = (0,)
    elif data == "imagenet":
        config.run = imagenet.get_config("resnet34")
        config.depths = (18, 34)
        config.seeds = (0,)
    else:
        raise ValueError(f"Expected digits, cifar10, cifar10_short or imagenet, got {data!r}.")
    return config
