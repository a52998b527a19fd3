import json
import shutil
import subprocess
import sys
import types

import pytest
from rich.console import Console

from configs import degradation
from experiments import diagnose
from resnet_flax.errors import UserError
from resnet_flax.runs import export_run, saved_steps
from resnet_flax.storage import findings, sweep_folder
from resnet_flax.storage.recipe import Varying
from tests.given import expanded, train

RUN = "tests/golden/run"


@pytest.fixture
def run_folder(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "printed").open("w") as file:
        yield Console(file=file)


def test_a_run_is_looked_at_before_training_and_at_its_last_step(run_folder, console):
    diagnose.diagnose_run(run_folder, [24], 2, None, console)
    before, after = findings.load_layers(run_folder)
    assert (before.step, after.step) == (0, 24)
    assert after.loss < before.loss
    assert len(before.layers) == len(after.layers) == 8
    # Seven convolutions have responses; three blocks, and they alone, a share of h.
    assert sum(layer.response_std is not None for layer in after.layers) == 7
    shares = [layer.identity_share for layer in after.layers if layer.identity_share is not None]
    assert len(shares) == 3 and all(0 < share < 1 for share in shares)
    found = findings.load(findings.folder(run_folder) / findings.SIGNAL, findings.Signal)
    assert [stage.name for stage in found.stages] == ["stem", "stage1", "stage2", "stage3"]
    assert found.gradient_ratio > 0 and found.predicted_ratio > 1


def test_a_scanned_twin_begins_with_the_same_gradients(run_folder, console):
    once, _ = diagnose.diagnose_run(run_folder, [24], 1, None, console)
    config = json.loads((run_folder / "config.json").read_text())
    config["model"] |= {"scan": "on", "remat": True}
    (run_folder / "config.json").write_text(json.dumps(config))
    again, _ = diagnose.diagnose_run(run_folder, [24], 1, None, console)
    assert once == again


def test_the_landscape_meets_the_run_at_its_end(run_folder, console):
    _, after = diagnose.diagnose_run(run_folder, [24], 2, 3, console)
    line = findings.load(findings.folder(run_folder) / findings.LINE, findings.Line)
    plane = findings.load(findings.folder(run_folder) / findings.PLANE, findings.Plane)
    assert line.positions == (0, 0.25, 0.5, 0.75, 1) and plane.positions == (-1, 0, 1)
    # 1e-4: float32, another program; the loss at another point differs by far more.
    assert line.losses[-1] == pytest.approx(after.loss, rel=1e-4)
    assert plane.losses[1][1] == pytest.approx(after.loss, rel=1e-4)
    assert line.images == plane.images == 256


def test_a_step_that_cannot_be_restored_does_not_hide_the_others(run_folder, tmp_path, console):
    shutil.copytree(run_folder / "checkpoints" / "24", run_folder / "checkpoints" / "12")
    (damaged,) = run_folder.glob("checkpoints/12/state/manifest.ocdbt")
    damaged.write_bytes(b"")
    found = diagnose.diagnose_run(run_folder, saved_steps(run_folder), 1, None, console)
    assert [layers.step for layers in found] == [0, 24]
    console.file.flush()
    assert "12" in (tmp_path / "printed").read_text()
    with pytest.raises(UserError, match="12"):
        diagnose.diagnose_run(run_folder, [12], 1, None, console)


def test_initial_networks_are_of_every_kind_depth_and_norm_of_the_first_seed(console):
    config = degradation.get_config("digits")
    config.depths, config.seeds = (8,), (3, 4)
    config.run.model.widths = (4, 8, 8)  # As the golden run: compiled once.
    biased = {"model.shortcut": "none", "model.bn_bias": 1.0}
    config.kinds = {"plain": "none", "residual": "pad", "biased": biased}
    networks = diagnose.initial_networks(expanded(config.to_dict()), 1, console)
    named = {(n.kind, n.depth, n.norm) for n in networks}
    assert len(named) == len(networks) == 5
    assert ("biased", 8, "none") not in named  # There is no such network.
    plain, residual, *_ = (n.signal.predicted_ratio for n in networks if n.norm == "batch")
    assert plain > 1 and residual > 1 and plain != residual
    assert all(n.signal is None for n in networks if n.norm == "none")
    assert {n.seed for n in networks} == {3}
    assert {n.at.step for n in networks} == {0}


