"""What the report says, without a browser."""

import dataclasses
import hashlib
import html
import json
import math
import os
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from experiments import report
from experiments.reporting import (
    charts,
    curves,
    diagnostic_charts,
    diagnostic_tables,
    page,
    published,
    run_tables,
    signal_charts,
    styling,
)
from experiments.reporting.chart import MOST_LINES, drawable, numbers
from experiments.reporting.diagnostic_tables import AFTER, BEFORE, MEASURES
from resnet_flax.errors import UserError
from resnet_flax.runs import load_sweep
from resnet_flax.storage import findings, sweep_tables
from resnet_flax.storage.findings import Initial, Layer, Layers, Line, Network, Plane
from resnet_flax.storage.lock import FolderLock
from resnet_flax.storage.recipe import Varying
from resnet_flax.storage.sweep_folder import SweepFolder

STYLES = styling.group_styles({"plain": "plain", "residual": "residual"})


@pytest.fixture
def begun_sweep(tmp_path):
    """Two runs, one of which has made three records."""
    config = {"seed": 0, "steps": 9, "data": {"batch_size": 10, "name": "digits"}}
    runs = {
        f"{kind}-{depth}-s0": {"kind": kind, "config": config | {"model": {"depth": depth}}}
        for kind, depth in (("plain", 8), ("residual", 20))
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
    rates = {2: 5, 4: 10, 6: 20, 7: 1e308}
    folder = tmp_path / "plain-8-s0"
    folder.mkdir()
    records = [
        json.dumps({"step": step, "error": 0.5, "images_per_second": rate})
        for step, rate in rates.items()
    ]
    (folder / "metrics.jsonl").write_text("\n".join(records) + "\n")
    return tmp_path


def rendered(workdir):
    return page.render(*report.read(workdir))


def end(workdir, state):
    for name in SweepFolder(workdir):
        (workdir / name).mkdir(exist_ok=True)
        status = {"state": state, "step": 6, "attempt": 1, "updated": ""}
        (workdir / name / "status.json").write_text(json.dumps(status))


def test_a_sweep_without_a_finished_run_has_a_page_with_its_curves(begun_sweep, capsys):
    report.write(begun_sweep)
    assert "report.html" in capsys.readouterr().out
    text = (begun_sweep / "report.html").read_text()
    assert "No run has finished." in text
    assert 'data-chart="curves"' in text
    assert 'data-chart="degradation"' not in text


@pytest.mark.parametrize(
    "state, reloads", [("running", True), ("preempted", True), ("failed", False)]
)
def test_the_page_reloads_itself_as_long_as_a_run_may_go_on(begun_sweep, state, reloads):
    assert 'id="reload"' in rendered(begun_sweep)
    end(begun_sweep, state)
    assert ('id="reload"' in rendered(begun_sweep)) == reloads


def test_a_page_that_cannot_be_written_is_one_line_and_none_ends_the_sweep(begun_sweep):
    said: list[str] = []
    live = report.LivePage(begun_sweep, said.append)
    (begun_sweep / "report.html").mkdir()
    live.update()
    assert len(said) == 1
    assert "report.html" in said[0] and "\n" not in said[0]
    live.update()
    assert len(said) == 1, "it rests"


def test_a_page_is_replaced_at_once_and_leaves_nothing_beside_it(begun_sweep):
    page = begun_sweep / "report.html"
    page.write_text("earlier")
    before = page.stat().st_ino
    report.LivePage(begun_sweep, pytest.fail).update()
    assert page.stat().st_ino != before  # Another file: whoever reads the old one sees all of it.
    assert {path.name for path in begun_sweep.iterdir() if path.is_file()} == {
        "sweep.json",
        "report.html",
    }


def test_costs_come_from_train_records_and_leave_the_first_out_of_the_pace(begun_sweep):
    records = run_tables.read_records(SweepFolder(begun_sweep))
    costs = run_tables.costs(records, {"plain-8-s0": 10}).to_dict("records")
    seconds = 20 / 5, 20 / 10, 20 / 20
    assert costs == [
        {
            "run": "plain-8-s0",
            "group": "plain",
            "depth": 8,
            "images_per_second": 15.0,
            "minutes": pytest.approx(sum(seconds) / 60),
            "startup_seconds": pytest.approx(20 / 5 - 20 / 15),
        }
    ]


def test_published_errors_are_beside_those_of_their_data_set_alone():
    config = {"data.name": "cifar10", "model.family": "cifar"}
    assert published.comparable([config, config], Varying()) == published.SOURCES
    for field, value in (
        ("data.name", "digits"),
        ("data.name", []),
        ("data.test_split", "train[45000:]"),
        ("model.family", "imagenet"),
        ("model.widths", [8, 16, 32]),
        ("model.norm", "none"),
        ("model.block", "preactivation"),
        ("model.shortcut_scale", 0.5),
        ("model.negative_slope", 0.5),
        ("model.zero_init_residual", True),
        ("model.init", "looks_linear"),
        ("model.bn_bias", 1.0),
    ):
        assert not published.comparable([config, config | {field: value}], Varying())
    for other in (Varying(in_grid=("optim.lr",)), Varying(by_kind=("optim.lr",))):
        assert not published.comparable([config], other)
    assert published.PAPER.errors["pad"][56] == "6.97"


@pytest.mark.parametrize(
    "block, error", [({}, "6.97"), ({"model.block": "postactivation"}, "6.97"),
                     ({"model.block": "preactivation"}, "–")]
)  # fmt: skip
def test_published_errors_are_of_the_papers_block_alone(block, error):
    runs = pd.DataFrame({"run": ["a-56-s0"], "kind": ["a"]})
    shortcuts = run_tables.shortcuts(runs, {"a-56-s0": {"model.shortcut": "pad", **block}})
    assert published.PAPER.error(shortcuts["a"], 56) == error


def test_published_errors_stand_in_the_row_of_their_depth(begun_sweep):
    path = begun_sweep / "sweep.json"
    assert "arxiv" not in rendered(begun_sweep)
    grid = json.loads(path.read_text())
    for run in grid["runs"].values():
        run["config"]["data"]["name"] = "cifar10"
        run["config"]["model"] |= {"family": "cifar", "shortcut": "pad", "depth": 56}
    path.write_text(json.dumps(grid))
    end(begun_sweep, "finished")
    for name in grid["runs"]:
        errors = [
            {"step": 6, "error": 0.1} | ({"split": split} if split else {})
            for split in ("", "test", "train")
        ]
        lines = "".join(f"{json.dumps(error)}\n" for error in errors)
        (begun_sweep / name / "metrics.jsonl").write_text(lines)
        (begun_sweep / name / "environment.json").write_text('[{"parameters": 853018}]')
    text = rendered(begun_sweep)
    report.write(begun_sweep)
    head, _, *rows, _, notes = (begun_sweep / "table.md").read_text().splitlines()
    assert head.endswith("| He et al., 64k steps | reproductions, 64k steps | n |")
    assert [row.split(" | ")[6:8] for row in rows] == [["6.97", "7.10 to 7.46"]] * 2
    assert "He et al., reproductions: test errors." in notes
    assert "arxiv.org/abs/1512.03385" in text
    assert text.count('data-value="6.97">6.97</td>') == 2


def test_the_figure_speaks_of_deviations_where_there_are_some():
    fields = {"state": "finished", "parameters": 9, "minutes": 1.0}
    runs = pd.DataFrame(
        [
            {"run": f"{kind}-{depth}-s{seed}", "group": kind, "kind": kind}
            | {"depth": depth, "seed": seed}
            | fields
            | dict.fromkeys(sweep_tables.ERRORS, 0.1 * seed)
            for kind, depth, seeds in (("plain", 8, 1), ("plain", 20, 1), ("residual", 8, 2))
            for seed in range(seeds)
        ]
    )
    chart = charts.degradation(runs, sweep_tables.summarize(runs), STYLES)
    plain, residual = (series for series in chart.panels[0].series if series.style.line)
    assert (plain.label, plain.deviations) == ("plain (n = 1)", [])
    assert residual.label == "residual (mean ± deviation, n = 2)"
    assert residual.deviations == pytest.approx([0.1 / 2**0.5])


def varied_runs(kinds):
    """Finished runs, kind x rate x depth x 2 seeds. The grid begins with the larger rate."""
    rows = [
        {"run": f"{kind}-{depth}-lr{lr}-s{seed}", "group": f"{kind}, lr {lr}", "kind": kind}
        | {"seed": seed}
        | {"optim.lr": lr, "depth": depth, "state": "finished", "parameters": 9, "minutes": 1.0}
        | dict.fromkeys(sweep_tables.ERRORS, lr + depth / 100 + seed / 1000)
        for seed in range(2)
        for depth in (20, 8)
        for lr in (0.2, 0.1)
        for kind in kinds
    ]
    return pd.DataFrame(rows)


def test_means_are_taken_over_seeds_alone_in_the_order_of_the_grid():
    summary = sweep_tables.summarize(varied_runs(("zeta", "alpha")), ["optim.lr"])
    rows = list(zip(summary["kind"], summary["optim.lr"], summary["depth"], strict=True))
    assert rows == [
        (kind, lr, depth) for kind in ("zeta", "alpha") for lr in (0.2, 0.1) for depth in (8, 20)
    ]
    assert set(summary["n"]) == {2}
    assert summary["train_error"].tolist() == pytest.approx([0.2805, 0.4005, 0.1805, 0.3005] * 2)


def test_a_varied_value_is_written_whole(begun_sweep):
    path = begun_sweep / "sweep.json"
    grid = json.loads(path.read_text())
    grid["varying"] = {"by_kind": [], "by_depth": [], "in_grid": ["optim.lr"]}
    for entry in grid["runs"].values():
        entry["config"]["optim"] = {"lr": 0.001}
    path.write_text(json.dumps(grid))
    end(begun_sweep, "finished")
    for name in grid["runs"]:
        records = [{"step": 9, "error": 0.1, "split": split} for split in ("test", "train")]
        records.append({"step": 9, "error": 0.1})
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (begun_sweep / name / "metrics.jsonl").write_text(lines)
        (begun_sweep / name / "environment.json").write_text('[{"parameters": 9}]')
    assert "| plain | 0.001 | 8 | 9 |" in report.in_markdown(report.read(begun_sweep)[0])


def test_several_kinds_share_the_panel_of_a_varied_value_and_one_kind_has_a_line_for_each():
    several = varied_runs(("plain", "residual"))
    groups = dict(zip(several["group"], several["kind"], strict=True))
    of_several = (
        several,
        sweep_tables.summarize(several, ["optim.lr"]),
        styling.group_styles(groups),
    )
    chart = charts.degradation(*of_several, ["optim.lr"])
    assert [panel.title for panel in chart.panels] == ["lr 0.2", "lr 0.1"]
    for panel in chart.panels:
        shown = [(one.label.split(" (")[0], one.style) for one in panel.series if one.label]
        assert shown == list(STYLES.items())
    one = several[several["kind"] == "plain"]
    styles = styling.group_styles(dict.fromkeys(one["group"], "plain"))
    (panel,) = charts.degradation(
        one, sweep_tables.summarize(one, ["optim.lr"]), styles, ["optim.lr"]
    ).panels
    assert [each.label.split(" (")[0] for each in panel.series if each.label] == [
        "lr 0.2",
        "lr 0.1",
    ]


def test_a_map_has_a_cell_for_each_depth_and_value():
    runs = varied_runs(("plain", "residual"))
    plain, _ = charts.error_map(
        runs, sweep_tables.summarize(runs, ["optim.lr"]), ["optim.lr"]
    ).panels
    assert (plain.field.columns, plain.field.rows) == (["8", "20"], ["0.2", "0.1"])
    assert np.ravel(plain.field.values) == pytest.approx([0.2805, 0.4005, 0.1805, 0.3005])
    only = sweep_tables.summarize(runs[runs["depth"] == 8], ["optim.lr"])
    assert not charts.error_map(runs, only, ["optim.lr"]).panels


def test_an_error_by_one_value_is_no_figure_nor_is_that_of_one_kind_of_two_that_has_finished():
    def panels(runs):
        return drawable([signal_charts.by_value(runs, ["optim.lr"])])

    (chart,) = panels(varied_runs(("plain",)))
    assert chart.name == "by_value"
    runs = varied_runs(("plain", "residual"))
    assert not panels(runs)
    runs.loc[runs["kind"] == "residual", "state"] = "running"
    assert not panels(runs)
    one = varied_runs(("plain",))
    one.loc[one["optim.lr"] == 0.1, "state"] = "running"
    assert not panels(one)


def test_a_report_leaves_no_figure_of_an_earlier_one_that_it_does_not_draw(tmp_path):
    folder = shutil.copytree("experiments/results/digits_no_bn", tmp_path / "sweep")
    names = ("map.png", "by_value.svg", "mine.png", "degradation.png")
    for name in names:
        (folder / name).write_text("old")
    report.write(folder)
    assert [(folder / name).exists() for name in names] == [False, False, True, True]
    assert (folder / "mine.png").read_text() == "old"
    assert (folder / "degradation.png").read_bytes()[1:4] == b"PNG"


def test_the_page_has_every_headline_chart():
    text = rendered("experiments/results/rates")
    for name in ("degradation", "map"):
        assert f'data-chart="{name}"' in text


@pytest.mark.parametrize("alive", [True, False])
def test_a_run_on_which_nobody_works_is_interrupted(begun_sweep, alive):
    end(begun_sweep, "running")
    lock = FolderLock(begun_sweep / "plain-8-s0")
    if alive:
        lock.acquire(print)
    states = sweep_tables.read_runs(SweepFolder(begun_sweep)).set_index("run")["state"]
    if alive:
        lock.release()
    assert states["plain-8-s0"] == ("running" if alive else "interrupted")
    assert states["residual-20-s0"] == "interrupted"


def test_a_run_whose_machine_died_hours_ago_is_interrupted(begun_sweep):
    end(begun_sweep, "running")
    lock = begun_sweep / "plain-8-s0" / "lock.json"
    lock.write_text(json.dumps({"machine": "of before a restart", "pid": 1}))
    for age, state in ((60, "running"), (7200, "interrupted")):
        os.utime(lock, (time.time() - age,) * 2)
        states = sweep_tables.read_runs(SweepFolder(begun_sweep)).set_index("run")["state"]
        assert states["plain-8-s0"] == state


def test_kinds_of_a_depth_share_axes_in_the_curves():
    rows = [
        {"run": kind, "group": f"{kind}, lr 0.1", "measure": measure}
        | {"depth": depth, "seed": 0, "step": step, "error": step / 10}
        for kind in ("plain", "residual")
        for depth in (8, 20)
        for step in (2, 1)
        for measure in ("test_error", "running_error")
    ]
    records = pd.DataFrame(rows)
    groups = {"plain, lr 0.1": "plain", "residual, lr 0.1": "residual"}
    chart = curves.by_depth(records, groups)
    assert [panel.title for panel in chart.panels] == ["depth 8, lr 0.1", "depth 20, lr 0.1"]
    for panel in chart.panels:
        *series, _, _ = panel.series
        assert [one.label for one in series] == ["plain", "plain", "residual", "residual"]
        assert {one.style.color for one in series} == {s.color for s in STYLES.values()}
        assert all((one.x, one.y) == ([1, 2], [0.1, 0.2]) for one in series)
    alone = records[records["group"] == "plain, lr 0.1"]
    assert not curves.by_depth(alone, groups).panels


def test_a_mean_curve_has_the_same_seeds_from_end_to_end():
    errors = {0: 0.1, 1: 0.3, 2: 0.8}  # By seed.
    rows = [
        {"run": f"plain-8-s{seed}", "group": "plain", "depth": 8, "seed": seed, "step": step}
        | {"measure": "running_error", "error": error}
        for seed, error in errors.items()
        for step in (10, 20)
        if (seed, step) != (2, 20)  # It diverged, was stopped, or is still training.
    ]

    def shown(*finished):
        ends = [rows[0] | {"run": run, "measure": "train_error", "step": 20} for run in finished]
        chart = curves.means(pd.DataFrame(rows + ends))
        line = chart.panels[0].series[0]
        return line.x, pytest.approx(line.y), chart.seeds

    assert shown() == ([10], [0.4], (0, 1, 2))
    assert shown("plain-8-s0", "plain-8-s1") == ([10, 20], [0.2, 0.2], (0, 1))


def test_a_table_of_long_names_is_whole_in_a_log(monkeypatch, capsys, tmp_path):
    shutil.copytree("experiments/results/causes_cifar10", tmp_path / "sweep")
    monkeypatch.setenv("COLUMNS", "80")
    report.write(tmp_path / "sweep")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert re.search(r"plain, gradient norms of residual +20 .* ± .* ± .* ± .* 2 *\n", printed)


def test_seeds_with_a_gap_are_listed(begun_sweep):
    tables = run_tables.read(SweepFolder(begun_sweep))
    for seeds, said in (((0, 1, 2, 3, 4, 5), "0 to 5"), ((0, 1, 2, 3, 4, 10), "0, 1, 2, 3, 4, 10")):
        chart = dataclasses.replace(curves.means(tables.records), seeds=seeds)
        assert f"seeds {said}" in report._note(tables, chart)


def layers(step):
    layer = dict.fromkeys(MEASURES, 1.0) | {"weight_gradient_rms": 1.0, "input_gradient_rms": 1.0}
    only = Layer(name="conv", **layer)
    return Layers(step=step, batches=1, batch_size=1, loss=1.0, layers=(only,))


def change(errors, deviations, n):
    ends = zip((8, 56), errors, deviations, n, strict=True)
    names = "depth", "train_error", "train_error_std", "n"
    return run_tables._change(*(dict(zip(names, end, strict=True)) for end in ends))


@pytest.mark.parametrize(
    "errors, deviations, n, said",
    [
        # t = 18, to be compared with 12.7.
        ((0.0, 0.8389), (0.0, 0.0658), (2, 2), "rises by 83.89 points"),
        ((0.0, 0.0384), (0.0, 0.0543), (2, 2), "+3.84 points, but 2 seeds leave it open"),
        # The two plain networks of 56 layers on the AMD EPYC: t = 10.6.
        ((0.0, 0.8076), (0.0, 0.1082), (2, 2), "+80.76 points, but 2 seeds leave it open"),
        # t = 2, to be compared with 4.3; t = 3.2, with 2.3.
        ((0.2, 0.4), (0.1, 0.1), (2, 2), "+20.00 points, but 2 seeds leave it open"),
        ((0.2, 0.4), (0.1, 0.2), (5, 2), "+20.00 points, but 2 and 5 seeds leave it open"),
        ((0.2, 0.4), (0.1, 0.1), (5, 5), "rises by 20.00 points"),
        ((0.4, 0.2), (0.1, 0.1), (5, 5), "falls by 20.00 points"),
        ((0.0, 0.0026), (0.0, 0.0), (2, 2), "rises by 0.26 points"),
        ((0.0, 0.00001), (0.0, 0.0), (2, 2), "does not change"),
        ((0.0, 0.0026), (math.nan, math.nan), (1, 1), "one seed: +0.26 points"),
        ((0.0026, 0.0), (math.nan, math.nan), (1, 1), "one seed: -0.26 points"),
        ((0.1, 0.9), (0.0, math.nan), (5, 1), "one seed at 56 layers: +80.00 points"),
    ],
)
def test_a_change_is_claimed_where_welchs_test_tells_the_means_apart(errors, deviations, n, said):
    assert change(errors, deviations, n) == said


@pytest.mark.parametrize("n", [2, 5])
def test_where_depth_has_no_effect_a_change_is_rarely_claimed(n):
    errors = np.random.RandomState(0).normal(0.5, 0.1, (2, 500, n))
    means, deviations = errors.mean(-1).T, errors.std(-1, ddof=1).T
    said = [change(*of_pair, (n, n)) for of_pair in zip(means, deviations, strict=True)]
    claims = sum(one.startswith(("rises", "falls")) for one in said)
    # 5 % of 500 are 25; three standard deviations of that count are 15.
    assert claims <= 40


@pytest.mark.parametrize(
    "attempts, said",
    [
        ([(2, 0), (1, 40)], "had 1 or 2 devices"),
        ([(2, 0), (1, 0)], None),  # The first one saved nothing.
        ([(2, 0), (2, 40), (1, 40)], "had 1 or 2 devices"),
        ([(1, 0), (2, 40), (1, 40)], None),
        ([(2, 0), (2, 40), (1, 0)], None),  # Begun again.
        ([(2, None), (1, 40)], None),  # The first one is of an older version.
        ([(1, 0), (2, 240)], None),  # The last one only evaluated.
    ],
)
def test_a_run_that_went_on_with_other_shares_of_the_batch_is_told(attempts, said):
    entries = [{"device_count": count, "step": step} for count, step in attempts]
    environments = {"a": entries, "b": [{"device_count": 1, "step": 0}]}
    lines = run_tables._unlike(environments, {name: {"steps": 240} for name in environments})
    assert said in lines[0] if said else not lines


def test_diverged_runs_are_named_beside_the_claims_that_leave_them_out(begun_sweep):
    end(begun_sweep, "diverged")
    tables = run_tables.read(SweepFolder(begun_sweep))
    line = "Diverged, in no mean: plain, 8 layers (1 of 1); residual, 20 layers (1 of 1)."
    assert tables.notes == [line]
    assert line in report.in_markdown(tables)
    assert line in rendered(begun_sweep)
    chart = charts.degradation(tables.runs, tables.summary, STYLES)
    assert report._note(tables, chart).endswith("2 diverged runs not shown")


@pytest.mark.parametrize(
    "here, there, said",
    [
        ({"device_count": 1}, {"device_count": 2}, "had 1 or 2 devices"),
        ({"images": {"train": {"sha256": "a"}}}, {"images": {"train": {"sha256": "b"}}}, "images"),
        ({"device_count": 2, "cpu_cores": 2}, {"device_count": 2, "cpu_cores": 4}, None),
        ({"device_count": 2, "images": {"train": {}}}, {"device_count": 2}, None),  # An older one.
        ({"device_count": 8, "step": 0}, {"device_count": 8, "step": 0}, None),
    ],
)
def test_runs_that_are_no_seeds_of_one_experiment_are_told(here, there, said):
    environments = {"a": [{"device_count": 8}, here], "b": [there], "c": []}
    lines = run_tables._unlike(environments, {name: {} for name in environments})
    assert said in lines[0] if said else not lines
    other = {name: {"model.bn_scope": "global"} for name in environments}
    assert not any("devices" in line for line in run_tables._unlike(environments, other))
    vgg = {name: {"model.family": "vgg"} for name in environments}  # It has no BN.
    assert not any("devices" in line for line in run_tables._unlike(environments, vgg))
    splits = {name: {"data.train_split": f"train[:{name}]"} for name in environments}
    assert not any("images" in line for line in run_tables._unlike(environments, splits))


def test_the_page_of_a_run_links_to_the_folder_that_it_is_in():
    assert '<a href="./">run</a>' in rendered("tests/golden/run")
    assert '<a href="plain-8-s0/">plain-8-s0</a>' in rendered("experiments/results/digits")


def test_a_run_whose_records_have_changed_is_in_no_mean(tmp_path, capsys):
    folder = shutil.copytree("experiments/results/digits_110", tmp_path / "sweep")
    run = folder / "residual-110-s0"
    metrics = (run / "metrics.jsonl").read_bytes()
    digest = hashlib.sha256(metrics).hexdigest()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"sha256": digest}))
    report.write(folder)
    assert "not in the table" not in capsys.readouterr().out
    (run / "metrics.jsonl").write_bytes(metrics.replace(b'"error": 0.', b'"error": 0.9'))
    report.write(folder)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "not in the" in line)
    assert line.startswith("residual-110-s0: incomplete at step 240; not in the table. ")
    assert "has changed since this run ended" in line
    assert pd.read_csv(folder / "table.csv")["n"].tolist() == [5, 4]
    assert not capsys.readouterr().err
    assert load_sweep(folder).summary()["n"].tolist() == [5, 4]
    assert "has changed since this run ended" in capsys.readouterr().err
    assert run.name not in set(load_sweep(folder).frame()["run"])
    assert "has changed since this run ended" in capsys.readouterr().err
    (run / "status.json").write_text(json.dumps(status | {"sha256": digest, "state": "diverged"}))
    report.write(folder)
    said = capsys.readouterr().out
    assert "residual-110-s0: diverged at step 240; not in the table. " in said
    assert "has changed since this run ended" in said
    tables, _ = report.read(folder)
    assert run.name not in set(tables.records["run"])
    assert np.isnan(tables.runs.set_index("run").loc[run.name, "train_error"])


