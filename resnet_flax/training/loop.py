"""Trains and evaluates one run, from its beginning or from its last checkpoint."""

import contextlib
import math
import os
from typing import Any

import jax

from resnet_flax.config import RunConfig, resolve
from resnet_flax.data.fingerprint import fingerprint
from resnet_flax.errors import UserError, complain
from resnet_flax.models import stacking
from resnet_flax.runtime import bits, hosts
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.records import DONE, State, Status, identity
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.trees import host_tree
from resnet_flax.training import build, metrics, steps
from resnet_flax.training.build import Experiment
from resnet_flax.training.evaluation import Evaluator
from resnet_flax.training.initial_state import Beginning
from resnet_flax.training.recorder import (
    Attempt,
    Recorder,
    Timer,
    check_images,
    record_environment,
)


@bits.pinned()
def train_and_evaluate(
    config: RunConfig,
    workdir: str | os.PathLike[str],
    progress: RunProgress | None = None,
    stop: StopRequest | None = None,
    *,
    from_scratch: bool = False,
) -> State:
    """Trains the network of a config in a folder, until it finishes, diverges or is told to stop.

    - `progress`, `stop`: given by a sweep. Without them, the run shows its own progress and listens
      for signals itself.
    - `from_scratch`: whether to start again if checkpoints were saved but none is complete.

    A second call resumes from the last checkpoint. It ends with the same bits as a run that was
    never stopped. Returns the state that `status.json` then contains.

    Raises UserError, before it writes anything, if the config, the data or the folder cannot be
    used, if the data are not those that the run began with, or if records of an ended run are
    missing. Raises TryAgainError if another process works in the folder. Any other error is
    recorded as `failed` and raised, and so is a UserError if no saved checkpoint is whole.

    With several processes, each one must call this, and only the first writes. If their configs or
    data differ, all of them raise UserError before the first step.
    """
    if progress is None:
        with RunProgress(quiet=not hosts.is_first()) as progress:
            return train_and_evaluate(config, workdir, progress, stop, from_scratch=from_scratch)
    if stop is None:
        with StopRequest() as stop:
            return train_and_evaluate(config, workdir, progress, stop, from_scratch=from_scratch)
    folder, fields = RunFolder(workdir, writes=hosts.is_first()), config.model_dump(mode="json")
    with hosts.alike() as facts:
        # Processes may have the run of `init_from` in different folders. Its arrays are compared
        # later, in `initial_state.py`.
        begins = {"init_from": bool(config.init_from)}
        facts |= {"workdir": str(folder.path), "from_scratch": from_scratch}
        facts["config"] = identity(fields) | begins
        before = folder.status() if folder.has_run(fields, resolve) else None
    if (ended := _ended(folder, before, progress)) is not None:
        return ended
    with hosts.alike() as facts:
        # These calls raise for unreadable records before anything is written.
        folder.metrics()
        folder.environments()
        built = build.build(config)
        images = {"train": fingerprint(built.train), "test": fingerprint(built.test)}
        facts |= images
    for note in build.notes(config) if before is None else ():
        progress.say(f"{folder.name}: {note}")
    beginning = Beginning(built, folder, progress, from_scratch=from_scratch)
    with contextlib.ExitStack() as claimed:
        with hosts.alike():
            claimed.enter_context(folder.claim(fields, progress.say))
            # Since the first look, another process may have begun a run here, or ended it.
            folder.has_run(fields, resolve)
            before = folder.status()
        if (ended := _ended(folder, before, progress)) is not None:
            return ended
        with hosts.alike():
            check_images(folder, images)
        with Attempt(folder, from_scratch=from_scratch) as attempt:
            return _attempt(attempt, beginning, stop, images)


def _ended(folder: RunFolder, status: Status | None, progress: RunProgress) -> State | None:
    """The state in which a run has ended; None if it goes on.

    Raises UserError if its records have changed since.
    """
    ended = DONE.index(status.state) if status and status.state in DONE else len(DONE)
    ended = hosts.agree(ended)
    if ended == len(DONE):
        return None
    changed = folder.changed(status) if status and folder.writes else None
    if hosts.agree(changed is not None):
        raise UserError(changed or f"{folder.path}: the records of this run have changed.")
    if status:
        progress.say(f"{folder.name}: {status.state} at step {status.step}; nothing to do.")
    return DONE[ended]


def _attempt(
    attempt: Attempt, beginning: Beginning, stop: StopRequest, images: dict[str, Any]
) -> State:
    """Makes one attempt at a run in a claimed folder. Returns the state in which it ends.

    `images`: the fingerprint of each split.
    """
    folder, built, progress = beginning.folder, beginning.built, beginning.progress
    checkpoints = CheckpointWriter(
        folder.checkpoints,
        keep_every=built.config.keep_every,
        attempt=attempt.number,
        held=folder.held,
        say=progress.say,
        # Other processes may not see yet what the first one has written.
        config=folder.config_digest() if folder.writes else None,
    )
    with checkpoints:
        step, state = beginning.state(checkpoints, attempt.saved)
        record_environment(
            folder, built.config, attempt.number, state.params, images, progress, step
        )
        recorder = Recorder(folder, built, attempt.number, step, progress)
        with contextlib.closing(recorder):
            training = _Training(built, attempt, checkpoints, recorder, step)
            end = training.run(state, stop)
            checkpoints.close(recorder.test_errors)
    attempt.end(end, training.step)
    return end


