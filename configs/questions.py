"""Questions about depth, each a sweep: `--config=configs/questions.py:rates`.

- `rates`: does another learning rate rescue plain networks? Rate x depth on digits.
- `widths`: do wider plain networks degrade less? Width x depth on digits, beside residual ones.
- `blocks`: post-activation, pre-activation (He et al. 2016) or no shortcut? On digits.
- `options`: identity or convolution in the shortcut? Options A, B and C (Sec. 4.1) on digits.
- `options_cifar10`: the same on CIFAR-10, with half the widths and a 32nd of the steps.

Command:
 .venv/bin/python -m experiments.sweep --config=configs/questions.py:rates --workdir=runs/rates
Measured: see experiments/results.
"""

import ml_collections

from configs import degradation

KINDS = {"plain": "none", "residual": "pad"}
OPTIONS = {
    "plain": "none",
    "option A": "pad",
    "option B": "projection",
    "option C": "projection_all",
}


def get_config(question: str = "rates") -> ml_collections.ConfigDict:
    config = degradation.get_config("digits")
    config.depths = (8, 20, 44, 56)
    if question == "rates":
        config.kinds = {"plain": "none"}
        config.vary = {"optim": {"lr": (0.2, 0.1, 0.05, 0.02, 0.01)}}
    elif question == "widths":
        config.vary = {"model": {"widths": ((8, 16, 32), (16, 32, 64), (32, 64, 128))}}
    elif question == "blocks":
        preactivation = {"model": {"shortcut": "pad", "block": "preactivation"}}
        config.kinds = {**KINDS, "pre-activation": preactivation}
        config.depths = (8, 20, 32, 44, 56)
        config.seeds = (0, 1, 2)
    elif question == "options":
        config.kinds = OPTIONS
        config.seeds = (0, 1, 2)
    elif question == "options_cifar10":
        config.kinds = OPTIONS
        config.run = degradation.narrow_cifar10()
        config.depths = (20, 56)
        config.seeds = (0,)
    else:
        names = "rates, widths, blocks, options or options_cifar10"
        raise ValueError(f"Expected {names}, got {question!r}.")
    return config