def test_what_a_folder_says_of_a_failed_run_cannot_steer_the_terminal(begun_sweep, capsys):
    end(begun_sweep, "failed")
    file = begun_sweep / "plain-8-s0" / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"error": "x\x1b[2J\nrises"}))
    report.write(begun_sweep)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "plain-8-s0" in line)
    assert "rises" in line and "\x1b" not in line


def test_a_signal_without_stages_is_refused_in_words(tmp_path):
    stem = {"name": "stem", "gradient_cosine": 0, "neighbour_error": 0, "ridge_error": 0}
    found = {"batches": 1, "batch_size": 1, "gradient_ratio": 1, "predicted_ratio": 1}
    for stages in [], [stem, stem | {"name": "stage1"}]:
        (tmp_path / "signal.json").write_text(json.dumps(found | {"stages": stages}))
        with pytest.raises(UserError, match="two stages or more beside the stem"):
            findings.load(tmp_path / "signal.json", findings.Signal)


def test_the_page_says_what_leaves_a_change_open():
    said = change((0.2, 0.4), (0.1, 0.1), (2, 2)).partition("seeds ")[2]
    text = html.unescape(rendered("experiments/results/rates"))
    assert f"The seeds {said} if Welch's t-test" in text


def test_a_card_shows_mean_deviation_and_seeds_of_both_ends():
    ends = {"group": "plain", "n": 5, "depth": [56, 8, 20], "train_error": [0.5, 0.1, 0.9]}
    summary = pd.DataFrame(ends).assign(train_error_std=[0.1, 0.1, 0.9])
    [reading] = run_tables.readings(summary)
    assert reading["change"] == "rises by 40.00 points"
    assert [end["depth"] for end in reading["ends"]] == [8, 56]
    [single] = run_tables.readings(summary[:1])
    assert [end["depth"] for end in single["ends"]] == [56]


