import json
import os
import time

import pytest

from experiments.sweeping.monitor import RunMonitor, SweepMonitor
from resnet_flax.storage import lock, records
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import GridPoint

POINT = GridPoint("plain-8-s0", "plain", depth=8, seed=0, steps=100, batch_size=16, multiply_adds=8)
TRAIN = {"kind": "train", "loss": 2.0, "error": 0.75, "images_per_second": 80.0}
TEST = {"kind": "eval", "split": "test", "loss": 1.0, "error": 0.5}


@pytest.fixture
def folder(tmp_path):
    """A run that this process is at work on, at step 20."""
    folder = RunFolder(tmp_path / POINT.name)
    with folder.claim({}, print):
        folder.write_status(Status("running"))
        folder.append_metrics({"step": 10, **TRAIN, "images_per_second": 1.0})  # It compiled.
        folder.append_metrics({"step": 20, **TRAIN})
        yield folder


def looked_at(folder):
    run = RunMonitor(folder, POINT)
    run.refresh()
    return run


def test_a_run_is_shown_as_its_records_say(folder):
    run = looked_at(folder)
    assert (run.state, run.step, run.loss, run.error) == ("running", 20, 2.0, 0.75)
    assert run.seconds_left == (100 - 20) * 16 / 80
    run.given_up = True
    assert run.work_left == 0
    run.given_up = False
    folder.append_metrics({"step": 100, **TEST})
    folder.append_metrics({"step": 100, **TEST, "split": "train", "error": 0.25})
    folder.write_status(Status("finished", 100))
    assert run.refresh() == [
        "plain-8-s0  step 100/100  test error 50.00%",
        "plain-8-s0  step 100/100  train error 25.00%",
        "plain-8-s0  step 100/100  finished",
    ]
    assert (run.error, run.seconds_left, run.work_left) == (0.25, None, 0)


def test_a_run_that_nobody_is_at_work_on_is_interrupted(folder):
    run = looked_at(folder)
    (folder.path / "lock.json").unlink()  # As after kill -9, but for the process number.
    assert run.refresh() == ["plain-8-s0  step 20/100  interrupted"]
    assert run.seconds_left is None


def edit_lock(folder, **change):
    path = folder.path / "lock.json"
    later = path.stat().st_mtime_ns + 10**9  # Some clocks of files only move every 10 ms.
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    os.utime(path, ns=(later, later))


def test_a_run_of_another_machine_is_interrupted_once_its_heart_has_stopped(folder, monkeypatch):
    edit_lock(folder, machine="elsewhere", token="another's")  # Its own heart stops.
    run = looked_at(folder)
    assert run.state == "running"
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    edit_lock(folder, machine="elsewhere", beat=1)
    for clock[0] in (1e6, 1e6 + lock.STALE_SECONDS - 1):
        run.refresh()
        assert run.state == "running"
    clock[0] += 2
    run.refresh()
    assert run.state == "interrupted"
    edit_lock(folder, machine="elsewhere", beat=2)
    run.refresh()
    assert run.state == "running"


def test_what_has_been_read_is_not_read_again(folder, monkeypatch):
    run, lines, parse = looked_at(folder), [], records.parse_record

    def parse_and_count(line):
        lines.append(line)
        return parse(line)

    monkeypatch.setattr(records, "parse_record", parse_and_count)
    run.refresh()
    assert not any(lines)
    folder.append_metrics({"step": 40, **TRAIN})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 60, "lo')
    run.refresh()
    assert run.step == 40
    with folder.metrics_file.open("a") as file:
        file.write('ss": 1.0}\n')
    run.refresh()
    assert (run.step, run.loss) == (60, 1.0)
    assert len([line for line in lines if line]) == 2


def test_a_run_that_goes_on_from_an_earlier_step_is_followed_there_and_repeats_nothing(folder):
    run = RunMonitor(folder, POINT)
    for step in (40, 60):
        folder.append_metrics({"step": step, **TRAIN})
        folder.append_metrics({"step": step, **TEST})
    assert len(run.refresh()) == 3
    folder.drop_metrics_after(50)
    assert run.refresh() == []
    assert run.step == 40
    folder.append_metrics({"step": 60, **TEST})
    folder.append_metrics({"step": 80, **TEST})
    assert run.refresh() == ["plain-8-s0  step 80/100  test error 50.00%"]


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "lock.json", "environment.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]\n", b"\xff\n", b'{"step": 9' + b"9" * 400, "folder", None]
)
def test_whatever_stands_in_a_file_or_is_gone_ends_nothing(folder, name, content):
    folder.write_status(Status("finished", 100))
    run = looked_at(folder)
    path = folder.path / name
    path.unlink(missing_ok=True)
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    run.refresh()
    SweepMonitor(folder.path.parent, [POINT]).refresh()
    if name == "status.json":
        assert run.state == ("not begun" if content is None else "unreadable")
    if name == "metrics.jsonl" and content is None:
        assert run.loss is None


def test_a_reason_is_one_line_without_control_characters(folder):
    folder.write_status(Status("failed", 20, error="[red]no\x1b[2J\nspace"))
    (line,) = (line for line in RunMonitor(folder, POINT).refresh())
    assert line == "plain-8-s0  step 20/100  failed: [red]no\\x1b[2J space"


def test_the_time_left_counts_multiply_adds_and_is_measured_by_runs_that_have_finished(
    folder, tmp_path
):
    waiting = POINT._replace(name="plain-32-s0", multiply_adds=32)
    sweep = SweepMonitor(tmp_path, [POINT, waiting])
    sweep.refresh()
    left = (8 * 80 + 32 * 100) * 16
    assert sweep.seconds_left == left / (8 * 80)  # At 80 images of 8 multiply-adds a second.
    folder.add_environment({"started": "2026-01-01T00:00:00+00:00"})
    ended = {"state": "finished", "step": 100, "updated": "2026-01-01T00:00:40+00:00"}
    folder.status_file.write_text(json.dumps(Status("finished")._asdict() | ended))
    sweep.refresh()
    # Of these 40 seconds, 20 are steps, and 20 are start-up, which the other run needs too.
    assert sweep.seconds_left == 20 * 4 + 20
    assert not sweep.is_over


def test_what_a_sweep_knows_of_a_run_without_records_is_shown(tmp_path):
    run = RunMonitor(RunFolder(tmp_path / "refused"), POINT)
    run.without_status = "failed"
    assert run.refresh() == ["plain-8-s0  step 0/100  failed"]


def test_a_failed_run_is_still_to_be_trained_and_a_diverged_one_is_not(folder):
    for state, steps in (("failed", 80), ("diverged", 0), ("finished", 0)):
        folder.write_status(Status(state, 20))
        assert looked_at(folder).work_left == 8 * steps * 16
