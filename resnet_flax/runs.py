"""Functions for notebooks: load and export runs, and load sweeps, from their folders alone."""

import contextlib
import functools
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn

from resnet_flax.config import RunConfig, parse
from resnet_flax.data import augment
from resnet_flax.errors import FaultError, UserError, complain, summary
from resnet_flax.models import stacking
from resnet_flax.runtime import bits
from resnet_flax.storage import filesystem, findings, sweep_tables
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.records import DONE, FILES, LARGEST, Status
from resnet_flax.storage.run_folder import OWN, RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.training import architecture, steps


class Run(NamedTuple):
    """A restored run. K: classes. H, W, C: height, width and channels of its images."""

    config: RunConfig
    model: nn.Module
    variables: dict[str, Any]  # `params` and `batch_stats`, as `model.apply` takes them.
    step: int
    image_mean: np.ndarray  # [H, W, C] or [1, 1, C] float32, subtracted from images.

    def __repr__(self) -> str:
        return _text("Run", self.facts())

    def _repr_html_(self) -> str:
        return _html("Run", self.facts())

    def facts(self) -> dict[str, str]:
        """What a notebook shows of the run. Its arrays would fill pages."""
        model, data, channels = self.config.model, self.config.data, self.image_mean.shape[2]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        size = self._size()
        images = " x ".join(map(str, (*size, channels))) if size else "of any size"
        return {
            "network": f"{model.family}, {model.depth} layers, shortcut {model.shortcut}"
            f", {model.block}",
            "parameters": f"{parameters:,}",
            "data": f"{data.name}, images {images}, {self.num_classes} classes",
            "seed": str(self.config.seed),
            "step": f"{self.step:,} of {self.config.steps:,}",
        }

    @property
    def num_classes(self) -> int:
        """K, the number of classes that the network tells apart."""
        return len(self.variables["params"]["fc"]["bias"])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Images [B, H, W, C] uint8 -> class probabilities [B, K] float32."""
        return np.asarray(_probabilities(self.model, self.variables, self.normalize(images)))

    def normalize(self, images: np.ndarray) -> jax.Array:
        """Images [B, H, W, C] uint8 -> float32, as the model takes them.

        A network that was trained on crops takes any height and width, but for VGG. Raises
        ValueError if the images have another type or shape.
        """
        size, channels = self._size(), self.image_mean.shape[2]
        expected = (*(size or images.shape[1:3]), channels)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            sizes = ", ".join(map(str, size)) if size else "H, W"
            raise ValueError(
                f"Expected uint8 images [B, {sizes}, {channels}], got"
                f" {images.dtype} {list(images.shape)}."
            )
        return augment.normalize(jnp.asarray(images), jnp.asarray(self.image_mean))

    def _size(self) -> tuple[int, int] | None:
        """(H, W) of the images that the network takes. None: any."""
        height, width, _ = self.image_mean.shape
        if (height, width) != (1, 1):
            return height, width
        side = self.config.data.image_size
        return (side, side) if self.config.model.family == "vgg" else None


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(steps.eval_logits(model, variables, images))


def saved_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The saved steps, ascending, also damaged ones. Raises UserError if there are none."""
    checkpoints = RunFolder(folder).checkpoints
    steps = Checkpoints(checkpoints).steps()
    if not steps:
        raise UserError(f"No checkpoint in {checkpoints}.")
    return steps


