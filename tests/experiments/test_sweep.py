import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import markupsafe
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from configs import degradation
from experiments import report, sweep
from experiments.sweeping import dry_run, grid
from experiments.sweeping.monitor import SweepMonitor
from resnet_flax.config import resolve
from resnet_flax.data import own_images
from resnet_flax.errors import UserError
from resnet_flax.storage import sweep_folder, sweep_tables
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.training import loop
from tests.given import expanded

ENTRY = {
    "kind": "plain",
    "config": {
        "seed": 0,
        "steps": 1,
        "model": {"depth": 8},
        "data": {"batch_size": 1},
        "optim": {},
    },
}


@pytest.fixture
def tiny_sweep(tiny_config):
    config = degradation.get_config("digits").to_dict()
    config |= {"run": tiny_config, "depths": (8, 14), "seeds": (0, 1)}
    config["run"] |= {"steps": 4, "eval_every": 4, "checkpoint_every": 4}
    return config


def begin(config, workdir):
    runs = expanded(config)
    workdir.mkdir(exist_ok=True)
    grid.save(runs, workdir)
    return runs


def test_a_sweep_runs_the_grid_skips_what_is_finished_and_survives_a_failed_run(
    tiny_sweep, tmp_path, monkeypatch, capsys
):
    runs = begin(tiny_sweep | {"depths": (8,)}, tmp_path)
    train, begun = loop.train_and_evaluate, []

    def train_or_fail(config, workdir, progress, stop):
        begun.append(workdir.name)
        if workdir.name == "residual-8-s0" and len(begun) < 4:
            raise RuntimeError("the device is on fire")
        return train(config, workdir, progress, stop)

    monkeypatch.setattr(loop, "train_and_evaluate", train_or_fail)
    states = sweep.run_sweep(runs, tmp_path)
    assert begun == [run.name for run in runs]
    assert [name for name, state in states.items() if state != "finished"] == ["residual-8-s0"]
    assert "residual-8-s0: failed: RuntimeError: the device is on fire" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    unchanged = (tmp_path / "plain-8-s0" / "metrics.jsonl").read_bytes()

    states = sweep.run_sweep(runs, tmp_path)
    assert set(states.values()) == {"finished"}
    assert len(states) == 4
    assert (tmp_path / "plain-8-s0" / "metrics.jsonl").read_bytes() == unchanged
    assert "plain-8-s0: finished at step 4; nothing to do" in capsys.readouterr().out


def test_two_sweeps_of_one_folder_leave_each_other_the_runs_they_are_at(
    tiny_sweep, tmp_path, capsys
):
    runs = begin(tiny_sweep | {"depths": (8,), "seeds": (0,)}, tmp_path)
    held = RunFolder(tmp_path / "plain-8-s0")
    with held.claim(runs[0].config.model_dump(mode="json"), print):
        states = sweep.run_sweep(runs, tmp_path)
        assert states == {"plain-8-s0": "running", "residual-8-s0": "finished"}
        assert held.status() is None
    assert "plain-8-s0 is in use by process" in capsys.readouterr().out


def test_what_another_sweep_ended_meanwhile_is_finished_and_reported(tiny_sweep, tmp_path, capsys):
    runs = expanded(tiny_sweep | {"depths": (8,), "seeds": (0,)})

    def run_all(runs, workdir, progress, stop, on_change):
        first, second = runs
        on_change(first, "running", "it is in use")
        loop.train_and_evaluate(first.config, workdir / first.name, progress, stop)
        loop.train_and_evaluate(second.config, workdir / second.name, progress, stop)
        on_change(second, "finished", "")

    assert sweep.sweep(runs, tmp_path, run_all) == 0
    assert "runs finished" not in capsys.readouterr().out
    assert (tmp_path / "table.csv").exists()


def test_a_report_that_fails_hides_no_missing_run(tiny_sweep, tmp_path, capsys):
    runs = expanded(tiny_sweep | {"depths": (8,), "seeds": (0,)})
    broken = RunFolder(tmp_path / "plain-8-s0").metrics_file
    broken.parent.mkdir()
    broken.write_text("no record\n{}\n")
    assert sweep.sweep(runs, tmp_path) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("1 of 2 runs finished; 1 failed. Run the same")
    assert re.search(r"Cannot write the report: .*plain-8-s0/metrics\.jsonl", said.err)


