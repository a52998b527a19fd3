"""What a command does with the fields it is given, before its one call."""

from experiments.sweeping import grid
from resnet_flax.config import RunConfig, parse
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
