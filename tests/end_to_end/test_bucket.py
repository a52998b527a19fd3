"""What a user does with a folder, done in a bucket, by the real commands."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import report, watch
from resnet_flax.runs import load_run, load_sweep
from resnet_flax.storage import filesystem, sweep_folder
from resnet_flax.storage.recipe import Varying
from resnet_flax.storage.run_folder import RunFolder
from tests.end_to_end.processes import (
    SWEEP,
    assert_same_bits,
    end,
    finish,
    start,
    until_it_trains,
)

DIGITS = Path("experiments/results/digits")


def test_a_run_killed_in_a_bucket_ends_in_the_bits_of_one_never_killed_on_a_disk(tmp_path, bucket):
    finish(tmp_path / "run")
    running = start(bucket)
    until_it_trains(running, records=4)
    running[0].kill()
    running[0].communicate()
    killed = RunFolder(bucket).status()
    assert killed.state == "running"
    finish(bucket)
    assert RunFolder(bucket).status()[:3] == ("finished", 120, 2)
    assert_same_bits(tmp_path / "run", bucket)
    names = {name.split("/")[0] for name in bucket.objects()}
    on_disk = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == on_disk - {".lock"} | {"lock"}
    events = [name for name in bucket.objects() if name.startswith("tensorboard/")]
    assert len(events) == 2
    assert load_run(bucket).step == 120


@pytest.mark.slow
def test_two_processes_save_in_a_bucket_what_they_would_on_a_disk(tmp_path, bucket):
    finish(tmp_path / "run", processes=2)
    finish(bucket, processes=2)
    assert_same_bits(tmp_path / "run", bucket)
    assert end(start(bucket)) == ([0], [""])  # Nothing to do.
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={bucket}", "--all-steps"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in shown.splitlines()] == ["80", "100", "120"]
    command = [sys.executable, "-m", "experiments.diagnose", f"--workdir={bucket}", "--batches=1"]
    subprocess.run(command, check=True)
    found = filesystem.read_json(bucket / "diagnostics" / "layers-120.json", 2**20)
    assert math.isfinite(found["loss"])


def test_records_in_a_bucket_give_the_report_that_they_give_on_a_disk(tmp_path, bucket, capsys):
    names = ("plain-8-s0", "residual-8-s0")
    for name in names:
        shutil.copytree(DIGITS / name, tmp_path / name)
    runs = filesystem.read_json(DIGITS / "sweep.json", 2**20)["runs"]
    sweep_folder.add_runs(tmp_path, {name: runs[name] for name in names}, Varying())
    for file in tmp_path.rglob("*"):
        if file.is_file():
            (bucket / file.relative_to(tmp_path)).upload(file)
    for folder in (tmp_path, bucket):
        report.write(folder)
        assert f"{folder}/report.html" in capsys.readouterr().out
    drawn = {"degradation.png", "degradation.svg", "table.csv", "report.html"}
    assert drawn <= {path.name for path in bucket.iterdir()}
    for path in tmp_path.glob("*.*"):
        if path.name != "report.html":  # Which says when it was made.
            assert path.read_bytes() == (bucket / path.name).read_bytes(), path.name
    watch.watch(bucket)
    assert "plain-8-s0  step 240/240  finished" in capsys.readouterr().out
    assert load_sweep(bucket).frame().equals(load_sweep(tmp_path).frame())


@pytest.mark.slow
def test_a_sweep_in_a_bucket_is_watched_reported_and_loaded_there(bucket, capsys):
    running = start(bucket, "--config.run.steps=20", command=SWEEP)
    (status,), lines = end(running)
    assert status == 0, lines
    watch.watch(bucket)
    shown = capsys.readouterr().out
    assert "plain-8-s0  step 20/20  finished" in shown
    objects = bucket.objects()
    for name in ("sweep.json", "table.csv", "report.html", "degradation.png", "degradation.svg"):
        assert name in objects
    sweep = load_sweep(str(bucket))
    assert list(sweep) == ["plain-8-s0", "residual-8-s0"]
    assert sweep["plain-8-s0"].step == 20
    assert set(sweep.frame()["run"]) == set(sweep)
