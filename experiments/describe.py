"""Prints a network's layer table: parts, shapes, parameters, multiply-adds.

python -m experiments.describe --config=configs/imagenet.py:resnet34
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from experiments import cli
from resnet_flax.config import DataConfig, RunConfig, parse
from resnet_flax.data import sources
from resnet_flax.models import blocks, resnet, vgg
from resnet_flax.runtime import bits
from resnet_flax.training import build

KINDS: dict[type[nn.Module], str] = {
    nn.Conv: "convolution",
    nn.BatchNorm: "BN",
    blocks.Identity: "identity",
    blocks.ReLU: "ReLU",
    resnet.MaxPool: "max pool",
    vgg.MaxPool: "max pool",
    resnet.GlobalAveragePool: "global average pool",
    nn.Dense: "fully connected",
}


class Part(NamedTuple):
    """A row of the layer table; a block's row counts what its parts hold."""

    name: str
    kind: str
    shape: tuple[int, ...]  # Of the output, without the batch.
    parameters: int
    multiply_adds: int  # For one image, as the paper counts FLOPs: convolutions and dense layers.


def layer_table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The parts in the order of computation, blocks before what they hold, softmax last.

    Nothing is computed: shapes alone are traced.
    """
    if getattr(model, "scan", False):
        model = model.clone(scan=False)  # A line for each block.
    parts: list[Part] = []

    def record(call, args, kwargs, context):  # type: ignore[no-untyped-def]
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return call(*args, **kwargs)
        place = len(parts)
        parts.append(Part("", "", (), 0, 0))
        out = call(*args, **kwargs)
        params = module.variables.get("params", {})
        kernel = params.get("kernel")
        held = sum(part.multiply_adds for part in parts[place + 1 :])
        parts[place] = Part(
            "/".join(module.path),
            _kind(module, args[0]),
            out.shape[1:],
            sum(leaf.size for leaf in jax.tree.leaves(params)),
            held if kernel is None else kernel.size * int(np.prod(out.shape[1:-1])),
        )
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, bits.key(0), jnp.zeros((1, *image_shape)))
    return [*parts, Part("softmax", "softmax", parts[-1].shape, 0, 0)]


def _kind(module: nn.Module, x: jax.Array) -> str:
    if not isinstance(module, blocks.Block):
        return KINDS[type(module)]
    if module.shortcut == "none":
        return "plain block"
    if module.shortcut == "projection":
        return "convolution block"
    grows = module.stride > 1 or module.features * module.expansion != x.shape[-1]
    return "identity block, padded" if grows else "identity block"


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Of a forward pass of one image, in any depth's time: two blocks of a stage are traced.

    The blocks of a stage after its first are equal.
    """
    if not isinstance(model, resnet.ResNet):
        return totals(layer_table(model, image_shape))[1]
    counts = model.blocks_per_stage
    repeats = {f"stage{stage}_block2": count - 1 for stage, count in enumerate(counts, 1)}
    short = model.clone(scan=False, remat=False, blocks_per_stage=tuple(min(n, 2) for n in counts))
    return sum(
        part.multiply_adds * repeats.get(part.name, 1) for part in _short_table(short, image_shape)
    )


@functools.cache
def _short_table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The rows that are not inside another."""
    return [part for part in layer_table(model, image_shape) if "/" not in part.name]


def totals(parts: list[Part]) -> tuple[int, int]:
    """Parameters and multiply-adds of a whole network: the rows that are not inside another."""
    whole = [part for part in parts if "/" not in part.name]
    return sum(part.parameters for part in whole), sum(part.multiply_adds for part in whole)


def trained_images(config: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Shape (H, W, C) of what a network is trained on, and the class count; nothing is read."""
    image_shape, num_classes = sources.describe(config.name, config.data_dir)
    if config.crop != "none":
        image_shape = (config.image_size, config.image_size, 3)
    return image_shape, num_classes


def vgg19_multiply_adds() -> int:
    """Of VGG-19 at 224x224, the paper's yardstick."""
    return totals(layer_table(vgg.build_vgg(19, num_classes=1000), (224, 224, 3)))[1]


def main(args: flags.FlagValues) -> None:
    config = parse(args.config.to_dict(), RunConfig)
    image_shape, num_classes = trained_images(config.data)
    build.check_image_shape(config.model, image_shape)
    parts = layer_table(build.build_model(config.model, num_classes), image_shape)
    parameters, multiply_adds = totals(parts)
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
    share = multiply_adds / vgg19_multiply_adds()
    console.print(f"{share:.1%} of VGG-19's multiply-adds at 224 x 224.")


if __name__ == "__main__":
    cli.run(main, config="run")
