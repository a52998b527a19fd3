"""Which programs a config has, and what happens to a compiler that is absent or hangs."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from configs import degradation
from experiments.compiling import chips, programs
from resnet_flax.errors import FaultError, UserError
from tests.given import expanded


def test_a_sweep_has_a_program_for_each_network_and_not_for_each_run():
    config = degradation.get_config("cifar10")
    config.vary = {"optim": {"lr": (0.1, 0.05)}, "model": {"dtype": ("float32", "bfloat16")}}
    runs = expanded(config.to_dict())
    found = programs.distinct({run.name: run.config for run in runs})
    networks = {(c.model.depth, c.model.shortcut, c.model.dtype) for c in found.values()}
    assert len(networks) == len(found) == len(config.depths) * len(config.kinds) * 2
    assert len(runs) == len(found) * 2 * len(config.seeds)


def test_another_optimiser_is_another_program_and_another_rate_is_not():
    kinds = {
        "sgd": {"momentum": 0.9}, "half": {"lr": 0.05}, "warm-up": {"warmup_steps": 5},
        "adam": {"optimizer": "adam"},
        "clipped": {"clip_norm": 1.0}, "frozen": {"frozen": ("stage1",)},
    }  # fmt: skip
    config = degradation.get_config("digits")
    config.kinds = {name: {"optim": fields} for name, fields in kinds.items()}
    config.depths, config.seeds = (8,), (0,)
    runs = expanded(config.to_dict())
    found = programs.distinct({run.kind: run.config for run in runs})
    assert list(found) == ["sgd", "adam", "clipped", "frozen"]


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "h100:2x2", "v7:2x2", "v5e:0x1", ""])
def test_an_unknown_topology_is_refused_with_examples(name):
    with pytest.raises(UserError, match=f"v5e:4x4.*h100:8, got '{name}'"):
        chips.topology(name)


def test_the_clock_of_a_tpu_is_near_what_is_published():
    # https://jax-ml.github.io/scaling-book/tpus: 1.5 GHz for v5e and 1.75 GHz for v5p.
    clocks = [chips.CHIPS[name].clock for name in ("v5e", "v5p")]
    assert clocks == pytest.approx([1.5e9, 1.75e9], rel=0.01)


def test_an_absent_compiler_is_one_line_with_a_way_out(tmp_path):
    command = [sys.executable, "-m", "experiments.compile", "--config=configs/digits.py:resnet8"]
    python = f"--compiler_python={tmp_path}/python"
    done = subprocess.run([*command, "--topology=v5e:2x2", python], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"got {tmp_path}/python. `make compilers` installs" in done.stderr


@pytest.fixture
def config():
    return expanded(degradation.get_config("digits").to_dict())[0].config


def stand_in(folder, script):
    """A program in place of the Python with the compilers."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_compiler_that_hangs_is_ended_and_leaves_nothing(config, tmp_path, temporary):
    python = stand_in(tmp_path, f"echo $$ > {tmp_path}/pid; touch $TMPDIR/lock; sleep 60 & wait")
    with pytest.raises(FaultError, match=r"did not end in 3 s.*--timeout"):
        programs.compile_steps(config, chips.topology("v5e:2x2"), python, 3, full=False)
    ended = subprocess.run(["kill", "-0", (tmp_path / "pid").read_text().strip()], check=False)
    assert ended.returncode
    assert not list(temporary.iterdir())


def test_the_last_words_of_a_compiler_that_dies_are_shown(config, tmp_path, temporary):
    python = stand_in(tmp_path, "echo first >&2; echo no libtpu.so >&2; exit 3")
    with pytest.raises(FaultError, match=r"status 3: no libtpu.so\."):
        programs.compile_steps(config, chips.topology("v5e:2x2"), python, 60, full=False)
    assert not list(temporary.iterdir())


def lives(process):
    """False also for a zombie: in some containers nobody asks for the end of an orphan."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("sign", ["TERM", "KILL"])
def test_the_compiler_ends_with_the_command(tmp_path, sign):
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; cat > {tmp_path}/given"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    config = ("--config=configs/digits.py:resnet8", "--topology=v5e:2x2")
    python = f"--compiler_python={stand_in(tmp_path, f'[ $1 = -c ] || {{ {script}; }}')}"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.compile", *config, python],
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    while not (tmp_path / "pid").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(getattr(signal, f"SIG{sign}"))
    process.wait()
    compiler = int((tmp_path / "pid").read_text())
    while lives(compiler):
        time.sleep(0.01)
    left = list(temporary.glob("resnet_flax_compile_*"))
    assert bool(left) == (sign == "KILL")


@pytest.mark.parametrize("text, status, said", [("no JSON", 2, "Expected JSON in"), ("[]", 1, "")])
def test_a_file_for_findings_is_looked_at_before_the_work(tmp_path, text, status, said):
    (tmp_path / "there.json").write_text(text)
    python = stand_in(tmp_path, f"[ $1 = -c ] || {{ touch {tmp_path}/begun; exit 3; }}")
    flags = ["--config=configs/digits.py:resnet8", "--topology=v5e:2x2"]
    flags += [f"--compiler_python={python}", f"--output={tmp_path}/there.json"]
    argv = [sys.executable, "-m", "experiments.compile", *flags]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert (tmp_path / "begun").exists() == (status == 1)