def test_networks_whose_norm_the_grid_varies_keep_their_own(console):
    config = degradation.get_config("digits")
    config.depths, config.kinds = (8,), {"plain": "none"}
    config.run.model.widths = (4, 8, 8)
    config.vary = {"model": {"norm": ("batch", "none")}}
    networks = diagnose.initial_networks(expanded(config.to_dict()), 1, console)
    named = [(n.kind, n.norm) for n in networks]
    assert named == [("plain, norm batch", "batch"), ("plain, norm none", "none")]


def test_a_run_that_began_with_another_is_seen_as_it_began(tiny_config, tmp_path, console):
    tiny_config |= {"steps": 8, "eval_every": 4, "checkpoint_every": 4}
    assert train(tiny_config, tmp_path / "source") == "finished"
    begun = tiny_config | {"init_from": str(tmp_path / "source"), "steps": 16}
    assert train(begun, tmp_path / "run") == "finished"
    assert 0 in saved_steps(tmp_path / "run")
    (ended,) = diagnose.diagnose_run(tmp_path / "source", [8], 1, None, console)[1:]
    shutil.rmtree(tmp_path / "source")
    export_run(tmp_path / "run", tmp_path / "copy")
    for folder in (tmp_path / "run", tmp_path / "copy"):
        before, _ = diagnose.diagnose_run(folder, [16], 1, None, console)
        assert before.loss == ended.loss
    for saved in ([0, 16], [0]):  # At last only the beginning, as in a run that was stopped early.
        assert [
            found.step for found in diagnose.diagnose_run(folder, saved, 1, None, console)
        ] == saved
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "0")
    with pytest.raises(UserError, match=r"Expected step 0 .*got \[16\]"):
        diagnose.diagnose_run(tmp_path / "copy", [16], 1, None, console)


def test_a_damaged_run_does_not_keep_the_others_of_a_sweep_from_being_seen(tmp_path, capsys):
    entries = {}
    for name in ("plain-8-s0", "plain-8-s1", "plain-8-s2"):
        shutil.copytree(RUN, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        entries[name] = {"kind": "plain", "config": config}
    sweep_folder.add_runs(tmp_path, entries, Varying())
    (damaged,) = tmp_path.glob("plain-8-s0/checkpoints/24/state/manifest.ocdbt")
    damaged.write_bytes(b"")
    shutil.rmtree(tmp_path / "plain-8-s1" / "checkpoints")
    flags = {
        "workdir": str(tmp_path),
        "step": None,
        "all_steps": False,
        "batches": 1,
        "data_dir": "",
    }
    args = types.SimpleNamespace(**flags, landscape=False, resolution=None)
    assert diagnose._diagnose_runs(args, Console(soft_wrap=True)) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 runs have no checkpoint" in printed
    assert f"No checkpoint in {tmp_path}/plain-8-s0" in printed
    assert len(findings.load_layers(tmp_path / "plain-8-s2")) == 2


@pytest.mark.parametrize(
    "flags, said",
    [
        ([f"--workdir={RUN}", "--step=7"], "7"),
        (
            ["--workdir=x", "--config=configs/digits.py:plain8", "--landscape"],
            "without --landscape",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--workdir=nowhere"], "Expected a run's folder, got"),
                ([f"--workdir={RUN}", "--config=configs/digits.py:plain9"], "6n+2"),
                ([f"--workdir={RUN}", "--resolution=5"], "with --landscape"),
            )
        ),
    ],
)
def test_what_cannot_be_looked_at_is_said_in_one_line(flags, said):
    command = [sys.executable, "-m", "experiments.diagnose", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