def test_an_end_of_one_seed_makes_no_claim():
    ends = {"group": "plain", "depth": [8, 56], "train_error": [0.1, 0.9]}
    summary = pd.DataFrame(ends).assign(n=[2, 1], train_error_std=[0.0, float("nan")])
    [reading] = run_tables.readings(summary)
    assert reading["change"] == "one seed at 56 layers: +80.00 points"


def test_a_fraction_is_shown_with_its_deviation_where_there_is_one():
    assert run_tables.percent(0.08754, 0.0012) == "8.75 ± 0.12"
    assert run_tables.percent(0.5, float("nan")) == run_tables.percent(0.5) == "50.00"
    assert run_tables.percent(None) == run_tables.percent(float("nan"), 0.1) == "–"


def test_plain_and_residual_keep_their_style_and_no_two_kinds_are_alike():
    two = styling.group_styles({"residual": "residual", "plain": "plain"})
    assert two == STYLES
    styles = styling.group_styles({kind: kind for kind in [*"abcdefghijklmn", "plain", "residual"]})
    assert {kind: styles[kind] for kind in STYLES} == STYLES
    assert len(set(styles.values())) == 16
    without = styling.group_styles({kind: kind for kind in ("plain", "A", "B", "C")})
    assert len({style.color for style in without.values()}) == 4
    looks = [styles[kind] for kind in ("plain", "residual", "a", "b")]
    assert len({style.color for style in looks}) == 4
    assert len({(style.marker, style.line) for style in looks}) == 4