@pytest.mark.parametrize(
    "state, status, goes_on",
    [
        ("diverged", 1, False),
        ("failed", 1, True),
        ("running", 75, True),
        ("preempted", 75, True),
    ],
)
def test_the_exit_status_and_the_last_line_say_what_is_missing(
    tiny_sweep, tmp_path, monkeypatch, capsys, state, status, goes_on
):
    runs = expanded(tiny_sweep | {"depths": (8,), "seeds": (0,)})

    def run_sweep(runs, workdir, run_all):
        return {run.name: "finished" if run.kind == "plain" else state for run in runs}

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    assert sweep.sweep(runs, tmp_path) == status
    *before, last = capsys.readouterr().out.splitlines()
    assert bool(before) == (status != 75), "who stops a sweep sees no table"
    assert last.startswith(f"1 of 2 runs finished; 1 {state}.")
    assert ("Run the same command again" in last) == goes_on


def test_a_part_of_the_grid_leaves_the_report_to_whoever_ends_the_last_run(
    tiny_sweep, tmp_path, capsys
):
    runs = expanded(tiny_sweep | {"depths": (8,), "seeds": (0,)})
    assert sweep.sweep(runs, tmp_path, only=["residual-8-s0"]) == 0
    assert not (tmp_path / "table.csv").exists()
    assert not (tmp_path / "plain-8-s0").exists()
    assert "plain-8-s0" in (tmp_path / "sweep.json").read_text()
    assert sweep.sweep(runs, tmp_path, only=["plain-8-s0"]) == 0
    assert (tmp_path / "table.csv").exists()


def test_a_sweep_that_is_told_to_stop_does_not_begin_the_next_run(
    tiny_sweep, tmp_path, monkeypatch
):
    begun = []

    def signalled(config, workdir, progress, stop):
        os.kill(os.getpid(), signal.SIGINT)  # As in the last evaluation of a run.
        begun.append(workdir.name)
        return "diverged"

    monkeypatch.setattr(loop, "train_and_evaluate", signalled)
    states = sweep.run_sweep(begin(tiny_sweep, tmp_path), tmp_path)
    assert begun == ["plain-8-s0"]
    assert states == {"plain-8-s0": "diverged"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depths": ()}, "config.depths"),
        ({"kinds": {"plain": "foo"}}, "config.kinds.plain"),
        ({"seeds": (-1,)}, "config.seeds"),
        ({"seeds": (1, 1)}, "config.seeds: expected distinct"),
        ({"colour": 1}, "config.colour"),
    ],
)
def test_a_wrong_grid_is_refused_in_words(tiny_sweep, change, message):
    tiny_sweep |= change
    with pytest.raises(UserError, match=message):
        expanded(tiny_sweep)


@pytest.mark.parametrize("change", [{"depths": (8, 21)}, {"kinds": {"wide": "projection"}}])
def test_a_run_that_cannot_be_is_refused_before_the_first_is_begun(tiny_sweep, tmp_path, change):
    tiny_sweep["run"]["data"]["batch_size"] = 18 if "kinds" in change else 16
    with pytest.raises(UserError, match="got 21|divisible"):
        sweep.check_grid(expanded(tiny_sweep | change), tmp_path)


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("optim", "frozen", ("stage4",), "Expected optim.frozen in"),
        ("model", "init", "looks_linear", "Expected even model.widths"),
        ("", "init_from", "nowhere", "config.init_from=nowhere: Expected a run's folder"),
    ],
)
def test_a_sweep_that_could_never_begin_is_refused(
    tiny_sweep, tmp_path, section, field, value, message
):
    tiny_sweep["kinds"] = {"plain": "none"}
    tiny_sweep["run"]["model"]["widths"] = (4, 5, 8)
    fields = tiny_sweep["run"][section] if section else tiny_sweep["run"]
    fields[field] = value
    with pytest.raises(UserError, match=f"plain-8-s0.*{message}"):
        sweep.check_grid(expanded(tiny_sweep), tmp_path)


