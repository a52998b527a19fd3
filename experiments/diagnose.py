"""Measures why networks do or do not train: gradients and responses by layer, loss by weights.

Also what is left of images and of the loss inside a network before training.

.venv/bin/python -m experiments.diagnose --workdir=runs/digits
.venv/bin/python -m experiments.diagnose --workdir=runs/digits/plain-56-s0 --landscape
.venv/bin/python -m experiments.diagnose --workdir=runs/digits \
  --config=configs/degradation.py:digits

The command measures one run, or every run of a sweep: before training and at the last checkpoint.
With --config it needs no run. It then measures the networks of the config before training, with its
norm, with BN and without. The results go into the folder. `report` draws those of a sweep.
"""

import functools
from collections.abc import Sequence
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

from experiments import cli
from experiments.sweeping import grid
from resnet_flax.analysis import diagnostics, landscape, signal
from resnet_flax.config import DataConfig, ModelConfig, RunConfig
from resnet_flax.errors import UserError
from resnet_flax.runs import Run, load_run, saved_steps
from resnet_flax.runtime import parallel
from resnet_flax.runtime.parallel import Backend
from resnet_flax.storage import filesystem, findings
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.findings import Layers, Network
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.training import architecture, build, part_by_part
from resnet_flax.training.initial_state import initial_variables
from resnet_flax.training.steps import Batch

NORMS = ("batch", "none")
# Flags that need a run. They have no use with --config.
OF_RUNS = ("step", "all_steps", "landscape", "resolution", "data_dir")
RESOLUTION = 15


def initial_networks(runs: Sequence[grid.GridRun], count: int, console: Console) -> list[Network]:
    """Measures each group and depth before training, for the first seed.

    Each is measured with the norms of the grid, with BN and without. If the norm varies in the
    grid, each run keeps its own. The signal is measured with BN only.
    """
    seed = runs[0].config.seed
    first = [run for run in runs if run.config.seed == seed]
    varied = len({run.config.model.norm for run in first}) > 1  # Then each run has its own norm.
    points = [
        (run, norm)
        for norm in dict.fromkeys((*NORMS, *(run.config.model.norm for run in first)))
        for run in first
        if (norm == run.config.model.norm if varied else _may_have(norm, run.config.model))
    ]
    networks = []
    for run, norm in _tracked(points, "networks", console):
        model = run.config.model.model_copy(update={"norm": norm})
        config = run.config.model_copy(update={"model": model})
        num_classes, batches = _first_batches(config.data, config.parallel, count)
        net = architecture.build_model(model, num_classes, jax.default_backend())
        variables = initial_variables(config, console.print)
        at = diagnostics.layer_statistics(part_by_part.parts_of(net), variables, batches)
        point = {"kind": run.point.group, "depth": model.depth, "norm": norm, "seed": seed}
        found = signal.measure(net, variables, batches) if norm == "batch" else None
        networks.append(Network(**point, at=at, signal=found))
        done = f"{len(networks)} of {len(points)}: {run.point.group}-{model.depth} norm={norm}"
        console.print(f"measured {done}", markup=False)
    return networks


def _may_have(norm: str, model: ModelConfig) -> bool:
    """Whether there is such a network with this norm: some fields are about BN."""
    return norm == "batch" or not (model.bn_bias or model.zero_init_residual)


@functools.lru_cache(maxsize=1)
def _first_batches(data: DataConfig, backend: Backend, count: int) -> tuple[int, list[Batch]]:
    """The number of classes, and the first training batches."""
    split = build.open_split(data, data.train_split)
    return split.num_classes, build.training_batches(data, backend, split.image_mean(), count)