def test_groups_of_one_kind_share_a_scale_and_those_of_several_the_kinds_colours():
    one = styling.group_styles({f"plain, lr {lr}": "plain" for lr in (1, 2, 3)})
    assert len({style.color for style in one.values()}) == 3
    groups = {f"{kind}, lr {lr}": kind for lr in (1, 2) for kind in ("plain", "residual")}
    several = styling.group_styles(groups)
    assert len(set(several.values())) == 4
    for group, kind in groups.items():
        assert several[group].color == STYLES[kind].color


def test_a_kind_has_one_style_in_every_chart(begun_sweep):
    end(begun_sweep, "running")
    findings.save(findings.layers_file(begun_sweep / "residual-20-s0", 0), layers(0))
    networks = [
        Network(kind=kind, depth=8, norm="batch", seed=0, at=layers(0))
        for kind in ("another", "residual")
    ]
    findings.save(begun_sweep / findings.INITIAL, Initial(networks=tuple(networks)))
    tables, diagnostics = report.read(begun_sweep)
    residual = STYLES["residual"]
    drawn = [
        series.style[:2]  # The ratio's lines tell norms apart.
        for chart in diagnostics
        for series in chart.legend()
        if "residual" in series.label
    ]
    assert len(drawn) == 3 and set(drawn) == {residual[:2]}
    assert f"--kind: {residual.color}" in page.render(tables, diagnostics)


