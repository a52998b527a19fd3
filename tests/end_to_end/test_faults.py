"""A full disk, a read-only folder, a vanished folder: what a real run makes of them."""

import contextlib
import os
import resource
import shutil
import subprocess

import pytest

from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.lock_stores import lock_store
from resnet_flax.storage.run_folder import RunFolder
from tests.end_to_end.processes import assert_same_bits, end, finish, start, until_it_trains

LONG = "--config.steps=720", "--config.checkpoint_every=60"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir, *LONG)
    return workdir


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def begin(workdir):
    """A run that has saved a step."""
    running = start(workdir, *LONG)
    until_it_trains(running, records=15)
    return running


def assert_failed_in_one_line(running, workdir, line):
    (status,), (said,) = end(running)
    assert status == 1
    assert line in said
    assert "Everything saved before is safe. Give the same command again to go on." in said


def assert_intact(workdir):
    """What was saved before the fault is whole."""
    saved = Checkpoints(workdir / "checkpoints", say=pytest.fail)
    assert saved.last_good() == saved.steps()[-1] > 0


def assert_nothing_half_written(workdir):
    assert all(path.name.isdecimal() for path in (workdir / "checkpoints").iterdir())


def test_a_run_on_a_full_disk_fails_in_one_line_and_goes_on_when_there_is_room(
    undisturbed, small_disk
):
    workdir, ballast = small_disk / "run", small_disk / "ballast"
    running = begin(workdir)
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)
    assert_failed_in_one_line(running, workdir, "No space left on device")
    status = RunFolder(workdir).status()
    assert status.state == "failed"
    assert "No space left on device" in status.error
    assert_intact(workdir)
    assert_nothing_half_written(workdir)
    ballast.unlink()
    finish(workdir, *LONG)
    assert_same_bits(undisturbed, workdir)


@pytest.mark.slow
def test_a_file_that_may_not_grow_fails_in_one_line(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    running = begin(workdir)
    largest = max(path.stat().st_size for path in (workdir / "checkpoints").rglob("*"))
    limit = (largest - 1, resource.RLIM_INFINITY)
    resource.prlimit(running[0].pid, resource.RLIMIT_FSIZE, limit)
    assert_failed_in_one_line(running, workdir, "File too large")
    assert RunFolder(workdir).status().state == "failed"
    assert_intact(workdir)
    assert_nothing_half_written(workdir)
    finish(workdir, *LONG)
    assert_same_bits(undisturbed, workdir)


def forbid_writing(folders, forbid):
    """To root nothing is forbidden but what is immutable."""
    if os.geteuid():
        for folder in folders:
            folder.chmod(0o555 if forbid else 0o755)
    elif subprocess.run(
        ["chattr", "+i" if forbid else "-i", *folders], capture_output=True
    ).returncode:
        pytest.skip("this file system has no immutable folders")


def test_a_folder_that_became_read_only_fails_in_one_line(tmp_path):
    workdir = tmp_path / "run"
    running = begin(workdir)
    folders = [workdir, workdir / "checkpoints"]
    forbid_writing(folders, True)
    try:
        assert_failed_in_one_line(
            running, workdir, "not permitted" if not os.geteuid() else "denied"
        )
        assert RunFolder(workdir).status().state == "failed"
        assert_intact(workdir)
    finally:
        forbid_writing(folders, False)
        running[0].kill()


@pytest.mark.parametrize("moved", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_that_vanished_ends_the_run_in_one_line_and_is_not_made_anew(
    undisturbed, tmp_path, moved
):
    workdir = tmp_path / "run"
    running = begin(workdir)
    if moved:
        workdir.rename(tmp_path / "moved")
    else:
        with lock_store(workdir).alone():
            while workdir.exists():  # A save may be in progress.
                shutil.rmtree(workdir, ignore_errors=True)
    (status,), (line,) = end(running)
    assert status == 1
    gone = "is gone: the run's folder was moved or deleted", "No such file or directory"
    assert any(reason in line for reason in gone)
    assert not [path for path in workdir.rglob("*") if path.is_file()]
    if moved:
        (tmp_path / "moved" / "lock.json").unlink()
        shutil.rmtree(workdir, ignore_errors=True)
        finish(tmp_path / "moved", *LONG)
        assert_same_bits(undisturbed, tmp_path / "moved")
