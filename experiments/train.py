"""Trains one run, or resumes it.

python -m experiments.train --config=configs/digits.py:plain56 --workdir=runs/plain56
"""

from experiments import cli
from resnet_flax import loop

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("The run's folder; the same command again resumes the run.")


def main() -> int:
    state = loop.train_and_evaluate(_CONFIG.value.to_dict(), _WORKDIR.value)
    return cli.EXIT_STATUS.get(state, cli.FAILURE)


if __name__ == "__main__":
    cli.run(main)