def test_depths_stand_in_order_in_the_legend_of_curves_though_a_kind_lacks_one():
    points = pd.DataFrame(
        [("plain", 8), ("plain", 56), ("residual", 20)], columns=["group", "depth"]
    )
    records = points.assign(run=["a", "b", "c"], step=1, measure="test_error", error=0.5, seed=0)
    legend = [series.label for series in curves.means(records).legend()]
    assert legend == ["depth 8", "depth 20", "depth 56", "training, running", "test"]


def test_a_panel_without_a_value_is_left_out_and_a_chart_without_a_panel():
    table = layer_table(weight_gradient_norm=[1.0, None], input_gradient_norm=[None, None])
    empty = table.assign(depth=20, weight_gradient_norm=None)
    chart = diagnostic_charts.gradients(pd.concat([table, empty]), STYLES)
    assert [panel.title for panel in chart.panels] == ["depth 8", "depth 20"]
    [left] = drawable([chart])
    assert [panel.title for panel in left.panels] == ["depth 8"]
    ratio = diagnostic_charts.gradient_ratio(table.assign(norm="none", seed=0), STYLES)
    nothing = ((None, None), (None, None))
    plane = Plane(**PLACE, seed=0, losses=nothing, errors=nothing)
    field = diagnostic_charts.plane(diagnostic_tables.Planes(8, {"plain": plane}))
    assert drawable([ratio, field]) == []