@pytest.mark.parametrize("recorded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_dry_run_lists_every_run_with_its_time_and_writes_nothing(tiny_sweep, tmp_path, recorded):
    runs = expanded(tiny_sweep | {"vary": {"optim.lr": (0.1, 0.01)}, "seeds": (0,)})
    if recorded:
        folder = RunFolder(tmp_path / runs[0].name)
        folder.path.mkdir()
        rate = runs[0].config.data.batch_size * 4 / 60  # It would take a minute.
        rates = (rate / 20, rate, rate, 3 * rate)  # The first includes compilation.
        records = [{"step": 0, "kind": "train", "images_per_second": each} for each in rates]
        folder.metrics_file.write_text("".join(json.dumps(one) + "\n" for one in records))
    before = sorted(tmp_path.rglob("*"))
    console = Console(width=200, record=True)
    dry_run.show(runs, tmp_path, console)
    said = console.export_text()
    for run in runs:
        (line,) = (line for line in said.splitlines() if line.split()[:1] == [run.name])
        assert f"{run.config.optim.lr}" in line.split()
        assert f"{run.point.multiply_adds:,}" in line.split()
        if recorded and run.config.model.depth == 8:
            assert line.split()[-2:] == ["4", "0:01:00"]
    assert f"{len(runs)} runs, one after another: about " in said
    assert ("The speed is the one that this folder records" in said) == recorded
    assert sorted(tmp_path.rglob("*")) == before


def test_the_time_of_images_that_are_not_square_is_that_of_their_pixels(tiny_sweep, tmp_path):
    random = np.random.default_rng(0)
    for label, i in itertools.product(("cat", "dog"), range(20)):
        path = tmp_path / "photos" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 16), np.uint8)).save(path)
    own_images.prepare(tmp_path / "photos", "mine", str(tmp_path), 0.2, 0, lambda items, *_: items)
    data = {"name": "mine", "data_dir": str(tmp_path), "train_split": "train", "test_split": "test"}
    tiny_sweep["run"]["data"] |= data
    runs = expanded(tiny_sweep | {"depths": (8,), "seeds": (0,)})
    monitor = SweepMonitor(tmp_path, [run.point for run in runs])
    speed, said = dry_run._speed(runs, monitor)
    seconds = float(re.search(r"took ([\d.]+) ms", said)[1]) / 1000
    batch_size = tiny_sweep["run"]["data"]["batch_size"]
    # Half of the run's, but for the fully connected layer, was timed. The time has one decimal of
    # a millisecond, of which there may be few.
    share = speed * seconds / batch_size / runs[0].point.multiply_adds
    assert share == pytest.approx(0.5, abs=0.2)


def test_a_later_grid_is_added_to_the_earlier_one(tiny_sweep, tmp_path):
    begin(tiny_sweep, tmp_path)
    begin(tiny_sweep | {"seeds": (3,), "depths": (20,)}, tmp_path)
    runs = sweep_tables.read_runs(SweepFolder(tmp_path))
    assert len(runs) == 8 + 2
    assert set(runs["state"]) == {"not begun"}


