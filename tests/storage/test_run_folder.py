import errno
import itertools
import json
import math
import os
import shutil
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_flax.errors import FaultError, UserError
from resnet_flax.storage import run_folder
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder

CONFIG = {"seed": 0, "optim": {"lr": 0.1, "boundaries": [1, 2]}}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim(CONFIG, print):
        yield folder


def test_a_folder_is_one_configs_and_names_what_differs(folder):
    assert folder.has_run(CONFIG, dict)
    other = {"seed": 0, "optim": {"lr": 0.2, "boundaries": [1, 2]}, "steps": 3}
    with pytest.raises(UserError, match=r"optim.lr \(0.1 there, 0.2 here\); steps \('absent'"):
        folder.has_run(other, dict)
    assert folder.config() == CONFIG


def test_who_wants_more_steps_is_told_of_init_from(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim(CONFIG | {"steps": 24}, print):
        for steps, said in ((48, True), (12, False)):
            with pytest.raises(UserError, match="steps") as error:
                folder.has_run(CONFIG | {"steps": steps}, dict)
            assert ("init_from" in str(error.value)) == said


def test_a_field_that_came_later_has_its_default_in_an_older_folder(folder):
    assert folder.has_run(CONFIG | {"later": 0}, lambda config: {"later": 0} | config)
    with pytest.raises(UserError, match=r"later \(0 there, 1 here\)"):
        folder.has_run(CONFIG | {"later": 1}, lambda config: {"later": 0} | config)


def test_where_the_data_lies_is_no_part_of_a_run(tmp_path):
    here, there = (CONFIG | {"data": {"name": "cifar10", "data_dir": d}} for d in ("/a", "/b"))
    folder = RunFolder(tmp_path)
    with folder.claim(here, print):
        assert folder.has_run(there, dict)
        assert "/a" not in folder.config_file.read_text()
        # As an older version wrote it.
        folder.config_file.write_text(json.dumps(here))
        assert folder.has_run(there, dict)
        assert folder.config() == CONFIG | {"data": {"name": "cifar10"}}
        with pytest.raises(UserError, match=r"data\.name \('cifar10' there, 'digits' here\)"):
            folder.has_run(CONFIG | {"data": {"name": "digits", "data_dir": "/a"}}, dict)


def test_a_config_that_is_none_any_more_names_its_file(folder):
    folder.config_file.write_text("[]")
    with pytest.raises(UserError, match=r"Cannot use .*config\.json"):
        folder.has_run(CONFIG, dict)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "\0"])
def test_json_that_python_itself_stumbles_over_is_refused_in_one_line(folder, content):
    folder.config_file.write_text(content)
    with pytest.raises(UserError, match=r"Expected JSON in .*config\.json") as error:
        folder.config()
    assert "\n" not in str(error.value)


def test_what_a_crash_left_is_cleared_by_the_next_writer(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / ".status.json.17.new").write_text("{")
    with folder.claim(CONFIG, print):
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".lock",
            "config.json",
            "lock.json",
        ]


def test_of_several_processes_only_the_first_writes(tmp_path):
    other = RunFolder(tmp_path / "run", writes=False)
    with other.claim(CONFIG, print):
        other.write_status(Status("running"))
        other.append_metrics({"step": 1})
        other.add_environment({})
        other.drop_metrics_after(0)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_lost_its_lock_writes_nothing_more(folder):
    folder.append_metrics({"step": 1})
    (folder.path / "lock.json").write_text('{"token": "another", "pid": 3, "host": "there"}')
    before = {file: file.read_bytes() for file in folder.path.iterdir()}
    writes = [
        lambda: folder.append_metrics({"step": 2}),
        lambda: folder.write_status(Status("running")),
        lambda: folder.add_environment({}),
        lambda: folder.drop_metrics_after(0),
    ]
    for write in writes:
        with pytest.raises(FaultError, match="taken over by process 3 on there"):
            write()
    assert {file: file.read_bytes() for file in folder.path.iterdir()} == before


def test_a_folder_that_vanished_is_not_made_anew(folder):
    shutil.rmtree(folder.path)
    with pytest.raises(FaultError, match=r"lock is gone"):
        folder.append_metrics({"step": 2})
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "run")
    refused = pytest.raises(UserError, match="Cannot write to workdir .*file/run: Not a directory")
    with refused, folder.claim(CONFIG, print):
        pass


def test_a_folder_without_config_is_no_runs(tmp_path):
    with pytest.raises(UserError, match=r"Expected a run's folder, got .* no config\.json. A run"):
        RunFolder(tmp_path).config()
    (tmp_path / "sweep.json").touch()
    with pytest.raises(UserError, match=r"got a sweep's folder: .* one of its runs"):
        RunFolder(tmp_path).config()


def test_status_and_environment_are_read_as_written(folder):
    assert folder.status() is None
    assert folder.environments() == []
    folder.write_status(Status("failed", 7, 2, "ValueError: no"))
    folder.add_environment({"attempt": 1})
    folder.add_environment({"attempt": 2})
    assert folder.status()[:4] == ("failed", 7, 2, "ValueError: no")
    assert folder.environments() == [{"attempt": 1}, {"attempt": 2}]


