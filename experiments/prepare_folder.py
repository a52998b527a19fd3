"""Makes a data set of your own images, from a folder that holds a folder for each class.

.venv/bin/python -m experiments.prepare_folder --folder=photos --name=mine

If the folder has `train/` and `test/`, these hold the class folders. Otherwise a part of each class
becomes the test split. `make prepare FOLDER=photos NAME=mine` is the same.
"""

import functools
import os
import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import track

from experiments import cli
from resnet_flax.data import own_images
from resnet_flax.data.own_images import Prepared
from resnet_flax.data.prepared import data_folder
from resnet_flax.errors import printable


def main(args: flags.FlagValues) -> None:
    console = Console(file=sys.stdout)  # Keeps the bar while TFDS's output is dropped.
    bar = functools.partial(track, console=console, transient=True, disable=not console.is_terminal)
    prepared = own_images.prepare(
        Path(args.folder).expanduser(), args.name, args.data_dir, args.test_share, args.seed, bar
    )
    for line in (*prepared.notes, *_summary(args.name, prepared)):
        print(printable(line))


def _summary(name: str, prepared: Prepared) -> list[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in prepared.counts.items())
    (low, high), channels = _ends(prepared), prepared.channels
    if prepared.in_memory:
        kind = f"All are {low} x {channels}: training keeps them in memory."
    else:
        kind = f"From {low} to {high}, height x width: training reads crops of them from the disk."
    return [
        f"{name}: {counts} images of {len(prepared.classes)} classes, in {prepared.folder}",
        kind,
        "Train a network on them; for a short trial add --config.steps=20 --workdir=runs/trial:",
        f"  {cli.command('train', _train_flags(name, prepared))}",
    ]


def _ends(prepared: Prepared) -> tuple[str, str]:
    low, high = ("{} x {}".format(*size) for size in (prepared.sizes[0], prepared.sizes[-1]))
    return low, high


def _train_flags(name: str, prepared: Prepared) -> list[str]:
    """The flags of `train` for the set."""
    batch_size = 128 if prepared.in_memory else 256
    config = "cifar10.py:resnet20" if prepared.in_memory else "imagenet.py:resnet18"
    folder = prepared.folder.parents[1]
    given = [f"--config=configs/{config}", f"--config.data.name={name}"]
    # The variable may be set for this command only, as `make` sets it.
    if "TFDS_DATA_DIR" in os.environ or str(folder) != data_folder(""):
        given.append(f"--config.data.data_dir={folder}")
    test = "test" if "test" in prepared.counts else "validation"
    if test != ("test" if prepared.in_memory else "validation"):
        given.append(f"--config.data.test_split={test}")
    if prepared.counts["train"] < batch_size:
        largest = 1 << prepared.counts["train"].bit_length() - 1
        given.append(f"--config.data.batch_size={largest}")
    if not prepared.in_memory:
        given += _crop_flags(prepared)
    return [*given, f"--workdir=runs/{name}"]


def _crop_flags(prepared: Prepared) -> list[str]:
    """Crops of 224 pixels, as in the paper, or smaller ones if most images are smaller."""
    usual = min(prepared.sizes[len(prepared.sizes) // 2])  # The median of the shorter sides.
    if usual >= 224:
        return []
    size = max(32, usual // 32 * 32)
    # In the paper's proportion: 224 to 256 and 480.
    shorter = (size * 8 // 7, size * 15 // 7)
    return [f"--config.data.image_size={size}", f"--config.data.shorter_side={shorter}"]


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Holds a folder for each class.", required=True)
    flags.DEFINE_string("name", None, "The name of the set, such as my_photos.", required=True)
    flags.DEFINE_float(
        "test_share",
        None,
        "The share of each class that is for testing, if the folder has no splits; by default"
        f" {own_images.TEST_SHARE}.",
        lower_bound=0.01,
        upper_bound=0.99,
    )
    flags.DEFINE_integer(
        "seed", None, "Chooses the images for testing; by default 0.", lower_bound=0
    )
    cli.run(main, config="none", data_dir=True)
