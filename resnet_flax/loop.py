"""Trains and evaluates one run, from its beginning or from its last checkpoint."""

import functools
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from resnet_flax import environment, experiment, metrics, schema, steps
from resnet_flax.checkpoints import Checkpoints
from resnet_flax.data import sources
from resnet_flax.data.order import batch_indices
from resnet_flax.errors import summary
from resnet_flax.evaluation import Evaluator
from resnet_flax.experiment import Experiment
from resnet_flax.interrupt import StopRequest
from resnet_flax.progress import RunProgress
from resnet_flax.records import RunFolder, State, Status


def train_and_evaluate(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    progress: RunProgress | None = None,
    stop: StopRequest | None = None,
) -> State:
    """Runs a config in a folder until it is finished, diverged or told to stop.

    `progress` and `stop` are those of a sweep; without them the run shows itself and listens for
    signals on its own.

    Given again, it resumes from the last checkpoint, and ends in the same bits as a run that was
    never stopped. Returns the state that `status.json` then holds. Raises UserError before anything
    is written if the config, the data or the folder cannot be used; any other error is recorded as
    `failed` and raised.
    """
    if progress is None or stop is None:
        with RunProgress() as progress, StopRequest() as stop:
            return train_and_evaluate(config, workdir, progress, stop)
    folder = RunFolder(workdir)
    resolved = schema.parse(config, schema.RunConfig).model_dump(mode="json")
    before = folder.status() if folder.check(resolved) else None
    if before and before.state in ("finished", "diverged"):
        progress.say(f"{folder.name}: {before.state} at step {before.step}; nothing to do.")
        return before.state
    # What cannot be read is said before anything is written.
    folder.metrics()
    folder.environments()
    run = _Run(
        experiment.build(config), folder, progress, attempt=before.attempt + 1 if before else 1
    )
    folder.claim(resolved)
    try:
        return run.run(stop)
    except Exception as error:
        run.write_status("failed", summary(error))
        raise


class _Run:
    """One attempt at a run.

    The records of a step are on disk before its checkpoint is begun, and what lies past the
    restored checkpoint is dropped on resume: no record is missing, none is there twice.
    """

    def __init__(self, built: Experiment, folder: RunFolder, progress: RunProgress, attempt: int):
        self.config, self.built, self.devices = built.config, built, built.devices
        self.folder, self.progress, self.attempt = folder, progress, attempt
        self.step = 0
        train_steps = functools.partial(
            steps.train_steps,
            model=built.model,
            optimizer=built.optimizer,
            pad=self.config.data.pad,
            flip=self.config.data.flip,
            log_every=self.config.log_every,
        )
        self.train_steps = self.devices.map(train_steps, sharded=(False, False, True), donate=0)
        batch_size = self.config.data.eval_batch_size
        self.evaluate = Evaluator(built.model, self.devices, batch_size)

    def run(self, stop: StopRequest) -> State:
        self.write_status("running")
        with Checkpoints(self.folder.checkpoints, writable=True) as checkpoints:
            state = self._first_state(checkpoints)
            self._record_environment(state)
            self.folder.drop_metrics_after(self.step)
            log_dir = str(self.folder.tensorboard)
            with SummaryWriter(log_dir, purge_step=self.step + 1) as self.tensorboard:
                end = self._train(state, checkpoints, stop)
        self.write_status(end)
        return end

    def write_status(self, state: State, error: str | None = None) -> None:
        self.folder.write_status(Status(state, self.step, self.attempt, error))

    def _record_environment(self, state: steps.TrainState) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        self.folder.add_environment(
            {"attempt": self.attempt, "parameters": parameters, **environment.describe()}
        )

    def _first_state(self, checkpoints: Checkpoints) -> steps.TrainState:
        """The last checkpoint's state, or else the initial one, on all devices."""
        mean = sources.per_pixel_mean(self.built.train.images)
        init = functools.partial(steps.init_state, self.built.model, self.built.optimizer)
        if not checkpoints.steps():
            return self.devices.replicate(jax.jit(init)(np.uint32(self.config.seed), mean))
        state = checkpoints.restore_into(jax.eval_shape(init, np.uint32(0), mean))
        self.step = int(state.step)
        self.progress.say(f"{self.folder.name}: resuming from step {self.step}.")
        return self.devices.replicate(state)

    def _train(self, state: steps.TrainState, checkpoints: Checkpoints, stop: StopRequest) -> State:
        """Trains to the end, a divergence or a stop; where it stops by request it can resume."""
        config = self.config
        train, test = (self._on_devices(split) for split in (self.built.train, self.built.test))
        self.progress.start(self.folder.name, self.step, config.steps)
        timer = _Timer(self.step)
        while self.step < config.steps:
            count = min(config.steps_per_dispatch, config.steps - self.step)
            state = self.train_steps(state, train, self.devices.shard(self._indices(count)))
            self.step += count
            last = self.step == config.steps
            if last or self.step % config.log_every == 0:
                loss = self._record_training(state, timer)
                if not math.isfinite(loss):
                    self.progress.say(f"{self.folder.name}: diverged at step {self.step}.")
                    return "diverged"
            if last or self.step % config.eval_every == 0:
                self._record_evaluation("test", state, test)
                if last:
                    self._record_evaluation("train", state, train)
                timer.restart(self.step)
            if last or stop.received or self.step % config.checkpoint_every == 0:
                checkpoints.save(self.step, state)
                self.write_status("running")
            if stop.received and not last:
                self.progress.say(
                    f"{self.folder.name}: {stop.received}; saved step {self.step}."
                    " The same command resumes it."
                )
                return "preempted"
        return "finished"

    def _on_devices(self, split: sources.Split) -> steps.Images:
        return self.devices.replicate(steps.Images(split.images, split.labels))

    def _indices(self, count: int) -> np.ndarray:
        """Of the images of the next steps: [count, batch_size] int32."""
        seed, batch_size = self.config.seed, self.config.data.batch_size
        size = len(self.built.train.images)
        next_steps = range(self.step, self.step + count)
        return np.stack([batch_indices(seed, step, batch_size, size) for step in next_steps])

    def _record_training(self, state: steps.TrainState, timer: "_Timer") -> float:
        """Records the means since the last record; returns the loss."""
        means = metrics.means(state.totals)
        rate = timer.restart(self.step) * self.config.data.batch_size
        learning_rate = float(self.built.schedule(self.step - 1))
        self._record({"kind": "train", **means, "lr": learning_rate, "images_per_second": rate})
        self.progress.update(self.step, means["loss"], means["error"], rate)
        return means["loss"]

    def _record_evaluation(self, split: str, state: steps.TrainState, data: steps.Images) -> None:
        scores = self.evaluate(state.variables, state.image_mean, data)
        self._record({"kind": "eval", "split": split, **scores})

    def _record(self, values: dict[str, Any]) -> None:
        epoch = self.step * self.config.data.batch_size / len(self.built.train.images)
        self.folder.append_metrics({"step": self.step, "epoch": epoch, **values})
        name = values.get("split", "running")
        for key in ("loss", "error", "lr", "images_per_second"):
            if key in values:
                self.tensorboard.add_scalar(f"{key}/{name}", values[key], self.step)


class _Timer:
    """Steps per second since the last restart."""

    def __init__(self, step: int):
        self.step, self.time = step, time.monotonic()

    def restart(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return rate
