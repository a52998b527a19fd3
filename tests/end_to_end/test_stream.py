"""Runs whose images are read by worker processes, and what may befall them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from resnet_flax.runs import load_run
from resnet_flax.storage.run_folder import RunFolder
from tests import varied
from tests.end_to_end.processes import (
    SECONDS,
    STREAM,
    assert_same_bits,
    end,
    finish,
    start,
    until_it_trains,
)
from tests.end_to_end.test_processes import assert_close


@pytest.fixture(scope="module")
def options(varied_folder):
    return {"command": ("train", *STREAM, f"--config.data.data_dir={varied_folder}"), "devices": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, options):
    workdir = tmp_path_factory.mktemp("stream") / "run"
    finish(workdir, **options, RESNET_FLAX_WORKERS="1")
    return workdir


def readers(process):
    """The processes that read images for another."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in str(child.cmdline())]


def shared_memory():
    return set(Path("/dev/shm").glob("psm_*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is elsewhere")
def test_killed_with_its_workers_or_by_one_of_them_a_run_resumes_to_the_same_bits(
    undisturbed, options, tmp_path
):
    workdir, before = tmp_path / "run", shared_memory()
    (run,) = running = start(workdir, **options)
    until_it_trains(running)
    workers, shared = readers(run), shared_memory() - before
    assert workers
    run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert not alive
    stop = time.monotonic() + SECONDS
    while shared & shared_memory() and time.monotonic() < stop:
        time.sleep(0.1)
    assert not shared & shared_memory()

    (run,) = running = start(workdir, **options, RESNET_FLAX_WORKERS="1")
    until_it_trains(running, records=1)
    readers(run)[0].kill()
    (status,), (line,) = end(running)
    assert status == 1
    assert "A worker process that reads images died with exit code -9" in line
    assert RunFolder(workdir).status().state == "failed"

    finish(workdir, **options)
    assert_same_bits(undisturbed, workdir)


@pytest.mark.parametrize("view", ["multi_scale", pytest.param("ten_crop", marks=pytest.mark.slow)])
def test_an_evaluation_sees_every_image_in_each_view(undisturbed, varied_folder, view):
    assert varied_folder not in (undisturbed / "config.json").read_text()
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={undisturbed}"]
    sides = ["--sides=40"] if view == "multi_scale" else []
    output = subprocess.run(
        [*command, f"--data_dir={varied_folder}", f"--view={view}", *sides],
        check=True, capture_output=True, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "RESNET_FLAX_WORKERS": "1"},
    ).stdout  # fmt: skip
    assert f"varied validation {view}: error" in output
    assert f"images {varied.VALIDATION}" in output
    damaged = "Damaged images in varied validation: 1" in output
    assert damaged == (varied.TRUNCATED < varied.VALIDATION)
    assert ("shorter side 40: error" in output) == (view == "multi_scale")


def test_a_restored_run_takes_images_of_any_size(undisturbed):
    run = load_run(undisturbed)
    assert run.step == 40
    for shape in ((2, 32, 32, 3), (1, 40, 52, 3)):
        found = run.predict(np.full(shape, 128, np.uint8))
        assert found.shape == (shape[0], varied.TRAIN)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)  # float32
    with pytest.raises(ValueError, match=r"Expected uint8 images \[B, H, W, 3\], got"):
        run.predict(np.zeros((1, 32, 32, 1), np.uint8))


@pytest.mark.slow
def test_two_processes_read_what_one_reads(undisturbed, options, tmp_path):
    workdir = tmp_path / "run"
    finish(workdir, **options | {"devices": 1}, processes=2)
    assert_close(undisturbed, workdir)