def diagnose_run(
    folder: AnyPath,
    at_steps: Sequence[int],
    count: int,
    resolution: int | None,
    console: Console,
    data_dir: str = "",
) -> list[Layers]:
    """Measures the layers before training and at each of the saved steps; stores and returns them.

    Also stores the signal before training. Tells of steps that cannot be restored, and measures the
    others. Raises UserError if there are none.

    With `resolution`, also stores the loss on a line and on a plane. The line goes from the initial
    weights to those of the last of these steps. The plane is around the latter.
    """
    runs = _loaded(folder, at_steps, data_dir, console)
    config = runs[-1].config
    parts = part_by_part.parts_of(runs[-1].model)
    image_mean, data = runs[-1].image_mean, config.data
    known = RunFolder(folder).images()
    build.open_seen(data, data.train_split, image_mean, runs[-1].num_classes, known)
    batches = build.training_batches(data, config.parallel, image_mean, count)
    initial = _before_training(folder, config, console)
    found_signal = signal.measure(runs[-1].model, initial, batches)
    findings.save(findings.folder(folder) / findings.SIGNAL, found_signal)
    found = []
    later = [run for run in runs if run.step]  # Step 0 is the initial one.
    moments = [(0, initial), *((run.step, run.variables) for run in later)]
    for step, variables in moments:
        found.append(diagnostics.layer_statistics(parts, variables, batches, step))
        findings.save(findings.layers_file(folder, step), found[-1])
    if resolution is not None:
        _explore(folder, runs[-1], initial, batches, resolution, console)
    return found


def _loaded(folder: AnyPath, at_steps: Sequence[int], data_dir: str, console: Console) -> list[Run]:
    """The run at these steps, but for those that cannot be restored. UserError if none can be."""
    runs: list[Run] = []
    wrong: list[UserError] = []
    for step in at_steps:
        try:
            runs.append(load_run(folder, step, data_dir))
        except UserError as error:  # It is damaged, or the run is training and has deleted it.
            wrong.append(error)
    if not runs:
        raise wrong[0]
    for each in wrong:
        console.print(str(each), markup=False)
    return runs


def _before_training(folder: AnyPath, config: RunConfig, console: Console) -> dict[str, Any]:
    """Variables before the first step. A run that began with another one has them in its step 0."""
    if not config.init_from:
        return initial_variables(config, console.print)
    if 0 not in (saved := saved_steps(folder)):
        raise UserError(
            f"Expected step 0 among the checkpoints of {folder}, since it began with another run,"
            f" got {saved}. Train it again: its step 0 is kept now."
        )
    return load_run(folder, 0).variables


def _explore(
    folder: AnyPath,
    run: Run,
    initial: dict[str, Any],
    batches: Sequence[Batch],
    resolution: int,
    console: Console,
) -> None:
    """Stores the line and the plane. `initial`: variables of the run before training."""
    first = {**run.variables, "params": initial["params"]}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    shown = functools.partial(_tracked, what=f"{folder.name}, line", console=console)
    positions = np.linspace(0, 1, 2 * resolution - 1)
    line = landscape.line(
        run.model, first, run.variables, stacked, positions, step=run.step, shown=shown
    )
    findings.save(findings.folder(folder) / findings.LINE, line)
    shown = functools.partial(_tracked, what=f"{folder.name}, plane", console=console)
    positions, seed = np.linspace(-1, 1, resolution), run.config.seed
    plane = landscape.plane(
        run.model, run.variables, stacked, positions, step=run.step, seed=seed, shown=shown
    )
    findings.save(findings.folder(folder) / findings.PLANE, plane)


def _tracked(items: Any, what: str, console: Console) -> Any:
    return track(items, what, console=console, disable=not console.is_terminal)


def _printed(rows: Sequence[tuple[str, Layers]]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="L2 norms of the loss gradient by kernels (dw) and by inputs of layers (dx)",
    )
    for heading in ("network", "step", "loss", "dw first", "dw last", "dx first / last"):
        is_name = heading == "network"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=True)
    for name, found in rows:
        first, last = found.layers[0], found.layers[-1]
        at_first, at_last = first.input_gradient_norm, last.input_gradient_norm
        ratio = at_first / at_last if at_first is not None and at_last else None
        shown = first.weight_gradient_norm, last.weight_gradient_norm, ratio
        values = ("not finite" if x is None else f"{x:.3g}" for x in shown)
        loss = "not finite" if found.loss is None else f"{found.loss:.3f}"
        table.add_row(escape(name), str(found.step), loss, *values)
    return table