def load_run(folder: str | os.PathLike[str], step: int | None = None, data_dir: str = "") -> Run:
    """Restores a checkpoint of a run from the run's folder alone; the data set is not needed.

    - `step`: the newest undamaged one by default.
    - `data_dir`: the value of `config.data.data_dir` in the result.

    Raises UserError if the folder is not a run's folder, or if the step is missing, damaged or from
    another run. For a missing step, the message names the steps that exist.
    """
    records = RunFolder(folder)
    config = parse(records.config(), RunConfig)
    data = config.data.model_copy(update={"data_dir": data_dir})
    config = config.model_copy(update={"data": data})
    checkpoints = Checkpoints(records.checkpoints, config=records.config_digest())
    state = checkpoints.restore(step)
    try:
        variables = {name: state[name] for name in ("params", "batch_stats")}
        num_classes, image_mean = len(variables["params"]["fc"]["bias"]), state["image_mean"]
        step = int(state["step"])
        *_, channels = shape = image_mean.shape
        if config.data.crop != "none":
            shape = (config.data.image_size, config.data.image_size, channels)
        batch = np.zeros((1, *shape), np.float32)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected a training run's checkpoint in {checkpoints.folder}, got other arrays."
        ) from error
    # Blocks keep their own names, and BN needs no other device, however the run was trained. Only
    # very deep networks are scanned: unrolled, they would compile for minutes.
    alone = {"scan": "auto", "remat": False, "bn_scope": "device"}
    net = config.model.model_copy(update=alone)
    model = architecture.build_model(net, num_classes, jax.default_backend())
    if architecture.scans(net):
        variables = stacking.stack(variables)
    expected = jax.eval_shape(model.init, bits.key(0), batch)
    checkpoints.check_same({"batch_stats": {}, **expected}, variables)
    return Run(config, model, variables, step, image_mean)


