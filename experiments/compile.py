"""Compiles training steps for a TPU or GPU that is described, not present. It runs nothing.

.venv/bin/python -m experiments.compile --config=configs/cifar10.py:resnet56 --topology=v5e:4x4

A sweep's config compiles each distinct program. `make compilers` installs the compilers.
"""

import signal
import sys
from typing import Any

from absl import flags
from rich.console import Console

from experiments import cli
from experiments.compiling import bound, chips, findings, identity, programs, report
from experiments.compiling.chips import Topology
from experiments.sweeping import grid
from resnet_flax.config import RunConfig
from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem


def configs_of(args: flags.FlagValues) -> dict[str, RunConfig]:
    """A config of each distinct program of --config, which is of one run or of a sweep, by name."""
    if not args.config:
        raise UserError("Expected --config=FILE.py:ARGUMENT; see configs/.")
    runs = grid.runs_of(cli.sweep_config(args))
    if "kinds" not in args.config:
        return {report.name_of(runs[0].config): runs[0].config}
    return programs.distinct({run.name: run.config for run in runs})


def compiled(
    name: str, config: RunConfig, topology: Topology, args: flags.FlagValues
) -> dict[str, Any]:
    """Compiles one program. Returns its row, in JSON types."""
    row: dict[str, Any] = {"topology": topology.name, "program": identity.of(config)}
    found = programs.compile_steps(
        config, topology, args.compiler_python, args.timeout, full=args.full
    )
    if found.facts.get("status") == UserError.exit_status:
        raise UserError(found.facts["error"])
    if args.hlo_dir:
        file = f"{name}-{topology.name}".replace(":", "_")
        programs.keep(found, filesystem.path(args.hlo_dir), file)
    row |= found.facts
    if "error" in row:
        return row | {"memory": findings.memory(found.assignment), "fits": False}
    work = bound.FLOPS * grid.multiply_adds(config.model, config.data)
    images = config.data.batch_size // row["chips"]
    dtype, steps = config.model.dtype, config.steps_per_dispatch
    row |= findings.of(found, topology.chip, images, steps, dtype, work)
    return row | {"fits": row["memory"]["total"] <= topology.chip.memory}


def main(args: flags.FlagValues) -> int:
    # Then the compiler and its folder go, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    configs, topology = configs_of(args), chips.topology(args.topology)
    programs.check_python(args.compiler_python, topology)
    if output := filesystem.path(args.output) if args.output else None:
        report.load(output)  # Before the work.
        output.parent.mkdir(parents=True, exist_ok=True)
    console, fit = Console(highlight=False, soft_wrap=True), True
    for name, config in configs.items():
        row = compiled(name, config, topology, args)
        console.print(f"{name} on {topology.name}", style="bold", markup=False)
        for line in report.lines(row, topology.chip):
            console.print(line, markup=False)
        if output:
            report.save(row, output)
        fit &= row["fits"]
    return 0 if fit else 1


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5e:4x4 or h100:8.", required=True)
    flags.DEFINE_bool("full", False, "Also generate code. For a TPU that takes minutes.")
    flags.DEFINE_string("hlo_dir", "", "A folder that keeps the compiled programs as text.")
    flags.DEFINE_string("output", "", "A JSON file to which the findings are added.")
    flags.DEFINE_float("timeout", 600, "Seconds that one compilation may take.", lower_bound=1)
    flags.DEFINE_string(
        "compiler_python",
        ".venv-compile/bin/python",
        "A Python with the compilers; `make compilers` installs one.",
    )
    cli.run(main, config="either")
