"""The degradation experiment, kind x depth x seed: `--config=configs/degradation.py:digits`.

- `digits`: 20 runs of 20 epochs on the embedded set; minutes on a laptop. `make sweep` runs it.
- `cifar10`: Sec. 4.2 and Fig. 6, 64k steps a run; for an accelerator.
Command: python -m experiments.sweep --config=configs/degradation.py:digits --workdir=runs/digits
Expected: the training error of plain networks rises with depth, that of residual ones does not.
Measured: see README.md.
"""

import ml_collections

from configs import cifar10, digits


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.kinds = {"plain": "none", "residual": "pad"}
    config.warmup_from_depth = 110
    if data == "digits":
        config.run = digits.get_config()
        # On such small maps both save time on a CPU: experiments/results/benchmarks/depth.md.
        config.run.model.scan = "on"
        config.run.model.remat = True
        config.depths = (8, 20, 32, 44, 56)
        config.seeds = (0, 1)
    elif data == "cifar10":
        config.run = cifar10.get_config("resnet110")
        config.depths = (20, 32, 44, 56, 110)
        config.seeds = (0, 1, 2)
    else:
        raise ValueError(f"Expected digits or cifar10, got {data!r}.")
    return config
