import ast
import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import imagenet
from resnet_flax import runs
from resnet_flax.config import RunConfig, parse
from resnet_flax.data import sources
from resnet_flax.errors import UserError
from resnet_flax.storage import sweep_folder
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.recipe import Varying
from resnet_flax.storage.records import FILES
from resnet_flax.storage.run_folder import OWN, RunFolder
from resnet_flax.storage.step_folders import CONFIG
from resnet_flax.storage.sums import SUMS
from resnet_flax.training import build
from tests.given import train


@pytest.fixture
def finished_run(tiny_config, tmp_path, tmp_path_factory):
    """A copy: it is trained once."""
    trained = tmp_path_factory.getbasetemp() / "trained"
    if not trained.exists():
        train(tiny_config, trained)
    return shutil.copytree(trained, tmp_path / "run")


def stop(folder):
    """A run of this status goes on."""
    status = folder.status()._replace(state="preempted")
    folder.status_file.write_text(json.dumps(status._asdict()))


def test_a_run_moved_elsewhere_predicts_as_it_was_evaluated(finished_run, tmp_path, monkeypatch):
    moved = tmp_path / "moved" / "run"
    shutil.move(finished_run, moved)
    test = sources.load_split("digits", "test[:37]")
    run = runs.load_run(moved)
    probabilities = run.predict(test.images)
    assert probabilities.shape == (37, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)  # float32
    scored = [r for r in RunFolder(moved).metrics() if r.get("split") == "test"][-1]
    assert np.mean(probabilities.argmax(1) != test.labels) == scored["error"]
    picked = probabilities[np.arange(37), test.labels]
    assert -np.log(picked).mean() == pytest.approx(scored["loss"], rel=1e-5)
    assert run.step == 24
    assert run.config.model.depth == 8
    assert run.config.data.data_dir == ""
    assert runs.load_run(moved, data_dir="/elsewhere").config.data.data_dir == "/elsewhere"


def test_an_earlier_step_is_restored_when_asked_for(finished_run):
    earlier, last = runs.load_run(finished_run, 16), runs.load_run(finished_run)
    assert earlier.step == 16
    same = jax.tree.map(np.array_equal, earlier.variables, last.variables)
    assert not any(jax.tree.leaves(same))
    with pytest.raises(UserError, match=r"there are: \[16, 24\]"):
        runs.load_run(finished_run, 17)


def test_a_run_of_a_sweep_is_restored_by_its_name(finished_run):
    config = json.loads((finished_run / "config.json").read_text())
    entries = {"run": {"kind": "plain", "config": config}}
    sweep_folder.add_runs(finished_run.parent, entries, Varying())
    sweep = runs.load_sweep(finished_run.parent)
    assert list(sweep) == ["run"]
    assert sweep["run"].step == 24
    assert set(sweep.frame()["split"]) == {"running", "test", "train"}
    (row,) = sweep.summary().to_dict("records")
    assert (row["kind"], row["depth"], row["n"]) == ("plain", 8, 1)
    assert row["train_error"] == RunFolder(finished_run).metrics()[-1]["error"]
    with pytest.raises(UserError, match=r"No run 'plain' .*there are: run"):
        sweep["plain"]
    with pytest.raises(UserError, match=r"Expected a sweep's folder, got .*no sweep\.json"):
        runs.load_sweep(finished_run)