@pytest.mark.parametrize(
    "losses, said", [((2.0, 2.4), ": flat, loss 2.00 to 2.40"), ((2.0, 2.6), "")]
)
def test_a_plane_of_one_colour_says_that_it_is_flat(losses, said):
    plane = Plane(**PLACE, seed=0, losses=(losses, (None, 2.2)), errors=(losses, losses))
    (panel,) = diagnostic_charts.plane(diagnostic_tables.Planes(56, {"plain": plane})).panels
    assert panel.title == f"plain 56{said}"


def test_a_sweep_whose_errors_are_not_finite_has_a_page_without_curves(begun_sweep):
    (begun_sweep / "plain-8-s0" / "metrics.jsonl").write_text('{"step": 2, "error": null}\n')
    assert 'data-chart="curves"' not in rendered(begun_sweep)


def test_what_an_axis_cannot_show_is_a_gap():
    values = [1.0, None, float("inf"), float("nan"), 1e300, -2.0, 0.0]
    gaps = [None] * 4
    assert numbers(values) == [1.0, *gaps, -2.0, 0.0]
    assert numbers(values, positive=True) == [1.0, *gaps, None, None]


def layer_table(**measures):
    names = {"run": "r", "kind": "residual", "depth": 8, "seed": 0, "moment": AFTER}
    names["name"] = ""
    size = len(next(iter(measures.values())))
    missing = dict.fromkeys(MEASURES)
    return pd.DataFrame([names] * size).assign(layer=range(1, size + 1), **missing | measures)