def test_a_sweep_of_another_recipe_is_refused_and_nothing_is_written(tiny_sweep, tmp_path):
    begin(tiny_sweep | {"seeds": (0,)}, tmp_path)
    before = (tmp_path / "sweep.json").read_bytes()
    tiny_sweep["run"]["optim"]["lr"] = 0.001
    tiny_sweep["run"]["steps"] = 8
    for seeds in ((1,), (0, 1)):  # With those that are there, too, though they are not begun again.
        with pytest.raises(UserError, match=r"optim.lr \(0.1 there, 0.001 here\); steps \(4 there"):
            sweep.sweep(expanded(tiny_sweep | {"seeds": seeds}), tmp_path, only=["plain-8-s1"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "sweep.json"]
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    "field, value, refused",
    [
        ("depths", (14,), ""),
        ("kinds", {"wide": "projection"}, ""),
        ("run.data.data_dir", "/elsewhere", ""),
        ("warmup_from_depth", 20, ""),
        ("run.optim.warmup_steps", 3, r"optim.warmup_steps of depth 8 \(0 there, 3 here\)"),
        ("from_depth", {"14": {"optim.lr": 1.0}}, ""),
        ("from_depth", {"8": {"optim.lr": 1.0}}, r"optim.lr of depth 8 \(0.1 there, 1.0 here\)"),
        ("vary", {"optim.lr": (1.0, 0.01)}, ""),
        ("kinds", {"plain": "pad"}, r"model.shortcut of plain \('none' there, 'pad' here\)"),
        ("run.model.remat", True, r"model.remat \(False there, True here\)"),
    ],
)
def test_a_folder_takes_what_a_grid_varies_and_nothing_else(
    tiny_sweep, tmp_path, field, value, refused
):
    begin(tiny_sweep | {"depths": (8,), "seeds": (0,), "warmup_from_depth": 0}, tmp_path)
    path = tmp_path / "sweep.json"
    content = json.loads(path.read_text())
    for entry in content["runs"].values():
        del entry["config"]["model"]["remat"]  # A field of a later time.
    path.write_text(json.dumps(content))
    other = tiny_sweep | {"depths": (8,), "seeds": (1,), "warmup_from_depth": 0}
    *sections, name = field.split(".")
    functools.reduce(dict.get, sections, other)[name] = value
    runs = expanded(other)
    said = {run.name: (run.kind, run.config.model_dump(mode="json")) for run in runs}
    with pytest.raises(UserError, match=refused) if refused else contextlib.nullcontext():
        sweep_folder.check_recipe(tmp_path, said, runs[0].varying, resolve)


def test_a_run_of_the_folder_is_not_trained_again_under_another_name(tiny_sweep, tmp_path):
    tiny_sweep |= {"depths": (8,), "seeds": (0,)}
    begin(tiny_sweep, tmp_path)
    varied = expanded(tiny_sweep | {"vary": {"optim.lr": (0.01, 0.1)}})
    with pytest.raises(UserError, match="holds plain-8-s0, .* the same run as plain-8-lr0.1-s0"):
        sweep.check_grid(varied, tmp_path)
    others = expanded(tiny_sweep | {"vary": {"optim.lr": (0.01,)}})  # What the message advises.
    sweep.check_grid(others, tmp_path)


def test_the_report_keeps_runs_of_another_recipe_apart_and_says_so(written_sweep, capsys):
    path = written_sweep / "sweep.json"
    content = json.loads(path.read_text())
    for name, entry in content["runs"].items():
        if name.endswith("s1"):
            entry["config"]["steps"] = 48
        else:
            del entry["config"]["optim"]["nesterov"]  # Which does not make it another recipe.
    path.write_text(json.dumps(content))
    said = "4 runs of another recipe, kept apart as recipe 2: steps 48, not 4."
    report.write(written_sweep)
    assert said in capsys.readouterr().out
    assert said in (written_sweep / "table.md").read_text()
    assert markupsafe.escape(said) in (written_sweep / "report.html").read_text()
    table = pd.read_csv(written_sweep / "table.csv")
    assert table["n"].tolist() == [1] * 8
    assert table["kind"].unique().tolist() == [
        f"{kind}{other}" for other in ("", ", recipe 2") for kind in ("plain", "residual")
    ]


def test_a_finished_run_with_a_lost_record_is_listed_and_left_out(
    tiny_sweep, written_sweep, capsys
):
    metrics = written_sweep / "plain-8-s0" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    (written_sweep / "plain-14-s0" / "environment.json").unlink()
    report.write(written_sweep)
    assert "plain-8-s0: incomplete at step 10; not in the table." in capsys.readouterr().out
    assert pd.read_csv(written_sweep / "table.csv")["n"].tolist() == [1, 1, 2, 2]
    runs = expanded(tiny_sweep)
    states = sweep.run_sweep(runs, written_sweep)  # Nor does it end a sweep that comes upon it.
    assert states.pop("plain-8-s0") == "failed"
    assert set(states.values()) == {"finished"}


@pytest.mark.parametrize("name", ["../plain-8-s0", "/etc", "..", ".", "", "a/b", "a\nb"])
def test_a_name_that_leads_out_of_the_sweeps_folder_is_refused(tmp_path, name):
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": {name: ENTRY}}))
    with pytest.raises(UserError, match="sweep.json: .*String should match"):
        sweep_tables.read_runs(SweepFolder(tmp_path))


