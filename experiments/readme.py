"""Fills the tables of the READMEs from the committed records.

.venv/bin/python -m experiments.readme

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; NAME is a key of `TABLES`.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from configs import causes, degradation, machines
from experiments import cli, plan, report
from experiments.reporting import (
    accelerator_tables,
    benchmark_tables,
    cause_tables,
    markdown,
    readme_tables,
    run_tables,
)
from experiments.reporting.readme_tables import RESULTS, Rows
from experiments.sweeping import grid
from experiments.sweeping.machine import MachineConfig, run_seconds
from resnet_flax.config import parse
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.runtime import bits
from resnet_flax.storage import filesystem, sweep_tables
from resnet_flax.storage.sweep_folder import SweepFolder

BLOCK = re.compile(r"(<!-- begin: (\w+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """The READMEs of the repository and of its rooms, and the page on accelerators."""
    rooms = (path for room in ("resnet_flax", "experiments") for path in Path(room).rglob("*.md"))
    readmes = sorted(path for path in rooms if path.name == "README.md")
    return [Path("README.md"), *readmes, RESULTS / "accelerators.md"]


def filled(page: str) -> str:
    """Returns the page with every table filled anew. Raises KeyError for an unknown name."""

    def block(match: re.Match[str]) -> str:
        made = TABLES[match[2]]()
        text = made if isinstance(made, str) else markdown.table(made)
        return f"{match[1]}{text}{match[4]}"

    return BLOCK.sub(block, page)


def _sweeps_own(sweep: str) -> str:
    """The table that a sweep's report writes."""
    return report.in_markdown(run_tables.read(SweepFolder(RESULTS / sweep)))