def test_many_kinds_get_a_panel_each_for_their_gradients():
    kinds = [f"kind {i}" for i in range(7)]
    tables = [
        layer_table(weight_gradient_norm=[1.0, 2.0]).assign(kind=kind, depth=depth, moment=moment)
        for kind in kinds
        for depth in (8, 20)
        for moment in (BEFORE, AFTER)
    ]
    styles = styling.group_styles({kind: kind for kind in kinds})
    [chart] = drawable([diagnostic_charts.gradients(pd.concat(tables), styles)])
    assert [panel.title for panel in chart.panels] == kinds
    labels = [f"depth {depth}, {moment}" for depth in (8, 20) for moment in (BEFORE, AFTER)]
    for panel in chart.panels:
        assert [series.label for series in panel.series] == labels


def test_a_chart_of_diagnostics_with_too_many_lines_is_named(begun_sweep, capsys):
    networks = [
        Network(kind=f"kind {i}", depth=8, norm="batch", seed=0, at=layers(0))
        for i in range(MOST_LINES + 1)
    ]
    findings.save(begun_sweep / findings.INITIAL, Initial(networks=tuple(networks)))
    report.write(begun_sweep)
    line = "two that look the same: Gradients before training, with and without batch"
    assert line in capsys.readouterr().out
    text = (begun_sweep / "report.html").read_text()
    assert line in text and 'id="gradient_ratio"' not in text