class _Stopped(Exception):
    """Raised inside an attempt after a request to stop."""


class _Training:
    """The steps of one attempt.

    - The train record of a step is on disk before its checkpoint starts.
    - The evaluations of a step come after its checkpoint.
    - A resumed run drops the records after the step that it restored. It begins with the
      evaluations that are due at that step but not recorded.

    So no record is missing or doubled, and a stop need not wait for an evaluation.
    """

    def __init__(
        self,
        built: Experiment,
        attempt: Attempt,
        checkpoints: CheckpointWriter,
        recorder: Recorder,
        step: int,
    ):
        """`step`: the step at which the attempt begins."""
        self._config, self._built, self._devices = built.config, built, built.devices
        self._attempt, self._checkpoints, self._recorder = attempt, checkpoints, recorder
        self.step = step
        """The last step taken."""
        self._begun = step  # The last step whose save has started.
        self._train_steps = build.map_training(built)
        self._evaluator = Evaluator(built.model, self._devices, self._config.data.eval_batch_size)
        # Each process names the damaged images that it has read.
        say = recorder.progress.say if hosts.is_first() else complain
        self._feeds = {
            name: build.feed(split, self._devices, say)
            for name, split in (("train", built.train), ("test", built.test))
        }
        self._timer = Timer(step)

    def run(self, state: steps.TrainState, stop: StopRequest) -> State:
        """Trains to the last step, a divergence or a stop. A stopped run saves, and can resume.

        `state`: the state at which the attempt begins, on all devices.
        """
        config, train = self._config, self._feeds["train"]
        left = range(self.step, config.steps)
        try:
            self._evaluate(state, stop)
            with train.training(
                config.seed, config.data.batch_size, left, config.steps_per_dispatch
            ) as dispatches:
                for fed in dispatches:
                    # Without this wait, many dispatches could queue up. Then the loop would notice
                    # a signal or a lost peer late.
                    jax.block_until_ready(state)
                    state = self._train_steps(state, train.resident, fed)
                    self.step = min(self.step + config.steps_per_dispatch, config.steps)
                    if not self._after_steps(state, stop):
                        return "diverged"
        except _Stopped:
            if self.step > self._begun:
                self._save(state)
            self._recorder.say(
                f"{stop.received}; saved step {self.step}. The same command resumes it."
            )
            return "preempted"
        return "finished"

    def _after_steps(self, state: steps.TrainState, stop: StopRequest) -> bool:
        """Records, saves and evaluates if it is due. Returns False if training diverged."""
        last = self.step == self._config.steps
        if last or self.step % self._config.log_every == 0:
            loss = self._record_training(state)
            if not math.isfinite(loss):
                self._recorder.say(f"diverged at step {self.step}.")
                return False
        if last or self.step % self._config.checkpoint_every == 0:
            self._save(state)
        if stop.reached():
            raise _Stopped
        self._note_saved()
        self._evaluate(state, stop)
        return True

    def _note_saved(self) -> None:
        """Raises the error of a save that has failed since."""
        self._checkpoints.poll()
        self._attempt.note_saved(self._checkpoints.saved)

    def _save(self, state: steps.TrainState) -> None:
        tree = stacking.unstack(host_tree(state))
        self._recorder.add_weights(self.step, tree["params"])
        self._checkpoints.save(self.step, tree, self._recorder.test_errors)
        self._timer.restart(self.step)
        self._begun = self.step

    def _record_training(self, state: steps.TrainState) -> float:
        """Records the means since the last record. Returns the loss."""
        means = metrics.means(state.totals)
        rate = self._timer.restart(self.step) * self._config.data.batch_size
        learning_rate = float(self._built.schedule(self.step - 1))
        self._recorder.add_training(
            self.step, {**means, "lr": learning_rate, "images_per_second": rate}
        )
        return means["loss"]

    def _evaluate(self, state: steps.TrainState, stop: StopRequest) -> None:
        """Makes and records the evaluations that are due at this step and not recorded yet."""

        def before_batch() -> None:
            if stop.reached():
                raise _Stopped
            self._note_saved()

        last = self.step == self._config.steps
        due = ["test"] if last or self.step % self._config.eval_every == 0 < self.step else []
        due += ["train"] if last else []
        for split in due:
            if (self.step, split) not in self._recorder.evaluated:
                feed = self._feeds[split]
                scores = self._evaluator(state.variables, state.image_mean, feed, before_batch)
                self._recorder.add_evaluation(self.step, split, scores)
                self._timer.restart(self.step)