def _parameters(depth: int) -> int:
    """The number of parameters of a CIFAR-10 network."""
    model = build_resnet("cifar", depth, "pad", num_classes=10)
    shapes = jax.eval_shape(model.init, bits.key(0), jnp.zeros((1, 32, 32, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def _runs(data: str, **changes: Any) -> list[grid.GridRun]:
    config = degradation.get_config(data)
    config.update(changes)
    return grid.runs_of(config.to_dict())


def _machine(name: str) -> MachineConfig:
    """A machine of configs/machines.py."""
    return parse(machines.get_config(name).to_dict(), MachineConfig, "machine")


def plans() -> Rows:
    """The plans of three sweeps on two machines."""
    cifar10 = _runs("cifar10", seeds=tuple(range(10)))
    imagenet = _runs("imagenet")
    wide = _runs("imagenet", run={"model": {"bn_scope": "global"}})
    named = (("CIFAR-10", cifar10), ("ImageNet", imagenet), ("ImageNet, global BN", wide))
    rows = []
    for what, runs in named:
        for name in ("v5e_64", "h100_8"):
            machine = _machine(name)
            found = plan.options(runs, machine)
            best = plan.best(found)
            for option in [best] if runs is wide else found:
                rows.append(
                    {
                        "sweep": f"{what}, {len(runs)} runs",
                        "machine": machine.name,
                        "chips a run": f"{option.chips_a_run}{' (best)' * (option == best)}",
                        "at once": min(option.runs_at_once, len(runs)),
                        "wall time": plan.duration(option.wall),
                        "utilisation": f"{option.utilisation:.0%}",
                        "chip-hours": f"{option.chip_hours:.1f}",
                    }
                )
    return rows


def plans_and_records() -> Rows:
    """The times of sweeps on 2 CPU cores: planned by `plan`, and measured by their records."""
    machine = _machine("cpu_2_cores")
    seeds = tuple(range(5))
    small, deep = _runs("digits", seeds=seeds), _runs("digits", seeds=seeds, depths=(110,))
    parts: list[tuple[str, str, Callable[[grid.GridRun], bool]]] = [
        ("`make sweep`", "digits", lambda run: run.config.seed < 2),
        ("digits", "digits", lambda run: True),
        ("digits, 8 layers", "digits", lambda run: run.config.model.depth == 8),
        ("digits, 56 layers", "digits", lambda run: run.config.model.depth == 56),
        ("digits, 110 layers", "digits_110", lambda run: True),
    ]
    rows = []
    for what, folder, is_part in parts:
        minutes = (
            sweep_tables.read_runs(SweepFolder(RESULTS / folder))
            .set_index("run")["minutes"]
            .dropna()
        )
        runs = [run for run in (small if folder == "digits" else deep) if run.name in minutes]
        runs = [run for run in runs if is_part(run)]
        seconds = sum(run_seconds(runs, machine, 1))
        rows.append(
            {
                "sweep": what,
                "runs": len(runs),
                "plan": plan.duration(seconds),
                "measured": plan.duration(60 * minutes[[run.name for run in runs]].sum()),
            }
        )
    return rows


TABLES: dict[str, Callable[[], Rows | str]] = {
    "training_errors": readme_tables.training_errors,
    "sweeps": readme_tables.sweeps,
    "trained_networks": readme_tables.trained_networks,
    "rates": functools.partial(readme_tables.by_depth, "rates"),
    "widths": functools.partial(readme_tables.by_depth, "widths"),
    "blocks": functools.partial(readme_tables.by_depth, "blocks"),
    "options": functools.partial(readme_tables.by_depth, "options"),
    "options_cifar10": functools.partial(readme_tables.by_depth, "options_cifar10"),
    "causes": functools.partial(
        cause_tables.conditions, "causes", causes.PREDICTIONS, causes.EXPLANATIONS, 56
    ),
    "causes_cifar10": functools.partial(cause_tables.beside_untrained, "causes_cifar10", 56),
    "dose": functools.partial(readme_tables.by_depth, "dose"),
    "digits": functools.partial(_sweeps_own, "digits"),
    "training_elsewhere": functools.partial(readme_tables.elsewhere, "train_error"),
    "test_elsewhere": functools.partial(readme_tables.elsewhere, "test_error"),
    "digits_110": functools.partial(readme_tables.single_runs, "digits_110"),
    "digits_no_bn": functools.partial(readme_tables.single_runs, "digits_no_bn"),
    "cifar10": functools.partial(_sweeps_own, "cifar10"),
    "cifar10_short": functools.partial(_sweeps_own, "cifar10_short"),
    "cifar10_short_times": functools.partial(readme_tables.times, "cifar10_short"),
    "to_compare_with": functools.partial(readme_tables.to_compare_with, _parameters),
    "untrained_gradients": readme_tables.untrained_gradients,
    "trained_digits": functools.partial(readme_tables.trained_gradients, "digits", [56]),
    "trained_cifar10": functools.partial(
        readme_tables.trained_gradients, "cifar10_short", [20, 56]
    ),
    "trained_cifar10_64k": functools.partial(readme_tables.trained_gradients, "cifar10", [20]),
    "trained_digits_110": functools.partial(readme_tables.trained_gradients, "digits_110", [110]),
    "theory": functools.partial(cause_tables.predicted_over_measured, "causes", (20, 56, 110)),
    "steps": benchmark_tables.steps,
    "profile": benchmark_tables.profile,
    "schedule_hours": benchmark_tables.schedule_hours,
    "memory": benchmark_tables.memory,
    "start": benchmark_tables.start,
    "input": benchmark_tables.input_rates,
    "compiled_networks": accelerator_tables.networks,
    "compiled_large_images": accelerator_tables.large_images,
    "compiled_pods": accelerator_tables.pods,
    "estimates": accelerator_tables.estimates,
    "plans": plans,
    "plans_and_records": plans_and_records,
}


def main(args: flags.FlagValues) -> None:
    for path in pages():
        text = path.read_text()
        if (made := filled(text)) != text:
            filesystem.write_text(path.absolute(), made)
            print(path)


if __name__ == "__main__":
    cli.run(main, config="none")
