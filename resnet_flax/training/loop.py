"""Trains and evaluates one run, from its beginning or from its last checkpoint."""

import contextlib
import functools
import math
import os

import jax

from resnet_flax.config import RunConfig, resolve
from resnet_flax.data.fingerprint import fingerprint
from resnet_flax.errors import GOES_ON, FaultError, UserError, summary
from resnet_flax.runtime import bits, environment, hosts
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.checkpoints import CheckpointWriter
from resnet_flax.storage.run_folder import (
    DONE,
    RunFolder,
    State,
    Status,
    differing_fields,
    identity,
)
from resnet_flax.storage.trees import host_tree
from resnet_flax.training import build, initial_state, metrics, steps
from resnet_flax.training.build import Experiment
from resnet_flax.training.evaluation import Evaluator
from resnet_flax.training.recorder import Recorder, Timer


@bits.pinned()
def train_and_evaluate(
    config: RunConfig,
    workdir: str | os.PathLike[str],
    progress: RunProgress | None = None,
    stop: StopRequest | None = None,
    *,
    from_scratch: bool = False,
) -> State:
    """Runs a config in a folder until it is finished, diverged or told to stop.

    - `progress`, `stop`: those of a sweep; without them the run shows itself and listens for
      signals on its own.
    - `from_scratch`: whether to begin again where checkpoints were saved and none is left whole.

    Given again, it resumes from the last checkpoint, and ends in the same bits as a run that was
    never stopped. Returns the state that `status.json` then holds.

    Raises UserError, before it writes anything, if the config, the data or the folder cannot be
    used, or if an ended run has lost its records. Raises TryAgainError if another process is at
    work in the folder. Any other error is recorded as `failed` and raised.

    With several processes every one calls this, and the first writes. Raises UserError in all of
    them, before the first step, unless they were given the same config and data.
    """
    if progress is None or stop is None:
        with RunProgress(quiet=not hosts.is_first()) as progress, StopRequest() as stop:
            return train_and_evaluate(config, workdir, progress, stop, from_scratch=from_scratch)
    folder, fields = RunFolder(workdir, writes=hosts.is_first()), config.model_dump(mode="json")
    with hosts.alike() as facts:
        # Where a run to begin with lies is each process's own business; what is in it is not.
        begins = {"init_from": bool(config.init_from)}
        facts |= {"workdir": str(folder.path), "from_scratch": from_scratch}
        facts["config"] = identity(fields) | begins
        before = folder.status() if folder.check(fields, resolve) else None
    ended = DONE.index(before.state) if before and before.state in DONE else len(DONE)
    ended = hosts.agree(ended)
    if ended < len(DONE):
        changed = folder.changed(before) if before and folder.writes else None
        if hosts.agree(changed is not None):
            raise UserError(changed or f"{folder.path}: its records have changed.")
        if before:
            progress.say(f"{folder.name}: {before.state} at step {before.step}; nothing to do.")
        return DONE[ended]
    with hosts.alike() as facts:
        # What cannot be read is said before anything is written.
        folder.metrics()
        folder.environments()
        built = build.build(config)
        facts |= {"train": fingerprint(built.train), "test": fingerprint(built.test)}
    run = _Run(built, folder, progress, from_scratch)
    with contextlib.ExitStack() as stack:
        with hosts.alike():
            stack.enter_context(folder.claim(fields, progress.say))
        try:
            return run.run(stop)
        except (Exception, SystemExit) as error:
            end: State = "preempted" if hosts.lost_peer(error) else "failed"
            with contextlib.suppress(FaultError):  # Where nothing can be written any more.
                run.write_status(end, summary(error))
            if isinstance(error, OSError):
                raise FaultError(f"{folder.name}: {error}. {GOES_ON}") from error
            raise


class _Stopped(Exception):
    """A request to stop was heard."""


