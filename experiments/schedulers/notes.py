"""What a user should know before jobs are submitted: limits, and what the machines lack."""

from collections.abc import Sequence
from pathlib import Path

from experiments.sweeping import devices, grid
from resnet_flax.data.digits import Digits

IN_IMAGE = ("configs", "experiments", "resnet_flax")  # What the Dockerfile copies.
SLURM_ARRAY = 1001  # The most runs that Slurm takes by default.


def of(
    target: str,
    workdir: str,
    runs: Sequence[grid.GridRun],
    devices_per_run: int,
    config_file: str,
) -> list[str]:
    """Warnings about this target, workdir, sweep and the file of its config, one a line."""
    said = devices.notes([run.config for run in runs], devices_per_run)
    if target == "slurm":
        return said + [
            f"Slurm refuses arrays of more than {SLURM_ARRAY} runs, unless its MaxArraySize is"
            f" larger. This array has {len(runs)}. For smaller arrays, give fewer config.seeds at"
            " once."
        ] * (len(runs) > SLURM_ARRAY)
    if "://" not in workdir:
        said.append(
            f"{workdir} ends with the machines unless they mount it. A bucket (gs://) does not."
        )
    there = IN_IMAGE if target == "gke" else (".",)
    if needed := sorted(_needed(runs, config_file, there)):
        said.append(
            f"The machines get this checkout without runs/. They also need {', '.join(needed)}."
        )
    return said


def _needed(runs: Sequence[grid.GridRun], config_file: str, folders: Sequence[str]) -> set[str]:
    """What the runs need that is neither in these folders of the checkout nor in a bucket."""
    needed = set()
    places = (Path(folder).resolve() for folder in folders)
    if not any(Path(config_file).resolve().is_relative_to(place) for place in places):
        needed.add(f"the config's file {config_file}")
    for data, begun_with in {(run.config.data, run.config.init_from) for run in runs}:
        if data.name != Digits.name:
            where = data.data_dir or "TFDS's default folder; config.run.data.data_dir names another"
            needed.add(f"the prepared data set {data.name} (in {where})")
        if begun_with and "://" not in begun_with:
            needed.add(f"the run {begun_with} of init_from")
    return needed
