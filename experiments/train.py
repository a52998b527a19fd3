"""Trains one run, or resumes it.

python -m experiments.train --config=configs/digits.py:plain56 --workdir=runs/plain56
"""

from absl import flags

from experiments import cli
from resnet_flax import loop


def main(args: flags.FlagValues) -> int:
    state = loop.train_and_evaluate(args.config.to_dict(), args.workdir)
    return cli.EXIT_STATUS.get(state, cli.FAILURE)


if __name__ == "__main__":
    cli.run(main, config=True, workdir="The run's folder; the same command again resumes the run.")
