import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest

from experiments import benchmark
from experiments.benchmarks import engine, input_pipeline, profiling, worker
from experiments.benchmarks.turns import Worker, alternate, ours, spread
from experiments.benchmarks.worker import Case
from experiments.reporting import figures
from resnet_flax.errors import FaultError

TINY = {"depth": 8, "size": 8, "channels": 1, "batch_size": 8, "devices": 2}


def test_programs_are_built_and_timed_in_turn():
    cases = {"scanned": ours(scan=True, **TINY), "flax": ours(kind="flax", **TINY | {"devices": 1})}
    rows = alternate(cases, rounds=3)
    assert [row["program"] for row in rows] == ["scanned", "flax"]
    assert [row["devices"] for row in rows] == [2, 1]
    assert rows[0]["all_reduces"] == 1
    for row in rows:
        assert row["runs"] == 3
        assert 0 < row["min_ms"] <= row["step_ms"] <= row["max_ms"]
        assert min(row["trace_s"], row["compile_s"], row["temporary_mib"]) > 0


def test_a_program_that_fails_ends_the_measurement():
    with pytest.raises(FaultError, match="ended with status 1"):
        alternate({"odd": ours(**TINY | {"depth": 9})}, rounds=1)


def test_a_program_that_cannot_be_built_beside_others_is_left_out(capfd):
    cases = {"ours": ours(**TINY), "odd": ours(**TINY | {"depth": 9})}
    (row,) = alternate(cases, rounds=1)
    assert (row["program"], row["platform"], row["devices"]) == ("ours", "cpu", 2)
    assert "leaves odd out: A benchmark process ended with status 1" in capfd.readouterr().err


def test_a_program_that_would_run_on_another_platform_is_refused(capfd):
    with pytest.raises(FaultError, match="ended with status 1"):
        Worker(*ours(**TINY), "tpu")
    assert "Expected a tpu, jax found a cpu." in capfd.readouterr().err


def test_programs_that_use_no_device_are_timed_in_turn():
    script = "import sys; print('{}', flush=True)\nfor _ in sys.stdin: print(1.5, flush=True)"
    command = sys.executable, "-c", script
    cases: dict[str, Any] = {"ours": (command, {}), "tf.data": (command, {})}
    rows = alternate(cases, rounds=2)
    assert [(row["program"], row["step_ms"]) for row in rows] == [("ours", 1.5), ("tf.data", 1.5)]


def test_a_program_takes_no_more_devices_than_it_is_given():
    case = Case(**TINY | {"devices": 1, "compile_only": True})
    assert len(jax.devices()) > 1
    assert worker.build(case).costs["devices"] == 1


def test_counting_multiply_adds_opens_no_device():
    script = (
        "from resnet_flax.models import catalogue, cost;"
        "net = catalogue.build_resnet('cifar', 20, 'pad', num_classes=10);"
        "print(cost.multiply_adds(net, (32, 32, 3)))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "none_of_these"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["40551040"], done.stderr


def test_the_middle_is_the_median():
    assert spread([5.0, 1.0, 3.0]) == {"step_ms": 3.0, "min_ms": 1.0, "max_ms": 5.0, "runs": 3}


def test_costs_are_drawn_against_depth(tmp_path):
    costs = {"step_ms": 1.0, "trace_s": 1.0, "compile_s": 2.0, "temporary_mib": 3.0}
    rows = [{"depth": d, "program": p, **costs} for d in (20, 56) for p in ("unrolled", "scanned")]
    figures.save_costs(pd.DataFrame(rows), [tmp_path / "costs.svg"])
    drawn = (tmp_path / "costs.svg").read_text()
    assert "unrolled" in drawn
    assert "scanned" in drawn


def test_utilisation_counts_busy_cores_once_each_has_ended_its_first_run():
    tasks = [("a", 0, 4), ("b", 1, 4), ("a", 4.5, 1.5), ("b", 5.2, 2.8), ("a", 6, 1)]
    row = engine._utilisation(tasks, cores=2)
    assert row["first_runs_s"] == 5  # Until b has ended its first, at 5; the last ends at 8.
    assert row["utilisation"] == pytest.approx((1 + 1 + 2.8) / (2 * 3))
    assert row["median_gap_ms"] == pytest.approx(200)  # Of 500, 200 and 0.
    assert (row["processes"], row["median_run_s"]) == (2, 1.5)


SMALLEST = """
import sys
from types import SimpleNamespace

from experiments import benchmark
from experiments.benchmarks import convolution, engine
from resnet_flax.runtime import process

benchmark.SHAPES = {"depth 8, 8x8": {"depth": 8, "size": 8, "channels": 1}}
benchmark.PROFILED = tuple(benchmark.SHAPES)
benchmark.ACCELERATOR = {"CIFAR depth 8": {"depth": 8, "size": 8}}
benchmark.DEPTHS = benchmark.DEPTHS_OF_MEMORY = benchmark.DEPTHS_OF_SEEDS = (8,)
benchmark.STARTED = benchmark.TRAINED = ("resnet8",)
convolution.GRID = convolution.GRID[2:3]
engine.RUNS = 6
process.set_up()
_, suite, workdir = sys.argv
benchmark.main(SimpleNamespace(suite=suite, workdir=workdir, rounds=2, against="", net=None))
"""


@pytest.mark.slow
@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_every_suite_of_the_benchmark_ends_with_its_rows(suite, tmp_path):
    prepared = Path(os.environ.get("TFDS_DATA_DIR", ""), input_pipeline.DATA_SET)
    if suite in ("input", "stream") and not prepared.is_dir():
        pytest.skip(f"TFDS_DATA_DIR has no {prepared.name}")
    command = [sys.executable, "-c", SMALLEST, suite, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / f"{suite}.json").read_text())["rows"]
    assert (tmp_path / f"{suite}.md").read_text().count("\n|") > 2


@pytest.mark.slow
def test_a_profile_finds_every_operation_of_a_step():
    rows = list(profiling.measure({"tiny": TINY | {"size": 16, "steps_per_dispatch": 2}}, 3))
    found = {(row["operation"], row["stage"]) for row in rows}
    stages = {"stem", "stage1", "stage2", "stage3"}
    assert {stage for what, stage in found if what == profiling.FORWARD} == stages
    fused = {stage for what, stage in found if what == profiling.GRADIENTS[1]}
    assert {"stage2", "stage3"} <= fused and (profiling.HIDDEN, "") in found
    # No gradient with respect to the images.
    assert {stage for what, stage in found if what == profiling.GRADIENTS[0]} == stages - {"stem"}
    times = {(row["operation"], row["stage"]): row for row in rows}
    forward = times[profiling.FORWARD, "stage1"]
    assert forward["ms"] > 0 and forward["least_ms"] > 0
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    # 3 stages of equal FLOPs but for their first layer, whose input has half the channels.
    assert 0.5 < times[profiling.FORWARD, "stage2"]["least_ms"] / forward["least_ms"] <= 1


@pytest.mark.parametrize(
    "source, operation",
    [
        (
            "jvp(ResNet)/stage2_block1/conv1/conv_general_dilated",
            ("convolution, forward", "stage2"),
        ),
        ("transpose(jvp(ResNet))/bn/mul", ("BN, backward", "stem")),
        ("psum", (profiling.WAITING, "")),
        ("div", (profiling.OTHER, "")),
    ],
)
def test_an_instruction_is_told_by_its_source(source, operation):
    assert profiling.operation_of(f"jit(_fun)/shard_map/while/body/{source}") == operation
