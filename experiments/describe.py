"""Prints a network's layer table: parts, shapes, parameters, multiply-adds. Can draw networks.

.venv/bin/python -m experiments.describe --config=configs/imagenet.py:resnet34

--figure draws the networks of --config and of each --beside side by side:

.venv/bin/python -m experiments.describe --config=configs/imagenet.py:vgg19 \\
  --beside=configs/imagenet.py:plain34 --beside=configs/imagenet.py:resnet34 --figure=net.svg
"""

from absl import flags
from ml_collections.config_flags import config_flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.reporting import network_figure
from experiments.reporting.networks import Network
from resnet_flax.config import ModelConfig, RunConfig, parse
from resnet_flax.errors import UserError
from resnet_flax.models import cost
from resnet_flax.storage import filesystem
from resnet_flax.training import architecture, build

FORMATS = (".svg", ".png", ".pdf")
OPTIONS = {"none": "", "pad": "option A", "projection": "option B", "projection_all": "option C"}


class _Beside(flags.ArgumentParser[RunConfig]):
    """A flag for the config of a run, FILE.py:ARGUMENT."""

    def parse(self, argument: str) -> RunConfig:
        config = config_flags.ConfigFileFlagParser("beside").parse(argument)
        if "kinds" in dict(config):
            raise ValueError(f"Expected a run's config in --beside, got a sweep's: {argument}.")
        return parse(config.to_dict(), RunConfig)

    def flag_type(self) -> str:
        return "config of a run"


def main(args: flags.FlagValues) -> None:
    figure = args.figure and filesystem.path(args.figure)
    if figure and figure.suffix not in FORMATS:
        raise UserError(
            f"Expected --figure to end in {', '.join(FORMATS)}, got {figure.name}. Give another"
            " name, such as --figure=net.svg."
        )
    shown = []
    for config in (parse(args.config.to_dict(), RunConfig), *args.beside):
        image_shape, num_classes = build.trained_images(config.data)
        architecture.check_image_shape(config.model, image_shape)
        parts = cost.layer_table(architecture.build_model(config.model, num_classes), image_shape)
        _print(parts, f"{' x '.join(map(str, image_shape))}, {num_classes} classes")
        shown.append(Network(_name(config.model), _note(config.model, parts), parts))
    if figure:
        try:
            network_figure.save(shown, figure)
        except OSError as error:
            raise UserError(
                f"Cannot write {figure}: {error.strerror or error}. Give a folder that exists."
            ) from error
        print(figure)


def _print(parts: list[cost.Part], what: str) -> None:
    parameters, multiply_adds = cost.totals(parts)
    table = Table(title=f"input {what}")
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


def _name(model: ModelConfig) -> str:
    """As in Fig. 3: `34-layer residual`."""
    if model.family == "vgg":
        return f"VGG-{model.depth}"
    return f"{model.depth}-layer {'plain' if model.shortcut == 'none' else 'residual'}"


def _note(model: ModelConfig, parts: list[cost.Part]) -> str:
    """What a forward pass costs, and what differs from the plain network of Fig. 3."""
    multiply_adds = cost.totals(parts)[1]
    unit, name = (1e9, "billion") if multiply_adds >= 1e9 else (1e6, "million")
    differs = [OPTIONS[model.shortcut], model.block.removeprefix("postactivation")]
    differs += ["without BN"] if model.norm == "none" else []
    return f"{multiply_adds / unit:.3g} {name} multiply-adds\n{', '.join(filter(None, differs))}"


if __name__ == "__main__":
    flags.DEFINE_string("figure", "", "A file for a picture of the networks: .svg, .png or .pdf.")
    flags.DEFINE_multi(
        _Beside(),
        flags.ArgumentSerializer(),
        "beside",
        [],
        "Another network, as FILE.py:ARGUMENT. Can be given several times.",
    )
    cli.run(main, config="run")
