import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import degradation, machines
from experiments import plan
from experiments.compiling import bound, identity
from experiments.sweeping.machine import MachineConfig, run_seconds
from resnet_flax.config import parse
from resnet_flax.errors import UserError
from resnet_flax.models import cost
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.storage.run_folder import RunFolder
from tests.given import expanded

DURATIONS = st.lists(st.floats(0.1, 1000), min_size=1, max_size=40)


def machine(name, **changes):
    config = machines.get_config(name).to_dict()
    for field, value in changes.items():
        *sections, last = field.split("__")
        inner = config
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return parse(config, MachineConfig, "machine")


def cifar_chips(chips, share=0.9):
    known = {"speed__cifar10__images_per_second": 1e4, "scaling__cifar10__share": share}
    return machine("v5e_64", chips=chips, **known)


def sweep(name, **changes):
    config = degradation.get_config(name)
    config.update(changes)
    return expanded(config.to_dict())


@pytest.mark.parametrize(
    "seconds, slots, free",
    [
        ([5], 1, [5]),
        ([1, 2, 3], 1, [6]),
        ([1, 2, 3], 5, [0, 0, 1, 2, 3]),
        # 4 and 3 first, 3 beside 3, 2 beside 4, 2 beside either, though 7 and 7 could be had.
        ([2, 3, 2, 4, 3], 2, [6, 8]),
        ([1, 1, 1, 4], 2, [3, 4]),
    ],
)
def test_the_longest_run_begins_first_where_a_slot_is_free_first(seconds, slots, free):
    assert sorted(plan.list_schedule(seconds, slots)) == free


@given(DURATIONS, st.integers(1, 20))
def test_a_schedule_takes_no_less_than_the_work_does_and_less_than_twice_that(seconds, slots):
    wall = max(plan.list_schedule(seconds, slots))
    bound = max(max(seconds), sum(seconds) / slots)
    assert bound * 0.999 <= wall <= 2 * bound


@given(DURATIONS, st.integers(1, 20))
def test_slots_idle_at_the_end_no_longer_than_the_last_run_takes(seconds, slots):
    free = [end for end in plan.list_schedule(seconds, slots) if end]
    assert max(free) - min(free) <= max(seconds) * 1.001
    # A run that is not the first of its slot is no longer than the longest of those that wait.
    waiting = sorted(seconds, reverse=True)[slots : slots + 1]
    assert max(free) <= max(max(seconds), sum(seconds) / slots + sum(waiting)) * 1.001


@pytest.mark.parametrize("chips", [1, 8, 12, 64])
def test_chip_hours_are_those_of_the_runs_and_the_used_share_of_the_machines(chips):
    known = cifar_chips(chips)
    runs = sweep("cifar10")
    for option in plan.options(runs, known):
        held = sum(run_seconds(runs, known, option.chips_a_run))
        assert option.chip_hours == pytest.approx(held * option.chips_a_run / 3600)
        there = option.utilisation * option.wall * chips / 3600
        assert option.chip_hours == pytest.approx(there)
        assert option.utilisation < 1 + 1e-9


def test_a_run_takes_its_start_up_and_its_images_by_the_ratio_of_multiply_adds():
    run, _ = sweep("cifar10", depths=(20,), seeds=(0,))
    training = 64_000 * 128 / 1e4 * 40_551_040 / 125_485_696
    assert run_seconds([run], cifar_chips(64), 1) == pytest.approx([14.9 + training])
    # Four chips would be four times as fast, but for a tenth that is lost at each doubling.
    (faster,) = run_seconds([run], cifar_chips(64), 4)
    assert faster == pytest.approx(14.9 + training / (4 * 0.9**2))


def test_many_runs_get_a_chip_each_and_few_runs_several():
    seeds = tuple(range(10))
    many = plan.options(sweep("cifar10", seeds=seeds), cifar_chips(8))
    assert plan.best(many).chips_a_run == 1
    few = plan.options(sweep("cifar10", depths=(56,), seeds=(0,)), cifar_chips(8))
    assert plan.best(few).chips_a_run == 2
    # Two chips that are no faster than one are not taken.
    slow = plan.options(sweep("cifar10", depths=(56,), seeds=(0,)), cifar_chips(8, share=0.5))
    assert plan.best(slow).chips_a_run == 1


@pytest.mark.parametrize(
    "changes, counts",
    [
        ({}, [1, 2]),
        ({"model.norm": "none"}, [1, 2, 4, 8]),
        ({"model.bn_scope": "global"}, [1, 2, 4, 8]),
        ({"data.batch_size": 512}, [1, 2, 4, 8]),
        ({"data.batch_size": 192}, [1, 2]),
        ({"data.batch_size": 129}, [1]),
        ({"data.batch_size": 32}, [1]),
    ],
)
def test_no_chip_gets_fewer_images_than_batch_normalisation_needs(changes, counts):
    config = degradation.get_config("cifar10")
    config.run.update_from_flattened_dict(changes)
    found = plan.options(expanded(config.to_dict()), cifar_chips(8))
    assert [option.chips_a_run for option in found] == counts


