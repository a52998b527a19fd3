import functools
import itertools
import json
import os
import shutil
import signal
import sys
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import diagnose, evaluate
from resnet_flax.config import RunConfig, parse, resolve
from resnet_flax.data import own_images
from resnet_flax.data.sources import load_split
from resnet_flax.errors import FaultError, UserError
from resnet_flax.runs import load_run
from resnet_flax.runtime import interrupt
from resnet_flax.runtime.parallel import Devices
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage import checkpoint_writer, checkpoints
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import build, initial_state, recorder
from resnet_flax.training.evaluation import Evaluator
from resnet_flax.training.recorder import Recorder
from tests import events
from tests.given import built, train


def last_state(path):
    saved = checkpoints.Checkpoints(RunFolder(path).checkpoints)
    return saved.steps(), saved.restore()


def measured(path):
    """All records but what the clock decides."""
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in RunFolder(path).metrics()
    ]


def assert_same_run(a, b):
    assert measured(a) == measured(b)
    assert last_state(a)[0] == last_state(b)[0]
    jax.tree.map(np.testing.assert_array_equal, last_state(a)[1], last_state(b)[1])


def rewrite_status(path, status):
    folder = RunFolder(path)
    with folder.claim({}, print):
        folder.write_status(status)


class PulledPlug(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


def pull_plug(monkeypatch, owner, name, calls):
    """Ends the process, as far as Python can, at the given call of a function."""
    original, count = getattr(owner, name), iter(range(1, calls + 1))

    def call(*args, **kwargs):
        if next(count, calls) == calls:
            raise PulledPlug
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A function: the folder of a run that was never disturbed, one a config."""
    folders = {}

    def run(config):
        key = json.dumps(config)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole") / "run"
            assert train(config, folders[key]) == "finished"
        return folders[key]

    return run


def test_a_run_leaves_the_records_that_are_promised(tiny_config, whole_run):
    folder = RunFolder(whole_run(tiny_config))
    train = [record for record in folder.metrics() if record["kind"] == "train"]
    assert [record["step"] for record in train] == [4, 8, 12, 16, 20, 24]
    keys = {"step", "epoch", "kind", "loss", "error", "lr", "images_per_second"}
    assert all(record.keys() == keys for record in train)
    np.testing.assert_allclose([r["lr"] for r in train], [0.1] * 3 + [0.01] * 3, rtol=1e-6)
    assert train[0]["epoch"] == 4 * 16 / 92
    scored = [(r["step"], r["split"], r["images"]) for r in folder.metrics() if r["kind"] == "eval"]
    assert scored == [(12, "test", 37), (24, "test", 37), (24, "train", 92)]
    assert folder.status()[:4] == ("finished", 24, 1, None)
    assert last_state(folder.path)[0] == [16, 24]
    (environment,) = folder.environments()
    assert environment["device_count"] == 4
    assert environment["packages"]["jax"] == jax.__version__
    shown = events.read_values(folder.tensorboard)
    assert {(4, "loss/running"), (24, "error/train"), (0, "config/text_summary")} <= shown.keys()
    assert [step for step, tag in shown if tag == "weights/stage1_block1/conv1"] == [8, 16, 24]


def test_images_per_second_are_those_of_all_steps_since_the_last_record_or_save(
    tiny_config, tmp_path, monkeypatch
):
    # A second passes whenever somebody looks: a look between them, where a step may still be under
    # way, would halve the rate.
    monkeypatch.setattr(
        recorder, "time", types.SimpleNamespace(monotonic=itertools.count().__next__)
    )
    tiny_config |= {"steps": 24, "steps_per_dispatch": 2, "log_every": 8, "eval_every": 24}
    tiny_config["checkpoint_every"] = 12
    train(tiny_config, tmp_path / "run")
    records = RunFolder(tmp_path / "run").metrics()
    rates = [record["images_per_second"] for record in records if "split" not in record]
    batch = tiny_config["data"]["batch_size"]
    assert rates == [8 * batch, 4 * batch, 8 * batch]


def test_digits_are_learned(tiny_config, whole_run):
    tiny_config |= {"steps": 48, "eval_every": 48, "checkpoint_every": 48}
    tiny_config["data"] |= {"pad": 0, "flip": False}
    tiny_config["model"]["widths"] = (8, 16, 16)
    tiny_config["optim"]["boundaries"] = ()
    records = measured(whole_run(tiny_config))
    # Chance is 90 %.
    assert [r["error"] < 0.3 for r in records if r.get("split") == "train"] == [True]


def test_the_next_seed_of_a_network_compiles_nothing(tiny_config, whole_run, tmp_path, caplog):
    whole_run(tiny_config)
    with jax.log_compiles():
        train(tiny_config | {"seed": 1}, tmp_path / "seed1")
        assert "ompil" not in caplog.text
        train(tiny_config | {"seed": 1, "log_every": 6}, tmp_path / "another")
        assert "ompil" in caplog.text


@pytest.mark.parametrize(
    "owner, name, calls",
    [
        (RunFolder, "add_environment", 1),
        (checkpoint_writer.CheckpointWriter, "save", 2),
        (RunFolder, "append_metrics", 5),  # The last record before a checkpoint.
        (Evaluator, "__call__", 3),
        (checkpoint_writer.CheckpointWriter, "__exit__", 1),  # All is done but to say so.
        *(
            pytest.param(*where, marks=pytest.mark.slow)
            for where in (
                (checkpoint_writer.CheckpointWriter, "save", 1),
                (RunFolder, "append_metrics", 3),
                (RunFolder, "append_metrics", 9),
                (Evaluator, "__call__", 1),
                (Evaluator, "__call__", 2),
            )
        ),
    ],
)
def test_a_run_stopped_anywhere_and_resumed_is_the_run_never_stopped(
    tiny_config, whole_run, tmp_path, owner, name, calls
):
    tiny_config["parallel"] = "shard_map" if calls == 2 else "pmap"
    with pytest.MonkeyPatch.context() as patch:
        pull_plug(patch, owner, name, calls)
        with pytest.raises(PulledPlug):
            train(tiny_config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").status().state == "running"
    assert train(tiny_config, tmp_path / "run") == "finished"
    assert_same_run(tmp_path / "run", whole_run(tiny_config))
    assert RunFolder(tmp_path / "run").status().attempt == 2


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_stops_the_run_where_it_can_resume(
    tiny_config, whole_run, tmp_path, monkeypatch, number
):
    original = Recorder.add_training

    def signalled(self, step, values):
        if step == 4:
            # A terminal that closes may send several SIGHUP, timeout(1) two SIGTERM.
            for _ in range(2):
                os.kill(os.getpid(), number)
                time.sleep(0.1)
        original(self, step, values)

    undisturbed = whole_run(tiny_config)
    monkeypatch.setattr(interrupt, "SAME_REQUEST_SECONDS", 60.0)
    monkeypatch.setattr(Recorder, "add_training", signalled)
    if number == signal.SIGHUP:  # These tests may themselves be run under nohup.
        signal.signal(number, signal.SIG_DFL)
    handler = signal.getsignal(number)
    assert train(tiny_config, tmp_path / "run") == "preempted"
    folder = RunFolder(tmp_path / "run")
    assert folder.status()[:2] == ("preempted", 4)
    assert last_state(folder.path)[0] == [4]
    assert signal.getsignal(number) == handler
    assert train(tiny_config, tmp_path / "run") == "finished"
    assert measured(folder.path) == measured(undisturbed)
    jax.tree.map(
        np.testing.assert_array_equal,
        last_state(folder.path)[1],
        last_state(undisturbed)[1],
    )


def test_a_signal_that_nohup_ignores_stops_nothing(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.reached()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_exit_from_within_is_recorded(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: sys.exit(3))
    with pytest.raises(SystemExit):
        train(tiny_config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").status()[:4:3] == ("failed", "SystemExit: 3")


@pytest.mark.parametrize("call", [1, 3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    tiny_config, whole_run, tmp_path, monkeypatch, call
):
    tiny_config["data"]["eval_batch_size"] = 4
    original, calls = Evaluator.__call__, []

    def signalled(self, variables, mean, data, before_batch):
        calls.append(1)
        batches = []

        def before():
            batches.append(1)
            if len(calls) == call and len(batches) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            before_batch()

        try:
            return original(self, variables, mean, data, before)
        finally:
            assert len(calls) < call or len(batches) == 3

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", signalled)
        assert train(tiny_config, tmp_path / "run") == "preempted"
    step = 12 if call == 1 else 24
    assert RunFolder(tmp_path / "run").status()[:2] == ("preempted", step)
    assert train(tiny_config, tmp_path / "run") == "finished"
    assert measured(tmp_path / "run") == measured(whole_run(tiny_config))
    jax.tree.map(
        np.testing.assert_array_equal,
        last_state(tmp_path / "run")[1],
        last_state(whole_run(tiny_config))[1],
    )


def killed_at_the_last_step(config, path):
    """A run with checkpoints 16 and 24 that has yet to record its last evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        pull_plug(patch, Evaluator, "__call__", 3)
        with pytest.raises(PulledPlug):
            train(config, path)
    return RunFolder(path)


def damage(folder, step):
    """Cuts off a file of a checkpoint; returns its name."""
    path = folder.checkpoints / str(step) / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    return "state/_METADATA"


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_leads_to_the_same_bits(
    tiny_config, whole_run, tmp_path, capsys
):
    folder = killed_at_the_last_step(tiny_config, tmp_path / "run")
    name = damage(folder, 24)
    assert train(tiny_config, folder.path) == "finished"
    assert (
        f"checkpoints/24 is damaged ({name} is not what was saved), set aside as 24.damaged;"
        " step 16 is used.\n"
    ) in capsys.readouterr().out
    assert (folder.checkpoints / "24.damaged" / name).exists()
    assert_same_run(folder.path, whole_run(tiny_config))


def test_with_no_whole_checkpoint_left_a_run_stops_and_starts_anew_only_when_told(
    tiny_config, whole_run, tmp_path
):
    folder = killed_at_the_last_step(tiny_config, tmp_path / "run")
    for step in (16, 24):
        damage(folder, step)
    for _ in range(2):  # Also when they have been set aside.
        with pytest.raises(
            UserError, match=f"no complete checkpoint to resume from.*delete {folder.path}"
        ):
            train(tiny_config, folder.path)
    assert len(folder.metrics()) == 8
    end = train(tiny_config, folder.path, from_scratch=True)
    assert end == "finished"
    assert_same_run(folder.path, whole_run(tiny_config))


def test_checkpoints_that_have_vanished_are_missed(tiny_config, tmp_path):
    folder = killed_at_the_last_step(tiny_config, tmp_path / "run")
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(UserError, match="no complete checkpoint"):
        train(tiny_config, folder.path)


def test_the_status_says_what_is_saved(tiny_config, tmp_path, monkeypatch):
    """Not what was taken: a crash before the first save is no history."""
    with monkeypatch.context() as patch:
        pull_plug(patch, checkpoint_writer.CheckpointWriter, "save", 1)
        with pytest.raises(PulledPlug):
            train(tiny_config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").status()[:2] == ("running", 0)
    assert train(tiny_config, tmp_path / "run") == "finished"


def test_every_nth_checkpoint_and_the_best_stay(tiny_config, tmp_path):
    tiny_config |= {"checkpoint_every": 4, "eval_every": 4, "keep_every": 8}
    assert train(tiny_config, tmp_path / "run") == "finished"
    scored = {r["step"]: r["error"] for r in measured(tmp_path / "run") if r.get("split") == "test"}
    best = min(sorted(scored), key=scored.get)
    assert set(last_state(tmp_path / "run")[0]) == {8, 16, 20, 24, best}


def test_the_best_is_known_by_the_last_evaluation_too(tiny_config, tmp_path, monkeypatch):
    errors = iter([0.1, 0.5, 0.5, 0.5, 0.5, 0.05, 0.0])  # Of 4, 8, ..., 24, and of training.
    scores = {"loss": 1.0, "images": 37}
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: scores | {"error": next(errors)})
    tiny_config |= {"checkpoint_every": 4, "eval_every": 4}
    assert train(tiny_config, tmp_path / "run") == "finished"
    assert last_state(tmp_path / "run")[0] == [20, 24]


def plain(config):
    return config | {"model": config["model"] | {"shortcut": "none"}}


def test_a_run_begins_with_another_runs_parameters_and_statistics(
    tiny_config, whole_run, tmp_path, capsys
):
    source = whole_run(tiny_config)
    config = plain(tiny_config) | {"init_from": str(source), "steps": 2, "optim": no_learning()}
    assert train(config, tmp_path / "run") == "finished"
    assert "initialised from step 24 of" in capsys.readouterr().out
    ours, theirs = last_state(tmp_path / "run")[1], last_state(source)[1]
    jax.tree.map(np.testing.assert_array_equal, ours["params"], theirs["params"])
    assert ours["step"] == 2
    assert last_state(tmp_path / "run")[0] == [0, 2]


def no_learning():
    from configs import digits

    return digits.get_config().optim.to_dict() | {"lr": 0.0}


def test_an_initialised_run_resumes_without_the_other_one(tiny_config, whole_run, tmp_path):
    shutil.copytree(whole_run(tiny_config), tmp_path / "source")
    config = tiny_config | {"init_from": str(tmp_path / "source")}
    assert train(config, tmp_path / "whole") == "finished"
    with pytest.MonkeyPatch.context() as patch:
        pull_plug(patch, RunFolder, "append_metrics", 1)
        with pytest.raises(PulledPlug):
            train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "source")
    assert train(config, tmp_path / "run") == "finished"
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_does_not_match_is_listed_and_refused_unless_allowed(
    tiny_config, whole_run, tmp_path, capsys
):
    config = tiny_config | {"init_from": str(whole_run(tiny_config)), "steps": 2}
    config["model"] = config["model"] | {"depth": 14, "widths": (4, 8, 16)}
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert "params.fc.kernel ([8, 10] there, [16, 10] here)" in str(error.value)
    assert "params.stage1_block2.conv1.kernel (absent there" in str(error.value)
    assert "Give config.init_partial=True" in str(error.value)
    assert not (tmp_path / "run").exists()
    initial_state.initial_state(built(config | {"init_partial": True}), print)
    assert "left over: batch_stats.stage" in capsys.readouterr().out