def test_an_exported_run_is_half_as_large_and_all_that_readers_need(
    finished_run, tiny_config, tmp_path
):
    (finished_run / "diagnostics").mkdir()
    (finished_run / "diagnostics" / "layers-0.json").write_text("{}")
    (finished_run / "notes").write_text("mine")
    here = RunFolder(finished_run)
    begun_with = here.config() | {"init_from": "/home/somebody/source"}
    here.config_file.write_text(json.dumps(begun_with))
    forget_config(here.checkpoints / "16")
    failed = here.status()._replace(error="No space left on device: /home/somebody/run")
    here.status_file.write_text(json.dumps(failed._asdict()))
    runs.export_run(finished_run, tmp_path / "shared" / "run", 16)
    shared = RunFolder(tmp_path / "shared" / "run")
    assert [path.name for path in shared.path.parent.iterdir()] == ["run"]
    names = {path.name for path in finished_run.iterdir()}
    assert {path.name for path in shared.path.iterdir()} == names - {
        ".lock",
        "tensorboard",
        "notes",
    }
    assert [path.name for path in (shared.path / "diagnostics").iterdir()] == ["layers-0.json"]
    assert shared.metrics() == here.metrics()
    assert shared.config() == begun_with | {"init_from": "source"}
    assert shared.status() == failed._replace(error=None)
    for file in filter(Path.is_file, shared.path.rglob("*")):
        assert b"/home/somebody" not in file.read_bytes(), file
    before, after = runs.load_run(finished_run, 16), runs.load_run(shared.path)
    assert runs.saved_steps(shared.path) == [after.step] == [16]
    jax.tree.map(np.testing.assert_array_equal, before.variables, after.variables)
    np.testing.assert_array_equal(before.image_mean, after.image_mean)
    kept, whole = (
        sum(leaf.size for leaf in jax.tree.leaves(Checkpoints(path / "checkpoints").restore(16)))
        for path in (shared.path, finished_run)
    )
    assert kept < 0.55 * whole
    tiny_config |= {"init_from": str(shared.path), "steps": 4}
    assert train(tiny_config, tmp_path / "tuned") == "finished"