@pytest.mark.parametrize(
    "field, value",
    [("kind", "a\nb"), ("kind", "\x1b[2J"), ("kind", "")]
    + [("depth", 10**400), ("depth", 10**30), ("depth", True), ("seed", -1)]
    + [("error", 1e308), ("error", -1), ("step", 10**400), ("parameters", 10**400)]
    + [("parameters", "many"), ("parameters", [1]), ("images", "x"), ("images", [1])],
)
def test_a_value_that_cannot_be_is_refused_before_it_is_drawn(written_sweep, field, value):
    path, folder = written_sweep / "sweep.json", written_sweep / "plain-8-s0"
    content = json.loads(path.read_text())
    entry = content["runs"]["plain-8-s0"]
    if field in ("error", "step"):
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, field: value}) + "\n")
        status = json.loads((folder / "status.json").read_text())
        # As an older version left it. Otherwise the run counts as changed, and is left out.
        (folder / "status.json").write_text(json.dumps(status | {"sha256": None}))
    elif field in ("parameters", "images"):
        (folder / "environment.json").write_text(json.dumps([{field: value}]))
    else:
        {"kind": entry, "seed": entry["config"], "depth": entry["config"]["model"]}[field][
            field
        ] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        report.write(written_sweep)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["<script>alert(1)</script>", "$\\frac{", "[red] {{ x }}", "é"])
def test_a_kinds_name_is_text_wherever_it_is_shown(written_sweep, capsys, kind):
    path = written_sweep / "sweep.json"
    content = json.loads(path.read_text())
    for entry in content["runs"].values():
        if entry["kind"] == "plain":
            entry["kind"] = kind
    path.write_text(json.dumps(content))
    report.write(written_sweep)
    assert f"{kind}: training error from 8 to 14 layers" in capsys.readouterr().out
    page = (written_sweep / "report.html").read_text()
    assert str(markupsafe.escape(kind)) in page
    assert "<script>alert" not in page


odd = st.sampled_from([10**309, -(10**309), "\ud800", "\x1b[2J\u202e"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["step", "kind", "split", "loss", "error", "epoch", "state", "attempt", "parameters"]
near_records = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6)
near_configs = st.dictionaries(
    st.sampled_from(["data.batch_size", "name", "optim", "\x1b"]), json_values, max_size=2
)
# Of a run's name, too, each of these is but seldom.
names = st.sampled_from(["plain-8-s0"] * 8 + ["a" * 300])
pipes = st.sampled_from([None] * 8 + ["sweep", "status", "environment", "metrics"])


@settings(max_examples=60)
@given(
    entry=json_values,
    name=names,
    config=near_configs,
    record=near_records,
    status=near_records,
    environment=near_records,
    pipe=pipes,
)
def test_whatever_stands_in_a_sweeps_folder_is_reported_or_refused(
    tmp_path_factory, entry, name, config, record, status, environment, pipe
):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "plain-8-s0").mkdir()
    # With a config of its own it is of another recipe than its neighbour.
    for grid_entry in (entry, ENTRY | {"config": ENTRY["config"] | config}):
        files = {
            "sweep.json": {"runs": {"plain-8-s1": ENTRY, name: grid_entry}},
            "plain-8-s0/status.json": {"state": "finished", "step": 1, "attempt": 1} | status,
            "plain-8-s0/environment.json": [environment],
            "plain-8-s0/metrics.jsonl": {"step": 1, "error": 0.5} | record,
        }
        for file, content in files.items():
            (folder / file).unlink(missing_ok=True)
            if pipe and pipe in file:
                os.mkfifo(folder / file)
            else:
                (folder / file).write_text(json.dumps(content) + "\n")
        try:
            report.write(folder)
        except UserError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"runs": {}}', '{"runs": 3}', '{"runs": {"a": {}}}', "{"]
)
def test_a_sweep_file_of_another_shape_is_refused_in_words(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match="sweep.json"):
        sweep_tables.read_runs(SweepFolder(tmp_path))


