"""Writes the records of a run and shows its progress."""

import contextlib
import time
from types import TracebackType
from typing import Any

import jax

from resnet_flax.config import RunConfig
from resnet_flax.errors import GOES_ON, FaultError, UserError, summary
from resnet_flax.runtime import environment, hosts
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.records import State, Status, differing_fields, series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.tensorboard import EventFile
from resnet_flax.training.build import Experiment

_TAGS = ("loss", "error", "lr", "images_per_second")


class Attempt:
    """One process's work on a claimed run, as `status.json` shows it.

    Use as a context manager. An error is recorded before it leaves the context.
    """

    def __init__(self, folder: RunFolder, *, from_scratch: bool):
        """`from_scratch`: whether to ignore which steps were saved before."""
        before = folder.status()  # Read after the claim: another process may have worked before.
        self._folder = folder
        self.number = hosts.agree(before.attempt + 1 if before else 1)
        """The number of the attempt, from 1."""
        self.saved = before.step if before and not from_scratch else 0
        """The last step saved or, after the run has ended, the last step taken."""

    def __enter__(self) -> "Attempt":
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception | SystemExit):
            return
        end: State = "preempted" if hosts.lost_peer(error) else "failed"
        with contextlib.suppress(FaultError):  # Perhaps nothing can be written any more.
            self._write(end, summary(error))
        if isinstance(error, OSError):
            raise FaultError(f"{self._folder.name}: {error}. {GOES_ON}") from error

    def note_saved(self, step: int | None) -> None:
        """Updates the status after a save. `step`: the last step saved, or None."""
        if step not in (None, self.saved):
            self.saved = step
            self._write("running")

    def end(self, state: State, step: int) -> None:
        """Records the state in which the attempt ended, and its last step."""
        self.saved = step
        self._write(state)

    def _write(self, state: State, error: str | None = None) -> None:
        self._folder.write_status(Status(state, self.saved, self.number, error))


def check_images(folder: RunFolder, images: dict[str, Any]) -> None:
    """Raises UserError if the run has a checkpoint that was trained on other images.

    `images`: the fingerprint of each split. Runs of older versions did not record it.
    """
    if not Checkpoints(folder.checkpoints).steps():
        return
    known = folder.images()
    if known and (other := "; ".join(differing_fields(known, images))):
        raise UserError(
            f"{folder.path}: the data set has other images now than when this run began:"
            f" {other}. Put the old ones back, or train in another --workdir."
        )


def record_environment(
    folder: RunFolder,
    config: RunConfig,
    attempt: int,
    params: Any,
    images: dict[str, Any],
    progress: RunProgress,
    step: int,
) -> None:
    """Records machine and images of an attempt, and the step at which it begins.

    A run that resumes on another kind of machine says so.
    """
    here = environment.describe()
    for before in folder.environments()[-1:] if step else ():
        other = list(differing_fields(environment.machine(before), environment.machine(here)))
        if other:
            line = (
                f"{folder.name}: resumes on another kind of machine: {'; '.join(other)}."
                " The last bits may differ from those of a run on a single kind."
            )
            has_other_shares = any(field.startswith("device_count") for field in other)
            if has_other_shares and config.model.normalises_shares and step < config.steps:
                line += " From here on, batch normalisation sees shares of another size."
            progress.say(line)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    facts = {"attempt": attempt, "step": step, "parameters": parameters, "images": images}
    folder.add_environment(facts | here)


class Recorder:
    """Writes the records of one attempt, metrics.jsonl and event files, and shows its progress.

    Only the first process writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        built: Experiment,
        attempt: int,
        step: int,
        progress: RunProgress,
    ):
        """Removes the records after `step`, where the attempt begins. It will make them again."""
        folder.drop_metrics_after(step)
        self.progress = progress
        progress.start(folder.name, step, built.config.steps)
        self._folder, self._size = folder, built.train.size
        self._batch_size = built.config.data.batch_size
        self.evaluated = _evaluated(folder, step)
        """(step, split) -> test or training error."""
        self._events: EventFile | None = None
        if folder.writes:
            self._events = EventFile(folder.tensorboard, attempt, step)
            self._events.add_config(step, folder.config())

    def close(self) -> None:
        """Closes the event file."""
        if self._events:
            self._events.close()

    @property
    def test_errors(self) -> dict[int, float]:
        """The known test errors, by step."""
        errors = self.evaluated.items()
        return {step: e for (step, split), e in errors if split == "test" and e is not None}

    def say(self, line: str) -> None:
        """Prints a line about this run."""
        self.progress.say(f"{self._folder.name}: {line}")

    def add_training(self, step: int, values: dict[str, Any]) -> None:
        """Records means since the last record: loss, error, lr and images_per_second."""
        self._add(step, {"kind": "train", **values})
        self.progress.update(step, values["loss"], values["error"], values["images_per_second"])

    def add_evaluation(self, step: int, split: str, scores: dict[str, float]) -> None:
        """Records the scores of a whole split."""
        self._add(step, {"kind": "eval", "split": split, **scores})
        self.evaluated[step, split] = scores["error"]

    def add_weights(self, step: int, params: Any) -> None:
        """Records histograms of the parameters, given block by block."""
        if self._events:
            self._events.add_weights(step, params)

    def _add(self, step: int, values: dict[str, Any]) -> None:
        epoch = step * self._batch_size / self._size
        self._folder.append_metrics({"step": step, "epoch": epoch, **values})
        if self._events:
            shown = {f"{tag}/{series_of(values)}": values[tag] for tag in _TAGS if tag in values}
            self._events.add_scalars(step, shown)


def _evaluated(folder: RunFolder, step: int) -> dict[tuple[int, str], float | None]:
    """The errors recorded up to a step: (step, split) -> error."""
    recorded = {
        (record["step"], record["split"]): record.get("error")
        for record in folder.metrics()
        if "split" in record and record["step"] <= step
    }
    # A file system may show an older file to other processes, but all must make the same
    # evaluations.
    for key in [(step, split) for split in ("test", "train")]:
        if hosts.agree(key in recorded):
            recorded.setdefault(key, None)
        else:
            recorded.pop(key, None)
    return recorded


class Timer:
    """Measures steps per second since the last restart. Restart it only when no step is running."""

    def __init__(self, step: int):
        self.step, self.time = step, time.monotonic()

    def restart(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return rate
