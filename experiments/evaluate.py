"""Scores every image of a split with a checkpoint, knowing only the run's folder.

python -m experiments.evaluate --workdir=runs/plain56 --split=train
"""

from absl import flags

from experiments import cli
from resnet_flax import cpu, experiment
from resnet_flax.errors import UserError
from resnet_flax.evaluation import Evaluator
from resnet_flax.parallel import Devices
from resnet_flax.runs import load_run, saved_steps


def score(workdir: str, step: int | None, split: str | None) -> None:
    """Prints one line."""
    run = load_run(workdir, step)
    data = run.config.data
    split = split or data.test_split
    devices = Devices(run.config.parallel)
    feed = experiment.feed(experiment.open_split(data, split), devices, print)
    evaluate = Evaluator(run.model, devices, data.eval_batch_size)
    scores = evaluate(devices.replicate(run.variables), devices.replicate(run.image_mean), feed)
    print(
        f"step {run.step}  {data.name} {split}: error {scores['error']:.2%}  loss"
        f" {scores['loss']:.4f}  images {scores['images']}"
    )


def main(args: flags.FlagValues) -> None:
    if args.all_steps and args.step is not None:
        raise UserError(f"Expected --all_steps or --step, got both (step {args.step}).")
    cpu.use_cores(None)
    if not args.all_steps:
        score(args.workdir, args.step, args.split)
        return
    for step in saved_steps(args.workdir):
        try:
            score(args.workdir, step, args.split)
        except UserError as error:  # One that is damaged, or that a running run has deleted.
            print(error)


if __name__ == "__main__":
    flags.DEFINE_integer("step", None, "The checkpoint's step; by default the last.")
    flags.DEFINE_bool("all_steps", False, "Every checkpoint that is kept, one line each.")
    flags.DEFINE_string("split", None, "A TFDS split; by default the config's test split.")
    cli.run(main, config=False, workdir="The run's folder.")