def test_without_a_scaling_a_run_gets_one_chip_and_the_plan_says_why():
    known = cifar_chips(8, share=None)
    runs = sweep("cifar10")
    found = plan.options(runs, known)
    assert [option.chips_a_run for option in found] == [1]
    assert "machine.scaling.cifar10.share" in "".join(
        plan.explain(found, [run.config for run in runs], known)
    )


def test_the_run_that_is_in_the_way_of_more_chips_is_the_one_explained():
    known = cifar_chips(8)
    runs = sweep("cifar10", depths=(20,), seeds=(0,))
    data = runs[1].config.data.model_copy(update={"batch_size": 1024})
    runs[0] = runs[0]._replace(config=runs[1].config.model_copy(update={"data": data}))
    found = plan.options(runs, known)
    (line,) = (
        line for line in plan.explain(found, [r.config for r in runs], known) if "see" in line
    )
    assert line.startswith("With 4 chips a run, batch normalisation would see 32 images")


def test_a_speed_is_measured_or_assumed_or_a_bound_and_the_plan_says_which():
    runs = sweep("imagenet")
    assumed = {"speed__imagenet2012__images_per_second": 2000.0}
    for known, word in (
        (machine("h100_8"), "AT BEST"),
        (machine("h100_8", **assumed), "ASSUMED"),
        (machine("cpu_2_cores"), "Measured"),
    ):
        lines = plan.explain(plan.options(runs, known), [run.config for run in runs], known)
        (line,) = (line for line in lines if ": speed" in line)
        assert line.startswith(f"{word}: speed")


@pytest.mark.parametrize("name, is_bound", [("h100_8", False), ("v5e_64", True)])
def test_by_bytes_a_plan_is_a_bound_on_a_tpu_only(name, is_bound):
    runs = [run for run in sweep("cifar10", depths=(20, 56)) if run.point.kind == "residual"]
    known = machine(name)
    lines = plan.explain(plan.options(runs, known), [run.config for run in runs], known)
    (line,) = (line for line in lines if ": speed" in line)
    assert "and by the bytes" in line
    assert ("No run is as fast" in line) == is_bound != ("A cache may save bytes" in line)


def test_each_data_set_of_a_grid_has_its_own_speed_in_the_plan():
    known = machine("cpu_2_cores", speed__cifar10__measured=False)
    digits, cifar10 = sweep("digits"), sweep("cifar10", depths=(20,))
    runs = [*digits, *cifar10]
    lines = plan.explain(plan.options(runs, known), [run.config for run in runs], known)
    assert any(line.startswith("Measured: speed on digits, ") for line in lines)
    assert any(line.startswith("ASSUMED: speed on cifar10, ") for line in lines)


def test_a_measured_speed_that_does_not_count_is_not_called_measured():
    known = machine("h100_8", speed__cifar10__images_per_second=9e4, speed__cifar10__measured=True)
    cifar10, imagenet = sweep("cifar10", depths=(20,)), sweep("imagenet", depths=(18,))
    runs = [*cifar10, *imagenet]
    lines = plan.explain(plan.options(runs, known), [run.config for run in runs], known)
    (line,) = (line for line in lines if "90000 images/s" in line)
    assert line.startswith("NOT USED: Measured: speed on cifar10")
    assert sum(line.startswith("AT BEST: speed on ") for line in lines) == 2


@pytest.mark.parametrize("name", ["h100_8", "v5e_64"])
def test_nothing_of_a_machine_that_was_not_measured_claims_to_be(name):
    known = machine(name)
    assert not any(
        entry.measured for entry in (known.startup, *known.speed.values(), *known.scaling.values())
    )
    assert all(speed.images_per_second is None for speed in known.speed.values())


def test_a_chip_that_nobody_knows_needs_a_speed():
    known = machine("h100_8", chip="abacus")
    with pytest.raises(UserError, match=r"make benchmark SUITES=accelerator.*v4, v5e"):
        plan.options(sweep("cifar10"), known)


def test_at_best_a_chip_works_at_its_peak_and_no_run_of_cifar10_gets_two():
    (run, *_) = runs = sweep("cifar10", depths=(32,), seeds=(0,))  # It was not compiled.
    known = machine("v5e_64")
    training = 64_000 * 128 * 6 * run.point.multiply_adds / 197e12
    assert run_seconds([run], known, 1) == pytest.approx([14.9 + training])
    assert [option.chips_a_run for option in plan.options(runs, known)] == [1]