def test_responses_are_in_order_and_from_large_to_small_without_those_that_have_none():
    table = layer_table(response_std=[0.5, 0.2, 0.9, None])
    ordered, ranked = diagnostic_charts.responses(table, STYLES).panels
    assert ordered.series[0].y == [0.5, 0.2, 0.9]
    assert ranked.series[0].y == [0.9, 0.5, 0.2]
    assert ranked.series[0].x == [1, 2, 3]


def test_identity_shares_are_by_block_and_plain_networks_have_none():
    table = layer_table(identity_share=[None, 0.6, None, 0.7])
    [panel] = diagnostic_charts.identity_share(table, STYLES).panels
    assert (panel.title, panel.series[0].x, panel.series[0].y) == (AFTER, [1, 2], [0.6, 0.7])
    plain = table.assign(kind="plain", identity_share=0.0, moment=BEFORE)
    assert drawable([diagnostic_charts.identity_share(plain, STYLES)]) == []


def test_blocks_keep_their_numbers_whatever_was_measured():
    shares = {"r": [0.0, None, 0.6, 0.7], "s": [0.2, None, None, 0.9]}
    tables = [layer_table(identity_share=of).assign(run=run) for run, of in shares.items()]
    for table, expected in (
        (tables[0], [0.0, 0.6, 0.7]),
        (pd.concat(tables), [0.1, 0.6, 0.8]),
        (pd.concat([tables[0], tables[1].assign(moment=BEFORE)]), [0.2, None, 0.9]),
    ):
        [series] = diagnostic_charts.identity_share(table, STYLES).panels[0].series
        assert series.x == [1, 2, 3]
        assert series.y == [pytest.approx(share) for share in expected]


def test_the_ratio_is_of_the_first_to_the_last_layer():
    table = layer_table(input_gradient_norm=[4.0, 1.0, 2.0]).assign(norm="none", seed=0)
    [panel] = diagnostic_charts.gradient_ratio(table, STYLES).panels
    assert [(one.label, one.x, one.y) for one in panel.series] == [
        ("residual, without BN", [8], [2.0])
    ]


@pytest.mark.parametrize("last", [8, 9])
def test_after_training_is_after_the_last_step_of_the_config_alone(begun_sweep, last):
    end(begun_sweep, "running")
    run = begun_sweep / "plain-8-s0"
    for step in (0, 4, last):
        findings.save(findings.layers_file(run, step), layers(step))
    place = PLACE | {"step": last}
    line = Line(**place, losses=(2.0, 1.0), errors=(1.0, 0.5))
    findings.save(findings.folder(run) / findings.LINE, line)
    square = ((1.0, 1.0), (1.0, 1.0))
    plane = Plane(**place, seed=0, losses=square, errors=square)
    findings.save(findings.folder(run) / findings.PLANE, plane)
    table = diagnostic_tables.read_layers(SweepFolder(begun_sweep))
    assert table["moment"].tolist() == ([BEFORE, AFTER] if last == 9 else [BEFORE])
    _, diagnostics = report.read(begun_sweep)
    of_the_end = {"responses", "line", "plane"}
    assert of_the_end & {chart.name for chart in drawable(diagnostics)} == (
        of_the_end if last == 9 else set()
    )


def test_medians_are_spoken_of_where_there_is_more_than_one_seed():
    table = layer_table(input_gradient_norm=[1.0]).assign(norm="none", seed=0)
    for chart in (diagnostic_charts.initialisation, diagnostic_charts.gradient_ratio):
        assert chart(table, STYLES).caption.endswith(" One seed.")
        two = pd.concat([table, table.assign(seed=1)])
        assert chart(two, STYLES).caption.endswith(" Medians over seeds.")


PLACE = {"step": 1, "images": 1, "positions": (0.0, 1.0)}


@pytest.mark.parametrize(
    "kind, found",
    [
        (Line, PLACE | {"losses": [1.0], "errors": [1.0, 1.0]}),
        (Line, PLACE | {"losses": [], "errors": [], "positions": []}),
        (Plane, PLACE | {"seed": 0, "losses": [[1.0, 1.0]], "errors": [[1.0, 1.0]] * 2}),
    ],
)
def test_a_line_or_plane_that_cannot_be_drawn_is_refused_in_words(tmp_path, kind, found):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="found.json"):
        findings.load(path, kind)