def test_an_export_that_is_resumable_goes_on_to_the_same_bits(
    finished_run, tiny_config, tmp_path, capsys
):
    runs.export_run(finished_run, tmp_path / "there", 16, resumable=True)
    there, whole = RunFolder(tmp_path / "there"), RunFolder(finished_run)
    assert {path.name for path in there.path.iterdir()} == {*FILES, "checkpoints"}
    status = there.status()
    assert (status.state, status.step, status.attempt, status.error) == ("preempted", 16, 1, None)
    assert status.seconds >= whole.status().seconds
    assert there.metrics() == [r for r in whole.metrics() if r["step"] <= 16]
    assert train(tiny_config, there.path) == "finished"
    assert "another kind" not in capsys.readouterr().out
    states = [Checkpoints(folder.checkpoints).restore(24) for folder in (there, whole)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    rates = "images_per_second"
    assert [r | {rates: 0} for r in there.metrics()] == [r | {rates: 0} for r in whole.metrics()]
    entries = there.environments()
    assert [(entry["attempt"], entry["step"]) for entry in entries] == [(1, 0), (2, 16)]
    runs.export_run(finished_run, tmp_path / "done", resumable=True)
    assert RunFolder(tmp_path / "done").status().state == "finished"


def test_a_run_that_goes_on_on_another_kind_of_machine_says_so(
    finished_run, tiny_config, tmp_path, capsys
):
    runs.export_run(finished_run, tmp_path / "there", 16, resumable=True)
    file = tmp_path / "there" / "environment.json"
    file.write_text(file.read_text().replace('"device_kind": "cpu"', '"device_kind": "TPU v4"'))
    train(tiny_config, tmp_path / "there")
    kind = "another kind of machine: device_kind ('TPU v4' there, 'cpu' here). The last bits may"
    said = capsys.readouterr().out
    assert kind in said and "Batch normalisation" not in said


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_run_that_goes_on_on_another_number_of_devices_is_told_of_batch_normalisation(
    tiny_config, tmp_path, capsys, norm
):
    tiny_config["model"]["norm"] = norm
    train(tiny_config, tmp_path / "run")
    runs.export_run(tmp_path / "run", tmp_path / "there", 16, resumable=True)
    file = tmp_path / "there" / "environment.json"
    before = re.sub(r'"device_count": \d+', '"device_count": 99', file.read_text())
    file.write_text(before)
    train(tiny_config, tmp_path / "there")
    said = capsys.readouterr().out
    assert f"device_count (99 there, {jax.device_count()} here)" in said
    assert ("batch normalisation sees shares of another size" in said) == (norm == "batch")


def test_an_exported_run_cannot_go_on_and_says_so(finished_run, tiny_config, tmp_path):
    stop(RunFolder(finished_run))
    runs.export_run(finished_run, tmp_path / "shared", 16)
    with pytest.raises(UserError, match=r"lacks opt_state, seed, totals.*--config\.init_from"):
        train(tiny_config, tmp_path / "shared")


def test_a_run_whose_records_have_changed_is_not_exported(finished_run, tmp_path):
    metrics = RunFolder(finished_run).metrics_file
    metrics.write_text(metrics.read_text().replace('"error": 0.', '"error": 0.0'))
    for resumable in (False, True):
        with pytest.raises(UserError, match="has changed since this run ended"):
            runs.export_run(finished_run, tmp_path / "shared", resumable=resumable)
    assert not (tmp_path / "shared").exists()


def test_an_export_that_cannot_be_is_one_line_and_leaves_nothing(finished_run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    for to, message in [
        (finished_run, "Expected to export to a new folder outside .* got .*run"),
        (finished_run / "checkpoints" / "9", "Expected to export to a new folder outside"),
        (tmp_path / "file" / "run", "Cannot export to .*Not a directory"),
        ("s3://bucket/run", "Expected folders on a disk .* s3://bucket/run"),
        (tmp_path / ("n" * 260), "Cannot read .*File name too long"),
    ]:
        with pytest.raises(UserError, match=message):
            runs.export_run(finished_run, to)
    with pytest.raises(UserError, match="there are"):
        runs.export_run(finished_run, tmp_path / "shared", 17)
    (tmp_path / "file").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [*OWN, "diagnostics/line.json", "checkpoints/24"])
def test_what_a_run_holds_may_not_be_a_link_when_it_is_exported_or_goes_on(
    finished_run, tiny_config, tmp_path, name
):
    (finished_run / "diagnostics").mkdir()
    (finished_run / "diagnostics" / "line.json").write_text("{}")
    (finished_run / "lock.json").write_text("{}")
    (finished_run / ".lock").touch()
    stop(RunFolder(finished_run))
    (finished_run / name).rename(tmp_path / "outside")
    (finished_run / name).symlink_to(tmp_path / "outside")
    if name == "checkpoints":
        (tmp_path / "outside" / ".1.old").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    if name == "checkpoints/24":
        with pytest.raises(UserError, match=r"24 is damaged \(it is a symbolic link\)"):
            runs.export_run(finished_run, tmp_path / "shared", 24)
    else:
        with pytest.raises(UserError, match=f"{name} is a symbolic link to .*outside. .* the link"):
            runs.export_run(finished_run, tmp_path / "shared")
    if name in OWN:
        with pytest.raises(UserError, match=f"{name} is a symbolic link to .*outside. .* the link"):
            train(tiny_config, finished_run)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_runs_folder_may_be_a_link_itself(finished_run, tiny_config, tmp_path):
    (tmp_path / "link").symlink_to(finished_run)
    assert train(tiny_config, tmp_path / "link") == "finished"
    runs.export_run(tmp_path / "link", tmp_path / "shared")
    assert runs.load_run(tmp_path / "shared").step == 24


def test_another_runs_checkpoint_is_refused_by_all_who_would_use_it(
    finished_run, tiny_config, tmp_path
):
    other = shutil.copytree(finished_run, tmp_path / "other")
    folder = RunFolder(other)
    seed = folder.config() | {"seed": 1}
    folder.config_file.write_text(json.dumps(seed))
    stop(folder)
    for use in (
        lambda: runs.load_run(other),
        lambda: runs.load_run(other, 16),
        lambda: runs.export_run(other, tmp_path / "shared"),
        lambda: train(tiny_config | {"seed": 1}, other),
        lambda: train(tiny_config | {"init_from": str(other)}, tmp_path / "new"),
    ):
        with pytest.raises(UserError, match=r"other/checkpoints/\d+ was saved by a run of another"):
            use()
    assert not (tmp_path / "new").exists() and not (tmp_path / "shared").exists()
    # Only where its data lie may differ.
    mine = RunFolder(finished_run)
    moved = mine.config() | {"data": mine.config()["data"] | {"data_dir": "elsewhere"}}
    mine.config_file.write_text(json.dumps(moved))
    assert runs.load_run(finished_run).step == 24


def forget_config(step):
    """A step as older versions saved it."""
    (step / CONFIG).unlink()
    lines = (step / SUMS).read_text().splitlines(keepends=True)
    (step / SUMS).write_text("".join(line for line in lines if CONFIG not in line))


def test_an_export_that_breaks_off_can_be_made_again(finished_run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", full)
        with pytest.raises(UserError, match="Cannot export to .*No space left on device"):
            runs.export_run(finished_run, tmp_path / "shared")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    runs.export_run(finished_run, tmp_path / "shared")
    assert runs.load_run(tmp_path / "shared").step == 24


def test_images_of_another_type_or_shape_are_refused_in_words(finished_run):
    run = runs.load_run(finished_run)
    with pytest.raises(ValueError, match=r"uint8 images \[B, 8, 8, 1\], got float32"):
        run.predict(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[8, 8, 1\]"):
        run.predict(np.zeros((8, 8, 1), np.uint8))


def test_the_model_takes_normalised_images(finished_run):
    test = sources.load_split("digits", "test[:37]")
    run = runs.load_run(finished_run)
    logits = run.model.apply(run.variables, run.normalize(test.images))
    np.testing.assert_array_equal(logits.argmax(1), run.predict(test.images).argmax(1))


def test_the_last_whole_step_is_taken_and_a_damaged_one_is_refused_when_asked_for(
    finished_run, capsys
):
    metadata = finished_run / "checkpoints" / "24" / "state" / "_METADATA"
    metadata.write_bytes(b"")
    assert runs.load_run(finished_run).step == 16
    assert "24 is damaged (state/_METADATA is not what was saved); step 16 is used." in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="24 is damaged"):
        runs.load_run(finished_run, 24)
    assert metadata.exists()
    assert runs.saved_steps(finished_run) == [16, 24]


GOLDEN = Path(__file__).parent / "golden"


def test_a_run_of_a_newer_jax_predicts_here_what_it_predicted_there():
    """Made on jax 0.12 by the command in predictions.json; make it anew if the format changes."""
    golden = json.loads((GOLDEN / "predictions.json").read_text())
    run = runs.load_run(GOLDEN / "run")
    assert RunFolder(GOLDEN / "run").environments()[-1]["packages"]["jax"].startswith("0.12")
    images = sources.load_split("digits", "test[:5]").images
    # 1e-5: float32, and another version may add in another order.
    np.testing.assert_allclose(run.predict(images), golden["probabilities"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"name": "../../secret"}},
        {"data": {"name": "huggingface:someone/code"}},
        {"model": {"family": "os.system"}},
        {"model": {"depth": 10**30}},
        {"parallel": ["pmap"]},
        {"seed": float("nan")},
    ],
)
def test_a_config_made_by_someone_else_is_at_worst_refused(finished_run, change):
    folder = RunFolder(finished_run)
    config = folder.config()
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    folder.config_file.write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        runs.load_run(finished_run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"depth": 14}, {"shortcut": "projection"}])
def test_a_checkpoint_of_another_network_than_the_configs_is_refused(finished_run, change):
    folder = RunFolder(finished_run)
    config = folder.config()
    config["model"] |= change
    folder.config_file.write_text(json.dumps(config))
    forget_config(folder.checkpoints / "24")
    with pytest.raises(UserError, match="of another model: expected"):
        runs.load_run(finished_run)