def _folders(workdir: AnyPath, console: Console) -> list[AnyPath]:
    """The folder of a run, or the folders of a sweep's runs that have a checkpoint."""
    if not (workdir / "sweep.json").exists():
        return [workdir]
    sweep = SweepFolder(workdir)
    folders = [workdir / name for name in sweep if any(sweep.records(name).checkpoints.glob("*"))]
    if not folders:
        raise UserError(f"No run of the sweep {workdir} has a checkpoint.")
    if len(folders) < len(sweep):
        console.print(f"{len(sweep) - len(folders)} of {len(sweep)} runs have no checkpoint.")
    return folders


def _diagnose_runs(args: flags.FlagValues, console: Console) -> int:
    """Measures all runs, also if one of them fails. Returns the exit status."""
    folders, rows = _folders(filesystem.path(args.workdir), console), []
    resolution = (args.resolution or RESOLUTION) if args.landscape else None
    wrong: list[UserError] = []
    for folder in _tracked(folders, "runs", console):
        try:
            steps = saved_steps(folder) if args.all_steps else [args.step]
            found = diagnose_run(folder, steps, args.batches, resolution, console, args.data_dir)
        except UserError as error:
            wrong.append(error)
            continue
        rows += [(folder.name, layers) for layers in found]
    if not rows:
        raise wrong[0]
    for each in wrong:
        console.print(str(each), markup=False)
    console.print(_printed(rows))
    workdir = cli.shown(filesystem.path(args.workdir))
    line = f"To draw what was stored: {cli.command('report', [f'--workdir={workdir}'])}"
    console.print(line, markup=False)
    return cli.FAILURE if wrong else 0


def _diagnose_config(args: flags.FlagValues, console: Console) -> None:
    runs, workdir = grid.runs_of(cli.sweep_config(args)), filesystem.path(args.workdir)
    for data in {run.config.data for run in runs}:  # Before anything is written.
        build.open_split(data, data.train_split)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to workdir {workdir}: {error.strerror}.") from error
    networks = initial_networks(runs, args.batches, console)
    path = workdir / findings.INITIAL
    findings.save(path, findings.Initial(networks=tuple(networks)))
    console.print(_printed([(f"{n.kind}, depth {n.depth}, norm={n.norm}", n.at) for n in networks]))
    console.print(str(path), markup=False)


def _check_flags(args: flags.FlagValues) -> None:
    """Raises UserError if a flag would have no effect."""
    useless = [f"--{name}" for name in OF_RUNS if args.config and args[name].present]
    if useless:
        raise UserError(f"Expected --config without {', '.join(useless)}: they are only for runs.")
    if args.vary and not args.config:
        raise UserError("Expected --vary with a sweep's --config, got it without --config.")
    if args.all_steps and args.step is not None:
        raise UserError(f"Expected --all_steps or --step, got both (step {args.step}).")
    if args.resolution and not args.landscape:
        raise UserError("Expected --resolution with --landscape, got it alone.")


def main(args: flags.FlagValues) -> int | None:
    _check_flags(args)
    parallel.open_devices()
    filesystem.check_reachable(filesystem.path(args.workdir))
    return (_diagnose_config if args.config else _diagnose_runs)(args, cli.console())


if __name__ == "__main__":
    flags.DEFINE_integer("step", None, "A saved step; by default the last one.", lower_bound=1)
    flags.DEFINE_bool("all_steps", False, "Every saved step.")
    flags.DEFINE_integer(
        "batches", 8, "How many training batches to take means over.", lower_bound=1
    )
    flags.DEFINE_bool("landscape", False, "Also the loss along a line and on a plane.")
    flags.DEFINE_integer(
        "resolution",
        None,
        f"Points along a side of the plane; by default {RESOLUTION}.",
        lower_bound=2,
    )
    cli.run(main, config="either", workdir="A run's folder, or a sweep's.", data_dir=True)
