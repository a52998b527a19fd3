"""Trains one run, or resumes it.

.venv/bin/python -m experiments.train --config=configs/digits.py:plain56 --workdir=runs/plain56
"""

from absl import flags

from experiments import cli
from experiments.sweeping import devices
from resnet_flax.config import RunConfig, parse
from resnet_flax.runtime import hosts
from resnet_flax.storage.records import series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import loop


def main(args: flags.FlagValues) -> int:
    workdir = cli.run_folder(args)
    with devices.together(args):
        with hosts.alike():
            config = parse(args.config.to_dict(), RunConfig)
        devices.begin(config)
        state = loop.train_and_evaluate(config, workdir, from_scratch=args.from_scratch)
        if state == "finished" and hosts.is_first():
            print(_ending(RunFolder(workdir), config.data.data_dir))
    return cli.EXIT_STATUS.get(state, cli.FAILURE)


def _ending(folder: RunFolder, data_dir: str) -> str:
    """What the run found, where it is, and the command to look inside."""
    last = {series_of(record): record.get("error") for record in folder.metrics()}
    errors = [(split, last.get(split)) for split in ("train", "test")]
    parts = [f"{split} error {error:.2%}" for split, error in errors if error is not None]
    where = [f"--data_dir={data_dir}"] if data_dir else []  # No folder records it.
    look = cli.command("diagnose", [f"--workdir={folder.path}", *where])
    return f"{folder.name}: {', '.join([*parts, f'in {folder.path}'])}\nTo look inside: {look}"


if __name__ == "__main__":
    flags.DEFINE_bool("from_scratch", False, "Begins again if no saved step is intact.")
    cli.run(
        main,
        config="run",
        workdir="The run's folder; the same command again resumes the run.",
        processes=True,
    )