def test_a_run_of_global_bn_is_an_ordinary_network_on_one_device(
    tiny_config, finished_run, tmp_path
):
    tiny_config["model"]["bn_scope"] = "global"
    train(tiny_config, tmp_path / "global")
    for folder in (tmp_path / "global", finished_run):
        run = runs.load_run(folder)
        images = run.normalize(sources.load_split("digits", "test[:8]").images)
        logits, _ = run.model.apply(run.variables, images, train=True, mutable=["batch_stats"])
        assert np.isfinite(logits).all()
    assert runs.load_run(tmp_path / "global").config.model.bn_scope == "global"


@pytest.mark.parametrize("state", [{"params": 1.0}, {"other": 1.0}, {"params": {"fc": 1.0}}])
def test_a_checkpoint_that_is_no_runs_is_refused(finished_run, state):
    for path in (finished_run / "checkpoints").iterdir():
        shutil.rmtree(path)
    saving = CheckpointWriter(
        finished_run / "checkpoints",
        keep_every=0,
        attempt=1,
        held=contextlib.nullcontext,
        say=print,
    )
    with saving:
        saving.save(1, jax.tree.map(np.float32, state), {})
    with pytest.raises(UserError, match="Expected a training run's checkpoint"):
        runs.load_run(finished_run)