def test_wall_time_adds_up_over_attempts_and_is_known_at_the_end(tmp_path, monkeypatch):
    now = itertools.count(step=10)
    monkeypatch.setattr(run_folder, "time", types.SimpleNamespace(monotonic=now.__next__))
    folder = RunFolder(tmp_path / "run")
    for state, seconds in (("running", 10), ("preempted", 20), ("finished", 30)):
        with folder.claim(CONFIG, print):
            assert folder.wall_seconds(folder.status()) is None
            folder.write_status(Status(state))
        assert folder.status().seconds == seconds
    assert folder.wall_seconds(folder.status()) == 30


def test_wall_time_of_an_older_run_is_known_if_one_attempt_was_enough(folder):
    old = {"state": "finished", "step": 9, "attempt": 1, "updated": "2026-01-01T00:01:00+00:00"}
    folder.status_file.write_text(json.dumps(old))
    assert folder.wall_seconds(folder.status()) is None
    folder.add_environment({"started": "2026-01-01T00:00:00+00:00"})
    assert folder.wall_seconds(folder.status()) == 60
    set_back = old | {"updated": "2025-12-31T23:59:00+00:00"}
    folder.status_file.write_text(json.dumps(set_back))
    assert folder.wall_seconds(folder.status()) is None
    folder.status_file.write_text(json.dumps(old | {"attempt": 2}))
    assert folder.wall_seconds(folder.status()) is None


def test_what_an_older_attempt_took_is_not_made_up(tmp_path):
    folder = RunFolder(tmp_path)
    old = {"state": "preempted", "step": 9, "attempt": 1, "updated": ""}
    folder.status_file.write_text(json.dumps(old))
    with folder.claim(CONFIG, print):
        folder.write_status(Status("finished", 9, 2))
    assert folder.status().seconds is None


def test_a_run_that_ended_is_known_by_its_records_and_an_older_one_is_taken_as_it_is(folder):
    for step in range(3):
        folder.append_metrics({"step": step})
    folder.write_status(Status("running", 3))
    assert folder.status().sha256 is None
    folder.write_status(Status("finished", 3))
    assert folder.changed(folder.status()) is None
    text = folder.metrics_file.read_text()
    for left, now in ((text[:26], "2"), (text.replace("2", "3"), "as many others"), (None, "0")):
        folder.metrics_file.unlink()
        if left is not None:
            folder.metrics_file.write_text(left)
        assert f"3 records then, {now} now. Put back" in folder.changed(folder.status())
    assert folder.changed(folder.status()._replace(records=None, sha256=None)) is None


def test_no_file_is_ever_half_written(folder, monkeypatch):
    folder.write_status(Status("running", 1))

    def crash(descriptor):
        raise KeyboardInterrupt("the plug was pulled")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.write_status(Status("finished", 2))
    assert folder.status().state == "running"


def test_a_record_that_cannot_be_written_is_one_line_that_says_why(folder, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FaultError, match=r"Cannot write to .*run: No space left on device\."):
        folder.append_metrics({"step": 1})


def test_what_is_kept_on_resume_is_kept_byte_for_byte(folder):
    lines = ['{"step": 1, "loss": 0.1, "epoch": 2}', '{"epoch": 0.10, "step": 2}', '{"step": 3}']
    folder.metrics_file.write_text("\n".join(lines))
    folder.drop_metrics_after(2)
    assert folder.metrics_file.read_text() == "\n".join(lines[:2]) + "\n"


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_off_by_a_crash_is_left_out_and_dropped_on_resume(folder, cut):
    for step in (1, 2):
        folder.append_metrics({"step": step, "loss": 0.5})
    text = folder.metrics_file.read_text()
    folder.metrics_file.write_text(text[:-cut])
    assert [record["step"] for record in folder.metrics()] == [1]
    folder.drop_metrics_after(1)
    folder.append_metrics({"step": 2, "loss": 0.25})
    assert folder.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", "null", "[" * 9999, '{"step": "1"}', '{"step": -1}', '{"loss": 1}', ""]
    + ['{"step": 1, "error": "x"}', '{"step": 1, "lr": [1]}'],
)
def test_any_other_bad_line_is_named_with_the_way_out(folder, line):
    folder.metrics_file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match="line 2: expected a JSON object.*Delete the line"):
        folder.metrics()


def test_records_past_the_restored_step_are_forgotten(folder):
    for step in (1, 2, 2, 3):
        folder.append_metrics({"step": step})
    folder.drop_metrics_after(2)
    assert [record["step"] for record in folder.metrics()] == [1, 2, 2]


def test_a_number_that_is_not_finite_is_null(folder):
    folder.append_metrics({"step": 1, "loss": math.nan, "error": math.inf})
    assert folder.metrics() == [{"step": 1, "loss": None, "error": None}]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**309, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=60)
    | st.just(b"9" * 5000)
    | json_values.map(lambda value: json.dumps(value).encode())
)
def test_whatever_stands_in_a_run_folder_is_read_or_refused(tmp_path_factory, content):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for name in ("config.json", "status.json", "environment.json", "metrics.jsonl"):
        (folder.path / name).write_bytes(content + b"\n")
    for read in (folder.config, folder.status, folder.environments, folder.metrics):
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)
