"""The grid of a sweep, kind x depth x seed: its runs, their names and configs."""

import functools
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, NonNegativeInt

from resnet_flax.config import DataConfig, ModelConfig, RunConfig, Section
from resnet_flax.models import cost
from resnet_flax.models.resnet import Shortcut
from resnet_flax.storage import sweep_folder
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.training import build


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"expected distinct values, got {values}")
    return values


class SweepConfig(Section):
    """The config of the runs, and the values that vary between them."""

    run: RunConfig
    kinds: Annotated[dict[sweep_folder.KindName, Shortcut], Field(min_length=1)]
    """Name -> model.shortcut."""
    depths: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]
    warmup_from_depth: NonNegativeInt
    """The least depth with `run.optim.warmup_steps`. Smaller networks have no warm-up."""


class GridRun(NamedTuple):
    """One run of the grid."""

    name: str
    kind: str
    config: RunConfig

    @property
    def point(self) -> sweep_folder.GridPoint:
        config = self.config
        sizes = config.model.depth, config.seed, config.steps, config.data.batch_size
        multiply_adds = _multiply_adds(config.model, config.data)
        return sweep_folder.GridPoint(self.name, self.kind, *sizes, multiply_adds)


def expand(sweep: SweepConfig) -> list[GridRun]:
    """Lists the runs by seed, then depth, then kind, so that the figure shows all depths early."""
    runs = []
    for seed in sweep.seeds:
        for depth in sweep.depths:
            for kind, shortcut in sweep.kinds.items():
                model = sweep.run.model.model_copy(update={"depth": depth, "shortcut": shortcut})
                optim = sweep.run.optim
                if depth < sweep.warmup_from_depth:
                    optim = optim.model_copy(update={"warmup_steps": 0})
                update = {"seed": seed, "model": model, "optim": optim}
                run = sweep.run.model_copy(update=update)
                runs.append(GridRun(f"{kind}-{depth}-s{seed}", kind, run))
    return runs


def save(runs: list[GridRun], workdir: AnyPath) -> None:
    """Writes `sweep.json`, which tells a report which runs to expect.

    Runs of an earlier grid in the same folder stay in the file.
    """
    entries = {
        run.name: {
            "kind": run.kind,
            "config": run.config.model_dump(mode="json"),
            "multiply_adds": run.point.multiply_adds,
        }
        for run in runs
    }
    sweep_folder.add_runs(workdir, entries)


@functools.cache
def _multiply_adds(model: ModelConfig, data: DataConfig) -> int:
    """Multiply-adds of a forward pass of one image. Reads only the data set's description."""
    image_shape, num_classes = build.trained_images(data)
    build.check_image_shape(model, image_shape)
    return cost.multiply_adds(build.build_model(model, num_classes), image_shape)
