"""Files of folders that may be anybody's."""

import os
import signal
from pathlib import Path

import pytest

from experiments.sweeping.monitor import RunMonitor
from resnet_flax.errors import UserError
from resnet_flax.storage import findings, sums
from resnet_flax.storage.findings import Line
from resnet_flax.storage.lock import Heartbeat
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import GridPoint, SweepFolder

POINT = GridPoint("run", "plain", depth=8, seed=0, steps=100, batch_size=16, multiply_adds=8)


class Waited(BaseException):
    """Not an Exception: readers take those for an answer."""


@pytest.fixture(autouse=True)
def _nobody_waits():
    """A test ends with an error where it waits for a pipe."""

    def stop(number, frame):
        raise Waited

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def endless(path):
    path.symlink_to("/dev/zero")


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**42)


READERS = {
    "config.json": lambda folder: RunFolder(folder).config(),
    "status.json": lambda folder: RunFolder(folder).status(),
    "environment.json": lambda folder: RunFolder(folder).environments(),
    "metrics.jsonl": lambda folder: RunFolder(folder).metrics(),
    "sweep.json": SweepFolder,
    "line.json": lambda folder: findings.load(folder / "line.json", Line),
    "lock.json": lambda folder: RunFolder(folder).claim({}, print).__enter__(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, endless, huge, os.mkdir])
def test_a_file_that_cannot_be_one_is_refused_in_a_line_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    why = "has more than" if make is huge else "is not a regular file"
    # Who writes refuses a link before it reads.
    with pytest.raises(UserError, match=f"{name} ({why}|is a symbolic link)"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "lock.json"])
@pytest.mark.parametrize("make", [os.mkfifo, endless])
def test_who_watches_a_run_waits_for_none_either(tmp_path, name, make):
    folder = RunFolder(tmp_path)
    with folder.claim({}, print):
        folder.write_status(Status("running"))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    RunMonitor(folder, POINT).refresh()
    assert not Heartbeat(tmp_path).is_alive()


@pytest.mark.parametrize("name", [sums.SUMS, "array", "sub/array"])
def test_a_pipe_among_files_with_sums_is_damage(tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "other").write_text("1")
    sums.write_sums(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert Path(name).name in sums.damage(tmp_path)
