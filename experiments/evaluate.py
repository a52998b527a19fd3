"""Scores every image of a split with a checkpoint, knowing only the run's folder.

python -m experiments.evaluate --workdir=runs/plain56 --split=train
"""

from absl import flags

from experiments import cli
from resnet_flax.data import sources
from resnet_flax.evaluation import Evaluator
from resnet_flax.parallel import Devices
from resnet_flax.runs import load_run
from resnet_flax.steps import Images


def main(args: flags.FlagValues) -> None:
    run = load_run(args.workdir, args.step)
    data = run.config.data
    split = args.split or data.test_split
    images, labels, _ = sources.load_split(data.name, split, data.data_dir)
    devices = Devices(run.config.parallel)
    evaluate = Evaluator(run.model, devices, data.eval_batch_size)
    resident = devices.replicate(Images(images, labels))
    scores = evaluate(devices.replicate(run.variables), devices.replicate(run.image_mean), resident)
    print(
        f"step {run.step}  {data.name} {split}: error {scores['error']:.2%}  loss"
        f" {scores['loss']:.4f}  images {scores['images']}"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("step", None, "The checkpoint's step; by default the last.")
    flags.DEFINE_string("split", None, "A TFDS split; by default the config's test split.")
    cli.run(main, config=False, workdir="The run's folder.")
