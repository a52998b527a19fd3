"""Measures why networks do or do not train: gradients and responses by layer, loss by weights.

python -m experiments.diagnose --workdir=runs/digits
python -m experiments.diagnose --workdir=runs/digits/plain-56-s0 --landscape
python -m experiments.diagnose --workdir=runs/initial --config=configs/degradation.py:digits

Of a run, or of every run of a sweep: before training and at its last checkpoint. With --config no
run is needed: its networks are looked at before training, with BN and without. What is found goes
into the folder's records; `report` draws it.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from experiments import cli, grid
from resnet_flax import diagnostics, experiment, findings, landscape, schema, start, steps
from resnet_flax.data import augment
from resnet_flax.errors import UserError
from resnet_flax.findings import Layers, Network
from resnet_flax.models import stacking
from resnet_flax.models.resnet import ResNet
from resnet_flax.parallel import Devices
from resnet_flax.runs import load_run, saved_steps
from resnet_flax.steps import Batch
from resnet_flax.sweeps import SweepFolder

NORMS = ("batch", "none")


def training_batches(config: schema.RunConfig, mean: np.ndarray, count: int) -> list[Batch]:
    """The first whole batches of the training split, not augmented, normalised."""
    device = Devices(config.parallel, jax.devices()[:1])
    feed = experiment.feed(
        experiment.open_split(config.data, config.data.train_split), device, print
    )
    batch_size = min(config.data.batch_size, feed.size)
    count = min(count, feed.size // batch_size)
    batches = []
    with feed.evaluation(batch_size) as fed:
        for of_device, _ in itertools.islice(fed, count):
            share = jax.tree.map(lambda x: x[0], of_device)
            images, labels = steps.select(feed.resident, share)
            batches.append(Batch(augment.normalize(images, jnp.asarray(mean)), labels))
    return batches


def initial_variables(config: schema.RunConfig) -> dict[str, Any]:
    """Of a run before its first step, block by block."""
    built = experiment.build(config.model_dump(mode="json"))
    return stacking.unstack(start.initial_state(built, print).variables)


def diagnosable(model: Any) -> ResNet:
    """The network with its blocks one by one. Raises UserError for VGG."""
    if not isinstance(model, ResNet):
        raise UserError("Expected a plain or residual network, got VGG.")
    return model.clone(scan=False, remat=False, norm_axis=None)


def initial_networks(runs: Sequence[grid.GridRun], count: int, console: Console) -> list[Network]:
    """Each kind and depth of the first seed, with BN and without, before training."""
    seed = runs[0].config.seed
    points = [(run, norm) for norm in NORMS for run in runs if run.config.seed == seed]
    networks = []
    for run, norm in _track(points, "networks", console):
        model = run.config.model.model_copy(update={"norm": norm})
        config = run.config.model_copy(update={"model": model})
        split = experiment.open_split(config.data, config.data.train_split)
        net = diagnosable(experiment.build_model(model, split.num_classes))
        batches = training_batches(config, split.image_mean(), count)
        at = diagnostics.layer_statistics(net.parts(train=True), initial_variables(config), batches)
        networks.append(Network(kind=run.kind, depth=model.depth, norm=norm, seed=seed, at=at))
    return networks


def diagnose_run(folder: Path, at_steps: Sequence[int], count: int) -> list[Layers]:
    """The layers before training and at each of the saved steps, which are stored, too."""
    run = load_run(folder, at_steps[0])
    batches = training_batches(run.config, run.image_mean, count)
    parts = diagnosable(run.model).parts(train=True)
    found = [diagnostics.layer_statistics(parts, initial_variables(run.config), batches)]
    for step in at_steps:
        variables = stacking.unstack(load_run(folder, step).variables)
        found.append(diagnostics.layer_statistics(parts, variables, batches, step))
    for layers in found:
        findings.save(findings.layers_file(folder, layers.step), layers)
    return found


def explore(folder: Path, step: int | None, count: int, resolution: int, console: Console) -> None:
    """Stores the loss along the line from the initial weights and on a plane around the saved."""
    run = load_run(folder, step)
    model, last = diagnosable(run.model), stacking.unstack(run.variables)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *training_batches(run.config, run.image_mean, count)
    )
    first = {**last, "params": initial_variables(run.config)["params"]}
    found: dict[str, findings.Finding] = {
        findings.LINE: landscape.line(
            model,
            first,
            last,
            stacked,
            np.linspace(0, 1, 2 * resolution - 1),
            step=run.step,
            shown=lambda rows: _track(rows, f"{folder.name}, line", console),
        ),
        findings.PLANE: landscape.plane(
            model,
            last,
            stacked,
            np.linspace(-1, 1, resolution),
            step=run.step,
            seed=run.config.seed,
            shown=lambda rows: _track(rows, f"{folder.name}, plane", console),
        ),
    }
    for name, finding in found.items():
        findings.save(findings.folder(folder) / name, finding)
    console.print(f"{folder.name} step {run.step}: loss along a line and on a plane", markup=False)


def _track(items: Any, what: str, console: Console) -> Any:
    return track(items, what, console=console, disable=not console.is_terminal)


def _printed(rows: Sequence[tuple[str, Layers]]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="L2 norms of the loss gradient by kernels (dw) and by what layers read (dx)",
    )
    for heading in ("network", "step", "loss", "dw first", "dw last", "dx first / last"):
        justify = "left" if heading == "network" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name, found in rows:
        first, last = found.layers[0], found.layers[-1]
        at_first, at_last = first.input_gradient_norm, last.input_gradient_norm
        ratio = at_first / at_last if at_first is not None and at_last else None
        shown = first.weight_gradient_norm, last.weight_gradient_norm, ratio
        values = ("not finite" if x is None else f"{x:.3g}" for x in shown)
        loss = "not finite" if found.loss is None else f"{found.loss:.3f}"
        table.add_row(escape(name), str(found.step), loss, *values)
    return table


def _folders(workdir: Path) -> list[Path]:
    """Of the runs of a sweep, or of one run."""
    if not (workdir / "sweep.json").exists():
        return [workdir]
    return [workdir / name for name in SweepFolder(workdir)]


def _diagnose_runs(args: flags.FlagValues, console: Console) -> None:
    workdir = Path(args.workdir)
    folders, rows = _folders(workdir), []
    for folder in _track(folders, "runs", console):
        try:
            saved = saved_steps(folder)
        except UserError as error:
            if folder == workdir:
                raise
            console.print(f"{folder.name}: {error}", markup=False)
            continue
        chosen = saved if args.all_steps else [args.step or saved[-1]]
        if args.landscape:
            explore(folder, chosen[-1], args.batches, args.resolution, console)
        found = diagnose_run(folder, chosen, args.batches)
        rows += [(folder.name, layers) for layers in found]
    console.print(_printed(rows))


def _diagnose_config(args: flags.FlagValues, console: Console) -> None:
    workdir = Path(args.workdir)
    networks = initial_networks(_runs(args.config.to_dict()), args.batches, console)
    path = workdir / findings.INITIAL
    workdir.mkdir(parents=True, exist_ok=True)
    findings.save(path, findings.Initial(networks=tuple(networks)))
    console.print(_printed([(f"{n.kind}-{n.depth} norm={n.norm}", n.at) for n in networks]))
    console.print(str(path), markup=False)


def _runs(config: dict[str, Any]) -> list[grid.GridRun]:
    """Those of a sweep's config, or the one of a run's."""
    if "kinds" in config:
        return grid.expand(config)
    run = schema.parse(config, schema.RunConfig)
    kind = "plain" if run.model.shortcut == "none" else "residual"
    return [grid.GridRun(f"{kind}-{run.model.depth}", kind, run)]


def main(args: flags.FlagValues) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if args.config:
        _diagnose_config(args, console)
    else:
        _diagnose_runs(args, console)


if __name__ == "__main__":
    flags.DEFINE_integer("step", None, "A saved step; by default the last.", lower_bound=1)
    flags.DEFINE_bool("all_steps", False, "Every saved step.")
    flags.DEFINE_integer("batches", 8, "Of the training split, to take means over.", lower_bound=1)
    flags.DEFINE_bool("landscape", False, "The loss along a line and on a plane, too.")
    flags.DEFINE_integer("resolution", 15, "Points a side of the plane.", lower_bound=2)
    cli.run(main, config="optional", workdir="A run's folder, or a sweep's.")