def test_at_best_bytes_count_if_the_programs_of_all_runs_were_compiled():
    plain, residual = runs = sweep("cifar10", depths=(56,), seeds=(0,))
    rows = json.loads(Path("experiments/results/accelerators.json").read_text())
    (row,) = (
        row
        for row in rows
        if row["topology"] == "h100:1"
        and identity.of(residual.config)["model"] == row["program"]["model"]
    )
    assert row["bound_by"] == "memory"
    known = machine("h100_8")
    assert run_seconds([residual], known, 1) == pytest.approx([14.9 + 64 * row["least_ms"]])
    # The plain one was not compiled. Both have the same cost, so both must take the same time.
    of_plain, of_residual = run_seconds([plain, residual], known, 1)
    assert of_plain == of_residual < 14.9 + 16 * row["least_ms"]
    for those, said in (([residual], "by the bytes"), (runs, "without the bytes")):
        configs = [run.config for run in those]
        assert said in "".join(plan.explain(plan.options(those, known), configs, known))


def test_a_plan_is_the_same_in_any_folder(tmp_path, monkeypatch):
    runs = [run for run in sweep("cifar10", depths=(56,)) if run.kind == "residual"]
    here = run_seconds(runs, machine("h100_8"), 1)
    monkeypatch.chdir(tmp_path)
    bound._rows.cache_clear()
    assert run_seconds(runs, machine("h100_8"), 1) == here


def test_a_data_set_without_a_speed_is_refused_naming_those_with_one():
    with pytest.raises(UserError, match=r"cifar10, imagenet2012, got 'digits'"):
        plan.options(sweep("digits"), machine("h100_8"))


@pytest.mark.parametrize(
    "counted, family, depth, shape",
    [
        (machines.RESNET56_8X8, "cifar", 56, (8, 8, 1)),
        (machines.RESNET56_32X32, "cifar", 56, (32, 32, 3)),
        (machines.RESNET18_224X224, "imagenet", 18, (224, 224, 3)),
        (machines.RESNET50_224X224, "imagenet", 50, (224, 224, 3)),
    ],
)
def test_the_networks_whose_speeds_are_known_cost_what_is_said(counted, family, depth, shape):
    shortcut = "projection" if depth == 50 else "pad"
    classes = 10 if family == "cifar" else 1000
    fields = {"num_classes": classes, "bottleneck_stride": "3x3"}
    model = build_resnet(family, depth, shortcut, **fields)
    assert counted == cost.totals(cost.layer_table(model, shape))[1]


def test_the_committed_digits_sweep_took_what_the_plan_of_it_says_within_a_quarter():
    runs = sweep("digits", seeds=(0, 1, 2, 3, 4))
    folders = {run: RunFolder(Path("experiments/results/digits", run.name)) for run in runs}
    seconds = {run: folder.wall_seconds(folder.status()) for run, folder in folders.items()}
    took = {run: known for run, known in seconds.items() if known}
    assert len(took) == 49
    planned = sum(run_seconds(list(took), machine("cpu_2_cores"), 1))
    assert planned == pytest.approx(sum(took.values()), rel=0.25)


@pytest.mark.parametrize(
    "seconds, said",
    [
        (59.6, "1 min 0 s"),
        (3599.6, "1.0 h"),
        (199, "3 min 19 s"),
        (3600, "1.0 h"),
        (172_800, "2.0 days"),
    ],
)
def test_a_duration_is_said_in_the_units_that_fit_it(seconds, said):
    assert plan.duration(seconds) == said


def run(*flags):
    argv = [sys.executable, "-m", "experiments.plan", *flags]
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--machine=configs/machines.py", "--machine.chips=0"], "machine.chips: .*got 0"),
        (
            ["--machine=configs/machines.py", "--machine.speed.digit.source="],
            "accepted: cifar10, digits",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ([], "Expected --machine=FILE.py:NAME"),
                (["--machine=configs/machines.py:abacus"], "or cpu_2_cores, got 'abacus'"),
                (["--machine=configs/machines.py", "--config.seed=3"], "accepted: .*seeds"),
            )
        ),
    ],
)
def test_a_wrong_machine_is_one_line_and_status_2(flags, message):
    done = run("--config=configs/degradation.py:digits", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("plan: ")
    assert re.search(message, line), line


def test_the_plan_of_few_large_runs_shows_chips_over_a_run_as_the_best():
    done = run("--config=configs/degradation.py:imagenet", "--machine=configs/machines.py:h100_8")
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "(best)" in line)
    assert "4 (best)" in row and "100%" in row
    assert "Chips over runs: 4 chips a run, 2 at once." in done.stdout
    assert "AT BEST: speed" in done.stdout
