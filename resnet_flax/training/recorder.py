"""What a run writes down as it goes on: metrics, event files, which evaluations there are."""

import time
from typing import Any

from resnet_flax.runtime import hosts
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.tensorboard import EventFile
from resnet_flax.training.build import Experiment

_TAGS = ("loss", "error", "lr", "images_per_second")


class Recorder:
    """The records of one attempt, from the step it begins at; the first process writes them."""

    def __init__(self, folder: RunFolder, built: Experiment, attempt: int, step: int):
        """Forgets what lies past `step`, which will be recorded again."""
        folder.drop_metrics_after(step)
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
        """By step, as far as they are known."""
        errors = self.evaluated.items()
        return {step: e for (step, split), e in errors if split == "test" and e is not None}

    def add_training(self, step: int, values: dict[str, Any]) -> None:
        """Means since the record before this one."""
        self._add(step, "running", {"kind": "train", **values})

    def add_evaluation(self, step: int, split: str, scores: dict[str, float]) -> None:
        """Scores of a whole split."""
        self._add(step, split, {"kind": "eval", "split": split, **scores})
        self.evaluated[step, split] = scores["error"]

    def add_weights(self, step: int, params: Any) -> None:
        """Histograms, of parameters block by block."""
        if self._events:
            self._events.add_weights(step, params)

    def _add(self, step: int, name: str, values: dict[str, Any]) -> None:
        epoch = step * self._batch_size / self._size
        self._folder.append_metrics({"step": step, "epoch": epoch, **values})
        if self._events:
            shown = {f"{tag}/{name}": values[tag] for tag in _TAGS if tag in values}
            self._events.add_scalars(step, shown)


def _evaluated(folder: RunFolder, step: int) -> dict[tuple[int, str], float | None]:
    """The errors that are recorded up to a step."""
    recorded = {
        (record["step"], record["split"]): record.get("error")
        for record in folder.metrics()
        if "split" in record and record["step"] <= step
    }
    # A file system may show other processes an older file; all have to evaluate the same.
    for key in [(step, split) for split in ("test", "train")]:
        if hosts.agree(key in recorded):
            recorded.setdefault(key, None)
        else:
            recorded.pop(key, None)
    return recorded


class Timer:
    """Steps per second since the last restart, to be made only where no step is still under way."""

    def __init__(self, step: int):
        self.step, self.time = step, time.monotonic()

    def restart(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return rate
