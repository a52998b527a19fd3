import contextlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_flax.errors import UserError
from resnet_flax.storage import records, sweep_folder
from resnet_flax.storage.recipe import Varying
from resnet_flax.storage.sweep_folder import SweepFolder

DIGITS = Path("experiments/results/digits")


def test_the_frame_has_a_row_for_each_number_of_each_record():
    sweep = SweepFolder(DIGITS)
    frame = sweep.frame()
    assert list(frame) == ["run", "kind", "depth", "seed", "step", "split", "metric", "value"]
    assert list(frame["run"].unique()) == list(sweep)
    assert len(sweep) == 50
    for name in ("plain-8-s0", "residual-56-s4"):
        rows = frame[frame["run"] == name]
        values = rows.set_index(["step", "split", "metric"])["value"]
        lines = (DIGITS / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            key = record.pop("step"), record.pop("split", "running")
            del record["kind"]
            assert values.loc[key].to_dict() == record
        assert len(rows) == sum(map(len, records))
        assert [tuple(row) for row in rows[["kind", "depth", "seed"]].drop_duplicates().values] == [
            (name.split("-")[0], int(name.split("-")[1]), int(name[-1]))
        ]


def test_what_was_not_finite_is_nan_and_a_run_not_begun_has_no_row(tmp_path):
    shutil.copy(DIGITS / "sweep.json", tmp_path)
    (tmp_path / "plain-8-s0").mkdir()
    lines = '{"step": 1, "loss": null, "error": 0.5}\n{"step": 2, "loss": 1e999, "images": 7}\n'
    (tmp_path / "plain-8-s0" / "metrics.jsonl").write_text(lines)
    rows = SweepFolder(tmp_path).frame()[["run", "metric", "value"]].values.tolist()
    assert [row[:2] for row in rows] == [
        ["plain-8-s0", metric] for metric in ("loss", "error", "loss", "images")
    ]
    assert math.isnan(rows[0][2])
    assert [row[2] for row in rows[1:]] == [0.5, math.inf, 7]


def test_a_run_that_is_not_in_the_sweep_is_refused_in_words():
    with pytest.raises(UserError, match=r"No run 'plain-9-s0' .*: plain-8-s0, residual-8-s0"):
        SweepFolder(DIGITS).records("plain-9-s0")


def test_what_is_not_known_of_an_earlier_run_is_kept_when_others_are_added(tmp_path):
    shutil.copy(DIGITS / "sweep.json", tmp_path)
    before = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    added = {"plain-8-s9": before["plain-8-s0"]}
    sweep_folder.add_runs(tmp_path, added, Varying())
    after = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert list(after) == list(before | added)
    for name, entry in (before | added).items():
        assert after[name] == entry | {"config": records.identity(entry["config"])}


def test_sweeps_that_begin_at_the_same_moment_keep_each_others_runs(tmp_path):
    count = 4
    entry = json.dumps(json.loads((DIGITS / "sweep.json").read_text())["runs"]["plain-8-s0"])
    code = (
        "import json, sys; from pathlib import Path; from resnet_flax.storage import recipe;"
        "from resnet_flax.storage.sweep_folder import add_runs; entry = json.loads(sys.argv[2]);"
        "print(flush=True); sys.stdin.read();"
        "[add_runs(Path(sys.argv[1]), {f'{sys.argv[3]}-{i}': entry}, recipe.NOTHING)"
        " for i in range(5)]"
    )
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        code,
                        tmp_path,
                        entry,
                        str(i),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for i in range(count)
        ]
        for process in processes:
            process.stdout.readline()
        for process in processes:  # All have imported, and begin now.
            process.stdin.close()
        assert [process.wait() for process in processes] == [0] * count
    assert len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 5 * count
    assert not (tmp_path / "lock.json").exists()


def test_runs_that_are_there_are_added_without_a_write(tmp_path):
    shutil.copy(DIGITS / "sweep.json", tmp_path)
    entries = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    sweep_folder.add_runs(tmp_path, entries, Varying())
    before = (tmp_path / "sweep.json").stat()
    (tmp_path / ".lock").unlink()
    sweep_folder.add_runs(tmp_path, {"plain-8-s0": entries["plain-8-s0"]}, Varying())
    assert (tmp_path / "sweep.json").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_costs_are_multiply_adds_unless_a_run_of_the_grid_lacks_them(tmp_path):
    entries = json.loads((DIGITS / "sweep.json").read_text())["runs"]
    names = ["plain-8-s0", "plain-56-s0"]
    old = {name: {key: entries[name][key] for key in ("kind", "config")} for name in names}
    for costs, expected in [((7, 9), (7, 9)), ((7, None), (8, 56))]:
        for name, cost in zip(names, costs, strict=True):
            sweep_folder.add_runs(tmp_path, {name: old[name] | {"multiply_adds": cost}}, Varying())
        points = SweepFolder(tmp_path).points
        assert tuple(points[name].multiply_adds for name in names) == expected
        assert [points[name].work for name in names] == [cost * 128 * 240 for cost in expected]
