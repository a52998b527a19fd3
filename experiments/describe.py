"""Prints a network's layer table: parts, shapes, parameters, multiply-adds.

.venv/bin/python -m experiments.describe --config=configs/imagenet.py:resnet34
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from resnet_flax.config import RunConfig, parse
from resnet_flax.models import cost
from resnet_flax.training import build


def main(args: flags.FlagValues) -> None:
    config = parse(args.config.to_dict(), RunConfig)
    image_shape, num_classes = build.trained_images(config.data)
    build.check_image_shape(config.model, image_shape)
    parts = cost.layer_table(build.build_model(config.model, num_classes), image_shape)
    parameters, multiply_adds = cost.totals(parts)
    shape = " x ".join(map(str, image_shape))
    table = Table(title=f"input {shape}, {num_classes} classes")
    table.add_column("name", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("output", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("multiply-adds", justify="right", no_wrap=True)
    for part in parts:
        indented = "  " * part.name.count("/") + part.name.rpartition("/")[2]
        output = " x ".join(map(str, part.shape))
        table.add_row(
            indented, part.kind, output, f"{part.parameters:,}", f"{part.multiply_adds:,}"
        )
    table.add_section()
    table.add_row("total", "", "", f"{parameters:,}", f"{multiply_adds:,}")
    console = Console(highlight=False, width=max(Console().width, 100))
    console.print(table)
    share = multiply_adds / cost.vgg19_multiply_adds()
    console.print(f"{share:.1%} of VGG-19's multiply-adds at 224 x 224.")


if __name__ == "__main__":
    cli.run(main, config="run")