def export_run(
    folder: str | os.PathLike[str],
    to: str | os.PathLike[str],
    step: int | None = None,
    *,
    resumable: bool = False,
) -> None:
    """Copies a run from its folder on a disk to a new folder, to share it or to train it there.

    The copy has the records, the diagnostics and one checkpoint: `step`, as in `load_run`. If the
    run began with another run's parameters, it also has step 0, which `diagnose` needs. The
    optimiser's state is left out, which halves the size. `load_run`, `evaluate`, `diagnose` and
    `init_from` work on the copy. Paths of this machine are removed: `init_from` becomes the name of
    that run's folder, and the text of an error is deleted.

    With `resumable`, the same training command can continue the copy. The checkpoint then has the
    optimiser's state, and records after its step are dropped. The config is not changed: it keeps
    the path in `init_from`. On the same kind of machine the run ends in the same bits. On another
    kind, training says that bits may differ.

    Raises UserError if the run or the step does not exist, if its records have changed since it
    ended, or if `to` exists, is inside the run's folder or cannot be written.
    """
    source, target = filesystem.path(folder), filesystem.path(to)
    if not (isinstance(source, Path) and isinstance(target, Path)):
        raise UserError(f"Expected folders on a disk to export from and to, got {folder} and {to}.")
    if filesystem.exists(target) or target.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"Expected to export to a new folder outside the run's, got {target}. Choose another."
        )
    step = load_run(source, step).step  # First, because its errors explain most.
    found = [f"diagnostics/{path.name}" for path in findings.folder(source).glob("*.json")]
    filesystem.refuse_links(source, *OWN, *found)
    status = RunFolder(source).status()
    if status and status.state in DONE and (changed := RunFolder(source).changed(status)):
        raise UserError(changed)  # The copy's digest would be that of the changed records.
    begun = {0} & {*saved_steps(source)}  # Only a run that began with another has it.
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name in (*FILES, *found):
            if (source / name).is_file():
                (part / name).parent.mkdir(exist_ok=True)
                text = filesystem.read_bytes(source / name, LARGEST.get(name, findings.LARGEST))
                (part / name).write_bytes(text)
        if not resumable:
            _leave_paths_out(RunFolder(part))
        _export_steps(RunFolder(source), RunFolder(part), sorted({step, *begun}), resumable)
        part.rename(target)
    except (OSError, FaultError) as error:
        raise UserError(f"Cannot export to {target}: {summary(error)}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _leave_paths_out(copy: RunFolder) -> None:
    """Removes paths of this machine: those in `init_from` and in the text of an error."""
    config, status = copy.config(), copy.status()
    if begun_with := config.get("init_from"):
        config["init_from"] = filesystem.path(begun_with).name
    filesystem.write_json(copy.config_file, config)
    if status and status.error:
        filesystem.write_json(copy.status_file, status._replace(error=None)._asdict())


def _export_steps(
    source: RunFolder, copy: RunFolder, at_steps: Sequence[int], resumable: bool
) -> None:
    """Saves checkpoints of a run, ascending, in the folder to which its records were copied."""
    saved, last = Checkpoints(source.checkpoints, config=source.config_digest()), at_steps[-1]
    if resumable:
        with copy.claim(copy.config(), print):
            copy.drop_metrics_after(last)
            copy.write_status(_stopped_at(last, copy.status()))
        (copy.path / ".lock").unlink()
    with CheckpointWriter(
        copy.checkpoints,
        keep_every=0,
        attempt=1,
        held=contextlib.nullcontext,
        say=print,
        config=copy.config_digest(),
    ) as writer:
        for step in at_steps:
            state = saved.restore(step)
            if not resumable:
                kept = ("params", "batch_stats", "step", "image_mean")
                state = {name: state[name] for name in kept}
            writer.save(step, state, {})


def _stopped_at(step: int, status: Status | None) -> Status:
    """The status of a run that was stopped at a step, or its own status if it ended there."""
    if status and status.state in DONE and status.step == step:
        return status
    return (status or Status("preempted"))._replace(state="preempted", step=step, error=None)


class Sweep(SweepFolder):
    """The records and the runs of a sweep. `sweep["plain-56-s0"]` restores that run."""

    def __repr__(self) -> str:
        return _text("Sweep", self.facts())

    def _repr_html_(self) -> str:
        return _html("Sweep", self.facts())

    def facts(self) -> dict[str, str]:
        """What a notebook shows of the sweep."""
        found = [self.records(name).status() for name in self]
        states = Counter(status.state if status else "not begun" for status in found)
        points = self.points.values()
        said = {
            "folder": self.path.name,
            "runs": f"{len(self)}: {', '.join(f'{n} {state}' for state, n in states.items())}",
            "kinds": ", ".join(dict.fromkeys(point.kind for point in points)),
            "depths": ", ".join(map(str, sorted({point.depth for point in points}))),
        }
        for field in self.varying.in_grid:
            said[field] = ", ".join(dict.fromkeys(str(point.varied[field]) for point in points))
        return said | {"seeds": ", ".join(map(str, sorted({point.seed for point in points})))}

    def __getitem__(self, name: str) -> Run:
        """Restores a run, as `load_run`. If the sweep lacks it, the UserError names its runs."""
        return load_run(self.records(name).path)

    def summary(self) -> pd.DataFrame:
        """The table of the report: means over seeds, see `sweep_tables.summarize`.

        Runs whose records have changed since they ended are left out. Stderr says which.
        """
        self._tell_of_changed()
        runs = sweep_tables.read_runs(self)
        return sweep_tables.summarize(runs, self.varying.in_grid).drop(columns="group")

    def frame(self) -> pd.DataFrame:
        """The records of all runs, see `SweepFolder.frame`. Stderr says which runs are left out."""
        self._tell_of_changed()
        return super().frame()

    def _tell_of_changed(self) -> None:
        for name in self:
            if changed := self.changed(name):
                complain(changed)


def _text(title: str, facts: Mapping[str, str]) -> str:
    room = max(map(len, facts))
    return "\n  ".join([title, *(f"{name:{room}}  {value}" for name, value in facts.items())])


def _html(title: str, facts: Mapping[str, str]) -> str:
    """A table. Names come from files, so they are escaped."""
    cell = '<td style="text-align: left">'
    rows = (f"<tr>{cell}{escape(k)}</td>{cell}{escape(v)}</td></tr>" for k, v in facts.items())
    return f"<b>{title}</b><table>{''.join(rows)}</table>"


def load_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """Reads which runs a sweep has. Raises UserError if the folder is not a sweep's."""
    return Sweep(folder)