class _Run:
    """One attempt at a run.

    The train record of a step is on disk before its checkpoint is begun, and what lies past the
    restored checkpoint is dropped on resume; the evaluations of a step come after its checkpoint,
    and a resumed run begins with those that are due at its step and not recorded. So no record is
    missing and none is there twice, and a stop need not wait for an evaluation.
    """

    def __init__(
        self,
        built: Experiment,
        folder: RunFolder,
        progress: RunProgress,
        from_scratch: bool,
    ):
        self.config, self.built, self.devices = built.config, built, built.devices
        self.folder, self.progress = folder, progress
        self.attempt, self.saved = 1, 0
        self.step = self.begun = 0  # The last step taken, and the last whose save was begun.
        self.from_scratch = from_scratch
        train_steps = functools.partial(
            steps.train_steps,
            model=built.model,
            optimizer=built.optimizer,
            pad=self.config.data.pad,
            flip=self.config.data.flip,
            color=self.config.data.color,
            log_every=self.config.log_every,
        )
        self.train_steps = self.devices.map(train_steps, sharded=(False, False, True), donate=0)
        batch_size = self.config.data.eval_batch_size
        self.evaluate = Evaluator(built.model, self.devices, batch_size)
        # Made before anything is written: `init_from` may not fit.
        begun = hosts.agree(folder.checkpoints.is_dir())
        self.initial = None if begun else self._initial_state()

    def run(self, stop: StopRequest) -> State:
        before = self.folder.status()  # Until now another process may have been at work.
        self.attempt = hosts.agree(before.attempt + 1 if before else 1)
        self.saved = before.step if before and not self.from_scratch else 0
        self.write_status("running")
        self.checkpoints = CheckpointWriter(
            self.folder.checkpoints,
            keep_every=self.config.keep_every,
            attempt=self.attempt,
            held=self.folder.held,
            say=self.progress.say,
            # Others need not see yet what the first has written.
            config=self.folder.config_digest() if self.folder.writes else None,
        )
        with self.checkpoints, contextlib.ExitStack() as stack:
            state = self._first_state()
            self._record_environment(state)
            recorder = Recorder(self.folder, self.built, self.attempt, self.step)
            self.recorder = stack.enter_context(contextlib.closing(recorder))
            end = self._train(state, stop)
            self.checkpoints.close(self.recorder.test_errors)
        self.saved = self.step
        self.write_status(end)
        return end

    def write_status(self, state: State, error: str | None = None) -> None:
        self.folder.write_status(Status(state, self.saved, self.attempt, error))

    def _record_environment(self, state: steps.TrainState) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        here = environment.describe()
        for before in self.folder.environments()[-1:] if self.step else ():
            other = "; ".join(differing_fields(environment.kind(before), environment.kind(here)))
            if other:
                self.progress.say(
                    f"{self.folder.name}: goes on on another kind of machine: {other}."
                    " The last bits may differ from those of a run that stayed on one."
                )
        self.folder.add_environment({"attempt": self.attempt, "parameters": parameters, **here})

    def _first_state(self) -> steps.TrainState:
        """The last whole checkpoint's state, or else the initial one, on all devices."""
        with hosts.alike():
            step = self._step_to_resume() if hosts.is_first() else -1
        step = hosts.agree(step)
        if step < 0:
            state, self.initial = self.initial or self._initial_state(), None
            if self.config.init_from:  # From here on the other run may change.
                self.checkpoints.save(0, state, {})
            return self.devices.replicate(state)
        state = self.checkpoints.restore_into(initial_state.state_shapes(self.built), step)
        self.step = self.begun = self.saved = step
        self.progress.say(f"{self.folder.name}: resuming from step {self.step}.")
        return self.devices.replicate(state)

    def _step_to_resume(self) -> int:
        """-1 for a run that has saved nothing yet."""
        step = self.checkpoints.last_good()
        if step is not None:
            return step
        if (self.saved or self.checkpoints.has_damaged()) and not self.from_scratch:
            raise UserError(
                f"{self.folder.path} has a history, but no whole checkpoint to go on from. Put one"
                f" back into {self.folder.checkpoints}, or begin again: train ... --from_scratch."
            )
        return -1

    def _initial_state(self) -> steps.TrainState:
        return initial_state.initial_state(
            self.built, lambda line: self.progress.say(f"{self.folder.name}: {line}")
        )

    def _train(self, state: steps.TrainState, stop: StopRequest) -> State:
        """Trains to the end, a divergence or a stop; where it stops by request it can resume."""
        config = self.config
        self.feeds = {
            name: build.feed(split, self.devices, self.progress.say)
            for name, split in (("train", self.built.train), ("test", self.built.test))
        }
        self.progress.start(self.folder.name, self.step, config.steps)
        self.timer = Timer(self.step)
        train, left = self.feeds["train"], range(self.step, config.steps)
        try:
            self._evaluate(state, stop)
            with train.training(
                config.seed, config.data.batch_size, left, config.steps_per_dispatch
            ) as dispatches:
                for fed in dispatches:
                    # Waiting bounds how far the devices lag behind a signal or a lost peer.
                    jax.block_until_ready(state)
                    state = self.train_steps(state, train.resident, fed)
                    self.step = min(self.step + config.steps_per_dispatch, config.steps)
                    if not self._after_steps(state, stop):
                        return "diverged"
        except _Stopped:
            if self.step > self.begun:
                self._save(state)
            self.progress.say(
                f"{self.folder.name}: {stop.received}; saved step {self.step}."
                " The same command resumes it."
            )
            return "preempted"
        return "finished"

    def _after_steps(self, state: steps.TrainState, stop: StopRequest) -> bool:
        """Records, saves and evaluates what is due at this step; False if training diverged."""
        last = self.step == self.config.steps
        if last or self.step % self.config.log_every == 0:
            loss = self._record_training(state)
            if not math.isfinite(loss):
                self.progress.say(f"{self.folder.name}: diverged at step {self.step}.")
                return False
        if last or self.step % self.config.checkpoint_every == 0:
            self._save(state)
        if stop.reached():
            raise _Stopped
        self._note_saved()
        self._evaluate(state, stop)
        return True

    def _save(self, state: steps.TrainState) -> None:
        tree = host_tree(state)
        self.recorder.add_weights(self.step, tree["params"])
        self.checkpoints.save(self.step, tree, self.recorder.test_errors)
        self.timer.restart(self.step)
        self.begun = self.step

    def _note_saved(self) -> None:
        """Keeps the status true to the checkpoints; raises what befell the last save."""
        self.checkpoints.poll()
        if self.checkpoints.saved not in (None, self.saved):
            self.saved = self.checkpoints.saved
            self.write_status("running")

    def _record_training(self, state: steps.TrainState) -> float:
        """Records the means since the last record; returns the loss."""
        means = metrics.means(state.totals)
        rate = self.timer.restart(self.step) * self.config.data.batch_size
        learning_rate = float(self.built.schedule(self.step - 1))
        self.recorder.add_training(
            self.step, {**means, "lr": learning_rate, "images_per_second": rate}
        )
        self.progress.update(self.step, means["loss"], means["error"], rate)
        return means["loss"]

    def _evaluate(self, state: steps.TrainState, stop: StopRequest) -> None:
        """Records the evaluations that are due at this step and not recorded yet."""

        def before_batch() -> None:
            if stop.reached():
                raise _Stopped

        last = self.step == self.config.steps
        due = ["test"] if last or self.step % self.config.eval_every == 0 < self.step else []
        due += ["train"] if last else []
        for split in due:
            if (self.step, split) not in self.recorder.evaluated:
                feed = self.feeds[split]
                scores = self.evaluate(state.variables, state.image_mean, feed, before_batch)
                self.recorder.add_evaluation(self.step, split, scores)
                self.timer.restart(self.step)
