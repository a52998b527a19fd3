"""What a command does with the fields it is given, before its one call; and what comes of them."""

import jax

from experiments.sweeping import grid
from resnet_flax.config import RunConfig, parse
from resnet_flax.models import stacking
from resnet_flax.training import build, loop


def train(config, workdir, **options):
    """Trains a run whose fields are `config`."""
    return loop.train_and_evaluate(parse(config, RunConfig), workdir, **options)


def built(config, *devices):
    """The parts of a run whose fields are `config`."""
    return build.build(parse(config, RunConfig), *devices)


def expanded(config):
    """The runs of a sweep whose fields are `config`."""
    return grid.expand(parse(config, grid.SweepConfig))


def is_stacked(tree):
    """Whether the blocks of any stage are stacked."""
    return any(stacking.stands_in_stack(path) for path, _ in jax.tree.leaves_with_path(tree))