def write_run(folder, config, error, test_error, steps=10):
    scored = {"kind": "eval", "split": "test", "error": test_error}
    with folder.claim(config, print):
        folder.add_environment({"parameters": 1000})
        for step in (steps // 2, steps):
            folder.append_metrics({"step": step, "kind": "train", "error": error + 0.01})
            folder.append_metrics({"step": step, **scored})
        folder.append_metrics({"step": steps, "kind": "eval", "split": "train", "error": error})
        folder.write_status(Status("finished", steps))


@pytest.fixture
def written_sweep(tiny_sweep, tmp_path, tmp_path_factory):
    """A copy of records with errors known beforehand: seed 1 is 0.02 above seed 0."""
    written = tmp_path_factory.getbasetemp() / "written"
    if not written.exists():
        for run in begin(tiny_sweep, written):
            config = run.config.model_dump(mode="json")
            depth = run.config.model.depth
            error = (depth / 100 if run.kind == "plain" else 0.01) + 0.02 * run.config.seed
            write_run(RunFolder(written / run.name), config, error, 2 * error)
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def test_the_report_means_over_seeds_with_the_samples_deviation(written_sweep):
    report.write(written_sweep)
    table = pd.read_csv(written_sweep / "table.csv").set_index(["kind", "depth"])
    assert table.index.tolist() == [("plain", 8), ("plain", 14), ("residual", 8), ("residual", 14)]
    row = table.loc[("plain", 14)]
    deviation = np.std([0.14, 0.16], ddof=1)
    expected = {
        "parameters": 1000,
        "n": 2,
        "train_error": 0.15,
        "train_error_std": deviation,
        "running_error": 0.16,
        "running_error_std": deviation,
        "test_error": 0.30,
        "test_error_std": 2 * deviation,
    }
    assert row.to_dict() == pytest.approx(expected)
    for name in ("degradation.png", "degradation.svg", "curves.png"):
        assert (written_sweep / name).stat().st_size > 5000


def test_the_report_says_which_runs_are_missing_and_leaves_them_out(written_sweep, capsys):
    for name, state in (("plain-8-s0", "diverged"), ("plain-8-s1", "failed")):
        folder = RunFolder(written_sweep / name)
        with folder.claim({}, print):
            folder.write_status(Status(state, 5))
    report.write(written_sweep)
    printed = capsys.readouterr().out
    assert "plain-8-s0: diverged at step 5; not in the table." in printed
    table = pd.read_csv(written_sweep / "table.csv")
    assert table[["kind", "depth"]].values.tolist() == [
        ["plain", 14],
        ["residual", 8],
        ["residual", 14],
    ]


def test_the_same_records_give_the_same_svg(written_sweep):
    report.write(written_sweep)
    first = (written_sweep / "degradation.svg").read_bytes()
    report.write(written_sweep)
    assert (written_sweep / "degradation.svg").read_bytes() == first


def test_a_report_before_the_first_run_says_so(tiny_sweep, tmp_path, capsys):
    begin(tiny_sweep, tmp_path)
    report.write(tmp_path)
    assert "No run has finished: no table" in capsys.readouterr().out


def test_a_folder_without_a_sweep_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match=r"it has no sweep\.json"):
        sweep_tables.read_runs(SweepFolder(tmp_path))


@pytest.mark.parametrize("module, said", [("report", "degradation.svg"), ("watch", "finished")])
def test_what_reads_records_needs_no_jax_and_none_of_the_users_settings(
    written_sweep, tmp_path, module, said
):
    report.write(written_sweep)
    figures = {path: path.read_bytes() for path in written_sweep.glob("*.[ps][nv]g")}
    settings = tmp_path / "matplotlibrc"
    settings.write_text("text.usetex: True\naxes.facecolor: black\n")
    code = (
        "import sys; sys.modules['jax'] = sys.modules['orbax'] = None\n"
        f"import runpy; runpy.run_module('experiments.{module}', run_name='__main__')"
    )
    environment = {"MPLBACKEND": "module://of_a_notebook", "MATPLOTLIBRC": str(settings)}
    environment |= {"PYTHONIOENCODING": "ascii"}  # Which has no ± for the table.
    done = subprocess.run(
        [sys.executable, "-c", code, f"--workdir={written_sweep}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert len(figures) == 6
    assert {path: path.read_bytes() for path in figures} == figures
