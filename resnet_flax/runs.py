"""What a notebook needs: runs, finished or not, and sweeps, loaded from their folders alone."""

import contextlib
import functools
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.config import RunConfig, parse
from resnet_flax.data import augment
from resnet_flax.errors import FaultError, UserError, summary
from resnet_flax.models import stacking
from resnet_flax.runtime import bits
from resnet_flax.storage import filesystem, findings
from resnet_flax.storage.checkpoints import Checkpoints, CheckpointWriter
from resnet_flax.storage.records import DONE, FILES, LARGEST, Status
from resnet_flax.storage.run_folder import OWN, RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.training import build, steps


class Run(NamedTuple):
    """A restored run. K: classes; H, W, C: height, width, channels of its images."""

    config: RunConfig
    model: nn.Module
    variables: dict[str, Any]  # As `model.apply` takes them: params and batch_stats.
    step: int
    image_mean: np.ndarray  # [H, W, C] float32, or [1, 1, C], subtracted from images.

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities [B, K] float32 of images [B, H, W, C] uint8."""
        return np.asarray(_probabilities(self.model, self.variables, self.normalize(images)))

    def normalize(self, images: np.ndarray) -> jax.Array:
        """Images [B, H, W, C] uint8 -> float32, as the model takes them.

        Of any height and width where the mean is of channels. Raises ValueError for others.
        """
        height, width, channels = self.image_mean.shape
        any_size = (height, width) == (1, 1) and images.ndim == 4
        expected = (*(images.shape[1:3] if any_size else (height, width)), channels)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            sizes = "H, W" if (height, width) == (1, 1) else f"{height}, {width}"
            raise ValueError(
                f"Expected uint8 images [B, {sizes}, {channels}], got"
                f" {images.dtype} {list(images.shape)}."
            )
        return augment.normalize(jnp.asarray(images), jnp.asarray(self.image_mean))


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(steps.eval_logits(model, variables, images))


def saved_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps that `load_run` can be asked for, ascending. Raises UserError if there are none."""
    checkpoints = RunFolder(folder).checkpoints
    steps = Checkpoints(checkpoints).steps()
    if not steps:
        raise UserError(f"No checkpoint in {checkpoints}.")
    return steps


def load_run(folder: str | os.PathLike[str], step: int | None = None, data_dir: str = "") -> Run:
    """Restores a checkpoint, by default the newest whole one, knowing only the run's folder.

    The data set is not needed; `data_dir` is where `config.data` says that it lies. Raises
    UserError if the folder is no run's, or lacks that step (naming those it has), or if that step
    is damaged or another run's.
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
        shape = image_mean.shape
        if config.data.crop != "none":
            shape = (config.data.image_size, config.data.image_size, shape[-1])
        batch = np.zeros((1, *shape), np.float32)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"The checkpoint in {checkpoints.folder} is of no run.") from error
    # Each block by its name, however it was trained; very deep networks would compile for minutes.
    net = config.model.model_copy(update={"scan": "auto", "remat": False})
    model = build.build_model(net, num_classes)
    if build.scans(net):
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
    """Copies what is worth sharing of a run, from one folder on a disk to a new one.

    That is its records, what diagnostics found, and one checkpoint, as in `load_run`, without the
    optimiser's state: half the size, and all that `load_run`, `evaluate`, `diagnose` and
    `init_from` need. No path of this machine goes along: `init_from` becomes that run's name.

    The run itself can go on there only with `resumable`. Then the checkpoint is whole, records end
    at its step, and the command that trained the run goes on from it. The config stays as it was,
    with the path in `init_from`. On the same kind of machine the run ends in the same bits; on
    another, it says so.

    Raises UserError if there is no such run or step, or if `to` exists, is within the run or cannot
    be written to.
    """
    source, target = filesystem.path(folder), filesystem.path(to)
    if not (isinstance(source, Path) and isinstance(target, Path)):
        raise UserError(f"Expected folders on a disk, to export from and to, got {folder}, {to}.")
    if target.exists() or target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"Expected a new folder, outside the run's, to export to, got {target}.")
    found = [f"diagnostics/{path.name}" for path in findings.folder(source).glob("*.json")]
    filesystem.refuse_links(source, *OWN, *found)
    step = load_run(source, step).step
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
        _export_step(RunFolder(source), RunFolder(part), step, resumable)
        part.rename(target)
    except (OSError, FaultError) as error:
        raise UserError(f"Cannot export to {target}: {summary(error)}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _leave_paths_out(copy: RunFolder) -> None:
    """Rewrites what can name a folder of this machine: `init_from`, and the text of an error."""
    config, status = copy.config(), copy.status()
    if begun_with := config.get("init_from"):
        config["init_from"] = filesystem.path(begun_with).name
    filesystem.write_json(copy.config_file, config)
    if status and status.error:
        filesystem.write_json(copy.status_file, status._replace(error=None)._asdict())


def _export_step(source: RunFolder, copy: RunFolder, step: int, resumable: bool) -> None:
    """Saves a checkpoint of one run in another folder, which has its records."""
    state = Checkpoints(source.checkpoints, config=source.config_digest()).restore(step)
    if resumable:
        with copy.claim(copy.config(), print):
            copy.drop_metrics_after(step)
            copy.write_status(_stopped_at(step, copy.status()))
        (copy.path / ".lock").unlink()
    else:
        state = {name: state[name] for name in ("params", "batch_stats", "step", "image_mean")}
    with CheckpointWriter(
        copy.checkpoints,
        keep_every=0,
        attempt=1,
        held=contextlib.nullcontext,
        say=print,
        config=copy.config_digest(),
    ) as writer:
        writer.save(step, state, {})


def _stopped_at(step: int, status: Status | None) -> Status:
    """The status of a run that was stopped there, unless that is where it ended."""
    if status and status.state in DONE and status.step == step:
        return status
    return (status or Status("preempted"))._replace(state="preempted", step=step, error=None)


class Sweep(SweepFolder):
    """A sweep's records, and its runs: `sweep["plain-56-s0"]` is restored when asked for."""

    def __getitem__(self, name: str) -> Run:
        """As `load_run`. Raises UserError, naming the runs there are, if the sweep lacks it."""
        return load_run(self.records(name).path)


def load_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """Reads which runs a sweep has. Raises UserError if the folder is no sweep's."""
    return Sweep(folder)