def test_a_run_to_begin_with_that_is_none_is_refused_before_anything_is_written(
    tiny_config, tmp_path
):
    with pytest.raises(
        UserError, match="init_from=nowhere: Expected a run's folder, got .*nowhere"
    ):
        train(tiny_config | {"init_from": "nowhere"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_made_before_a_field_came_goes_on(tiny_config, tmp_path):
    folder, old = RunFolder(tmp_path), resolve(tiny_config)
    for name in ("keep_every", "init_from", "init_partial"):
        del old[name]
    folder.config_file.write_text(json.dumps(old))
    killed_at_the_last_step(tiny_config, folder.path)
    assert train(tiny_config, folder.path) == "finished"


def test_a_run_that_another_process_took_over_stops_before_it_writes_again(
    tiny_config, tmp_path, monkeypatch
):
    original = Recorder.add_training

    def taken_over(self, step, values):
        if step == 12:
            lock = tmp_path / "run" / "lock.json"
            lock.write_text(json.dumps({"token": "another's", "pid": 7, "host": "elsewhere"}))
        original(self, step, values)

    monkeypatch.setattr(Recorder, "add_training", taken_over)
    with pytest.raises(FaultError, match="taken over by process 7 on elsewhere"):
        train(tiny_config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.metrics()[-1]["step"] == 8
    assert folder.status().state == "running"
    assert json.loads((folder.path / "lock.json").read_text())["pid"] == 7


def test_a_finished_run_that_lost_records_is_not_taken_for_done(tiny_config, whole_run, tmp_path):
    shutil.copytree(whole_run(tiny_config), tmp_path / "run")
    metrics = RunFolder(tmp_path / "run").metrics_file
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="9 records then, 8 now. Put back a copy"):
        train(tiny_config, tmp_path / "run")


def test_a_finished_run_says_so_and_is_left_alone(tiny_config, whole_run, capsys):
    path = whole_run(tiny_config)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert train(tiny_config, path) == "finished"
    assert "finished at step 24; nothing to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_a_run_that_another_process_ends_meanwhile_is_left_alone(
    tiny_config, whole_run, tmp_path, monkeypatch
):
    whole, claim = whole_run(tiny_config), RunFolder.claim

    def late(folder, *args):
        shutil.copytree(whole, folder.path)
        return claim(folder, *args)

    monkeypatch.setattr(RunFolder, "claim", late)
    assert train(tiny_config, tmp_path / "run") == "finished"
    for name in ("status.json", "environment.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text()


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_with_its_record(tiny_config, tmp_path):
    tiny_config["optim"]["lr"] = 1e30
    assert train(tiny_config, tmp_path / "run") == "diverged"
    folder = RunFolder(tmp_path / "run")
    assert folder.status()[:2] == ("diverged", 4)
    assert folder.metrics()[-1]["loss"] is None
    assert train(tiny_config, tmp_path / "run") == "diverged"
    assert folder.status().attempt == 1


@pytest.mark.parametrize("backend", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_with_global_statistics_a_run_may_go_on_on_another_number_of_devices(
    tiny_config, whole_run, tmp_path, monkeypatch, backend
):
    tiny_config |= {"parallel": backend, "steps": 12}
    tiny_config["model"]["bn_scope"] = "global"
    with pytest.MonkeyPatch.context() as patch:
        pull_plug(patch, RunFolder, "append_metrics", 3)
        with pytest.raises(PulledPlug):
            train(tiny_config, tmp_path / "run")
    one = functools.partial(Devices, devices=jax.devices()[:1])
    monkeypatch.setattr(build, "Devices", one)
    assert train(tiny_config, tmp_path / "run") == "finished"
    # 1e-4: float32 sums in another order, through four steps at rate 0.1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        last_state(tmp_path / "run")[1],
        last_state(whole_run(tiny_config))[1],
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "status.json"])
def test_a_record_that_cannot_be_read_is_said_before_anything_is_written(
    tiny_config, whole_run, tmp_path, name
):
    shutil.copytree(whole_run(tiny_config), tmp_path / "run")
    rewrite_status(tmp_path / "run", Status("running", 16))
    (tmp_path / "run" / name).write_text("x\n")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=name):
        train(tiny_config, tmp_path / "run")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_an_error_is_recorded_and_raised(tiny_config, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("the device is on fire\nat length")

    monkeypatch.setattr(Evaluator, "__call__", fail)
    with pytest.raises(RuntimeError, match="on fire"):
        train(tiny_config, tmp_path / "run")
    status = RunFolder(tmp_path / "run").status()
    assert (status.state, status.error) == ("failed", "RuntimeError: the device is on fire")
    monkeypatch.undo()
    assert train(tiny_config, tmp_path / "run") == "finished"


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("model", "depth", 21, "the nearest: 20 and 26"),
        ("model", "family", "vgg", "Expected model.shortcut"),
        ("data", "name", "cifar100", "not prepared"),
        ("data", "color", True, "images without three colours"),
        ("data", "batch_size", 18, "divisible by the number of devices, 4, got 18"),
        ("data", "batch_size", 96, "at most 92, the images of data.train_split=.*, got 96"),
        ("data", "pad", 8, r"data.pad smaller than .*\(8, 8, 1\), got 8"),
        ("data", "image_size", 64, 'data.image_size=224 with data.crop="none"'),
        ("optim", "lr", "fast", "config.optim.lr"),
        ("optim", "frozen", ("stem", "stage4"), r"'stem', .*'stage3', 'head'.*got \['stage4'\]"),
    ],
)
def test_a_wrong_config_writes_nothing(
    tiny_config, tmp_path, monkeypatch, section, field, value, message
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    tiny_config[section][field] = value
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_too_small_for_vgg_are_refused_before_anything_is_written(tiny_config, tmp_path):
    tiny_config["model"] |= {"family": "vgg", "depth": 16, "shortcut": "none", "widths": ()}
    with pytest.raises(UserError, match="at least 32 pixels a side for VGG"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_config_is_refused_in_a_folder_with_a_run(tiny_config, whole_run):
    path = whole_run(tiny_config)
    tiny_config["optim"]["lr"] = 0.2
    with pytest.raises(UserError, match=r"another config: optim.lr \(0.1 there, 0.2 here\)"):
        train(tiny_config, path)


@pytest.mark.parametrize(
    "shortcut, dtype",
    [("projection", "bfloat16"), pytest.param("none", "float32", marks=pytest.mark.slow)],
)
def test_other_networks_and_types_train_too(tiny_config, tmp_path, shortcut, dtype):
    tiny_config["model"] |= {"shortcut": shortcut, "dtype": dtype, "bn_scope": "global"}
    assert train(tiny_config, tmp_path / "run") == "finished"
    losses = [r["loss"] for r in measured(tmp_path / "run") if r["kind"] == "train"]
    assert losses[-1] < losses[0]


def own_set(folder, seed):
    """Images of one size as a set `mine`. Returns the folder of prepared sets."""
    noise = np.random.default_rng(seed)
    for label, number in itertools.product("ab", range(12)):
        (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(folder / "photos" / label / f"{number}.png")
    own_images.prepare(folder / "photos", "mine", str(folder), 0.25, 0, lambda items, *_: items)
    return str(folder)


def test_a_run_goes_on_with_the_images_that_it_began_with_and_with_no_others(
    tiny_config, tmp_path, monkeypatch
):
    same, moved, other = (
        own_set(tmp_path / name, seed) for name, seed in (("same", 0), ("moved", 0), ("other", 1))
    )
    run = tmp_path / "run"
    tiny_config["data"] |= {"name": "mine", "train_split": "train", "test_split": "test"}
    tiny_config["data"]["data_dir"] = same
    with monkeypatch.context() as patch:
        pull_plug(patch, Recorder, "add_training", 5)
        with pytest.raises(PulledPlug):
            train(tiny_config, run)
    assert RunFolder(run).status().step
    before = (run / "environment.json").read_text(), (run / "status.json").read_text()
    tiny_config["data"]["data_dir"] = other
    with pytest.raises(UserError, match=r"other images now .* train.records .* Put the old ones"):
        train(tiny_config, run)
    assert before == ((run / "environment.json").read_text(), (run / "status.json").read_text())
    tiny_config["data"]["data_dir"] = moved
    assert train(tiny_config, run) == "finished"


def test_a_trained_network_is_scored_on_the_images_of_its_run_and_on_no_others(
    tiny_config, tmp_path, capsys
):
    moved, other = (own_set(tmp_path / name, seed) for name, seed in (("moved", 0), ("other", 1)))
    tiny_config["data"] |= {"name": "mine", "train_split": "train", "test_split": "test"}
    tiny_config["data"]["data_dir"] = own_set(tmp_path / "same", 0)
    train(tiny_config, run := tmp_path / "run")

    def score(data_dir):
        evaluate.score(
            load_run(run, data_dir=data_dir), RunFolder(run).images(), None, evaluate.CENTER, []
        )

    def score_others(data_dir):
        evaluate.score(
            load_run(run, data_dir=data_dir), RunFolder(run).images(), "test[:3]", "center", []
        )

    def look(data_dir):
        diagnose.diagnose_run(run, [24], 1, None, Console(), data_dir)

    for use in (score, score_others, look):
        use(moved)
        stored = sorted(run.rglob("*"))
        with pytest.raises(
            UserError, match="has other images now than when this run began: records"
        ):
            use(other)
        assert sorted(run.rglob("*")) == stored
    said = capsys.readouterr().out
    assert "images 6" in said and "images 3" in said


def test_images_that_are_trained_on_and_tested_are_told(tiny_config, tmp_path, capsys):
    tiny_config["data"]["test_split"] = "test[:10]+train[10:14]"
    train(tiny_config, tmp_path / "run")
    assert "run: 4 images are in both splits; the test error counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "steps, optimizer, noted",
    [
        (13, {}, []),
        (12, {}, ["not change at 12 "]),
        (8, {}, ["not change at 8, 12 "]),
        (4, {"warmup_steps": 4}, ["not change at 8, 12 ", "stays 0.01 "]),
        (13, {"warmup_steps": 4}, []),
    ],
)
def test_a_learning_rate_that_a_short_run_never_has_is_told(tiny_config, steps, optimizer, noted):
    tiny_config["optim"] |= {"boundaries": (8, 12), "warmup_lr": 0.01} | optimizer
    notes = build.notes(parse(tiny_config | {"steps": steps}, RunConfig))
    assert len(notes) == len(noted)
    for note, words in zip(notes, noted, strict=True):
        assert words in note


def test_an_option_of_init_from_without_it_is_told(tiny_config):
    (note,) = build.notes(parse(tiny_config | {"init_partial": True}, RunConfig))
    assert "init_partial has no effect without init_from" in note


def test_images_of_an_attempt_that_saved_nothing_bind_no_later_one(
    tiny_config, tmp_path, monkeypatch
):
    first, other = (own_set(tmp_path / name, seed) for name, seed in (("first", 0), ("other", 1)))
    run = tmp_path / "run"
    tiny_config["data"] |= {"name": "mine", "train_split": "train", "test_split": "test"}
    for folder, records, is_saved in ((first, 1, False), (other, 5, True)):
        tiny_config["data"]["data_dir"] = folder
        with monkeypatch.context() as patch:
            pull_plug(patch, Recorder, "add_training", records)
            with pytest.raises(PulledPlug):
                train(tiny_config, run)
        assert bool(RunFolder(run).status().step) == is_saved
    tiny_config["data"]["data_dir"] = first
    with pytest.raises(UserError, match="other images now"):
        train(tiny_config, run)
    tiny_config["data"]["data_dir"] = other
    assert train(tiny_config, run) == "finished"


def test_a_set_that_was_made_again_is_read_again(tmp_path):
    folder = own_set(tmp_path, 0)
    before = load_split("mine", "train", folder)
    assert load_split("mine", "train", folder) is before
    shutil.rmtree(tmp_path / "mine")
    own_set(tmp_path, 1)
    assert not np.array_equal(load_split("mine", "train", folder).images, before.images)


def test_a_run_that_another_process_began_meanwhile_is_not_taken_for_this_one(
    tiny_config, tmp_path, monkeypatch
):
    run, original = tmp_path / "run", build.build

    def build_slowly(config):
        with monkeypatch.context() as patch:
            patch.setattr(build, "build", original)
            train(tiny_config | {"seed": 1}, run)
        return original(config)

    monkeypatch.setattr(build, "build", build_slowly)
    with pytest.raises(UserError, match=r"another config: seed \(1 there, 0 here\)"):
        train(tiny_config, run)


def test_a_save_that_ends_during_an_evaluation_is_noted_at_once(tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    tiny_config |= {"eval_every": tiny_config["checkpoint_every"]}
    noted = []

    def evaluate(self, variables, mean, feed, before_batch):
        for _ in range(600):  # A save may take a while on a busy machine.
            before_batch()
            noted.append(RunFolder(run).status().step)
            if noted[-1]:
                raise PulledPlug
            time.sleep(0.1)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    with pytest.raises(PulledPlug):
        train(tiny_config, run)
    assert noted[-1] == tiny_config["checkpoint_every"]


def test_what_a_caller_gives_alone_is_used(tiny_config, tmp_path):
    with interrupt.StopRequest() as stop:
        stop._note(signal.SIGTERM, None)
        assert train(tiny_config, tmp_path / "stopped", stop=stop) == "preempted"
    with RunProgress(quiet=True) as progress:
        assert train(tiny_config, tmp_path / "shown", progress=progress) == "finished"
    assert progress._name == "shown"
