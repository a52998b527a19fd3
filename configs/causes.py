"""Why do deep plain networks fail? One thing at a time is taken away: `configs/causes.py:digits`.

- `digits`: the conditions below, at 20, 44 and 56 layers, with five seeds.
- `dose`: the shortcut times 0.1 to 1, on digits.
- `cifar10`: the conditions that decide, on larger maps: half the widths, 2,000 steps, two seeds.
- `theory`: networks of 8 to 110 layers before training, for `diagnose --config`.

Commands:
 .venv/bin/python -m experiments.sweep --config=configs/causes.py:digits --workdir=runs/causes
 .venv/bin/python -m experiments.diagnose --workdir=runs/causes
 .venv/bin/python -m experiments.report --workdir=runs/causes
Expected: see PREDICTIONS. Measured: see experiments/results.

PREDICTIONS was written before any of these runs, but after a first look at 36 others of 56 layers,
which had all conditions but Adam, clipped, warm-up, BN bias 1 at rate 0.01, zero-initialised and
four times the steps. It says how a network of 56 layers ends if one explanation is the whole story.

- Vanishing: the front learns too slowly, because its gradients are too small.
- Exploding: the steps of the front are too large, because its gradients are too large.
- Forward: the last layers cannot learn, because the untrained front has lost what the image shows.
"""

import ml_collections

from configs import degradation

PLAIN = {"model.shortcut": "none"}
RESIDUAL = {"model.shortcut": "pad"}
FRONT = {"optim.frozen": ("stem", "stage1", "stage2")}
# The names of conditions, in the order of what they decide.
KINDS = {
    "plain": PLAIN,
    "residual": RESIDUAL,
    "plain, gradient norms of residual": PLAIN | {"optim.norms_of": "pad"},
    "residual, gradient norms of plain": RESIDUAL | {"optim.norms_of": "none"},
    "plain, leaky 0.5": PLAIN | {"model.negative_slope": 0.5},
    "plain, looks linear": PLAIN | {"model.init": "looks_linear"},
    "shortcut x 0.5": RESIDUAL | {"model.shortcut_scale": 0.5},
    "plain, front frozen": PLAIN | FRONT,
    "residual, front frozen": RESIDUAL | FRONT,
    "plain, LARS": PLAIN | {"optim.optimizer": "lars", "optim.lr": 0.003},
    "plain, BN bias 1": PLAIN | {"model.bn_bias": 1.0},
    "plain, Adam": PLAIN | {"optim.optimizer": "adam", "optim.lr": 0.001},
    "plain, clipped": PLAIN | {"optim.clip_norm": 1.0},
    "plain, rate 0.01": PLAIN | {"optim.lr": 0.01},
    "plain, warm-up": PLAIN | {"optim.warmup_steps": 60},
    "plain, leaky 0.2": PLAIN | {"model.negative_slope": 0.2},
    "plain, BN bias 1, rate 0.01": PLAIN | {"model.bn_bias": 1.0, "optim.lr": 0.01},
    "residual, zero-initialised": RESIDUAL | {"model.zero_init_residual": True},
    "plain, four times the steps": PLAIN
    | {"steps": 960, "optim.boundaries": (480, 720), "checkpoint_every": 480},
}
EXPLANATIONS = ("vanishing", "exploding", "forward")
# What each of them expects: `trains` is below 10 % training error, `fails` is above 50 %, and empty
# is neither.
PREDICTIONS = {
    "plain": ("fails", "fails", "fails"),
    "residual": ("trains", "trains", "trains"),
    "plain, gradient norms of residual": ("trains", "trains", "fails"),
    "residual, gradient norms of plain": ("fails", "fails", "trains"),
    "plain, leaky 0.5": ("trains", "trains", "trains"),
    "plain, looks linear": ("trains", "trains", "trains"),
    "shortcut x 0.5": ("", "fails", "fails"),
    "plain, front frozen": ("fails", "trains", "fails"),
    "residual, front frozen": ("trains", "trains", "trains"),
    "plain, LARS": ("trains", "trains", "fails"),
    "plain, BN bias 1": ("trains", "trains", ""),
    "plain, Adam": ("trains", "trains", "fails"),
    "plain, clipped": ("fails", "trains", "fails"),
    "plain, rate 0.01": ("fails", "trains", "fails"),
    "plain, warm-up": ("fails", "trains", "fails"),
    "plain, leaky 0.2": ("", "", "fails"),
    "plain, BN bias 1, rate 0.01": ("", "trains", ""),
    "residual, zero-initialised": ("trains", "trains", "trains"),
    "plain, four times the steps": ("trains", "fails", "fails"),
}
DECISIVE = tuple(KINDS)[:7]
"""The conditions on larger maps: both kinds, both swaps, two rescues and the halved shortcut."""


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    config = degradation.get_config("digits")
    config.kinds = KINDS
    config.depths = (20, 56, 44)  # In this order, the first two depths show the claim.
    config.seeds = (0, 1, 2, 3, 4)
    if data == "dose":
        config.kinds = {"residual": RESIDUAL}
        config.vary = {"model": {"shortcut_scale": (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)}}
    elif data == "cifar10":
        config.run = degradation.narrow_cifar10()
        config.kinds = {kind: KINDS[kind] for kind in DECISIVE}
        config.depths = (20, 56)
        config.seeds = (0, 1)
    elif data == "theory":
        theory = (*DECISIVE[:2], *DECISIVE[4:], "plain, leaky 0.2", "plain, BN bias 1")
        config.kinds = {kind: KINDS[kind] for kind in theory}
        config.depths = (8, 14, 20, 32, 44, 56, 80, 110)
        config.seeds = (0,)
    elif data != "digits":
        raise ValueError(f"Expected digits, dose, cifar10 or theory, got {data!r}.")
    return config