def test_nothing_here_unpickles_or_evaluates():
    """Orbax stores arrays as zarr, and everything else in a run folder is JSON."""
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "eval", "exec"}
    for path in [*Path("resnet_flax").rglob("*.py"), *Path("experiments").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.name.split(".")[0] for alias in node.names}
                names.add((getattr(node, "module", None) or "").split(".")[0])
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path
        assert not names & banned, path


def test_a_folder_that_is_no_runs_is_left_as_it_was(tmp_path):
    with pytest.raises(UserError, match="Expected a run's folder"):
        runs.load_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_and_a_sweep_show_themselves_in_a_few_lines():
    run = runs.load_run("tests/golden/run")
    assert str(run) == repr(run) and len(repr(run).splitlines()) == 6
    assert "8 layers" in repr(run) and "24 of 24" in repr(run)
    assert "8 layers" in run._repr_html_() and len(run._repr_html_()) < 1000
    sweep = runs.load_sweep("experiments/results/rates")
    assert "40: 40 finished" in repr(sweep) and "0.2, 0.1, 0.05, 0.02, 0.01" in repr(sweep)


def test_a_page_of_a_notebook_shows_names_as_text(tmp_path):
    config = json.loads(Path("tests/golden/run/config.json").read_text())
    entries = {"run": {"kind": "<b>plain</b>", "config": config}}
    sweep_folder.add_runs(tmp_path, entries, Varying())
    assert "&lt;b&gt;plain" in runs.load_sweep(tmp_path)._repr_html_()
    assert "1 not begun" in repr(runs.load_sweep(tmp_path))


@pytest.mark.parametrize("net, size", [("vgg16", "224, 224"), ("resnet18", None)])
def test_a_network_of_crops_takes_images_of_any_size_unless_it_is_vgg(net, size):
    config = parse(imagenet.get_config(net).to_dict(), RunConfig)
    mean = np.ones((1, 1, 3), np.float32)
    run = runs.Run(config, None, {"params": {"fc": {"bias": np.zeros(7)}}}, 0, mean)
    images = np.zeros((2, 40, 60, 3), np.uint8)
    if size:
        with pytest.raises(ValueError, match=rf"uint8 images \[B, {size}, 3\], got uint8 \[2, 40"):
            run.normalize(images)
        assert "images 224 x 224 x 3" in repr(run)
    else:
        assert run.normalize(images).shape == images.shape
        assert "images of any size" in repr(run)
    with pytest.raises(ValueError, match=r"got uint8 \[40, 60, 3\]"):
        run.normalize(images[0])


def test_images_of_another_kind_than_the_networks_are_refused_before_they_are_scored(finished_run):
    run = runs.load_run(finished_run)
    data, mean = run.config.data, run.image_mean
    assert run.num_classes == 10
    assert build.open_seen(data, "test", mean, 10, {}).num_classes == 10
    for wrong, classes in ((mean, 9), (np.zeros((12, 12, 1), np.float32), 10)):
        with pytest.raises(
            UserError, match="as the run's network has, got 10 and .8, 8, 1.* --data_dir"
        ):
            build.open_seen(data, "test", wrong, classes, {})
